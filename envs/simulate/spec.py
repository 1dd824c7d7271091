"""An environment as plain data, which a dataset or a run may carry: what it is, and how it is made."""

import contextlib
import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium
from gymnasium.spaces import Space

from envs.errors import EnvError, MissingEnvError
from envs.simulate import importing
from envs.simulate.local_env import EnvInfo, LocalEnv, raised
from envs.simulate.wrappers import RecordedWrapper, effective
from envs.spaces import printable, pruned, reason, same_space, without


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

    def info(self) -> EnvInfo:
        """Make the environment, ask it for its spaces, and close it.

        Raises:
            EnvError: as `make`, or the environment cannot say them.
        """
        env = LocalEnv(self.make)
        env.send("info")
        try:
            info: EnvInfo = env.recv()
            return info
        finally:
            env.close()

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
            _make_anywhere, self, registered if _can_travel(registered) else None, tuple(importing.imported), more
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
        """From `to_json`'s form, or from Gymnasium's own spec as JSON text; only so much of it is read.

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
        if module not in importing.imported:
            importing.import_environments(module)
    if registered is not None:
        gymnasium.registry.setdefault(spec.id, registered)
    return spec.make(**more)
