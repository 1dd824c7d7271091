"""Spaces as named leaves: names, the way there and back, which spaces fit each other, JSON."""

import json

import numpy as np
import pytest
from conftest import random_mask
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector.utils import concatenate, create_empty_array

from envs.errors import SpaceError
from envs.space_json import space_from_json, space_to_json
from envs.spaces import allowed_choices, choices, from_leaves, leaf_spaces, padding_value, same_space, to_leaves

BOX = spaces.Box(-1, 1, (2, 3), np.float32)
DISCRETE = spaces.Discrete(5, start=-2)
ARM = spaces.Dict(position=BOX, gripper=DISCRETE)
SPACES = {
    "box": (BOX, ["value"]),
    "integer box": (spaces.Box(0, 9, (1,), np.int64), ["value"]),
    "discrete": (DISCRETE, ["value"]),
    "dict": (ARM, ["position", "gripper"]),
    "multi-discrete": (spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [-2, 7]]), ["value"]),
    "multi-binary": (spaces.MultiBinary([2, 3]), ["value"]),
    "tuple": (spaces.Tuple([BOX, DISCRETE]), ["0", "1"]),
    "a leaf called value": (spaces.Dict(value=BOX, arm=spaces.Dict(value=DISCRETE)), ["value", "arm/value"]),
    "a key that begins like another": (spaces.Dict(a=ARM, ab=BOX), ["a/position", "a/gripper", "ab"]),
    "dict in tuple in dict": (
        spaces.Dict(robot=spaces.Tuple([DISCRETE, ARM]), clock=spaces.Box(0, 1, (7,), np.float64)),
        ["robot/0", "robot/1/position", "robot/1/gripper", "clock"],
    ),
}
every_space = pytest.mark.parametrize(("space", "names"), SPACES.values(), ids=SPACES)


@every_space
def test_leaves_are_named_by_their_path(space, names):
    assert sorted(leaf_spaces(space)) == sorted(names)
    assert all(not isinstance(leaf, spaces.Dict | spaces.Tuple) for leaf in leaf_spaces(space).values())


@every_space
def test_leaves_and_back_is_the_same_value(space, names):
    space.seed(0)
    for _ in range(3):
        value = space.sample()
        leaves = to_leaves(space, value)
        assert {name: array.shape for name, array in leaves.items()} == {
            n: s.shape for n, s in leaf_spaces(space).items()
        }
        rebuilt = from_leaves(space, leaves)
        assert data_equivalence(value, rebuilt, exact=True)
        assert space.contains(rebuilt)


@every_space
def test_a_batch_has_the_leaves_of_its_values_stacked(space, names):
    space.seed(0)
    values = [space.sample() for _ in range(3)]
    batch = to_leaves(space, concatenate(space, values, create_empty_array(space, 3)))
    for name, array in batch.items():
        np.testing.assert_array_equal(array, np.stack([to_leaves(space, value)[name] for value in values]))


def test_a_box_comes_back_in_its_own_type_from_a_models_float32():
    space = spaces.Box(-1, 1, (2,), np.float64)
    assert from_leaves(space, {"value": np.zeros(2, np.float32)}).dtype == np.float64


LARGEST = np.finfo(np.float32).max


def as_int32(space):
    """A Discrete takes its type as an argument from Gymnasium 1.3 on."""
    space.dtype = np.dtype(np.int32)
    return space


@pytest.mark.parametrize(
    ("recorded", "present"),
    [
        *((space, space) for space, _ in SPACES.values()),
        (spaces.Box(-0.1, 0.1, (2,), np.float32), spaces.Box(-0.1, 0.1, (2,), np.float64)),
        (
            spaces.Dict(x=spaces.Box(0, np.inf, (2,), np.float64)),
            spaces.Dict(x=spaces.Box(0, np.inf, (2,), np.float32)),
        ),
        (spaces.Discrete(3), as_int32(spaces.Discrete(3))),  # Minari's JSON cannot tell them apart
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([2, 3], dtype=np.int32)),
        (spaces.MultiBinary(3), spaces.MultiBinary([3])),
    ],
    ids=str,
)
def test_spaces_that_fit(recorded, present):
    assert same_space(recorded, present) is None


def test_what_nobody_bounded_fits_any_bounds_where_it_may():
    free, bounded = (spaces.Box(-np.array([end, np.inf]), np.array([end, np.inf])) for end in (np.inf, 1.0))
    assert "bounds" in same_space(free, bounded)
    assert same_space(free, bounded, unbounded_fits=True) is None
    assert "bounds" in same_space(bounded, free, unbounded_fits=True)
    assert "bounds" in same_space(bounded, spaces.Box(-2, 2, (2,)), unbounded_fits=True)


@pytest.mark.parametrize(
    ("recorded", "present", "words"),
    [
        (spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (3,)), ["value", "(2,)", "(3,)"]),
        (spaces.Box(0, 1, (2,)), spaces.Box(0, 1, (2,), np.uint8), ["value", "float32", "uint8"]),
        (spaces.Box(0, 1, ()), DISCRETE, ["value", "Box", "Discrete"]),
        (spaces.Box(-1, 1, (2,)), spaces.Box(-1, 2, (2,)), ["value", "bounds", "1.0", "2.0"]),
        (spaces.Box(-1, 1, (2,)), spaces.Box(-2, 1, (2,)), ["value", "bounds", "-1.0", "-2.0"]),
        (spaces.Box(-LARGEST, 0, (2,)), spaces.Box(LARGEST / 2, LARGEST, (2,)), ["value", "bounds"]),
        (spaces.Discrete(3), spaces.Discrete(4), ["value", "Discrete(3)", "Discrete(4)"]),
        (spaces.Discrete(3), spaces.Discrete(3, start=1), ["value", "start=1"]),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([2, 4]), ["MultiDiscrete([2 3])", "MultiDiscrete([2 4])"]),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([2, 3], start=[0, 1]), ["start"]),
        (spaces.MultiBinary(3), spaces.MultiBinary(4), ["MultiBinary(3)", "MultiBinary(4)"]),
        (ARM, spaces.Dict(position=BOX), ["gripper", "position"]),
        (spaces.Dict(x=ARM), spaces.Dict(x=spaces.Dict(position=BOX, gripper=spaces.Discrete(2))), ["x/gripper"]),
        # These have leaves of the same names, but a value of one cannot be taken apart as a value of the other.
        (spaces.Dict(value=BOX), BOX, ["Dict", "Box"]),
        (spaces.Dict({"0": BOX}), spaces.Tuple([BOX]), ["Dict", "Tuple"]),
    ],
    ids=str,
)
def test_what_differs_is_named(recorded, present, words):
    difference = same_space(recorded, present)
    assert difference is not None
    assert all(word in difference for word in words), difference


@every_space
def test_the_least_value_of_a_leaf_is_one_of_its_values(space, names):
    for leaf in leaf_spaces(space).values():
        assert leaf.contains(padding_value(leaf)[()])


MANY = spaces.Dict(
    key=spaces.Discrete(4, start=3),
    pads=spaces.Tuple([spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [-2, 7]]), spaces.MultiBinary([2, 2])]),
    arm=spaces.Box(-1, 1, (2,)),
)


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_allows_what_gymnasium_samples_with_it(seed):
    mask = random_mask(MANY, np.random.default_rng(seed)) if seed else None
    MANY.seed(seed)
    drawn = [to_leaves(MANY, MANY.sample(mask=mask)) for _ in range(150)]
    allowed = allowed_choices(MANY, mask)
    assert allowed.keys() == {"key", "pads/0", "pads/1"}
    for name, flags in allowed.items():
        counts, start = choices(leaf_spaces(MANY)[name])
        assert flags.shape == (len(counts), counts.max())
        for i in range(len(counts)):
            assert {int(row[name].ravel()[i] - start[i]) for row in drawn} == set(np.flatnonzero(flags[i]).tolist())


@pytest.mark.parametrize(
    ("space", "mask", "words"),
    [
        (spaces.Discrete(3), np.ones(4, np.int8), ["Discrete(3)", "(4,)", "expected 3"]),
        (spaces.Discrete(3), np.ones((3, 1), np.int8), ["(3, 1)"]),
        (spaces.Discrete(3), np.zeros(3, np.int8), ["allows nothing"]),
        (spaces.MultiDiscrete([2, 3]), (np.ones(2), np.zeros(3)), ["allows nothing"]),
        (spaces.MultiDiscrete([2, 3]), (np.ones(2),), ["expected 2, 3"]),
        (spaces.MultiDiscrete([2, 3]), np.ones(5), ["expected 2, 3"]),
        (spaces.MultiDiscrete([2, 3]), 1, ["not in the form"]),
        (spaces.MultiBinary(3), np.ones(2, np.int8), ["MultiBinary(3)", "expected 2, 2, 2"]),
        (spaces.Dict(a=DISCRETE), {"b": np.ones(5)}, ["does not nest"]),
        (spaces.Tuple([DISCRETE]), (), ["does not nest"]),
    ],
    ids=str,
)
def test_a_mask_of_another_form_is_refused(space, mask, words):
    with pytest.raises(SpaceError, match=r"\Aaction mask") as caught:
        allowed_choices(space, mask)
    assert all(word in str(caught.value) for word in words), caught.value


@every_space
def test_json_and_back_is_the_same_space(space, names):
    assert space_from_json(space_to_json(space)) == space


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", '"Box"', "{}", '{"type": "Nonsense"}', '{"type": "Box", "shape": [2]}'),
        '{"type": "Discrete", "n": 0, "start": 0}',
        '{"type": "Dict", "subspaces": {"arm": {"type": "Box"}}}',
        json.dumps({"type": "Box", "shape": [99], "dtype": "float32", "low": [1.0] * 99, "high": [0.0] * 99}),
        None,
        7,
    ],
)
def test_broken_json_is_refused_in_one_line(text):
    with pytest.raises(SpaceError, match=r"\Anot a space in Minari's JSON: .*\Z"):
        space_from_json(text)


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ('{"type": "MultiDiscrete", "nvec": [3, 4]}', spaces.MultiDiscrete([3, 4])),
        ('{"type": "MultiDiscrete", "nvec": [[3, 4]], "dtype": "int32"}', spaces.MultiDiscrete([[3, 4]], np.int32)),
        ('{"type": "Discrete", "n": 3}', spaces.Discrete(3)),
        ('{"type": "MultiBinary", "n": 3}', spaces.MultiBinary(3)),
        ('{"type": "Box", "shape": [2], "low": -1, "high": 1}', spaces.Box(-1, 1, (2,))),
        ('{"type": "Box", "low": [-1, 0], "high": [1, 2]}', spaces.Box(np.array([-1, 0.0]), np.array([1, 2.0]))),
        ('{"type": "Box", "shape": [2], "low": 0, "high": [1, 2], "dtype": "int8"}', spaces.Box(0, 2, (2,), np.int8)),
        (
            '{"type": "Dict", "subspaces": {"a": {"type": "Tuple", "subspaces": [{"type": "Discrete", "n": 2}]}}}',
            spaces.Dict(a=spaces.Tuple([spaces.Discrete(2)])),
        ),
    ],
)
def test_what_is_left_out_of_json_is_as_gymnasium_has_it(text, space):
    found = space_from_json(text)
    if isinstance(space, spaces.Box) and space.dtype == np.int8:
        assert (found.dtype, found.low.tolist(), found.high.tolist()) == (np.int8, [0, 0], [1, 2])
    else:
        assert found == space
        assert space_from_json(space_to_json(found)) == space


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"MultiDiscrete([3, 3])"', 'written as {"type": "MultiDiscrete", "nvec": [3, 3]}'),
        ("Box(-1, 1, (2,))", 'written as {"type": "Box", "shape": [2], "low": -1, "high": 1}'),
        ('{"type": "discrete", "n": 3}', '(type \'discrete\'); written as {"type": "Discrete", "n": 3}'),
        ('{"type": "Box", "shape": [2]}', "(no 'low' in it); written as"),
        ('{"n": 2}', "(no 'type' in it); written as"),
    ],
)
def test_how_a_space_is_written_is_said(text, said):
    with pytest.raises(SpaceError) as caught:
        space_from_json(text)
    assert said in str(caught.value)
