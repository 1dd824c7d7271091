"""Time to a working lever: what a person waits for, ours and Hugging Face's model on one core.

    python -m benchmarks.time_to_lever --list          # the grid: what is done, begun and missing
    python -m benchmarks.time_to_lever --minutes 60    # the next missing cells, then the table and the picture
    python -m benchmarks.time_to_lever --draw          # only the table and the picture

The lever works when two things hold: the alignment error is at most 0.1, and `--target-return auto` earns at least 90 %
of what it earns after the run's full budget. The time until then is that of training and calibration. Evaluations and
scoring are not counted.

Recipes and budgets are those of `benchmarks.lever`: its default, and Hugging Face's model with K = 5. The peer is not
calibrated, and its `auto` is the best of its targets. A run is trained as without this program and keeps its weights at
each sixteenth of its budget. First the weights after the full budget are scored, then those along the way (`LOOKS`)
until the lever works. Only the peer is trained further (`LATER`) while it does not, at its last learning rate.

A cell that was stopped goes on where it was. Seconds of the processor are what the picture shows, because they depend
less on other programs.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from benchmarks import lever
from benchmarks.gym import (
    Cell,
    cell_parser,
    chosen_cells,
    fill_cells,
    hardware,
    read_rows,
    status_of,
    time_limit,
)
from dt.asking.calibrate import calibrate_after_training
from dt.asking.targets import default_targets
from dt.config import Config, EvaluationConfig
from dt.learning.run import load_run, versions
from dt.learning.training import prepare
from envs.datasets.dataset import Dataset
from envs.datasets.loading import load
from transformer.files import read_json, write_json
from transformer.runs.callbacks import Callback
from transformer.runs.checkpoint import checkpoints, folder_of, step_of
from transformer.runs.folder import is_run

ALIGNMENT_ERROR = 0.1
"""A working lever has at most this alignment error."""

SHARE = 0.9
"""A working lever earns at least this share of what `auto` earns after the full budget."""

PARTS = 16
"""Parts of the budget after which a run's weights are kept."""

LOOKS = (1, 2, 3, 4, 6, 8, 12, PARTS)
"""After how many parts a run is scored."""

LATER = (24, 32, 48)
"""After how many parts Hugging Face's model is scored where its lever did not work within its budget."""

NAMES = {"default": "ours", "huggingface": "Hugging Face"}
"""Whose each method is."""

Row = dict[str, Any]

Look = dict[str, Any]
"""Step, seconds, processor_seconds, alignment_error and auto: a run at one of its steps."""


def grid() -> list[Cell]:
    """Every cell, the most useful first."""
    return [Cell(dataset, method, seed) for seed in range(3) for dataset in lever.TWO for method in NAMES]


def recipe(cell: Cell) -> Config:
    """What `benchmarks.lever` trains a cell with; log and checkpoints, which change no weight, are at the parts."""
    config = lever.recipe(cell)
    part, rest = divmod(config.training.steps, PARTS)
    assert rest == 0, "a budget is a whole number of parts"
    training = replace(config.training, log_every=part, checkpoint_every=part, keep_checkpoints=PARTS + 1)
    return replace(config, training=training)


class Clock(Callback):
    """Seconds and processor seconds that a training takes up to a step, over any number of sittings.

    A part of the run that was cut by a stop counts as if all its steps had taken as long as those that were timed.

    Args:
        path: a JSON file: by the last step of each part, the two times that a step of it took.
        step: where the training is now.
    """

    def __init__(self, path: Path, step: int):
        self.path, self.step, self.then = path, step, now()

    def on_log(self, step: int, numbers: dict[str, float]) -> None:
        """Keep how long a step took since the last call."""
        a_step = [taken / (step - self.step) for taken in since(self.then)]
        write_json(self.path, (read_json(self.path) if self.path.exists() else {}) | {str(step): a_step})
        self.step, self.then = step, now()

    def seconds(self, step: int) -> tuple[float, float]:
        """Up to this step, the last of a part."""
        total, before = [0.0, 0.0], 0
        for last, a_step in sorted((int(last), times) for last, times in read_json(self.path).items()):
            if last <= step:
                total = [sum_ + (last - before) * taken for sum_, taken in zip(total, a_step, strict=True)]
                before = last
        return total[0], total[1]


def now() -> tuple[float, float]:
    """Seconds on the wall and of the processor."""
    return time.perf_counter(), time.process_time()


def since(then: tuple[float, float]) -> tuple[float, float]:
    """Both, from then until now."""
    wall, processor = now()
    return wall - then[0], processor - then[1]


class Trained(Protocol):
    """A training that keeps its weights at each part of the budget."""

    def train_to(self, step: int) -> None:
        """Train what is missing up to this step."""

    def look(self, step: int) -> Look:
        """Score the run as it was at this step."""


class Ours:
    """Our model; each look calibrates a copy of the run as it was, as `dt train` does at its end.

    Args:
        dataset: what is learned from.
        config: the recipe.
        folder: of the run.
        aside: a folder for the clock, and for the copies.
    """

    def __init__(self, dataset: Dataset, config: Config, folder: Path, aside: Path):
        self.dataset, self.config, self.folder, self.aside = dataset, config, folder, aside

    def train_to(self, step: int) -> None:
        """Train what is missing of the whole run, which never has more steps than its budget."""
        if folder_of(self.folder, step).exists():
            return
        kept = checkpoints(self.folder)
        clock = Clock(self.aside / "clock.json", step_of(kept[-1]) if kept else 0)
        trainer = prepare(self.dataset, self.config, self.folder, resume=is_run(self.folder), callbacks=[clock])
        if not is_run(self.folder):
            trainer.start()
        trainer.train()

    def look(self, step: int) -> Look:
        """Calibrate and score the weights of this step."""
        copy = self.aside / f"step-{step}"
        if copy.exists():
            shutil.rmtree(copy)  # a calibration that was cut short would go on, and seem to take less
        shutil.copytree(folder_of(self.folder, step), folder_of(copy, step))
        shutil.copy(self.folder / "run.json", copy)
        run, then = load_run(copy), now()
        calibrate_after_training(run)
        calibration = since(then)
        training = Clock(self.aside / "clock.json", step).seconds(step)
        targets, auto = EvaluationConfig(), EvaluationConfig(target_return="auto")
        error = lever.scored(run, targets)["measures"]["alignment_error"]
        earned = lever.scored(run, auto)["results"][0]["mean_return"]
        return _look(step, training, error, earned) | {
            "seconds": round(training[0] + calibration[0], 1),
            "processor_seconds": round(training[1] + calibration[1], 1),
            "calibration_seconds": round(calibration[0], 1),
        }


class Theirs:
    """Hugging Face's model by the same recipe in float32; arguments as for `Ours`."""

    def __init__(self, dataset: Dataset, config: Config, folder: Path, aside: Path):
        from benchmarks import huggingface_baseline

        self.theirs, self.dataset, self.model_config = huggingface_baseline, dataset, config.model
        self.training, self.folder, self.aside = replace(config.training, precision="float32"), folder, aside
        self.part = config.training.checkpoint_every

    def _make(self, step: int) -> tuple[Any, torch.optim.Optimizer]:
        """The model and its optimiser as they were at a step; at step 0 as they begin."""
        torch.manual_seed(self.training.seed)
        model = self.theirs.Baseline(self.model_config, self.dataset)
        optimizer = self.theirs.make_optimizer(model, self.training)
        if step:
            state = torch.load(folder_of(self.folder, step) / "state.pt", weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        return model, optimizer

    def train_to(self, step: int) -> None:
        """Train what is missing, part by part. After the budget the learning rate stays what it was at its end."""
        kept = checkpoints(self.folder)
        done = step_of(kept[-1]) if kept else 0
        if done >= step:
            return
        cpu = torch.device("cpu")
        model, optimizer = self._make(done)
        data = self.theirs.TrajectoryDataset(self.dataset, self.model_config.context_length, cpu)
        clock = Clock(self.aside / "clock.json", done)
        for last in range(done + self.part, step + 1, self.part):
            steps = range(last - self.part, last)
            self.theirs.train(model, data, self.training, cpu, steps, optimizer)
            clock.on_log(last, {})
            unfinished = self.folder / "unfinished"
            unfinished.mkdir(parents=True, exist_ok=True)
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, unfinished / "state.pt")
            folder_of(self.folder, last).parent.mkdir(exist_ok=True)
            unfinished.rename(folder_of(self.folder, last))

    def look(self, step: int) -> Look:
        """Score the weights of this step, as they answer without calibration."""
        model, _ = self._make(step)
        policy = self.theirs.HuggingFacePolicy(model, self.dataset.action_space, self.model_config.context_length)
        scored = lever.scored_peer(policy, self.dataset, default_targets(self.dataset.returns))
        best = max(result["mean_return"] for result in scored["results"])
        training = Clock(self.aside / "clock.json", step).seconds(step)
        return _look(step, training, scored["measures"]["alignment_error"], best)


def _look(step: int, training: tuple[float, float], alignment_error: float, auto: float) -> Look:
    return {
        "step": step,
        "seconds": round(training[0], 1),
        "processor_seconds": round(training[1], 1),
        "alignment_error": alignment_error,
        "auto": auto,
    }


def play(cell: Cell, folder: Path) -> Row:
    """Train what is missing of a cell's run and look at it until its lever works: its row."""
    config, dataset = recipe(cell), load(cell.dataset)
    aside = folder.with_name(f"{folder.name}-looks")
    aside.mkdir(parents=True, exist_ok=True)
    peer = bool(lever.METHODS[cell.method].peer)
    trained: Trained = (Theirs if peer else Ours)(dataset, config, folder, aside)
    looks = take_looks(trained, config.training.steps, LATER if peer else (), aside / "looks.json")
    return {
        "dataset": cell.dataset,
        "method": cell.method,
        "seed": cell.seed,
        "command": f"python -m benchmarks.time_to_lever --dataset {cell.dataset} --method {cell.method} "
        f"--seed {cell.seed}",
        "data": {"fingerprint": dataset.fingerprint, "episodes": dataset.num_episodes, "steps": dataset.num_steps},
        "recipe": config.to_json(),
        "hardware": hardware(config),
        "versions": versions(),
        "budget": config.training.steps,
        "looks": looks,
    }


def take_looks(trained: Trained, budget: int, later: Sequence[int], kept: Path) -> list[Look]:
    """Look at a run after its budget, then along the way and after it, until its lever works; by step.

    Args:
        trained: the run.
        budget: its steps.
        later: parts of the budget after its end, at which to look if the lever does not work until then.
        kept: a JSON file of the looks, which goes on after a stop.
    """
    looks: list[Look] = read_json(kept) if kept.exists() else []
    trained.train_to(budget)
    for parts in (PARTS, *LOOKS[:-1], *later):
        step = parts * budget // PARTS
        if step in (look["step"] for look in looks):
            continue
        if parts != PARTS and reached(looks, budget, step) is not None:
            continue
        trained.train_to(step)
        looks = sorted([*looks, trained.look(step)], key=lambda look: look["step"])
        write_json(kept, looks)
    return looks


def reached(looks: Iterable[Look], budget: int, before: float = float("inf")) -> Look | None:
    """The first look, of those at steps below `before`, at which the lever works; None where it does not."""
    looks = list(looks)
    full = next(look["auto"] for look in looks if look["step"] == budget)
    for look in looks:
        works = look["alignment_error"] <= ALIGNMENT_ERROR and look["auto"] >= SHARE * full
        if works and look["step"] < before:
            return look
    return None


def table(rows: Iterable[Row]) -> str:
    """One line for each run, in Markdown."""
    lines = [
        "| dataset | | seed | seconds | of the processor | steps | alignment error | auto | auto after the budget |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        look, last = reached(row["looks"], row["budget"]), row["looks"][-1]
        full = next(each["auto"] for each in row["looks"] if each["step"] == row["budget"])
        waited = f"{look['seconds']:.0f}" if look else f"not within {last['seconds'] / 60:.0f} minutes"
        shown = look or last
        cells = (row["dataset"], NAMES[row["method"]], row["seed"], waited, f"{shown['processor_seconds']:.0f}")
        numbers = (f"{shown['step']:,}", f"{shown['alignment_error']:.3f}", f"{shown['auto']:.0f}", f"{full:.0f}")
        lines.append(f"| {' | '.join(map(str, cells + numbers))} |")
    return "\n".join(lines)


def ratios(rows: Sequence[Row]) -> str:
    """How many times sooner our lever works, by the medians over seeds in processor time, one dataset a line."""
    lines = []
    for dataset in lever.TWO:
        ours, theirs = (
            [row for row in rows if (row["dataset"], row["method"]) == (dataset, method)] for method in NAMES
        )
        if ours and theirs:
            seconds, bounded = zip(*(_median_wait(of_one) for of_one in (ours, theirs)), strict=True)
            if bounded[0]:
                lines.append(f"{dataset}: our lever does not work within its budget")
            else:
                least = "at least " if bounded[1] else ""
                lines.append(f"{dataset}: {least}{seconds[1] / seconds[0]:.1f} times sooner")
    return "\n".join(lines)


def _median_wait(rows: Sequence[Row]) -> tuple[float, bool]:
    """Processor seconds until the lever works, and whether it worked in no more than half of the runs by then."""
    waits = [(reached(row["looks"], row["budget"]) or row["looks"][-1])["processor_seconds"] for row in rows]
    missing = sum(reached(row["looks"], row["budget"]) is None for row in rows)
    return median(waits), 2 * missing > len(rows)


COLOURS = {"default": "#d95f02", "huggingface": "#1f78b4"}


def draw(rows: Sequence[Row], picture: Path) -> None:
    """Alignment error above and what `auto` earns below, against processor time; a dataset in each column."""
    from transformer.runs.pictures import import_matplotlib

    shown = [dataset for dataset in lever.TWO if any(row["dataset"] == dataset for row in rows)]
    figure = import_matplotlib().figure.Figure(figsize=(5.5 * len(shown), 7), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False, sharex="col")
    for column, dataset in enumerate(shown):
        for row in rows:
            if row["dataset"] == dataset:
                _draw_run(axes[0][column], row, "alignment_error", lambda full: ALIGNMENT_ERROR)
                _draw_run(axes[1][column], row, "auto", lambda full: SHARE * full)
        axes[0][column].set_title(dataset)
        axes[0][column].set_ylim(bottom=0)
        axes[1][column].set_xscale("log")
        axes[1][column].set_xlabel("seconds of the processor")
    axes[0][0].set_ylabel("alignment error (dashed: 0.1)")
    axes[1][0].set_ylabel("auto earns (dashed: 90 % of after the budget)")
    for method, name in NAMES.items():
        axes[0][0].plot([], [], ".-", color=COLOURS[method], label=name)
    axes[0][0].plot([], [], "*", color="0.2", markersize=11, label="the lever works")
    axes[0][0].legend(fontsize="small")
    figure.savefig(picture, dpi=110)


def _draw_run(axis: Any, row: Row, name: str, threshold: Callable[[float], float]) -> None:
    """One run's looks, the first at which its lever works as a star, and the threshold."""
    looks, colour = row["looks"], COLOURS[row["method"]]
    full = next(look["auto"] for look in looks if look["step"] == row["budget"])
    axis.plot(*_points(looks, name), ".-", color=colour, linewidth=1, alpha=0.8)
    axis.axhline(threshold(full), color="0.5" if name == "alignment_error" else colour, linestyle="--", linewidth=0.8)
    look = reached(looks, row["budget"])
    if look is not None:
        axis.plot(*_points([look], name), "*", color=colour, markersize=11, markeredgecolor="0.2")


def _points(looks: Iterable[Look], name: str) -> tuple[list[float], list[float]]:
    pairs = [(look["processor_seconds"], look[name]) for look in looks]
    return [x for x, _ in pairs], [y for _, y in pairs]


def parse() -> argparse.Namespace:
    parser = cell_parser(__doc__, "time_to_lever", lever.TWO, NAMES)
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/time-to-lever.png"), help="what is drawn")
    parser.add_argument("--draw", action="store_true", help="make no rows, only table and picture")
    return parser.parse_args()


def main() -> None:
    options = parse()
    cells = chosen_cells(options, grid())
    if options.list:
        print(status_of(cells, options.results, options.work))
        return
    if not options.draw:
        torch.set_num_threads(1)
        with time_limit(options.minutes):
            fill_cells(cells, options.results, options.work, play, grid())
    rows = list(read_rows(options.results).values())
    if rows:
        print(table(rows), ratios(rows), sep="\n\n")
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
