"""The command line: `dt train` and what is done with runs. Results on standard output, messages on standard error."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

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
from transformer.runs.command_line import exit_status, option, parse

Command = (
    Train | TrainMany | Evaluate | Calibrate | Inspect | Import | Record | Report | Export | Push | ImportHuggingFace
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0 is success. Otherwise it is the error's `exit_code` (see `command_line.exit_status`): 2 bad input, 3 training
    failed, 4 some episodes failed in their environments, 130 and 143 signals.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with distributed.resend_dropped_signals():
        return exit_status("dt", lambda: _main(words))


def _main(arguments: list[str]) -> int:
    command = _parse(arguments)
    check_fields(command)
    if not isinstance(command, Train | Inspect):
        distributed.check_single_process(f"dt {arguments[0]}")
    return _run(command, shlex.join(["dt", *arguments]))


def _run(command: Command, typed: str) -> int:
    """Run a command, in the file of its name; its imports are not needed for any other's, nor for the help."""
    match command:
        case Inspect():
            from dt.cli import inspect

            return inspect.run(command)
        case Import():
            from dt.cli import import_data

            import_data.run(command)
        case Train():
            from dt.cli import train

            train.run(command)
        case TrainMany():
            from dt.cli import train_many

            train_many.run(command)
        case Evaluate():
            from dt.cli import evaluate

            evaluate.run(command)
        case Calibrate():
            from dt.cli import calibrate

            calibrate.run(command)
        case Export():
            from dt.cli import export

            export.run(command)
        case Push():
            from dt.cli import push

            push.run(command)
        case Record():
            from dt.cli import record

            record.run(command, typed)
        case Report():
            from dt.cli import report

            report.run(command)
        case ImportHuggingFace():
            from dt.cli import import_huggingface

            import_huggingface.run(command)
    return 0


def _parse(arguments: list[str]) -> Command:
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
    preset, folder, command = option(arguments, "preset"), option(arguments, "output"), arguments[:1]
    given = option(arguments, "config") if command in (["train"], ["train-many"]) else None
    if command == ["train-many"] and "--print-config" in arguments:
        raise ConfigError("--print-config: dt train has it. dt train-many --config takes what it prints.")
    if "--resume" in arguments and preset is not None:
        raise ConfigError(f"--preset {preset} starts a run, --resume goes on with a run's own configuration: take one")
    if given is not None and (preset is not None or "--resume" in arguments):
        other = "--resume" if preset is None else f"--preset {preset}"
        raise ConfigError(f"--config {given} and {other}: each gives a configuration to start from. Take one.")
    if given is not None:
        from dt.learning.description import read_config

        config = read_config(Path(given))
        many = command == ["train-many"]  # its seeds are an option of its own
        return replace(config, training=replace(config.training, seed=0)) if many else config
    if "--resume" in arguments and folder:
        from dt.learning.description import read_description
        from transformer.runs.folder import check_run

        check_run(Path(folder))
        return Config.from_json(read_description(Path(folder) / "run.json")["config"])
    return PRESETS.get(preset or "default", PRESETS["default"])()
