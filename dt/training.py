"""Train a Decision Transformer: data, model and the shared loop, with evaluation on the way and at the end."""

import platform
import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dt.config import Config
from dt.data import TrajectoryDataset
from dt.evaluation import best_mean, check_environment, default_targets, evaluate, rank_correlation
from dt.model import DecisionTransformer, table_rows
from dt.policy import PolicyError, ReturnConditionedPolicy
from envs.datasets import Dataset
from envs.scores import Reference
from envs.spaces import space_from_json, space_to_json
from envs.worlds import EnvironmentSpec, MissingWorldError, WorldError
from transformer.checkpoint import (
    SCHEMA,
    CheckpointError,
    best_checkpoint,
    newest_checkpoint,
    read_json,
    read_tensors,
)
from transformer.config import ConfigError
from transformer.training import Trainer, pick_device

RESUMABLE = ("steps", "log_every", "checkpoint_every", "evaluate_every", "keep_checkpoints", "device")
"""Training settings that a resumed run may change; any other difference is refused."""

WAY_SEED, BEST_SEED, FINAL_SEED = 1_000_000, 2_000_000, 0
"""World seeds: scoring on the way, scoring the best anew (it was chosen on the way's seeds), and everything else."""


@dataclass(frozen=True)
class Run:
    """A run's folder, opened: what it is, and its model at one checkpoint."""

    folder: Path
    checkpoint: Path
    model: DecisionTransformer
    config: Config
    dataset: dict[str, Any]  # name, source, fingerprint, episodes, steps, returns' quantiles
    environment: EnvironmentSpec | None
    reference: Reference | None


def train(
    dataset: Dataset,
    config: Config,
    folder: str | Path,
    *,
    environment: EnvironmentSpec | None = None,
    resume: bool = False,
) -> Run:
    """Train on a dataset into a run's folder and return the run at its last step.

    environment: where to evaluate on the way; None takes the dataset's own, and trains without if that one cannot be
    made here. A folder that holds a run is refused unless `resume`, which then goes on from its newest checkpoint, bit
    for bit as if it had never stopped.
    """
    folder, device = Path(folder), pick_device(config.training.device)
    old = read_json(folder / "run.json") if resume else None
    if old is not None:
        _check_schema(old, folder / "run.json")
        environment = environment or (EnvironmentSpec.from_json(old["environment"]) if old["environment"] else None)
    asked, environment = environment, environment or dataset.environment
    torch.manual_seed(config.training.seed)
    model = build_model(dataset, config, environment)
    playable = environment is not None
    try:
        if environment is not None:
            check_environment(environment, model)
    except MissingWorldError as error:
        if asked is not None:
            raise
        playable = False
        _warn(f"no evaluation here: {error}")
    targets = config.evaluation.target_return or default_targets(dataset.returns)
    document = describe(dataset, config, model, environment)
    if old is not None:
        _check_resumable(old, document, folder)
    model.to(device)
    data = TrajectoryDataset(dataset, config.model.context_length, device, frame_stack=config.model.frame_stack)
    seed, batch_size = config.training.seed, config.training.batch_size

    def score(step: int) -> dict[str, float]:
        assert environment is not None
        try:
            results = evaluate(
                ReturnConditionedPolicy(model, temperature=config.evaluation.temperature),
                environment,
                targets,
                episodes=config.evaluation.episodes,
                seed=WAY_SEED,
                num_worlds=config.evaluation.num_worlds,
                reference=dataset.reference,
            )
        except (WorldError, PolicyError) as error:
            _warn(f"\nno score at step {step}: {error}")  # hours of training are worth more than one evaluation
            return {}
        asked = {f"return_at_{result.target_return:g}": result.mean_return for result in results}
        if len(results) > 1:
            asked["rank_correlation"] = rank_correlation(results)
        return {"score": best_mean(results), **asked}

    on_the_way = playable and config.training.evaluate_every > 0
    trainer = Trainer(
        model,
        lambda step: data.gather(data.indices(seed, step, batch_size)),
        config.training,
        folder,
        document,
        evaluate=score if on_the_way else None,
        describe=lambda step: f"episodes {data.episodes_of(data.indices(seed, step, batch_size))[:8]} and others",
    )
    trainer.resume() if resume else trainer.start()
    if old is not None and (old["config"]["evaluation"], old["environment"]) != (
        document["config"]["evaluation"],
        document["environment"],
    ):
        trainer.best = None  # its score answered another question
    trainer.train()
    return load_run(folder, device=device)


def build_model(dataset: Dataset, config: Config, environment: EnvironmentSpec | None) -> DecisionTransformer:
    """A new model for a dataset, its normaliser taken from the data; weights from torch's present seed."""
    rows = table_rows(config.model, replace(dataset, environment=environment))
    longest = int(dataset.lengths.max())
    if rows < longest:
        raise ConfigError(f"max_timesteps {rows} is less than the data's longest episode, {longest} steps")
    model = DecisionTransformer(config.model, dataset.observation_space, dataset.action_space, rows)
    model.fit(dataset)
    return model


def describe(
    dataset: Dataset, config: Config, model: DecisionTransformer, environment: EnvironmentSpec | None
) -> dict[str, Any]:
    """What a run is, as JSON: enough to make its model and its world again."""
    reference = dataset.reference
    return {
        "schema": SCHEMA,
        "kind": "decision-transformer",
        "config": config.to_json(),
        "max_timesteps": model.max_timesteps,
        "observation_space": space_to_json(dataset.observation_space),
        "action_space": space_to_json(dataset.action_space),
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "episodes": dataset.num_episodes,
            "steps": dataset.num_steps,
            "targets": list(default_targets(dataset.returns)),
            "maximum": float(dataset.returns.max()),
        },
        "environment": environment.to_json() if environment else None,
        "reference": vars(reference) if reference else None,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a score."""
    found = {"python": platform.python_version()}
    for name in ("decision-transformer", "torch", "numpy", "gymnasium", "mujoco", "minari"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load_run(folder: str | Path, which: str = "last", device: str | torch.device = "cpu") -> Run:
    """Open a run at its "last" or its "best" checkpoint. What cannot be used raises `CheckpointError`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such run")
    if not (folder / "run.json").exists():
        raise CheckpointError(f"{folder}: no run.json in it, so it is no run")
    checkpoint = best_checkpoint(folder) if which == "best" else newest_checkpoint(folder, report=_warn)
    document = read_json(checkpoint / "run.json")
    _check_schema(document, checkpoint / "run.json")
    try:
        config = Config.from_json(document["config"])
        observation_space = space_from_json(document["observation_space"])
        action_space = space_from_json(document["action_space"])
        model = DecisionTransformer(config.model, observation_space, action_space, int(document["max_timesteps"]))
        model.load_state_dict(read_tensors(checkpoint / "model.safetensors"))
        environment = document["environment"] and EnvironmentSpec.from_json(document["environment"])
        reference = document["reference"] and Reference(**document["reference"])
        dataset = dict(document["dataset"])
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{checkpoint}: not a checkpoint of this version ({reason})") from None
    return Run(folder, checkpoint, model.to(device).eval(), config, dataset, environment or None, reference or None)


def _check_schema(document: Any, path: Path) -> None:
    if not isinstance(document, dict) or document.get("kind") != "decision-transformer":
        raise CheckpointError(f"{path}: not a Decision Transformer's run")
    if document.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: schema {document.get('schema')}, this version reads {SCHEMA}")


def _check_resumable(old: Any, new: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with other data, another model or another recipe; name the first difference."""
    if old["max_timesteps"] != new["max_timesteps"]:
        raise CheckpointError(f"{folder}: max_timesteps was {old['max_timesteps']}, now {new['max_timesteps']}")
    for name in ("name", "fingerprint"):
        if old["dataset"].get(name) != new["dataset"][name]:
            raise CheckpointError(f"{folder}: trained on dataset {old['dataset'].get('name')}, its {name} differs now")
    for part in ("model", "training"):
        for name, value in new["config"][part].items():
            before = old["config"][part].get(name)
            if before != value and name not in RESUMABLE:
                raise CheckpointError(f"{folder}: {name} was {before}, now {value}; a resumed run cannot change it")


def _warn(message: str) -> None:
    print(message, file=sys.stderr)
