"""A learner's whole experience in an environment, and the policies it was on the way.

Stable-Baselines3's SAC (or PPO, with `--algorithm ppo`) trains from scratch. `envs.recording` stores every episode that
it plays, and every 25,000 steps the learner is saved, so that `dt record` can play what it was then. Ctrl-C ends it
early and loses nothing.

    pip install ".[record,mujoco]"
    python -m benchmarks.record_replay Hopper-v5 --output runs/sac
    dt import runs/sac/experience mine/hopper-replay-v0

`--npz FILE --every 3` also writes every third episode as a compressed .npz, as the dataset that ships was made (300,000
steps, seed 0, one environment, in float32; by an earlier recorder that did not reset the environment twice at the
start, so its numbers are others than today's).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env

from envs import Dataset, load
from envs.recording import ExperienceRecorder
from envs.space_json import space_to_json


def write_npz(path: Path, dataset: Dataset, every: int) -> None:
    """Every n-th episode: one array a field, episodes one after the other; `lengths` says where each ends."""
    assert dataset.environment is not None
    chosen = [dataset.episode(i) for i in range(0, dataset.num_episodes, every)]
    metadata = {
        "dataset_id": dataset.name,
        "observation_space": space_to_json(dataset.observation_space),
        "action_space": space_to_json(dataset.action_space),
        "env_spec": json.dumps(dataset.environment.to_json()),
        **dataset.provenance,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        observations=np.concatenate([episode.observations["value"] for episode in chosen]).astype(np.float32),
        actions=_single(np.concatenate([episode.actions["value"] for episode in chosen])),
        rewards=np.concatenate([episode.rewards for episode in chosen]).astype(np.float32),
        lengths=np.asarray([len(episode) for episode in chosen], np.int64),
        terminated=np.asarray([episode.terminated for episode in chosen]),
        metadata=np.asarray(json.dumps(metadata)),
    )


def _single(actions: np.ndarray) -> np.ndarray:
    """Numbers in single precision; choices as they are."""
    return actions.astype(np.float32) if actions.dtype.kind == "f" else actions


def learn(options: argparse.Namespace) -> None:
    """Train as the options say; the experience and the policies go into the output folder."""
    torch.set_num_threads(1)
    environments = make_vec_env(options.environment, n_envs=options.num_envs, seed=options.seed)
    common = {"seed": options.seed, "device": "cpu", "verbose": 1, "gamma": options.gamma}
    common["policy_kwargs"] = {"net_arch": [options.width, options.width]}
    if options.algorithm == "ppo":
        learner: SAC | PPO = PPO("MlpPolicy", environments, **common)
    else:
        own = {"gradient_steps": options.gradient_steps, "learning_starts": options.learning_starts}
        learner = SAC("MlpPolicy", environments, **own, **common)
    saving = CheckpointCallback(25_000 // options.num_envs, str(options.output / "policies"))
    with ExperienceRecorder(options.output / "experience") as recorder:
        try:
            learner.learn(total_timesteps=options.steps, callback=[recorder, saving], log_interval=50)
        except KeyboardInterrupt:
            print(f"stopped after {learner.num_timesteps} steps")
    learner.save(options.output / "policies" / "last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", help="id of a registered environment; SAC needs a Box of actions")
    parser.add_argument("--algorithm", choices=["sac", "ppo"], default="sac")
    parser.add_argument("--gamma", type=float, default=0.99, help="discount of the learner")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--steps", type=int, default=300_000, help="steps of all environments together")
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument("--gradient-steps", type=int, default=1, help="after one step of every environment")
    parser.add_argument("--learning-starts", type=int, default=100, help="steps of random actions at first")
    parser.add_argument("--width", type=int, default=256, help="of the two hidden layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--npz", type=Path, help="also write every n-th episode into this file")
    parser.add_argument("--every", type=int, default=3)
    options = parser.parse_args()
    learn(options)
    experience = load(options.output / "experience")
    if options.npz:
        write_npz(options.npz, experience, options.every)
    returns = experience.returns
    last = returns[-20:].mean()
    print(f"{len(returns)} episodes played, returns {returns.min():.0f} to {returns.max():.0f}, last 20: {last:.0f}")


if __name__ == "__main__":
    main()
