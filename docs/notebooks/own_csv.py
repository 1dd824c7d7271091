# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # A CSV of your own
#
# You have a log and no simulator. This notebook makes such a log, reads it with names of its own,
# trains on it, measures the model on days that it has not seen, and asks it for decisions.
#
# Run it as a script: `python docs/notebooks/own_csv.py`. It needs `pip install ".[arrow]"` in this repository.

# %% [markdown]
# ## 1. The log
#
# A heater is off (0), low (1) or high (2). Each row is a quarter of an hour; each day is an episode.
# The reward is higher the closer the room is to 21 degrees, and heating costs.
# Some days were controlled well, some carelessly.

# %%
import csv

import numpy as np

random = np.random.default_rng(0)
with open("heating.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["day", "indoor", "outdoor", "heater", "comfort"])
    for day in range(80):
        care = random.uniform(0, 1)  # how often the controller looks at the thermometer
        indoor, outdoor = random.uniform(15, 20), random.uniform(-5, 12)
        for _ in range(48):
            wanted = 2 if indoor < 20 else 1 if indoor < 21 else 0
            heater = wanted if random.random() < care else int(random.integers(3))
            comfort = -abs(indoor - 21) / 10 - 0.05 * heater
            writer.writerow([day, f"{indoor:.2f}", f"{outdoor:.2f}", heater, f"{comfort:.4f}"])
            indoor += 0.6 * heater + 0.04 * (outdoor - indoor) + random.normal(0, 0.1)

# %% [markdown]
# ## 2. Read it
#
# The column names are not the usual ones, so loading stops and says what is missing.

# %%
import dt

try:
    dt.load("heating.csv")
except dt.DataError as error:
    print(error)

# %% [markdown]
# `columns` maps them. On the command line that is
# `dt inspect heating.csv --columns episode=day observations=indoor,outdoor actions=heater rewards=comfort`.

# %%
columns = {"episode": "day", "observations": ["indoor", "outdoor"], "actions": "heater", "rewards": "comfort"}
dataset = dt.load("heating.csv", columns=columns)
print(dataset.num_episodes, "days,", dataset.num_steps, "steps")
print("observations:", dataset.observation_space)
print("actions:", dataset.action_space)
print(*dataset.notes, sep="\n")

# %% [markdown]
# The numbers of one column that are whole became a choice (Discrete). Nothing had to be declared.
#
# ## 3. Train
#
# There is no environment, so a tenth of the days is held out. The log has the model's error on those days,
# next to that of the best constant answer.

# %%
import json

config = dt.Config(
    model=dt.ModelConfig(width=32, num_layers=1, context_length=8),
    training=dt.TrainingConfig(steps=300, evaluate_every=100, learning_rate=3e-3, warmup_steps=50),
)
run = dt.train(dataset, config, "runs/heating")
log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
held_out = [record for record in log if "held_out_loss" in record][-1]
print({name: round(value, 3) for name, value in held_out.items() if "held_out" in name or "constant" in name})

# %% [markdown]
# ## 4. Ask for decisions
#
# A policy needs a target return: here the best day's. Then it gets one observation after the other.
# A cold room should be heated, a warm one should not.

# %%
policy = run.policy()
decisions = {}
for indoor in (16.0, 20.5, 23.0):
    policy.reset(target_return=float(dataset.returns.max()))
    decisions[indoor] = int(policy.act(np.array([indoor, 5.0])))
print(decisions)
