"""What proves that the rows of a flat recording are in order: step numbers, clocks, next observations."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets.array_files import chunks
from envs.datasets.arrays import how_many, in_file, one_column, place
from envs.datasets.odd_rows import gap_notes
from envs.errors import DataError
from envs.reading.boundaries import GAPS_MAY_BE_ENDS, differ
from envs.reading.readers import Missing
from envs.spaces import Leaves

MOST_USUAL, MOST_CHANCE_OF_SHIFT = 0.5, 0.001
"""Zeros in first rows show nothing if they are more usual elsewhere, or if all of them are as probable by chance."""


def order_notes(arrays: Mapping[str, Any], offsets: NDArray[np.int64], rows: NDArray[np.int64] | None) -> list[str]:
    """Notes of what is odd about the order of the rows; rows out of order are refused. rows: as in `Header`."""
    if "step" in arrays:
        step = one_column("step", arrays["step"])
        _check_steps(step, offsets, rows)
        return [*_late_notes(step, offsets), *gap_notes("step", step, offsets, rows)]
    if "next_observations" in arrays:
        return []  # these show the order too
    notes = list[str]()
    for name, values in arrays.get("clocks", {}).items():
        _check_clock(name, values, offsets, rows)
        notes += gap_notes(name, values, offsets, rows)
    return notes[:1] + _source_notes(arrays.get("sources", {}), offsets, rows)


def _check_steps(step: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64] | None) -> None:
    """Refuse rows that are not in the order of their steps' numbers; numbers that never vary tell of no order."""
    if len(step) != offsets[-1]:
        raise DataError(f"step: shape {step.shape}, expected {(int(offsets[-1]),)}")
    wrong = ~(step[1:] > step[:-1])
    wrong[offsets[1:-1] - 1] = False  # another episode begins there
    if wrong.any() and (step != step[0]).any():
        row = int(wrong.argmax()) + 1
        raise DataError(
            f"step: {place(offsets, row)} (row {in_file(row, rows)}): {step[row]} after {step[row - 1]}"
            f"{how_many(wrong)}; the rows of an episode must be in the order of its steps. If they are, a boundary of "
            f"episodes is missing: {_ways_out(step)}. If it counts something else, give --columns step=none."
        )


def _ways_out(step: NDArray[Any]) -> str:
    """What says where episodes end, in words; their length where the steps' numbers start again evenly."""
    starts = np.concatenate([[0], np.flatnonzero(~(step[1:] > step[:-1])) + 1, [len(step)]])
    lengths = np.diff(starts)
    even = (lengths[:-1] == lengths[0]).all() and 1 < lengths[0] >= lengths[-1]
    again = step[starts[:-1]] == step[0]
    counted = "--columns episode_start=NAME with the name of that step, " if again.all() and len(starts) > 2 else ""
    return f"give --columns episode=NAME, {counted}or --episode-length {int(lengths[0]) if even else 'N'}"


def _source_notes(
    sources: Mapping[str, NDArray[Any]], offsets: NDArray[np.int64], rows: NDArray[np.int64] | None
) -> list[str]:
    """A note on each column that says which environment a row is from, and changes within episodes."""
    notes = list[str]()
    for name, values in sources.items():
        changes = values[1:] != values[:-1]
        changes[offsets[1:-1] - 1] = False  # another episode begins there
        if changes.any():
            row = int(changes.argmax()) + 1
            notes.append(
                f"{name!r} changes within episodes, first at {place(offsets, row)} (row {in_file(row, rows)}). "
                f"If several were recorded side by side, these episodes are wrong: sort the rows by {name} and time. "
                f"If they share numbers of episodes, give --columns episode={name},NAME"
            )
    return notes


def _late_notes(step: NDArray[Any], offsets: NDArray[np.int64]) -> list[str]:
    """A note on episodes without their first steps. step: (N,)."""
    first = step[offsets[:-1]]
    usual = first.min()
    late = np.flatnonzero(first > usual)
    if not 0 < 2 * len(late) <= len(first):
        return []
    return [
        f"episode {late[0]} begins at step {first[late[0]]}{how_many(first > usual)}, others at {usual}: rows before "
        "it are missing. If they are in another file, put the files together, or its return is wrong"
    ]


def shift_notes(fields: Leaves, offsets: NDArray[np.int64]) -> list[str]:
    """Notes on rewards and actions that may belong to the row before. fields: (N, ...) by name.

    A loop that writes what led to each observation has nothing to write in the first row of an episode.
    """
    first, notes = offsets[:-1], list[str]()
    for name, values in fields.items():
        if values.dtype.kind not in "iuf" or len(values) != offsets[-1] or len(first) == len(values):
            continue
        nothing = (values.reshape(len(values), -1) == 0).all(axis=1)
        others = np.delete(nothing, first)
        usual = (np.count_nonzero(others) + 1) / (len(others) + 1)
        if nothing[first].all() and usual < MOST_USUAL and usual ** len(first) < MOST_CHANCE_OF_SHIFT:
            notes.append(
                f"{name} are 0 in the first row of every episode, and seldom elsewhere: if each row holds what led to "
                f"its observation, move {name} up by one row in each episode"
            )
    return notes


def _check_clock(name: str, values: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64] | None) -> None:
    """Refuse an order of the rows in which a time or a count does not rise; one that stands still shows no order."""
    inside = np.ones(len(values) - 1, np.bool_)
    inside[offsets[1:-1] - 1] = False  # another episode begins there
    if (values[1:] == values[:-1])[inside].all():
        return
    wrong = ~(values[1:] > values[:-1]) & inside & ~np.isnan(values[1:]) & ~np.isnan(values[:-1])
    if wrong.any():
        row = int(wrong.argmax()) + 1
        raise DataError(
            f"{name!r}: {place(offsets, row)} (row {in_file(row, rows)}) does not rise{how_many(wrong)}: are these "
            f"rows in order, and is each end of an episode marked? Sort them by episode, then by {name}, or give "
            f"--columns episode=NAME (or episode_start={name} if {name} begins again with each); if it is not a time "
            "or count of steps, give --columns step=none."
        )


def check_followed(
    seen: Leaves, after: Leaves, offsets: NDArray[np.int64], missing: Missing, file_rows: NDArray[np.int64] | None
) -> None:
    """Refuse steps whose next observation is not what the next step of their episode observes.

    What is not there, or not finite, shows nothing of that; `check` judges it.
    """
    wrong = np.zeros(int(offsets[-1]), np.bool_)
    for name, array in seen.items():
        at = 0
        for rows in chunks(after[name][:-1]):
            wrong[at : at + len(rows)] |= differ(rows, array[at + 1 : at + 1 + len(rows)])
            at += len(rows)
    for rows in missing.values():
        wrong[rows] = wrong[np.maximum(rows, 1) - 1] = False
    wrong[offsets[1:] - 1] = False  # nothing of the episode comes after its last step
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"next_observations: {place(offsets, row)} (row {in_file(row, file_rows)}): not what the next row observes"
            f"{how_many(wrong)}; rows are out of order, or an episode boundary is missing. Add a terminated, "
            f"truncated or episode column{GAPS_MAY_BE_ENDS}."
        )
