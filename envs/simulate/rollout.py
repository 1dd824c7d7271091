"""The one loop that steps environments: evaluation, recording and tests all play their episodes here."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gymnasium.spaces import Space

from envs.errors import CannotActError, EnvError
from envs.simulate.environments import Environments
from envs.simulate.local_env import Step


class Policy(Protocol):
    """Chooses actions in several environments at once. An environment is known by its number."""

    def begin(self, env: int, condition: Any, seed: int) -> None:
        """An episode starts.

        Args:
            env: the environment's number.
            condition: what the policy is conditioned on, such as a target return.
            seed: of the episode. A policy that draws numbers derives them from this seed only, so that an episode does
                not depend on the others.
        """

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """An action for each environment.

        Args:
            observations: by the environment's number.
            infos: the environments' infos, by number.

        Raises:
            CannotActError: it cannot act in some environments; it is then called again without these.
        """

    def receive(self, env: int, reward: float) -> None:
        """The reward of an environment's last action.

        Args:
            env: the environment's number.
            reward: in the environment's unit.
        """


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to play: the seed of its environment and what is asked of the policy."""

    seed: int
    condition: Any = None


@dataclass
class PlayedEpisode:
    """One episode: T actions and rewards; T + 1 observations where they were kept. failure: why it came to no end."""

    request: EpisodeRequest
    rewards: list[float] = field(default_factory=list)
    observations: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False
    failure: EnvError | None = None

    @property
    def total_return(self) -> float:
        """Sum of the rewards, in order; since Python 3.12 `sum` compensates rounding and gives other bits."""
        total = 0.0
        for reward in self.rewards:
            total += reward
        return total

    @property
    def length(self) -> int:
        """Steps taken."""
        return len(self.rewards)


MAX_EPISODE_RETURN = 1e150
"""An episode with a larger return fails: its square, needed for a standard deviation, is not a float64."""


class RandomPolicy:
    """Samples the action space, where `info["action_mask"]` allows it. An episode's condition seeds its actions.

    Args:
        action_space: where the actions come from.
    """

    def __init__(self, action_space: Space[Any]):
        self._action_space = action_space
        self._spaces: dict[int, Space[Any]] = {}

    def begin(self, env: int, condition: Any, seed: int) -> None:
        """Begin an episode; its condition seeds the actions."""
        self._spaces[env] = copy.deepcopy(self._action_space)
        self._spaces[env].seed(condition)

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """A sample for each environment."""
        return {env: self._spaces[env].sample(mask=infos[env].get("action_mask")) for env in observations}

    def receive(self, env: int, reward: float) -> None:
        """Nothing to learn."""


def rollout(
    environments: Environments,
    policy: Policy,
    requests: Sequence[EpisodeRequest],
    *,
    keep_trajectories: bool = False,
    on_reset: Callable[[int, PlayedEpisode], None] | None = None,
    on_step: Callable[[int, PlayedEpisode], None] | None = None,
    on_episode: Callable[[PlayedEpisode], None] | None = None,
    on_failure: Callable[[PlayedEpisode], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[PlayedEpisode]:
    """Play every request and return the episodes in the order of the requests.

    As many requests run at a time as there are environments. An environment that finishes takes the next request.

    Args:
        environments: where to play.
        policy: chooses the actions.
        requests: the episodes to play.
        keep_trajectories: keep observations and actions.
        on_reset: called with the environment's number and its episode after each reset.
        on_step: called with the environment's number and its episode after each step.
        on_episode: called with each finished episode.
        on_failure: called with each episode that failed; its `failure` says why. An environment that failed is made
            again, and the others continue. None raises the failure.
        stop: called before each step. Where it is true no more is played, and an episode that is not over stays neither
            terminated nor truncated.

    Raises:
        EnvError: an environment failed, without `on_failure`.
        CannotActError: the policy cannot act, without `on_failure`.
    """
    hooks = RolloutHooks(on_reset, on_step, on_episode, on_failure, stop)
    return Rollout(environments, policy, requests, hooks, keep_trajectories).run()


@dataclass(frozen=True)
class RolloutHooks:
    """What `rollout` calls, each described there."""

    on_reset: Callable[[int, PlayedEpisode], None] | None
    on_step: Callable[[int, PlayedEpisode], None] | None
    on_episode: Callable[[PlayedEpisode], None] | None
    on_failure: Callable[[PlayedEpisode], None] | None
    stop: Callable[[], bool] | None


class Rollout:
    """Episodes that are being played: which environment plays which one, and what it shows now."""

    def __init__(
        self,
        environments: Environments,
        policy: Policy,
        requests: Sequence[EpisodeRequest],
        hooks: RolloutHooks,
        keep_trajectories: bool,
    ):
        self._environments, self._policy = environments, policy
        self._hooks, self._keep_trajectories = hooks, keep_trajectories
        self._episodes = [PlayedEpisode(request) for request in requests]
        self._waiting = iter(self._episodes)
        self._playing: dict[int, PlayedEpisode] = {}  # by environment, as are the next two
        self._observations: dict[int, Any] = {}
        self._infos: dict[int, Mapping[str, Any]] = {}

    def run(self) -> list[PlayedEpisode]:
        """Play all episodes to their ends, or until they are stopped."""
        stop = self._hooks.stop
        self._start_episodes(list(range(len(self._environments))))
        while self._playing and not (stop is not None and stop()):
            try:
                idle = self._step_all(self._policy.choose(self._observations, self._infos))
            except CannotActError as error:
                idle = self._fail_refused(error)
            for env in idle:
                del self._playing[env], self._observations[env], self._infos[env]
            self._start_episodes(idle)
        return self._episodes

    def _start_episodes(self, idle: list[int]) -> None:
        """Start the next requests in idle environments; where a reset fails, the one after it."""
        while starting := dict(zip(idle, self._waiting, strict=False)):
            resets = self._environments.resets({env: episode.request.seed for env, episode in starting.items()})
            idle = []
            for env, reset in resets.items():
                if isinstance(reset, EnvError):
                    self._fail(starting[env], reset)
                    idle.append(env)
                else:
                    self._start(env, starting[env], *reset)

    def _start(self, env: int, episode: PlayedEpisode, observation: Any, info: Mapping[str, Any]) -> None:
        self._observations[env], self._infos[env] = observation, info
        self._policy.begin(env, episode.request.condition, episode.request.seed)
        self._playing[env] = episode
        if self._keep_trajectories:
            episode.observations.append(copy.deepcopy(observation))
        if self._hooks.on_reset:
            self._hooks.on_reset(env, episode)

    def _step_all(self, actions: Mapping[int, Any]) -> list[int]:
        """Take one step in each environment; returns the environments where an episode is over."""
        if self._keep_trajectories:
            for env, action in actions.items():  # before the step, which may change the action in place
                self._playing[env].actions.append(copy.deepcopy(action))
        return [env for env, step in self._environments.steps(actions).items() if self._take(env, step)]

    def _take(self, env: int, step: Step | EnvError) -> bool:
        """Take in what a step returned; returns whether the episode is over."""
        episode = self._playing[env]
        if isinstance(step, EnvError):
            self._fail(episode, step)
            return True
        self._policy.receive(env, step.reward)
        self._observations[env], self._infos[env] = step.observation, step.info
        episode.rewards.append(step.reward)
        # The sum is only taken where one reward is large enough to matter.
        if abs(step.reward) > MAX_EPISODE_RETURN / 1e10 and abs(episode.total_return) > MAX_EPISODE_RETURN:
            where = f"environment {env}, seed {episode.request.seed}, step {episode.length}"
            self._fail(episode, EnvError(f"{where}: return {episode.total_return:.3g}, past {MAX_EPISODE_RETURN:g}"))
            return True
        episode.terminated, episode.truncated = step.terminated, step.truncated
        if self._keep_trajectories:
            episode.observations.append(copy.deepcopy(step.observation))  # some environments reuse it
        if self._hooks.on_step:
            self._hooks.on_step(env, episode)
        over = step.terminated or step.truncated
        if over and self._hooks.on_episode:
            self._hooks.on_episode(episode)
        return over

    def _fail_refused(self, error: CannotActError) -> list[int]:
        """Fail the episodes in which the policy cannot act; returns their environments."""
        if self._hooks.on_failure is None or not error.reasons:
            raise error
        for env, reason in error.reasons.items():
            episode = self._playing[env]
            self._fail(episode, EnvError(f"environment {env}, seed {episode.request.seed}, {reason}"))
        return list(error.reasons)

    def _fail(self, episode: PlayedEpisode, failure: EnvError) -> None:
        episode.failure = failure
        if self._hooks.on_failure is None:
            raise failure
        self._hooks.on_failure(episode)
