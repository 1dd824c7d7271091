"""What evaluating, training and recording do where some environments fail: the others count, and it is said."""

import functools
import json
import re

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from test_cli import run, trained  # noqa: F401
from test_processes import Hostile
from test_training import log_without_clock, small

from dt.cli import main
from dt.config import RECORDING_SEED, WAY_SEED, ModelConfig
from dt.errors import PolicyError
from dt.evaluation import check_environment
from dt.learning.run import load_run
from dt.learning.training import train
from dt.model import DecisionTransformer
from dt.policy import ReturnConditionedPolicy
from envs.datasets.loading import load
from envs.errors import CannotActError, EnvError
from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, RandomPolicy, rollout
from envs.simulate.spec import EnvironmentSpec


class OtherActions(Hostile):  # Hostile's spaces are Payday's
    action_space = spaces.Discrete(3)


gymnasium.register("OtherActions-v0", OtherActions, max_episode_steps=6, disable_env_checker=True)


def harmed(harm: str, on: int) -> list[str]:
    return ["--environment-kwargs", json.dumps({"harm": harm, "on": on})]


@pytest.mark.parametrize(
    ("harm", "options", "why"),
    [
        ("dies", ["--env-timeout", "20"], "its process ended (exit status 7)"),
        (
            "mask",
            [],
            "action mask of Discrete(2): it allows nothing",
        ),  # the policy cannot act on what the environment says
    ],
)
def test_evaluate_keeps_the_other_episodes_and_says_how_many_failed(run, tmp_path, capsys, harm, options, why):  # noqa: F811
    command = ["evaluate", str(run), "--environment", "Hostile-v0", "--target-return", "2", "8", "--episodes", "3"]
    assert main([*command, "--json", str(tmp_path / "all.json")]) == 0
    capsys.readouterr()
    options = [*options, "--json", str(tmp_path / "some.json"), "--plot", str(tmp_path / "some.png")]
    assert main([*command, *harmed(harm, 1), *options]) == 4
    out, err = capsys.readouterr()
    assert out.count("2  and 1 failed") == 2
    assert f"failed        target 2, environment 1, seed 1, step 3: {why}" in err
    assert err.splitlines()[-1] == "dt: 2 of 6 episodes failed; the results are those of the others"
    whole, some = (json.loads((tmp_path / name).read_text())["results"] for name in ("all.json", "some.json"))
    for before, now in zip(whole, some, strict=True):
        assert now["returns"] == [before["returns"][0], before["returns"][2]]  # to the bit, in another process
        assert now["mean_return"] == pytest.approx(sum(now["returns"]) / 2)
        assert (len(now["failures"]), before["failures"]) == (1, [])


def test_an_episode_longer_than_the_model_knows_is_named_and_the_others_are_as_they_were(run):  # noqa: F811
    def play(harm, **options):
        policy = ReturnConditionedPolicy(load_run(run).model)
        with Environments(functools.partial(Hostile, harm), 2) as environments:
            return rollout(environments, policy, [EpisodeRequest(seed, 3.0) for seed in (2, 3, 4, 5)], **options)

    failed, unharmed = [], play(None)
    played = play("endless", on_failure=failed.append)
    why = "step 20: past the model's table of 20 timesteps; train with a larger --max-timesteps"
    assert [str(episode.failure) for episode in failed] == [f"environment 1, seed 3, {why}"]
    assert failed[0] is played[1]
    assert [played[i].rewards for i in (0, 2, 3)] == [unharmed[i].rewards for i in (0, 2, 3)]
    with pytest.raises(PolicyError, match=f"^environment 1, {why}$"):  # nobody is told of it
        play("endless")


def test_a_policy_used_wrongly_is_no_environments_failure():
    class Wrong(RandomPolicy):
        asked = 0

        def choose(self, observations, infos):
            self.asked += 1
            assert self.asked == 1
            raise CannotActError("used wrongly")

    with Environments(Hostile, 1) as environments, pytest.raises(CannotActError, match="used wrongly"):
        rollout(environments, Wrong(Hostile.action_space), [EpisodeRequest(0, 0)], on_failure=lambda episode: None)


class Pushed(Hostile):
    """Takes any push, and would say nothing of one that is NaN."""

    action_space = spaces.Dict(push=spaces.Box(-1, 1, (2,)), kind=spaces.Discrete(2))

    def step(self, action):
        return super().step(action["kind"])


def test_an_action_that_is_not_finite_is_the_policys_and_comes_to_no_environment():
    class Burst(RandomPolicy):
        def choose(self, observations, infos):
            actions = super().choose(observations, infos)
            if 1 in actions:
                actions[1]["push"][1] = np.nan
            return actions

    failed = []
    with Environments(Pushed, 2) as environments:
        played = rollout(
            environments,
            Burst(Pushed.action_space),
            [EpisodeRequest(2, 0), EpisodeRequest(3, 0)],
            on_failure=failed.append,
        )
    (episode,) = failed
    assert re.fullmatch(
        r"environment 1, seed 3, step 1: the policy's action push is not finite: \[.* nan\]", str(episode.failure)
    )
    assert played[1] is episode
    assert len(played[0].rewards) == 6


def test_where_every_episode_of_an_environment_fails_there_is_no_result(run, tmp_path, capsys):  # noqa: F811
    command = ["evaluate", str(run), "--environment", "Hostile-v0", *harmed("raises", 0), "--episodes", "1"]
    assert main([*command, "--target-return", "2", "--json", str(tmp_path / "none.json")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(
        "every episode failed; the first: environment 0, seed 0, step 3: RuntimeError: the motor burnt"
    )
    assert not (tmp_path / "none.json").exists()


def test_training_goes_on_and_an_evaluation_with_failures_chooses_no_best(payday, tmp_path, capsys):
    env = EnvironmentSpec("Hostile-v0", {"harm": "raises", "on": WAY_SEED + 1})
    train(payday, small(steps=8, evaluate_every=4), tmp_path / "run", environment=env)
    evaluations = [line for line in log_without_clock(tmp_path / "run") if line["kind"] == "evaluation"]
    assert [line["step"] for line in evaluations] == [4, 8]
    assert all(line["failed_episodes"] == 2 and "score" not in line and "return_at_2" in line for line in evaluations)
    assert not (tmp_path / "run" / "best.json").exists()
    assert (
        f"step 4 cannot be the best: 2 episodes failed, the first: target 2, environment 1, seed {WAY_SEED + 1}, step 3"
        in (capsys.readouterr().err)
    )


def test_a_recording_leaves_out_what_failed_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    command = ["record", "Hostile-v0", "hostile/some-v0", "--policy", "random", "--episodes", "4"]
    assert main([*command, *harmed("observation", RECORDING_SEED + 2)]) == 4
    assert "dt: 1 of 4 episodes failed and are not in the dataset" in capsys.readouterr().err
    assert load("hostile/some-v0").num_episodes == 3
    told = json.loads((tmp_path / "hostile" / "some-v0" / "data" / "metadata.json").read_text())["recorded"]
    assert f"seed {RECORDING_SEED + 2}, step 3: observation value is not finite" in json.dumps(told)


def test_a_seed_that_no_environment_takes_is_refused_before_any_is_made(run, capsys):  # noqa: F811
    for seed in ("-1", str(2**32)):
        assert main(["evaluate", str(run), "--seed", seed]) == 2
        assert f"dt: seed must be at least 0 and below 2^32, not {seed}" in capsys.readouterr().err


def test_missing_bounds_keep_a_run_from_playing_in_its_actions_alone():
    """The model never uses an observation's; an action past the environment's would be an error of the environment."""
    config, free = ModelConfig(width=8, num_layers=1), functools.partial(spaces.Box, -np.inf, np.inf)
    check_environment(EnvironmentSpec("CartPole-v1"), DecisionTransformer(config, free((4,)), spaces.Discrete(2), 1000))
    steering = DecisionTransformer(config, free((2,)), free((1,)), 1000)
    with pytest.raises(EnvError, match=r"action space .*; dt train --environment MountainCarContinuous-v0 takes the"):
        check_environment(EnvironmentSpec("MountainCarContinuous-v0"), steering)


def test_an_environment_of_other_spaces_is_refused_before_training(payday, tmp_path):
    env = EnvironmentSpec("Echo-v0", {"observation": "box", "action": "discrete"})
    with pytest.raises(EnvError, match="environment Echo-v0: its observation space does not fit"):
        train(payday, small(), tmp_path / "run", environment=env)
    with pytest.raises(EnvError, match="environment CartPole-v1: its observation space does not fit"):
        train(payday, small(), tmp_path / "run", environment=EnvironmentSpec("CartPole-v1"))
    with pytest.raises(EnvError, match="environment OtherActions-v0: its action space does not fit"):
        train(payday, small(), tmp_path / "run", environment=EnvironmentSpec("OtherActions-v0"))
    assert not (tmp_path / "run").exists()
