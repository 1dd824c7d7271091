"""Recorded episodes: one reader for each format behind one door, and one check of what they bring.

`load` opens a Minari id, a Minari dataset's folder, or an `.npz` of flat arrays, and returns a `Dataset`: one flat
array a field, with the episodes' offsets. A recording is data and nothing else: no environment is built, no pickle
loaded and no module imported because a file asked for it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.scores import Reference, reference_for
from envs.spaces import (
    LEAF_KINDS,
    Leaves,
    SpaceError,
    choices,
    leaf_spaces,
    reason,
    space_from_json,
    space_to_json,
    to_leaves,
)
from envs.worlds import EnvironmentSpec, WorldError

PACKAGED = Path(__file__).parent / "data"
"""Datasets that ship with the package: `hopper/replay-v0` is `hopper-replay-v0.npz`."""


class DataError(ValueError):
    """A dataset that cannot be used; the message names the file, the episode and the field."""


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps."""

    observations: Leaves  # each (T + 1, *leaf), or (T, *leaf) where the recording lacks the last one
    actions: Leaves  # each (T, *leaf)
    rewards: NDArray[Any]  # (T,)
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Dataset:
    """E episodes of N steps in all, as flat arrays; `offsets[i]` to `offsets[i + 1]` is episode i."""

    name: str
    source: Path
    observation_space: Space[Any]
    action_space: Space[Any]
    observations: Leaves  # each (N, *leaf): what was seen before each action
    final_observations: Leaves | None  # each (E, *leaf): what was seen after the last one, where it was recorded
    actions: Leaves  # each (N, *leaf)
    rewards: NDArray[Any]  # (N,)
    offsets: NDArray[np.int64]  # (E + 1,)
    terminated: NDArray[np.bool_]  # (E,)
    truncated: NDArray[np.bool_]  # (E,)
    environment: EnvironmentSpec | None = None
    reference: Reference | None = None
    notes: tuple[str, ...] = ()  # what is odd but legitimate, counted

    @property
    def num_episodes(self) -> int:
        """Episodes."""
        return len(self.offsets) - 1

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Steps of each episode: (E,)."""
        return np.diff(self.offsets)

    @cached_property
    def returns(self) -> NDArray[np.float64]:
        """Sum of each episode's rewards: (E,)."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.offsets[:-1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything a model learns from: two datasets with one fingerprint train the same model."""
        digest = hashlib.sha256()
        for space in (self.observation_space, self.action_space):
            digest.update(space_to_json(space).encode())
        for leaves in (self.observations, self.actions, {"rewards": self.rewards, "offsets": self.offsets}):
            for name, array in sorted(leaves.items()):
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()

    def episode(self, index: int) -> Episode:
        """Episode `index` as views of the flat arrays; its observations are copied to put the last one behind."""
        index = range(self.num_episodes)[index]  # counts from the end where negative, as a list does
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        observations = {name: array[rows] for name, array in self.observations.items()}
        if self.final_observations is not None:
            final = self.final_observations
            observations = {
                name: np.concatenate([seen, final[name][index, None]]) for name, seen in observations.items()
            }
        return Episode(
            observations=observations,
            actions={name: array[rows] for name, array in self.actions.items()},
            rewards=self.rewards[rows],
            terminated=bool(self.terminated[index]),
            truncated=bool(self.truncated[index]),
        )


def load(source: str | Path, *, download: bool = False) -> Dataset:
    """Read and check a dataset: a Minari id, the folder of one, or an `.npz` of flat arrays.

    An id is looked up among the datasets that ship with the package, then under Minari's own root (the environment
    variable MINARI_DATASETS_PATH, or ~/.minari/datasets). With `download`, an id that is not there is fetched from
    Minari's server. Raises `DataError` with the file, the episode and the field.
    """
    try:
        path = _find(str(source), download)
        if path.is_dir():
            return _checked(_read_minari(path))
    except OSError as error:  # a name too long, a folder that may not be entered
        raise DataError(f"{str(source)[:80]}: {error.strerror}") from None
    if path.suffix != ".npz":
        raise DataError(f"{path}: neither a Minari dataset's folder nor an .npz file")
    return _checked(_read_npz(path))


def _find(source: str, download: bool) -> Path:
    if not source:
        raise DataError("no dataset named")
    path = Path(source)
    if path.exists():
        return path
    if path.suffix == ".npz" or path.is_absolute() or ".." in path.parts or source.startswith("~"):
        raise DataError(f"{source}: no such file or folder")
    shipped = PACKAGED / f"{source.replace('/', '-')}.npz"
    if shipped.exists():
        return shipped
    root = Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari" / "datasets"))
    if not (root / source / "data").is_dir() and download:
        _download(source)
    if not (root / source / "data").is_dir():
        raise DataError(
            f"{source}: no such file or folder, and no dataset of that id in {root} (--download fetches it)"
        )
    return root / source


def _download(dataset_id: str) -> None:
    import minari

    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # the hub's clients raise errors of many kinds
        raise DataError(f"{dataset_id}: cannot be downloaded ({reason(error)})") from None


# Readers. Each returns a Dataset whose arrays are as the file has them; `_checked` looks at what they hold.


def _read_minari(folder: Path) -> Dataset:
    data = folder / "data" if (folder / "data").is_dir() else folder
    metadata = _metadata(data / "metadata.json")
    layout = metadata.get("data_format", "hdf5")
    path = data / "main_data.hdf5" if layout == "hdf5" else data
    described = _described(f"{data}/metadata.json", path, metadata)
    if layout == "arrow":
        return _assemble(path, described, _arrow_episodes(data, described), metadata.get("total_episodes"))
    if layout != "hdf5":
        raise DataError(f"{data}/metadata.json: data_format {layout!r} is not known; 'hdf5' and 'arrow' are")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            episodes = _hdf5_episodes(file, path, described)
            return _assemble(path, described, episodes, metadata.get("total_episodes"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, RuntimeError) as error:  # h5py raises either where a file is damaged
        raise DataError(f"{path}: cannot be read ({reason(error)})") from None


@dataclass(frozen=True)
class _Recorded:
    """One episode as its file has it, not yet looked at."""

    label: str
    observations: Leaves
    actions: Leaves
    rewards: NDArray[Any]
    terminations: NDArray[Any]
    truncations: NDArray[Any]


def _hdf5_episodes(file: Any, path: Path, described: dict[str, Any]) -> Iterator[_Recorded]:
    numbers = {name: name.removeprefix("episode_") for name in file if name.startswith("episode_")}
    for name, number in numbers.items():
        if not number.isdecimal():
            raise DataError(f"{path}: {name}: not an episode's name")

    def arrays(group: str, field: str) -> Leaves:
        names = _hdf5_names(described[f"{field}_space"])
        return {leaf: _hdf5_array(file, path, group, f"{field}s{inside}") for leaf, inside in names.items()}

    for group in sorted(numbers, key=lambda name: int(numbers[name])):
        flat = {name: _hdf5_array(file, path, group, name) for name in ("rewards", "terminations", "truncations")}
        yield _Recorded(group, arrays(group, "observation"), arrays(group, "action"), **flat)


def _arrow_episodes(data: Path, described: dict[str, Any]) -> Iterator[_Recorded]:
    """Through Minari's own reader: the spaces stand in the metadata, so it builds no environment to learn them."""
    try:
        from minari import MinariDataset

        for episode in MinariDataset(data).iterate_episodes():
            yield _Recorded(
                f"episode_{episode.id}",
                to_leaves(described["observation_space"], episode.observations),
                to_leaves(described["action_space"], episode.actions),
                *(np.asarray(x) for x in (episode.rewards, episode.terminations, episode.truncations)),
            )
    except ImportError:
        raise DataError(f"{data}: reading Arrow needs pyarrow: pip install 'minari[arrow]'") from None
    except Exception as error:  # pyarrow and Minari raise errors of many kinds where a file is damaged
        raise DataError(f"{data}: cannot be read as Arrow ({reason(error)})") from None


def _assemble(path: Path, described: dict[str, Any], recorded: Iterable[_Recorded], declared: Any) -> Dataset:
    """Episodes put one after the other, each checked; as many as `declared` where that is not None."""
    columns: dict[str, list[Any]] = {"observations": [], "finals": [], "actions": [], "rewards": [], "ends": []}
    for episode in recorded:
        where, rewards = f"{path}: {episode.label}", episode.rewards
        if rewards.ndim != 1 or len(rewards) == 0:
            raise DataError(f"{where}/rewards: shape {rewards.shape}, expected (T,) with T at least 1")
        _check_rows(where, "actions", episode.actions, len(rewards), described["action_space"])
        _check_rows(where, "observations", episode.observations, len(rewards) + 1, described["observation_space"])
        for name in ("terminations", "truncations"):
            flags = getattr(episode, name)
            if flags.shape != rewards.shape:
                raise DataError(f"{where}/{name}: shape {flags.shape}, expected {rewards.shape}")
            if flags[:-1].any():
                raise DataError(f"{where}/{name}: true at step {int(flags.argmax())}, before the last step")
        columns["observations"].append({name: array[:-1] for name, array in episode.observations.items()})
        columns["finals"].append({name: array[-1:] for name, array in episode.observations.items()})
        columns["actions"].append(episode.actions)
        columns["rewards"].append(rewards)
        columns["ends"].append([bool(episode.terminations[-1]), bool(episode.truncations[-1])])
    count = len(columns["rewards"])
    if count == 0:
        raise DataError(f"{path}: no episode in it")
    if declared is not None and declared != count:
        raise DataError(f"{path}: {count} episodes, metadata.json says {declared}")
    ends = np.asarray(columns["ends"], np.bool_)  # (E, 2)
    return Dataset(
        **described,
        observations=_join(columns["observations"]),
        final_observations=_join(columns["finals"]),
        actions=_join(columns["actions"]),
        rewards=np.concatenate(columns["rewards"]),
        offsets=_offsets([len(rewards) for rewards in columns["rewards"]]),
        terminated=ends[:, 0],
        truncated=ends[:, 1],
    )


def _read_npz(path: Path) -> Dataset:
    """Flat arrays: observations (N + E rows, each episode's last one included), actions, rewards, lengths, metadata."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # zip, zlib and numpy's readers raise errors of many kinds where a file is damaged
        raise DataError(f"{path}: cannot be read as .npz ({reason(error)})") from None
    for name in ("observations", "actions", "rewards", "lengths", "terminated", "metadata"):
        if name not in arrays:
            raise DataError(f"{path}: no array {name!r} in it, only {sorted(arrays)}")
    described = _described(f"{path}: metadata", path, _parse_metadata(str(path), str(arrays.pop("metadata"))))
    for name in ("observation_space", "action_space"):
        if isinstance(described[name], spaces.Dict | spaces.Tuple):
            raise DataError(f"{path}: {name}: one array cannot hold {described[name]}; Minari's layout can")
    arrays = {name: _numbers(array, f"{path}: {name}") for name, array in arrays.items()}
    terminated = arrays["terminated"].astype(np.bool_)
    if arrays["lengths"].ndim != 1 or arrays["lengths"].dtype.kind not in "iu":
        raise DataError(f"{path}: lengths: expected (E,) integers, not {arrays['lengths'].dtype}")
    lengths = arrays["lengths"].astype(np.int64)  # 127 + 1 is -128 in a type as narrow as int8
    if len(lengths) == 0 or (lengths < 1).any():
        raise DataError(f"{path}: lengths: expected at least one episode of at least one step")
    if terminated.shape != lengths.shape:
        raise DataError(f"{path}: terminated: shape {terminated.shape}, expected {lengths.shape}")
    steps, episodes = int(lengths.sum()), len(lengths)
    if arrays["rewards"].shape != (steps,):
        raise DataError(f"{path}: rewards: shape {arrays['rewards'].shape}, lengths say {(steps,)}")
    actions = to_leaves(described["action_space"], arrays["actions"])
    observations = to_leaves(described["observation_space"], arrays["observations"])
    _check_rows(str(path), "actions", actions, steps, described["action_space"])
    _check_rows(str(path), "observations", observations, steps + episodes, described["observation_space"])
    last = np.cumsum(lengths + 1) - 1  # rows that hold an episode's final observation
    return Dataset(
        **described,
        observations={name: np.delete(array, last, axis=0) for name, array in observations.items()},
        final_observations={name: array[last] for name, array in observations.items()},
        actions=actions,
        rewards=arrays["rewards"],
        offsets=_offsets(lengths),
        terminated=terminated,
        truncated=~terminated,
    )


# The door: what every reader's arrays must be.


def _checked(dataset: Dataset) -> Dataset:
    """The dataset with what is odd about it noted; what is wrong with it raises `DataError`."""
    notes: list[str] = []
    if dataset.rewards.dtype.kind not in "fiu":
        raise DataError(f"{dataset.source}: rewards: type {dataset.rewards.dtype}, expected numbers")
    _refuse_values(dataset, "rewards", ~np.isfinite(dataset.rewards), dataset.rewards)
    for field, leaves, space in (
        ("observations", dataset.observations, dataset.observation_space),
        ("actions", dataset.actions, dataset.action_space),
    ):
        for name, leaf in leaf_spaces(space).items():
            label = field if len(leaves) == 1 else f"{field}/{name}"
            _check_leaf(dataset, label, leaves[name], leaf, notes)
    for name, array in (dataset.final_observations or {}).items():
        label = "final observation" if len(dataset.observations) == 1 else f"final observation/{name}"
        _refuse_values(dataset, label, _not_finite(array), array, by_episode=True)
    unended = int((~dataset.terminated & ~dataset.truncated).sum())
    if unended:
        notes.append(f"{unended} of {dataset.num_episodes} episodes neither terminate nor are truncated")
    return replace(dataset, notes=tuple(notes))


def _check_leaf(dataset: Dataset, label: str, array: NDArray[Any], space: Space[Any], notes: list[str]) -> None:
    kinds = "f" if np.dtype(space.dtype).kind == "f" else "iub"
    if array.dtype.kind not in kinds:
        raise DataError(f"{dataset.source}: {label}: type {array.dtype}, the space says {space.dtype}")
    _refuse_values(dataset, label, _not_finite(array), array)
    if array.dtype != space.dtype:
        notes.append(f"{label} are recorded as {array.dtype}, the space says {space.dtype}")
    if not isinstance(space, spaces.Box):
        counts, start = (x.reshape(space.shape) for x in choices(space))
        _refuse_values(dataset, label, (array < start) | (array >= start + counts), array, f"outside {space}")
    else:
        outside = ((array < space.low) | (array > space.high)).reshape(len(array), -1).any(1)
        if outside.any():
            notes.append(f"{label}: {int(outside.sum())} of {len(array)} steps are beyond the space's bounds")


def _refuse_values(
    dataset: Dataset,
    label: str,
    bad: NDArray[np.bool_],
    array: NDArray[Any],
    why: str = "not finite",
    *,
    by_episode: bool = False,
) -> None:
    """Name the first bad value of an array whose rows are steps, or episodes."""
    if not bad.any():
        return
    row, *inside = (int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
    where = f"episode {row}"
    if not by_episode:
        episode = int(np.searchsorted(dataset.offsets, row, side="right")) - 1
        where = f"episode {episode}, step {row - int(dataset.offsets[episode])}"
    element = str(inside) if inside else ""
    raise DataError(f"{dataset.source}: {where}, {label}{element}: {array[(row, *inside)]} is {why}")


def _check_rows(where: str, field: str, leaves: Leaves, rows: int, space: Space[Any]) -> None:
    for name, leaf in leaf_spaces(space).items():
        expected = (rows, *(leaf.shape or ()))
        if leaves[name].shape != expected:
            label = field if len(leaves) == 1 else f"{field}/{name}"
            raise DataError(f"{where}/{label}: shape {leaves[name].shape}, expected {expected}")


# Metadata, which Minari's folders and our .npz files share.


def _metadata(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file") from None
    return _parse_metadata(str(path), text)


def _parse_metadata(where: str, text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: metadata is not JSON ({error})") from None
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: metadata is no JSON object")
    return metadata


def _described(where: str, source: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the metadata says, in the words of `Dataset`. Spaces are read here and never by building the world."""
    specification = metadata.get("eval_env_spec") or metadata.get("env_spec")
    try:
        environment = EnvironmentSpec.from_json(specification) if specification else None
    except WorldError as error:
        raise DataError(f"{where}: {error}") from None
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if isinstance(low, int | float) and isinstance(high, int | float) and high > low:
        reference: Reference | None = Reference(float(low), float(high), "the dataset's own metadata")
    else:
        reference = reference_for(environment.id if environment else None)
    return {
        "name": str(metadata.get("dataset_id") or source.stem),
        "source": source,
        "observation_space": _space(where, metadata, "observation_space"),
        "action_space": _space(where, metadata, "action_space"),
        "environment": environment,
        "reference": reference,
    }


def _space(where: str, metadata: dict[str, Any], name: str) -> Space[Any]:
    if name not in metadata:
        raise DataError(f"{where}: no {name}")
    try:
        space = space_from_json(metadata[name])
    except SpaceError as error:
        raise DataError(f"{where}: {name}: {error}") from None
    for leaf in leaf_spaces(space).values():
        if not isinstance(leaf, LEAF_KINDS):
            kinds = ", ".join(kind.__name__ for kind in LEAF_KINDS)
            raise DataError(f"{where}: {name}: {type(leaf).__name__} is not supported; {kinds}, Dict and Tuple are")
    return space


# Small things.


def _hdf5_array(file: Any, path: Path, group: str, field: str) -> NDArray[Any]:
    import h5py

    node = file.get(f"{group}/{field}")
    if not isinstance(node, h5py.Dataset):
        raise DataError(f"{path}: {group}/{field}: missing")
    try:
        array = np.asarray(node[()])
    except (OSError, TypeError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: {group}/{field}: cannot be read ({reason(error)})") from None
    return _numbers(array, f"{path}: {group}/{field}")


def _numbers(array: NDArray[Any], where: str) -> NDArray[Any]:
    """The array in this machine's byte order, which torch wants; text, objects and records are refused."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: type {array.dtype}, expected numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _hdf5_names(space: Space[Any], prefix: str = "") -> dict[str, str]:
    """Where Minari keeps each leaf, below the field's own name: Dict children by key, Tuple children as _index_i."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        names: list[str] = []
        for key, child in named:
            inner = key if isinstance(space, spaces.Dict) else f"_index_{key}"
            names += _hdf5_names(child, f"{prefix}/{inner}").values()
        return dict(zip(leaf_spaces(space), names, strict=True))
    return dict.fromkeys(leaf_spaces(space), prefix)


def _not_finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the array is NaN or infinite; integers, such as pictures, are not looked through."""
    return ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(1, np.bool_)


def _join(episodes: list[Leaves]) -> Leaves:
    return {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}


def _offsets(lengths: Any) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
