"""The Gym table: methods beside each other on the same recordings, filled over as many sittings as it takes.

    python -m benchmarks.gym --list                 # the grid: what is done, begun and missing
    python -m benchmarks.gym --minutes 60           # the next missing cells, in the grid's order
    python -m benchmarks.gym --dataset hopper/mixed-v0 --method token bc --seed 0
    python -m benchmarks.gym_report                 # the tables in Markdown, and the picture

A cell is a dataset, a method and a seed; it becomes one row of the results file, which is written complete or not at
all after every cell. A cell that was stopped goes on where its run in --work stands; only Hugging Face's begins anew.
Workers side by side, of one --work folder, never take the same cell. Every method has the same recipe (`recipe`), and
the same steps but where its name says more.
"""

import argparse
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from benchmarks.delayed_reward import delayed
from dt.asking.targets import default_targets
from dt.config import FINAL_SEED, SWEEP_OFFSET, Config, DataConfig, EvaluationConfig, ModelConfig
from dt.errors import InterruptedEvaluation
from dt.evaluation import TargetResult, best_target, evaluate
from dt.learning.run import load_run, versions
from dt.learning.training import train
from dt.policy import ReturnConditionedPolicy
from envs.datasets.dataset import Dataset
from envs.datasets.loading import load
from envs.datasets.selection import join
from envs.errors import DataError
from envs.simulate.rollout import Policy
from transformer.config import TrainingConfig
from transformer.errors import Stopped
from transformer.files import read_json, write_json
from transformer.runs.checkpoint import checkpoints, step_of
from transformer.runs.folder import is_run
from transformer.runs.setup import pick_device

EPISODES = 20
"""Episodes for each target; the choices (of a checkpoint on the way, of a target) are made on half as many."""


@dataclass(frozen=True)
class Method:
    """One row of a table: what is learned from, and how it is conditioned."""

    conditioning: Literal["token", "decoupled", "none", "single"] = "token"
    top_fraction: float = 1.0  # share of the steps, in the episodes of highest return
    context_length: int = 5
    steps: int = 4_000
    delayed: bool = False  # all reward at the last step
    huggingface: bool = False  # Hugging Face's model instead of ours


METHODS = {
    "token": Method("token"),
    "decoupled": Method("decoupled"),
    "decoupled-8000": Method("decoupled", steps=8_000),
    "single": Method("single"),
    "single-8000": Method("single", steps=8_000),
    "single-60000": Method("single", steps=60_000),
    "bc": Method("none"),
    "bc-10": Method("none", top_fraction=0.1),
    "bc-25": Method("none", top_fraction=0.25),
    "bc-40": Method("none", top_fraction=0.4),
    "huggingface": Method(huggingface=True),
    "token-delayed": Method("token", delayed=True),
    "decoupled-delayed": Method("decoupled", delayed=True),
    "single-delayed": Method("single", delayed=True),
    "token-k1": Method("token", context_length=1),
    "token-k20": Method("token", context_length=20),
}
"""Each method by its name. Behaviour cloning uses no return, so a delayed reward changes nothing of it. A step of
`single` takes half the time of `decoupled`'s, so 8,000 of them take as long as the others' 4,000."""

MAIN = ("token", "decoupled", "decoupled-8000", "single", "single-8000", "bc", "bc-10")
DATASETS = (
    "hopper/mixed-v0",
    "hopper/replay-v0",
    "halfcheetah/mixed-v0",
    "hopper/medium-v0+hopper/expert-v0",
    "halfcheetah/medium-v0+halfcheetah/expert-v0",
)
ONCE: dict[str, tuple[str, ...]] = dict.fromkeys(DATASETS, ("bc-25", "bc-40"))
"""Beside the main methods, at seed 0 alone."""
ONCE["hopper/mixed-v0"] += ("huggingface",)
ONCE["halfcheetah/mixed-v0"] += ("huggingface",)
ALSO: dict[str, tuple[str, ...]] = {
    "hopper/mixed-v0": ("token-delayed", "decoupled-delayed", "single-delayed", "token-k1", "token-k20"),
    "hopper/medium-v0+hopper/expert-v0": ("single-60000",),
    "halfcheetah/medium-v0+halfcheetah/expert-v0": ("single-60000",),
}
"""Beside them at every seed: the paper's ablations on one dataset; more steps where a few thousand make no expert."""


@dataclass(frozen=True)
class Cell:
    """What makes one row."""

    dataset: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """As a folder's name."""
        return f"{self.dataset}-{self.method}-s{self.seed}".replace("/", "-")

    @property
    def command(self) -> str:
        """What makes this row again."""
        return f"python -m benchmarks.gym --dataset {self.dataset} --method {self.method} --seed {self.seed}"


def grid() -> list[Cell]:
    """Every cell, the most useful first: dataset after dataset, in each all of seed 0 before the next seed."""
    return [
        Cell(dataset, method, seed)
        for dataset in DATASETS
        for seed in range(3)
        for method in MAIN + ALSO.get(dataset, ()) + (ONCE[dataset] if seed == 0 else ())
    ]


def recipe(cell: Cell, maximum: float) -> Config:
    """What every cell is trained with. The checkpoint is chosen on the way by what the data's best return earns."""
    method = METHODS[cell.method]
    return Config(
        model=ModelConfig(
            conditioning=method.conditioning,
            positions="timesteps",
            rotary=False,
            observation_noise=0.0,
            context_length=method.context_length,
        ),
        data=DataConfig(top_fraction=method.top_fraction, balanced=0.0, from_start=0.0),
        training=TrainingConfig(
            steps=method.steps,
            precision="float32",
            learning_rate=6e-4,
            learning_rate_floor=0.1,
            evaluate_every=method.steps // 4,
            checkpoint_every=500,
            seed=cell.seed,
        ),
        evaluation=EvaluationConfig(target_return=(maximum,), episodes=EPISODES // 2, calibration=False),
    )


def read_data(cell: Cell) -> Dataset:
    """The recording, with its rewards as this method sees them."""
    dataset = join([load(name) for name in cell.dataset.split("+")])
    return delayed(dataset) if METHODS[cell.method].delayed else dataset


def play(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train what is missing of a cell's run and score it: its row."""
    dataset = read_data(cell)
    config = recipe(cell, float(dataset.returns.max()))
    made = _huggingface if METHODS[cell.method].huggingface else _ours
    return {
        "dataset": cell.dataset,
        "method": cell.method,
        "seed": cell.seed,
        "command": cell.command,
        "data": {"fingerprint": dataset.fingerprint, "episodes": dataset.num_episodes, "steps": dataset.num_steps},
        "maximum": float(dataset.returns.max()),
        "reference": vars(dataset.reference) if dataset.reference else None,
        "recipe": config.to_json(),
        **made(dataset, config, folder),
        "hardware": hardware(config),
        "versions": versions(),
    }


def _ours(dataset: Dataset, config: Config, folder: Path) -> dict[str, Any]:
    """A run of this package's: last and best checkpoint, and the best target of the best checkpoint."""
    run = train(dataset, config, folder, resume=is_run(folder))
    best = load_run(folder, "best", run.model.return_scale.device)
    targets = default_targets(dataset.returns, conditioned=config.model.uses_returns)
    started = time.perf_counter()
    policy = ReturnConditionedPolicy(best.model)
    sweep = score(policy, dataset, targets, EPISODES // 2, FINAL_SEED + SWEEP_OFFSET) if len(targets) > 1 else []
    at_best = score(policy, dataset, targets, EPISODES)
    same = best.checkpoint == run.checkpoint
    at_last = at_best if same else score(ReturnConditionedPolicy(run.model), dataset, targets, EPISODES)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "last": {"step": step_of(run.checkpoint), "results": summary(at_last)},
        "best": {
            "step": step_of(best.checkpoint),
            "results": summary(at_best),
            "chosen_target": best_target(sweep or at_best),
        },
        "seconds": {
            "training": round(sum(line["seconds"] for line in log if line["kind"] == "train")),
            "choosing": round(sum(line["seconds"] for line in log if line["kind"] == "evaluation")),
            "scoring": round(time.perf_counter() - started),
        },
    }


def _huggingface(dataset: Dataset, config: Config, folder: Path) -> dict[str, Any]:
    """Hugging Face's model under the same recipe, at its last step: their loop keeps no other."""
    from benchmarks import huggingface_baseline as theirs

    device, context_length = pick_device(config.training.device), config.model.context_length
    torch.manual_seed(config.training.seed)
    model, started = theirs.Baseline(config.model, dataset).to(device), time.perf_counter()
    theirs.train(model, theirs.TrajectoryDataset(dataset, context_length, device), config.training, device)
    trained = time.perf_counter()
    policy = theirs.HuggingFacePolicy(model, dataset.action_space, context_length)
    results = score(policy, dataset, default_targets(dataset.returns), EPISODES)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "last": {"step": config.training.steps, "results": summary(results)},
        "seconds": {"training": round(trained - started), "scoring": round(time.perf_counter() - trained)},
        "transformers": theirs.transformers.__version__,
    }


def score(
    policy: Policy, dataset: Dataset, targets: tuple[float, ...], episodes: int, seed: int = FINAL_SEED
) -> list[TargetResult]:
    """What the policy earns in the dataset's environment at each target."""
    assert dataset.environment is not None
    with tqdm(total=len(targets) * episodes, unit="episode", desc="evaluate") as bar:
        return evaluate(
            policy,
            dataset.environment,
            targets,
            episodes=episodes,
            seed=seed,
            reference=dataset.reference,
            on_episode=lambda _: bar.update(),
        )


def summary(results: list[TargetResult]) -> list[dict[str, Any]]:
    """Each target's result without its single episodes."""
    return [
        {name: value for name, value in result.to_json().items() if name not in ("returns", "lengths")}
        | {"episodes": len(result.returns)}
        for result in results
    ]


def hardware(config: Config) -> str:
    """Where the row was made, in words."""
    if pick_device(config.training.device).type == "cuda":
        return f"one {torch.cuda.get_device_name()}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    threads = torch.get_num_threads()
    return f"{model} ({torch.backends.cpu.get_cpu_capability()}), {threads} of {os.cpu_count()} cores, no GPU"


def read_rows(results: Path) -> dict[Cell, dict[str, Any]]:
    """The rows of a results file by their cell; none where there is no file yet."""
    rows = read_json(results)["rows"] if results.exists() else []
    return {Cell(row["dataset"], row["method"], row["seed"]): row for row in rows}


def add_row(results: Path, cell: Cell, row: dict[str, Any], cells: Sequence[Cell] | None = None) -> None:
    """Put a row into the file, which others may be adding to; one that is there already stays.

    cells: the whole grid, in the order of the file's rows; None is this module's.
    """
    with FileLock(results.with_name(f".{results.name}.lock")):
        rows = {cell: row} | read_rows(results)
        order = {known: i for i, known in enumerate(grid() if cells is None else cells)}
        ordered = sorted(rows, key=lambda known: order.get(known, len(order)))
        write_json(results, {"schema": 1, "rows": [rows[known] for known in ordered]})


def fill(cells: Iterable[Cell], results: Path, work: Path) -> None:
    """Make the rows of this module's grid that are missing."""
    fill_cells(cells, results, work, play, grid())


def fill_cells(
    cells: Iterable[Cell],
    results: Path,
    work: Path,
    play: Callable[[Cell, Path], dict[str, Any]],
    whole: Sequence[Cell],
) -> None:
    """Make the rows that are missing, one after the other; a cell that another worker has is left to it.

    play: makes the row of a cell; its run is in the given folder.
    whole: the whole grid, in the order of the file's rows.
    """
    work.mkdir(parents=True, exist_ok=True)
    results.parent.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        try:
            with FileLock(work / f"{cell.name}.lock", blocking=False):
                if cell not in read_rows(results):
                    _tell(cell.name)
                    add_row(results, cell, play(cell, work / cell.name), whole)
        except Timeout:
            _tell(f"{cell.name}: another worker has it")
        except DataError as error:
            _tell(f"{cell.name}: left out, {error}")


@contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """After so long whatever runs is stopped as by a signal, at its next safe place; that is no error then."""
    over = threading.Event()

    def stop() -> None:
        over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True
    previous = signal.signal(signal.SIGTERM, interrupt)  # training has its own, which saves a checkpoint first
    try:
        timer.start()
        yield
    except (KeyboardInterrupt, Stopped, InterruptedEvaluation):
        if not over.is_set():
            raise
        _tell("\nthe time is up; the same command goes on from here")
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, previous)


def status_of(cells: Iterable[Cell], results: Path, work: Path) -> str:
    """Each cell and how far it is, one a line."""
    done, lines = read_rows(results), []
    for cell in cells:
        kept = checkpoints(work / cell.name)
        state = "done" if cell in done else f"begun, step {step_of(kept[-1])}" if kept else "missing"
        lines.append(f"{state:<16} {cell.dataset} {cell.method} {cell.seed}")
    return "\n".join([*lines, f"{sum(cell in done for cell in cells)} of {len(lines)} done"])


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def cell_parser(
    description: str | None, name: str, datasets: Iterable[str], methods: Iterable[str]
) -> argparse.ArgumentParser:
    """The options of a benchmark that fills the cells of a grid.

    description: the benchmark's, for its help.
    name: of its file of rows and of the folder of its runs.
    datasets, methods: those of the grid.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, datasets, methods = parser.add_argument, tuple(datasets), tuple(methods)
    add("--minutes", type=float, default=20.0, help="stop after so long, wherever it is")
    add("--results", type=Path, default=Path(f"docs/results/{name}.json"), help="the file of rows")
    add("--work", type=Path, default=Path(f"runs/{name}"), help="where the cells' runs are")
    add("--dataset", nargs="+", choices=datasets, default=datasets, help="these only")
    add("--method", nargs="+", choices=methods, default=methods, help="these only")
    add("--seed", nargs="+", type=int, default=(0, 1, 2), help="these only")
    add("--list", action="store_true", help="print what is done and what is missing")
    return parser


def chosen_cells(options: argparse.Namespace, cells: Iterable[Cell]) -> list[Cell]:
    """The cells of a grid that the options of `cell_parser` name."""
    datasets, methods, seeds = options.dataset, options.method, options.seed
    return [cell for cell in cells if cell.dataset in datasets and cell.method in methods and cell.seed in seeds]


def parse() -> argparse.Namespace:
    parser = cell_parser(__doc__, "gym", DATASETS, METHODS)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    options = parse()
    cells = chosen_cells(options, grid())
    if options.list:
        print(status_of(cells, options.results, options.work))
    else:
        torch.set_num_threads(options.threads)
        with time_limit(options.minutes):
            fill(cells, options.results, options.work)


if __name__ == "__main__":
    main()
