"""Atari games as the paper plays them: what a step is, who may make them, and a run from data to score."""

import json
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from test_cli import refused

from dt.cli import main
from envs import load
from envs.errors import MissingEnvError
from envs.simulate.spec import EnvironmentSpec

BREAKOUT = EnvironmentSpec("Atari/Breakout-v5")


@pytest.fixture
def breakout():
    env = BREAKOUT.make()
    yield env
    env.close()


def test_an_observation_is_one_grey_picture_and_the_actions_are_the_games_own(breakout):
    assert breakout.observation_space == spaces.Box(0, 255, (84, 84), np.uint8)
    assert breakout.unwrapped.get_action_meanings() == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    assert breakout.action_space == spaces.Discrete(4)
    assert BREAKOUT.step_limit == 27_000


def test_a_step_is_four_frames_of_an_action_that_never_sticks(breakout):
    ale, starts = breakout.unwrapped.ale, set()
    assert ale.getFloat("repeat_action_probability") == 0
    for seed in range(8):
        breakout.reset(seed=seed)
        start = ale.getEpisodeFrameNumber()
        for step in range(1, 4):
            breakout.step(1)
            assert ale.getEpisodeFrameNumber() == start + 4 * step
        starts.add(start)
    assert len(starts) > 4
    assert 1 <= min(starts) < max(starts) <= 30


def test_an_episode_is_the_whole_game_and_its_rewards_are_the_raw_score():
    env = EnvironmentSpec("Atari/SpaceInvaders-v5").make()
    env.reset(seed=0)
    rng, rewards, lives = np.random.default_rng(0), [], {3}
    over = False
    while not over:
        _, reward, over, cut, _ = env.step(int(rng.integers(6)))
        assert not cut
        rewards.append(reward)
        lives.add(env.unwrapped.ale.lives())
    env.close()
    assert {1, 2, 3} <= lives  # none of them ended it
    assert set(rewards) >= {0, 5, 10}  # clipped they would be 1


def test_each_seed_plays_the_same_game_again(breakout):
    def game(seed):
        picture, _ = breakout.reset(seed=seed)
        return [picture.copy(), *(breakout.step(step % 4)[0].copy() for step in range(60))]

    first, again, other = game(0), game(0), game(1)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_a_user_may_say_how_the_game_is_made():
    env = EnvironmentSpec("Atari/Breakout-v5", {"repeat_action_probability": 0.5, "full_action_space": True}).make()
    assert env.action_space == spaces.Discrete(18)
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.5
    env.close()


def test_without_the_simulator_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    monkeypatch.delitem(sys.modules, "envs.atari", raising=False)
    monkeypatch.delitem(gymnasium.registry, "Atari/Pong-v5", raising=False)
    with pytest.raises(MissingEnvError, match=r"Atari/Pong-v5: .*ale_py.*: pip install ale-py opencv-python-headless"):
        EnvironmentSpec("Atari/Pong-v5").make()
    assert EnvironmentSpec("Atari/Pong-v5").step_limit is None


def test_a_game_that_is_none_and_one_without_preprocessing_are_told_apart(monkeypatch):
    with pytest.raises(MissingEnvError, match="Atari/NoSuch-v5: not registered; --import MODULE"):
        EnvironmentSpec("Atari/NoSuch-v5").make()
    monkeypatch.delitem(gymnasium.registry, "ALE/Breakout-v5", raising=False)
    with pytest.raises(MissingEnvError, match="ALE/Breakout-v5: not registered; Atari/Breakout-v5 is the game as"):
        EnvironmentSpec("ALE/Breakout-v5").make()


SHORT = json.dumps({"max_num_frames_per_episode": 160})


def test_recorded_trained_and_played(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    env = ["--environment-kwargs", SHORT]
    assert main(["record", BREAKOUT.id, "mine/breakout-v0", "--policy", "random", "--episodes", "2", *env]) == 0
    data = load("mine/breakout-v0")
    assert data.environment.same_environment(EnvironmentSpec(BREAKOUT.id, {"game": "Breakout-v5", **json.loads(SHORT)}))
    assert data.observation_space.shape == (84, 84)
    assert data.truncated.all()
    small = ["--width", "16", "--num-layers", "1", "--num-heads", "1", "--context-length", "3", "--batch-size", "2"]
    quick = ["--no-calibration", "--steps", "2", "--episodes", "1", "--evaluate-every", "0", "--device", "cpu"]
    run = str(tmp_path / "run")
    assert main(["train", "mine/breakout-v0", "--preset", "paper-breakout", *small, *quick, "--output", run]) == 0
    capsys.readouterr()
    played = ["evaluate", run, "--target-return", "5", "--episodes", "2", "--temperature", "1"]
    assert main([*played, "--json", str(tmp_path / "scores.json")]) == 0
    (target,) = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert all(35 <= length <= 40 for length in target["lengths"])  # four frames a step, some of them at the start
    refused(capsys, [*played, "--environment", "Atari/Pong-v5"], "its action space does not fit the data's")
