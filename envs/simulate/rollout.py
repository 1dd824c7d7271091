"""The one loop that steps worlds: evaluation, recording and tests all play their episodes here."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gymnasium.spaces import Space

from envs.simulate.environments import WorldError, Worlds


class CannotActError(ValueError):
    """A policy cannot go on in some of its worlds: `reasons`, by world. It has taken in nothing of this step yet.

    Without reasons it is no world's matter: the policy is used wrongly.
    """

    def __init__(self, message: str, reasons: Mapping[int, str] | None = None):
        super().__init__(message)
        self.reasons = dict(reasons or {})


class Policy(Protocol):
    """Chooses actions in several worlds at once; a world is known by its number."""

    def begin(self, world: int, request: Any, seed: int) -> None:
        """An episode starts in this world, from this seed; `request` is what is asked of it, such as a target return.

        A policy that draws numbers draws an episode's from the seed alone, so that it does not matter what plays
        beside it.
        """

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """An action for each world whose observation is given; infos: what those worlds said beside it.

        Where it cannot act in some of them it raises `CannotActError`, and is asked again without these.
        """

    def receive(self, world: int, reward: float) -> None:
        """The reward that the last action in this world earned."""


@dataclass(frozen=True)
class Job:
    """One episode to play: the seed of its world and what is asked of the policy."""

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
    failure: WorldError | None = None

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
    """Samples the action space, where `info["action_mask"]` allows it; the request of an episode seeds its actions."""

    def __init__(self, action_space: Space[Any]):
        self._action_space = action_space
        self._spaces: dict[int, Space[Any]] = {}

    def begin(self, world: int, request: Any, seed: int) -> None:
        """An episode whose actions have the request as their seed."""
        self._spaces[world] = copy.deepcopy(self._action_space)
        self._spaces[world].seed(request)

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """A sample for each world."""
        return {world: self._spaces[world].sample(mask=infos[world].get("action_mask")) for world in observations}

    def receive(self, world: int, reward: float) -> None:
        """Nothing to learn."""


def rollout(
    worlds: Worlds,
    policy: Policy,
    jobs: Sequence[Job],
    *,
    keep_trajectories: bool = False,
    on_reset: Callable[[int, Played], None] | None = None,
    on_step: Callable[[int, Played], None] | None = None,
    on_episode: Callable[[Played], None] | None = None,
    on_failure: Callable[[Played], None] | None = None,
) -> list[Played]:
    """Play every job, as many at a time as there are worlds; a world that finishes takes the next job.

    on_reset and on_step are called with the world and its episode, after its reset and after each of its steps;
    on_episode with each finished episode. A world that fails raises `WorldError`, and a policy that cannot go on in one
    `CannotActError`; with on_failure that is called with the episode instead, whose `failure` says what happened, a
    world that failed is made anew, and everything else goes on.
    Returns the episodes in the order of the jobs, however they were spread over the worlds.
    """
    played = [Played(job) for job in jobs]
    waiting = iter(played)
    playing: dict[int, Played] = {}
    observations: dict[int, Any] = {}
    infos: dict[int, Mapping[str, Any]] = {}

    def fail(episode: Played, failure: WorldError) -> None:
        episode.failure = failure
        if on_failure is None:
            raise failure
        on_failure(episode)

    def start(world: int, episode: Played, observation: Any, info: Mapping[str, Any]) -> None:
        observations[world], infos[world] = observation, info
        policy.begin(world, episode.job.request, episode.job.seed)
        playing[world] = episode
        if keep_trajectories:
            episode.observations.append(copy.deepcopy(observation))
        if on_reset:
            on_reset(world, episode)

    def start_all(idle: list[int]) -> None:
        """The next jobs; a world whose reset fails takes another one."""
        while starting := dict(zip(idle, waiting, strict=False)):
            answers = worlds.resets({world: episode.job.seed for world, episode in starting.items()})
            idle = []
            for world, answer in answers.items():
                if isinstance(answer, WorldError):
                    fail(starting[world], answer)
                    idle.append(world)
                else:
                    start(world, starting[world], *answer)

    def step_all(actions: Mapping[int, Any]) -> list[int]:
        """One step in each world; returns the worlds whose episodes are over."""
        for world, action in actions.items():
            if keep_trajectories:
                playing[world].actions.append(copy.deepcopy(action))  # before the step, which may change it in place
        idle = []
        for world, step in worlds.steps(actions).items():
            episode = playing[world]
            if isinstance(step, WorldError):
                fail(episode, step)
                idle.append(world)
                continue
            policy.receive(world, step.reward)
            observations[world], infos[world] = step.observation, step.info
            episode.rewards.append(step.reward)
            episode.terminated, episode.truncated = step.terminated, step.truncated
            if keep_trajectories:
                episode.observations.append(copy.deepcopy(step.observation))  # some worlds reuse it
            if on_step:
                on_step(world, episode)
            if step.terminated or step.truncated:
                idle.append(world)
                if on_episode:
                    on_episode(episode)
        return idle

    def give_up(error: CannotActError) -> list[int]:
        """End the episodes that the policy cannot go on with; returns their worlds."""
        if on_failure is None or not error.reasons:
            raise error
        for world, reason in error.reasons.items():
            fail(playing[world], WorldError(f"world {world}, seed {playing[world].job.seed}, {reason}"))
        return list(error.reasons)

    start_all(list(range(len(worlds))))
    while playing:
        try:
            idle = step_all(policy.choose(observations, infos))
        except CannotActError as error:
            idle = give_up(error)
        for world in idle:
            del playing[world], observations[world], infos[world]
        start_all(idle)
    return played
