"""Recorded episodes in, environments stepped, scores out: Gymnasium, Minari and numpy, no torch and no model."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # a project's own envs/ without __init__.py stays importable behind this one

from envs.datasets.dataset import Dataset, Episode
from envs.datasets.in_memory import from_arrays, from_episodes, from_replay_buffer
from envs.datasets.loading import load
from envs.datasets.selection import best_episodes, join, sample_episodes, take
from envs.datasets.writer import write_minari
from envs.errors import DataError, EnvError, MissingEnvError
from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, PlayedEpisode, Policy, RandomPolicy, rollout
from envs.simulate.scores import Reference, normalized_score, reference_for
from envs.simulate.spec import EnvironmentSpec

__all__ = [
    "DataError",
    "Dataset",
    "EnvError",
    "EnvironmentSpec",
    "Environments",
    "Episode",
    "EpisodeRequest",
    "MissingEnvError",
    "PlayedEpisode",
    "Policy",
    "RandomPolicy",
    "Reference",
    "best_episodes",
    "from_arrays",
    "from_episodes",
    "from_replay_buffer",
    "join",
    "load",
    "normalized_score",
    "reference_for",
    "rollout",
    "sample_episodes",
    "take",
    "write_minari",
]
