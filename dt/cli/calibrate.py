"""`dt calibrate`: play a run at many requests and keep what it earned."""

from dataclasses import replace

from dt.cli.checks import check_trained_run
from dt.cli.environments import environment_to_play_in
from dt.cli.options import Calibrate
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError
from transformer.runs.console import show


def run(options: Calibrate) -> None:
    """Check the options, then calibrate the run."""
    environment = _check(options)
    _calibrate(options, environment)  # torch comes in here


def _check(options: Calibrate) -> EnvironmentSpec | None:
    """Check that this is a run that `dt calibrate` can play; return the environment that was given."""
    environment = environment_to_play_in(options.env)
    check_trained_run(options.run)
    return environment


def _calibrate(options: Calibrate, environment: EnvironmentSpec | None) -> None:
    """`dt calibrate`: play a run at many requests and keep what it earned."""
    from dt.asking.calibrate import calibrate
    from dt.cli.held_out import known_returns
    from dt.cli.runs import limited, run_in_environment
    from dt.learning.run import load_run
    from dt.sharing.report import calibration_table
    from transformer.runs.setup import pick_device

    run = load_run(options.run, options.checkpoint, pick_device(options.device))
    run = run_in_environment(limited(run, options.env, environment), environment)
    if not run.config.model.uses_returns:
        raise ConfigError(f"{run.folder}: conditioning none does not depend on a target return")
    if not run.dataset.get("percentiles"):
        run = replace(run, dataset={**run.dataset, "percentiles": known_returns(run, options.dataset)})
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
