"""Ask a policy for returns and see what it gets: all targets and episodes together, each with its own seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dt.asking.alignment import with_returns
from dt.asking.guidance import Request
from dt.config import EvaluationConfig
from dt.errors import FailedEpisodesError, PolicyError
from dt.model import DecisionTransformer
from dt.policy import ReturnConditionedPolicy
from envs.errors import EnvError, MissingEnvError
from envs.simulate.environments import Environments
from envs.simulate.replay import ReplayingEnvironments
from envs.simulate.rollout import EpisodeRequest, PlayedEpisode, Policy, rollout
from envs.simulate.scores import Reference, normalized_score
from envs.simulate.spec import EnvironmentSpec, check_spaces
from transformer.config import require
from transformer.runs import distributed
from transformer.runs.console import tell


@dataclass(frozen=True)
class TargetResult:
    """What was achieved at one target return."""

    target_return: float
    """What was asked for."""
    returns: tuple[float, ...]
    """Of the episodes that ended, in the order of their seeds."""
    lengths: tuple[int, ...]
    """Steps of the same episodes."""
    normalized_score: float | None
    """Of the mean return; None without a reference."""
    failures: tuple[str, ...] = ()
    """Why other episodes did not end, one line each. They are in no mean."""
    missing: int = 0
    """Episodes that were not over when a signal stopped the evaluation."""

    @property
    def mean_return(self) -> float:
        """Mean of the returns; NaN where every episode failed."""
        return float(np.mean(self.returns)) if self.returns else float("nan")

    @property
    def std_return(self) -> float:
        """Standard deviation of the returns, over episodes (divided by their number); NaN where every one failed."""
        return float(np.std(self.returns)) if self.returns else float("nan")

    def to_json(self) -> dict[str, Any]:
        """As the JSON of `dt evaluate` has it; what is NaN here is null there."""
        return {
            "target_return": self.target_return,
            "mean_return": self.mean_return if self.returns else None,
            "std_return": self.std_return if self.returns else None,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "normalized_score": self.normalized_score,
            "failures": list(self.failures),
            "missing": self.missing,
        }


def labels(targets: Sequence[float]) -> list[str]:
    """Targets as texts for names, in six digits, or in as many as make them differ."""
    for digits in range(6, 18):
        texts = [f"{target:.{digits}g}" for target in targets]
        if len(set(texts)) == len(set(targets)):
            break
    return texts


def check_environment(spec: EnvironmentSpec, model: DecisionTransformer, env_timeout: float | None = None) -> None:
    """Raise `EnvError` unless the environment can be made, its spaces are the model's and its episodes not longer.

    env_timeout: as in `evaluate`, and then nothing is made in this process.
    """
    with Environments(spec.maker(), 1, env_timeout) as environments:
        info = environments.info
    check_spaces(spec, (model.observation_space, model.action_space), (info.observation_space, info.action_space))
    limit, rows = spec.step_limit, model.timestep_limit
    if limit is not None and rows is not None and limit > rows:
        raise EnvError(
            f"environment {spec.id}: its episodes last up to {limit} steps, the model knows {rows} timesteps; "
            f"train with --max-timesteps {limit}"
        )


def is_playable(
    environment: EnvironmentSpec | None, model: DecisionTransformer, config: EvaluationConfig, required: bool
) -> bool:
    """Whether the model can be evaluated; prints why not. required: an environment that is missing is an error."""
    playable = environment is not None
    try:
        if environment is not None:
            check_environment(environment, model, config.env_timeout)
    except MissingEnvError as error:
        if required:
            raise
        playable = False
        tell(f"no evaluation here: {error}")
    if not playable and config.target_return:
        tell("target_return: there is no environment to ask for it in, --environment ID names one")
    return playable


def evaluate(
    policy: Policy,
    environment: EnvironmentSpec,
    targets: Sequence[float | Request],
    *,
    episodes: int = 10,
    seed: int = 0,
    num_envs: int = 16,
    env_timeout: float | None = None,
    reference: Reference | None = None,
    on_episode: Any = None,
    stop: Callable[[], bool] | None = None,
    on_note: Callable[[str], None] | None = tell,
) -> list[TargetResult]:
    """Play episodes at each target return and return one result for each target.

    Episode i of every target starts from the environment's seed `seed + i`. The returns depend neither on `num_envs`
    nor on the number of processes that share the episodes. Targets that a calibration answers with the same request
    share their episodes. An episode with a failing environment is named in its
    target's `failures` and is not counted.

    Args:
        policy: usually a `ReturnConditionedPolicy`; any policy that takes a target return as its request will do.
        environment: where to play.
        targets: returns to ask for, in the environment's unit.
        episodes: episodes for each target.
        seed: of the first episode.
        num_envs: environments that run side by side.
        env_timeout: seconds that an environment may take for a step or a reset. If given, each runs in its own process.
        reference: for normalised scores.
        on_episode: called with each finished episode of this process.
        stop: called before each step. Where it is true no more is played, and the results have `missing` episodes.
        on_note: called with what makes the returns depend on `num_envs`: an environment that carries state from episode
            to episode. The default prints it.

    Raises:
        EnvError: every episode failed.
        ConfigError: a count is below 1, or there are no targets.
    """
    require(len(targets) >= 1, "targets must hold at least one return")
    for name, count in (("episodes", episodes), ("num_envs", num_envs)):
        require(count >= 1, f"{name} must be at least 1, not {count}")
    conditions = conditions_of(policy, targets)
    distinct = list(dict.fromkeys(conditions))
    requests = [EpisodeRequest(seed + i, condition) for condition in distinct for i in range(episodes)]
    played = play_requests(policy, environment, requests, num_envs, env_timeout, on_episode, stop, on_note)
    if all(failure is not None for _, _, failure in played):
        raise EnvError(f"environment {environment.id}: every episode failed; the first: {played[0][2]}")
    results = []
    for target, condition in zip(targets, conditions, strict=True):
        first = distinct.index(condition) * episodes
        results.append(_result(target, played[first : first + episodes], reference))
    return results


def conditions_of(policy: Policy, targets: Sequence[float | Request]) -> list[float | Request]:
    """What the policy is conditioned on for each target: a calibration may give several targets the same request."""
    if not isinstance(policy, ReturnConditionedPolicy):
        return list(targets)
    return [target if isinstance(target, Request) else policy.request_for(target) for target in targets]


def play_requests(
    policy: Policy,
    environment: EnvironmentSpec,
    requests: Sequence[EpisodeRequest],
    num_envs: int,
    env_timeout: float | None = None,
    on_episode: Callable[[PlayedEpisode], None] | None = None,
    stop: Callable[[], bool] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[tuple[float, int, str | None]]:
    """Play episodes, shared among processes: return, steps and failure (None) of each, in the order of the requests.

    An episode that was not over when `stop` ended the work has 0 steps. The other arguments are as in `evaluate`.
    """
    mine = distributed.shard(list(requests))

    def play() -> list[tuple[float, int, str | None]]:
        failed: list[PlayedEpisode] = []
        if not mine:  # there are more processes than episodes
            return []
        with ReplayingEnvironments(environment.maker(), min(num_envs, len(mine)), env_timeout) as environments:
            played = rollout(environments, policy, mine, on_episode=on_episode, on_failure=failed.append, stop=stop)
            if on_note is not None and not (stop is not None and stop()):
                for note in _carried_state(environment, environments):
                    on_note(note)
        return [_outcome(episode) for episode in played]

    return distributed.gather(distributed.raise_together(play, EnvError, PolicyError))


def _outcome(played: PlayedEpisode) -> tuple[float, int, str | None]:
    over = played.terminated or played.truncated or played.failure is not None
    failure = None if played.failure is None else str(played.failure)
    return (played.total_return, played.length, failure) if over else (0.0, 0, None)


def _carried_state(spec: EnvironmentSpec, environments: ReplayingEnvironments) -> list[str]:
    """What shows that an environment's episodes depend on those before them; nothing where none is seen to."""
    consequence = "Returns depend on --num-envs and on the order of the episodes"
    if names := environments.info.stateful:
        keep = "keep" if len(names) > 1 else "keeps"
        return [f"environment {spec.id}: {', '.join(names)} {keep} statistics from episode to episode. {consequence}"]
    if difference := environments.difference():
        why = "It carries state from episode to episode, or does not follow its seed"
        return [f"environment {spec.id}: {difference}. {why}. {consequence}"]
    return []


def _result(
    target: float | Request, played: Sequence[tuple[float, int, str | None]], reference: Reference | None
) -> TargetResult:
    target = target.return_to_go if isinstance(target, Request) else float(target)
    ended = [episode for episode in played if episode[2] is None and episode[1] > 0]
    failures = tuple(f"target {target:g}, {failure}" for _, _, failure in played if failure is not None)
    returns, lengths = tuple(episode[0] for episode in ended), tuple(episode[1] for episode in ended)
    score = normalized_score(float(np.mean(returns)), reference) if returns else None
    return TargetResult(target, returns, lengths, score, failures, len(played) - len(ended) - len(failures))


def failures(results: Sequence[TargetResult]) -> list[str]:
    """Every failure of these results, a line each."""
    return [failure for result in results for failure in result.failures]


def check_failures(results: Sequence[TargetResult]) -> None:
    """Raise `FailedEpisodesError` where episodes failed; to be called once their results are safe."""
    found, ended = failures(results), sum(len(result.returns) for result in results)
    if found:
        raise FailedEpisodesError(
            f"{len(found)} of {len(found) + ended} episodes failed; the results are those of the others"
        )


def best_target(sweep: Sequence[TargetResult]) -> float:
    """The target that earned most, the lowest of equals. Other environments measure what it earns."""
    return min(with_returns(sweep), key=lambda result: (-result.mean_return, result.target_return)).target_return


def best_mean(results: Sequence[TargetResult]) -> float:
    """Mean return at the target that earned most: the number that decides which checkpoint is best."""
    return max(result.mean_return for result in with_returns(results))
