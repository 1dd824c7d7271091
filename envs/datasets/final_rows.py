"""Rows that hold an observation only, and next observations that are missing where an episode ends."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets.arrays import as_array, as_flags, in_file, num_steps, place
from envs.datasets.ends import episode_ends
from envs.errors import DataError
from envs.reading.fields import ENDS
from envs.reading.readers import Header, Missing


def without_final_rows(header: Header, arrays: Mapping[str, Any]) -> tuple[Header, dict[str, Any]]:
    """The same recording with observations of T + 1 rows, and all else of T, where each episode had T + 1 rows.

    A success in the last row is one of the step before. An episode of one row has no step and is left out.
    """
    rows = num_steps(arrays)
    offsets, terminated, truncated = episode_ends(arrays, rows)
    last, lengths = offsets[1:] - 1, np.diff(offsets) - 1
    for (field, column), missing in header.missing.items():
        if field in ("observations", "next_observations") and np.isin(last, missing).any():
            row = int(np.intersect1d(last, missing)[0])
            raise DataError(f"{place(offsets, row)}, row {in_file(row, header.rows)}, {column}: nothing there")
    steps = np.setdiff1d(np.arange(rows), last)
    kept = lengths > 0
    if not kept.any():
        raise DataError("each episode has one row, and the last row of each is an observation only")
    found: dict[str, Any] = {"lengths": lengths[kept]}
    if arrays.keys() & set(ENDS) == {"done"}:
        found["done"] = terminated[kept]
    else:
        found |= {"terminated": terminated[kept], "truncated": truncated[kept]}
    for field in arrays.keys() - {"lengths", "episode", "episode_start", "observations", "success", *ENDS}:
        found[field] = _rows_of(field, arrays[field], rows, steps)
    seen = np.delete(np.arange(rows), last[~kept])
    found["observations"] = _rows_of("observations", arrays["observations"], rows, seen)
    if "success" in arrays:
        success = as_flags("success", arrays["success"])
        if len(success) == rows:
            success[last[kept] - 1] |= success[last[kept]]
            success = success[steps]
        found["success"] = success
    notes = header.notes
    if not kept.all():
        notes = (*notes, f"{int((~kept).sum())} of {len(kept)} episodes have one row, of an observation only: left out")
    number = np.full(rows, -1)
    number[steps] = np.arange(len(steps))
    there = {name: number[missing] for name, missing in header.missing.items()}
    header = replace(
        header,
        notes=notes,
        rows=steps if header.rows is None else header.rows[steps],
        missing={name: missing[missing >= 0] for name, missing in there.items() if (missing >= 0).any()},
    )
    return header, found


def without_last_missing(missing: Missing, offsets: NDArray[np.int64]) -> tuple[Missing, list[str]]:
    """What is missing apart from next observations that are missing at ends of episodes only, and a note of these."""
    last = offsets[1:] - 1
    excused = {
        name: rows
        for name, rows in missing.items()
        if name[0] == "next_observations" and len(rows) and np.isin(rows, last).all()
    }
    if not excused:
        return missing, []
    count = len(np.unique(np.concatenate(list(excused.values()))))
    note = f"next_observations hold nothing at the end of {count} of {len(last)} episodes"
    return {name: rows for name, rows in missing.items() if name not in excused}, [note]


def _rows_of(where: str, value: Any, rows: int, chosen: NDArray[np.int64]) -> Any:
    """These rows of each array of a value that nests in any way."""
    if isinstance(value, Mapping):
        return {key: _rows_of(f"{where}/{key}", part, rows, chosen) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows_of(f"{where}/{i}", part, rows, chosen) for i, part in enumerate(value))
    array = as_array(where, value)
    if array.ndim == 0 or len(array) != rows:
        raise DataError(f"{where}: shape {array.shape}, expected {rows} rows")
    return array[chosen]
