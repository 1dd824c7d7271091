"""Next observations in columns of unknown names: found by their numbers, and used as proof of the rows' order."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.boundaries import GAPS_MAY_BE_ENDS
from envs.reading.fields import PROOFS
from envs.reading.options import ReadingOptions

MOST_CANDIDATES = 6
"""Unread columns, or sets of columns, that are compared with the observations."""

MOST_NAMES = 64
"""Columns of observations; others are sought by their names."""

MOST_NUMBERS = 64
"""Numbers of each row that are compared."""


def is_next_sought(arrays: Mapping[str, Any], options: ReadingOptions) -> bool:
    """Whether next observations are sought in columns that are not read: nothing better shows the order of rows."""
    return (
        not arrays.keys() & set(PROOFS)
        and "next_observations" not in options.columns
        and isinstance(arrays.get("observations"), np.ndarray)
    )


def check_next(where: str, name: str, seen: Any, after: NDArray[Any], ended: NDArray[np.bool_] | None) -> list[str]:
    """Refuse rows whose order the numbers of `after` contradict, if these are next observations; else notes.

    name: what --columns calls `after`. seen: observations (N, ...). after: (N, ...).
    ended: the steps that end an episode, (N,); None if nothing says where episodes end.
    """
    seen = np.asarray(seen)
    if seen.shape != after.shape or len(seen) < 3 or not {seen.dtype.kind, after.dtype.kind} <= set("biuf"):
        return []
    place = _places(seen, after)
    if place is None:
        return []
    ahead = (place - np.arange(len(seen)))[place >= 0]
    distances, counts = np.unique(ahead, return_counts=True)
    usual, is_usual = int(distances[counts.argmax()]), 2 * int(counts.max()) > len(seen)
    if is_usual and usual != 1:
        return []  # the same observations, or earlier ones
    said = f"--columns {shlex.quote(f'next_observations={name}')}"
    otherwise = "--columns next_observations=none if these are none"
    if not is_usual:
        raise DataError(
            f"{where}: {name} holds next observations, and most rows do not observe what the row before leads to: rows "
            f"were shuffled, so there are no episodes. Use a recording in order, or give {otherwise}"
        )
    gaps = place[:-1] != np.arange(1, len(seen))
    begin = f"{said} episode_start=next_observations"
    if ended is None:
        raise DataError(
            f"{where}: nothing that is read says where episodes end. {name} may, as next observations: {begin} reads "
            f"{int(gaps.sum()) + 1} episodes"
        )
    wrong = gaps & ~ended[:-1]
    if wrong.any():
        row = int(wrong.argmax()) + 2
        raise DataError(
            f"{where}: row {row} does not observe what the row before leads to, by {name}, which holds next "
            f"observations{GAPS_MAY_BE_ENDS.replace('--columns', said)}, or {otherwise}"
        )
    return [f"{name} holds next observations: {said} reads final observations too"]


def _places(seen: NDArray[Any], after: NDArray[Any]) -> NDArray[np.int64] | None:
    """The row that observes what each row leads to, or -1: (N,); None if too few are found or rows are too alike."""
    coarse = np.float32 if np.float32 in (seen.dtype, after.dtype) else np.float64
    keys, wanted = _keys(seen.astype(coarse)), _keys(after.astype(coarse))
    order = np.argsort(keys, kind="stable")
    if len(np.unique(keys)) < 0.9 * len(keys):
        return None
    at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    place = np.where(keys[order][at] == wanted, order[at], -1)
    following = np.arange(1, len(keys) + 1)
    follows = np.append(wanted[:-1] == keys[1:], False)  # of equal rows the one that comes next
    place = np.where(follows, following, place)
    return place if 2 * np.count_nonzero(place >= 0) > len(keys) else None


def _keys(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """A number for each row (N, ...) that is another for other numbers: (N,)."""
    numbers = np.ascontiguousarray(rows.reshape(len(rows), -1)[:, :MOST_NUMBERS], np.float64) + 0.0
    keys = np.zeros(len(rows), np.uint64)
    for column in numbers.view(np.uint64).T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def named_alike(names: Sequence[str], others: Iterable[str]) -> list[list[str]]:
    """Sets of other columns that are named as those of the observations are, such as x_next for x, or are numbered."""
    others = list(others)
    found: dict[str, dict[str, str]] = {}
    if len(names) * len(others) <= MOST_NAMES * MOST_NAMES:
        for name in names:
            for other in others:
                if other.endswith(name):
                    found.setdefault(f"{other.removesuffix(name)}*", {}).setdefault(name, other)
                if name in other:
                    found.setdefault(other.replace(name, "*", 1), {}).setdefault(name, other)
    whole = [[each[name] for name in names] for each in found.values() if len(each) == len(names)]
    numbered: dict[str, dict[int, str]] = {}
    for other in others:
        if match := re.search(r"(\d{1,9})(\D*)$", other):
            numbered.setdefault(f"{other[: match.start()]}#{match[2]}", {})[int(match[1])] = other
    whole += [[other for _, other in sorted(each.items())] for each in numbered.values() if len(each) == len(names)]
    return [list(each) for each in dict.fromkeys(map(tuple, whole))][:MOST_CANDIDATES]
