"""robomimic's and LIBERO's HDF5 (Mandlekar et al. 2021): a group for each demonstration.

    data/demo_0/obs/robot0_eef_pos (T, 3), ...   an array for each thing that is observed
    data/demo_0/next_obs/...                      the same after each action; LIBERO leaves it out
    data/demo_0/actions (T, A), rewards (T,), dones (T,), states
    mask/train, ...                               names of demonstrations

`dones` may be true at each step at which the task is solved; an episode ends where its demonstration does.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import DataError
from envs.reading.episode_arrays import EpisodeArrays, group_names
from envs.reading.fields import listed
from envs.reading.found import Found, side_by_side
from envs.reading.options import ReadingOptions

DEMO = re.compile(r"demo_(\d{1,9})")
"""The name of a demonstration's group."""

USUAL = {"actions": "actions", "rewards": "rewards", "done": "dones"}
"""What robomimic calls the fields beside the observations."""


def is_robomimic(file: Any, path: Path) -> bool:
    """Whether an HDF5 file has demonstrations in it."""
    return any(DEMO.fullmatch(name) for name in group_names(file, path, "data"))


def read_robomimic(file: Any, path: Path, options: ReadingOptions) -> Found:
    """All demonstrations, in the order of their numbers.

    Observations are a dictionary of all of `obs`, or, where the columns name some of them, one vector. The columns go
    by names below a demonstration: actions=action_dict/rel_pos.
    """
    demos = _demos(path, group_names(file, path, "data"))
    first = f"data/{demos[0]}"
    seen = [f"obs/{name}" for name in group_names(file, path, f"{first}/obs")]
    after = {f"next_obs/{name}" for name in group_names(file, path, f"{first}/next_obs")}
    inside = [name for name in group_names(file, path, first) if name not in ("obs", "next_obs")]
    columns = {name: tuple(_full(each, seen) for each in wanted) for name, wanted in options.columns.items()}
    chosen = {name: (known,) for name, known in USUAL.items() if known in inside and name not in columns} | columns
    if "actions" not in chosen:
        raise DataError(f"{path}: {first}: no 'actions' in it, only {listed(sorted(inside))}")
    if not seen and "observations" not in chosen:
        raise DataError(f"{path}: {first}: no 'obs' in it, only {listed(sorted(inside))}")
    arrays = EpisodeArrays(file, path)
    where = [f"data/{demo}" for demo in demos]
    clock = chosen["actions"][0]
    lengths = arrays.rows([f"{each}/{clock}" for each in where])
    _check_counts(file, path, where, lengths)

    def read(name: str) -> Any:
        return arrays.stacked([f"{each}/{name}" for each in where], lengths, f"{clock} of that demonstration")

    fields: dict[str, Any] = {
        name: side_by_side(f"{path}: {name}", [read(each) for each in wanted])
        for name, wanted in chosen.items()
        if name not in ("observations", "done")
    }
    names = seen
    if wanted := chosen.get("observations"):
        names = list(wanted)
        fields["observations"] = side_by_side(f"{path}: observations", [read(name) for name in names])
    else:
        fields["observations"] = {name.removeprefix("obs/"): read(name) for name in names}
    nexts = {name: f"next_{name}" for name in names}
    if set(nexts.values()) <= after:
        found = {name: read(next_name) for name, next_name in nexts.items()}
        fields["next_observations"] = (
            side_by_side(f"{path}: next_observations", list(found.values()))
            if "observations" in chosen
            else {name.removeprefix("obs/"): array for name, array in found.items()}
        )
    notes = []
    if flags := chosen.get("done"):
        done = read(flags[0])
        ends = np.cumsum(lengths) - 1
        fields["done"] = done[ends]
        held = int(np.count_nonzero(done)) - int(np.count_nonzero(done[ends]))
        if held:
            notes.append(f"{flags[0]} are true at {held} steps before a demonstration's last: it ends at its last step")
    read_names = {each for wanted in chosen.values() for each in wanted} | set(names)
    unread = [name for name in group_names(file, path) if name != "data"]
    unread += [name for name in inside if name not in {each.partition("/")[0] for each in read_names}]
    unread += [name for name in seen if name not in read_names]
    return Found(arrays={**fields, "lengths": np.array(lengths)}, unread=unread, notes=notes)


def _demos(path: Path, names: list[str]) -> list[str]:
    """The demonstrations' names in the order of their numbers; another name among them is refused."""
    if odd := [name for name in names if not DEMO.fullmatch(name)]:
        raise DataError(f"{path}: data/{odd[0]}: not a demonstration's name (expected demo_0, demo_1, ...)")
    by_number = {int(name.removeprefix("demo_")): name for name in names}
    if len(by_number) < len(names):
        twice = min(set(names) - set(by_number.values()))
        raise DataError(f"{path}: data/{twice}: the same number as {by_number[int(twice.removeprefix('demo_'))]}")
    return [name for _, name in sorted(by_number.items())]


def _full(name: str, seen: list[str]) -> str:
    """The name below a demonstration that a user means: robot0_eef_pos is obs/robot0_eef_pos."""
    return f"obs/{name}" if f"obs/{name}" in seen else name


def _check_counts(file: Any, path: Path, where: list[str], lengths: list[int]) -> None:
    """Refuse demonstrations of no step, and those whose attribute num_samples says another length."""
    for name, length in zip(where, lengths, strict=True):
        if length == 0:
            raise DataError(f"{path}: {name}: no step in it")
        try:
            said = int(file[name].attrs.get("num_samples", length))
        except (ValueError, TypeError, OSError, OverflowError, RuntimeError):
            raise DataError(f"{path}: {name}: its attribute num_samples is not a number") from None
        if said != length:
            raise DataError(f"{path}: {name}: {length} steps, its attribute num_samples says {said}")
