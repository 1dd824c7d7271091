"""Checkpoints of a run, written atomically: safetensors and JSON in a folder that appears by one rename.

Nothing here is ever unpickled, so opening a checkpoint runs no code of its maker's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from transformer.errors import CheckpointError
from transformer.files import appearing_folder, json_text, make_folder, os_reason, read_json, remove_folder, sha256_of

if TYPE_CHECKING:  # to read a run's description, or to refuse it, no torch is needed
    from torch import Tensor

SCHEMA = 1
"""Version of the layout above; another one is refused."""


class Best(TypedDict):
    """What best.json holds."""

    step: int
    score: float


def save_checkpoint(run: Path, step: int, tensors: "dict[str, dict[str, Tensor]]", documents: dict[str, Any]) -> Path:
    """Add checkpoint `step` to a run: one safetensors file for each entry of `tensors`, one JSON for each document.

    One that cannot be written raises `CheckpointError`, and those before it stay as they are.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    final = folder_of(run, step)
    try:
        make_folder(final.parent)
        with appearing_folder(final) as temporary:
            for name, content in tensors.items():
                contiguous = {key: tensor.detach().contiguous() for key, tensor in content.items()}
                save_file(contiguous, temporary / f"{name}.safetensors")
            for name, document in documents.items():
                (temporary / f"{name}.json").write_text(json_text(document), encoding="utf-8")
            hashes = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
            (temporary / "manifest.json").write_text(manifest_text(step, hashes), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        before = ", ".join(path.name for path in checkpoints(run) if path != final) or "none"
        raise CheckpointError(
            f"{final}: cannot be saved, {os_reason(error)}; checkpoints before it: {before}"
        ) from error
    return final


def manifest_text(step: int, hashes: Mapping[str, str]) -> str:
    """The manifest.json of a checkpoint. hashes: the SHA-256 of each of its files, by name."""
    return json_text({"schema": SCHEMA, "step": step, "sha256": dict(hashes)})


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
        if sha256_of(path) != digest:
            raise CheckpointError(f"{path}: damaged (its SHA-256 is not the manifest's)")


def checkpoints(run: Path) -> list[Path]:
    """Every checkpoint of a run, oldest first; `check_checkpoint` checks whether one is whole."""
    found = (path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(found, key=step_of)


def folder_of(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def newest_checkpoint(run: Path, report: Any = None) -> Path:
    """The newest checkpoint that verifies; a damaged one is passed over, with `report(message)`."""
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
    """The checkpoint that scored best on the way; where none was scored the newest, with `report(message)`."""
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
            remove_folder(checkpoint)
