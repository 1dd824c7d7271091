"""HDF5 with a group for each episode: ManiSkill's trajectories, and recordings of one's own.

    traj_0/obs (T + 1, ...), actions (T, A), rewards, terminated, truncated, success    ManiSkill (Tao et al. 2024)
    episode_0/observations (T, ...) or (T + 1, ...), actions, rewards, ...
    data/0/...                                                                          the same, in a group

The groups share a name and have a number each. Their arrays go by the usual names, and observations by obs too, which
may be a group of arrays. An episode ends where its group does.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError, problems_of
from envs.reading.episode_arrays import EpisodeArrays, group_names
from envs.reading.fields import ABSENT, ENDS, NEEDED, choose, plain
from envs.reading.found import Found, side_by_side
from envs.reading.hdf5 import node_at
from envs.reading.options import ReadingOptions

GROUP = re.compile(r"([A-Za-z]+[ _-]?)?(\d{1,9})")
"""The name of an episode's group: a word, or none, and a number."""

ABOVE = ("", "data", "episodes", "trajectories")
"""Where the groups may be."""

READ = (*NEEDED, *ENDS, "next_observations", "success")
"""The fields that are read of each episode."""


def episode_groups(file: Any, path: Path) -> list[str]:
    """The paths of the episodes' groups, in the order of their numbers; none if the file is not of this layout.

    Several numbered groups that hold the same names are episodes, whatever the names are.
    """
    for above in ABOVE:
        matches = [match for name in group_names(file, path, above) if (match := GROUP.fullmatch(name))]
        prefix = f"{above}/" if above else ""
        by_number = {int(match[2]): f"{prefix}{match[0]}" for match in matches}
        alike = len({match[1] for match in matches}) == 1 and len(by_number) == len(matches)
        groups = [name for _, name in sorted(by_number.items())]
        if not alike:
            continue
        inside = group_names(file, path, groups[0])
        known = any(plain(name) in ("actions", "action") for name in inside)
        same = len(groups) > 1 and inside and all(group_names(file, path, each) == inside for each in groups[1:4])
        if known or same:
            return groups
    return []


def read_episode_groups(file: Any, path: Path, groups: list[str], options: ReadingOptions) -> Found:
    """All episodes. Columns go by names below a group; several observations that they name make a vector."""
    first = groups[0]
    inside = group_names(file, path, first)
    columns = dict(options.columns)
    if "observations" not in columns and "obs" in inside:
        columns["observations"] = ("obs",)
    fields = [field for field in READ if field != "success" or options.reward == "success"]
    with problems_of(f"{path}: {first}"):
        usual = choose(inside, fields, columns, ("rewards",))
    chosen: dict[str, tuple[str, ...]] = {field: (name,) for field, name in usual.items()}
    chosen |= {field: names for field, names in columns.items() if field in fields and names != (ABSENT,)}
    read = _Groups(file, path, groups, chosen["actions"][0], options.leave_out)
    arrays: dict[str, Any] = {"lengths": np.array(read.lengths)}
    notes = list[str]()
    for field, names in chosen.items():
        where = f"{path}: {field}"
        if field in (*ENDS, "success"):
            arrays[field], held = read.flags(names[0])
            notes += [f"{names[0]} is true at {held} steps before the last of their episodes"] * (held > 0)
        elif len(names) == 1:
            arrays[field] = read.tree(names[0], field)
        else:
            arrays[field] = side_by_side(where, [read.array(name, field) for name in names])
    used = {name.partition("/")[0] for names in chosen.values() for name in names}
    tops = {group.partition("/")[0] for group in groups}
    unread = [name for name in group_names(file, path) if name not in tops]
    unread += [name for name in inside if name not in used]
    return Found(arrays=arrays, unread=sorted(unread), notes=notes, left_out=read.left_out)


class _Groups:
    """Arrays of all episodes, one after the other, by their names below each group."""

    def __init__(self, file: Any, path: Path, groups: list[str], clock: str, leave_out: tuple[str, ...]):
        """clock: the array that says how many steps each has. leave_out: observations that are not read."""
        self._file, self._path, self._groups, self._clock = file, path, groups, clock
        self._arrays, self._leave_out = EpisodeArrays(file, path), leave_out
        self.left_out: list[str] = []
        self.lengths = self._arrays.rows([f"{group}/{clock}" for group in groups])
        if 0 in self.lengths:
            raise DataError(f"{path}: {groups[self.lengths.index(0)]}: no step in it; delete the group")

    def tree(self, name: str, field: str, below: str = "") -> Any:
        """An array, or a dictionary of those of a group. below: the path of `name` in the observations."""
        parts = group_names(self._file, self._path, f"{self._groups[0]}/{name}")
        if not parts:
            return self.array(name, field, below)
        found = {}
        for part in parts:
            inner = f"{below}/{part}" if below else part
            if field in ("observations", "next_observations") and inner in self._leave_out:
                self.left_out.append(inner)
            else:
                found[part] = self.tree(f"{name}/{part}", field, inner)
        return found

    def array(self, name: str, field: str, below: str = "") -> NDArray[Any]:
        """The arrays of this name: (N, ...), and (N + E, ...) of observations with their final ones."""
        names = [f"{group}/{name}" for group in self._groups]
        node = node_at(self._file, self._path, names[0])
        if node.dtype.kind not in "biuf" and below:
            raise DataError(
                f"{self._path}: {names[0]}: type {node.dtype}, expected numbers; --leave-out {below} reads the rest"
            )
        final = int(field == "observations" and bool(node.shape) and node.shape[0] == self.lengths[0] + 1)
        return self._arrays.stacked(names, [length + final for length in self.lengths], f"{self._clock} of its episode")

    def flags(self, name: str) -> tuple[NDArray[np.bool_], int]:
        """Whether each episode's last step has this flag, (E,), and how many steps before them have it."""
        names = [f"{group}/{name}" for group in self._groups]
        if node_at(self._file, self._path, names[0]).shape in ((), (1,)):
            return np.array([bool(self._arrays.number(each)) for each in names]), 0
        all_steps = self._arrays.stacked(names, self.lengths, f"{self._clock} of its episode").reshape(-1)
        last = all_steps[np.cumsum(self.lengths) - 1] != 0
        again = (all_steps[:-1] != 0) & (all_steps[1:] == 0)
        again[np.cumsum(self.lengths)[:-1] - 1] = False  # another group begins there
        if again.any():
            row = int(again.argmax())
            at = int(np.searchsorted(np.cumsum(self.lengths), row, side="right"))
            raise DataError(
                f"{self._path}: {names[at]}: true at step {row - sum(self.lengths[:at])}, and false later, so a group "
                f"may hold several episodes: write a group for each, or flat arrays. If a group is one episode, "
                f"--columns {name}=none leaves this flag unread"
            )
        return last, int(np.count_nonzero(all_steps)) - int(np.count_nonzero(last))
