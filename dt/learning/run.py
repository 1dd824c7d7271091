"""A run: what its run.json says of it, and its model opened at a checkpoint."""

import math
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.spaces import Space
from torch import Tensor

from dt.asking.calibrated_policy import policy_of
from dt.asking.targets import default_targets, percentiles_of
from dt.config import Config, EvaluationConfig, ModelConfig
from dt.inspection import oddities
from dt.learning.description import environment_in, read_description
from dt.model import DecisionTransformer
from dt.policy import ReturnConditionedPolicy
from dt.sharing.hub import find_run
from dt.statistics import histogram
from envs.datasets.dataset import Dataset, DatasetSource
from envs.simulate.scores import Reference
from envs.simulate.spec import EnvironmentSpec
from envs.space_json import space_from_json, space_to_json
from envs.spaces import choices, leaf_spaces
from transformer.config import require
from transformer.errors import CheckpointError, ConfigError
from transformer.runs.checkpoint import SCHEMA, best_checkpoint, newest_checkpoint
from transformer.runs.console import tell
from transformer.runs.folder import check_run
from transformer.weights import check_size, load_weights, read_tensors


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
    source: str | None = None
    """hf://USER/NAME@COMMIT, if it was fetched from the hub."""

    def policy(self, config: EvaluationConfig | None = None, **how: Any) -> ReturnConditionedPolicy:
        """The run's policy, with its calibration where that holds.

        config: how it is played; None is as its training was configured.
        how: `precision`, `cached` and `which`, the checkpoint's name; see `dt.asking.calibrated_policy.policy_of`.
        """
        return policy_of(self, config, **how)


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
    """What a run says of its dataset, as JSON; `targets` is what its model is asked for by default.

    learned: the episodes that the model learns from. They are counted, and the targets are from their returns.
    """
    learned = dataset if learned is None else learned
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "parts": [part.to_json() for part in dataset.parts or (DatasetSource.of(dataset),)],
        "episodes": learned.num_episodes,
        "steps": learned.num_steps,
        "targets": list(default_targets(learned.returns, conditioned=model.uses_returns)),
        "percentiles": percentiles_of(learned.returns),
        "maximum": float(learned.returns.max()),
        "histograms": {"returns": histogram(learned.returns), "lengths": histogram(learned.lengths)},
        "notes": list(oddities(learned)),
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


def load_run(
    folder: str | Path,
    which: Literal["last", "best"] = "last",
    device: str | torch.device = "cpu",
    *,
    download: bool = False,
) -> Run:
    """Open a run at one of its checkpoints.

    Args:
        folder: the run's folder, or hf://USER/NAME[@REVISION] on the Hugging Face hub.
        which: "last", or "best", the one that scored best during training.
        device: where the model goes.
        download: fetch a run of the hub that is not here; nothing is fetched without it.

    Raises:
        CheckpointError: the folder is not a run, the checkpoint cannot be used, or the run cannot be fetched.
    """
    require(which in ("last", "best"), f"which must be one of last, best, not {which!r}")
    folder, source = find_run(folder, download)
    check_run(folder)
    checkpoint = (best_checkpoint if which == "best" else newest_checkpoint)(folder, report=tell)
    document = read_description(checkpoint / "run.json")
    tensors = read_tensors(checkpoint / "model.safetensors")
    try:
        config = Config.from_json(document["config"])
        observation_space = space_from_json(document["observation_space"])
        action_space = space_from_json(document["action_space"])
        shape = config.model, observation_space, action_space, document["max_timesteps"]
        check_model_size(tensors, *shape)
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
    return Run(folder, checkpoint, model, config, dataset, environment, reference or None, imported, source)


def check_model_size(
    weights: dict[str, Tensor],
    config: ModelConfig,
    observation_space: Space[Any],
    action_space: Space[Any],
    max_timesteps: int,
) -> None:
    """Refuse a model of more weights than there are, and a window that no such model needs, before there is one."""
    leaves = [leaf for space in (observation_space, action_space) for leaf in leaf_spaces(space).values()]
    timesteps = max_timesteps if config.positions == "timesteps" else 0
    fewest = config.width * (timesteps + sum(int(choices(leaf)[0].sum()) for leaf in leaves))  # weights of all tables
    there = sum(tensor.numel() for tensor in weights.values())
    if fewest > there:  # a list of all choices may be too long even where it holds nothing
        raise ValueError(f"a model of its settings has more than {fewest} weights, here are {there}")
    rows = [math.prod(leaf.shape or ()) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    step = config.frame_stack * sum(rows) + 24 * config.width * config.num_layers  # keys and values of three tokens
    check_size(
        lambda: DecisionTransformer(config, observation_space, action_space, max_timesteps),
        weights,
        config.num_layers,
        config.context_length * step,
    )
