# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # CartPole, from data to a film
#
# A pole stands on a cart, and the cart can be pushed left or right. Each step that the pole stays up earns 1.
# This notebook records good and bad play, trains a Decision Transformer on it, asks for different returns,
# and films the result. It runs in less than a minute on one CPU core.
#
# Open it with [jupytext](https://jupytext.readthedocs.io), or run it as a script: `python docs/notebooks/cartpole.py`.
# It needs `pip install ".[video]" "gymnasium[classic-control]"` in this repository.

# %% [markdown]
# ## 1. Record episodes
#
# A simple rule keeps the pole up: push towards the side to which it leans and moves.
# To get bad play as well, each episode replaces a share of its actions by random ones.

# %%
import gymnasium
import numpy as np

import envs

env = gymnasium.make("CartPole-v1", max_episode_steps=200)
random = np.random.default_rng(0)
episodes = []
for seed in range(120):
    noise = random.uniform(0, 1)  # the share of random actions in this episode
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, terminated, truncated = [observation], [], [], False, False
    while not (terminated or truncated):
        angle, speed = observation[2:]
        action = int(angle + speed > 0) if random.random() > noise else int(random.integers(2))
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    episodes.append(
        {
            "observations": np.array(observations),
            "actions": np.array(actions),
            "rewards": np.array(rewards),
            "terminated": terminated,
            "truncated": truncated,
        }
    )

dataset = envs.from_episodes(
    episodes, environment=envs.EnvironmentSpec("CartPole-v1", max_episode_steps=200), name="cartpole"
)
print(dataset.num_episodes, "episodes, returns from", dataset.returns.min(), "to", dataset.returns.max())

# %% [markdown]
# ## 2. Train
#
# The model is small, and so is the number of steps. The run's folder holds checkpoints and curves;
# `tensorboard --logdir runs` shows them.

# %%
import dt

config = dt.Config(
    model=dt.ModelConfig(width=32, num_layers=1, context_length=5),
    training=dt.TrainingConfig(steps=400, learning_rate=3e-3, warmup_steps=50),
    calibration=dt.CalibrationConfig(calibration_steps=20_000),
)
run = dt.train(dataset, config, "runs/cartpole")

# %% [markdown]
# ## 3. Ask for returns
#
# The same model plays every episode. Only the target differs.

# %%
policy = run.policy()
targets = [25.0, 60.0, 200.0]
results = dt.evaluate(policy, run.environment, targets, episodes=10)
for result in results:
    print(f"target {result.target_return:5.0f}   achieved {result.mean_return:6.1f} ± {result.std_return:.1f}")

# %% [markdown]
# ## 4. Film it

# %%
from pathlib import Path

from dt.sharing.video import film

films = film(run, policy, targets, seed=0, folder=Path("films"))
print(*films)
