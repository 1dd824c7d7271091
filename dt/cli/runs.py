"""A run in the environment that a command's options name, and what is kept in its folder."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dt.cli.environments import with_step_limit
from dt.cli.options import EnvironmentOptions
from dt.learning.description import left_out_in
from dt.learning.run import Run
from envs.simulate.scores import reference_in
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError
from transformer.files import os_reason
from transformer.runs import distributed
from transformer.runs.console import tell


def limited(run: Run, env: EnvironmentOptions, given: EnvironmentSpec | None) -> Run:
    """The run, its own environment with the step limit of the options where no other environment is given."""
    if given is not None or env.max_episode_steps is None:
        return run
    return run_in_environment(run, with_step_limit(run.environment, env))


def run_in_environment(run: Run, environment: EnvironmentSpec | None) -> Run:
    """The run in the given environment, or in its own; its reference returns are kept where they hold."""
    if environment is None and run.environment is None:
        raise ConfigError(f"{run.folder}: the dataset names no environment; --environment ID does")
    if environment is None:
        return run
    environment = environment.leaving_out(left_out_in(run.dataset))
    reference = reference_in(environment, run.environment, run.reference)
    if run.reference is not None and reference is None:
        tell(f"no normalised score: {environment.id} as given is not the environment of its reference returns")
    return replace(run, environment=environment, reference=reference)


def keep_results(run: Run, write: Callable[..., None], *what: Any) -> None:
    """Write into a run's folder of results what is printed already; a failure is said, and hours are not lost by it."""
    if not distributed.is_first_rank():
        return
    place = run.folder / "results"
    try:
        place.mkdir(exist_ok=True)
        write(place, *what)
    except OSError as error:
        tell(f"{place}: cannot be written, {os_reason(error)}; what is printed stands")
