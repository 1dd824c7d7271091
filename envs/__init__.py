"""Recorded episodes in, worlds stepped, scores out: Gymnasium, Minari and numpy, no torch and no model."""

from envs.datasets import Dataset, Episode
from envs.loading import from_arrays, from_episodes, load
from envs.readers import DataError
from envs.rollout import Job, Played, Policy, RandomPolicy, rollout
from envs.scores import Reference, normalized_score, reference_for
from envs.selection import best_episodes, join, sample_episodes, take
from envs.worlds import EnvironmentSpec, MissingWorldError, WorldError, Worlds
from envs.writer import write_minari

__all__ = [
    "DataError",
    "Dataset",
    "EnvironmentSpec",
    "Episode",
    "Job",
    "MissingWorldError",
    "Played",
    "Policy",
    "RandomPolicy",
    "Reference",
    "WorldError",
    "Worlds",
    "best_episodes",
    "from_arrays",
    "from_episodes",
    "join",
    "load",
    "normalized_score",
    "reference_for",
    "rollout",
    "sample_episodes",
    "take",
    "write_minari",
]
