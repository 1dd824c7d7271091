"""Checkpoints that are complete or absent: safetensors and JSON in a folder that appears by one rename.

    RUN/
      run.json                      what this run is; written once, before the first step
      checkpoints/step-00001000/    model.safetensors, optimizer.safetensors, state.json, run.json, manifest.json
      best.json                     which step scored best, the earliest of equals, and its score
      log.jsonl  tensorboard/       the log, twice

Every save goes one way: write under a temporary name, flush each file and the folder to the disk, rename, flush the
folder above. Nothing here is ever unpickled, so opening a checkpoint runs no code of its maker's.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from transformer.config import type_error
from transformer.errors import CheckpointError

if TYPE_CHECKING:  # to read a run's description, or to refuse it, no torch is needed
    from torch import Tensor, nn

SCHEMA = 1
"""Version of the layout above; another one is refused."""

MOST_JSON = 64 << 20
"""Bytes of a JSON file: the largest that are known, tokenizers of 250,000 subwords, have a third."""

SMALL, MOST_GROWTH = 64 << 20, 300
"""A model's window may take `SMALL` bytes, or `MOST_GROWTH` times its weights where that is more."""


LOCK = ".lock"
"""File of a run that the process which trains in it holds."""

ENTRIES = ("run.json", "best.json", "log.jsonl", "launch", "checkpoints", "results", "samples", "tensorboard", LOCK)
"""What is read and written in a run's folder; anything else there is its owner's."""


class Best(TypedDict):
    """What best.json holds."""

    step: int
    score: float


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file completely or not at all."""
    replace_text(path, _json_text(document))


def replace_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file completely or not at all.

    It is written under a new name that cannot be guessed, so a link that waits there is never followed.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp makes what only its owner can read
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written, {os_reason(error)}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def os_reason(error: Exception) -> str:
    """Why a file could not be written, in words; that the disk is full is said as such."""
    text = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
    full = any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT))
    return f"the disk is full ({text})" if full else text


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read a JSON file; one that is missing, broken or no file, or not of this kind, raises `CheckpointError`."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device may never end
            raise ValueError("not a file")
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes, expected at most {MOST_JSON}")
        document = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if wrong := type_error(document, kind, "" if isinstance(document, dict) else "it"):
        raise CheckpointError(f"{path}: {wrong}")
    return document


def parse_json(text: str) -> Any:
    """What a JSON text holds. Broken JSON, also one that nests too deeply, raises `ValueError`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def save_checkpoint(run: Path, step: int, tensors: "dict[str, dict[str, Tensor]]", documents: dict[str, Any]) -> Path:
    """Add checkpoint `step` to a run: one safetensors file for each entry of `tensors`, one JSON for each document.

    One that cannot be written raises `CheckpointError`, and those before it stay as they are.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    final = folder_of(run, step)
    try:
        make_folder(final.parent)
        with _appearing_folder(final) as temporary:
            for name, content in tensors.items():
                contiguous = {key: tensor.detach().contiguous() for key, tensor in content.items()}
                save_file(contiguous, temporary / f"{name}.safetensors")
            for name, document in documents.items():
                (temporary / f"{name}.json").write_text(_json_text(document), encoding="utf-8")
            hashes = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
            (temporary / "manifest.json").write_text(manifest_text(step, hashes), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        before = ", ".join(path.name for path in checkpoints(run) if path != final) or "none"
        raise CheckpointError(
            f"{final}: cannot be saved, {os_reason(error)}; checkpoints before it: {before}"
        ) from error
    return final


def manifest_text(step: int, hashes: Mapping[str, str]) -> str:
    """The manifest.json of a checkpoint. hashes: the SHA-256 of each of its files, by name."""
    return _json_text({"schema": SCHEMA, "step": step, "sha256": dict(hashes)})


def check_checkpoint(checkpoint: Path) -> None:
    """Raise `CheckpointError` unless every file of the checkpoint is what its manifest says."""
    path = checkpoint / "manifest.json"
    if not path.exists():
        raise CheckpointError(f"{checkpoint}: not complete, it has no manifest.json")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sha256"), dict):
        raise CheckpointError(f"{path}: not a checkpoint's manifest")
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(f"{checkpoint}: schema {manifest.get('schema')}, this version reads {SCHEMA}")
    expected = manifest_text(step_of(checkpoint), manifest["sha256"])
    if path.read_text(encoding="utf-8") != expected:  # the one file that no hash is kept of
        raise CheckpointError(f"{path}: damaged (not what was written for step {step_of(checkpoint)})")
    for name, digest in manifest["sha256"].items():
        path = checkpoint / name
        if path.parent != checkpoint or path.is_symlink():
            raise CheckpointError(f"{path}: lies outside {checkpoint}")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if _sha256(path) != digest:
            raise CheckpointError(f"{path}: damaged (its SHA-256 is not the manifest's)")


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Tensors of a safetensors file, on the CPU.

    Raises `CheckpointError` for NaN and infinity, for complex numbers and for floating point of 8 bits or fewer.
    Whether whole numbers and flags belong there, the model says: see `load_weights`.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in floats and (tensor.is_floating_point() or tensor.is_complex()):
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, expected {', '.join(map(str, floats))}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity")
    return _joined(tensors)


def load_weights(model: "nn.Module", tensors: "Mapping[str, Tensor]") -> None:
    """Put weights into a model; `ValueError` where one's kind differs: whole numbers or flags are not weights."""
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name in own and not (
            tensor.dtype == own[name].dtype or (tensor.is_floating_point() and own[name].is_floating_point())
        ):
            raise ValueError(f"{name} is {tensor.dtype}, expected {own[name].dtype}")
    model.load_state_dict(tensors)


def _joined(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Runs of early versions hold an attention's query and key_value apart; here their rows are one tensor's."""
    import torch

    for name in [name for name in tensors if ".query." in name]:
        rest = name.replace(".query.", ".key_value.")
        if rest in tensors:
            query, key_value = tensors.pop(name), tensors.pop(rest)
            both = torch.cat([query, key_value]) if query.dim() else query  # AdamW counts steps without a dimension
            tensors[name.replace(".query.", ".query_key_value.")] = both
    return tensors


def check_size(
    make: "Callable[[], nn.Module]", weights: "Mapping[str, Tensor]", num_layers: int, window_bytes: int
) -> None:
    """Raise `ValueError` where settings ask for more than the weights that came with them: a small file may boast.

    make: the model of these settings; it is made of shapes alone. window_bytes: what it takes to hold one window.
    """
    import torch

    if num_layers > len(weights):  # to make so many, even of nothing, takes for ever
        raise ValueError(f"num_layers is {num_layers}, here are {len(weights)} arrays of weights")
    there = sum(tensor.numel() for tensor in weights.values())
    with torch.device("meta"):
        needed = sum(tensor.numel() for tensor in make().state_dict().values())
    if needed != there:
        raise ValueError(f"a model of its settings has {needed} weights, here are {there}")
    if window_bytes > max(SMALL, MOST_GROWTH * sum(tensor.nbytes for tensor in weights.values())):
        raise ValueError(f"a window of its settings takes {window_bytes} bytes, with {there} weights")


def checkpoints(run: Path) -> list[Path]:
    """Every checkpoint of a run, oldest first; whether one is whole, `check_checkpoint` tells."""
    found = (path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(found, key=step_of)


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


def check_run(folder: Path) -> None:
    """The door of a run: raise `CheckpointError` where this is no run's folder, or it leads elsewhere."""
    if not is_run(folder):
        around = run_around(folder)
        why = "no run.json in it, so it is no run" if folder.is_dir() else "no such run"
        raise CheckpointError(f"{folder}: {f'a part of the run {around}; name that folder' if around else why}")
    check_entries(folder)


def check_entries(run: Path) -> None:
    """Raise `CheckpointError` where a link, a pipe or a device stands where a run's own files and folders are.

    Whoever made the run may have put it there, to have something read, written or removed that lies outside.
    """
    for entry in (path for name in ENTRIES for path in (run / name, *_below(run / name))):
        kind = entry.lstat().st_mode if os.path.lexists(entry) else stat.S_IFREG
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            what = "a link" if stat.S_ISLNK(kind) else "a pipe or a device"
            raise CheckpointError(f"{entry}: {what}, where only a run's own files and folders may be")


def _below(folder: Path) -> Iterator[Path]:
    """All that a folder holds, at any depth; links are not followed."""
    return (Path(above, name) for above, folders, files in os.walk(folder) for name in (*folders, *files))


def newest_checkpoint(run: Path, report: Any = None) -> Path:
    """The newest checkpoint that verifies; a damaged one is passed over, and `report(message)` is told."""
    refusals = []
    for checkpoint in reversed(checkpoints(run)):
        try:
            check_checkpoint(checkpoint)
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
    return int(read_json(path, Best)["step"]) if path.exists() else None


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
    check_checkpoint(checkpoint)
    return checkpoint


def prune(run: Path, keep: int, step: int) -> None:
    """Remove all checkpoints but the best and the newest `keep` up to `step`, the present one.

    Later ones are damaged, or the run would stand there: they count for nothing, and are replaced when it comes there.
    Nor does a folder without a manifest, which may be anyone's.
    A best.json that names no step raises `CheckpointError`, and nothing is removed.
    """
    best = best_step(run)
    ours = [path for path in checkpoints(run) if step_of(path) <= step and (path / "manifest.json").is_file()]
    for checkpoint in ours[:-keep]:
        if step_of(checkpoint) != best:
            _remove(checkpoint)


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


def make_folder(path: Path) -> None:
    """Make a folder and those above it; they last through a loss of power."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def check_new(folder: Path, advice: str = "") -> None:
    """Raise `CheckpointError` where anything already is, with what to do instead; an empty folder is nothing."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists already{advice and f'; {advice}'}")


def check_new_run(folder: Path) -> None:
    """The same where a run is to begin, which may be one that was to go on."""
    check_new(folder, "--resume continues it, another --output starts anew")


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which appears complete or not at all; refused where anything already is."""
    check_new(final)
    make_folder(final.parent)
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
                path.chmod(0o666 & ~_umask())  # mkdtemp and safetensors make what only their owner can read
                _sync(path)
        temporary.chmod(0o777 & ~_umask())
        _sync(temporary)
        put_in_place(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(folder: Path, final: Path) -> None:
    """Give a folder whose content is on the disk its final name, which lasts through a loss of power."""
    if final.exists():  # a damaged one that a resume passed over, or an empty folder
        _remove(final)
    folder.rename(final)
    _sync(final.parent)


def _remove(checkpoint: Path) -> None:
    """Remove a folder; cut short, this never leaves half of it under its name."""
    doomed = checkpoint.with_name(f".removing-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    if os.name == "nt":  # Windows flushes only what is open for writing, and no folders
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The permissions that a new file is not given."""
    os.umask(mask := os.umask(0))
    return mask


def _json_text(document: Any) -> str:
    return json.dumps(document, indent=1) + "\n"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
