"""Where episodes end in flat data: what the user says of it, and what a file's names show or leave open."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.boundaries import ended_rows, starts_at_gaps_in
from envs.reading.conventions import starts_at_gaps
from envs.reading.evidence import check_count, check_witnesses
from envs.reading.fields import (
    ENDS,
    PROOFS,
    looks_like_an_end,
    looks_like_an_episode,
    looks_like_no_end,
    shell_name,
)
from envs.reading.found import Found
from envs.reading.options import ReadingOptions
from envs.reading.unnamed_next import check_next

EPISODE_FIELDS = ("lengths", "episode", "episode_start")
"""Fields that say of each step which episode it belongs to."""

MARKS_STARTS = (
    "{flag} is true in the first row and not in the last, so it may mark where episodes begin. --columns "
    "episode_start=NAME, with the name of that column, reads it so; --columns {flag}=NAME says that it marks their ends"
)
"""What to do about a flag that looks like one of first rows."""

DM_ENV = (
    "'step_type' is dm_env's: 0 is an episode's first row, 1 any other, 2 its last. Write it as three columns of true "
    "and false: is_first, is_last and is_terminal (its last, where discount is 0)"
)
"""What to do about the rows of dm_env."""


def with_done(where: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays with `done` where they have its opposite, `not_done`."""
    found = dict(arrays)
    if "not_done" in found:
        opposite = np.asarray(found.pop("not_done"))
        if "done" in found:
            raise DataError(f"{where}: both done and not_done are in it; keep one of them")
        if opposite.dtype.kind not in "biuf" or ((opposite != 0) & (opposite != 1)).any():
            raise DataError(f"{where}: not_done: expected true or false, or 1 or 0")
        found["done"] = opposite == 0
    return found


def split_as_asked(where: str, arrays: Mapping[str, Any], options: ReadingOptions) -> dict[str, Any]:
    """The arrays with the episodes that the user says: the file is one, or each lasts so many steps at most."""
    found = with_done(where, arrays)
    if starts_at_gaps(options):
        if "next_observations" not in found:
            raise DataError(
                f"{where}: no next_observations are read of it; --columns next_observations=NAME names them"
            )
        found["episode_start"] = starts_at_gaps_in(where, found, [found[name] for name in ENDS if name in found])
    if not options.file_is_episode and options.episode_length is None:
        return found
    flag = "--file-is-episode" if options.file_is_episode else "--episode-length"
    if telling := [name for name in EPISODE_FIELDS if name in found]:
        raise DataError(
            f"{where}: {telling[0]} says where episodes end, and so does {flag}. "
            f"Leave that out, or give --columns {telling[0]}=none."
        )
    steps = len(np.asarray(found["rewards" if "rewards" in found else "actions"]))
    if options.file_is_episode:
        return {**found, "lengths": np.array([steps])}
    flags = {name: np.asarray(found[name]).reshape(-1) for name in ENDS if name in found}
    if wrong := [name for name, values in flags.items() if len(values) != steps]:
        raise DataError(f"{where}: {wrong[0]}: shape {np.asarray(found[wrong[0]]).shape}, expected {(steps,)}")
    ended = np.any([values == 1 for values in flags.values()], axis=0) if flags else np.zeros(steps, np.bool_)
    truncated = _truncations(ended, int(options.episode_length or steps))
    if not truncated.any() and not ended.any():
        raise DataError(
            f"{where}: --episode-length {options.episode_length}: it has {steps} rows, less than one episode"
        )
    if {"done", "terminated", "truncated"} <= flags.keys():
        found["done"] = flags["done"].astype(np.bool_) | truncated
    found["truncated"] = truncated | (flags["truncated"] == 1 if "truncated" in flags else False)
    return found


def _truncations(ended: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """Steps after which an episode is cut: each so many steps after the last end or cut, unless one ends there."""
    starts = np.concatenate([[0], np.flatnonzero(ended[:-1]) + 1])
    number = np.cumsum(np.isin(np.arange(len(ended)), starts)) - 1
    step = np.arange(len(ended)) - starts[number]
    return np.asarray(((step + 1) % length == 0) & ~ended)


def check_unread(where: str, found: Found, arrays: Mapping[str, Any], options: ReadingOptions) -> list[str]:
    """Refuse a file in which unread columns may say where episodes end, unless that is known; notes of the others.

    arrays: those of `found`, with the episodes that the user says.
    """
    ends = [name for name in found.unread if looks_like_an_end(name)]
    said = options.columns.keys() & ENDS or options.file_is_episode or options.episode_length is not None
    notes = list[str]()
    steps = len(np.asarray(arrays["rewards" if "rewards" in arrays else "actions"]))
    ended = ended_rows(arrays, steps)
    timed = arrays.get("clocks", {}) if ended is not None else {}  # their order is looked at later
    others = {name: each for name, each in found.witnesses.items() if name not in timed}
    others = {} if arrays.keys() & set(PROOFS) else others
    if not said and not arrays.keys() & set(EPISODE_FIELDS):
        if "step_type" in found.unread:
            raise DataError(f"{where}: {DM_ENV}")
        if not arrays.keys() & set(PROOFS):
            flags = [arrays[name] for name in ENDS if name in arrays]
            notes = check_witnesses(where, others, flags, steps, no_count="step" in options.columns)
            if flag := _flag_of_first_rows(arrays, ended):
                raise DataError(f"{where}: {MARKS_STARTS.format(flag=flag)}")
        _check_names(where, found.unread, arrays, options)
    if (said or arrays.keys() & set(EPISODE_FIELDS)) and ended is not None and "step" not in options.columns:
        for name, values in others.items():
            if len(values) == steps:
                check_count(where, name, values, ended, grouped=True)
    for name, after in found.alike.items():
        notes += check_next(where, name, arrays["observations"], after, ended)
    return notes + [f"{name!r} looks like an end of episodes; it is not read" for name in ends]


def _flag_of_first_rows(arrays: Mapping[str, Any], ended: NDArray[np.bool_] | None) -> str | None:
    """The only flag, if it is true in the first row and not in the last, as one of first rows is. ended: (N,)."""
    names = [name for name in ENDS if name in arrays]
    if ended is None or len(names) != 1 or not ended[0] or ended[-1] or np.count_nonzero(ended) < 3:
        return None
    has_others = (ended[1:] & ended[:-1]).any()  # other episodes of one step
    return None if has_others else names[0]


def _check_names(where: str, unread: Sequence[str], arrays: Mapping[str, Any], options: ReadingOptions) -> None:
    """Refuse unread names that may say where episodes end."""
    ends = [name for name in unread if looks_like_an_end(name)]
    opposites = [name for name in unread if looks_like_no_end(name)]
    episodes = [name for name in unread if looks_like_an_episode(name)]
    both = "done" in arrays or {"terminated", "truncated"} <= arrays.keys()
    if episodes and not both and "episode" not in options.columns:  # one that is cut would run on
        raise DataError(
            f"{where}: {episodes[0]!r} looks like the episodes' numbers and is not read: --columns "
            f"'episode={shell_name(episodes[0])}' says that it is, --columns terminated=NAME that only flags mark the "
            "ends"
        )
    if ends:  # two episodes might be taken for one
        raise DataError(
            f"{where}: {ends[0]!r} looks like an end of episodes and is not read: "
            "--columns says which are terminated, truncated or done"
        )
    if opposites and not both:
        raise DataError(
            f"{where}: {opposites[0]!r} looks like the opposite of an end of episodes and is not read: --columns "
            f"'not_done={shell_name(opposites[0])}' says that it is 0 at each end, --columns terminated=NAME that it "
            "is not"
        )
