"""Episodes that come one by one, put one after the other."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.array_files import Column
from envs.datasets.arrays import offsets_of, row_problems, type_problem
from envs.datasets.declare import Kinds
from envs.datasets.rewards import last_rewards
from envs.errors import DataError
from envs.reading.readers import Header, RecordedEpisode, most_bytes, too_much
from envs.spaces import leaf_spaces

RULED = "rewards are made by the rule 'last', the recorded ones are not read"
"""A note on a dataset of episodes that come with rewards."""


def join_episodes(
    header: Header, recorded: Iterable[RecordedEpisode | DataError], folder: Path | None, skip_bad: bool
) -> tuple[Header, dict[str, Any]]:
    """Episodes put one after the other, each looked at by itself; the header declares their spaces."""
    kinds = {name: leaf_spaces(header.spaces[f"{name[:-1]}_space"]) for name in ("observations", "actions")}
    columns = _EpisodeColumns(kinds, folder)
    problems, left_out, labels = list[str](), list[str](), list[str]()
    source = Path(header.source)
    bytes_left = most_bytes(source)
    for episode in recorded:
        if isinstance(episode, DataError):
            found = list(episode.problems)
        else:
            found = list(_episode_problems(f"{header.source}: {episode.label}", episode, kinds))
        if skip_bad:
            left_out.extend(found[:1])
        else:
            problems.extend(found)
        if isinstance(episode, DataError) or found or problems:
            continue  # the others are looked at, and none of it is kept
        bytes_left -= episode.nbytes
        if bytes_left < 0:
            raise DataError(f"{source}: {episode.label}, with those before it: {too_much(source)}")
        columns.append(episode)
        labels.append(episode.label)
    if problems:
        raise DataError(*problems)
    _check_counts(header, columns.lengths, left_out)
    notes = (*header.notes, *left_out_notes(left_out), *finals_notes(not header.repeats_final))
    header, fields = replace(header, notes=notes, labels=tuple(labels)), columns.fields(not header.repeats_final)
    if header.reward == "last":
        header = replace(header, rewards_from="last", notes=(*header.notes, RULED))
        fields["rewards"] = last_rewards(fields["offsets"])
    return header, fields


class _EpisodeColumns:
    """Each field of episodes that come one by one, in memory, or in files of a folder."""

    def __init__(self, kinds: Mapping[str, Kinds], folder: Path | None):
        self._observations, self._finals = ({leaf: Column(folder) for leaf in kinds["observations"]} for _ in range(2))
        self._actions = {leaf: Column(folder) for leaf in kinds["actions"]}
        self._rewards = Column(folder)
        self._ends: list[list[bool]] = []
        self.lengths: list[int] = []

    def append(self, episode: RecordedEpisode) -> None:
        """Put an episode behind those that are there."""
        for name, array in episode.observations.items():
            self._observations[name].append(array[:-1])
            self._finals[name].append(array[-1:].copy())  # else the whole episode would stay in memory with it
        for name, array in episode.actions.items():
            self._actions[name].append(array)
        self._rewards.append(episode.rewards)
        self._ends.append([bool(episode.terminations[-1]), bool(episode.truncations[-1])])
        self.lengths.append(len(episode.rewards))

    def fields(self, finals: bool) -> dict[str, Any]:
        """All episodes. finals: with their final observations."""
        ended = np.asarray(self._ends, np.bool_)  # (E, 2)
        return {
            "observations": {name: column.finish() for name, column in self._observations.items()},
            "final_observations": {name: x.finish() for name, x in self._finals.items()} if finals else None,
            "actions": {name: column.finish() for name, column in self._actions.items()},
            "rewards": self._rewards.finish(),
            "offsets": offsets_of(self.lengths),
            "terminated": ended[:, 0],
            "truncated": ended[:, 1],
        }


def _check_counts(header: Header, lengths: list[int], left_out: list[str]) -> None:
    """Refuse a recording without episodes, or with other numbers of them than its metadata says."""
    if not lengths:
        raise DataError(*left_out) if left_out else DataError(f"{header.source}: no episode in it")
    there = len(lengths) + len(left_out)
    if header.num_episodes is not None and header.num_episodes != there:
        raise DataError(f"{header.source}: {there} episodes, metadata.json says {header.num_episodes}")
    if header.num_steps is not None and header.num_steps != sum(lengths) and not left_out:
        raise DataError(f"{header.source}: {sum(lengths)} steps, metadata.json says {header.num_steps}")


def _episode_problems(where: str, episode: RecordedEpisode, kinds: Mapping[str, Kinds]) -> Iterator[str]:
    """kinds: the leaves' spaces of observations and of actions."""
    shape = episode.rewards.shape
    if len(shape) != 1 or shape[0] == 0:
        yield f"{where}/rewards: shape {shape}, expected (T,) with T at least 1"
        return
    if episode.rewards.dtype.kind == "b":
        yield f"{where}/rewards: type bool, expected numbers"
    for name, leaves in (("observations", episode.observations), ("actions", episode.actions)):
        for leaf, array in leaves.items():  # joined with another type the odd one would not be seen any more
            yield from type_problem(f"{where}/{name}" + f"/{leaf}" * (len(leaves) > 1), array, kinds[name][leaf])
    yield from row_problems(f"{where}/actions", episode.actions, [shape[0]], kinds["actions"])
    yield from row_problems(f"{where}/observations", episode.observations, [shape[0] + 1], kinds["observations"])
    for name in ("terminations", "truncations"):
        flags = getattr(episode, name)
        if flags.shape != shape:
            yield f"{where}/{name}: shape {flags.shape}, expected {shape}"
        elif flags.dtype.kind != "b" and (odd := flags[(flags != 0) & (flags != 1)]).size:
            yield f"{where}/{name}: {odd[0]} in it, expected true or false"
        elif flags[:-1].any():
            yield f"{where}/{name}: true at step {int(flags.argmax())}, before the last step"


def left_out_notes(reasons: list[str]) -> list[str]:
    """One note for each episode that was left out, up to twenty of them."""
    more = [f"left out: {len(reasons) - 20} more"] if len(reasons) > 20 else []
    return [f"left out: {why}" for why in reasons[:20]] + more


def finals_notes(recorded: bool) -> list[str]:
    """A note if final observations are not recorded."""
    note = "no final observations: an episode of T steps has T observations, and nothing stands in for the last"
    return [] if recorded else [note]
