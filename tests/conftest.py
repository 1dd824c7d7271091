"""Small things that many tests share: prime sizes, so a swapped axis cannot pass."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from dt.config import ModelConfig
from dt.data import Batch, TrajectoryDataset
from dt.model import DecisionTransformer
from envs.datasets import Dataset
from envs.worlds import EnvironmentSpec


class Payday(gymnasium.Env):
    """Ten steps; an action of 1 earns 1 and an action of 0 nothing, so any return from 0 to 10 can be asked for.

    The observation holds the time and noise from the world's own seed; `limit` makes shorter worlds.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, limit: int = 10):
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.elapsed = 0
        return self._observe(), {}

    def step(self, action):
        self.elapsed += 1
        return self._observe(), float(action), self.elapsed == self.limit, False, {}

    def _observe(self):
        return np.array([self.elapsed, self.np_random.normal()])


gymnasium.register("Payday-v0", Payday, max_episode_steps=20)


@pytest.fixture(scope="session")
def payday() -> Dataset:
    """Sixty episodes of Payday-v0, in each of which a coin of its own bias decides."""
    rng, observations, actions = np.random.default_rng(0), [], []
    for episode in range(60):
        world = Payday()
        observation, _ = world.reset(seed=episode)
        for _ in range(10):
            action = int(rng.random() < episode / 60)
            observations.append(observation)
            actions.append(action)
            observation, *_ = world.step(action)
    return Dataset(
        name="payday/coins-v0",
        source=None,
        observation_space=Payday.observation_space,
        action_space=Payday.action_space,
        observations={"value": np.asarray(observations, np.float32)},
        final_observations=None,
        actions={"value": np.asarray(actions)},
        rewards=np.asarray(actions, np.float32),
        offsets=np.arange(61) * 10,
        terminated=np.ones(60, bool),
        truncated=np.zeros(60, bool),
        environment=EnvironmentSpec("Payday-v0", max_episode_steps=20),
    )


torch.set_num_threads(1)  # the models here are so small that a second thread costs more than it does

LENGTHS = (3, 11, 1, 7)  # episodes shorter and longer than the window below
STATE, ACTION, CONTEXT = 5, 3, 4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def dataset() -> Dataset:
    """Four episodes of random numbers, none of them alike."""
    rng, steps = np.random.default_rng(0), sum(LENGTHS)
    return Dataset(
        name="random/numbers-v0",
        source=None,
        observation_space=spaces.Box(-np.inf, np.inf, (STATE,), np.float32),
        action_space=spaces.Box(-1, 1, (ACTION,), np.float32),
        observations={"value": rng.normal(3, 2, (steps, STATE)).astype(np.float32)},
        final_observations=None,
        actions={"value": rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32)},
        rewards=rng.normal(0, 1, steps).astype(np.float32),
        offsets=np.cumsum([0, *LENGTHS]),
        terminated=np.ones(len(LENGTHS), bool),
        truncated=np.zeros(len(LENGTHS), bool),
    )


def small_model(conditioning: str, dataset: Dataset) -> DecisionTransformer:
    """A model with several heads and layers, and every parameter away from zero and one."""
    shape = {"width": 16, "num_layers": 2, "num_heads": 2, "context_length": CONTEXT, "dropout": 0.0}
    config = ModelConfig(conditioning=conditioning, activation="gelu", **shape)  # no ReLU unit is dead by chance
    model = DecisionTransformer(config, dataset.observation_space, dataset.action_space, max_timesteps=13)
    model.fit(dataset)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.fixture(params=["token", "decoupled"])
def model(request, dataset) -> DecisionTransformer:
    return small_model(request.param, dataset)


@pytest.fixture
def batch(dataset) -> Batch:
    """Windows with and without padding; the first begins at the last step of an episode."""
    return TrajectoryDataset(dataset, CONTEXT).gather(torch.tensor([2, 3, 12, 14, 20]))
