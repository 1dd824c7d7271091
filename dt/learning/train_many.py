"""Several runs as one program: seeds and datasets of one shape, trained with a leading axis over the runs.

Each run is what it would be by itself, within rounding: its own batches, loss, gradient clip, moments, normaliser and
folder, which `dt evaluate` and `dt train --resume` open as any other. Only dropout is drawn for all runs at once.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import default_collate

from dt.asking.calibrate import calibrate_after_training
from dt.asking.calibrated_policy import drop_calibrations
from dt.config import Config
from dt.data import Batch, Batches
from dt.learning.cells import cells_of
from dt.learning.run import load_run
from dt.learning.training import prepare
from envs.datasets.dataset import Dataset
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import CheckpointError, ConfigError, NonFiniteError, Stopped
from transformer.runs.checkpoint import check_checkpoint, checkpoints, folder_of, step_of
from transformer.runs.console import tell
from transformer.runs.progress import progress
from transformer.runs.schedule import learning_rate_at, step_seed
from transformer.runs.setup import explain_out_of_memory, pick_device
from transformer.runs.signals import stop_signals
from transformer.runs.training import Trainer


def train_many(
    datasets: Sequence[Dataset],
    config: Config,
    seeds: Sequence[int],
    output: str | Path,
    *,
    environment: EnvironmentSpec | None = None,
    minutes: float | None = None,
) -> tuple[list[Path], bool]:
    """Train each dataset at each seed, all as one program; return the runs' folders, and whether all are finished.

    Runs that are in `output` are continued. Finished ones are calibrated one after the other, as `train` does it.

    Args:
        datasets: with the same spaces and sizes of model.
        config: the same for all runs, apart from the seed.
        seeds: of the runs.
        output: the folder of the runs' folders.
        environment: where to evaluate; None takes each dataset's own.
        minutes: stop training after this time, with a checkpoint; None trains to the end.

    Raises:
        ConfigError: the datasets give models of different shapes.
    """
    cells = cells_of(datasets, config, seeds, Path(output))
    folders = [folder for _, _, folder in cells]
    step = _common_step(folders)
    trainers = [
        prepare(
            dataset,
            replace(config, training=replace(config.training, seed=seed)),
            folder,
            environment=environment,
            resume=folder.exists(),
            at_step=step,
        )
        for dataset, seed, folder in cells
    ]
    stack = StackedTrainers(trainers)
    for trainer in trainers:
        if not trainer.record.folder.exists():
            trainer.start()
        if trainer.step < trainer.config.steps:
            drop_calibrations(trainer.record.folder)
    done = stack.train(minutes)
    for folder in folders if done else ():
        calibrate_after_training(load_run(folder, device=pick_device(config.training.device)))
    return folders, done


def _common_step(folders: Sequence[Path]) -> int:
    """The newest step at which every run has a checkpoint that is whole: a crash between two saves leaves some ahead.

    0 where there is none. A run that is not there, next to one that was trained, raises `CheckpointError`.
    """
    steps = {folder: {step_of(path) for path in checkpoints(folder)} for folder in folders}
    new, old = ([folder for folder in folders if found(folder)] for found in (lambda f: not f.exists(), steps.get))
    if new and old:
        raise CheckpointError(
            f"{old[0]} is trained and {new[0]} is not there: runs at once go on together, with all that were begun"
        )
    for step in [*sorted(set.intersection(*steps.values()), reverse=True), 0]:
        for folder, has in steps.items():
            if later := sorted(has - set(range(step + 1)))[1:]:  # a crash between two saves leaves one
                raise CheckpointError(f"{folder}: is at step {later[-1]}, the others have {step} in common with it")
        try:
            for folder in folders if step else ():
                check_checkpoint(folder_of(folder, step))
            return step
        except CheckpointError as error:
            tell(f"{error}; the one before it is used")
    raise AssertionError("step 0 needs no checkpoint")


class StackedTrainers:
    """Trainers of one shape, stacked: parameters, buffers and moments are tensors of R rows, one a run.

    The trainers' own models and optimisers become views of those rows, so they log, save and evaluate as ever. No step
    waits for the device: it is given where the windows begin and the learning rate, and losses and norms are read when
    they are logged. On a GPU the step's kernels are recorded once as a graph, which is then launched as one. A step in
    which anything is not finite is left out in all runs, and so is each later one, until that is read and raised.
    """

    def __init__(self, trainers: Sequence[Trainer]):
        self.trainers, self.config = list(trainers), trainers[0].config
        self.step, self.device = trainers[0].step, trainers[0].device
        _check_one_shape(trainers)
        models = [trainer.model for trainer in trainers]
        self.batches = [_batches(trainer) for trainer in trainers]
        self.starts = torch.zeros(len(models), self.config.batch_size, dtype=torch.int64, device=self.device)
        self.rate = torch.zeros((), device=self.device)
        self.parameters, self.buffers = stack_module_state(models)  # by name, each (R, ...)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=self.rate,
            weight_decay=self.config.weight_decay,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        for name, stacked in self.parameters.items():
            own = [dict(model.named_parameters())[name] for model in models]
            self._stack_one(stacked, own)
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.losses = torch.zeros(len(models), dtype=wide, device=self.device)  # summed since they were read
        self.norms = torch.zeros(len(models), device=self.device)
        self.broken = torch.zeros(len(models), dtype=torch.bool, device=self.device)
        self.steps_done = torch.tensor(self.step, device=self.device)
        with self._explain_out_of_memory():
            self._run = self._record() if self.device.type == "cuda" else self._update

    def _stack_one(self, stacked: Tensor, own: Sequence[Tensor]) -> None:
        """Moments of one parameter, stacked from the trainers' and then shared with them; so are its values."""
        states = [trainer.optimizer.state[p] for trainer, p in zip(self.trainers, own, strict=True)]
        state = {"step": torch.tensor(float(self.step), device=self.device)}
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.stack([s.get(key, torch.zeros_like(p)) for s, p in zip(states, own, strict=True)])
        self.optimizer.state[stacked] = state
        for i, (trainer, p) in enumerate(zip(self.trainers, own, strict=True)):
            p.data = stacked.data[i]
            trainer.optimizer.state[p] = {key: x if key == "step" else x[i] for key, x in state.items()}

    def train(self, minutes: float | None) -> bool:
        """Train all runs to their last step, which is True, or until the time is up. Raises as `Trainer.train`."""
        config, started = self.config, time.perf_counter()
        with ExitStack() as stack:
            for trainer in self.trainers:
                stack.enter_context(trainer.record.hold())
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "There is a performance drop")  # attention on a CPU: run after run
            signals = stack.enter_context(stop_signals("stopping after this step, with a checkpoint"))
            bar = stack.enter_context(progress("train", config.steps, "step", self.step))
            for trainer in self.trainers:
                trainer.record.open(trainer.step, bar)
            while self.step < config.steps:
                self._one_step()
                self.step += 1
                bar.update()
                last = self.step == config.steps
                up = minutes is not None and time.perf_counter() - started > 60 * minutes
                log = last or self.step % config.log_every == 0
                score = last or (config.evaluate_every > 0 and self.step % config.evaluate_every == 0)
                save = score or up or bool(signals) or self.step % config.checkpoint_every == 0
                if log or save:
                    self._tell_trainers(log, score, save)
                if signals:
                    raise Stopped(signals[0], self.step)
                if up:
                    break
        return self.step == config.steps

    def _one_step(self) -> None:
        """Tell the device where this step's windows begin and its learning rate, and set it to work."""
        self.starts.copy_(torch.stack([batches.starts(self.step) for batches in self.batches]), non_blocking=True)
        self.rate.fill_(learning_rate_at(self.step, self.config))
        torch.manual_seed(step_seed(self.config.seed, self.step))  # the first run's seed: dropout is drawn for all
        self.trainers[0].model.train()
        with self._explain_out_of_memory():
            self._run()

    def _update(self) -> None:
        """One step of every run. Nothing is known here but what the device holds, so that it can be recorded."""
        windows = [vars(batches.data.gather(starts)) for batches, starts in zip(self.batches, self.starts, strict=True)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = vmap(self._loss, randomness="different")(  # (R,)
                self.parameters, self.buffers, default_collate(windows)
            )
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]  # no run's loss depends on another's parameters
        norms = self._clip()
        bad = ~(losses.detach().isfinite() & norms.isfinite())
        self.broken |= bad & ~self.broken.any()  # only those of the first such step
        stop = self.broken.any()
        self.optimizer.found_inf = stop.float()  # type: ignore[attr-defined]  # as GradScaler: then nothing is updated
        self.optimizer.step()
        self.losses += losses.detach()
        self.norms.copy_(norms)
        self.steps_done += ~stop

    def _record(self) -> Callable[[], None]:
        """`_update` as a graph of its kernels, and what launches it. The steps of recording update nothing."""
        self.broken.fill_(True)  # as after a step that was not finite
        self.trainers[0].model.train()
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # what is set up at first use must not be recorded
                self._update()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            self._update()
        for changed in (self.broken, self.losses, self.norms):
            changed.zero_()
        return graph.replay

    def _loss(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        """One run's mean loss; `vmap` makes it all runs'."""
        loss_sum, count = functional_call(self.trainers[0].model, (parameters, buffers), (Batch(**batch),))
        return loss_sum / count

    def _clip(self) -> Tensor:
        """Scale each run's gradient down to the longest that is allowed; the norms before: (R,)."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]  # each (R, ...)
        squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
        norms = torch.stack(squares).sum(0).sqrt()  # (R,)
        scale = (self.config.gradient_clip / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
        return norms

    def _explain_out_of_memory(self) -> AbstractContextManager[None]:
        advice = f"train fewer runs at once than {len(self.trainers)}, or lower batch_size or context_length"
        return explain_out_of_memory(f"step {self.step}", advice)

    def _tell_trainers(self, log: bool, score: bool, save: bool) -> None:
        """Read what the device holds, and let each trainer do what it does after such a step."""
        if self.broken.any():
            step = int(self.steps_done)
            first = self.trainers[int(self.broken.int().argmax())]
            data = f" ({first.describe(step)})" if first.describe else ""
            raise NonFiniteError(
                f"step {step}: {first.record.folder}: loss or gradient is not finite{data}; no run was updated since"
            )
        for trainer, loss, norm in zip(self.trainers, self.losses.tolist(), self.norms.tolist(), strict=True):
            trainer.record.add_loss(loss, self.step - trainer.step)
            trainer.step = self.step
            if log:
                trainer.log(norm)
            if score and trainer.evaluate:
                trainer.score()
            if save:
                trainer.save()
        self.losses.zero_()


def _batches(trainer: Trainer) -> Batches:
    assert isinstance(trainer.batch_at, Batches)  # as `prepare` makes it
    return trainer.batch_at


def _check_one_shape(trainers: Sequence[Trainer]) -> None:
    """Refuse runs with tensors of different shapes; the message names the first."""
    shapes = [{name: tuple(x.shape) for name, x in trainer.model.state_dict().items()} for trainer in trainers]
    for trainer, found in zip(trainers, shapes, strict=True):
        if found == shapes[0]:
            continue
        name = next(n for n in {**shapes[0], **found} if shapes[0].get(n) != found.get(n))
        folder, first = trainer.record.folder, trainers[0].record.folder
        raise ConfigError(
            f"{folder}: {name} is {found.get(name)}, in {first} {shapes[0].get(name)}: "
            "runs of different shapes are trained one by one"
            + (", or with --max-timesteps" if "timestep" in name else "")
        )
