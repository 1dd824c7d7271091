"""Libraries whose flat files have names of their own: which name holds which field, known by all names together."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.fields import ENDS, Columns
from envs.reading.options import ReadingOptions

RLDS = {"is_first", "is_last", "is_terminal"}
"""The flags of RLDS (Ramos et al. 2021): the row with is_last holds an observation only."""

OGBENCH = {"observations", "actions", "terminals", "qpos", "qvel"}
"""The arrays of OGBench (Park et al. 2025): `terminals` marks the last state of each trajectory, and has no reward."""

NEORL = {"obs", "next_obs", "action", "reward", "done", "index"}
"""The arrays of NeoRL (Qin et al. 2022): `index` (E,) is the first row of each episode."""

SAYS_EPISODES = {"episode", "lengths", "truncated"}
"""Fields by which a user says that the rows of RLDS's names are steps all the same."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What a library calls its fields, and what else its files have in common."""

    name: str
    columns: Columns
    last_row_is_final: bool = False
    no_rewards: bool = False
    first_rows: str | None = None  # the name of an array (E,) of the row at which each episode begins
    check: Callable[[str, Mapping[str, Any]], None] | None = None  # refuses what contradicts the convention
    note: str | None = None


def convention_of(
    where: str, names: Collection[str], options: ReadingOptions, tables: bool = False
) -> Convention | None:
    """The library whose names these are; None where they are no library's that is known here.

    options: what the user says, which goes first. tables: whether they are a table's columns.
    """
    there, columns = set(names), options.columns
    if there >= RLDS and not columns.keys() & SAYS_EPISODES:
        return Convention(
            name="RLDS",
            columns={"done": ("is_last",), "terminated": ("is_terminal",), **columns},
            last_row_is_final=True,
            no_rewards=True,
            check=None if options.last_row_is_final else _check_no_last_rewards,
            note="is_first, is_last and is_terminal are RLDS's: a row with is_last holds an observation only",
        )
    if there >= OGBENCH and not there & {"timeouts", "next_observations"} and not columns.keys() & {*ENDS, "episode"}:
        if "rewards" in there and not options.last_row_is_final:
            raise DataError(
                f"{where}: qpos, qvel and terminals are OGBench's, where the last row of each episode is an "
                "observation only, and rewards are not: --last-row-is-final says that it is so here, "
                "--columns terminated=terminals that every row is a step"
            )
        return Convention(
            name="OGBench",
            columns={"truncated": ("terminals",), **columns},
            last_row_is_final=True,
            no_rewards=True,
            note="terminals are OGBench's: they mark where a trajectory is cut, at a row of an observation only",
        )
    if there >= NEORL and not tables:
        usual: Columns = {
            "observations": ("obs",),
            "next_observations": ("next_obs",),
            "actions": ("action",),
            "rewards": ("reward",),
            "done": ("done",),
        }
        return Convention(name="NeoRL", columns={**usual, **columns}, first_rows="index")
    if there >= {"terminals", "episode_terminals"} and not columns.keys() & {*ENDS}:
        flags: Columns = {"done": ("episode_terminals",), "terminated": ("terminals",)}
        return Convention(name="d3rlpy 1", columns={**flags, **columns})
    return None


def _check_no_last_rewards(where: str, arrays: Mapping[str, Any]) -> None:
    """Refuse a reward in a row that RLDS says has none. Other libraries put the last step's reward there."""
    if "rewards" not in arrays:
        return
    rewards, last = np.asarray(arrays["rewards"]), np.asarray(arrays["done"])
    if rewards.dtype.kind not in "fiu" or rewards.size != last.size:
        return  # which is refused later
    earned = np.nan_to_num(rewards.ravel()) * (last.ravel() == 1)
    if earned.any():
        row = int((earned != 0).argmax())
        raise DataError(
            f"{where}: row {row + 1}: reward {rewards.ravel()[row]} where is_last is true, which in RLDS is a row of "
            "an observation only: --last-row-is-final leaves that reward out, --columns truncated=is_last "
            "terminated=is_terminal reads every row as a step"
        )


def lengths_from_first_rows(where: str, first: NDArray[Any], steps: int) -> NDArray[np.int64]:
    """The length of each episode, (E,), from the row at which each begins."""
    if first.ndim != 1 or first.dtype.kind not in "iu" or len(first) == 0:
        raise DataError(f"{where}: {first.dtype} of shape {first.shape}, expected the first row of each episode")
    bounds = np.append(first.astype(np.int64), steps)
    lengths = np.diff(bounds)
    if bounds[0] != 0 or (lengths < 1).any():
        raise DataError(
            f"{where}: expected the first row of each episode, rising from 0 to below {steps}; "
            f"got {bounds[:-1].min()} to {bounds[:-1].max()} ({len(first)} numbers)"
        )
    return lengths
