"""`Dataset`: recorded episodes, whatever they come from, as one flat array a field with the episodes' offsets."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.reading.fields import Columns
from envs.reading.options import ReadingOptions
from envs.simulate.environments import EnvironmentSpec
from envs.simulate.scores import Reference
from envs.spaces import Leaves, space_to_json


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps."""

    observations: Leaves  # each (T + 1, *leaf), or (T, *leaf) where the recording lacks the last one
    actions: Leaves  # each (T, *leaf)
    rewards: NDArray[Any]  # (T,)
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Part:
    """A dataset that another was put together from, and the share of its episodes that went in."""

    name: str
    source: str | None  # what `load` takes; None where arrays or episodes were handed over
    fingerprint: str  # of all of it
    fraction: float
    reading: ReadingOptions = field(default_factory=ReadingOptions)  # how `load` read the source

    @staticmethod
    def of(dataset: "Dataset", fraction: float = 1.0) -> "Part":
        """This share of a dataset."""
        source = dataset.loaded_from[0] if len(dataset.loaded_from) == 1 else None
        return Part(dataset.name, source, dataset.fingerprint, fraction, dataset.reading)

    def to_json(self) -> dict[str, Any]:
        """As a run's run.json has it."""
        known = {"name": self.name, "source": self.source, "fingerprint": self.fingerprint, "fraction": self.fraction}
        return {**known, **self.reading.to_json()}


@dataclass(frozen=True)
class Dataset:
    """E episodes of N steps in all, as flat arrays; `offsets[i]` to `offsets[i + 1]` is episode i."""

    name: str
    source: Path | str | None  # the file or folder, or what its maker calls it
    observation_space: Space[Any]
    action_space: Space[Any]
    observations: Leaves  # each (N, *leaf): what was seen before each action
    final_observations: Leaves | None  # each (E, *leaf): what was seen after the last one, where it was recorded
    actions: Leaves  # each (N, *leaf)
    rewards: NDArray[Any]  # (N,)
    offsets: NDArray[np.int64]  # (E + 1,)
    terminated: NDArray[np.bool_]  # (E,)
    truncated: NDArray[np.bool_]  # (E,)
    inferred: tuple[str, ...] = ()  # which of its spaces nobody declares: "observation_space", "action_space"
    environment: EnvironmentSpec | None = None
    reference: Reference | None = None
    rewards_from: str = "recording"  # or the rule that made them, "success" or "last"; "none" where they are zeros
    notes: tuple[str, ...] = ()  # what is odd but legitimate, counted
    told: Mapping[str, Any] = field(default_factory=dict)  # what its metadata tells of how it was made: those of `TOLD`
    loaded_from: tuple[str, ...] = ()  # what `load` took; empty where arrays or episodes were handed over
    reading: ReadingOptions = field(default_factory=ReadingOptions)  # how `load` read it
    parts: tuple[Part, ...] = ()  # what `envs.join` made it of; empty where it is one dataset

    @property
    def columns(self) -> Columns:
        """Which names of its file held which field, where the user named them."""
        return self.reading.columns

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.offsets) - 1

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Steps of each episode: (E,)."""
        return np.diff(self.offsets)

    @cached_property
    def returns(self) -> NDArray[np.float64]:
        """Sum of each episode's rewards: (E,)."""
        groups = [self.offsets[i : i + 257] for i in range(0, self.num_episodes, 256)]  # all may not fit into memory
        with np.errstate(over="ignore", invalid="ignore"):  # what does not come out finite is refused at the door
            return np.concatenate(
                [np.add.reduceat(self.rewards[g[0] : g[-1]].astype(float), g[:-1] - g[0]) for g in groups]
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything a model learns from: two datasets with one fingerprint train the same model."""
        digest = hashlib.sha256()
        for space in (self.observation_space, self.action_space):
            digest.update(space_to_json(space).encode())
        for leaves in (self.observations, self.actions, {"rewards": self.rewards, "offsets": self.offsets}):
            for name, array in sorted(leaves.items()):
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()

    def episode(self, index: int) -> Episode:
        """Episode `index` as views of the flat arrays; its observations are copied to put the last one behind."""
        index = range(self.num_episodes)[index]  # counts from the end where negative, as a list does
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        observations = {name: array[rows] for name, array in self.observations.items()}
        if self.final_observations is not None:
            final = self.final_observations
            observations = {
                name: np.concatenate([seen, final[name][index, None]]) for name, seen in observations.items()
            }
        return Episode(
            observations=observations,
            actions={name: array[rows] for name, array in self.actions.items()},
            rewards=self.rewards[rows],
            terminated=bool(self.terminated[index]),
            truncated=bool(self.truncated[index]),
        )
