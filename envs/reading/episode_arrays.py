"""Arrays of an HDF5 file that keeps each episode apart, put one after the other: what robomimic and d3rlpy share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.found import Budget, size_of
from envs.reading.hdf5 import node_at, values_of
from envs.reading.readers import as_numbers


class EpisodeArrays:
    """The arrays of an HDF5 file, read episode by episode into one array a field."""

    def __init__(self, file: Any, path: Path):
        self._file, self._path = file, path
        self._budget = Budget(path, path.stat().st_size)

    def rows(self, names: Sequence[str]) -> list[int]:
        """How many rows each of these arrays has."""
        return [self._node(name).shape[0] for name in names]

    def stacked(self, names: Sequence[str], rows: Sequence[int], like: str) -> NDArray[Any]:
        """These arrays one after the other: (sum of rows, ...).

        rows: how many each must have. like: which array says so, for the error.
        """
        nodes = [self._node(name) for name in names]
        first = nodes[0]
        for name, node, count in zip(names, nodes, rows, strict=True):
            if node.shape[1:] != first.shape[1:] or node.dtype != first.dtype:
                raise DataError(
                    f"{self._path}: {name}: {node.dtype} of shape {node.shape}, "
                    f"expected {first.dtype} of shape {(count, *first.shape[1:])} as {names[0]} has it"
                )
            if node.shape[0] != count:
                raise DataError(f"{self._path}: {name}: {node.shape[0]} rows, {like} has {count}")
            self._budget.take(name, size_of(node.shape, node.dtype))
        joined = np.empty((sum(rows), *first.shape[1:]), first.dtype.newbyteorder("="))
        at = 0
        for name, node in zip(names, nodes, strict=True):
            joined[at : at + len(node)] = as_numbers(
                values_of(self._file, node, self._path, name), f"{self._path}: {name}"
            )
            at += len(node)
        return joined

    def number(self, name: str) -> Any:
        """One number that stands by itself in the file."""
        node = node_at(self._file, self._path, name)
        if node.shape not in ((), (1,)) or node.dtype.kind not in "biuf":
            raise DataError(f"{self._path}: {name}: {node.dtype} of shape {node.shape}, expected one number")
        return values_of(self._file, node, self._path, name).reshape(())[()]

    def _node(self, name: str) -> Any:
        node = node_at(self._file, self._path, name)
        if node.dtype.kind not in "biuf":
            raise DataError(f"{self._path}: {name}: type {node.dtype}, expected numbers")
        if node.shape is None or len(node.shape) == 0:
            raise DataError(f"{self._path}: {name}: one number, expected a row for each step")
        return node


def group_names(file: Any, path: Path, name: str = "") -> list[str]:
    """What is in a group that is reached by hard links; nothing where there is no such group."""
    import h5py

    group = file
    for part in name.split("/") if name else []:
        try:
            hard = group.id.links.get_info(part.encode()).type == h5py.h5l.TYPE_HARD
            group = group[part] if hard else None
        except (KeyError, ValueError, AttributeError, OSError, RuntimeError, TypeError):
            return []
        if not isinstance(group, h5py.Group):
            return []
    return [each for each in group if isinstance(each, str)]
