"""Normalised scores and the reference returns that they are measured against."""

import pytest

from envs.simulate.scores import Reference, normalized_score, reference_for, reference_in
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


@pytest.mark.parametrize("environment", [None, "", "Hopper", "Hopper-v", "Hopper-vx", "MyHopper-v5", "CartPole-v1"])
def test_others_have_none(environment):
    assert reference_for(environment) is None


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
