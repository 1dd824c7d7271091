"""The one loop that steps environments: evaluation, recording and tests all play their episodes here."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gymnasium.spaces import Space

from envs.errors import CannotActError, EnvError
from envs.simulate.environments import Environments


class Policy(Protocol):
    """Chooses actions in several environments at once. An environment is known by its number."""

    def begin(self, env: int, request: Any, seed: int) -> None:
        """An episode starts.

        Args:
            env: the environment's number.
            request: what the episode is asked for: a target return.
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
class Job:
    """One episode to play: the seed of its environment and what is asked of the policy."""

    seed: int
    request: Any = None


@dataclass
class Played:
    """One episode: T actions and rewards; T + 1 observations where they were kept. failure: why it came to no end."""

    job: Job
    rewards: list[float] = field(default_factory=list)
    observations: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False
    failure: EnvError | None = None

    @property
    def total_return(self) -> float:
        """Sum of the rewards, in the order they came (Python's own sum is another from 3.12 on)."""
        total = 0.0
        for reward in self.rewards:
            total += reward
        return total

    @property
    def length(self) -> int:
        """Steps taken."""
        return len(self.rewards)


class RandomPolicy:
    """Samples the action space, where `info["action_mask"]` allows it. The request of an episode seeds its actions.

    Args:
        action_space: where the actions come from.
    """

    def __init__(self, action_space: Space[Any]):
        self._action_space = action_space
        self._spaces: dict[int, Space[Any]] = {}

    def begin(self, env: int, request: Any, seed: int) -> None:
        """An episode whose actions have the request as their seed."""
        self._spaces[env] = copy.deepcopy(self._action_space)
        self._spaces[env].seed(request)

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """A sample for each environment."""
        return {env: self._spaces[env].sample(mask=infos[env].get("action_mask")) for env in observations}

    def receive(self, env: int, reward: float) -> None:
        """Nothing to learn."""


def rollout(
    environments: Environments,
    policy: Policy,
    jobs: Sequence[Job],
    *,
    keep_trajectories: bool = False,
    on_reset: Callable[[int, Played], None] | None = None,
    on_step: Callable[[int, Played], None] | None = None,
    on_episode: Callable[[Played], None] | None = None,
    on_failure: Callable[[Played], None] | None = None,
) -> list[Played]:
    """Play every job and return the episodes in the order of the jobs.

    As many jobs run at a time as there are environments. An environment that finishes takes the next job.

    Args:
        environments: where to play.
        policy: chooses the actions.
        jobs: the episodes to play.
        keep_trajectories: keep observations and actions.
        on_reset: called with the environment's number and its episode after each reset.
        on_step: called with the environment's number and its episode after each step.
        on_episode: called with each finished episode.
        on_failure: called with each episode that failed; its `failure` says why. An environment that failed is made
            again, and the others continue. None raises the failure.

    Raises:
        EnvError: an environment failed, without `on_failure`.
        CannotActError: the policy cannot act, without `on_failure`.
    """
    played = [Played(job) for job in jobs]
    waiting = iter(played)
    playing: dict[int, Played] = {}
    observations: dict[int, Any] = {}
    infos: dict[int, Mapping[str, Any]] = {}

    def fail(episode: Played, failure: EnvError) -> None:
        episode.failure = failure
        if on_failure is None:
            raise failure
        on_failure(episode)

    def start(env: int, episode: Played, observation: Any, info: Mapping[str, Any]) -> None:
        observations[env], infos[env] = observation, info
        policy.begin(env, episode.job.request, episode.job.seed)
        playing[env] = episode
        if keep_trajectories:
            episode.observations.append(copy.deepcopy(observation))
        if on_reset:
            on_reset(env, episode)

    def start_all(idle: list[int]) -> None:
        """The next jobs; an environment whose reset fails takes another one."""
        while starting := dict(zip(idle, waiting, strict=False)):
            answers = environments.resets({env: episode.job.seed for env, episode in starting.items()})
            idle = []
            for env, answer in answers.items():
                if isinstance(answer, EnvError):
                    fail(starting[env], answer)
                    idle.append(env)
                else:
                    start(env, starting[env], *answer)

    def step_all(actions: Mapping[int, Any]) -> list[int]:
        """One step in each environment; returns the environments whose episodes are over."""
        for env, action in actions.items():
            if keep_trajectories:
                playing[env].actions.append(copy.deepcopy(action))  # before the step, which may change it in place
        idle = []
        for env, step in environments.steps(actions).items():
            episode = playing[env]
            if isinstance(step, EnvError):
                fail(episode, step)
                idle.append(env)
                continue
            policy.receive(env, step.reward)
            observations[env], infos[env] = step.observation, step.info
            episode.rewards.append(step.reward)
            episode.terminated, episode.truncated = step.terminated, step.truncated
            if keep_trajectories:
                episode.observations.append(copy.deepcopy(step.observation))  # some environments reuse it
            if on_step:
                on_step(env, episode)
            if step.terminated or step.truncated:
                idle.append(env)
                if on_episode:
                    on_episode(episode)
        return idle

    def give_up(error: CannotActError) -> list[int]:
        """End the episodes that the policy cannot go on with; returns their environments."""
        if on_failure is None or not error.reasons:
            raise error
        for env, reason in error.reasons.items():
            fail(playing[env], EnvError(f"environment {env}, seed {playing[env].job.seed}, {reason}"))
        return list(error.reasons)

    start_all(list(range(len(environments))))
    while playing:
        try:
            idle = step_all(policy.choose(observations, infos))
        except CannotActError as error:
            idle = give_up(error)
        for env in idle:
            del playing[env], observations[env], infos[env]
        start_all(idle)
    return played
