"""Good files with bytes changed at random: each is read or refused in one line, soon, and never ends the process."""

import json
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from formats import LAYOUTS
from malformed import PARTS, d4rl, in_npz, layout, minari, npz, parquet_file, text
from test_cli import run, trained  # noqa: F401

from dt.config import Config
from dt.learning.description import read_description
from dt.learning.run import load_run
from dt.learning.training import prepare
from envs import DataError, load
from envs.errors import EnvError
from transformer.errors import CheckpointError, ConfigError

GOOD = {
    "minari hdf5": lambda folder: minari(folder, "hdf5", PARTS),
    "minari arrow": lambda folder: minari(folder, "arrow", PARTS),
    "minari parquet": lambda folder: minari(folder, "parquet", PARTS),
    "npz": npz(),
    "d4rl hdf5": d4rl(),
    "csv": text(),
    "parquet": parquet_file(),
    **{name: layout(name) for name in LAYOUTS if name != "ogbench"},  # which is refused, with the rewards in it
    "ogbench": in_npz("ogbench", rewards=None),
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes written over, cut out and repeated, in one place or in many."""
    new = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        at, count = rng.randrange(len(new) + 1), rng.randrange(1, 64)
        change = rng.randrange(4)
        if change == 0 and at < len(new):
            new[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            new[at : at + count % 8] = bytes(rng.choice([0, 255, rng.randrange(256)]) for _ in range(count % 8))
        elif change == 2:
            del new[at : at + count]
        else:
            new[at:at] = new[at : at + count]
    return bytes(new)


def fuzz(kind: str, count: int, folder: Path, seed: int = 0) -> None:
    """As many damaged files of a kind, one after the other; anything but reading and refusing them raises."""
    rng, good = random.Random(f"{kind} {seed}"), GOOD[kind](folder)
    files = sorted(path for path in good.rglob("*") if path.is_file()) if good.is_dir() else [good]
    kept = {path: path.read_bytes() for path in files}
    for _ in range(count):
        path = rng.choice(files)
        path.write_bytes(damaged(kept[path], rng))
        said, started = "", time.process_time()
        try:
            load(good, cache="off")
        except DataError as error:
            said = str(error)
        assert "\n" not in said
        assert time.process_time() - started < 2
        path.write_bytes(kept[path])


# In a process of its own: a library that crashes takes that one with it, and memory is measured there.
CHILD = """
    import re, resource, sys
    from pathlib import Path
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    from test_fuzz import fuzz
    fuzz(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    assert int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) < 500 << 10
"""


def fuzz_in_a_process(kind: str, count: int, folder: Path, seed: int) -> None:
    script = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CHILD), kind, str(count), str(folder), str(seed)]
    done = subprocess.run(script, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", GOOD)
def test_a_damaged_file_is_read_or_refused(tmp_path, kind):
    fuzz(kind, 40, tmp_path)


@pytest.mark.torture
@pytest.mark.parametrize("kind", GOOD)
def test_two_thousand_damaged_files_are_read_or_refused(tmp_path, kind):
    fuzz_in_a_process(kind, 300, tmp_path, seed=1)


ODD = [None, True, 0, -1, 2.5, 1e308, float("inf"), float("nan"), 10**30, 10**400, "x", "", [], [5], {}, {"a": 1}]


def oddly(content: bytes, rng: random.Random) -> bytes:
    """A JSON object with another value at one place, or with nothing there."""
    document = json.loads(content)
    part, key = document, rng.choice(list(document))
    while rng.random() < 0.8 and isinstance(part[key], dict | list) and part[key]:
        part = part[key]
        key = rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
    if rng.random() < 0.2:
        del part[key]
    else:
        part[key] = rng.choice(ODD)
    return json.dumps(document).encode()


def fuzz_run(folder: Path, count: int, seed: int) -> None:
    """A run opened and gone on with: bytes changed, and values, under a manifest that agrees or knows nothing."""
    rng, kept = random.Random(seed), folder.with_name("kept")
    shutil.copytree(folder, kept)
    for _ in range(count):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        checkpoint = sorted((folder / "checkpoints").iterdir())[-1]
        if rng.random() < 0.5:
            path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
            path.write_bytes(damaged(path.read_bytes(), rng))
        else:
            name = rng.choice(["model.safetensors", "optimizer.safetensors", "run.json", "state.json"])
            path = checkpoint / name
            odd = path.suffix == ".json" and rng.random() < 0.8
            path.write_bytes(oddly(path.read_bytes(), rng) if odd else damaged(path.read_bytes(), rng))
            _agree(checkpoint)
        for use in (load_run, resume):
            said = ""
            try:
                use(folder)
            except (CheckpointError, ConfigError, EnvError) as error:
                said = str(error)
            assert "\n" not in said


def resume(folder: Path) -> None:
    """What `dt train --resume` does before its first step, with the run's own configuration."""
    data, path = load(folder.with_name("coins.npz")), folder / "run.json"
    prepare(data, Config.from_json(read_description(path)["config"]), folder, resume=True)


def _agree(checkpoint: Path) -> None:
    """Write a manifest of what is there."""
    import hashlib

    from transformer.files import write_json

    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["sha256"] = {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in manifest["sha256"]
    }
    write_json(checkpoint / "manifest.json", manifest)


def test_a_damaged_run_is_opened_or_refused(run, trained):  # noqa: F811
    shutil.copy(trained.parent / "coins.npz", run.parent)
    fuzz_run(run, 40, seed=0)


@pytest.mark.torture
def test_two_hundred_damaged_runs_are_opened_or_refused(run, trained):  # noqa: F811
    shutil.copy(trained.parent / "coins.npz", run.parent)
    fuzz_run(run, 200, seed=1)
