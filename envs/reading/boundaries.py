"""Where episodes begin and end, from one array: lengths, counts, flags, or observations that do not follow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.fields import ENDS

GAPS_MAY_BE_ENDS = "; if an episode begins at each such row, give --columns episode_start=next_observations"
"""What to do about rows that do not observe what the row before leads to."""


def restarts(values: NDArray[Any]) -> NDArray[np.int64]:
    """The rows at which a count does not go on rising, 0 first."""
    return np.concatenate([[0], np.flatnonzero(~(values[1:] > values[:-1])) + 1])


def episode_lengths(values: NDArray[Any], steps: int) -> NDArray[np.int64] | None:
    """The lengths of episodes, (E,), from numbers that are lengths, first rows, ends or both; None if they are not.

    Lengths have the sum `steps`. First rows begin with 0, ends (each the first row after an episode) end with `steps`.
    """
    if values.dtype.kind not in "iu" or not len(values) or int(values.min()) < 0 or int(values.max()) > steps:
        return None
    numbers = values.astype(np.int64)
    if int(numbers.sum()) == steps and numbers.min() > 0:
        return numbers
    if numbers[0] != 0 and numbers[-1] != steps:
        return None
    bounds = numbers if numbers[0] == 0 else np.concatenate([[0], numbers])
    bounds = bounds if bounds[-1] == steps else np.append(bounds, steps)
    lengths = np.diff(bounds)
    return lengths if len(lengths) and lengths.min() > 0 else None


def ended_rows(arrays: Mapping[str, Any], steps: int) -> NDArray[np.bool_] | None:
    """Which rows end an episode, (N,); None if nothing says so, or what does is wrong and refused later."""
    starts = np.zeros(steps, np.bool_)
    if "lengths" in arrays:
        lengths = episode_lengths(np.asarray(arrays["lengths"]).reshape(-1), steps)
        if lengths is None:
            return None
        starts[np.cumsum(lengths)[:-1]] = True
        return np.append(starts[1:], True)
    if "episode" in arrays:
        names = np.asarray(arrays["episode"])
        changes = names[1:] != names[:-1]
        return np.append(changes if changes.ndim == 1 else changes.any(1), True) if len(names) == steps else None
    if "episode_start" in arrays:
        values = np.asarray(arrays["episode_start"]).reshape(-1)
        if len(values) != steps or values.dtype.kind not in "biuf":
            return None
        is_flag = ((values == 0) | (values == 1)).all()
        starts = values == 1 if is_flag else np.isin(np.arange(steps), restarts(values))
        return np.append(starts[1:], True)
    flags = [np.asarray(arrays[name]).reshape(-1) == 1 for name in ENDS if name in arrays]
    if not flags or any(len(flag) != steps for flag in flags) or not any(flag.any() for flag in flags):
        return None
    return np.any(flags, axis=0)


def differ(some: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows (n, ...) differ by more than the coarser type's rounding: (n,)."""
    kinds = [np.finfo(each.dtype) for each in (some, others) if each.dtype.kind == "f"]
    if kinds:
        coarsest = max(kinds, key=lambda kind: float(kind.eps))
        a, b = some.astype(np.float64), others.astype(np.float64)
        close = np.isclose(a, b, rtol=8 * float(coarsest.eps), atol=float(coarsest.tiny))
        same = np.asarray(close | ~np.isfinite(a) | ~np.isfinite(b))
    else:
        same = np.asarray(some == others)
    return np.asarray(~same.reshape(len(some), -1).all(1))


def starts_at_gaps_in(where: str, arrays: Mapping[str, Any], ends: Sequence[Any]) -> NDArray[np.bool_]:
    """Where an episode begins, (N,): at rows that do not observe what the row before leads to, and after each end.

    arrays: with observations and next_observations, an array each. ends: flags, (N,) each.
    """
    seen, after = (np.asarray(arrays[name]) for name in ("observations", "next_observations"))
    if seen.shape != after.shape or seen.dtype.kind not in "biuf" or after.dtype.kind not in "biuf" or not len(seen):
        raise DataError(
            f"{where}: next_observations: shape {after.shape}, expected {seen.shape} as observations have it"
        )
    starts = np.concatenate([[True], differ(after[:-1], seen[1:])])
    for flag in ends:
        ended = np.asarray(flag).reshape(-1) == 1
        if len(ended) == len(starts):
            starts[1:] |= ended[:-1]
    if 2 * np.count_nonzero(starts) > len(starts) > 1:
        raise DataError(
            f"{where}: next_observations: {np.count_nonzero(starts)} of {len(starts)} rows do not follow the last: "
            "these are single transitions in no order, not episodes"
        )
    return starts
