"""N environments stepped side by side in this process, each an instance of its own with its own seed."""

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.spaces import reason


class WorldError(ValueError):
    """An environment that cannot be made or stepped; the message names it and the reason."""


class MissingWorldError(WorldError):
    """An environment that cannot be made here: not registered, or something that it needs is not installed."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """A registered environment and what it is made with; plain data that a dataset or a run may carry."""

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    left_out: tuple[str, ...] = field(default=(), compare=False)  # wrappers that a recording names; never put on

    def make(self, **more: Any) -> gymnasium.Env[Any, Any]:
        """Make it. Only a registered id is made: a "module:id" would import whatever the dataset asks for."""
        if ":" in self.id or self.id not in gymnasium.registry:
            raise MissingWorldError(
                f"environment {self.id}: not registered; --import MODULE registers it, --environment ID names another"
            )
        try:
            return gymnasium.make(self.id, max_episode_steps=self.max_episode_steps, **{**self.kwargs, **more})
        except Exception as error:  # an environment's own constructor may raise anything
            raise MissingWorldError(f"environment {self.id}: {reason(error)}") from error

    @property
    def step_limit(self) -> int | None:
        """Steps after which an episode is cut: its own limit, or the registered one; None where there is neither."""
        if self.max_episode_steps is not None or self.id not in gymnasium.registry:
            return self.max_episode_steps
        return gymnasium.registry[self.id].max_episode_steps

    def same_world(self, other: "EnvironmentSpec") -> bool:
        """Whether both make the same world: one id, one set of arguments, one step limit wherever it is written."""
        return (self.id, dict(self.kwargs), self.step_limit) == (other.id, dict(other.kwargs), other.step_limit)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"id": self.id, "kwargs": dict(self.kwargs), "max_episode_steps": self.max_episode_steps}

    @staticmethod
    def from_json(document: Any) -> "EnvironmentSpec":
        """From `to_json`'s form, or from Gymnasium's own spec as JSON text, of which only so much is read.

        A recorded render_mode is dropped: how a world was watched is no part of it, and a window may not open here.
        """
        try:
            content = json.loads(document) if isinstance(document, str) else dict(document)
            limit = content.get("max_episode_steps")
            kwargs = dict(content.get("kwargs") or {})
            kwargs.pop("render_mode", None)
            return EnvironmentSpec(
                id=str(content["id"]),
                kwargs=kwargs,
                max_episode_steps=None if limit is None or int(limit) < 1 else int(limit),
                left_out=tuple(str(wrapper["name"]) for wrapper in content.get("additional_wrappers") or ()),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise WorldError(f"not an environment's specification: {str(document)[:80]!r}") from None


def import_environments(module: str) -> None:
    """Import a module of the user's that registers environments."""
    if os.getcwd() not in sys.path:  # where `python -m` would look first, and an installed command does not
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(module)
    except Exception as error:  # a module of the user's may raise anything
        raise WorldError(f"--import {module}: {reason(error)} (a module's name, not a file's)") from error


@dataclass(frozen=True)
class Step:
    """What one world answered to an action."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


class Worlds:
    """N environments in this process. A failure names the world and the step, and stops nothing else here."""

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], count: int):
        self._environments: list[gymnasium.Env[Any, Any]] = []
        self._elapsed = [0] * count
        try:
            for _ in range(count):
                self._environments.append(make())
        except BaseException:
            self.close()  # those that were made
            raise

    def __len__(self) -> int:
        return len(self._environments)

    def reset(self, world: int, seed: int) -> tuple[Any, Mapping[str, Any]]:
        """Start an episode in one world; returns its first observation and what the world says beside it."""
        self._elapsed[world] = 0
        try:
            observation, info = self._environments[world].reset(seed=seed)
        except Exception as error:  # an environment may raise anything
            raise WorldError(f"world {world}, reset with seed {seed}: {reason(error)}") from error
        return observation, info

    def step(self, world: int, action: Any) -> Step:
        """Take one action in one world. What the world raises, or a reward that is not finite, is a `WorldError`."""
        self._elapsed[world] += 1
        try:
            observation, reward, terminated, truncated, info = self._environments[world].step(action)
            earned = float(reward)
        except Exception as error:  # an environment may raise anything
            raise WorldError(f"world {world}, step {self._elapsed[world]}: {reason(error)}") from error
        if not math.isfinite(earned):
            raise WorldError(f"world {world}, step {self._elapsed[world]}: reward {reward}")
        return Step(observation, earned, bool(terminated), bool(truncated), info)

    @property
    def frames_per_second(self) -> int:
        """Pictures a second of world time, as the environment says; 30 where it does not."""
        return int(self._environments[0].metadata.get("render_fps") or 30)

    def render(self, world: int) -> NDArray[Any]:
        """The picture of one world that was made with render_mode "rgb_array": (height, width, 3)."""
        try:
            picture = self._environments[world].render()
        except Exception as error:  # an environment may raise anything, and a machine without a screen often does
            raise WorldError(f"world {world}, no picture: {reason(error)}") from error
        if not isinstance(picture, np.ndarray):
            raise WorldError(f"world {world}, no picture: its render() returns {type(picture).__name__}")
        return picture

    def close(self) -> None:
        """Close every environment."""
        for environment in self._environments:
            environment.close()

    def __enter__(self) -> "Worlds":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
