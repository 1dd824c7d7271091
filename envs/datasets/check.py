"""The one check of what a `Dataset` holds: its types and numbers, and what is odd about them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.datasets.arrays import beyond, in_file, not_finite, place, type_problem
from envs.datasets.assemble import Fields
from envs.datasets.dataset import Dataset
from envs.datasets.episodes import left_out_notes
from envs.datasets.selection import take
from envs.datasets.statistics import is_rounded
from envs.errors import DataError, problems_of
from envs.reading.readers import Header, Missing
from envs.spaces import leaf_spaces


def check(header: Header, fields: Fields, skip_bad: bool = False) -> Dataset:
    """The dataset, if its numbers are what they must be.

    Args:
        header: what is known of it.
        fields: its arrays.
        skip_bad: leave out episodes with a bad number, and note it.

    Raises:
        DataError: a number is missing, not finite, of a wrong type, or not a choice of its space.
    """
    dataset = Dataset(
        name=header.name,
        source=header.source,
        observation_space=header.spaces["observation_space"],
        action_space=header.spaces["action_space"],
        inferred=header.inferred,
        borrowed=header.borrowed,
        environment=header.environment,
        reference=header.reference,
        notes=header.notes,
        provenance=header.provenance,
        rewards_from=header.rewards_from,
        **fields,
    )
    left = _without_bad(dataset, header) if skip_bad else dataset
    with problems_of(header.source):
        return _checked(left, header.missing if left is dataset else {}, header.rows)


def _checked(dataset: Dataset, missing: Missing, file_rows: NDArray[np.int64] | None) -> Dataset:
    """The dataset with what is odd about it noted; what is wrong with it raises `DataError`, all of it at once."""
    problems = [*_type_problems(dataset), *(fault.message(dataset, file_rows) for fault in _faults(dataset, missing))]
    if problems:
        raise DataError(*problems)
    notes = [*dataset.notes, *_oddities(dataset)]
    unended = int((~dataset.terminated & ~dataset.truncated).sum())
    if unended:
        notes.append(f"{unended} of {dataset.num_episodes} episodes neither terminate nor are truncated")
    return replace(dataset, notes=tuple(notes))


def _without_bad(dataset: Dataset, header: Header) -> Dataset:
    """The dataset without the episodes that hold a bad number, which are noted."""
    bad: dict[int, str] = {}
    for fault in _faults(dataset, header.missing):
        for episode in fault.episodes(dataset):
            name = header.labels[episode] if header.labels else f"episode {episode}"
            bad.setdefault(episode, f"{name}: {fault.label} {fault.why}")
    if not bad:
        return dataset
    left = np.setdiff1d(np.arange(dataset.num_episodes), list(bad))
    if len(left) == 0:
        return dataset  # the check says why
    taken = take(dataset, left, f"{len(bad)} left out")
    return replace(taken, notes=(*taken.notes, *left_out_notes([bad[episode] for episode in sorted(bad)])))


def _fields(dataset: Dataset) -> Iterator[tuple[str, NDArray[Any], Space[Any]]]:
    """Label, array and space of each leaf of observations and actions."""
    for column, leaves, space in (
        ("observations", dataset.observations, dataset.observation_space),
        ("actions", dataset.actions, dataset.action_space),
    ):
        for name, leaf in leaf_spaces(space).items():
            yield column if len(leaves) == 1 else f"{column}/{name}", leaves[name], leaf


def _type_problems(dataset: Dataset) -> Iterator[str]:
    if dataset.rewards.dtype.kind not in "fiu":
        way = "; --columns success=NAME --reward success makes 1 of true" if dataset.rewards.dtype.kind == "b" else ""
        yield f"rewards: type {dataset.rewards.dtype}, expected numbers{way}"
    elif dataset.rewards.dtype.itemsize > 8:
        yield f"rewards: type {dataset.rewards.dtype}, at most float64 is taken"
    for label, array, leaf in _fields(dataset):
        yield from type_problem(label, array, leaf)


@dataclass(frozen=True)
class _Fault:
    """Bad numbers of one array, whose rows are steps, or episodes; or cells of a table with no number in them."""

    label: str
    array: NDArray[Any] | None  # None of a table's column, whose rows are named too
    bad: NDArray[np.bool_]
    why: str
    by_episode: bool = False

    def message(self, dataset: Dataset, file_rows: NDArray[np.int64] | None) -> str:
        """Where the first of them is, and how many there are. file_rows: as in `Header`."""
        row, *inside = (int(i) for i in np.unravel_index(self.bad.argmax(), self.bad.shape))
        where = f"episode {row}" if self.by_episode else place(dataset.offsets, row)
        count = f", the first of {int(self.bad.sum())}" if self.bad.sum() > 1 else ""
        if self.array is None:
            return f"{where}, row {in_file(row, file_rows)}, {self.label}: {self.why}{count}"
        value = self.array[(row, *inside)]
        return f"{where}, {self.label}{inside or ''}: {value} is {self.why}{count}"

    def episodes(self, dataset: Dataset) -> list[int]:
        """Episodes that hold one of them."""
        rows = np.flatnonzero(self.bad.reshape(len(self.bad), -1).any(1))
        found = rows if self.by_episode else np.searchsorted(dataset.offsets, rows, side="right") - 1
        return [int(episode) for episode in np.unique(found)]


def _faults(dataset: Dataset, missing: Missing) -> Iterator[_Fault]:
    """What numbers are bad: those that are missing, not finite, or no choice of their space."""
    for (_, column), rows in missing.items():
        bad = np.zeros(dataset.num_steps, np.bool_)
        bad[rows] = True
        at_ends = len(rows) == dataset.num_episodes > 1 and bool(bad[dataset.offsets[1:] - 1].all())
        rest = " (in each episode's last row: --last-row-is-final if it holds an observation only)" * at_ends
        at_starts = len(rows) == dataset.num_episodes > 1 and bool(bad[dataset.offsets[:-1]].all())
        late = " (in each episode's first row: if rows hold what led to them, move this column up by one row)"
        rest = late if at_starts and not at_ends else rest
        yield _Fault(f"column {column!r}", None, bad, f"nothing there{rest}")
    if dataset.rewards.dtype.kind in "fiu" and (bad := not_finite(dataset.rewards)).any():
        yield _Fault("rewards", dataset.rewards, bad, "not finite")
    elif (bad := not_finite(dataset.returns)).any():
        yield _Fault("return", dataset.returns, bad, "not finite, though its rewards are", by_episode=True)
    for label, array, leaf in _fields(dataset):
        if list(type_problem("", array, leaf)):
            continue
        if (bad := not_finite(array)).any():
            yield _Fault(label, array, bad, "not finite")
        if not isinstance(leaf, spaces.Box) and (bad := beyond(array, leaf)).any():
            yield _Fault(label, array, bad, f"outside {leaf}")
    leaves = leaf_spaces(dataset.observation_space)
    for name, array in (dataset.final_observations or {}).items():
        label = "final observation" if len(dataset.observations) == 1 else f"final observation/{name}"
        if (bad := not_finite(array)).any():
            yield _Fault(label, array, bad, "not finite", by_episode=True)
        if not isinstance(leaves[name], spaces.Box) and (bad := beyond(array, leaves[name])).any():
            yield _Fault(label, array, bad, f"outside {leaves[name]}", by_episode=True)


def _oddities(dataset: Dataset) -> Iterator[str]:
    """What is odd about rewards and numbers of a Box, and legitimate."""
    if is_rounded(dataset.rewards):
        yield "rewards: whole numbers beyond 2^53, which float64 rounds: write them in another unit, or less an offset"
    for label, array, leaf in _fields(dataset):
        if not isinstance(leaf, spaces.Box):
            continue
        if is_rounded(array):
            yield (
                f"{label}: whole numbers beyond 2^53, which float64 rounds, so ids may fall together: write them as "
                "numbers from 0 on"
            )
        if array.dtype != leaf.dtype:
            yield f"{label} are recorded as {array.dtype}, the space says {leaf.dtype}"
        if (far := beyond(array, leaf)).any():
            steps = far.reshape(len(array), -1).any(1)
            yield f"{label}: {int(steps.sum())} of {len(array)} steps are beyond the space's bounds"
