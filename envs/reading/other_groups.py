"""What is said of HDF5 files with groups that are not known: a way that works for this very file."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import DataError
from envs.reading.episode_arrays import group_names
from envs.reading.fields import ENDS, FIELDS, IN_FILES, NEEDED, listed, plain, shell_name, suggested
from envs.reading.hdf5 import numbers_at
from envs.reading.unknown import command_for_episodes


def way_for_groups(file: Any, path: Path) -> str:
    """How groups of arrays are read, as an addition to a refusal; "" if the file has none that hold arrays."""
    groups = [name for name in group_names(file, path) if group_names(file, path, name)]
    if not groups:
        return ""
    inside = group_names(file, path, groups[0])
    fields = _fields(inside)
    alike = len(groups) > 1 and all(group_names(file, path, name) == inside for name in groups[1:10])
    if alike and not _has_ends_within(file, path, groups[0], fields):
        parts = ", ".join(f"{json.dumps(field)}: g[{json.dumps(name)}][:]" for field, name in fields.items())
        return f"; if each of {listed(groups, 3)} is an episode: {command_for_episodes(path, f'{{{parts}}}')}"
    said = " ".join(shlex.quote(f"{field}={shell_name(f'{groups[0]}/{name}')}") for field, name in fields.items())
    return f"; --columns {said} reads {groups[0]}"


def _fields(names: list[str]) -> dict[str, str]:
    """By field the name that holds it, or most likely does, of those that are needed or there."""
    found = dict[str, str]()
    for field in IN_FILES:
        known = [name for name in names if plain(name) in FIELDS[field]]
        guess = known[0] if known else suggested(field, names) if field in NEEDED else ""
        if guess:
            found[field] = guess.partition(",")[0]
    return found


def _has_ends_within(file: Any, path: Path, group: str, fields: dict[str, str]) -> bool:
    """Whether a flag of the group is true before its last row, so that it holds several episodes."""
    for field in fields.keys() & {*ENDS, "episode", "lengths"}:
        try:
            values = np.asarray(numbers_at(file, path, f"{group}/{fields[field]}")).reshape(-1)
        except DataError:
            continue
        if field not in ENDS or (values[:-1] != 0).any():
            return True
    return False
