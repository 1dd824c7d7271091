"""The benchmark of playing: its parts add up, and all ways to step environments take the same actions."""

import numpy as np

from benchmarks import playing


def test_the_parts_of_a_step_each_take_time():
    found = playing.shares("float32", 3)
    assert list(found) == ["simulator", "model", "Python"]
    assert all(part > 0 for part in found.values())


def test_ways_to_step_environments_answer_alike(monkeypatch):
    monkeypatch.setattr(playing, "FEW", 2)
    actions = list(np.random.default_rng(0).uniform(-1, 1, (2, 3)).astype(np.float32))
    with playing.ours(None) as step, playing.theirs(playing.gymnasium.vector.SyncVectorEnv) as their_step:
        for _ in range(3):
            answers, (observations, rewards, *_) = step(actions), their_step(actions)
            for env, answer in answers.items():
                np.testing.assert_array_equal(answer.observation, observations[env])
                assert answer.reward == rewards[env]
