"""The one training loop: batches in by step number, a loss as (sum, count) out; it logs, saves, stops and resumes.

Each batch is a pure function of the step. Before each step, torch is seeded from (seed, step, process), because dropout
takes no generator. So a run that was cut and resumed is the uninterrupted run, bit for bit, on one machine and
number of threads. Several processes share each batch (see `transformer.runs.distributed`). Only the first writes.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
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
from transformer.runs.checkpoint import folder_of
from transformer.runs.progress import progress
from transformer.runs.record import RunRecord
from transformer.runs.schedule import learning_rate_at, step_seed
from transformer.runs.setup import compiled, explain_compiler_error, explain_out_of_memory
from transformer.runs.signals import stop_signals
from transformer.weights import read_tensors

STOP_BY_CALLBACK = 1
"""What a process sends the others where a callback asks to stop; a signal that stops training has a larger number."""


class Trainer:
    """One run of training in its folder.

    model: what is trained.
    batch_at: this process's share of the batch of step 0, 1, ...; a pure function of the step, already on the model's
        device.
    run: the run's folder; `document`, what the run is, goes into its `run.json` and into each checkpoint.
    loss: maps a batch to (sum of the loss, number of things summed); the model itself when None.
    evaluate: called with the step at each evaluation; returns numbers to log; `score` decides the best, the
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
        self.config = config
        self.device = next(model.parameters()).device
        loss = loss or model
        if config.compile:
            loss = compiled(loss, self.device)
        self.model = model
        self.loss = distributed.average_gradients(model, loss)
        self.batch_at = batch_at
        self.record = RunRecord(run, document, config.keep_checkpoints, self.callbacks)
        self.evaluate = evaluate
        self.describe = describe
        self.slices = slices if slices is not None and distributed.world_size() == 1 else lambda batch: [batch]
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.step = 0  # gradient steps done

    def start(self) -> None:
        """Make the run's folder; refused where a run, or anything else, already is."""
        self.record.create()

    def resume(self, checkpoint: Path | None) -> None:
        """Go back to a checkpoint of this run (see `newest_state`); nothing is written before `train`."""
        if checkpoint is None:
            return
        self.step = self.record.resume(checkpoint, self.config.steps)
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
            stop_signals("stopping after this step, with a checkpoint") as signals,
            progress("train", config.steps, "step", self.step) as bar,
            self.record.hold(),
        ):
            self.record.open(self.step, bar)
            while self.step < config.steps:
                try:
                    loss, norm = self._one_step()
                except CompilerError:
                    if signals and distributed.world_size() == 1:  # which have stopped the C++ compiler too
                        self._stop_uncompiled(signals[0])
                    raise
                self.step += 1
                self.record.add_loss(loss)
                bar.update()
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    self.log(norm)
                scored = self.evaluate and (last or (config.evaluate_every and self.step % config.evaluate_every == 0))
                if scored:
                    self.score()
                stop = self._stop_asked_for(signals)
                if scored or last or stop or self.step % config.checkpoint_every == 0:
                    self.save()
                    stop = self._stop_asked_for(signals)
                if stop == STOP_BY_CALLBACK and not last:
                    raise Stopped(None, self.step)
                if stop > STOP_BY_CALLBACK:
                    raise Stopped(stop, self.step)

    def _stop_asked_for(self, signals: Sequence[int]) -> int:
        """What asks for a stop: a signal's number, `STOP_BY_CALLBACK`, or 0 for nothing.

        A signal or a callback of one process stops all processes after the same step.
        """
        asked = 0
        if signals:
            asked = signals[0]
        elif self.callbacks.stop:
            asked = STOP_BY_CALLBACK
        return distributed.all_max(asked)

    def _stop_uncompiled(self, signal_number: int) -> None:
        """Stop where the next step was not compiled. Step 0 needs no checkpoint: a run without one begins there."""
        if self.step and not folder_of(self.record.folder, self.step).exists():
            self.save()
        raise Stopped(signal_number, self.step) from None

    def log(self, gradient_norm: float) -> None:
        """Write a line of the log, with the norm of the present step's gradient."""
        self.record.log_training(self.step, gradient_norm, learning_rate_at(self.step - 1, self.config))

    def score(self) -> None:
        """Evaluate the model as it is, and log that; nothing where it cannot be evaluated."""
        assert self.evaluate is not None
        started = time.perf_counter()
        self.model.eval()
        if result := self.evaluate(self.step):  # it may draw random numbers: each step seeds its own
            self.record.log_evaluation(self.step, result, time.perf_counter() - started)

    def save(self) -> None:
        """Write a checkpoint of the present step and remove those that are no longer kept."""
        self.record.save(self.step, lambda: {"model": self.model.state_dict(), "optimizer": self._optimizer_tensors()})

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
    like, there = _signature(expected), _signature(found)
    for name in sorted(like.keys() | there.keys()):
        if like.get(name) != there.get(name):
            raise CheckpointError(f"{path}: {name} is {there.get(name)}, expected {like.get(name)}")
    return found


def _signature(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """Shape and type of each tensor, by its name."""
    return {name: (*tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
