"""The command line: `dt train` and what is done with runs. Results on standard output, messages on standard error."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from dt.cli.options import (
    Calibrate,
    Evaluate,
    Export,
    Import,
    ImportHuggingFace,
    Inspect,
    Push,
    Record,
    Report,
    Train,
    TrainMany,
)
from dt.config import Config
from dt.presets import PRESETS
from transformer.config import check_fields
from transformer.errors import ConfigError
from transformer.runs import distributed
from transformer.runs.command_line import exit_status, option, parse, print_error
from transformer.runs.console import show


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0 done, 2 bad input, 3 training broke down, 4 done except for episodes whose environments failed, 130 and 143
    signals.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with distributed.resend_dropped_signals():
        return exit_status("dt", lambda: _main(words))


def _main(arguments: list[str]) -> int:
    command = _parse(arguments)
    check_fields(command)
    if isinstance(command, Inspect):
        return _inspect(command)
    if not isinstance(command, Train):
        distributed.check_single_process(f"dt {arguments[0]}")
    if isinstance(command, Report):
        return _report(command)
    from dt.cli import sources  # what a command's options say is refused before torch comes in

    if isinstance(command, Import):
        sources.import_data(command)
    elif isinstance(command, Train):
        with distributed.process_group():
            distributed.check_same({"config": command.config.to_json(), "resume": command.resume})
            data, env = sources.training_data(command)
            from dt.cli.commands import train_and_score

            train_and_score(command, data, env)
    elif isinstance(command, TrainMany):
        datasets, env = sources.data_of_many(command)
        from dt.cli.commands import train_runs

        train_runs(command, datasets, env)
    elif isinstance(command, Evaluate):
        env = sources.check_request(command)
        from dt.cli.commands import ask

        ask(command, env)
    elif isinstance(command, Calibrate):
        env = sources.check_calibration(command)
        from dt.cli.commands import calibrate_run

        calibrate_run(command, env)
    elif isinstance(command, Export):
        env = sources.check_export(command)
        from dt.cli.commands import export_run

        export_run(command, env)
    elif isinstance(command, Push):
        from dt.cli.push import push

        push(command)
    elif isinstance(command, Record):
        played = sources.recording_environment(command)
        from dt.cli.commands import record_episodes

        record_episodes(command, played, shlex.join(["dt", *arguments]))
    else:
        published = sources.published_model(command)
        from dt.cli.commands import import_model

        import_model(command, published)
    return 0


def _parse(
    arguments: list[str],
) -> Train | TrainMany | Evaluate | Calibrate | Inspect | Import | Record | Report | Export | Push | ImportHuggingFace:
    """Options in two passes: the preset, or the run to resume, first gives every other option its default."""
    start = Train(dataset=tyro.MISSING, config=_starting_config(arguments))
    many = TrainMany(dataset=tyro.MISSING, config=start.config)
    commands = (
        Annotated[Train, subcommand("train", default=start)]
        | Annotated[TrainMany, subcommand("train-many", default=many)]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Calibrate, subcommand("calibrate")]
        | Annotated[Inspect, subcommand("inspect")]
        | Annotated[Import, subcommand("import")]
        | Annotated[Record, subcommand("record")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Push, subcommand("push")]
        | Annotated[ImportHuggingFace, subcommand("import-huggingface")]
    )
    description = "Decision Transformers: learn from recorded trajectories, ask for a return, get it."
    return parse(commands, "dt", arguments, description)


def _starting_config(arguments: list[str]) -> Config:
    preset, folder = option(arguments, "preset"), option(arguments, "output")
    given = option(arguments, "config") if arguments[:1] == ["train"] else None
    if "--resume" in arguments and preset is not None:
        raise ConfigError(f"--preset {preset} starts a run, --resume goes on with a run's own configuration: take one")
    if given is not None and (preset is not None or "--resume" in arguments):
        other = "--resume" if preset is None else f"--preset {preset}"
        raise ConfigError(f"--config {given} and {other}: each gives a configuration to start from. Take one.")
    if given is not None:
        from dt.learning.description import read_config

        return read_config(Path(given))
    if "--resume" in arguments and folder:
        from dt.learning.description import read_description
        from transformer.runs.folder import check_run

        check_run(Path(folder))
        return Config.from_json(read_description(Path(folder) / "run.json")["config"])
    return PRESETS.get(preset or "default", PRESETS["default"])()


def _inspect(options: Inspect) -> int:
    """`dt inspect`: a run, or a dataset with all that is wrong with it."""
    from envs.datasets.selection import join
    from envs.errors import DataError

    if not options.what:
        raise ConfigError("no dataset and no run named")
    runs = [path for path in map(Path, options.what) if (path / "run.json").exists()]
    if runs:
        if options != Inspect(what=(options.what[0],)):
            raise ConfigError(f"{runs[0]}: a run is told of by itself; name nothing beside it, and no option")
        from dt.learning.run import load_run
        from dt.sharing.report import describe_run

        show(describe_run(load_run(runs[0])))
        return 0
    if options.plot is not None:
        from transformer.runs.outputs import check_place

        check_place(options.plot)
    from dt.cli.sources import environment_of, load_each, seen_in, with_limited_environment

    environment, datasets = environment_of(options.env), []
    try:
        for dataset in load_each(options.what, options.reading, environment):
            datasets.append(dataset)
    except DataError as error:
        return _print_problems(Path(options.what[len(datasets)]), error)
    dataset = seen_in(join(datasets), environment)
    if environment is None:
        dataset = with_limited_environment(dataset, options.env)
    from dt.inspection import describe_dataset, plot_dataset

    show(describe_dataset(dataset))
    if options.plot is not None:
        plot_dataset(dataset, options.plot)
    return 0


def _report(options: Report) -> int:
    """`dt report`: runs as one HTML file."""
    from dt.sharing.html_report.page import write_report
    from transformer.runs.outputs import check_place

    if not options.runs:
        raise ConfigError("no run named: dt report RUN [RUN ...]")
    check_place(options.output, picture=False)
    size = write_report(options.runs, options.output)
    show(f"{options.output}  {size / 1e6:.2f} MB; open it in a browser")
    return 0


def _print_problems(path: Path, error: Any) -> int:
    """All that is wrong with a dataset, a line each; a better word for what is none."""
    _explain_path(path, error)
    for problem in error.problems[:20]:
        print_error("dt", problem)
    return print_error("dt", f"and {len(error.problems) - 20} more") if len(error.problems) > 20 else 2


def _explain_path(path: Path, error: Any) -> None:
    """A better word for a path that is no dataset, if there is one."""
    from envs.reading.minari_folders import NO_DATASET
    from transformer.runs.folder import run_around

    if around := run_around(path):
        raise ConfigError(f"{path}: a part of the run {around}; name that folder") from None
    for problem in error.problems:
        if problem.startswith(f"{path}: {NO_DATASET}"):
            rest = problem.removeprefix(f"{path}: {NO_DATASET}")
            neither = "neither a run (no run.json in it) nor a Minari dataset (no metadata.json)"
            raise ConfigError(f"{path}: {neither} nor LeRobot's (no meta/info.json){rest}") from None
