"""Load a dataset: read -> declare -> assemble -> check, and a cache around them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gymnasium.spaces import Space

from envs.datasets.array_files import CacheError
from envs.datasets.assemble import assemble
from envs.datasets.cache import Entry
from envs.datasets.check import check
from envs.datasets.dataset import Dataset
from envs.datasets.declare import declare
from envs.datasets.finding import locate
from envs.datasets.hub import HubName
from envs.errors import DataError
from envs.reading.dispatch import read
from envs.reading.options import ReadingOptions, RewardRule
from envs.simulate.spec import EnvironmentSpec
from envs.space_json import space_to_json

CacheUse = Literal["use", "verify", "off"]
"""What `load` may do with what it read and checked before."""


def load(
    source: str | Path,
    *,
    download: bool = False,
    spaces: Mapping[str, Space[Any]] | None = None,
    environment: EnvironmentSpec | None = None,
    cache: CacheUse = "use",
    skip_bad_episodes: bool = False,
    columns: Mapping[str, str | Iterable[str]] | None = None,
    episode_length: int | None = None,
    file_is_episode: bool = False,
    last_row_is_final: bool = False,
    leave_out: str | Iterable[str] = (),
    reward: RewardRule | None = None,
) -> Dataset:
    """Read and check a dataset.

    Args:
        source: a Minari id or folder; a flat file (`.npz`, D4RL's `.hdf5`, `.csv`, `.parquet`); a LeRobot folder; a
            folder of DQN replay files; or `hf://datasets/USER/NAME[@REVISION][/PATH]` of the Hugging Face hub. An id is
            looked up among the datasets that ship with the package, then under Minari's root (the environment variable
            MINARI_DATASETS_PATH, or ~/.minari/datasets).
        download: fetch an id that is not there from Minari's server, and a dataset of the hub from there.
        spaces: "observation_space", "action_space" or both, instead of what the file says.
        environment: the environment that the data is meant for, instead of the file's. Spaces that a flat file does not
            declare are this environment's; without one they are inferred from the numbers.
        cache: "use" maps the arrays that an earlier call kept, as long as the source's files have their size and time.
            "verify" hashes those arrays first. "off" reads the source and keeps nothing.
        skip_bad_episodes: leave out episodes with a number that is missing, not finite or an impossible choice, and
            episodes of a Minari dataset that cannot be read. Notes say which and why.
        columns: which names of a flat file hold which field: {"observations": ["x", "x_dot"], "actions": "act"}.
            Several names make a vector, in that order. Other fields go by their usual names.
        episode_length: episodes of a flat file last so many steps, unless a flag ends them sooner.
        file_is_episode: all rows of a flat file are one episode.
        last_row_is_final: the last row of each episode holds only an observation. Known of RLDS and OGBench.
        leave_out: parts of Dict observations that are not read, by their paths, such as "mission". The environment's
            observations lack them too.
        reward: "success" or "last" makes rewards for demonstrations without any; "none" reads them without. See
            `envs.reading.options.ReadingOptions`.

    Raises:
        DataError: the data cannot be used; the message names the file, the episode and the field.
        EnvError: the environment cannot be made.
    """
    if cache not in get_args(CacheUse):
        raise DataError(f"cache {cache!r}: expected one of {', '.join(get_args(CacheUse))}")
    options = ReadingOptions.of(
        columns,
        leave_out,
        episode_length=episode_length,
        file_is_episode=file_is_episode,
        last_row_is_final=last_row_is_final,
        reward=reward,
    )
    environment = environment and environment.leaving_out(options.leave_out)
    try:
        path, pinned = locate(str(source), download)
        wanted = _Source(path, dict(spaces or {}), environment, skip_bad_episodes, options)
        dataset, fingerprint = _cached(wanted, cache)
    except OSError as error:  # a name too long, a folder that may not be entered
        raise DataError(f"{str(source)[:80]}: {error.strerror}") from None
    if pinned:
        name = HubName.of(pinned)
        dataset = replace(dataset, name=name.label, notes=(*dataset.notes, f"from the hub: {pinned}"))
        loaded_from = pinned
    else:
        loaded_from = str(Path(source).resolve()) if Path(source).exists() else str(source)
    dataset = replace(dataset, loaded_from=(loaded_from,), reading=options)
    return dataset if fingerprint is None else dataset.with_known_fingerprint(fingerprint)


@dataclass(frozen=True)
class _Source:
    """What a user wants to have read, and how."""

    path: Path
    spaces: Mapping[str, Space[Any]]
    environment: EnvironmentSpec | None
    skip_bad: bool
    options: ReadingOptions

    def read(self, folder: Path | None = None) -> Dataset:
        """Read it and check it. folder: takes what comes episode by episode in files; None keeps it in memory."""
        recording = read(self.path, self.spaces, self.options)
        recording = declare(recording, self.environment)
        header, fields = assemble(recording, folder, self.skip_bad)
        return check(header, fields, self.skip_bad)

    def entry(self) -> Entry | None:
        """Its place in the cache; None where it is not worth one."""
        return Entry.of(self.path, self.spaces, self.environment, self.skip_bad, self.options.to_json())


def _cached(source: _Source, cache: CacheUse) -> tuple[Dataset, str | None]:
    """A dataset as the cache has it, or read and put there; and its fingerprint if that is known."""
    environment = source.environment
    try:
        entry = source.entry() if cache != "off" else None
        if entry is None:
            return source.read(), None
        found = entry.read(verify=cache == "verify")
        if found and not _spaces_changed(Dataset(**found.fields), environment):
            return _with_users_environment(Dataset(**found.fields), environment), found.fingerprint
        with entry.building() as folder:
            dataset = source.read(folder)
            if entry.keep(folder, vars(dataset), dataset.fingerprint) and (found := entry.read()):
                return _with_users_environment(Dataset(**found.fields), environment), found.fingerprint
            return dataset, dataset.fingerprint  # the mapped files stay readable after their folder is deleted
    except CacheError as error:
        dataset = source.read()
        return replace(dataset, notes=(*dataset.notes, f"not cached: {error}")), None


def _spaces_changed(dataset: Dataset, environment: EnvironmentSpec | None) -> bool:
    """Whether a cached dataset has spaces of the user's environment that are no longer that environment's."""
    if environment is None or not dataset.borrowed:
        return False
    info = environment.info()
    return any(space_to_json(getattr(dataset, name)) != space_to_json(getattr(info, name)) for name in dataset.borrowed)


def _with_users_environment(dataset: Dataset, environment: EnvironmentSpec | None) -> Dataset:
    """A cached dataset, with the user's environment if it has the same: the user's arguments are trusted."""
    if environment is None or dataset.environment != environment:
        return dataset
    return replace(dataset, environment=environment)
