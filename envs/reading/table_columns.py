"""The columns of a table: which of them hold a field, and their cells as numbers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.arrow import is_list, numbers_of
from envs.reading.csv_files import is_list as is_list_text
from envs.reading.csv_files import lists_in_text
from envs.reading.fields import ENDS, NEEDED, listed, no_column, shell_name
from envs.reading.readers import as_numbers

FLAGS = (*ENDS, "not_done", "episode_start", "success", "not_terminated")
"""Fields that are true or false."""

YES = {"true", "t", "yes", "y", "on", "1", "1.0"}
NO = {"false", "f", "no", "n", "off", "0", "0.0"}
"""Words for true and false, in small letters."""

NOTHING = {"-", "--", "---", "?", ".", "none", "missing", "unknown", "#div/0!", "#value!", "#ref!", "#num!", "error"}
"""What people and tools write where nothing was recorded, in small letters."""

EACH_ROW = {
    "episode": "; write the episode in each of its rows",
    "step": "; --columns step=none leaves it unread",
    **dict.fromkeys(FLAGS, "; write 0 (or false) in rows that are not marked"),
}
"""What to do about an empty cell, by field."""


MOST_NAMED = 20
"""Names of choices that a refusal lists."""

LEAST_ROWS = 8
"""In a table of fewer rows any row may be the sum of the others by chance, so no total is looked for."""

TOTAL = "; if this last row is a total or a comment, delete it"
"""What to do about a last row that is unlike the others."""


def columns_of(path: Path, names: list[str], stem: str, field: str) -> str | list[str]:
    """The column of this name, or those numbered name_0, name_1, ...; both may not be there."""
    numbered = [name for name in names if re.fullmatch(rf"{re.escape(stem)}_\d+", name)]
    if stem in names:
        if numbered:
            raise DataError(f"{path}: {stem!r} and {min(numbered)!r} are both {field}; keep one of them")
        return stem
    there = set(numbered)
    for i in range(len(numbered)):
        if f"{stem}_{i}" not in there:
            in_order = sorted(numbered, key=lambda name: int(name.rpartition("_")[2]))
            raise DataError(
                f"{path}: no column '{stem}_{i}', only {listed(in_order)}; numbers are expected "
                f"from {stem}_0 on, --columns {field}={','.join(map(shell_name, in_order))} says which"
            )
    return [f"{stem}_{i}" for i in range(len(numbered))]


def columns_named(path: Path, names: list[str], wanted: tuple[str, ...]) -> str | list[str]:
    """The columns that a user names; one may stand for those that are numbered after it."""
    if len(wanted) == 1 and wanted[0] in names:
        return wanted[0]
    found: list[str] = []
    for name in wanted:
        numbered = [] if name in names else columns_of(path, names, name, name)
        if name not in names and not numbered:
            raise DataError(f"{path}: {no_column(name, names)}")
        found += numbered or [name]
    return found


def values_of(
    path: Path, table: Any, columns: str | list[str], field: str, missing: dict[tuple[str, str], NDArray[np.int64]]
) -> NDArray[Any]:
    """A field's column, or several of them side by side: (N,) or (N, K). missing: gets the rows where nothing is."""
    if not isinstance(columns, str):
        each = [values_of(path, table, name, field, missing) for name in columns]
        return _numbered(each) if field == "episode" else np.stack(each, axis=1)
    values, nothing = column_values(path, table.column(columns), columns, field)
    if len(nothing) and field not in (*NEEDED, "next_observations"):  # where episodes end is not known then
        way = TOTAL if nothing[0] == len(values) - 1 > 0 else EACH_ROW.get(field, "")
        raise DataError(f"{path}: row {nothing[0] + 1}, column {columns!r}: nothing there{way}")
    if len(nothing):
        missing[field, columns] = nothing
    return values


def column_values(path: Path, column: Any, name: str, field: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """One column, (N,), or (N, K) from lists of K numbers, zeros where nothing is, and the rows of those.

    A cell that is not a number is named by its row.
    """
    import pyarrow
    from pyarrow import types

    kind = column.type
    if is_list(kind) and is_list(kind.value_type):
        return numbers_of(f"{path}: column {name!r}", column.combine_chunks()), np.empty(0, np.int64)
    if is_list(kind):
        return _lists(path, column, name)
    if isinstance(kind, pyarrow.FixedShapeTensorType) and column.null_count == 0 and len(column):
        return column.combine_chunks().to_numpy_ndarray(), np.empty(0, np.int64)
    if types.is_decimal(kind):
        column = column.cast("float64")
        kind = column.type
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
        return rising(column), nothing
    if types.is_string(kind) or types.is_large_string(kind):
        if field in FLAGS:
            return _flags_in_text(path, name, values), nothing
        if is_list_text(next((text for text in values if text.strip()), "")):
            return lists_in_text(f"{path}: row {{row}}, column {name!r}", values)
        row = next((row for row, text in enumerate(values) if not _is_number(text)), None)
        if row is None:
            return np.array([float(text) for text in values]), nothing
        way = TOTAL if row == len(values) - 1 > 0 else way_for_text(row, values, name, field)
        raise DataError(f"{path}: row {row + 1}, column {name!r}: {values[row][:40]!r}, expected a number{way}")
    return as_numbers(values, f"{path}: column {name!r}"), nothing


def _flags_in_text(path: Path, name: str, values: NDArray[Any]) -> NDArray[np.bool_]:
    """True or false from words, as people and tools write them: yes and no, T and F, [False]."""
    words = [text.strip().strip("[]()").strip().lower() for text in values]
    if odd := [row for row, word in enumerate(words) if word not in YES and word not in NO]:
        row, way = odd[0], "; write 1 in the rows that are marked, and 0 in the others"
        way = TOTAL if row == len(values) - 1 > 0 else way
        raise DataError(
            f"{path}: row {row + 1}, column {name!r}: {values[row][:40]!r}, expected true or false, or 1 or 0{way}"
        )
    return np.array([word in YES for word in words])


def plain_values(values: NDArray[Any]) -> NDArray[Any]:
    """Texts as true and false, or as whole numbers, if each is one: (N,); other values as they are."""
    if values.dtype.kind != "O" or not all(isinstance(text, str) for text in values):
        return values
    distinct = {text.strip().lower() for text in set(values)}
    if all(re.fullmatch(r"[-+]?\d{1,18}", word) for word in distinct):
        return values.astype(np.int64)
    if distinct <= YES | NO:
        return np.array([text.strip().lower() in YES for text in values])
    return values


def check_no_total(path: Path, arrays: Mapping[str, Any]) -> None:
    """Refuse a last row that holds the sums or the means of the rows above it."""
    fields = [np.asarray(arrays[name]) for name in NEEDED if name in arrays]
    fields = [values.reshape(len(values), -1) for values in fields if values.dtype.kind in "iuf"]
    if not fields or {len(values) for values in fields} != {len(fields[0])} or len(fields[0]) < LEAST_ROWS:
        return
    columns = [column for values in fields for column in values.T if (column[:-1] != column[0]).any()]
    if len(columns) < 2:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.array([column[:-1].sum(dtype=np.float64) for column in columns])
    last, rows = np.array([float(column[-1]) for column in columns]), len(fields[0])
    for name, total in (("sums", sums), ("means", sums / (rows - 1))):
        if np.allclose(last, total, rtol=1e-3, atol=0):
            raise DataError(f"{path}: row {rows}, the last, holds the {name} of the rows above it: delete it")


def way_for_text(row: int, values: NDArray[Any], name: str, field: str) -> str:
    """What to do about a cell that is not a number. values: all cells of its column, (N,)."""
    bare = values[row].strip()
    if bare == name:
        return "; the line of names again: delete it"
    if row == 0 and any(map(_is_number, values[1:2])):
        return "; if this row holds units or descriptions, delete it"
    if bare.lower() in NOTHING:
        return "; leave a cell empty in which nothing was recorded: --skip-bad-episodes leaves its episode out then"
    if re.fullmatch(r"[-+]?\d[\d.]*,\d+|[-+]?\d{1,3}(,\d{3})+(\.\d+)?", bare):
        return "; write decimals with a point, and no sign for thousands"
    if "\u2212" in bare:
        return "; write the sign of negative numbers as -"
    if bare.startswith("{"):
        return "; a record in text: write each of its parts as a column"
    parts = re.split(r"[\s,;|]+", bare)
    if len(parts) > 1 and all(map(_is_number, parts)):
        return f"; write a list as [{', '.join(parts[:2])}, ...], or as columns {name}_0, {name}_1, ..."
    if _is_number(bare.strip("%$\u20ac\u00a3 ")):
        return "; write numbers without a unit"
    return way_for_names(values) if field == "actions" else ""


def way_for_names(values: NDArray[Any]) -> str:
    """What to do about choices that are names: (N,)."""
    names = sorted({str(text).strip() for text in values})
    if not 1 < len(names) <= MOST_NAMED:
        return "; choices are given as whole numbers, such as 0 and 1"
    return f"; choices are whole numbers: write {', '.join(f'{i} for {name}' for i, name in enumerate(names))}"


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


def rising(column: Any) -> NDArray[Any]:
    """A column of numbers, times or dates as numbers that rise as it does, from 0 on; where nothing is, NaN."""
    from pyarrow import compute, types

    if types.is_temporal(column.type):
        values = column.to_numpy()
        kind = "timedelta64[ns]" if values.dtype.kind == "m" else "datetime64[ns]"
        times = np.asarray(values, kind)
        numbers, nothing = times.astype(np.int64), np.isnat(times)
    elif types.is_integer(column.type):
        numbers, nothing = compute.fill_null(column, 0).to_numpy(), column.is_null().to_numpy()
    else:
        return np.asarray(compute.cast(column, "float64").to_numpy(), np.float64)
    if nothing.all():
        return np.full(len(numbers), np.nan)
    offset = numbers[~nothing].min()  # nanoseconds since 1970 have more digits than float64
    return np.where(nothing, np.nan, (numbers - offset).astype(np.float64))


def _numbered(columns: list[NDArray[Any]]) -> NDArray[np.int64]:
    """A number for each episode that several columns name together: (N,)."""
    number = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        index = np.unique(column, return_inverse=True)[1]
        number = np.unique(number * (index.max() + 1) + index, return_inverse=True)[1]
    return number
