"""Train a Decision Transformer: data, model and the shared loop, with evaluation on the way and at the end."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dt.asking.calibrate import calibrate_after_training
from dt.asking.calibrated_policy import drop_calibrations
from dt.asking.targets import resolve
from dt.config import Config
from dt.data import Batch, Batches
from dt.evaluation import is_playable
from dt.learning.build import timestep_rows
from dt.learning.resuming import PreviousRun
from dt.learning.run import Run, describe, describe_data, load_run
from dt.learning.scoring import Scorer
from dt.model import DecisionTransformer
from dt.validation import HELD_OUT, Validation, choose_episodes
from envs.datasets.dataset import Dataset
from envs.simulate.scores import reference_in
from envs.simulate.spec import EnvironmentSpec
from transformer.runs import distributed
from transformer.runs.callbacks import Callback
from transformer.runs.console import tell
from transformer.runs.record import begun_by_this_launch
from transformer.runs.setup import (
    explain_out_of_memory,
    keep_threads,
    pick_device,
    settle_precision,
    settle_threads,
)
from transformer.runs.training import Trainer

BALANCED = 0.5
"""Share of each batch that is drawn evenly over the range of returns where nothing else is said."""


def train(
    dataset: Dataset,
    config: Config,
    folder: str | Path,
    *,
    environment: EnvironmentSpec | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train on a dataset into a run's folder and return the run at its last step.

    Args:
        dataset: what to learn from.
        config: data, model, training and evaluation settings.
        folder: the run's folder. One that holds a run is refused unless `resume`.
        environment: where to evaluate during training. None takes the dataset's own, and trains without one if that
            cannot be made here.
        resume: continue from the newest checkpoint, bit for bit as if the run had never stopped.
        callbacks: what the run reports to while it trains; the weights are the same without.

    Raises:
        ConfigError: a setting cannot work.
        CheckpointError: the folder cannot be used.
        EnvError: the environment does not fit the data.
        NonFiniteError: a loss, gradient or weight is NaN or infinite.
        Stopped: a signal came, or a callback asked for it; a checkpoint was written first.
    """
    resume = begun_by_this_launch(Path(folder)) or resume
    trainer = prepare(dataset, config, Path(folder), environment=environment, resume=resume, callbacks=callbacks)
    if not resume:
        trainer.start()
    if trainer.step < trainer.config.steps:
        distributed.on_first_rank(lambda: drop_calibrations(Path(folder)))
    trainer.train()
    run = load_run(folder, device=pick_device(config.training.device))
    calibrate_after_training(run)
    return run


def prepare(
    dataset: Dataset,
    config: Config,
    folder: Path,
    *,
    environment: EnvironmentSpec | None = None,
    resume: bool = False,
    at_step: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """What `train` does before it writes anything: a trainer at its first step, or where a run to resume stands.

    at_step: resume from this step's checkpoint, 0 from the beginning; None from the newest.
    """
    device = pick_device(config.training.device)
    previous = PreviousRun.open(folder, at_step) if resume else None
    config = _settle_training(config, previous, device)
    spec = _environment_of(dataset, environment, previous)
    config.check_rewards(dataset.name, dataset.rewards_from)
    # The order matters: sizes are checked before memory is taken, and how many episodes are held out depends on
    # `is_playable`, which needs a model.
    model = _new_model(dataset, config, spec, previous)
    if previous is None:
        config = replace(config, training=settle_threads(config.training, model))
    playable = is_playable(spec, model, config.evaluation, required=environment is not None)
    config = _settle_data(config, previous, 0.0 if playable or dataset.num_episodes == 1 else HELD_OUT)
    learned, held_out = choose_episodes(dataset, config.data, config.training.seed)
    for note in learned.notes[len(dataset.notes) :]:
        tell(note)
    model.fit(learned)
    if previous is not None:
        previous.restore_units(model)
    reference = reference_in(spec, dataset.environment, dataset.reference)
    document = describe(config, model, describe_data(dataset, config.model, learned), spec, reference)
    document["scored_by"] = "return" if playable else "held-out error" if held_out else None
    if previous is not None:
        previous.check_data(document)
    model.to(device)
    batches = Batches.of(learned, config, model.units, model.return_scale.device)
    data_document = document["dataset"]
    scorer = Scorer(
        model,
        validation=None if held_out is None else Validation(model, learned, held_out),
        environment=spec if playable else None,
        targets=resolve(config.evaluation.named_targets or data_document["targets"], data_document["percentiles"]),
        config=config.evaluation,
    )
    trainer = Trainer(
        model,
        batches,
        config.training,
        folder,
        document,
        evaluate=scorer if document["scored_by"] and config.training.evaluate_every > 0 else None,
        describe=batches.describe,
        slices=Batch.slices,
        callbacks=callbacks,
    )
    if previous is not None:
        previous.resume(trainer, config, spec)
    return trainer


def _new_model(
    dataset: Dataset, config: Config, environment: EnvironmentSpec | None, previous: PreviousRun | None
) -> DecisionTransformer:
    """A model with the initial weights of the run's seed, after the checks that need no model."""
    rows = timestep_rows(dataset, config, environment)
    if previous is not None:
        previous.check_model(dataset, config, rows)
    torch.manual_seed(config.training.seed)
    with explain_out_of_memory("the model", "lower width, num_layers, context_length or max_timesteps"):
        return DecisionTransformer(config.model, dataset.observation_space, dataset.action_space, rows)


def _settle_training(config: Config, previous: PreviousRun | None, device: torch.device) -> Config:
    """The configuration with precision and, in a resumed run, threads decided."""
    before = previous.config.training if previous else None
    settled = settle_precision(config.training, device, before)
    return replace(config, training=keep_threads(settled, before) if before else settled)


def _environment_of(
    dataset: Dataset, given: EnvironmentSpec | None, previous: PreviousRun | None
) -> EnvironmentSpec | None:
    """Where to evaluate: as given, as the run was begun, or where the data was recorded."""
    environment = given or (previous.environment if previous else None) or dataset.environment
    return None if environment is None else environment.leaving_out(dataset.leave_out)


def _settle_data(config: Config, previous: PreviousRun | None, held_out: float) -> Config:
    """The configuration with two shares decided, each as given, as the run was begun, or its default.

    held_out: the default share of held-out episodes; that of balanced windows depends on the model.
    """
    settled = config.data
    recorded = {} if previous is None else previous.document["config"].get("data", {})
    defaults = {"held_out": held_out, "balanced": BALANCED if config.model.uses_returns else 0.0}
    for name, default in defaults.items():
        if getattr(settled, name) is None:
            share = default if previous is None else (recorded.get(name) or 0.0)
            settled = replace(settled, **{name: share})
    return replace(config, data=settled)
