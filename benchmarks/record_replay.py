"""Record the dataset that ships with the package: a learner's own experience, from its first step to its last.

A soft actor-critic learner (Stable-Baselines3, its default settings) trains in Hopper-v5 from scratch. Every episode
it plays is kept in memory as the environment saw it; at the end every n-th finished episode is written, in order, to a
compressed `.npz` that `envs.datasets` reads. So the file is a true replay: bad at first, good at last.

    pip install stable-baselines3 "gymnasium[mujoco]"
    python -m benchmarks.record_replay --output envs/data/hopper-replay-v0.npz
"""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np

from envs.spaces import space_to_json


class Recorder(gymnasium.Wrapper):
    """Keeps every finished episode: T + 1 observations, T actions and rewards, and how it ended."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.episodes: list[dict[str, np.ndarray]] = []

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self._observations, self._actions, self._rewards = [observation], [], []
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observations.append(observation)
        self._actions.append(action)
        self._rewards.append(reward)
        if terminated or truncated:
            self.episodes.append(
                {
                    "observations": np.asarray(self._observations, np.float32),
                    "actions": np.asarray(self._actions, np.float32),
                    "rewards": np.asarray(self._rewards, np.float32),
                    "terminated": np.asarray(terminated),
                }
            )
        return observation, reward, terminated, truncated, info


def write(path: Path, episodes: list[dict[str, np.ndarray]], metadata: dict) -> None:
    """One array a field, episodes one after the other; `lengths` says where each ends."""
    lengths = np.asarray([len(episode["rewards"]) for episode in episodes], np.int64)
    arrays = {name: np.concatenate([e[name] for e in episodes]) for name in ("observations", "actions", "rewards")}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        **arrays,
        lengths=lengths,
        terminated=np.asarray([episode["terminated"] for episode in episodes]),
        metadata=np.asarray(json.dumps(metadata)),
    )


def describe(env: gymnasium.Env, options: argparse.Namespace, learner_version: str) -> dict:
    """Metadata in Minari's words, and how the recording was made."""
    found = {name: version(name) for name in ("gymnasium", "mujoco", "torch", "numpy")}
    return {
        "dataset_id": "hopper/replay-v0",
        "observation_space": space_to_json(env.observation_space),
        "action_space": space_to_json(env.action_space),
        "env_spec": json.dumps({"id": env.spec.id, "max_episode_steps": env.spec.max_episode_steps}),
        "description": f"Every n-th episode of a soft actor-critic learner's whole experience (n = {options.every})",
        "algorithm_name": "stable_baselines3.SAC, default settings",
        "learner_steps": options.steps,
        "seed": options.seed,
        "license": "MIT",
        "versions": {"python": platform.python_version(), "stable-baselines3": learner_version, **found},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300_000, help="environment steps of the learner")
    parser.add_argument("--every", type=int, default=3, help="keep every n-th episode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    import stable_baselines3
    import torch

    torch.set_num_threads(options.threads)
    env = Recorder(gymnasium.make("Hopper-v5"))
    learner = stable_baselines3.SAC("MlpPolicy", env, seed=options.seed, device="cpu", verbose=1)
    learner.learn(total_timesteps=options.steps, log_interval=50)
    metadata = describe(env, options, stable_baselines3.__version__)
    write(options.output, env.episodes[:: options.every], metadata)
    returns = np.asarray([episode["rewards"].sum() for episode in env.episodes])
    last = returns[-20:].mean()
    print(f"{len(returns)} episodes played, returns {returns.min():.0f} to {returns.max():.0f}, last 20: {last:.0f}")


if __name__ == "__main__":
    main()
