"""A run sent to the Hugging Face hub: what is sent, and the commit it becomes. No torch.

One checkpoint is sent, as the only one of its repository:

    README.md                         the model card
    run.json                          what the run is; of places on this machine the last name only
    checkpoints/step-N/               model.safetensors, run.json and a manifest of both; no state of the optimizer
    calibration-last.json             if it holds for that checkpoint
    results/                          the scores of that checkpoint and their picture
    replay.mp4                        the film of the highest target in the run's results/
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dt.asking.calibration import from_json
from dt.errors import HubError
from dt.learning.description import read_description
from dt.sharing.card import Card, HeldOut, Results
from dt.sharing.hub import RUN_FILE
from envs.datasets.fetching import hub_reason, quiet_in_files
from envs.reading.flat_files import is_flat
from transformer.errors import CheckpointError
from transformer.files import read_json
from transformer.runs.checkpoint import best_checkpoint, manifest_text, newest_checkpoint, step_of
from transformer.runs.console import tell
from transformer.runs.folder import check_run

OURS = re.compile(rf"{RUN_FILE.pattern}|README\.md|replay\.mp4|results/target-against-achieved\.png", re.ASCII)
"""Files of a repository that `dt push` writes, and replaces or removes when it sends another checkpoint there."""

FOLDERS = re.compile(r"(?<![\w.-])(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s]+)+[/\\](?=[^/\\\s])")
"""The folders of an absolute path inside a text."""

UNTOUCHED = (".gitattributes", ".gitignore", "LICENSE", "README.md")
"""Files that a repository may hold before a run is sent there."""


@dataclass
class Package:
    """What is sent. files: by name in the repository, a file or its content. left_out: what is not, and why.

    environment: id of the run's.
    """

    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    environment: str | None = None

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    def add_json(self, name: str, document: Any) -> bytes:
        """Add a JSON file; returns its content."""
        content = (json.dumps(document, indent=1) + "\n").encode()
        self.files[name] = content
        return content


def package_run(run: Path, name: str, which: Literal["last", "best"] = "last") -> Package:
    """What of a run is sent to a repository.

    Args:
        run: the run's folder.
        name: USER/NAME, for the card.
        which: "last", or "best", the checkpoint that scored best during training.

    Raises:
        CheckpointError: the folder is not a run, or the checkpoint cannot be used.
    """
    check_run(run)
    checkpoint = (best_checkpoint if which == "best" else newest_checkpoint)(run, report=tell)
    document = without_places(read_description(checkpoint / "run.json"))
    package = Package(environment=document["environment"] and document["environment"]["id"])
    package.files["README.md"] = b""  # the first of the list; written when the rest is known
    content = package.add_json("run.json", document)
    folder, model = f"checkpoints/{checkpoint.name}", read_json(checkpoint / "manifest.json")["sha256"]
    hashes = {"model.safetensors": model["model.safetensors"], "run.json": hashlib.sha256(content).hexdigest()}
    package.files[f"{folder}/model.safetensors"] = checkpoint / "model.safetensors"
    package.files[f"{folder}/run.json"] = content
    package.files[f"{folder}/manifest.json"] = manifest_text(step_of(checkpoint), hashes).encode()
    calibrated = _add_calibration(package, run / f"calibration-{which}.json", hashes["model.safetensors"])
    card = Card(name, document, checkpoint.name, calibrated=calibrated, **_add_results(package, run, which, checkpoint))
    package.files["README.md"] = card.text().encode()
    return package


def without_places(document: Mapping[str, Any]) -> dict[str, Any]:
    """A run.json in which a place on this machine is its last name: it is of no use elsewhere, and may be private."""
    data = dict(document["dataset"])
    parts = data.get("parts", [])
    places = {part["source"]: last_name(part["source"]) for part in parts if part["source"] is not None}
    if parts:
        data["parts"] = [{**part, "source": places.get(part["source"])} for part in parts]
    if "notes" in data:
        data["notes"] = [_without_folders(note, places) for note in data["notes"]]
    known = {"imported": last_name(document["imported"])} if "imported" in document else {}
    return {**document, "dataset": data, **known}


def last_name(source: str) -> str:
    """The last name of a place on this machine; a Minari id, or a name on the hub, as it is."""
    path = Path(source)
    is_place = "://" not in source and (path.is_absolute() or path.exists() or is_flat(path))
    return path.name if is_place else source


def _without_folders(note: str, places: Mapping[str, str]) -> str:
    """A text in which known places are their last names, and absolute paths have no folders."""
    for place, name in places.items():
        note = note.replace(place, name)
    return FOLDERS.sub("", note)


def _add_calibration(package: Package, path: Path, model: str) -> bool:
    """Add a calibration that is of this model. model: SHA-256 of its weights."""
    if not path.is_file():
        return False
    try:
        document = read_json(path)
        holds = from_json(document).binding.get("checkpoint") == model
    except ValueError:
        holds = False
    if holds:
        package.add_json("calibration-last.json", document)
    else:
        package.left_out.append(f"{path.name}: not of this checkpoint")
    return holds


def _add_results(package: Package, run: Path, which: str, checkpoint: Path) -> dict[str, Any]:
    """Add what the checkpoint has earned, its picture and a film; returns what the card says of them."""
    suffix = "" if which == "last" else f"-{which}"
    said: dict[str, Any] = {}
    where = (package.environment, checkpoint.name)
    for key, kind, path, to in (
        ("results", Results, run / "results" / f"{which}.json", "results/last.json"),
        ("held_out", HeldOut, run / "results" / f"held-out{suffix}.json", "results/held-out.json"),
    ):
        if (document := _results_of(package, path, kind, where)) is not None:
            package.add_json(to, document)
            said[key] = document
    if not said:
        path = run / "results" / f"{which}.json"
        package.left_out.append(f"scores: dt evaluate {run} --checkpoint {which} --json {path} writes them")
    picture = run / "results" / f"target-against-achieved{suffix}.png"
    if "results" in said and picture.is_file():
        package.files["results/target-against-achieved.png"] = picture
        said["picture"] = "results/target-against-achieved.png"
    if film := max((run / "results").glob("*.mp4"), key=_target_of, default=None):
        package.files["replay.mp4"] = film
        said["film"] = "replay.mp4"
    return said


def _results_of(package: Package, path: Path, kind: Any, where: tuple[str | None, str]) -> Any:
    """The JSON of an evaluation, None, with the reason, where there is none. where: its environment and checkpoint."""
    if not path.is_file():
        return None
    try:
        document = read_json(path, kind)
    except CheckpointError as error:
        package.left_out.append(str(error))
        return None
    environment, checkpoint = where
    if document["checkpoint"] != checkpoint:
        package.left_out.append(f"{path}: of {document['checkpoint'][:40]}, not of {checkpoint}")
        return None
    if kind is Results and document["environment"] != environment:
        package.left_out.append(f"{path}: in {document['environment'][:80]}, the run's environment is {environment}")
        return None
    if "partial" in document:
        package.left_out.append(f"{path}: the evaluation was stopped before its end")
        return None
    return document


def _target_of(film: Path) -> tuple[float, str]:
    """What sorts the films of a run: their target returns, as `dt evaluate --video` names them."""
    try:
        return float(film.stem.removeprefix("target-")), film.name
    except ValueError:
        return float("-inf"), film.name


def send(package: Package, name: str, private: bool = False) -> str:
    """Send a package to a repository in one commit, atomically; returns the commit.

    The repository is made if there is none. One that holds something else is refused, and so is a public one where
    a private one is asked for.

    Args:
        package: what is sent.
        name: USER/NAME.
        private: a new repository can be seen by its owner only.

    Raises:
        HubError: the hub or the way to it refused; the message fits on one line.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    (checkpoint,) = {path.split("/")[1] for path in package.files if path.startswith("checkpoints/")}
    try:
        with quiet_in_files():
            api.create_repo(name, private=private, exist_ok=True)
            there = api.model_info(name)
            if private and there.private is False:
                raise HubError(f"{name}: exists and is public; make it private on its page, or leave --private out")
            stale = _replaced([file.rfilename for file in there.siblings or ()], name) - package.files.keys()
            operations: list[Any] = [huggingface_hub.CommitOperationDelete(path) for path in sorted(stale)]
            for path, content in package.files.items():
                operations.append(huggingface_hub.CommitOperationAdd(path, content))
            return str(api.create_commit(name, operations, commit_message=f"Send {checkpoint}").oid)
    except HubError:
        raise
    except Exception as error:  # the hub's client raises errors of many kinds
        raise HubError(f"{name}: cannot be sent ({hub_reason(error)}); nothing of the run is published") from None


def _replaced(there: Sequence[str], name: str) -> set[str]:
    """Files of an earlier push; a repository of other things raises `HubError`."""
    others = [path for path in there if not OURS.fullmatch(path) and path not in UNTOUCHED]
    if others and "run.json" not in there:
        raise HubError(f"{name}: holds {len(there)} files of something else, such as {others[0][:80]}. Name a new one.")
    return {path for path in there if RUN_FILE.fullmatch(path) or (path != "README.md" and OURS.fullmatch(path))}


def checked_name(repository: str) -> str:
    """USER/NAME, also where it is given as hf://USER/NAME; another form raises `CheckpointError`."""
    from dt.sharing.hub import SCHEME, repository_of

    name = repository.removeprefix(SCHEME)
    if "@" in name:
        raise CheckpointError(f"{repository[:80]}: a revision cannot be sent to, expected USER/NAME")
    return repository_of(SCHEME + name).name
