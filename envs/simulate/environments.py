"""N environments stepped side by side, in this process or in others: each an instance of its own with its own seed."""

import contextlib
import functools
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.spaces import misfit, printable, reason, same_space, to_leaves


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
    from_file: bool = field(default=False, compare=False)  # a dataset or a run names it, and not the user

    def make(self, **more: Any) -> gymnasium.Env[Any, Any]:
        """Make it. Only a registered id is made: a "module:id" would import whatever the dataset asks for.

        Nor is an argument of a file's taken that could name another file, or a module's content.
        """
        self.require_registered()
        if self.from_file and (named := _outward(self.kwargs)):
            raise MissingWorldError(
                f"environment {self.id}: its {named} comes from a file and names what lies outside it; if it is right,"
                f" say it yourself with --environment and --environment-kwargs"
            )
        try:
            return gymnasium.make(self.id, max_episode_steps=self.max_episode_steps, **{**self.kwargs, **more})
        except Exception as error:  # an environment's own constructor may raise anything
            raise MissingWorldError(f"environment {self.id}: {reason(error)}") from error

    def require_registered(self) -> None:
        """Raise `MissingWorldError` unless the id is registered here, or is one of this package's own games."""
        _register_atari(self.id)
        if ":" in self.id or self.id not in gymnasium.registry:
            raise MissingWorldError(f"environment {self.id}: not registered; {_way_out(self.id)}")

    def maker(self, **more: Any) -> Callable[[], gymnasium.Env[Any, Any]]:
        """`make`, to be called in this process or another one, where what is registered here is registered first."""
        return functools.partial(_make_anywhere, self, gymnasium.registry.get(self.id), tuple(_imported), more)

    @property
    def step_limit(self) -> int | None:
        """Steps after which an episode is cut: its own limit, or the registered one; None where there is neither."""
        with contextlib.suppress(MissingWorldError):
            _register_atari(self.id)
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
                id=printable(str(content["id"])),
                kwargs=kwargs,
                max_episode_steps=None if limit is None or int(limit) < 1 else int(limit),
                left_out=tuple(printable(str(wrapper["name"])) for wrapper in content.get("additional_wrappers") or ()),
                from_file=True,
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise WorldError(f"not an environment's specification: {str(document)[:80]!r}") from None


def check_spaces(
    spec: EnvironmentSpec, recorded: tuple[Space[Any], Space[Any]], present: tuple[Space[Any], Space[Any]]
) -> None:
    """Raise `WorldError` unless the data's spaces are the environment's.

    recorded, present: the data's and the environment's, first of observations and then of actions.
    """
    for kind, ours, theirs in zip(("observation", "action"), recorded, present, strict=True):
        difference = same_space(ours, theirs, unbounded_fits=kind == "observation")
        if difference:
            undeclared = same_space(ours, theirs, unbounded_fits=True) is None
            remedy = f"; dt train --environment {spec.id} takes the world's for data that declares none" * undeclared
            raise WorldError(f"environment {spec.id}: its {kind} space does not fit the data's: {difference}{remedy}")


def _register_atari(environment_id: str) -> None:
    """Register this package's Atari games where the id is one of theirs; without their simulator that is refused."""
    if environment_id.startswith("Atari/"):
        try:
            importlib.import_module("envs.atari")
        except ImportError as error:
            raise MissingWorldError(
                f"environment {environment_id}: {reason(error)}: pip install ale-py opencv-python-headless"
            ) from None


def _way_out(environment_id: str) -> str:
    """What to do about an id that is not registered."""
    if environment_id.startswith("ALE/"):
        return (
            f"Atari/{environment_id[4:]} is the game as the paper plays it, --import ale_py registers its whole screen"
        )
    return "--import MODULE registers it, --environment ID names another"


def _outward(value: Any, name: str = "") -> str | None:
    """The first text among an environment's arguments that could be a path, an address or "module:attribute"."""
    if isinstance(value, Mapping):
        found = (_outward(part, f"{name}.{key}" if name else str(key)) for key, part in value.items())
        return next(filter(None, found), None)
    if isinstance(value, list):
        return next(filter(None, (_outward(part, name) for part in value)), None)
    outward = isinstance(value, str) and (value.startswith((".", "~")) or any(sign in value for sign in "/\\:"))
    return f"{name}={value[:80]!r}" if outward else None


_imported: list[str] = []
"""Modules of the user's that registered environments; another process imports them too."""


def import_environments(module: str) -> None:
    """Import a module of the user's that registers environments."""
    if os.getcwd() not in sys.path:  # where `python -m` would look first, and an installed command does not
        sys.path.insert(0, os.getcwd())
    try:
        _add_namesake(module.partition(".")[0])
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything, and end the program too
        unknown = isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0])
        hint = " (a module's name, not a file's)" if unknown else ""
        why = f"it ended the program with {error.code}" if isinstance(error, SystemExit) else reason(error)
        raise WorldError(f"--import {module}: {why}{hint}") from error
    _imported.append(module)


def _add_namesake(name: str) -> None:
    """Run a package in the working folder that has the name of one of ours, and add its modules to ours.

    Many projects keep their environments in a package `envs`, which is also the name of this one. Raises `WorldError`
    where another package of this name is loaded.
    """
    loaded, found = sys.modules.get(name), PathFinder.find_spec(name, [os.getcwd()])
    if loaded is None or found is None or found.origin == getattr(loaded, "__file__", None):
        return
    folder = Path(__file__).parents[2] / name
    if loaded.__file__ is None or Path(loaded.__file__).parent != folder:
        if found.loader is not None:
            raise WorldError(f"{loaded.__file__} has this name and is loaded; rename {found.origin}")
        return
    path, own = [*loaded.__path__], [*(found.submodule_search_locations or ())]
    modules = {each.name for each in iter_modules([str(folder)])}
    if both := sorted(modules & {each.name for each in iter_modules(own)}):
        raise WorldError(f"{name}.{both[0]} is a module of decision-transformer too; rename your {own[0]}")
    loaded.__path__ = [*path, *(each for each in own if each not in path)]
    if found.loader is not None and found.origin not in _namesakes:
        _namesakes.append(str(found.origin))
        theirs = module_from_spec(found)
        theirs.__path__ = loaded.__path__
        found.loader.exec_module(theirs)
        for key, value in vars(theirs).items():
            vars(loaded).setdefault(key, value)


_namesakes: list[str] = []
"""Files of packages that have run under the name of one of ours."""


def _make_anywhere(
    spec: EnvironmentSpec, registered: Any, modules: tuple[str, ...], more: Mapping[str, Any]
) -> gymnasium.Env[Any, Any]:
    for module in modules:
        if module not in _imported:
            import_environments(module)
    if registered is not None:
        gymnasium.registry.setdefault(spec.id, registered)
    return spec.make(**more)


@dataclass(frozen=True)
class Step:
    """What one world answered to an action."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


@dataclass(frozen=True)
class About:
    """What an environment says of itself."""

    observation_space: Space[Any]
    action_space: Space[Any]
    frames_per_second: int


class World:
    """One environment in this process. After a failure it is given up, and made anew at its next reset.

    ask, then answer: a world in a process of its own (`envs.simulate.processes`) works between the two. Each failure
    is a `WorldError` that says what went wrong; `Worlds` adds where.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]]):
        self._make = make
        self._environment: gymnasium.Env[Any, Any] | None = None

    def ask(self, command: str, *arguments: Any) -> None:
        """What to do next: "about", "reset" with a seed, "step" with an action, "render"."""
        self._asked = command, arguments

    def answer(self) -> Any:
        """Do what was asked."""
        command, arguments = self._asked
        if self._environment is None:
            self._environment = self._make()
        try:
            return getattr(self, f"_{command}")(self._environment, *arguments)
        except Exception as error:  # an environment may raise anything
            if command != "render":
                self.leave()  # whatever state it is in now, nobody else plays there
            raise error if isinstance(error, WorldError) else WorldError(reason(error)) from error

    def leave(self) -> None:
        """Close the environment. One that fails even at that has answered all that was asked."""
        environment, self._environment = self._environment, None
        if environment is not None:
            with contextlib.suppress(Exception):
                environment.close()

    def end(self) -> None:
        """Nothing is left after `leave`."""

    def _about(self, environment: gymnasium.Env[Any, Any]) -> About:
        rate = int(environment.metadata.get("render_fps") or 30)
        return About(environment.observation_space, environment.action_space, rate)

    def _reset(self, environment: gymnasium.Env[Any, Any], seed: int) -> tuple[Any, Mapping[str, Any]]:
        observation, info = environment.reset(seed=seed)
        return self._checked(environment, observation), _checked_info(info)

    def _step(self, environment: gymnasium.Env[Any, Any], action: Any) -> Step:
        for name, array in to_leaves(environment.action_space, action).items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise WorldError(f"the policy's action {name} is not finite: {array}")  # a world would blame itself
        observation, reward, terminated, truncated, info = environment.step(action)
        if np.asarray(reward).dtype.kind not in "fiub":  # float() would take a text
            raise WorldError(f"reward {reward!r} is no number")
        earned = float(reward)
        if not math.isfinite(earned):
            raise WorldError(f"reward {reward}")
        observation = self._checked(environment, observation)
        return Step(observation, earned, bool(terminated), bool(truncated), _checked_info(info))

    def _render(self, environment: gymnasium.Env[Any, Any]) -> NDArray[Any]:
        picture = environment.render()
        if not isinstance(picture, np.ndarray):
            raise WorldError(f"its render() returns {type(picture).__name__}")
        return picture

    def _checked(self, environment: gymnasium.Env[Any, Any], observation: Any) -> Any:
        wrong = misfit(environment.observation_space, observation)
        if wrong:
            raise WorldError(f"observation {wrong}")
        return observation


def _checked_info(info: Any) -> Mapping[str, Any]:
    if not isinstance(info, Mapping):
        raise WorldError(f"info is {type(info).__name__}, no dictionary")
    return info


class Worlds:
    """N environments, each a `World`. A failure names world, seed and step, and stops nothing else.

    count: at least 1.
    timeout: None plays in this process. A number of seconds plays each world in a process of its own, side by side: one
    that takes longer for a step or a reset, or dies, has failed, and its process is ended.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], count: int, timeout: float | None = None):
        self._worlds: list[Any] = []
        self._seeds, self._elapsed = [0] * count, [0] * count
        try:
            for _ in range(count):
                self._worlds.append(World(make) if timeout is None else _in_a_process(make, timeout))
            for world in self._worlds:
                world.ask("about")
            abouts: list[About] = [world.answer() for world in self._worlds]
        except BaseException:
            self.close()  # those that were made
            raise
        self.about = abouts[0]  # they are all made alike

    def __len__(self) -> int:
        return len(self._worlds)

    def resets(self, seeds: Mapping[int, int]) -> dict[int, tuple[Any, Mapping[str, Any]] | WorldError]:
        """Start an episode in each of these worlds: first observation and what is said beside it, or the failure."""
        for world, seed in seeds.items():
            self._seeds[world], self._elapsed[world] = seed, 0
            self._worlds[world].ask("reset", seed)
        return {world: self._answer(world, f"reset with seed {seed}") for world, seed in seeds.items()}

    def steps(self, actions: Mapping[int, Any]) -> dict[int, Step | WorldError]:
        """Take one action in each of these worlds: what it answers, or its failure.

        What an environment raises is one, and an action or a reward that is not finite, and an observation that is
        not finite or not of the space.
        """
        for world, action in actions.items():
            self._elapsed[world] += 1
            self._worlds[world].ask("step", action)
        return {
            world: self._answer(world, f"seed {self._seeds[world]}, step {self._elapsed[world]}") for world in actions
        }

    def reset(self, world: int, seed: int) -> tuple[Any, Mapping[str, Any]]:
        """`resets` of one world; its failure is raised."""
        answer = self.resets({world: seed})[world]
        if isinstance(answer, WorldError):
            raise answer
        return answer

    def step(self, world: int, action: Any) -> Step:
        """`steps` of one world; its failure is raised."""
        answer = self.steps({world: action})[world]
        if isinstance(answer, WorldError):
            raise answer
        return answer

    def render(self, world: int) -> NDArray[Any]:
        """The picture of one world that was made with render_mode "rgb_array": (height, width, 3)."""
        self._worlds[world].ask("render")
        answer = self._answer(world, "no picture")
        if isinstance(answer, WorldError):
            raise answer
        return answer

    def close(self) -> None:
        """Close every environment, and end every process."""
        for world in self._worlds:
            world.leave()
        for world in self._worlds:
            world.end()

    def _answer(self, world: int, where: str) -> Any:
        try:
            return self._worlds[world].answer()
        except WorldError as error:
            named = WorldError(f"world {world}, {where}: {error}")
            named.__cause__ = error
            return named

    def __enter__(self) -> "Worlds":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_a_process(make: Callable[[], gymnasium.Env[Any, Any]], timeout: float) -> Any:
    from envs.simulate.processes import ProcessWorld  # what it needs takes a while to import, and few need it

    return ProcessWorld(make, timeout)
