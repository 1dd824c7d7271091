"""Datasets of the Hugging Face hub, by names such as hf://datasets/USER/NAME, kept by their revision.

    hf://datasets/USER/NAME[@REVISION][/PATH]     a whole dataset, or one file of it
    CACHE/hub/USER/NAME/revisions.json            the commit that each fetched revision stood for
    CACHE/hub/USER/NAME/COMMIT/...                its files, without pictures and weights

Nothing is fetched unless the user asks for it. What was fetched is a stranger's file, read with all limits.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from envs.datasets.cache import cache_folder
from envs.datasets.temporary import temporary_folder
from envs.errors import DataError
from envs.reading.dqn_replay import is_replay
from envs.reading.flat_files import is_flat
from envs.reading.lerobot import is_lerobot
from envs.reading.minari_folders import MARKS
from envs.reading.readers import check_all_inside, parse_metadata
from envs.spaces import reason

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


def on_hub(source: str) -> bool:
    """Whether a source is a name on the hub."""
    return source.startswith(SCHEME)


def find_on_hub(source: str, download: bool) -> tuple[Path, str]:
    """The file or folder of a dataset on the hub, and its name with the commit that it is of.

    download: fetch it where that revision is not here.
    """
    name = HubName.of(source)
    commit = _known(name).get(name.revision, name.revision)
    if not name.place(commit).is_dir():
        if not download:
            raise DataError(f"{source}: not fetched yet (--download fetches it)")
        commit = _fetch(name)
    folder = name.place(commit)
    check_all_inside(folder, folder)
    return _dataset_in(name, commit, folder), name.at(commit)


def _known(name: HubName) -> dict[str, str]:
    """By revision the commit that was fetched of it."""
    path = name.folder / "revisions.json"
    return parse_metadata(str(path), path.read_text(encoding="utf-8")) if path.exists() else {}


def _fetch(name: HubName) -> str:
    """Fetch a revision; its commit. The folder is there completely or not at all."""
    import huggingface_hub

    name.folder.mkdir(parents=True, exist_ok=True)
    try:
        commit = huggingface_hub.HfApi().dataset_info(name.repository, revision=name.revision).sha
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{7,64}", commit):
            raise ValueError(f"commit {commit!r}")
        if not name.place(commit).is_dir():
            with temporary_folder(name.folder, ".fetching-") as temporary:
                huggingface_hub.snapshot_download(
                    name.repository,
                    repo_type="dataset",
                    revision=commit,
                    local_dir=temporary / "files",
                    allow_patterns=[name.path] if name.path else None,
                    ignore_patterns=list(LEFT_THERE),
                )
                (temporary / "files").rename(name.place(commit))
    except Exception as error:  # the hub's client raises errors of many kinds
        raise DataError(f"{SCHEME}{name.repository}: cannot be fetched ({reason(error)})") from None
    known = {**_known(name), name.revision: commit, commit: commit}
    with temporary_folder(name.folder, ".writing-") as temporary:
        (temporary / "revisions.json").write_text(json.dumps(known), encoding="utf-8")
        (temporary / "revisions.json").replace(name.folder / "revisions.json")
    return commit


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
    return folder  # whose refusal names a way
