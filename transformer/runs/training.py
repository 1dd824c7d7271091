"""The one training loop: batches in by step number, a loss as (sum, count) out; it logs, saves, stops and resumes.

Each batch is a pure function of the step, and torch is seeded anew from (seed, step, process) before each step, because
dropout takes no generator. So a run that was cut and resumed is the uninterrupted run, bit for bit, on one machine and
number of threads. Several processes share each batch (see `transformer.runs.distributed`), and the first alone writes.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transformer.config import TrainingConfig
from transformer.errors import (
    CheckpointError,
    CompilerError,
    ConfigError,
    NonFiniteError,
    Stopped,
)
from transformer.runs import distributed
from transformer.runs.callbacks import Callback, Callbacks
from transformer.runs.checkpoint import (
    Best,
    check_checkpoint,
    check_new_run,
    clear_leftovers,
    folder_of,
    make_folder,
    only_writer,
    os_reason,
    prune,
    read_json,
    read_tensors,
    save_checkpoint,
    step_of,
    write_json,
)
from transformer.runs.console import tell
from transformer.runs.log import RunLog
from transformer.runs.outputs import check_folder
from transformer.runs.progress import progress
from transformer.runs.record import LAUNCH, State
from transformer.runs.setup import compiled, explain_compiler_error, explain_out_of_memory, learning_rate_at, step_seed
from transformer.runs.signals import stop_signals

STOP_BY_CALLBACK = 1
"""What a process sends the others where a callback asks to stop; a signal that stops training has a larger number."""


class Trainer:
    """One run of training in its folder.

    model: what is trained.
    batch_at: this process's share of the batch of step 0, 1, ...; a pure function of the step, already on the model's
        device.
    run: the run's folder; `document`, what the run is, goes into its `run.json` and into each checkpoint.
    loss: maps a batch to (sum of the loss, number of things summed); the model itself when None.
    evaluate: called with the step at each evaluation; returns numbers to log, of which `score` decides the best, the
        earliest of equals.
    describe: called with the step when the loss is not finite; says which data that batch held.
    slices: the parts of a batch that are gone through one after another, where one process has all of it; their
        gradients add up to the batch's. None goes through it as a whole.
    callbacks: what the run reports to; the first process calls them.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_at: Callable[[int], Any],
        config: TrainingConfig,
        run: Path,
        document: dict[str, Any],
        *,
        loss: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
        evaluate: Callable[[int], dict[str, float]] | None = None,
        describe: Callable[[int], str] | None = None,
        slices: Callable[[Any], Sequence[Any]] | None = None,
        callbacks: Sequence[Callback] = (),
    ):
        self.callbacks = Callbacks(callbacks)
        if config.batch_size < distributed.world_size():
            raise ConfigError(
                f"batch_size {config.batch_size} leaves some of {distributed.world_size()} processes without any"
            )
        distributed.check_same(document)
        loss, self.device = loss or model, next(model.parameters()).device
        loss = compiled(loss, self.device) if config.compile else loss
        self.model, self.loss, self.batch_at = model, distributed.average_gradients(model, loss), batch_at
        self.config, self.run, self.document = config, run, document
        self.evaluate, self.describe = evaluate, describe
        self.slices = slices if slices is not None and distributed.world_size() == 1 else lambda batch: [batch]
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.step = 0  # gradient steps done
        self.loss_sum, self.loss_steps = 0.0, 0  # since the last line of the log
        self.best: Best | None = None  # step and score of the best evaluation

    def start(self) -> None:
        """Make the run's folder; refused where a run, or anything else, already is."""
        distributed.on_first_rank(self._make_folder)

    def _make_folder(self) -> None:
        check_new_run(self.run)
        check_folder(self.run)
        make_folder(self.run)
        if launch := distributed.launch_id():
            (self.run / LAUNCH).write_text(launch)
        write_json(self.run / "run.json", self.document)

    def resume(self, checkpoint: Path | None) -> None:
        """Go back to a checkpoint of this run (see `newest_state`); nothing is written before `train`."""
        if checkpoint is None:
            return
        state: State = read_json(checkpoint / "state.json", State)
        if state["step"] != step_of(checkpoint) or not 0 <= state["loss_steps"] <= state["step"]:
            raise CheckpointError(f"{checkpoint}/state.json: not the state of a run at step {step_of(checkpoint)}")
        if state["step"] > self.config.steps:
            raise CheckpointError(f"{self.run}: is at step {state['step']} already, steps {self.config.steps} is less")
        self.best = self._if_still_there(state["best"])
        self.step, self.loss_sum, self.loss_steps = state["step"], state["loss_sum"], state["loss_steps"]
        self.model.load_state_dict(_read_like(self.model.state_dict(), checkpoint / "model.safetensors"))
        self._load_optimizer(_read_like(self._expected_moments(), checkpoint / "optimizer.safetensors"))

    def train(self) -> None:
        """Train to the last step.

        Raises:
            NonFiniteError: before a bad update.
            Stopped: after a signal, or where a callback asks for it.
        """
        try:
            self._train()
        except BaseException as error:
            self.callbacks.end(error)
            raise
        self.callbacks.end(None)

    def _train(self) -> None:
        config = self.config
        with (
            ExitStack() as held,
            stop_signals("stopping after this step, with a checkpoint") as signals,
            progress("train", config.steps, "step", self.step) as bar,
        ):
            distributed.on_first_rank(lambda: self._open(held))
            self._bar = bar
            self._clock, self._clock_step = time.perf_counter(), self.step
            while self.step < config.steps:
                try:
                    loss, norm = self._one_step()
                except CompilerError:
                    if signals and distributed.world_size() == 1:  # which have stopped the C++ compiler too
                        self._stop_uncompiled(signals[0])
                    raise
                self.step += 1
                self.loss_sum, self.loss_steps = self.loss_sum + loss, self.loss_steps + 1
                bar.update()
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    self._log_training(norm)
                scored = self.evaluate and (last or (config.evaluate_every and self.step % config.evaluate_every == 0))
                if scored:
                    self._evaluate()
                stop = self._stop_asked_for(signals)
                if scored or last or stop or self.step % config.checkpoint_every == 0:
                    self.save()
                    stop = self._stop_asked_for(signals)
                if stop == STOP_BY_CALLBACK and not last:
                    raise Stopped(None, self.step)
                if stop > STOP_BY_CALLBACK:
                    raise Stopped(stop, self.step)

    def _stop_asked_for(self, signals: Sequence[int]) -> int:
        """What asks for a stop, 0 for nothing: a signal or a callback of one process stops all after the same step."""
        return distributed.all_max(signals[0] if signals else STOP_BY_CALLBACK * self.callbacks.stop)

    def _stop_uncompiled(self, signal_number: int) -> None:
        """Stop where the next step was not compiled. Step 0 needs no checkpoint: a run without one begins there."""
        if self.step and not folder_of(self.run, self.step).exists():
            self.save()
        raise Stopped(signal_number, self.step) from None

    def _open(self, held: ExitStack) -> None:
        """Take the run's folder as its only writer, for as long as `held` is."""
        held.enter_context(only_writer(self.run))
        clear_leftovers(self.run)
        write_json(self.run / "run.json", self.document)  # what a resumed run may change, it has changed from here
        self._name_best()
        self._log = RunLog(self.run, self.step)

    def save(self) -> None:
        """Write a checkpoint of the present step and remove those that are no longer kept."""
        distributed.on_first_rank(self._save)
        self.callbacks.checkpoint(self.step, folder_of(self.run, self.step))

    def _save(self) -> None:
        state = {"step": self.step, "loss_sum": self.loss_sum, "loss_steps": self.loss_steps, "best": self.best}
        tensors = {"model": self.model.state_dict(), "optimizer": self._optimizer_tensors()}
        for part, content in tensors.items():
            for name, tensor in content.items():
                if not tensor.isfinite().all():
                    raise NonFiniteError(f"step {self.step}: {part}/{name} is not finite; no checkpoint of it is made")
        self._log.sync()
        save_checkpoint(self.run, self.step, tensors, {"state": state, "run": self.document})
        self._name_best()  # after the save: the best is never named before it is on disk
        try:
            prune(self.run, self.config.keep_checkpoints, self.step)
        except OSError as error:
            tell(f"\n{self.run}/checkpoints: an old one cannot be removed, {os_reason(error)}; training goes on")

    def _if_still_there(self, best: Best | None) -> Best | None:
        """The best so far. Without its checkpoint it is forgotten; a damaged one is its owner's to decide about."""
        if best is None:
            return None
        checkpoint = folder_of(self.run, best["step"])
        if not checkpoint.exists():
            tell(f"{checkpoint}: scored best and is gone, so the best is sought anew from here")
            return None
        try:
            check_checkpoint(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; it scored best: move it out of the run to go on without") from None
        return best

    def _name_best(self) -> None:
        if self.best is None:
            (self.run / "best.json").unlink(missing_ok=True)
        else:
            write_json(self.run / "best.json", self.best)

    def _one_step(self) -> tuple[float, float]:
        config = self.config
        torch.manual_seed(step_seed(config.seed, self.step, distributed.rank()))
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, config)
        advice = f"lower batch_size {config.batch_size} or context_length, or turn activation_checkpointing on"
        with explain_out_of_memory(f"step {self.step}", advice), explain_compiler_error():
            loss, norm = self._gradient()
        if not (math.isfinite(norm) and math.isfinite(loss)):
            where = f" ({self.describe(self.step)})" if self.describe else ""
            raise NonFiniteError(f"step {self.step}: loss {loss}, gradient norm {norm}{where}; nothing was updated")
        self.optimizer.step()
        return loss, norm

    def _gradient(self) -> tuple[float, float]:
        """The present step's gradient, clipped, in the parameters; returns the loss and the norm before the clip."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.slices(self.batch_at(self.step))
        mean = self._backward(parts[0]) if len(parts) == 1 else self._backward_in_parts(parts)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        return mean.item(), norm.item()

    def _backward(self, batch: Any) -> Tensor:
        """The gradient of the mean loss over all processes; returns that mean."""
        loss_sum, count = self._loss(batch)
        if distributed.world_size() == 1:
            loss = mean = loss_sum / count
        else:
            sum_of_all, count_of_all = distributed.all_sum(loss_sum, count)
            # DistributedDataParallel takes the mean of the gradients over the processes
            loss = loss_sum * (distributed.world_size() / count_of_all)
            mean = sum_of_all / count_of_all
        loss.backward()  # type: ignore[no-untyped-call]
        return mean.detach()

    def _backward_in_parts(self, parts: Sequence[Any]) -> Tensor:
        """The same of a batch in parts, by one process."""
        sums, counts = [], []
        for part in parts:
            loss_sum, count = self._loss(part)
            loss_sum.backward()  # type: ignore[no-untyped-call]
            sums.append(loss_sum.detach())
            counts.append(count)
        count = torch.stack(counts).sum()
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(count)
        return torch.stack(sums).sum() / count

    def _loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.loss(batch)

    def _log_training(self, norm: float) -> None:
        elapsed, now = time.perf_counter() - self._clock, self.step
        line = {
            "step": now,
            "loss": self.loss_sum / self.loss_steps,
            "gradient_norm": norm,
            "learning_rate": learning_rate_at(now - 1, self.config),
            "seconds": round(elapsed, 3),
            "steps_per_second": round((now - self._clock_step) / elapsed, 3),
        }
        self._bar.note(f"loss {line['loss']:.4f}")
        self.loss_sum, self.loss_steps = 0.0, 0
        self._clock, self._clock_step = time.perf_counter(), now
        self._write("train", line)

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        started = time.perf_counter()
        self.model.eval()
        result = self.evaluate(self.step)  # it may draw random numbers: each step seeds its own
        if not result:
            return  # it could not be played; training goes on
        if math.isfinite(result.get("score", math.nan)) and (self.best is None or result["score"] > self.best["score"]):
            self.best = {"step": self.step, "score": result["score"]}
        self._write("evaluation", {"step": self.step, **result, "seconds": round(time.perf_counter() - started, 3)})
        self._clock, self._clock_step = time.perf_counter(), self.step  # evaluation is not training time

    def _write(self, kind: str, line: dict[str, Any]) -> None:
        if distributed.is_first_rank():
            self._log.write(kind, line)
        numbers = {name: value for name, value in line.items() if name != "step"}
        report = self.callbacks.log if kind == "train" else self.callbacks.evaluate
        report(line["step"], numbers)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.model.named_parameters()]
        state = self.optimizer.state_dict()["state"]
        return {f"{names[i]}/{key}": value for i, moments in state.items() for key, value in moments.items()}

    def _expected_moments(self) -> dict[str, Tensor]:
        """Tensors like those of `_optimizer_tensors`."""
        step, parameters = torch.tensor(0.0), list(self.model.named_parameters())
        moments = {f"{name}/{key}": p for name, p in parameters for key in ("exp_avg", "exp_avg_sq")}
        return {**moments, **{f"{name}/step": step for name, _ in parameters}}

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for i, (name, _) in enumerate(self.model.named_parameters()):
            state[i] = {key: tensors[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def _read_like(expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint; `CheckpointError` unless they have names, shapes and types of these."""
    found = read_tensors(path)
    like, there = ({name: (*x.shape, x.dtype) for name, x in tensors.items()} for tensors in (expected, found))
    for name in sorted(like.keys() | there.keys()):
        if like.get(name) != there.get(name):
            raise CheckpointError(f"{path}: {name} is {there.get(name)}, expected {like.get(name)}")
    return found
