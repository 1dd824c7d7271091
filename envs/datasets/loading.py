"""The one door to a `Dataset`, whatever it comes from, and the one check of what it holds.

Files by `load`, arrays by `from_arrays`, one episode after the other by `from_episodes`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.datasets.assemble import (
    Fields,
    beyond,
    flat_arrays,
    in_file,
    joined,
    last_rewards,
    left_out_notes,
    not_finite,
    place,
    split,
    type_problem,
)
from envs.datasets.cache import CacheError, Entry
from envs.datasets.dataset import Dataset
from envs.datasets.hub import HubName, find_on_hub, on_hub
from envs.datasets.selection import take
from envs.errors import DataError
from envs.reading.dqn_replay import is_replay, read_replay, with_actions
from envs.reading.fields import choose_all
from envs.reading.flat_files import found_header, is_flat, read_flat
from envs.reading.lerobot import is_lerobot, read_lerobot
from envs.reading.minari_folders import read_folder
from envs.reading.options import ReadingOptions, RewardRule
from envs.reading.readers import PACKAGED, SPACES, Header, Missing, check_is_file, minari_root
from envs.simulate.scores import reference_in
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import leaf_spaces, reason, space_to_json

CacheUse = Literal["use", "verify", "off"]
"""What `load` may do with what it read and checked before."""

RULED = "rewards are made by the rule 'last', the recorded ones are not read"
"""A note on a dataset of episodes that come with rewards."""


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
    given = dict(spaces or {})
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
        path, lasting = find_on_hub(str(source), download) if on_hub(str(source)) else (find(str(source), download), "")
        if path.name == "main_data.hdf5":  # Minari's own; its metadata lies beside it
            path = path.parent
        dataset, fingerprint = _cached(path, given, environment, cache, skip_bad_episodes, options)
    except OSError as error:  # a name too long, a folder that may not be entered
        raise DataError(f"{str(source)[:80]}: {error.strerror}") from None
    if lasting:
        name = HubName.of(lasting)
        dataset = replace(dataset, name=name.label, notes=(*dataset.notes, f"from the hub: {lasting}"))
    else:
        lasting = str(Path(source).resolve()) if Path(source).exists() else str(source)
    dataset = replace(dataset, loaded_from=(lasting,), reading=options)
    if fingerprint is not None:
        vars(dataset)["fingerprint"] = fingerprint  # it is known: a cached property is kept there
    return dataset


def _cached(
    path: Path,
    given: dict[str, Space[Any]],
    environment: EnvironmentSpec | None,
    cache: str,
    skip_bad: bool,
    options: ReadingOptions,
) -> tuple[Dataset, str | None]:
    """A file or folder as the cache has it, or read and put there; its fingerprint where that is known."""
    try:
        entry = Entry.of(path, given, environment, skip_bad, options.to_json()) if cache != "off" else None
        if entry is None:
            return _read(path, given, environment, skip_bad, options), None
        found = entry.read(verify=cache == "verify")
        if found and not _spaces_changed(Dataset(**found[0]), environment):
            return _named_by_user(Dataset(**found[0]), environment), found[1]
        with entry.building() as folder:
            dataset = _read(path, given, environment, skip_bad, options, folder)
            if entry.keep(folder, vars(dataset), dataset.fingerprint) and (found := entry.read()):
                return _named_by_user(Dataset(**found[0]), environment), found[1]
            return dataset, dataset.fingerprint  # what is mapped lives on without a name
    except CacheError as error:
        dataset = _read(path, given, environment, skip_bad, options)
        return replace(dataset, notes=(*dataset.notes, f"not cached: {error}")), None


def _spaces_changed(dataset: Dataset, environment: EnvironmentSpec | None) -> bool:
    """Whether a cached dataset has spaces of the user's environment that are no longer that environment's."""
    if environment is None or not dataset.borrowed:
        return False
    info = environment.info()
    return any(space_to_json(getattr(dataset, name)) != space_to_json(getattr(info, name)) for name in dataset.borrowed)


def _named_by_user(dataset: Dataset, environment: EnvironmentSpec | None) -> Dataset:
    """A dataset from the cache with the user's own environment, whose arguments are trusted, where it has that one."""
    if environment is None or dataset.environment != environment:
        return dataset
    return replace(dataset, environment=environment)


def _read(
    path: Path,
    given: dict[str, Space[Any]],
    environment: EnvironmentSpec | None,
    skip_bad: bool,
    options: ReadingOptions,
    folder: Path | None = None,
) -> Dataset:
    """A file or folder, read and checked; folder: for what comes episode by episode, files instead of memory."""
    if not path.is_dir():
        header, arrays = read_flat(path, given, options)
        return _dataset(*split(_in_environment(header, environment), arrays), skip_bad)
    if is_lerobot(path):
        found = read_lerobot(path, options)
        header = found_header(path, found, given, options)
        return _dataset(*split(_in_environment(header, environment), found.arrays), skip_bad)
    _check_fixed_layout(path, options)
    if is_replay(path):
        header, episodes = read_replay(path, given)
        header = with_actions(_in_environment(header, environment), path)
    else:
        header, episodes = read_folder(path, given, options.leave_out)
        header = _in_environment(header, environment)
    header, fields = joined(header, episodes, folder, skip_bad)
    if options.reward == "last":
        header = replace(header, rewards_from="last", notes=(*header.notes, RULED))
        fields["rewards"] = last_rewards(fields["offsets"])
    return _dataset(header, fields, skip_bad)


def _check_fixed_layout(path: Path, options: ReadingOptions) -> None:
    """Refuse what cannot be said of a folder whose layout fixes its names and rows."""
    if options.columns:
        raise DataError(f"{path}: a folder's fields have names of their own; columns are for flat files")
    if options.episode_length is not None or options.file_is_episode:
        raise DataError(f"{path}: its layout says where episodes end; leave out --episode-length and --file-is-episode")
    if options.last_row_is_final:
        raise DataError(f"{path}: its layout says which observations are final; leave out --last-row-is-final")
    if options.reward == "success":
        raise DataError(f"{path}: no success flag is read of such a folder; --reward last rewards each last step")


def from_arrays(
    *,
    observation_space: Space[Any] | None = None,
    action_space: Space[Any] | None = None,
    environment: EnvironmentSpec | None = None,
    name: str = "arrays",
    **arrays: Any,
) -> Dataset:
    """A checked dataset from flat arrays of N steps, the E episodes one after the other.

    Args:
        observation_space: taken from the environment or inferred if not given; the dataset's notes say so.
        action_space: the same for actions.
        environment: the environment that the data is meant for.
        name: what messages call the dataset.
        **arrays: the fields, by any name that files use for them. Arrays of a Dict space are a dictionary of arrays,
            those of a Tuple space a tuple.

            - observations: (N, ...), or (N + E, ...) with each episode's final one at its end.
            - actions: (N, ...).
            - rewards: (N,).
            - next_observations: (N, ...); only each episode's last one is kept, as its final observation.
            - lengths: (E,), the steps of each episode; or episode: (N,), the number or name of each step's episode, or
              (N, k), several numbers that name it together; or episode_start: (N,), true at each first step.
            - terminated and truncated; or done, which is either of them; or not_done, its opposite: (N,). With lengths
              or episode also (E,).
            - step: (N,), numbers that rise in each episode. They only show that the rows are in order.

    Raises:
        DataError: the data cannot be used; the message names the episode and the field.
    """
    given = {key: array for key, array in arrays.items() if array is not None}
    fields = {field: given[key] for field, key in choose_all(name, given).items()}
    header = _header(name, observation_space, action_space)
    return _dataset(*split(_in_environment(header, environment), fields))


def from_episodes(
    episodes: Iterable[Mapping[str, Any]],
    *,
    observation_space: Space[Any] | None = None,
    action_space: Space[Any] | None = None,
    environment: EnvironmentSpec | None = None,
    name: str = "episodes",
) -> Dataset:
    """A checked dataset from episodes of T steps, each a mapping.

    Args:
        episodes: each has these fields; `id` and `infos`, which Minari's episodes have too, are ignored.

            - observations: (T + 1, ...), or (T, ...) in every episode.
            - actions: (T, ...).
            - rewards: (T,).
            - terminated, truncated or done: True or False, or (T,) with only the last one True. False if left out.
        observation_space: as in `from_arrays`.
        action_space: as in `from_arrays`.
        environment: the environment that the data is meant for.
        name: what messages call the dataset.

    Raises:
        DataError: the data cannot be used; the message names the episode and the field.
    """
    arrays = flat_arrays(name, episodes)
    header = _header(name, observation_space, action_space)
    return _dataset(*split(_in_environment(header, environment), arrays))


def from_replay_buffer(buffer: Any, *, environment: EnvironmentSpec | None = None, name: str = "buffer") -> Dataset:
    """A checked dataset from a replay buffer of Stable-Baselines3, as its learners fill it.

    Only filled places are read, oldest first, one environment after the other. The learners store actions of a Box
    scaled to -1 to 1; here they are what the environment was given. When the buffer is full, the first episode of each
    environment may lack its beginning.

    Args:
        buffer: a `stable_baselines3.common.buffers.ReplayBuffer` or `DictReplayBuffer`.
        environment: as in `from_arrays`.
        name: what the dataset is called.

    Raises:
        DataError: the data cannot be used.
    """
    order = np.arange(buffer.buffer_size if buffer.full else buffer.pos)
    order = np.roll(order, -buffer.pos) if buffer.full else order
    if len(order) == 0:
        raise DataError(f"{name}: the buffer is empty")

    def rows(value: Any) -> Any:
        """The rows of all environments one after the other, (N, ...), from (places, environments, ...)."""
        if isinstance(value, dict):
            return {key: rows(part) for key, part in value.items()}
        return np.concatenate([value[order, i] for i in range(value.shape[1])])

    done = rows(buffer.dones).astype(np.bool_)
    truncated = done & rows(buffer.timeouts).astype(np.bool_)
    last = done.copy()
    last[len(order) - 1 :: len(order)] = True  # what goes on in no other environment
    ends = np.flatnonzero(last)
    actions, space = rows(buffer.actions), buffer.action_space
    if isinstance(space, spaces.Box):
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        actions = (low + 0.5 * (actions + 1) * (high - low)).astype(space.dtype)
        actions = actions.reshape(len(done), *space.shape)
    after = getattr(buffer, "next_observations", None)
    return from_arrays(
        observations=rows(buffer.observations),
        next_observations=None if after is None else rows(after),
        actions=actions.reshape(len(done), *(space.shape or ())),
        rewards=rows(buffer.rewards),
        lengths=np.diff(ends + 1, prepend=0),
        terminated=(done & ~truncated)[ends],
        truncated=truncated[ends],
        observation_space=buffer.observation_space,
        action_space=space,
        environment=environment,
        name=name,
    )


# Where it lies, and what it is checked for.


def find(source: str, download: bool = False) -> Path:
    """The file or folder that a user means by a path or a Minari id; one that is nowhere raises `DataError`."""
    if not source:
        raise DataError("no dataset named")
    dataset_id = _minari_id(source)
    path = Path(source)
    if path.exists():
        if not path.is_dir():
            check_is_file(path)  # a pipe or a device may never end
        return path
    if is_flat(path) or path.is_absolute() or ".." in path.parts or source.startswith("~"):
        raise DataError(f"{source}: no such file or folder")
    shipped = PACKAGED / f"{source.replace('/', '-')}.npz"
    if shipped.exists():
        return shipped
    root = minari_root()
    if not (root / dataset_id / "data").is_dir() and download:
        _download(source)
    if not (root / dataset_id / "data").is_dir():
        raise DataError(
            f"{source}: no such file or folder, and no dataset of that id in {root} (--download fetches it)"
        )
    return root / dataset_id


def _minari_id(source: str) -> str:
    """The id of a Minari dataset, without the remote that a full one begins with: hf://farama-minari/D4RL/door/human-v2."""
    remote, sign, rest = source.partition("://")
    if not sign:
        return source
    dataset_id = rest.partition("/")[2]
    if remote not in ("hf", "gcp") or not dataset_id:
        raise DataError(
            f"{source[:80]}: not read from there; hf://datasets/USER/NAME is a dataset on the hub, "
            "hf://farama-minari/ID one of Minari's"
        )
    return dataset_id


def _download(dataset_id: str) -> None:
    import minari

    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # the hub's clients raise errors of many kinds
        raise DataError(f"{dataset_id}: cannot be downloaded ({reason(error)})") from None


def _header(name: str, observation_space: Space[Any] | None, action_space: Space[Any] | None) -> Header:
    given = dict(zip(SPACES, (observation_space, action_space), strict=True))
    return Header(name=name, source=name, spaces={key: space for key, space in given.items() if space is not None})


def _in_environment(header: Header, environment: EnvironmentSpec | None) -> Header:
    """The header for an environment that the user names; the recording's own goes first where it names one."""
    if environment is None:
        return header
    if header.environment is None:
        reference = reference_in(environment, None, header.reference)
        header = replace(header, environment=environment, reference=reference)
    if all(name in header.spaces for name in SPACES):
        return header
    info = environment.info()
    borrowed = tuple(name for name in SPACES if name not in header.spaces)
    spaces = {**header.spaces, **{name: getattr(info, name) for name in borrowed}}
    return replace(header, spaces=spaces, borrowed=borrowed)


def _dataset(header: Header, fields: Fields, skip_bad: bool = False) -> Dataset:
    """The dataset, if its numbers are what they must be."""
    dataset = Dataset(
        name=header.name,
        source=header.source,
        observation_space=header.spaces["observation_space"],
        action_space=header.spaces["action_space"],
        inferred=header.inferred,
        borrowed=header.borrowed,
        environment=header.environment,
        reference=header.reference,
        notes=header.notes,
        provenance=header.provenance,
        rewards_from=header.rewards_from,
        **fields,
    )
    left = _without_bad(dataset, header) if skip_bad else dataset
    return _checked(left, header.missing if left is dataset else {}, header.rows)


def _checked(dataset: Dataset, missing: Missing, file_rows: NDArray[np.int64] | None) -> Dataset:
    """The dataset with what is odd about it noted; what is wrong with it raises `DataError`, all of it at once."""
    problems = [*_type_problems(dataset), *(fault.message(dataset, file_rows) for fault in _faults(dataset, missing))]
    if problems:
        raise DataError(*problems)
    notes = [*dataset.notes, *_oddities(dataset)]
    unended = int((~dataset.terminated & ~dataset.truncated).sum())
    if unended:
        notes.append(f"{unended} of {dataset.num_episodes} episodes neither terminate nor are truncated")
    return replace(dataset, notes=tuple(notes))


def _without_bad(dataset: Dataset, header: Header) -> Dataset:
    """The dataset without the episodes that hold a bad number, which are noted."""
    bad: dict[int, str] = {}
    for fault in _faults(dataset, header.missing):
        for episode in fault.episodes(dataset):
            name = header.labels[episode] if header.labels else f"episode {episode}"
            bad.setdefault(episode, f"{name}: {fault.label} {fault.why}")
    if not bad:
        return dataset
    left = np.setdiff1d(np.arange(dataset.num_episodes), list(bad))
    if len(left) == 0:
        return dataset  # the check says why
    taken = take(dataset, left, f"{len(bad)} left out")
    return replace(taken, notes=(*taken.notes, *left_out_notes([bad[episode] for episode in sorted(bad)])))


def _fields(dataset: Dataset) -> Iterator[tuple[str, NDArray[Any], Space[Any]]]:
    """Label, array and space of each leaf of observations and actions."""
    for column, leaves, space in (
        ("observations", dataset.observations, dataset.observation_space),
        ("actions", dataset.actions, dataset.action_space),
    ):
        for name, leaf in leaf_spaces(space).items():
            yield column if len(leaves) == 1 else f"{column}/{name}", leaves[name], leaf


def _type_problems(dataset: Dataset) -> Iterator[str]:
    if dataset.rewards.dtype.kind not in "fiu":
        yield f"{dataset.source}: rewards: type {dataset.rewards.dtype}, expected numbers"
    elif dataset.rewards.dtype.itemsize > 8:
        yield f"{dataset.source}: rewards: type {dataset.rewards.dtype}, at most float64 is taken"
    for label, array, leaf in _fields(dataset):
        yield from type_problem(f"{dataset.source}: {label}", array, leaf)


@dataclass(frozen=True)
class _Fault:
    """Bad numbers of one array, whose rows are steps, or episodes; or cells of a table with no number in them."""

    label: str
    array: NDArray[Any] | None  # None of a table's column, whose rows are named too
    bad: NDArray[np.bool_]
    why: str
    by_episode: bool = False

    def message(self, dataset: Dataset, file_rows: NDArray[np.int64] | None) -> str:
        """Where the first of them is, and how many there are. file_rows: as in `Header`."""
        row, *inside = (int(i) for i in np.unravel_index(self.bad.argmax(), self.bad.shape))
        where = f"episode {row}" if self.by_episode else place(dataset.offsets, row)
        count = f", the first of {int(self.bad.sum())}" if self.bad.sum() > 1 else ""
        if self.array is None:
            return f"{dataset.source}: {where}, row {in_file(row, file_rows)}, {self.label}: {self.why}{count}"
        value = self.array[(row, *inside)]
        return f"{dataset.source}: {where}, {self.label}{inside or ''}: {value} is {self.why}{count}"

    def episodes(self, dataset: Dataset) -> list[int]:
        """Episodes that hold one of them."""
        rows = np.flatnonzero(self.bad.reshape(len(self.bad), -1).any(1))
        found = rows if self.by_episode else np.searchsorted(dataset.offsets, rows, side="right") - 1
        return [int(episode) for episode in np.unique(found)]


def _faults(dataset: Dataset, missing: Missing) -> Iterator[_Fault]:
    """What numbers are bad: those that are missing, not finite, or no choice of their space."""
    for (_, column), rows in missing.items():
        bad = np.zeros(dataset.num_steps, np.bool_)
        bad[rows] = True
        at_ends = len(rows) == dataset.num_episodes > 1 and bool(bad[dataset.offsets[1:] - 1].all())
        rest = " (in each episode's last row: --last-row-is-final if it holds an observation only)" * at_ends
        yield _Fault(f"column {column!r}", None, bad, f"nothing there{rest}")
    if dataset.rewards.dtype.kind in "fiu" and (bad := not_finite(dataset.rewards)).any():
        yield _Fault("rewards", dataset.rewards, bad, "not finite")
    elif (bad := not_finite(dataset.returns)).any():
        yield _Fault("return", dataset.returns, bad, "not finite, though its rewards are", by_episode=True)
    for label, array, leaf in _fields(dataset):
        if list(type_problem("", array, leaf)):
            continue
        if (bad := not_finite(array)).any():
            yield _Fault(label, array, bad, "not finite")
        if not isinstance(leaf, spaces.Box) and (bad := beyond(array, leaf)).any():
            yield _Fault(label, array, bad, f"outside {leaf}")
    leaves = leaf_spaces(dataset.observation_space)
    for name, array in (dataset.final_observations or {}).items():
        label = "final observation" if len(dataset.observations) == 1 else f"final observation/{name}"
        if (bad := not_finite(array)).any():
            yield _Fault(label, array, bad, "not finite", by_episode=True)
        if not isinstance(leaves[name], spaces.Box) and (bad := beyond(array, leaves[name])).any():
            yield _Fault(label, array, bad, f"outside {leaves[name]}", by_episode=True)


def _oddities(dataset: Dataset) -> Iterator[str]:
    """What is odd about numbers of a Box, and legitimate."""
    for label, array, leaf in _fields(dataset):
        if not isinstance(leaf, spaces.Box):
            continue
        if array.dtype != leaf.dtype:
            yield f"{label} are recorded as {array.dtype}, the space says {leaf.dtype}"
        if (far := beyond(array, leaf)).any():
            steps = far.reshape(len(array), -1).any(1)
            yield f"{label}: {int(steps.sum())} of {len(array)} steps are beyond the space's bounds"
