"""Read a file or folder, whatever its format: the one place that chooses a reader."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gymnasium.spaces import Space

from envs.errors import DataError
from envs.reading.dqn_replay import is_replay, read_replay
from envs.reading.flat_files import flat_files, read_flat, recording_of
from envs.reading.lerobot import is_lerobot, read_lerobot
from envs.reading.minari_folders import read_folder
from envs.reading.options import ReadingOptions
from envs.reading.readers import Recording


def read(path: Path, given: Mapping[str, Space[Any]], options: ReadingOptions) -> Recording:
    """What is known of a recording, and its numbers.

    Args:
        path: a file or folder.
        given: spaces by name, instead of the metadata's own.
        options: what the user says of how to read it.

    Raises:
        DataError: the file cannot be read, or an option does not apply to its format.
    """
    if not path.is_dir():
        return read_flat(path, given, options)
    if is_lerobot(path):
        return recording_of(path, read_lerobot(path, options), given, options)
    if not flat_files(path) or (path / "metadata.json").exists():  # else it is refused in words about its files
        _check_fixed_layout(path, options)
    found = read_replay(path, given) if is_replay(path) else read_folder(path, given, options.leave_out)
    return replace(found, header=replace(found.header, reward=options.reward))


def _check_fixed_layout(path: Path, options: ReadingOptions) -> None:
    """Refuse options that do not apply to a folder with fixed names and rows."""
    if options.columns:
        raise DataError(f"{path}: a folder's fields have names of their own; columns are for flat files")
    if options.episode_length is not None or options.file_is_episode:
        raise DataError(f"{path}: its layout says where episodes end; leave out --episode-length and --file-is-episode")
    if options.last_row_is_final:
        raise DataError(f"{path}: its layout says which observations are final; leave out --last-row-is-final")
    if options.reward == "success":
        raise DataError(f"{path}: no success flag is read of such a folder; --reward last rewards each last step")
