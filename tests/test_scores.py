"""Normalised scores and the reference returns that they are measured against."""

import pytest

from envs.simulate.scores import Reference, normalized_score, reference_for, reference_in, scored_as_d4rl
from envs.simulate.spec import EnvironmentSpec


def test_the_two_reference_returns_score_zero_and_a_hundred():
    reference = Reference(-20.0, 380.0, "made up")
    assert normalized_score(-20.0, reference) == 0
    assert normalized_score(380.0, reference) == 100
    assert normalized_score(580.0, reference) == 150  # an expert can be beaten
    assert normalized_score(-20.0, None) is None


@pytest.mark.parametrize("environment", ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v4", "Ant-v5"])
def test_known_robots_have_references_with_a_source(environment):
    reference = reference_for(environment)
    assert reference.minimum < reference.maximum
    assert "D4RL" in reference.source


def test_the_hoppers_references_are_d4rls():
    reference = reference_for("Hopper-v5")
    assert (reference.minimum, reference.maximum) == (-20.272305, 3234.3)


@pytest.mark.parametrize(
    "environment",
    [None, "", "Hopper", "Hopper-v", "Hopper-vx", "Hopper-v05", "Hopper-v6", "MyHopper-v5", "CartPole-v1"],
)
def test_others_have_none(environment):
    assert reference_for(environment) is None


TASKS = ["microwave", "kettle", "light switch", "slide cabinet"]


@pytest.mark.parametrize(
    ("spec", "returns", "source"),
    [
        (EnvironmentSpec("AdroitHandDoor-v1"), (-56.512833, 2880.5693087298737), "D4RL"),
        (
            EnvironmentSpec("AdroitHandHammer-v1", {"reward_type": "dense"}, 200),
            (-274.856578, 12794.134825156867),
            "D4RL",
        ),
        (EnvironmentSpec("AdroitHandPen-v1", max_episode_steps=100), (96.262799, 3076.8331017826877), "D4RL"),
        (EnvironmentSpec("AntMaze_UMaze-v4", {"continuing_task": False}), (0, 1), "D4RL"),
        (EnvironmentSpec("FrankaKitchen-v1", {"tasks_to_complete": TASKS}), (0, 4), "D4RL"),
        (EnvironmentSpec("Atari/Breakout-v5"), (1.7, 30.5), "DQN Zoo"),
        (EnvironmentSpec("Atari/Seaquest-v5", max_episode_steps=27_000), (68.4, 42054.7), "DQN Zoo"),
        (
            EnvironmentSpec("Hopper-v5", {"exclude_current_positions_from_observation": False}),
            (-20.272305, 3234.3),
            "D4RL",
        ),
    ],
    ids=lambda value: value.id if isinstance(value, EnvironmentSpec) else "",
)
def test_published_references_are_the_sources(spec, returns, source):
    reference = reference_for(spec)
    assert (reference.minimum, reference.maximum) == returns
    assert source in reference.source


@pytest.mark.parametrize(
    "spec",
    [
        EnvironmentSpec("AdroitHandDoorSparse-v1"),  # another reward
        EnvironmentSpec("AdroitHandDoor-v1", {"reward_type": "sparse"}),
        EnvironmentSpec("AdroitHandDoor-v1", max_episode_steps=300),
        EnvironmentSpec("AdroitHandPen-v1"),  # registered with twice D4RL's steps
        EnvironmentSpec("AntMaze_UMaze-v4"),  # goes on after the goal, and pays at each step there
        EnvironmentSpec("AntMaze_UMaze-v4", {"continuing_task": False, "reward_type": "dense"}),
        EnvironmentSpec("AntMaze_UMazeDense-v4", {"continuing_task": False}),
        EnvironmentSpec("FrankaKitchen-v1"),  # seven tasks
        EnvironmentSpec("FrankaKitchen-v1", {"tasks_to_complete": TASKS, "remove_task_when_completed": False}),
        EnvironmentSpec("FrankaKitchen-v1", {"tasks_to_complete": [[], {}, 1, None]}),
        EnvironmentSpec("ALE/Breakout-v5"),  # actions stick
        EnvironmentSpec("Atari/Breakout-v5", {"difficulty": 1}),
        EnvironmentSpec("Atari/Breakout-v5", max_episode_steps=100),
        EnvironmentSpec("Hopper-v5", {"ctrl_cost_weight": 0}),
        EnvironmentSpec("Hopper-v5", max_episode_steps=100),
    ],
    ids=str,
)
def test_a_version_an_argument_or_a_limit_that_changes_returns_has_no_reference(spec):
    assert reference_for(spec) is None


def test_every_published_atari_game_is_one_of_the_packages_own():
    pytest.importorskip("ale_py")
    import gymnasium

    import envs.atari  # noqa: F401  registers them
    from envs.simulate.scores import _ATARI

    assert len(_ATARI.returns) == 57
    assert {f"{name}-v5" for name in _ATARI.returns} <= gymnasium.registry.keys()


def test_only_measured_constants_warn_of_d4rls_tables():
    assert scored_as_d4rl("mine/door-v0", reference_for("AdroitHandDoor-v1"))
    assert not scored_as_d4rl("D4RL/door/human-v2", reference_for("AdroitHandDoor-v1"))
    assert not scored_as_d4rl("mine/won-or-lost", Reference(0, 1, "the dataset's own metadata"))


HOPPER, OWN = EnvironmentSpec("Hopper-v5", max_episode_steps=1000), Reference(0.0, 10.0, "its own")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (None, OWN),
        (HOPPER, OWN),
        (EnvironmentSpec("Hopper-v5"), OWN),  # its registered limit is the recorded one
        (EnvironmentSpec("Hopper-v4"), None),
        (EnvironmentSpec("Hopper-v5", {"frame_skip": 8}), None),
        (EnvironmentSpec("Hopper-v5", max_episode_steps=50), None),
    ],
)
def test_a_reference_holds_in_the_datas_own_environment_alone(env, expected):
    assert reference_in(env, HOPPER, OWN) == expected


def test_data_without_an_environment_takes_what_is_known_of_the_environment_it_is_played_in():
    assert reference_in(HOPPER, None, None) == reference_for("Hopper-v5")
    assert reference_in(HOPPER, None, OWN) == OWN
    assert reference_in(EnvironmentSpec("Hopper-v5", {"frame_skip": 8}), None, None) is None
    assert reference_in(EnvironmentSpec("CartPole-v1"), None, None) is None
