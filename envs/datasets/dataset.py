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
from envs.simulate.scores import Reference
from envs.simulate.spec import EnvironmentSpec
from envs.space_json import space_to_json
from envs.spaces import Leaves


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps."""

    observations: Leaves
    """By leaf: each (T + 1, *leaf), or (T, *leaf) if the last one was not recorded."""
    actions: Leaves
    """By leaf: each (T, *leaf)."""
    rewards: NDArray[Any]
    """(T,)."""
    terminated: bool
    """Whether it ended by itself."""
    truncated: bool
    """Whether it was cut off."""

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class DatasetSource:
    """A dataset that another was put together from, and the share of its episodes that went in."""

    name: str
    source: str | None  # what `load` takes; None where arrays or episodes were handed over
    fingerprint: str  # of all of it
    fraction: float
    reading: ReadingOptions = field(default_factory=ReadingOptions)  # how `load` read the source

    @staticmethod
    def of(dataset: "Dataset", fraction: float = 1.0) -> "DatasetSource":
        """This share of a dataset."""
        source = dataset.loaded_from[0] if len(dataset.loaded_from) == 1 else None
        return DatasetSource(dataset.name, source, dataset.fingerprint, fraction, dataset.reading)

    def to_json(self) -> dict[str, Any]:
        """As a run's run.json has it."""
        known = {"name": self.name, "source": self.source, "fingerprint": self.fingerprint, "fraction": self.fraction}
        return {**known, **self.reading.to_json()}


@dataclass(frozen=True)
class Dataset:
    """E episodes of N steps in all, as flat arrays: steps `offsets[i]` to `offsets[i + 1]` are episode i."""

    name: str
    """What messages call it."""
    source: Path | str | None
    """The file or folder, or what its maker calls it."""
    observation_space: Space[Any]
    """Of one observation."""
    action_space: Space[Any]
    """Of one action."""
    observations: Leaves
    """What was observed before each action, by leaf: each (N, *leaf)."""
    final_observations: Leaves | None
    """What was observed after each episode's last action, by leaf: each (E, *leaf). None if not recorded."""
    actions: Leaves
    """By leaf: each (N, *leaf)."""
    rewards: NDArray[Any]
    """(N,)."""
    offsets: NDArray[np.int64]
    """(E + 1,)."""
    terminated: NDArray[np.bool_]
    """(E,)."""
    truncated: NDArray[np.bool_]
    """(E,)."""
    inferred: tuple[str, ...] = ()
    """Which of its spaces were inferred from the numbers: "observation_space", "action_space"."""
    borrowed: tuple[str, ...] = ()
    """Which of its spaces are those of `environment`, since the file declares none."""
    environment: EnvironmentSpec | None = None
    """Where it was recorded, if known."""
    reference: Reference | None = None
    """Reference returns of that environment."""
    rewards_from: str = "recording"
    """Where rewards come from: "recording", or the rule "success" or "last"; "none" if they are zeros."""
    notes: tuple[str, ...] = ()
    """What is odd but legitimate, one line each."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What its metadata says of how it was made: the keys of `PROVENANCE`."""
    loaded_from: tuple[str, ...] = ()
    """What `load` took; empty for arrays and episodes from Python."""
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    """How `load` read it."""
    parts: tuple[DatasetSource, ...] = ()
    """What `envs.join` made it of; empty where it is one dataset."""

    @property
    def columns(self) -> Columns:
        """Which names of its file held which field, where the user named them."""
        return self.reading.columns

    @property
    def leave_out(self) -> tuple[str, ...]:
        """Parts of the observations that were left out, of the data and of the environment."""
        return self.parts[0].reading.leave_out if self.parts else self.reading.leave_out

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

    def with_known_fingerprint(self, fingerprint: str) -> "Dataset":
        """This dataset, with a fingerprint that need not be computed."""
        vars(self)["fingerprint"] = fingerprint  # where a cached property keeps its value
        return self

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
