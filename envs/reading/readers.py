"""What every reader of recorded episodes gives and shares: a recording's header, its metadata, how much it may hold.

A reader says what a file holds; `envs.datasets` judges it. There is one for Minari's folders
(`minari_folders`), for flat files (`flat_files`) and for DQN replay buffers (`dqn_replay`). A recording is data and
nothing else: no environment is built, no pickle loaded and no module imported because a file asked for it.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.errors import DataError, EnvError, SpaceError, problems_of
from envs.reading.options import RewardRule
from envs.simulate.scores import Reference, reference_for
from envs.simulate.spec import EnvironmentSpec
from envs.space_json import space_from_json
from envs.spaces import LEAF_KINDS, Leaves, leaf_spaces, printable, without

PACKAGED = Path(__file__).parent.parent / "data"
"""Datasets that ship with the package: `hopper/replay-v0` is `hopper-replay-v0.npz`."""

SPACES = ("observation_space", "action_space")
"""A recording's spaces, as Minari's metadata calls them."""

OWN_METADATA = "the dataset's own metadata"
"""Where reference returns come from that a dataset brings along."""

PROVENANCE = ("description", "algorithm_name", "recorded")
"""Keys of metadata that say how a recording was made: two of Minari's, and `recorded`, an object of this package."""

SMALL, MOST_GROWTH = 64 << 20, 300
"""A file may hold `SMALL` bytes of numbers, or `MOST_GROWTH` times its own size where that is more: pictures compressed
a hundredfold are usual, and a file that grows ten thousandfold is meant to fill the memory."""

MOST_METADATA = 16 << 20
"""Characters of metadata: the bounds of a picture's space may need a few millions."""


Missing = Mapping[tuple[str, str], NDArray[np.int64]]
"""By field and column the rows of a table in which nothing is."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a recording, apart from its numbers."""

    name: str
    source: Path | str
    spaces: Mapping[str, Space[Any]]  # those of `SPACES` that anybody declares
    inferred: tuple[str, ...] = ()  # those of `SPACES` that are there because the numbers say so
    borrowed: tuple[str, ...] = ()  # those of `SPACES` that are the environment's
    environment: EnvironmentSpec | None = None
    reference: Reference | None = None
    num_episodes: int | None = None  # as the metadata has it
    num_steps: int | None = None  # the same
    repeats_final: bool = False  # the final observations are no observations: they fill up Minari's layout
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)  # those of `PROVENANCE`
    missing: Missing = field(default_factory=dict)  # of a table
    rows: NDArray[np.int64] | None = None  # the row of each step, of a table that was sorted
    last_row_is_final: bool = False  # the last row of each episode holds an observation only
    reward: RewardRule | None = None  # what the user says of rewards
    rewards_from: str = "recording"  # as `Dataset` has it
    leave_out: tuple[str, ...] = ()  # parts of the observations that are in its arrays and are to be left out
    labels: tuple[str, ...] = ()  # what the file calls each episode, where some were left out


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode as its file has it, not yet looked at."""

    label: str
    observations: Leaves
    actions: Leaves
    rewards: NDArray[Any]
    terminations: NDArray[Any]
    truncations: NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        flags = (self.rewards, self.terminations, self.truncations)
        return sum(array.nbytes for array in (*self.observations.values(), *self.actions.values(), *flags))


@dataclass(frozen=True)
class Recording:
    """What a reader makes of a source, whatever its format: a header, and arrays or episodes.

    arrays: by the names of `FIELDS`, in the form that `envs.from_arrays` takes. Empty where there are episodes.
    episodes: one by one, in order; one that cannot be read comes as its error. None where there are arrays.
    num_actions: counts the actions of a format that numbers them and declares no space.
    """

    header: Header
    arrays: Mapping[str, Any] = field(default_factory=dict)
    episodes: Iterable[RecordedEpisode | DataError] | None = None
    num_actions: Callable[[], int] | None = None


def minari_root() -> Path:
    """Where Minari keeps its datasets. A user without a home folder, as in a container, raises `DataError`."""
    if named := os.environ.get("MINARI_DATASETS_PATH"):
        return Path(named)
    try:
        return Path.home() / ".minari" / "datasets"
    except RuntimeError:
        raise DataError("this user has no home folder for Minari's datasets; MINARI_DATASETS_PATH names one") from None


def spaces_from_json(text: str) -> dict[str, Space[Any]]:
    """Spaces that a user declares: JSON, or a JSON file's path; {"observation_space": ..., "action_space": ...}."""
    example = '{"action_space": {"type": "Discrete", "n": 3}}'
    is_path = not text.lstrip().startswith("{")
    if is_path and not os.path.exists(text):
        raise DataError(f"--spaces: {text[:80]}: no such file; JSON, if that is meant, is such as {example}")
    document = read_metadata(Path(text)) if is_path else parse_metadata("--spaces", text)
    if not document or document.keys() - set(SPACES):
        found = f"found {sorted(document)}, and not such as {example}"
        raise DataError(f"--spaces: expected observation_space, action_space or both, {found}")
    with problems_of("--spaces"):
        return declared_spaces(document)


def declared_spaces(document: Mapping[str, Any], leave_out: tuple[str, ...] = ()) -> dict[str, Space[Any]]:
    """Those of `SPACES` that a JSON object holds, each as Minari writes it. leave_out: as in `ReadingOptions`."""
    left = {"observation_space": leave_out, "action_space": ()}
    return {name: _space(document, name, left[name]) for name in SPACES if name in document}


def read_metadata(path: Path) -> dict[str, Any]:
    """A metadata file's JSON object; `DataError` where it is none, or far too long."""
    try:
        if path.stat().st_size > 4 * MOST_METADATA:
            raise DataError(f"{path}: {path.stat().st_size} bytes, metadata has at most {MOST_METADATA} characters")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file") from None
    return parse_metadata(str(path), text)


def parse_metadata(where: str, text: str) -> dict[str, Any]:
    """The same from a text. where: what an error names."""
    if len(text) > MOST_METADATA:
        raise DataError(f"{where}: {len(text)} characters, metadata has at most {MOST_METADATA}")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: metadata is no JSON object")
    return metadata


def header_of(
    where: str,
    source: Path,
    metadata: dict[str, Any],
    given: Mapping[str, Space[Any]],
    leave_out: tuple[str, ...] = (),
) -> Header:
    """What a recording's metadata says. Spaces are read here and never by building the environment.

    where: what an error names. given: spaces by name, instead of the metadata's own. leave_out: as in
    `ReadingOptions`; it applies to the environment too.
    """
    undeclared = {name: value for name, value in metadata.items() if name not in given}
    specification = metadata.get("eval_env_spec") or metadata.get("env_spec")
    try:
        environment = EnvironmentSpec.from_json(specification) if specification else None
        with problems_of(where):
            spaces = {**declared_spaces(undeclared, leave_out), **given}
    except EnvError as error:
        raise DataError(f"{where}: {error}") from None
    environment = environment and environment.leaving_out(leave_out)
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if isinstance(low, int | float) and isinstance(high, int | float) and -1e300 < low < high < 1e300:
        reference: Reference | None = Reference(float(low), float(high), OWN_METADATA)
    else:
        reference = reference_for(environment)
    return Header(
        name=printable(str(metadata.get("dataset_id") or source.stem))[:200],
        source=source,
        environment=environment,
        reference=reference,
        provenance={name: metadata[name] for name in PROVENANCE if name in metadata},
        spaces=spaces,
    )


def _space(metadata: Mapping[str, Any], name: str, leave_out: tuple[str, ...]) -> Space[Any]:
    try:
        space = space_from_json(metadata[name])
        space = without(space, leave_out) if leave_out else space
    except SpaceError as error:
        raise DataError(f"{name}: {error}") from None
    leaves = leaf_spaces(space)
    if odd := {path: leaf for path, leaf in leaves.items() if not isinstance(leaf, LEAF_KINDS)}:
        kinds = ", ".join(kind.__name__ for kind in LEAF_KINDS)
        can_go = name == "observation_space" and len(odd) < len(leaves)
        remedy = f"; --leave-out {' '.join(odd)} reads the rest" if can_go else ""
        kind = type(next(iter(odd.values()))).__name__
        raise DataError(f"{name}: {kind} is not supported; {kinds}, Dict and Tuple are{remedy}")
    return space


def check_is_file(path: Path) -> None:
    """Refuse a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: neither a file nor a folder")


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a file of a dataset's folder that is a link to what lies outside, or no file at all."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path}: a link to what lies outside {folder}, expected the data itself")
    if not path.is_dir():
        check_is_file(path)


def check_all_inside(below: Path | str, folder: Path) -> None:
    """The same for all that a folder holds: what is no link lies where the folder does, and need not be resolved."""
    with os.scandir(below) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                check_all_inside(entry.path, folder)
            elif not entry.is_file(follow_symlinks=False):
                check_inside(Path(entry.path), folder)


def most_bytes(path: Path) -> int:
    """Bytes of numbers that a file, or all files of a folder together, may hold once they are unpacked."""
    return max(SMALL, MOST_GROWTH * _size(path))


def too_much(path: Path) -> str:
    """What an error says of a file or folder that holds more."""
    return f"more than {most_bytes(path) >> 20} MB, which no file of {_size(path)} bytes should hold"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _way_for_type(array: NDArray[Any]) -> str:
    """What to do about an array of no numbers."""
    if array.dtype.names:
        return f"; a record: write each of {', '.join(array.dtype.names[:12])} as an array of its own"
    if array.dtype.kind in "US":
        words = {str(word).lower() for word in array.reshape(-1)[:1000]}
        if words <= {"true", "false"}:
            return '; text: array == "True" makes true and false of it'
        if all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", word) for word in words):
            return "; text: array.astype(float) makes numbers of it"
        return "; text: if these are choices, numpy.unique(array, return_inverse=True)[1] numbers them"
    ways = {
        "c": "; write its real and imaginary parts as two arrays",
        "M": "; write times as numbers, such as seconds: (t - t[0]) / numpy.timedelta64(1, 's')",
        "V": "; bytes without a type: if it is bfloat16, write it as float32",
        "O": "; if a row holds an episode, envs.from_episodes takes a mapping for each, from Python",
    }
    return ways.get(array.dtype.kind, "")


def as_numbers(array: NDArray[Any], where: str) -> NDArray[Any]:
    """The array in this machine's byte order, which torch wants; text, objects and records are refused."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: type {str(array.dtype)[:60]}, expected numbers{_way_for_type(array)}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
