"""Disks that are full or read-only, no home folder, no fcntl: nothing that was played is lost."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import QUICK, recorded, run, trained  # noqa: F401

from dt.cli import main
from dt.data import tensor_on
from envs import DataError, load
from envs.datasets import writer
from envs.datasets.writer import keep_elsewhere, write_folder, write_minari
from transformer.runs.distributed import in_float64
from transformer.runs.folder import LOCK
from transformer.runs.setup import multiplies_bf16, pick_device


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Minari's root for this test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


# A full disk. RLIMIT_FSIZE stands in for it: a file that would become larger cannot be written.

FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv[1:] = sys.argv[2:]
import conftest
from dt.cli import main
code = main(sys.argv[1:])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
sys.exit(code)
"""


def on_a_full_disk(limit, *command, cwd=None):
    """A command in a process of its own, in which no file can have more bytes than this."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    words = [sys.executable, "-c", FULL, str(limit), *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=env, cwd=cwd)


def numbers(path, steps=600):
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.normal(size=(steps, 6)), "actions": rng.uniform(-1, 1, (steps, 2))}
    np.savez(path, **arrays, rewards=rng.normal(size=steps), lengths=np.full(steps // 10, 10))
    return path


@pytest.mark.parametrize("limit", [2_000, 100_000])
def test_an_import_onto_a_full_disk_is_refused_in_one_line(root, tmp_path, limit):
    done = on_a_full_disk(limit, "import", numbers(tmp_path / "small.npz"), "mine/cut-v0")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"dt: {root / 'mine/cut-v0'}: cannot be written (")
    assert not list(root.glob("*"))


@pytest.mark.parametrize("limit", [40_000])
def test_what_was_recorded_onto_a_full_disk_is_not_lost(root, tmp_path, monkeypatch, limit):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = on_a_full_disk(limit, "record", "Payday-v0", "mine/recorded-v0", "--policy", "random", "--episodes", "30")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr  # nowhere, here: the limit is on each file


def test_a_recording_is_kept_where_there_is_room(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    filled = writer._fill

    def full(folder, *arguments):
        if root in folder.parents:
            raise OSError(28, os.strerror(28))
        filled(folder, *arguments)

    monkeypatch.setattr(writer, "_fill", full)
    assert main(["record", "Payday-v0", "mine/recorded-v0", "--policy", "random", "--episodes", "7"]) == 2
    (kept,) = tmp_path.glob("decision-transformer-kept-*")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"the disk is full: {os.strerror(28)}" in line
    assert line.endswith(f"The 7 episodes are kept in {kept}; when there is room: dt import {kept} mine/recorded-v0")
    monkeypatch.setattr(writer, "_fill", filled)
    assert main(["import", str(kept), "mine/recorded-v0"]) == 0
    assert load("mine/recorded-v0").num_episodes == 7


def test_without_room_anywhere_nothing_is_left_behind(payday, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(writer, "_fill", full)
    assert keep_elsewhere(payday) is None
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_at_the_end_is_noticed(payday, tmp_path, monkeypatch):
    """A disk may say only when it is flushed that it has taken nothing."""

    def fails(descriptor):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(DataError, match="cannot be written"):
        write_folder(tmp_path / "data", payday)
    assert not list(tmp_path.iterdir())


def test_the_file_that_hdf5_writes_holds_what_is_written(payday, root):
    assert load(write_minari(payday, "mine/whole-v0")).fingerprint == payday.fingerprint


# A cache that may be read and not written.


@pytest.fixture
def big(tmp_path, monkeypatch):
    """A file that is large enough for the cache, and a cache of its own where it is."""
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    path = numbers(tmp_path / "big.npz", 60_000)
    os.utime(path, (1e9, 1e9))
    assert load(path).fingerprint == load(path).fingerprint
    assert len(list((tmp_path / "cache").iterdir())) == 1
    return path


def nothing_can_be_written_in(folder, monkeypatch, code=30):
    """Files cannot be made below this folder: EROFS, ENOSPC, ...; root may write where permissions say no."""
    made = os.open

    def refuse(path, flags, *arguments, **options):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(folder)):
            raise OSError(code, os.strerror(code), path)
        return made(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("code", [13, 28, 30], ids=["no permission", "full", "read-only"])
def test_what_is_cached_is_read_and_trained_on_without_writing_there(big, tmp_path, monkeypatch, code, capsys):
    before = sorted((tmp_path / "cache").rglob("*"))
    nothing_can_be_written_in(tmp_path / "cache", monkeypatch, code)
    assert main(["inspect", str(big)]) == 0
    assert main(["train", str(big), "--output", str(tmp_path / "run"), *QUICK]) == 0
    assert "not cached" not in capsys.readouterr().out
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_without_room_for_scratch_files_arrays_are_in_memory(big, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    nothing_can_be_written_in(tmp_path, monkeypatch, 28)
    assert main(["inspect", str(big)]) == 0


def test_a_cache_that_was_never_filled_and_cannot_be_is_done_without(big, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path / "big.npz" / "inside-of-a-file"))
    assert main(["inspect", str(big)]) == 0
    assert "not cached" in capsys.readouterr().out


# No home folder: a container's process under a number that has no name.


@pytest.fixture
def homeless(monkeypatch):
    def unknown(*_):
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "DECISION_TRANSFORMER_CACHE", "MINARI_DATASETS_PATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError):
        Path.home()


def test_without_a_home_a_file_is_read_and_not_cached(homeless, tmp_path, capsys):
    assert main(["inspect", str(numbers(tmp_path / "big.npz", 60_000))]) == 0
    out = capsys.readouterr().out
    assert "not cached: this user has no home folder; DECISION_TRANSFORMER_CACHE names a place" in out


@pytest.mark.parametrize("command", [["inspect", "some/thing-v0"], ["import", "big.npz", "mine/x-v0"]], ids=str)
def test_without_a_home_minaris_root_must_be_named(homeless, tmp_path, monkeypatch, command, capsys):
    monkeypatch.chdir(tmp_path)
    numbers(tmp_path / "big.npz")
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("this user has no home folder for Minari's datasets; MINARI_DATASETS_PATH names one")


def test_without_a_home_a_run_is_trained_and_played(homeless, recorded, tmp_path, capsys):  # noqa: F811
    assert main(["train", str(recorded), "--output", str(tmp_path / "run"), *QUICK, "--target-return", "2"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "1", "--target-return", "2"]) == 0


# Windows has no fcntl, and nothing here has been run there; what is imported must not need it.

WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None  # an import of it fails
import pkgutil, importlib
import conftest, dt, envs, transformer
from dt.cli import main
for package in (dt, envs, transformer):
    for each in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not each.name.endswith("__main__"):
            importlib.import_module(each.name)
run = sys.argv[1]
codes = [main(["inspect", "hopper/replay-v0"]), main(["inspect", run]), main(["evaluate", run, "--episodes", "1"])]
codes += [main(["train", sys.argv[2], "--output", run, "--resume", "--steps", "7"])]
assert codes == [0, 0, 0, 0], codes
"""


def test_nothing_needs_fcntl(run, trained):  # noqa: F811
    (run / LOCK).unlink()  # of a system that has it
    command = [sys.executable, "-c", WITHOUT_FCNTL, str(run), str(trained.parent / "coins.npz")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# Apple's GPUs know no float64; none has been at hand.


def test_an_apple_gpu_that_is_not_there_is_refused(recorded, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    quick = [word.replace("cpu", "mps") for word in QUICK]
    assert main(["train", str(recorded), "--output", str(tmp_path / "run"), *quick]) == 2
    assert "device mps: no usable Apple GPU; use --device cpu or auto" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_apple_gpu_is_taken_where_it_is_named(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps").type == "mps"
    assert pick_device("auto").type in ("cpu", "cuda")
    assert not multiplies_bf16(torch.device("mps"))


def test_nothing_is_in_float64_on_an_apple_gpu(monkeypatch):
    """Its tensors cannot be made here, so the calls that would make them are looked at."""
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append((self.dtype, str(device))))
    for kind in (np.float64, np.float32, np.int64, np.uint8):
        tensor_on(np.zeros(3, kind), "mps")
    assert moved == [(kind, "mps") for kind in (torch.float32, torch.float32, torch.int64, torch.uint8)]
    monkeypatch.undo()
    assert tensor_on(np.zeros(3), "cpu").dtype == torch.float64
    assert in_float64(torch.zeros(3)).dtype == torch.float64


def test_the_lowest_versions_are_those_of_the_python_at_hand():
    folder = Path(__file__).parent.parent
    sys.path.insert(0, str(folder / ".ci"))
    try:
        from lowest import lowest
    finally:
        sys.path.pop(0)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    first, last = lowest(project, (3, 11)), lowest(project, (3, 13))
    assert (first["numpy"], last["numpy"], first["torch"]) == ("2.0", "2.1", last["torch"])
    assert {name for name in first if first[name] != last[name]} == {"numpy", "pillow", "matplotlib"}
    assert len(first) > 12
