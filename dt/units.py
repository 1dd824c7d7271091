"""How recorded numbers become float32 without losing what matters: the offset is subtracted in float64. numpy only.

float32 keeps 24 bits: of seconds since 1970 it keeps multiples of 128, and numbers beyond 1e38 not at all. A leaf with
such a column has `Units`. Its data, its observations in play and its actions all pass through them. So does a column in
which a value such as -999999 marks missing numbers: it would be most of the standard deviation. Other leaves have no
units and are used as recorded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets.statistics import Statistics, statistics, without_marks
from envs.spaces import Leaves

LARGEST = 1e30
"""The largest number that is handed to a model as float32, and the largest that data may hold without units."""

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


@dataclass(frozen=True)
class Units:
    """Numbers of a leaf as (x - offset) / unit; each field (*leaf,), in float64."""

    offset: NDArray[np.float64]
    unit: NDArray[np.float64]
    limit: NDArray[np.float64]  # the largest absolute value that is passed on, in these units

    def encode(self, values: Any) -> NDArray[np.float32]:
        """Recorded numbers (..., *leaf) as the float32 numbers that the model sees."""
        with np.errstate(over="ignore"):
            scaled = (np.asarray(values, np.float64) - self.offset) / self.unit
        return np.asarray(np.clip(scaled, -self.limit, self.limit), np.float32)

    def decode(self, values: Any) -> NDArray[np.float64]:
        """The model's numbers (..., *leaf) in the unit of the recording: the inverse of `encode`."""
        return np.asarray(np.asarray(values, np.float64) * self.unit + self.offset)

    @property
    def plain(self) -> NDArray[np.bool_]:
        """Columns that stay as they are recorded."""
        return np.asarray((self.offset == 0) & (self.unit == 1))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, for a run's description."""
        return {name: np.asarray(values).tolist() for name, values in vars(self).items()}

    @staticmethod
    def from_json(document: Any, shape: tuple[int, ...]) -> "Units":
        """The inverse of `to_json`; `ValueError` where it does not hold finite numbers of this shape."""
        if not isinstance(document, Mapping) or document.keys() != {"offset", "unit", "limit"}:
            raise ValueError("units: expected offset, unit and limit")
        try:
            arrays = {name: np.array(values, np.float64) for name, values in document.items()}
        except TypeError:
            raise ValueError("units: expected numbers") from None
        for name, array in arrays.items():
            if array.shape != shape or not np.isfinite(array).all() or (name != "offset" and (array <= 0).any()):
                raise ValueError(f"units: {name} of shape {array.shape}, expected finite numbers of shape {shape}")
        return Units(**arrays)


@dataclass(frozen=True)
class ModelUnits:
    """The units of a model's leaves, by their names; leaves that are used as recorded have none."""

    observations: Mapping[str, Units] = field(default_factory=dict)
    actions: Mapping[str, Units] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, for a run's description; nothing where all is used as recorded."""
        return {
            kind: {name: units.to_json() for name, units in leaves.items()}
            for kind, leaves in vars(self).items()
            if leaves
        }


def encoded(leaves: Leaves, units: Mapping[str, Units]) -> Leaves:
    """Recorded leaves as the model sees them; floats without units are cut off at what float32 computes with."""
    return {
        name: units[name].encode(array)
        if name in units
        else np.clip(array, -LARGEST, LARGEST)
        if array.dtype.kind == "f" and array.dtype.itemsize > 2
        else array
        for name, array in leaves.items()
    }


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
