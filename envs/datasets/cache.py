"""Flat arrays in files: a dataset that was read and checked once is mapped into memory the next time.

    CACHE/0f3a.../           named after what was asked for: the source's path, the spaces, the environment
      dataset.json           what it is, and the source's files with size and time; written last
      0.bin 1.bin ...        one array each

CACHE is the environment variable DECISION_TRANSFORMER_CACHE, or `decision-transformer` where the system keeps such
things. An entry appears by one rename, and one that is damaged, of another version or older than its source is made
again: it may be deleted at any time. Memory that is mapped is the system's to take back, so a dataset may be larger
than memory.
"""

import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.datasets.array_files import CacheError, array, cache_folder, new_file
from envs.datasets.temporary import temporary_folder
from envs.simulate.scores import Reference
from envs.simulate.spec import EnvironmentSpec
from envs.space_json import space_from_json, space_to_json
from envs.spaces import leaf_spaces, reason

FORMAT = 8
"""Version of the layout above, and of what a reader makes of a file."""

SMALLEST = 4 << 20
"""Bytes of a source: a smaller one is read as quickly as looked up."""

FRESH = 2_000_000_000
"""Nanoseconds: a file changed so lately may change again and bear the same time, so what is read of it is not kept."""


class Kept(NamedTuple):
    """What an entry of the cache holds: a `Dataset`'s fields, and its fingerprint."""

    fields: dict[str, Any]
    fingerprint: str


@dataclass(frozen=True)
class Entry:
    """Where the cache keeps what is read of a source, and how its files stand now."""

    folder: Path
    files: dict[str, list[int]]  # size and time of each

    @staticmethod
    def of(
        source: Path,
        given: Mapping[str, Space[Any]],
        environment: EnvironmentSpec | None,
        skip_bad: bool,
        options: Mapping[str, Any],
    ) -> "Entry | None":
        """The entry of a file or folder as it is asked for; None where it is so small that it is read each time."""
        found = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        stands = {str(path): path.stat() for path in found}
        if sum(each.st_size for each in stands.values()) < SMALLEST:
            return None
        key = {
            "source": str(source.resolve()),
            "spaces": {name: space_to_json(space) for name, space in given.items()},
            "environment": environment and environment.to_json(),
            "skip_bad": skip_bad,
            "options": dict(options),
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
        return Entry(cache_folder() / name, {path: [each.st_size, each.st_mtime_ns] for path, each in stands.items()})

    def read(self, *, verify: bool = False) -> Kept | None:
        """What is kept; None where there is no entry, or none that can be used.

        verify: hash it all, instead of looking only at sizes.
        Raises `CacheError` where another user made the entry: its numbers could be anything.
        """
        try:
            for path in (self.folder, *self.folder.iterdir()):
                _check_own(path)
            document = json.loads((self.folder / "dataset.json").read_text(encoding="utf-8"))
            if (document["format"], document["version"], document["files"]) != (*_versions(), self.files):
                return None
            arrays = [_opened(self.folder, each, verify) for each in document["arrays"]]
            fields = _fields(document, arrays)
            _check_arrays(fields)
            return Kept(fields, str(document["fingerprint"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            return None  # whatever is wrong with it, it is made again

    @contextmanager
    def building(self) -> Iterator[Path]:
        """A folder to fill, gone afterwards unless it was kept."""
        with ExitStack() as held:
            try:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                temporary = held.enter_context(temporary_folder(self.folder.parent, ".building-"))
            except OSError as error:
                raise CacheError(f"{self.folder.parent}: {reason(error)}") from None
            yield temporary

    def keep(self, building: Path, fields: Mapping[str, Any], fingerprint: str) -> bool:
        """Make what was built the entry; False where the source is so fresh that it is not kept."""
        if any(time.time_ns() - changed < FRESH for _, changed in self.files.values()):
            return False
        try:
            arrays = [_stored(building, *each) for each in _arrays(fields)]
            document = {**_document(fields), "files": self.files, "fingerprint": fingerprint, "arrays": arrays}
            (building / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
            for path in building.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            if self.folder.exists():  # stale or damaged
                with temporary_folder(self.folder.parent, ".removing-") as doomed:
                    self.folder.rename(doomed / "entry")
            building.rename(self.folder)
        except OSError as error:
            raise CacheError(f"{self.folder.parent}: {reason(error)}") from None
        return True


def _versions() -> tuple[int, str]:
    return FORMAT, version("decision-transformer")


def _arrays(fields: Mapping[str, Any]) -> Iterator[tuple[str, str | None, NDArray[Any]]]:
    """Field, leaf and array of each array of a dataset."""
    for name in ("observations", "final_observations", "actions"):
        for leaf, values in (fields[name] or {}).items():
            yield name, leaf, values
    for name in ("rewards", "offsets", "terminated", "truncated"):
        yield name, None, fields[name]


def _stored(folder: Path, field: str, leaf: str | None, values: NDArray[Any]) -> dict[str, Any]:
    """Where an array is in this folder; it is written unless it is there already."""
    path = Path(values.filename or "") if isinstance(values, np.memmap) else Path()
    if path.parent != folder:
        path = new_file(folder)
        np.ascontiguousarray(values).tofile(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    shape = {"type": values.dtype.str, "shape": list(values.shape)}
    return {"field": field, "leaf": leaf, "file": path.name, **shape, "sha256": digest}


def _opened(folder: Path, stored: Mapping[str, Any], verify: bool) -> tuple[str, str | None, NDArray[Any]]:
    path, kind, shape = folder / Path(stored["file"]).name, np.dtype(str(stored["type"])), tuple(stored["shape"])
    if kind.kind not in "biuf":  # bytes taken for the addresses of objects would crash the process
        raise ValueError(f"{path}: type {kind}")
    if min(shape) < 0 or path.stat().st_size != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{path}: not of its size")
    if verify:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != stored["sha256"]:
                raise ValueError(f"{path}: damaged")
    return stored["field"], stored["leaf"], array(path, kind, shape)


def _check_own(path: Path) -> None:
    """Raise `CacheError` where a path is another user's, and `ValueError` where it is no plain file or folder."""
    status = path.lstat()
    if hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid()):
        raise CacheError(f"{path} belongs to another user")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise ValueError(f"{path}: a link, a pipe or a device")


def _check_arrays(fields: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless the arrays are those of episodes, one after the other, in these spaces."""
    offsets, ends = fields["offsets"], (fields["terminated"], fields["truncated"])
    if offsets.ndim != 1 or offsets.dtype != np.int64 or offsets[0] != 0 or (np.diff(offsets) < 1).any():
        raise ValueError("offsets that do not rise")
    steps, episodes = int(offsets[-1]), len(offsets) - 1
    if fields["rewards"].shape != (steps,) or any(x.shape != (episodes,) or x.dtype != bool for x in ends):
        raise ValueError("rewards or ends of other episodes")
    for name, rows in (("observations", steps), ("actions", steps), ("final_observations", episodes)):
        space = fields["action_space" if name == "actions" else "observation_space"]
        for leaf, part in leaf_spaces(space).items():
            if fields[name] is not None and fields[name][leaf].shape != (rows, *(part.shape or ())):
                raise ValueError(f"{name}/{leaf} of another shape")


def _document(fields: Mapping[str, Any]) -> dict[str, Any]:
    """All of a dataset that is no array, as JSON."""
    environment, reference = fields["environment"], fields["reference"]
    return {
        **dict(zip(("format", "version"), _versions(), strict=True)),
        "name": fields["name"],
        "source": str(fields["source"]),
        "observation_space": space_to_json(fields["observation_space"]),
        "action_space": space_to_json(fields["action_space"]),
        "inferred": list(fields["inferred"]),
        "borrowed": list(fields["borrowed"]),
        "environment": environment and environment.to_json(),
        "reference": reference and vars(reference),
        "rewards_from": fields["rewards_from"],
        "notes": list(fields["notes"]),
        "told": dict(fields["provenance"]),  # the key of caches that are there already
    }


def _fields(document: Mapping[str, Any], arrays: list[tuple[str, str | None, NDArray[Any]]]) -> dict[str, Any]:
    """A dataset's fields again, the inverse of `_document` and `_arrays`; what is missing raises `KeyError`."""
    found = {(field, leaf): values for field, leaf, values in arrays}
    observation_space, action_space = (space_from_json(document[f"{kind}_space"]) for kind in ("observation", "action"))
    seen, done = leaf_spaces(observation_space), leaf_spaces(action_space)
    finals = any(field == "final_observations" for field, _ in found)
    env, reference = document["environment"], document["reference"]
    return {
        "name": str(document["name"]),
        "source": Path(document["source"]),
        "observation_space": observation_space,
        "action_space": action_space,
        "observations": {leaf: found["observations", leaf] for leaf in seen},
        "final_observations": {leaf: found["final_observations", leaf] for leaf in seen} if finals else None,
        "actions": {leaf: found["actions", leaf] for leaf in done},
        "rewards": found["rewards", None],
        **{name: np.array(found[name, None]) for name in ("offsets", "terminated", "truncated")},
        "inferred": tuple(document["inferred"]),
        "borrowed": tuple(document["borrowed"]),
        "environment": EnvironmentSpec.from_json(env) if env else None,
        "reference": Reference(**reference) if reference else None,
        "rewards_from": str(document["rewards_from"]),
        "notes": tuple(document["notes"]),
        "provenance": document["told"],
    }
