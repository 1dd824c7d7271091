"""What the Gym table does to a dataset before a method sees it: join two, keep the best episodes, delay the reward."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import gymnasium
import numpy as np

from envs.datasets import Dataset
from envs.spaces import Leaves
from envs.worlds import EnvironmentSpec


def joined(datasets: Sequence[Dataset]) -> Dataset:
    """Episodes of datasets of one world and the same spaces, one dataset after the other."""
    first = datasets[0]
    for other in datasets[1:]:
        same = (other.observation_space, other.action_space) == (first.observation_space, first.action_space)
        if not same or other.environment != first.environment:
            raise ValueError(f"{first.name} and {other.name} are not of one world")

    def side_by_side(name: str) -> Leaves:
        return {leaf: np.concatenate([getattr(d, name)[leaf] for d in datasets]) for leaf in getattr(first, name)}

    return replace(
        first,
        name="+".join(dataset.name for dataset in datasets),
        observations=side_by_side("observations"),
        final_observations=None,
        actions=side_by_side("actions"),
        rewards=np.concatenate([dataset.rewards for dataset in datasets]),
        offsets=np.concatenate([[0], np.cumsum(np.concatenate([dataset.lengths for dataset in datasets]))]),
        terminated=np.concatenate([dataset.terminated for dataset in datasets]),
        truncated=np.concatenate([dataset.truncated for dataset in datasets]),
    )


def best_episodes(dataset: Dataset, share: float) -> Dataset:
    """The episodes of highest return that together hold no more than this share of the steps, and at least the best.

    The rule of the paper's code for its percentile behaviour cloning: the first that does not fit ends it.
    """
    order = np.argsort(-dataset.returns, kind="stable")
    fits = np.cumsum(dataset.lengths[order]) <= share * dataset.num_steps
    kept = np.sort(order[: max(1, int(fits.sum()))])
    rows = np.concatenate([np.arange(dataset.offsets[i], dataset.offsets[i + 1]) for i in kept])
    return replace(
        dataset,
        observations={name: array[rows] for name, array in dataset.observations.items()},
        final_observations=None,
        actions={name: array[rows] for name, array in dataset.actions.items()},
        rewards=dataset.rewards[rows],
        offsets=np.concatenate([[0], np.cumsum(dataset.lengths[kept])]),
        terminated=dataset.terminated[kept],
        truncated=dataset.truncated[kept],
    )


def delayed(dataset: Dataset) -> Dataset:
    """The same episodes with nothing earned until the last step, which pays it all, in a world that pays so too."""
    rewards = np.zeros(dataset.num_steps)
    rewards[dataset.offsets[1:] - 1] = [
        dataset.rewards[i:j].sum(dtype=np.float64) for i, j in pairwise(dataset.offsets)
    ]
    assert dataset.environment is not None
    return replace(dataset, rewards=rewards, environment=delayed_world(dataset.environment))


class DelayedReward(gymnasium.Wrapper):  # type: ignore[type-arg]
    """Pays an episode's whole return at its last step, and nothing before."""

    def reset(self, **options):
        self.owed = 0.0
        return self.env.reset(**options)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.owed += float(reward)
        return observation, self.owed if terminated or truncated else 0.0, terminated, truncated, info


def delayed_world(spec: EnvironmentSpec) -> EnvironmentSpec:
    """The world of this specification with its reward delayed, registered in this process."""
    name = f"Delayed/{spec.id}"
    gymnasium.registry.pop(name, None)
    gymnasium.register(
        name,
        lambda **kwargs: DelayedReward(spec.make(**kwargs)),
        max_episode_steps=spec.step_limit,
        disable_env_checker=True,
    )
    return EnvironmentSpec(name)
