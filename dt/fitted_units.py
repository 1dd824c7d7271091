"""Which units a leaf's recorded numbers need; most leaves need none (see `dt.units`)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dt.units import LARGEST, Units
from envs.datasets.statistics import Statistics, statistics, without_marks

FEW_BITS = 256
"""Where a column's mean is this many times its standard deviation, too few of float32's 24 bits are left for it."""

SMALLEST_STD = 1e-6
"""Columns that vary less than this are measured in their own unit."""

ACTION_RANGE = (1e-3, 1e3)
"""Half widths of an action's numbers that enter the model as they are."""

WIDE_BOUNDS = 100
"""Bounds this many times wider than the recorded actions say nothing of them, and count as none."""

OUTSIDE = 10
"""Play may go this many times as far from the mean as the data does; what is further counts as that far."""


def observation_units(data: NDArray[Any], found: Statistics | None = None) -> Units | None:
    """The units of recorded observations (N, *leaf); None where float32 holds all columns as they are.

    found: the statistics of the data, where they are known already.
    """
    found, marks = without_marks(data, found or statistics(data))
    lost = _is_wide(data) & (np.abs(found.mean) > FEW_BITS * found.std)
    odd = ~np.isnan(marks) | (found.reach > LARGEST) | (~found.constant & (lost | (found.std < SMALLEST_STD)))
    return _units(odd, found.mean, found.spread, found)


def action_units(
    data: NDArray[Any], low: NDArray[np.float64], high: NDArray[np.float64], bounded: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], Units | None]:
    """How recorded actions (N, *leaf) are measured: which columns keep their bounds, centers, half widths, `Units`.

    low, high: the space's bounds, (*leaf,). bounded: columns that the space bounds at both ends.
    The half width of a column without bounds is its standard deviation.
    """
    found = statistics(data)
    with np.errstate(invalid="ignore"):  # bounds at infinity, which are none
        middle, half = low / 2 + high / 2, high / 2 - low / 2
    spread = np.where(found.constant, np.maximum(found.reach, 1.0), (found.high / 2 - found.low / 2))
    bounded = bounded & (half <= WIDE_BOUNDS * spread)
    center = np.where(bounded, middle, found.mean)
    unit = np.where(bounded, half, found.spread)
    smallest, largest = ACTION_RANGE
    lost = _is_wide(data) & (np.abs(center) > FEW_BITS * unit)
    varies = bounded | ~found.constant
    odd = (np.maximum(np.abs(center), unit) > largest) | (varies & (lost | (unit < smallest)))
    return bounded, center, unit, _units(odd, center, unit, found)


def _is_wide(data: NDArray[Any]) -> bool:
    """Whether the type has more digits than float32."""
    return data.dtype.itemsize > (4 if data.dtype.kind == "f" else 2)


def _units(
    odd: NDArray[np.bool_], offset: NDArray[np.float64], unit: NDArray[np.float64], found: Statistics
) -> Units | None:
    if not np.any(odd):
        return None
    offset, unit = np.where(odd, offset, 0.0), np.where(odd, unit, 1.0)
    with np.errstate(over="ignore"):
        reach = np.maximum(np.abs(found.low - offset), np.abs(found.high - offset)) / unit
    limit = np.where(odd, np.clip(OUTSIDE * reach, OUTSIDE, LARGEST), LARGEST)
    return Units(np.asarray(offset), np.asarray(unit), np.asarray(limit))
