"""Numbers of Arrow's columns, lists in lists included, with one shape for every row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.found import Budget

ROWS = 1 << 16
"""Rows of a file that are read at once."""


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is one of lists, of equal or of different lengths."""
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def innermost(kind: Any) -> Any:
    """The type of what lists, and lists in lists, hold."""
    while is_list(kind):
        kind = kind.value_type
    return kind


def is_numeric(kind: Any) -> bool:
    """Whether an Arrow type is of numbers or flags, or of lists of them."""
    from pyarrow import types

    inner = innermost(kind)
    return bool(types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner))


def flat_schema(file: Any) -> Any:
    """The columns of a Parquet file; a record's parts are columns of their own, such as observation.position."""
    import pyarrow
    from pyarrow import types

    fields = list(file.schema_arrow)
    while any(types.is_struct(field.type) for field in fields):
        fields = [part for field in fields for part in (field.flatten() if types.is_struct(field.type) else [field])]
    return pyarrow.schema(fields)


def flat(table: Any) -> Any:
    """The table with the parts of its records as columns of their own."""
    from pyarrow import types

    while any(types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return table


def read_columns(path: Path, names: Sequence[str], budget: Budget) -> Any:
    """These columns of a Parquet file as a table, unless their numbers would fill the memory.

    How many there are is not asked of the file's metadata: where that is damaged, to ask ends the process.
    """
    import pyarrow
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    whole = flat_schema(file)
    schema = pyarrow.schema([whole.field(name) for name in names])
    batches = []
    for batch in file.iter_batches(ROWS, columns=list(names)):
        budget.take(path.name, batch.nbytes)
        batches.append(batch)
    return flat(pyarrow.Table.from_batches(batches)).select(list(names)) if batches else schema.empty_table()


def column_of(table: Any, name: str) -> Any:
    """A table's column as one array."""
    import pyarrow

    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else pyarrow.concat_arrays(column.chunks or [_empty(column)])


def _empty(column: Any) -> Any:
    import pyarrow

    return pyarrow.array([], column.type)


def numbers_of(where: str, column: Any) -> NDArray[Any]:
    """A column as an array (N, ...): a row's lists, and the lists in them, must have one length in all rows."""
    rows, shape = len(column), list[int]()
    while is_list(column.type):
        lengths = lengths_of(where, column, rows)
        size = int(lengths[0]) if len(lengths) else 0
        if (odd := lengths != size).any():
            row = int(odd.argmax()) * rows // max(1, len(lengths))
            raise DataError(f"{where}: row {row + 1}: {lengths[odd.argmax()]} numbers, expected {size}")
        column = column.flatten()
        shape.append(size)
    if column.null_count:
        missing = int(np.asarray(column.is_null().to_numpy(zero_copy_only=False)).argmax())
        raise DataError(f"{where}: row {missing * rows // max(1, len(column)) + 1}: nothing there")
    if not is_numeric(column.type):
        raise DataError(f"{where}: type {column.type}, expected numbers")
    numbers = np.array(column.to_numpy(zero_copy_only=False))  # a copy: the file is let go
    return numbers.reshape(rows, *shape)


def lengths_of(where: str, column: Any, rows: int | None = None) -> NDArray[np.int64]:
    """How many each list of a column holds: (N,). rows: of the file, where the lists are those of lists."""
    from pyarrow import compute

    if column.null_count:
        missing = int(np.asarray(column.is_null().to_numpy(zero_copy_only=False)).argmax())
        row = missing if rows is None else missing * rows // max(1, len(column))
        raise DataError(f"{where}: row {row + 1}: nothing there")
    return np.asarray(compute.list_value_length(column).to_numpy(zero_copy_only=False), np.int64)
