"""Tianshou's HDF5 (Weng et al. 2022): what `ReplayBuffer.save_hdf5` and `VectorReplayBuffer.save_hdf5` write.

The arrays obs, act, rew, terminated, truncated, done and obs_next have a row for each place of the buffer, whether it
was filled or not. They are in the group `_meta`, or in the file itself. Which places are filled, and which was
written last, is said by the attributes `maxsize`, `_size` and `_insertion_idx` (`_index` before version 2), and of a
buffer for several environments by the arrays `_offset`, `_lengths` and `last_index`.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.episode_arrays import group_names
from envs.reading.fields import Columns, listed
from envs.reading.found import Budget, Found
from envs.reading.hdf5 import numbers_at

NAMES = {
    "observations": "obs",
    "actions": "act",
    "rewards": "rew",
    "terminated": "terminated",
    "truncated": "truncated",
    "done": "done",
    "next_observations": "obs_next",
}
"""What Tianshou calls each field."""

NEEDED = ("obs", "act", "rew")
"""The arrays that every buffer has."""

SIZES = ("maxsize", "_size")
"""Attributes that say how many places a buffer has, and how many of them are filled."""

IGNORED_FIELDS = ("_meta", "_indices", "_offset", "_extend_offset", "_lengths", "last_index", "buffers", "options")
"""What a buffer keeps for itself."""


def is_tianshou(file: Any, path: Path) -> bool:
    """Whether an HDF5 file is a buffer of Tianshou's."""
    top = group_names(file, path)
    names = {*top, *group_names(file, path, "_meta")}
    return set(NEEDED) <= names and ("_meta" in top or any(name in file.attrs for name in SIZES))


def read_tianshou(file: Any, path: Path, columns: Columns) -> Found:
    """The rows that were filled, in the order in which they were; episodes end at flags and where a buffer does."""
    if columns:
        raise DataError(f"{path}: Tianshou's fields have names of their own; leave out --columns")
    top = group_names(file, path)
    prefix = "_meta/" if "obs" not in top else ""
    inside = group_names(file, path, "_meta") if prefix else top
    budget = Budget(path, path.stat().st_size)
    chosen = {field: name for field, name in NAMES.items() if name in inside}
    arrays = {field: _tree(file, path, f"{prefix}{name}", budget) for field, name in chosen.items()}
    capacity = len(_leaves(arrays["rewards"])[0])
    for field, name in chosen.items():
        _check_rows(f"{path}: {prefix}{name}", arrays[field], capacity)
    if capacity == 0:
        raise DataError(f"{path}: the buffer has no place for a step")
    parts = _filled(file, path, top, capacity)
    order = np.concatenate([rows for rows, _ in parts])
    if len(order) == 0:
        raise DataError(f"{path}: the buffer is empty")
    arrays = {field: _taken(array, order) for field, array in arrays.items()}
    ended = np.zeros(len(order), np.bool_)
    for field in ("terminated", "truncated", "done"):
        if field in arrays:
            ended |= np.asarray(arrays[field]).reshape(len(order), -1).any(1)
    ended[np.cumsum([len(rows) for rows, _ in parts]) - 1] = True
    lengths = np.diff(np.flatnonzero(ended) + 1, prepend=0)
    notes = []
    if len(order) < capacity:
        notes.append(f"{capacity - len(order)} of the buffer's {capacity} places were never filled; they are not read")
    if full := sum(wrapped for _, wrapped in parts):
        notes.append(f"{full} of {len(parts)} buffers are full: the first episode of each may lack its beginning")
    unread = [name for name in inside if name not in NAMES.values() and name not in IGNORED_FIELDS]
    return Found(arrays={**arrays, "lengths": lengths}, unread=unread, notes=notes)


def _tree(file: Any, path: Path, name: str, budget: Budget) -> Any:
    """An array, or a dictionary of those of a group."""
    if below := group_names(file, path, name):
        return {each: _tree(file, path, f"{name}/{each}", budget) for each in below}
    array = numbers_at(file, path, name)
    if array.ndim == 0:
        raise DataError(f"{path}: {name}: one number, expected a row for each step")
    budget.take(name, array.nbytes)
    return array


def _check_rows(where: str, value: Any, rows: int) -> None:
    for array in _leaves(value):
        if len(array) != rows:
            raise DataError(f"{where}: shape {array.shape}, expected {rows} rows as rew has")


def _leaves(value: Any) -> list[NDArray[Any]]:
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    return [value]


def _taken(value: Any, rows: NDArray[np.int64]) -> Any:
    if isinstance(value, Mapping):
        return {key: _taken(part, rows) for key, part in value.items()}
    return value[rows]


def _filled(file: Any, path: Path, names: list[str], capacity: int) -> list[tuple[NDArray[np.int64], bool]]:
    """For each buffer its filled rows, oldest first, and whether it is full and was written over."""
    size = _attribute(file, path, "maxsize", capacity)
    if size != capacity:
        raise DataError(f"{path}: maxsize is {size}, rew has {capacity} rows")
    if "_offset" not in names:
        if _attribute(file, path, "buffer_num", 1) != 1:
            raise DataError(f"{path}: a buffer for several environments without _offset and _lengths")
        used = _attribute(file, path, "_size", capacity)
        after = _attribute(file, path, "_insertion_idx", _attribute(file, path, "_index", used % capacity))
        return [_ring(f"{path}: _size", 0, capacity, used, after)]
    offsets, counts, last = (numbers_at(file, path, name) for name in ("_offset", "_lengths", "last_index"))
    shapes = {array.shape for array in (offsets, counts, last)}
    if len(shapes) > 1 or offsets.ndim != 1 or len(offsets) == 0:
        raise DataError(f"{path}: _offset, _lengths and last_index: expected one number for each environment")
    if any(array.dtype.kind not in "iu" for array in (offsets, counts, last)):
        raise DataError(f"{path}: _offset, _lengths and last_index: expected whole numbers")
    bounds = [*map(int, offsets), capacity]
    if bounds[0] != 0 or sorted(set(bounds)) != bounds:
        raise DataError(f"{path}: _offset: {listed([str(each) for each in bounds[:-1]])}, expected rising from 0")
    parts = []
    for i, (start, stop) in enumerate(pairwise(bounds)):
        capacity = stop - start
        after = (int(last[i]) - start + 1) % capacity
        parts.append(_ring(f"{path}: _lengths[{i}]", start, capacity, int(counts[i]), after))
    return [(rows, wrapped) for rows, wrapped in parts if len(rows)] or parts[:1]


def _ring(where: str, start: int, capacity: int, used: int, after: int) -> tuple[NDArray[np.int64], bool]:
    """The filled rows of one ring, oldest first. after: the place where the next row would go."""
    if not 0 <= used <= capacity:
        raise DataError(f"{where} is {used}, expected 0 to {capacity}")
    if not 0 <= after <= capacity or (used < capacity and after != used):
        raise DataError(f"{where} is {used}, and the next place is {after}")
    rows = np.arange(used, dtype=np.int64)
    if used == capacity:
        rows = np.roll(rows, -(after % capacity))
    return rows + start, used == capacity and after % capacity != 0


def _attribute(file: Any, path: Path, name: str, default: int) -> int:
    """A whole number among the file's attributes."""
    try:
        value = file.attrs.get(name, default)
        number = int(value)
        if number != value:
            raise ValueError
    except (ValueError, TypeError, OSError, OverflowError, RuntimeError, KeyError):
        raise DataError(f"{path}: its attribute {name} is not a whole number") from None
    return number
