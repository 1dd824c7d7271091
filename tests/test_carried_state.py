"""Environments that carry state from episode to episode are named, and an interrupted evaluation keeps what it has."""

import json
import os
import signal

import gymnasium
import numpy as np
import pytest
from conftest import Payday
from gymnasium import spaces, wrappers
from test_cli import QUICK, run, trained, write_npz  # noqa: F401
from test_processes import TIMEOUT, Hostile

from dt.cli import main
from envs.errors import EnvError
from envs.simulate.replay import MOST_STEPS, ReplayingEnvironments
from envs.simulate.rollout import EpisodeRequest, RandomPolicy, rollout


class Carrying(Payday):
    """Payday that carries something over: `what` says what depends on the episodes before."""

    def __init__(self, what="nothing", limit=10):
        super().__init__(limit)
        self.what, self.episodes, self.total = what, 0, 0.0

    def reset(self, *, seed=None, options=None):
        if self.what == "seed ignored":
            seed = None if self.episodes else seed
        super().reset(seed=seed)
        self.episodes += 1
        if self.what == "failing" and self.episodes > 1:
            raise RuntimeError("once only")
        return self._observe(), {}

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.total += reward
        if self.what == "reward" and self.elapsed == 3:
            reward += self.total / 100
        if self.what == "length" and self.elapsed == 4 + self.episodes:
            terminated = True
        if self.what == "late" and self.elapsed > MOST_STEPS:
            reward += self.episodes
        return observation, reward, terminated, truncated, info

    def _observe(self):
        drift = 1e-15 * self.episodes if self.what == "observation" else 0.0
        return super()._observe() + np.array([drift, 0.0])


class Global(Payday):
    """Draws from numpy's global generator."""

    def _observe(self):
        return np.array([self.elapsed, np.random.normal()])


gymnasium.register("Carrying-v0", Carrying, max_episode_steps=20)
gymnasium.register("Normalized-v0", lambda **kwargs: wrappers.NormalizeReward(Payday()), max_episode_steps=20)
AGAIN = "seed 3, played again with the same actions, "


def difference(make, jobs=2, count=1, timeout=None):
    with ReplayingEnvironments(make, count, timeout) as environments:
        rollout(
            environments,
            RandomPolicy(Payday.action_space),
            [EpisodeRequest(3 + i, i) for i in range(jobs)],
            on_failure=print,
        )
        return environments.difference()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("nothing", None),
        ("late", None),  # beyond what is played again
        ("seed ignored", f"{AGAIN}had a different observation at its reset"),
        ("observation", f"{AGAIN}had a different observation at its reset"),
        ("reward", f"{AGAIN}had a different reward at step 3"),
        ("length", f"{AGAIN}had a different end at step 5"),
        ("failing", f"{AGAIN}failed at its reset"),
    ],
)
def test_the_first_episode_played_again_shows_what_is_carried_over(what, expected):
    for jobs, count in ((1, 1), (3, 1), (3, 3)):
        assert difference(lambda: Carrying(what), jobs, count) == expected


def test_randomness_without_a_seed_shows():
    np.random.seed(0)
    assert difference(Global) == f"{AGAIN}had a different observation at its reset"


def test_it_shows_in_a_process_too_and_statistics_at_once():
    assert difference(Payday, timeout=TIMEOUT) is None
    with ReplayingEnvironments(lambda: wrappers.NormalizeObservation(Payday()), 1) as environments:
        assert environments.info.stateful == ("NormalizeObservation",)

    class NormalizeReward(wrappers.TransformReward):
        """Another library's, of the same name."""

    with ReplayingEnvironments(lambda: NormalizeReward(wrappers.ClipReward(Payday(), 0, 1), float), 1) as environments:
        assert environments.info.stateful == ("NormalizeReward",)


class Reusing(Payday):
    """Gives the same array each time, and changes actions in place."""

    action_space = spaces.Box(0, 1, (1,))

    def __init__(self):
        super().__init__()
        self.seen = np.zeros(2)

    def step(self, action):
        answer = super().step(float(action[0] > 0.5))
        action[:] = 0
        return answer

    def _observe(self):
        self.seen[:] = super()._observe()
        return self.seen


def test_arrays_that_are_changed_in_place_are_no_difference():
    with ReplayingEnvironments(Reusing, 2) as environments:
        rollout(environments, RandomPolicy(Reusing.action_space), [EpisodeRequest(i, i) for i in range(3)])
        assert environments.difference() is None


def test_nothing_is_played_again_where_nothing_was_played():
    with ReplayingEnvironments(Payday, 1) as environments:
        assert environments.difference() is None
    with ReplayingEnvironments(lambda: Hostile("reset", 3), 1) as environments:
        with pytest.raises(EnvError):
            environments.reset(0, 3)
        assert environments.difference() is None


@pytest.mark.parametrize(
    ("env", "kwargs", "note"),
    [
        ("Payday-v0", {}, None),
        (
            "Carrying-v0",
            {"what": "reward"},
            "environment Carrying-v0: seed 0, played again with the same actions, had a ",
        ),
        ("Normalized-v0", {}, "environment Normalized-v0: NormalizeReward keeps statistics from episode to episode. "),
    ],
)
def test_evaluate_says_that_returns_depend_on_the_number_of_environments(run, tmp_path, capsys, env, kwargs, note):  # noqa: F811
    command = ["evaluate", str(run), "--environment", env, "--environment-kwargs", json.dumps(kwargs)]
    command += ["--target-return", "5", "--episodes", "3", "--json", str(tmp_path / "scores.json")]
    assert main(command) == 0
    err = capsys.readouterr().err
    document = json.loads((tmp_path / "scores.json").read_text())
    if note is None:
        assert "note" not in err
        assert "notes" not in document
        return
    (said,) = document["notes"]
    assert said.startswith(note)
    assert said.endswith("Returns depend on --num-envs and on the order of the episodes")
    assert err.count(f"note          {said}") == 1


def test_training_says_it_once_on_the_way(payday, tmp_path, capsys):
    recorded = write_npz(tmp_path / "coins.npz", payday)
    command = ["train", str(recorded), "--output", str(tmp_path / "run"), *QUICK, "--target-return", "5"]
    assert main([*command, "--environment", "Normalized-v0"]) == 0
    on_the_way = capsys.readouterr().err.split("evaluate:")[0]
    assert on_the_way.count("NormalizeReward keeps statistics") == 1


class Interrupting(Payday):
    """Sends its own process a signal in the third step of its episode with the given seed."""

    def __init__(self, number=0, on=2, times=1):
        super().__init__()
        self.number, self.on, self.times = number, on, times

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return super().reset(seed=seed)

    def step(self, action):
        answer = super().step(action)
        if self.number and self.elapsed == 3 and self.seed == self.on:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return answer


gymnasium.register("Interrupting-v0", Interrupting, max_episode_steps=20)


def interrupted(number, on=2, times=1):
    kwargs = json.dumps({"number": int(number), "on": on, "times": times})
    return ["--environment", "Interrupting-v0", "--environment-kwargs", kwargs, "--num-envs", "1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_evaluation_reports_the_episodes_that_were_over(run, tmp_path, capsys, number, code):  # noqa: F811
    command = ["evaluate", str(run), "--target-return", "2", "8", "--episodes", "4"]
    assert main([*command, "--json", str(tmp_path / "all.json")]) == 0
    capsys.readouterr()
    command += ["--json", str(tmp_path / "some.json"), "--plot", str(tmp_path / "some.png")]
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert main([*command, *interrupted(number)]) == code
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"partial: {number.name} stopped it after 2 of 8 episodes"
    assert err.splitlines()[-1] == f"dt: stopped by {number.name}: 2 of 8 episodes were played to their end"
    whole, some = (json.loads((tmp_path / name).read_text()) for name in ("all.json", "some.json"))
    assert some["partial"] == {"signal": number.name, "episodes": 2, "planned": 8}
    assert "partial" not in whole
    assert [result["missing"] for result in some["results"]] == [2, 4]
    assert some["results"][0]["returns"] == whole["results"][0]["returns"][:2]
    assert (some["results"][1]["returns"], some["results"][1]["mean_return"]) == ([], None)
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


def test_one_that_is_interrupted_before_an_episode_is_over_writes_nothing(run, tmp_path, capsys):  # noqa: F811
    command = ["evaluate", str(run), "--target-return", "2", "--episodes", "4", "--json", str(tmp_path / "none.json")]
    assert main([*command, *interrupted(signal.SIGTERM, on=0)]) == 143
    out, err = capsys.readouterr()
    assert (out, (tmp_path / "none.json").exists()) == ("", False)
    assert err.splitlines()[-1] == "dt: stopped by SIGTERM: 0 of 4 episodes were played to their end"


def test_a_second_ctrl_c_stops_at_once(run, tmp_path, capsys):  # noqa: F811
    command = ["evaluate", str(run), "--target-return", "2", "--episodes", "4", "--json", str(tmp_path / "none.json")]
    assert main([*command, *interrupted(signal.SIGINT, times=2)]) == 130
    assert (capsys.readouterr().out, (tmp_path / "none.json").exists()) == ("", False)


def test_a_part_of_the_candidates_chooses_no_target(run, tmp_path, capsys):  # noqa: F811
    command = [
        "evaluate",
        str(run),
        "--target-return",
        "auto",
        "--episodes",
        "2",
        "--json",
        str(tmp_path / "some.json"),
    ]
    assert main([*command, *interrupted(signal.SIGINT, on=3_000_001)]) == 130
    document = json.loads((tmp_path / "some.json").read_text())
    assert "sweep" not in document
    assert document["partial"]["episodes"] == 1
    assert document["partial"]["planned"] == 2 * len(document["results"])


def test_an_interrupted_evaluation_after_training_is_kept_in_the_run(payday, tmp_path, capsys):
    recorded = write_npz(tmp_path / "coins.npz", payday)
    output = tmp_path / "run"
    command = ["train", str(recorded), "--output", str(output), *QUICK, "--target-return", "5"]
    assert main([*command, *interrupted(signal.SIGINT, on=1)]) == 130
    document = json.loads((output / "results" / "last.json").read_text())
    assert document["partial"] == {"signal": "SIGINT", "episodes": 1, "planned": 2}
    assert "partial: SIGINT stopped it after 1 of 2 episodes" in capsys.readouterr().out
    assert main(["inspect", str(output)]) == 0
    assert "results       last: " in capsys.readouterr().out
