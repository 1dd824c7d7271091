"""A `Dataset` from arrays or episodes in memory, and from a replay buffer."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space

from envs.datasets.arrays import nested_arrays, num_rows
from envs.datasets.assemble import assemble
from envs.datasets.check import check
from envs.datasets.dataset import Dataset
from envs.datasets.declare import declare
from envs.datasets.ends import contradiction, end_of, how_ended
from envs.errors import DataError
from envs.reading.fields import ENDS, NEEDED, choose_all
from envs.reading.readers import SPACES, Header, Recording
from envs.simulate.spec import EnvironmentSpec

IGNORED_FIELDS = ("id", "infos")
"""Fields of Minari's episodes that are not learned from."""


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
    return _checked(header, environment, fields)


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
    arrays = _flat_arrays(name, episodes)
    header = _header(name, observation_space, action_space)
    return _checked(header, environment, arrays)


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


def _checked(header: Header, environment: EnvironmentSpec | None, arrays: Mapping[str, Any]) -> Dataset:
    return check(*assemble(declare(Recording(header, arrays), environment)))


def _header(name: str, observation_space: Space[Any] | None, action_space: Space[Any] | None) -> Header:
    given = dict(zip(SPACES, (observation_space, action_space), strict=True))
    return Header(name=name, source=name, spaces={key: space for key, space in given.items() if space is not None})


def _flat_arrays(name: str, episodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Episodes, as `envs.from_episodes` has them, as the arrays that `split` takes."""
    columns: dict[str, list[Any]] = {field: [] for field in (*NEEDED, "next_observations", "terminated", "truncated")}
    for number, episode in enumerate(episodes):
        where = f"{name}: episode {number}"
        if not isinstance(episode, Mapping):
            raise DataError(
                f"{where}: a {type(episode).__name__}, expected a mapping with observations (T, ...), actions (T, ...) "
                "and rewards (T,). If it holds one transition after the other, put each field in one array"
            )
        given = {key: value for key, value in episode.items() if value is not None and key not in IGNORED_FIELDS}
        names = choose_all(where, given, (*NEEDED, *ENDS, "next_observations"))
        for field in (*NEEDED, "next_observations"):
            if field not in names:
                continue
            columns[field].append(nested_arrays(f"{where}, {names[field]}", given[names[field]]))
        steps = num_rows(columns["rewards"][-1])
        ends = {field: names[field] for field in ENDS if field in names}
        flags = {field: end_of(f"{where}, {key}", given[key], steps) for field, key in ends.items()}
        terminated, truncated, odd = how_ended(flags, 1)
        if odd.any():
            raise DataError(f"{where}: {contradiction(flags, 0)}")
        columns["terminated"].append(terminated[0])
        columns["truncated"].append(truncated[0])
    if not columns["rewards"]:
        raise DataError(f"{name}: no episode in it")
    lengths = [num_rows(rewards) for rewards in columns["rewards"]]
    final = int(num_rows(columns["observations"][0]) != lengths[0])  # 1 where the final observation is there
    rows = {"observations": [length + final for length in lengths], "actions": lengths, "rewards": lengths}
    if (there := len(columns["next_observations"])) == len(lengths):
        rows["next_observations"] = lengths
    elif there:
        raise DataError(f"{name}: next_observations are in {there} of {len(lengths)} episodes")
    arrays = {field: _stacked(name, field, columns[field], rows[field]) for field in rows}
    return {**arrays, "terminated": columns["terminated"], "truncated": columns["truncated"], "lengths": lengths}


def _stacked(name: str, field: str, values: list[Any], rows: list[int]) -> Any:
    """The same field of all episodes, one after the other, nested as in the first."""
    first = values[0]
    for number, value in enumerate(values):
        if _keys(value) != _keys(first):
            raise DataError(f"{name}: episode {number}, {field}: {_keys(value)}, expected {_keys(first)}")
    if keys := _keys(first):
        parts = {key: _stacked(name, f"{field}/{key}", [value[key] for value in values], rows) for key in keys}
        return parts if isinstance(first, dict) else tuple(parts.values())
    for number, (value, count) in enumerate(zip(values, rows, strict=True)):
        if value.shape != (count, *first.shape[1:]):
            expected = (count, *first.shape[1:])
            raise DataError(f"{name}: episode {number}, {field}: shape {value.shape}, expected {expected}")
    return np.concatenate(values)


def _keys(value: Any) -> list[Any]:
    """What a dictionary or tuple of arrays is made of; nothing where it is one array."""
    return sorted(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, tuple) else []
