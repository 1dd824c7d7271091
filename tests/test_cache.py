"""The cache of flat arrays: the same data the second time, complete or absent, and no memory that grows with it."""

import json
import subprocess
import sys
import textwrap
from dataclasses import fields

import gymnasium
import numpy as np
import pytest
from conftest import echo_dataset
from gymnasium import spaces

from dt.data import TrajectoryDataset
from envs.datasets import cache, loading
from envs.datasets.array_files import Column, allocate_like
from envs.datasets.dataset import Dataset
from envs.datasets.loading import load
from envs.datasets.selection import join, take
from envs.datasets.writer import write_minari
from envs.errors import DataError
from envs.simulate.spec import EnvironmentSpec


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    """A cache that keeps even what is small and was written just now."""
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(cache, "SMALLEST", 0)
    monkeypatch.setattr(cache, "FRESH", 0)
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    write_minari(echo_dataset("nested", "nested"), "echo/nested-v0")
    return tmp_path / "minari" / "echo" / "nested-v0"


@pytest.fixture
def unread(monkeypatch):
    """From here on no source is read."""

    def arm():
        monkeypatch.setattr(loading, "read", lambda *_: pytest.fail("the source was read"))

    return arm


def flat(tmp_path, seed=0):
    rng = np.random.default_rng(seed)
    path = tmp_path / "flat.npz"
    np.savez(
        path,
        observations=rng.normal(size=(32, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, (30, 2)),
        rewards=rng.normal(size=30),
        lengths=np.array([10, 20]),
    )
    return path


def assert_same(a: Dataset, b: Dataset):
    for field in fields(Dataset):
        x, y = getattr(a, field.name), getattr(b, field.name)
        for ours, theirs in zip(*((v.values() if isinstance(v, dict) else [v]) for v in (x, y)), strict=True):
            if isinstance(ours, np.ndarray):
                assert ours.dtype == theirs.dtype
                assert np.array_equal(ours, theirs)
            else:
                assert ours == theirs, field.name
        assert list(x) == list(y) if isinstance(x, dict) else True
    assert a.fingerprint == b.fingerprint


def entries(kept):
    return sorted(path for path in kept.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("kind", ["minari", "flat"])
def test_the_second_time_it_is_mapped_and_the_same(kind, source, tmp_path, unread, kept):
    path = source if kind == "minari" else flat(tmp_path)
    plain = load(path, cache="off")
    assert not kept.exists()
    first = load(path)
    unread()
    second = load(path)
    for dataset in (first, second):
        assert_same(dataset, plain)
        assert all(isinstance(array, np.memmap) for array in [*dataset.observations.values(), dataset.rewards])
        assert "fingerprint" in vars(dataset)  # it is not worked out again
    assert vars(Dataset(**{f.name: getattr(second, f.name) for f in fields(Dataset)})).get("fingerprint") is None
    assert len(entries(kept)) == 1
    assert not list(kept.glob(".*"))


def test_data_that_changed_is_read_anew(tmp_path, kept):
    before = load(flat(tmp_path))
    after = load(flat(tmp_path, seed=1))
    assert before.fingerprint != after.fingerprint
    assert_same(after, load(flat(tmp_path, seed=1), cache="off"))
    assert len(entries(kept)) == 1


def test_each_way_of_asking_has_an_entry(tmp_path, kept):
    path = flat(tmp_path)
    wide = {"action_space": spaces.Box(-9, 9, (2,), np.float64)}
    assert [load(path, spaces=given).action_space.high[0] for given in ({}, wide, {}, wide)] == [np.inf, 9, np.inf, 9]
    assert len(entries(kept)) == 2


def cut(folder):
    arrays = sorted(folder.glob("*.bin"), key=lambda path: path.stat().st_size)
    arrays[-1].write_bytes(arrays[-1].read_bytes()[:-1])


def edit(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE = {
    "an array cut short": cut,
    "an array gone": lambda folder: min(folder.glob("*.bin")).unlink(),
    "its description gone": lambda folder: (folder / "dataset.json").unlink(),
    "its description cut short": lambda folder: (folder / "dataset.json").write_text('{"format": 1'),
    "its description nothing": lambda folder: (folder / "dataset.json").write_text("[]"),
    "of another format": lambda folder: edit(folder, format=0),
    "of another version": lambda folder: edit(folder, version="0.0.0"),
    "no space in it": lambda folder: edit(folder, action_space="Box"),
    "no arrays in it": lambda folder: edit(folder, arrays=[]),
    "odd arrays in it": lambda folder: edit(folder, arrays=[{"field": "rewards"}]),
    "a file out of the folder": lambda folder: edit(
        folder, arrays=[{"field": "rewards", "leaf": None, "file": "../../x", "type": "<f4", "shape": [1]}]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(damage, source, kept, unread):
    plain = load(source, cache="off")
    load(source)
    (folder,) = entries(kept)
    DAMAGE[damage](folder)
    assert_same(load(source), plain)
    unread()
    assert_same(load(source), plain)
    assert entries(kept) == [folder]


def test_a_flipped_bit_is_found_where_it_is_looked_for(tmp_path, kept):
    path = flat(tmp_path)
    plain = load(path, cache="off")  # what is mapped would change with its file
    load(path)
    (folder,) = entries(kept)
    array = max(folder.glob("*.bin"), key=lambda file: file.stat().st_size)
    content = bytearray(array.read_bytes())
    content[5] ^= 1
    array.write_bytes(content)
    assert not np.array_equal(load(path).actions["value"], load(path, cache="off").actions["value"])
    assert_same(load(path, cache="verify"), load(path, cache="off"))
    assert_same(load(path), plain)


def test_what_was_cut_short_leaves_nothing(source, kept, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr(cache, "_document", lambda fields: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load(source)
    assert list(kept.iterdir()) == []


def test_a_source_changed_just_now_is_not_kept_and_mapped_all_the_same(source, kept, monkeypatch):
    monkeypatch.setattr(cache, "FRESH", 10**15)
    dataset = load(source)
    assert isinstance(dataset.rewards, np.memmap)
    assert list(kept.iterdir()) == []
    assert_same(dataset, load(source, cache="off"))


def test_a_cache_that_cannot_be_written_is_said_and_done_without(tmp_path, monkeypatch):
    path = flat(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "file"))
    dataset = load(path)
    assert dataset.fingerprint == load(path, cache="off").fingerprint
    assert "not cached: " in dataset.notes[-1]


def test_a_small_source_is_read_each_time(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(cache, "SMALLEST", 1 << 20)
    assert not isinstance(load(flat(tmp_path)).rewards, np.memmap)
    assert not kept.exists()


def test_rows_of_wider_types_widen_what_is_there(tmp_path):
    pieces = [np.arange(3, dtype=np.int16), np.arange(2, dtype=np.float32) / 7, np.arange(4, dtype=np.int64)]
    in_file, in_memory = Column(tmp_path), Column(None)
    for piece in pieces:
        in_file.append(piece)
        in_memory.append(piece)
    assert in_file.finish().dtype == in_memory.finish().dtype
    assert np.array_equal(in_file.finish(), in_memory.finish())


def test_what_is_made_of_mapped_data_is_mapped(source, kept):
    dataset = load(source)
    part, both = take(dataset, range(5), "some"), join([dataset, dataset])
    assert isinstance(part.rewards, np.memmap)
    assert isinstance(both.observations["camera"], np.memmap)
    assert both.fingerprint == join([load(source, cache="off")] * 2).fingerprint
    assert list(kept.iterdir()) == entries(kept)  # nameless: nothing is left when it is let go
    assert not isinstance(allocate_like((3,), float, np.zeros(3)), np.memmap)


def test_windows_of_mapped_data_are_those_of_data_in_memory(source, recwarn):
    data, plain = (TrajectoryDataset(load(source, cache=how), 4, frame_stack=2) for how in ("use", "off"))
    first = data.indices(0, 0, 32)
    a, b = data.gather(first), plain.gather(first)
    assert all((a.states[name] == b.states[name]).all() for name in b.states)
    assert (a.returns_to_go == b.returns_to_go).all()
    assert not recwarn.list


GROWING = """
import resource, sys
import h5py, json, numpy as np
from pathlib import Path
from gymnasium import spaces
import torch.utils.tensorboard
from dt import Config, ModelConfig, TrainingConfig, train
from envs import DataError, join, load
from envs.datasets import cache
from envs.space_json import space_to_json

root, how = Path(sys.argv[1]), sys.argv[2]
cache.FRESH = 0
torch.set_num_threads(1)
box = spaces.Box(-np.inf, np.inf, (60,), np.float32)
config = Config(
    model=ModelConfig(width=16, num_layers=1, context_length=4),
    training=TrainingConfig(steps=2, batch_size=4, device="cpu"),
)

def record(name, episodes):
    folder = root / name / "data"
    folder.mkdir(parents=True)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for i in range(episodes):
            group = file.create_group(f"episode_{i}")
            group["observations"] = np.random.default_rng(i).normal(size=(1001, 60)).astype(np.float32)
            group["actions"] = np.zeros((1000, 1), np.float32)
            group["rewards"] = np.ones(1000, np.float32)
            group["terminations"] = group["truncations"] = np.arange(1000) == 999
    spaces_ = {"observation_space": space_to_json(box), "action_space": space_to_json(spaces.Box(-1, 1, (1,)))}
    (folder / "metadata.json").write_text(json.dumps({"total_episodes": episodes, "dataset_id": name, **spaces_}))
    return root / name

small, large = record("small", 20), record("large", 400)  # 5 MB; 100 MB
train(load(small), config, root / "first")  # all that is needed once, such as threads
status = Path("/proc/self/status").read_text().split()
used = int(status[status.index("VmData:") + 1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (24 << 20),) * 2)
try:
    dataset = load(large, cache=how)
    again = load(large, cache=how)
    train(again, config, root / "run")
    train(join([again, again], [0.5]), config, root / "joined")
except (MemoryError, DataError) as error:
    print(error, file=sys.stderr)
    sys.exit(9 if isinstance(error, MemoryError) or "alloc" in str(error) else 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits what it should on Linux alone")
@pytest.mark.parametrize(("how", "code"), [("use", 0), ("off", 9)])
def test_memory_does_not_grow_with_the_data(tmp_path, how, code):
    """100 MB are loaded, trained on and joined within 24 MB more than 5 take; without the cache they are not."""
    script = textwrap.dedent(GROWING)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), how], check=False, capture_output=True)
    assert done.returncode == code, done.stderr.decode()[-2000:]


def test_a_use_of_the_cache_that_there_is_not_is_refused(tmp_path):
    flat(tmp_path)
    with pytest.raises(DataError, match=r"^cache 'no': expected one of use, verify, off$"):
        load(tmp_path / "flat.npz", cache="no")


class Stretching(gymnasium.Env):
    """An environment whose bounds are another's work to change."""

    bound = 2.0

    def __init__(self):
        self.observation_space = spaces.Box(-9, 9, (3,), np.float32)
        self.action_space = spaces.Box(-self.bound, self.bound, (2,), np.float64)


def test_an_environment_that_has_changed_its_spaces_lends_the_new_ones(tmp_path, monkeypatch, unread):
    gymnasium.register("Stretching-v0", Stretching)
    try:
        path, there = flat(tmp_path), EnvironmentSpec("Stretching-v0")
        assert load(path, environment=there).action_space.high.tolist() == [2.0, 2.0]
        monkeypatch.setattr(Stretching, "bound", 3.0)
        assert load(path, environment=there).action_space.high.tolist() == [3.0, 3.0]
        unread()  # it was kept again
        assert load(path, environment=there).action_space.high.tolist() == [3.0, 3.0]
    finally:
        del gymnasium.registry["Stretching-v0"]
