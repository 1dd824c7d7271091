"""Environments that fail, in this process and in others: each is named, the others play on, no process is left over."""

import contextlib
import ctypes
import functools
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.errors import EnvError
from envs.simulate.environments import Environments
from envs.simulate.importing import import_environments
from envs.simulate.rollout import EpisodeRequest, RandomPolicy, rollout
from envs.simulate.spec import EnvironmentSpec


class Hostile(gymnasium.Env):
    """Six steps from 0 to 1 action by chance; on the given seed it does the given harm in its third step."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012

    def __init__(self, harm=None, on=3, render_mode=None):
        self.harm, self.on, self.render_mode = harm, on, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.elapsed = seed, 0
        if self.harm == "reset" and seed == self.on:
            raise RuntimeError("no such start")
        return self.np_random.normal(size=2), {}

    def step(self, action):
        self.elapsed += 1
        endless = self.seed == self.on and self.harm == "endless"
        ended = self.elapsed == 6 and not endless
        answer = [self.np_random.normal(size=2), self.np_random.normal() + action, ended, False, {}]
        if self.seed == self.on and self.elapsed == 3 and self.harm is not None:
            HARMS.get(self.harm, lambda answer: None)(answer)
        return answer

    def render(self):
        return np.full((4, 5, 3), self.elapsed, np.uint8)


gymnasium.register("Hostile-v0", Hostile, max_episode_steps=6, disable_env_checker=True)


def burn(answer):
    raise RuntimeError("the motor burnt")


def raise_(error):
    raise error


def put(place, value):
    return lambda answer: answer.__setitem__(place, value)


BEGOTTEN = os.environ.setdefault("BEGOTTEN_SECONDS", f"1000.{os.getpid():07d}")  # which only this run's processes sleep
HARMS = {
    "raises": burn,
    "observation": put(0, np.array([0.0, np.nan])),
    "reward": put(1, float("inf")),
    "text": put(1, "1.0"),
    "shape": put(0, np.zeros(3)),
    "dtype": put(0, np.array(["a", "b"])),
    "nothing": put(0, None),
    "info": put(4, None),
    "mask": put(4, {"action_mask": np.zeros(2, np.int8)}),
    "four": lambda answer: answer.pop(),
    "secret": put(4, {"lambda": lambda: 0}),
    "hangs": lambda answer: time.sleep(1000),
    "holds": lambda answer: ctypes.PyDLL(None).sleep(1000),  # no other thread of that process runs any more
    "begets": lambda answer: subprocess.run(["sleep", BEGOTTEN]),
    "dies": lambda answer: os._exit(7),
    "crashes": lambda answer: os.kill(os.getpid(), signal.SIGSEGV),
    "exits": lambda answer: sys.exit(0),
    "generator": lambda answer: raise_(GeneratorExit()),
    "base": lambda answer: raise_(BaseException("no ordinary\nerror")),
    "key": lambda answer: raise_(KeyError("HOPPER_DATA")),
    "list": put(1, [1.0, 2.0]),
    "none": put(1, None),
}
REQUESTS = [EpisodeRequest(seed, seed) for seed in (2, 3, 4, 5)]
TIMEOUT = 20.0


def play(harm, *, timeout=None, requests=REQUESTS, count=2):
    failed, ended = [], []
    with Environments(functools.partial(Hostile, harm), count, timeout) as environments:
        policy = RandomPolicy(Hostile.action_space)
        played = rollout(environments, policy, requests, on_failure=failed.append, on_episode=ended.append)
    assert sorted(id(episode) for episode in failed + ended) == sorted(map(id, played))  # each is told of once
    return played, failed


@pytest.fixture(scope="module")
def unharmed():
    return [episode.rewards for episode in play(None)[0]]


SAID = {
    "raises": "step 3: RuntimeError: the motor burnt$",
    "exits": "step 3: it ended the program with 0$",
    "generator": "step 3: GeneratorExit$",
    "base": "step 3: BaseException: no ordinary$",
    "key": "step 3: KeyError: 'HOPPER_DATA'$",
    "list": r"step 3: reward: shape \(2,\), expected one number$",
    "none": "step 3: reward None is not a number$",
    "observation": r"step 3: observation value is not finite: \[ 0. nan\]",
    "reward": "step 3: reward inf",
    "text": "step 3: reward '1.0' is not a number",
    "shape": r"step 3: observation value: shape \(3,\), expected \(2,\)",
    "dtype": "step 3: observation value: dtype <U1, expected float64",
    "nothing": r"step 3: observation value: shape \(\), expected",
    "info": "step 3: info is NoneType",
    "four": r"step 3: step\(\) returned 4 values, expected \(observation, reward, terminated, truncated, info\)",
}


@pytest.mark.parametrize("harm", SAID)
def test_a_failure_is_named_and_the_other_episodes_are_as_they_were(harm, unharmed):
    played, failed = play(harm)
    assert failed == [played[1]]
    assert re.match(f"environment 1, seed 3, {SAID[harm]}", str(played[1].failure))
    assert [episode.rewards for i, episode in enumerate(played) if i != 1] == [unharmed[i] for i in (0, 2, 3)]
    assert all(episode.failure is None for i, episode in enumerate(played) if i != 1)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("reset", "environment 0, reset with seed 3: RuntimeError: no such start"),
        ("raises", "environment 0, seed 3, step 3: RuntimeError: the motor burnt"),
    ],
)
def test_an_environment_that_failed_takes_the_next_episode(harm, said, unharmed):
    played, failed = play(harm, count=1)
    assert [str(episode.failure) for episode in failed] == [said]
    assert [played[i].rewards for i in (0, 2, 3)] == [unharmed[i] for i in (0, 2, 3)]


def test_a_failure_that_nobody_is_told_of_is_raised():
    with (
        Environments(functools.partial(Hostile, "raises"), 2) as environments,
        pytest.raises(EnvError, match="seed 3, step 3"),
    ):
        rollout(environments, RandomPolicy(Hostile.action_space), REQUESTS)


def test_after_a_failure_the_environment_is_another_one():
    made = []

    def make():
        made.append(Hostile("raises"))
        return made[-1]

    with Environments(make, 1) as environments:
        environments.reset(0, 3)
        for _ in range(2):
            environments.step(0, 0)
        with pytest.raises(EnvError):
            environments.step(0, 0)
        environments.reset(0, 4)
    assert len(made) == 2


def test_processes_play_the_same_episodes_and_failures_in_them_are_named(unharmed):
    """One call for all: what is raised there, what cannot be sent, death by exit and by a signal."""
    assert [episode.rewards for episode in play(None, timeout=TIMEOUT)[0]] == unharmed
    said = {
        "raises": "RuntimeError: the motor burnt",
        "exits": "it ended the program with 0",
        "secret": "its answer cannot leave its process",
        "dies": r"its process ended \(exit status 7\)",
        "crashes": r"its process ended \(signal SIGSEGV\)",
    }
    for harm, words in said.items():
        played, failed = play(harm, timeout=TIMEOUT)
        assert failed == [played[1]]
        assert re.match(f"environment 1, seed 3, step 3: {words}", str(failed[0].failure))
        assert [played[i].rewards for i in (0, 2, 3)] == [unharmed[i] for i in (0, 2, 3)]


@pytest.mark.parametrize("harm", ["hangs", "holds", "begets"])
def test_one_that_hangs_is_ended_and_the_others_are_kept(harm, unharmed):
    started = time.monotonic()
    with Environments(functools.partial(Hostile, harm), 2, 2.0) as environments:
        processes = [env._process.pid for env in environments._environments]
        failed = []
        played = rollout(environments, RandomPolicy(Hostile.action_space), REQUESTS, on_failure=failed.append)
    assert time.monotonic() - started < 30
    assert [str(episode.failure) for episode in failed] == [
        "environment 1, seed 3, step 3: no answer within 2 s, so its process was ended"
    ]
    assert [played[i].rewards for i in (0, 2, 3)] == [unharmed[i] for i in (0, 2, 3)]
    assert not any(alive(process) for process in processes)
    assert not begotten()


class Slow(Hostile):
    """Takes its time to be made, or for a reset."""

    def __init__(self, making=0.0, resetting=0.0):
        time.sleep(making)
        super().__init__()
        self.resetting = resetting

    def reset(self, *, seed=None, options=None):
        time.sleep(self.resetting)
        return super().reset(seed=seed)


def test_each_reset_that_hangs_is_ended_when_its_time_is_over():
    """Also those of processes that are new: the time for making the environment is not the reset's."""
    started, failed = time.monotonic(), []
    with Environments(functools.partial(Slow, 0.0, 1000.0), 2, 0.5) as environments:
        rollout(environments, RandomPolicy(Hostile.action_space), REQUESTS, on_failure=failed.append)
    assert time.monotonic() - started < 40  # 60 s more for each but the first two where starting counted
    assert len(failed) == 4
    assert all("no answer within 0.5 s, so its process was ended" in str(episode.failure) for episode in failed)


def test_making_an_environment_may_take_longer_than_a_step():
    with Environments(functools.partial(Slow, 1.5), 1, 0.5) as environments:
        environments.reset(0, 2)
        assert not environments.step(0, 1).terminated


LAMBDAS = """
import gymnasium, test_processes
gymnasium.register("Lambda-v0", lambda **kwargs: test_processes.Hostile(**kwargs), disable_env_checker=True)
"""


def test_an_environment_that_is_registered_by_a_lambda_plays_in_a_process(tmp_path, monkeypatch, unharmed):
    (tmp_path / "lambdas_of_mine.py").write_text(LAMBDAS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("envs.simulate.importing.imported", [])
    import_environments("lambdas_of_mine")
    with Environments(EnvironmentSpec("Lambda-v0").maker(), 1, TIMEOUT) as environments:
        played = rollout(environments, RandomPolicy(Hostile.action_space), REQUESTS[:1])
    assert [episode.rewards for episode in played] == unharmed[:1]
    monkeypatch.setattr("envs.simulate.importing.imported", [])
    with pytest.raises(EnvError, match="environment Lambda-v0: not registered; --import MODULE registers it"):
        Environments(EnvironmentSpec("Lambda-v0").maker(), 1, TIMEOUT)
    del gymnasium.registry["Lambda-v0"]


def begotten() -> list[str]:
    """Processes that an environment has begun itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [path.parent.name] if path.read_text() == f"sleep\0{BEGOTTEN}\0" else []
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_pictures_come_out_of_a_process_and_what_cannot_be_made_there_is_refused():
    with Environments(EnvironmentSpec("Hostile-v0").maker(render_mode="rgb_array"), 1, TIMEOUT) as environments:
        environments.reset(0, 0)
        environments.step(0, 1)
        assert environments.render(0).shape == (4, 5, 3)
        assert environments.render(0)[0, 0, 0] == 1
        assert environments.info.frames_per_second == 7
    with pytest.raises(EnvError, match=r"environment Hostile-v0: .*wheels"):
        Environments(EnvironmentSpec("Hostile-v0", {"wheels": 4}).maker(), 1, TIMEOUT)
    with pytest.raises(EnvError, match="cannot be played in a process of its own"):
        Environments(lambda: Hostile(), 1, TIMEOUT)


PARENT = """
    import functools, signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
    sys.path.insert(0, {tests!r})
    import test_processes as module
    from envs.simulate.environments import Environments

    def main():
        with Environments(functools.partial(module.Hostile, {harm!r}), 2, 1000) as environments:
            print(*(environment._process.pid for environment in environments._environments), flush=True)
            environments.reset(1, 3)
            for step in range(3):
                environments.step(1, 0)

    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize(("number", "harm"), [(signal.SIGINT, "hangs"), (signal.SIGKILL, "holds")])
def test_no_process_is_left_when_the_one_who_asks_is_stopped_or_killed(tmp_path, number, harm):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT).format(tests=str(Path(__file__).parent), harm=harm))
    root = Path(__file__).parent.parent
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)}, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    assert all(alive(child) for child in children)
    time.sleep(1.0)  # by now it waits for the third step
    parent.send_signal(number)
    parent.wait(timeout=30)
    deadline = time.monotonic() + 10
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(child) for child in children)
