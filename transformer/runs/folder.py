"""A run's folder: what belongs to it, and who may write in it.

RUN/
  run.json                      what this run is; written once, before the first step
  checkpoints/step-00001000/    model.safetensors, optimizer.safetensors, state.json, run.json, manifest.json
  best.json                     which step scored best, the earliest of equals, and its score
  log.jsonl  tensorboard/       the log, twice
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformer.errors import CheckpointError
from transformer.files import check_new

LOCK = ".lock"
"""File of a run that the process which trains in it holds."""

ENTRIES = ("run.json", "best.json", "log.jsonl", "launch", "checkpoints", "results", "samples", "tensorboard", LOCK)
"""What is read and written in a run's folder; anything else there is its owner's."""


def is_run(folder: Path) -> bool:
    """Whether this is a run's folder; a checkpoint holds a run.json too, with its manifest."""
    return (folder / "run.json").is_file() and not (folder / "manifest.json").is_file()


def run_around(path: Path) -> Path | None:
    """The run that a file or folder belongs to, such as a checkpoint's; None where there is none."""
    return next(filter(is_run, path.absolute().parents), None) if path.exists() else None


def check_run(folder: Path) -> None:
    """Raise `CheckpointError` where this is not a run's folder, or it leads elsewhere."""
    if not is_run(folder):
        around = run_around(folder)
        why = "no run.json in it, so it is not a run" if folder.is_dir() else "no such run"
        raise CheckpointError(f"{folder}: {f'a part of the run {around}; name that folder' if around else why}")
    check_entries(folder)


def check_entries(run: Path) -> None:
    """Raise `CheckpointError` where a link, a pipe or a device stands where a run's own files and folders are.

    Its maker may have put it there, to have something read, written or removed that lies outside.
    """
    for entry in (path for name in ENTRIES for path in (run / name, *_below(run / name))):
        kind = entry.lstat().st_mode if os.path.lexists(entry) else stat.S_IFREG
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            what = "a link" if stat.S_ISLNK(kind) else "a pipe or a device"
            raise CheckpointError(f"{entry}: {what}, where only a run's own files and folders may be")


def _below(folder: Path) -> Iterator[Path]:
    """All that a folder holds, at any depth; links are not followed."""
    return (Path(above, name) for above, folders, files in os.walk(folder) for name in (*folders, *files))


def check_new_run(folder: Path) -> None:
    """The same where a run is to begin, which may be one that was to go on."""
    check_new(folder, "--resume continues it, another --output starts a new one")


def clear_leftovers(run: Path) -> None:
    """Remove what a process that was killed inside a save or a removal left behind."""
    for name in (".saving-*", ".removing-*"):
        for folder in (run / "checkpoints").glob(name):
            shutil.rmtree(folder, ignore_errors=True)
    for name in ("run.json", "best.json", "log.jsonl"):
        for file in run.glob(f".{name}.*"):
            file.unlink(missing_ok=True)


@contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Hold a run's folder while this process writes in it; refused where another holds it, or it leads elsewhere."""
    from filelock import FileLock, Timeout

    check_entries(run)
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()  # the system lets go when the process ends
    except Timeout:
        raise CheckpointError(f"{run}: another process is training in it; if none is, remove {run / LOCK}") from None
    except (NotImplementedError, OSError):  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()
