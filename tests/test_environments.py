"""Environments made from plain data, and several stepped side by side."""

import copy
import json
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.errors import EnvError, MissingEnvError
from envs.simulate.environments import Environments
from envs.simulate.importing import import_environments
from envs.simulate.spec import EnvironmentSpec


class Scripted(gymnasium.Env):
    """Pays the rewards it was made with, one a step; the observation is drawn from the environment's own seed."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, rewards=(1.0,), error=None, render_mode=None):
        if error is not None:
            raise error
        self.rewards, self.render_mode, self.closed = rewards, render_mode, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.elapsed = 0
        return self.np_random.normal(size=2), {}

    def step(self, action):
        self.elapsed += 1
        return self.np_random.normal(size=2), self.rewards[self.elapsed - 1], action == 1, action == 2, {}

    def close(self):
        self.closed = True


@pytest.fixture
def scripted():
    """The id under which `Scripted` is registered."""
    gymnasium.register("Scripted-v0", Scripted, max_episode_steps=20, disable_env_checker=True)
    yield "Scripted-v0"
    del gymnasium.registry["Scripted-v0"]


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported: the file's path."""
    sung = tmp_path / "sung"
    (tmp_path / "canary_module.py").write_text(f"open({str(sung)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("envs.simulate.importing.imported", [])  # what later environments in processes would import too
    yield sung
    sys.modules.pop("canary_module", None)


def test_made_with_its_arguments_and_limit(scripted):
    env = EnvironmentSpec(scripted, {"rewards": [5.0, 6.0]}, max_episode_steps=2).make()
    env.reset(seed=0)
    assert env.step(0)[1:4] == (5.0, False, False)
    assert env.step(0)[1:4] == (6.0, False, True)
    assert EnvironmentSpec(scripted).make().spec.max_episode_steps == 20


def test_what_the_caller_asks_for_wins_over_what_was_recorded(scripted):
    recorded = EnvironmentSpec(scripted, {"render_mode": "human"})
    assert recorded.make(render_mode="rgb_array").unwrapped.render_mode == "rgb_array"


@pytest.mark.parametrize("identity", ["Nowhere-v0", "CartPole", "CartPole-v99", "", "no/such:CartPole-v1"])
def test_an_unknown_id_is_refused(identity):
    with pytest.raises(EnvError, match=f"environment {identity}: not registered; .*--environment"):
        EnvironmentSpec(identity).make()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no floor\nand no walls"), "ValueError: no floor"),
        (SystemExit(0), "it ended the program with 0"),
        (KeyError("HOPPER_DATA"), "KeyError: 'HOPPER_DATA'"),
        (GeneratorExit(), "GeneratorExit"),
        (AssertionError(), "AssertionError"),
        (OSError("no such drawing"), "OSError: no such drawing"),
    ],
)
def test_one_that_cannot_be_made_is_named_with_the_reason(scripted, error, words):
    with pytest.raises(EnvError, match=rf"\Aenvironment Scripted-v0: {words}\Z"):
        EnvironmentSpec(scripted, {"error": error}).make()


def test_an_unknown_argument_is_refused(scripted):
    with pytest.raises(EnvError, match=r"environment Scripted-v0: .*wheels"):
        EnvironmentSpec(scripted, {"wheels": 4}).make()


def test_an_id_never_imports_a_module(canary):
    with pytest.raises(EnvError, match="canary_module:Env-v0"):
        EnvironmentSpec("canary_module:Env-v0").make()
    assert not canary.exists()
    import_environments("canary_module")  # the canary does sing: the test can fail
    assert canary.exists()


def test_a_module_that_is_not_there_is_refused():
    with pytest.raises(EnvError, match=r"--import no_such_module: .*no_such_module"):
        import_environments("no_such_module")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit(3)", "it ended the program with 3"),
        ("import not_there_either", "ModuleNotFoundError: No module named 'not_there_either'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise KeyError('SIM_HOME')", "KeyError: 'SIM_HOME'"),
        ("raise GeneratorExit", "GeneratorExit"),
    ],
)
def test_a_module_that_breaks_says_how_and_not_that_it_is_none(tmp_path, monkeypatch, code, words):
    (tmp_path / "broken_environments.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvError) as caught:
        import_environments("broken_environments")
    assert str(caught.value) == f"--import broken_environments: {words}"


@pytest.mark.parametrize(
    ("module", "instead"),
    [
        ("./my_games.py", "my_games"),
        ("my_games.py", "my_games"),
        ("games/doors.py", "games.doors"),
        (".doors", "doors"),
        ("..", "my_environments"),
        ("2048.py", "my_environments"),
        ("", "my_environments"),
    ],
)
def test_a_file_is_no_modules_name_and_the_message_has_it(module, instead):
    with pytest.raises(EnvError) as caught:
        import_environments(module)
    assert str(caught.value) == f"--import {module}: expected a module's name, such as {instead}"


class Closing(Scripted):
    """Ends the program when it is closed."""

    def close(self):
        raise self.closing


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), BaseException("no"), ValueError("no")])
def test_one_that_ends_the_program_when_it_is_closed_has_played_all_the_same(error, monkeypatch):
    monkeypatch.setattr(Closing, "closing", error, raising=False)
    with Environments(Closing, 2) as environments:
        environments.reset(0, 0)
        assert environments.step(0, 0).reward == 1.0


def test_the_spaces_of_one_that_ends_the_program_are_known(monkeypatch):
    gymnasium.register("Closing-v0", Closing, disable_env_checker=True)
    monkeypatch.setattr(Closing, "closing", SystemExit(0), raising=False)
    assert EnvironmentSpec("Closing-v0").info().action_space == Closing.action_space
    monkeypatch.setattr(Closing, "observation_space", property(lambda self: sys.exit(0)))
    with pytest.raises(EnvError, match="it ended the program with 0"):
        EnvironmentSpec("Closing-v0").info()
    del gymnasium.registry["Closing-v0"]


def test_the_users_own_interrupt_is_no_environments_failure(monkeypatch):
    def interrupted(self, action):
        raise KeyboardInterrupt

    monkeypatch.setattr(Scripted, "step", interrupted)
    with Environments(Scripted, 1) as environments:
        environments.reset(0, 0)
        with pytest.raises(KeyboardInterrupt):
            environments.step(0, 0)


class Growing(gymnasium.Env):
    """Its observation space grows at its first reset; the third observation is of the new part."""

    def __init__(self, space, grown, seen, in_place=False):
        self.observation_space, self.action_space = copy.deepcopy(space), spaces.Discrete(2)
        self.grown, self.seen, self.in_place = grown, seen, in_place

    def reset(self, *, seed=None, options=None):
        if self.in_place:
            vars(self.observation_space).update(vars(self.grown))
        else:
            self.observation_space = self.grown
        self.elapsed = 0
        return self.seen[0], {}

    def step(self, action):
        self.elapsed += 1
        return self.seen[self.elapsed], 1.0, False, False, {}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("space", "grown", "seen", "message"),
    [
        (spaces.Discrete(4), spaces.Discrete(100), (1, 2, 50), "value: 50 is none of Discrete(4)"),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([9, 9]), ([1, 2], [0, 0], [3, 0]), "value: [3 0] is none"),
        (
            spaces.Box(0, 1, (1,)),
            spaces.Box(0, 1, (2,)),
            ([0.0], [1.0], [0.0, 0.0]),
            "value: shape (2,), expected (1,)",
        ),
    ],
)
def test_an_environment_that_grows_fails_where_it_leaves_its_first_space(space, grown, seen, message, in_place):
    seen = [np.asarray(each, space.dtype) for each in seen]
    with Environments(lambda: Growing(space, grown, seen, in_place), 1) as environments:
        for _ in range(2):  # the second one is made again, and the first one's space still counts
            environments.reset(0, 0)
            environments.step(0, 0)
            with pytest.raises(EnvError) as caught:
                environments.step(0, 0)
            said = str(caught.value)
            assert said.startswith(f"environment 0, seed 0, step 2: observation {message}")
            assert said.endswith(f"; the environment has changed its space to {grown}")


@pytest.mark.parametrize("reward", [2, 2.0, np.float32(2), np.array(2.0), np.array([2.0]), [2.0], ((2,),), np.int8(2)])
def test_one_number_is_a_reward_in_whatever_form_it_comes(reward):
    with Environments(lambda: Scripted([reward]), 1) as environments:
        environments.reset(0, 0)
        earned = environments.step(0, 0).reward
    assert (earned, type(earned)) == (2.0, float)


class OldReset(Scripted):
    def reset(self, **options):
        return super().reset(**options)[0]


class OldStep(Scripted):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


def wrapped(kind):
    """As `gymnasium.make` makes it, whose wrappers unpack what they are given."""
    return lambda: gymnasium.wrappers.TimeLimit(kind(), 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (OldReset, "reset() returned ndarray, expected (observation, info)"),
        (wrapped(OldReset), "reset() returned ndarray, expected (observation, info)"),
        (OldStep, "step() returned 4 values, expected (observation, reward, terminated, truncated, info)"),
        (wrapped(OldStep), "ValueError: not enough values to unpack (expected 5, got 4); reset() must return"),
    ],
)
def test_the_old_api_of_gym_is_named(make, message):
    def play():
        with Environments(make, 1) as environments:
            environments.reset(0, 0)
            environments.step(0, 0)

    with pytest.raises(EnvError) as caught:
        play()
    assert message in str(caught.value)


def test_read_from_gymnasiums_own_json_and_from_ours():
    theirs = EnvironmentSpec.from_json(gymnasium.make("CartPole-v1", sutton_barto_reward=True).spec.to_json())
    assert (theirs.id, theirs.max_episode_steps) == ("CartPole-v1", 500)
    assert theirs.kwargs["sutton_barto_reward"] is True
    ours = EnvironmentSpec("Hopper-v5", {"frame_skip": 4}, 300)
    assert EnvironmentSpec.from_json(json.loads(json.dumps(ours.to_json()))) == ours
    assert EnvironmentSpec.from_json({"id": "A-v0", "max_episode_steps": -1}) == EnvironmentSpec("A-v0")


@pytest.mark.parametrize(
    "document",
    [
        *("", "{", "[]", "7", "null", "{}", 7, ["a"], "[" * 100_000),
        {"id": "A-v0", "kwargs": 3},
        {"id": "A-v0", "max_episode_steps": "many"},
        {"id": "A-v0", "max_episode_steps": float("inf")},
    ],
    ids=lambda document: str(document)[:40],
)
def test_json_that_describes_no_environment_is_refused(document):
    with pytest.raises(EnvError, match="not an environment's specification"):
        EnvironmentSpec.from_json(document)


def test_each_environment_has_its_own_seed_and_clock():
    with Environments(Scripted, 3) as environments:
        first = [environments.reset(env, seed)[0] for env, seed in enumerate([5, 7, 5])]
        assert (first[0] == first[2]).all()
        assert (first[0] != first[1]).all()
        assert (environments.step(0, 0).observation == environments.step(2, 0).observation).all()
        assert (environments.step(1, 1).terminated, len(environments)) == (True, 3)
        environments.reset(0, 0)
        assert environments.step(0, 2).truncated


@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf, np.float32("nan")])
def test_a_reward_that_is_not_finite_is_named_with_environment_and_step(reward):
    with Environments(lambda: Scripted([1.0, 1.0, reward]), 2) as environments:
        for _ in range(2):  # the second time the clock starts anew
            environments.reset(0, 0), environments.reset(1, 0)
            environments.step(0, 0), environments.step(1, 0), environments.step(1, 0)
            with pytest.raises(EnvError, match=r"environment 1, seed 0, step 3: reward -?(nan|inf)"):
                environments.step(1, 0)


def test_every_environment_is_closed():
    made = []
    with Environments(lambda: made.append(Scripted()) or made[-1], 3):
        assert [env.closed for env in made] == [False] * 3
    assert [env.closed for env in made] == [True] * 3


def test_frames_per_second_are_the_environments_own():
    assert Environments(lambda: gymnasium.make("CartPole-v1"), 1).info.frames_per_second == 50
    assert Environments(Scripted, 1).info.frames_per_second == 30


class Failing(gymnasium.Env):
    """Raises in its second step, or when it is reset with seed 13."""

    observation_space = action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        if seed == 13:
            raise RuntimeError("no thirteenth environment")
        self.steps = 0
        return 0, {}

    def step(self, action):
        self.steps += 1
        if self.steps == 2:
            raise RuntimeError("the motor burnt\nout")
        return 0, 0.0, False, False, {}


def test_what_an_environment_raises_is_named_with_environment_and_step():
    with Environments(Failing, 3) as environments:
        with pytest.raises(
            EnvError, match=r"\Aenvironment 1, reset with seed 13: RuntimeError: no thirteenth environment\Z"
        ):
            environments.reset(1, 13)
        environments.reset(2, 0)
        environments.step(2, 0)
        with pytest.raises(EnvError, match=r"\Aenvironment 2, seed 0, step 2: RuntimeError: the motor burnt\Z"):
            environments.step(2, 0)


def test_the_step_limit_is_the_specs_own_or_the_registered_one():
    assert EnvironmentSpec("CartPole-v1").step_limit == 500
    assert EnvironmentSpec("CartPole-v1", max_episode_steps=7).step_limit == 7
    assert EnvironmentSpec("NoSuch-v0").step_limit is None


def test_a_recorded_render_mode_is_dropped_and_a_safe_wrapper_is_put_back():
    env = gymnasium.wrappers.ClipReward(
        gymnasium.make("CartPole-v1", render_mode="rgb_array", sutton_barto_reward=True), -1, 1
    )
    spec = EnvironmentSpec.from_json(env.spec.to_json())
    assert spec.kwargs == {"sutton_barto_reward": True}
    assert (spec.left_out, [wrapper.name for wrapper in spec.put_back]) == ((), ["ClipReward"])
    made = spec.make()
    assert made.render_mode is None
    assert isinstance(made, gymnasium.wrappers.ClipReward)
    assert EnvironmentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_environments_that_were_made_are_closed_when_a_later_one_cannot_be():
    made = []

    def make():
        if len(made) == 2:
            raise MissingEnvError("no third environment")
        made.append(Scripted())
        return made[-1]

    with pytest.raises(MissingEnvError, match="no third environment"):
        Environments(make, 3)
    assert [env.closed for env in made] == [True] * 2


def test_a_picture_that_cannot_be_taken_is_named(monkeypatch):
    monkeypatch.setattr(Scripted, "render", lambda self: 1 / 0)
    with (
        Environments(Scripted, 1) as environments,
        pytest.raises(EnvError, match=r"environment 0, no picture: ZeroDivisionError: division by zero"),
    ):
        environments.render(0)
    monkeypatch.setattr(Scripted, "render", lambda self: None)
    with (
        Environments(Scripted, 1) as environments,
        pytest.raises(EnvError, match=r"no picture: its render\(\) returns NoneType"),
    ):
        environments.render(0)
