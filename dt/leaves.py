"""Observations, actions and masks of an exported policy, as the leaves of spaces that policy.json describes.

numpy only: `dt export` copies this file next to the model, where nothing else of this package is installed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __package__:
    from .units import Units
else:  # the folder of these files is on Python's path
    from units import Units  # type: ignore[import-not-found, no-redef]

Leaf = Mapping[str, Any]
"""What policy.json says of one leaf of a space."""


def units_of(leaves: Mapping[str, Leaf]) -> dict[str, Units]:
    """Units of the leaves that have some: float32 does not hold their numbers as they are."""
    parts = {name: leaf["units"] for name, leaf in leaves.items() if leaf["units"]}
    return {name: Units(**{key: np.array(value) for key, value in units.items()}) for name, units in parts.items()}


def empty(leaf: Leaf) -> NDArray[Any]:
    """What fills a step of the window that is not there yet."""
    row = np.array(leaf["padding"], leaf["row_dtype"])
    return np.stack([row] * leaf["frames"]) if leaf.get("frames") else row


def to_leaves(structure: Any, value: Any) -> dict[str, Any]:
    """The parts of a value that nests as the structure does: dictionaries, lists for tuples, names of leaves."""
    if isinstance(structure, str):
        return {structure: value}
    pairs = structure.items() if isinstance(structure, dict) else enumerate(structure)
    parts = (to_leaves(part, None if value is None else value[key]) for key, part in pairs)
    return {name: leaf for part in parts for name, leaf in part.items()}


def from_leaves(structure: Any, leaves: Mapping[str, NDArray[Any]]) -> Any:
    """The inverse of `to_leaves`."""
    if isinstance(structure, str):
        return leaves[structure]
    if isinstance(structure, dict):
        return {key: from_leaves(part, leaves) for key, part in structure.items()}
    return tuple(from_leaves(part, leaves) for part in structure)


def checked(name: str, leaf: Leaf, value: Any) -> NDArray[Any]:
    """An observation's leaf as an array; one that the model does not know is refused."""
    row, shape = np.asarray(value), tuple(leaf["shape"])
    if row.shape != shape:
        raise ValueError(f"observation {name}: shape {row.shape}, expected {shape}")
    if row.dtype.kind == "f" and not np.isfinite(row).all():
        raise ValueError(f"observation {name} is not finite: {row}")
    low, high = leaf["range"] or (row, row)
    if leaf["range"] and ((row != np.rint(row)) | (row < low) | (row > high)).any():
        raise ValueError(f"observation {name}: {row}, expected whole numbers from {low} to {high}")
    return row


def allowed_choices(leaf: Leaf, mask: Any) -> NDArray[np.bool_]:
    """Which values of each choice may be taken: (N, M), M the most values of any choice."""
    counts = np.array(leaf["counts"])
    allowed = np.arange(counts.max()) < counts[:, None]
    if mask is None:
        return allowed
    if leaf["kind"] == "Discrete":
        mask = [mask]
    elif leaf["kind"] == "MultiBinary":  # for each bit the value that it must have, or 2
        mask = [(bit != 1, bit != 0) for bit in np.ravel(mask)]
    for _ in range(len(leaf["shape"]) - 1 if leaf["kind"] == "MultiDiscrete" else 0):  # tuples of tuples
        mask = [flags for row in mask for flags in row]
    for row, count, flags in zip(allowed, counts, mask, strict=True):
        flags = np.asarray(flags, np.bool_)
        if flags.shape != (count,) or not flags.any():
            raise ValueError(f"action mask: {flags}, expected {count} flags, at least one of them true")
        row[:count] = flags
    return allowed
