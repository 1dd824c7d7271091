"""Wrappers that a recording names: Gymnasium's own are put back where that is safe, others are named and not built."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import WrapperSpec

from envs.spaces import printable

PUT_BACK = {
    *("ClipAction", "RescaleAction", "DiscretizeAction", "StickyAction", "RepeatAction", "ClipReward"),
    *("FlattenObservation", "ReshapeObservation", "RescaleObservation", "FilterObservation", "DiscretizeObservation"),
    *("ResizeObservation", "GrayscaleObservation", "TimeAwareObservation", "FrameStackObservation"),
    *("DelayObservation", "MaxAndSkipObservation", "AtariPreprocessing"),
}
"""Gymnasium's wrappers that are decided by plain arguments, open no file and forget everything at a reset."""

WITHOUT_EFFECT = {
    *("PassiveEnvChecker", "OrderEnforcing", "RecordEpisodeStatistics", "RecordVideo", "HumanRendering"),
    *("RenderCollection", "Monitor", "DataCollector"),
}
"""Wrappers that change no observation, action, reward or end; they are left out without a word."""

STATEFUL = {"NormalizeObservation", "NormalizeReward"}
"""Wrappers that keep statistics from one episode to the next."""

LIMITS = dict.fromkeys(("shape", "screen_size", "bins"), 512) | dict.fromkeys(
    ("stack_size", "delay", "skip", "frame_skip", "noop_max", "num_repeats", "repeat_action_duration"), 64
)
"""Largest whole numbers of arguments that decide how much memory or time a step takes."""

LONGEST = 512
"""Most values in an argument."""


@dataclass(frozen=True)
class RecordedWrapper:
    """A wrapper as a recording names it. kwargs: None where they were not recorded, or are not plain."""

    name: str
    entry_point: str = ""
    kwargs: Mapping[str, Any] | None = field(default_factory=dict)

    @property
    def is_put_back(self) -> bool:
        """Whether this is one of `PUT_BACK`, of Gymnasium itself, with arguments that ask for no memory."""
        ours = self.entry_point.startswith("gymnasium.wrappers.") and self.entry_point.endswith(f":{self.name}")
        if self.name not in PUT_BACK or not ours or not hasattr(gymnasium.wrappers, self.name):
            return False
        return self.kwargs is not None and all(
            _is_plain(value, LIMITS.get(name, math.inf)) for name, value in self.kwargs.items()
        )

    def wrap(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        """The environment inside this wrapper."""
        kwargs = {name: _restored(name, value) for name, value in (self.kwargs or {}).items()}
        return getattr(gymnasium.wrappers, self.name)(env, **kwargs)

    def to_json(self) -> dict[str, Any]:
        """In Gymnasium's form."""
        return {"name": self.name, "entry_point": self.entry_point, "kwargs": self.kwargs and dict(self.kwargs)}

    def to_gymnasium(self) -> WrapperSpec:
        """As a part of Gymnasium's own specification."""
        return WrapperSpec(**self.to_json())

    @staticmethod
    def of(spec: WrapperSpec) -> "RecordedWrapper":
        """From Gymnasium's own specification; its arguments may be anything."""
        kwargs = None if spec.kwargs is None else {name: _plain(value) for name, value in spec.kwargs.items()}
        known = kwargs is not None and all(value is not _unknown for value in kwargs.values())
        return RecordedWrapper(spec.name, spec.entry_point, kwargs if known else None)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "RecordedWrapper":
        """From Gymnasium's form. Raises what a document of another form makes Python raise."""
        kwargs = document.get("kwargs")
        return RecordedWrapper(
            printable(str(document["name"])),
            printable(str(document.get("entry_point"))),
            None if kwargs is None else dict(kwargs),
        )


def effective(wrappers: Iterable[RecordedWrapper]) -> tuple[RecordedWrapper, ...]:
    """Without those that change nothing."""
    return tuple(wrapper for wrapper in wrappers if wrapper.name not in WITHOUT_EFFECT)


def stateful_wrappers(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Names of wrappers around an environment that keep statistics from episode to episode, outermost first."""
    found, layer = [], env
    while isinstance(layer, gymnasium.Wrapper):
        found += [kind.__name__ for kind in type(layer).__mro__ if kind.__name__ in STATEFUL][:1]
        layer = layer.env
    return found


_unknown = object()


def _plain(value: Any) -> Any:
    """A value as JSON has it; `_unknown` where it has no such form."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        values = [_plain(each) for each in value]
        return _unknown if any(each is _unknown for each in values) else values
    return value if value is None or isinstance(value, bool | int | float | str) else _unknown


def _is_plain(value: Any, largest: float) -> bool:
    """Whether an argument is a number, a text without a path in it, or a short list of such."""
    if isinstance(value, list | tuple):
        return len(value) <= LONGEST and all(_is_plain(each, largest) for each in value)
    if isinstance(value, str):
        return len(value) <= LONGEST and not any(sign in value for sign in "/\\:")
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) <= largest)


def _restored(name: str, value: Any) -> Any:
    """An argument from JSON, which has no arrays and no tuples: bounds may be arrays, other lists were tuples."""
    if isinstance(value, list):
        return np.asarray(value) if name.startswith(("min_", "max_")) else tuple(value)
    return value
