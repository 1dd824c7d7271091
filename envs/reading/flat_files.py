"""Flat files: D4RL's HDF5, `.npz`, CSV and Parquet. One array a field, all episodes one after the other."""

import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.conventions import Convention, convention_of, lengths_from_first_rows
from envs.reading.csv_files import is_list, lists_in_text, open_csv
from envs.reading.d3rlpy import is_version_2, read_version_2
from envs.reading.episode_rows import is_row_an_episode, read_episode_rows
from envs.reading.episodes import TELLING, check_names, split_as_asked
from envs.reading.fields import (
    ABSENT,
    ENDS,
    IN_FILES,
    MOST_NAMES,
    NEEDED,
    PROOFS,
    choose,
    listed,
    looks_like_a_source,
    looks_like_a_step,
)
from envs.reading.found import Found, side_by_side
from envs.reading.hdf5 import numbers_at, open_hdf5
from envs.reading.lerobot import is_lerobot_table, read_lerobot_table
from envs.reading.options import ReadingOptions
from envs.reading.readers import Recording, as_numbers, header_of, most_bytes, parse_metadata, too_much
from envs.reading.robomimic import is_robomimic, read_robomimic
from envs.reading.tianshou import is_tianshou, read_tianshou
from envs.reading.unknown import way_for_file
from envs.spaces import printable, reason

INTERLEAVED = "rows of episodes were interleaved: each episode's were put together, in the order that they had"
"""A note on a table in which several episodes were written side by side."""

MOST_CLOCKS = 8
"""Columns of times or counts that are looked at for the order of the rows."""

ROWS = 1 << 16
"""Rows of a table that are read at once."""


def read_flat(path: Path, given: Mapping[str, Space[Any]], options: ReadingOptions) -> Recording:
    """A flat file.

    given: spaces by name, instead of the metadata's own.
    """
    if not is_flat(path):
        known = f"neither a Minari dataset's folder nor a file that is known here: {', '.join(READERS)}"
        raise DataError(f"{path}: {known}; {way_for_file(path)}")
    found = READERS[path.suffix.lower()](path, options)
    arrays = split_as_asked(str(path), found.arrays, options)
    notes = check_names(str(path), found.unread, arrays, options)
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
        leave_out=tuple(name for name in options.leave_out if name not in found.left_out),
        notes=tuple(map(printable, [*notes, *found.notes])),
    )
    return Recording(header, found.arrays)


def is_flat(path: Path) -> bool:
    """Whether a path is a flat file's, by its suffix."""
    return path.suffix.lower() in READERS


def flat_files(folder: Path) -> list[Path]:
    """The flat files in a folder; Minari's own file is none."""
    return sorted(path for path in folder.iterdir() if is_flat(path) and path.name != "main_data.hdf5")


def _chosen(
    path: Path, names: Sequence[str], fields: Sequence[str], options: ReadingOptions, tables: bool = False
) -> tuple[dict[str, tuple[str, ...]], Convention | None]:
    """By field the names that hold it: as the user says, as a library has them, or the usual ones."""
    convention = convention_of(str(path), names, options, tables=tables)
    columns = convention.columns if convention else options.columns
    if options.reward == "success":
        fields = (*fields, "success")
    optional = ("rewards",) if options.reward or (convention and convention.no_rewards) else ()
    usual = choose(str(path), names, fields, columns, optional)
    chosen = {**{field: (name,) for field, name in usual.items()}, **columns}
    there = {field: each for field, each in chosen.items() if each != (ABSENT,) or ABSENT in names}
    return there, convention


def _read_npz(path: Path, options: ReadingOptions) -> Found:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: cannot be read as .npz (no zip file)")
    try:
        with np.load(path, allow_pickle=False) as file:
            chosen, convention = _chosen(path, file.files, IN_FILES, options)
            if "metadata" in file.files:
                chosen["metadata"] = ("metadata",)
            if convention and convention.first_rows:
                chosen["first_rows"] = (convention.first_rows,)
            arrays, bytes_left = {}, most_bytes(path)
            for field, names in chosen.items():
                for name in names:
                    if name not in file.files:
                        raise DataError(f"{path}: no {name!r} in it, only {listed(sorted(file.files), MOST_NAMES)}")
                    bytes_left -= _declared_bytes(path, file.zip, name)
                    if bytes_left < 0:
                        raise DataError(f"{path}: {name}: {too_much(path)}")
                arrays[field] = side_by_side(f"{path}: {field}", [np.asarray(file[name]) for name in names])
            return _found(file.files, chosen, arrays, convention, path, options)
    except DataError:
        raise
    except Exception as error:  # zip, zlib and numpy's readers raise errors of many kinds where a file is damaged
        raise DataError(f"{path}: cannot be read as .npz ({reason(error)})") from None


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
    if first is not None and convention:
        arrays["lengths"] = lengths_from_first_rows(f"{path}: {convention.first_rows}", first, len(arrays["rewards"]))
    return Found(
        arrays=arrays,
        unread=_unread(names, chain.from_iterable(chosen.values())),
        notes=[convention.note] if convention and convention.note else [],
        last_row_is_final=convention is not None and convention.last_row_is_final,
        metadata=None if metadata is None else str(metadata),
    )


def _is_per_step(arrays: Mapping[str, Any]) -> bool:
    """Whether `step` is a number for each step."""
    step, clock = np.asarray(arrays["step"]), np.asarray(arrays["rewards" if "rewards" in arrays else "actions"])
    return step.dtype.kind in "iuf" and step.shape in ((len(clock),), (len(clock), 1)) if clock.ndim else False


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


def _read_hdf5(path: Path, options: ReadingOptions) -> Found:
    """D4RL's layout (Fu et al. 2020): observations, actions, rewards, terminals, timeouts; infos are ignored.

    Layouts of other libraries have readers of their own.
    """
    with open_hdf5(path) as file:
        names = [str(name) for name in file]  # one that is no UTF-8 comes as bytes
        by_path = any("/" in name for wanted in options.columns.values() for name in wanted if name.startswith("data/"))
        if is_robomimic(file, path) and not by_path:
            return read_robomimic(file, path, options)
        if is_version_2(names) and not options.columns:
            return read_version_2(file, path, names)
        if is_tianshou(file, path):
            return read_tianshou(file, path, options.columns)
        chosen, convention = _chosen(path, names, IN_FILES, options)
        arrays = {
            field: side_by_side(f"{path}: {field}", [numbers_at(file, path, name) for name in each])
            for field, each in chosen.items()
        }
        return _found(names, chosen, arrays, convention, path, options)


def _read_table(path: Path, options: ReadingOptions) -> Found:
    """CSV or Parquet: one row a step. A vector is columns observation_0, observation_1, ..., or one of equal lists.

    Parquet of LeRobot's frames, and with a row for each episode, has readers of its own.
    """
    is_csv = path.suffix.lower() != ".parquet"
    try:
        import pyarrow
        from pyarrow import parquet

        file: Any = open_csv(path) if is_csv else parquet.ParquetFile(path)
        schema = file.schema() if is_csv else file.schema_arrow
        names = list(schema.names)
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{path}: column {min(twice)!r} stands in it twice")
        stems = list(dict.fromkeys(re.sub(r"_\d+$", "", name) for name in names))
        if not is_csv and is_lerobot_table(names):
            return read_lerobot_table(path, options)
        chosen, convention = _chosen(path, stems, IN_FILES, options, tables=True)
        said = convention.columns if convention else options.columns
        if "step" in chosen and "step" not in said and not _is_rising_kind(schema, chosen["step"][0]):
            del chosen["step"]  # a text, which says nothing of the rows' order that could be relied on
        found = {
            field: _columns_named(path, names, each) if field in said else _columns_of(path, names, each[0], field)
            for field, each in chosen.items()
        }
        if not is_csv and is_row_an_episode(path, schema, found):
            return read_episode_rows(path, schema, found)
        each_of = {field: [each] if isinstance(each, str) else each for field, each in found.items()}
        read = list(chain.from_iterable(each_of.values()))
        clocks = _clocks(schema, read, chosen, said)
        sources = [] if clocks else _sources(schema, read, chosen)
        wanted = list(dict.fromkeys([*read, *clocks, *sources]))
        if is_csv:
            table = file.read(wanted, [*each_of.get("episode", ()), *sources])
        else:
            table = _read_parquet(path, file, wanted)
    except ImportError:
        raise DataError(
            f"{path}: reading CSV and Parquet needs pyarrow: pip install 'decision-transformer[arrow]'"
        ) from None
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix} ({reason(error)})") from None
    if table.num_rows == 0:
        raise DataError(f"{path}: no row in it")
    missing: dict[tuple[str, str], NDArray[np.int64]] = {}
    arrays: dict[str, Any] = {field: _values(path, table, each, field, missing) for field, each in found.items()}
    if convention and convention.check:
        convention.check(str(path), arrays)
    rows = _together(path, arrays, clocks)
    if rows is not None:
        arrays = {field: values[rows] for field, values in arrays.items()}
        missing = {name: np.flatnonzero(np.isin(rows, nothing)) for name, nothing in missing.items()}
    if clocks:
        shown = {name: _rising(table.column(name)) for name in clocks}
        arrays["clocks"] = {name: values if rows is None else values[rows] for name, values in shown.items()}
    if sources:  # there is no episode to sort the rows by
        arrays["sources"] = {name: _column(path, table.column(name), name, "episode")[0] for name in sources}
    notes = [*(file.notes if is_csv else ()), *([convention.note] if convention and convention.note else [])]
    return Found(
        arrays=arrays,
        unread=_unread(names, read),
        notes=notes,
        last_row_is_final=convention is not None and convention.last_row_is_final,
        missing=missing,
        rows=rows,
    )


def _clocks(schema: Any, read: Sequence[str], chosen: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """Columns that are not read and may be times or counts: where nothing better shows the order, they do."""
    if "step" in said or chosen.keys() & set(PROOFS):
        return []
    left = set(schema.names) - set(read)
    named = [name for name in schema.names if name in left and looks_like_a_step(name)]
    return [name for name in named[:MOST_CLOCKS] if _is_rising_kind(schema, name)]


def _sources(schema: Any, read: Sequence[str], chosen: Mapping[str, Any]) -> list[str]:
    """Columns that are not read and may say which environment a row is from, where only flags mark episodes."""
    if chosen.keys() & {*PROOFS, *TELLING}:
        return []
    left = set(schema.names) - set(read)
    return [name for name in schema.names if name in left and looks_like_a_source(name)][:MOST_CLOCKS]


def _rising(column: Any) -> NDArray[Any]:
    """A column of numbers, times or dates as numbers that rise as it does; where nothing is, NaN."""
    from pyarrow import compute, types

    if not types.is_temporal(column.type):
        return np.asarray(compute.cast(column, "float64").to_numpy(), np.float64)
    values = column.to_numpy()
    kind = "timedelta64[ns]" if values.dtype.kind == "m" else "datetime64[ns]"
    times = np.asarray(values, kind)
    return np.where(np.isnat(times), np.nan, times.astype(np.int64))


def _together(path: Path, arrays: Mapping[str, NDArray[Any]], clocks: Sequence[str]) -> NDArray[np.int64] | None:
    """The rows in an order in which those of an episode stand together; None where they do.

    That the rows of each were written in the order of time must be seen: in next_observations, which are compared
    later, or in steps that are evenly counted. Shuffled rows look the same otherwise.
    clocks: columns that may be steps, for the words of a refusal.
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
            "evenly nor next_observations shows the order of its rows: "
            f"{f'--columns step={clocks[0]} says that {clocks[0]} is that step, or ' if clocks else ''}"
            "sort them by episode, then by time (where several columns name an episode, --columns episode=ONE,OTHER)"
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


def _is_rising_kind(schema: Any, name: str) -> bool:
    """Whether a column of this name is there and holds numbers, times or dates."""
    from pyarrow import types

    if name not in schema.names:
        return False
    kind = schema.field(name).type
    dated = types.is_timestamp(kind) or types.is_date(kind) or types.is_duration(kind)
    return types.is_integer(kind) or types.is_floating(kind) or dated


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
    batches, bytes_left = [], most_bytes(path)
    for batch in parquet.ParquetFile(path, read_dictionary=texts).iter_batches(ROWS, columns=names):
        bytes_left -= batch.nbytes
        if bytes_left < 0:  # not asked of the file's metadata: where that is damaged, to ask ends the process
            raise DataError(f"{path}: {too_much(path)}")
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
    there = set(numbered)
    for i in range(len(numbered)):
        if f"{stem}_{i}" not in there:
            raise DataError(
                f"{path}: no column '{stem}_{i}', only {listed(sorted(numbered))}; numbers are expected "
                f"from {stem}_0 on, --columns {field}={','.join(sorted(numbered)[:2])},... says which"
            )
    return [f"{stem}_{i}" for i in range(len(numbered))]


def _columns_named(path: Path, names: list[str], wanted: tuple[str, ...]) -> str | list[str]:
    """The columns that a user names; one may stand for those that are numbered after it."""
    if len(wanted) == 1 and wanted[0] in names:
        return wanted[0]
    found: list[str] = []
    for name in wanted:
        numbered = [] if name in names else _columns_of(path, names, name, name)
        if name not in names and not numbered:
            raise DataError(f"{path}: no column {name!r}, only {listed(sorted(names), MOST_NAMES)}")
        found += numbered or [name]
    return found


def _values(
    path: Path, table: Any, columns: str | list[str], field: str, missing: dict[tuple[str, str], NDArray[np.int64]]
) -> NDArray[Any]:
    """A field's column, or several of them side by side: (N,) or (N, K). missing: gets the rows where nothing is."""
    if not isinstance(columns, str):
        each = [_values(path, table, name, field, missing) for name in columns]
        return _numbered(each) if field == "episode" else np.stack(each, axis=1)
    values, nothing = _column(path, table.column(columns), columns, field)
    if len(nothing) and field not in (*NEEDED, "next_observations"):  # where episodes end is not known then
        raise DataError(f"{path}: row {nothing[0] + 1}, column {columns!r}: nothing there")
    if len(nothing):
        missing[field, columns] = nothing
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
        return _named(path, values, name, nothing)
    if field == "step" and types.is_temporal(kind):
        return _rising(column), nothing
    if types.is_string(kind) or types.is_large_string(kind):
        if field not in ENDS and is_list(next((text for text in values if text.strip()), "")):
            return lists_in_text(f"{path}: row {{row}}, column {name!r}", values)
        row = next((row for row, text in enumerate(values) if not _is_number(text)), 0)
        expected = "true or false, or 1 or 0" if field in ENDS else "a number"
        choices = "; choices are given as whole numbers, such as 0 and 1" if field == "actions" else ""
        if re.fullmatch(r"\s*[-+]?\d[\d.]*,\d+\s*|\s*[-+]?\d{1,3}(,\d{3})+(\.\d+)?\s*", values[row]):
            choices = "; write decimals with a point, and no sign for thousands"
        raise DataError(f"{path}: row {row + 1}, column {name!r}: {values[row][:40]!r}, expected {expected}{choices}")
    return as_numbers(values, f"{path}: column {name!r}"), nothing


def _named(
    path: Path, values: NDArray[Any], name: str, nothing: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The numbers or names of episodes; names without the blanks around them, and none may be empty."""
    if values.dtype.kind != "O":
        return values, nothing
    names = np.array([text.strip() if isinstance(text, str) else text for text in values], object)
    empty = np.flatnonzero([text == "" for text in names])
    return names, np.union1d(nothing, empty)


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
    ".tsv": _read_table,
    ".txt": _read_table,
    ".parquet": _read_table,
}
"""The reader of each kind of flat file, by its suffix: gives arrays by field, and the names that it ignored."""


def _unread(names: Iterable[str], read: Iterable[str]) -> list[str]:
    """Names that were not read; of a group of arrays, all but those that were."""
    read = set(read)
    inside = {name: sorted(each for each in read if each.startswith(f"{name}/")) for name in set(names) - read}
    return sorted(name + (f" (but for {', '.join(parts)})" if parts else "") for name, parts in inside.items())
