"""LeRobot's folders, versions 2 and 3 (Cadene et al. 2024): Parquet with a row for each frame, and JSON next to it.

    meta/info.json                                       codebase_version, features, total_episodes, data_path, ...
    meta/episodes.jsonl                     version 2:   a line for each episode: episode_index, length, tasks
    meta/episodes/chunk-000/file-000.parquet             version 3: a row for each episode, the same
    data/chunk-000/episode_000000.parquet   version 2:   a file for each episode
    data/chunk-000/file-000.parquet         version 3:   several episodes in a file

Frames have observation.state, action, episode_index, frame_index, timestamp, task_index, and where there are rewards
next.reward, next.done and next.success. Pictures are in videos, or are bytes in the table; they are not read.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.arrow import column_of, is_numeric, numbers_of, read_columns
from envs.reading.fields import listed
from envs.reading.found import Budget, Found, chosen_names, side_by_side
from envs.reading.options import ReadingOptions
from envs.reading.readers import check_all_inside, check_inside, read_metadata
from envs.spaces import reason

USUAL = {
    "actions": "action",
    "rewards": "next.reward",
    "done": "next.done",
    "truncated": "next.truncated",
    "success": "next.success",
    "episode": "episode_index",
    "step": "frame_index",
}
"""What LeRobot calls the fields other than the observations."""

SEEN = "observation."
"""What the names of observations begin with."""

IGNORED_FIELDS = ("timestamp", "index", "task_index", "next.success")
"""Columns that every frame has and that are not learned from."""

MOST_LINE = 1 << 20
"""Characters of a line of meta/episodes.jsonl."""


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return (folder / "meta" / "info.json").exists()


def is_lerobot_table(names: Sequence[str]) -> bool:
    """Whether the columns of a single file are those of LeRobot's frames."""
    return {"action", "episode_index", "frame_index"} <= set(names) and any(name.startswith(SEEN) for name in names)


def read_lerobot(folder: Path, options: ReadingOptions) -> Found:
    """The episodes that meta/ lists, in the order of the files.

    One observation is a vector; several are a dictionary by their names after the dot, or one vector where the
    columns name them.
    """
    for name in ("meta", "data"):
        check_inside(folder / name, folder)
        if not (folder / name).is_dir():
            raise DataError(f"{folder}: no folder {name}/ in it, which a LeRobot dataset has")
        check_all_inside(folder / name, folder)
    info = read_metadata(folder / "meta" / "info.json")
    _check_version(folder, info)
    files = sorted((folder / "data").glob("chunk-*/*.parquet"), key=_by_numbers)
    if not files:
        raise DataError(f"{folder}: no data/chunk-*/*.parquet in it: only its description was fetched")
    try:
        arrays, names = _frames(folder, files, options)
        keep, notes = _listed_episodes(folder, info, arrays["episode_index"])
    except ImportError:
        raise DataError(f"{folder}: reading Parquet needs pyarrow: pip install 'decision-transformer[arrow]'") from None
    features = info.get("features")
    names += [name for name in (features if isinstance(features, dict) else {}) if name not in names]
    notes += _task_notes(info)
    return _found(folder, {name: array[keep] for name, array in arrays.items()}, names, options, notes)


def read_lerobot_table(path: Path, options: ReadingOptions) -> Found:
    """The episodes of one file of LeRobot's frames, wherever it lies."""
    arrays, names = _frames(path, [path], options)
    return _found(path, arrays, names, options, [])


def _chosen(where: Path, names: Sequence[str], options: ReadingOptions) -> dict[str, list[str]]:
    """By field the columns that hold it, observations apart unless the user names them."""
    usual = {name: known for name, known in USUAL.items() if name != "success" or options.reward == "success"}
    chosen = chosen_names(str(where), names, options.columns, usual)
    if "actions" not in chosen:
        raise DataError(f"{where}: no 'action' in it, only {listed(sorted(names))}")
    return chosen


def _frames(where: Path, files: list[Path], options: ReadingOptions) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The numbers that are to be read of all files, by column, and the names of all columns."""
    schema = _schema(files[0])
    names = list(schema.names)
    if "episode_index" not in names:
        raise DataError(f"{files[0]}: no 'episode_index' in it, only {listed(sorted(names))}")
    chosen = _chosen(where, names, options)
    seen = chosen.get("observations") or [
        name for name in names if name.startswith(SEEN) and is_numeric(schema.field(name).type)
    ]
    if not seen:
        raise DataError(f"{where}: no observation of numbers in it, only {listed(sorted(names))}")
    wanted = list(dict.fromkeys([*seen, "episode_index", *(name for each in chosen.values() for name in each)]))
    parts = _parts(where, files, wanted)
    return {name: np.concatenate([part[name] for part in parts]) for name in wanted}, names


def _found(
    where: Path, arrays: Mapping[str, NDArray[Any]], names: Sequence[str], options: ReadingOptions, notes: list[str]
) -> Found:
    """The fields of frames. arrays: by column. names: of all columns, and of the pictures in videos."""
    chosen = _chosen(where, [*arrays, *names], options)
    fields: dict[str, Any] = {
        name: side_by_side(f"{where}: {name}", [arrays[each] for each in wanted]) for name, wanted in chosen.items()
    }
    if "observations" not in fields:
        by_name = {name.removeprefix(SEEN): array for name, array in arrays.items() if name.startswith(SEEN)}
        fields["observations"] = by_name if len(by_name) > 1 else next(iter(by_name.values()))
    left = [name for name in names if name not in arrays]
    if "observations" in chosen:
        pictures = [name for name in left if name.startswith(f"{SEEN}image")]
    else:
        pictures = [name for name in left if name.startswith(SEEN)]
    if pictures:
        notes = [*notes, f"pictures are not read: {listed(pictures)}"]
    unread = [name for name in left if name not in pictures and name not in IGNORED_FIELDS]
    return Found(arrays=fields, unread=unread, notes=notes)


def _check_version(folder: Path, info: Mapping[str, Any]) -> None:
    version = info.get("codebase_version")
    if not isinstance(version, str) or not re.match(r"v?[23](\.|$)", version):
        raise DataError(
            f"{folder}/meta/info.json: codebase_version is {json.dumps(version)[:40]}, expected v2.0 to v3; "
            "LeRobot's own converter makes one of them of an older dataset"
        )


def _by_numbers(path: Path) -> tuple[list[int], str]:
    """Files in the order of the numbers in their names: chunk-999 before chunk-1000."""
    return [int(number) for number in re.findall(r"\d{1,18}", f"{path.parent.name}/{path.name}")], path.name


def _schema(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path).schema_arrow
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({reason(error)})") from None


def _parts(folder: Path, files: list[Path], wanted: list[str]) -> list[dict[str, NDArray[Any]]]:
    """The numbers of each file, by column; all files must have one shape and type of each."""
    import pyarrow

    budget = Budget(folder, sum(path.stat().st_size for path in files))
    parts: list[dict[str, NDArray[Any]]] = []
    for path in files:
        try:
            names = _schema(path).names
            if missing := [name for name in wanted if name not in names]:
                raise DataError(f"{path}: no {missing[0]!r} in it, which {files[0].name} has")
            table = read_columns(path, wanted, budget)
            part = {name: numbers_of(f"{path}: column {name!r}", column_of(table, name)) for name in wanted}
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({reason(error)})") from None
        if len(part["episode_index"]) == 0:
            continue
        first = parts[0] if parts else part
        for name, array in part.items():
            if array.shape[1:] != first[name].shape[1:] or array.dtype != first[name].dtype:
                raise DataError(
                    f"{path}: column {name!r}: {array.dtype} of shape {array.shape[1:]} a row, "
                    f"expected {first[name].dtype} of {first[name].shape[1:]} as {files[0].name} has it"
                )
        parts.append(part)
    if not parts:
        raise DataError(f"{folder}: no frame in it")
    return parts


def _listed_episodes(
    folder: Path, info: Mapping[str, Any], episode: NDArray[Any]
) -> tuple[NDArray[np.bool_], list[str]]:
    """Which frames are of episodes that meta/ lists, and notes of those that are not: they were deleted."""
    if episode.ndim != 1 or episode.dtype.kind not in "iu":
        raise DataError(f"{folder}: episode_index: {episode.dtype} of shape {episode.shape}, expected whole numbers")
    numbers, counts = np.unique(episode, return_counts=True)
    there = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    lengths = _lengths_in_meta(folder)
    total = info.get("total_episodes")
    if lengths is None:
        if type(total) is int and total != len(there):
            raise DataError(f"{folder}: {len(there)} episodes, meta/info.json says {total}")
        return np.ones(len(episode), np.bool_), []
    for number, length in lengths.items():
        if there.get(number, 0) != length:
            raise DataError(f"{folder}: episode {number}: {there.get(number, 0)} frames in data/, meta/ says {length}")
    notes = []
    if deleted := sorted(set(there) - set(lengths)):
        notes.append(f"not listed in meta/, as deleted, and left out: episodes {listed([str(n) for n in deleted])}")
    if type(total) is int and total != len(lengths):
        notes.append(f"meta/info.json says {total} episodes, meta/ lists {len(lengths)}")
    return np.isin(episode, np.fromiter(lengths, np.int64)), notes


def _lengths_in_meta(folder: Path) -> dict[int, int] | None:
    """How many frames each listed episode has; None where meta/ has no list."""
    files = sorted((folder / "meta" / "episodes").glob("chunk-*/*.parquet"), key=_by_numbers)
    lines = folder / "meta" / "episodes.jsonl"
    if not files and not lines.exists():
        return None
    found = dict[int, int]()
    for where, number, length in _rows_of_meta(folder, files) if files else _lines_of_meta(lines):
        if type(number) is not int or type(length) is not int or number < 0 or length < 1 or number in found:
            raise DataError(
                f"{where}: episode_index {str(number)[:20]} of length {str(length)[:20]}, expected one each"
            )
        found[number] = length
    if not found:
        raise DataError(f"{folder}/meta: no episode is listed")
    return found


def _rows_of_meta(folder: Path, files: list[Path]) -> Iterator[tuple[str, int, int]]:
    import pyarrow

    budget = Budget(folder / "meta", sum(path.stat().st_size for path in files))
    for path in files:
        try:
            names = _schema(path).names
            if missing := [name for name in ("episode_index", "length") if name not in names]:
                raise DataError(f"{path}: no {missing[0]!r} in it")
            table = read_columns(path, ["episode_index", "length"], budget)
            columns = [numbers_of(f"{path}: {name}", column_of(table, name)) for name in ("episode_index", "length")]
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({reason(error)})") from None
        for row, (number, length) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            yield f"{path}: row {row + 1}", number, length


def _lines_of_meta(path: Path) -> Iterator[tuple[str, Any, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for row, line in enumerate(iter(lambda: file.readline(MOST_LINE), "")):
                if not line.strip():
                    continue
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise DataError(f"{path}: line {row + 1}: not a JSON object")
                yield f"{path}: line {row + 1}", entry.get("episode_index"), entry.get("length")
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as lines of JSON ({reason(error)})") from None


def _task_notes(info: Mapping[str, Any]) -> list[str]:
    """That there are several tasks, which observations say nothing of unless they are asked to."""
    total = info.get("total_tasks")
    if type(total) is not int or total < 2:
        return []
    return [f"{total} tasks in one dataset, and no observation says which: --columns observations=NAME,...,task_index"]
