"""What the numbers of unread columns show of episodes, whatever the columns are called.

A file may mark only some ends of its episodes where its known names say so: `terminals` without time limits. Another
column often shows the rest: a flag, the number of each step's episode, a count of steps, the episodes' lengths. If its
numbers agree with every end that is read and show more of them, the reading is wrong.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.boundaries import episode_lengths, restarts
from envs.reading.fields import (
    looks_like_a_boundary,
    looks_like_a_source,
    looks_like_an_episode,
    plain,
    shell_name,
)

MOST_WITNESSES = 24
"""Unread columns that are looked at."""

MOST_CHANCE = 0.1
"""If a column agrees with the ends that are read with at least this probability by chance, it shows nothing."""

MOST_CHANCE_OF_SOURCE = 0.01
"""The same of a column that may name environments: any of many columns may be of few names."""

MOST_ROUNDING = 0.25
"""By how much of their distance evenly spaced numbers may be rounded."""

MOST_OF_ONE_STEP = 0.1
"""Episodes of one step are rare: a flag that is true in many rows on end, such as success, marks something else."""

_CALENDAR = re.compile(
    r"(^|_)(second|minute|hour|weekday|day|dow|week|month|quarter|season|year|phase)s?(_of_\w+)?(_|$)"
)
"""Counts that begin again without any episode: of the hour of a day."""


@dataclass(frozen=True)
class Boundary:
    """What a column may mark.

    field: what the column holds then, such as episode_start.
    column: its name, as --columns takes it.
    starts: the first row of each episode then, 0 first: (E,).
    certain: whether its numbers are enough to show it, such as lengths whose sum is the number of rows.
    is_calendar: whether it may count hours or days, which begin again without any episode.
    """

    field: str
    column: str
    starts: NDArray[np.int64]
    certain: bool = False
    is_calendar: bool = False

    @property
    def argument(self) -> str:
        """The argument of --columns that reads the column so."""
        return f"{self.field}={self.column}"


def check_witnesses(
    where: str, witnesses: Mapping[str, NDArray[Any]], ends: Sequence[Any], steps: int, no_count: bool = False
) -> list[str]:
    """Refuse ends that an unread column contradicts, and say how it is read; notes of columns that may contradict them.

    witnesses: unread columns by name, (N,), or (E,) of arrays.
    ends: the flags that say where episodes end, (N,) each.
    no_count: whether the user says that no column counts steps.
    """
    flags = [np.asarray(flag).reshape(-1) for flag in ends]
    if any(len(flag) != steps for flag in flags):
        return []  # which is refused later
    ended = np.any([flag == 1 for flag in flags], axis=0) if flags else np.zeros(steps, np.bool_)
    notes = list[str]()
    of_rows = {name: values for name, values in witnesses.items() if ended.any() and len(values) == steps}
    for name, values in of_rows.items() if not no_count else ():
        check_count(where, name, values, ended)
    for name, values in of_rows.items():
        _check_source(where, name, values, ended)
    for name, values in witnesses.items():
        for boundary in boundaries(name, values, steps):
            chance = _contradiction(boundary, ended, looks_like_a_boundary(name))
            if chance is not None:
                notes.append(_contradiction_note(where, name, boundary, ended, chance))
                break
        if ended.any() and (note := _cycle_note(name, values, steps)):
            notes.append(note)
    return notes


def _contradiction_note(where: str, name: str, boundary: Boundary, ended: NDArray[np.bool_], chance: float) -> str:
    """A note on a column that shows other episodes than those that are read.

    ended: the steps that end an episode as it is read, (N,).
    chance: as `_contradiction` returns it.

    Raises:
        DataError: nothing else says where episodes end, or the column contradicts it beyond chance.
    """
    read = np.flatnonzero(ended[:-1]) + 1
    # Cuts do not include the ends that are read, so both kinds count.
    count = len(boundary.starts) + (len(read) if boundary.field == "truncated" else 0)
    argument = shlex.quote(boundary.argument)
    if not ended.any():
        raise DataError(
            f"{where}: nothing that is read says where episodes end. {name!r} may: "
            f"--columns {argument} reads {count} episodes"
        )
    row = next(iter(np.setdiff1d(boundary.starts[1:], read)), len(ended) - 1) + 1
    if chance < MOST_CHANCE:
        raise DataError(
            f"{where}: flags mark {len(read) + 1} episodes, {name!r} shows {count}; one of them begins at row "
            f"{row}. --columns {argument} reads them; --columns terminated=NAME (or "
            "done=NAME) says that only that flag marks the ends"
        )
    return (
        f"{name!r} changes within episodes, first at row {row}. If it shows where they begin or end, give "
        f"--columns {argument}"
    )


def _cycle_note(name: str, values: NDArray[Any], steps: int) -> str:
    """A note on a column that may name environments recorded side by side; "" if it does not look so."""
    number = _cycle(values, steps)
    if number <= 1 or _CALENDAR.search(plain(name)):
        return ""
    return (
        f"{name!r} goes round every {number} rows. If it names environments that were recorded side by side, "
        f"these episodes are wrong: sort the rows by {name} and time"
    )


def _cycle(values: NDArray[Any], steps: int) -> int:
    """After how many rows the same different numbers or names come again, to the end; 1 if they do not."""
    again = np.flatnonzero(values[1:] == values[0])
    number = int(again[0]) + 1 if len(again) else 1
    if len(values) != steps or values.dtype.kind not in "biuOU" or number < 2 or steps < 3 * number:
        return 1
    is_cycle = np.array_equal(values[number:], values[:-number]) and len(set(values[:number].tolist())) == number
    return number if is_cycle else 1


def _contradiction(boundary: Boundary, ended: NDArray[np.bool_], named: bool) -> float | None:
    """Probability that the column agrees with the known ends by chance.

    0: it certainly contradicts them. 1: it proves nothing but is worth a note. None: it contradicts nothing.

    ended: the steps that end an episode as it is read, (N,). named: whether its name says so too.
    """
    starts, read, steps = boundary.starts[1:], np.flatnonzero(ended[:-1]) + 1, len(ended)
    if boundary.certain:
        return None if np.array_equal(starts, read) else 0.0
    if 2 * len(boundary.starts) > steps or not len(np.setdiff1d(starts, read)):
        return None
    if np.mean(np.diff(boundary.starts, append=steps) == 1) > MOST_OF_ONE_STEP:
        return None
    if boundary.field == "truncated":
        return 0.0 if named and ended.any() and not np.isin(starts, read).any() else None
    if not np.isin(read, starts).all():
        return None
    if not ended.any() or (boundary.is_calendar and not named):
        return 1.0
    return 0.0 if named else float((len(boundary.starts) / steps) ** (len(read) + ended[-1]))


def boundaries(name: str, values: NDArray[Any], steps: int) -> Iterator[Boundary]:
    """What a column may mark, the surest first."""
    column, is_calendar = shell_name(name), bool(_CALENDAR.search(plain(name)))
    if values.ndim != 1 or values.dtype.kind not in "biufOU":
        return
    if len(values) != steps:
        lengths = episode_lengths(values, steps) if values.dtype.kind in "iu" and len(values) > 1 else None
        if lengths is not None:
            certain = values[0] > 0 and int(values.sum()) == steps
            yield Boundary("lengths", column, np.cumsum([0, *lengths[:-1]]), bool(certain))
        return
    if values.dtype.kind in "OU" or looks_like_an_episode(name):
        yield from _runs(column, values, is_calendar)
        return
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        count = _as_count(values)
        if count is not None and (counted := _counted(count)) is not None:
            yield Boundary("episode_start", column, counted, is_calendar=is_calendar)
        return
    if ((values == 0) | (values == 1)).all():
        yield from _flags(column, values == 1)
    else:
        if (counted := _counted(values)) is not None:
            yield Boundary("episode_start", column, counted, is_calendar=is_calendar)
        yield from _runs(column, values, is_calendar)


def _flags(column: str, flag: NDArray[np.bool_]) -> Iterator[Boundary]:
    """A flag at each first row, at each last one, at those that are cut, or at all others."""
    for field, starts in (
        ("episode_start", np.flatnonzero(flag) if flag[0] else np.empty(0, np.int64)),
        ("done", np.concatenate([[0], np.flatnonzero(flag[:-1]) + 1])),
        ("truncated", np.concatenate([[0], np.flatnonzero(flag[:-1]) + 1])),
        ("not_done", np.concatenate([[0], np.flatnonzero(~flag[:-1]) + 1])),
    ):
        if len(starts) > 1:
            yield Boundary(field, column, starts)


def _runs(column: str, values: NDArray[Any], is_calendar: bool) -> Iterator[Boundary]:
    """Numbers or names, if each is in one run of rows only."""
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    if 1 < len(starts) == len(set(values[starts].tolist())):
        yield Boundary("episode", column, starts, is_calendar=is_calendar)


def _counted(values: NDArray[Any]) -> NDArray[np.int64] | None:
    """The rows at which a count begins again, of one that goes up by the same amount everywhere else."""
    starts = restarts(values)
    inside = np.delete(np.diff(values), starts[1:] - 1)
    even = len(inside) > 0 and (inside == inside[0]).all() and (values[starts] == values[0]).all()
    return starts if even and len(starts) > 1 else None


def check_count(where: str, name: str, values: NDArray[Any], ended: NDArray[np.bool_], grouped: bool = False) -> None:
    """Refuse rows whose order a count of steps contradicts.

    values: a column, (N,). ended: the steps that end an episode, (N,).
    grouped: whether the rows of each episode stand together for certain, as where a column names the episode.
    """
    count = _as_count(values)
    if count is None:
        return
    otherwise = f"or give --columns step=none if {name!r} does not count steps"
    if not grouped and (number := _side_by_side(count, ended)) > 1:
        raise DataError(
            f"{where}: {name!r} counts the steps of {number} episodes side by side: rows 1 to {number} are the first "
            f"step of each. Sort the rows so that those of an episode stand together, {otherwise}"
        )
    if (row := _unsorted(count, ended)) is not None:
        raise DataError(
            f"{where}: {name!r} counts the steps of each episode, and row {row + 1} is not in its place. Sort the "
            f"rows, {otherwise}"
        )


def _as_count(values: NDArray[Any]) -> NDArray[np.int64] | None:
    """Evenly spaced numbers, such as 0.05, 0.1, 0.15, as whole numbers from 0 on: (N,); None of other numbers."""
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        return None
    distinct = np.unique(values)
    span = float(distinct[-1]) - float(distinct[0])
    if len(distinct) < 2 or span > 2**53:
        return None
    count = (values - distinct[0]) / (span / (len(distinct) - 1))
    whole = np.rint(count)
    return whole.astype(np.int64) if (np.abs(count - whole) < MOST_ROUNDING).all() else None


def _check_source(where: str, name: str, values: NDArray[Any], ended: NDArray[np.bool_]) -> None:
    """Refuse rows of several environments, one after the other as they came. values, ended: (N,).

    A column names them if it changes within episodes, and the rows of each of its values end with an episode's end.
    """
    names, number = np.unique(values, return_inverse=True)
    last = np.zeros(len(names), np.int64)
    np.maximum.at(last, number, np.arange(len(values)))
    changes = (number[1:] != number[:-1]) & ~ended[:-1]
    if len(names) < 2 or not changes.any() or not ended[last].all():
        return
    chance = float(np.mean(ended)) ** (len(names) - 1)
    if chance < MOST_CHANCE_OF_SOURCE or looks_like_a_source(name) or _cycle(values, len(values)) > 1:
        raise DataError(
            f"{where}: {name!r} changes within episodes, first at row {int(changes.argmax()) + 2}, and each of its "
            f"{len(names)} values ends where an episode does: episodes were recorded side by side. Sort the rows by "
            f"{name}, and leave those of each in their order, or give --columns terminated=NAME (or done=NAME) if the "
            "rows are in order"
        )


def _side_by_side(values: NDArray[np.int64], ended: NDArray[np.bool_]) -> int:
    """How many environments wrote a row each in turn, if a count begins again exactly where the flags of one end."""
    steps, wave = len(values), _in_one_wave(values, ended)
    if wave > 1:
        return wave
    first_other = int((values != values[0]).argmax()) or steps
    for number in (count for count in range(2, min(first_other, steps // 2) + 1) if steps % count == 0):
        count, end = values.reshape(-1, number), ended.reshape(-1, number)
        if np.array_equal(count[1:], np.where(end[:-1], values[0], count[:-1] + 1)):
            return number
    return 1


def _in_one_wave(values: NDArray[np.int64], ended: NDArray[np.bool_]) -> int:
    """The same of environments that each play one episode, and write no row once it has ended."""
    if (values[1:] < values[:-1]).any() or int(values[-1]) - int(values[0]) >= len(values):
        return 1
    step = (values - values[0]).astype(np.int64)
    there, over = np.bincount(step), np.bincount(step, ended).astype(np.int64)
    return int(there[0]) if np.array_equal(there[1:], (there - over)[:-1]) else 1


def _unsorted(count: NDArray[np.int64], ended: NDArray[np.bool_]) -> int | None:
    """The first row out of its place; None if all are in order, or the column counts neither steps nor rows.

    count: whole numbers from 0 on. They are step numbers if every episode holds 0, 1, ... once, or if as many episodes
    reach each number as have not ended before. They are row numbers if the file holds each of them once.
    """
    steps, starts = len(count), np.concatenate([[0], np.flatnonzero(ended[:-1]) + 1])
    if 2 * len(starts) > steps or int(count.max()) >= steps:
        return None
    lengths = np.diff(starts, append=steps)
    number = np.arange(len(starts)).repeat(lengths)
    inside = np.diff(count)[number[1:] == number[:-1]]
    if (inside > 0).all() or (inside < 0).all():  # a count of steps that are left falls
        return None
    in_order = count[np.lexsort((count, number))]
    there, over = np.bincount(count), np.bincount(count, ended).astype(np.int64)
    of_rows = len(there) == steps
    of_all = len(there) > 2 and there[0] == over.sum() and np.array_equal(there[1:], (there - over)[:-1])
    if not (of_rows or of_all or np.array_equal(in_order, np.arange(steps) - starts.repeat(lengths))):
        return None
    return int((count != in_order).argmax())
