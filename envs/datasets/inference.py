"""Spaces of recorded numbers that are not declared: inferred, and printed, since it is a guess."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.datasets.array_files import chunks
from envs.space_json import space_to_json

MOST_VALUES = 1024
"""Integers of more values than this are taken for quantities where no space is declared, and not for choices."""

MOST_CHOICES = 200_000
"""Whole numbers of at most so many values are asked about: they may be choices."""


def infer(values: Sequence[Any], field: str) -> Space[Any]:
    """The space of values that declare none: wide enough for all of them and for others like them.

    values: (N, ...) each, or dictionaries and tuples of such, which nest alike. field: "observations" or "actions".
    """
    first = values[0]
    if field == "actions" and all(is_one_hot(value) for value in values):
        return spaces.Discrete(first.shape[1])
    if isinstance(first, dict):
        return spaces.Dict({key: infer([value[key] for value in values], field) for key in first})
    if isinstance(first, tuple):
        return spaces.Tuple([infer(parts, field) for parts in zip(*values, strict=True)])
    shape, kind = first.shape[1:], np.result_type(*(value.dtype for value in values))
    if kind.kind == "b" and shape not in ((), (1,)):
        bits = shape[0] if len(shape) == 1 else shape
        return spaces.MultiBinary(bits) if all(shape) else spaces.Box(0, 1, shape, np.int8)
    if kind.kind == "f" and field != "actions":
        return spaces.Box(-np.inf, np.inf, shape, kind.type)
    low = np.min([value.min(0, initial=0) for value in values], 0)
    high = np.max([value.max(0, initial=0) for value in values], 0)
    if kind.kind == "f":
        reach = np.maximum(high, -low).max(initial=0)
        bound = 1.0 if 0.5 < reach <= 1 else np.inf  # as most environments have it
        return spaces.Box(-bound, bound, shape, kind.type)
    few_values = int(high.max(initial=0)) - int(low.min(initial=0)) < MOST_VALUES
    if few_values and shape in ((), (1,)):
        return spaces.Discrete(int(high.max()) - int(low.min()) + 1, start=int(low.min()))
    # A vector of small numbers is buttons if it is an action. As an observation it may be counts or places on a grid.
    # A table of choices would lose their order, and could not take values that the data lacks: that stays a Box.
    if few_values and field == "actions" and len(shape) == 1 and shape[0] and low.min() == 0:
        return spaces.MultiDiscrete(high.astype(np.int64) + 1)
    return spaces.Box(np.iinfo(kind).min, np.iinfo(kind).max, shape, kind.type)


def inferred_note(name: str, space: Space[Any]) -> str:
    """That a space was inferred, in words. name: "observation_space" or "action_space"."""
    return f"{name} is declared nowhere and inferred: {' '.join(str(space).split())} (--spaces says otherwise)"


def inferred_notes(space: Space[Any], value: Any, field: str) -> Iterator[str]:
    """What is to be said where a space was inferred from a value."""
    name = f"{field[:-1]}_space"
    yield inferred_note(name, space)
    if isinstance(space, spaces.Discrete) and is_one_hot(value):
        yield f"actions are one-hot: each row has a single 1, so they are {space.n} choices (--spaces says otherwise)"
        return
    yield from _many_values(space, value, field)
    if (
        field == "actions"
        and isinstance(value, np.ndarray)
        and value.dtype.kind == "f"
        and value.size
        and is_whole(value)
    ):
        choices = infer([value.astype(np.int64)], field)
        if not isinstance(choices, spaces.Box) and value.min() != value.max():
            said = {key: part for key, part in json.loads(space_to_json(choices)).items() if key != "dtype"}
            if not np.any(said["start"]):
                del said["start"]
            yield f"actions are floats, but whole numbers: choices? --spaces '{json.dumps({name: said})}'"


def _many_values(space: Space[Any], value: Any, field: str) -> Iterator[str]:
    """That whole numbers which are taken for quantities may be choices, such as the ids of items."""
    if field != "actions" or not isinstance(space, spaces.Box) or not isinstance(value, np.ndarray):
        return
    if value.dtype.kind in "iu" and value.ndim == 1 and value.min() >= 0 and (most := int(value.max())) < MOST_CHOICES:
        said = json.dumps({"action_space": {"type": "Discrete", "n": most + 1}})
        yield f"actions are whole numbers from {int(value.min())} to {most}: choices? --spaces '{said}'"


def is_one_hot(value: Any) -> bool:
    """Whether an array (N, K) has a single 1 and else zeros in each row, and not in the same place everywhere."""
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] < 2 or value.dtype.kind not in "fiub":
        return False
    for rows in chunks(value):
        ones = rows == 1
        if not ((ones.sum(axis=1) == 1).all() and ((rows == 0) | ones).all()):
            return False
    return not bool(np.all(value == value[:1]))


def is_whole(array: NDArray[Any]) -> bool:
    """Whether all of these floats are whole numbers that an integer can be."""
    exact = np.float64(2.0**53)  # above it a float of 64 bits does not know all integers
    return all(((rows == np.floor(rows)) & (np.abs(rows) < exact)).all() for rows in chunks(array))
