"""`dt train-many`: runs side by side in one program."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dt.cli.datasets import load_each
from dt.cli.environments import environment_to_play_in, with_limited_environment
from dt.cli.options import TrainMany
from dt.config import FINAL_SEED, Config
from dt.learning.cells import cells_of
from dt.sharing.html_report.seeds import seeds_table
from envs.datasets.dataset import Dataset
from envs.errors import MissingEnvError
from envs.simulate.spec import EnvironmentSpec
from transformer.config import require
from transformer.runs.console import show, tell

if TYPE_CHECKING:
    from dt.evaluation import TargetResult


def run(options: TrainMany) -> None:
    """Read the data, train the runs, and print how each of them is evaluated."""
    datasets, environment = _datasets(options)
    _train(options, datasets, environment)  # torch comes in here


def _datasets(options: TrainMany) -> tuple[list[Dataset], EnvironmentSpec | None]:
    """The datasets that `dt train-many` is given, and the environment that it is given."""
    config, limit = options.config, options.minutes
    require(config.training.seed == 0, f"seed {config.training.seed}: train-many has --seeds")
    require(limit is None or 0 <= limit < math.inf, f"minutes must be 0 or more and finite, not {limit}")
    environment = environment_to_play_in(options.env)
    cloning = not config.model.uses_returns
    datasets = [*load_each(options.dataset, options.reading, environment, without_rewards=cloning)]
    if environment is None:
        datasets = [with_limited_environment(dataset, options.env) for dataset in datasets]
    for dataset in datasets:
        config.check_rewards(dataset.name, dataset.rewards_from)
    cells_of(datasets, config, options.seeds, options.output)
    return datasets, environment


def _train(options: TrainMany, datasets: Sequence[Dataset], environment: EnvironmentSpec | None) -> None:
    """`dt train-many`: runs side by side, then what the seeds of each dataset earn together."""
    from dt.evaluation import check_failures
    from dt.learning.train_many import train_many

    folders, done = train_many(
        datasets, options.config, options.seeds, options.output, environment=environment, minutes=options.minutes
    )
    if not done:
        tell("\nthe time is up; the same command goes on from here")
        return
    results: list[TargetResult] = []
    for i in range(len(datasets)):
        results += _score_seeds(folders[i * len(options.seeds) :][: len(options.seeds)], options.config)
    for folder in folders:
        show(f"dt evaluate {folder}")
    check_failures(results)


def _score_seeds(folders: Sequence[Path], config: Config) -> list["TargetResult"]:
    """Score the runs of one dataset, write each run's results into its folder, and print the joint table."""
    from dt.cli.runs import keep_results
    from dt.cli.scores import document_of, score_run, write_scores
    from dt.learning.run import load_run
    from transformer.runs.setup import pick_device

    documents, results = [], []
    for folder in folders:
        run = load_run(folder, device=pick_device(config.training.device))
        if run.environment is None:
            return []
        try:
            scores = score_run(run, config.evaluation, FINAL_SEED, "last")
        except MissingEnvError as error:
            tell(f"no returns: {error}")
            return []
        keep_results(run, write_scores, "last", scores, run, FINAL_SEED)
        scores.check_complete()
        documents.append(document_of(scores, run, FINAL_SEED))
        results += scores.results
    seeds = f"{len(folders)} seed{'s' if len(folders) > 1 else ''}"
    show(f"{run.dataset['name']} in {documents[0]['environment']}, {seeds}\n{seeds_table(documents)}")
    if all(document["guidance"] != "calibrated" for document in documents) and run.config.model.uses_returns:
        tell("these runs are not calibrated; dt calibrate RUN measures what each request earns")
    return results
