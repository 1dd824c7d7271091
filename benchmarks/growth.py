"""How time and memory grow: with the batch, the context length, the width, the dataset and the number of environments.

Each point is a process of its own, forked from this one, on one thread: its processor time, and the most memory of its
own that it held above what it began with (pages of mapped files, which the system may take back, are not counted).

    pip install "decision-transformer[benchmark,mujoco]"
    python -m benchmarks.growth [--quick] [--json docs/results/growth.json] [--picture docs/pictures/growth.png]
"""

import argparse
import gc
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.speed import play, training_step
from dt.config import Config, ModelConfig
from dt.data import Batch, TrajectoryDataset
from dt.learning.build import build_model
from dt.policy import ReturnConditionedPolicy
from envs.datasets.cache import FRESH
from envs.datasets.loading import load
from transformer.files import write_json

PAGE = os.sysconf("SC_PAGE_SIZE")

Point = tuple[float, float]
"""Seconds of the processor and megabytes."""


def own_bytes() -> int:
    """Memory of this process that no file backs."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * PAGE


@contextmanager
def most_bytes() -> Iterator[list[int]]:
    """The most of its own memory that this process held meanwhile: the list's last."""
    seen, over = [own_bytes()], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            seen[0] = max(seen[0], own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def in_a_process(work: Callable[[], float]) -> Point:
    """What the work says it took, in seconds, and the memory above the beginning, measured in a fork of this one."""

    def measure(answer: Any) -> None:
        gc.collect()  # else what the parent left to be collected would count against the work
        before = own_bytes()
        with most_bytes() as most:
            seconds = work()
        answer.send((seconds, (most[0] - before) / 1e6))

    forks = multiprocessing.get_context("fork")
    here, there = forks.Pipe(duplex=False)
    child = forks.Process(target=measure, args=(there,))
    child.start()
    there.close()
    found: Point = here.recv()
    child.join()
    return found


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of doing the work once."""
    before = time.process_time()
    work()
    return time.process_time() - before


def step(batch_size: int = 64, **shape: int) -> float:
    """One step of training `decoupled` in the paper's Hopper size but for what is said: the median of five."""
    dataset = load("hopper/replay-v0")
    config = Config(model=ModelConfig(conditioning="decoupled", **shape))
    model = build_model(dataset, config, None)
    data = TrajectoryDataset(dataset, config.model.context_length)
    batch = data.gather(data.indices(0, 0, batch_size))
    once = training_step(model, model, batch, Batch.slices)
    once()
    return median(processor_seconds(once) for _ in range(5))


def begin(source: Path) -> float:
    """From a dataset that was read before to the first batch."""

    def first_batch() -> None:
        data = TrajectoryDataset(load(source), 20)
        data.gather(data.indices(0, 0, 64))

    return processor_seconds(first_batch)


def written(folder: Path, num_steps: int) -> Path:
    """A flat file of so many steps, as long episodes as Hopper's, that has been read once."""
    rng, path = np.random.default_rng(0), folder / f"{num_steps}.npz"
    lengths = np.full(num_steps // 500, 500)
    seen, done = (rng.normal(size=(num_steps, size)).astype(np.float32) for size in (11, 3))
    np.savez(path, observations=seen, actions=done, rewards=seen[:, 0], lengths=lengths, terminated=lengths > 0)
    time.sleep(FRESH / 1e9)  # what changed just now is not kept
    in_a_process(lambda: float(load(path).num_steps))
    return path


def playing(num_envs: int) -> float:
    """One step of Hopper-v5 in each of so many environments."""
    dataset = load("hopper/replay-v0")
    model = build_model(dataset, Config(model=ModelConfig(conditioning="decoupled")), None)
    work = play(ReturnConditionedPolicy(model), num_envs)
    work()
    return processor_seconds(work) / 60


def grids(folder: Path, quick: bool) -> dict[str, dict[int, Callable[[], float]]]:
    """For each axis its values, and the work at each."""
    datasets = {n: written(folder, n) for n in SIZES["steps in the dataset"][: 3 if quick else None]}
    work: dict[str, Callable[[int], float]] = {
        "batch size": step,
        "context length": lambda n: step(context_length=n),
        "width": lambda n: step(width=n),
        "steps in the dataset": lambda n: begin(datasets[n]),
        "environments": playing,
    }
    return {name: {n: partial(work[name], n) for n in values[: 3 if quick else None]} for name, values in SIZES.items()}


SIZES = {
    "batch size": [16, 32, 64, 128, 256],
    "context length": [10, 20, 40, 80, 160],
    "width": [32, 64, 128, 256, 512],
    "steps in the dataset": [125_000, 250_000, 500_000, 1_000_000, 2_000_000],
    "environments": [1, 4, 16, 32, 64],
}

WHAT = {
    "batch size": "a training step",
    "context length": "a training step",
    "width": "a training step",
    "steps in the dataset": "to the first batch, from the cache",
    "environments": "a step in every environment",
}


def draw(found: dict[str, dict[int, Point]], path: Path) -> None:
    """Time above, memory below, an axis in each column; dotted, what grows as the axis does."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6), layout="constrained")
    axes = figure.subplots(2, len(found))
    for column, (name, points) in enumerate(found.items()):
        values = list(points)
        for row, unit in enumerate(("s", "MB")):
            axis, numbers = axes[row][column], [max(points[value][row], 1e-3) for value in values]
            axis.loglog(values, numbers, "o-")
            axis.loglog(values, [numbers[-1] * value / values[-1] for value in values], ":", color="grey")
            shown, ends = values[:: 1 if values[-1] < 1e4 else 2], [numbers[0], numbers[-1]]
            axis.set_xticks(shown, [f"{value:,}" if value < 1e4 else f"{value / 1e6:g} M" for value in shown])
            axis.set_yticks(ends, [f"{end:.0f}" if end >= 10 else f"{end:.2g}" for end in ends])
            axis.minorticks_off()
            axis.set_xlabel(name)
            axis.set_ylabel(f"{'processor time' if row == 0 else 'memory of its own'}, {unit}")
        axes[0][column].set_title(WHAT[name])
    figure.savefig(path, dpi=80)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the three smallest values of each axis")
    parser.add_argument("--json", type=Path, default=Path("docs/results/growth.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/growth.png"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    found: dict[str, dict[int, Point]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DECISION_TRANSFORMER_CACHE"] = f"{folder}/cache"
        works = grids(Path(folder), options.quick)
        with tqdm(total=sum(map(len, works.values())), unit="point") as bar:
            for name, points in works.items():
                found[name] = {}
                for value, work in points.items():
                    found[name][value] = in_a_process(work)
                    bar.update()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    write_json(options.json, {"versions": versions, "seconds and megabytes": found})
    draw(found, options.picture)


if __name__ == "__main__":
    main()
