"""Arrays that may be larger than memory: written row by row, mapped from files, and looked at piece by piece."""

import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.spaces import reason

WRITTEN = 1 << 20
"""Bytes of rows that are written at once: to open a file costs more than an episode's few rows."""

CHUNK = 1 << 16
"""Numbers of an array that are looked at together where all of them might be too much for memory."""


class CacheError(Exception):
    """The cache cannot be written; the message says why."""


def cache_folder() -> Path:
    """Where entries are. A user without a home folder, as in a container, raises `CacheError`."""
    named = os.environ.get("DECISION_TRANSFORMER_CACHE")
    if named:
        return Path(named)
    places = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, below_home = places.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    if root := os.environ.get(variable):
        return Path(root) / "decision-transformer"
    try:
        return Path.home() / below_home / "decision-transformer"
    except RuntimeError:
        raise CacheError("this user has no home folder; DECISION_TRANSFORMER_CACHE names a place") from None


class Column:
    """Rows that come piece by piece and lie one after the other in the end: in a file of a folder, or in memory."""

    def __init__(self, folder: Path | None):
        self._path = None if folder is None else new_file(folder)
        self._chunks: list[NDArray[Any]] = []  # what has come, apart from what is in the file
        self._bytes = 0  # of them
        self._type: np.dtype[Any] | None = None  # of what is in the file
        self._rows = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Put rows (n, ...) behind those that are there; a file that cannot take them raises `CacheError`."""
        self._chunks.append(rows)
        self._bytes += rows.nbytes
        if self._path is not None and self._bytes > WRITTEN:
            self._write(self._path)

    def _write(self, path: Path) -> None:
        rows = np.concatenate(self._chunks)
        self._shape = rows.shape[1:]
        wide = rows.dtype if self._type is None else np.result_type(self._type, rows.dtype)
        try:
            if self._type not in (None, wide):
                array(path, self._type, (self._rows, *self._shape)).astype(wide).tofile(path)
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(rows, wide).data)
        except OSError as error:
            raise CacheError(f"{path.parent}: {reason(error)}") from None
        self._type, self._rows, self._bytes = wide, self._rows + len(rows), 0
        self._chunks.clear()

    def finish(self) -> NDArray[Any]:
        """All rows as one array, which the file backs where there is one."""
        if self._path is None:
            return np.concatenate(self._chunks)
        if self._chunks:
            self._write(self._path)
        return array(self._path, self._type, (self._rows, *self._shape))


def new_file(folder: Path) -> Path:
    """An empty file in the folder; `CacheError` where there cannot be one."""
    try:
        descriptor, name = tempfile.mkstemp(suffix=".bin", dir=folder)
    except OSError as error:
        raise CacheError(f"{folder}: {reason(error)}") from None
    os.close(descriptor)
    return Path(name)


def array(path: Path, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A file's numbers, mapped into memory, not to be written to."""
    if 0 in shape:
        return np.empty(shape, kind)
    return np.memmap(path, kind, "r", shape=shape)


def allocate_like(shape: tuple[int, ...], kind: Any, like: NDArray[Any]) -> NDArray[Any]:
    """An array to fill; a nameless file backs it where one backs `like`, which may be larger than memory.

    The file is in the cache's folder, or among the system's temporary files where that one is full or read-only.
    Without room in either the array is in memory.
    """
    if not isinstance(like, np.memmap) or 0 in shape:
        return np.empty(shape, kind)
    for place in (cache_folder, lambda: Path(tempfile.gettempdir())):
        try:
            place().mkdir(parents=True, exist_ok=True)
            return _nameless(place(), shape, kind)
        except (CacheError, OSError):
            continue
    return np.empty(shape, kind)


def _nameless(folder: Path, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    with tempfile.TemporaryFile(dir=folder) as file:
        size = math.prod(shape) * np.dtype(kind).itemsize
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now and no crash later
        return np.memmap(file, kind, "r+", shape=shape)


def chunks(data: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The array's rows, so many at a time as hold about `CHUNK` numbers."""
    count = max(1, CHUNK // max(1, data[:1].size))
    return (data[i : i + count] for i in range(0, len(data), count))


def mean_std(data: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation over the rows, in float64, without a second array of that size: each (...)."""
    mean = np.asarray(data.mean(axis=0, dtype=np.float64))
    squares = sum(np.square(rows - mean).sum(axis=0) for rows in chunks(data))
    return mean, np.sqrt(squares / len(data))
