"""Files made to harm: runs, cache entries and folders whose numbers, names and links were chosen by an attacker."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from test_cli import QUICK, run, trained, write_npz  # noqa: F401
from test_datasets import FLAT, random_episodes, root, template, write  # noqa: F401
from test_nobody_gets_in import rewrite, text_run  # noqa: F401

from dt.cli import main
from envs import DataError, EnvironmentSpec, load
from envs.errors import MissingEnvError, SpaceError
from envs.space_json import space_from_json
from envs.spaces import leaf_spaces
from transformer.files import replace_text, write_json
from transformer.runs.folder import LOCK
from transformer.runs.pictures import title_of
from transformer.text.cli import main as text_main
from transformer.text.corpora import encode, subword_tokenizer
from transformer.text.known_tokenizers import known_tokenizer, named_panic


def said(capsys, command, code=2, program=main):
    """The last line that a command prints to standard error, where it ends with this exit status."""
    capsys.readouterr()
    assert program([str(word) for word in command]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def resumed(run, trained):  # noqa: F811
    return ["train", trained.parent / "coins.npz", "--output", run, "--resume", "--steps", "7"]


# Weights.


def of_kind(kind):
    """All floating-point tensors of a file as another type, for `rewrite`."""

    def change(path):
        save_file({n: x.to(kind) if x.is_floating_point() else x for n, x in load_file(path).items()}, path)

    return change


KINDS = [torch.int8, torch.uint8, torch.bool, torch.int16, torch.int64, torch.uint16]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_whole_numbers_and_flags_are_no_weights(run, kind, capsys):  # noqa: F811
    rewrite(run, "model.safetensors", of_kind(kind))
    for command in (["inspect", run], ["evaluate", run]):
        assert f"is {kind}, expected torch.float32" in said(capsys, command)


def test_whole_numbers_are_no_weights_of_a_text_run(text_run, capsys):  # noqa: F811
    rewrite(text_run, "model.safetensors", of_kind(torch.int32))
    assert "is torch.int32, expected torch.float32" in said(capsys, ["generate", text_run], program=text_main)


def test_weights_of_half_the_width_are_weights(run, capsys):  # noqa: F811
    rewrite(run, "model.safetensors", of_kind(torch.bfloat16))
    assert main(["inspect", str(run)]) == 0


# Names under which a file is written before it is complete.


def test_a_link_laid_under_a_temporary_name_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()
    names = iter(["laid", "free"])
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names)
    for name in (f".scores.json.{os.getpid()}", ".scores.json.laid", ".scores.json"):
        (folder / name).symlink_to(tmp_path / "precious")
    replace_text(folder / "scores.json", "scores")
    assert next(names, None) is None  # both were tried
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (folder / "scores.json").is_symlink()
    assert (folder / "scores.json").read_text() == "scores"


def test_a_file_is_as_readable_as_any_and_its_name_may_be_long(tmp_path):
    path = tmp_path / ("ä" * 125 + ".json")
    os.umask(mask := os.umask(0o022))
    write_json(path, {})
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_in_place_of_a_runs_lock_is_not_followed(run, trained, tmp_path, capsys):  # noqa: F811
    (tmp_path / "precious").write_text("precious")
    (run / LOCK).unlink()
    (run / LOCK).symlink_to(tmp_path / "precious")
    assert f"{run / LOCK}: a link" in said(capsys, resumed(run, trained))
    assert (tmp_path / "precious").read_text() == "precious"


# Numbers and depths that no program writes.

ODD_LINES = {
    "a step of 400 digits": '{"step": 1' + "0" * 400 + "}",
    "a step of 5000 digits": '{"step": 1' + "0" * 5000 + "}",
    "a step of -400 digits": '{"step": -1' + "0" * 400 + "}",
    "endless nesting": "[" * 100_000,
    "a step that is a list": '{"step": []}',
    "no object": "5",
    "not a number": '{"step": NaN}',
}


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES)
def test_a_log_of_odd_lines_is_gone_on_with_and_loses_them(run, trained, line, capsys):  # noqa: F811
    log = run / "log.jsonl"
    log.write_text(f"{line}\n{log.read_text()}")
    assert main([str(word) for word in resumed(run, trained)]) == 0
    steps = [json.loads(text)["step"] for text in log.read_text().splitlines()]
    assert steps == sorted(steps)
    assert 7 in steps
    assert "Traceback" not in capsys.readouterr().err


RESULTS = [
    {"results": [{"mean_return": 10**400, "target_return": 1}]},
    {"results": [{"mean_return": 1.0, "target_return": 10**400}]},
    {"held_out": {"loss": 10**400, "leaves": [{"baseline": 1.0}]}},
    {"held_out": {"loss": 1.0, "leaves": [{"baseline": "x"}]}},
    {"results": "x" * 100},
    [],
]


@pytest.mark.parametrize("document", RESULTS, ids=lambda document: json.dumps(document)[:40])
def test_odd_results_do_not_keep_a_run_from_being_inspected(run, document, capsys):  # noqa: F811
    (run / "results" / "odd.json").write_text(json.dumps(document))
    (run / "results" / "deep.json").write_text("[" * 100_000)
    assert main(["inspect", str(run)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "not the results of an evaluation" in line]
    assert len(lines) == 2


# Entries of the cache.


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A file that is in the cache, and the folder of its entry."""
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    rng, steps = np.random.default_rng(0), 60_000
    path = tmp_path / "big.npz"
    arrays = {"observations": rng.normal(size=(steps, 6)), "actions": rng.uniform(-1, 1, (steps, 2))}
    np.savez(path, **arrays, rewards=rng.normal(size=steps), lengths=np.full(600, 100), truncated=np.ones(600, bool))
    os.utime(path, (1e9, 1e9))
    load(path)
    (entry,) = (tmp_path / "cache").iterdir()
    return path, entry


def edited(entry, change):
    document = json.loads((entry / "dataset.json").read_text())
    change(document)
    (entry / "dataset.json").write_text(json.dumps(document))


def array_of(document, field):
    return next(each for each in document["arrays"] if each["field"] == field)


def overwrite(field, make):
    """Change the numbers of one array of an entry."""

    def attack(entry):
        document = json.loads((entry / "dataset.json").read_text())
        stored = array_of(document, field)
        path = entry / stored["file"]
        make(np.fromfile(path, stored["type"])).tofile(path)

    return attack


def typed(field, kind, shape=None):
    def change(document):
        array_of(document, field).update({"type": kind} | ({} if shape is None else {"shape": shape}))

    return lambda entry: edited(entry, change)


def replaced(make):
    """Something else in place of an entry's dataset.json."""

    def attack(entry):
        (entry / "dataset.json").unlink()
        make(entry / "dataset.json")

    return attack


ENTRIES = {
    "addresses of objects": typed("observations", "|O"),
    "addresses of objects in the rewards": typed("rewards", "|O"),
    "records": typed("observations", "f4,f4"),
    "times": typed("rewards", "<M8[s]"),
    "complex numbers": typed("rewards", "<c8", [60_000]),
    "a type that is no text": typed("rewards", ["<f8"]),
    "a shape past 64 bits": typed("rewards", "<f8", [2**33, 2**33, 2**33]),
    "a shape below zero": typed("rewards", "<f8", [-60_000]),
    "two axes of rewards": typed("rewards", "<f8", [30_000, 2]),
    "fewer rewards": overwrite("rewards", lambda x: x[:-1]),
    "offsets that fall": overwrite("offsets", lambda x: x[::-1].copy()),
    "offsets below zero": overwrite("offsets", lambda x: x - 5),
    "offsets past the end": overwrite("offsets", lambda x: x * 2),
    "episodes of no steps": overwrite("offsets", lambda x: np.where(x == 100, 0, x)),
    "actions in place of observations": typed("observations", "<f8", [60_000, 2, 3]),
    "a pipe": replaced(os.mkfifo),
    "a link": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a folder": replaced(os.mkdir),
    "endless nesting": lambda entry: (entry / "dataset.json").write_text("[" * 100_000),
    "no object": lambda entry: (entry / "dataset.json").write_text("5"),
    "another space": lambda entry: edited(entry, lambda d: d.update(observation_space='{"type": "Discrete", "n": 3}')),
}


@pytest.mark.parametrize("attack", ENTRIES.values(), ids=ENTRIES)
def test_an_entry_of_the_cache_that_does_not_hold_together_is_made_again(cached, attack):
    path, entry = cached
    expected = load(path, cache="off")
    attack(entry)
    found = load(path)
    assert "fingerprint" in vars(found)
    assert [*vars(found)] == [*vars(load(path))]
    del vars(found)["fingerprint"]  # it is computed from the numbers, and not believed
    assert found.fingerprint == expected.fingerprint
    assert found.notes == expected.notes
    assert (entry / "dataset.json").is_file()


def test_an_entry_of_another_user_is_not_read(cached, monkeypatch):
    path, entry = cached
    expected = load(path, cache="off")
    overwrite("rewards", lambda x: x + 1)(entry)
    if os.geteuid() == 0:  # whose files all trust
        os.chown(entry, 1, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 2)
    found = load(path)
    assert found.fingerprint == expected.fingerprint
    assert found.notes[-1].endswith(f"{entry} belongs to another user")
    assert main(["inspect", str(path)]) == 0


def test_an_environment_of_an_entry_is_a_files_whatever_it_says(cached):
    path, entry = cached
    outward = {"id": "Payday-v0", "kwargs": {"limit": "../elsewhere"}, "max_episode_steps": None}
    edited(entry, lambda document: document.update(environment=outward, left_out=[], from_file=False))
    with pytest.raises(MissingEnvError, match="comes from a file"):
        load(path).environment.make()


def test_the_users_own_environment_is_trusted_from_the_cache_as_without(cached):
    path, _ = cached
    spec = EnvironmentSpec("Payday-v0", {"limit": "../elsewhere"})
    spaces_ = {"observation_space": load(path).observation_space, "action_space": load(path).action_space}
    for _ in range(2):
        assert not load(path, environment=spec, spaces=spaces_).environment.from_file


# Much that is declared in a few bytes: each part may be allowed, and all together are not.

HALF = {"type": "Box", "dtype": "float64", "shape": [1024, 2048], "low": -1, "high": 1}
SPACES_TOGETHER = {
    "three leaves of half as much as all": {"type": "Dict", "subspaces": {f"k{i}": HALF for i in range(3)}},
    "leaves within leaves": {
        "type": "Tuple",
        "subspaces": [HALF, {"type": "Dict", "subspaces": {"a": {"type": "Tuple", "subspaces": [HALF, HALF]}}}],
    },
    "bits": {"type": "Tuple", "subspaces": [{"type": "MultiBinary", "n": 3_000_000}] * 2},
    "a hundred thousand leaves": {"type": "Tuple", "subspaces": [{"type": "Discrete", "n": 2}] * 100_000},
    "a hundred thousand spaces of nothing": {
        "type": "Tuple",
        "subspaces": [{"type": "Tuple", "subspaces": []}] * 10**5,
    },
    "a shape below zero": {"type": "Tuple", "subspaces": [{**HALF, "shape": [-(2**20), -4]}, HALF, HALF]},
}


@pytest.mark.parametrize("space", SPACES_TOGETHER.values(), ids=SPACES_TOGETHER)
def test_leaves_that_are_too_much_together_are_refused_at_once(space):
    started = time.perf_counter()
    with pytest.raises(SpaceError, match=r"expected at most 4194304|more than 4096 spaces in it"):
        space_from_json(space)
    assert time.perf_counter() - started < 2


def test_a_space_as_large_as_allowed_is_one():
    space = space_from_json({"type": "Tuple", "subspaces": [HALF, HALF]})
    assert [leaf.shape for leaf in leaf_spaces(space).values()] == [(1024, 2048)] * 2


def test_a_run_whose_spaces_are_too_much_together_is_refused(run, capsys):  # noqa: F811
    def change(document):
        document["observation_space"] = json.dumps(SPACES_TOGETHER["three leaves of half as much as all"])

    rewrite(run, "run.json", change)
    for command in (["inspect", run], ["evaluate", run]):
        assert "expected at most 4194304" in said(capsys, command)


def zeros(file, name, rows):
    """An array of so many zeros in HDF5, of which none is stored."""
    file.create_dataset(name, (rows, 7), np.float64, chunks=(1000, 7))


def test_arrays_of_a_flat_file_that_are_too_much_together_are_refused(tmp_path):
    rows = 1_000_000  # 56 MB each, of 64 that are allowed
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        for name in ("observations", "actions", "next_observations"):
            zeros(file, name, rows)
        file["rewards"] = np.zeros(3)
    with pytest.raises(DataError, match="with what is read before it: more than 64 MB"):
        load(tmp_path / "flat.hdf5")


def test_leaves_of_an_episode_that_are_too_much_together_are_refused(root):  # noqa: F811
    names = [f"part{i}" for i in range(9)]
    seen = spaces.Dict({name: spaces.Box(-1, 1, (7,), np.float64) for name in names})
    identity = write("flat/parts-v0", random_episodes(seen, FLAT[1]), seen, FLAT[1])
    with h5py.File(root / identity / "data" / "main_data.hdf5", "a") as file:
        for name in names:
            del file[f"episode_1/observations/{name}"]
            zeros(file, f"episode_1/observations/{name}", 1_000_000)
    with pytest.raises(DataError, match="with what is read before it: more than 64 MB"):
        load(root / identity)


@pytest.mark.parametrize("layout", ["hdf5", "parquet"])
def test_one_picture_that_is_there_many_times_is_refused_before_it_is_unpacked(root, layout):  # noqa: F811
    """A flat picture of 48 kB is a JPEG of a few hundred bytes, and two thousand of those compress to nothing."""
    seen, count = spaces.Box(0, 255, (128, 128, 3), np.uint8), 2000
    flat = io.BytesIO()
    Image.new("RGB", (128, 128)).save(flat, "JPEG")
    identity = write("flat/seen-v0", random_episodes(seen, FLAT[1]), seen, FLAT[1], data_format=layout)
    if layout == "hdf5":
        with h5py.File(root / identity / "data" / "main_data.hdf5", "a") as file:
            del file["episode_1/observations"]
            rows = np.tile(np.frombuffer(flat.getvalue(), np.uint8), (count, 1))
            file.create_dataset("episode_1/observations", data=rows, compression="gzip")
    else:
        path = root / identity / "data" / "1" / "part-0.parquet"
        table = parquet.read_table(path, partitioning=None).slice(0, 1)
        table = table.take(pyarrow.repeat(0, count))
        place = table.schema.names.index("observations")
        encoded = pyarrow.array([flat.getvalue()] * count, pyarrow.binary())
        parquet.write_table(table.set_column(place, "observations", encoded), path, compression="zstd")
    with pytest.raises(DataError, match=r"2000 pictures.*: more than 64 MB"):
        load(root / identity)


@pytest.mark.parametrize("files", ["of one episode", "of several"])
def test_files_of_a_folder_that_are_too_much_together_are_refused(root, files):  # noqa: F811
    identity = write("flat/repeated-v0", random_episodes(*FLAT), *FLAT, data_format="parquet")
    for episode in ("0", "1", "2"):
        path = root / identity / "data" / episode / "part-0.parquet"
        table = parquet.read_table(path, partitioning=None)
        rows = pyarrow.concat_arrays(
            [pyarrow.repeat(0, 700_000 if files == "of several" else 250_000), pyarrow.array([1])]
        )  # the flags of one end
        parquet.write_table(table.take(rows), path, compression="zstd")
        if files == "of one episode":
            for part in range(1, 4):
                parquet.write_table(table.take(rows), path.with_name(f"part-{part}.parquet"), compression="zstd")
    with pytest.raises(DataError, match=r"more than 64 MB, which no file of \d+ bytes should hold"):
        load(root / identity)


# Tokenizers.


def grows(letters="a", times=1000):
    """A part that makes a thousand letters of each."""
    return {"type": "Replace", "pattern": {"String": letters}, "content": letters * times}


def without(name):
    return lambda document: document.pop(name)


def having(**parts):
    return lambda document: document.update(parts)


def modelled(**fields):
    return lambda document: document["model"].update(fields)


def added(**fields):
    token = {"id": 0, "content": "a", "special": False, "normalized": False} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip"), False
    )
    return having(added_tokens=[token | fields])


TOKENIZERS = {
    "a normalizer that grows": having(normalizer={"type": "Sequence", "normalizers": [grows()] * 4}),
    "a normalizer of a damaged table": having(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA////"}
    ),
    "a normalizer that aborts": having(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
    "a harmless normalizer": having(normalizer={"type": "Lowercase"}),
    "a decoder that grows": having(decoder={"type": "Sequence", "decoders": [grows()] * 4 + [{"type": "Fuse"}]}),
    "a decoder past the end": having(decoder={"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}),
    "a regular expression": having(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "^(?:a|aa)+$"}, "behavior": "Isolated", "invert": False}
    ),
    "pre-tokenizers in a row": having(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 3}),
    "one with more than it has": having(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "more": 1}),
    "one that is a list": having(pre_tokenizer=[1]),
    "another model": having(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0, "byte_fallback": False}),
    "no model": without("model"),
    "pieces of words": having(model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}),
    "an unknown word": modelled(unk_token="a"),
    "more of a model": modelled(more=1),
    "no vocabulary": modelled(vocab=[]),
    "a token without an id": modelled(vocab={"a": "x"}),
    "an id below zero": modelled(vocab={"a": -1}),
    "an id past 64 bits": modelled(vocab={"a": 10**30}),
    "an endless token": modelled(vocab={"a" * 100_001: 0}),
    "an endless token that is added": added(content="a" * 100_001),
    "a token that is a number": added(content=5),
    "half a character": added(content="\ud800"),
    "random merges": having(
        model={"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "dropout": 0.5}
    ),
    "merges of no tokens": having(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}),
    "a prefix of each subword": having(
        model={"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "a" * 1000}
    ),
}


@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_of_another_kind_is_refused_in_one_line(text_run, change, capsys):  # noqa: F811
    def alter(document):
        tokenizer = json.loads(document["tokenizer"])
        change(tokenizer)
        document["tokenizer"] = json.dumps(tokenizer)

    rewrite(text_run, "run.json", alter)
    line = said(capsys, ["generate", text_run, "--prompt", "a", "--new-tokens", "5"], program=text_main)
    assert re.search(r"run\.json: its tokenizer cannot be read \(.*only the kinds that dt-text writes", line)


@pytest.mark.parametrize("text", ["[" * 100_000, "5", "", '{"model": ' * 5000], ids=["deep", "number", "empty", "cut"])
def test_a_tokenizer_that_is_no_document_is_refused(text_run, text, capsys):  # noqa: F811
    rewrite(text_run, "run.json", lambda document: document.__setitem__("tokenizer", text))
    assert "its tokenizer cannot be read" in said(capsys, ["generate", text_run], program=text_main)


def test_of_a_part_that_is_there_twice_the_library_gets_the_one_that_was_checked(text_run, capsys):  # noqa: F811
    """Python takes the last, the library may take the first."""

    def alter(document):
        bomb = json.dumps({"type": "Sequence", "normalizers": [grows()] * 4})
        document["tokenizer"] = f'{{"normalizer": {bomb}, ' + document["tokenizer"].lstrip()[1:]

    rewrite(text_run, "run.json", alter)
    assert text_main(["generate", str(text_run), "--prompt", "a", "--new-tokens", "5"]) == 0
    assert len(capsys.readouterr().out) == 7


def test_a_tokenizer_as_gpt2_has_it_is_read():
    ours = json.loads(subword_tokenizer(["low lower lowest"] * 3, 270).to_str())
    theirs = {name: ours[name] for name in ("truncation", "padding", "normalizer")}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    theirs |= {"version": "1.0", "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level}
    theirs["added_tokens"] = [{**ours["added_tokens"][0], "content": "<|endoftext|>", "id": 266}]
    theirs["model"] = {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    theirs["model"] |= {"fuse_unk": False, "vocab": ours["model"]["vocab"]}
    theirs["model"]["merges"] = [" ".join(pair) for pair in ours["model"]["merges"]]
    tokenizer = known_tokenizer(json.dumps(theirs), "there")
    assert tokenizer.decode(encode(tokenizer, "lower low")) == "lower low"
    assert tokenizer.token_to_id("<|endoftext|>") == 266


def test_a_panic_of_the_library_is_an_error_of_ours():
    class PanicException(BaseException):
        pass

    with pytest.raises(ValueError, match="gave up: inside"), named_panic():
        raise PanicException("inside")
    with pytest.raises(KeyboardInterrupt), named_panic():
        raise KeyboardInterrupt


# What lies in the current folder.

LOOKED_FOR = (
    "socket",
    "struct",
    "signal",
    "random",
    "ctypes",
    "tokenizers",
    "torch",
    "numpy",
    "transformer",
    "selectors",
)
"""Modules that programs import; a folder that brings ones of these names must not have them imported."""


@pytest.fixture
def trap(tmp_path):
    """Lay modules into a folder that leave a mark when they are imported; the mark's path."""
    mark = tmp_path / "mark"

    def lay(folder):
        for name in LOOKED_FOR:
            (folder / f"{name}.py").write_text(
                f"open({str(mark)!r}, 'a').write({name + chr(10)!r})\nraise ImportError\n"
            )
        return mark

    return lay


def installed(program, target):
    """A script as pip writes it for an entry of pyproject.toml."""
    module, name = target.split(":")
    program.write_text(f"import sys\nfrom {module} import {name}\nif __name__ == '__main__':\n    sys.exit({name}())\n")
    return [sys.executable, str(program)]


ENTRIES_OF_PROGRAMS = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("as_module", [False, True])
def test_the_text_programs_import_nothing_from_the_run_that_they_are_started_in(text_run, trap, tmp_path, as_module):  # noqa: F811
    mark = trap(text_run)
    command = [sys.executable, "-m", "transformer"]
    if as_module:
        (text_run / "transformer.py").unlink()  # which Python runs instead of the package; the docs say so
    else:
        command = installed(tmp_path / "dt-text", ENTRIES_OF_PROGRAMS["dt-text"])
    done = subprocess.run([*command, "generate", ".", "--prompt", "a", "--new-tokens", "3"], cwd=text_run, check=False)
    assert done.returncode == 0
    assert not mark.exists()
    subprocess.run([sys.executable, "-c", "import socket"], cwd=text_run, capture_output=True, check=False)
    assert mark.read_text() == "socket\n"  # the trap works


def test_environments_in_processes_import_nothing_from_the_run_that_they_are_started_in(tmp_path, trap):
    command = installed(tmp_path / "dt", ENTRIES_OF_PROGRAMS["dt"])
    (tmp_path / "here").mkdir()
    mark = trap(tmp_path / "here")
    made = [*command, "record", "CartPole-v1", "my/cart-v0", "--policy", "random", "--episodes", "2"]
    env = {**os.environ, "MINARI_DATASETS_PATH": str(tmp_path / "minari")}
    subprocess.run([*made, "--env-timeout", "20"], cwd=tmp_path / "here", env=env, check=True)
    assert not mark.exists()
    assert load(tmp_path / "minari" / "my" / "cart-v0").num_episodes == 2


# Pictures.

NAMES_OF_DATA = [
    "cost_$_a_$_b",
    "$\\frac{a$",
    "a" * 5000,
    "\x1b]0;mine\x07\x0e",
    "$",
    "^_^ \\",
    "数据",
    "line\nline",
    "",
]


@pytest.mark.parametrize("name", NAMES_OF_DATA, ids=ascii)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_name_is_a_title_and_not_a_formula(run, tmp_path, name, kind, capsys, recwarn):  # noqa: F811
    rewrite(run, "run.json", lambda document: document["dataset"].update(name=name))
    path = tmp_path / f"p.{kind}"
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "1", "--target-return", "2", "--plot", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "Glyph" not in err
    assert not re.search(r"[\x00-\x08\x0b-\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]", out + err)
    assert not recwarn.list
    if kind == "svg":
        assert len(title_of(name)) <= 80


def test_a_file_whose_name_is_half_a_formula_is_trained_on_and_drawn(payday, tmp_path):
    path = write_npz(tmp_path / "cost_$_a_$_b.npz", payday, dataset_id="cost_$_a_$_b")
    assert main(["train", str(path), "--output", str(tmp_path / "run"), *QUICK, "--target-return", "2"]) == 0
    assert (tmp_path / "run" / "results" / "target-against-achieved.png").stat().st_size > 10_000
    assert main(["inspect", str(path), "--plot", str(tmp_path / "p.png")]) == 0


def test_a_picture_that_cannot_be_written_leaves_the_earlier_one(run, tmp_path, monkeypatch, capsys):  # noqa: F811
    path = tmp_path / "p.png"
    command = ["evaluate", run, "--episodes", "1", "--target-return", "2", "--plot", path]
    assert main([str(word) for word in command]) == 0
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert f"the disk is full ({os.strerror(28)})" in said(capsys, command)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


MATPLOTLIBRC = {
    "a program that draws text": "text.usetex: True\n",
    "not a text": b"\xff\xfe\x00 \x81\nbackend: module://hostile_module\n",
    "a pipe": None,
}


@pytest.mark.parametrize("content", MATPLOTLIBRC.values(), ids=MATPLOTLIBRC)
def test_a_matplotlibrc_in_the_current_folder_is_not_obeyed(trained, tmp_path, content):  # noqa: F811
    here = tmp_path / "here"
    here.mkdir()
    if content is None:
        os.mkfifo(here / "matplotlibrc")
    else:
        (here / "matplotlibrc").write_bytes(content if isinstance(content, bytes) else content.encode())
    program = "import sys, dt.cli; sys.exit(dt.cli.main(sys.argv[1:]))"
    data, path = trained.parent / "coins.npz", tmp_path / "p.png"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    words = [sys.executable, "-c", program, "inspect", data, "--plot", path]
    done = subprocess.run(words, cwd=here, env=env, timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert path.stat().st_size > 10_000


# Names and lists without end.

ENDLESS_FIELDS = {
    "dataset.name": "a" * 400_000,
    "dataset.targets": [1.0] * 100_000,
    "dataset.parts": [{"name": "a", "source": None, "fingerprint": "b", "fraction": 1.0}] * 20_000,
    "environment.id": "a" * 400_000,
    "environment.kwargs": {"a" * 400_000: 1},
    "reference.source": "a" * 400_000,
    "imported": "a" * 400_000,
    "versions": {"torch": "a" * 400_000},
}


@pytest.mark.parametrize("field", ENDLESS_FIELDS)
def test_a_name_or_a_list_without_end_is_refused(run, field, capsys):  # noqa: F811
    def change(document):
        *above, last = field.split(".")
        for key in above:
            document = document[key]
        document[last] = ENDLESS_FIELDS[field]

    rewrite(run, "run.json", change)
    for command in (["inspect", run], ["evaluate", run]):
        line = said(capsys, command)
        assert re.search(rf"run\.json: {field.split('.')[0]}.* expected at most 10?000", line)
        assert len(line) < 1000
