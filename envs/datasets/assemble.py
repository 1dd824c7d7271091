"""Recorded numbers brought into one form: flat arrays over all steps, and where each episode ends.

`split` takes flat arrays, and has the spaces inferred that nobody declares; `joined` takes episodes one by one. Both
look at shapes; what the numbers themselves are is looked at in `envs.datasets.loading`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.datasets.cache import Column, chunks
from envs.datasets.inference import infer, inferred_notes, is_one_hot, is_whole
from envs.errors import DataError
from envs.reading.episodes import with_done
from envs.reading.fields import ENDS, NEEDED, choose_all
from envs.reading.readers import Header, RecordedEpisode, as_numbers, most_bytes, too_much
from envs.spaces import Leaves, choices, leaf_spaces, pruned, reason, to_leaves

IGNORED_FIELDS = ("id", "infos")
"""What Minari's episodes hold beside what is learned from."""

EPISODES_MAY_BE_GIVEN = (
    "Give lengths or episode; of a file, --columns episode=NAME or episode_start=NAME, "
    "--episode-length N, or --file-is-episode."
)
"""What to do where nothing says where episodes end."""

_COLUMNS = ("observations", "observations", "actions")
"""What is kept of each episode in files of its own: observations, the final ones, actions."""

Kinds = Mapping[str, Space[Any]]
"""Spaces of leaves, by the leaves' names."""

Fields = dict[str, Any]
"""The arrays of a `Dataset`, by its own names."""


def joined(
    header: Header,
    recorded: Iterable[RecordedEpisode | DataError],
    folder: Path | None = None,
    skip_bad: bool = False,
) -> tuple[Header, Fields]:
    """Episodes put one after the other, each looked at by itself; the header declares their spaces.

    folder: where their numbers go, episode by episode, into files; None keeps them in memory.
    skip_bad: leave out those that something is wrong with, and note it.
    """
    kinds = {name: leaf_spaces(header.spaces[f"{name[:-1]}_space"]) for name in ("observations", "actions")}
    seen, last, done = ({leaf: Column(folder) for leaf in kinds[name]} for name in _COLUMNS)
    rewards, lengths, ends = Column(folder), list[int](), list[list[bool]]()
    problems, left_out, labels = list[str](), list[str](), list[str]()
    source = Path(header.source)
    bytes_left = most_bytes(source)
    for episode in recorded:
        if isinstance(episode, DataError):
            found = list(episode.problems)
        else:
            found = list(_episode_problems(f"{header.source}: {episode.label}", episode, kinds))
        (left_out if skip_bad else problems).extend(found[: 1 if skip_bad else None])
        if isinstance(episode, DataError) or found or problems:
            continue  # the others are looked at, and none of it is kept
        bytes_left -= episode.nbytes
        if bytes_left < 0:
            raise DataError(f"{source}: {episode.label}, with those before it: {too_much(source)}")
        for name, array in episode.observations.items():
            seen[name].append(array[:-1])
            last[name].append(array[-1:].copy())  # else the whole episode would stay in memory with it
        for name, array in episode.actions.items():
            done[name].append(array)
        rewards.append(episode.rewards)
        lengths.append(len(episode.rewards))
        ends.append([bool(episode.terminations[-1]), bool(episode.truncations[-1])])
        labels.append(episode.label)
    if problems:
        raise DataError(*problems)
    count = len(lengths)
    if count == 0:
        raise DataError(*left_out) if left_out else DataError(f"{header.source}: no episode in it")
    there = count + len(left_out)
    if header.num_episodes is not None and header.num_episodes != there:
        raise DataError(f"{header.source}: {there} episodes, metadata.json says {header.num_episodes}")
    if header.num_steps is not None and header.num_steps != sum(lengths) and not left_out:
        raise DataError(f"{header.source}: {sum(lengths)} steps, metadata.json says {header.num_steps}")
    header = replace(header, notes=(*header.notes, *left_out_notes(left_out)), labels=tuple(labels))
    ended = np.asarray(ends, np.bool_)  # (E, 2)
    return _noting_finals(header, not header.repeats_final), {
        "observations": {name: column.finish() for name, column in seen.items()},
        "final_observations": None if header.repeats_final else {name: x.finish() for name, x in last.items()},
        "actions": {name: column.finish() for name, column in done.items()},
        "rewards": rewards.finish(),
        "offsets": _offsets(lengths),
        "terminated": ended[:, 0],
        "truncated": ended[:, 1],
    }


def left_out_notes(reasons: list[str]) -> list[str]:
    """One note for each episode that was left out, up to twenty of them."""
    more = [f"left out: {len(reasons) - 20} more"] if len(reasons) > 20 else []
    return [f"left out: {why}" for why in reasons[:20]] + more


def _episode_problems(where: str, episode: RecordedEpisode, kinds: Mapping[str, Kinds]) -> Iterator[str]:
    """kinds: the leaves' spaces of observations and of actions."""
    shape = episode.rewards.shape
    if len(shape) != 1 or shape[0] == 0:
        yield f"{where}/rewards: shape {shape}, expected (T,) with T at least 1"
        return
    if episode.rewards.dtype.kind == "b":
        yield f"{where}/rewards: type bool, expected numbers"
    for name, leaves in (("observations", episode.observations), ("actions", episode.actions)):
        for leaf, array in leaves.items():  # joined with another type the odd one would not be seen any more
            yield from type_problem(f"{where}/{name}" + f"/{leaf}" * (len(leaves) > 1), array, kinds[name][leaf])
    yield from _row_problems(f"{where}/actions", episode.actions, [shape[0]], kinds["actions"])
    yield from _row_problems(f"{where}/observations", episode.observations, [shape[0] + 1], kinds["observations"])
    for name in ("terminations", "truncations"):
        flags = getattr(episode, name)
        if flags.shape != shape:
            yield f"{where}/{name}: shape {flags.shape}, expected {shape}"
        elif flags.dtype.kind != "b" and (odd := flags[(flags != 0) & (flags != 1)]).size:
            yield f"{where}/{name}: {odd[0]} in it, expected true or false"
        elif flags[:-1].any():
            yield f"{where}/{name}: true at step {int(flags.argmax())}, before the last step"


def split(header: Header, arrays: Mapping[str, Any]) -> tuple[Header, Fields]:
    """Flat arrays, as `envs.from_arrays` has them, cut into episodes."""
    where = f"{header.source}"
    if header.leave_out:
        arrays = _without(where, arrays, header.leave_out)
    arrays = with_done(where, arrays)
    if header.last_row_is_final:
        header, arrays = without_final_rows(header, arrays)
    offsets, terminated, truncated = _ends(where, arrays, _steps(where, arrays))
    header, rewards = _rewards(header, arrays, offsets)  # (N,)
    header, unfollowed = _without_last_missing(header, offsets)
    if "step" in arrays:
        _check_order(f"{where}: step", _column(f"{where}: step", arrays["step"]), offsets, header.rows)
    elif "next_observations" not in arrays:
        for name, values in arrays.get("clocks", {}).items():
            _check_clock(f"{where}: {name!r}", name, values, offsets, header.rows)
        header = _noting_sources(header, arrays.get("sources", {}), offsets)
    if arrays.keys() & set(ENDS) == {"done"}:
        header = replace(header, notes=(*header.notes, "done stands alone: each end counts as terminated, none as cut"))
    header, actions = _with_leaves(header, "actions", arrays["actions"])
    header, observations = _with_leaves(header, "observations", arrays["observations"], _followers(header, arrays))
    steps, episodes, kinds = len(rewards), len(offsets) - 1, leaf_spaces(header.spaces["observation_space"])
    problems = [
        *_row_problems(f"{where}: actions", actions, [steps], leaf_spaces(header.spaces["action_space"])),
        *_row_problems(f"{where}: observations", observations, [steps, steps + episodes], kinds),
    ]
    finals = None
    if "next_observations" in arrays:
        _, after = _with_leaves(header, "observations", arrays["next_observations"])
        problems += _row_problems(f"{where}: next_observations", after, [steps], kinds)
        if not problems and not unfollowed:
            finals = {name: array[offsets[1:] - 1] for name, array in after.items()}
    if problems:
        raise DataError(*problems)
    if all(len(array) == steps + episodes for array in observations.values()):
        last = offsets[1:] + np.arange(episodes)  # rows that hold an episode's final observation
        finals = {name: array[last] for name, array in observations.items()}
        observations = {name: np.delete(array, last, axis=0) for name, array in observations.items()}
    if "next_observations" in arrays:
        _check_followed(f"{where}: next_observations", observations, after, offsets, header)
    return _noting_finals(header, finals is not None), {
        "observations": observations,
        "final_observations": finals,
        "actions": actions,
        "rewards": rewards,
        "offsets": offsets,
        "terminated": terminated,
        "truncated": truncated,
    }


def _without(where: str, arrays: Mapping[str, Any], leave_out: tuple[str, ...]) -> dict[str, Any]:
    """The arrays without these parts of the observations, by their paths."""
    found = dict(arrays)
    for field in ("observations", "next_observations"):
        if arrays.get(field) is None:
            continue
        for name in leave_out:
            part = arrays[field]
            for key in name.split("/"):
                if not isinstance(part, Mapping) or key not in part:
                    named = isinstance(arrays[field], Mapping)
                    there = ", ".join(map(str, arrays[field])) if named else "one array without names"
                    raise DataError(f"{where}: {field}: no {name!r} in it to leave out, only {there}")
                part = part[key]
        found[field] = pruned(arrays[field], leave_out)
    return found


def _without_last_missing(header: Header, offsets: NDArray[np.int64]) -> tuple[Header, bool]:
    """The header without next observations that are missing at ends of episodes only, and whether there are such."""
    last = offsets[1:] - 1
    excused = {
        name: rows
        for name, rows in header.missing.items()
        if name[0] == "next_observations" and len(rows) and np.isin(rows, last).all()
    }
    if not excused:
        return header, False
    count = len(np.unique(np.concatenate(list(excused.values()))))
    note = f"next_observations hold nothing at the end of {count} of {len(last)} episodes"
    left = {name: rows for name, rows in header.missing.items() if name not in excused}
    return replace(header, missing=left, notes=(*header.notes, note)), True


def without_final_rows(header: Header, arrays: Mapping[str, Any]) -> tuple[Header, dict[str, Any]]:
    """The same recording with observations of T + 1 rows, and all else of T, where each episode had T + 1 rows.

    A success in the last row is one of the step before. An episode of one row has no step and is left out.
    """
    where, rows = f"{header.source}", _steps(f"{header.source}", arrays)
    offsets, terminated, truncated = _ends(where, arrays, rows)
    last, lengths = offsets[1:] - 1, np.diff(offsets) - 1
    for (field, column), missing in header.missing.items():
        if field in ("observations", "next_observations") and np.isin(last, missing).any():
            row = int(np.intersect1d(last, missing)[0])
            raise DataError(f"{where}: {place(offsets, row)}, row {in_file(row, header.rows)}, {column}: nothing there")
    steps = np.setdiff1d(np.arange(rows), last)
    kept = lengths > 0
    if not kept.any():
        raise DataError(f"{where}: each episode has one row, and the last row of each is an observation only")
    found: dict[str, Any] = {"lengths": lengths[kept]}
    if arrays.keys() & set(ENDS) == {"done"}:
        found["done"] = terminated[kept]
    else:
        found |= {"terminated": terminated[kept], "truncated": truncated[kept]}
    for field in arrays.keys() - {"lengths", "episode", "episode_start", "observations", "success", *ENDS}:
        found[field] = _taken(f"{where}: {field}", arrays[field], rows, steps)
    seen = np.delete(np.arange(rows), last[~kept])
    found["observations"] = _taken(f"{where}: observations", arrays["observations"], rows, seen)
    if "success" in arrays:
        success = _flags(f"{where}: success", arrays["success"])
        if len(success) == rows:
            success[last[kept] - 1] |= success[last[kept]]
            success = success[steps]
        found["success"] = success
    notes = header.notes
    if not kept.all():
        notes = (*notes, f"{int((~kept).sum())} of {len(kept)} episodes have one row, of an observation only: left out")
    number = np.full(rows, -1)
    number[steps] = np.arange(len(steps))
    there = {name: number[missing] for name, missing in header.missing.items()}
    header = replace(
        header,
        notes=notes,
        rows=steps if header.rows is None else header.rows[steps],
        missing={name: missing[missing >= 0] for name, missing in there.items() if (missing >= 0).any()},
    )
    return header, found


def _taken(where: str, value: Any, rows: int, chosen: NDArray[np.int64]) -> Any:
    """These rows of each array of a value that nests in any way."""
    if isinstance(value, Mapping):
        return {key: _taken(f"{where}/{key}", part, rows, chosen) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_taken(f"{where}/{i}", part, rows, chosen) for i, part in enumerate(value))
    array = _array(where, value)
    if array.ndim == 0 or len(array) != rows:
        raise DataError(f"{where}: shape {array.shape}, expected {rows} rows")
    return array[chosen]


def _steps(where: str, arrays: Mapping[str, Any]) -> int:
    """How many rows the recording has: those of its rewards, or where it has none of its actions."""
    if "rewards" in arrays:
        return len(_column(f"{where}: rewards", arrays["rewards"]))
    rows = _rows(_arrays(f"{where}: actions", arrays["actions"]))
    if rows == 0:
        raise DataError(f"{where}: actions: no step in it")
    return rows


def _rewards(header: Header, arrays: Mapping[str, Any], offsets: NDArray[np.int64]) -> tuple[Header, NDArray[Any]]:
    """The recorded rewards, or those that the user's rule makes; the header says where they are from."""
    where, rule = f"{header.source}", header.reward
    if rule in (None, "none") and "rewards" in arrays:
        return header, _column(f"{where}: rewards", arrays["rewards"])
    if rule in (None, "none"):
        note = "no rewards are recorded: a return means nothing here"
        return replace(header, notes=(*header.notes, note), rewards_from="none"), np.zeros(offsets[-1], np.float32)
    note = f"rewards are made by the rule {rule!r}"
    note += ", the recorded ones are not read" if "rewards" in arrays else ""
    header = replace(header, notes=(*header.notes, note), rewards_from=str(rule))
    if rule == "last":
        return header, last_rewards(offsets)
    if "success" not in arrays:
        raise DataError(f"{where}: no success flag is read of it: --columns success=NAME names one, or --reward last")
    success = _flags(f"{where}: success", arrays["success"])
    if len(success) == len(offsets) - 1 != offsets[-1]:
        return header, last_rewards(offsets) * success.repeat(np.diff(offsets))
    if len(success) != offsets[-1]:
        raise DataError(f"{where}: success: shape {success.shape}, expected {(int(offsets[-1]),)}")
    return header, success.astype(np.float32)


def last_rewards(offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """1 at each episode's last step, else 0: (N,)."""
    rewards = np.zeros(offsets[-1], np.float32)
    rewards[offsets[1:] - 1] = 1
    return rewards


def _check_order(where: str, step: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64] | None) -> None:
    """Refuse rows that are not in the order of their steps' numbers; numbers that never vary tell of no order."""
    if len(step) != offsets[-1]:
        raise DataError(f"{where}: shape {step.shape}, expected {(int(offsets[-1]),)}")
    wrong = ~(step[1:] > step[:-1])
    wrong[offsets[1:-1] - 1] = False  # another episode begins there
    if wrong.any() and (step != step[0]).any():
        row = int(wrong.argmax()) + 1
        raise DataError(
            f"{where}: {place(offsets, row)} (row {in_file(row, rows)}): {step[row]} after {step[row - 1]}"
            f"{_count(wrong)}; the rows of an episode must be in the order of its steps. If they are, a boundary of "
            f"episodes is missing: {_ways_out(step)}. If it counts something else, give --columns step=none."
        )


def _ways_out(step: NDArray[Any]) -> str:
    """What says where episodes end, in words; their length where the steps' numbers start again evenly."""
    starts = np.concatenate([[0], np.flatnonzero(~(step[1:] > step[:-1])) + 1, [len(step)]])
    lengths = np.diff(starts)
    even = (lengths[:-1] == lengths[0]).all() and 1 < lengths[0] >= lengths[-1]
    return f"give --columns episode=NAME or --episode-length {int(lengths[0]) if even else 'N'}"


def _noting_sources(header: Header, sources: Mapping[str, NDArray[Any]], offsets: NDArray[np.int64]) -> Header:
    """The header with a note on columns that say which environment a row is from, and change within episodes."""
    notes = list(header.notes)
    for name, values in sources.items():
        changes = values[1:] != values[:-1]
        changes[offsets[1:-1] - 1] = False  # another episode begins there
        if changes.any():
            row = int(changes.argmax()) + 1
            notes.append(
                f"{name!r} changes within episodes, first at {place(offsets, row)} (row {in_file(row, header.rows)}). "
                f"If several were recorded side by side, these episodes are wrong: sort the rows by {name} and time"
            )
    return replace(header, notes=tuple(notes))


def _check_clock(
    where: str, name: str, values: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64] | None
) -> None:
    """Refuse an order of the rows in which a time or a count does not rise; one that stands still shows no order."""
    inside = np.ones(len(values) - 1, np.bool_)
    inside[offsets[1:-1] - 1] = False  # another episode begins there
    if (values[1:] == values[:-1])[inside].all():
        return
    wrong = ~(values[1:] > values[:-1]) & inside & ~np.isnan(values[1:]) & ~np.isnan(values[:-1])
    if wrong.any():
        row = int(wrong.argmax()) + 1
        raise DataError(
            f"{where}: {place(offsets, row)} (row {in_file(row, rows)}) does not rise{_count(wrong)}: are these rows "
            f"in order, and is each end of an episode marked? Sort them by episode, then by {name}, or give "
            "--columns episode=NAME; if it is no time or count of steps, give --columns step=none."
        )


def _check_followed(
    where: str,
    seen: Leaves,
    after: Leaves,
    offsets: NDArray[np.int64],
    header: Header,
) -> None:
    """Refuse steps whose next observation is not what the next step of their episode observes.

    What is not there, or not finite, tells nothing of that; the door judges it.
    """
    wrong = np.zeros(int(offsets[-1]), np.bool_)
    for name, array in seen.items():
        at = 0
        for rows in chunks(after[name][:-1]):
            wrong[at : at + len(rows)] |= _differ(rows, array[at + 1 : at + 1 + len(rows)])
            at += len(rows)
    for rows in header.missing.values():
        wrong[rows] = wrong[np.maximum(rows, 1) - 1] = False
    wrong[offsets[1:] - 1] = False  # nothing of the episode comes after its last step
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{where}: {place(offsets, row)} (row {in_file(row, header.rows)}): not what the next row observes"
            f"{_count(wrong)}; these rows are no trajectories, or an end of episodes is not told"
        )


def _differ(some: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows (n, ...) differ by more than the coarser type's rounding: (n,)."""
    kinds = [np.finfo(each.dtype) for each in (some, others) if each.dtype.kind == "f"]
    if kinds:
        coarsest = max(kinds, key=lambda kind: float(kind.eps))
        a, b = some.astype(np.float64), others.astype(np.float64)
        close = np.isclose(a, b, rtol=8 * float(coarsest.eps), atol=float(coarsest.tiny))
        same = np.asarray(close | ~np.isfinite(a) | ~np.isfinite(b))
    else:
        same = np.asarray(some == others)
    return np.asarray(~same.reshape(len(some), -1).all(1))


def _count(wrong: NDArray[np.bool_]) -> str:
    return f", the first of {int(wrong.sum())}" if wrong.sum() > 1 else ""


def flat_arrays(name: str, episodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Episodes, as `envs.from_episodes` has them, as the arrays that `split` takes."""
    columns: dict[str, list[Any]] = {field: [] for field in (*NEEDED, "next_observations", "terminated", "truncated")}
    for number, episode in enumerate(episodes):
        where = f"{name}: episode {number}"
        given = {key: value for key, value in episode.items() if value is not None and key not in IGNORED_FIELDS}
        names = choose_all(where, given, (*NEEDED, *ENDS, "next_observations"))
        for field in (*NEEDED, "next_observations"):
            if field not in names:
                continue
            columns[field].append(_arrays(f"{where}, {names[field]}", given[names[field]]))
        steps = _rows(columns["rewards"][-1])
        ends = {field: names[field] for field in ENDS if field in names}
        flags = {field: _end(f"{where}, {key}", given[key], steps) for field, key in ends.items()}
        terminated, truncated, odd = _how_ended(flags, 1)
        if odd.any():
            raise DataError(f"{where}: {_contradiction(flags, 0)}")
        columns["terminated"].append(terminated[0])
        columns["truncated"].append(truncated[0])
    if not columns["rewards"]:
        raise DataError(f"{name}: no episode in it")
    lengths = [_rows(rewards) for rewards in columns["rewards"]]
    final = int(_rows(columns["observations"][0]) != lengths[0])  # 1 where the final observation is there
    rows = {"observations": [length + final for length in lengths], "actions": lengths, "rewards": lengths}
    if (there := len(columns["next_observations"])) == len(lengths):
        rows["next_observations"] = lengths
    elif there:
        raise DataError(f"{name}: next_observations are in {there} of {len(lengths)} episodes")
    arrays = {field: _stacked(name, field, columns[field], rows[field]) for field in rows}
    return {**arrays, "terminated": columns["terminated"], "truncated": columns["truncated"], "lengths": lengths}


def _noting_finals(header: Header, recorded: bool) -> Header:
    if recorded:
        return header
    note = "no final observations: an episode of T steps has T observations, and nothing stands in for the last"
    return replace(header, notes=(*header.notes, note))


def _ends(
    where: str, arrays: Mapping[str, Any], steps: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Where episodes end and how: offsets (E + 1,), terminated (E,), truncated (E,)."""
    flags = {name: _flags(f"{where}: {name}", arrays[name]) for name in ENDS if name in arrays}
    marked = any(flag.any() for flag in flags.values())
    if "lengths" in arrays:
        offsets = _offsets(_given_lengths(where, arrays["lengths"], steps))
    elif "episode" in arrays:
        offsets = _offsets(_run_lengths(where, arrays["episode"], steps))
    elif "episode_start" in arrays:
        offsets = _offsets(_started_lengths(where, arrays["episode_start"], steps))
    elif marked or (flags and "step" in arrays):
        offsets = _offsets(_flagged_lengths(where, flags, steps))
    elif flags:
        raise DataError(
            f"{where}: {' and '.join(flags)} {'is' if len(flags) == 1 else 'are'} false in all {steps} rows, so "
            f"nothing says where episodes end. {EPISODES_MAY_BE_GIVEN}"
        )
    else:
        raise DataError(
            f"{where}: nothing says where episodes end: terminated, truncated, done, episode or lengths. "
            f"{EPISODES_MAY_BE_GIVEN}"
        )
    episodes = len(offsets) - 1
    ends = {name: _at_ends(f"{where}: {name}", flag, offsets) for name, flag in flags.items()}
    if "lengths" in arrays and flags.keys() == {"terminated"} and flags["terminated"].shape == (episodes,):
        ends["truncated"] = ~ends["terminated"]  # our own layout: one flag an episode tells how it ended
    terminated, truncated, odd = _how_ended(ends, episodes)
    if odd.any():
        episode = int(odd.argmax())
        raise DataError(f"{where}: episode {episode}: {_contradiction(ends, episode)}")
    return offsets, terminated, truncated


def _how_ended(ends: Mapping[str, NDArray[np.bool_]], episodes: int) -> tuple[NDArray[np.bool_], ...]:
    """Whether each episode is terminated, truncated, and said to be what it is not; each (E,).

    ends: one flag an episode, of those of `ENDS` that are recorded. `done` is either of the two others.
    """
    terminated, truncated = (ends.get(name, np.zeros(episodes, np.bool_)) for name in ("terminated", "truncated"))
    done = ends.get("done")
    if done is None:
        return terminated, truncated, np.zeros(episodes, np.bool_)
    if "terminated" not in ends:
        terminated = done & ~truncated
    elif "truncated" not in ends:
        truncated = done & ~terminated
    else:
        return terminated, truncated, done != (terminated | truncated)
    return terminated, truncated, np.zeros(episodes, np.bool_)


def _contradiction(ends: Mapping[str, NDArray[np.bool_]], episode: int) -> str:
    return ", ".join(f"{name} is {str(flags[episode]).lower()}" for name, flags in ends.items()) + " at its end"


def _at_ends(where: str, flag: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A flag for each episode (E,) from one for each step, of which only an episode's last may be true."""
    episodes, steps = len(offsets) - 1, int(offsets[-1])
    if flag.shape == (episodes,):
        return flag
    if flag.shape != (steps,):
        raise DataError(f"{where}: shape {flag.shape}, expected {(steps,)} or {(episodes,)}")
    early = flag.copy()
    early[offsets[1:] - 1] = False
    if early.any():
        raise DataError(f"{where}: {place(offsets, int(early.argmax()))}: true before the episode's last step")
    return flag[offsets[1:] - 1]


def _flagged_lengths(where: str, flags: Mapping[str, NDArray[np.bool_]], steps: int) -> NDArray[np.int64]:
    """Lengths of what ends at each flag, and of what is left after the last: (E,)."""
    ended = np.zeros(steps, np.bool_)
    for name, flag in flags.items():
        if flag.shape != (steps,):
            raise DataError(f"{where}: {name}: shape {flag.shape}, expected {(steps,)}, or 'lengths' beside it")
        ended |= flag
    ended[-1] = True  # what neither ends nor is cut is an episode all the same; the door counts it
    return np.diff(np.flatnonzero(ended) + 1, prepend=0)


def _given_lengths(where: str, given: Any, steps: int) -> NDArray[np.int64]:
    lengths = as_numbers(_array(f"{where}: lengths", given), f"{where}: lengths")
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DataError(f"{where}: lengths: {lengths.dtype} of shape {lengths.shape}, expected (E,) integers")
    if len(lengths) == 0 or (lengths < 1).any():
        found = f"found {lengths.min()}" if len(lengths) else "found none"
        raise DataError(f"{where}: lengths: expected at least one episode of at least one step, {found}")
    if (longest := int(lengths.max())) > steps:  # so that the sum cannot run over either
        raise DataError(f"{where}: rewards: shape {(steps,)}, lengths say {longest} of one episode")
    lengths = lengths.astype(np.int64)  # 127 + 1 is -128 in a type as narrow as int8
    if lengths.sum() != steps:
        raise DataError(f"{where}: rewards: shape {(steps,)}, lengths say {(int(lengths.sum()),)}")
    return lengths


def _started_lengths(where: str, given: Any, steps: int) -> NDArray[np.int64]:
    """Lengths of what begins at each flag: (E,)."""
    flags = _flags(f"{where}: episode_start", given)
    if len(flags) != steps:
        raise DataError(f"{where}: episode_start: shape {flags.shape}, expected {(steps,)}")
    if not flags[0]:
        raise DataError(f"{where}: episode_start: false at the first row, expected true where each episode begins")
    return np.diff(np.flatnonzero(flags), append=steps)


def _run_lengths(where: str, given: Any, steps: int) -> NDArray[np.int64]:
    """Lengths of the runs of one number, or name, after the other: (E,)."""
    values = _array(f"{where}: episode", given)
    if values.ndim == 2 and values.shape[1] > 1 and len(values) == steps:
        return _vector_run_lengths(where, values)
    episode = _column(f"{where}: episode", values, names=True)
    if len(episode) != steps:
        raise DataError(f"{where}: episode: shape {episode.shape}, expected {(steps,)}")
    if not_finite(episode).any():
        raise DataError(f"{where}: episode: {episode[not_finite(episode).argmax()]} is no number or name")
    starts = np.concatenate([[0], np.flatnonzero(episode[1:] != episode[:-1]) + 1])
    seen = set()
    for row in starts:
        if episode[row] in seen:
            raise DataError(
                f"{where}: episode: {episode[row]} begins again at step {row}; its steps must stand together"
            )
        seen.add(episode[row])
    return np.diff(starts, append=steps)


def _vector_run_lengths(where: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """The same of numbers that name an episode together, (N, k), or of a goal (N, k): floats may come again later."""
    if not_finite(values).any():
        raise DataError(f"{where}: episode: not finite at step {int(not_finite(values).any(1).argmax())}")
    starts = np.concatenate([[0], np.flatnonzero((values[1:] != values[:-1]).any(axis=1)) + 1])
    if values.dtype.kind != "f":
        names, first = np.unique(values[starts], axis=0, return_index=True)
        if len(names) < len(starts):
            row = int(starts[np.setdiff1d(np.arange(len(starts)), first)[0]])
            again = values[row].tolist()
            raise DataError(f"{where}: episode: {again} begins again at step {row}; its steps must stand together")
    return np.diff(starts, append=len(values))


def _followers(header: Header, arrays: Mapping[str, Any]) -> list[Any]:
    """Next observations, for which an inferred space must be wide enough too, where none is missing."""
    if "next_observations" not in arrays or any(field == "next_observations" for field, _ in header.missing):
        return []
    after, seen = (_arrays(f"{header.source}: {name}", arrays[name]) for name in ("next_observations", "observations"))
    alike = isinstance(after, np.ndarray) and isinstance(seen, np.ndarray) and after.shape[1:] == seen.shape[1:]
    return [after] if alike and after.dtype.kind == seen.dtype.kind and len(after) else []


def _with_leaves(header: Header, field: str, value: Any, others: Sequence[Any] = ()) -> tuple[Header, Leaves]:
    """The leaves of observations or actions; a space that nobody declares is inferred, and noted in the header.

    others: values that must fit an inferred space too.
    """
    where, name = f"{header.source}: {field}", f"{field[:-1]}_space"
    space, value = header.spaces.get(name), _arrays(where, value)
    if space is None:
        space = infer([value, *others], field)
        notes, inferred = (*header.notes, *inferred_notes(space, value, field)), (*header.inferred, name)
        header = replace(header, notes=notes, spaces={**header.spaces, name: space}, inferred=inferred)
    if isinstance(space, spaces.Dict | spaces.Tuple) and isinstance(value, np.ndarray):
        raise DataError(f"{where}: one array cannot hold {space}")
    try:
        leaves = to_leaves(space, value)
    except (KeyError, IndexError, TypeError):
        raise DataError(f"{where}: does not nest as {space}") from None
    if isinstance(space, spaces.Dict) and isinstance(value, Mapping) and (unknown := value.keys() - space.keys()):
        raise DataError(f"{where}: {min(map(str, unknown))!r} in it, expected {', '.join(map(str, space))}")
    kinds = leaf_spaces(space)
    return header, {leaf: as_declared(array, kinds[leaf]) for leaf, array in leaves.items()}


def _row_problems(where: str, leaves: Leaves, rows: list[int], kinds: Kinds) -> Iterator[str]:
    """What is wrong with the leaves' shapes. rows: how many are right; all leaves have the same one of them."""
    if all(0 in (leaf.shape or ()) for leaf in kinds.values()):
        shapes = ", ".join(str(array.shape) for array in leaves.values())
        yield f"{where}: shape {shapes}, expected at least one number a step"
        return
    for name, leaf in kinds.items():
        expected = [(count, *(leaf.shape or ())) for count in rows]
        label = where if len(leaves) == 1 else f"{where}/{name}"
        if leaves[name].shape in expected:
            rows = [len(leaves[name])]
        else:
            yield f"{label}: shape {leaves[name].shape}, expected {' or '.join(map(str, expected))}"


# Small things.


def type_problem(where: str, array: NDArray[Any], space: Space[Any]) -> Iterator[str]:
    """What is wrong with the type of a leaf's numbers: floats belong to a Box of floats alone."""
    if array.dtype.kind not in ("f" if np.dtype(space.dtype).kind == "f" else "iub"):
        yield f"{where}: type {array.dtype}, the space says {space.dtype}"
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        yield f"{where}: type {array.dtype}, at most float64 is taken"


def place(offsets: NDArray[np.int64], row: int) -> str:
    """Which episode and step a row of the flat arrays is, in words."""
    episode = int(np.searchsorted(offsets, row, side="right")) - 1
    return f"episode {episode}, step {row - int(offsets[episode])}"


def in_file(row: int, rows: NDArray[np.int64] | None) -> int:
    """The number, from 1, that a step's row has in its file. rows: as in `Header`."""
    return (row if rows is None else int(rows[row])) + 1


def not_finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the array is NaN or infinite; integers, such as pictures, are not looked through.

    Where nothing is, the answer is one False: the whole answer might be too much for memory.
    """
    if array.dtype.kind != "f" or all(np.isfinite(rows).all() for rows in chunks(array)):
        return np.zeros(1, np.bool_)
    return ~np.isfinite(array)


def beyond(array: NDArray[Any], space: Space[Any]) -> NDArray[np.bool_]:
    """Where the array is beyond a Box's bounds, or none of the choices of another leaf; as `outside` tells it."""
    if isinstance(space, spaces.Box):
        return outside(array, space.low, space.high)
    counts, start = (x.reshape(space.shape) for x in choices(space))
    return outside(array, start, start + counts - 1)


def outside(array: NDArray[Any], low: Any, high: Any) -> NDArray[np.bool_]:
    """Where the array is below `low` or above `high`; where nothing is, one False, as in `not_finite`."""
    if array.min() >= np.max(low) and array.max() <= np.min(high):  # forty times as quick as column by column
        return np.zeros(1, np.bool_)
    if (array.min(0) >= low).all() and (array.max(0) <= high).all():
        return np.zeros(1, np.bool_)
    return np.asarray((array < low) | (array > high))


def _array(where: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # lists of lists of several lengths
        raise DataError(f"{where}: no array ({reason(error)})") from None


def _arrays(where: str, value: Any) -> Any:
    """A dictionary or tuple of arrays of numbers, or one of them."""
    if isinstance(value, Mapping):
        return {key: _arrays(f"{where}/{key}", part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_arrays(f"{where}/{i}", part) for i, part in enumerate(value))
    array = as_numbers(_array(where, value), where)
    if array.ndim == 0:
        raise DataError(f"{where}: one number, expected an array")
    return array


def _column(where: str, value: Any, names: bool = False) -> NDArray[Any]:
    """(N,) numbers, or names; (N, 1) is taken too, as replay buffers have it."""
    array = _array(where, value)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1 or len(array) == 0:
        raise DataError(f"{where}: shape {array.shape}, expected (N,) with N at least 1")
    return array if names else as_numbers(array, where)


def _flags(where: str, value: Any) -> NDArray[np.bool_]:
    array = _column(where, value)
    odd = (array != 0) & (array != 1)
    if odd.any():
        raise DataError(f"{where}: {array[odd.argmax()]} at {int(odd.argmax())}, expected true or false")
    return array.astype(np.bool_)


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


def _end(where: str, value: Any, steps: int) -> NDArray[np.bool_]:
    """How one episode ended, (1,), from True or False, or from (T,) of which only the last may be true."""
    flags = _flags(where, np.atleast_1d(_array(where, value)))
    if len(flags) not in (1, steps):
        raise DataError(f"{where}: shape {flags.shape}, expected () or {(steps,)}")
    if flags[:-1].any():
        raise DataError(f"{where}: true at step {int(flags.argmax())}, before the last step")
    return flags[-1:]


def _rows(value: Any) -> int:
    """Rows of an array, or of the first one of a dictionary or tuple."""
    if isinstance(value, dict | tuple):
        return _rows(next(iter(value.values() if isinstance(value, dict) else value)))
    return len(value)


def _stacked(name: str, field: str, values: list[Any], rows: list[int]) -> Any:
    """The same field of all episodes, one after the other, nested as in the first."""
    first = values[0]
    for number, value in enumerate(values):
        if _keys(value) != _keys(first):
            raise DataError(f"{name}: episode {number}, {field}: {_keys(value)}, expected {_keys(first)}")
    if keys := _keys(first):
        parts = {key: _stacked(name, f"{field}/{key}", [value[key] for value in values], rows) for key in keys}
        return parts if isinstance(first, dict) else tuple(parts.values())
    for number, (value, count) in enumerate(zip(values, rows, strict=True)):
        if value.shape != (count, *first.shape[1:]):
            expected = (count, *first.shape[1:])
            raise DataError(f"{name}: episode {number}, {field}: shape {value.shape}, expected {expected}")
    return np.concatenate(values)


def _keys(value: Any) -> list[Any]:
    """What a dictionary or tuple of arrays is made of; nothing where it is one array."""
    return sorted(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, tuple) else []


def _offsets(lengths: Any) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
