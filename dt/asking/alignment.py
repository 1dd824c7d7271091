"""How well achieved returns fit the target returns: one number for a table of results. numpy only."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

R = TypeVar("R", bound=Any)


def with_returns(results: Sequence[R]) -> list[R]:
    """The results without targets at which every episode failed.

    results: `TargetResult`s.
    """
    return [result for result in results if result.returns]


def alignment_error(results: Sequence[Any], minimum: float, maximum: float) -> float:
    """Mean distance of the achieved mean from the target, as a share of the data's range; NaN where that is empty.

    results: `TargetResult`s; targets at which every episode failed do not count.
    minimum, maximum: lowest and highest return of the episodes that the model learned from.
    """
    distances = [abs(result.mean_return - result.target_return) for result in with_returns(results)]
    return _share(distances, minimum, maximum)


def quantile_error(results: Sequence[Any], minimum: float, maximum: float) -> float:
    """Alignment error without the data's maximum as a target, since the data hardly shows that return."""
    return alignment_error([result for result in results if result.target_return != maximum], minimum, maximum)


def episode_error(results: Sequence[Any], minimum: float, maximum: float) -> float:
    """Mean distance of single episodes from their target, as a share of the data's range.

    It is large where some episodes fall and others succeed, even if their mean is right. Each target counts once,
    however many of its episodes ended.
    """
    distances = [
        float(np.abs(np.array(result.returns) - result.target_return).mean()) for result in with_returns(results)
    ]
    return _share(distances, minimum, maximum)


def rank_correlation(results: Sequence[Any]) -> float:
    """Spearman's correlation of target and achieved return: 1 where a higher target always earns more.

    NaN below two targets; 0 for a policy that ignores its target.
    """
    results = with_returns(results)
    if len(results) < 2:
        return float("nan")
    targets = _ranks([result.target_return for result in results])
    achieved = _ranks([result.mean_return for result in results])
    if np.ptp(targets) == 0 or np.ptp(achieved) == 0:
        return 0.0
    return float(np.corrcoef(targets, achieved)[0, 1])


def _share(distances: Sequence[float], minimum: float, maximum: float) -> float:
    if not distances or not maximum > minimum:
        return math.nan
    return float(np.mean(distances)) / (maximum - minimum)


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Rank of each value; equal values share the mean of their ranks."""
    x = np.asarray(values)
    return ((x[:, None] > x).sum(1) + (x[:, None] >= x).sum(1)) / 2
