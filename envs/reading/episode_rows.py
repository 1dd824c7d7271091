"""Parquet with a row for each episode and lists as fields: Hugging Face's `decision_transformer_gym_replay`.

    observations   list of T (or T + 1) lists of numbers
    actions        list of T lists
    rewards, dones lists of T

A row is an episode where its actions are lists of lists, or its rewards lists of other than one number.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import DataError
from envs.reading.arrow import column_of, is_list, lengths_of, numbers_of, read_columns
from envs.reading.fields import ENDS, plain
from envs.reading.found import Budget, Found, side_by_side

LENGTH = re.compile(r"(^|_)(len|length|lengths|steps|timesteps|size|horizon|valid|t)(_|$)")
"""What a column of how many steps each row has is called."""

PER_STEP = ("observations", "actions", "rewards", "next_observations", "success", "step")
"""The fields that a row has lists of."""


def is_row_an_episode(path: Path, schema: Any, chosen: Mapping[str, Any]) -> bool:
    """Whether a row holds a whole episode: its actions are lists of lists, or its rewards lists not all of one number.

    Rewards that are lists of one number each are the (N, 1) of replay buffers, a row a step.
    chosen: by field the name of its column, or a list of names.
    """
    kinds = {name: schema.field(each).type for name, each in chosen.items() if isinstance(each, str)}
    actions, rewards = kinds.get("actions"), kinds.get("rewards")
    nested = actions is not None and is_list(actions) and is_list(actions.value_type)
    if rewards is None:
        return nested
    if nested or not is_list(rewards):
        return nested and is_list(rewards)
    column = column_of(read_columns(path, [chosen["rewards"]], Budget(path, path.stat().st_size)), chosen["rewards"])
    return bool((lengths_of(f"{path}: column {chosen['rewards']!r}", column) != 1).any())


def read_episode_rows(path: Path, schema: Any, chosen: Mapping[str, str | list[str]]) -> Found:
    """All episodes, in the order of their rows. chosen: by field its column, or several."""
    columns = {field: [each] if isinstance(each, str) else each for field, each in chosen.items()}
    names = [name for wanted in columns.values() for name in wanted]
    table = read_columns(path, list(dict.fromkeys(names)), Budget(path, path.stat().st_size))
    if table.num_rows == 0:
        raise DataError(f"{path}: no row in it")
    clock = columns["rewards" if "rewards" in columns else "actions"][0]
    lengths = lengths_of(f"{path}: column {clock!r}", column_of(table, clock))
    if (lengths == 0).any():
        raise DataError(
            f"{path}: column {clock!r}: row {int((lengths == 0).argmax()) + 1}: no step in it; delete the row"
        )
    _check_not_padded(path, schema, names, lengths)
    arrays: dict[str, Any] = {}
    for name, wanted in columns.items():
        if name not in (*PER_STEP, *ENDS):
            continue
        if name == "step" and not is_list(schema.field(wanted[0]).type):
            continue  # a number for each episode, such as how many steps it has
        parts = [_per_step(path, table, each, name, lengths, clock) for each in wanted]
        arrays[name] = side_by_side(f"{path}: {name}", parts)
    return Found(arrays={**arrays, "lengths": lengths}, unread=[name for name in schema.names if name not in names])


def _check_not_padded(path: Path, schema: Any, read: Sequence[str], lengths: Any) -> None:
    """Refuse rows of equal lengths if another column says that their last steps are padding. lengths: (E,)."""
    from pyarrow import types

    if len(lengths) < 2 or (lengths != lengths[0]).any():
        return
    budget = Budget(path, path.stat().st_size)
    for name in (each for each in schema.names if each not in read):
        kind = schema.field(name).type
        is_mask = is_list(kind) and (types.is_boolean(kind.value_type) or types.is_integer(kind.value_type))
        if not is_mask and not (types.is_integer(kind) and LENGTH.search(plain(name))):
            continue
        column = column_of(read_columns(path, [name], budget), name)
        if column.null_count:
            continue
        real = _steps_of_mask(column, int(lengths[0])) if is_mask else np.asarray(column.to_numpy())
        if real is not None and real.min() > 0 and (real <= lengths).all() and real.min() < lengths[0] - is_mask:
            raise DataError(
                f"{path}: {name!r} says that row 1 has {real[0]} steps, and its lists have {lengths[0]}: the rest is "
                "padding. From Python: envs.from_episodes takes a mapping of each row's arrays, cut to their steps"
            )


def _steps_of_mask(column: Any, length: int) -> Any:
    """How many steps each row's mask is 1 for, (E,), if it is 1 at the first ones and 0 at the others; else None."""
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False))
    if len(flat) != length * len(column) or ((flat != 0) & (flat != 1)).any():
        return None
    mask = flat.reshape(-1, length) == 1
    return mask.sum(axis=1) if (mask[:, 1:] <= mask[:, :-1]).all() else None


def _per_step(path: Path, table: Any, name: str, field: str, lengths: Any, clock: str) -> Any:
    """A column's numbers, all episodes one after the other: (N, ...), or (E,) of a flag for each episode."""
    where = f"{path}: column {name!r}"
    column = column_of(table, name)
    if not is_list(column.type):
        if field in ENDS or field == "success":
            return numbers_of(where, column)
        raise DataError(f"{where}: type {column.type}, expected a list for each episode, as {clock!r} has them")
    found = lengths_of(where, column)
    more = int(field == "observations" and len(found) > 0 and found[0] == lengths[0] + 1)
    if (odd := found != lengths + more).any():
        row = int(odd.argmax())
        raise DataError(f"{where}: row {row + 1}: {found[row]} steps, expected {int(lengths[row]) + more}")
    try:
        return numbers_of(where, column.flatten())
    except DataError as error:  # its row is a step's there
        raise DataError(_by_episode(where, str(error), np.cumsum(found))) from None


def _by_episode(where: str, message: str, ends: Any) -> str:
    """An error that names a step of all episodes, with the row of the file and the step in it instead."""
    rest = message.removeprefix(f"{where}: row ")
    number, sign, why = rest.partition(": ")
    if rest == message or not sign:
        return message
    step = int(number) - 1
    row = int(np.searchsorted(ends, step, side="right"))
    return f"{where}: row {row + 1}, step {step - (int(ends[row - 1]) if row else 0)}: {why}"
