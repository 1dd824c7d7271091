"""Opening a dataset or a run runs nothing that it brings, and reads and writes nothing that lies outside it.

Each attack has a canary: a module that leaves a mark when it is imported, numbers of 666 that stand outside, a folder
whose files are counted.
"""

import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from mmap import ACCESS_READ, mmap
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pyarrow
import pytest
import torch
from conftest import Payday, small_model
from gymnasium import spaces
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from test_cli import files, run, trained, write_npz  # noqa: F401
from test_datasets import FLAT, edit_groups, edit_metadata, folder, random_episodes, root, template, write  # noqa: F401
from test_readers import numbers

from dt.cli import main
from dt.learning.run import check_model_size, load_run
from envs import DataError, EnvironmentSpec, load
from envs.errors import MissingEnvError, SpaceError
from envs.reading.hdf5 import _places
from envs.space_json import space_from_json, space_to_json
from transformer.errors import CheckpointError
from transformer.files import write_json
from transformer.runs.checkpoint import check_checkpoint
from transformer.text.cli import main as text_main

SECRET = 666.0
SPACES = {"observation_space": FLAT[0], "action_space": FLAT[1]}


@pytest.fixture(autouse=True)
def marker(tmp_path, monkeypatch):
    """The file that a hostile module writes, and that no test may find in the end."""
    path = tmp_path / "code-ran"
    (tmp_path / "hostile_module.py").write_text(f"open({str(path)!r}, 'w').close()\nclass Env: pass\nenv = Env\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    assert not path.exists()
    assert "hostile_module" not in sys.modules


class Pickled:
    """What leaves the mark when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_the_canary_sings(tmp_path, marker):
    pickle.loads(pickle.dumps(Pickled(marker))).close()
    assert marker.exists()
    marker.unlink()
    subprocess.run([sys.executable, "-c", "import hostile_module"], cwd=tmp_path, check=True)
    assert marker.exists()
    marker.unlink()


def refused(source, *words, **options):
    with pytest.raises(DataError) as caught:
        load(source, **options)
    for word in words:
        assert word in str(caught.value)


# Environments.

HOSTILE = {"id": "Intruder-v0", "entry_point": "hostile_module:Env", "kwargs": {}}


@pytest.mark.parametrize("layout", ["hdf5", "arrow", "parquet"])
def test_no_environment_is_built_for_spaces_that_are_missing(root, layout):  # noqa: F811
    identity = write("flat/hostile-v0", random_episodes(*FLAT), *FLAT, data_format=layout)
    gone = {"observation_space": None, "action_space": None}
    edit_metadata(**gone, env_spec=json.dumps(HOSTILE), eval_env_spec=json.dumps(HOSTILE))(root / identity)
    refused(identity, "metadata.json: no observation_space")
    assert load(identity, spaces=SPACES).num_episodes == 3


ENVIRONMENTS = {
    "an entry point": HOSTILE,
    "a module before the id": {"id": "hostile_module:Env-v0"},
    "an entry point that is the id": {"id": "hostile_module:Env"},
    "a wrapper": {
        "id": "Intruder-v0",
        "additional_wrappers": [{"name": "Env", "entry_point": "hostile_module:Env", "kwargs": {}}],
    },
    "another library's way to make": {"id": "GymV26Environment-v0", "kwargs": {"env_id": "hostile_module:Env-v0"}},
    "an import in an argument": {"id": "Payday-v0", "kwargs": {"limit": "hostile_module:env"}},
}


@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_an_environment_that_is_not_registered_is_never_made(folder, env, capsys):  # noqa: F811
    edit_metadata(env_spec=json.dumps(env))(folder)
    assert main(["inspect", str(folder)]) == 0
    with pytest.raises(MissingEnvError):
        load(folder).environment.make()


def test_a_registered_id_is_made_by_its_own_entry_point(folder):  # noqa: F811
    wrapper = {"name": "Env", "entry_point": "hostile_module:Env", "kwargs": {}}
    edit_metadata(env_spec=json.dumps({**HOSTILE, "id": "Payday-v0", "additional_wrappers": [wrapper]}))(folder)
    env = load(folder).environment.make()
    assert isinstance(env.unwrapped, Payday)
    env.close()


NAMING = [
    {"xml_file": "/etc/hopper.xml"},
    {"xml_file": "../hopper.xml"},
    {"xml_file": "~/hopper.xml"},
    {"model": {"path": ["a", "models/hopper.xml"]}},
    {"address": "http://127.0.0.1"},
]


@pytest.mark.parametrize("kwargs", NAMING, ids=str)
def test_an_argument_of_a_files_that_names_another_file_is_not_taken(kwargs, tmp_path):
    spec = EnvironmentSpec.from_json(json.dumps({"id": "Hopper-v5", "kwargs": kwargs}))
    with pytest.raises(MissingEnvError, match=r"comes from a file and names what lies outside.*--environment-kwargs"):
        spec.make()


def test_what_the_user_says_is_taken_and_words_are_no_paths(tmp_path):
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    EnvironmentSpec("Hopper-v5", {"xml_file": str(assets / "hopper.xml")}).make().close()
    EnvironmentSpec.from_json({"id": "Hopper-v5", "kwargs": {"xml_file": "hopper.xml"}}).make().close()
    again = load_through_the_cache(tmp_path)
    assert again.environment.from_file


def load_through_the_cache(tmp_path):
    """A dataset large enough to be kept, read a second time."""
    path = tmp_path / "large.npz"
    metadata = json.dumps({"env_spec": json.dumps({"id": "Hopper-v5"})})
    arrays = {"observations": np.zeros((2000, 300)), "actions": np.zeros((2000, 2)), "rewards": np.zeros(2000)}
    np.savez(path, **arrays, lengths=[2000], metadata=metadata)
    os.utime(path, (1, 1))
    load(path)
    return load(path)


def test_a_run_with_a_hostile_environment_is_opened_and_not_played(run, capsys):  # noqa: F811
    for env in (HOSTILE, ENVIRONMENTS["a module before the id"]):
        rewrite(run, "run.json", lambda document, env=env: document.update(environment=env))
        assert load_run(run).environment.id == env["id"]
        assert main(["evaluate", str(run), "--target-return", "3"]) == 2
        assert "not registered" in capsys.readouterr().err


def rewrite(run, name, change):  # noqa: F811
    """Change a JSON file of a run's newest checkpoint, with a manifest that agrees: whoever made it can do that."""
    import hashlib

    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    path = checkpoint / name
    if name.endswith(".json"):
        document = json.loads(path.read_text())
        change(document)
        write_json(path, document)
    else:
        change(path)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(checkpoint / "manifest.json", manifest)
    return checkpoint


# Paths.


@pytest.mark.parametrize("identity", ["../outside/x-v0", "a/../../outside/x-v0", "{outside}", "~/outside/x-v0"])
def test_an_id_never_leaves_the_root(root, tmp_path, monkeypatch, identity):  # noqa: F811
    """A path that leads to a file is the user's own word, and these lead to one from the root alone."""
    write("outside/x-v0", random_episodes(*FLAT), *FLAT)
    (root / "outside").rename(tmp_path / "outside")
    (root / "a").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep" / "empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "empty")
    refused(identity.format(outside=f"{root}/../no/x-v0"), "no such file or folder")


@pytest.mark.parametrize("identity", ["../stolen-v0", "a/../../stolen-v0", "/tmp/stolen-v0", "a/b/../../../stolen-v0"])
def test_nothing_is_written_outside_the_root(root, tmp_path, payday, identity, capsys):  # noqa: F811
    source = write_npz(tmp_path / "coins.npz", payday)
    before = files(tmp_path)
    assert main(["import", str(source), identity]) == 2
    assert files(tmp_path) == before
    assert not Path("/tmp/stolen-v0").exists()


def test_a_name_from_a_file_names_no_folder_outside(payday, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    source = write_npz(tmp_path / "coins.npz", payday, dataset_id="../../stolen\x1b[2J-v0")
    before = files(tmp_path)
    steps = ["--steps", "1", "--width", "8", "--num-layers", "1", "--episodes", "1", "--target-return", "5"]
    steps += ["--no-calibration"]
    assert main(["train", str(source), *steps]) == 0
    written = files(tmp_path) - before
    assert all(name.startswith("here/runs") for name in written)
    assert "\x1b" not in "".join(capsys.readouterr())


def secret(path: Path) -> np.ndarray:
    """Numbers outside, of the shape of episode_1's rewards."""
    with h5py.File(path, "w") as file:
        file["rewards"] = np.full(5, SECRET)
        file["group/rewards"] = np.full(5, SECRET)
    return np.full(5, SECRET)


def links(path: Path, raw: Path):
    layout = h5py.VirtualLayout((5,), float)
    layout[:] = h5py.VirtualSource(str(path), "rewards", (5,))

    def whole_episode(file):
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink(str(path), "/group")

    return {
        "an external link": lambda file: file.__setitem__(
            "episode_1/rewards", h5py.ExternalLink(str(path), "/rewards")
        ),
        "an external link for an episode": whole_episode,
        "a soft link": lambda file: file.__setitem__("episode_1/rewards", h5py.SoftLink("/episode_0/rewards")),
        "external storage": lambda file: file["episode_1"].create_dataset(
            "rewards", shape=(5,), dtype=float, external=[(str(raw), 0, 40)]
        ),
        "a virtual array": lambda file: file["episode_1"].create_virtual_dataset("rewards", layout),
    }


@pytest.mark.parametrize("kind", ["hdf5", "flat"])
@pytest.mark.parametrize("attack", links(Path("x"), Path("y")))
def test_numbers_that_lie_in_another_file_are_not_read(folder, tmp_path, attack, kind):  # noqa: F811
    secret(tmp_path / "secret.h5")
    np.full(5, SECRET).tofile(tmp_path / "secret.raw")
    put = links(tmp_path / "secret.h5", tmp_path / "secret.raw")[attack]

    def change(file):
        if "episode_1/rewards" in file:
            del file["episode_1/rewards"]
        put(file)

    if kind == "hdf5":
        edit_groups(change)(folder)
        refused(folder, "episode_1", "expected the data itself")
        return
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        file["episode_1/rewards"] = np.zeros(5)
        put(file) if attack == "an external link for an episode" else change(file)
        for name, array in numbers().items():
            file[name] = array[:5]
        del file["rewards"]
        if attack == "an external link for an episode":
            file["rewards"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/rewards")
        else:
            file.move("episode_1/rewards", "rewards")
    refused(tmp_path / "flat.hdf5", "rewards", "expected the data itself")


@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5", "0", "0/part-0.arrow"])
def test_links_that_lead_out_of_a_folder_are_not_followed(root, tmp_path, name):  # noqa: F811
    layout = "arrow" if name[0] == "0" else "hdf5"
    identity = write("flat/linked-v0", random_episodes(*FLAT), *FLAT, data_format=layout)
    path = root / identity / "data" / name
    outside = tmp_path / "outside" / path.name
    outside.parent.mkdir()
    path.rename(outside)
    path.symlink_to(outside)
    refused(identity, f"{name}: a link to what lies outside", "expected the data itself")
    (tmp_path / "mine").symlink_to(root / identity)  # a link of the user's own to all of it
    refused(tmp_path / "mine", "a link to what lies outside")
    path.unlink()
    outside.rename(path)
    assert load(tmp_path / "mine").num_episodes == 3


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5", None])
def test_a_pipe_is_not_waited_for(folder, tmp_path, name):  # noqa: F811
    path = tmp_path / "pipe.csv" if name is None else folder / "data" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    refused(path if name is None else folder, f"{path}: neither a file nor a folder")


def test_a_manifest_names_no_file_outside_its_checkpoint(run, tmp_path):  # noqa: F811
    (tmp_path / "secret").write_text("secret")
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in ("../../../secret", str(tmp_path / "secret")):
        write_json(checkpoint / "manifest.json", {**manifest, "sha256": {**manifest["sha256"], name: "0" * 64}})
        with pytest.raises(CheckpointError, match="lies outside"):
            check_checkpoint(checkpoint)
    write_json(checkpoint / "manifest.json", manifest)
    check_checkpoint(checkpoint)
    shutil.move(checkpoint / "model.safetensors", tmp_path / "model")
    (checkpoint / "model.safetensors").symlink_to(tmp_path / "model")
    with pytest.raises(CheckpointError, match="lies outside"):
        check_checkpoint(checkpoint)


ENTRIES_OF_A_RUN = [
    *("run.json", "best.json", "log.jsonl", "checkpoints", "results", "tensorboard"),
    *("checkpoints/step-00000006", "checkpoints/step-00000004/state.json", "results/last.json", "results/new.json"),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
@pytest.mark.parametrize("name", ENTRIES_OF_A_RUN)
def test_a_run_leads_nowhere_else(run, trained, tmp_path, name, kind, capsys):  # noqa: F811
    """What lies outside is neither read, told, written nor removed, and a pipe is not waited for."""
    entry, outside = run / name, tmp_path / "outside"
    shutil.move(run, outside)
    shutil.copytree(outside, run)
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(entry)
    else:
        entry.symlink_to(outside / (name if kind == "link" else "nothing"))
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    resume = ["train", str(trained.parent / "coins.npz"), "--output", str(run), "--resume", "--steps", "7"]
    for command in (["inspect", str(run)], ["evaluate", str(run), "--checkpoint", "best"], resume):
        assert main([*command]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"dt: {run}") or command[0] == "inspect"  # which takes a run without run.json for data
        assert name in said or name == "run.json"
    assert before == {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}


def test_a_link_to_a_whole_run_is_its_owners_choice(run, trained, tmp_path, capsys):  # noqa: F811
    (tmp_path / "latest").symlink_to(run)
    (run / "my-notes").symlink_to(tmp_path)  # nor is what nobody here reads anyone else's business
    assert main(["evaluate", str(tmp_path / "latest"), "--episodes", "1", "--target-return", "3"]) == 0
    data = str(trained.parent / "coins.npz")
    assert main(["train", data, "--output", str(tmp_path / "latest"), "--resume", "--steps", "7"]) == 0


# Pickle.


def test_pickle_in_an_npz_file_is_not_opened(tmp_path, marker):
    arrays = numbers()
    for name in ("rewards", "metadata"):
        np.savez(tmp_path / "evil.npz", **{**arrays, name: np.array([Pickled(marker)], object)})
        refused(tmp_path / "evil.npz", f"{name}: type object is a pickle")
    (tmp_path / "evil.npz").write_bytes(pickle.dumps(Pickled(marker)))
    refused(tmp_path / "evil.npz", "cannot be read as .npz")


def test_pickle_in_a_checkpoint_is_not_opened(run, marker, capsys):  # noqa: F811
    rewrite(run, "model.safetensors", lambda path: torch.save({"weight": Pickled(marker)}, path))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_run(run)
    assert main(["inspect", str(run)]) == 2


def test_pickle_in_a_learners_file_waits_for_trust(tmp_path, marker, capsys, root):  # noqa: F811
    path = tmp_path / "policy.zip"
    with zipfile.ZipFile(path, "w") as file:
        policy = {"policy_class": {"__module__": "stable_baselines3.ppo.policies", ":serialized:": ""}}
        file.writestr("data", json.dumps(policy))
        file.writestr("policy.pth", pickle.dumps(Pickled(marker)))
    assert main(["record", "Payday-v0", "saved/learner-v0", "--policy", str(path)]) == 2
    assert "--policy" in capsys.readouterr().err


def test_a_picture_is_jpeg_or_nothing(root):  # noqa: F811
    """Other formats bring programs: PostScript is given to an interpreter."""
    space = spaces.Box(0, 255, (32, 32), np.uint8)
    identity = write("flat/seen-v0", random_episodes(space, FLAT[1]), space, FLAT[1], data_format="arrow")
    path = root / identity / "data" / "1" / "part-0.arrow"
    table = pyarrow.ipc.open_file(path.read_bytes()).read_all()
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(code-ran) (w) file closefile\n"
    place = table.schema.names.index("observations")
    table = table.set_column(place, "observations", pyarrow.array([program] * len(table), pyarrow.binary()))
    assert load(identity, cache="off").num_episodes == 3
    with pyarrow.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    refused(identity, "observations: row 0 is no JPEG picture")


# Bombs.


def declare(name, shape, **how):
    def change(file):
        del file[name]
        file.create_dataset(name, shape=shape, dtype="f8", **how)

    return change


def again_and_again(file):
    """One array of 8 MB, which is there a thousand times by its links."""
    for name in ("episode_0", "episode_1", "episode_2"):
        del file[name]
    file["episode_0/observations"] = np.random.default_rng(0).normal(size=(150_001, 7)).astype("f4")
    file["episode_0/actions"] = np.full(150_000, 2)
    file["episode_0/rewards"], ends = np.zeros(150_000), np.zeros(150_000, bool)
    file["episode_0/terminations"], file["episode_0/truncations"] = ends, ends
    for i in range(1, 1000):
        file[f"episode_{i}"] = file["episode_0"]


def deflated(path, member, size):
    """An .npz of which one member is this many bytes of zeros, after a header that tells the truth."""
    import io

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (size // 8,)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, file.open(f"{member}.npy", "w") as out:
        out.write(header.getvalue())
        for _ in range(size >> 20):
            out.write(bytes(1 << 20))


def lying(path, member, shape):
    import io

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(f"{member}.npy", header.getvalue() + bytes(80))


def without_rewards(path):
    arrays = numbers()
    del arrays["rewards"]
    np.savez(path, **arrays)


def lead_back(path, group=0):
    """Of the list of free places among a group's names, let the first be its own successor."""
    data = bytearray(path.read_bytes())
    at = [match.start() for match in re.finditer(b"HEAP", data)][group]
    size, _, names = struct.unpack_from("<QQQ", data, at + 8)
    struct.pack_into("<Q", data, at + 16, size - 16)  # where the first is
    struct.pack_into("<QQ", data, names + size - 16, size - 16, 16)  # the next after it, and its length
    path.write_bytes(data)


@pytest.mark.parametrize("length", [3, 4, 5, 2**18 - 1, 2**18, 2**18 + 1, 2**18 + 6, 2**19 + 3])
def test_four_bytes_are_found_wherever_they_stand(tmp_path, length):
    """In a file of such bytes alone, which is looked through in pieces of 2**18; across their ends too."""
    content = b"HEAP" * (length // 4 + 1)
    for shift in range(4):
        there = content[shift : shift + length]
        (tmp_path / "file").write_bytes(there)
        with (tmp_path / "file").open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
            found = list(_places(data, b"HEAP"))
        assert sorted(found) == [i for i in range(len(there) - 3) if there[i : i + 4] == b"HEAP"]


def bombs(folder: Path, root: Path, tmp_path: Path):  # noqa: F811
    """Small files that ask for gigabytes, and words of the refusal."""

    def hdf5(name, change, **metadata):
        path = Path(shutil.copytree(folder, tmp_path / name))
        edit_groups(change)(path)
        edit_metadata(**metadata)(path)
        return path

    for group in (0, 2):  # of the file itself, of an episode
        path = hdf5(f"leading-back-{group}", lambda file: None)
        lead_back(path / "data" / "main_data.hdf5", group)
        yield path, "main_data.hdf5: damaged: the free places of a group's names lead back"
    huge = space_to_json(FLAT[0]).replace("[7]", "[100000, 100000]")
    yield hdf5("nothing-in-it", declare("episode_1/rewards", (10**9,), chunks=(10,))), "more than 64 MB"
    yield hdf5("contiguous", declare("episode_1/rewards", (10**9,))), "more than 64 MB"
    yield (
        hdf5("pieces", declare("episode_1/rewards", (5,), chunks=(3 * 10**8,), maxshape=(None,), compression="gzip")),
        "more than 64 MB",
    )
    yield hdf5("linked", again_and_again, total_episodes=1000), "more numbers than the file has bytes"
    yield hdf5("episodes", lambda file: None, total_episodes=10**12), "3 episodes, metadata.json says 1000000000000"
    yield hdf5("space", lambda file: None, observation_space=huge), "observation_space: not a space"
    arrow = write("flat/many-v0", random_episodes(*FLAT), *FLAT, data_format="arrow")
    edit_metadata(total_episodes=10**12)(root / arrow)
    yield root / arrow, "no such episode, metadata.json says 1000000000000"
    packed = root / write("flat/packed-v0", random_episodes(*FLAT), *FLAT, data_format="arrow")
    path = packed / "data" / "1" / "part-0.arrow"
    table = pyarrow.ipc.open_file(path.read_bytes()).read_all()
    with pyarrow.ipc.new_file(path, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table)
    yield packed, "compressed, which Minari's files are not"
    repeated = root / write("flat/repeated-v0", random_episodes(*FLAT), *FLAT, data_format="parquet")
    path = repeated / "data" / "1" / "part-0.parquet"
    table = parquet.read_table(path, partitioning=None)
    parquet.write_table(table.take(pyarrow.repeat(0, 3 * 10**6)), path, compression="zstd")
    yield repeated, "part-0.parquet: more than 64 MB"
    without_rewards(tmp_path / "deflated.npz")
    deflated(tmp_path / "deflated.npz", "rewards", 1 << 27)
    yield tmp_path / "deflated.npz", "rewards: more than"
    without_rewards(tmp_path / "lying.npz")
    lying(tmp_path / "lying.npz", "rewards", (10**9,))
    yield tmp_path / "lying.npz", "8000000000 bytes declared, 80 there"
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        for name, array in numbers().items():
            file[name] = array
        del file["rewards"]
        file.create_dataset("rewards", shape=(10**9,), chunks=(10**6,), compression="gzip")
    shutil.copy(tmp_path / "flat.hdf5", tmp_path / "leading-back.hdf5")
    lead_back(tmp_path / "leading-back.hdf5")
    yield tmp_path / "leading-back.hdf5", "lead back into themselves"
    yield tmp_path / "flat.hdf5", "rewards: shape (1000000000,) of float32: more than 64 MB"
    rows = {name: pyarrow.repeat(0, 10**7) for name in ("episode", "reward", "action", "observation")}
    parquet.write_table(pyarrow.table(rows), tmp_path / "rows.parquet")
    yield tmp_path / "rows.parquet", "rows.parquet: more than 64 MB"


def test_a_small_file_never_fills_the_memory(folder, root, tmp_path):  # noqa: F811
    told = [(str(path), words) for path, words in bombs(folder, root, tmp_path)]
    script = textwrap.dedent("""
        import json, re, resource, sys, time
        from envs import DataError, load
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # what is not refused should not take the machine
        for path, words in json.loads(sys.argv[1]):
            start = time.process_time()
            try:
                load(path)
            except DataError as error:
                assert words in str(error), (words, str(error))
            else:
                raise AssertionError(f"{path} was read")
            assert time.process_time() - start < 2, path
        print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) >> 10)
    """)
    command = [sys.executable, "-c", script, json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500  # MB; ru_maxrss would count the process that this one was begun by


def test_a_small_file_never_fills_the_disk(folder, tmp_path, monkeypatch):  # noqa: F811
    """What is read goes into files of the cache, episode by episode: the bomb of links would fill them too."""
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    edit_groups(again_and_again)(folder)
    edit_metadata(total_episodes=1000)(folder)
    refused(folder, "more numbers than the file has bytes")
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "Box", "dtype": "float32", "shape": [1000000, 1000000], "low": 0, "high": 1}',
        '{"type": "Box", "dtype": "S1000000000", "shape": [1], "low": ["a"], "high": ["b"]}',
        '{"type": "Box", "dtype": "object", "shape": [1], "low": [0], "high": [1]}',
        '{"type": "MultiBinary", "n": 1000000000000}',
        '{"type": "MultiBinary", "n": [1000000, 1000000]}',
        '{"type": "Dict", "subspaces": {"a": {"type": "MultiBinary", "n": 1000000000000}}}',
        '{"type": "Tuple", "subspaces": [{"type": "Box", "dtype": "f4", "shape": [10000000000], "low": 0, "high": 1}]}',
    ],
)
def test_a_space_that_asks_for_everything_is_refused(text):
    with pytest.raises(SpaceError):
        space_from_json(text)


BOASTS = {
    "width": "a model of its settings has more than",
    "num_layers": "num_layers must be at most 10000, not 1000000000",
    "max_timesteps": "a model of its settings has more than",
    "context_length": "context_length must be at most 1000000, not 1000000000",
}


@pytest.mark.parametrize("field", BOASTS)
def test_a_run_that_says_that_it_is_huge_is_refused(run, field):  # noqa: F811
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def boast(document):
        (document if field == "max_timesteps" else document["config"]["model"])[field] = 10**9

    rewrite(run, "run.json", boast)
    with pytest.raises(CheckpointError, match=BOASTS[field]):
        load_run(run)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kB


def test_a_run_of_pictures_without_end_is_refused(pictures):
    model = small_model("token", pictures)
    spaces_ = model.observation_space, model.action_space, model.max_timesteps
    with pytest.raises(ValueError, match=r"a model of its settings has \d+ weights, here are"):
        check_model_size(model.state_dict(), replace(model.config, frame_stack=10**9), *spaces_)
    check_model_size(model.state_dict(), model.config, *spaces_)


def test_an_environment_of_a_run_without_end_is_refused(run, capsys):  # noqa: F811
    def boast(document):
        document["environment"]["max_episode_steps"] = 10**12

    rewrite(run, "run.json", boast)
    assert main(["evaluate", str(run)]) == 2
    assert "its episodes last up to 1000000000000 steps, the model knows 20" in capsys.readouterr().err


BIG, ENDLESS = 10**30, float("inf")
WRONG = {  # where in run.json, what it says there, and the words of the refusal
    "max_timesteps": [
        (ENDLESS, "max_timesteps must be a whole number"),
        (BIG, "max_timesteps"),
        (2.0, "max_timesteps"),
    ],
    "config": [(5, "config must be an object"), ({}, "not a configuration of this version")],
    "config.model.context_length": [(2.5, "context_length must be a whole number of 64 bits, not 2.5"), (True, "True")],
    "config.training.learning_rate": [(10**400, "learning_rate must be a finite number"), ("x", "learning_rate")],
    "config.training.seed": [(BIG, "seed must be a whole number of 64 bits")],
    "config.training.schedule": [(["constant"], "schedule must be one of constant, cosine")],
    "config.evaluation.target_return": [([10**400], "target_return[0] must be a finite number"), (5, "target_return")],
    "config.data": [(None, "not a configuration of this version"), ([], "not a configuration of this version")],
    "dataset.name": [({"a": 1}, "dataset.name must be a text"), (None, "dataset.name must be a text")],
    "dataset.targets": [
        (5, "dataset.targets must be a list"),
        (["a"], "dataset.targets[0] must be a finite number, not 'a'"),
        ([1.0, 10**400], "dataset.targets[1] must be a finite number"),
    ],
    "dataset.parts": [(5, "dataset.parts must be a list"), ([{}], "dataset.parts[0].fingerprint is missing")],
    "dataset.maximum": [("x", "dataset.maximum must be a finite number")],
    "dataset.episodes": [("\x1b[31m", "dataset.episodes must be a whole number")],
    "environment.max_episode_steps": [(BIG, "environment.max_episode_steps must be a whole number of 64 bits or null")],
    "environment": [("x", "environment must be an object or null"), ([1], "environment must be an object or null")],
    "reference": [
        ({"minimum": "a", "maximum": 1.0, "source": "s"}, "reference.minimum must be a finite number"),
        ({"minimum": 1.0, "maximum": 1.0, "source": "s"}, "reference returns 1.0 and 1.0"),
    ],
}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [(field, value, words) for field, cases in WRONG.items() for value, words in cases],
    ids=[f"{field}={json.dumps(value)[:20]}" for field, cases in WRONG.items() for value, _ in cases],
)
def test_a_run_whose_description_is_wrong_is_refused_by_every_command(run, trained, capsys, field, value, words):  # noqa: F811
    def change(document):
        *above, last = field.split(".")
        for key in above:
            document = document[key]
        document[last] = value

    rewrite(run, "run.json", change)
    shutil.copy(sorted((run / "checkpoints").iterdir())[-1] / "run.json", run)
    resume = ["train", str(trained.parent / "coins.npz"), "--output", str(run), "--resume", "--steps", "7"]
    record = ["record", "Payday-v0", "wrong/run-v0", "--policy", str(run)]
    for command in (["inspect", str(run)], ["evaluate", str(run)], record, resume):
        if field == "reference" and command == resume and value["minimum"] == 1.0:
            continue  # which takes the data's own
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert str(run) in err
        assert words in err


def test_what_a_run_or_a_path_calls_itself_does_not_command_the_terminal(run, tmp_path, capsys):  # noqa: F811
    def change(document):
        document["dataset"]["name"] = document["imported"] = "\x1b]0;mine\x07\x9b31m"
        document["reference"]["source"] = document["environment"]["kwargs"]["\x1b[31m"] = "\x1b[31m"

    rewrite(run, "run.json", change)
    named = tmp_path / "esc\x1b[31m.csv"
    named.write_text("episode,observation,action,reward\n0,1.5,0,1\n0,2.5,1,1\n1,1.0,1,0\n")
    env = ["--environment", "Payday-v0", "--episodes", "1"]
    for command in (
        ["inspect", str(run)],
        ["evaluate", str(run)],
        ["evaluate", str(run), *env],
        ["inspect", str(named)],
    ):
        main(command)
        out, err = capsys.readouterr()
        assert "\\x1b" in out + err
        assert not re.search(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]", (out + err).replace("\x1b[A", ""))


STATES = {
    "step": [
        (None, "step must be a whole number"),
        ("x", "step"),
        (float("nan"), "step"),
        (-5, "not the state of a run"),
    ],
    "best": [
        (5, "best must be an object or null"),
        ({"step": "x", "score": 1.0}, "best.step"),
        ({}, "best.score is missing"),
    ],
    "loss_sum": [("a", "loss_sum must be a finite number")],
    "loss_steps": [(-1, "not the state of a run at step 6")],
}


@pytest.mark.parametrize(("field", "value", "words"), [(f, *case) for f, cases in STATES.items() for case in cases])
def test_a_run_whose_state_is_wrong_does_not_go_on(run, trained, capsys, field, value, words):  # noqa: F811
    rewrite(run, "state.json", lambda document: document.update({field: value}))
    before = files(run)
    resume = ["train", str(trained.parent / "coins.npz"), "--output", str(run), "--resume", "--steps", "7"]
    assert main(resume) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"dt: {run}/checkpoints/step-00000006/state.json: ")
    assert words in said
    assert files(run) == before


def change_tensor(path, change):
    tensors = load_file(path)
    name = next(iter(tensors))
    change(tensors, name)
    save_file(tensors, path)


@pytest.mark.parametrize("name", ["model", "optimizer"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, name: tensors.pop(name),
        lambda tensors, name: tensors.update({name: torch.zeros(3, 1, 4)}),
        lambda tensors, name: tensors.update({name: tensors[name].double()}),
        lambda tensors, name: tensors.update(more=torch.zeros(0)),
    ],
)
def test_tensors_that_are_not_this_runs_do_not_go_on(run, trained, capsys, name, change):  # noqa: F811
    rewrite(run, f"{name}.safetensors", lambda path: change_tensor(path, change))
    resume = ["train", str(trained.parent / "coins.npz"), "--output", str(run), "--resume", "--steps", "7"]
    assert main(resume) == 2
    assert f"dt: {run}/checkpoints/step-00000006" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("field", ["width", "num_layers", "max_timesteps"])
def test_a_run_that_says_that_it_is_huge_does_not_go_on(run, trained, capsys, field):  # noqa: F811
    def boast(document):
        document["config"]["model"][field] = 10**9
        document["max_timesteps"] = 10**9 if field == "max_timesteps" else document["max_timesteps"]

    checkpoint = rewrite(run, "run.json", boast)
    shutil.copy(checkpoint / "run.json", run)
    resume = ["train", str(trained.parent / "coins.npz"), "--output", str(run), "--resume", "--steps", "7"]
    assert main(resume) == 2
    assert BOASTS[field] in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def text_run(tmp_path, capsys):
    (tmp_path / "text").write_text("abcdefgh\n" * 40)
    quick = "--width 8 --num-layers 1 --num-heads 1 --context-length 4 --steps 1 --positions sinusoidal --device cpu"
    command = ["train-characters", str(tmp_path / "text"), "--output", str(tmp_path / "run"), *quick.split()]
    assert text_main(command) == 0
    capsys.readouterr()
    return tmp_path / "run"


@pytest.mark.parametrize("field", ["width", "num_layers", "context_length"])
def test_a_run_of_text_that_says_that_it_is_huge_is_refused(text_run, capsys, field):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rewrite(text_run, "run.json", lambda document: document["config"]["model"].__setitem__(field, 10**7))
    assert text_main(["generate", str(text_run)]) == 2
    said = {"width": "a model of its settings has", "num_layers": "num_layers must be at most 10000"}
    said |= {"context_length": "a window of its settings takes"}
    assert said[field] in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kB


def tokens(**changes):
    """A tokeniser's JSON of one word; its id and more may be others."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": ""}
    return json.dumps({"model": {**model, "vocab": {"a": changes.pop("id", 0)}}, **changes})


@pytest.mark.parametrize(
    ("name", "value", "message", "resumed"),
    [
        ("tokenizer", "x", "run.json: its tokenizer cannot be read", "was trained on another text"),
        ("tokenizer", "{}", "run.json: its tokenizer cannot be read", "was trained on another text"),
        ("tokenizer", 5, "run.json: tokenizer must be a text, not 5", "run.json: tokenizer must be a text, not 5"),
        ("tokenizer", tokens(id=5000), "its model knows 1", "was trained on another text"),
        ("text", None, "text must be a text", "text must be a text"),
        ("config", {"model": {}}, "config.training is missing", "config.training is missing"),
        ("kind", [1], "run.json: no run of a language model or a translator", "no characters run of this version"),
        ("kind", {}, "run.json: no run of a language model or a translator", "no characters run of this version"),
        (
            "schema",
            "\x1b]0;PWN\x07",
            r"schema \x1b]0;PWN\x07, this version reads 1",
            "no characters run of this version",
        ),
    ],
)
def test_a_run_of_text_whose_description_is_wrong_is_refused(text_run, name, value, message, resumed, capsys):
    checkpoint = rewrite(text_run, "run.json", lambda document: document.__setitem__(name, value))
    if "knows" in message:  # the weights agree, the ids do not
        from safetensors.torch import load_file, save_file

        weights = load_file(checkpoint / "model.safetensors")
        weights["embedding.tokens.weight"] = weights["embedding.tokens.weight"][:1].clone()
        rewrite(text_run, "model.safetensors", lambda path: save_file(weights, path))
    resume = ["train-characters", str(text_run.parent / "text"), "--output", str(text_run), "--resume", "--steps", "3"]
    for command, words in ((["generate", str(text_run), "--prompt", "a"], message), (resume, resumed)):
        assert text_main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert line.isprintable()


def spoil(path):
    """One number of the weights becomes NaN."""
    weights = load_file(path)
    next(tensor for tensor in weights.values() if tensor.is_floating_point()).view(-1)[0] = float("nan")
    save_file(weights, path)


def assert_no_numbers(program, command, capsys):
    capsys.readouterr()
    assert program(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"step-\d+/model\.safetensors: \S+ holds NaN or infinity", err.splitlines()[-1])


def test_weights_that_are_no_numbers_are_refused_by_every_command(run, trained, capsys):  # noqa: F811
    rewrite(run, "model.safetensors", spoil)
    resume = ["train", str(trained.parent / "coins.npz"), "--output", str(run), "--resume", "--steps", "7"]
    record = ["record", "Payday-v0", "wrong/run-v0", "--policy", str(run)]
    for command in (["inspect", str(run)], ["evaluate", str(run)], record, resume):
        assert_no_numbers(main, command, capsys)


def test_weights_of_a_text_run_that_are_no_numbers_are_refused(text_run, capsys):
    rewrite(text_run, "model.safetensors", spoil)
    assert_no_numbers(text_main, ["generate", str(text_run)], capsys)


def weights_as(change):
    """All numbers of the weights as others, for `rewrite`."""
    return lambda path: save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.complex64])
def test_weights_of_a_kind_that_nothing_computes_with_are_refused(text_run, capsys, kind):
    rewrite(text_run, "model.safetensors", weights_as(lambda tensor: tensor.abs().to(kind)))
    assert text_main(["generate", str(text_run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"model\.safetensors: \S+ is {kind}, expected torch\.float64, ", line)


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_weights_that_are_numbers_and_too_large_are_refused(text_run, capsys, temperature):
    rewrite(text_run, "model.safetensors", weights_as(lambda tensor: torch.full_like(tensor, 3e38)))
    assert text_main(["generate", str(text_run), "--temperature", temperature]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "dt-text: the model's logits are NaN or infinite: its weights are too large to compute with\n"


def test_a_tokeniser_that_pads_without_end_is_read_without(text_run, capsys):
    endless = {"strategy": {"Fixed": 10**14}, "direction": "Right", "pad_to_multiple_of": None}
    endless |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}

    def pad(document):
        document["tokenizer"] = json.dumps({**json.loads(document["tokenizer"]), "padding": endless})

    rewrite(text_run, "run.json", pad)
    assert text_main(["generate", str(text_run), "--prompt", "a", "--new-tokens", "3"]) == 0
    assert len(capsys.readouterr().out) == 5


def test_a_run_reads_nothing_but_a_dataset_as_its_data(payday, tmp_path, capsys):
    """Without an environment `dt evaluate` reads the data that the run names: a text, a pipe, anything."""
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "secret.txt").write_text("the treasure is under the oak")
    (tmp_path / "secret.csv").write_text("the treasure,is under\nthe,oak\n")
    source, made = write_npz(tmp_path / "far.npz", payday, "FarAway-v3"), tmp_path / "run"
    quick = "--steps 1 --width 8 --num-layers 1 --device cpu --no-calibration"
    assert main(["train", str(source), "--output", str(made), *quick.split()]) == 0
    for name, words in (
        ("secret.txt", "secret.txt: cannot be read as .txt"),
        ("secret.csv", "no 'observations' in it"),
        ("pipe.npz", "pipe.npz: "),
        ("nowhere.npz", "no such file"),
        (5, "run.json: dataset.parts[0].source must be a text or null, not 5"),
        (["far.npz"], "run.json: dataset.parts[0].source must be a text or null"),
    ):
        place = str(tmp_path / name) if isinstance(name, str) else name
        rewrite(made, "run.json", lambda document, place=place: document["dataset"]["parts"][0].update(source=place))
        refuses(capsys, made, words)
    rewrite(made, "run.json", lambda document: document["dataset"].pop("parts"))
    refuses(capsys, made, "run.json: does not say what data it is of")


def refuses(capsys, made, words):
    capsys.readouterr()
    assert main(["evaluate", str(made)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "oak" not in err
