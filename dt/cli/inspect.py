"""`dt inspect`: a run, or a dataset with all that is wrong with it."""

from pathlib import Path
from typing import Any

from dt.cli.datasets import load_each
from dt.cli.environments import environment_of, seen_in, with_limited_environment
from dt.cli.options import Inspect
from envs.datasets.selection import join
from envs.errors import DataError
from envs.reading.minari_folders import NOT_A_DATASET
from transformer.errors import ConfigError
from transformer.runs.command_line import print_error
from transformer.runs.console import show
from transformer.runs.folder import run_around
from transformer.runs.outputs import check_place


def run(options: Inspect) -> int:
    """`dt inspect`: a run, or a dataset with all that is wrong with it."""
    if not options.what:
        raise ConfigError("no dataset and no run named")
    runs = [path for path in map(Path, options.what) if (path / "run.json").exists()]
    if runs:
        if options != Inspect(what=(options.what[0],)):
            raise ConfigError(f"{runs[0]}: dt inspect takes one run, without options or other names")
        from dt.learning.run import load_run
        from dt.sharing.report import describe_run

        show(describe_run(load_run(runs[0])))
        return 0
    if options.plot is not None:
        check_place(options.plot)
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


def _print_problems(path: Path, error: Any) -> int:
    """All that is wrong with a dataset, a line each; a better word for what is none."""
    _explain_path(path, error)
    for problem in error.problems[:20]:
        print_error("dt", problem)
    return print_error("dt", f"and {len(error.problems) - 20} more") if len(error.problems) > 20 else 2


def _explain_path(path: Path, error: Any) -> None:
    """A better word for a path that is no dataset, if there is one."""
    if around := run_around(path):
        raise ConfigError(f"{path}: a part of the run {around}; name that folder") from None
    for problem in error.problems:
        if problem.startswith(f"{path}: {NOT_A_DATASET}"):
            rest = problem.removeprefix(f"{path}: {NOT_A_DATASET}")
            neither = "neither a run (no run.json in it) nor a Minari dataset (no metadata.json)"
            raise ConfigError(f"{path}: {neither} nor LeRobot's (no meta/info.json){rest}") from None
