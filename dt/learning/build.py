"""A new model for a dataset: its sizes, and what limits them."""

from dt.config import Config, ModelConfig
from dt.model import DecisionTransformer
from envs.datasets.dataset import Dataset
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import choices, leaf_spaces
from transformer.errors import ConfigError

MOST_ROWS = 200_000
"""Rows of a table of weights, one for each timestep or value of a choice, that any data may ask for."""


def build_model(dataset: Dataset, config: Config, environment: EnvironmentSpec | None) -> DecisionTransformer:
    """A new model for a dataset, with a normaliser from the data and weights from torch's present seed.

    `dt train` takes the same steps one by one, with checks between them: see `dt.learning.training.prepare`.
    """
    rows = timestep_rows(dataset, config, environment)
    model = DecisionTransformer(config.model, dataset.observation_space, dataset.action_space, rows)
    model.fit(dataset)
    return model


def timestep_rows(dataset: Dataset, config: Config, environment: EnvironmentSpec | None) -> int:
    """Rows of the timestep table: as configured, or what the data and the environment need.

    Raises:
        ConfigError: fewer than the longest episode has steps, or more than the data can teach.
    """
    rows = table_rows(config.model, dataset, environment)
    longest = int(dataset.lengths.max())
    if rows < longest:  # only where it was configured
        raise ConfigError(f"max_timesteps {rows} is less than the data's longest episode, {longest} steps")
    _check_tables(dataset, config, rows)
    return rows


def table_rows(config: ModelConfig, dataset: Dataset, environment: EnvironmentSpec | None) -> int:
    """Rows that the timestep table needs: the longer of the data's episodes and the environment's limit."""
    limit = environment.step_limit if environment else None
    return config.max_timesteps or max(int(dataset.lengths.max()), limit or 0)


def _check_tables(dataset: Dataset, config: Config, rows: int) -> None:
    """Refuse more rows of weights than there are steps to learn them from, if only a file asks for so many."""
    most = max(MOST_ROWS, dataset.num_steps)
    if config.model.positions == "timesteps" and config.model.max_timesteps is None and rows > most:
        raise ConfigError(
            f"an episode of the data's environment may last {rows} steps, the longest recorded one has "
            f"{int(dataset.lengths.max())}: --max-timesteps N says how many the model is to know"
        )
    for space in (dataset.observation_space, dataset.action_space):
        for leaf in leaf_spaces(space).values():
            if (values := int(choices(leaf)[0].sum())) > most:
                raise ConfigError(f"{leaf}: {values} values, and {dataset.num_steps} steps to learn them from")
