"""`dt evaluate`: a trained run's returns as table, JSON, picture and films."""

from typing import TYPE_CHECKING

from dt.cli.checks import check_environment_seed, check_trained_run
from dt.cli.environments import environment_to_play_in
from dt.cli.options import Evaluate
from dt.config import CALIBRATION_SEED, CALIBRATION_SEEDS, SWEEP_OFFSET
from dt.sharing.hub import find_run
from envs.errors import MissingEnvError
from envs.simulate.spec import EnvironmentSpec
from transformer.config import require
from transformer.errors import ConfigError
from transformer.files import write_json
from transformer.runs.console import tell
from transformer.runs.outputs import check_folder, check_place

if TYPE_CHECKING:
    from dt.learning.run import Run


def run(options: Evaluate) -> None:
    """Check the options, then score the run in its environment or on held-out episodes."""
    environment = _check(options)
    _evaluate(options, environment)  # torch comes in here


def _check(options: Evaluate) -> EnvironmentSpec | None:
    """Check the run and the output files of `dt evaluate`; return the environment that was given."""
    check_environment_seed(options.seed)
    _check_scoring_seed(options.seed)
    _check_places(options)
    environment = environment_to_play_in(options.env)
    folder, source = find_run(options.run, options.download)
    if source is not None:
        tell(f"run           {source} in {folder}")
    check_trained_run(folder)
    return environment


def _check_scoring_seed(seed: int) -> None:
    """Refuse seeds on which runs are calibrated: their scores would be of episodes that chose the requests."""
    for first in (seed, seed + SWEEP_OFFSET):
        require(
            not CALIBRATION_SEED <= first < CALIBRATION_SEED + CALIBRATION_SEEDS,
            f"seed {seed}: runs are calibrated on environment seeds {CALIBRATION_SEED} to "
            f"{CALIBRATION_SEED + CALIBRATION_SEEDS - 1}, so scores would not be of unseen episodes; give another seed",
        )


def _check_places(options: Evaluate) -> None:
    """Refuse what could not be written, before hours are played for it."""
    for path in (options.json, options.plot):
        if path is not None:
            check_place(path, picture=path == options.plot)
    if options.video is not None:
        check_folder(options.video)


def _evaluate(options: Evaluate, given: EnvironmentSpec | None) -> None:
    """Score a run and write what the options ask for. given: the environment that they name."""
    from dt.asking.calibrated_policy import policy_of
    from dt.cli.runs import limited, run_in_environment
    from dt.cli.scores import document_of, plot_scores, print_scores, score, warn_of_targets
    from dt.evaluation import check_failures
    from dt.learning.run import load_run
    from dt.sharing.video import check_camera, film
    from transformer.runs.setup import pick_device

    run = load_run(options.run, options.checkpoint, pick_device(options.device))
    run = limited(run, options.env, given)
    if given is None and not _has_environment(run, options.config.env_timeout):
        _measure_without_an_environment(options, run)
        return
    run = run_in_environment(run, given)
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


def _has_environment(run: "Run", env_timeout: float | None) -> bool:
    """Whether a run's environment can be made here. Without held-out episodes a missing environment is an error."""
    from dt.evaluation import check_environment

    if not run.config.data.held_out:
        return True
    if run.environment is None:
        return False
    try:
        check_environment(run.environment, run.model, env_timeout)
    except MissingEnvError as error:
        tell(f"no returns: {error}")
        return False
    return True


def _measure_without_an_environment(options: Evaluate, run: "Run") -> None:
    """`dt evaluate` where there is nothing to play in: the error on held-out episodes, from the data itself."""
    from dt.cli.held_out import learned_from, measure_held_out

    usual, of_play = type(options)(run=options.run), ("plot", "video", "seed", "precision", "cached")
    said = [name for name in of_play if getattr(options, name) != getattr(usual, name)]
    said += [name for name, value in vars(options.config).items() if value != getattr(usual.config, name)]
    if said:
        name = said[0].replace("_", "-")
        raise ConfigError(f"{run.folder}: --{name} needs an environment to play in; --environment ID names one")
    dataset = learned_from(run, options.dataset)
    document = measure_held_out(run, dataset)
    if options.json:
        write_json(options.json, document)
