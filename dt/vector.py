"""A policy in a `gymnasium.vector` environment, in each of its three autoreset modes."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from numpy.typing import ArrayLike

from dt.errors import PolicyError
from dt.policy import ReturnConditionedPolicy
from envs.spaces import same_space

MODES = ("NextStep", "SameStep", "Disabled")
"""Values of Gymnasium's `AutoresetMode`."""


class VectorPolicy:
    """Plays a vector environment towards target returns: `act(observations, infos)`, then `feed(...)`, in turn.

    After an episode's end, a vector environment resets itself in the next step (NEXT_STEP: that step takes no action
    and earns nothing), in the same step (SAME_STEP), or not at all (DISABLED: call its `reset` with a `reset_mask`, and
    give `act` what it returns). Which it is, `envs.metadata` says.

    Args:
        policy: the policy to play. It must not play anything else meanwhile.
        envs: a vector environment, such as from `gymnasium.make_vec`.
        target_return: of every episode, or one for each environment.
        seed: of what is drawn where the policy's temperature is above 0; the i-th episode draws from seed + i.

    Raises:
        PolicyError: the spaces are not the model's, or the environment does not say how it resets itself.
    """

    def __init__(
        self,
        policy: ReturnConditionedPolicy,
        envs: VectorEnv[Any, Any, Any],
        target_return: float | Sequence[float],
        *,
        seed: int = 0,
    ):
        self._policy, self._envs, self._count = policy, envs, envs.num_envs
        targets = np.broadcast_to(np.asarray(target_return, np.float64), (self._count,))
        self._targets, self._next_seed = targets.tolist(), seed
        self._mode = _autoreset_mode(envs)
        pairs = (
            (policy.model.observation_space, envs.single_observation_space, "observation"),
            (
                policy.model.action_space,
                envs.single_action_space,
                "action",
            ),
        )
        for ours, theirs, kind in pairs:
            if difference := same_space(ours, theirs, unbounded_fits=kind == "observation"):
                raise PolicyError(f"the vector environment's {kind} space does not fit the model: {difference}")
        self._idle_action = copy.deepcopy(
            envs.single_action_space
        ).sample()  # the environment's own draws stay as they are
        self.reset()

    def reset(self) -> None:
        """All environments start an episode: call it whenever `envs.reset()` is called without a mask."""
        self._starting, self._resetting = [True] * self._count, [False] * self._count
        self._masks: list[Any] = [None] * self._count  # that came with the last step

    def act(self, observations: Any, infos: Mapping[str, Any] | None = None) -> Any:
        """Return the actions for `envs.step`.

        Args:
            observations: what `envs.reset` or `envs.step` returned.
            infos: what came with them; an `action_mask` in it is respected. Those of a `reset` with a mask are of some
                environments; for the others, the masks given to `feed` hold.
        """
        for env in range(self._count):
            if self._starting[env]:
                self._policy.begin(env, self._targets[env], self._next_seed)
                self._starting[env], self._next_seed = False, self._next_seed + 1
                self._masks[env] = None
        rows = list(iterate(self._envs.observation_space, observations))
        playing = [env for env in range(self._count) if not self._resetting[env]]
        chosen: dict[int, Any] = {}
        if playing:
            given = {env: _of_one(infos or {}, "action_mask", env) for env in playing}
            masks = {env: self._masks[env] if mask is None else mask for env, mask in given.items()}
            chosen = self._policy.choose(
                {env: rows[env] for env in playing}, {env: {"action_mask": mask} for env, mask in masks.items()}
            )
        actions = [chosen.get(env, self._idle_action) for env in range(self._count)]
        space = self._envs.single_action_space
        return concatenate(space, actions, cast(Any, create_empty_array(space, self._count)))

    def feed(
        self, rewards: ArrayLike, terminations: ArrayLike, truncations: ArrayLike, infos: Mapping[str, Any]
    ) -> None:
        """Take in what the last actions earned, and which episodes are over: what `envs.step` returned.

        Args:
            rewards: (num_envs,).
            terminations: (num_envs,).
            truncations: (num_envs,).
            infos: with the action masks of the next step, if any.
        """
        self._masks = [_of_one(infos, "action_mask", env) for env in range(self._count)]
        over = np.asarray(terminations, np.bool_) | np.asarray(truncations, np.bool_)
        for env, reward in enumerate(np.asarray(rewards, np.float64).tolist()):
            if self._resetting[env]:
                self._resetting[env], self._starting[env] = False, True
                continue
            self._policy.receive(env, reward)
            if over[env]:
                following = self._resetting if self._mode == "NextStep" else self._starting
                following[env] = True


def _autoreset_mode(envs: VectorEnv[Any, Any, Any]) -> str:
    """How a vector environment resets itself; Gymnasium 1.0 knew only one way and did not name it."""
    import gymnasium.vector

    named = hasattr(gymnasium.vector, "AutoresetMode")
    mode = envs.metadata.get("autoreset_mode", None if named else "NextStep")
    value = str(getattr(mode, "value", mode))
    if value not in MODES:
        raise PolicyError(
            f"the vector environment does not say how it resets itself (metadata['autoreset_mode'] is {mode!r}, "
            "expected a gymnasium.vector.AutoresetMode). Set it in envs.metadata"
        )
    return value


def _of_one(infos: Mapping[str, Any], key: str, env: int) -> Any:
    """One environment's value of a key in a vector environment's infos; None where it gave none."""
    if key not in infos or not (f"_{key}" not in infos or infos[f"_{key}"][env]):
        return None
    value = infos[key]
    if isinstance(value, Mapping):
        return {name: _of_one(value, name, env) for name in value if not name.startswith("_")}
    return value[env]
