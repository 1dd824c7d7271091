"""Files of recorded episodes: one reader for each format. A reader says what a file holds; `envs.datasets` judges it.

Minari's folders (HDF5 and Arrow), D4RL's flat HDF5, `.npz`, CSV and Parquet. A recording is data and nothing else: no
environment is built, no pickle loaded and no module imported because a file asked for it.
"""

import io
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.scores import Reference, reference_for
from envs.spaces import LEAF_KINDS, Leaves, SpaceError, leaf_spaces, reason, space_from_json, to_leaves
from envs.worlds import EnvironmentSpec, WorldError

PACKAGED = Path(__file__).parent / "data"
"""Datasets that ship with the package: `hopper/replay-v0` is `hopper-replay-v0.npz`."""

FIELDS = {
    "observations": ("observations", "observation"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminated": ("terminated", "terminations", "terminals"),
    "truncated": ("truncated", "truncations", "timeouts"),
    "episode": ("episode", "episodes", "episode_index"),
    "lengths": ("lengths",),
    "next_observations": ("next_observations", "next_observation"),
}
"""What a flat file holds, and the names that are known for each: ours and Gymnasium's first, then Minari's, D4RL's."""

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


class DataError(ValueError):
    """A dataset that cannot be used: one line for each problem, which names the file, the episode and the field."""

    def __init__(self, *problems: str):
        more = f" (and {len(problems) - 1} more; `dt inspect` lists them)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a recording beside its numbers."""

    name: str
    source: Path | str
    spaces: Mapping[str, Space[Any]]  # those of `SPACES` that anybody declares
    environment: EnvironmentSpec | None = None
    reference: Reference | None = None
    num_episodes: int | None = None  # as the metadata has it
    repeats_final: bool = False  # the final observations are no observations: they fill up Minari's layout
    notes: tuple[str, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)  # those of `TOLD`


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode as its file has it, not yet looked at."""

    label: str
    observations: Leaves
    actions: Leaves
    rewards: NDArray[Any]
    terminations: NDArray[Any]
    truncations: NDArray[Any]


def find(source: str, download: bool = False) -> Path:
    """The file or folder that a user means by a path or a Minari id; one that is nowhere raises `DataError`."""
    if not source:
        raise DataError("no dataset named")
    path = Path(source)
    if path.exists():
        return path
    if path.suffix in READERS or path.is_absolute() or ".." in path.parts or source.startswith("~"):
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


def read_folder(folder: Path, given: Mapping[str, Space[Any]]) -> tuple[Header, Iterator[RecordedEpisode]]:
    """A Minari dataset's folder, or one of parts that are such: what a recorder has stored so far.

    given: spaces by name, instead of the metadata's own.
    """
    parts = sorted(folder.glob(PART.format(0)[:-6] + "[0-9]" * 6))
    if not parts:
        return read_minari(folder, given)
    headers, episodes = zip(*(read_minari(part, given) for part in parts), strict=True)
    counts = [header.num_episodes for header in headers]
    return replace(headers[-1], source=folder, num_episodes=sum(counts)), chain.from_iterable(episodes)


def read_minari(folder: Path, given: Mapping[str, Space[Any]]) -> tuple[Header, Iterator[RecordedEpisode]]:
    """A Minari dataset's folder. given: spaces by name, instead of the metadata's own."""
    data = folder / "data" if (folder / "data").is_dir() else folder
    path = data / "metadata.json"
    metadata = _metadata(path)
    layout = metadata.get("data_format", "hdf5")
    source = data / "main_data.hdf5" if layout == "hdf5" else data
    for name in SPACES:
        if name not in metadata and name not in given:
            raise DataError(f"{path}: no {name}")
    header = _header(str(path), source, metadata, given)
    count = metadata.get("total_episodes")
    header = replace(header, num_episodes=count, repeats_final=metadata.get("final_observations") == REPEATED)
    if layout == "hdf5":
        return header, _hdf5_episodes(header, source)
    if layout == "arrow":
        return header, _arrow_episodes(header, data)
    raise DataError(f"{path}: data_format {layout!r} is not known; 'hdf5' and 'arrow' are")


def _hdf5_episodes(header: Header, path: Path) -> Iterator[RecordedEpisode]:
    names = {
        field: _hdf5_names(header.spaces[kind], field)
        for field, kind in zip(("observations", "actions"), SPACES, strict=True)
    }
    kinds = [leaf_spaces(header.spaces[kind]) for kind in SPACES]
    flags = ("rewards", "terminations", "truncations")
    with _hdf5_file(path) as file:
        numbers = {name: name.removeprefix("episode_") for name in file if name.startswith("episode_")}
        for name, number in numbers.items():
            if not number.isdecimal():
                raise DataError(f"{path}: {name}: not an episode's name")
        plain = _PlainArrays(file, [*names["observations"].values(), *names["actions"].values(), *flags])
        for group in sorted(numbers, key=lambda name: int(numbers[name])):
            read = partial(_hdf5_leaf, file, path, group, plain.read(group))
            rewards, terminations, truncations = (read(name) for name in flags)
            observations, actions = (
                {leaf: read(name, spaces[leaf]) for leaf, name in inside.items()}
                for inside, spaces in zip(names.values(), kinds, strict=True)
            )
            yield RecordedEpisode(group, observations, actions, rewards, terminations, truncations)


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

    def read(self, group: str) -> dict[str, NDArray[Any]]:
        """The plain ones of a group, by their names below it."""
        found: dict[str, NDArray[Any]] = {}
        if group.encode() in self._links:
            self._read_below(self._root, group.encode(), self._tree, "", found)
        return found

    def _read_below(
        self, parent: Any, group: bytes, tree: dict[bytes, Any], prefix: str, found: dict[str, Any]
    ) -> None:
        try:
            below = self._h5py.h5g.open(parent, group)
            links = self._hard_links(below)
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


def _arrow_episodes(header: Header, data: Path) -> Iterator[RecordedEpisode]:
    """Whole columns of the files that Minari writes; what is not in that layout goes through Minari's own reader."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{data}: reading Arrow needs pyarrow: pip install 'minari[arrow]'") from None
    count = header.num_episodes if isinstance(header.num_episodes, int) else 0
    for number in range(count):
        try:
            episode = _arrow_episode(header, data, number)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{data}: cannot be read as Arrow ({reason(error)})") from None
        if episode is None:
            yield from _public_episodes(header, data, range(number, count))
            return
        yield episode
    if count == 0:
        yield from _public_episodes(header, data, None)


def _arrow_episode(header: Header, data: Path, number: int) -> RecordedEpisode | None:
    """One episode's folder; None where it is not in the layout that is known here."""
    from pyarrow import ipc, memory_map

    folder = data / str(number)
    files = [name for name in os.listdir(folder) if name[0] not in "._" and name != "metadata.json"]
    if len(files) != 1 or not files[0].endswith(".arrow"):
        return None
    with memory_map(str(folder / files[0])) as source, ipc.open_file(source) as file:
        if file.num_record_batches != 1:
            return None
        batch = file.get_batch(0)
    batch.validate()  # that no column reaches past its bytes
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    try:
        arrays = [
            [_arrow_array(part, leaf.shape or ()) for part, leaf in _arrow_leaves(header.spaces[space], columns[name])]
            for name, space in zip(("observations", "actions"), SPACES, strict=True)
        ]
        flags = [_arrow_array(columns[name], ())[:-1] for name in ("rewards", "terminations", "truncations")]
    except (KeyError, AttributeError, TypeError, ValueError):
        return None
    seen, done = (
        dict(zip(leaf_spaces(header.spaces[space]), each, strict=True))
        for space, each in zip(SPACES, arrays, strict=True)
    )
    # Minari makes actions and flags as long as the observations by one more row.
    return RecordedEpisode(f"episode_{number}", seen, {name: array[:-1] for name, array in done.items()}, *flags)


def _arrow_leaves(space: Space[Any], column: Any) -> Iterator[tuple[Any, Space[Any]]]:
    """The part of a column for each leaf, in the order of `leaf_spaces`: Tuple children are named by their numbers."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, child in named:
            yield from _arrow_leaves(child, column.field(str(key)))
    else:
        yield column, space


def _arrow_array(column: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A column of numbers, or of lists of as many as the shape holds: (rows, *shape). Others raise `TypeError`."""
    from pyarrow import types

    rows, inside = len(column), column
    if types.is_fixed_size_list(column.type):
        width = column.type.list_size
        inside = column.values.slice(column.offset * width, rows * width)
    plain = types.is_integer(inside.type) or types.is_floating(inside.type) or types.is_boolean(inside.type)
    if not plain or column.null_count or inside.null_count:
        raise TypeError(f"a column of {column.type}")
    return np.array(inside.to_numpy(zero_copy_only=False)).reshape(rows, *shape)  # a copy: the file is let go


def _public_episodes(header: Header, data: Path, numbers: Iterable[int] | None) -> Iterator[RecordedEpisode]:
    """Through Minari's own reader: the spaces stand in the metadata, so it builds no environment to learn them."""
    try:
        from minari import MinariDataset

        for episode in MinariDataset(data).iterate_episodes(numbers):
            recorded = RecordedEpisode(
                f"episode_{episode.id}",
                to_leaves(header.spaces["observation_space"], episode.observations),
                to_leaves(header.spaces["action_space"], episode.actions),
                *(np.asarray(x) for x in (episode.rewards, episode.terminations, episode.truncations)),
            )
            yield recorded
    except ImportError:
        raise DataError(f"{data}: reading Arrow needs pyarrow: pip install 'minari[arrow]'") from None
    except Exception as error:  # pyarrow and Minari raise errors of many kinds where a file is damaged
        raise DataError(f"{data}: cannot be read as Arrow ({reason(error)})") from None


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
    if picture and getattr(file.get(where), "ndim", rank + 1) <= rank:
        return _pictures(f"{path}: {where}", _hdf5_values(file, path, where), shape)
    return _hdf5_array(file, path, where)


def _pictures(where: str, encoded: Iterable[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Minari's JPEG pictures, each a row of bytes, as (T, *shape)."""
    from PIL import Image

    pictures = []
    for row, data in enumerate(encoded):
        try:
            picture = np.asarray(Image.open(io.BytesIO(np.asarray(data, np.uint8).tobytes()), formats=["JPEG"]))
        except Exception as error:  # a damaged picture makes Pillow raise errors of many kinds
            raise DataError(f"{where}: row {row} is no JPEG picture ({reason(error)})") from None
        if picture.shape != shape:
            raise DataError(f"{where}: row {row}: a picture of shape {picture.shape}, expected {shape}")
        pictures.append(picture)
    return np.stack(pictures) if pictures else np.empty((0, *shape), np.uint8)


# Flat files: one array a field, all episodes one after the other.


def read_flat(path: Path, given: Mapping[str, Space[Any]]) -> tuple[Header, dict[str, Any]]:
    """A flat file as arrays by the names of `FIELDS`. given: spaces by name, instead of the metadata's own."""
    if path.suffix not in READERS:
        raise DataError(
            f"{path}: neither a Minari dataset's folder nor a file that is known here: {', '.join(READERS)}"
        )
    arrays, unread = READERS[path.suffix](path)
    metadata = arrays.pop("metadata", None)
    parsed = {} if metadata is None else _parse_metadata(str(path), str(metadata))
    header = _header(f"{path}: metadata", path, parsed, given)
    return replace(header, notes=(f"not read: {_listed(unread)}",) if unread else ()), arrays


def _read_npz(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            chosen = _choose(path, file.files)
            if "metadata" in file.files:
                chosen["metadata"] = "metadata"
            return {field: np.asarray(file[name]) for field, name in chosen.items()}, _unread(file.files, chosen)
    except DataError:
        raise
    except Exception as error:  # zip, zlib and numpy's readers raise errors of many kinds where a file is damaged
        raise DataError(f"{path}: cannot be read as .npz ({reason(error)})") from None


def _read_hdf5(path: Path) -> tuple[dict[str, Any], list[str]]:
    """D4RL's layout (Fu et al. 2020): observations, actions, rewards, terminals, timeouts; infos are left alone."""
    with _hdf5_file(path) as file:
        chosen = _choose(path, list(file))
        return {field: _hdf5_array(file, path, name) for field, name in chosen.items()}, _unread(file, chosen)


def _read_table(path: Path) -> tuple[dict[str, Any], list[str]]:
    """CSV or Parquet: one row a step. A vector is columns observation_0, observation_1, ..., or one of equal lists."""
    try:
        import pyarrow
        from pyarrow import csv, parquet

        table = csv.read_csv(path) if path.suffix == ".csv" else parquet.ParquetFile(path).read()
    except ImportError:
        raise DataError(f"{path}: reading CSV and Parquet needs pyarrow: pip install pyarrow") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix} ({reason(error)})") from None
    names = list(table.column_names)
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path}: column {min(twice)!r} stands in it twice")
    if table.num_rows == 0:
        raise DataError(f"{path}: no row in it")
    stems = list(dict.fromkeys(re.sub(r"_\d+$", "", name) for name in names))
    chosen = _choose(path, stems)
    return {field: _columns(path, table, name) for field, name in chosen.items()}, _unread(stems, chosen)


def _columns(path: Path, table: Any, name: str) -> NDArray[Any]:
    """The column of this name, or those numbered name_0, name_1, ... side by side: (N,) or (N, K)."""
    if name in table.column_names:
        return _column(path, table.column(name), name)
    numbered = {other for other in table.column_names if re.fullmatch(rf"{name}_\d+", other)}
    for i in range(len(numbered)):
        if f"{name}_{i}" not in numbered:
            raise DataError(f"{path}: no column '{name}_{i}', expected {name}_0 to {name}_{len(numbered) - 1}")
    columns = [f"{name}_{i}" for i in range(len(numbered))]
    return np.stack([_column(path, table.column(column), column) for column in columns], axis=1)


def _column(path: Path, column: Any, name: str) -> NDArray[Any]:
    """One column as an array, (N,), or (N, K) from lists of K numbers; what is no number is named by its row."""
    from pyarrow import compute, types

    def refuse(row: int, what: str) -> DataError:
        return DataError(f"{path}: row {row + 1}, column {name!r}: {what}")

    if column.null_count:
        raise refuse(column.is_null().to_pylist().index(True), "nothing there")
    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        lengths = compute.list_value_length(column).to_numpy()
        if (lengths != lengths[0]).any():
            row = int((lengths != lengths[0]).argmax())
            raise refuse(row, f"{lengths[row]} numbers, expected {lengths[0]}")
        inside = compute.list_flatten(column)
        if inside.null_count:
            raise refuse(inside.is_null().to_pylist().index(True) // int(lengths[0]), "a list with nothing in a place")
        return as_numbers(np.asarray(inside.to_numpy()), f"{path}: column {name!r}").reshape(len(column), -1)
    values = np.asarray(column.to_numpy())
    if name in FIELDS["episode"]:
        return values  # a number or a name
    if types.is_string(kind) or types.is_large_string(kind):
        row = next((row for row, text in enumerate(values) if not _is_number(text)), 0)
        raise refuse(row, f"{values[row][:40]!r}, expected a number")
    return as_numbers(values, f"{path}: column {name!r}")


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


def _choose(path: Path, names: Collection[str]) -> dict[str, str]:
    """Which name in a file holds each field of `FIELDS`."""
    chosen = {}
    for wanted, known in FIELDS.items():
        found = sorted({name for name in names if name in known})
        if len(found) > 1:
            raise DataError(f"{path}: {' and '.join(map(repr, found))} are both {wanted}; keep one of them")
        if found:
            chosen[wanted] = found[0]
        elif wanted in ("observations", "actions", "rewards"):
            raise DataError(f"{path}: no {wanted!r} in it, only {_listed(sorted(names)) or 'nothing'}")
    return chosen


def _unread(names: Iterable[str], chosen: Mapping[str, str]) -> list[str]:
    return sorted(set(names) - set(chosen.values()))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


# Metadata, which Minari's folders and .npz files share.


def spaces_from_json(text: str) -> dict[str, Space[Any]]:
    """Spaces that a user declares: JSON, or a JSON file's path; {"observation_space": ..., "action_space": ...}."""
    is_path = not text.lstrip().startswith("{")
    document = _metadata(Path(text)) if is_path else _parse_metadata("--spaces", text)
    if not document or document.keys() - set(SPACES):
        raise DataError(f"--spaces: expected observation_space, action_space or both, found {sorted(document)}")
    return declared_spaces("--spaces", document)


def declared_spaces(where: str, document: Mapping[str, Any]) -> dict[str, Space[Any]]:
    """Those of `SPACES` that a JSON object holds, each as Minari writes it."""
    return {name: _space(where, document, name) for name in SPACES if name in document}


def _metadata(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file") from None
    return _parse_metadata(str(path), text)


def _parse_metadata(where: str, text: str) -> dict[str, Any]:
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
    if isinstance(low, int | float) and isinstance(high, int | float) and high > low:
        reference: Reference | None = Reference(float(low), float(high), OWN_METADATA)
    else:
        reference = reference_for(environment.id if environment else None)
    return Header(
        name=str(metadata.get("dataset_id") or source.stem),
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

    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, RuntimeError) as error:  # h5py raises either where a file is damaged
        raise DataError(f"{path}: cannot be read ({reason(error)})") from None


def _hdf5_array(file: Any, path: Path, name: str) -> NDArray[Any]:
    return as_numbers(_hdf5_values(file, path, name), f"{path}: {name}")


def _hdf5_values(file: Any, path: Path, name: str) -> NDArray[Any]:
    import h5py

    node = file.get(name)
    if not isinstance(node, h5py.Dataset):
        raise DataError(f"{path}: {name}: missing")
    try:
        return np.asarray(node[()])
    except (OSError, TypeError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: {name}: cannot be read ({reason(error)})") from None


def as_numbers(array: NDArray[Any], where: str) -> NDArray[Any]:
    """The array in this machine's byte order, which torch wants; text, objects and records are refused."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: type {array.dtype}, expected numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
