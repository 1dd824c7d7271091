"""Arrays of numbers in an HDF5 file, read where they lie: the library's calls for an array cost more than its numbers.

Links are the library's; an array's header, and the list of its pieces, are read here (HDF5 file format specification
3.0, III.A.1 and IV). Only what is plain, and laid out as the library does it unless it is asked for something else:
without a filter, all of it in this very file. The rest, what is broken included, is left to those who look closer.
"""

import math
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

NOTHING, SHAPE, TYPE, OLD_FILL, FILL, LAYOUT, CHANGED = 0, 1, 3, 4, 5, 8, 18
"""Messages of a plain array's header; a filter's, or a list of other files, is none of them."""

CONTIGUOUS, CHUNKED = 1, 2
"""Layouts whose numbers lie in the file, in one piece or in equal ones."""

NOWHERE = 2**64 - 1
"""The address of what does not exist."""

HEADER = struct.Struct("<BxHIIxxxx")  # version, messages, links to it, bytes of the messages
MESSAGE = struct.Struct("<HHBxxx")  # kind, bytes, flags
NODE = struct.Struct("<4sBBHQQ")  # of a tree of pieces: signature, kind, level, entries, neighbours

MOST_HEADER = 1024
"""Bytes of a header: a plain one has some 270."""

ERRORS = (
    *(LookupError, ValueError, ArithmeticError, OSError, RuntimeError, TypeError, AttributeError, MemoryError),
    struct.error,
)
"""What the library and the readers below raise where a file is not as they expect."""


class PlainArrays:
    """The plain arrays of each episode's group."""

    def __init__(self, file: Any, raw: BinaryIO, names: Iterable[str]):
        """file: as h5py has it, opened to read. raw: its bytes. names: where arrays are, below an episode's group."""
        import h5py

        self._h5py, self._root, self._raw = h5py, file.id, raw
        self._size = raw.seek(0, 2)
        self._tree: dict[bytes, Any] = {}  # {b"observations": {b"arm": {}}}
        for name in names:
            inside = self._tree
            for part in name.split("/"):
                inside = inside.setdefault(part.encode(), {})
        self._types: dict[bytes, np.dtype[Any] | None] = {}  # what each type's message means
        made = file.id.get_create_plist()
        ours = made.get_userblock() == 0 and made.get_sizes() == (8, 8)  # addresses count from the file's first byte
        self._links = self._hard_links(self._root) if ours else {}
        self.unknown = ""  # what stands beside the arrays that were asked for, where it should not

    def read(self, group: str) -> dict[str, NDArray[Any]]:
        """The plain ones of a group, by their names below it."""
        found: dict[str, NDArray[Any]] = {}
        self.unknown = ""
        if group.encode() in self._links:
            self._read_below(self._root, group.encode(), self._tree, "", found)
        return found

    def _read_below(
        self, parent: Any, group: bytes, tree: dict[bytes, Any], prefix: str, found: dict[str, Any]
    ) -> None:
        try:
            below = self._h5py.h5g.open(parent, group)
            links = self._hard_links(below)
            if prefix and (unknown := links.keys() - tree.keys()):
                expected = ", ".join(sorted(name.decode() for name in tree))
                self.unknown = f"{prefix[:-1]}: {min(unknown).decode()!r} in it, expected {expected}"
            for name in (name for name in tree if name in links):  # in Minari's own order: one after the other on disk
                where = prefix + name.decode()
                if tree[name]:
                    self._read_below(below, name, tree[name], f"{where}/", found)
                elif (array := self._array(below, name, links[name])) is not None:
                    found[where] = array
        except ERRORS:
            return  # whatever is wrong is said by those who look closer

    def _hard_links(self, group: Any) -> dict[bytes, int]:
        """Names in a group, and the addresses of what they stand for."""
        links: dict[bytes, Any] = {}
        group.links.iterate(lambda name, link: links.__setitem__(name, (link.type, link.u)), info=True)
        return {name: address for name, (kind, address) in links.items() if kind == self._h5py.h5l.TYPE_HARD}

    def _array(self, group: Any, name: bytes, address: int) -> NDArray[Any] | None:
        try:
            messages = self._messages(address)
            if messages is None:
                return None
            space, layout = messages[SHAPE], messages[LAYOUT]
            kind = self._type(messages[TYPE], group, name)
            if kind is None or (space[0], layout[0]) != (1, 3):
                return None
            shape = struct.unpack_from(f"<{space[1]}Q", space, 8)
            if not 0 < math.prod(shape) * kind.itemsize <= self._size:  # nor has it more pieces than the file bytes
                return None
            if layout[1] == CONTIGUOUS:
                return self._numbers(shape, kind, *struct.unpack_from("<QQ", layout, 2))
            return self._pieces(shape, kind, layout) if layout[1] == CHUNKED else None
        except ERRORS:  # a side of 0, an address past any file
            return None

    def _messages(self, address: int) -> dict[int, bytes] | None:
        """The messages of an object's header, by kind; None where one says more than is understood here."""
        block = self._at(address, MOST_HEADER)
        version, count, _, size = HEADER.unpack_from(block)
        found: dict[int, bytes] = {}
        start = HEADER.size
        if version != 1:
            return None
        for _ in range(count):
            kind, length, flags = MESSAGE.unpack_from(block, start)
            start += MESSAGE.size
            if kind not in (NOTHING, SHAPE, TYPE, OLD_FILL, FILL, LAYOUT, CHANGED) or flags & 2:  # 2: it is elsewhere
                return None
            found[kind] = block[start : start + length]
            start += length
        return found if start == HEADER.size + size else None

    def _type(self, message: bytes, group: Any, name: bytes) -> np.dtype[Any] | None:
        """The type of an array, as the library reads that message; None where numpy has no such numbers."""
        if message not in self._types:
            stored = self._h5py.h5d.open(group, name).get_type()
            kind = stored.dtype
            same = kind.kind in "biuf" and self._h5py.h5t.py_create(kind, logical=True).equal(stored)
            self._types[message] = kind if same else None
        return self._types[message]

    def _pieces(self, shape: tuple[int, ...], kind: np.dtype[Any], layout: bytes) -> NDArray[Any] | None:
        """An array in equal pieces, all of which are listed in one node of a tree."""
        rank = len(shape)
        (tree, *sides) = struct.unpack_from(f"<Q{rank}I", layout, 3)
        count = math.prod(-(-length // side) for length, side in zip(shape, sides, strict=True))
        entry = struct.Struct(f"<II{rank + 2}Q")  # bytes, filters passed over, place and 0, address
        node = self._at(tree, NODE.size + count * entry.size)
        if layout[2] != rank + 1 or NODE.unpack_from(node) != (b"TREE", 1, 0, count, NOWHERE, NOWHERE):
            return None
        array = np.empty(shape, kind)
        places = set()
        for i in range(count):
            size, filters, *place, _, address = entry.unpack_from(node, NODE.size + i * entry.size)
            if filters or any(at % side or at >= length for at, side, length in zip(place, sides, shape, strict=True)):
                return None
            piece = self._numbers(tuple(sides), kind, address, size)
            if piece is None or piece.shape == shape:
                return piece
            part = array[tuple(slice(at, at + side) for at, side in zip(place, sides, strict=True))]
            part[...] = piece[tuple(map(slice, part.shape))]  # a piece at the end reaches past it
            places.add(tuple(place))
        return array if len(places) == count else None

    def _numbers(self, shape: tuple[int, ...], kind: np.dtype[Any], address: int, size: int) -> NDArray[Any] | None:
        """What lies at an address in so many bytes, if that is what this shape needs."""
        array = np.empty(shape, kind)
        self._raw.seek(address)
        return array if self._raw.readinto(array.data) == size else None  # type: ignore[attr-defined]

    def _at(self, address: int, size: int) -> bytes:
        self._raw.seek(address)
        return self._raw.read(size)
