"""`dt train`: a run from datasets, its scores, and its folder."""

import json
from dataclasses import replace
from pathlib import Path

from dt.cli.datasets import load_each, recorded_parts
from dt.cli.environments import environment_to_play_in, in_environment, with_limited_environment, with_step_limit
from dt.cli.options import Train
from dt.config import BEST_SEED, FINAL_SEED
from dt.learning.cells import run_folder
from dt.learning.description import environment_in, read_description
from envs.datasets.dataset import Dataset
from envs.datasets.selection import join
from envs.errors import MissingEnvError
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError
from transformer.runs import distributed
from transformer.runs.console import show, tell
from transformer.runs.folder import check_new_run
from transformer.runs.outputs import check_folder


def run(options: Train) -> None:
    """Read the data, train, and score the run."""
    with distributed.process_group():
        distributed.check_same({"config": options.config.to_json(), "resume": options.resume})
        dataset, environment = training_data(options)
        train_and_score(options, dataset, environment)  # torch comes in here


def training_data(options: Train) -> tuple[Dataset, EnvironmentSpec | None]:
    """The datasets that `dt train` is given, as one, and the environment that it is given."""
    if options.resume and options.output is None:
        raise ConfigError("--resume needs --output, the run's folder")
    begins = not options.resume and not options.print_config
    if options.output is not None and begins:
        _check_begun(options.output)
    resumed = options.output if options.resume else None
    environment = environment_to_play_in(options.env)
    if environment is None and resumed is not None and options.env.max_episode_steps is not None:
        environment = with_step_limit(environment_in(read_description(resumed / "run.json")), options.env)
    recorded = recorded_parts(resumed, len(options.dataset)) if resumed else []
    fraction = options.fraction or tuple(share for share, _ in recorded)
    cloning = not options.config.model.uses_returns
    parts = [*load_each(options.dataset, options.reading, environment, resumed, without_rewards=cloning)]
    dataset = join(parts, fraction, options.config.training.seed)
    if environment is None:
        dataset = with_limited_environment(dataset, options.env)
    options.config.check_rewards(dataset.name, dataset.rewards_from)
    if options.output is None and begins:
        _check_begun(run_folder(Path("runs"), dataset, options.config.training.seed))
    return dataset, environment


def _check_begun(folder: Path) -> None:
    """Refuse to begin a run where one cannot be. Under torchrun it may be its own; `train` checks that."""
    check_folder(folder)
    if distributed.launch_id() is None:
        check_new_run(folder)


def train_and_score(options: Train, dataset: Dataset, environment: EnvironmentSpec | None) -> None:
    """`dt train`: a run, its scores at the last step and, where one was chosen on the way, at the best."""
    from dt.cli.held_out import measure_at_the_end
    from dt.cli.runs import keep_results
    from dt.cli.scores import print_scores, score_run, write_scores
    from dt.evaluation import check_failures
    from dt.inspection import describe_dataset
    from dt.learning.run import load_run
    from dt.learning.training import prepare, train

    config = options.config
    folder = options.output or run_folder(Path("runs"), dataset, config.training.seed)
    if options.print_config:
        trainer = prepare(dataset, config, folder, environment=environment, resume=options.resume)
        if distributed.is_first_rank():
            show(json.dumps(trainer.record.document["config"], indent=2))
        return
    tell(describe_dataset(in_environment(dataset, environment)))
    run = train(dataset, config, folder, environment=environment, resume=options.resume)
    try:
        scores = score_run(run, config.evaluation, FINAL_SEED, "last") if run.environment is not None else None
    except MissingEnvError as error:
        tell(f"no returns: {error}")
        scores = None
    if run.config.data.held_out:
        measure_at_the_end(run, dataset, chosen=scores is None)
    if scores is None:
        tell(f"\nrun folder    {folder}\ncurves        tensorboard --logdir {folder / 'tensorboard'}")
        return
    print_scores(scores, run)
    keep_results(run, write_scores, "last", scores, run, FINAL_SEED)
    scores.check_complete()
    if (folder / "best.json").exists():
        tell("\nbest on the way, scored again on seeds that did not choose it:")
        best = load_run(folder, "best", run.model.return_scale.device)
        scored_best = score_run(best, config.evaluation, BEST_SEED, "best")
        print_scores(scored_best, best)
        keep_results(best, write_scores, "best", scored_best, best, BEST_SEED)
        scored_best.check_complete()
        scores = replace(scores, results=[*scores.results, *scored_best.results])
    tell(
        f"\nrun folder    {folder}"
        f"\npicture       {folder / 'results' / 'target-against-achieved.png'}"
        f"\ncurves        tensorboard --logdir {folder / 'tensorboard'}"
        f"\nevaluate      dt evaluate {folder} --target-return G"
    )
    check_failures(scores.results)
