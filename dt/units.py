"""How recorded numbers become float32 without losing what matters: the offset is subtracted in float64.

float32 keeps 24 bits: of seconds since 1970 it keeps multiples of 128, and numbers beyond 1e38 not at all. A leaf with
such a column has `Units`. Its data, its observations in play and its actions all pass through them. So does a column in
which a value such as -999999 marks missing numbers: it would be most of the standard deviation. Other leaves have no
units and are used as recorded.

numpy only: `dt export` copies this file next to the model, where nothing else of this package is installed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Leaves = Mapping[str, NDArray[Any]]

LARGEST = 1e30
"""The largest number that is handed to a model as float32, and the largest that data may hold without units."""


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


def encoded(leaves: Leaves, units: Mapping[str, Units]) -> dict[str, NDArray[Any]]:
    """Recorded leaves as the model sees them; floats without units are cut off at what float32 computes with."""
    return {
        name: units[name].encode(array)
        if name in units
        else np.clip(array, -LARGEST, LARGEST)
        if array.dtype.kind == "f" and array.dtype.itemsize > 2
        else array
        for name, array in leaves.items()
    }
