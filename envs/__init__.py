"""Recorded episodes in, worlds stepped, scores out: Gymnasium, Minari and numpy, no torch and no model."""

from envs.datasets import Dataset, Episode, from_arrays, from_episodes, load
from envs.readers import DataError
from envs.rollout import Job, Played, Policy, RandomPolicy, rollout
from envs.scores import Reference, normalized_score, reference_for
from envs.worlds import EnvironmentSpec, MissingWorldError, WorldError, Worlds

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
    "from_arrays",
    "from_episodes",
    "load",
    "normalized_score",
    "reference_for",
    "rollout",
]
