"""Key-to-Door from random play (Chen et al. 2021, section 5.4): what was done long ago decides what is earned now.

    python -m benchmarks.key_to_door

records random play, trains and scores what the file of results lacks, prints the table and draws it. Where it is
stopped it goes on: a row is written when it is complete, a training resumes.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes

import envs.key_to_door  # noqa: F401  registers the environment
from benchmarks.gym import hardware
from benchmarks.random_play import dataset_of, record
from dt.config import Config, DataConfig, EvaluationConfig, ModelConfig
from dt.evaluation import evaluate
from dt.learning.run import versions
from dt.learning.training import train
from dt.policy import ReturnConditionedPolicy
from envs.key_to_door import ROOM_STEPS
from envs.simulate.rollout import PlayedEpisode
from envs.simulate.spec import EnvironmentSpec
from transformer.config import TrainingConfig
from transformer.files import read_json, write_json

ENVIRONMENT = EnvironmentSpec("KeyToDoor-v0")
Method = Literal["token", "decoupled", "single", "none-best", "none"]
CONDITIONING: dict[Method, Any] = {
    "token": "token",
    "decoupled": "decoupled",
    "single": "single",
    "none-best": "none",
    "none": "none",
}
LABELS: dict[Method, str] = {
    "token": "Decision Transformer, token",
    "decoupled": "Decision Transformer, decoupled",
    "single": "Decision Transformer, single",
    "none-best": "%BC: only the successes",
    "none": "BC: everything",
}
PAPER: dict[Method, dict[int, float]] = {
    "token": {1_000: 71.8, 10_000: 94.6},
    "none-best": {1_000: 69.9, 10_000: 95.1},
    "none": {1_000: 1.4, 10_000: 1.6},
}
"""Per cent of episodes that succeed (Chen et al. 2021, table 5); their Decision Transformer is `token`."""
RANDOM_IN_PAPER = 3.1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Success from random play, by method, episodes of data and seed."""

    methods: tuple[Method, ...] = ("token", "decoupled", "single", "none-best", "none")
    """What is trained; none is behaviour cloning, none-best the same on the episodes that succeeded alone."""
    episodes: tuple[int, ...] = (1_000, 10_000)
    """Episodes of random play to learn from."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings; the data is the same for all."""
    steps: int = 3_000
    """Gradient steps of each training."""
    width: int = 32
    """Width of the models; `token` needs 64."""
    num_heads: int = 1
    """Attention heads of each of their two layers; `token` needs 4."""
    dropout: float = 0.1
    """Their dropout."""
    played: int = 300
    """Episodes that score it, asked for a return of 1."""
    runs: Path = Path("runs/key-to-door")
    """Folder of the runs."""
    results: Path = Path("docs/results/key_to_door.json")
    """File of the results, one row a training."""
    picture: Path = Path("docs/pictures/key-to-door.png")
    """Where the success is drawn."""


def recipe(method: Method, seed: int, options: Options) -> Config:
    """The whole episode is the context, as in the paper; a small model, so that one core is enough."""
    return Config(
        data=DataConfig(balanced=0.0, from_start=0.0),
        evaluation=EvaluationConfig(calibration=False),
        model=ModelConfig(
            positions="timesteps",
            rotary=False,
            observation_noise=0.0,
            conditioning=CONDITIONING[method],
            width=options.width,
            num_layers=2,
            num_heads=options.num_heads,
            dropout=options.dropout,
            activation="gelu",
            context_length=3 * ROOM_STEPS,
            max_timesteps=3 * ROOM_STEPS,  # the successes alone may all be shorter
        ),
        training=TrainingConfig(
            precision="float32",
            steps=options.steps,
            learning_rate=2e-3,
            learning_rate_floor=0.1,
            warmup_steps=100,
            gradient_clip=1.0,
            evaluate_every=0,
            seed=seed,
        ),
    )


def score(method: Method, played: list[PlayedEpisode], seed: int, options: Options) -> dict[str, Any]:
    """Train on these episodes of random play and score the last checkpoint: one row of the results."""
    used = [episode for episode in played if episode.total_return > 0] if method == "none-best" else played
    name = f"{method}-{len(played)}-s{seed}"
    dataset, folder, begun = (
        dataset_of(used, ENVIRONMENT, f"key-to-door/random-{len(played)}"),
        options.runs / name,
        time.time(),
    )
    run = train(dataset, recipe(method, seed, options), folder, resume=folder.exists())
    (result,) = evaluate(ReturnConditionedPolicy(run.model), ENVIRONMENT, [1.0], episodes=options.played)
    return {
        "method": method,
        "episodes": len(played),
        "seed": seed,
        **{name: getattr(options, name) for name in ("steps", "width", "num_heads", "dropout")},
        "successes_in_data": int(dataset.returns.sum()),
        "played": options.played,
        "success": result.mean_return,
        "minutes": round((time.time() - begun) / 60, 1),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "hardware": hardware(Config()),
        "versions": versions(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Per cent of success, mean and each seed's, beside the paper's figure."""
    lines = ["| method | episodes of data | success, % | seeds | the paper's |", "| --- | --- | --- | --- | --- |"]
    for (method, episodes), found in grouped(rows).items():
        paper = PAPER.get(method, {}).get(episodes)
        lines.append(
            f"| {LABELS[method]} | {episodes:,} | {np.mean(found):.1f} "
            f"| {', '.join(f'{percent:.1f}' for percent in found)} | {paper or '-'} |"
        )
    return "\n".join(lines)


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[Method, int], list[float]]:
    """Per cent of success of each seed, by method and episodes of data, in the order of `LABELS`."""
    groups: dict[tuple[Method, int], list[float]] = {}
    for row in sorted(rows, key=lambda row: (list(LABELS).index(row["method"]), row["episodes"], row["seed"])):
        groups.setdefault((row["method"], row["episodes"]), []).append(100 * row["success"])
    return groups


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar a method and size of data, a dot a seed, a line where the paper's stands."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(rows)
    methods = [method for method in LABELS if any(method == name for name, _ in groups)]
    sizes = sorted({episodes for _, episodes in groups})
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    width = 0.8 / len(sizes)
    for i, episodes in enumerate(sizes):
        for x, method in enumerate(methods):
            if (method, episodes) not in groups:
                continue
            found, center = groups[method, episodes], x + (i - (len(sizes) - 1) / 2) * width
            label = f"{episodes:,} episodes of random play" if x == 0 else None
            axes.bar(center, np.mean(found), width * 0.92, color=f"C{i}", alpha=0.75, label=label)
            axes.plot([center] * len(found), found, "o", color="0.2", ms=3)
            if episodes in PAPER.get(method, {}):
                ends = [center - width / 2, center + width / 2]
                axes.plot(ends, [PAPER[method][episodes]] * 2, color="C3", lw=2)
    axes.plot([], [], color="C3", lw=2, label="the paper's figure (its own rooms)")
    axes.plot([], [], "o", color="0.2", ms=3, label="a seed")
    axes.axhline(RANDOM_IN_PAPER, color="0.5", lw=1, ls=":", label="random play")
    axes.set(ylabel="episodes that succeed, %", ylim=(0, 104), title="Key-to-Door, learned from random play")
    axes.set_xticks(
        range(len(methods)),
        [LABELS[method].replace(": ", ":\n").replace(", ", ",\n").replace("n T", "n\nT") for method in methods],
    )
    axes.grid(alpha=0.25, axis="y")
    figure.legend(fontsize="small", loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    options = tyro.cli(Options, config=(OmitArgPrefixes,), description=__doc__)
    rows: list[dict[str, Any]] = read_json(options.results)["rows"] if options.results.exists() else []
    wanted = [
        (seed, method, episodes)
        for seed in options.seeds
        for method in options.methods
        for episodes in options.episodes
    ]
    there = {(row["seed"], row["method"], row["episodes"]) for row in rows}
    missing = [cell for cell in wanted if cell not in there]
    played = record(ENVIRONMENT, max(episodes for _, _, episodes in missing)) if missing else []
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for seed, method, episodes in missing:
        rows.append(score(method, played[:episodes], seed, options))
        print(f"{method}, {episodes:,} episodes, seed {seed}: {100 * rows[-1]['success']:.1f} % succeed", flush=True)
        write_json(options.results, {"schema": 1, "rows": rows})
    print(table(rows))
    plot(rows, options.picture)


if __name__ == "__main__":
    main()
