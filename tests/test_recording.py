"""A learner's experience is stored as its environments gave it, and what interrupts the learning loses none of it."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from dt.cli import main
from envs import DataError, EnvironmentSpec, load
from envs.recording import ExperienceRecorder
from envs.spaces import to_leaves

KINDS = {
    "box": (spaces.Box(-9, 9, (3,), np.float64), spaces.Box(-1, 1, (2,), np.float32)),
    "discrete": (spaces.Discrete(5), spaces.Discrete(3)),
    "dict": (
        spaces.Dict(camera=spaces.Box(0, 255, (37, 41, 1), np.uint8), speed=spaces.Box(-9, 9, (2,), np.float32)),
        spaces.MultiDiscrete([2, 3]),
    ),
}


class Diary(gymnasium.Env):
    """Random observations, rewards and lengths; every instance writes what it gave and got into `pages`."""

    pages: list[dict]  # of all instances, in the order in which their episodes finish

    def __init__(self, kind: str):
        self.observation_space, self.action_space = KINDS[kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.page = {"observations": [self.observation_space.sample()], "actions": [], "rewards": []}
        return self.page["observations"][0], {}

    def step(self, action):
        reward, ended = np.float32(self.np_random.normal()), self.np_random.random() < 0.1
        self.page["observations"].append(self.observation_space.sample())
        self.page["actions"].append(np.array(action))
        self.page["rewards"].append(reward)
        truncated = not ended and len(self.page["rewards"]) == 12
        if ended or truncated:
            Diary.pages.append({**self.page, "terminated": bool(ended), "truncated": truncated})
        return self.page["observations"][-1], float(reward), bool(ended), truncated, {}


gymnasium.register("Diary-v0", Diary, disable_env_checker=True, order_enforce=False)


@pytest.fixture(autouse=True)
def _empty():
    Diary.pages = []


class Interrupt(BaseCallback):
    """Ctrl-C after some steps."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def _on_step(self):
        if self.n_calls == self.after:
            raise KeyboardInterrupt
        return True


def environments(kind, count=3):
    return make_vec_env("Diary-v0", n_envs=count, seed=0, env_kwargs={"kind": kind})


def ppo(env, policy="MlpPolicy"):
    return PPO(policy, env, n_steps=16, batch_size=24, n_epochs=1, seed=0, device="cpu")


def learner_of(kind):
    if kind == "discrete":
        return DQN("MlpPolicy", environments(kind), learning_starts=30, train_freq=4, seed=0, device="cpu")
    if kind == "dict":  # Stable-Baselines3 turns its pictures' colours first
        return ppo(environments(kind), "MultiInputPolicy")
    return ppo(VecFrameStack(VecNormalize(environments(kind)), 2))


def running(env):
    """What the diaries say of the episodes that are not over, in the order of the environments."""
    pages = [inner.page for inner in env.unwrapped.get_attr("unwrapped")]
    return [{**page, "terminated": False, "truncated": True} for page in pages if page["rewards"]]


def assert_recorded(dataset, pages):
    assert dataset.num_episodes == len(pages)
    for i, page in enumerate(pages):
        episode = dataset.episode(i)
        assert (episode.terminated, episode.truncated) == (page["terminated"], page["truncated"])
        np.testing.assert_array_equal(episode.rewards, page["rewards"])
        for ours, space, theirs in (
            (episode.observations, dataset.observation_space, page["observations"]),
            (episode.actions, dataset.action_space, page["actions"]),
        ):
            rows = [to_leaves(space, value) for value in theirs]
            assert ours.keys() == rows[0].keys()
            for name, array in ours.items():
                np.testing.assert_array_equal(array, np.stack([row[name] for row in rows]))
                assert array.dtype == rows[0][name].dtype


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recorded_is_what_the_environments_saw_beneath_every_wrapper(tmp_path, kind):
    learner = learner_of(kind)
    with ExperienceRecorder(tmp_path / "experience") as recorder:
        learner.learn(96, callback=recorder)
    dataset, open_pages = load(tmp_path / "experience"), running(learner.env)
    assert open_pages
    assert dataset.num_steps == 96
    assert_recorded(dataset, Diary.pages + open_pages)
    assert {page["terminated"] for page in Diary.pages} == {True, False}  # both ends were there to be told apart
    assert (dataset.observation_space, dataset.action_space) == KINDS[kind]
    assert dataset.environment == EnvironmentSpec("Diary-v0", {"kind": kind})
    recorded = dataset.provenance["recorded"]
    assert (recorded["seed"], recorded["num_envs"], recorded["steps"], recorded["unfinished_episodes"]) == (
        0,
        3,
        96,
        len(open_pages),
    )


def test_ctrl_c_loses_nothing(tmp_path):
    learner = ppo(environments("box"))
    with pytest.raises(KeyboardInterrupt), ExperienceRecorder(tmp_path / "experience") as recorder:
        learner.learn(96, callback=[recorder, Interrupt(after=23)])
    dataset = load(tmp_path / "experience")
    assert dataset.num_steps == 3 * 23
    assert_recorded(dataset, Diary.pages + running(learner.env))


NOBODY_CLOSES = """
import sys
from stable_baselines3 import PPO
from envs.recording import ExperienceRecorder
learner = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1)
learner.learn(48, callback=ExperienceRecorder(sys.argv[1]))
"""


def test_the_end_of_python_closes_what_nobody_closed(tmp_path):
    folder = tmp_path / "experience"
    done = subprocess.run([sys.executable, "-c", NOBODY_CLOSES, str(folder)], cwd=Path(__file__).parent.parent)
    assert done.returncode == 0
    assert load(folder).num_steps == 48


def test_parts_are_there_while_learning_goes_on_and_when_writing_failed_once(tmp_path, monkeypatch):
    monkeypatch.setattr("envs.recording.PART_STEPS", 20)
    recorder, seen = ExperienceRecorder(tmp_path / "experience"), []

    class Look(BaseCallback):
        def _on_step(self):
            seen.append(load(recorder.folder).num_steps if any(recorder.folder.iterdir()) else 0)
            return True

    learner = ppo(environments("box"))
    learner.learn(96, callback=[recorder, Look()])
    assert sorted(seen) == seen
    assert len(set(seen)) >= 3
    assert seen[-1] > 96 - 3 * 12 - 20  # all but the running ones and less than a part
    assert_recorded(load(recorder.folder), Diary.pages[: load(recorder.folder).num_episodes])

    with monkeypatch.context() as patch:
        patch.setattr("envs.recording.write_folder", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            learner.learn(96, callback=recorder, reset_num_timesteps=False)
    recorder.close()
    assert_recorded(load(recorder.folder), Diary.pages + running(learner.env))


def test_learning_goes_on_with_the_episodes_that_are_running(tmp_path):
    learner = ppo(environments("box"))
    with ExperienceRecorder(tmp_path / "experience") as recorder:
        learner.learn(48, callback=recorder)
        learner.learn(48, callback=recorder, reset_num_timesteps=False)
    assert_recorded(load(recorder.folder), Diary.pages + running(learner.env))
    learner.learn(48)  # nobody listens any more
    assert load(recorder.folder).num_steps == 96


def test_it_stands_beside_an_evaluation_in_another_environment(tmp_path):
    env, other = VecNormalize(environments("box")), VecNormalize(environments("box", count=1), training=False)
    with ExperienceRecorder(tmp_path / "experience") as recorder:
        ppo(env).learn(48, callback=[recorder, EvalCallback(other, n_eval_episodes=1, eval_freq=8, verbose=0)])
    assert load(recorder.folder).num_steps == 48  # none of the evaluation's


def test_an_experience_becomes_a_minari_dataset_that_says_how_it_was_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    with ExperienceRecorder(tmp_path / "experience") as recorder:
        ppo(environments("box")).learn(48, callback=recorder)
    assert main(["import", str(recorder.folder), "diary/replay-v0"]) == 0
    ours, theirs = load(recorder.folder), load("diary/replay-v0")
    assert ours.fingerprint == theirs.fingerprint
    assert ours.provenance == theirs.provenance
    metadata = json.loads((tmp_path / "minari" / "diary" / "replay-v0" / "data" / "metadata.json").read_text())
    assert metadata["algorithm_name"] == "stable_baselines3.PPO"


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    for folder in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DataError, match="exists already; an experience wants a new folder"):
            ExperienceRecorder(folder)
    assert (tmp_path / "mine.txt").read_text() == "dear"
