"""A Gymnasium space as named leaves: each leaf is one plain array, whatever the space around it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

Leaves = dict[str, NDArray[Any]]
"""One array for each leaf of a space, by the leaf's name."""

ROOT = "value"
"""Name of the only leaf of a space that is no Dict or Tuple."""


class SpaceError(ValueError):
    """A space, or a value of one, that cannot be used; the message says which and why."""


def reason(error: Exception) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def leaf_spaces(space: Space[Any]) -> dict[str, Space[Any]]:
    """The leaves of a space: {"value": space}, or for Dict and Tuple one for each path, such as "arm/position"."""
    children = _children(space)
    if children is None:
        return {ROOT: space}
    found: dict[str, Space[Any]] = {}
    for key, child in children.items():
        for name, leaf in leaf_spaces(child).items():
            found[key if name == ROOT and _children(child) is None else f"{key}/{name}"] = leaf
    return found


def to_leaves(space: Space[Any], value: Any) -> Leaves:
    """A value of the space, or a batch of values stacked the way the space nests, as one array for each leaf."""
    children = _children(space)
    if children is None:
        return {ROOT: np.asarray(value)}
    found: Leaves = {}
    for key, child in children.items():
        part = value[key] if isinstance(space, spaces.Dict) else value[int(key)]
        for name, leaf in to_leaves(child, part).items():
            found[key if name == ROOT and _children(child) is None else f"{key}/{name}"] = leaf
    return found


def from_leaves(space: Space[Any], leaves: Mapping[str, NDArray[Any]]) -> Any:
    """The value of the space whose leaves these are: the inverse of `to_leaves`, Box leaves in the space's type."""
    children = _children(space)
    if children is None:
        leaf = np.asarray(leaves[ROOT])
        return leaf[()] if isinstance(space, spaces.Discrete) else leaf.astype(space.dtype)
    parts = {}
    for key, child in children.items():
        prefix = {name[len(key) + 1 :]: leaf for name, leaf in leaves.items() if name.startswith(f"{key}/")}
        parts[key] = from_leaves(child, prefix or {ROOT: leaves[key]})
    return parts if isinstance(space, spaces.Dict) else tuple(parts.values())


def same_space(recorded: Space[Any], present: Space[Any]) -> str | None:
    """None when values recorded in one space fit the other; else what differs. A number's width does not count."""
    ours, theirs = leaf_spaces(recorded), leaf_spaces(present)
    if ours.keys() != theirs.keys():
        return f"leaves {sorted(ours)} against {sorted(theirs)}"
    if _nesting(recorded) != _nesting(present):  # {"0": Box} and (Box,) have the same leaves
        return f"{recorded} against {present}"
    for name, leaf in ours.items():
        other = theirs[name]
        if type(leaf) is not type(other):
            return f"{name}: {leaf} against {other}"
        if leaf.shape != other.shape or np.dtype(leaf.dtype).kind != np.dtype(other.dtype).kind:
            return f"{name}: {leaf} against {other}"
        if isinstance(leaf, spaces.Box) and isinstance(other, spaces.Box):
            if not _same_bounds(leaf, other):
                return f"{name}: bounds {leaf} against {other}"
        elif isinstance(leaf, spaces.Discrete) and isinstance(other, spaces.Discrete):
            if (leaf.n, leaf.start) != (other.n, other.start):  # Minari's JSON does not keep a Discrete's dtype
                return f"{name}: {leaf} against {other}"
        elif leaf != other:
            return f"{name}: {leaf} against {other}"
    return None


def space_to_json(space: Space[Any]) -> str:
    """A space as Minari's JSON text."""
    from minari.serialization import serialize_space

    return str(serialize_space(space))


def space_from_json(text: Any) -> Space[Any]:
    """The space that Minari's JSON text describes; a broken or unknown one raises `SpaceError`."""
    from minari.serialization import deserialize_space

    try:
        space = deserialize_space(text)
    except Exception as error:  # whatever a malformed description makes the reader raise
        raise SpaceError(f"not a space in Minari's JSON: {str(text)[:80]!r} ({reason(error)})") from None
    if not isinstance(space, Space):
        raise SpaceError(f"not a space in Minari's JSON: {str(text)[:80]!r}")
    return space


def _same_bounds(a: spaces.Box, b: spaces.Box) -> bool:
    with np.errstate(over="ignore"):  # bounds at the ends of float32, as CartPole's, are further apart than it holds
        return bool(np.allclose(a.low, b.low) and np.allclose(a.high, b.high))


def _nesting(space: Space[Any]) -> Any:
    children = _children(space)
    return None if children is None else (type(space), {key: _nesting(child) for key, child in children.items()})


def _children(space: Space[Any]) -> dict[str, Space[Any]] | None:
    if isinstance(space, spaces.Dict):
        return dict(space.spaces)
    if isinstance(space, spaces.Tuple):
        return {str(i): child for i, child in enumerate(space.spaces)}
    return None
