"""What the readers of recordings share: what they found, how much may be read, arrays put one after the other."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.fields import Columns, listed
from envs.reading.readers import MOST_GROWTH, SMALL


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader makes of a file or folder.

    arrays: by the names of `envs.reading.fields.FIELDS`, in the form that `envs.from_arrays` takes.
    unread: names that were ignored.
    notes: what else is to be said of the file.
    last_row_is_final: the last row of each episode holds an observation only.
    left_out: observations that the user leaves out and that were not read.
    metadata: the text of an array of that name; None where there is none.
    missing: by field and column the rows of a table in which nothing is.
    rows: the row of each step, if the rows of a table were put in another order.
    witnesses: numbers or names of columns that were ignored, for `envs.reading.evidence`.
    alike: ignored arrays of the observations' shape, by their argument of --columns, for `envs.reading.unnamed_next`.
    """

    arrays: dict[str, Any]
    unread: Sequence[str] = ()
    notes: Sequence[str] = ()
    last_row_is_final: bool = False
    left_out: Sequence[str] = ()
    metadata: str | None = None
    missing: Mapping[tuple[str, str], NDArray[np.int64]] = field(default_factory=dict)
    rows: NDArray[np.int64] | None = None
    witnesses: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    alike: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Budget:
    """The bytes of numbers that may still be read of one file or folder."""

    def __init__(self, where: Path, size: int):
        """size: bytes that the file, or all files of the folder, take on disk."""
        self._where, self._size = where, size
        self._most = self._left = max(SMALL, MOST_GROWTH * size)

    def take(self, name: str, count: int) -> None:
        """Take so many bytes for an array, or raise `DataError` with its name."""
        self._left -= count
        if self._left < 0:
            raise DataError(
                f"{self._where}: {name}: more than {self._most >> 20} MB in all, "
                f"which no file of {self._size} bytes should hold"
            )


def side_by_side(where: str, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array as it is; several, each (N,) or (N, k), as one vector a step: (N, K)."""
    if len(arrays) == 1:
        return arrays[0]
    shapes = [array.shape for array in arrays]
    if any(len(shape) not in (1, 2) or shape[0] != shapes[0][0] for shape in shapes):
        raise DataError(f"{where}: shapes {', '.join(map(str, shapes))} do not make one vector a step")
    return np.column_stack(arrays)


def chosen_names(where: str, names: Sequence[str], columns: Columns, usual: Mapping[str, str]) -> dict[str, list[str]]:
    """By field, the names that hold it: those that the user says, else the usual one where it is there.

    usual: by field the name that the layout gives it.
    """
    chosen = {name: [known] for name, known in usual.items() if known in names and name not in columns}
    for name, wanted in columns.items():
        if missing := [each for each in wanted if each not in names]:
            raise DataError(f"{where}: no {missing[0]!r} in it, only {listed(sorted(names))}")
        chosen[name] = list(wanted)
    return chosen


def size_of(shape: Sequence[int], kind: np.dtype[Any]) -> int:
    """Bytes of an array."""
    return math.prod(shape) * kind.itemsize


def unread_names(names: Iterable[str], read: Iterable[str]) -> list[str]:
    """Names that were not read; of a group of arrays, all but those that were."""
    read = set(read)
    inside = {name: sorted(each for each in read if each.startswith(f"{name}/")) for name in set(names) - read}
    return sorted(name + (f" (but for {listed(parts, 2)})" if parts else "") for name, parts in inside.items())
