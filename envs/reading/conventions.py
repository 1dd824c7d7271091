"""The names that libraries give the fields of their flat files; a library is known by all its names together."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError, problems_of
from envs.reading.fields import ABSENT, ENDS, Columns, choose
from envs.reading.options import ReadingOptions

RLDS = {"is_first", "is_last", "is_terminal"}
"""The flags of RLDS (Ramos et al. 2021): the row with is_last holds an observation only."""

OGBENCH = {"observations", "actions", "terminals", "qpos", "qvel"}
"""The arrays of OGBench (Park et al. 2025): `terminals` marks the last state of each trajectory, and has no reward."""

POWDERWORLD = {"observations", "actions", "terminals"}
"""All arrays of OGBench's Powderworld data."""

NEORL = {"obs", "next_obs", "action", "reward", "done", "index"}
"""The arrays of NeoRL (Qin et al. 2022): `index` (E,) is the first row of each episode."""

JAXRL = {"observations", "actions", "rewards", "masks", "dones_float"}
"""The arrays of jaxrl and implicit_q_learning (Kostrikov et al. 2022): `masks` is 0 where an episode terminated."""

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
    not_terminated: str | None = None  # the name of a flag that is false where an episode terminated
    check: Callable[[str, Mapping[str, Any]], None] | None = None  # refuses what contradicts the convention
    note: str | None = None


def convention_of(names: Collection[str], options: ReadingOptions, tables: bool = False) -> Convention | None:
    """The library that uses these names; None if no library that is known here does.

    options: what the user says, which goes first. tables: whether they are a table's columns.
    """
    there, columns = set(names), options.columns
    if there >= RLDS and not columns.keys() & SAYS_EPISODES:
        return Convention(
            name="RLDS",
            columns={"done": ("is_last",), "terminated": ("is_terminal",), **columns},
            last_row_is_final=True,
            no_rewards=True,
            check=None if options.last_row_is_final else _check_last_rows,
            note="is_first, is_last and is_terminal are RLDS's: a row with is_last holds an observation only",
        )
    if there >= OGBENCH and not there & {"timeouts", "next_observations"} and not columns.keys() & {*ENDS, "episode"}:
        if "rewards" in there and not options.last_row_is_final:
            raise DataError(
                "qpos, qvel and terminals are OGBench's, where the last row of each episode is an "
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
    if there == POWDERWORLD and not tables and not columns and options.reward != "success":
        if not options.last_row_is_final:
            raise DataError(
                "observations, actions and terminals only, as in OGBench's Powderworld data, where the last row of "
                "each episode is an observation only: --last-row-is-final says that it is so here, "
                "--columns terminated=terminals that every row is a step"
            )
        return Convention(
            name="OGBench", columns={"truncated": ("terminals",)}, last_row_is_final=True, no_rewards=True
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
    if there >= JAXRL and not columns.keys() & {*ENDS, "episode", "not_done"}:
        return Convention(name="jaxrl", columns={"done": ("dones_float",), **columns}, not_terminated="masks")
    if there >= {"terminals", "episode_terminals"} and not columns.keys() & {*ENDS}:
        flags: Columns = {"done": ("episode_terminals",), "terminated": ("terminals",)}
        return Convention(name="d3rlpy 1", columns={**flags, **columns})
    return None


def _check_last_rows(where: str, arrays: Mapping[str, Any]) -> None:
    """Refuse rows that RLDS says are observations only, and that hold more. Other libraries have the flags too."""
    last = np.asarray(arrays["done"]).ravel() == 1
    if "rewards" in arrays:
        rewards = np.asarray(arrays["rewards"])
        if rewards.dtype.kind in "fiu" and rewards.size == last.size:  # else it is refused later
            _check_no_rewards(where, rewards.ravel(), last)
    actions = np.asarray(arrays["actions"])
    if actions.dtype.kind in "fiu" and len(actions) == len(last) > 1:
        first = np.concatenate([[True], last[:-1]])
        nothing = (actions.reshape(len(actions), -1) == 0).all(axis=1)
        if nothing[first].all() and not nothing[last].any():
            raise DataError(
                f"{where}: actions are 0 in each first row and not in the last ones, as Dreamer writes them: each row "
                "holds the action that led to it. Shift actions and rewards by a row in each episode, or, if each "
                "row's action follows its observation, give --columns truncated=is_last terminated=is_terminal"
            )


def _check_no_rewards(where: str, rewards: NDArray[Any], last: NDArray[np.bool_]) -> None:
    """rewards, last: (N,)."""
    earned = np.nan_to_num(rewards) * last
    if earned.any():
        row = int((earned != 0).argmax())
        raise DataError(
            f"{where}: row {row + 1}: reward {rewards[row]} where is_last is true, which in RLDS is a row of "
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


def starts_at_gaps(options: ReadingOptions) -> bool:
    """Whether the user says that an episode begins where next_observations do not lead to the next row."""
    return options.columns.get("episode_start") == ("next_observations",)


def chosen_fields(
    path: Path, names: Sequence[str], fields: Sequence[str], options: ReadingOptions, tables: bool = False
) -> tuple[dict[str, tuple[str, ...]], Convention | None]:
    """By field the names that hold it: as the user says, as a library has them, or the usual ones."""
    with problems_of(path):
        convention = convention_of(names, options, tables=tables)
        columns = convention.columns if convention else options.columns
        if starts_at_gaps(options):
            columns = {field: each for field, each in columns.items() if field != "episode_start"}
        if options.reward == "success":
            fields = (*fields, "success")
        optional = ("rewards",) if options.reward or (convention and convention.no_rewards) else ()
        usual = choose(names, fields, columns, optional)
    chosen = {**{field: (name,) for field, name in usual.items()}, **columns}
    there = {field: each for field, each in chosen.items() if each != (ABSENT,) or ABSENT in names}
    if convention and convention.first_rows:
        there["first_rows"] = (convention.first_rows,)
    if convention and convention.not_terminated:
        there["not_terminated"] = (convention.not_terminated,)
    return there, convention
