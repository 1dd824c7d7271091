"""What a run's folder holds for a report, read and checked: the folder may come from anywhere. No torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from dt.learning.description import environment_in, read_description, too_long
from transformer.errors import CheckpointError, ConfigError
from transformer.files import MOST_JSON, parse_json, read_json
from transformer.runs.folder import check_run

FILMS = Path("results")
"""Where a report, and `dt push`, look for a run's films within its folder; `dt evaluate --video` writes them there."""

FILM = re.compile(r"target-(-?\d+(?:\.\d+)?(?:e[+-]\d+)?)\.mp4", re.ASCII)
"""Name of a film, with its target return."""

RESULTS, HELD_OUT = ("last", "best"), ("held-out", "held-out-best")
"""Names of the files of results that a report shows; others in that folder are their owner's."""


class TargetDocument(TypedDict):
    """One target return, as `dt.evaluation.TargetResult` writes it."""

    target_return: float
    mean_return: float | None
    std_return: float | None
    returns: list[float]
    lengths: list[int]
    normalized_score: float | None
    failures: NotRequired[list[str]]


class ResultsDocument(TypedDict):
    """A file of results, as `dt.sharing.report.results_document` writes it."""

    checkpoint: str
    results: list[TargetDocument]
    seed: NotRequired[int]
    measures: NotRequired[dict[str, float]]


class LeafDocument(TypedDict):
    """Held-out error of one part of the actions, as `dt.validation.LeafError`."""

    leaf: str
    measure: str
    error: float
    baseline: float


class ErrorDocument(TypedDict):
    """The error on held-out episodes, as `dt.validation.HeldOut`."""

    loss: float
    leaves: list[LeafDocument]


class HeldOutDocument(TypedDict):
    """A file of held-out errors, as `dt.sharing.report.held_out_document` writes it."""

    checkpoint: str
    held_out: ErrorDocument


Curve = list[tuple[int, float]]
"""Steps and values."""

LARGEST = 1e100
"""The largest number that a chart is drawn of: differences of larger ones may not be finite."""

MOST_TARGETS = 1_000
"""Targets in a file of results; charts of more take minutes to draw, and nothing could be seen in them."""


@dataclass(frozen=True)
class Film:
    """A film of one episode."""

    target_return: float
    path: Path


@dataclass(frozen=True)
class ReportedRun:
    """A run as a report shows it."""

    name: str
    """What the report calls it."""
    folder: Path
    description: dict[str, Any]
    """Its run.json."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """By kind and name, such as train/loss, the finite numbers of its log."""
    results: dict[str, ResultsDocument] = field(default_factory=dict)
    """By file, such as last and best."""
    held_out: dict[str, HeldOutDocument] = field(default_factory=dict)
    """By file, such as held-out."""
    films: tuple[Film, ...] = ()
    """By target return, the lowest first."""


def read_runs(folders: Sequence[Path]) -> list[ReportedRun]:
    """Read runs of one environment.

    Raises:
        CheckpointError: a folder is not a run, or a file in it is not what this version writes.
        ConfigError: a folder is named twice, or the runs are played in different environments.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, resolved, strict=True):
        if resolved.count(place) > 1:
            raise ConfigError(f"{folder}: this run is named twice")
    names = [place.name for place in resolved]
    unique = len(set(names)) == len(names)
    runs = [_read_run(folder, name if unique else str(folder)) for folder, name in zip(folders, names, strict=True)]
    first = runs[0]
    for run in runs[1:]:
        if environment_in(run.description) != environment_in(first.description):
            places = f"is played in {_environment_name(run)}, {first.folder} in {_environment_name(first)}"
            raise ConfigError(f"{run.folder}: {places}. Write one report for each environment.")
    return runs


def _environment_name(run: ReportedRun) -> str:
    """An environment's id, with all that may tell it from another one of that id."""
    spec = environment_in(run.description)
    if spec is None:
        return "no environment"
    return spec.id + (f" {dict(spec.kwargs)}" if spec.kwargs else "") + f" (at most {spec.max_episode_steps} steps)"


def _read_run(folder: Path, name: str) -> ReportedRun:
    check_run(folder)
    description = read_description(folder / "run.json")
    _check_data(folder / "run.json", description["dataset"])
    results = {name: document for name in RESULTS if (document := _read_results(folder, name, ResultsDocument))}
    held_out = {name: document for name in HELD_OUT if (document := _read_results(folder, name, HeldOutDocument))}
    curves = read_log(folder / "log.jsonl")
    return ReportedRun(name, folder, description, curves, results, held_out, _films(folder / FILMS))


def _check_data(path: Path, data: dict[str, Any]) -> None:
    """Raise `CheckpointError` where the numbers of a run's data do not fit together."""
    if len(data.get("percentiles", ())) not in (0, 101):
        raise CheckpointError(f"{path}: dataset.percentiles has {len(data['percentiles'])} entries, expected 101")
    for name, found in data.get("histograms", {}).items():
        counts, edges = found["counts"], found["edges"]
        if not counts or len(edges) != len(counts) + 1 or sorted(edges) != edges or min(counts) < 0:
            raise CheckpointError(f"{path}: dataset.histograms.{name}: not the counts and edges of a histogram")


def _read_results(folder: Path, name: str, kind: Any) -> Any:
    """A file of a run's results; None where there is none."""
    path = folder / "results" / f"{name}.json"
    if not path.exists():
        return None
    document = read_json(path, kind)
    if wrong := too_long(document, ("results", "measures", "held_out", "checkpoint")):
        raise CheckpointError(f"{path}: {wrong}")
    if len(document.get("results", ())) > MOST_TARGETS:
        raise CheckpointError(f"{path}: {len(document['results'])} targets, expected at most {MOST_TARGETS}")
    if _has_larger(document):
        raise CheckpointError(f"{path}: a number beyond {LARGEST:g}, which no chart can show")
    return document


def _has_larger(value: Any) -> bool:
    """Whether a JSON value holds a number beyond `LARGEST`."""
    if isinstance(value, dict):
        return any(map(_has_larger, value.values()))
    if isinstance(value, list):
        return any(map(_has_larger, value))
    return isinstance(value, int | float) and abs(value) > LARGEST


def read_log(path: Path) -> dict[str, Curve]:
    """The curves of a run's log; none where there is no log. A last line that was cut short is left out.

    Raises:
        CheckpointError: a line is not one that a training writes.
    """
    if not path.exists():
        return {}
    if path.stat().st_size > MOST_JSON:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected at most {MOST_JSON}")
    curves: dict[str, Curve] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for i, line in enumerate(lines):
        if not line.endswith("\n"):
            break
        try:
            values = parse_json(line)
            kind, step = values["kind"], values["step"]
            numbers = {name: float(value) for name, value in values.items() if name not in ("kind", "step")}
            if kind not in ("train", "evaluation") or isinstance(step, bool) or not isinstance(step, int):
                raise ValueError
            if _has_larger(step) or any(math.isfinite(value) and _has_larger(value) for value in numbers.values()):
                raise ValueError
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError):
            raise CheckpointError(f"{path}: line {i + 1} is not one of a training's log") from None
        for name, value in numbers.items():
            if math.isfinite(value):
                curves.setdefault(f"{kind}/{name}", []).append((step, value))
    return curves


def _films(folder: Path) -> tuple[Film, ...]:
    """The films in a run's folder of films; other files there are not looked at."""
    named = [(FILM.fullmatch(path.name), path) for path in folder.glob("target-*.mp4")]
    films = [Film(float(match[1]), path) for match, path in named if match and path.is_file()]
    return tuple(
        sorted((film for film in films if math.isfinite(film.target_return)), key=lambda film: film.target_return)
    )
