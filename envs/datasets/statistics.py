"""Range, mean and standard deviation of each column of an array, and which columns never vary. numpy only."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets.array_files import chunks, mean_std

ROUNDING = 4
"""A column is constant where its range is at most this many units in the last place of its own type."""


SMALLEST_SQUARED = 1e-150
"""Numbers below this have squares that float64 does not hold."""


FAR = 1000
"""A value that occurs again and again, so many standard deviations of the others away, marks what is missing."""

SAMPLE = 1000
"""Rows that show whether a column may hold such a mark."""


@dataclass(frozen=True)
class Statistics:
    """Of an array (N, *shape) over its rows; each (*shape,), in float64."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    constant: NDArray[np.bool_]  # where the numbers differ by rounding at most

    @property
    def reach(self) -> NDArray[np.float64]:
        """The largest absolute value of each column."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def spread(self) -> NDArray[np.float64]:
        """What to divide by: the standard deviation; of a constant column 1, or what its rounding is small against."""
        return np.asarray(np.where(self.constant, np.maximum(1.0, self.reach / 1024), self.std))


def statistics(data: NDArray[Any]) -> Statistics:
    """The statistics of an array (N, *shape), read in pieces, since a file that is larger than memory may back it."""
    low, high = (np.asarray(data[0]) for _ in range(2))
    for rows in chunks(data):
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    constant = never_varies(low, high)
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = mean_std(data)
    if (~np.isfinite(std) | (std < SMALLEST_SQUARED) & ~constant).any():  # the squares are no float64s
        mean, std = _scaled_moments(data, np.maximum(np.abs(low), np.abs(high)))
    return Statistics(low, high, mean, std, constant)


def never_varies(low: Any, high: Any) -> NDArray[np.bool_]:
    """Where the least and the most of a column are one number but for rounding in its own type."""
    low, high = np.asarray(low), np.asarray(high)
    if low.dtype.kind != "f":
        return np.asarray(low == high)
    with np.errstate(over="ignore"):
        return np.asarray(high - low <= ROUNDING * np.spacing(np.maximum(np.abs(low), np.abs(high))))


def _scaled_moments(data: NDArray[Any], reach: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of numbers with squares beyond float64."""
    unit = np.where(reach > 0, reach, 1.0)
    mean = sum((rows / unit).sum(axis=0) for rows in chunks(data)) / len(data)
    squares = sum(np.square(rows / unit - mean).sum(axis=0) for rows in chunks(data))
    return np.asarray(mean * unit), np.asarray(np.sqrt(squares / len(data)) * unit)


def without_marks(data: NDArray[Any], found: Statistics) -> tuple[Statistics, NDArray[np.float64]]:
    """Statistics of the numbers that are no marks of missing ones, such as -999999, and those marks, NaN where none.

    A mark is the least or the most of its column (*shape,), occurs at least twice and in at most half of the rows, and
    is `FAR` standard deviations of the other numbers away from them.
    """
    flat = data.reshape(len(data), -1)
    columns = {name: np.array(values).ravel() for name, values in vars(found).items()}
    marks = np.full(flat.shape[1], np.nan)
    for end in ("low", "high"):
        for column in _maybe_marked(flat, columns, columns[end]):
            values = np.asarray(flat[:, column], np.float64)
            rest = values[values != columns[end][column]]
            are_marks = 2 <= len(values) - len(rest) <= len(values) / 2
            with np.errstate(over="ignore", invalid="ignore"):
                mean, std = rest.mean(), rest.std()
            if are_marks and not never_varies(rest.min(), rest.max()) and abs(columns[end][column] - mean) > FAR * std:
                marks[column] = columns[end][column]
                for name, value in (("low", rest.min()), ("high", rest.max()), ("mean", mean), ("std", std)):
                    columns[name][column] = value
    shape = found.low.shape
    return replace(found, **{name: x.reshape(shape) for name, x in columns.items()}), marks.reshape(shape)


def _maybe_marked(flat: NDArray[Any], columns: dict[str, NDArray[Any]], marks: NDArray[np.float64]) -> list[int]:
    """Columns in which other numbers than the mark of each vary far less than all do, by some of the rows."""
    sample = np.asarray(flat[:: max(1, len(flat) // SAMPLE)], np.float64)
    others = sample != marks
    count = np.maximum(others.sum(axis=0), 1)
    reach = np.maximum(np.abs(sample).max(axis=0), 1e-300)
    scaled = np.where(others, sample, 0) / reach
    mean = scaled.sum(axis=0) / count
    std = np.sqrt((np.where(others, scaled - mean, 0) ** 2).sum(axis=0) / count) * reach
    return [int(column) for column in np.flatnonzero(~columns["constant"] & (std < columns["std"] / 10))]


def is_rounded(data: NDArray[Any]) -> bool:
    """Whether an array (N, *shape) has a column of whole numbers, some of them beyond what float64 holds exactly."""
    if data.dtype.kind not in "iuf" or data.dtype.itemsize < 8 or not data.size:
        return False
    whole, reach = np.ones(data.shape[1:], np.bool_), np.zeros(data.shape[1:])
    for rows in chunks(data):
        reach = np.maximum(reach, np.abs(rows.astype(np.float64)).max(axis=0))
        whole &= (rows == np.floor(rows)).all(axis=0) if data.dtype.kind == "f" else True
        if not whole.any():
            return False
    return bool((whole & (reach > 2.0**53) & (reach < 2.0**64)).any())
