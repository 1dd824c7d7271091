"""The environment that a command's options name, and a dataset in it. No torch."""

import json
from dataclasses import replace
from typing import Any

from dt.cli.options import (
    EnvironmentOptions,
    EnvironmentSettings,
)
from envs.datasets.dataset import Dataset
from envs.simulate.importing import import_environments
from envs.simulate.scores import reference_in
from envs.simulate.spec import EnvironmentSpec, check_spaces
from transformer.config import require
from transformer.errors import ConfigError


def environment_of(env: EnvironmentOptions) -> EnvironmentSpec | None:
    """The environment that the options name, None where they name none."""
    kwargs = environment_arguments(env)
    if env.environment is None:
        if kwargs:
            raise ConfigError("--environment-kwargs needs --environment")
        return None
    return EnvironmentSpec(env.environment, kwargs, env.max_episode_steps)


def with_step_limit(environment: EnvironmentSpec | None, env: EnvironmentSettings) -> EnvironmentSpec:
    """An environment that a file names, with the step limit of the options."""
    if environment is None:
        raise ConfigError("--max-episode-steps needs an environment; --environment ID names one")
    return replace(environment, max_episode_steps=env.max_episode_steps)


def environment_to_play_in(env: EnvironmentOptions) -> EnvironmentSpec | None:
    """The same of a command that plays: one that is not registered is refused."""
    environment = environment_of(env)
    if environment is not None:
        environment.check_registered()
    return environment


def environment_arguments(env: EnvironmentSettings) -> dict[str, Any]:
    """What the options say an environment is made with; the module that they name is imported first."""
    if env.import_module:
        import_environments(env.import_module)
    try:
        kwargs = json.loads(env.environment_kwargs or "{}")
    except (ValueError, RecursionError):
        raise ConfigError(f"--environment-kwargs: not JSON: {str(env.environment_kwargs)[:80]}") from None
    if not isinstance(kwargs, dict):
        raise ConfigError(f"--environment-kwargs: not a JSON object: {str(env.environment_kwargs)[:80]}")
    if "max_episode_steps" in kwargs:
        raise ConfigError(
            "--environment-kwargs: max_episode_steps is not an argument of the environment. Use --max-episode-steps N"
        )
    limit = env.max_episode_steps
    require(limit is None or limit >= 1, f"max_episode_steps must be at least 1, not {limit}")
    return kwargs


def seen_in(dataset: Dataset, environment: EnvironmentSpec | None) -> Dataset:
    """`in_environment` for `dt inspect`, which makes the environment and refuses one of other spaces."""
    if environment is not None:
        environment = environment.leaving_out(dataset.leave_out)
        info = environment.info()
        recorded = (dataset.observation_space, dataset.action_space)
        check_spaces(environment, recorded, (info.observation_space, info.action_space))
    return in_environment(dataset, environment)


def in_environment(dataset: Dataset, environment: EnvironmentSpec | None) -> Dataset:
    """A dataset in the environment that the user names, with its step limit and reference returns."""
    if environment is None:
        return dataset
    recorded = dataset.environment
    if recorded is not None and recorded.id == environment.id and recorded.put_back != environment.put_back:
        names = ", ".join(wrapper.name for wrapper in recorded.put_back)
        note = f"recorded inside the wrappers {names}; --environment {environment.id} is played without them"
        dataset = replace(dataset, notes=(*dataset.notes, note))
    reference = reference_in(environment, dataset.environment, dataset.reference)
    environment = environment.leaving_out(dataset.leave_out)
    return replace(dataset, environment=environment, reference=reference)


def with_limited_environment(dataset: Dataset, env: EnvironmentSettings) -> Dataset:
    """The dataset with the options' step limit in its environment."""
    if env.max_episode_steps is None:
        return dataset
    return in_environment(dataset, with_step_limit(dataset.environment, env))
