"""A dataset written as Minari's, which `minari.load_dataset` and everything that builds on it can open."""

import copy
import io
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from envs.datasets.dataset import Dataset
from envs.datasets.temporary import temporary_folder
from envs.errors import DataError
from envs.reading.minari_folders import REPEATED
from envs.reading.readers import OWN_METADATA, PACKAGED, minari_root
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import nested, os_reason, reason


def write_minari(dataset: Dataset, dataset_id: str) -> Path:
    """Write a dataset under Minari's root and return its folder. It is written atomically.

    Numbers keep their types, and pictures stay as they are (no JPEG). Minari's layout holds T + 1 observations an
    episode. If the final one was never recorded, the last is repeated, the metadata says so, and `load` drops it again.

    Args:
        dataset: with rewards.
        dataset_id: such as mine/door-v0.

    Raises:
        DataError: the id is not valid or is taken, the dataset has no rewards, or the disk is full.
    """
    if dataset.rewards_from == "none":
        raise DataError(f"{dataset.name}: it has no rewards, and Minari's datasets have; --reward success or last")
    namespace, folder = new_folder(dataset_id), minari_root() / dataset_id
    try:
        minari_root().mkdir(parents=True, exist_ok=True)
        with _complete(minari_root()) as temporary:
            _fill(temporary / "data", dataset, dataset_id)
            if namespace:
                _make_namespace(namespace)
            temporary.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({os_reason(error)})") from error
    return folder


def keep_elsewhere(dataset: Dataset) -> Path | None:
    """Write a dataset where there is room: among the system's temporary files, or in the current folder.

    For what was played at some cost and cannot be written where it should be. Returns its folder; None without room.
    """
    for place in (Path(tempfile.gettempdir()), Path.cwd()):
        folder = place / f"decision-transformer-kept-{secrets.token_hex(4)}"
        try:
            write_folder(folder, dataset)
            return folder
        except DataError:
            continue
    return None


def write_folder(folder: Path, dataset: Dataset) -> None:
    """Write a dataset in Minari's layout into a new folder anywhere, atomically.

    A disk that is full raises `DataError`.
    """
    try:
        with _complete(folder.parent) as temporary:
            _fill(temporary / "data", dataset, dataset.name)
            temporary.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({os_reason(error)})") from error


@contextmanager
def _complete(parent: Path) -> Iterator[Path]:
    """A folder to fill and to rename; what was not renamed is taken away."""
    with temporary_folder(parent.resolve(), ".importing-") as temporary:  # Minari gets a relative one wrong
        temporary.chmod(0o755)
        yield temporary


def new_folder(dataset_id: str) -> str | None:
    """The namespace of an id that is free; what is no id, or is taken, raises `DataError`."""
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        namespace, _, _ = parse_dataset_id(dataset_id)
    except (ValueError, TypeError):  # TypeError where the version is missing
        raise DataError(f"{dataset_id}: not a Minari id; NAMESPACE/NAME-v0 is one") from None
    if (PACKAGED / f"{dataset_id.replace('/', '-')}.npz").exists():
        raise DataError(f"{dataset_id}: ships with the package; choose another id")
    folder = minari_root() / dataset_id
    if folder.exists():
        raise DataError(f"{dataset_id}: exists already, in {folder}; choose another id")
    for parent in folder.relative_to(minari_root()).parents:
        if (minari_root() / parent / "data").is_dir():
            raise DataError(f"{dataset_id}: {parent} is a dataset, so no namespace; choose another id")
    return namespace


def _fill(folder: Path, dataset: Dataset, dataset_id: str) -> None:
    from importlib.metadata import version

    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.new(
        folder,
        observation_space=dataset.observation_space,
        action_space=dataset.action_space,
        env_spec=_specification(dataset.environment) if dataset.environment else None,
        jpeg_encoding=False,
    )
    metadata = {**dataset.provenance, "dataset_id": dataset_id, "minari_version": version("minari")}
    if dataset.final_observations is None:
        metadata["final_observations"] = REPEATED
    if dataset.reference is not None and dataset.reference.source == OWN_METADATA:
        metadata |= {"ref_min_score": dataset.reference.minimum, "ref_max_score": dataset.reference.maximum}
    storage.update_metadata(metadata)
    with _FileForHDF5(storage._file_path, "r+") as file:
        storage._file_path = file  # what h5py opens instead of the path
        storage.update_episodes(_until(file, _episodes(dataset)))
        file.check_written()


class _FileForHDF5(io.FileIO):
    """A file that reports no failed write: HDF5 would crash the process when it closes the file.

    The first failure is kept, and `check_written` raises it. What could not be written is read back as zeros.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = self.failure or error
            self.seek(len(rest), io.SEEK_CUR)
        return size

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as are asked for."""
        wanted = memoryview(buffer).cast("B")
        found = super().readinto(wanted) or 0
        wanted[found:] = bytes(len(wanted) - found)
        return len(wanted)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def check_written(self) -> None:
        """Raise the first `OSError` of a write, or of what the disk says at last."""
        if self.failure is None:
            os.fsync(self.fileno())
        else:
            raise self.failure


def _until(file: _FileForHDF5, episodes: Iterator[Any]) -> Iterator[Any]:
    """The episodes, until one could not be written."""
    for episode in episodes:
        if file.failure is None:
            yield episode


def _episodes(dataset: Dataset) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    for index in range(dataset.num_episodes):
        episode = dataset.episode(index)
        observations, last = episode.observations, np.arange(len(episode)) == len(episode) - 1
        if dataset.final_observations is None:
            observations = {name: np.concatenate([array, array[-1:]]) for name, array in observations.items()}
        yield EpisodeBuffer(
            observations=nested(dataset.observation_space, observations),
            actions=nested(dataset.action_space, episode.actions),
            rewards=episode.rewards,
            terminations=last & episode.terminated,
            truncations=last & episode.truncated,
            infos={},  # None makes Minari's own description of an episode fail
        )


def _specification(environment: EnvironmentSpec) -> EnvSpec:
    """Gymnasium's own form of it: the registered one, where there is one, with the dataset's settings."""
    try:
        spec = copy.deepcopy(gymnasium.registry.get(environment.id)) or EnvSpec(environment.id)
    except gymnasium.error.Error as error:
        raise DataError(f"environment {environment.id}: {reason(error)}") from None
    spec.kwargs = {**spec.kwargs, **environment.kwargs}
    spec.max_episode_steps = environment.step_limit
    spec.additional_wrappers = tuple(wrapper.to_gymnasium() for wrapper in environment.all_wrappers)
    for name in ("entry_point", "vector_entry_point"):  # a class cannot be written down, its name can
        if callable(getattr(spec, name)):
            setattr(spec, name, None)
    return spec


def _make_namespace(namespace: str) -> None:
    from minari.namespace import create_namespace, list_local_namespaces

    if namespace not in list_local_namespaces():
        create_namespace(namespace)
