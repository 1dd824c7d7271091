"""A Gymnasium space as the JSON that Minari writes, and back: a description may come from anywhere."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Space

from envs.errors import SpaceError
from envs.spaces import reason

MOST_NUMBERS = 1 << 22
"""Numbers in all leaves of a space that a file declares: a picture of 1024 x 1024 x 4."""

MOST_LEAVES = 1 << 12
"""Leaves of a space that a file declares: to make a hundred thousand takes half a minute."""


def space_to_json(space: Space[Any]) -> str:
    """A space as Minari's JSON text."""
    from minari.serialization import serialize_space

    return str(serialize_space(space))


def space_from_json(text: Any) -> Space[Any]:
    """The space that Minari's JSON text describes, with Gymnasium's defaults for what is left out.

    A broken or unknown one raises `SpaceError`.
    """
    from minari.serialization import deserialize_space

    try:
        content = json.loads(text) if isinstance(text, str) else text
        _check_declared(content)
        space = deserialize_space(_completed(content))
        if isinstance(space, Space):
            return space
        why = type(space).__name__
    except KeyError as error:
        why = f"no {error} in it"
    except Exception as error:  # whatever a malformed description makes the reader raise
        why = reason(error)
    raise SpaceError(f"not a space in Minari's JSON: {str(text)[:80]!r} ({why}); written as {_example(str(text))}")


_EXAMPLES = {
    "MultiDiscrete": {"type": "MultiDiscrete", "nvec": [3, 3]},
    "MultiBinary": {"type": "MultiBinary", "n": 4},
    "Box": {"type": "Box", "shape": [2], "low": -1, "high": 1},
    "Dict": {"type": "Dict", "subspaces": {"name": {"type": "Discrete", "n": 3}}},
    "Tuple": {"type": "Tuple", "subspaces": [{"type": "Discrete", "n": 3}]},
    "Discrete": {"type": "Discrete", "n": 3},
}
"""A space of each kind, as one may write it; `MultiDiscrete` before the name that is a part of its own."""


def _example(text: str) -> str:
    """How a space of the kind that a text names is written."""
    kind = next((kind for kind in _EXAMPLES if kind.lower() in text.lower()), "Discrete")
    return json.dumps(_EXAMPLES[kind])


def _completed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A description with what Minari wants and Gymnasium has a default for; one number bounds all of a Box."""
    full = dict(content)
    inside = full.get("subspaces")
    if full["type"] in ("Dict", "Tuple"):
        full["subspaces"] = (
            {name: _completed(part) for name, part in inside.items()}
            if isinstance(inside, Mapping)
            else list(map(_completed, full["subspaces"]))
        )
    elif full["type"] == "Box":
        full = {"dtype": "float32", "shape": np.shape(full["low"]), **full}
        full |= {name: np.broadcast_to(full[name], full["shape"]) for name in ("low", "high")}
    elif full["type"] == "MultiDiscrete":
        full = {"dtype": "int64", "start": np.zeros_like(full["nvec"]), **full}
    elif full["type"] == "Discrete":
        full = {"start": 0, **full}
    return full


def _check_declared(content: Any) -> None:
    """Refuse a description of more than `MOST_NUMBERS` or `MOST_LEAVES` in all, or of a type that is not a number's."""
    numbers, leaves, waiting = 0, 0, [content]
    while waiting:
        part = waiting.pop()
        numbers += _declared_numbers(part)
        leaves += 1
        if numbers > MOST_NUMBERS:
            raise ValueError(f"{numbers} numbers, expected at most {MOST_NUMBERS}")
        if part["type"] != "Text" and np.dtype(part.get("dtype", "int64")).kind not in "biuf":
            raise ValueError(f"dtype {part['dtype']!r}")
        if part["type"] not in (*_EXAMPLES, "Text"):
            raise ValueError(f"type {part['type']!r}")
        inside = part.get("subspaces", ())
        waiting += inside.values() if isinstance(inside, dict) else inside
        if leaves + len(waiting) > MOST_LEAVES:
            raise ValueError(f"more than {MOST_LEAVES} spaces in it")


def _declared_numbers(part: Mapping[str, Any]) -> int:
    """Numbers of one leaf; those that it lists, such as bounds, the file itself holds."""
    sizes = [math.prod(map(abs, each)) for each in (part.get("shape"), part.get("n")) if isinstance(each, list | tuple)]
    if part["type"] == "MultiBinary" and isinstance(part["n"], int):
        sizes.append(part["n"])
    return max(sizes, default=0 if "subspaces" in part else 1)
