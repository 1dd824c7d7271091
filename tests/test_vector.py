"""A policy in a vector environment plays the episodes that it plays in single ones, however these reset themselves."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from conftest import Payday, small_model
from gymnasium import spaces, vector
from gymnasium.vector import SyncVectorEnv

import dt
from dt.errors import PolicyError
from dt.policy import ReturnConditionedPolicy
from dt.vector import VectorPolicy

MODES = ["NEXT_STEP", *(["SAME_STEP", "DISABLED"] if hasattr(vector, "AutoresetMode") else [])]  # 1.0 had one way only
TARGETS = (3.0, 9.0, 6.0)


class Uneven(Payday):
    """Episodes of two to nine steps; what an action earns depends on the observation."""

    def __init__(self, masked=False):
        super().__init__()
        self.masked = masked

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        self.limit = int(self.np_random.integers(2, 10))
        return observation, self._info()

    def step(self, action):
        assert not self.masked or self.allowed[action]
        before = self._noise
        observation, _, terminated, truncated, _ = super().step(action)
        return observation, float(action) * before, terminated, truncated, self._info()

    def _observe(self):
        self._noise = self.np_random.normal()
        return np.array([self.elapsed, self._noise])

    def _info(self):
        self.allowed = np.array([1, self.np_random.integers(2)], np.int8)
        return {"action_mask": self.allowed} if self.masked else {}


def policy_for(payday, **options):
    return ReturnConditionedPolicy(small_model("single", payday), **options)


def single_returns(policy, make, episodes):
    """Returns of the first episodes of three environments, each stepped by itself."""
    returns = []
    for index, target in enumerate(TARGETS):
        env = make()
        earned = []
        for episode in range(episodes):
            observation, info = env.reset(seed=5 + index if episode == 0 else None)
            policy.reset(target)
            total, over = 0.0, False
            while not over:
                observation, reward, terminated, truncated, info = env.step(policy.act(observation, info))
                policy.feed(reward)
                total, over = total + reward, terminated or truncated
            earned.append(total)
        returns.append(earned)
    return returns


def vector_returns(policy, envs, episodes, disabled=False):
    """The same in one vector environment."""
    player = VectorPolicy(policy, envs, TARGETS)
    observations, infos = envs.reset(seed=5)
    totals, returns = np.zeros(3), [[], [], []]
    while min(map(len, returns)) < episodes:
        actions = player.act(observations, infos)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        player.feed(rewards, terminated, truncated, infos)
        totals += rewards
        over = terminated | truncated
        for index in np.flatnonzero(over):
            returns[index].append(totals[index])
            totals[index] = 0
        if disabled and over.any():
            observations, infos = envs.reset(options={"reset_mask": over})
    return [earned[:episodes] for earned in returns]


def made(make, mode):
    options = {"autoreset_mode": vector.AutoresetMode[mode]} if hasattr(vector, "AutoresetMode") else {}
    return SyncVectorEnv([make] * 3, **options)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_returns_are_those_of_single_environments(payday, mode, masked, cached):
    policy = policy_for(payday, cached=cached)
    expected = single_returns(policy, lambda: Uneven(masked), 4)
    assert len({value for earned in expected for value in earned}) > 6  # something is told apart
    assert vector_returns(policy, made(lambda: Uneven(masked), mode), 4, mode == "DISABLED") == expected


def test_a_made_vector_environment_of_gymnasium_is_played(payday):
    envs, policy = gymnasium.make_vec("Payday-v0", num_envs=3, vectorization_mode="sync"), policy_for(payday)
    assert vector_returns(policy, envs, 2) == single_returns(policy, Payday, 2)


class Nested(Uneven):
    observation_space = spaces.Dict(seen=Uneven.observation_space, lamp=spaces.Discrete(2, start=3))
    action_space = spaces.Dict(push=spaces.Box(-1, 1, (2,)), kind=spaces.Discrete(2, start=5))

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(int(action["kind"]) - 5)

    def _observe(self):
        return {"seen": super()._observe(), "lamp": np.int64(3 + self.elapsed % 2)}


@pytest.mark.parametrize("mode", MODES)
def test_nested_spaces_are_batched(payday, mode):
    steps, rng = payday.num_steps, np.random.default_rng(0)
    nested = replace(
        payday,
        observation_space=Nested.observation_space,
        action_space=Nested.action_space,
        observations={"seen": payday.observations["value"], "lamp": 3 + np.arange(steps) % 2},
        actions={"push": rng.uniform(-1, 1, (steps, 2)).astype(np.float32), "kind": 5 + payday.actions["value"]},
    )
    policy = policy_for(nested)
    expected = single_returns(policy, Nested, 2)
    assert vector_returns(policy, made(Nested, mode), 2, mode == "DISABLED") == expected


def test_a_reset_of_all_starts_all_episodes(payday):
    envs, policy = made(Uneven, "NEXT_STEP"), policy_for(payday)
    player = VectorPolicy(policy, envs, 5.0)
    firsts = []
    for _ in range(2):
        observations, infos = envs.reset(seed=3)
        player.reset()
        firsts.append(player.act(observations, infos))
        player.feed(*envs.step(firsts[-1])[1:])
    assert (firsts[0] == firsts[1]).all()


def test_drawn_actions_are_of_each_episodes_own_seed(payday):
    envs = made(Uneven, "NEXT_STEP")
    observations, infos = envs.reset(seed=3)
    policy = policy_for(payday, temperature=1000.0)
    drawn = [
        VectorPolicy(policy, envs, 5.0, seed=seed).act(observations, infos).tolist() for seed in (0, 0, 1, 2, 3, 4, 5)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(map(tuple, drawn))) > 1


def test_what_does_not_fit_is_refused(payday):
    policy = policy_for(payday)
    with pytest.raises(PolicyError, match=r"the vector environment's observation space does not fit the model: leaves"):
        VectorPolicy(policy, made(Nested, "NEXT_STEP"), 1.0)
    envs = made(Uneven, "NEXT_STEP")
    with pytest.raises(ValueError, match="broadcast"):
        VectorPolicy(policy, envs, [1.0, 2.0])
    player = VectorPolicy(policy, envs, float("nan"))
    with pytest.raises(PolicyError, match="target return must be finite"):
        player.act(*envs.reset(seed=0))
    with pytest.raises(PolicyError, match="feed before reset"):
        VectorPolicy(policy_for(payday), envs, 1.0).feed(np.zeros(3), np.zeros(3, bool), np.zeros(3, bool), {})
    if hasattr(vector, "AutoresetMode"):
        envs.metadata = {}
        with pytest.raises(PolicyError, match="does not say how it resets itself"):
            VectorPolicy(policy, envs, 1.0)


def test_it_is_public():
    assert dt.VectorPolicy is VectorPolicy
