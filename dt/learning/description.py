"""What a run's run.json may say, field by field, and the one way to read it: it may come from anywhere. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from dt.config import Config
from envs.errors import DataError, EnvError
from envs.reading.options import ReadingOptions
from envs.simulate.spec import EnvironmentSpec
from transformer.config import type_error
from transformer.errors import CheckpointError, ConfigError
from transformer.files import read_json
from transformer.runs.checkpoint import SCHEMA
from transformer.runs.folder import check_run


class PartDocument(TypedDict):
    """A dataset that a run learned from, as `envs.datasets.dataset.DatasetSource`."""

    name: str
    source: str | None
    fingerprint: str
    fraction: float
    columns: NotRequired[dict[str, list[str]]]
    episode_length: NotRequired[int]
    file_is_episode: NotRequired[bool]
    last_row_is_final: NotRequired[bool]
    leave_out: NotRequired[list[str]]
    reward: NotRequired[str]


class HistogramDocument(TypedDict):
    """As `dt.statistics.histogram`."""

    counts: list[int]
    edges: list[float]


class HistogramsDocument(TypedDict):
    """Of the episodes that a run learned from."""

    returns: HistogramDocument
    lengths: HistogramDocument


class DataDocument(TypedDict):
    """All that a run learned from; an imported one may know only name and targets."""

    name: str
    targets: list[float]
    fingerprint: NotRequired[str]
    parts: NotRequired[list[PartDocument]]
    episodes: NotRequired[int]
    steps: NotRequired[int]
    maximum: NotRequired[float]
    percentiles: NotRequired[list[float]]
    histograms: NotRequired[HistogramsDocument]
    notes: NotRequired[list[str]]


class EnvironmentDocument(TypedDict):
    """Where a run is played, as `EnvironmentSpec.to_json`."""

    id: str
    kwargs: NotRequired[dict[str, Any]]
    max_episode_steps: NotRequired[int | None]
    leave_out: NotRequired[list[str]]


class ReferenceDocument(TypedDict):
    """As `envs.simulate.scores.Reference`."""

    minimum: float
    maximum: float
    source: str


DESCRIBED = ("dataset", "environment", "reference", "imported", "scored_by", "versions")
"""Fields of a run.json that are printed or gone through; spaces and configuration have limits of their own."""

LONGEST, MOST_TARGETS = 10_000, 1_000
"""Characters of a text, entries of a list, and target returns; each is played for a while."""


class RunDocument(TypedDict):
    """A run.json; `Config.from_json` looks into `config`, `space_from_json` into the spaces."""

    config: dict[str, Any]
    max_timesteps: int
    units: NotRequired[dict[str, dict[str, dict[str, Any]]]]
    observation_space: str
    action_space: str
    dataset: DataDocument
    environment: EnvironmentDocument | None
    reference: ReferenceDocument | None
    imported: NotRequired[str]
    scored_by: NotRequired[str | None]


def read_description(path: Path) -> dict[str, Any]:
    """The run.json of a Decision Transformer, as this version writes it; any other raises `CheckpointError`."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("kind") != "decision-transformer":
        raise CheckpointError(f"{path}: not a Decision Transformer's run")
    if document.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: schema {document.get('schema')}, this version reads {SCHEMA}")
    if wrong := type_error(document, RunDocument) or too_long(document):
        raise CheckpointError(f"{path}: {wrong}")
    try:
        Config.from_json(document["config"])
        environment_in(document)
        for part in document["dataset"].get("parts", ()):
            reading_in(part)
    except (ConfigError, EnvError, DataError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return document


def too_long(document: Mapping[str, Any], names: Sequence[str] = DESCRIBED) -> str | None:
    """Which text or list in these fields is longer than any that is written; None where none is."""
    waiting: list[tuple[str, Any]] = [(name, document.get(name)) for name in names]
    while waiting:
        name, value = waiting.pop()
        most = MOST_TARGETS if "targets" in name else LONGEST
        if isinstance(value, str | list | dict) and len(value) > most:
            kind = "characters" if isinstance(value, str) else "entries"
            return f"{name} has {len(value)} {kind}, expected at most {most}"
        if isinstance(value, dict):
            waiting += [(f"{name}: a name in it", key) for key in value]
            waiting += [(f"{name}.{key}"[:200], each) for key, each in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{name}[{i}]", each) for i, each in enumerate(value)]
    return None


def read_config(path: Path) -> Config:
    """The configuration of a run, or of a JSON file; it may come from anywhere.

    Args:
        path: a run's folder, its run.json, or a file of what `dt train --print-config` prints.

    Raises:
        CheckpointError: the file cannot be read, or is not a run's.
        ConfigError: it is not a configuration of this version.
    """
    if path.is_dir():
        check_run(path)
        path = path / "run.json"
    document = read_json(path)
    if isinstance(document, dict) and "config" in document:
        document = read_description(path)["config"]
    try:
        return Config.from_json(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def environment_in(document: dict[str, Any]) -> EnvironmentSpec | None:
    """The environment of a description, None where it names none."""
    return EnvironmentSpec.from_json(document["environment"]) if document["environment"] else None


def reading_in(part: Mapping[str, Any]) -> ReadingOptions:
    """How a part of the data was read."""
    return ReadingOptions.from_json(part)


def left_out_in(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts of the observations that a run left out. data: the `dataset` of its description."""
    parts = data.get("parts", ())
    return reading_in(parts[0]).leave_out if parts else ()
