"""Parts of datasets, and several datasets as one: which episodes are taken, and by what rule."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.datasets.array_files import allocate_like, chunks
from envs.datasets.arrays import beyond, type_problem
from envs.datasets.dataset import Dataset, DatasetSource
from envs.datasets.declare import as_declared
from envs.datasets.inference import infer, inferred_note
from envs.errors import DataError
from envs.reading.fields import listed
from envs.spaces import Leaves, leaf_spaces, nested, nesting, same_space

MOST_NAMES = 12
"""Datasets that are all named where they are joined."""


def take(dataset: Dataset, episodes: Iterable[int], why: str) -> Dataset:
    """A dataset of some of the episodes; the dataset itself if that is all of them in order.

    Args:
        dataset: where the episodes come from.
        episodes: their numbers, in the order in which they are taken.
        why: how they were chosen, for the notes.

    Raises:
        DataError: no episode is left.
    """
    chosen = np.fromiter(episodes, np.int64)
    if len(chosen) == 0:
        raise DataError(f"{dataset.name}: {why}: no episode is left of {dataset.num_episodes}")
    if np.array_equal(chosen, np.arange(dataset.num_episodes)):
        return dataset
    finals = dataset.final_observations
    note = f"{len(chosen)} of {dataset.num_episodes} episodes taken: {why}"
    return replace(
        dataset,
        observations=_rows(dataset.observations, dataset.offsets, chosen),
        final_observations=None if finals is None else {name: array[chosen] for name, array in finals.items()},
        actions=_rows(dataset.actions, dataset.offsets, chosen),
        rewards=_rows({"rewards": dataset.rewards}, dataset.offsets, chosen)["rewards"],
        offsets=_offsets(dataset.lengths[chosen]),
        terminated=dataset.terminated[chosen],
        truncated=dataset.truncated[chosen],
        notes=(*dataset.notes, note),
    )


def sample_episodes(dataset: Dataset, share: float, seed: int, purpose: str = "fraction") -> NDArray[np.int64]:
    """Numbers of episodes drawn by the seed without repeats, sorted: at least one.

    With one seed and purpose, a larger share holds all episodes of a smaller one.

    Args:
        dataset: where the episodes come from.
        share: of its episodes, from 0 to 1.
        seed: of the draw.
        purpose: draws for different purposes are independent.
    """
    digest = hashlib.blake2b(f"{purpose} {seed} {dataset.num_episodes}".encode(), digest_size=8).digest()
    order = np.random.default_rng(int.from_bytes(digest, "little")).permutation(dataset.num_episodes)
    return np.sort(order[: max(1, round(share * dataset.num_episodes))])


def best_episodes(dataset: Dataset, share: float) -> NDArray[np.int64]:
    """Numbers of the best episodes by return, sorted.

    Episodes are taken from the best on downwards until the next one would exceed the share of the steps, rounded down.
    The best one is always taken. Of equal returns, the one recorded first comes first. This is the rule of the paper's
    code for %BC (Chen et al. 2021).

    Args:
        dataset: where the episodes come from.
        share: of all steps, from 0 to 1.
    """
    order = np.argsort(-dataset.returns, kind="stable")
    steps = np.cumsum(dataset.lengths[order])
    count = np.searchsorted(steps, int(share * dataset.num_steps), side="right")
    return np.sort(order[: max(1, int(count))])


def hold_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """The episodes to learn from, and a share of them, at least one, that is drawn by the seed and kept apart."""
    apart = sample_episodes(dataset, share, seed, purpose="held out")
    rest = np.setdiff1d(np.arange(dataset.num_episodes), apart)
    if len(rest) == 0:
        raise DataError(f"{dataset.name}: nothing is left to learn from when {share:g} of {_episodes(dataset)} go out")
    return take(dataset, rest, f"{len(apart)} held out"), take(dataset, apart, "held out")


def join(datasets: Sequence[Dataset], fractions: Sequence[float] = (), seed: int = 0) -> Dataset:
    """Several datasets as one, their episodes one after the other.

    A space that was inferred from the numbers of each dataset is inferred again from all of them. Environment and
    reference returns are kept if the datasets do not name different ones.

    Args:
        datasets: their spaces must be the same.
        fractions: the share of each dataset's episodes, drawn by the seed, or one share for all. Empty takes
            everything.
        seed: of the draw.

    Raises:
        DataError: the datasets do not fit together; the message names them.
    """
    if len(fractions) not in (0, 1, len(datasets)) or not datasets:
        raise DataError(f"{len(fractions)} fractions for {len(datasets)} datasets: give one for each, or one for all")
    if not all(0 < fraction <= 1 for fraction in fractions):
        raise DataError(f"fraction must be above 0 and at most 1, not {' '.join(f'{each:g}' for each in fractions)}")
    if len(datasets) == 1 and set(fractions) <= {1.0}:
        return datasets[0]
    shares = list(fractions or [1.0]) * (1 if len(fractions) == len(datasets) else len(datasets))
    datasets, shared = _sharing_spaces(datasets)
    for other in datasets[1:]:
        _check_same_spaces(datasets[0], other)
        if other.rewards_from != datasets[0].rewards_from:
            raise DataError(
                f"{other.name}: its rewards are from {other.rewards_from!r}, those of {datasets[0].name} from "
                f"{datasets[0].rewards_from!r}; --reward success or --reward last makes both by one rule"
            )
    parts = tuple(DatasetSource.of(each, share) for each, share in zip(datasets, shares, strict=True))
    taken = [
        take(each, sample_episodes(each, share, seed), f"a fraction of {share:g}, drawn by seed {seed}")
        for each, share in zip(datasets, shares, strict=True)
    ]
    if len(taken) == 1:
        return replace(taken[0], parts=parts)
    joined = _joined(taken, parts)
    return replace(joined, notes=(*joined.notes, *shared))


def _sharing_spaces(datasets: Sequence[Dataset]) -> tuple[Sequence[Dataset], list[str]]:
    """The datasets with one space where the numbers of some said another, and notes of that.

    It is the space that one of them declares, where the numbers of the others fit it; else it is inferred from all.
    """
    notes = []
    for kind, field in (("observation_space", "observations"), ("action_space", "actions")):
        found = [getattr(each, kind) for each in datasets]
        declaring = [each for each in datasets if kind not in each.inferred]
        if len(declaring) == len(found) or not any(same_space(found[0], other) for other in found[1:]):
            continue
        if declaring:
            datasets, taken = _taking_space_of(declaring[0], datasets, kind, field)
            notes += taken
        elif alike := _alike(datasets, field):
            space = infer([nested(space, leaves) for space, leaves in zip(found, alike, strict=True)], field)
            datasets = [_with_space(each, kind, field, space) for each in datasets]
            notes.append(inferred_note(kind, space))
    return datasets, notes


def _taking_space_of(
    declaring: Dataset, datasets: Sequence[Dataset], kind: str, field: str
) -> tuple[Sequence[Dataset], list[str]]:
    """The datasets; those that inferred their space have the declared one if they fit it. And notes of that."""
    space, taken, notes = getattr(declaring, kind), list[Dataset](), list[str]()
    for each in datasets:
        if kind in each.inferred and _fits(each, field, space):
            taken.append(_with_space(each, kind, field, space))
            old = getattr(each, kind)
            notes.append(f"{each.name}: {kind} {old} is inferred, and taken as that of {declaring.name}, {space}")
        else:
            taken.append(each)
    return taken, notes


def _alike(datasets: Sequence[Dataset], field: str) -> list[Leaves]:
    """The leaves of all of them in one shape, where one number may be a vector of one; none where they have none."""
    leaves = [getattr(each, field) for each in datasets]
    spaces = [nesting(getattr(each, f"{field[:-1]}_space")) for each in datasets]
    if any(space != spaces[0] for space in spaces):
        return []
    vectors = {name for each in leaves for name, array in each.items() if array.ndim == 2}
    alike = [
        {name: array[:, None] if array.ndim == 1 and name in vectors else array for name, array in each.items()}
        for each in leaves
    ]
    shapes = [{name: array.shape[1:] for name, array in each.items()} for each in alike]
    return alike if all(shape == shapes[0] for shape in shapes) else []


def _fits(dataset: Dataset, field: str, space: Space[Any]) -> bool:
    """Whether all of the numbers are in this space, as it has them."""
    if nesting(getattr(dataset, f"{field[:-1]}_space")) != nesting(space):
        return False
    every: list[Leaves] = [getattr(dataset, field)]
    if field == "observations" and dataset.final_observations is not None:
        every.append(dataset.final_observations)
    kinds = leaf_spaces(space)
    return all(_fit(rows, kinds[name]) for leaves in every for name in kinds for rows in chunks(leaves[name]))


def _fit(rows: NDArray[Any], leaf: Space[Any]) -> bool:
    declared = as_declared(rows, leaf)
    shaped = declared.shape[1:] == (leaf.shape or ())
    return shaped and not list(type_problem("", declared, leaf)) and not beyond(declared, leaf).any()


def _with_space(dataset: Dataset, kind: str, field: str, space: Space[Any]) -> Dataset:
    """The dataset as it is where this space is declared."""
    old = inferred_note(kind, getattr(dataset, kind))
    notes = tuple(note for note in dataset.notes if note != old)
    kinds = leaf_spaces(space)
    leaves = {name: _declared(array, kinds[name]) for name, array in getattr(dataset, field).items()}
    changed: dict[str, Any] = {kind: space, field: leaves, "notes": notes}
    if field == "observations" and dataset.final_observations is not None:
        finals = dataset.final_observations
        changed["final_observations"] = {name: _declared(array, kinds[name]) for name, array in finals.items()}
    return replace(dataset, **changed)


def _declared(array: NDArray[Any], leaf: Space[Any]) -> NDArray[Any]:
    """`as_declared`, piece by piece where it is another type: what is mapped may be larger than memory."""
    first = as_declared(next(chunks(array)), leaf)
    if first.dtype == array.dtype:
        return as_declared(array, leaf)
    found, at = allocate_like((len(array), *first.shape[1:]), first.dtype, array), 0
    for rows in chunks(array):
        found[at : at + len(rows)] = as_declared(rows, leaf)
        at += len(rows)
    return found


def _joined(datasets: Sequence[Dataset], parts: tuple[DatasetSource, ...]) -> Dataset:
    first = datasets[0]
    environments = [each.environment for each in datasets if each.environment is not None]
    agree = all(environments[0].same_environment(env) for env in environments)
    names_by_note: dict[str, list[str]] = {}
    for each in datasets:
        for note in each.notes:
            names_by_note.setdefault(note, []).append(each.name)
    named = [f"{listed(names)}: {note}" for note, names in names_by_note.items()]
    prints = [part.fingerprint for part in parts]
    twice = _listed(part.name for part in parts if prints.count(part.fingerprint) > 1)
    if twice:
        named.append(f"the same data more than once, {twice}: its episodes count as often")
    if not agree:
        named.append(
            f"recorded in different environments, {_listed(env.id for env in environments)}: --environment names one"
        )
    references = {each.reference for each in datasets}
    finals = [each.final_observations for each in datasets]
    return Dataset(
        name=_summed([each.name for each in datasets]),
        source=_summed([str(each.source) for each in datasets]),
        observation_space=first.observation_space,
        action_space=first.action_space,
        inferred=tuple(kind for kind in first.inferred if all(kind in each.inferred for each in datasets)),
        observations=_concatenated([each.observations for each in datasets]),
        final_observations=_concatenated([each for each in finals if each is not None]) if None not in finals else None,
        actions=_concatenated([each.actions for each in datasets]),
        rewards=_concatenated([{"rewards": each.rewards} for each in datasets])["rewards"],
        offsets=_offsets(np.concatenate([each.lengths for each in datasets])),
        terminated=np.concatenate([each.terminated for each in datasets]),
        truncated=np.concatenate([each.truncated for each in datasets]),
        rewards_from=first.rewards_from,
        environment=environments[0] if environments and agree else None,
        reference=first.reference if len(references) == 1 and agree else None,
        notes=tuple(named),
        loaded_from=tuple(path for each in datasets for path in each.loaded_from),
        parts=parts,
    )


def _check_same_spaces(first: Dataset, other: Dataset) -> None:
    for kind in ("observation_space", "action_space"):
        difference = same_space(getattr(first, kind), getattr(other, kind))
        if difference:
            raise DataError(
                f"{other.name}: its {kind} is not that of {first.name}: {difference} (--spaces declares one)"
            )


def _rows(leaves: Leaves, offsets: NDArray[np.int64], chosen: NDArray[np.int64]) -> Leaves:
    """The rows of these episodes, one after the other."""
    lengths = np.diff(offsets)[chosen]
    found = {}
    for name, array in leaves.items():
        found[name] = allocate_like((int(lengths.sum()), *array.shape[1:]), array.dtype, array)
        for at, episode in zip(_offsets(lengths), chosen, strict=False):
            start, end = offsets[episode], offsets[episode + 1]
            found[name][at : at + end - start] = array[start:end]
    return found


def _concatenated(leaves: Sequence[Leaves]) -> Leaves:
    """The rows of all of them, one after the other."""
    found = {}
    for name, first in leaves[0].items():
        arrays = [each[name] for each in leaves]
        found[name] = allocate_like((sum(map(len, arrays)), *first.shape[1:]), np.result_type(*arrays), first)
        np.concatenate(arrays, out=found[name])
    return found


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _summed(names: list[str]) -> str:
    """What several are called as one; of many the first, since it becomes the name of a run's folder."""
    return " + ".join(names if len(names) <= MOST_NAMES else [names[0], f"{len(names) - 1} more"])


def _episodes(dataset: Dataset) -> str:
    return f"{dataset.num_episodes} episode{'s' if dataset.num_episodes > 1 else ''}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
