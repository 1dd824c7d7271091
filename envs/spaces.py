"""A Gymnasium space as named leaves: each leaf is one plain array, whatever the space around it."""

import errno
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.errors import SpaceError

Leaves = dict[str, NDArray[Any]]
"""One array for each leaf of a space, by the leaf's name."""

ROOT = "value"
"""Name of the only leaf of a space that is no Dict or Tuple."""

LEAF_KINDS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Kinds of leaves that there are arrays and models for."""


def reason(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def os_reason(error: OSError) -> str:
    """Why the system refused, in words; that the disk is full is said as such."""
    text = error.strerror or reason(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"the disk is full: {text}" if full else text


def printable(text: str) -> str:
    """A text from a file without what a terminal would take for commands."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


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


def without(space: Space[Any], names: Collection[str]) -> Space[Any]:
    """The space without these leaves of its Dicts, or whole parts of them, by their paths, such as "arm/position".

    Where nothing of it is left, and where a name is not in it, raises `SpaceError`.
    """
    left = _pruned(space, set(names), "")
    if missing := sorted(set(names) - {name for name, _ in _paths(space)}):
        found = ", ".join(name for name, _ in _paths(space)) or f"{space}, which has no names"
        raise SpaceError(f"no {missing[0]!r} in it to leave out, only {found}")
    if left is None:
        raise SpaceError(f"nothing is left of {space} without {', '.join(sorted(names))}")
    return left


def pruned(value: Any, names: Collection[str], path: str = "") -> Any:
    """A value that nests in dictionaries, without those of its parts that have these paths."""
    if not isinstance(value, Mapping):
        return value
    return {key: pruned(part, names, f"{path}{key}/") for key, part in value.items() if f"{path}{key}" not in names}


def _pruned(space: Space[Any], names: set[str], path: str) -> Space[Any] | None:
    if not isinstance(space, spaces.Dict):
        return space
    parts = {key: _pruned(part, names, f"{path}{key}/") for key, part in space.items() if f"{path}{key}" not in names}
    there = {key: part for key, part in parts.items() if part is not None}
    return spaces.Dict(there) if there else None


def _paths(space: Space[Any], path: str = "") -> Iterator[tuple[str, Space[Any]]]:
    """Every part of a space's Dicts, by its path."""
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            yield f"{path}{key}", part
            yield from _paths(part, f"{path}{key}/")


def to_leaves(space: Space[Any], value: Any) -> Leaves:
    """A value of the space, or a batch of values stacked the way the space nests, as one array for each leaf."""
    return {name: np.asarray(part) for name, part in _parts(space, value).items()}


def _parts(space: Space[Any], value: Any) -> dict[str, Any]:
    """What a value that nests as the space does holds at each leaf; None at every leaf where it is None itself."""
    children = _children(space)
    if children is None:
        return {ROOT: value}
    found: dict[str, Any] = {}
    for key, child in children.items():
        part = None if value is None else value[key] if isinstance(space, spaces.Dict) else value[int(key)]
        for name, leaf in _parts(child, part).items():
            found[key if name == ROOT and _children(child) is None else f"{key}/{name}"] = leaf
    return found


def from_leaves(space: Space[Any], leaves: Mapping[str, NDArray[Any]]) -> Any:
    """The value of the space that has these leaves: the inverse of `to_leaves`, Box leaves in the space's type."""
    children = _children(space)
    if children is None:
        leaf = np.asarray(leaves[ROOT])
        return leaf[()] if isinstance(space, spaces.Discrete) else leaf.astype(space.dtype)
    parts = {}
    for key, child in children.items():
        prefix = {name[len(key) + 1 :]: leaf for name, leaf in leaves.items() if name.startswith(f"{key}/")}
        parts[key] = from_leaves(child, prefix or {ROOT: leaves[key]})
    return parts if isinstance(space, spaces.Dict) else tuple(parts.values())


def nested(space: Space[Any], leaves: Leaves) -> Any:
    """The leaves, each a batch of values, in the space's own form; their types stay as recorded."""
    remaining = iter(leaves[name] for name in leaf_spaces(space))

    def take(part: Space[Any]) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: take(child) for key, child in part.spaces.items()}
        return tuple(take(child) for child in part.spaces) if isinstance(part, spaces.Tuple) else next(remaining)

    return take(space)


def choices(leaf: Space[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many values each number of a leaf may take, and the least of them: both (N,), in the order of its elements.

    A Discrete is one such choice, a MultiDiscrete one for each number, a MultiBinary one of two for each bit; numbers
    of a Box are no choices, so there N is 0.
    """
    if isinstance(leaf, spaces.Discrete):
        return np.array([leaf.n], np.int64), np.array([leaf.start], np.int64)
    if isinstance(leaf, spaces.MultiDiscrete):
        return leaf.nvec.ravel().astype(np.int64), leaf.start.ravel().astype(np.int64)
    if isinstance(leaf, spaces.MultiBinary):
        bits = int(np.prod(leaf.shape, dtype=int))
        return np.full(bits, 2), np.zeros(bits, np.int64)
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def padding_value(leaf: Space[Any]) -> NDArray[Any]:
    """A value of a leaf that stands where there is none: of choices the least, of a Box zeros."""
    _, start = choices(leaf)
    return np.asarray(start.reshape(leaf.shape) if len(start) else np.zeros(leaf.shape or ()), leaf.dtype)


def allowed_choices(space: Space[Any], mask: Any = None) -> Leaves:
    """Which values an action mask allows: for each leaf of N choices a bool array (N, M), M the most values of any.

    mask: what `space.sample(mask)` takes, Gymnasium's convention: for Discrete n flags, for MultiDiscrete a tuple of
    such, for MultiBinary for each bit the value that it must have or 2 where it is free, for Dict and Tuple the masks
    of their children; None, at any depth, allows everything. Another form, or a choice of nothing, raises `SpaceError`.
    """
    try:
        masks = _parts(space, mask)
    except (TypeError, KeyError, IndexError):
        raise SpaceError(f"action mask: it does not nest as {space}") from None
    leaves = {name: leaf for name, leaf in sorted(leaf_spaces(space).items()) if len(choices(leaf)[0])}
    return {name: _allowed(leaf, masks[name]) for name, leaf in leaves.items()}


def _allowed(leaf: Space[Any], mask: Any) -> NDArray[np.bool_]:
    counts, _ = choices(leaf)
    allowed = np.arange(counts.max()) < counts[:, None]  # (N, M)
    if mask is None:
        return allowed
    try:
        flags = _flags(leaf, mask)
    except (TypeError, ValueError):  # no array, or rows of different lengths where one shape is due
        raise SpaceError(f"action mask of {leaf}: not in the form that its sample(mask) takes: {mask}") from None
    if [row.shape for row in flags] != [(count,) for count in counts]:
        shapes = ", ".join(str(row.shape) for row in flags)
        raise SpaceError(f"action mask of {leaf}: {shapes} flags, expected {', '.join(str(n) for n in counts)}")
    if not all(row.any() for row in flags):
        raise SpaceError(f"action mask of {leaf}: it allows nothing: {mask}")
    for row, choice in zip(allowed, flags, strict=True):
        row[: len(choice)] = choice
    return allowed


def _flags(leaf: Space[Any], mask: Any) -> list[NDArray[np.bool_]]:
    """Gymnasium's mask of one leaf as flags for the values of each of its choices."""
    if isinstance(leaf, spaces.Discrete):
        return [np.asarray(mask, np.bool_)]
    if isinstance(leaf, spaces.MultiBinary):
        return [np.array([bit != 1, bit != 0]) for bit in np.asarray(mask, np.int8).ravel()]
    for _ in range(len(leaf.shape or ()) - 1):  # a MultiDiscrete of several axes has tuples of tuples
        mask = [part for parts in mask for part in parts]
    return [np.asarray(part, np.bool_) for part in mask]


_CASTS = {"f": "fiub", "i": "iub", "u": "iub", "b": "iub"}
"""Kinds of numbers that a leaf of each kind takes without loss of their meaning; a number's width does not count."""


def space_error(space: Space[Any], value: Any) -> str | None:
    """None where a value fits its space; else which leaf does not and why: shape, type, NaN, no such choice.

    Bounds of a Box do not count: many environments cross their own.
    """
    try:
        leaves = to_leaves(space, value)
    except (TypeError, KeyError, IndexError, ValueError):
        return f"{str(value)[:80]} does not nest as {space}"
    for name, leaf in leaf_spaces(space).items():
        array, kind = leaves[name], np.dtype(leaf.dtype).kind if leaf.dtype is not None else ""
        if not isinstance(leaf, LEAF_KINDS) or kind not in _CASTS:
            continue
        if array.shape != leaf.shape:
            return f"{name}: shape {array.shape}, expected {leaf.shape}"
        if array.dtype.kind not in _CASTS[kind]:
            return f"{name}: dtype {array.dtype}, expected {leaf.dtype}"
        if wrong := value_error(name, leaf, array):
            return wrong
    return None


def value_error(name: str, leaf: Space[Any], array: NDArray[Any]) -> str | None:
    """None where the numbers fit a leaf, whatever their type; else why not: NaN, no such choice, too large."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return f"{name} is not finite: {array}"
    kind, (counts, start) = np.dtype(leaf.dtype).kind, choices(leaf)
    if kind in "iub" and array.dtype.kind == "f" and (array != np.rint(array)).any():
        return f"{name}: {array} is none of {leaf}"
    if len(counts):
        chosen = np.ravel(array) - start
        if (chosen < 0).any() or (chosen >= counts).any():
            return f"{name}: {array} is none of {leaf}"
    elif kind in "iu" and array.dtype != leaf.dtype:
        ends = np.iinfo(leaf.dtype)
        if (array < ends.min).any() or (array > ends.max).any():
            return f"{name}: {array} does not fit {leaf.dtype}"
    return None


def same_space(recorded: Space[Any], present: Space[Any], *, unbounded_fits: bool = False) -> str | None:
    """None when values recorded in one space fit the other; else what differs. A number's width does not count.

    unbounded_fits: a recorded Box without any bounds, such as one that was not declared, fits one of any bounds.
    """
    ours, theirs = leaf_spaces(recorded), leaf_spaces(present)
    if ours.keys() != theirs.keys():
        return f"leaves {sorted(ours)} against {sorted(theirs)}"
    if nesting(recorded) != nesting(present):  # {"0": Box} and (Box,) have the same leaves
        return f"{recorded} against {present}"
    for name, leaf in ours.items():
        other = theirs[name]
        if type(leaf) is not type(other):
            return f"{name}: {leaf} against {other}"
        if leaf.shape != other.shape or np.dtype(leaf.dtype).kind != np.dtype(other.dtype).kind:
            return f"{name}: {leaf} against {other}"
        if isinstance(leaf, spaces.Box) and isinstance(other, spaces.Box):
            free = unbounded_fits and np.isinf(leaf.low).all() and np.isinf(leaf.high).all()
            if not free and not _same_bounds(leaf, other):
                return f"{name}: bounds {leaf} against {other}"
        elif isinstance(leaf, LEAF_KINDS):
            if any((a != b).any() for a, b in zip(choices(leaf), choices(other), strict=True)):
                return f"{name}: {leaf} against {other}"  # Minari's JSON does not keep a Discrete's dtype
        elif leaf != other:
            return f"{name}: {leaf} against {other}"
    return None


def _same_bounds(a: spaces.Box, b: spaces.Box) -> bool:
    with np.errstate(over="ignore"):  # bounds at the ends of float32, as CartPole's, are further apart than it holds
        return bool(np.allclose(a.low, b.low) and np.allclose(a.high, b.high))


def nesting(space: Space[Any]) -> Any:
    """How a space is made of Dicts and Tuples; None where it is neither."""
    children = _children(space)
    return None if children is None else (type(space), {key: nesting(child) for key, child in children.items()})


def _children(space: Space[Any]) -> dict[str, Space[Any]] | None:
    if isinstance(space, spaces.Dict):
        return dict(space.spaces)
    if isinstance(space, spaces.Tuple):
        return {str(i): child for i, child in enumerate(space.spaces)}
    return None
