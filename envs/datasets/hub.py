"""Datasets of the Hugging Face hub, by names such as hf://datasets/USER/NAME, kept by their revision.

    hf://datasets/USER/NAME[@REVISION][/PATH]     a whole dataset, or one file of it
    CACHE/hub/USER/NAME/revisions.json            the commit that each fetched revision stood for
    CACHE/hub/USER/NAME/COMMIT/...                its files, without pictures and weights

Nothing is fetched unless the user asks for it. What was fetched is a stranger's file, read with all limits.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from envs.datasets.array_files import cache_folder
from envs.datasets.fetching import Repository
from envs.errors import DataError
from envs.reading.dqn_replay import is_replay
from envs.reading.flat_files import is_flat
from envs.reading.lerobot import is_lerobot
from envs.reading.minari_folders import MARKS
from envs.reading.readers import check_all_inside

SCHEME = "hf://datasets/"
"""What the name of a dataset on the hub begins with."""

LEFT_THERE = ("*.mp4", "*.avi", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.zip")
"""Files that are not fetched: no reader takes them."""

NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+?))?((?:/[\w. +=,()-]+)*)", re.ASCII)
"""USER/NAME, a revision and a path."""


@dataclass(frozen=True)
class HubName:
    """A dataset on the hub, or a file of it."""

    repository: str
    revision: str
    path: str  # below the repository; empty for all of it

    @staticmethod
    def of(source: str) -> "HubName":
        """From hf://datasets/USER/NAME[@REVISION][/PATH]; another form raises `DataError`."""
        match = NAME.fullmatch(source.removeprefix(SCHEME).rstrip("/"))
        if match is None or any(part in ("", ".", "..") for part in source.removeprefix(SCHEME).rstrip("/").split("/")):
            raise DataError(f"{source[:80]}: not a name on the hub, expected {SCHEME}USER/NAME[@REVISION][/PATH]")
        return HubName(match[1], match[2] or "main", match[3].strip("/"))

    def at(self, commit: str) -> str:
        """The same as a source for `load`, at one commit for good."""
        return f"{SCHEME}{self.repository}@{commit}" + (f"/{self.path}" if self.path else "")

    @property
    def label(self) -> str:
        """What the dataset is called."""
        return Path(self.path).stem or self.repository.partition("/")[2]

    @property
    def folder(self) -> Path:
        """Where all that was fetched of the repository is."""
        return cache_folder() / "hub" / self.repository

    def place(self, commit: str) -> Path:
        """Where the files of one commit are: all of them, or the one that was named."""
        one = hashlib.sha256(self.path.encode()).hexdigest()[:8]
        return self.folder / (f"{commit}-{one}" if self.path else commit)


def find_on_hub(source: str, download: bool) -> tuple[Path, str]:
    """The file or folder of a dataset on the hub, and its name with the commit that it is of.

    download: fetch it where that revision is not here.
    """
    name = HubName.of(source)
    repository = Repository("dataset", name.repository, name.revision, name.folder)
    commit = repository.commit
    if not name.place(commit).is_dir():
        if not download:
            raise DataError(f"{source}: not fetched yet (--download fetches it)")
        commit = repository.fetch(name.place, allow=[name.path] if name.path else None, ignore=LEFT_THERE)
    folder = name.place(commit)
    check_all_inside(folder, folder)
    return _dataset_in(name, commit, folder), name.at(commit)


def _dataset_in(name: HubName, commit: str, folder: Path) -> Path:
    """What is to be read of a fetched folder: the folder itself where it is a dataset, or its only file."""
    if name.path:
        path = folder / name.path
        if not path.exists():
            raise DataError(f"{name.at(commit)}: no such file in it")
        return path
    if is_lerobot(folder) or is_replay(folder) or any((folder / mark).exists() for mark in MARKS):
        return folder
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if is_flat(path))
    files = [path for path in found if not path.parts[0].startswith(".") and path.suffix != ".txt"]
    if len(files) == 1:
        return folder / files[0]
    if files:
        names = " ".join(f"{SCHEME}{name.repository}/{path.as_posix()}" for path in files[:3])
        raise DataError(f"{name.at(commit)}: {len(files)} files in it, name one: {names}")
    return folder  # reading it fails, and the message names a way
