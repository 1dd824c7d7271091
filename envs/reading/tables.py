"""Tables: CSV and Parquet with a row for each step, or for each episode."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.arrow import ROWS, flat, flat_schema, innermost, is_list, is_numeric
from envs.reading.conventions import Convention, chosen_fields, starts_at_gaps
from envs.reading.csv_files import open_csv
from envs.reading.episode_rows import is_row_an_episode, read_episode_rows
from envs.reading.episodes import EPISODE_FIELDS
from envs.reading.evidence import MOST_WITNESSES
from envs.reading.fields import ENDS, IN_FILES, PROOFS, looks_like_a_source, looks_like_a_step, shell_name
from envs.reading.found import Found, unread_names
from envs.reading.lerobot import is_lerobot_table, read_lerobot_table
from envs.reading.options import ReadingOptions
from envs.reading.readers import most_bytes, too_much
from envs.reading.table_columns import (
    check_no_total,
    column_values,
    columns_named,
    columns_of,
    plain_values,
    rising,
    values_of,
)
from envs.reading.times import times_in_text
from envs.reading.unknown import way_for_content
from envs.reading.unnamed_next import MOST_CANDIDATES, named_alike
from envs.spaces import reason

MOST_CLOCKS = 8
"""Columns of times or counts that are looked at for the order of the rows."""
EQUAL_ROWS = (
    "; each line must have as many cells as the first, which holds the names: delete titles, comments and lines that "
    "were cut short, and put a cell that has the separator in it in quotes"
)
"""What to do about a CSV file in which lines have different numbers of cells."""


@dataclass(frozen=True)
class _Fields:
    """Which columns hold the fields of a table.

    columns: by field its column, or the columns that make one vector.
    chosen: by field the names that were found, before vectors are put together.
    given: fields that the user, or the convention, names columns for.
    convention: of a library's own names, if the table has them.
    """

    columns: Mapping[str, str | list[str]]
    chosen: Mapping[str, Any]
    given: Mapping[str, Any]
    convention: Convention | None

    @property
    def read(self) -> list[str]:
        """Names of all these columns."""
        each = ([value] if isinstance(value, str) else value for value in self.columns.values())
        return list(chain.from_iterable(each))


@dataclass(frozen=True)
class _Proofs:
    """Columns that hold no field, and are read for what they show of order and episodes; see `Found`."""

    clocks: list[str]
    sources: list[str]
    witnesses: list[str]
    alike: list[list[str]]


def read_table(path: Path, options: ReadingOptions) -> Found:
    """CSV or Parquet: one row per step. A vector is columns observation_0, observation_1, ..., or one of equal lists.

    Parquet of LeRobot's frames, and with a row for each episode, has readers of its own.
    """
    is_csv = path.suffix.lower() != ".parquet"
    with _arrow_errors(path):
        from pyarrow import parquet

        if is_csv and path.is_file() and (way := way_for_content(path)):
            raise DataError(f"{path}: cannot be read as {path.suffix}{way}")
        file: Any = open_csv(path) if is_csv else parquet.ParquetFile(path)
        schema = file.schema() if is_csv else flat_schema(file)
        if twice := [name for name, count in Counter(schema.names).items() if count > 1 and name]:
            raise DataError(f"{path}: column {min(twice)!r} appears twice")
        if not is_csv and is_lerobot_table(schema.names):
            return read_lerobot_table(path, options)
        fields = _fields(path, schema, options)
        if not is_csv and is_row_an_episode(path, schema, fields.columns):
            return read_episode_rows(path, schema, fields.columns)
        proofs = _proofs(schema, fields, options)
        names = [*fields.read, *proofs.clocks, *proofs.sources, *proofs.witnesses]
        names = list(dict.fromkeys([*names, *chain.from_iterable(proofs.alike)]))
        if is_csv:
            episode = fields.columns.get("episode", ())
            table = file.read(names, [*([episode] if isinstance(episode, str) else episode), *proofs.sources])
        else:
            table = _read_parquet(path, file, names)
    if table.num_rows == 0:
        raise DataError(f"{path}: no row in it")
    return _found(path, table, fields, proofs, schema.names, file.notes if is_csv else ())


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """Within it, an error of Arrow's becomes a `DataError` that says what to do."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{path}: reading CSV and Parquet needs pyarrow: pip install 'decision-transformer[arrow]'"
        ) from None
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        way = EQUAL_ROWS if re.search(r"Expected \d+ columns, got", str(error)) else ""
        way = way_for_content(path) or way
        raise DataError(f"{path}: cannot be read as {path.suffix} ({reason(error)}){way}") from None


def _fields(path: Path, schema: Any, options: ReadingOptions) -> _Fields:
    """Which columns hold the fields, by the user's names, a library's or the known ones."""
    names = list(schema.names)
    stems = list(dict.fromkeys(re.sub(r"_\d+$", "", name) for name in names))
    chosen, convention = chosen_fields(path, stems, IN_FILES, options, tables=True)
    given = dict(convention.columns if convention else options.columns)
    if starts_at_gaps(options):
        given.pop("episode_start")
    if "step" in chosen and "step" not in given and not _may_be_steps(schema, chosen["step"][0]):
        del chosen["step"]  # a text, which says nothing of the rows' order that could be relied on
    columns = {
        field: columns_named(path, names, each) if field in given else columns_of(path, names, each[0], field)
        for field, each in chosen.items()
    }
    return _Fields(columns, chosen, given, convention)


def _proofs(schema: Any, fields: _Fields, options: ReadingOptions) -> _Proofs:
    """Which other columns are looked at."""
    read, chosen, given = fields.read, fields.chosen, fields.given
    clocks = _clocks(schema, read, chosen, given)
    return _Proofs(
        clocks=clocks,
        sources=[] if clocks else _sources(schema, read, chosen),
        witnesses=_witnesses(schema, read, chosen, given),
        alike=_alike(schema, read, fields.columns, chosen, options),
    )


def _found(
    path: Path, table: Any, fields: _Fields, proofs: _Proofs, names: Sequence[str], notes: Iterable[str]
) -> Found:
    """The columns of a table as arrays, the rows of each episode together.

    names: of all columns.
    notes: on the file.
    """
    missing: dict[tuple[str, str], NDArray[np.int64]] = {}
    arrays: dict[str, Any] = {
        field: values_of(path, table, each, field, missing) for field, each in fields.columns.items()
    }
    if "not_terminated" in arrays:
        arrays["terminated"] = np.asarray(arrays.pop("not_terminated")) == 0
    convention = fields.convention
    if convention and convention.check:
        convention.check(str(path), arrays)
    check_no_total(path, arrays)
    times = _times(table, proofs.clocks)
    rows = _rows_by_episode(path, arrays, list(times))
    if rows is not None:
        arrays = {field: values[rows] for field, values in arrays.items()}
        missing = {name: np.flatnonzero(np.isin(rows, nothing)) for name, nothing in missing.items()}
    if times:
        arrays["clocks"] = {name: values if rows is None else values[rows] for name, values in times.items()}
    if proofs.sources:
        named = {name: column_values(path, table.column(name), name, "episode")[0] for name in proofs.sources}
        arrays["sources"] = {name: values if rows is None else values[rows] for name, values in named.items()}
    return Found(
        arrays=arrays,
        unread=unread_names(names, fields.read),
        notes=[*notes, *([convention.note] if convention and convention.note else [])],
        last_row_is_final=convention is not None and convention.last_row_is_final,
        missing=missing,
        rows=rows,
        witnesses=_whole_columns(path, table, proofs.witnesses),
        alike=_whole_sets(path, table, proofs.alike),
    )


def _witnesses(schema: Any, read: Sequence[str], chosen: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Columns that are not read, of numbers, flags, times or names; where episodes are known, of counts only."""
    from pyarrow import types

    if chosen.keys() & set(PROOFS):
        return []
    kinds = {name: schema.field(name).type for name in _unread(schema, read)}
    counts = (types.is_integer, types.is_floating)
    others = (types.is_string, types.is_large_string, types.is_boolean, types.is_timestamp, types.is_date)
    usable = counts if chosen.keys() & set(EPISODE_FIELDS) or given.keys() & set(ENDS) else (*counts, *others)
    return [name for name, kind in kinds.items() if any(is_kind(kind) for is_kind in usable)][:MOST_WITNESSES]


def _whole_columns(path: Path, table: Any, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Those of these columns in which no cell is empty: (N,) each."""
    from pyarrow import types

    found = dict[str, NDArray[Any]]()
    for name in names:
        column = table.column(name)
        if column.null_count == 0:
            is_time = types.is_temporal(column.type)
            found[name] = rising(column) if is_time else plain_values(column_values(path, column, name, "episode")[0])
    return found


def _alike(
    schema: Any, read: Sequence[str], found: Mapping[str, Any], chosen: Mapping[str, Any], options: ReadingOptions
) -> list[list[str]]:
    """Sets of columns that are not read and may hold next observations, by their names, where nothing better does."""
    if chosen.keys() & set(PROOFS) or "next_observations" in options.columns:
        return []
    seen = found["observations"]
    is_vector = isinstance(seen, str) and is_list(schema.field(seen).type)
    kinds = {name: schema.field(name).type for name in _unread(schema, read)}
    if is_vector:
        return [[name] for name, kind in kinds.items() if is_list(kind) and is_numeric(kind)][:MOST_CANDIDATES]
    numbers = [name for name in kinds if _is_rising_kind(schema, name)]
    return named_alike([seen] if isinstance(seen, str) else seen, numbers)


def _whole_sets(path: Path, table: Any, sets: Iterable[list[str]]) -> dict[str, NDArray[Any]]:
    """Those of these sets of columns in which no cell is empty, by their argument of --columns: (N,) or (N, K) each."""
    found = dict[str, NDArray[Any]]()
    for names in sets:
        try:
            each = [column_values(path, table.column(name), name, "next_observations") for name in names]
        except DataError:
            continue  # lists of several lengths
        if not any(len(nothing) for _, nothing in each):
            values = [numbers for numbers, _ in each]
            found[",".join(map(shell_name, names))] = values[0] if len(values) == 1 else np.stack(values, axis=1)
    return found


def _clocks(schema: Any, read: Sequence[str], chosen: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Columns that are not read and may be times or counts: where nothing better shows the order, they do."""
    if "step" in given or chosen.keys() & set(PROOFS):
        return []
    named = [name for name in _unread(schema, read) if looks_like_a_step(name)]
    return [name for name in named[:MOST_CLOCKS] if _is_rising_kind(schema, name) or _is_text(schema, name)]


def _times(table: Any, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """These columns as numbers that rise as they do, (N,) each; texts that are no times are left out."""
    found = dict[str, NDArray[Any]]()
    for name in names:
        column = table.column(name)
        if not _is_text(table.schema, name):
            found[name] = rising(column)
        elif (times := times_in_text(column)) is not None:
            found[name] = (times - times.min()).astype(np.float64)
    return found


def _sources(schema: Any, read: Sequence[str], chosen: Mapping[str, Any]) -> list[str]:
    """Columns that are not read and may say which environment a row is from, where no lengths or steps are there."""
    if chosen.keys() & {*PROOFS, "lengths", "episode_start"}:
        return []
    return [name for name in _unread(schema, read) if looks_like_a_source(name)][:MOST_CLOCKS]


def _unread(schema: Any, read: Sequence[str]) -> list[str]:
    """Names of the other columns, in order; columns that share a name cannot be read."""
    done = set(read)
    return [name for name, count in Counter(schema.names).items() if count == 1 and name not in done]


def _rows_by_episode(path: Path, arrays: Mapping[str, NDArray[Any]], clocks: Sequence[str]) -> NDArray[np.int64] | None:
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
    place = np.argsort(np.argsort(first))  # rank of each episode by its first row
    number = place[np.searchsorted(names, episode)]
    rows = np.argsort(number, kind="stable")
    if "next_observations" not in arrays and not _counted(arrays.get("step"), rows, number[rows]):
        again = int(starts[np.setdiff1d(np.arange(len(starts)), first)[0]])
        if (twice := _twice(arrays.get("step"), rows, number[rows])) is not None:
            one, other = twice
            raise DataError(
                f"{path}: episode {episode[one]}, step {arrays['step'][one]} is in rows {one + 1} and {other + 1}: if "
                "the file was written twice, delete the copy; if several environments share these numbers, "
                "--columns episode=ENVIRONMENT,EPISODE names both columns"
            )
        raise DataError(
            f"{path}: episode: {episode[again]} begins again at row {again + 1}, and neither a column step that counts "
            "evenly nor next_observations shows the order of its rows: "
            f"{f'--columns step={clocks[0]} says that {clocks[0]} is that step, or ' if clocks else ''}"
            "sort them by episode, then by time (where several columns name an episode, --columns episode=ONE,OTHER)"
        )
    return rows


def _twice(step: NDArray[Any] | None, rows: NDArray[np.int64], number: NDArray[np.int64]) -> tuple[int, int] | None:
    """Two rows of the file with the same step of the same episode; None if there are none. rows, number: (N,)."""
    if step is None or (step == step[0]).all():
        return None  # a step that never changes counts nothing
    order = np.lexsort((step[rows], number))
    same = (step[rows][order][1:] == step[rows][order][:-1]) & (number[order][1:] == number[order][:-1])
    at = int(same.argmax())
    return (int(rows[order[at]]), int(rows[order[at + 1]])) if same.any() else None


def _counted(step: NDArray[Any] | None, rows: NDArray[np.int64], number: NDArray[np.int64]) -> bool:
    """Whether the steps of each episode, in this order of the rows, go up by the same amount everywhere."""
    if step is None:
        return False
    gaps = np.diff(step[rows].astype(np.float64))[number[1:] == number[:-1]]
    return bool(len(gaps) and gaps.min() > 0 and np.allclose(gaps, gaps[0]))


def _may_be_steps(schema: Any, name: str) -> bool:
    """Whether a column may hold step numbers: numbers, times or dates, or lists of numbers (a row for each episode)."""
    numbered = name in schema.names and is_list(schema.field(name).type) and is_numeric(schema.field(name).type)
    return numbered or _is_rising_kind(schema, name)


def _is_text(schema: Any, name: str) -> bool:
    """Whether a column of this name holds texts."""
    from pyarrow import types

    kind = schema.field(name).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


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

    whole = flat_schema(file)
    kinds = {name: whole.field(name).type for name in names}
    for name, kind in kinds.items():
        if types.is_nested(innermost(kind)) or (is_list(kind) and not is_numeric(kind)):
            raise DataError(f"{path}: column {name!r}: type {kind}, expected numbers")
    texts = [name for name, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind)]
    batches, bytes_left = [], most_bytes(path)
    for batch in parquet.ParquetFile(path, read_dictionary=texts).iter_batches(ROWS, columns=names):
        bytes_left -= batch.nbytes
        if bytes_left < 0:  # not asked of the file's metadata: where that is damaged, to ask ends the process
            raise DataError(f"{path}: {too_much(path)}")
        batches.append(batch)
    schema = batches[0].schema if batches else pyarrow.schema(list(kinds.items()))
    return flat(pyarrow.Table.from_batches(batches, schema))
