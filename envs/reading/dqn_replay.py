"""The DQN Replay Dataset's files (Agarwal et al. 2020), as a Dopamine agent's replay buffer wrote them.

    FOLDER/$store$_observation_ckpt.0.gz    (N, 84, 84) uint8: the one picture seen at each step
    FOLDER/$store$_action_ckpt.0.gz         (N,) int32: the action taken at that picture
    FOLDER/$store$_reward_ckpt.0.gz         (N,) float32: what that action earned, clipped to [-1, 1] by the agent
    FOLDER/$store$_terminal_ckpt.0.gz       (N,) uint8: 1 where that action ended the game
    FOLDER/add_count_ckpt.0.gz              () int: rows that the buffer was ever given; may be missing

Each is an array of numpy's own format, compressed, and each number N is a buffer of its own: a game that runs on into
the next one is two episodes, and the first neither ends nor is cut. Dopamine puts three blank rows before each
game, so that its stacks of pictures begin with nothing, and its buffer is a ring: rows from its cursor on are of the
buffer before. Neither are steps, and both are left out. Pictures are unpacked one episode at a time.
"""

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space
from numpy.lib import format as npy
from numpy.typing import NDArray

from envs.errors import DataError
from envs.reading.readers import Header, RecordedEpisode, Recording, most_bytes
from envs.spaces import ROOT, reason

FIELDS = {
    "observation": ("u", (84, 84), "(N, 84, 84) uint8"),
    "action": ("iu", (), "(N,) integers"),
    "reward": ("f", (), "(N,) floats"),
    "terminal": ("biu", (), "(N,) of 0 and 1"),
}
"""Of each field the kinds of numbers, a row's shape, and both in words."""

PICTURE = spaces.Box(0, 255, (84, 84), np.uint8)
MOST_ACTIONS = 18
"""Of any Atari game: the joystick's nine places, with and without its button."""
BLANK_ROWS = 3
"""Rows that Dopamine puts before each game: one less than the pictures of its stacks."""
CLIPPED = (
    "rewards are those that the agent learned from; Dopamine clips them to [-1, 1], and then returns are no scores"
)


def is_replay(folder: Path) -> bool:
    """Whether a folder holds a replay buffer's files."""
    return any(folder.glob("$store$_*_ckpt.*.gz"))


def read_replay(folder: Path, given: Mapping[str, Space[Any]]) -> Recording:
    """The buffers of a folder, in the order of their numbers, each episode by episode.

    given: spaces by name. The files declare no space of actions; `num_actions` counts them.
    """
    numbers = _numbers(folder)
    header = Header(
        name=folder.resolve().name,
        source=folder,
        spaces={"observation_space": PICTURE, **given},
        repeats_final=True,
        notes=(CLIPPED,),
    )
    return Recording(header, episodes=_episodes(folder, numbers), num_actions=lambda: _num_actions(folder, numbers))


def _num_actions(folder: Path, numbers: list[int]) -> int:
    """One more than the largest action."""
    highest = max(int(_column(folder, "action", number).max(initial=0)) for number in numbers)
    if highest >= MOST_ACTIONS:
        raise DataError(f"{folder}: action {highest}, Atari has 0 to {MOST_ACTIONS - 1}")
    return highest + 1


def _numbers(folder: Path) -> list[int]:
    """Numbers of the buffers, each with all its files."""
    found = [re.fullmatch(r"\$store\$_.*_ckpt\.(\d{1,9})\.gz", path.name) for path in folder.glob("$store$_*")]
    numbers = sorted({int(match[1]) for match in found if match})
    for number in numbers:
        for field in FIELDS:
            path = _path(folder, field, number)
            if not path.exists():
                raise DataError(f"{path}: missing")
    return numbers


def _path(folder: Path, field: str, number: int) -> Path:
    name = field if field == "add_count" else f"$store$_{field}"
    return folder / f"{name}_ckpt.{number}.gz"


def _episodes(folder: Path, numbers: list[int]) -> Iterator[RecordedEpisode | DataError]:
    for number in numbers:
        try:
            yield from _buffer(folder, number)
        except DataError as error:
            yield error  # the other buffers are looked at


def _buffer(folder: Path, number: int) -> Iterator[RecordedEpisode]:
    """The episodes of one buffer, the last one as far as it goes."""
    action, reward, terminal = (_column(folder, field, number) for field in ("action", "reward", "terminal"))
    rows = len(terminal)
    for field, array in (("action", action), ("reward", reward)):
        _check_rows(folder, field, number, len(array), rows)
    if (odd := (terminal != 0) & (terminal != 1)).any():
        row = int(odd.argmax())
        raise DataError(f"{_path(folder, 'terminal', number)}: row {row}: {terminal[row]}, expected 0 or 1")
    end = _cursor(folder, number, rows)
    ends = np.flatnonzero(terminal[:end]) + 1
    bounds = [0, *ends.tolist(), *([end] if end and not terminal[end - 1] else [])]
    with _opened(folder, "observation", number) as pictures:
        _check_rows(folder, "observation", number, pictures.shape[0], rows)
        for episode, (start, stop) in enumerate(pairwise(bounds)):
            seen = pictures.rows(stop - start, f"episode {episode}")
            blank = _blank(seen, action[start:stop], reward[start:stop], terminal[start:stop])
            if blank == len(seen):
                continue  # the buffer ends between two games
            steps, over = slice(start + blank, stop), terminal[start + blank : stop].astype(np.bool_)
            yield RecordedEpisode(
                label=f"ckpt.{number}, episode {episode}",
                observations={ROOT: np.concatenate([seen[blank:], seen[-1:]])},
                actions={ROOT: action[steps]},
                rewards=reward[steps],
                terminations=over,
                truncations=np.zeros_like(over),
            )
        pictures.skip(rows - end)
        pictures.finish()


def _check_rows(folder: Path, field: str, number: int, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"{_path(folder, field, number)}: {field}: {found} rows,"
            f" {expected} in {_path(folder, 'terminal', number).name}"
        )


def _blank(seen: NDArray[Any], *others: NDArray[Any]) -> int:
    """Rows at an episode's beginning that hold nothing but zeros, at most as many as Dopamine puts there."""
    count = 0
    while count < min(BLANK_ROWS, len(seen)) and not any(array[count].any() for array in (seen, *others)):
        count += 1
    return count


def _cursor(folder: Path, number: int, rows: int) -> int:
    """Rows that are of this buffer: those before the place where the ring's next one would go."""
    path = _path(folder, "add_count", number)
    if not path.exists():
        return rows
    with _opened(folder, "add_count", number) as array:
        added = int(array.all()[()])
    if added < 1:
        raise DataError(f"{path}: {added} rows, expected at least 1")
    return added % rows or rows


def _column(folder: Path, field: str, number: int) -> NDArray[Any]:
    """All of one field but the pictures: (N,)."""
    with _opened(folder, field, number) as array:
        return array.all()


@contextmanager
def _opened(folder: Path, field: str, number: int) -> Iterator["_Array"]:
    path = _path(folder, field, number)
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path}: a link or no file, expected the data itself")
    with gzip.open(path, "rb") as file:
        yield _Array(path, field, file)


class _Array:
    """One compressed array, unpacked from its beginning on; nothing makes room before its header has been looked at."""

    def __init__(self, path: Path, field: str, file: gzip.GzipFile):
        self.path, self._field, self._file, self._done = path, field, file, 0
        try:
            self.shape, self.kind = self._header()
        except DataError:
            raise
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise DataError(f"{path}: {field}: cannot be read as a compressed .npy ({reason(error)})") from None

    def _header(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        kinds, row, words = FIELDS.get(self._field, ("iu", None, "() integer"))
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(self._file))
        if read is None:
            raise DataError(f"{self.path}: {self._field}: not an array of numbers")
        shape, by_columns, kind = read(self._file)
        if kind.hasobject:
            raise DataError(f"{self.path}: {self._field}: type {kind} is pickle, which may run any code")
        fits = shape == () if row is None else len(shape) > 0 and shape[1:] == row
        if not fits or by_columns or kind.kind not in kinds or (row == PICTURE.shape and kind != np.uint8):
            raise DataError(f"{self.path}: {self._field}: {kind} of shape {shape}, expected {words}")
        if 0 in shape:
            raise DataError(f"{self.path}: {self._field}: no row in it")
        if math.prod(shape) * kind.itemsize > (most := most_bytes(self.path)):
            raise DataError(
                f"{self.path}: {self._field}: shape {shape} of {kind}: more than {most >> 20} MB,"
                f" which no file of {self.path.stat().st_size} bytes should hold"
            )
        return shape, kind

    def all(self) -> NDArray[Any]:
        """The whole array."""
        found = self._read(math.prod(self.shape), "")
        self.finish()
        return found.reshape(self.shape)

    def rows(self, count: int, where: str) -> NDArray[Any]:
        """The next rows: (count, ...). where: what they are, for the error."""
        found = self._read(count * math.prod(self.shape[1:]), f"{where}, ")
        self._done += count
        return found.reshape(count, *self.shape[1:])

    def skip(self, count: int) -> None:
        """Skip the next rows, a few at a time: they may be all of a buffer."""
        for start in range(0, count, 1024):
            self.rows(min(1024, count - start), "rows of the buffer before")

    def finish(self) -> None:
        """Look at what stands behind the array: nothing but the compressed file's own checksum, which is compared."""
        try:
            more = self._file.read(1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.path}: {self._field}: damaged ({reason(error)})") from None
        if more:
            raise DataError(f"{self.path}: {self._field}: more in it than the shape {self.shape} that it declares")

    def _read(self, numbers: int, where: str) -> NDArray[Any]:
        size = numbers * self.kind.itemsize
        try:
            data = self._file.read(size)
            why = "cut short"
        except (OSError, EOFError, zlib.error) as error:
            data, why = b"", reason(error)
        if len(data) < size:
            raise DataError(f"{self.path}: {where}{self._field}: cannot be read from row {self._done} on ({why})")
        return np.frombuffer(data, self.kind).astype(self.kind.newbyteorder("="), copy=False)
