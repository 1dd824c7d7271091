"""A run's record: what a training leaves in its folder, and what a resumed one takes up from there."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from transformer.config import EARLY_TRAINING
from transformer.errors import CheckpointError, NonFiniteError
from transformer.files import make_folder, os_reason, read_json, write_json
from transformer.runs import distributed
from transformer.runs.callbacks import Callbacks
from transformer.runs.checkpoint import (
    Best,
    check_checkpoint,
    checkpoints,
    folder_of,
    newest_checkpoint,
    prune,
    save_checkpoint,
    step_of,
)
from transformer.runs.console import tell
from transformer.runs.folder import check_new_run, check_run, clear_leftovers, only_writer
from transformer.runs.log import RunLog
from transformer.runs.outputs import check_folder
from transformer.runs.progress import Progress


class CheckpointState(TypedDict):
    """What a checkpoint's state.json holds, apart from its tensors."""

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
    """The checkpoint that a run goes on from; None where it was stopped before its first, and starts again.

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
    early = {"model": {}, "training": EARLY_TRAINING}
    for part in ("model", "training"):
        known = early[part] | old[part]
        for name, value in new[part].items():
            before = known.get(name)
            if before != value and name not in RESUMABLE:
                raise CheckpointError(f"{run}: {name} was {before}, now {value}; a resumed run cannot change it")


class RunRecord:
    """What a run leaves in its folder: what it is, its curves, its checkpoints, and which of them is the best.

    Only the first of several processes writes.

    Args:
        folder: the run's folder.
        document: what the run is; it goes into run.json and into each checkpoint.
        keep_checkpoints: how many of the newest to keep.
        callbacks: what each line of the log and each checkpoint is reported to.
    """

    def __init__(self, folder: Path, document: dict[str, Any], keep_checkpoints: int, callbacks: Callbacks):
        self.folder = folder
        self.document = document
        self._keep_checkpoints = keep_checkpoints
        self.callbacks = callbacks
        self.loss_sum, self.loss_steps = 0.0, 0  # since the last line of the log
        self.best: Best | None = None  # step and score of the best evaluation
        self._log: RunLog  # this and the next three are set by `open`
        self._bar: Progress
        self._clock: float
        self._clock_step: int

    def create(self) -> None:
        """Make the folder; refused where a run, or anything else, already is."""
        distributed.on_first_rank(self._create)

    def _create(self) -> None:
        check_new_run(self.folder)
        check_folder(self.folder)
        make_folder(self.folder)
        if launch := distributed.launch_id():
            (self.folder / LAUNCH).write_text(launch)
        write_json(self.folder / "run.json", self.document)

    def resume(self, checkpoint: Path, last_step: int) -> int:
        """Take up the state of a checkpoint; returns its step. Nothing is written.

        Args:
            checkpoint: of this run.
            last_step: the step that the training ends with.

        Raises:
            CheckpointError: the state is not this checkpoint's, or the run is past its last step.
        """
        state: CheckpointState = read_json(checkpoint / "state.json", CheckpointState)
        if state["step"] != step_of(checkpoint) or not 0 <= state["loss_steps"] <= state["step"]:
            raise CheckpointError(f"{checkpoint}/state.json: not the state of a run at step {step_of(checkpoint)}")
        if state["step"] > last_step:
            raise CheckpointError(f"{self.folder}: is at step {state['step']} already, steps {last_step} is less")
        self.best = self._verified_best(state["best"])
        self.loss_sum, self.loss_steps = state["loss_sum"], state["loss_steps"]
        return state["step"]

    def _verified_best(self, best: Best | None) -> Best | None:
        """The best so far; None if its checkpoint is gone.

        Raises:
            CheckpointError: its checkpoint is damaged.
        """
        if best is None:
            return None
        checkpoint = folder_of(self.folder, best["step"])
        if not checkpoint.exists():
            tell(f"{checkpoint}: scored best and is gone, so the search for the best starts again here")
            return None
        try:
            check_checkpoint(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; it scored best: move it out of the run to go on without") from None
        return best

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, this process is the only one that writes in the folder."""
        with ExitStack() as held:
            distributed.on_first_rank(lambda: held.enter_context(only_writer(self.folder)))
            yield

    def open(self, step: int, bar: Progress) -> None:
        """Open the log and start the clock, in a folder that is held.

        Args:
            step: where the training stands; lines of the log after it are dropped.
            bar: shows the loss.
        """
        distributed.on_first_rank(lambda: self._open(step))
        self._bar = bar
        self._start_clock(step)

    def _open(self, step: int) -> None:
        clear_leftovers(self.folder)
        # A resumed run may have changed some settings; run.json shows the new ones from here on.
        write_json(self.folder / "run.json", self.document)
        self._name_best()
        self._log = RunLog(self.folder, step)

    def _start_clock(self, step: int) -> None:
        self._clock, self._clock_step = time.perf_counter(), step

    def add_loss(self, loss: float, steps: int = 1) -> None:
        """Count a loss, or the sum of the losses of several steps, for the next line of the log."""
        self.loss_sum, self.loss_steps = self.loss_sum + loss, self.loss_steps + steps

    def log_training(self, step: int, gradient_norm: float, learning_rate: float) -> None:
        """Write a line of training: the mean loss since the last one, and these numbers of the present step."""
        elapsed = time.perf_counter() - self._clock
        line = {
            "step": step,
            "loss": self.loss_sum / self.loss_steps,
            "gradient_norm": gradient_norm,
            "learning_rate": learning_rate,
            "seconds": round(elapsed, 3),
            "steps_per_second": round((step - self._clock_step) / elapsed, 3),
        }
        self._bar.note(f"loss {line['loss']:.4f}")
        self.loss_sum, self.loss_steps = 0.0, 0
        self._start_clock(step)
        self._write("train", line)

    def log_evaluation(self, step: int, result: dict[str, float], seconds: float) -> None:
        """Write a line of an evaluation, which took so many seconds; its `score` may make this step the best one."""
        score = result.get("score", math.nan)
        if math.isfinite(score) and (self.best is None or score > self.best["score"]):
            self.best = {"step": step, "score": score}
        self._write("evaluation", {"step": step, **result, "seconds": round(seconds, 3)})
        self._start_clock(step)  # evaluation is not training time

    def _write(self, kind: str, line: dict[str, Any]) -> None:
        if distributed.is_first_rank():
            self._log.write(kind, line)
        numbers = {name: value for name, value in line.items() if name != "step"}
        report = self.callbacks.log if kind == "train" else self.callbacks.evaluate
        report(line["step"], numbers)

    def save(self, step: int, tensors: Callable[[], dict[str, dict[str, Tensor]]]) -> None:
        """Write a checkpoint and remove those that are no longer kept.

        Args:
            step: the checkpoint's.
            tensors: returns what it holds, by the name of its file and by a tensor's name; called where it is written.

        Raises:
            NonFiniteError: a tensor holds NaN or infinity.
            CheckpointError: the checkpoint cannot be written.
        """
        distributed.on_first_rank(lambda: self._save(step, tensors()))
        self.callbacks.checkpoint(step, folder_of(self.folder, step))

    def _save(self, step: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        for part, content in tensors.items():
            for name, tensor in content.items():
                if not tensor.isfinite().all():
                    raise NonFiniteError(f"step {step}: {part}/{name} is not finite; no checkpoint of it is made")
        self._log.sync()
        state = {"step": step, "loss_sum": self.loss_sum, "loss_steps": self.loss_steps, "best": self.best}
        save_checkpoint(self.folder, step, tensors, {"state": state, "run": self.document})
        self._name_best()  # after the save: the best is never named before it is on disk
        try:
            prune(self.folder, self._keep_checkpoints, step)
        except OSError as error:
            tell(f"\n{self.folder}/checkpoints: an old one cannot be removed, {os_reason(error)}; training goes on")

    def _name_best(self) -> None:
        if self.best is None:
            (self.folder / "best.json").unlink(missing_ok=True)
        else:
            write_json(self.folder / "best.json", self.best)
