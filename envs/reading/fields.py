"""What the fields of a recording are called, in files and in Python, and which name holds which of them."""

import re
from collections.abc import Collection, Iterable, Mapping

from envs.errors import DataError

FIELDS = {
    "observations": ("observations", "observation"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminated": ("terminated", "termination", "terminations", "terminal", "terminals"),
    "truncated": ("truncated", "truncation", "truncations", "timeout", "timeouts"),
    "done": ("done", "dones"),
    "episode": ("episode", "episodes", "episode_index"),
    "lengths": ("lengths",),
    "step": ("step", "timestep", "timesteps"),
    "next_observations": ("next_observations", "next_observation"),
    "success": ("success", "next.success", "is_success"),
}
"""What flat data holds, and the names that are known for each: ours and Gymnasium's first, then Minari's, D4RL's.

`done` is Gym's old flag: terminated or truncated. `step`, a step's number in its episode, and `next_observations` show
whether the rows are in order. `success`, whether a step or an episode succeeded, is read for `reward="success"` only.
"""

IN_TABLES = tuple(name for name in FIELDS if name != "success")
"""What is sought in tables."""

IN_ARRAYS = tuple(name for name in IN_TABLES if name != "step")
"""What is sought in files that are no tables: arrays of steps there are often something else, such as a count."""

NEEDED = ("observations", "actions", "rewards")
"""The fields that there is no dataset without."""

NO_REWARDS = (
    "; if none were recorded, --reward success or --reward last makes them, and --conditioning none trains without "
    "(--reward none reads it so)"
)
"""What to do about a recording that has no rewards."""

ENDS = ("terminated", "truncated", "done")
"""The flags that tell where an episode ends, and how."""

Columns = Mapping[str, tuple[str, ...]]
"""By a field's name the names that hold it in a file; several make a vector, in that order."""

_END = re.compile(
    r"(^|[^a-z])(dones?|terminals?|terminat\w*|truncat\w*|time_?d?_?outs?|is_last|episode_ends?)$", re.IGNORECASE
)


_EPISODE = re.compile(
    r"^(ep|traj|trajectory|rollout"
    r"|(ep|eps|episode|traj|trajectory|rollout|run)[ _.-]?(id|ids|idx|index|no|nr|num|number))$",
    re.IGNORECASE,
)


def named_columns(given: Mapping[str, str | Iterable[str]]) -> Columns:
    """Which names of a file hold which field, as a user says it; fields go by any name that is known for them."""
    columns: dict[str, tuple[str, ...]] = {}
    for key, value in given.items():
        field = next((field for field, known in FIELDS.items() if key in known), None)
        names = (value,) if isinstance(value, str) else tuple(value)
        if field is None:
            raise DataError(f"columns: {key!r} is no field; {', '.join(FIELDS)} are")
        if field in columns:
            raise DataError(f"columns: {field} twice")
        if not names or not all(isinstance(name, str) and name for name in names):
            raise DataError(f"columns: {field}: no column named")
        columns[field] = names
    return columns


def choose(
    where: str,
    names: Collection[str],
    fields: Iterable[str] = IN_TABLES,
    columns: Columns | None = None,
    optional: Collection[str] = (),
) -> dict[str, str]:
    """Which of these names holds each of the fields that are there; `DataError` where a needed one is not.

    Capitals and blanks around a name make no difference.

    columns: fields that are not to be sought, since the user says where they are; None where they are no file's.
    optional: needed fields that may be missing after all.
    """
    in_file, columns = columns is not None, columns or {}
    taken = {name for each in columns.values() for name in each}
    chosen = {}
    for wanted in fields:
        if wanted in columns:
            continue
        found = sorted({name for name in names if name.strip().lower() in FIELDS[wanted] and name not in taken})
        if len(found) > 1:
            raise DataError(f"{where}: {' and '.join(map(repr, found))} are both {wanted}; keep one of them")
        if found:
            chosen[wanted] = found[0]
        elif wanted in NEEDED and wanted not in optional:
            remedy = f"; --columns {wanted}=NAME,... says which" if in_file and names else ""
            remedy += NO_REWARDS if in_file and wanted == "rewards" else ""
            raise DataError(f"{where}: no {wanted!r} in it, only {listed(sorted(names)) or 'nothing'}{remedy}")
    return chosen


def choose_all(where: str, names: Collection[str], fields: Collection[str] = IN_TABLES) -> dict[str, str]:
    """The same, and `DataError` for a name that is none of these fields: what Python hands over is not left alone."""
    chosen = choose(where, names, fields)
    if unknown := set(names) - set(chosen.values()):
        known = ", ".join(name for field in fields for name in FIELDS[field])
        raise DataError(f"{where}: {min(unknown)!r} is not known; known are {known}")
    return chosen


def looks_like_an_end(name: str) -> bool:
    """Whether a name, none of `FIELDS`, may well be an episode's end: is_terminal, next.done, TimeLimit.truncated."""
    return bool(_END.search(name))


def looks_like_an_episode(name: str) -> bool:
    """Whether a name, none of `FIELDS`, may well tell of each step which episode it is of: episode_id, trajectory."""
    return bool(_EPISODE.search(name.strip()))


def listed(names: list[str]) -> str:
    """Up to twelve names, and how many more there are."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
