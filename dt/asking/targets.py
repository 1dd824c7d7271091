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
    return tuple(sorted({float(np.quantile(returns, q)) for q in (QUANTILES if conditioned else QUANTILES[-1:])}))


def default_targets_of(known: Sequence[float]) -> tuple[float, ...]:
    """The default targets of a conditioned model, from the data's `percentiles`; none where they are not known."""
    return tuple(sorted({known[round(100 * q)] for q in QUANTILES})) if known else ()


def percentiles(returns: NDArray[np.float64]) -> list[float]:
    """The returns at 0, 1, ..., 100 %, by numpy's linear quantiles: 101 numbers, from which `resolve` reads."""
    return [float(np.quantile(returns, percent / 100)) for percent in range(101)]


def resolve(targets: Sequence[float | str], known: Sequence[float]) -> tuple[float, ...]:
    """Target returns as numbers, in the order they were given.

    targets: numbers, or texts as in `check_target`: pN is the data's return at N %, max its highest, and Sx is
        minimum + S (maximum - minimum).
    known: the data's `percentiles`; empty where a run knows no data.

    Raises:
        ConfigError: a text that is not a target, or one that needs the data's returns where they are not known.
    """
    return tuple(_resolve(target, known) for target in targets)


def _resolve(target: float | str, known: Sequence[float]) -> float:
    check_target(target)
    number = number_of(target)
    if number is not None:
        return number
    require(len(known) == 101, f"target_return {target}: the run does not know its data's returns; give a number")
    if target == "max":
        return known[100]
    if match := PERCENTILE.fullmatch(str(target)):
        return known[int(match[1])]
    share = SHARE.fullmatch(str(target))
    assert share is not None
    return known[0] + float(share[1]) * (known[100] - known[0])
