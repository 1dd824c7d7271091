"""The rewards of flat arrays: the recorded ones, or those that a rule makes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets.arrays import as_flags, one_column
from envs.errors import DataError
from envs.reading.readers import Header


def rewards_of(header: Header, arrays: Mapping[str, Any], offsets: NDArray[np.int64]) -> tuple[Header, NDArray[Any]]:
    """The recorded rewards, or those that the user's rule makes; the header says where they are from."""
    where, rule = f"{header.source}", header.reward
    if rule in (None, "none") and "rewards" in arrays:
        return header, one_column(f"{where}: rewards", arrays["rewards"])
    if rule in (None, "none"):
        note = "no rewards are recorded: a return means nothing here"
        return replace(header, notes=(*header.notes, note), rewards_from="none"), np.zeros(offsets[-1], np.float32)
    note = f"rewards are made by the rule {rule!r}"
    note += ", the recorded ones are not read" if "rewards" in arrays else ""
    header = replace(header, notes=(*header.notes, note), rewards_from=str(rule))
    if rule == "last":
        return header, last_rewards(offsets)
    if "success" not in arrays:
        raise DataError(f"{where}: no success flag is read of it: --columns success=NAME names one, or --reward last")
    success = as_flags(f"{where}: success", arrays["success"])
    if len(success) == len(offsets) - 1 != offsets[-1]:
        return header, last_rewards(offsets) * success.repeat(np.diff(offsets))
    if len(success) != offsets[-1]:
        raise DataError(f"{where}: success: shape {success.shape}, expected {(int(offsets[-1]),)}")
    return header, success.astype(np.float32)


def last_rewards(offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """1 at each episode's last step, else 0: (N,)."""
    rewards = np.zeros(offsets[-1], np.float32)
    rewards[offsets[1:] - 1] = 1
    return rewards
