"""d3rlpy's HDF5 (Seno and Imai 2022): what `ReplayBuffer.dump` of version 2 and `MDPDataset.dump` of version 1 write.

    version 2   observations_0 (T, ...), actions_0 (T, A), rewards_0 (T, 1), terminated_0 (), observations_1, ...,
                num_episodes, columns, version; parts of a tuple are observations_0_0, observations_0_1, ...
    version 1   observations, actions, rewards, terminals, episode_terminals: all episodes one after the other, as
                `envs.reading.conventions` knows them

An episode that is not terminated was truncated. What follows the last action is in neither.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import DataError
from envs.reading.episode_arrays import EpisodeArrays
from envs.reading.found import Found

FIELDS = ("observations", "actions", "rewards")
"""What each episode of version 2 has arrays of."""


def is_version_2(names: Sequence[str]) -> bool:
    """Whether an HDF5 file has the numbered episodes of version 2."""
    return "num_episodes" in names and any(re.fullmatch(r"(actions|observations)_\d+(_\d+)?", name) for name in names)


def read_version_2(file: Any, path: Path, names: Sequence[str]) -> Found:
    """All episodes, in the order of their numbers."""
    arrays, there = EpisodeArrays(file, path), set(names)
    count = arrays.number("num_episodes")
    numbered = {int(match[1]) for name in names if (match := re.fullmatch(r"rewards_(\d{1,9})", name))}
    if count != len(numbered) or numbered != set(range(len(numbered))):
        raise DataError(f"{path}: num_episodes is {count}, and there are rewards of {len(numbered)} episodes")
    if not numbered:
        raise DataError(f"{path}: no episode in it")
    episodes = range(len(numbered))
    lengths = arrays.rows([f"rewards_{i}" for i in episodes])
    if 0 in lengths:
        raise DataError(f"{path}: rewards_{lengths.index(0)}: no step in it")

    def read(stem: str, part: str = "") -> Any:
        return arrays.stacked([f"{stem}_{i}{part}" for i in episodes], lengths, "rewards of that episode")

    found = {}
    for field in FIELDS:
        parts = sum(re.fullmatch(rf"{field}_0_\d+", name) is not None for name in there)
        found[field] = tuple(read(field, f"_{part}") for part in range(parts)) if parts else read(field)
    found["terminated"] = np.array([arrays.number(f"terminated_{i}") for i in episodes])
    known = re.compile(r"(observations|actions|rewards|terminated)_\d+(_\d+)?|columns|num_episodes|version")
    unread = [name for name in names if not known.fullmatch(name)]
    return Found(arrays={**found, "lengths": np.array(lengths)}, unread=unread)
