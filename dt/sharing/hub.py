"""Runs on the Hugging Face hub, by names such as hf://USER/NAME, kept by their commit.

    hf://USER/NAME[@REVISION]               a run that `dt push` has sent
    CACHE/hub-runs/USER/NAME/COMMIT/...     its files: those of a run's folder, and no other

Nothing is fetched unless the user asks for it. What was fetched is a stranger's run: opening it runs no code, and it
passes the same checks as any run's folder.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from envs.datasets.array_files import cache_folder
from envs.datasets.fetching import Repository
from envs.errors import DataError
from transformer.errors import CheckpointError

SCHEME = "hf://"
"""What the name of a run on the hub begins with."""

NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w-][\w.-]*(?:/[\w-][\w.-]*)*))?", re.ASCII)
"""USER/NAME and a revision; no part begins with a dot."""

RUN_FILE = re.compile(
    r"(run|best|calibration-(last|best))\.json"
    r"|checkpoints/step-\d{8,12}/((model|optimizer)\.safetensors|(run|state|manifest)\.json)"
    r"|results/(last|best|held-out|held-out-best)\.json",
    re.ASCII,
)
"""Files of a run that are fetched; pictures, films, logs and all others stay on the hub."""

MOST_FILES = 1000
"""Files of a run; a list that names more is refused."""


def on_hub(run: str | Path) -> bool:
    """Whether this names a run on the hub."""
    return isinstance(run, str) and run.startswith(SCHEME)


def repository_of(source: str) -> Repository:
    """The repository that hf://USER/NAME[@REVISION] names; another form raises `CheckpointError`."""
    match = NAME.fullmatch(source.removeprefix(SCHEME).rstrip("/"))
    if match is None or match["name"].startswith("datasets/"):
        raise CheckpointError(f"{source[:80]}: not the name of a run on the hub, expected {SCHEME}USER/NAME[@REVISION]")
    return Repository("model", match["name"], match["revision"] or "main", cache_folder() / "hub-runs" / match["name"])


def find_run(run: str | Path, download: bool = False) -> tuple[Path, str | None]:
    """The folder of a run, and its name with the commit if it is one of the hub's.

    Args:
        run: a run's folder, or hf://USER/NAME[@REVISION].
        download: fetch it from the hub if that revision is not here.

    Raises:
        CheckpointError: the name is not a run's, or the run is not here and cannot be fetched.
    """
    if not on_hub(run):
        return Path(run), None
    repository = repository_of(str(run))
    commit = repository.commit
    if not (repository.folder / commit).is_dir():
        if not download:
            raise CheckpointError(f"{run}: not fetched yet (--download, in Python download=True, fetches it)")
        try:
            commit = repository.fetch(lambda commit: repository.folder / commit, run_files)
        except DataError as error:
            raise CheckpointError(str(error)) from None
    return repository.folder / commit, f"{SCHEME}{repository.name}@{commit}"


def run_files(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that are a run's; `ValueError` where there is no run in it."""
    chosen = sorted(name for name in names if RUN_FILE.fullmatch(name))
    if "run.json" not in chosen or not any(name.endswith("/model.safetensors") for name in chosen):
        raise ValueError("there is no run in it, expected run.json and checkpoints/step-N/model.safetensors")
    if len(chosen) > MOST_FILES:
        raise ValueError(f"{len(chosen)} files of a run in it, expected at most {MOST_FILES}")
    return chosen
