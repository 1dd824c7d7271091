"""Episodes of random play as a dataset: what the paper's small experiments learn from."""

import numpy as np
from tqdm import tqdm

from dt.config import RECORDING_SEED
from envs import (
    Dataset,
    Environments,
    EnvironmentSpec,
    EpisodeRequest,
    PlayedEpisode,
    RandomPolicy,
    from_episodes,
    rollout,
)

ACTION_SEED = 20_000_000
"""Seed of the first episode's actions."""


def record(environment: EnvironmentSpec, episodes: int) -> list[PlayedEpisode]:
    """Play this many episodes at random, the first of them always the same."""
    requests = [EpisodeRequest(RECORDING_SEED + i, ACTION_SEED + i) for i in range(episodes)]
    env = environment.make()
    policy = RandomPolicy(env.action_space)
    env.close()
    with Environments(environment.make, 1) as environments, tqdm(total=episodes, desc="record", unit="episode") as bar:
        return rollout(environments, policy, requests, keep_trajectories=True, on_episode=lambda _: bar.update())


def dataset_of(played: list[PlayedEpisode], environment: EnvironmentSpec, name: str) -> Dataset:
    """Recorded episodes as a checked dataset, meant for this environment."""
    episodes = (
        {
            "observations": np.asarray(episode.observations),
            "actions": np.asarray(episode.actions),
            "rewards": np.asarray(episode.rewards),
            "terminated": episode.terminated,
            "truncated": episode.truncated,
        }
        for episode in played
    )
    return from_episodes(episodes, environment=environment, name=name)
