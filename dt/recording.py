"""Record a dataset: play a policy in an environment. The policy is random, a run, or a Stable-Baselines3 file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dt.asking.calibrated_policy import policy_of
from dt.asking.targets import resolve
from dt.config import EvaluationConfig
from dt.evaluation import check_environment
from dt.learning.run import load_run, versions
from dt.policy_files import names_run, saved_algorithm
from envs.datasets.dataset import Dataset
from envs.datasets.in_memory import from_episodes
from envs.errors import EnvError
from envs.simulate.environments import Environments
from envs.simulate.local_env import EnvInfo
from envs.simulate.rollout import EpisodeRequest, PlayedEpisode, Policy, RandomPolicy, rollout
from envs.simulate.scores import Reference, reference_in
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import Leaves, nested, reason, to_leaves
from transformer.errors import ConfigError


@dataclass(frozen=True)
class RecordingPlan:
    """A policy, the episodes to record with it, and what the dataset's metadata will say of them."""

    policy: Policy
    requests: list[EpisodeRequest]
    num_envs: int
    provenance: Mapping[str, Any]
    reference: Reference | None = None


class SavedPolicy:
    """A Stable-Baselines3 model, its actions drawn as in its training; the condition of an episode seeds them.

    It draws from one stream, so it plays in one environment at a time. scaled: maps an observation to what it was
    trained to see.
    """

    def __init__(self, model: Any, scaled: Callable[[Any], Any]):
        self._model, self._scaled = model, scaled

    def begin(self, env: int, condition: Any, seed: int) -> None:
        """Begin an episode; its condition seeds the actions."""
        self._model.set_random_seed(condition)

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """The model's action in each environment."""
        return {env: self._model.predict(self._scaled(observation))[0] for env, observation in observations.items()}

    def receive(self, env: int, reward: float) -> None:
        """Nothing to learn."""


def recording_plan(
    policy: str,
    environment: EnvironmentSpec,
    config: EvaluationConfig,
    *,
    seed: int,
    checkpoint: Literal["last", "best"] = "last",
    trust: bool = False,
    vec_normalize: str | None = None,
) -> RecordingPlan:
    """What `dt record --policy` names: "random", a run's folder, or with `trust` a Stable-Baselines3 file.

    vec_normalize: the file of the VecNormalize that such a policy saw its observations through.

    A run plays `config.episodes` episodes at each target return, its own targets where none is given; the others that
    many in all. Episode i starts from the environment's seed `seed + i`. `recording_environment` of
    dt/cli/record.py has refused wrong options.
    """
    provenance: dict[str, Any] = {"policy": policy, "seed": seed, "versions": versions()}
    if names_run(policy):
        return _run_plan(Path(policy), environment, config, seed, checkpoint, provenance)
    with Environments(environment.maker(), 1, config.env_timeout) as environments:
        env = environments.info
    # the actions' seeds are not the environments': from one seed both would draw the same numbers
    draws = [int(np.random.SeedSequence([seed + i, 1]).generate_state(1)[0]) for i in range(config.episodes)]
    requests = [EpisodeRequest(seed + i, draw) for i, draw in enumerate(draws)]
    if policy == "random":
        provenance = {"algorithm_name": "random", "description": "Actions drawn at random", "recorded": provenance}
        return RecordingPlan(RandomPolicy(env.action_space), requests, config.num_envs, provenance)
    model = _open_saved(Path(policy), trust)
    scaled = _scaling(policy, model, vec_normalize, env)
    try:
        model.predict(scaled(env.observation_space.sample()))
    except Exception as error:  # its network and the space may differ in any way
        raise ConfigError(f"--policy {policy}: does not act in {environment.id}: {reason(error)}") from None
    if model.action_space != env.action_space:
        raise ConfigError(f"--policy {policy}: acts in {model.action_space}, {environment.id} in {env.action_space}")
    name = f"stable_baselines3.{type(model).__name__}"
    provenance = {
        **provenance,
        "learner_steps": model.num_timesteps,
        "learner_seed": model.seed,
        "vec_normalize": vec_normalize,
    }
    return RecordingPlan(
        SavedPolicy(model, scaled),
        requests,
        1,
        {
            "algorithm_name": name,
            "description": "A saved policy, its actions drawn as in its training",
            "recorded": provenance,
        },
    )


def _run_plan(
    folder: Path,
    environment: EnvironmentSpec,
    config: EvaluationConfig,
    seed: int,
    checkpoint: Literal["last", "best"],
    provenance: dict[str, Any],
) -> RecordingPlan:
    run = load_run(folder, checkpoint)
    targets = resolve(config.named_targets or run.dataset["targets"], run.dataset.get("percentiles", []))
    if not targets:
        raise ConfigError(f"{folder}: it does not know its data's returns; give --target-return G")
    check_environment(environment, run.model, config.env_timeout)
    policy = policy_of(replace(run, environment=environment), config, which=checkpoint)
    provenance |= {
        "checkpoint": run.checkpoint.name,
        "trained_on": run.dataset["name"],
        "target_returns": list(targets),
        "episodes_at_each": config.episodes,
        "temperature": policy.temperature,
        "guidance": policy.guidance if policy.calibration is None else "calibrated",
    }
    requests = [EpisodeRequest(seed + i, float(target)) for target in targets for i in range(config.episodes)]
    description = "A Decision Transformer asked for returns, one after the other"
    more = {"algorithm_name": "decision-transformer", "description": description, "recorded": provenance}
    return RecordingPlan(
        policy, requests, config.num_envs, more, reference_in(environment, run.environment, run.reference)
    )


def record(
    plan: RecordingPlan,
    environment: EnvironmentSpec,
    name: str,
    *,
    env_timeout: float | None = None,
    on_episode: Callable[[PlayedEpisode], None] | None = None,
    on_failure: Callable[[PlayedEpisode], None] | None = None,
) -> Dataset:
    """Play the episodes of a plan and return them, to the bit, in the order of its requests.

    on_episode: called with each episode.
    on_failure: called with an episode if its environment failed; the episode is left out. None raises `EnvError`.
    env_timeout: as in `evaluate`.
    """
    with Environments(environment.maker(), min(plan.num_envs, len(plan.requests)), env_timeout) as environments:
        spaces = environments.info.observation_space, environments.info.action_space
        arrays: dict[int, dict[str, Any]] = {}

        def keep(played: PlayedEpisode) -> None:
            """As arrays, which take a fraction of the memory that lists of steps do."""
            observations, actions = (
                [to_leaves(space, value) for value in values]
                for space, values in zip(spaces, (played.observations, played.actions), strict=True)
            )
            arrays[id(played)] = {
                "observations": nested(spaces[0], _stacked(observations)),
                "actions": nested(spaces[1], _stacked(actions)),
                "rewards": np.asarray(played.rewards),
                "terminated": played.terminated,
                "truncated": played.truncated,
            }
            played.observations.clear()
            played.actions.clear()
            if on_episode:
                on_episode(played)

        played = rollout(
            environments, plan.policy, plan.requests, keep_trajectories=True, on_episode=keep, on_failure=on_failure
        )
    if not arrays and plan.requests:
        raise EnvError(f"environment {environment.id}: every episode failed; the first: {played[0].failure}")
    dataset = from_episodes(
        (arrays.pop(id(episode)) for episode in played if episode.failure is None),
        observation_space=spaces[0],
        action_space=spaces[1],
        environment=environment,
        name=name,
    )
    return replace(dataset, provenance=plan.provenance, reference=plan.reference or dataset.reference)


def _stacked(rows: list[Leaves]) -> Leaves:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _scaling(policy: str, model: Any, path: str | None, env: EnvInfo) -> Callable[[Any], Any]:
    """What a saved policy was trained to see of an observation: it, or VecNormalize's view of it by a file of its own.

    Behind VecNormalize a learner also keeps an observation as it was, which shows that the file is needed.
    """
    if path is None:
        if model._last_original_obs is not None:
            raise ConfigError(
                f"--policy {policy}: it was trained behind VecNormalize; --vec-normalize FILE names what "
                "VecNormalize.save wrote"
            )
        return lambda observation: observation
    from gymnasium import Env
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    class Spaces(Env):
        """All that VecNormalize needs of an environment."""

        observation_space, action_space = env.observation_space, env.action_space

    try:
        statistics = VecNormalize.load(path, DummyVecEnv([Spaces]))
        statistics.normalize_obs(env.observation_space.sample())
    except Exception as error:  # unpickling may raise anything
        raise ConfigError(f"--vec-normalize {path}: cannot be used in this environment ({reason(error)})") from None
    return statistics.normalize_obs


def _open_saved(path: Path, trust: bool) -> Any:
    """The model in a Stable-Baselines3 file, which is pickle: it is opened only where the user trusts it."""
    algorithm = saved_algorithm(path, trust)
    try:
        import stable_baselines3
    except ImportError:
        raise ConfigError(f"--policy {path}: needs Stable-Baselines3: pip install stable-baselines3") from None
    try:
        return getattr(stable_baselines3, algorithm).load(path, device="cpu")
    except Exception as error:  # unpickling may raise anything
        raise ConfigError(f"--policy {path}: cannot be opened ({reason(error)})") from None
