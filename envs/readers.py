"""Files of recorded episodes: one reader for each format. A reader says what a file holds; `envs.datasets` judges it.

Minari's folders (HDF5 and Arrow), D4RL's flat HDF5, `.npz`, CSV and Parquet. A recording is data and nothing else: no
environment is built, no pickle loaded and no module imported because a file asked for it.
"""

import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.fields import ENDS, FIELDS, IN_ARRAYS, NEEDED, Columns, choose, listed, looks_like_an_end
from envs.fields import DataError as DataError  # which most take from here
from envs.scores import Reference, reference_for
from envs.spaces import LEAF_KINDS, Leaves, SpaceError, leaf_spaces, printable, reason, space_from_json
from envs.worlds import EnvironmentSpec, WorldError

PACKAGED = Path(__file__).parent / "data"
"""Datasets that ship with the package: `hopper/replay-v0` is `hopper-replay-v0.npz`."""

SPACES = ("observation_space", "action_space")
"""A recording's spaces, as Minari's metadata calls them."""

OWN_METADATA = "the dataset's own metadata"
"""Where reference returns come from that a dataset brings along."""

TOLD = ("description", "algorithm_name", "recorded")
"""What metadata tells of how a recording was made: Minari's words, and `recorded`, an object of ours."""

PART = "part-{:06d}"
"""Folder of each part of a recording that is still growing, by its number."""

REPEATED = "repeated"
"""In Minari's metadata as `final_observations`: the last row of each episode's observations is no observation."""


SMALL, MOST_GROWTH = 64 << 20, 300
"""A file may hold `SMALL` bytes of numbers, or `MOST_GROWTH` times its own size where that is more: pictures compressed
a hundredfold are usual, and a file that grows ten thousandfold is meant to fill the memory."""

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes of compressed files."""

ARROW = b"ARROW1"
"""The first and the last bytes of an Arrow file."""

INTERLEAVED = "rows of episodes were interleaved: each episode's were put together, in the order that they had"
"""A note on a table in which several episodes were written side by side."""

ROWS = 1 << 16
"""Rows of a table that are read at once."""

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""What an HDF5 file begins with, or has at byte 512, 1024, 2048, ..."""

MOST_METADATA = 16 << 20
"""Characters of metadata: the bounds of a picture's space may need a few millions."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a recording beside its numbers."""

    name: str
    source: Path | str
    spaces: Mapping[str, Space[Any]]  # those of `SPACES` that anybody declares
    inferred: tuple[str, ...] = ()  # those of `SPACES` that are there because the numbers say so
    environment: EnvironmentSpec | None = None
    reference: Reference | None = None
    num_episodes: int | None = None  # as the metadata has it
    num_steps: int | None = None  # the same
    repeats_final: bool = False  # the final observations are no observations: they fill up Minari's layout
    notes: tuple[str, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)  # those of `TOLD`
    missing: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)  # of a table's columns the rows of no number
    rows: NDArray[np.int64] | None = None  # of a table whose rows were put in another order, the row of each step
    labels: tuple[str, ...] = ()  # what the file calls each episode, where some were left out


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode as its file has it, not yet looked at."""

    label: str
    observations: Leaves
    actions: Leaves
    rewards: NDArray[Any]
    terminations: NDArray[Any]
    truncations: NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        flags = (self.rewards, self.terminations, self.truncations)
        return sum(array.nbytes for array in (*self.observations.values(), *self.actions.values(), *flags))


def find(source: str, download: bool = False) -> Path:
    """The file or folder that a user means by a path or a Minari id; one that is nowhere raises `DataError`."""
    if not source:
        raise DataError("no dataset named")
    path = Path(source)
    if path.exists():
        if not path.is_dir():
            _check_is_file(path)  # a pipe or a device may never end
        return path
    if path.suffix.lower() in READERS or path.is_absolute() or ".." in path.parts or source.startswith("~"):
        raise DataError(f"{source}: no such file or folder")
    shipped = PACKAGED / f"{source.replace('/', '-')}.npz"
    if shipped.exists():
        return shipped
    root = minari_root()
    if not (root / source / "data").is_dir() and download:
        _download(source)
    if not (root / source / "data").is_dir():
        raise DataError(
            f"{source}: no such file or folder, and no dataset of that id in {root} (--download fetches it)"
        )
    return root / source


def minari_root() -> Path:
    """Where Minari keeps its datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets"))


def _download(dataset_id: str) -> None:
    import minari

    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # the hub's clients raise errors of many kinds
        raise DataError(f"{dataset_id}: cannot be downloaded ({reason(error)})") from None


# Minari's folders: episodes one by one, below their metadata.


def read_folder(folder: Path, given: Mapping[str, Space[Any]]) -> tuple[Header, Iterator[RecordedEpisode | DataError]]:
    """A Minari dataset's folder, or one of parts that are such: what a recorder has stored so far.

    given: spaces by name, instead of the metadata's own.
    """
    if not (folder / "metadata.json").exists() and (files := flat_files(folder)):
        kinds = " ".join(f"{folder}/*{kind}" for kind in sorted({path.suffix for path in files}))
        raise DataError(f"{folder}: a folder of files, which are named one by one: {kinds}")
    parts = sorted(folder.glob(PART.format(0)[:-6] + "[0-9]" * 6))
    if not parts:
        return read_minari(folder, given)
    headers, episodes = zip(*(read_minari(part, given) for part in parts), strict=True)
    counts = {name: [getattr(header, name) for header in headers] for name in ("num_episodes", "num_steps")}
    totals = {name: None if None in each else sum(each) for name, each in counts.items()}
    return replace(headers[-1], source=folder, **totals), chain.from_iterable(episodes)


def read_minari(folder: Path, given: Mapping[str, Space[Any]]) -> tuple[Header, Iterator[RecordedEpisode | DataError]]:
    """A Minari dataset's folder: an episode that cannot be read comes as the error that says why.

    given: spaces by name, instead of the metadata's own.
    """
    data = folder / "data" if (folder / "data").is_dir() else folder
    path = data / "metadata.json"
    _check_inside(path, folder)
    metadata = _metadata(path)
    layout = metadata.get("data_format", "hdf5")
    source = data / "main_data.hdf5" if layout == "hdf5" else data
    if layout == "hdf5":
        _check_inside(source, folder)
    else:
        _check_all_inside(data, data)
    for name in SPACES:
        if name not in metadata and name not in given:
            raise DataError(f"{path}: no {name}")
    header = _header(str(path), source, metadata, given)
    counts = {name: metadata.get(name) for name in ("total_episodes", "total_steps")}
    for name, count in counts.items():
        if count is not None and (type(count) is not int or count < 1):
            raise DataError(f"{path}: {name} is {_short(count)}, expected a whole number of at least 1")
    header = replace(header, num_episodes=counts["total_episodes"], num_steps=counts["total_steps"])
    header = replace(header, repeats_final=metadata.get("final_observations") == REPEATED)
    if layout == "hdf5":
        return header, _hdf5_episodes(header, source)
    if layout == "arrow":
        return header, _arrow_episodes(header, data)
    raise DataError(f"{path}: data_format {layout!r} is not known; 'hdf5' and 'arrow' are")


def _hdf5_episodes(header: Header, path: Path) -> Iterator[RecordedEpisode | DataError]:
    names = {
        field: _hdf5_names(header.spaces[kind], field)
        for field, kind in zip(("observations", "actions"), SPACES, strict=True)
    }
    kinds = [leaf_spaces(header.spaces[kind]) for kind in SPACES]
    flags = ("rewards", "terminations", "truncations")
    with _hdf5_file(path) as file:
        room, plainly = most_bytes(path), path.stat().st_size
        numbers = {name: name.removeprefix("episode_") for name in file if name.startswith("episode_")}
        for name, number in numbers.items():
            if not number.isdecimal() or len(number) > 18:
                raise DataError(f"{path}: {name}: not an episode's name")
        named = {int(number): name for name, number in numbers.items()}
        if twice := numbers.keys() - set(named.values()):
            raise DataError(f"{path}: {min(twice)}: the same episode as {named[int(numbers[min(twice)])]}")
        plain = _PlainArrays(file, [*names["observations"].values(), *names["actions"].values(), *flags])
        for _, group in sorted(named.items()):
            found = plain.read(group)
            plainly -= sum(array.nbytes for array in found.values())
            if plainly < 0:
                raise DataError(
                    f"{path}: {group}: more numbers than the file has bytes: some stand for several episodes"
                )
            read = partial(_hdf5_leaf, file, path, group, found)
            try:
                if plain.unknown:
                    raise DataError(f"{path}: {group}/{plain.unknown}")
                rewards, terminations, truncations = (read(name) for name in flags)
                observations, actions = (
                    {leaf: read(name, spaces[leaf]) for leaf, name in inside.items()}
                    for inside, spaces in zip(names.values(), kinds, strict=True)
                )
            except DataError as error:
                yield error
                continue
            episode = RecordedEpisode(group, observations, actions, rewards, terminations, truncations)
            room -= episode.nbytes
            if room < 0:
                raise DataError(f"{path}: {group}: {_too_much(path)}")
            yield episode


class _PlainArrays:
    """Arrays of numbers in an HDF5 file, by its library's own calls: h5py's objects cost more time than the numbers.

    Only what is plain: reached by hard links alone, without a filter, all of it in this very file. The rest, what is
    broken included, is left to those who look closer.
    """

    FILTERED_OR_ELSEWHERE = 1 << 11 | 1 << 7
    """Messages of an object's header (HDF5's file format, IV.A.2): a filter pipeline, a list of external files."""

    def __init__(self, file: Any, names: Iterable[str]):
        """names: where the arrays are, below each episode's group."""
        import h5py

        self._h5py, self._root = h5py, file.id
        self._tree: dict[bytes, Any] = {}  # {b"observations": {b"arm": {}}}
        for name in names:
            inside = self._tree
            for part in name.split("/"):
                inside = inside.setdefault(part.encode(), {})
        self._types: dict[bytes, tuple[Any, np.dtype[Any]]] = {}  # the type of the last array of each name
        self._links = self._hard_links(self._root)
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
            if prefix and (unknown := links - tree.keys()):
                expected = ", ".join(sorted(name.decode() for name in tree))
                self.unknown = f"{prefix[:-1]}: {min(unknown).decode()!r} in it, expected {expected}"
            for name in (name for name in tree if name in links):  # in Minari's own order: one after the other on disk
                where = prefix + name.decode()
                if tree[name]:
                    self._read_below(below, name, tree[name], f"{where}/", found)
                elif (array := self._array(below, name)) is not None:
                    found[where] = array
        except (KeyError, ValueError, OSError, RuntimeError, TypeError, AttributeError, MemoryError):
            return  # whatever is wrong is said by those who look closer

    def _array(self, parent: Any, name: bytes) -> NDArray[Any] | None:
        h5 = self._h5py
        node = h5.h5d.open(parent, name)
        if h5.h5o.get_info(node).hdr.mesg.present & self.FILTERED_OR_ELSEWHERE:
            return None
        stored, shape = node.get_type(), node.shape
        known = self._types.get(name)
        if known is None or not known[0].equal(stored):
            known = self._types[name] = stored, stored.dtype  # to work a type out is slower than to compare it
        kind = known[1]
        size = math.prod(shape) * kind.itemsize
        if kind.kind not in "biuf" or size == 0 or node.get_storage_size() < size:
            return None
        array = np.empty(shape, kind)
        node.read(h5.h5s.ALL, h5.h5s.ALL, array, stored)
        return array

    def _hard_links(self, group: Any) -> set[bytes]:
        kinds: dict[bytes, int] = {}
        group.links.iterate(lambda name, link: kinds.__setitem__(name, link.type), info=True)
        return {name for name, kind in kinds.items() if kind == self._h5py.h5l.TYPE_HARD}


def _arrow_episodes(header: Header, data: Path) -> Iterator[RecordedEpisode | DataError]:
    """A folder for each episode, by its number, whole columns of which become arrays."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{data}: reading Arrow needs pyarrow: pip install 'minari[arrow]'") from None
    count = header.num_episodes
    if count is None:
        count = sum(path.name.isdecimal() for path in data.iterdir())
    for folder in (data / str(number) for number in range(count)):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such episode, metadata.json says {header.num_episodes}")
        try:
            yield _arrow_episode(header, folder)
        except DataError as error:
            yield error
        except (pyarrow.ArrowException, OSError, IndexError, UnicodeDecodeError) as error:
            yield DataError(f"{folder}: cannot be read as Arrow ({reason(error)})")


def _arrow_episode(header: Header, folder: Path) -> RecordedEpisode:
    """One episode's folder. Minari makes actions and flags as long as the observations by one more row."""
    names = [name for name in os.listdir(folder) if name.endswith(".arrow")]
    if not names:
        raise DataError(f"{folder}: no .arrow file in it")
    names.sort(key=lambda name: (len(name), name))  # part-2 before part-10
    batches = [batch for name in names for batch in _arrow_batches(folder / name)]

    def arrays(name: str, space: Space[Any] | None) -> list[NDArray[Any]]:
        leaves = [list(_arrow_leaves(f"{folder}: {name}", space, column(batch, name))) for batch in batches]
        return leaves[0] if len(leaves) == 1 else [np.concatenate(parts) for parts in zip(*leaves, strict=True)]

    def column(batch: Any, name: str) -> Any:
        try:
            return batch.column(name)
        except KeyError:
            names = batch.schema.names
            many = "two columns" if name in names else "no column"
            raise DataError(f"{folder}: {many} {name!r} in it, only {listed(names)}") from None

    if not batches:
        raise DataError(f"{folder}: no row in it")
    seen, done = (
        dict(zip(leaf_spaces(header.spaces[space]), arrays(name, header.spaces[space]), strict=True))
        for name, space in zip(("observations", "actions"), SPACES, strict=True)
    )
    flags = [arrays(name, None)[0][:-1] for name in ("rewards", "terminations", "truncations")]
    return RecordedEpisode(f"episode_{folder.name}", seen, {name: array[:-1] for name, array in done.items()}, *flags)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """The record batches of an Arrow file, none of them unpacked: what is compressed may grow a thousandfold."""
    from pyarrow import ipc, py_buffer

    content = path.read_bytes()  # many files are small, and to map one costs more than to read it
    if not (content.startswith(ARROW) and content.endswith(ARROW)):
        ipc.open_file(content)  # says what is wrong with it
    messages = iter(ipc.MessageReader.open_stream(py_buffer(content).slice(8)))
    schema = ipc.read_schema(next(messages, None) or content)
    for message in messages:
        if message.type != "record batch":
            raise DataError(f"{path}: a {message.type} in it, expected columns of numbers")
        if _is_compressed(message.metadata.to_pybytes()):
            raise DataError(f"{path}: compressed, which Minari's files are not")
        batch = ipc.read_record_batch(message, schema)
        batch.validate()  # that no column reaches past its bytes
        yield batch


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message's record batch names a compression: its fourth field (Arrow's Message.fbs)."""

    def field(table: int, number: int) -> int:
        """Where a field of a flatbuffer's table is; 0 where it is left out."""
        fields = table - int.from_bytes(metadata[table : table + 4], "little", signed=True)
        entry, size = fields + 4 + 2 * number, int.from_bytes(metadata[fields : fields + 2], "little")
        offset = int.from_bytes(metadata[entry : entry + 2], "little") if entry < fields + size else 0
        return table + offset if offset else 0

    def pointed(at: int) -> int:
        return at + int.from_bytes(metadata[at : at + 4], "little")

    batch = field(pointed(0), 2)
    return bool(batch and field(pointed(batch), 3))


def _arrow_leaves(where: str, space: Space[Any] | None, column: Any) -> Iterator[NDArray[Any]]:
    """An array for each leaf of a space, in the order of `leaf_spaces`; None is one number a row."""
    import pyarrow

    if isinstance(space, spaces.Dict | spaces.Tuple):
        types = pyarrow.types
        named = dict(space.spaces if isinstance(space, spaces.Dict) else enumerate(space.spaces))
        there = {field.name for field in column.type} if types.is_struct(column.type) else set()
        if unknown := there - set(map(str, named)):
            raise DataError(f"{where}: {min(unknown)!r} in it, expected {', '.join(map(str, named))}")
        for key, child in named.items():
            try:
                inner = column.field(str(key))  # Tuple children are named by their numbers
            except (KeyError, AttributeError):
                raise DataError(f"{where}/{key}: missing") from None
            yield from _arrow_leaves(f"{where}/{key}", child, inner)
    else:
        yield _arrow_array(where, column, (space.shape if space else None) or (), space)


def _arrow_array(where: str, column: Any, shape: tuple[int, ...], space: Space[Any] | None) -> NDArray[Any]:
    """A column of numbers, of lists of as many as the shape holds, or of JPEG pictures: (rows, *shape)."""
    import pyarrow

    types = pyarrow.types
    kind, rows, inside = column.type, len(column), column
    if types.is_binary(kind) and len(shape) >= 2 and space is not None and space.dtype == np.uint8:
        return _pictures(where, (np.frombuffer(frame or b"", np.uint8) for frame in column.to_pylist()), shape)
    if types.is_fixed_size_list(kind):
        inside = column.values.slice(column.offset * kind.list_size, rows * kind.list_size)
    elif types.is_list(kind):
        inside = column.flatten()
    if column.null_count or inside.null_count:
        raise DataError(f"{where}: nothing in a place, expected numbers")
    if not (types.is_integer(inside.type) or types.is_floating(inside.type) or types.is_boolean(inside.type)):
        raise DataError(f"{where}: type {kind}, expected numbers")
    numbers = np.array(inside.to_numpy(zero_copy_only=False))  # a copy: the file is let go
    if len(numbers) != rows * math.prod(shape):
        raise DataError(f"{where}: {len(numbers)} numbers in {rows} rows, expected {math.prod(shape)} a row")
    return numbers.reshape(rows, *shape)


def _hdf5_names(space: Space[Any], prefix: str = "") -> dict[str, str]:
    """Where Minari keeps each leaf, below the field's own name: Dict children by key, Tuple children as _index_i."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        names: list[str] = []
        for key, child in named:
            inner = key if isinstance(space, spaces.Dict) else f"_index_{key}"
            names += _hdf5_names(child, f"{prefix}/{inner}").values()
        return dict(zip(leaf_spaces(space), names, strict=True))
    return dict.fromkeys(leaf_spaces(space), prefix)


def _hdf5_leaf(
    file: Any, path: Path, group: str, plain: Mapping[str, NDArray[Any]], name: str, space: Space[Any] | None = None
) -> NDArray[Any]:
    """One array of an episode; pictures are JPEG where the array has fewer axes than raw ones would have.

    plain: those that have been read already.
    """
    shape = (space.shape if space else None) or ()
    where, rank = f"{group}/{name}", len(shape)
    picture = space is not None and space.dtype == np.uint8 and rank >= 2
    if name in plain and not picture:
        return as_numbers(plain[name], f"{path}: {where}")
    if picture and (node := _hdf5_node(file, path, where)).ndim <= rank:
        return _pictures(f"{path}: {where}", _hdf5_values(node, path, where), shape)
    return _hdf5_array(file, path, where)


def _pictures(where: str, encoded: Iterable[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Minari's JPEG pictures, each a row of bytes, as (T, *shape)."""
    from PIL import Image

    pictures = []
    for row, data in enumerate(encoded):
        try:
            image = Image.open(io.BytesIO(np.asarray(data, np.uint8).tobytes()), formats=["JPEG"])
            # one of another size is not unpacked: it may be a thousand times as large
            picture = np.asarray(image) if (image.height, image.width) == shape[:2] else None
        except Exception as error:  # a damaged picture makes Pillow raise errors of many kinds
            raise DataError(f"{where}: row {row} is no JPEG picture ({reason(error)})") from None
        if picture is None or picture.shape != shape:
            found = (image.height, image.width, *((len(image.getbands()),) * (image.mode != "L")))
            raise DataError(f"{where}: row {row}: a picture of shape {found}, expected {shape}")
        pictures.append(picture)
    return np.stack(pictures) if pictures else np.empty((0, *shape), np.uint8)


# Flat files: one array a field, all episodes one after the other.


def read_flat(path: Path, given: Mapping[str, Space[Any]], columns: Columns) -> tuple[Header, dict[str, Any]]:
    """A flat file as arrays by the names of `FIELDS`.

    given: spaces by name, instead of the metadata's own. columns: which names of the file hold which field.
    """
    if not is_flat(path):
        if path.suffix.lower() in PACKED:
            raise DataError(f"{path}: compressed; unpack it first")
        raise DataError(
            f"{path}: neither a Minari dataset's folder nor a file that is known here: {', '.join(READERS)}"
        )
    arrays, unread = READERS[path.suffix.lower()](path, columns)
    ends = [name for name in unread if looks_like_an_end(name)]
    told = arrays.keys() & {"episode", "lengths"} or columns.keys() & ENDS
    if ends and not told:  # two episodes might be taken for one
        raise DataError(
            f"{path}: {ends[0]!r} looks like an end of episodes and is not read: "
            "--columns says which are terminated, truncated or done"
        )
    metadata = arrays.pop("metadata", None)
    parsed = {} if metadata is None else _parse_metadata(str(path), str(metadata))
    header = _header(f"{path}: metadata", path, parsed, given)
    header = replace(header, missing=arrays.pop("missing", {}), rows=arrays.pop("rows", None))
    notes = [f"not read: {listed([name or 'a column without a name' for name in unread])}"] if unread else []
    notes += [INTERLEAVED] if header.rows is not None else []
    notes += [f"{name!r} looks like an end of episodes; it is not read" for name in ends]
    return replace(header, notes=tuple(map(printable, notes))), arrays


def is_flat(path: Path) -> bool:
    """Whether a path is a flat file's, by its suffix."""
    return path.suffix.lower() in READERS


def flat_files(folder: Path) -> list[Path]:
    """The flat files in a folder; Minari's own file is none."""
    return sorted(path for path in folder.iterdir() if is_flat(path) and path.name != "main_data.hdf5")


def _read_npz(path: Path, columns: Columns) -> tuple[dict[str, Any], list[str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            usual = choose(str(path), file.files, IN_ARRAYS, columns)
            chosen = {**{field: (name,) for field, name in usual.items()}, **columns}
            if "metadata" in file.files:
                chosen["metadata"] = ("metadata",)
            arrays, room = {}, most_bytes(path)
            for field, names in chosen.items():
                for name in names:
                    if name not in file.files:
                        raise DataError(f"{path}: no {name!r} in it, only {listed(sorted(file.files))}")
                    room -= _declared_bytes(path, file.zip, name)
                    if room < 0:
                        raise DataError(f"{path}: {name}: {_too_much(path)}")
                arrays[field] = _side_by_side(path, field, [np.asarray(file[name]) for name in names])
            return arrays, _unread(file.files, chain.from_iterable(chosen.values()))
    except DataError:
        raise
    except Exception as error:  # zip, zlib and numpy's readers raise errors of many kinds where a file is damaged
        raise DataError(f"{path}: cannot be read as .npz ({reason(error)})") from None


def _side_by_side(path: Path, field: str, arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """One array as it is; several, each (N,) or (N, k), as one vector a step: (N, K)."""
    if len(arrays) == 1:
        return arrays[0]
    shapes = [array.shape for array in arrays]
    if any(len(shape) not in (1, 2) or shape[0] != shapes[0][0] for shape in shapes):
        raise DataError(f"{path}: {field}: shapes {', '.join(map(str, shapes))} do not make one vector a step")
    return np.column_stack(arrays)


def _declared_bytes(path: Path, archive: Any, name: str) -> int:
    """Bytes of an array in an .npz file, by its header, before anything makes room for it."""
    from numpy.lib import format as npy

    member = name if name in archive.namelist() else f"{name}.npy"
    with archive.open(member) as file:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
        if read is None:
            raise DataError(f"{path}: {name}: not an array of numbers")
        shape, _, kind = read(file)
        there = archive.getinfo(member).file_size - file.tell()
    if kind.hasobject:
        raise DataError(f"{path}: {name}: type {kind} is pickle, which may run any code; expected numbers")
    size = math.prod(shape) * kind.itemsize
    if size > there:
        raise DataError(f"{path}: {name}: shape {shape} of {kind}: {size} bytes declared, {there} there")
    return size


def _read_hdf5(path: Path, columns: Columns) -> tuple[dict[str, Any], list[str]]:
    """D4RL's layout (Fu et al. 2020): observations, actions, rewards, terminals, timeouts; infos are left alone."""
    with _hdf5_file(path) as file:
        names = [str(name) for name in file]  # one that is no UTF-8 comes as bytes
        usual = choose(str(path), names, IN_ARRAYS, columns)
        chosen = {**{field: (name,) for field, name in usual.items()}, **columns}
        arrays = {
            field: _side_by_side(path, field, [_hdf5_array(file, path, name) for name in each])
            for field, each in chosen.items()
        }
        return arrays, _unread(names, chain.from_iterable(chosen.values()))


def _read_table(path: Path, columns: Columns) -> tuple[dict[str, Any], list[str]]:
    """CSV or Parquet: one row a step. A vector is columns observation_0, observation_1, ..., or one of equal lists."""
    is_csv = path.suffix.lower() == ".csv"
    try:
        import pyarrow
        from pyarrow import parquet

        table = _read_csv(path) if is_csv else parquet.ParquetFile(path)
        schema = table.schema if is_csv else table.schema_arrow
        names = list(schema.names)
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataError(f"{path}: column {min(twice)!r} stands in it twice")
        stems = list(dict.fromkeys(re.sub(r"_\d+$", "", name) for name in names))
        chosen = choose(str(path), stems, FIELDS, columns)
        if "step" in chosen and not _is_of_numbers(schema, chosen["step"]):
            del chosen["step"]  # a date, which says nothing of the rows' order that could be relied on
        found = {field: _columns_of(path, names, stem, field) for field, stem in chosen.items()}
        found |= {field: _columns_named(path, names, each) for field, each in columns.items()}
        read = [name for each in found.values() for name in ([each] if isinstance(each, str) else each)]
        if not is_csv:
            table = _read_parquet(path, table, read)
    except ImportError:
        raise DataError(f"{path}: reading CSV and Parquet needs pyarrow: pip install pyarrow") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix} ({reason(error)})") from None
    if table.num_rows == 0:
        raise DataError(f"{path}: no row in it")
    missing: dict[str, NDArray[np.int64]] = {}
    arrays: dict[str, Any] = {field: _values(path, table, each, field, missing) for field, each in found.items()}
    rows = _together(path, arrays)
    if rows is not None:
        arrays = {**{field: values[rows] for field, values in arrays.items()}, "rows": rows}
        missing = {name: np.flatnonzero(np.isin(rows, nothing)) for name, nothing in missing.items()}
    return {**arrays, "missing": missing}, _unread(names, read)


def _read_csv(path: Path) -> Any:
    """A CSV's columns, separated by what its first line says: commas, semicolons or tabs."""
    from pyarrow import csv

    with path.open("rb") as file:
        head = file.readline(1 << 16)
    sign = next((sign for sign in ",;\t" if sign.encode() in head), ",")
    return csv.read_csv(path, parse_options=csv.ParseOptions(delimiter=sign))


def _together(path: Path, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.int64] | None:
    """The rows in an order in which those of an episode stand together; None where they do.

    That the rows of each were written in the order of time must be seen: in next_observations, which are compared
    later, or in steps that are evenly counted. Shuffled rows look the same otherwise.
    """
    episode = arrays.get("episode")
    if episode is None:
        return None
    starts = np.concatenate([[0], np.flatnonzero(episode[1:] != episode[:-1]) + 1])
    names, first = np.unique(episode[starts], return_index=True)
    if len(names) == len(starts):
        return None
    place = np.argsort(np.argsort(first))  # of each name, in the order of their first rows
    number = place[np.searchsorted(names, episode)]
    rows = np.argsort(number, kind="stable")
    if "next_observations" not in arrays and not _counted(arrays.get("step"), rows, number[rows]):
        again = int(starts[np.setdiff1d(np.arange(len(starts)), first)[0]])
        raise DataError(
            f"{path}: episode: {episode[again]} begins again at row {again + 1}, and neither a column step that counts "
            "evenly nor next_observations shows the order of its rows: sort them by episode, then by time "
            "(where several columns name an episode, --columns episode=ONE,OTHER)"
        )
    return rows


def _counted(step: NDArray[Any] | None, rows: NDArray[np.int64], number: NDArray[np.int64]) -> bool:
    """Whether the steps of each episode, in this order of the rows, go up by the same amount everywhere."""
    if step is None:
        return False
    gaps = np.diff(step[rows].astype(np.float64))[number[1:] == number[:-1]]
    return bool(len(gaps) and gaps.min() > 0 and np.allclose(gaps, gaps[0]))


def _numbered(columns: list[NDArray[Any]]) -> NDArray[np.int64]:
    """A number for each episode that several columns name together: (N,)."""
    number = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        index = np.unique(column, return_inverse=True)[1]
        number = np.unique(number * (index.max() + 1) + index, return_inverse=True)[1]
    return number


def _is_of_numbers(schema: Any, name: str) -> bool:
    """Whether a column of this name is there and holds numbers."""
    from pyarrow import types

    if name not in schema.names:
        return False
    kind = schema.field(name).type
    return types.is_integer(kind) or types.is_floating(kind)


def _read_parquet(path: Path, file: Any, names: list[str]) -> Any:
    """These columns, unless their numbers would fill the memory; of a text that stands in it often, one copy."""
    import pyarrow
    from pyarrow import parquet, types

    kinds = {name: file.schema_arrow.field(name).type for name in names}
    for name, kind in kinds.items():
        inner = kind.value_type if types.is_list(kind) or types.is_fixed_size_list(kind) else kind
        if types.is_nested(inner) or (inner is not kind and not types.is_primitive(inner)):
            raise DataError(f"{path}: column {name!r}: type {kind}, expected numbers")
    texts = [name for name, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind)]
    batches, room = [], most_bytes(path)
    for batch in parquet.ParquetFile(path, read_dictionary=texts).iter_batches(ROWS, columns=names):
        room -= batch.nbytes
        if room < 0:  # not asked of the file's metadata: where that is damaged, to ask ends the process
            raise DataError(f"{path}: {_too_much(path)}")
        batches.append(batch)
    schema = batches[0].schema if batches else pyarrow.schema(list(kinds.items()))
    return pyarrow.Table.from_batches(batches, schema)


def _columns_of(path: Path, names: list[str], stem: str, field: str) -> str | list[str]:
    """The column of this name, or those numbered name_0, name_1, ...; both may not be there."""
    numbered = [name for name in names if re.fullmatch(rf"{re.escape(stem)}_\d+", name)]
    if stem in names:
        if numbered:
            raise DataError(f"{path}: {stem!r} and {min(numbered)!r} are both {field}; keep one of them")
        return stem
    for i in range(len(numbered)):
        if f"{stem}_{i}" not in numbered:
            raise DataError(f"{path}: no column '{stem}_{i}', expected {stem}_0 to {stem}_{len(numbered) - 1}")
    return [f"{stem}_{i}" for i in range(len(numbered))]


def _columns_named(path: Path, names: list[str], wanted: tuple[str, ...]) -> str | list[str]:
    """The columns that a user names, of which one may stand for those that are numbered after it."""
    if len(wanted) == 1 and wanted[0] in names:
        return wanted[0]
    found: list[str] = []
    for name in wanted:
        numbered = [] if name in names else _columns_of(path, names, name, name)
        if name not in names and not numbered:
            raise DataError(f"{path}: no column {name!r}, only {listed(sorted(names))}")
        found += numbered or [name]
    return found


def _values(
    path: Path, table: Any, columns: str | list[str], field: str, missing: dict[str, NDArray[np.int64]]
) -> NDArray[Any]:
    """A field's column, or several of them side by side: (N,) or (N, K). missing: gets the rows where nothing is."""
    if not isinstance(columns, str):
        each = [_values(path, table, name, field, missing) for name in columns]
        return _numbered(each) if field == "episode" else np.stack(each, axis=1)
    values, nothing = _column(path, table.column(columns), columns, field)
    if len(nothing) and field not in (*NEEDED, "next_observations"):  # where episodes end is not known then
        raise DataError(f"{path}: row {nothing[0] + 1}, column {columns!r}: nothing there")
    if len(nothing):
        missing[columns] = nothing
    return values


def _column(path: Path, column: Any, name: str, field: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """One column, (N,), or (N, K) from lists of K numbers, zeros where nothing is, and the rows of those.

    What is no number is named by its row.
    """
    from pyarrow import types

    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _lists(path, column, name)
    nothing = np.flatnonzero(column.is_null().to_numpy())
    if types.is_null(kind):
        return np.zeros(len(column)), nothing
    if types.is_dictionary(kind):
        if len(nothing):
            raise DataError(f"{path}: row {nothing[0] + 1}, column {name!r}: nothing there")
        parts = [part.dictionary.to_numpy(zero_copy_only=False)[part.indices.to_numpy()] for part in column.chunks]
        values, kind = np.concatenate(parts), kind.value_type
    else:
        values = np.asarray(_filled(column).to_numpy())
    if field == "episode":
        return values, nothing  # a number or a name
    if types.is_string(kind) or types.is_large_string(kind):
        row = next((row for row, text in enumerate(values) if not _is_number(text)), 0)
        expected = "true or false, or 1 or 0" if field in ENDS else "a number"
        choices = "; choices are told by whole numbers, such as 0 and 1" if field == "actions" else ""
        raise DataError(f"{path}: row {row + 1}, column {name!r}: {values[row][:40]!r}, expected {expected}{choices}")
    return as_numbers(values, f"{path}: column {name!r}"), nothing


def _lists(path: Path, column: Any, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The same of a column of lists: nothing is where a list is missing, or any of its numbers."""
    from pyarrow import compute

    lengths = compute.fill_null(compute.list_value_length(column), -1).to_numpy()
    there = lengths >= 0
    size = int(lengths[there.argmax()]) if there.any() else 1
    odd = there & (lengths != size)
    if odd.any():
        row = int(odd.argmax())
        raise DataError(f"{path}: row {row + 1}, column {name!r}: {lengths[row]} numbers, expected {size}")
    inside = compute.list_flatten(column)  # of the lists that are there
    numbers = as_numbers(np.asarray(_filled(inside).to_numpy()), f"{path}: column {name!r}").reshape(-1, size)
    values = np.zeros((len(column), size), numbers.dtype)
    values[there] = numbers
    nothing = ~there
    nothing[there] = np.asarray(inside.is_null().to_numpy()).reshape(-1, size).any(1)
    return values, np.flatnonzero(nothing)


def _filled(column: Any) -> Any:
    """A column with zeros for what is missing, so that integers stay such; text and dates are refused later."""
    from pyarrow import compute, types

    kind = column.type
    if types.is_boolean(kind):
        return compute.fill_null(column, False)
    if types.is_string(kind) or types.is_large_string(kind):
        return compute.fill_null(column, "")
    return compute.fill_null(column, 0) if types.is_integer(kind) or types.is_floating(kind) else column


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


READERS = {
    ".npz": _read_npz,
    ".hdf5": _read_hdf5,
    ".h5": _read_hdf5,
    ".csv": _read_table,
    ".parquet": _read_table,
}
"""The reader of each kind of flat file, by its suffix: gives arrays by field, and the names that it left alone."""


def _unread(names: Iterable[str], read: Iterable[str]) -> list[str]:
    return sorted(set(names) - set(read))


# Metadata, which Minari's folders and .npz files share.


def spaces_from_json(text: str) -> dict[str, Space[Any]]:
    """Spaces that a user declares: JSON, or a JSON file's path; {"observation_space": ..., "action_space": ...}."""
    example = '{"action_space": {"type": "Discrete", "n": 3}}'
    is_path = not text.lstrip().startswith("{")
    if is_path and not os.path.exists(text):
        raise DataError(f"--spaces: {text[:80]}: no such file; JSON, if that is meant, is such as {example}")
    document = _metadata(Path(text)) if is_path else _parse_metadata("--spaces", text)
    if not document or document.keys() - set(SPACES):
        found = f"found {sorted(document)}, and not such as {example}"
        raise DataError(f"--spaces: expected observation_space, action_space or both, {found}")
    return declared_spaces("--spaces", document)


def declared_spaces(where: str, document: Mapping[str, Any]) -> dict[str, Space[Any]]:
    """Those of `SPACES` that a JSON object holds, each as Minari writes it."""
    return {name: _space(where, document, name) for name in SPACES if name in document}


def _metadata(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 4 * MOST_METADATA:
            raise DataError(f"{path}: {path.stat().st_size} bytes, metadata has at most {MOST_METADATA} characters")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file") from None
    return _parse_metadata(str(path), text)


def _parse_metadata(where: str, text: str) -> dict[str, Any]:
    if len(text) > MOST_METADATA:
        raise DataError(f"{where}: {len(text)} characters, metadata has at most {MOST_METADATA}")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: metadata is not JSON ({error})") from None
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: metadata is no JSON object")
    return metadata


def _header(where: str, source: Path, metadata: dict[str, Any], given: Mapping[str, Space[Any]]) -> Header:
    """What the metadata says. Spaces are read here and never by building the world."""
    specification = metadata.get("eval_env_spec") or metadata.get("env_spec")
    try:
        environment = EnvironmentSpec.from_json(specification) if specification else None
    except WorldError as error:
        raise DataError(f"{where}: {error}") from None
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if isinstance(low, int | float) and isinstance(high, int | float) and -1e300 < low < high < 1e300:
        reference: Reference | None = Reference(float(low), float(high), OWN_METADATA)
    else:
        reference = reference_for(environment.id if environment else None)
    return Header(
        name=printable(str(metadata.get("dataset_id") or source.stem))[:200],
        source=source,
        environment=environment,
        reference=reference,
        told={name: metadata[name] for name in TOLD if name in metadata},
        spaces={**declared_spaces(where, {k: v for k, v in metadata.items() if k not in given}), **given},
    )


def _space(where: str, metadata: Mapping[str, Any], name: str) -> Space[Any]:
    try:
        space = space_from_json(metadata[name])
    except SpaceError as error:
        raise DataError(f"{where}: {name}: {error}") from None
    for leaf in leaf_spaces(space).values():
        if not isinstance(leaf, LEAF_KINDS):
            kinds = ", ".join(kind.__name__ for kind in LEAF_KINDS)
            raise DataError(f"{where}: {name}: {type(leaf).__name__} is not supported; {kinds}, Dict and Tuple are")
    return space


# Small things.


@contextmanager
def _hdf5_file(path: Path) -> Iterator[Any]:
    import h5py

    if path.is_file() and path.stat().st_size:
        _check_free_lists(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:  # h5py's, where a file is damaged
        raise DataError(f"{path}: cannot be read ({reason(error)})") from None


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
        end, room, at = 1, len(data), data.find(b"HEAP", begin)
        while at >= 0:
            size, free = number(at + 8, length), number(at + 8 + length, length)
            names, seen = begin + number(at + 8 + 2 * length, offset), set[int]()
            while free != end and free not in seen and free + 2 * length <= size and names + free < len(data):
                seen.add(free)
                free = number(names + free, length)
            room -= 2 * length * len(seen)
            if free in seen or room < 0:
                raise DataError(f"{path}: damaged: the free places of a group's names lead back into themselves")
            at = data.find(b"HEAP", at + 4)


def _hdf5_array(file: Any, path: Path, name: str) -> NDArray[Any]:
    node = _hdf5_node(file, path, name)
    if node.dtype.kind not in "biuf":  # said before anything is read
        raise DataError(f"{path}: {name}: type {node.dtype}, expected numbers")
    return as_numbers(_hdf5_values(node, path, name), f"{path}: {name}")


def _hdf5_values(node: Any, path: Path, name: str) -> NDArray[Any]:
    numbers = max(node.size or 0, math.prod(node.chunks or ()))  # a piece may be declared larger than the whole
    if numbers * node.dtype.itemsize > most_bytes(path):
        raise DataError(f"{path}: {name}: shape {node.shape} of {node.dtype}: {_too_much(path)}")
    try:
        return np.asarray(node[()])
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: {name}: cannot be read ({reason(error)})") from None


def _hdf5_node(file: Any, path: Path, name: str) -> Any:
    """The array of this name, reached by hard links alone and with all its numbers in this file."""
    import h5py

    node = file
    for part in name.split("/"):
        try:
            kind = node.id.links.get_info(part.encode()).type
            node = node[part] if kind == h5py.h5l.TYPE_HARD else None
        except (KeyError, ValueError, AttributeError, OSError, RuntimeError, TypeError):
            raise DataError(f"{path}: {name}: missing") from None
        if node is None:
            raise DataError(f"{path}: {name}: {part!r} is a link elsewhere, expected the data itself")
    if not isinstance(node, h5py.Dataset):
        inside = listed(sorted(map(str, node))) if isinstance(node, h5py.Group) else ""
        raise DataError(f"{path}: {name}: a group of {inside or 'nothing'}, expected an array")
    if node.external or node.is_virtual:
        raise DataError(f"{path}: {name}: its numbers are in another file, expected the data itself")
    return node


def _check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: neither a file nor a folder")


def _check_inside(path: Path, folder: Path) -> None:
    """Refuse a file of a dataset's folder that is a link to what lies outside, or no file at all."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path}: a link to what lies outside {folder}, expected the data itself")
    if not path.is_dir():
        _check_is_file(path)


def _check_all_inside(below: Path | str, folder: Path) -> None:
    """The same for all that a folder holds: what is no link lies where the folder does, and need not be resolved."""
    with os.scandir(below) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _check_all_inside(entry.path, folder)
            elif not entry.is_file(follow_symlinks=False):
                _check_inside(Path(entry.path), folder)


def most_bytes(path: Path) -> int:
    """Bytes of numbers that a file may hold once it is unpacked."""
    return max(SMALL, MOST_GROWTH * path.stat().st_size)


def _too_much(path: Path) -> str:
    return f"more than {most_bytes(path) >> 20} MB, which no file of {path.stat().st_size} bytes should hold"


def _short(value: Any) -> str:
    """A value in words that fit into a line."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def as_numbers(array: NDArray[Any], where: str) -> NDArray[Any]:
    """The array in this machine's byte order, which torch wants; text, objects and records are refused."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: type {array.dtype}, expected numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
