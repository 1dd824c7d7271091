"""`dt record`: what was played is what loads, to the bit, whoever played; and what it refuses."""

import json
import pickle
import zipfile

import gymnasium
import minari
import numpy as np
import pytest
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_cli import run, trained  # noqa: F401 (fixtures)
from test_datasets import root  # noqa: F401 (a fixture)
from test_recording import KINDS, Diary, assert_recorded, environments, ppo

from dt.cli import main
from dt.config import BEST_SEED, FINAL_SEED, RECORDING_SEED, SWEEP_OFFSET, WAY_SEED
from envs import load
from envs.simulate.scores import reference_for
from envs.spaces import to_leaves

SCORED = [start + offset for start in (WAY_SEED, BEST_SEED, FINAL_SEED) for offset in (0, SWEEP_OFFSET)]


@pytest.fixture(autouse=True)
def _empty():
    Diary.pages = []


def kind_of(kind):
    return ["--environment-kwargs", json.dumps({"kind": kind})]


@pytest.mark.parametrize("kind", KINDS)
def test_random_play_is_recorded_to_the_bit(root, kind, capsys):  # noqa: F811
    command = ["record", "Diary-v0", "diary/random-v0", "--policy", "random", "--episodes", "5", *kind_of(kind)]
    assert main([*command, "--num-envs", "1"]) == 0
    dataset = load("diary/random-v0")
    out, err = capsys.readouterr()
    assert out == f"diary/random-v0: 5 episodes, {dataset.num_steps} steps, in {root}/diary/random-v0\n"
    assert "record: episode 5 of 5, " in err
    assert_recorded(dataset, Diary.pages)
    firsts = [[leaf[0].tolist() for leaf in dataset.episode(i).actions.values()] for i in range(5)]
    assert any(first != firsts[0] for first in firsts)  # each episode's actions have a seed of their own
    for page, theirs in zip(Diary.pages, minari.load_dataset("diary/random-v0").iterate_episodes(), strict=True):
        np.testing.assert_array_equal(theirs.rewards, page["rewards"])
        for name, array in to_leaves(dataset.observation_space, theirs.observations).items():
            rows = [to_leaves(dataset.observation_space, value)[name] for value in page["observations"]]
            np.testing.assert_array_equal(array, np.stack(rows))


def test_the_metadata_says_how_it_was_made(root):  # noqa: F811
    command = ["record", "Hopper-v5", "hopper/random-v0", "--policy", "random", "--episodes", "2", "--seed", "7"]
    assert main(command) == 0
    metadata = json.loads((root / "hopper" / "random-v0" / "data" / "metadata.json").read_text())
    recorded = metadata["recorded"]
    assert metadata["algorithm_name"] == recorded["policy"] == "random"
    assert (recorded["command"], recorded["seed"]) == (" ".join(["dt", *command]), 7)
    assert {"python", "gymnasium", "numpy", "mujoco"} <= recorded["versions"].keys()
    dataset = load("hopper/random-v0")
    assert dataset.reference == reference_for("Hopper-v5")
    env = gymnasium.make("Hopper-v5")
    first = dataset.episode(1)
    np.testing.assert_array_equal(first.observations["value"][0], env.reset(seed=8)[0])
    for i, action in enumerate(first.actions["value"]):
        observation, reward, *_ = env.step(action)
        np.testing.assert_array_equal(first.observations["value"][i + 1], observation)
        assert first.rewards[i] == reward  # all of float64


def test_random_play_does_not_depend_on_how_many_environments_there_are(root):  # noqa: F811
    command = ["record", "CartPole-v1", "--policy", "random", "--episodes", "7"]
    for count in ("1", "3"):
        assert main([*command[:2], f"cartpole/environments{count}-v0", *command[2:], "--num-envs", count]) == 0
    assert load("cartpole/environments1-v0").fingerprint == load("cartpole/environments3-v0").fingerprint


def test_a_run_is_recorded_as_it_is_evaluated(root, run, tmp_path):  # noqa: F811
    asked = ["--target-return", "3", "8", "--episodes", "2", "--seed", "5"]
    assert main(["evaluate", str(run), *asked, "--json", str(tmp_path / "scores.json")]) == 0
    assert main(["record", "Payday-v0", "payday/asked-v0", "--policy", str(run), *asked]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["results"]
    dataset = load("payday/asked-v0")
    assert dataset.returns.tolist() == [x for result in scores for x in result["returns"]]
    recorded = dataset.provenance["recorded"]
    assert (recorded["target_returns"], recorded["trained_on"]) == ([3.0, 8.0], "payday/coins-v0")
    assert (dataset.reference.minimum, dataset.reference.maximum) == (0, 10)  # those that the run's own data brought
    assert main(["record", "Payday-v0", "payday/own-v0", "--policy", str(run), "--episodes", "1"]) == 0
    assert load("payday/own-v0").num_episodes == len(json.loads((run / "run.json").read_text())["dataset"]["targets"])


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, TD3, DQN])
def test_a_saved_policy_draws_its_actions_from_the_seed(root, tmp_path, algorithm):  # noqa: F811
    kind, path = "discrete" if algorithm is DQN else "box", str(tmp_path / "policy.zip")
    learner = algorithm("MlpPolicy", environments(kind), seed=0, device="cpu")
    learner.save(path)
    Diary.pages = []
    for seed, identity in ((0, "diary/a-v0"), (0, "diary/b-v0"), (3, "diary/c-v0")):
        command = ["record", "Diary-v0", identity, "--policy", path, "--trust", "--episodes", "4", "--seed", str(seed)]
        assert main([*command, *kind_of(kind)]) == 0
    datasets = [load(f"diary/{name}-v0") for name in "abc"]
    assert_recorded(datasets[0], Diary.pages[:4])
    assert datasets[0].fingerprint == datasets[1].fingerprint != datasets[2].fingerprint
    np.testing.assert_array_equal(datasets[2].episode(0).actions["value"], datasets[0].episode(3).actions["value"])
    if algorithm in (PPO, A2C, SAC):  # TD3 and DQN's exploration apart, what they do is drawn
        observation = Diary.pages[0]["observations"][0]
        assert (datasets[0].actions["value"][0] != learner.predict(observation, deterministic=True)[0]).any()
    assert (
        datasets[0].provenance["algorithm_name"]
        == f"stable_baselines3.{'PPO' if algorithm is A2C else algorithm.__name__}"
    )


def test_a_saved_policy_of_pictures_in_a_dict(root, tmp_path):  # noqa: F811
    ppo(environments("dict"), "MultiInputPolicy").save(tmp_path / "policy.zip")
    Diary.pages = []
    command = ["record", "Diary-v0", "diary/pictures-v0", "--policy", str(tmp_path / "policy.zip"), "--trust"]
    assert main([*command, "--episodes", "3", *kind_of("dict")]) == 0
    assert_recorded(load("diary/pictures-v0"), Diary.pages)


@pytest.fixture
def scaled(tmp_path):
    """A policy that learned behind VecNormalize, and that."""
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    learner = PPO("MlpPolicy", env, n_steps=64, n_epochs=1, seed=0, device="cpu")
    learner.learn(64)
    learner.save(tmp_path / "policy.zip")
    env.save(tmp_path / "scale.pkl")
    return learner, env


def test_a_policy_sees_observations_as_vec_normalize_showed_them(root, tmp_path, scaled, capsys):  # noqa: F811
    command = ["record", "CartPole-v1", "mine/cart-v0", "--policy", str(tmp_path / "policy.zip"), "--trust"]
    assert main(command) == 2
    assert "policy.zip: it was trained behind VecNormalize; --vec-normalize FILE names" in capsys.readouterr().err
    assert main([*command, "--vec-normalize", str(tmp_path / "scale.pkl"), "--episodes", "3"]) == 0
    learner, env = scaled
    dataset = load("mine/cart-v0")
    for i in range(3):
        episode = dataset.episode(i)
        learner.set_random_seed(int(np.random.SeedSequence([RECORDING_SEED + i, 1]).generate_state(1)[0]))
        for observation, action in zip(episode.observations["value"][:-1], episode.actions["value"], strict=True):
            assert learner.predict(env.normalize_obs(observation))[0] == action
    raw = [learner.predict(x, deterministic=True)[0] for x in dataset.observations["value"]]
    assert raw != [learner.predict(env.normalize_obs(x), deterministic=True)[0] for x in dataset.observations["value"]]


def test_what_is_no_scale_is_refused(root, tmp_path, scaled, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pkl").write_text("no pickle")
    for policy, scale, words in (
        ("policy.zip", "text.pkl", "--vec-normalize text.pkl: cannot be used in this environment ("),
        ("policy.zip", "nowhere.pkl", "--vec-normalize nowhere.pkl: cannot be used in this environment ("),
        ("random", "scale.pkl", "--vec-normalize is of a Stable-Baselines3 policy, and random is none"),
    ):
        capsys.readouterr()
        assert (
            main(["record", "CartPole-v1", "mine/x-v0", "--trust", "--policy", policy, "--vec-normalize", scale]) == 2
        )
        assert words in capsys.readouterr().err


def test_a_recording_is_of_other_starts_than_a_score(root):  # noqa: F811
    assert main(["record", "CartPole-v1", "mine/starts-v0", "--policy", "random", "--episodes", "3"]) == 0
    env = gymnasium.make("CartPole-v1")
    played = {tuple(env.reset(seed=first + i)[0]) for first in SCORED for i in range(3)}
    dataset = load("mine/starts-v0")
    recorded = {tuple(dataset.episode(i).observations["value"][0]) for i in range(3)}
    assert recorded == {tuple(env.reset(seed=RECORDING_SEED + i)[0]) for i in range(3)}
    assert not recorded & played


class Boom:
    """What nobody wants unpickled."""

    def __reduce__(self):
        return open, ("boom", "w")


def saved(path, module, content=b"{}"):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", json.dumps({"policy_class": {"__module__": module}}))
        file.writestr("policy.pth", content)
    return str(path)


def test_nothing_is_unpickled_without_trust(root, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    path = saved("policy.zip", "stable_baselines3.sac.policies", pickle.dumps(Boom()))
    monkeypatch.setattr("stable_baselines3.SAC.load", lambda *_, **__: pytest.fail("opened"))
    assert main(["record", "Hopper-v5", "mine/x-v0", "--policy", path]) == 2
    assert "is pickle, which may run any code; --trust opens it" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["policy.zip"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": "nowhere"}, "--policy nowhere: neither random, nor a run's folder (no run.json), nor a file"),
        ({"policy": "text.zip"}, "--policy text.zip: no file of Stable-Baselines3's"),
        ({"policy": "other.zip"}, "a policy of sb3_contrib.tqc.policies; those of SAC, TD3, DDPG, DQN, PPO and A2C"),
        ({"policy": "empty.zip"}, "--policy empty.zip: cannot be opened ("),
        ({"policy": "hopper.zip"}, "--policy hopper.zip: does not act in CartPole-v1: "),
        ({"policy": "three.zip"}, "--policy three.zip: acts in Discrete(3), CartPole-v1 in Discrete(2)"),
        (
            {"policy": "random", "more": ["--target-return", "5"]},
            "--target-return is asked of a run, and random is none",
        ),
        ({"more": ["--target-return", "auto"]}, "--target-return auto chooses what is scored"),
        ({"environment": "Nowhere-v0"}, "environment Nowhere-v0: not registered"),
        ({"identity": "hopper/replay-v0"}, "hopper/replay-v0: ships with the package"),
        ({"more": ["--episodes", "0"]}, "episodes must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_line(root, tmp_path, monkeypatch, capsys, changes, words):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.zip").write_text("no zip")
    saved("other.zip", "sb3_contrib.tqc.policies")
    saved("empty.zip", "stable_baselines3.sac.policies")
    if changes.get("policy") in ("hopper.zip", "three.zip"):
        env = "Hopper-v5" if changes["policy"] == "hopper.zip" else Three()
        PPO("MlpPolicy", env, device="cpu").save(changes["policy"])
    given = {"environment": "CartPole-v1", "identity": "mine/x-v0", "policy": "random", "more": [], **changes}
    command = ["record", given["environment"], given["identity"], "--policy", given["policy"], "--trust"]
    assert main([*command, *given["more"]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not root.exists()


class Three(gymnasium.Env):
    """CartPole's observations and one action more."""

    observation_space = gymnasium.make("CartPole-v1").observation_space
    action_space = gymnasium.spaces.Discrete(3)


def test_an_environment_that_breaks_down_leaves_nothing(root, capsys):  # noqa: F811
    Diary.pages = None  # the first episode that ends cannot be written into the diary
    assert main(["record", "Diary-v0", "diary/half-v0", "--policy", "random", *kind_of("box")]) == 2
    assert f"every episode failed; the first: environment 0, seed {RECORDING_SEED}, step " in capsys.readouterr().err
    assert not root.exists()
