"""robomimic's and LIBERO's HDF5 (Mandlekar et al. 2021): a group for each demonstration.

    data/demo_0/obs/robot0_eef_pos (T, 3), ...   an array for each thing that is observed
    data/demo_0/next_obs/...                      the same after each action; LIBERO leaves it out
    data/demo_0/actions (T, A), rewards (T,), dones (T,), states
    mask/train, ...                               names of demonstrations

`dones` may be true at each step at which the task is solved; an episode ends where its demonstration does.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.episode_arrays import EpisodeArrays, group_names
from envs.reading.fields import listed
from envs.reading.found import Found, side_by_side
from envs.reading.hdf5 import node_at
from envs.reading.options import ReadingOptions

DEMO = re.compile(r"demo_(\d{1,9})")
"""The name of a demonstration's group."""

USUAL = {"actions": "actions", "rewards": "rewards", "done": "dones"}
"""What robomimic calls the fields other than the observations."""


def is_robomimic(file: Any, path: Path) -> bool:
    """Whether an HDF5 file has demonstrations in it."""
    return any(DEMO.fullmatch(name) for name in group_names(file, path, "data"))


def read_robomimic(file: Any, path: Path, options: ReadingOptions) -> Found:
    """All demonstrations, in the order of their numbers.

    Observations are a dictionary of all of `obs`, or, where the columns name some of them, one vector. The columns go
    by names below a demonstration: actions=action_dict/rel_pos, observations=obs for one vector of all.
    """
    demos = [f"data/{demo}" for demo in _demos(path, group_names(file, path, "data"))]
    seen = [f"obs/{name}" for name in group_names(file, path, f"{demos[0]}/obs")]
    inside = [name for name in group_names(file, path, demos[0]) if name not in ("obs", "next_obs")]
    columns = {
        field: tuple(each for name in names for each in _below(name, seen)) for field, names in options.columns.items()
    }
    chosen = {field: (name,) for field, name in USUAL.items() if name in inside} | columns
    kept = chosen.get("observations") or [name for name in seen if name[4:] not in options.leave_out]
    if "actions" not in chosen or not kept:
        missing = "observation" if "actions" in chosen else "actions"
        raise DataError(f"{path}: {demos[0]}: no {missing} in it to read, only {listed(sorted([*inside, *seen]))}")
    _check_kinds(file, path, demos[0], kept)
    read = _Demonstrations(file, path, demos, chosen["actions"][0])
    arrays: dict[str, Any] = {
        field: side_by_side(f"{path}: {field}", [read(name) for name in names])
        for field, names in chosen.items()
        if field not in ("observations", "done")
    }
    arrays["observations"] = {name: read(name) for name in kept}
    after = {f"next_obs/{name}" for name in group_names(file, path, f"{demos[0]}/next_obs")}
    if {f"next_{name}" for name in kept} <= after:
        arrays["next_observations"] = {name: read(f"next_{name}") for name in kept}
    for field in arrays.keys() & {"observations", "next_observations"}:
        arrays[field] = (
            side_by_side(f"{path}: {field}", list(arrays[field].values()))
            if "observations" in chosen
            else {name.removeprefix("obs/"): array for name, array in arrays[field].items()}
        )
    notes = list[str]()
    if "done" in chosen:
        arrays["done"], notes = _ends(read(chosen["done"][0]), read.lengths)
    used = {*kept, *(name for names in chosen.values() for name in names)}
    left_out = [name for name in seen if name[4:] in options.leave_out and name not in used]
    unread = [name for name in group_names(file, path) if name != "data"]
    unread += [name for name in inside if name not in {each.partition("/")[0] for each in used}]
    unread += [name for name in seen if name not in used and name not in left_out]
    return Found(
        arrays={**arrays, "lengths": np.array(read.lengths)},
        unread=unread,
        notes=notes,
        left_out=[name[4:] for name in left_out],
    )


def _check_kinds(file: Any, path: Path, demo: str, names: Sequence[str]) -> None:
    """Refuse observations that are no numbers, and say how the rest is read."""
    kinds = {name: node_at(file, path, f"{demo}/{name}").dtype for name in names}
    if odd := [name for name, kind in kinds.items() if kind.kind not in "biuf"]:
        left = " ".join(name.removeprefix("obs/") for name in odd)
        raise DataError(
            f"{path}: {demo}/{odd[0]}: type {kinds[odd[0]]}, expected numbers; --leave-out {left} reads the rest"
        )


class _Demonstrations:
    """Arrays of all demonstrations, one after the other, by their names below each."""

    def __init__(self, file: Any, path: Path, demos: list[str], clock: str):
        """clock: the name of the array that says how many steps each has."""
        self._arrays, self._demos, self._clock = EpisodeArrays(file, path), demos, clock
        self.lengths = self._arrays.rows([f"{demo}/{clock}" for demo in demos])
        _check_counts(file, path, demos, self.lengths)

    def __call__(self, name: str) -> NDArray[Any]:
        """The arrays of this name: (N, ...)."""
        names = [f"{demo}/{name}" for demo in self._demos]
        return self._arrays.stacked(names, self.lengths, f"{self._clock} of that demonstration")


def _ends(done: NDArray[Any], lengths: list[int]) -> tuple[NDArray[Any], list[str]]:
    """The flag at each demonstration's last step, (E,), and a note where it is true before."""
    last = done[np.cumsum(lengths) - 1]
    held = int(np.count_nonzero(done)) - int(np.count_nonzero(last))
    note = f"done is true at {held} steps before the last of their demonstrations: those end at their last steps"
    return last, [note] if held else []


def _below(name: str, seen: list[str]) -> list[str]:
    """The names below a demonstration that a user means: robot0_eef_pos is obs/robot0_eef_pos, obs all of them."""
    if name == "obs":
        return seen
    return [f"obs/{name}" if f"obs/{name}" in seen else name]


def _demos(path: Path, names: list[str]) -> list[str]:
    """The demonstrations' names in the order of their numbers; another name among them is refused."""
    if odd := [name for name in names if not DEMO.fullmatch(name)]:
        raise DataError(f"{path}: data/{odd[0]}: not a demonstration's name (expected demo_0, demo_1, ...)")
    by_number = {int(name.removeprefix("demo_")): name for name in names}
    if len(by_number) < len(names):
        twice = min(set(names) - set(by_number.values()))
        raise DataError(f"{path}: data/{twice}: the same number as {by_number[int(twice.removeprefix('demo_'))]}")
    return [name for _, name in sorted(by_number.items())]


def _check_counts(file: Any, path: Path, where: list[str], lengths: list[int]) -> None:
    """Refuse demonstrations without a step, and those with another length than their attribute num_samples."""
    for name, length in zip(where, lengths, strict=True):
        if length == 0:
            raise DataError(f"{path}: {name}: no step in it")
        try:
            said = int(file[name].attrs.get("num_samples", length))
        except (ValueError, TypeError, OSError, OverflowError, RuntimeError):
            raise DataError(f"{path}: {name}: its attribute num_samples is not a number") from None
        if said != length:
            raise DataError(f"{path}: {name}: {length} steps, its attribute num_samples says {said}")
