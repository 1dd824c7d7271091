"""The one loop that steps environments: the same episodes however many play at once, all kept as they were."""

import math
from collections import Counter

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, PlayedEpisode, RandomPolicy, rollout

SEEDS = [3, 0, 9, 4, 3, 1, 7]  # of episodes of different lengths
REQUESTS = [EpisodeRequest(seed, condition) for condition, seed in enumerate(SEEDS)]


class Counting(gymnasium.Env):
    """Rewards that depend on seed, action and time; terminates or is truncated after 2 to 6 steps, as the seed says.

    It writes over the action that it is given and, where `reuses`, gives out one observation array again and again.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Box(0, 9, (1,), np.float64)

    def __init__(self, reuses=True):
        self.reuses, self.buffer = reuses, np.zeros(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.elapsed = seed, 0
        return self.observe(-1), {"elapsed": 0}

    def step(self, action):
        self.elapsed += 1
        reward = self.np_random.normal() + action[0] * self.elapsed
        observation, end = self.observe(action[0]), self.elapsed == 2 + self.seed % 5
        action[:] = np.nan
        info = {"elapsed": self.elapsed}
        return observation, reward, end and self.seed % 2 == 0, end and self.seed % 2 == 1, info

    def observe(self, action):
        self.buffer[:] = self.seed, self.elapsed, action
        return self.buffer if self.reuses else self.buffer.copy()


class Planned:
    """What it chooses depends on all that it is told: request, seed, observation, info and the rewards so far."""

    def __init__(self):
        self.conditions, self.rewards = {}, {}

    def begin(self, env, condition, seed):
        self.conditions[env], self.rewards[env] = condition + 3 * seed, []

    def choose(self, observations, infos):
        assert infos.keys() == observations.keys()
        return {env: self.action(env, observations[env], infos[env]) for env in observations}

    def action(self, env, observation, info):
        assert info["elapsed"] == len(self.rewards[env])
        told = self.conditions[env] + observation.sum() + info["elapsed"]
        return np.array([told % 7 + self.earned(env)])

    def earned(self, env):
        return math.fsum(reward * (i + 1) for i, reward in enumerate(self.rewards[env])) % 1  # their order counts

    def receive(self, env, reward):
        self.rewards[env].append(reward)


def play(requests=REQUESTS, count=3, policy=None, reuses=True, **options) -> list[PlayedEpisode]:
    with Environments(lambda: Counting(reuses), count) as environments:
        return rollout(environments, policy or Planned(), requests, **options)


def by_hand(request: EpisodeRequest) -> PlayedEpisode:
    """The same episode, as anyone would write it for one environment."""
    env, policy, played, end = Counting(), Planned(), PlayedEpisode(request), False
    observation, info = env.reset(seed=request.seed)
    played.observations.append(observation.copy())
    policy.begin(0, request.condition, request.seed)
    while not end:
        action = policy.action(0, observation, info)
        played.actions.append(action.copy())
        observation, reward, played.terminated, played.truncated, info = env.step(action)
        policy.receive(0, reward)
        played.observations.append(observation.copy())
        played.rewards.append(reward)
        end = played.terminated or played.truncated
    return played


@pytest.mark.parametrize("count", [1, 2, 3, 7, 11])  # fewer environments than requests, as many, and more
@pytest.mark.parametrize("reuses", [True, False], ids=["one observation array", "new ones"])
def test_episodes_do_not_depend_on_how_many_environments_play(count, reuses):
    results = play(count=count, reuses=reuses, keep_trajectories=True)
    assert [played.request for played in results] == REQUESTS
    for played, expected in zip(results, map(by_hand, REQUESTS), strict=True):
        assert played.rewards == expected.rewards
        assert (played.terminated, played.truncated) == (expected.terminated, expected.truncated)
        assert played.length == len(played.actions) == 2 + played.request.seed % 5
        assert len(played.observations) == played.length + 1
        np.testing.assert_array_equal(played.observations, expected.observations)
        np.testing.assert_array_equal(played.actions, expected.actions)
        assert played.total_return == pytest.approx(np.sum(expected.rewards))


def test_trajectories_are_kept_only_where_asked_for():
    assert all(not played.observations and not played.actions and played.rewards for played in play())


def test_no_jobs_no_episodes():
    assert play(requests=[]) == []


def test_the_policy_is_told_every_reward_in_its_order():
    class Listening(Planned):
        def __init__(self):
            super().__init__()
            self.heard = {}

        def begin(self, env, condition, seed):
            super().begin(env, condition, seed)
            self.heard[condition] = self.rewards[env]

    policy = Listening()
    results = play(policy=policy)
    assert policy.heard == {played.request.condition: played.rewards for played in results}


def test_callbacks_come_once_for_each_step_and_each_episode():
    resets, steps, finished, environments = [], Counter(), [], set()

    def on_reset(env, episode):
        resets.append(episode.request.condition)
        assert (episode.length, steps[episode.request.condition]) == (0, 0)  # before the first step

    def on_step(env, episode):
        steps[episode.request.condition] += 1
        environments.add(env)
        assert episode.length == steps[episode.request.condition]  # after the step

    def on_episode(episode):
        assert episode.terminated != episode.truncated
        finished.append(episode.request.condition)

    results = play(on_reset=on_reset, on_step=on_step, on_episode=on_episode)
    assert resets == list(range(len(REQUESTS)))
    assert steps == {played.request.condition: played.length for played in results}
    assert sorted(finished) == list(range(len(REQUESTS)))
    assert finished != sorted(finished)  # in the order they end; here a later one is shorter
    assert environments == {0, 1, 2}


SPACES = [spaces.Discrete(5, start=3), spaces.Dict(arm=spaces.Box(-1, 2, (3,)), grip=spaces.Discrete(2))]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_random_policy_stays_in_its_space_and_follows_its_seed(space):
    def actions(seed):
        policy = RandomPolicy(space)
        for env in (0, 4):
            policy.begin(env, seed + env, 0)
        both = {0: {}, 4: {}}
        return [action for _ in range(20) for action in policy.choose(both, both).values()]

    assert all(space.contains(action) for action in actions(0))
    assert len({str(action) for action in actions(0)}) > 1
    assert str(actions(0)) == str(actions(0)) != str(actions(1))


def test_the_random_policy_plays():
    requests = [EpisodeRequest(seed, seed) for seed in range(5)]
    results = play(requests, policy=RandomPolicy(Counting.action_space), keep_trajectories=True)
    alone = play(requests, count=1, policy=RandomPolicy(Counting.action_space))
    assert [played.rewards for played in results] == [played.rewards for played in alone]
    assert all(Counting.action_space.contains(action) for played in results for action in played.actions)


class Lavish(Counting):
    """Pays more than the square root of what a float holds, in odd seeds."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 1e149 * (100 if self.seed % 2 else 1), *rest


def test_an_episode_of_a_return_that_statistics_cannot_hold_fails():
    failed = []
    with Environments(Lavish, 2) as environments:
        played = rollout(environments, Planned(), REQUESTS[:4], on_failure=failed.append)
    assert [episode.failure is not None for episode in played] == [each.seed % 2 == 1 for each in REQUESTS[:4]]
    assert "step 1: return 1e+151, past 1e+150" in str(failed[0].failure)
    assert all(np.isfinite(np.square(episode.total_return)) for episode in played if episode.failure is None)
