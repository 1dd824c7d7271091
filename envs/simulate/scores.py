"""Reference returns, and the score that sets a random policy at 0 and an expert at 100."""

import sys
from dataclasses import dataclass

from envs.simulate.spec import EnvironmentSpec


@dataclass(frozen=True)
class Reference:
    """The returns that a normalised score sets at 0 and at 100."""

    minimum: float
    """The return with score 0, a random policy's."""
    maximum: float
    """The return with score 100, an expert's."""
    source: str
    """Where the two come from."""

    def __post_init__(self) -> None:
        if not -sys.float_info.max <= self.minimum < self.maximum <= sys.float_info.max:
            raise ValueError(f"reference returns {self.minimum} and {self.maximum}: not two, the smaller one first")


_D4RL = "D4RL's constants (Fu et al. 2020, d4rl/infos.py) for the same robot; not comparable with D4RL's tables"
_D4RL_RETURNS = {
    "Hopper": (-20.272305, 3234.3),
    "HalfCheetah": (-280.178953, 12135.0),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}


def reference_for(environment: str | None) -> Reference | None:
    """Known reference returns of a registered environment; None if none are published.

    Args:
        environment: its id, such as Hopper-v5.
    """
    name, _, version = (environment or "").rpartition("-v")
    if not version.isdigit() or name not in _D4RL_RETURNS:
        return None
    minimum, maximum = _D4RL_RETURNS[name]
    return Reference(minimum, maximum, _D4RL)


def reference_in(
    env: EnvironmentSpec | None, recorded_in: EnvironmentSpec | None, reference: Reference | None
) -> Reference | None:
    """The reference that holds in `environment` for data recorded in `recorded_in`, whose own is `reference`.

    In any other environment than the data's own it does not hold. Data that names no environment is played in one of
    the user's choosing: without a reference of its own it takes what is known of that environment, as it is registered.
    """
    if env is None or (recorded_in is not None and env.same_environment(recorded_in)):
        return reference
    if recorded_in is not None:
        return None
    return reference or (reference_for(env.id) if not env.kwargs else None)


def scored_as_d4rl(dataset: str, reference: Reference) -> bool:
    """Whether a dataset that is not D4RL's, by its name, has D4RL's constants for reference returns."""
    constants = [returns for returns in _D4RL_RETURNS.values() if returns == (reference.minimum, reference.maximum)]
    return bool(constants) and not dataset.startswith("D4RL/")


def normalized_score(mean_return: float, reference: Reference | None) -> float | None:
    """100 (return - minimum) / (maximum - minimum), as D4RL defines it; None without a reference.

    Args:
        mean_return: the return to score.
        reference: returns with score 0 and 100.
    """
    if reference is None:
        return None
    return 100 * (mean_return - reference.minimum) / (reference.maximum - reference.minimum)
