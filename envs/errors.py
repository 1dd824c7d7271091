"""What can be wrong with data, spaces, environments and policies; `exit_code` is what a command ends with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """A dataset that cannot be used: one line for each problem, which names the file, the episode and the field."""

    exit_code = 2

    def __init__(self, *problems: str):
        more = f" (and {len(problems) - 1} more; `dt inspect` lists them)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = problems


@contextmanager
def problems_of(source: Path | str) -> Iterator[None]:
    """Within it a `DataError` need not name the source that it is about: each of its problems gets that name here."""
    try:
        yield
    except DataError as error:
        raise DataError(*(f"{source}: {problem}" for problem in error.problems)) from None


class SpaceError(ValueError):
    """A space, or a value of one, that cannot be used; the message says which and why."""

    exit_code = 2


class EnvError(ValueError):
    """An environment that cannot be made or stepped; the message names it and the reason."""

    exit_code = 2


class MissingEnvError(EnvError):
    """An environment that cannot be made here: not registered, or something that it needs is not installed."""


class CannotActError(ValueError):
    """A policy cannot act in some of its environments: `reasons`, by environment. Its state is as before this step.

    Without reasons the policy is used wrongly, and no environment is to blame.
    """

    exit_code = 2

    def __init__(self, message: str, reasons: Mapping[int, str] | None = None):
        super().__init__(message)
        self.reasons = dict(reasons or {})
