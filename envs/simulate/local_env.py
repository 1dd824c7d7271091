"""One environment in this process: every answer is checked, and every failure is an `EnvError`.

`Environments` uses it unless `env_timeout` is given.
"""

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.errors import EnvError
from envs.simulate.wrappers import stateful_wrappers
from envs.spaces import reason, space_error, to_leaves


@dataclass(frozen=True)
class Step:
    """What one environment answered to an action."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


@dataclass(frozen=True)
class EnvInfo:
    """What an environment says of itself."""

    observation_space: Space[Any]
    action_space: Space[Any]
    frames_per_second: int
    stateful: tuple[str, ...] = ()
    """Names of wrappers that keep statistics from episode to episode."""


class LocalEnv:
    """One environment in this process. After a failure it is given up, and made again at its next reset.

    send, then recv: an environment in a process of its own (`envs.simulate.process_env`) works between the two. Each
    failure is an `EnvError` that says what went wrong; `Environments` adds where.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]]):
        self._make = make
        self._environment: gymnasium.Env[Any, Any] | None = None
        self._spaces: tuple[Space[Any], Space[Any]] | None = None

    def send(self, command: str, *arguments: Any) -> None:
        """What to do next: "info", "reset" with a seed, "step" with an action, "render"."""
        self._command = command, arguments

    def recv(self) -> Any:
        """Do what was asked."""
        command, arguments = self._command
        try:
            environment = self._made()
            return getattr(self, f"_{command}")(environment, *arguments)
        except KeyboardInterrupt:  # the user's, and nothing that an environment raises
            raise
        except BaseException as error:  # an environment may raise anything, and end the program too
            if command != "render":
                self.close()  # its state is unknown: no other episode is played in it
            raise error if isinstance(error, EnvError) else EnvError(raised(error)) from error

    def close(self) -> None:
        """Close the environment. One that fails even at that has answered all that was asked."""
        environment, self._environment = self._environment, None
        if environment is not None:
            try:
                environment.close()
            except KeyboardInterrupt:
                raise
            except BaseException:  # as in `recv`
                return

    def join(self) -> None:
        """Nothing is left after `close`."""

    def _made(self) -> gymnasium.Env[Any, Any]:
        """The environment. Its spaces are those of the first one that was made: one that changes them fails."""
        if self._environment is None:
            self._environment = self._make()
        if self._spaces is None:
            self._spaces = copy.deepcopy((self._environment.observation_space, self._environment.action_space))
        return self._environment

    def _info(self, environment: gymnasium.Env[Any, Any]) -> EnvInfo:
        rate = int(environment.metadata.get("render_fps") or 30)
        stateful = tuple(stateful_wrappers(environment))
        return EnvInfo(environment.observation_space, environment.action_space, rate, stateful)

    def _reset(self, environment: gymnasium.Env[Any, Any], seed: int) -> tuple[Any, Mapping[str, Any]]:
        answer = environment.reset(seed=seed)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise EnvError(f"reset() returned {type(answer).__name__}, expected (observation, info). {OLD_API}")
        observation, info = answer
        if not isinstance(info, Mapping) and space_error(environment.observation_space, answer) is None:
            raise EnvError(f"reset() returned an observation, expected (observation, info). {OLD_API}")
        return self._checked(environment, observation), _checked_info(info)

    def _step(self, environment: gymnasium.Env[Any, Any], action: Any) -> Step:
        assert self._spaces is not None
        for name, array in to_leaves(self._spaces[1], action).items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():  # an environment would blame itself
                raise EnvError(f"the policy's action {name} is not finite: {array}")
        answer = environment.step(action)
        if isinstance(answer, tuple | list) and len(answer) == 4:
            raise EnvError(f"step() returned 4 values, expected {STEP_RETURNS}. {OLD_API}")
        observation, reward, terminated, truncated, info = answer
        earned = _one_number(reward)
        observation = self._checked(environment, observation)
        return Step(observation, earned, bool(terminated), bool(truncated), _checked_info(info))

    def _render(self, environment: gymnasium.Env[Any, Any]) -> NDArray[Any]:
        picture = environment.render()
        if not isinstance(picture, np.ndarray):
            raise EnvError(f"its render() returns {type(picture).__name__}")
        return picture

    def _checked(self, environment: gymnasium.Env[Any, Any], observation: Any) -> Any:
        assert self._spaces is not None
        wrong = space_error(self._spaces[0], observation)
        if wrong:
            now = environment.observation_space
            changed = "" if now == self._spaces[0] else f"; the environment has changed its space to {now}"
            raise EnvError(f"observation {wrong}{changed}")
        return observation


STEP_RETURNS = "(observation, reward, terminated, truncated, info)"


OLD_API = "This is the API of gym before 0.26; gymnasium.Env says what the methods return now."


def raised(error: BaseException) -> str:
    """What an environment raised, in one line: the error's kind and the first line of its message."""
    if isinstance(error, SystemExit):
        return f"it ended the program with {error.code}"
    kind, message = type(error).__name__, reason(error)
    if isinstance(error, ValueError) and re.search(r"values to unpack \(expected [25]", message):
        message += f"; reset() must return (observation, info), and step() {STEP_RETURNS}"
    return message if message == kind or isinstance(error, EnvError) else f"{kind}: {message}"


def _one_number(reward: Any) -> float:
    """A reward, also as an array or a list of one number."""
    number = np.asarray(reward)
    if number.dtype.kind not in "fiub":  # float() would take a text
        raise EnvError(f"reward {reward!r} is not a number")
    if number.size != 1:
        raise EnvError(f"reward: shape {number.shape}, expected one number")
    earned = float(number.reshape(()))
    if not math.isfinite(earned):
        raise EnvError(f"reward {earned}")
    return earned


def _checked_info(info: Any) -> Mapping[str, Any]:
    if not isinstance(info, Mapping):
        raise EnvError(f"info is {type(info).__name__}, no dictionary")
    return info
