"""A Stable-Baselines3 learner's whole experience, stored while it learns.

    with ExperienceRecorder("runs/sac/experience") as recorder:
        SAC("MlpPolicy", "Hopper-v5").learn(300_000, callback=recorder)

`envs.load` and with it every command take the folder as a dataset, also while learning goes on, and `dt import` makes a
Minari dataset of it. Stable-Baselines3 (`pip install ".[record]"`) is needed here; `import envs` does not bring it in.
"""

import atexit
import copy
import platform
import warnings
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, cast

import h5py  # noqa: F401 (what it does when Python ends comes after our own closing only if it is here before us)
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from envs.datasets.in_memory import from_episodes
from envs.datasets.writer import write_folder
from envs.errors import DataError
from envs.reading.minari_folders import PART
from envs.simulate.spec import EnvironmentSpec
from envs.simulate.wrappers import RecordedWrapper, effective
from envs.spaces import Leaves, from_leaves, to_leaves

PART_STEPS = 2_000
"""Steps of finished episodes that are held in memory before they become a part on disk."""

LISTENED = ("reset", "step_async", "step_wait")
"""What is listened to of the innermost vector environment."""


@dataclass
class _Running:
    """An episode that is being played in one of the environments."""

    first: Leaves
    steps: list[tuple[Leaves, Any, Leaves]] = field(default_factory=list)  # action, reward, what was seen after it


class ExperienceRecorder(BaseCallback):
    """Stores every episode that a learner plays, in each of its environments, as the innermost environment gave it.

    What wrappers such as VecNormalize, VecFrameStack or VecTransposeImage change is not stored; an episode's true final
    observation is. Episodes are stored in the order in which they finish, in parts that are Minari datasets, each
    written atomically. Episodes that are still running when the recorder closes are stored last, as truncated, and
    counted in the metadata. The recorder closes at the end of its `with` block, or when Python ends, so an error or
    Ctrl-C loses nothing. A killed process loses the running episodes and at most 2,000 finished steps.

    `learn` may be called several times with one recorder. The environments are reset once when the first learning
    starts, because the recorder has not seen how their episodes began.

    Args:
        folder: a new or an empty one.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.folder = Path(folder).resolve()  # the working folder may change while learning goes on
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise DataError(f"{self.folder}: exists already; an experience wants a new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._env: Any = None  # the innermost vector environment
        self._listening = False
        self._running: list[_Running] = []
        self._finished: list[dict[str, Any]] = []
        self._steps = self._held = self._parts = self._unfinished = 0
        self._flush_at = PART_STEPS  # steps held that are next written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Store what is still in memory, the running episodes as truncated, and listen no longer."""
        if self._listening:
            for name in LISTENED:
                delattr(self._env, name)
            self._listening = False
            self._truncate()
        self._flush()
        atexit.unregister(self.close)

    def _init_callback(self) -> None:
        env, learner = self.training_env.unwrapped, cast(Any, self.model)
        if self._listening and env is self._env:
            return
        self.close()
        atexit.register(self.close)
        self._listen(env)
        learner._last_obs = self.training_env.reset()
        learner._last_episode_starts = np.ones(env.num_envs, np.bool_)
        if learner.get_vec_normalize_env() is not None:
            learner._last_original_obs = learner.get_vec_normalize_env().get_original_obs()

    def _on_step(self) -> bool:
        if self._held >= self._flush_at:
            try:
                self._flush()
            except DataError as error:  # training is worth more than a part; `close` tries again, and raises
                self._flush_at = self._held + PART_STEPS
                warnings.warn(f"{error}; the experience is kept in memory", RuntimeWarning, stacklevel=2)
        return True

    def _listen(self, env: Any) -> None:
        """Put ears in front of the methods that every step of these environments passes."""
        reset, step_async, step_wait = (getattr(env, name) for name in LISTENED)
        actions: Any = None

        def heard_reset() -> Any:
            observations = reset()
            self._begin(to_leaves(env.observation_space, observations))
            return observations

        def heard_step_async(chosen: Any) -> None:
            nonlocal actions
            actions = copy.deepcopy(chosen)  # before the step, which may change it in place
            step_async(chosen)

        def heard_step_wait() -> Any:
            answer = step_wait()
            self._step(to_leaves(env.action_space, actions), *answer)
            return answer

        for name, method in zip(LISTENED, (heard_reset, heard_step_async, heard_step_wait), strict=True):
            setattr(env, name, method)
        self._env, self._listening = env, True

    def _begin(self, observations: Leaves) -> None:
        """Every environment starts an episode; observations: each (num_envs, *leaf)."""
        self._truncate()
        self._running = [_Running(_row(observations, i)) for i in range(self._env.num_envs)]

    def _step(self, actions: Leaves, observations: Any, rewards: Any, dones: Any, infos: Any) -> None:
        """Every environment took a step; one that is done has begun its next episode already."""
        after = to_leaves(self._env.observation_space, observations)
        for i, running in enumerate(self._running):
            seen = following = _row(after, i)
            if dones[i]:
                seen = to_leaves(self._env.observation_space, infos[i]["terminal_observation"])
            running.steps.append((_row(actions, i), rewards[i], seen))
            if dones[i]:
                truncated = bool(infos[i].get("TimeLimit.truncated", False))
                self._running[i] = _Running(following)
                self._finish(running, terminated=not truncated, truncated=truncated)

    def _truncate(self) -> None:
        """End the running episodes."""
        running, self._running = self._running, []
        for episode in running:
            if episode.steps:
                self._unfinished += 1
                self._finish(episode, terminated=False, truncated=True)

    def _finish(self, episode: _Running, *, terminated: bool, truncated: bool) -> None:
        actions, rewards, after = zip(*episode.steps, strict=True)
        self._finished.append(
            {
                "observations": _stacked(self._env.observation_space, (episode.first, *after)),
                "actions": _stacked(self._env.action_space, actions),
                "rewards": np.asarray(rewards),
                "terminated": terminated,
                "truncated": truncated,
            }
        )
        self._held += len(rewards)

    def _flush(self) -> None:
        """Write the finished episodes as the next part; they stay in memory where that fails."""
        if not self._finished:
            return
        dataset = from_episodes(
            self._finished,
            observation_space=self._env.observation_space,
            action_space=self._env.action_space,
            environment=_environment(self._env),
            name=self.folder.name,
        )
        steps = self._steps + self._held
        write_folder(self.folder / PART.format(self._parts), replace(dataset, provenance=self._provenance(steps)))
        self._finished, self._held, self._parts = [], 0, self._parts + 1
        self._steps, self._flush_at = steps, PART_STEPS

    def _provenance(self, steps: int) -> dict[str, Any]:
        learner = type(self.model)
        name = f"{learner.__module__.split('.')[0]}.{learner.__name__}"
        packages = ("stable-baselines3", "gymnasium", "torch", "numpy")
        return {
            "algorithm_name": name,
            "description": "A learner's whole experience, its episodes in the order in which they finished",
            "recorded": {
                "learner": name,
                "seed": self.model.seed,
                "num_envs": self._env.num_envs,
                "steps": steps,
                "unfinished_episodes": self._unfinished,
                "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            },
        }


def _row(leaves: Leaves, index: int) -> Leaves:
    return {name: array[index] for name, array in leaves.items()}


def _stacked(space: Any, rows: Any) -> Any:
    """Values of a space, given leaf by leaf, as one batch in the space's own form and types."""
    return from_leaves(space, {name: np.stack([row[name] for row in rows]) for name in rows[0]})


def _environment(env: Any) -> EnvironmentSpec | None:
    """The registered environment that these are, if they are one, and the wrappers around it."""
    spec = env.get_attr("spec")[0]
    if spec is None:
        return None
    kwargs = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    wrappers = effective(map(RecordedWrapper.of, spec.additional_wrappers))
    return EnvironmentSpec(spec.id, kwargs, spec.max_episode_steps, wrappers)
