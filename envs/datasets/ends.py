"""Where episodes end, and how: from lengths, episode numbers, first steps or flags."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets.arrays import as_array, as_flags, not_finite, offsets_of, one_column, place
from envs.errors import DataError
from envs.reading.boundaries import episode_lengths, restarts
from envs.reading.fields import ENDS
from envs.reading.readers import as_numbers

EPISODES_MAY_BE_GIVEN = (
    "Give lengths or episode; of a file, --columns episode=NAME or episode_start=NAME, "
    "--episode-length N, or --file-is-episode."
)
"""What to do where nothing says where episodes end."""

GAPS_MAY_SHOW_ENDS = (
    " Or --columns episode_start=next_observations: an episode begins where a row does not observe what the row before "
    "leads to."
)
"""The same where there are next observations."""


def episode_ends(
    arrays: Mapping[str, Any], steps: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Where episodes end and how: offsets (E + 1,), terminated (E,), truncated (E,)."""
    flags = {name: as_flags(name, arrays[name]) for name in ENDS if name in arrays}
    gaps = GAPS_MAY_SHOW_ENDS if "next_observations" in arrays else ""
    marked = any(flag.any() for flag in flags.values())
    if "lengths" in arrays:
        offsets = offsets_of(_given_lengths(arrays["lengths"], steps))
    elif "episode" in arrays:
        offsets = offsets_of(_run_lengths(arrays["episode"], steps))
    elif "episode_start" in arrays:
        offsets = offsets_of(_started_lengths(arrays["episode_start"], steps))
    elif marked or (flags and "step" in arrays):
        offsets = offsets_of(_flagged_lengths(flags, steps))
    elif flags:
        raise DataError(
            f"{' and '.join(flags)} {'is' if len(flags) == 1 else 'are'} false in all {steps} rows, so "
            f"nothing says where episodes end. {EPISODES_MAY_BE_GIVEN}{gaps}"
        )
    else:
        raise DataError(
            f"nothing says where episodes end: terminated, truncated, done, episode or lengths. "
            f"{EPISODES_MAY_BE_GIVEN}{gaps}"
        )
    episodes = len(offsets) - 1
    ends = {name: _at_ends(name, flag, offsets) for name, flag in flags.items()}
    if "lengths" in arrays and flags.keys() == {"terminated"} and flags["terminated"].shape == (episodes,):
        ends["truncated"] = ~ends["terminated"]  # our own layout: one flag an episode says how it ended
    terminated, truncated, odd = how_ended(ends, episodes)
    if odd.any():
        episode = int(odd.argmax())
        raise DataError(f"episode {episode}: {contradiction(ends, episode)}")
    return offsets, terminated, truncated


def how_ended(ends: Mapping[str, NDArray[np.bool_]], episodes: int) -> tuple[NDArray[np.bool_], ...]:
    """Whether each episode is terminated, truncated, and said to be what it is not; each (E,).

    ends: one flag an episode, of those of `ENDS` that are recorded. `done` is either of the two others.
    """
    terminated, truncated = (ends.get(name, np.zeros(episodes, np.bool_)) for name in ("terminated", "truncated"))
    done = ends.get("done")
    if done is None:
        return terminated, truncated, np.zeros(episodes, np.bool_)
    if "terminated" not in ends:
        terminated = done & ~truncated
    elif "truncated" not in ends:
        truncated = done & ~terminated
    else:
        return terminated, truncated, done != (terminated | truncated)
    return terminated, truncated, np.zeros(episodes, np.bool_)


def contradiction(ends: Mapping[str, NDArray[np.bool_]], episode: int) -> str:
    """What contradicting flags say of an episode, in words."""
    return ", ".join(f"{name} is {str(flags[episode]).lower()}" for name, flags in ends.items()) + " at its end"


def end_of(where: str, value: Any, steps: int) -> NDArray[np.bool_]:
    """How one episode ended, (1,), from True or False, or from (T,), where only the last may be true."""
    flags = as_flags(where, np.atleast_1d(as_array(where, value)))
    if len(flags) not in (1, steps):
        raise DataError(f"{where}: shape {flags.shape}, expected () or {(steps,)}")
    if flags[:-1].any():
        raise DataError(f"{where}: true at step {int(flags.argmax())}, before the last step")
    return flags[-1:]


def _at_ends(where: str, flag: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A flag for each episode (E,) from one for each step, where only an episode's last may be true."""
    episodes, steps = len(offsets) - 1, int(offsets[-1])
    if flag.shape == (episodes,):
        return flag
    if flag.shape != (steps,):
        raise DataError(f"{where}: shape {flag.shape}, expected {(steps,)} or {(episodes,)}")
    early = flag.copy()
    early[offsets[1:] - 1] = False
    if early.any():
        raise DataError(
            f"{where}: {place(offsets, int(early.argmax()))}: true before the episode's last step. If several episodes "
            "share a number, --columns episode=ONE,OTHER names both columns, such as the environment's; if "
            f"{where} marks something else, --columns {where}=none leaves it unread"
        )
    return flag[offsets[1:] - 1]


def _flagged_lengths(flags: Mapping[str, NDArray[np.bool_]], steps: int) -> NDArray[np.int64]:
    """Lengths of what ends at each flag, and of what is left after the last: (E,)."""
    ended = np.zeros(steps, np.bool_)
    for name, flag in flags.items():
        if flag.shape != (steps,):
            raise DataError(f"{name}: shape {flag.shape}, expected {(steps,)}, or 'lengths' as well")
        ended |= flag
    ended[-1] = True  # what neither ends nor is cut is an episode all the same; the door counts it
    return np.diff(np.flatnonzero(ended) + 1, prepend=0)


def _given_lengths(given: Any, steps: int) -> NDArray[np.int64]:
    lengths = as_numbers(as_array("lengths", given), "lengths")
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DataError(f"lengths: {lengths.dtype} of shape {lengths.shape}, expected (E,) integers")
    if len(lengths) == 0 or (lengths[1:] < 1).any() or lengths[0] < 0 or (len(lengths) == 1 and lengths[0] < 1):
        found = f"found {lengths.min()}" if len(lengths) else "found none"
        raise DataError(f"lengths: expected at least one episode of at least one step, {found}")
    if (longest := int(lengths.max())) > steps:  # so that the sum cannot run over either
        raise DataError(f"rewards: shape {(steps,)}, lengths say {longest} of one episode")
    of_each = episode_lengths(lengths, steps)
    if of_each is None:
        raise DataError(f"rewards: shape {(steps,)}, lengths say {(int(lengths.sum(dtype=np.int64)),)}")
    return of_each


def _started_lengths(given: Any, steps: int) -> NDArray[np.int64]:
    """Lengths of what begins at each flag, or where a count of steps begins again: (E,)."""
    values = one_column("episode_start", given)
    if len(values) != steps:
        raise DataError(f"episode_start: shape {values.shape}, expected {(steps,)}")
    if values.dtype.kind in "iuf" and ((values != 0) & (values != 1)).any():
        starts = restarts(values)
        if (values[starts] != values[0]).any():
            row = int(starts[(values[starts] != values[0]).argmax()])
            raise DataError(
                f"episode_start: {values[row]} at row {row + 1}, after {values[row - 1]}: expected true or "
                f"false, or a count that begins again at {values[0]} where an episode does"
            )
        return np.diff(starts, append=steps)
    flags = as_flags("episode_start", given)
    if not flags[0]:
        raise DataError("episode_start: false at the first row, expected true where each episode begins")
    return np.diff(np.flatnonzero(flags), append=steps)


def _run_lengths(given: Any, steps: int) -> NDArray[np.int64]:
    """Lengths of the runs of one number, or name, after the other: (E,)."""
    values = as_array("episode", given)
    if values.ndim == 2 and values.shape[1] > 1 and len(values) == steps:
        return _vector_run_lengths(values)
    episode = one_column("episode", values, names=True)
    if len(episode) != steps:
        raise DataError(f"episode: shape {episode.shape}, expected {(steps,)}")
    if not_finite(episode).any():
        raise DataError(f"episode: {episode[not_finite(episode).argmax()]} is not a number or name")
    if episode.dtype.kind == "f" and np.abs(episode).max() >= (exact := 2 ** (np.finfo(episode.dtype).nmant + 1)):
        raise DataError(
            f"episode: {episode.dtype} cannot tell whole numbers from {exact} on apart, so episodes may fall together "
            f"(found {np.abs(episode).max():.0f}): write them as whole numbers or as text"
        )
    starts = np.concatenate([[0], np.flatnonzero(episode[1:] != episode[:-1]) + 1])
    seen = set()
    for row in starts:
        if episode[row] in seen:
            raise DataError(f"episode: {episode[row]} begins again at step {row}; its steps must stand together")
        seen.add(episode[row])
    return np.diff(starts, append=steps)


def _vector_run_lengths(values: NDArray[Any]) -> NDArray[np.int64]:
    """The same of numbers that name an episode together, (N, k), or of a goal (N, k): floats may come again later."""
    if not_finite(values).any():
        raise DataError(f"episode: not finite at step {int(not_finite(values).any(1).argmax())}")
    starts = np.concatenate([[0], np.flatnonzero((values[1:] != values[:-1]).any(axis=1)) + 1])
    if values.dtype.kind != "f":
        names, first = np.unique(values[starts], axis=0, return_index=True)
        if len(names) < len(starts):
            row = int(starts[np.setdiff1d(np.arange(len(starts)), first)[0]])
            again = values[row].tolist()
            raise DataError(f"episode: {again} begins again at step {row}; its steps must stand together")
    return np.diff(starts, append=len(values))
