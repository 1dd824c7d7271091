"""What the fields of a recording are called, in files and in Python, and which name holds which of them."""

import csv
import re
import shlex
from collections.abc import Collection, Iterable, Mapping

from envs.errors import DataError, problems_of

FIELDS = {
    "observations": ("observations", "observation"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminated": ("terminated", "termination", "terminations", "terminal", "terminals"),
    "truncated": ("truncated", "truncation", "truncations", "timeout", "timeouts"),
    "done": ("done", "dones"),
    "not_done": ("not_done", "not_dones", "non_terminal", "non_terminals", "nonterminal", "nonterminals"),
    "episode": ("episode", "episodes", "episode_index"),
    "episode_start": ("episode_start", "episode_starts", "is_first"),
    "lengths": ("lengths",),
    "step": (
        *("step", "timestep", "timesteps", "time_step", "time_steps", "time_step_index", "timestep_index", "t"),
        *("step_id", "step_idx", "step_index", "step_no", "step_num", "step_number", "steps", "episode_step"),
        *("step_in_episode", "elapsed_steps", "env_step", "frame_index", "frame_idx", "frame_id", "frame"),
    ),
    "next_observations": (
        *("next_observations", "next_observation", "next_obs", "obs_next", "new_obs", "next_state", "next_states"),
        *("observations_next", "observation_next", "new_observation", "new_observations", "new_state", "new_states"),
        *("state_next", "states_next", "next_ob", "ob_next"),
    ),
    "success": ("success", "next_success", "is_success"),
}
"""What flat data holds, and the names that are known for each: ours and Gymnasium's first, then those of others.

`done` is Gym's old flag: terminated or truncated. `not_done` is its opposite. `episode_start` is true at each episode's
first step. `step`, a step's number in its episode, and `next_observations` show whether the rows are in order.
`success`, whether a step or an episode succeeded, is read for `reward="success"` only.
Names are compared as `plain` writes them.
"""

IN_FILES = tuple(name for name in FIELDS if name != "success")
"""What is sought in files."""

PROOFS = ("step", "next_observations")
"""Fields that only show the order of the rows: of several names that are there, the first of `FIELDS` is read."""

MOST_NAMES = 40
"""Names of a file that a refusal lists."""

ABSENT = "none"
"""What `columns` says of a field that a file does not have, though a name in it looks like it."""

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


_WEAK_STEP = re.compile(
    r"(^|_)(time|timestamp|time_stamp|stamp|date|datetime|date_time|index|idx|clock|tick|ts)s?"
    r"(_(ns|us|ms|s|sec|secs|seconds|utc|unix))?$|(^|_)epoch_(ns|us|ms|s)$"
    r"|^$|^unnamed:_0$|^__index_level_0__$"  # of rows, as pandas writes it
)

_NOT_AN_END = re.compile(r"^(is_)?(mask|continue|alive|not_(done|terminal|end|over)|non_?terminal)s?(_flags?)?$")

_SOURCE = re.compile(
    r"^(run|session|seed|trial|env|environment|world|worker|agent|robot|actor|player|user|session|advertiser|vehicle|machine|sensor|rank|lane|car"
    r"|instance|slot|thread|process|replica|ticker|tic|symbol|asset|zone|building|device|station|store|sku|item|patient"
    r"|subject|client|customer|account|campaign|drone|bot|arm|side|seat|channel|household|meter|turbine|node|uid)s?"
    r"(_(id|ids|idx|index|no|nr|num|number|name))?$"
)

_EPISODE = re.compile(
    r"^(ep|traj|trajectory|rollout|run_?(id|ids|idx|index|no|nr|num|number))$"
    r"|(^|[_/])(ep|eps|episode|traj|trajectory|rollout)_?(id|ids|idx|index|no|nr|num|number)$"
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
        if field in ENDS and (opposite := [name for name in names if looks_like_no_end(name)]):
            name = shell_name(opposite[0])
            raise DataError(
                f"columns: {field}={name}: it is 1 where an episode goes on, and {field} is 1 where it ends: "
                f"--columns {shlex.quote(f'not_done={name}')} reads it so"
            )
        if field in NEEDED and names == (ABSENT,):
            raise DataError(f"columns: {field}: a dataset needs them")
        columns[field] = names
    return columns


def choose(
    names: Collection[str],
    fields: Iterable[str] = IN_FILES,
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
    chosen, missing = {}, list[str]()
    for wanted in fields:
        if wanted in columns:
            continue
        known = FIELDS[wanted]
        found = sorted({name for name in names if plain(name) in known and name not in taken})
        if wanted in PROOFS:
            found = sorted(found, key=lambda name: known.index(plain(name)))[:1]
        if len(found) > 1:
            raise DataError(f"{' and '.join(map(repr, found))} are both {wanted}; keep one of them")
        if found:
            chosen[wanted] = found[0]
        elif wanted in NEEDED and wanted not in optional:
            missing.append(wanted)
    if missing:
        likely = [field for field in optional if field not in {*chosen, *missing, *columns}]
        missing += [field for field in likely if suggested(field, names) != "NAME,..."]
        ways = [f"{wanted}={suggested(wanted, names)}" for wanted in missing]
        remedy = f"; --columns {' '.join(map(shlex.quote, ways))} says which" if in_file and names else ""
        remedy += NO_REWARDS if in_file and "rewards" in missing else ""
        raise DataError(
            f"no {missing[0]!r} in it{''.join(f', no {each!r}' for each in missing[1:])}, only "
            f"{listed(sorted(names), MOST_NAMES) or 'nothing'}{remedy}"
        )
    return chosen


def choose_all(where: str, names: Collection[str], fields: Collection[str] = IN_FILES) -> dict[str, str]:
    """The same, and `DataError` for a name that is none of these fields: what Python hands over is not ignored."""
    with problems_of(where):
        chosen = choose(names, fields)
    if unknown := set(names) - set(chosen.values()):
        known = ", ".join(name for field in fields for name in FIELDS[field])
        raise DataError(f"{where}: {min(unknown)!r} is not known; known are {known}")
    return chosen


def plain(name: str) -> str:
    """A name in small letters, its words parted by _: timeStepIndex and "Time Step.Index" are time_step_index."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[ .-]+", "_", parted).lower()


def looks_like_a_step(name: str) -> bool:
    """Whether a name may be a time or a count that rises in each episode: t, timestamp, date, index."""
    return plain(name) in FIELDS["step"] or (bool(_WEAK_STEP.search(plain(name))) and not looks_like_an_episode(name))


def looks_like_a_source(name: str) -> bool:
    """Whether a name may say which of several environments or users a row is from: env_id, worker, user."""
    return bool(_SOURCE.match(plain(name)))


def looks_like_no_end(name: str) -> bool:
    """Whether a name may say where an episode does not end: not_done, mask, continues."""
    return bool(_NOT_AN_END.match(plain(name)))


def looks_like_an_end(name: str) -> bool:
    """Whether a name, none of `FIELDS`, may well be an episode's end: is_terminal, next.done, TimeLimit.truncated."""
    return bool(_END.search(name))


def looks_like_an_episode(name: str) -> bool:
    """Whether a name, none of `FIELDS`, may well tell of each step which episode it is of: episode_id, trajectory."""
    return bool(_EPISODE.search(plain(name)))


_BOUNDARY = re.compile(
    r"(^|_)(dones?|over|ends?|ended|finish(ed)?|last|trunc\w*|time_?(out|limit)\w*|resets?|first|starts?|starting|begins?"
    r"|beginning|new_episode|initial|boundary|stop(ped)?|cut|expired|max_steps\w*|horizon|episodes?|traj(ectory)?)(_|$)"
    r"|(id|idx|num|number|#|(^|_)(no|nr|uuid|guid|hash|seed|game|match|session|trial|demo|sequence|seq|run|lap|flight"
    r"|trip|visit|stay|patient|subject|case|segment|rollout|path))$"
)


def looks_like_a_boundary(name: str) -> bool:
    """Whether a name may say in any way where episodes are: a flag at their ends or starts, or what numbers them.

    It matches far too much to be used without the column's numbers.
    """
    return bool(_BOUNDARY.search(plain(name)))


def shell_name(name: str) -> str:
    """A name as an argument of --columns: in quotes where a comma is in it."""
    return f'"{name}"' if "," in name else name


def split_names(text: str) -> list[str]:
    """The names of an argument of --columns, with commas between them; one with a comma in it is in double quotes."""
    return next(csv.reader([text], skipinitialspace=True)) if '"' in text else text.split(",")


def no_column(name: str, names: Collection[str]) -> str:
    """What a refusal says of a name that is not among a file's."""
    with_comma = next((each for each in sorted(names) if "," in each), None)
    way = f"; a name with a comma goes in double quotes, such as 'observations=\"{with_comma}\"'" if with_comma else ""
    return f"no column {name!r}, only {listed(sorted(names), MOST_NAMES)}{way}"


def listed(names: list[str], most: int = 12) -> str:
    """Names, and how many more there are than are listed."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


GUESSES = {
    "observations": ("obs", "state", "states", "observation_state", "features", "image", "s", "o"),
    "actions": ("act", "acts", "control", "controls", "a", "u"),
    "rewards": ("rew", "rews", "next_reward", "r"),
}
"""Names that are likely a needed field's, and are not taken for it unasked."""


def suggested(wanted: str, names: Collection[str]) -> str:
    """The names that most likely hold a field that is not found, or NAME,... where none do."""
    by_plain = {plain(re.split(r"[/.]", name)[-1]): name for name in sorted(names, reverse=True)}
    by_plain |= {plain(name): name for name in names}
    for guess in (*FIELDS[wanted], *GUESSES.get(wanted, ())):
        if guess in by_plain:
            return shell_name(by_plain[guess])
        if numbered := [name for name in names if re.fullmatch(rf"{guess}\W*\d+\W*", name, re.IGNORECASE)]:
            in_order = sorted(numbered, key=lambda name: int(re.sub(r"\D", "", name[len(guess) :])))
            return ",".join(map(shell_name, in_order[:20]))
        if parts := [name for name in names if name.lower().startswith(f"{guess}.")]:
            return (
                ",".join(shell_name(part) for part in parts[:20] if not part.endswith((".bytes", ".path")))
                or "NAME,..."
            )
    return "NAME,..."
