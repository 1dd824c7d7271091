"""Arrays from anywhere as numpy arrays of numbers, and where their numbers are wrong."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.datasets.array_files import chunks
from envs.errors import DataError
from envs.reading.readers import as_numbers
from envs.spaces import Leaves, choices, reason

SQUARE = (
    "; name one of several columns; where each row of the array is an episode, from Python: envs.from_episodes("
    "{'observations': o[:n], 'actions': a[:n], 'rewards': r[:n]} for o, a, r, n in zip(..., lengths)), which leaves "
    "padding out, and where each column is one, swap the axes before"
)
"""What to do about numbers that have an axis too many."""


def as_array(where: str, value: Any) -> NDArray[Any]:
    """The value as an array. where: what an error names."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # lists of lists of several lengths
        raise DataError(f"{where}: no array ({reason(error)})") from None


def nested_arrays(where: str, value: Any) -> Any:
    """A dictionary or tuple of arrays of numbers, or one of them."""
    if isinstance(value, Mapping):
        return {key: nested_arrays(f"{where}/{key}", part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(nested_arrays(f"{where}/{i}", part) for i, part in enumerate(value))
    array = as_numbers(as_array(where, value), where)
    if array.ndim == 0:
        raise DataError(f"{where}: one number, expected an array")
    return array


def one_column(where: str, value: Any, names: bool = False) -> NDArray[Any]:
    """(N,) numbers, or names; (N, 1) is taken too, as replay buffers have it."""
    array = as_array(where, value)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1 or len(array) == 0:
        raise DataError(f"{where}: shape {array.shape}, expected (N,) with N at least 1{SQUARE * (array.ndim > 1)}")
    return array if names else as_numbers(array, where)


def as_flags(where: str, value: Any) -> NDArray[np.bool_]:
    """(N,) of true and false, or of 1 and 0, as booleans."""
    array = one_column(where, value)
    odd = (array != 0) & (array != 1)
    if odd.any():
        raise DataError(f"{where}: {array[odd.argmax()]} at {int(odd.argmax())}, expected true or false")
    return array.astype(np.bool_)


def num_rows(value: Any) -> int:
    """Rows of an array, or of the first one of a dictionary or tuple."""
    if isinstance(value, dict | tuple):
        return num_rows(next(iter(value.values() if isinstance(value, dict) else value)))
    return len(value)


def num_steps(arrays: Mapping[str, Any]) -> int:
    """How many rows a recording has: those of its rewards, or of its actions if it has no rewards."""
    if "rewards" in arrays:
        return len(one_column("rewards", arrays["rewards"]))
    rows = num_rows(nested_arrays("actions", arrays["actions"]))
    if rows == 0:
        raise DataError("actions: no step in it")
    return rows


def offsets_of(lengths: Any) -> NDArray[np.int64]:
    """Where each episode begins and the last one ends, (E + 1,), from the episodes' lengths (E,)."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def type_problem(where: str, array: NDArray[Any], space: Space[Any]) -> Iterator[str]:
    """What is wrong with the type of a leaf's numbers: only a Box of floats takes floats."""
    if array.dtype.kind not in ("f" if np.dtype(space.dtype).kind == "f" else "iub"):
        yield f"{where}: type {array.dtype}, the space says {space.dtype}"
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        yield f"{where}: type {array.dtype}, at most float64 is taken"


def place(offsets: NDArray[np.int64], row: int) -> str:
    """Which episode and step a row of the flat arrays is, in words."""
    episode = int(np.searchsorted(offsets, row, side="right")) - 1
    return f"episode {episode}, step {row - int(offsets[episode])}"


def in_file(row: int, rows: NDArray[np.int64] | None) -> int:
    """The number, from 1, that a step's row has in its file. rows: as in `Header`."""
    return (row if rows is None else int(rows[row])) + 1


def how_many(wrong: NDArray[np.bool_]) -> str:
    """What a message adds to the first wrong row: how many rows are wrong."""
    return f", the first of {int(wrong.sum())}" if wrong.sum() > 1 else ""


def not_finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the array is NaN or infinite; integers, such as pictures, are not looked through.

    Where nothing is, the answer is one False: the whole answer might be too much for memory.
    """
    if array.dtype.kind != "f" or all(np.isfinite(rows).all() for rows in chunks(array)):
        return np.zeros(1, np.bool_)
    return ~np.isfinite(array)


def beyond(array: NDArray[Any], space: Space[Any]) -> NDArray[np.bool_]:
    """Where the array is beyond a Box's bounds, or none of the choices of another leaf; as `outside` says it."""
    if isinstance(space, spaces.Box):
        return outside(array, space.low, space.high)
    counts, start = (x.reshape(space.shape) for x in choices(space))
    return outside(array, start, start + counts - 1)


def outside(array: NDArray[Any], low: Any, high: Any) -> NDArray[np.bool_]:
    """Where the array is below `low` or above `high`; where nothing is, one False, as in `not_finite`."""
    if array.min() >= np.max(low) and array.max() <= np.min(high):  # forty times as quick as column by column
        return np.zeros(1, np.bool_)
    if (array.min(0) >= low).all() and (array.max(0) <= high).all():
        return np.zeros(1, np.bool_)
    return np.asarray((array < low) | (array > high))


def row_problems(where: str, leaves: Leaves, rows: list[int], kinds: Mapping[str, Space[Any]]) -> Iterator[str]:
    """What is wrong with the leaves' shapes. rows: how many are right; all leaves have the same one of them."""
    if all(0 in (leaf.shape or ()) for leaf in kinds.values()):
        shapes = ", ".join(str(array.shape) for array in leaves.values())
        yield f"{where}: shape {shapes}, expected at least one number a step"
        return
    for name, leaf in kinds.items():
        expected = [(count, *(leaf.shape or ())) for count in rows]
        label = where if len(leaves) == 1 else f"{where}/{name}"
        if leaves[name].shape in expected:
            rows = [len(leaves[name])]
        else:
            yield f"{label}: shape {leaves[name].shape}, expected {' or '.join(map(str, expected))}"
