"""The rewards of flat arrays: the recorded ones, or those that a rule makes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets.arrays import as_flags, one_column
from envs.errors import DataError
from envs.reading.options import RewardRule


def rewards_of(
    arrays: Mapping[str, Any], rule: RewardRule | None, offsets: NDArray[np.int64]
) -> tuple[NDArray[Any], str, list[str]]:
    """The recorded rewards (N,), or those that the user's rule makes; where they are from; and notes of that.

    rule: as in `ReadingOptions`.
    """
    if rule in (None, "none") and "rewards" in arrays:
        return one_column("rewards", arrays["rewards"]), "recording", []
    if rule in (None, "none"):
        note = "no rewards are recorded: a return means nothing here"
        return np.zeros(offsets[-1], np.float32), "none", [note]
    note = f"rewards are made by the rule {rule!r}"
    note += ", the recorded ones are not read" if "rewards" in arrays else ""
    if rule == "last":
        return last_rewards(offsets), rule, [note]
    if "success" not in arrays:
        raise DataError("no success flag is read of it: --columns success=NAME names one, or --reward last")
    success = as_flags("success", arrays["success"])
    if len(success) == len(offsets) - 1 != offsets[-1]:
        return last_rewards(offsets) * success.repeat(np.diff(offsets)), "success", [note]
    if len(success) != offsets[-1]:
        raise DataError(f"success: shape {success.shape}, expected {(int(offsets[-1]),)}")
    return success.astype(np.float32), "success", [note]


def last_rewards(offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """1 at each episode's last step, else 0: (N,)."""
    rewards = np.zeros(offsets[-1], np.float32)
    rewards[offsets[1:] - 1] = 1
    return rewards
