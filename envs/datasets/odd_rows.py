"""Notes on rows that may not be what was recorded: copies, gaps, unfilled ends, environments side by side."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from envs.datasets.array_files import chunks
from envs.datasets.arrays import how_many, in_file, place
from envs.spaces import Leaves

MOST_UNEVEN = 0.1
"""A share of distances between numbers; if more differ from the usual distance, the numbers have no gaps."""

MOST_SAME = 1e-3
"""By how much of it a distance may differ from the usual one."""


def copy_notes(fields: Leaves, offsets: NDArray[np.int64], rows: NDArray[np.int64] | None) -> list[str]:
    """Notes on rows that equal the row before them, and on episodes that equal earlier ones.

    Whole numbers only are often the same again. fields: all that was recorded, (N, ...) each. rows: as in `Header`.
    """
    if not any(_is_measured(values) for values in fields.values()):
        return []
    again = np.ones(len(next(iter(fields.values()))) - 1, np.bool_)
    something = ~again
    for values in fields.values():
        at = 0
        for piece in chunks(values[1:]):
            again[at : at + len(piece)] &= (piece == values[at : at + len(piece)]).reshape(len(piece), -1).all(1)
            something[at : at + len(piece)] |= (piece != 0).reshape(len(piece), -1).any(1)
            at += len(piece)
    again &= something  # of rows of zeros `unfilled_notes` says more
    again[offsets[1:-1] - 1] = False  # another episode begins there
    notes = list[str]()
    if again.any():
        row = int(again.argmax()) + 1
        notes.append(
            f"{int(again.sum())} of {len(again) + 1} rows are exact copies of the row before them, first "
            f"{place(offsets, row)} (row {in_file(row, rows)}). If they were written twice, returns and lengths are "
            "wrong"
        )
    count = _episodes_again(fields, offsets)
    if count:
        notes.append(f"{count} of {len(offsets) - 1} episodes are exact copies of earlier ones")
    return notes


def _is_measured(values: NDArray[np.generic]) -> bool:
    """Whether an array holds numbers that are hardly the same twice: some have decimals."""
    some = values[:1000]
    return values.dtype.kind == "f" and bool((some != np.floor(some)).any())


def _episodes_again(fields: Leaves, offsets: NDArray[np.int64]) -> int:
    """How many episodes of more than one step equal an earlier one."""
    first, end = offsets[:-1][np.diff(offsets) > 1], offsets[1:][np.diff(offsets) > 1]
    starts = [b"".join(values[row].tobytes() for values in fields.values()) for row in first]
    usual = Counter(starts)
    seen, count = set[bytes](), 0
    for start, row, after in zip(starts, first, end, strict=True):
        if usual[start] > 1:
            whole = b"".join(values[row:after].tobytes() for values in fields.values())
            count += whole in seen
            seen.add(whole)
    return count


def unfilled_notes(fields: Leaves, offsets: NDArray[np.int64], ended: NDArray[np.bool_]) -> list[str]:
    """A note on rows of zeros after the last end: a buffer that was not full. ended: (E,)."""
    first = int(offsets[-2])
    if ended[-1] or len(offsets) == 2:
        return []
    nothing = np.ones(int(offsets[-1]), np.bool_)
    for values in fields.values():
        nothing &= (values == 0).reshape(len(values), -1).all(axis=1)
    filled = np.flatnonzero(~nothing[first:])
    start = first + (int(filled[-1]) + 1 if len(filled) else 0)
    if offsets[-1] - start < 2 or nothing[:start].any():
        return []
    return [
        f"the last {offsets[-1] - start} rows, from row {start + 1} on, hold zeros only: if these are places of a "
        "buffer that were never filled, cut them off"
    ]


def running_notes(rewards: NDArray[np.generic], offsets: NDArray[np.int64]) -> list[str]:
    """A note on rewards that only rise, or only fall, within each episode: a running score, or returns-to-go."""
    change = np.diff(rewards.astype(np.float64))
    inside = np.ones(len(change), np.bool_)
    inside[offsets[1:-1] - 1] = False  # another episode begins there
    if (
        len(offsets) < 4
        or np.diff(offsets).min() < 3
        or np.count_nonzero(change[inside]) * 2 < np.count_nonzero(inside)
    ):
        return []
    for said, change_of, way in (
        ("rise", change, "a running score, write each step's difference"),
        ("fall", -change, "returns-to-go, write each step's difference to the next"),
    ):
        if (change_of[inside] >= 0).all() and (change_of[~inside] < 0).all():
            return [f"rewards only {said} within each of {len(offsets) - 1} episodes: if they are {way}"]
    return []


def side_by_side_notes(offsets: NDArray[np.int64]) -> list[str]:
    """A note on ends in row after row, as environments have that are recorded side by side and end together."""
    lengths = np.diff(offsets)
    number = int((lengths[1:] != 1).argmax()) + 1 if len(lengths) > 1 else 0
    if number < 2 or len(lengths) % number or len(lengths) < 2 * number:
        return []
    waves = lengths.reshape(-1, number)
    if (waves[:, 0] == 1).any() or (waves[:, 1:] != 1).any():
        return []
    return [
        f"episodes end in {number} rows on end, each time: if {number} environments were recorded side by side, these "
        "episodes are wrong: sort the rows by environment and time"
    ]


def gap_notes(
    name: str, values: NDArray[np.generic], offsets: NDArray[np.int64], rows: NDArray[np.int64] | None
) -> list[str]:
    """A note on steps or times that go up evenly but for a few places. values: (N,), rising within episodes."""
    distances = np.diff(values.astype(np.float64))
    inside = np.ones(len(distances), np.bool_)
    inside[offsets[1:-1] - 1] = False  # another episode begins there
    if not inside.any():
        return []
    usual = float(np.median(distances[inside]))
    wide = inside & (distances > 1.5 * usual)
    uneven = inside & ~np.isclose(distances, usual, rtol=MOST_SAME, atol=0)
    if usual <= 0 or not wide.any() or np.count_nonzero(uneven) > MOST_UNEVEN * np.count_nonzero(inside):
        return []
    row = int(wide.argmax()) + 1
    return [
        f"{name} goes up {distances[row - 1] / usual:.3g} times as much as usual at {place(offsets, row)} "
        f"(row {in_file(row, rows)}){how_many(wide)}: rows may be missing"
    ]
