"""A recording, as flat arrays or as episodes one by one, becomes the arrays of a `Dataset`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.datasets.arrays import num_steps, row_problems
from envs.datasets.declare import followers, with_leaves
from envs.datasets.ends import episode_ends
from envs.datasets.episodes import finals_notes, join_episodes
from envs.datasets.final_rows import without_final_rows, without_last_missing
from envs.datasets.odd_rows import copy_notes, running_notes, side_by_side_notes, unfilled_notes
from envs.datasets.order import check_followed, order_notes, shift_notes
from envs.datasets.rewards import rewards_of
from envs.errors import DataError, problems_of
from envs.reading.episodes import EPISODE_FIELDS, with_done
from envs.reading.fields import ENDS, PROOFS
from envs.reading.readers import Header, Recording
from envs.spaces import Leaves, leaf_spaces, pruned

Fields = dict[str, Any]
"""The arrays of a `Dataset`, by its own names."""


def assemble(recording: Recording, folder: Path | None = None, skip_bad: bool = False) -> tuple[Header, Fields]:
    """The arrays of a `Dataset`, and what is known of them.

    Args:
        recording: its header declares the spaces, or those of flat arrays are inferred here.
        folder: where episodes that come one by one go, into files; None keeps them in memory.
        skip_bad: leave out such episodes where something is wrong with them, and note it.

    Raises:
        DataError: the numbers do not make episodes of the declared spaces.
    """
    if recording.episodes is not None:
        return join_episodes(recording.header, recording.episodes, folder, skip_bad)
    source = recording.header.source
    arrays = with_done(f"{source}", recording.arrays)
    with problems_of(source):
        return _split(recording.header, arrays)


def _split(header: Header, arrays: Mapping[str, Any]) -> tuple[Header, Fields]:
    """Flat arrays, as `envs.from_arrays` has them, cut into episodes."""
    if header.leave_out:
        arrays = _leaving_out(arrays, header.leave_out)
    if header.last_row_is_final:
        header, arrays = without_final_rows(header, arrays)
    offsets, terminated, truncated = episode_ends(arrays, num_steps(arrays))
    rewards, rewards_from, notes = rewards_of(arrays, header.reward, offsets)  # (N,)
    missing, more = without_last_missing(header.missing, offsets)
    unfollowed = len(missing) < len(header.missing)
    notes += more + order_notes(arrays, offsets, header.rows)
    if arrays.keys() & set(ENDS) == {"done"}:
        notes.append("only done is there: each end counts as terminated, none as truncated")
    header = replace(header, rewards_from=rewards_from, missing=missing, notes=(*header.notes, *notes))
    header, actions = with_leaves(header, "actions", arrays["actions"])
    header, observations = with_leaves(header, "observations", arrays["observations"], followers(missing, arrays))
    after: Leaves | None = None
    if "next_observations" in arrays:
        _, after = with_leaves(header, "observations", arrays["next_observations"])
    _check_rows(header.spaces, len(rewards), len(offsets) - 1, actions, observations, after)
    recorded = {"rewards": rewards} if header.rewards_from == "recording" else {}
    recorded |= {"actions" if len(actions) == 1 else f"actions/{name}": values for name, values in actions.items()}
    notes = shift_notes(recorded, offsets)
    observations, finals = _finals(observations, None if unfollowed else after, offsets)
    if after is not None:
        check_followed(observations, after, offsets, missing, header.rows)
    recorded |= {f"observations/{name}": values for name, values in observations.items()}
    notes += copy_notes(recorded, offsets, header.rows)
    notes += unfilled_notes(recorded, offsets, terminated | truncated)
    notes += running_notes(rewards, offsets) if header.rewards_from == "recording" else []
    if not arrays.keys() & {*PROOFS, *EPISODE_FIELDS}:
        notes += side_by_side_notes(offsets)
    return replace(header, notes=(*header.notes, *notes, *finals_notes(finals is not None))), {
        "observations": observations,
        "final_observations": finals,
        "actions": actions,
        "rewards": rewards,
        "offsets": offsets,
        "terminated": terminated,
        "truncated": truncated,
    }


def _check_rows(
    declared: Mapping[str, Space[Any]],
    steps: int,
    episodes: int,
    actions: Leaves,
    observations: Leaves,
    after: Leaves | None,
) -> None:
    """Refuse leaves that have another number of rows, or rows of another shape."""
    action_kinds, kinds = (leaf_spaces(declared[name]) for name in ("action_space", "observation_space"))
    problems = [
        *row_problems("actions", actions, [steps], action_kinds),
        *row_problems("observations", observations, [steps, steps + episodes], kinds),
    ]
    if after is not None:
        problems += row_problems("next_observations", after, [steps], kinds)
    if problems:
        raise DataError(*problems)


def _finals(observations: Leaves, after: Leaves | None, offsets: NDArray[np.int64]) -> tuple[Leaves, Leaves | None]:
    """Observations of each step, and final ones of each episode: (N, ...) and (E, ...); None if not recorded.

    observations: (N, ...), or (N + E, ...) with each episode's final one at its end.
    after: next observations (N, ...), or None.
    """
    steps, episodes = int(offsets[-1]), len(offsets) - 1
    if all(len(array) == steps + episodes for array in observations.values()):
        last = offsets[1:] + np.arange(episodes)  # rows that hold an episode's final observation
        finals = {name: array[last] for name, array in observations.items()}
        return {name: np.delete(array, last, axis=0) for name, array in observations.items()}, finals
    if after is None:
        return observations, None
    return observations, {name: array[offsets[1:] - 1] for name, array in after.items()}


def _leaving_out(arrays: Mapping[str, Any], leave_out: tuple[str, ...]) -> dict[str, Any]:
    """The arrays without these parts of the observations, by their paths."""
    found = dict(arrays)
    for field in ("observations", "next_observations"):
        if arrays.get(field) is None:
            continue
        for name in leave_out:
            part = arrays[field]
            for key in name.split("/"):
                if not isinstance(part, Mapping) or key not in part:
                    named = isinstance(arrays[field], Mapping)
                    there = ", ".join(map(str, arrays[field])) if named else "one array without names"
                    way = "" if named else f"; --columns {field}=NAME,NAME,... names the columns that are read"
                    raise DataError(f"{field}: no {name!r} in it to leave out, only {there}{way}")
                part = part[key]
        found[field] = pruned(arrays[field], leave_out)
    return found
