"""Train a Decision Transformer: data, model and the shared loop, with evaluation on the way and at the end."""

import functools
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.spaces import Space
from torch import Tensor

from dt.asking.alignment import rank_correlation
from dt.asking.calibrate import calibrate_after_training, drop_calibrations, policy_of
from dt.asking.targets import default_targets, percentiles, resolve
from dt.config import WAY_SEED, Config, DataConfig, EvaluationConfig, ModelConfig
from dt.data import Batch, Batches, TrajectoryDataset
from dt.errors import PolicyError
from dt.evaluation import (
    best_mean,
    check_environment,
    evaluate,
    failures,
    labels,
)
from dt.learning.description import environment_in, read_description
from dt.model import DecisionTransformer, table_rows
from dt.policy import ReturnConditionedPolicy
from dt.validation import HELD_OUT, HeldOutError, Validation, choose_episodes
from envs.datasets.dataset import Dataset, Part
from envs.errors import EnvError, MissingEnvError
from envs.simulate.scores import Reference, reference_in
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import choices, leaf_spaces, space_from_json, space_to_json
from transformer.config import TrainingConfig, require
from transformer.errors import CheckpointError, ConfigError
from transformer.runs import distributed
from transformer.runs.callbacks import Callback
from transformer.runs.checkpoint import (
    SCHEMA,
    best_checkpoint,
    check_run,
    check_size,
    folder_of,
    load_weights,
    newest_checkpoint,
    read_tensors,
)
from transformer.runs.console import tell
from transformer.runs.record import begun_by_this_launch, check_same_recipe, newest_state
from transformer.runs.setup import (
    explain_out_of_memory,
    keep_threads,
    learning_rate_at,
    pick_device,
    settle_precision,
    settle_threads,
)
from transformer.runs.training import Trainer

BALANCED = 0.5
"""Share of each batch that is drawn evenly over the range of returns where nothing else is said."""

WAY_EPISODES = 10
"""Episodes at each target of an evaluation during training, at most."""

MOST_ROWS = 200_000
"""Rows of a table of weights, one for each timestep or value of a choice, that any data may ask for."""


@dataclass(frozen=True)
class Run:
    """A run's folder, opened at one checkpoint: its model, and how it was made."""

    folder: Path
    """The run's folder."""
    checkpoint: Path
    """The folder of the checkpoint."""
    model: DecisionTransformer
    """At that checkpoint, ready to act."""
    config: Config
    """Its settings."""
    dataset: dict[str, Any]
    """What it learned from, as run.json describes it."""
    environment: EnvironmentSpec | None
    """Where it plays; None if there is none."""
    reference: Reference | None
    """Reference returns of that environment."""
    imported: str | None = None
    """Where its weights came from, if they were not trained here."""

    def policy(self, config: EvaluationConfig | None = None, **how: Any) -> ReturnConditionedPolicy:
        """The run's policy, with its calibration where that holds.

        config: how it is played; None is as its training was configured.
        how: `precision`, `cached` and `which`, the checkpoint's name; see `dt.asking.calibrate.policy_of`.
        """
        return policy_of(self, config, **how)


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
    config.check_rewards(dataset.name, dataset.rewards_from)
    device = pick_device(config.training.device)
    asked = environment
    if at_step is not None:
        checkpoint = folder_of(folder, at_step) if at_step else None
    else:
        checkpoint = newest_state(folder) if resume else None
    old = read_description((checkpoint or folder) / "run.json") if resume else None
    if old is not None:
        environment = environment or environment_in(old)
    before = Config.from_json(old["config"]) if old is not None else None
    settled = settle_precision(config.training, device, before.training if before else None)
    settled = keep_threads(settled, before.training) if before else settled
    config = replace(config, training=settled)
    environment = environment or dataset.environment
    if environment is not None:
        environment = environment.leaving_out(dataset.leave_out)
    if old is not None:
        _check_same_model(old, dataset, config, environment, folder, checkpoint)
    torch.manual_seed(config.training.seed)
    with explain_out_of_memory("the model", "lower width, num_layers, context_length or max_timesteps"):
        model = _new_model(dataset, config, environment)
    if before is None:
        config = replace(config, training=settle_threads(config.training, model))
    playable = environment is not None
    try:
        if environment is not None:
            check_environment(environment, model, config.evaluation.env_timeout)
    except MissingEnvError as error:
        if asked is not None:
            raise
        playable = False
        tell(f"no evaluation here: {error}")
    if not playable and config.evaluation.target_return:
        tell("target_return: there is no environment to ask for it in, --environment ID names one")
    reference = reference_in(environment, dataset.environment, dataset.reference)
    config = _with_held_out(config, old, 0.0 if playable or dataset.num_episodes == 1 else HELD_OUT)
    config = _with_balance(config, old)
    learned, held_out = choose_episodes(dataset, config.data, config.training.seed)
    for note in learned.notes[len(dataset.notes) :]:
        tell(note)
    model.fit(learned)
    if old is not None and checkpoint is not None:
        model.set_units(old.get("units", {}))  # the weights are those of that time, and early versions had no units
    document = describe(config, model, describe_data(dataset, config.model, learned), environment, reference)
    document["scored_by"] = "return" if playable else "held-out error" if held_out else None
    if old is not None:
        _check_same_data(old, document, folder)
    model.to(device)
    data = TrajectoryDataset(
        learned,
        config.model.context_length,
        device,
        frame_stack=config.model.frame_stack,
        balanced=config.data.balanced or 0.0,
        units=model.units,
    )
    batches = Batches(data, config.training.seed, config.training.batch_size)
    known = document["dataset"]
    targets = resolve(config.evaluation.named_targets or known["targets"], known["percentiles"])

    validation = None if held_out is None else Validation(model, learned, held_out)

    def score(step: int) -> dict[str, float]:
        scores = {} if validation is None else distributed.on_first_rank(lambda: _held_out_scores(validation.measure()))
        if playable and environment is not None:
            scores |= _score_on_the_way(model, environment, targets, config.evaluation, step)
        return scores

    trainer = Trainer(
        model,
        batches,
        config.training,
        folder,
        document,
        evaluate=score if document["scored_by"] and config.training.evaluate_every > 0 else None,
        describe=batches.describe,
        slices=Batch.slices,
        callbacks=callbacks,
    )
    if old is not None and before is not None:
        trainer.resume(checkpoint)
        _warn_of_another_length(trainer.step, before.training, config.training)
        scored_by = old.get("scored_by", document["scored_by"])
        now = (config.evaluation, environment, document["scored_by"])
        best = trainer.record.best
        if best and (before.evaluation, environment_in(old), scored_by) != now:
            tell(f"step {best['step']} was best at another evaluation: the best is sought anew from here")
            trainer.record.best = None
    return trainer


def _held_out_scores(result: HeldOutError) -> dict[str, float]:
    """For the log; the score is the loss turned round, since the most is the best."""
    scores = {"score": -result.loss, "held_out_loss": result.loss}
    for leaf in result.leaves:
        name = leaf.measure.replace(" ", "_").replace("-", "_")
        scores |= {f"held_out_{name}/{leaf.leaf}": leaf.error, f"constant_{name}/{leaf.leaf}": leaf.baseline}
        if leaf.accuracy is not None and leaf.baseline_accuracy is not None:
            scores |= {f"held_out_accuracy/{leaf.leaf}": leaf.accuracy}
            scores |= {f"constant_accuracy/{leaf.leaf}": leaf.baseline_accuracy}
    return scores


def _with_held_out(config: Config, old: Any, default: float) -> Config:
    """The configuration with the share of held-out episodes settled: as given, as the run was begun, or the default."""
    if config.data.held_out is not None:
        return config
    share = default if old is None else old["config"].get("data", {}).get("held_out") or 0.0
    return replace(config, data=replace(config.data, held_out=share))


def _with_balance(config: Config, old: Any) -> Config:
    """The configuration with the share of balanced windows settled: as given, as the run was begun, or the default."""
    if config.data.balanced is not None:
        return config
    share = BALANCED if config.model.hears_returns else 0.0
    if old is not None:
        share = old["config"].get("data", {}).get("balanced") or 0.0
    return replace(config, data=replace(config.data, balanced=share))


_tell_once = functools.cache(tell)
"""Prints a note once, though each evaluation has it."""


def _score_on_the_way(
    model: DecisionTransformer,
    environment: EnvironmentSpec,
    targets: Sequence[float],
    config: EvaluationConfig,
    step: int,
) -> dict[str, float]:
    """What the log and the choice of the best need to know; nothing where the environment or the policy fails.

    Where some episodes failed the others are logged, but there is no score: it would be compared with those of all.
    """
    try:
        results = evaluate(
            ReturnConditionedPolicy(
                model, temperature=config.temperature or 0.0, context_length=config.eval_context_length
            ),
            environment,
            targets,
            episodes=min(config.episodes, WAY_EPISODES),
            seed=WAY_SEED,
            num_envs=config.num_envs,
            env_timeout=config.env_timeout,
            on_note=_tell_once,
        )
    except (EnvError, PolicyError) as error:
        tell(f"\nno score at step {step}: {error}")  # hours of training are worth more than one evaluation
        return {}
    achieved = [result.mean_return for result in results]
    scores = {f"return_at_{label}": mean for label, mean in zip(labels(targets), achieved, strict=True)}
    if len(results) > 1:
        scores["rank_correlation"] = rank_correlation(results)
    if failed := failures(results):
        tell(f"\nstep {step} cannot be the best: {len(failed)} episodes failed, the first: {failed[0]}")
        return {**scores, "failed_episodes": float(len(failed))}
    return {"score": best_mean(results), **scores}


def _warn_of_another_length(step: int, old: TrainingConfig, new: TrainingConfig) -> None:
    """A cosine ends with the run, so another end bends it from here on: no more the run that never stopped."""
    if new.schedule == "cosine" and new.steps != old.steps:
        before, now = (learning_rate_at(step, config) for config in (old, new))
        tell(
            f"steps was {old.steps}, now {new.steps}, and the cosine falls until the last: "
            f"the learning rate at step {step} is {now:.3g}, was {before:.3g}"
        )


def build_model(dataset: Dataset, config: Config, environment: EnvironmentSpec | None) -> DecisionTransformer:
    """A new model for a dataset, its normaliser taken from the data; weights from torch's present seed."""
    model = _new_model(dataset, config, environment)
    model.fit(dataset)
    return model


def _new_model(dataset: Dataset, config: Config, environment: EnvironmentSpec | None) -> DecisionTransformer:
    rows = _rows(dataset, config, environment)
    return DecisionTransformer(config.model, dataset.observation_space, dataset.action_space, rows)


def _rows(dataset: Dataset, config: Config, environment: EnvironmentSpec | None) -> int:
    rows, longest = table_rows(config.model, replace(dataset, environment=environment)), int(dataset.lengths.max())
    if rows < longest:
        raise ConfigError(f"max_timesteps {rows} is less than the data's longest episode, {longest} steps")
    _check_tables(dataset, config, rows)
    return rows


def _check_tables(dataset: Dataset, config: Config, rows: int) -> None:
    """Refuse more rows of weights than there are steps to learn them from, where a file alone asks for so many."""
    most = max(MOST_ROWS, dataset.num_steps)
    if config.model.max_timesteps is None and rows > most:
        raise ConfigError(
            f"an episode of the data's environment may last {rows} steps, the longest recorded one has "
            f"{int(dataset.lengths.max())}: --max-timesteps N says how many the model is to know"
        )
    for space in (dataset.observation_space, dataset.action_space):
        for leaf in leaf_spaces(space).values():
            if (values := int(choices(leaf)[0].sum())) > most:
                raise ConfigError(f"{leaf}: {values} values, and {dataset.num_steps} steps to learn them from")


def describe(
    config: Config,
    model: DecisionTransformer,
    data: dict[str, Any],
    environment: EnvironmentSpec | None,
    reference: Reference | None,
) -> dict[str, Any]:
    """What a run is, as JSON: enough to make its model and its environment again."""
    return {
        "schema": SCHEMA,
        "kind": "decision-transformer",
        "config": config.to_json(),
        "max_timesteps": model.max_timesteps,
        "units": model.units.to_json(),
        "observation_space": space_to_json(model.observation_space),
        "action_space": space_to_json(model.action_space),
        "dataset": data,
        "environment": environment.to_json() if environment else None,
        "reference": vars(reference) if reference else None,
        "versions": versions(),
    }


def describe_data(dataset: Dataset, model: ModelConfig, learned: Dataset | None = None) -> dict[str, Any]:
    """What a run says of its dataset, as JSON; `targets` is what its model is asked for where nobody says.

    learned: the episodes of it that the model learns from, which are counted and whose returns are asked for.
    """
    learned = dataset if learned is None else learned
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "parts": [part.to_json() for part in dataset.parts or (Part.of(dataset),)],
        "episodes": learned.num_episodes,
        "steps": learned.num_steps,
        "targets": list(default_targets(learned.returns, conditioned=model.hears_returns)),
        "percentiles": percentiles(learned.returns),
        "maximum": float(learned.returns.max()),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a score."""
    found = {"python": platform.python_version()}
    for name in ("decision-transformer", "torch", "numpy", "gymnasium", "mujoco", "ale-py", "minari"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load_run(folder: str | Path, which: Literal["last", "best"] = "last", device: str | torch.device = "cpu") -> Run:
    """Open a run at one of its checkpoints.

    Args:
        folder: the run's folder.
        which: "last", or "best", the one that scored best during training.
        device: where the model goes.

    Raises:
        CheckpointError: the folder is not a run, or the checkpoint cannot be used.
    """
    require(which in ("last", "best"), f"which must be one of last, best, not {which!r}")
    folder = Path(folder)
    check_run(folder)
    checkpoint = (best_checkpoint if which == "best" else newest_checkpoint)(folder, report=tell)
    document = read_description(checkpoint / "run.json")
    tensors = read_tensors(checkpoint / "model.safetensors")
    try:
        config = Config.from_json(document["config"])
        observation_space = space_from_json(document["observation_space"])
        action_space = space_from_json(document["action_space"])
        shape = config.model, observation_space, action_space, document["max_timesteps"]
        _check_size(tensors, *shape)
        model = DecisionTransformer(*shape)
        load_weights(model, tensors)
        model.set_units(document.get("units", {}))  # runs of early versions have none
        environment = environment_in(document)
        reference = document["reference"] and Reference(**document["reference"])
        dataset, imported = dict(document["dataset"]), document.get("imported")
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{checkpoint}: not a checkpoint of this version ({reason})") from None
    model = model.to(device).eval()
    return Run(folder, checkpoint, model, config, dataset, environment, reference or None, imported)


def _check_size(
    weights: dict[str, Tensor], config: ModelConfig, seen: Space[Any], done: Space[Any], max_timesteps: int
) -> None:
    """Refuse a model of more weights than there are, and a window that no such model needs, before there is one."""
    leaves = [leaf for space in (seen, done) for leaf in leaf_spaces(space).values()]
    least = config.width * (max_timesteps + sum(int(choices(leaf)[0].sum()) for leaf in leaves))  # rows of the tables
    there = sum(tensor.numel() for tensor in weights.values())
    if least > there:  # a list of all choices may be too long even where it holds nothing
        raise ValueError(f"a model of its settings has more than {least} weights, here are {there}")
    rows = [math.prod(leaf.shape or ()) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    step = config.frame_stack * sum(rows) + 24 * config.width * config.num_layers  # keys and values of three tokens
    check_size(
        lambda: DecisionTransformer(config, seen, done, max_timesteps),
        weights,
        config.num_layers,
        config.context_length * step,
    )


def _check_same_model(
    old: dict[str, Any],
    dataset: Dataset,
    config: Config,
    environment: EnvironmentSpec | None,
    folder: Path,
    checkpoint: Path | None,
) -> None:
    """Refuse to go on with another model or another recipe, or one that boasts, before the model is made."""
    if "imported" in old:
        raise CheckpointError(
            f"{folder}: imported from {old['imported']}, without the state that training goes on from"
        )
    rows = _rows(dataset, config, environment)
    if old["max_timesteps"] != rows:
        raise CheckpointError(f"{folder}: max_timesteps was {old['max_timesteps']}, now {rows}")
    check_same_recipe(old["config"], config.to_json(), folder)
    if checkpoint is not None:
        weights = read_tensors(checkpoint / "model.safetensors")
        try:
            _check_size(weights, config.model, dataset.observation_space, dataset.action_space, rows)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from None


def _check_same_data(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Refuse other data than a run was begun with, or other episodes of it, by the name of what differs."""
    was, now = old["dataset"], new["dataset"]
    for before, after in zip(was.get("parts", ()), now["parts"], strict=False):
        for name in ("name", "fingerprint", "fraction"):
            if before[name] != after[name]:
                raise CheckpointError(f"{folder}: trained on dataset {before['name']}, its {name} differs now")
    for name in ("name", "fingerprint"):
        if was.get(name) != now[name]:
            raise CheckpointError(f"{folder}: trained on dataset {was.get('name')}, its {name} differs now")
    chosen = old["config"].get("data", asdict(DataConfig(held_out=0.0)))
    for name, value in new["config"]["data"].items():
        if chosen.get(name) != value:
            raise CheckpointError(
                f"{folder}: {name} was {chosen.get(name)}, now {value}; a resumed run cannot change it"
            )
