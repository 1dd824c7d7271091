"""Checkpoints that are complete or absent: safetensors and JSON in a folder that appears by one rename.

    RUN/
      run.json                      what this run is; written once, before the first step
      checkpoints/step-00001000/    model.safetensors, optimizer.safetensors, state.json, run.json, manifest.json
      best.json                     which step scored best, the earliest of equals, and its score
      log.jsonl  tensorboard/       the log, twice

Nothing here is ever unpickled, so opening a checkpoint runs no code of its maker's.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

SCHEMA = 1
"""Version of the layout above; another one is refused."""


class CheckpointError(ValueError):
    """A run or checkpoint that cannot be used; the message names the file."""


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one raises `CheckpointError` with its name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def save_checkpoint(run: Path, step: int, tensors: dict[str, dict[str, Tensor]], documents: dict[str, Any]) -> Path:
    """Add checkpoint `step` to a run: one safetensors file for each entry of `tensors`, one JSON for each document."""
    final = folder_of(run, step)
    final.parent.mkdir(parents=True, exist_ok=True)
    with _appearing_folder(final) as temporary:
        for name, content in tensors.items():
            contiguous = {key: tensor.detach().contiguous() for key, tensor in content.items()}
            save_file(contiguous, temporary / f"{name}.safetensors")
        for name, document in documents.items():
            write_json(temporary / f"{name}.json", document)
        hashes = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"schema": SCHEMA, "step": step, "sha256": hashes})
    return final


def verify(checkpoint: Path) -> None:
    """Raise `CheckpointError` unless every file of the checkpoint is what its manifest says."""
    manifest = read_json(checkpoint / "manifest.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sha256"), dict):
        raise CheckpointError(f"{checkpoint}/manifest.json: not a checkpoint's manifest")
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(f"{checkpoint}: schema {manifest.get('schema')}, this version reads {SCHEMA}")
    for name, expected in manifest["sha256"].items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if _sha256(path) != expected:
            raise CheckpointError(f"{path}: damaged (its SHA-256 is not the manifest's)")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def checkpoints(run: Path) -> list[Path]:
    """Every complete checkpoint of a run, oldest first."""
    found = (path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(path for path in found if (path / "manifest.json").is_file())


def folder_of(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def is_run(folder: Path) -> bool:
    """Whether this is a run's folder; a checkpoint holds a run.json too, beside its manifest."""
    return (folder / "run.json").is_file() and not (folder / "manifest.json").is_file()


def run_around(path: Path) -> Path | None:
    """The run that a file or folder lies in, such as a checkpoint's; None where it lies in none."""
    return next(filter(is_run, path.absolute().parents), None) if path.exists() else None


def newest_checkpoint(run: Path, report: Any = None) -> Path:
    """The newest checkpoint that verifies; a damaged one is passed over, and `report(message)` is told."""
    refusals = []
    for checkpoint in reversed(checkpoints(run)):
        try:
            verify(checkpoint)
            return checkpoint
        except CheckpointError as error:
            refusals.append(str(error))
            if report is not None:
                report(f"passed over: {error}")
    reason = refusals[0] if refusals else "no checkpoint in it"
    raise CheckpointError(f"{run}: {reason}")


def best_step(run: Path) -> int | None:
    """The step that best.json names, None where nothing was scored; a best.json that names none is refused."""
    path = run / "best.json"
    if not path.exists():
        return None
    document = read_json(path)
    step = document.get("step") if isinstance(document, dict) else None
    if type(step) is not int:  # a bool is none
        raise CheckpointError(f"{path}: names no step, only {str(document)[:80]}")
    return step


def best_checkpoint(run: Path, report: Any = None) -> Path:
    """The checkpoint that scored best on the way; where none was scored the newest, and `report(message)` is told."""
    step = best_step(run)
    if step is None:
        if report is not None:
            report(f"{run}: nothing was scored on the way, so there is no best checkpoint; the newest stands in")
        return newest_checkpoint(run, report)
    checkpoint = folder_of(run, step)
    if not checkpoint.exists():
        present = ", ".join(str(step_of(path)) for path in checkpoints(run)) or "none"
        raise CheckpointError(f"{run}/best.json: names step {step}, which has no checkpoint; there are: {present}")
    verify(checkpoint)
    return checkpoint


def prune(run: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and the best, and what an interrupted save left behind.

    A best.json that names no step raises `CheckpointError`, and nothing is removed.
    """
    best = best_step(run)
    for checkpoint in checkpoints(run)[:-keep]:
        if step_of(checkpoint) != best:
            doomed = checkpoint.with_name(f".removing-{checkpoint.name}")
            checkpoint.rename(doomed)  # so a removal cut short never leaves half a checkpoint under its name
            shutil.rmtree(doomed)
    for leftover in (run / "checkpoints").glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which appears complete or not at all; refused where anything already is."""
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise CheckpointError(f"{final}: exists already")
    final.parent.mkdir(parents=True, exist_ok=True)
    with _appearing_folder(final) as temporary:
        yield temporary


@contextmanager
def _appearing_folder(final: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; on success it takes its final name with all its content on disk."""
    temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=final.parent))
    try:
        yield temporary
        for path in temporary.iterdir():
            if path.is_file():  # a folder in it has seen to its own
                _sync_file(path)
        temporary.chmod(0o755)
        _sync_folder(temporary)
        if final.exists():  # the same step again, after a resume
            doomed = final.with_name(f".removing-{final.name}")
            final.rename(doomed)
            temporary.rename(final)
            shutil.rmtree(doomed)
        else:
            temporary.rename(final)
        _sync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
