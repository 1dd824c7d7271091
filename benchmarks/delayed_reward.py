"""Delayed reward (Chen et al. 2021): nothing is earned until the last step, in the data and in the environment."""

from dataclasses import replace
from itertools import pairwise

import gymnasium
import numpy as np

from envs.datasets.dataset import Dataset
from envs.simulate.spec import EnvironmentSpec


def delayed(dataset: Dataset) -> Dataset:
    """The same episodes with the whole return paid at the last step, in an environment that pays so too."""
    rewards = np.zeros(dataset.num_steps)
    rewards[dataset.offsets[1:] - 1] = [
        dataset.rewards[i:j].sum(dtype=np.float64) for i, j in pairwise(dataset.offsets)
    ]
    assert dataset.environment is not None
    return replace(dataset, rewards=rewards, environment=delayed_environment(dataset.environment))


class DelayedReward(gymnasium.Wrapper):  # type: ignore[type-arg]
    """Pays an episode's whole return at its last step, and nothing before."""

    def reset(self, **options):
        self.owed = 0.0
        return self.env.reset(**options)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.owed += float(reward)
        return observation, self.owed if terminated or truncated else 0.0, terminated, truncated, info


def delayed_environment(spec: EnvironmentSpec) -> EnvironmentSpec:
    """The environment of this specification with its reward delayed, registered in this process."""
    name = f"Delayed/{spec.id}"
    gymnasium.registry.pop(name, None)
    gymnasium.register(
        name,
        lambda **kwargs: DelayedReward(spec.make(**kwargs)),
        max_episode_steps=spec.step_limit,
        disable_env_checker=True,
    )
    return EnvironmentSpec(name)
