"""A command line read into dataclasses, the same for every program of this project."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import takewhile
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes

from transformer.errors import ConfigError, FailedElsewhereError
from transformer.runs import distributed
from transformer.runs.console import help_to_anyone
from transformer.runs.signals import Terminated, ended_by_sigterm

RENAMED = {
    "--num-worlds": "--num-envs",
    "--world-timeout": "--env-timeout",
    "--beams": "--num-beams",
    "--samples": "--num-samples",
}
"""Options by the names that they had before. No command may have an option by one of these names again."""


def parse(commands: Any, program: str, arguments: Sequence[str], description: str) -> Any:
    """A command line as one of these dataclasses; help and errors name this program.

    An option that is given twice raises `ConfigError`, since one of the two would be lost in silence; so does an
    option by a name that it had before.
    """
    options = [word for word in takewhile(lambda word: word != "--", arguments) if word.startswith("--")]
    names = [word.split("=", 1)[0].replace("_", "-").replace("--no-", "--", 1) for word in options]
    for name in names:
        if name in RENAMED:
            raise ConfigError(f"{name}: this option is now called {RENAMED[name]}")
        if names.count(name) > 1:
            raise ConfigError(f"{name} is given twice; give it once, with all its values")
    with help_to_anyone():
        return tyro.cli(
            commands,
            prog=program,
            args=arguments,
            description=description,
            config=(OmitArgPrefixes, OmitSubcommandPrefixes),
        )


def option(arguments: Sequence[str], name: str) -> str | None:
    """The value of --name on the command line, before anything is parsed; None if it is not there."""
    for i, argument in enumerate(arguments):
        if argument == f"--{name}" and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"--{name}="):
            return argument.split("=", 1)[1]
    return None


def exit_status(program: str, work: Callable[[], int]) -> int:
    """The exit status of a program: what `work` returns, or that of the error that ends it, printed as one line.

    An error without an exit status is a bug, and is raised. SIGTERM ends the program as Ctrl-C does, except where
    torchrun started it: there a process may wait for others, in code that looks at no signal.
    """
    try:
        with nullcontext() if distributed.is_launched() else ended_by_sigterm():
            return work()
    except Terminated:
        return 143
    except KeyboardInterrupt:
        return 130
    except FailedElsewhereError as error:  # the first process prints why
        return error.exit_code
    except MemoryError as error:
        return print_error(program, f"out of memory: {error}" if str(error) else "out of memory", 3)
    except OSError as error:
        return print_error(program, error)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        return print_error(program, error, error.exit_code)


def print_error(program: str, error: Exception | str, exit_code: int = 2) -> int:
    """Print what went wrong as one line on standard error; returns the exit status."""
    distributed.tell_once(f"{program}: {' '.join(str(error).split())}")
    return exit_code
