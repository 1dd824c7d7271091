"""A repository of the Hugging Face hub, fetched at one commit, atomically: all of its files or none.

    FOLDER/revisions.json     the commit that each fetched revision stood for
    FOLDER/COMMIT/...         the files of that commit

Nothing else in this project speaks with the hub, except `dt push`. The access token is the hub client's own: it is
neither read into a file nor printed here.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from envs.datasets.temporary import temporary_folder
from envs.errors import DataError
from envs.reading.readers import parse_metadata

LOGIN = "log in with: hf auth login"


@dataclass(frozen=True)
class Repository:
    """A repository at a revision, and where all that is fetched of it is kept."""

    kind: Literal["dataset", "model"]
    name: str  # USER/NAME
    revision: str
    folder: Path

    @property
    def commit(self) -> str:
        """The commit that was fetched of the revision, or the revision itself, which may be a commit."""
        return str(self._commits().get(self.revision, self.revision))

    def _commits(self) -> dict[str, Any]:
        """By revision the commit that was fetched of it."""
        path = self.folder / "revisions.json"
        return parse_metadata(str(path), path.read_text(encoding="utf-8")) if path.exists() else {}

    def fetch(
        self,
        place: Callable[[str], Path],
        choose: Callable[[Sequence[str]], list[str]] | None = None,
        *,
        allow: Sequence[str] | None = None,
        ignore: Sequence[str] | None = None,
    ) -> str:
        """Fetch the revision; returns its commit.

        Args:
            place: the folder of a commit's files.
            choose: which files of the list that the hub gives are fetched; their names are taken as they are.
            allow: patterns of the files that are fetched, where there is no `choose`.
            ignore: patterns of the files that are not.

        Raises:
            DataError: the repository, the revision or a file cannot be fetched; the message fits on one line.
        """
        import huggingface_hub

        self.folder.mkdir(parents=True, exist_ok=True)
        api = huggingface_hub.HfApi()
        try:
            with quiet_in_files():
                ask = api.dataset_info if self.kind == "dataset" else api.model_info
                info = ask(self.name, revision=self.revision)
                commit = info.sha
                if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{7,64}", commit):
                    raise ValueError(f"commit {commit!r}")
                if not place(commit).is_dir():
                    if choose is not None:
                        allow = choose([file.rfilename for file in info.siblings or ()])
                    self._fetch_files(commit, place(commit), allow, ignore)
        except Exception as error:  # the hub's client raises errors of many kinds
            raise DataError(f"hf://{self._prefix}{self.name}: cannot be fetched ({hub_reason(error)})") from None
        self._remember(commit)
        return commit

    @property
    def _prefix(self) -> str:
        return "datasets/" if self.kind == "dataset" else ""

    def _fetch_files(self, commit: str, place: Path, allow: Sequence[str] | None, ignore: Sequence[str] | None) -> None:
        import huggingface_hub

        with temporary_folder(self.folder, ".fetching-") as temporary:
            huggingface_hub.snapshot_download(
                self.name,
                repo_type=self.kind,
                revision=commit,
                local_dir=temporary / "files",
                allow_patterns=None if allow is None else list(allow),
                ignore_patterns=None if ignore is None else list(ignore),
            )
            shutil.rmtree(temporary / "files" / ".cache", ignore_errors=True)  # the client's own notes
            (temporary / "files").rename(place)

    def _remember(self, commit: str) -> None:
        """Note which commit the revision stood for."""
        path = self.folder / "revisions.json"
        with temporary_folder(self.folder, ".writing-") as temporary:
            text = json.dumps({**self._commits(), self.revision: commit, commit: commit})
            (temporary / path.name).write_text(text, encoding="utf-8")
            (temporary / path.name).replace(path)


@contextmanager
def quiet_in_files() -> Iterator[None]:
    """No progress bars of the hub's client where standard error is a file or a CI log."""
    from huggingface_hub import utils

    bars: Any = utils
    if sys.stderr.isatty() or bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


def access_token() -> str | None:
    """The access token that the hub's client would use, None where the user is not logged in. Never print it."""
    import huggingface_hub

    return huggingface_hub.get_token()


def hub_reason(error: BaseException) -> str:
    """Why the hub, or the way to it, refused: one line, without the access token."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    token = access_token()
    responses = [getattr(each, "response", None) for each in chain]
    status = next((response.status_code for response in responses if response is not None), None)
    kinds = [type(each).__name__ for each in chain]
    if "RevisionNotFoundError" in kinds:
        return "no such revision"
    if "GatedRepoError" in kinds:
        return f"access to it must be asked for on its page; {LOGIN}"
    if status == 401 and token is not None:
        return f"the access token is not accepted; {LOGIN}"
    if status in (401, 404):
        return f"no such repository, or a private one that is not yours; {LOGIN}"
    if status == 403:
        return f"the access token does not allow it; {LOGIN}"
    text = next((line.strip() for line in str(chain[-1]).splitlines() if line.strip()), kinds[-1])
    if "Bearer" in text or (token and (token in text or ascii(token)[1:-1] in text)):
        return f"{kinds[-1]}; the access token may hold a character that none has; {LOGIN}"
    return text
