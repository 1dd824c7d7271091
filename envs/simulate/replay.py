"""Environments that play their first episode again at the end: one that carries state over shows a difference there."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from envs.errors import EnvError
from envs.simulate.environments import Environments
from envs.simulate.local_env import Step
from envs.spaces import to_leaves

MOST_STEPS = 100
"""Steps of the first episode that are played again."""


@dataclass
class _Episode:
    env: int
    seed: int
    seen: list[dict[str, Any]]  # after the reset and after each step
    actions: list[Any] = field(default_factory=list)


class ReplayingEnvironments(Environments):
    """`Environments` that keep the actions of the first episode, and a digest of what was seen.

    The arguments are those of `Environments`.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], count: int, timeout: float | None = None):
        super().__init__(make, count, timeout)
        self._first: _Episode | None = None
        self._recording = False

    def resets(self, seeds: Mapping[int, int]) -> dict[int, tuple[Any, Mapping[str, Any]] | EnvError]:
        """As in `Environments`."""
        answers = super().resets(seeds)
        if self._first is None:
            env, answer = next(iter(answers.items()))
            if not isinstance(answer, EnvError):
                self._first, self._recording = _Episode(env, seeds[env], [self._digest(answer)]), True
        elif self._first.env in seeds:
            self._recording = False
        return answers

    def steps(self, actions: Mapping[int, Any]) -> dict[int, Step | EnvError]:
        """As in `Environments`."""
        first = self._first
        if first is None or not self._recording or first.env not in actions:
            return super().steps(actions)
        action = copy.deepcopy(actions[first.env])  # before the step, which may change it in place
        answers = super().steps(actions)
        answer = answers[first.env]
        if isinstance(answer, EnvError) or len(first.actions) == MOST_STEPS:
            self._recording = False
        else:
            first.actions.append(action)
            first.seen.append(self._digest(answer))
        return answers

    def difference(self) -> str | None:
        """Play the first episode again in its environment; returns what was different, or None.

        Call it when no episode is running.
        """
        first, self._recording = self._first, False
        if first is None:
            return None
        answer: Any = super().resets({first.env: first.seed})[first.env]
        for step, seen in enumerate(first.seen):
            where = f"at step {step}" if step else "at its reset"
            if isinstance(answer, EnvError):
                return f"seed {first.seed}, played again with the same actions, failed {where}"
            now = self._digest(answer)
            if different := [name for name, value in seen.items() if now[name] != value]:
                return f"seed {first.seed}, played again with the same actions, had a different {different[0]} {where}"
            if step < len(first.actions):
                answer = super().steps({first.env: first.actions[step]})[first.env]
        return None

    def _digest(self, answer: Any) -> dict[str, Any]:
        """What is compared of an answer to a reset or a step."""
        observation = answer.observation if isinstance(answer, Step) else answer[0]
        digest = hashlib.blake2b(digest_size=16)
        for array in to_leaves(self.info.observation_space, observation).values():
            digest.update(array.tobytes())
        seen: dict[str, Any] = {"observation": digest.digest()}
        if isinstance(answer, Step):
            seen |= {"reward": answer.reward, "end": (answer.terminated, answer.truncated)}
        return seen
