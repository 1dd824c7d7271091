"""What a `DecisionTransformerModel`'s folder says, and what its run is to know besides: checked without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space

from dt.config import ModelConfig
from envs.datasets.dataset import Dataset
from envs.simulate.spec import EnvironmentSpec
from transformer.config import require
from transformer.errors import ConfigError
from transformer.files import read_json
from transformer.gpt2_config import integer, locate, make_config, read_config, transformer_settings


@dataclass(frozen=True)
class Published:
    """A model of theirs, all but its weights, and what its run is to know besides."""

    source: Path
    config_path: Path
    weights_path: Path
    config: ModelConfig
    rows: int  # of the table of timesteps
    num_positions: int
    tanh: bool  # whether their actions pass one
    observation_space: Space[Any]
    action_space: Space[Any]
    normalizer: tuple[list[float], list[float]] | Dataset  # the states' mean and deviation, or what they come from
    environment: EnvironmentSpec | None

    @property
    def dataset(self) -> Dataset | None:
        """What it was trained on, if that is known."""
        return self.normalizer if isinstance(self.normalizer, Dataset) else None


def read_published(
    source: str | Path,
    *,
    context_length: int,
    return_scale: float,
    normalizer: str | Path | None = None,
    dataset: Dataset | None = None,
    environment: EnvironmentSpec | None = None,
) -> Published:
    """The model in the folder `source`, the arguments as of `import_huggingface`, which refuses the same."""
    if (normalizer is None) == (dataset is None):
        raise ConfigError("the states' mean and deviation come from a normalizer or from a dataset, one of the two")
    config_path, weights_path = locate(Path(source))
    theirs = read_config(
        config_path, "decision_transformer", activation_function="relu", action_tanh=True, n_positions=1024
    )
    rows, tanh = integer(theirs, "max_ep_len", config_path), theirs["action_tanh"]
    settings = transformer_settings(theirs, "hidden_size", config_path)
    config = make_config(
        ModelConfig,
        config_path,
        conditioning="token",
        positions="timesteps",
        rotary=False,
        max_timesteps=rows,
        **settings,
    )
    config = replace(config, context_length=context_length, return_scale=return_scale)
    require(isinstance(tanh, bool), f"{config_path}: action_tanh is {tanh!r}, expected true or false")
    observation_space, action_space = _spaces(dataset, environment)
    _check_size(observation_space, theirs, "state_dim", config_path)
    _check_size(action_space, theirs, "act_dim", config_path)
    return Published(
        source=Path(source),
        config_path=config_path,
        weights_path=weights_path,
        config=config,
        rows=rows,
        num_positions=integer(theirs, "n_positions", config_path),
        tanh=tanh,
        observation_space=observation_space,
        action_space=action_space,
        normalizer=dataset if dataset is not None else _read_normalizer(Path(str(normalizer)), theirs["state_dim"]),
        environment=environment,
    )


def _spaces(dataset: Dataset | None, environment: EnvironmentSpec | None) -> tuple[Space[Any], Space[Any]]:
    """Observation and action space: the dataset's, or else the environment's."""
    if dataset is not None:
        return dataset.observation_space, dataset.action_space
    if environment is None:
        raise ConfigError("without a dataset the environment must be named, for its spaces")
    info = environment.info()
    return info.observation_space, info.action_space


def _check_size(space: Space[Any], theirs: Mapping[str, Any], setting: str, path: Path) -> None:
    """Refuse a space that is no Box of as many numbers as their setting says."""
    size = integer(theirs, setting, path)
    if not isinstance(space, spaces.Box):
        raise ConfigError(
            f"{path}: {setting} is {size}, and {space} is not a Box of numbers, the only space that theirs takes"
        )
    numbers = int(np.prod(space.shape, dtype=int))
    require(size == numbers, f"{path}: {setting} is {size}, the space has {numbers}: {space}")


def _read_normalizer(path: Path, size: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of so many numbers, from a JSON file."""
    document = read_json(path)
    mean, std = (_numbers(document, path, *what) for what in (("mean", size, -1e30), ("std", size, 1e-30)))
    return mean, std


def _numbers(document: Any, path: Path, name: str, size: int, minimum: float) -> list[float]:
    numbers = document.get(name) if isinstance(document, dict) else None
    if not isinstance(numbers, list) or len(numbers) != size:
        raise ConfigError(f"{path}: {name} must be a list of {size} numbers")
    for i, number in enumerate(numbers):
        if type(number) not in (int, float) or not minimum < number < 1e30:
            expected = "a finite number above 0" if name == "std" else "a finite number"
            raise ConfigError(f"{path}: {name}[{i}] is {number!r}, expected {expected}")
    return numbers
