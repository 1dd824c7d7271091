"""Minari's folders, HDF5, Arrow and Parquet: metadata, and below it episodes one by one."""

import io
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.arrow import ROWS
from envs.reading.episode_arrays import group_names
from envs.reading.fields import listed
from envs.reading.flat_files import flat_files
from envs.reading.hdf5 import follow, node_at, numbers_of, open_hdf5, values_of
from envs.reading.readers import (
    SPACES,
    Header,
    RecordedEpisode,
    Recording,
    check_all_inside,
    check_inside,
    header_of,
    most_bytes,
    read_metadata,
    too_much,
)
from envs.reading.unknown import way_for_folder
from envs.spaces import leaf_spaces, reason, to_leaves

PART = "part-{:06d}"
"""Folder of each part of a recording that is still growing, by its number."""

PART_GLOB = "part-" + "[0-9]" * 6
"""All of these folders."""

MARKS = ("metadata.json", "data/metadata.json", "data/main_data.hdf5", "main_data.hdf5")
"""A Minari dataset's folder holds at least one of these files."""

NOT_A_DATASET = "not a dataset's folder (no metadata.json, as Minari's have, and no meta/info.json, as LeRobot's)"
"""The message about a folder that is not in any known format."""

REPEATED = "repeated"
"""In Minari's metadata as `final_observations`: the last row of each episode's observations is no observation."""

NESTING = (spaces.Dict, spaces.Tuple)
"""Spaces that are made of others."""

COLUMNAR = {"arrow": "Arrow", "parquet": "Parquet"}
"""Layouts of columns in a folder for each episode, and what they are called."""

FIELDS_OF_EPISODES = ("observations", "actions", "rewards", "terminations", "truncations")
"""What is read of an episode; infos are ignored."""

ARROW = b"ARROW1"
"""The first and the last bytes of an Arrow file."""


def read_folder(folder: Path, given: Mapping[str, Space[Any]], leave_out: tuple[str, ...] = ()) -> Recording:
    """A Minari dataset's folder, or one of parts that are such: what a recorder has stored so far.

    given: spaces by name, instead of the metadata's own. leave_out: as in `ReadingOptions`.
    """
    if not (folder / "metadata.json").exists() and (files := flat_files(folder)):
        kinds = " ".join(f"{folder}/*{kind}" for kind in sorted({path.suffix for path in files}))
        raise DataError(f"{folder}: a folder of files, which are named one by one: {kinds}")
    parts = sorted(folder.glob(PART_GLOB))
    if not parts and not (any((folder / name).exists() for name in MARKS)):
        way = way_for_folder(folder)
        raise DataError(f"{folder}: {NOT_A_DATASET}{f'; {way}' if way else ''}")
    if not parts:
        header, found = read_minari(folder, given, leave_out)
        return Recording(header, episodes=found)
    headers, episodes = zip(*(read_minari(part, given, leave_out) for part in parts), strict=True)
    counts = {name: [getattr(header, name) for header in headers] for name in ("num_episodes", "num_steps")}
    totals = {name: None if None in each else sum(each) for name, each in counts.items()}
    return Recording(replace(headers[-1], source=folder, **totals), episodes=chain.from_iterable(episodes))


def read_minari(
    folder: Path, given: Mapping[str, Space[Any]], leave_out: tuple[str, ...] = ()
) -> tuple[Header, Iterator[RecordedEpisode | DataError]]:
    """A Minari dataset's folder: an episode that cannot be read comes as the error that says why.

    given: spaces by name, instead of the metadata's own. leave_out: as in `ReadingOptions`.
    """
    data = folder / "data" if (folder / "data").is_dir() else folder
    path = data / "metadata.json"
    check_inside(path, folder)
    metadata = read_metadata(path)
    layout = metadata.get("data_format", "hdf5")
    source = data / "main_data.hdf5" if layout == "hdf5" else data
    if layout == "hdf5":
        check_inside(source, folder)
    else:
        check_all_inside(data, data)
    for name in SPACES:
        if name not in metadata and name not in given:
            raise DataError(f"{path}: no {name}")  # Minari itself would ask the environment, which is not made here
    header = header_of(str(path), source, metadata, given, leave_out)
    counts = {name: metadata.get(name) for name in ("total_episodes", "total_steps")}
    for name, count in counts.items():
        if count is not None and (type(count) is not int or count < 1):
            raise DataError(f"{path}: {name} is {_short(count)}, expected a whole number of at least 1")
    header = replace(header, num_episodes=counts["total_episodes"], num_steps=counts["total_steps"])
    header = replace(header, repeats_final=metadata.get("final_observations") == REPEATED)
    if layout == "hdf5":
        return header, _hdf5_episodes(header, source, leave_out)
    if layout in [*COLUMNAR]:  # JSON: it may be unhashable, so it is not looked up in the dict
        return header, _columnar_episodes(header, data, layout, leave_out)
    # Spaces that the user gives do not help here: Minari reads the metadata, and would make the environment to ask it.
    if missing := [name for name in SPACES if name not in metadata]:
        raise DataError(f"{path}: no {missing[0]}")
    return header, _episodes_by_minari(header, data, layout)


def _hdf5_episodes(header: Header, path: Path, leave_out: tuple[str, ...]) -> Iterator[RecordedEpisode | DataError]:
    names = {
        field: _hdf5_names(header.spaces[kind], field)
        for field, kind in zip(("observations", "actions"), SPACES, strict=True)
    }
    kinds = [leaf_spaces(header.spaces[kind]) for kind in SPACES]
    left_out = {f"observations/{name}" for name in leave_out}
    nested = dict[str, set[str]]()
    for name in chain.from_iterable(inside.values() for inside in names.values()):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            nested.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    with open_hdf5(path) as file:
        for group in _episode_names(file, path):
            try:
                read = partial(_hdf5_leaf, file, follow(file, path, group, group), path, group)
                _check_unknown(file, path, group, nested, left_out)
                flags = [read(name) for name in ("rewards", "terminations", "truncations")]
                observations, actions = (
                    {leaf: read(name, spaces[leaf]) for leaf, name in inside.items()}
                    for inside, spaces in zip(names.values(), kinds, strict=True)
                )
            except DataError as error:
                yield error
                continue
            if file.bytes_stored < 0:
                raise DataError(
                    f"{path}: {group}: more numbers than the file has bytes: some stand for several episodes"
                )
            yield RecordedEpisode(group, observations, actions, *flags)


def _episode_names(file: Any, path: Path) -> list[str]:
    """The names of the episodes' groups, in the order of their numbers."""
    numbers = {name: name.removeprefix("episode_") for name in file if name.startswith("episode_")}
    for name, number in numbers.items():
        if not number.isdecimal() or len(number) > 18:
            raise DataError(f"{path}: {name}: not an episode's name")
    named = {int(number): name for name, number in numbers.items()}
    if twice := numbers.keys() - set(named.values()):
        raise DataError(f"{path}: {min(twice)}: the same episode as {named[int(numbers[min(twice)])]}")
    return [name for _, name in sorted(named.items())]


def _episodes_by_minari(header: Header, data: Path, layout: Any) -> Iterator[RecordedEpisode]:
    """By Minari's own iteration, for layouts that it knows and this module does not."""
    from minari import MinariDataset

    observation_space, action_space = (header.spaces[name] for name in SPACES)
    try:
        dataset = MinariDataset(data)
    except Exception:  # of many kinds, a KeyError where it does not know the layout
        known = "'hdf5', 'arrow' and 'parquet'"
        raise DataError(f"{data / 'metadata.json'}: data_format {layout!r} is not known; {known} are") from None
    try:
        for episode in dataset.iterate_episodes():
            yield RecordedEpisode(
                f"episode_{episode.id}",
                observations=to_leaves(observation_space, episode.observations),
                actions=to_leaves(action_space, episode.actions),
                rewards=np.asarray(episode.rewards),
                terminations=np.asarray(episode.terminations),
                truncations=np.asarray(episode.truncations),
            )
    except Exception as error:  # whatever a damaged file makes that reader raise
        raise DataError(f"{data}: cannot be read as {layout} ({reason(error)})") from None


def _columnar_episodes(
    header: Header, data: Path, layout: str, leave_out: tuple[str, ...]
) -> Iterator[RecordedEpisode | DataError]:
    """A folder for each episode, by its number, with whole columns that become arrays."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{data}: reading {COLUMNAR[layout]} needs pyarrow: pip install 'decision-transformer[arrow]'"
        ) from None
    count = header.num_episodes
    if count is None:
        count = sum(path.name.isdecimal() for path in data.iterdir())
    for folder in (data / str(number) for number in range(count)):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such episode, metadata.json says {header.num_episodes}")
        try:
            yield _columnar_episode(header, folder, layout, leave_out)
        except DataError as error:
            yield error
        except (pyarrow.ArrowException, OSError, IndexError, UnicodeDecodeError) as error:
            yield DataError(f"{folder}: cannot be read as {COLUMNAR[layout]} ({reason(error)})")


def _columnar_episode(header: Header, folder: Path, layout: str, leave_out: tuple[str, ...]) -> RecordedEpisode:
    """One episode's folder. Minari makes actions and flags as long as the observations by one more row."""
    names = [name for name in os.listdir(folder) if name.endswith(f".{layout}")]
    if not names:
        raise DataError(f"{folder}: no .{layout} file in it")
    names.sort(key=lambda name: (len(name), name))  # part-2 before part-10
    read = _arrow_batches if layout == "arrow" else _parquet_batches
    batches, bytes_left = [], most_bytes(folder)
    for name in names:
        for batch in read(folder / name):
            bytes_left -= batch.nbytes
            if bytes_left < 0:
                raise DataError(f"{folder / name}: {too_much(folder)}")
            batches.append(batch)
    if not batches:
        raise DataError(f"{folder}: no row in it")
    observation_space, action_space = (header.spaces[name] for name in SPACES)
    pictures = [leaf for leaf in leaf_spaces(observation_space).values() if _is_picture(leaf)]
    rows = sum(len(batch) for batch in batches)
    if rows * sum(math.prod(leaf.shape or ()) for leaf in pictures) > most_bytes(folder):
        raise DataError(f"{folder}: {rows} pictures: {too_much(folder)}")
    observations = _columnar_arrays(folder, batches, "observations", observation_space, leave_out)
    actions = _columnar_arrays(folder, batches, "actions", action_space)
    flags = [_columnar_arrays(folder, batches, name, None)[0] for name in ("rewards", "terminations", "truncations")]
    return RecordedEpisode(
        f"episode_{folder.name}",
        dict(zip(leaf_spaces(observation_space), observations, strict=True)),
        {name: array[:-1] for name, array in zip(leaf_spaces(action_space), actions, strict=True)},
        *(flag[:-1] for flag in flags),
    )


def _columnar_arrays(
    folder: Path, batches: Sequence[Any], name: str, space: Space[Any] | None, leave_out: tuple[str, ...] = ()
) -> list[NDArray[Any]]:
    """A column of an episode's record batches, as an array for each leaf of its space: (rows, *leaf).

    space: None is one number per row.
    leave_out: parts that are there and not read, by their paths below the column.
    """
    where = f"{folder}: {name}"
    left_out = {f"{where}/{each}" for each in leave_out}
    leaves = [list(_arrow_leaves(where, space, _batch_column(folder, batch, name), left_out)) for batch in batches]
    return leaves[0] if len(leaves) == 1 else [np.concatenate(parts) for parts in zip(*leaves, strict=True)]


def _batch_column(folder: Path, batch: Any, name: str) -> Any:
    try:
        return batch.column(name)
    except KeyError:
        names = batch.schema.names
        many = "two columns" if name in names else "no column"
        raise DataError(f"{folder}: {many} {name!r} in it, only {listed(names)}") from None


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


def _parquet_batches(path: Path) -> Iterator[Any]:
    """A Parquet file's record batches, unpacked one by one: there may be too many of them."""
    from pyarrow import parquet

    yield from parquet.ParquetFile(path).iter_batches(ROWS, columns=[*FIELDS_OF_EPISODES])


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


def _arrow_leaves(
    where: str, space: Space[Any] | None, column: Any, left_out: Collection[str] = ()
) -> Iterator[NDArray[Any]]:
    """An array for each leaf of a space, in the order of `leaf_spaces`; None is one number a row.

    left_out: what is there and not read, as `where` names it.
    """
    import pyarrow

    if isinstance(space, NESTING):
        types = pyarrow.types
        named = dict(space.spaces if isinstance(space, spaces.Dict) else enumerate(space.spaces))
        there = {field.name for field in column.type} if types.is_struct(column.type) else set()
        if unknown := {name for name in there - set(map(str, named)) if f"{where}/{name}" not in left_out}:
            raise DataError(f"{where}: {min(unknown)!r} in it, expected {', '.join(map(str, named))}")
        for key, child in named.items():
            try:
                inner = column.field(str(key))  # Tuple children are named by their numbers
            except (KeyError, AttributeError):
                raise DataError(f"{where}/{key}: missing") from None
            yield from _arrow_leaves(f"{where}/{key}", child, inner, left_out)
    else:
        yield _arrow_array(where, column, (space.shape if space else None) or (), space)


def _arrow_array(where: str, column: Any, shape: tuple[int, ...], space: Space[Any] | None) -> NDArray[Any]:
    """A column of numbers, of lists of as many as the shape holds, or of JPEG pictures: (rows, *shape)."""
    import pyarrow

    types = pyarrow.types
    kind, rows, inside = column.type, len(column), column
    if types.is_binary(kind) and space is not None and _is_picture(space):
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
    file: Any, episode: Any, path: Path, group: str, name: str, space: Space[Any] | None = None
) -> NDArray[Any]:
    """One array of an episode; pictures are JPEG where the array has fewer axes than raw ones would have."""
    shape = (space.shape if space else None) or ()
    where = f"{group}/{name}"
    node = node_at(episode, path, where, name)
    file.bytes_stored -= node.id.get_storage_size()
    if space is not None and _is_picture(space) and node.ndim <= len(shape):
        file.bytes_left -= len(node) * math.prod(shape)
        if file.bytes_left < 0:  # one flat picture that is there many times takes next to nothing in the file
            raise DataError(f"{path}: {where}: {len(node)} pictures of shape {shape}: {too_much(path)}")
        return _pictures(f"{path}: {where}", values_of(file, node, path, where), shape)
    return numbers_of(file, node, path, where)


def _check_unknown(
    file: Any, path: Path, group: str, expected: Mapping[str, Collection[str]], left_out: Collection[str]
) -> None:
    """Refuse what is in the groups of an episode's nested spaces and not in those spaces.

    expected: for each of these groups, as it is named below the episode, what is in it. left_out: what may be there.
    """
    for above, names in expected.items():
        inside = group_names(file, path, f"{group}/{above}")
        unknown = [name for name in inside if name not in names and f"{above}/{name}" not in left_out]
        if unknown:
            problem = f"{path}: {group}/{above}: {min(unknown)!r} in it, expected {', '.join(sorted(names))}"
            below = f"{above}/{min(unknown)}"
            way = below.removeprefix("observations/")
            raise DataError(problem if way == below else f"{problem}; --leave-out {way} leaves it out")


def _is_picture(leaf: Space[Any]) -> bool:
    """Whether Minari may have made JPEG of a leaf's values."""
    return leaf.dtype == np.uint8 and len(leaf.shape or ()) >= 2


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


def _short(value: Any) -> str:
    """A value in words that fit into a line."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
