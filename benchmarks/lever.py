"""The lever: how well runs earn the return that they are asked for, on the same recordings at equal time.

    python -m benchmarks.lever --list               # the grid: what is done, begun and missing
    python -m benchmarks.lever --minutes 60         # the next missing cells, in the grid's order
    python -m benchmarks.lever --dataset hopper/mixed-v0 --method default --seed 0
    python -m benchmarks.lever_report               # the tables in Markdown, and the picture

A cell is a dataset, a method and a seed; it becomes one row of the results file, which is written complete or not at
all after each cell. A cell that was stopped goes on where its run in --work is. A method has as many gradient steps as
fit, with its calibration, into 20 minutes of one core (60 for the mixtures of medium and expert). Seconds a step were
measured once, and the numbers of steps below are what came of it: cells go by steps.

Two sets are the experience of a learner, recorded for this grid and kept as they came out:

    python -m benchmarks.record_replay Acrobot-v1 --algorithm ppo --output runs/acrobot
    dt import runs/acrobot/experience acrobot/replay-v0
    python -m benchmarks.record_replay Swimmer-v5 --algorithm ppo --gamma 0.9999 --output runs/swimmer
    dt import runs/swimmer/experience swimmer/replay-v0
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import gym, mlp_clone
from benchmarks.delayed_reward import delayed
from benchmarks.gym import Cell, fill_cells, hardware, status_of, summary, time_limit
from dt.asking.calibrated_policy import policy_of
from dt.asking.targets import default_targets
from dt.cli.scores import score
from dt.config import FINAL_SEED, Config, DataConfig, EvaluationConfig, ModelConfig
from dt.learning.run import Run, versions
from dt.learning.training import train
from dt.sharing.report import measures
from envs.datasets.dataset import Dataset
from envs.datasets.loading import load
from envs.datasets.selection import best_episodes, join, take
from envs.simulate.rollout import Policy
from transformer.config import TrainingConfig
from transformer.files import read_json
from transformer.runs.folder import is_run

DATASETS = {
    "hopper/mixed-v0": 20,
    "hopper/replay-v0": 20,
    "halfcheetah/mixed-v0": 20,
    "cartpole/mixed-v0": 20,
    "acrobot/replay-v0": 20,
    "swimmer/replay-v0": 20,
    "hopper/medium-v0+hopper/expert-v0": 60,
    "halfcheetah/medium-v0+halfcheetah/expert-v0": 60,
}
"""Minutes of one core that training and calibration may take on each."""

STEPS_A_MINUTE = {20: 600, 5: 1_800}
"""Gradient steps that fit into a minute, by context length: measured once, one thread of an Intel Xeon, bf16
(`benchmarks.speed` has the ratios); two minutes of each cell are the calibration's."""

HUGGINGFACE_STEPS_A_MINUTE = 760
"""The same of Hugging Face's model in float32 with K = 5, which is not calibrated: worked out from the ratio of
`benchmarks.speed`, not measured."""


@dataclass(frozen=True)
class Method:
    """One row of a table."""

    conditioning: Literal["single", "token", "none"] = "single"
    top_fraction: float = 1.0
    balanced: float | None = None  # None is the default's
    from_start: float = DataConfig().from_start
    context_length: int = 20
    observation_noise: float = ModelConfig().observation_noise
    learning_rate_floor: float = TrainingConfig().learning_rate_floor
    positions: Literal["none", "timesteps"] = "none"
    rotary: bool = True
    delayed: bool = False  # all reward at the last step
    peer: Literal["", "huggingface", "mlp"] = ""  # whose model, where it is not ours

    def steps(self, minutes: int) -> int:
        """Gradient steps of a cell that may take so long."""
        if self.peer == "mlp":
            return mlp_clone.STEPS
        if self.peer == "huggingface":
            return minutes * HUGGINGFACE_STEPS_A_MINUTE
        return (minutes - 2) * STEPS_A_MINUTE[self.context_length]


METHODS = {
    "default": Method(),
    "unbalanced": Method(balanced=0.0),
    "no-noise": Method(observation_noise=0.0, learning_rate_floor=0.1),
    "no-starts": Method(observation_noise=0.0, learning_rate_floor=0.1, from_start=0.0),
    "k5": Method(context_length=5),
    "timesteps": Method(
        observation_noise=0.0, learning_rate_floor=0.1, from_start=0.0, positions="timesteps", rotary=False
    ),
    "token": Method("token", context_length=5, positions="timesteps", rotary=False),
    "huggingface": Method(
        "token",
        balanced=0.0,
        from_start=0.0,
        context_length=5,
        observation_noise=0.0,
        positions="timesteps",
        rotary=False,
        peer="huggingface",
    ),
    "delayed": Method(delayed=True),
    "bc-10": Method("none", top_fraction=0.1),
    "bc-25": Method("none", top_fraction=0.25),
    "bc-40": Method("none", top_fraction=0.4),
    "mlp-10": Method("none", top_fraction=0.1, peer="mlp"),
    "mlp-25": Method("none", top_fraction=0.25, peer="mlp"),
    "mlp-40": Method("none", top_fraction=0.4, peer="mlp"),
}
"""Each method by its name."""

TWO = ("hopper/replay-v0", "halfcheetah/mixed-v0")
"""The sets on which methods other than the default have three seeds."""

CHOICES = ("cartpole/mixed-v0", "acrobot/replay-v0")
"""The sets with actions that are choices, which Hugging Face's model does not take."""


def grid() -> list[Cell]:
    """Every cell, the most useful first."""
    cells = [Cell(dataset, "default", seed) for seed in range(3) for dataset in DATASETS]
    cells.sort(key=lambda cell: DATASETS[cell.dataset])  # three short ones take as long as one long one
    cells += [
        Cell(dataset, method, 0) for method in METHODS if method.startswith(("bc", "mlp")) for dataset in DATASETS
    ]
    cells += [
        Cell(dataset, method, seed)
        for seed in range(3)
        for method in ("unbalanced", "no-noise", "no-starts", "timesteps", "token", "huggingface")
        for dataset in TWO
    ]
    cells += [Cell(dataset, "token", 0) for dataset in DATASETS if dataset not in TWO]
    cells += [Cell(dataset, "huggingface", 0) for dataset in DATASETS if dataset not in (*TWO, *CHOICES)]
    cells += [Cell("hopper/mixed-v0", "delayed", seed) for seed in range(3)]
    cells += [Cell("hopper/mixed-v0", "timesteps", 0), Cell("acrobot/replay-v0", "no-noise", 0)]
    return cells + [Cell(dataset, "k5", seed) for seed in range(3) for dataset in TWO]


def recipe(cell: Cell) -> Config:
    """What a cell is trained with: the defaults, but for what its method changes."""
    method = METHODS[cell.method]
    steps = method.steps(DATASETS[cell.dataset])
    return Config(
        model=ModelConfig(
            conditioning=method.conditioning,
            context_length=method.context_length,
            observation_noise=method.observation_noise,
            positions=method.positions,
            rotary=method.rotary,
        ),
        data=DataConfig(top_fraction=method.top_fraction, balanced=method.balanced, from_start=method.from_start),
        training=TrainingConfig(
            steps=steps,
            learning_rate_floor=method.learning_rate_floor,
            precision="auto",
            threads=1,
            evaluate_every=0,
            checkpoint_every=500,
            seed=cell.seed,
        ),
    )


def play(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train what is missing of a cell's run, calibrate and score it: its row."""
    method, config = METHODS[cell.method], recipe(cell)
    dataset = join([load(name) for name in cell.dataset.split("+")])
    if method.delayed:
        dataset = delayed(dataset)
    made = {"": _ours, "huggingface": _huggingface, "mlp": _mlp}[method.peer]
    return {
        "dataset": cell.dataset,
        "method": cell.method,
        "seed": cell.seed,
        "command": f"python -m benchmarks.lever --dataset {cell.dataset} --method {cell.method} --seed {cell.seed}",
        "data": {"fingerprint": dataset.fingerprint, "episodes": dataset.num_episodes, "steps": dataset.num_steps},
        "minimum": float(dataset.returns.min()),
        "maximum": float(dataset.returns.max()),
        "recipe": config.to_json(),
        "hardware": hardware(config),
        "versions": versions(),
        **made(dataset, config, folder),
    }


def _ours(dataset: Dataset, config: Config, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    run = train(dataset, config, folder, resume=is_run(folder))
    took = time.perf_counter() - started
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    training = sum(line["seconds"] for line in log if line["kind"] == "train")
    row = {
        "seconds": {"training": round(training), "with calibration": round(took)},
        "calibrated": scored(run, EvaluationConfig()),
    }
    if config.model.uses_returns:
        calibration = read_json(folder / "calibration-last.json")
        row["plain"] = scored(run, EvaluationConfig(calibration=False))
        row["auto"] = scored(run, EvaluationConfig(target_return="auto"))
        row["calibration_steps"] = calibration["steps"]
        if config.training.seed == 0:  # those that are drawn
            row["curves"] = [_means(curve) for curve in calibration["curves"]]
    return row


def scored(run: Run, config: EvaluationConfig) -> dict[str, Any]:
    """What a run earns, as a row has it; `InterruptedEvaluation` where a signal stopped it."""
    scores = score(run, config, FINAL_SEED, policy_of(run, config), "last")
    scores.check_complete()
    return {"measures": dict(scores.found), "results": summary(scores.results), "played": dict(scores.played)}


def _means(curve: dict[str, Any]) -> dict[str, Any]:
    """A calibration's curve with the mean of each request's episodes in their place."""
    means = [round(mean(returns), 3) for returns in curve["returns"]]
    return {"guidance": curve["guidance"], "requests": curve["requests"], "means": means}


def _huggingface(dataset: Dataset, config: Config, folder: Path) -> dict[str, Any]:
    """Hugging Face's model by the same recipe, as it answers without calibration."""
    from benchmarks import huggingface_baseline as theirs

    training = replace(config.training, precision="float32")
    torch.manual_seed(training.seed)
    model, started = theirs.Baseline(config.model, dataset), time.perf_counter()
    data = theirs.TrajectoryDataset(dataset, config.model.context_length, torch.device("cpu"))
    theirs.train(model, data, training, torch.device("cpu"))
    took = time.perf_counter() - started
    policy = theirs.HuggingFacePolicy(model, dataset.action_space, config.model.context_length)
    return {
        "seconds": {"training": round(took)},
        "plain": scored_peer(policy, dataset, default_targets(dataset.returns)),
        "transformers": theirs.transformers.__version__,
    }


def _mlp(dataset: Dataset, config: Config, folder: Path) -> dict[str, Any]:
    """A plain network that clones the best episodes."""
    share = config.data.top_fraction
    learned_from = take(dataset, best_episodes(dataset, share).tolist(), f"the best {share:g}")
    started = time.perf_counter()
    model = mlp_clone.train(learned_from, config.training.seed, config.training.steps)
    took = time.perf_counter() - started
    policy = mlp_clone.MlpPolicy(model, dataset.action_space)
    best = (float(dataset.returns.max()),)
    return {
        "recipe": {"steps": config.training.steps, "seed": config.training.seed, "top_fraction": share},
        "seconds": {"training": round(took)},
        "calibrated": scored_peer(policy, dataset, best),
    }


def scored_peer(policy: Policy, dataset: Dataset, targets: tuple[float, ...]) -> dict[str, Any]:
    """What a peer's policy earns at these targets, as a row has it."""
    results = gym.score(policy, dataset, targets, gym.EPISODES)
    known = np.percentile(dataset.returns, range(101)).tolist()
    return {"measures": measures(results, known, standard=len(targets) > 1), "results": summary(results)}


def main() -> None:
    options = gym.cell_parser(__doc__, "lever", DATASETS, METHODS).parse_args()
    cells = gym.chosen_cells(options, grid())
    if options.list:
        print(status_of(cells, options.results, options.work))
    else:
        torch.set_num_threads(1)
        with time_limit(options.minutes):
            fill_cells(cells, options.results, options.work, play, grid())


if __name__ == "__main__":
    main()
