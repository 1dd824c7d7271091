"""The spaces of a recording: given > of the file > of the environment > inferred from the numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.datasets.arrays import nested_arrays
from envs.datasets.inference import infer, inferred_note, inferred_notes, is_one_hot, is_whole
from envs.errors import DataError
from envs.reading.readers import SPACES, Header, Missing, Recording
from envs.simulate.scores import reference_in
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import Leaves, leaf_spaces, to_leaves

Kinds = Mapping[str, Space[Any]]
"""Spaces of leaves, by the leaves' names."""


def declare(recording: Recording, environment: EnvironmentSpec | None) -> Recording:
    """The recording with the spaces that can be declared before its numbers are looked at.

    Its header has those that the user gives, or else the file's. Others are the environment's. Those of flat arrays
    that are still missing are inferred by `with_leaves` once the arrays are cut into episodes.

    Args:
        recording: what the reader found.
        environment: what the user names; the recording's own environment goes first.

    Raises:
        EnvError: the environment cannot be made.
    """
    header = recording.header
    if environment is not None and header.environment is None:
        reference = reference_in(environment, None, header.reference)
        header = replace(header, environment=environment, reference=reference)
    borrowed = tuple(name for name in SPACES if environment is not None and name not in header.spaces)
    if environment is not None and borrowed:
        info = environment.info()
        declared = {**header.spaces, **{name: getattr(info, name) for name in borrowed}}
        header = replace(header, spaces=declared, borrowed=borrowed)
    if recording.num_actions is not None and "action_space" not in header.spaces:
        space = spaces.Discrete(recording.num_actions())
        notes = (*header.notes, inferred_note("action_space", space))
        header = replace(
            header, notes=notes, spaces={**header.spaces, "action_space": space}, inferred=("action_space",)
        )
    return replace(recording, header=header)


def followers(missing: Missing, arrays: Mapping[str, Any]) -> list[Any]:
    """Next observations, for which an inferred space must be wide enough too, where none is missing."""
    if "next_observations" not in arrays or any(field == "next_observations" for field, _ in missing):
        return []
    after, seen = (nested_arrays(name, arrays[name]) for name in ("next_observations", "observations"))
    alike = isinstance(after, np.ndarray) and isinstance(seen, np.ndarray) and after.shape[1:] == seen.shape[1:]
    return [after] if alike and after.dtype.kind == seen.dtype.kind and len(after) else []


def with_leaves(header: Header, field: str, value: Any, others: Sequence[Any] = ()) -> tuple[Header, Leaves]:
    """The leaves of observations or actions; a space that is not declared is inferred, and noted in the header.

    others: values that must fit an inferred space too.
    """
    name = f"{field[:-1]}_space"
    space, value = header.spaces.get(name), nested_arrays(field, value)
    if space is None:
        space = infer([value, *others], field)
        notes, inferred = (*header.notes, *inferred_notes(space, value, field)), (*header.inferred, name)
        header = replace(header, notes=notes, spaces={**header.spaces, name: space}, inferred=inferred)
    if isinstance(space, spaces.Dict | spaces.Tuple) and isinstance(value, np.ndarray):
        raise DataError(f"{field}: one array cannot hold {space}")
    try:
        leaves = to_leaves(space, value)
    except (KeyError, IndexError, TypeError):
        raise DataError(f"{field}: does not nest as {space}") from None
    if isinstance(space, spaces.Dict) and isinstance(value, Mapping) and (unknown := value.keys() - space.keys()):
        raise DataError(f"{field}: {min(map(str, unknown))!r} in it, expected {', '.join(map(str, space))}")
    kinds = leaf_spaces(space)
    return header, {leaf: as_declared(array, kinds[leaf]) for leaf, array in leaves.items()}


def as_declared(array: NDArray[Any], space: Space[Any]) -> NDArray[Any]:
    """Numbers as their space has them, where a table or a buffer has them otherwise and they are the same numbers.

    Choices (N, 1) are (N,), and so are one-hot ones (N, n). Numbers (N,) are vectors of one. Whole numbers may be
    floats, and floats whole; but pictures stay the bytes that they are.
    """
    if isinstance(space, spaces.Discrete) and array.shape[1:] == (1,):
        array = array[:, 0]
    elif isinstance(space, spaces.Discrete) and array.shape[1:] == (space.n,) and is_one_hot(array):
        array = space.start + array.argmax(axis=1)
    if space.shape == (1,) and array.ndim == 1:
        array = array[:, None]
    if not isinstance(space, spaces.Box):
        return array.astype(np.int64) if array.dtype.kind == "f" and is_whole(array) else array
    floats = np.dtype(space.dtype).kind == "f"
    return array.astype(space.dtype) if floats and array.dtype.kind in "iu" and array.ndim <= 2 else array
