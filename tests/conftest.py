"""Small things that many tests share: prime sizes, so a swapped axis cannot pass."""

import itertools
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from dt.config import ModelConfig
from dt.data import Batch, TrajectoryDataset
from dt.model import DecisionTransformer
from envs.datasets.dataset import Dataset
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import allowed_choices, choices, from_leaves, leaf_spaces, to_leaves


def pytest_addoption(parser):
    parser.addoption(
        "--at-least", type=int, metavar="N", help="fail if fewer pass, or any is skipped without a GPU mark"
    )


def lacking(stats, at_least: int) -> list[str]:
    """What a whole run of the tests lacks, a line each. stats: reports by outcome, as pytest's reporter has them."""
    passed = len(stats.get("passed", []))
    found = [f"{passed} tests passed, at least {at_least} should"] if passed < at_least else []
    for outcome in ("skipped", "xfailed", "xpassed"):
        reports = [report for report in stats.get(outcome, []) if "gpu" not in report.keywords]
        found += [f"{outcome}, and needs no GPU: {report.nodeid}" for report in reports]
    return found


def pytest_sessionfinish(session):
    at_least, reporter = (
        session.config.getoption("--at-least"),
        session.config.pluginmanager.get_plugin("terminalreporter"),
    )
    if at_least is not None and reporter is not None:
        missing = lacking(reporter.stats, at_least)
        print(f"\n{len(reporter.stats.get('passed', []))} tests passed, {at_least} is the least", *missing, sep="\n")
        if missing and session.exitstatus == 0:
            session.exitstatus = 1


class Payday(gymnasium.Env):
    """Ten steps; an action of 1 earns 1 and an action of 0 nothing, so any return from 0 to 10 can be asked for.

    The observation holds the time and noise from the environment's own seed; `limit` makes shorter environments.
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
        env = Payday()
        observation, _ = env.reset(seed=episode)
        for _ in range(10):
            action = int(rng.random() < episode / 60)
            observations.append(observation)
            actions.append(action)
            observation, *_ = env.step(action)
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


GREY = spaces.Box(0, 255, (36, 36), np.uint8)
OBSERVATIONS = {
    "box": spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
    "number": spaces.Box(-1, 3, (), np.float32),
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "grey image": GREY,
    "image, channels first": spaces.Box(0, 255, (3, 37, 41), np.uint8),
    "image, channels last": spaces.Box(0, 255, (37, 41, 3), np.uint8),
    "discrete": spaces.Discrete(3, start=-1),
    "multi-discrete": spaces.MultiDiscrete([2, 5], start=[0, 7]),
    "multi-binary": spaces.MultiBinary([2, 3]),
    "nested": spaces.Dict(
        camera=GREY,
        arm=spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(2, start=1)]),
        lamps=spaces.MultiBinary(2),
    ),
}
ACTIONS = {
    "box": spaces.Box(-2, np.array([[2.0, 5.0]]), (1, 2), np.float64),
    "number": spaces.Box(-2, 5, (), np.float32),
    "unbounded box": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "discrete": spaces.Discrete(3, start=5),
    "multi-discrete": spaces.MultiDiscrete([2, 5], start=[7, -1]),
    "multi-discrete of two axes": spaces.MultiDiscrete([[2, 3], [5, 2]]),
    "multi-binary": spaces.MultiBinary(3),
    "nested": spaces.Dict(
        grip=spaces.MultiBinary(2),
        move=spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(3, start=1)]),
        aim=spaces.MultiDiscrete([3, 2]),
    ),
}
PAIRS = list(zip(OBSERVATIONS, itertools.cycle(ACTIONS)))  # each kind of either at least once


def ends(space):
    """For each leaf of a space its lowest and its highest value: two dictionaries."""
    low, high = {}, {}
    for name, leaf in leaf_spaces(space).items():
        if isinstance(leaf, spaces.Box):
            low[name] = np.where(np.isfinite(leaf.low), leaf.low, np.float64(-1)).astype(leaf.dtype)
            high[name] = np.where(np.isfinite(leaf.high), leaf.high, np.float64(3)).astype(leaf.dtype)
        else:
            counts, start = (np.reshape(x, leaf.shape) for x in choices(leaf))
            low[name], high[name] = start.astype(leaf.dtype), (start + counts - 1).astype(leaf.dtype)
    return low, high


class Echo(gymnasium.Env):
    """Five steps, each of which shows a cue: the lowest or the highest value of its observation space.

    An action at the same end of its own space earns 1, one at the other end nothing, one between its share. Where
    `masked`, each step's action mask leaves out values by chance, and an action against it is an error.
    """

    def __init__(self, observation: str, action: str, masked: bool = False):
        self.observation_space, self.action_space, self.masked = OBSERVATIONS[observation], ACTIONS[action], masked
        self.ends, self.action_ends = ends(self.observation_space), ends(self.action_space)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.elapsed = 0
        return self._observe()

    def step(self, action):
        low, high = self.action_ends
        shares = []
        for name, leaf in to_leaves(self.action_space, action).items():
            assert leaf.shape == low[name].shape
            shares.append(np.mean((leaf - low[name]) / (high[name] - low[name])))
            if self.masked and name in self.allowed:
                chosen = np.ravel(leaf - low[name])
                assert self.allowed[name][np.arange(len(chosen)), chosen].all(), f"{name}: {leaf} is not allowed"
        reward = 1 - abs(float(np.clip(np.mean(shares), 0, 1)) - self.cue)
        self.elapsed += 1
        observation, info = self._observe()
        return observation, reward, self.elapsed == 5, False, info

    def _observe(self):
        self.cue = int(self.np_random.integers(2))
        observation = from_leaves(self.observation_space, self.ends[self.cue])
        if not self.masked:
            return observation, {}
        mask = random_mask(self.action_space, self.np_random)
        self.allowed = allowed_choices(self.action_space, mask)
        return observation, {"action_mask": mask}


def random_mask(space, rng):
    """An action mask in Gymnasium's form that allows some values of each choice."""
    if isinstance(space, spaces.Dict):
        return {key: random_mask(child, rng) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(random_mask(child, rng) for child in space.spaces)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(0, 3, space.shape).astype(np.int8)

    def flags(count):
        mask = rng.integers(0, 2, int(count)).astype(np.int8)
        mask[rng.integers(count)] = 1
        return mask

    def nest(counts):
        return flags(counts) if counts.ndim == 0 else tuple(nest(part) for part in counts)

    return None if isinstance(space, spaces.Box) else nest(np.asarray(getattr(space, "nvec", getattr(space, "n", 0))))


gymnasium.register("Echo-v0", Echo, max_episode_steps=5, disable_env_checker=True)


def echo_dataset(observation: str, action: str) -> Dataset:
    """Forty episodes of Echo-v0: in every other one each action is right, in the rest each is wrong."""
    environment = EnvironmentSpec("Echo-v0", {"observation": observation, "action": action}, max_episode_steps=5)
    rng, right = np.random.default_rng(0), np.repeat(np.arange(40) % 2, 5)
    cues = rng.integers(2, size=200)
    shown, chosen = ends(OBSERVATIONS[observation]), ends(ACTIONS[action])
    return Dataset(
        name="echo/right-and-wrong-v0",
        source=None,
        observation_space=OBSERVATIONS[observation],
        action_space=ACTIONS[action],
        observations={name: np.stack([shown[cue][name] for cue in cues]) for name in shown[0]},
        final_observations=None,
        actions={name: np.stack([chosen[i][name] for i in np.where(right, cues, 1 - cues)]) for name in chosen[0]},
        rewards=right.astype(np.float32),
        offsets=np.arange(41) * 5,
        terminated=np.ones(40, bool),
        truncated=np.zeros(40, bool),
        environment=environment,
    )


@pytest.fixture(params=PAIRS, ids=[f"{observation} -> {action}" for observation, action in PAIRS])
def echo(request) -> Dataset:
    """A dataset for each kind of observation and each kind of action."""
    return echo_dataset(*request.param)


torch.set_num_threads(1)  # the models here are so small that a second thread costs more than it does

LENGTHS = (3, 11, 1, 7)  # episodes shorter and longer than the window below
STATE, ACTION, CONTEXT = 5, 3, 4


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """A cache of the tests' own; a child process has it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECISION_TRANSFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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


@pytest.fixture
def pictures(dataset) -> Dataset:
    """The same episodes, seen in pictures of noise."""
    seen = np.random.default_rng(1).integers(0, 256, (dataset.num_steps, *GREY.shape), np.uint8)
    return replace(dataset, observation_space=GREY, observations={"value": seen})


def small_model(conditioning: str, dataset: Dataset, **changes: Any) -> DecisionTransformer:
    """A model with several heads and layers, and every parameter away from zero and one."""
    shape = {
        "width": 16,
        "num_layers": 2,
        "num_heads": 2,
        "context_length": CONTEXT,
        "dropout": 0.0,
        "observation_noise": 0.0,
        "positions": "timesteps",
        "rotary": False,
    }
    shape |= {"activation": "gelu"} | changes  # no ReLU unit is dead by chance
    config = ModelConfig(conditioning=conditioning, **shape)
    model = DecisionTransformer(config, dataset.observation_space, dataset.action_space, max_timesteps=13)
    model.fit(dataset)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.fixture(params=["token", "decoupled", "none", "single"])
def model(request, dataset) -> DecisionTransformer:
    return small_model(request.param, dataset)


@pytest.fixture
def batch(dataset) -> Batch:
    """Windows with and without padding; the first begins at the last step of an episode."""
    return TrajectoryDataset(dataset, CONTEXT).gather(torch.tensor([2, 3, 12, 14, 20]))
