"""N environments stepped side by side, in this process or in others: each an instance of its own with its own seed."""

import contextlib
import copy
import functools
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from envs.errors import EnvError, MissingEnvError
from envs.simulate.wrappers import RecordedWrapper, effective
from envs.spaces import misfit, printable, pruned, reason, same_space, to_leaves, without


@dataclass(frozen=True)
class EnvironmentSpec:
    """A registered environment and its arguments: plain data that a dataset or a run may carry."""

    id: str
    """Such as Hopper-v5."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the environment."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated; None takes the registered limit."""
    wrappers: tuple[RecordedWrapper, ...] = ()
    """Wrappers that a recording names, innermost first."""
    from_file: bool = field(default=False, compare=False)
    """Whether a file names this environment, and not the user."""
    leave_out: tuple[str, ...] = ()
    """Parts of its observations that are not given, by their paths."""

    def make(self, **more: Any) -> gymnasium.Env[Any, Any]:
        """Make the environment, inside the recorded wrappers that are put back.

        Only a registered id is made: "module:id" would import whatever the dataset names. An argument that comes from a
        file and could name another file or a module's content is refused.

        Args:
            **more: further arguments, such as render_mode.

        Raises:
            MissingEnvError: it is not registered, or making it fails.
        """
        self.check_registered()
        if self.from_file and (named := _outward(self.kwargs)):
            raise MissingEnvError(
                f"environment {self.id}: its {named} comes from a file and names what lies outside it; if it is right,"
                f" say it yourself with --environment and --environment-kwargs"
            )
        where = ""
        try:
            env = gymnasium.make(self.id, max_episode_steps=self.max_episode_steps, **{**self.kwargs, **more})
            for wrapper in self.put_back:
                where = f"{wrapper.name}: "
                env = wrapper.wrap(env)
            return _leaving_out(env, self.leave_out) if self.leave_out else env
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an environment's own constructor may raise anything, and end the program too
            raise MissingEnvError(f"environment {self.id}: {where}{raised(error)}") from error

    def leaving_out(self, names: tuple[str, ...]) -> "EnvironmentSpec":
        """The same environment without these parts of its observations; with all that it has where there are none."""
        return replace(self, leave_out=names) if names else self

    def check_registered(self) -> None:
        """Raise `MissingEnvError` unless the id is registered here, or is one of this package's own games."""
        _register_atari(self.id)
        if ":" in self.id or self.id not in gymnasium.registry:
            raise MissingEnvError(f"environment {self.id}: not registered; {_way_out(self.id)}")

    def maker(self, **more: Any) -> Callable[[], gymnasium.Env[Any, Any]]:
        """`make`, to be called in this process or another one, where what is registered here is registered first."""
        registered = gymnasium.registry.get(self.id)
        return functools.partial(
            _make_anywhere, self, registered if _can_travel(registered) else None, tuple(_imported), more
        )

    @property
    def put_back(self) -> tuple[RecordedWrapper, ...]:
        """The recorded wrappers that `make` adds; those of the registered id itself are there already."""
        return tuple(each for each, is_put_back in zip(*self._judged(), strict=True) if is_put_back)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the recorded wrappers that are not put back: they may be any code."""
        return tuple(each.name for each, is_put_back in zip(*self._judged(), strict=True) if not is_put_back)

    def _judged(self) -> tuple[tuple[RecordedWrapper, ...], list[bool]]:
        """The recorded wrappers, and which are put back: none that is there twice, as sizes would multiply."""
        recorded = self._beyond_registered()
        names = [wrapper.name for wrapper in recorded]
        return recorded, [wrapper.is_put_back and names.count(wrapper.name) == 1 for wrapper in recorded]

    @property
    def all_wrappers(self) -> tuple[RecordedWrapper, ...]:
        """The registered id's own wrappers and the recorded ones, innermost first."""
        return (*self._registered_wrappers(), *self._beyond_registered())

    def _registered_wrappers(self) -> tuple[RecordedWrapper, ...]:
        registered = gymnasium.registry.get(self.id)
        return tuple(map(RecordedWrapper.of, registered.additional_wrappers if registered is not None else ()))

    def _beyond_registered(self) -> tuple[RecordedWrapper, ...]:
        own, recorded = effective(self._registered_wrappers()), effective(self.wrappers)
        same = [wrapper.name for wrapper in recorded[: len(own)]] == [wrapper.name for wrapper in own]
        return recorded[len(own) :] if same else recorded

    @property
    def step_limit(self) -> int | None:
        """Steps after which an episode is cut: its own limit, or the registered one; None where there is neither."""
        with contextlib.suppress(MissingEnvError):
            _register_atari(self.id)
        if self.max_episode_steps is not None or self.id not in gymnasium.registry:
            return self.max_episode_steps
        return gymnasium.registry[self.id].max_episode_steps

    def same_environment(self, other: "EnvironmentSpec") -> bool:
        """Whether both make the same environment: equal id, arguments, wrappers and step limit, however it is set."""
        ours, theirs = (
            (each.id, dict(each.kwargs), each.step_limit, [wrapper.to_json() for wrapper in each.put_back])
            for each in (self, other)
        )
        return ours == theirs

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        document = {"id": self.id, "kwargs": dict(self.kwargs), "max_episode_steps": self.max_episode_steps}
        lists: dict[str, list[Any]] = {"additional_wrappers": [wrapper.to_json() for wrapper in self.wrappers]}
        lists |= {"leave_out": list(self.leave_out)}
        return document | {name: values for name, values in lists.items() if values}

    @staticmethod
    def from_json(document: Any) -> "EnvironmentSpec":
        """From `to_json`'s form, or from Gymnasium's own spec as JSON text, of which only so much is read.

        A recorded render_mode is dropped: it is not part of the environment, and a window may not open here.
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
                wrappers=effective(map(RecordedWrapper.from_json, content.get("additional_wrappers") or ())),
                from_file=True,
                leave_out=tuple(map(str, content.get("leave_out") or ())),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise EnvError(f"not an environment's specification: {str(document)[:80]!r}") from None


def _leaving_out(environment: gymnasium.Env[Any, Any], names: tuple[str, ...]) -> gymnasium.Env[Any, Any]:
    """The environment without these parts of its observations."""
    space = without(environment.observation_space, names)
    return gymnasium.wrappers.TransformObservation(
        environment, functools.partial(pruned, names=frozenset(names)), space
    )


def check_spaces(
    spec: EnvironmentSpec, recorded: tuple[Space[Any], Space[Any]], present: tuple[Space[Any], Space[Any]]
) -> None:
    """Raise `EnvError` unless the data's spaces are the environment's.

    recorded, present: the data's and the environment's, first of observations and then of actions.
    """
    for kind, ours, theirs in zip(("observation", "action"), recorded, present, strict=True):
        difference = same_space(ours, theirs, unbounded_fits=kind == "observation")
        if difference:
            undeclared = same_space(ours, theirs, unbounded_fits=True) is None
            remedy = (
                f"; dt train --environment {spec.id} takes the environment's for data that declares none" * undeclared
            )
            missing = (
                f". The data was recorded inside {', '.join(spec.left_out)}, not built here" if spec.left_out else ""
            )
            raise EnvError(
                f"environment {spec.id}: its {kind} space does not fit the data's: {difference}{remedy}{missing}"
            )


def _register_atari(environment_id: str) -> None:
    """Register this package's Atari games where the id is one of theirs; without their simulator that is refused."""
    if environment_id.startswith("Atari/"):
        try:
            importlib.import_module("envs.atari")
        except ImportError as error:
            raise MissingEnvError(
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
    if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
        raise EnvError(f"--import {module}: expected a module's name, such as {_module_name(module)}")
    if os.getcwd() not in sys.path:  # where `python -m` would look first, and an installed command does not
        sys.path.insert(0, os.getcwd())
    try:
        _add_namesake(module.partition(".")[0])
        importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module of the user's may raise anything, and end the program too
        unknown = isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0])
        hint = ". The working folder and the installed packages were searched" if unknown else ""
        raise EnvError(f"--import {module}: {raised(error)}{hint}") from error
    _imported.append(module)


def _module_name(text: str) -> str:
    """What a file's name would be as a module's."""
    name = re.sub(r"\W+", ".", text.removesuffix(".py")).strip(".")
    return name if name and all(part.isidentifier() for part in name.split(".")) else "my_environments"


def _add_namesake(name: str) -> None:
    """Run a package in the working folder that has the name of one of ours, and add its modules to ours.

    Many projects keep their environments in a package `envs`, which is also the name of this one. Raises `EnvError`
    where another package of this name is loaded.
    """
    loaded, found = sys.modules.get(name), PathFinder.find_spec(name, [os.getcwd()])
    if loaded is None or found is None or found.origin == getattr(loaded, "__file__", None):
        return
    folder = Path(__file__).parents[2] / name
    if loaded.__file__ is None or Path(loaded.__file__).parent != folder:
        if found.loader is not None:
            raise EnvError(f"{loaded.__file__} has this name and is loaded; rename {found.origin}")
        return
    path, own = [*loaded.__path__], [*(found.submodule_search_locations or ())]
    modules = {each.name for each in iter_modules([str(folder)])}
    if both := sorted(modules & {each.name for each in iter_modules(own)}):
        raise EnvError(f"{name}.{both[0]} is a module of decision-transformer too; rename your {own[0]}")
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


def _can_travel(registered: Any) -> bool:
    """Whether it can be sent to another process. A lambda cannot: the module that registers it is imported there."""
    try:
        ForkingPickler.dumps(registered)
    except Exception:  # any type may say that it cannot be pickled, and with any error
        return False
    return True


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


class LocalEnv:
    """One environment in this process. After a failure it is given up, and made anew at its next reset.

    ask, then answer: an environment in a process of its own (`envs.simulate.processes`) works between the two. Each
    failure is an `EnvError` that says what went wrong; `Environments` adds where.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]]):
        self._make = make
        self._environment: gymnasium.Env[Any, Any] | None = None
        self._spaces: tuple[Space[Any], Space[Any]] | None = None

    def ask(self, command: str, *arguments: Any) -> None:
        """What to do next: "about", "reset" with a seed, "step" with an action, "render"."""
        self._asked = command, arguments

    def answer(self) -> Any:
        """Do what was asked."""
        command, arguments = self._asked
        try:
            environment = self._made()
            return getattr(self, f"_{command}")(environment, *arguments)
        except KeyboardInterrupt:  # the user's, and nothing that an environment raises
            raise
        except BaseException as error:  # an environment may raise anything, and end the program too
            if command != "render":
                self.leave()  # its state is unknown: no other episode is played in it
            raise error if isinstance(error, EnvError) else EnvError(raised(error)) from error

    def leave(self) -> None:
        """Close the environment. One that fails even at that has answered all that was asked."""
        environment, self._environment = self._environment, None
        if environment is not None:
            try:
                environment.close()
            except KeyboardInterrupt:
                raise
            except BaseException:  # as in `answer`
                return

    def end(self) -> None:
        """Nothing is left after `leave`."""

    def _made(self) -> gymnasium.Env[Any, Any]:
        """The environment. Its spaces are those of the first one that was made: one that changes them fails."""
        if self._environment is None:
            self._environment = self._make()
        if self._spaces is None:
            self._spaces = copy.deepcopy((self._environment.observation_space, self._environment.action_space))
        return self._environment

    def _about(self, environment: gymnasium.Env[Any, Any]) -> EnvInfo:
        rate = int(environment.metadata.get("render_fps") or 30)
        return EnvInfo(environment.observation_space, environment.action_space, rate)

    def _reset(self, environment: gymnasium.Env[Any, Any], seed: int) -> tuple[Any, Mapping[str, Any]]:
        answer = environment.reset(seed=seed)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise EnvError(f"reset() returned {type(answer).__name__}, expected (observation, info). {OLD_API}")
        observation, info = answer
        if not isinstance(info, Mapping) and misfit(environment.observation_space, answer) is None:
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
        wrong = misfit(self._spaces[0], observation)
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
        raise EnvError(f"reward {reward!r} is no number")
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


class Environments:
    """N environments, each a `LocalEnv` or one in a process of its own.

    A failure names environment, seed and step, and does not stop the others.

    Args:
        make: makes one environment.
        count: N, at least 1.
        timeout: None runs them in this process. A number of seconds runs each in a process of its own. One that takes
            longer for a step or a reset, or dies, has failed, and its process is ended.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], count: int, timeout: float | None = None):
        self._environments: list[Any] = []
        self._seeds, self._elapsed = [0] * count, [0] * count
        try:
            for _ in range(count):
                self._environments.append(LocalEnv(make) if timeout is None else _in_a_process(make, timeout))
            for env in self._environments:
                env.ask("about")
            abouts: list[EnvInfo] = [env.answer() for env in self._environments]
        except BaseException:
            self.close()  # those that were made
            raise
        self.about = abouts[0]  # they are all made alike

    def __len__(self) -> int:
        return len(self._environments)

    def resets(self, seeds: Mapping[int, int]) -> dict[int, tuple[Any, Mapping[str, Any]] | EnvError]:
        """Start an episode in each of these environments; returns observation and info, or the failure."""
        for env, seed in seeds.items():
            self._seeds[env], self._elapsed[env] = seed, 0
            self._environments[env].ask("reset", seed)
        return {env: self._answer(env, f"reset with seed {seed}") for env, seed in seeds.items()}

    def steps(self, actions: Mapping[int, Any]) -> dict[int, Step | EnvError]:
        """Take one action in each of these environments: what it answers, or its failure.

        What an environment raises is one, and an action or a reward that is not finite, and an observation that is
        not finite or not of the space.
        """
        for env, action in actions.items():
            self._elapsed[env] += 1
            self._environments[env].ask("step", action)
        return {env: self._answer(env, f"seed {self._seeds[env]}, step {self._elapsed[env]}") for env in actions}

    def reset(self, env: int, seed: int) -> tuple[Any, Mapping[str, Any]]:
        """`resets` of one environment; its failure is raised."""
        answer = self.resets({env: seed})[env]
        if isinstance(answer, EnvError):
            raise answer
        return answer

    def step(self, env: int, action: Any) -> Step:
        """`steps` of one environment; its failure is raised."""
        answer = self.steps({env: action})[env]
        if isinstance(answer, EnvError):
            raise answer
        return answer

    def render(self, env: int) -> NDArray[Any]:
        """The picture of one environment that was made with render_mode "rgb_array": (height, width, 3)."""
        self._environments[env].ask("render")
        answer = self._answer(env, "no picture")
        if isinstance(answer, EnvError):
            raise answer
        return answer

    def close(self) -> None:
        """Close every environment, and end every process."""
        for env in self._environments:
            env.leave()
        for env in self._environments:
            env.end()

    def _answer(self, env: int, where: str) -> Any:
        try:
            return self._environments[env].answer()
        except EnvError as error:
            named = EnvError(f"environment {env}, {where}: {error}")
            named.__cause__ = error
            return named

    def __enter__(self) -> "Environments":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _in_a_process(make: Callable[[], gymnasium.Env[Any, Any]], timeout: float) -> Any:
    from envs.simulate.processes import ProcessEnv  # what it needs takes a while to import, and few need it

    return ProcessEnv(make, timeout)
