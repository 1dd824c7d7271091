"""Arrays of an HDF5 file, opened with care: it may be damaged, lead elsewhere or declare gigabytes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.fields import listed
from envs.reading.readers import as_numbers, most_bytes, too_much
from envs.reading.unknown import way_for_content
from envs.spaces import reason

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""What an HDF5 file begins with, or has at byte 512, 1024, 2048, ..."""


METADATA_BYTES = 1 << 20
"""Memory that HDF5 may keep for headers and indices of what was read; an episode is read only once.

Left to itself it keeps more and more of them. They are small and stand between arrays that are freed, so the memory of
those cannot be used again: reading 400 MB took 180 MB.
"""


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The file, for reading; `DataError` where it is none, or damaged."""
    import h5py

    if path.is_file() and path.stat().st_size:
        _check_free_lists(path)
    try:
        with h5py.File(path, "r") as file:
            _keep_little_metadata(file)
            file.most_bytes = most_bytes(path)
            file.bytes_left = file.most_bytes  # bytes of numbers that may still be read, all arrays together
            file.bytes_stored = path.stat().st_size  # bytes that arrays may still take in the file
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:  # h5py's, where a file is damaged
        raise DataError(f"{path}: cannot be read ({reason(error)}){way_for_content(path)}") from None


def _keep_little_metadata(file: Any) -> None:
    config = file.id.get_mdc_config()
    config.set_initial_size = True
    config.initial_size = config.min_size = config.max_size = METADATA_BYTES
    file.id.set_mdc_config(config)


def _check_free_lists(path: Path) -> None:
    """Refuse a file in which a list of free places leads back into itself: HDF5 2.0 follows it until memory ends.

    A group's names lie in a local heap (HDF5's file format, III.D), and the list runs through its unused bytes.
    """
    with path.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:

        def number(at: int, width: int) -> int:
            return int.from_bytes(data[at : at + width], "little")

        begin = next((at for at in (0, *(512 << i for i in range(32))) if data[at : at + 8] == HDF5_SIGNATURE), None)
        if begin is None:
            return  # which HDF5 says better
        widths = begin + (13 if number(begin + 8, 1) < 2 else 9)
        offset, length = number(widths, 1), number(widths + 1, 1)  # bytes of an address and of a size in this file
        end, bytes_left = 1, len(data)
        for at in _places(data, b"HEAP"):
            size, free = number(at + 8, length), number(at + 8 + length, length)
            names, seen = begin + number(at + 8 + 2 * length, offset), set[int]()
            while free != end and free not in seen and free + 2 * length <= size and names + free < len(data):
                seen.add(free)
                free = number(names + free, length)
            bytes_left -= 2 * length * len(seen)
            if free in seen or bytes_left < 0:
                raise DataError(f"{path}: damaged: the free places of a group's names lead back into themselves")


def _places(data: mmap, word: bytes) -> Iterator[int]:
    """Where four bytes stand, not in order; to compare numbers takes half the time of looking for bytes."""
    number, length = int.from_bytes(word, "little"), 1 << 18  # which a processor's cache holds
    for start in range(0, len(data), length):
        piece = data[start : start + length + 3]
        for shift in range(min(4, len(piece))):
            words = np.frombuffer(piece, "<u4", (len(piece) - shift) // 4, shift)
            yield from (start + shift + 4 * np.flatnonzero(words == number)).tolist()


def numbers_at(file: Any, path: Path, name: str) -> NDArray[Any]:
    """The numbers of an array, by its path in the file; `DataError` names file and array."""
    return numbers_of(file, node_at(file, path, name), path, name)


def numbers_of(file: Any, node: Any, path: Path, name: str) -> NDArray[Any]:
    """The numbers of an array that `node_at` has found."""
    if node.dtype.kind not in "biuf":  # said before anything is read
        raise DataError(f"{path}: {name}: type {node.dtype}, expected numbers")
    numbers = as_numbers(values_of(file, node, path, name), f"{path}: {name}")
    file.bytes_left -= numbers.nbytes
    if file.bytes_left < 0:
        raise DataError(f"{path}: {name}, with what is read before it: {too_much(path)}")
    return numbers


def values_of(file: Any, node: Any, path: Path, name: str) -> NDArray[Any]:
    """All that an array holds, numbers or not; refused where that is more than the file should."""
    import h5py

    shape, kind, chunks = node.shape, node.dtype, node.chunks
    numbers = max(math.prod(shape or ()), math.prod(chunks or ()))  # a piece may be declared larger than the whole
    if numbers * kind.itemsize > file.most_bytes:
        raise DataError(f"{path}: {name}: shape {shape} of {kind}: {too_much(path)}")
    try:
        if kind.kind not in "biuf" or not numbers:
            return np.asarray(node[()])
        array = np.empty(shape, kind)
        node.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array)  # as node[()] does, in half the time
        return array
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: {name}: cannot be read ({reason(error)})") from None


def node_at(parent: Any, path: Path, name: str, below: str = "") -> Any:
    """The array of this name, reached only by hard links and with all its numbers in this file.

    below: the array's path below the parent; all of its name if that is the file.
    """
    import h5py

    node = follow(parent, path, name, below or name)
    if not isinstance(node, h5py.Dataset):
        inside = listed(sorted(map(str, node))) if isinstance(node, h5py.Group) else ""
        paths = (
            ",".join(f"{name}/{part}" for part in inside.split(", ")) if "more" not in inside else f"{name}/NAME,..."
        )
        way = f"; --columns FIELD={paths} makes one vector of them" if inside else ""
        raise DataError(f"{path}: {name}: a group of {inside or 'nothing'}, expected an array{way}")
    if node.external or node.is_virtual:
        raise DataError(f"{path}: {name}: its numbers are in another file, expected the data itself")
    return node


def follow(parent: Any, path: Path, name: str, below: str) -> Any:
    """What is at this path below a group, reached only by hard links. name: what is looked for, for the error."""
    import h5py

    node = parent
    for part in below.split("/"):
        try:
            kind = node.id.links.get_info(part.encode()).type
            node = _opened(node, part) if kind == h5py.h5l.TYPE_HARD else None
        except (KeyError, ValueError, AttributeError, OSError, RuntimeError, TypeError):
            raise DataError(f"{path}: {name}: missing") from None
        if node is None:
            raise DataError(f"{path}: {name}: {part!r} is a link elsewhere, expected the data itself")
    return node


def _opened(group: Any, part: str) -> Any:
    """`group[part]`, in a third of the time where it is an array."""
    import h5py

    try:
        return h5py.Dataset(h5py.h5d.open(group.id, part.encode()))
    except (KeyError, ValueError, OSError, RuntimeError, TypeError):
        return group[part]
