"""`dt export`: a run's policy as a folder that acts without this package."""

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dt.cli.checks import check_trained_run
from dt.cli.environments import environment_to_play_in
from dt.cli.options import Export
from dt.learning.description import environment_in, read_description
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError
from transformer.files import check_new, new_folder
from transformer.runs.console import show
from transformer.runs.outputs import check_folder

if TYPE_CHECKING:
    from dt.learning.run import Run

NEEDED_TO_EXPORT = ("onnx", "onnxscript", "onnxruntime")
"""What `--format onnx` needs beyond the base installation."""


def run(options: Export) -> None:
    """Check the options, then write the folder."""
    environment = _check(options)
    _export(options, environment)  # torch comes in here


def _check(options: Export) -> EnvironmentSpec | None:
    """Check the run, the output folder and the packages for `dt export`; return the environment that was given."""
    check_folder(options.output)
    check_new(options.output)
    environment = environment_to_play_in(options.env)
    check_trained_run(options.run)
    missing = [name for name in NEEDED_TO_EXPORT if options.format == "onnx" and find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: pip install 'decision-transformer[export]'")
    recorded = environment_in(read_description(options.run / "run.json"))
    if options.verify and environment is None and recorded is None:
        raise ConfigError(f"{options.run}: --verify plays in an environment, and the run names none: --environment ID")
    return environment


def _export(options: Export, environment: EnvironmentSpec | None) -> None:
    """`dt export`: a run's policy as a folder that acts without this package."""
    from dt.asking.calibrated_policy import policy_of
    from dt.asking.targets import resolve
    from dt.cli.runs import run_in_environment
    from dt.evaluation import check_environment
    from dt.learning.run import load_run
    from dt.runner import Policy
    from dt.sharing.export import compare, export_policy, of_one_row, origin_of

    run = load_run(options.run, options.checkpoint)
    if environment is not None:
        run = run_in_environment(run, environment)
    if options.calibration:
        _check_calibration(run, options.checkpoint)
    played = replace(run.config.evaluation, calibration=options.calibration)
    policy = of_one_row(policy_of(run, played, precision="float32", which=options.checkpoint), run.model)
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


def _check_calibration(run: "Run", which: str) -> None:
    """Refuse a run that was calibrated in bf16 only: that does not hold for an export, which is in float32."""
    from dt.asking.calibrated_policy import read_calibration

    there = read_calibration(run, which, "float32")
    if there is not None and there.binding.get("precision") == "bf16":
        raise ConfigError(
            f"{run.folder}: its calibration was measured in bf16, and an exported policy computes in float32. Measure "
            f"one in float32 with dt calibrate {run.folder} --precision float32, or export without: --no-calibration"
        )
