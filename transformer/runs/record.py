"""A run's record: what a training leaves in its folder, and what a resumed one takes up from there."""

from pathlib import Path
from typing import Any, TypedDict

from transformer.errors import (
    CheckpointError,
)
from transformer.runs import distributed
from transformer.runs.checkpoint import (
    Best,
    check_run,
    checkpoints,
    newest_checkpoint,
)
from transformer.runs.console import tell


class State(TypedDict):
    """What a checkpoint's state.json holds, beside its tensors."""

    step: int
    loss_sum: float
    loss_steps: int
    best: Best | None


RESUMABLE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "evaluate_every",
    "keep_checkpoints",
    "device",
    "compile",
    "activation_checkpointing",
)
"""Settings of model and training that a resumed run may change; any other difference is refused."""


LAUNCH = "launch"
"""File of a run that torchrun began: which torchrun it was, to know it again when it restarts a process that failed."""


def newest_state(run: Path) -> Path | None:
    """The checkpoint that a run goes on from; None where it was stopped before its first, and begins anew.

    Its run.json says what its numbers were made with; the run's own may have been changed since.
    """
    check_run(run)
    if not checkpoints(run):
        tell(f"{run}: no checkpoint yet, so from step 0")
        return None
    return newest_checkpoint(run, report=tell)


def begun_by_this_launch(run: Path) -> bool:
    """Whether torchrun began this run and has restarted its processes since: then it goes on, `--resume` or not."""
    mark = run / LAUNCH
    return distributed.on_first_rank(
        lambda: distributed.is_restarted() and mark.is_file() and mark.read_text() == distributed.launch_id()
    )


def check_same_recipe(old: dict[str, Any], new: dict[str, Any], run: Path) -> None:
    """Refuse to go on with another model or another recipe (configurations as in `run.json`); name what differs."""
    for part in ("model", "training"):
        for name, value in new[part].items():
            before = old[part].get(name)
            if before != value and name not in RESUMABLE:
                raise CheckpointError(f"{run}: {name} was {before}, now {value}; a resumed run cannot change it")
