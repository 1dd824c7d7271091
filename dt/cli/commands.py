"""What the commands do (`dt inspect` and `dt import` apart), once the command line is read; torch comes in here."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dt.asking.calibrate import calibrate, policy_of, precision_of
from dt.asking.targets import percentiles, resolve
from dt.cli.options import Calibrate, EnvironmentOptions, Evaluate, Export, ImportHuggingFace, Record, Train, TrainMany
from dt.cli.scores import (
    document_of,
    plot_scores,
    print_scores,
    score,
    score_run,
    warn_of_targets,
    write_scores,
)
from dt.cli.sources import in_environment, with_step_limit
from dt.config import BEST_SEED, FINAL_SEED, Config
from dt.errors import FailedEpisodesError
from dt.evaluation import TargetResult, check_environment, check_failures
from dt.inspection import describe_dataset
from dt.learning.cells import run_folder
from dt.learning.description import left_out_in, reading_in
from dt.learning.many import train_many
from dt.learning.run import Run, load_run, versions
from dt.learning.training import prepare, train
from dt.recording import record, recording_plan
from dt.runner import Policy
from dt.sharing.export import compare, export_policy, of_one_row, origin_of
from dt.sharing.html_report.seeds import seeds_table
from dt.sharing.huggingface import import_published
from dt.sharing.huggingface_config import Published
from dt.sharing.report import calibration_table, held_out_document
from dt.sharing.video import check_camera, film
from dt.validation import Validation, choose_episodes, error_table
from envs.datasets.dataset import Dataset, DatasetSource
from envs.datasets.loading import load
from envs.datasets.selection import join
from envs.datasets.writer import keep_elsewhere, write_minari
from envs.errors import DataError, MissingEnvError
from envs.reading.flat_files import is_flat
from envs.simulate.rollout import PlayedEpisode
from envs.simulate.scores import reference_in
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError
from transformer.files import new_folder, os_reason, write_json
from transformer.runs import distributed
from transformer.runs.console import show, tell
from transformer.runs.progress import progress
from transformer.runs.setup import pick_device


def train_and_score(options: Train, dataset: Dataset, environment: EnvironmentSpec | None) -> None:
    """`dt train`: a run, its scores at the last step and, where one was chosen on the way, at the best."""
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
        _foretell_at_the_end(run, dataset, chosen=scores is None)
    if scores is None:
        tell(f"\nrun folder    {folder}\ncurves        tensorboard --logdir {folder / 'tensorboard'}")
        return
    print_scores(scores, run)
    _keep(run, write_scores, "last", scores, run, FINAL_SEED)
    scores.check_complete()
    if (folder / "best.json").exists():
        tell("\nbest on the way, scored anew on seeds that did not choose it:")
        best = load_run(folder, "best", run.model.return_scale.device)
        scored_best = score_run(best, config.evaluation, BEST_SEED, "best")
        print_scores(scored_best, best)
        _keep(best, write_scores, "best", scored_best, best, BEST_SEED)
        scored_best.check_complete()
        scores = replace(scores, results=[*scores.results, *scored_best.results])
    tell(
        f"\nrun folder    {folder}"
        f"\npicture       {folder / 'results' / 'target-against-achieved.png'}"
        f"\ncurves        tensorboard --logdir {folder / 'tensorboard'}"
        f"\nask it again  dt evaluate {folder} --target-return G"
    )
    check_failures(scores.results)


def train_runs(options: TrainMany, datasets: Sequence[Dataset], environment: EnvironmentSpec | None) -> None:
    """`dt train-many`: runs side by side, then what the seeds of each dataset earn together."""
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


def _score_seeds(folders: Sequence[Path], config: Config) -> list[TargetResult]:
    """Score the runs of one dataset, write each run's results into its folder, and print the joint table."""
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
        _keep(run, write_scores, "last", scores, run, FINAL_SEED)
        scores.check_complete()
        documents.append(document_of(scores, run, FINAL_SEED))
        results += scores.results
    seeds = f"{len(folders)} seed{'s' if len(folders) > 1 else ''}"
    show(f"{run.dataset['name']} in {documents[0]['environment']}, {seeds}\n{seeds_table(documents)}")
    if all(document["guidance"] != "calibrated" for document in documents) and run.config.model.hears_returns:
        tell("these runs are not calibrated; dt calibrate RUN measures what each request earns")
    return results


def _foretell_at_the_end(run: Run, dataset: Dataset, chosen: bool) -> None:
    """Leave the error on held-out episodes in the run's folder; of the best too, where this error has chosen it."""
    if not distributed.is_first_rank():
        return
    last = _foretell(run, dataset)
    _keep(run, lambda place: write_json(place / "held-out.json", last))
    if chosen and (run.folder / "best.json").exists():
        show("\nbest on the way, on the same episodes, which chose it:")
        best = load_run(run.folder, "best", run.model.return_scale.device)
        chosen_one = _foretell(best, dataset)
        _keep(run, lambda place: write_json(place / "held-out-best.json", chosen_one))


def _foretell(run: Run, dataset: Dataset) -> dict[str, Any]:
    """Print a run's error on the episodes of its data that it held out; returns it as JSON."""
    learned, held_out = choose_episodes(dataset, run.config.data, run.config.training.seed)
    assert held_out is not None
    result = Validation(run.model, learned, held_out).measure()
    show(f"{run.dataset['name']}, checkpoint {run.checkpoint.name}\n{error_table(result)}")
    return held_out_document(result, dataset=run.dataset["name"], checkpoint=run.checkpoint.name, versions=versions())


def ask(options: Evaluate, asked: EnvironmentSpec | None) -> None:
    """`dt evaluate`: a trained run's returns as table, JSON, picture and films. asked: the environment, if given."""
    run = load_run(options.run, options.checkpoint, pick_device(options.device))
    run = _limited(run, options.env, asked)
    if asked is None and not _has_environment(run):
        _ask_without_an_environment(options, run)
        return
    run = _in_environment(run, asked)
    assert run.environment is not None
    if options.dataset:
        raise ConfigError(
            f"{run.folder}: is played in {run.environment.id}, --dataset is for runs without an environment"
        )
    if options.video:
        check_camera(run.environment, options.config.env_timeout)
    precision = None if options.precision == "auto" else options.precision
    policy = policy_of(run, options.config, precision=precision, cached=options.cached, which=options.checkpoint)
    warn_of_targets(run, policy, options.config)
    scores = score(run, options.config, options.seed, policy, options.checkpoint)
    print_scores(scores, run)
    if options.json:
        write_json(options.json, document_of(scores, run, options.seed))
    if options.plot:
        plot_scores(scores, run, options.plot, options.checkpoint)
    scores.check_complete()
    if options.video:
        targets, timeout = [result.target_return for result in scores.results], options.config.env_timeout
        for path in film(run, policy, targets, options.seed, options.video, timeout):
            tell(f"film          {path}")
    check_failures(scores.results)


def calibrate_run(options: Calibrate, environment: EnvironmentSpec | None) -> None:
    """`dt calibrate`: play a run at many requests and keep what it earned."""
    run = load_run(options.run, options.checkpoint, pick_device(options.device))
    run = _in_environment(_limited(run, options.env, environment), environment)
    if not run.config.model.hears_returns:
        raise ConfigError(f"{run.folder}: conditioning none does not depend on a target return")
    if not run.dataset.get("percentiles"):
        run = replace(run, dataset={**run.dataset, "percentiles": _known_returns(run, options.dataset)})
    precision = None if options.precision == "auto" else options.precision
    calibration = calibrate(
        run,
        options.play,
        options.calibration.calibration_steps,
        precision=precision,
        cached=options.cached,
        which=options.checkpoint,
    )
    show(calibration_table(calibration, run.dataset["percentiles"]))
    show(f"dt evaluate {run.folder}")


def _has_environment(run: Run) -> bool:
    """Whether a run's environment can be made here. Without held-out episodes a missing environment is an error."""
    if not run.config.data.held_out:
        return True
    if run.environment is None:
        return False
    try:
        check_environment(run.environment, run.model)
    except MissingEnvError as error:
        tell(f"no returns: {error}")
        return False
    return True


def _ask_without_an_environment(options: Evaluate, run: Run) -> None:
    """`dt evaluate` where there is nothing to play in: the error on held-out episodes, from the data itself."""
    usual, of_play = type(options)(run=options.run), ("plot", "video", "seed", "precision", "cached")
    said = [name for name in of_play if getattr(options, name) != getattr(usual, name)]
    said += [name for name, value in vars(options.config).items() if value != getattr(usual.config, name)]
    if said:
        name = said[0].replace("_", "-")
        raise ConfigError(f"{run.folder}: --{name} needs an environment to play in; --environment ID names one")
    dataset = _learned_from(run, options.dataset)
    document = _foretell(run, dataset)
    if options.json:
        write_json(options.json, document)


def _known_returns(run: Run, sources: Sequence[str]) -> list[float]:
    """The percentiles of the returns that a run learned from, from the data itself, since its run.json has none."""
    if run.imported is None:
        learned, _ = choose_episodes(_learned_from(run, sources), run.config.data, run.config.training.seed)
        return percentiles(learned.returns)
    if not sources:
        raise ConfigError(f"{run.folder}: was imported without its data's returns; --dataset SOURCE gives them")
    return percentiles(join([load(source) for source in sources]).returns)


def _learned_from(run: Run, sources: Sequence[str]) -> Dataset:
    """All the data that a run learned from and held out, as its run.json names it, or where it lies now: sources."""
    recorded = run.dataset.get("parts", ())
    if not recorded:
        raise ConfigError(f"{run.checkpoint}/run.json: does not say what data it is of")
    names = " ".join(part["name"] for part in recorded)
    if sources and len(sources) != len(recorded):
        raise ConfigError(
            f"{run.folder}: --dataset names {len(sources)}, the run learned from {len(recorded)}: {names}"
        )
    datasets = [_part(run, part, source) for part, source in zip_longest(recorded, sources)]
    dataset = join(datasets, [part["fraction"] for part in recorded], run.config.training.seed)
    for before, after in zip(recorded, dataset.parts or [DatasetSource.of(dataset)], strict=True):
        if before["fingerprint"] != after.fingerprint:
            others = [part["name"] for part in recorded if part["fingerprint"] == after.fingerprint]
            raise ConfigError(
                f"{run.folder}: dataset {before['name']} is not what it was when the run learned from it: "
                f"{after.source} has the fingerprint {after.fingerprint[:12]}, it had {before['fingerprint'][:12]}"
                + (f"; this is {others[0]}, and the run's order is {names}" if others else "")
            )
    return dataset


def _part(run: Run, part: Mapping[str, Any], source: str | None) -> Dataset:
    """One of the datasets that a run learned from. source: where it lies now; None where it did then."""
    asked, source = source, source or part["source"]
    if source is None:
        raise ConfigError(
            f"{run.folder}: dataset {part['name']} came from Python: measure it there (dt.validation), "
            "or --dataset names a file of it"
        )
    reading = reading_in(part)
    if not is_flat(Path(source)):  # a dataset that was imported since has names of its own
        reading = replace(reading, columns={})
    spaces = {"observation_space": run.model.observation_space, "action_space": run.model.action_space}
    try:
        # whether training left bad episodes out is not kept: if it did not there are none, or the data is another now
        return load(source, spaces=spaces, skip_bad_episodes=True, **vars(reading))
    except DataError as error:
        if asked is not None or Path(source).exists():
            raise
        raise DataError(f"{error}; --dataset says where {part['name']} lies now") from None


def record_episodes(options: Record, environment: EnvironmentSpec, command: str) -> None:
    """`dt record`: a policy played into a Minari dataset. command: what was typed, for the metadata."""
    chosen = recording_plan(
        options.policy,
        environment,
        options.config,
        seed=options.seed,
        checkpoint=options.checkpoint,
        trust=options.trust,
        vec_normalize=options.vec_normalize,
    )
    failed: list[PlayedEpisode] = []
    with progress("record", len(chosen.requests), "episode") as bar:
        dataset = record(
            chosen,
            environment,
            options.dataset_id,
            env_timeout=options.config.env_timeout,
            on_episode=lambda _: bar.update(),
            on_failure=failed.append,
        )
    recorded = {"command": command, **dataset.provenance["recorded"]}
    if failed:
        recorded["failed_episodes"] = [str(episode.failure) for episode in failed]
    folder = _write_recording(
        replace(dataset, provenance={**dataset.provenance, "recorded": recorded}), options.dataset_id
    )
    show(f"{options.dataset_id}: {dataset.num_episodes} episodes, {dataset.num_steps} steps, in {folder}")
    for episode in failed[:20]:
        tell(f"failed        {episode.failure}")
    if failed:
        raise FailedEpisodesError(f"{len(failed)} of {len(chosen.requests)} episodes failed and are not in the dataset")


def _write_recording(dataset: Dataset, dataset_id: str) -> Path:
    """Write what was played under its id; where that fails it is kept elsewhere, and the error says where."""
    try:
        return write_minari(dataset, dataset_id)
    except DataError as error:
        kept = keep_elsewhere(dataset)
        if kept is None:
            raise
        raise DataError(
            f"{error}. The {dataset.num_episodes} episodes are kept in {kept}; when there is room: "
            f"dt import {kept} {dataset_id}"
        ) from error


def export_run(options: Export, environment: EnvironmentSpec | None) -> None:
    """`dt export`: a run's policy as a folder that acts without this package."""
    run = load_run(options.run, options.checkpoint)
    if environment is not None:
        run = _in_environment(run, environment)
    if precision_of(run) == "bf16":
        tell(f"exported in float32; for a calibration in float32: dt calibrate {run.folder} --precision float32")
    policy = of_one_row(policy_of(run, precision="float32", which=options.checkpoint), run.model)
    with new_folder(options.output) as folder:
        export_policy(policy, run.model, folder, options.format, origin_of(run))
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        if options.verify:
            assert run.environment is not None
            check_environment(run.environment, run.model)
            target = max(resolve(run.dataset["targets"], run.dataset.get("percentiles", [])), default=0.0)
            show(compare(policy, Policy(folder), run.environment, target).line())
    for name, size in sizes.items():
        show(f"{options.output / name}  {size / 1e3:.0f} kB")


def import_model(options: ImportHuggingFace, published: Published) -> None:
    """`dt import-huggingface`: a run of someone else's model."""
    run = import_published(published, options.output)
    tell(f"run folder    {run.folder}\nask it        dt evaluate {run.folder} --target-return G")


def _limited(run: Run, env: EnvironmentOptions, given: EnvironmentSpec | None) -> Run:
    """The run, its own environment with the step limit of the options where no other environment is given."""
    if given is not None or env.max_episode_steps is None:
        return run
    return _in_environment(run, with_step_limit(run.environment, env))


def _in_environment(run: Run, environment: EnvironmentSpec | None) -> Run:
    """The run in the given environment, or in its own; its reference returns are kept where they hold."""
    if environment is None and run.environment is None:
        raise ConfigError(f"{run.folder}: the dataset names no environment; --environment ID does")
    if environment is None:
        return run
    environment = environment.leaving_out(left_out_in(run.dataset))
    reference = reference_in(environment, run.environment, run.reference)
    if run.reference is not None and reference is None:
        tell(f"no normalised score: {environment.id} as given is not the environment of its reference returns")
    return replace(run, environment=environment, reference=reference)


def _keep(run: Run, write: Callable[..., None], *what: Any) -> None:
    """Write into a run's folder of results what is printed already; a failure is said, and hours are not lost by it."""
    if not distributed.is_first_rank():
        return
    place = run.folder / "results"
    try:
        place.mkdir(exist_ok=True)
        write(place, *what)
    except OSError as error:
        tell(f"{place}: cannot be written, {os_reason(error)}; what is printed stands")
