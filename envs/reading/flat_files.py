"""Flat files: D4RL's HDF5, `.npz`, CSV and Parquet. One array a field, all episodes one after the other."""

import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.conventions import Convention, chosen_fields, lengths_from_first_rows
from envs.reading.d3rlpy import is_version_2, read_version_2
from envs.reading.episode_groups import episode_groups, read_episode_groups
from envs.reading.episodes import check_unread, split_as_asked
from envs.reading.evidence import MOST_WITNESSES
from envs.reading.fields import IN_FILES, MOST_NAMES, PROOFS, listed, looks_like_a_step
from envs.reading.found import Found, side_by_side, unread_names
from envs.reading.hdf5 import node_at, numbers_at, open_hdf5
from envs.reading.options import ReadingOptions
from envs.reading.other_groups import way_for_groups
from envs.reading.readers import Recording, header_of, most_bytes, parse_metadata, too_much
from envs.reading.robomimic import is_robomimic, read_robomimic
from envs.reading.tables import read_table
from envs.reading.tianshou import is_tianshou, read_tianshou
from envs.reading.unknown import way_for_content, way_for_file, way_for_objects
from envs.reading.unnamed_next import MOST_CANDIDATES, is_next_sought
from envs.spaces import printable, reason

INTERLEAVED = "rows of episodes were interleaved: each episode's were put together, in the order that they had"
"""A note on a table in which several episodes were written side by side."""


def read_flat(path: Path, given: Mapping[str, Space[Any]], options: ReadingOptions) -> Recording:
    """A flat file.

    given: spaces by name, instead of the metadata's own.
    """
    if not is_flat(path):
        known = f"neither a Minari dataset's folder nor a file that is known here: {', '.join(READERS)}"
        raise DataError(f"{path}: {known}; {way_for_file(path)}")
    found = READERS[path.suffix.lower()](path, options)
    arrays = split_as_asked(str(path), found.arrays, options)
    notes = check_unread(str(path), found, arrays, options)
    return recording_of(path, replace(found, arrays=arrays, notes=[*found.notes, *notes]), given, options)


def recording_of(path: Path, found: Found, given: Mapping[str, Space[Any]], options: ReadingOptions) -> Recording:
    """What a reader of flat data found, with what its metadata and the user's options say.

    given: spaces by name, instead of the metadata's own.
    """
    parsed = {} if found.metadata is None else parse_metadata(f"{path}: metadata", found.metadata)
    unread = [name or "a column without a name" for name in found.unread]
    notes = [f"not read: {listed(unread)}"] if unread else []
    notes += [INTERLEAVED] if found.rows is not None else []
    header = replace(
        header_of(f"{path}: metadata", path, parsed, given, options.leave_out),
        missing=found.missing,
        rows=found.rows,
        last_row_is_final=found.last_row_is_final or options.last_row_is_final,
        reward=options.reward,
        leave_out=tuple(name for name in options.leave_out if name not in {*found.left_out, *found.unread}),
        notes=tuple(map(printable, [*notes, *found.notes])),
    )
    return Recording(header, found.arrays)


def is_flat(path: Path) -> bool:
    """Whether a path is a flat file's, by its suffix."""
    return path.suffix.lower() in READERS


def flat_files(folder: Path) -> list[Path]:
    """The flat files in a folder; Minari's own file is none."""
    return sorted(path for path in folder.iterdir() if is_flat(path) and path.name != "main_data.hdf5")


def _read_npz(path: Path, options: ReadingOptions) -> Found:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: cannot be read as .npz (no zip file){way_for_content(path)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            chosen, convention = chosen_fields(path, file.files, IN_FILES, options)
            if "metadata" in file.files:
                chosen["metadata"] = ("metadata",)
            arrays, bytes_left = {}, most_bytes(path)
            for field, names in chosen.items():
                for name in names:
                    if name not in file.files:
                        raise DataError(f"{path}: no {name!r} in it, only {listed(sorted(file.files), MOST_NAMES)}")
                    bytes_left -= _declared(path, file.zip, name)[0]
                    if bytes_left < 0:
                        raise DataError(f"{path}: {name}: {too_much(path)}")
                arrays[field] = side_by_side(f"{path}: {field}", [np.asarray(file[name]) for name in names])
            found = _found(file.files, chosen, arrays, convention, path, options)
            shape = found.arrays["observations"].shape if is_next_sought(found.arrays, options) else None
            witnesses, alike = _npz_unread(path, file, found.unread, bytes_left, shape)
            return _with_clocks(found, witnesses, alike, options)
    except DataError:
        raise
    except Exception as error:  # zip, zlib and numpy's readers raise errors of many kinds where a file is damaged
        raise DataError(f"{path}: cannot be read as .npz ({reason(error)})") from None


def _npz_unread(
    path: Path, file: Any, names: Iterable[str], bytes_left: int, alike_shape: tuple[int, ...] | None
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The unread arrays of one number or name a row, (N,), and those of this shape.

    bytes_left: bytes that may still be read.
    """
    witnesses, alike = dict[str, NDArray[Any]](), dict[str, NDArray[Any]]()
    for name in names:
        try:
            size, shape = _declared(path, file.zip, name)
        except DataError:
            continue
        is_column = len(shape) in (1, 2) and max(shape[1:], default=1) == 1 and len(witnesses) < MOST_WITNESSES
        is_alike = shape == alike_shape and len(alike) < MOST_CANDIDATES
        if size > bytes_left or not (is_column or is_alike):
            continue
        values, bytes_left = np.asarray(file[name]), bytes_left - size
        if is_column:
            witnesses[name] = values.reshape(-1)
        if is_alike:
            alike[name] = values
    return witnesses, alike


def _with_clocks(
    found: Found, witnesses: Mapping[str, NDArray[Any]], alike: Mapping[str, NDArray[Any]], options: ReadingOptions
) -> Found:
    """The same with unread arrays; those that may be times, by their names, show the order of the rows."""
    found = replace(found, witnesses=witnesses, alike=alike)
    if "step" in options.columns or found.arrays.keys() & set(PROOFS):
        return found
    clock = np.asarray(found.arrays["rewards" if "rewards" in found.arrays else "actions"])
    rows = len(clock) if clock.ndim else 0
    clocks = {
        name: (values - values.min()).astype(np.float64)  # nanoseconds since 1970 have more digits than float64
        for name, values in witnesses.items()
        if looks_like_a_step(name) and values.dtype.kind in "iuf" and len(values) == rows > 0
    }
    return replace(found, arrays={**found.arrays, "clocks": clocks}) if clocks else found


def _found(
    names: Sequence[str],
    chosen: Mapping[str, tuple[str, ...]],
    arrays: dict[str, Any],
    convention: Convention | None,
    path: Path,
    options: ReadingOptions,
) -> Found:
    """What was read of a file of arrays."""
    if "step" in arrays and "step" not in options.columns and not _is_per_step(arrays):
        del arrays["step"]  # a count, such as of all steps
        chosen = {field: each for field, each in chosen.items() if field != "step"}
    metadata, first = arrays.pop("metadata", None), arrays.pop("first_rows", None)
    if convention and convention.check:
        convention.check(str(path), arrays)
    if "not_terminated" in arrays:
        arrays["terminated"] = np.asarray(arrays.pop("not_terminated")) == 0
    if first is not None and convention:
        arrays["lengths"] = lengths_from_first_rows(f"{path}: {convention.first_rows}", first, len(arrays["rewards"]))
    return Found(
        arrays=arrays,
        unread=unread_names(names, chain.from_iterable(chosen.values())),
        notes=[convention.note] if convention and convention.note else [],
        last_row_is_final=convention is not None and convention.last_row_is_final,
        metadata=None if metadata is None else str(metadata),
    )


def _is_per_step(arrays: Mapping[str, Any]) -> bool:
    """Whether `step` is a number for each step."""
    step, clock = np.asarray(arrays["step"]), np.asarray(arrays["rewards" if "rewards" in arrays else "actions"])
    return step.dtype.kind in "iuf" and step.shape in ((len(clock),), (len(clock), 1)) if clock.ndim else False


def _declared(path: Path, archive: Any, name: str) -> tuple[int, tuple[int, ...]]:
    """Bytes and shape of an array in an .npz file, by its header, before anything makes room for it."""
    from numpy.lib import format as npy

    member = name if name in archive.namelist() else f"{name}.npy"
    with archive.open(member) as file:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
        if read is None:
            raise DataError(f"{path}: {name}: not an array of numbers")
        shape, _, kind = read(file)
        there = archive.getinfo(member).file_size - file.tell()
    if kind.hasobject:
        raise DataError(
            f"{path}: {name}: type {kind} is a pickle, which may run any code; expected numbers; "
            f"{way_for_objects(path)}"
        )
    size = math.prod(shape) * kind.itemsize
    if size > there:
        raise DataError(f"{path}: {name}: shape {shape} of {kind}: {size} bytes declared, {there} there")
    return size, shape


def _read_hdf5(path: Path, options: ReadingOptions) -> Found:
    """D4RL's layout (Fu et al. 2020): observations, actions, rewards, terminals, timeouts; infos are ignored.

    Layouts of other libraries have readers of their own.
    """
    with open_hdf5(path) as file:
        names = [str(name) for name in file]  # one that is no UTF-8 comes as bytes
        by_path = any(name.partition("/")[0] in names for each in options.columns.values() for name in each)
        if is_robomimic(file, path) and not by_path:
            return read_robomimic(file, path, options)
        if is_version_2(names) and not options.columns:
            return read_version_2(file, path, names)
        if is_tianshou(file, path):
            return read_tianshou(file, path, options.columns)
        if (groups := episode_groups(file, path)) and not by_path:
            return read_episode_groups(file, path, groups, options)
        try:
            chosen, convention = chosen_fields(path, names, IN_FILES, options)
        except DataError as error:
            way = "" if options.columns else way_for_groups(file, path)
            raise (DataError(f"{path}: only groups of arrays, {listed(names, 3)}{way}") if way else error) from None
        arrays = {
            field: side_by_side(f"{path}: {field}", [numbers_at(file, path, name) for name in each])
            for field, each in chosen.items()
        }
        found = _found(names, chosen, arrays, convention, path, options)
        alike = _hdf5_alike(file, path, found) if is_next_sought(found.arrays, options) else {}
        return _with_clocks(found, _hdf5_witnesses(file, path, found.unread), alike, options)


def _hdf5_witnesses(file: Any, path: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The unread arrays of one number a row."""
    found = dict[str, NDArray[Any]]()
    for name in names:
        try:
            node = node_at(file, path, name)
            one_a_row = len(node.shape or ()) in (1, 2) and max(node.shape[1:], default=1) == 1
            if one_a_row and node.dtype.kind in "biuf" and len(found) < MOST_WITNESSES:
                found[name] = numbers_at(file, path, name).reshape(-1)
        except DataError:
            continue  # a group, or what cannot be read
    return found


def _hdf5_alike(file: Any, path: Path, found: Found) -> dict[str, NDArray[Any]]:
    """The unread arrays of the observations' shape."""
    alike = dict[str, NDArray[Any]]()
    for name in found.unread:
        try:
            is_alike = node_at(file, path, name).shape == found.arrays["observations"].shape
            if is_alike and len(alike) < MOST_CANDIDATES:
                alike[name] = numbers_at(file, path, name)
        except DataError:
            continue
    return alike


READERS = {
    ".npz": _read_npz,
    ".hdf5": _read_hdf5,
    ".h5": _read_hdf5,
    ".csv": read_table,
    ".tsv": read_table,
    ".txt": read_table,
    ".parquet": read_table,
}
"""The reader of each kind of flat file, by its suffix: gives arrays by field, and the names that it ignored."""
