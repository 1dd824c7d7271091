"""The one training loop: batches in by step number, a loss as (sum, count) out; it logs, saves, stops and resumes.

Each batch is a pure function of the step, and torch is seeded anew from (seed, step) before each step, because dropout
takes no generator. So a run that was cut and resumed is the uninterrupted run, bit for bit, on one machine and number
of threads.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from transformer.checkpoint import (
    CheckpointError,
    checkpoints,
    folder_of,
    newest_checkpoint,
    prune,
    read_json,
    read_tensors,
    save_checkpoint,
    verify,
    write_json,
)
from transformer.config import ConfigError, TrainingConfig

CLOCK_FIELDS = ("seconds", "steps_per_second")
"""Fields of the log that tell the time, and so differ between two equal runs."""


class NonFiniteError(RuntimeError):
    """The loss or its gradient is NaN or infinite; nothing was updated."""


class Stopped(Exception):  # noqa: N818 (it is no error)
    """A signal asked the training to stop; a checkpoint was written first. `code` is the exit status."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}; --resume goes on from there"
        )
        self.code = 128 + signal_number


RESUMABLE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "evaluate_every",
    "keep_checkpoints",
    "device",
    "activation_checkpointing",
)
"""Settings that a resumed run may change; any other difference is refused."""


def check_same_recipe(old: dict[str, Any], new: dict[str, Any], run: Path) -> None:
    """Refuse to go on with another model or another recipe (configurations as in `run.json`); name what differs."""
    for part in ("model", "training"):
        for name, value in new[part].items():
            before = old[part].get(name)
            if before != value and name not in RESUMABLE:
                raise CheckpointError(f"{run}: {name} was {before}, now {value}; a resumed run cannot change it")


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU if there is one. One that is not there raises `ConfigError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: no usable GPU; use --device cpu or auto")
    return torch.device(name)


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of step 0, 1, ...: a linear warm-up, then constant, or a cosine down to a tenth at the last."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant" or step < config.warmup_steps:
        return config.learning_rate * warmup
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def step_seed(seed: int, step: int) -> int:
    """A seed for torch that is far from its neighbours' for every (seed, step)."""
    return ((seed * 0x9E3779B97F4A7C15) ^ ((step + 1) * 0xD1B54A32D192ED03)) & 0x7FFF_FFFF_FFFF_FFFF


class Trainer:
    """One run of training in its folder.

    model: what is trained.
    batch_at: the batch of step 0, 1, ...; a pure function of the step, already on the model's device.
    run: the run's folder; `document`, what the run is, goes into its `run.json` and into each checkpoint.
    loss: maps a batch to (sum of the loss, number of things summed); the model itself when None.
    evaluate: called with the step at each evaluation; returns numbers to log, of which `score` decides the best, the
        earliest of equals.
    describe: called with the step when the loss is not finite; says which data that batch held.
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
    ):
        self.model, self.loss, self.batch_at = model, loss or model, batch_at
        self.config, self.run, self.document = config, run, document
        self.evaluate, self.describe = evaluate, describe
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.device = next(model.parameters()).device
        self.step = 0  # gradient steps done
        self.loss_sum, self.loss_steps = 0.0, 0  # since the last line of the log
        self.best: dict[str, float] | None = None  # step and score of the best evaluation

    def start(self) -> None:
        """Make the run's folder; refused where a run, or anything else, already is."""
        if self.run.exists() and (not self.run.is_dir() or any(self.run.iterdir())):
            raise CheckpointError(f"{self.run}: exists already; --resume continues it, another --output starts anew")
        self.run.mkdir(parents=True, exist_ok=True)
        write_json(self.run / "run.json", self.document)

    def resume(self) -> None:
        """Go back to the newest checkpoint that verifies, and cut the log to it."""
        if not checkpoints(self.run):  # stopped before its first checkpoint: the beginning is where it stands
            if any((self.run / "checkpoints").glob("step-*")):
                raise CheckpointError(
                    f"{self.run}/checkpoints: no checkpoint in it is complete, none has a manifest.json"
                )
            print(f"{self.run}: no checkpoint yet, so from step 0", file=sys.stderr)
            self._cut_log()
            return
        checkpoint = newest_checkpoint(self.run, report=lambda message: print(message, file=sys.stderr))
        self.model.load_state_dict(read_tensors(checkpoint / "model.safetensors"))
        state = read_json(checkpoint / "state.json")
        if state["step"] > self.config.steps:
            raise CheckpointError(f"{self.run}: is at step {state['step']} already, steps {self.config.steps} is less")
        self.best = self._if_still_there(state["best"])
        self.step, self.loss_sum, self.loss_steps = state["step"], state["loss_sum"], state["loss_steps"]
        write_json(self.run / "run.json", self.document)  # what a resumed run may change, it has changed from here on
        self._load_optimizer(read_tensors(checkpoint / "optimizer.safetensors"))
        self._name_best()
        self._cut_log()

    def train(self) -> None:
        """Train to the last step. Raises `NonFiniteError` before a bad update, and `Stopped` after a signal."""
        from torch.utils.tensorboard import SummaryWriter

        config = self.config
        with (
            _stop_signals() as signals,
            SummaryWriter(str(self.run / "tensorboard"), purge_step=self.step + 1) as writer,
            tqdm(
                total=config.steps, initial=self.step, unit="step", desc="train", smoothing=0.05, mininterval=0.5
            ) as bar,
        ):
            self._writer, self._bar = writer, bar
            self._clock, self._clock_step = time.perf_counter(), self.step
            while self.step < config.steps:
                loss, norm = self._one_step()
                self.step += 1
                self.loss_sum, self.loss_steps = self.loss_sum + loss, self.loss_steps + 1
                bar.update()
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    self._log_training(norm)
                scored = self.evaluate and (last or (config.evaluate_every and self.step % config.evaluate_every == 0))
                if scored:
                    self._evaluate()
                if scored or last or signals or self.step % config.checkpoint_every == 0:
                    self.save()
                if signals and not last:
                    raise Stopped(signals[0], self.step)

    def save(self) -> None:
        """Write a checkpoint of the present step and remove those that are no longer kept."""
        state = {"step": self.step, "loss_sum": self.loss_sum, "loss_steps": self.loss_steps, "best": self.best}
        tensors = {"model": self.model.state_dict(), "optimizer": self._optimizer_tensors()}
        save_checkpoint(self.run, self.step, tensors, {"state": state, "run": self.document})
        self._name_best()  # after the save: the best is never named before it is on disk
        prune(self.run, self.config.keep_checkpoints)

    def _if_still_there(self, best: dict[str, float] | None) -> dict[str, float] | None:
        """The best so far. Without its checkpoint it is forgotten; a damaged one is its owner's to decide about."""
        if best is None:
            return None
        checkpoint = folder_of(self.run, int(best["step"]))
        if not checkpoint.exists():
            print(f"{checkpoint}: scored best and is gone, so the best is sought anew from here", file=sys.stderr)
            return None
        try:
            verify(checkpoint)
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
        torch.manual_seed(step_seed(config.seed, self.step))
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, config)
        batch = self.batch_at(self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss_sum, count = self.loss(batch)
        loss = loss_sum / count
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip).item()
        if not (math.isfinite(norm) and math.isfinite(loss.item())):
            where = f" ({self.describe(self.step)})" if self.describe else ""
            raise NonFiniteError(
                f"step {self.step}: loss {loss.item()}, gradient norm {norm}{where}; nothing was updated"
            )
        self.optimizer.step()
        return loss.item(), norm

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
        self._bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
        self.loss_sum, self.loss_steps = 0.0, 0
        self._clock, self._clock_step = time.perf_counter(), now
        self._write(line, "train")

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        started = time.perf_counter()
        self.model.eval()
        result = self.evaluate(self.step)  # it may draw random numbers: each step seeds its own
        if "score" not in result:
            return  # it could not be played; training goes on
        if self.best is None or result["score"] > self.best["score"]:
            self.best = {"step": self.step, "score": result["score"]}
        self._write({"step": self.step, **result, "seconds": round(time.perf_counter() - started, 3)}, "evaluation")
        self._clock, self._clock_step = time.perf_counter(), self.step  # evaluation is not training time

    def _write(self, line: dict[str, Any], group: str) -> None:
        with (self.run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": group, **line}) + "\n")
        for name, value in line.items():
            if name not in ("step", "seconds"):
                self._writer.add_scalar(f"{group}/{name}", value, line["step"])

    def _cut_log(self) -> None:
        """Drop the lines after the checkpoint: they are about to be written again."""
        log = self.run / "log.jsonl"
        if log.exists():
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if _line_step(line) <= self.step]
            temporary = log.with_name(f".{log.name}.{os.getpid()}")
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            temporary.replace(log)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.model.named_parameters()]
        state = self.optimizer.state_dict()["state"]
        return {f"{names[i]}/{key}": value for i, moments in state.items() for key, value in moments.items()}

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for i, (name, _) in enumerate(self.model.named_parameters()):
            state[i] = {key: tensors[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def _line_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut by a crash
        return math.inf


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that the first SIGINT or SIGTERM is put into; a second SIGINT interrupts at once, as ever."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield received
        return

    def note(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        print("\nstopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
