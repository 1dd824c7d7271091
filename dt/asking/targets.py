"""Target returns as people give them: numbers, percentiles (p90), the maximum (max), shares of the range (1.2x)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dt.asking.limits import PERCENTILE, SHARE, check_target, number_of
from transformer.config import require

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Quantiles of the data's returns that are the targets where the user gives none."""


def default_targets(returns: NDArray[np.float64], *, conditioned: bool = True) -> tuple[float, ...]:
    """The data's own returns at `QUANTILES`, without repeats.

    returns: (E,), of the episodes that a model learned from.
    conditioned: whether the model depends on its target; without, the maximum is the only target.
    """
    return default_targets_of(percentiles_of(returns), conditioned=conditioned)


def default_targets_of(percentiles: Sequence[float], *, conditioned: bool = True) -> tuple[float, ...]:
    """The default targets, from the data's `percentiles_of`; none where they are not known."""
    quantiles = QUANTILES if conditioned else QUANTILES[-1:]
    return tuple(sorted({percentiles[round(100 * q)] for q in quantiles})) if percentiles else ()


def percentiles_of(returns: NDArray[np.float64]) -> list[float]:
    """The returns at 0, 1, ..., 100 %, by numpy's linear quantiles: 101 numbers, from which `resolve` reads."""
    return [float(np.quantile(returns, percent / 100)) for percent in range(101)]


def resolve(targets: Sequence[float | str], percentiles: Sequence[float]) -> tuple[float, ...]:
    """Target returns as numbers, in the order they were given.

    targets: numbers, or texts as in `check_target`: pN is the data's return at N %, max its highest, and Sx is
        minimum + S (maximum - minimum).
    percentiles: the data's `percentiles_of`; empty where a run knows no data.

    Raises:
        ConfigError: a text that is not a target, or one that needs the data's returns where they are not known.
    """
    return tuple(_resolve(target, percentiles) for target in targets)


def _resolve(target: float | str, percentiles: Sequence[float]) -> float:
    check_target(target)
    number = number_of(target)
    if number is not None:
        return number
    require(len(percentiles) == 101, f"target_return {target}: the run does not know its data's returns; give a number")
    if target == "max":
        return percentiles[100]
    if match := PERCENTILE.fullmatch(str(target)):
        return percentiles[int(match[1])]
    share = SHARE.fullmatch(str(target))
    assert share is not None
    return percentiles[0] + float(share[1]) * (percentiles[100] - percentiles[0])
