"""The progress of a long piece of work: a bar on a terminal and in a notebook, elsewhere one line per minute."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from tqdm import tqdm

from transformer.runs import distributed
from transformer.runs.console import tell

SECONDS_A_LINE = 60.0
"""Between two lines in a file or a CI log."""


class Progress:
    """How far a piece of work is. It is shown by `progress`, which makes one of the two kinds below.

    total: units of work in all.
    done: those done before, by the run that is continued.
    """

    def __init__(self, total: int, done: int):
        self.total, self.done = total, done

    def update(self, units: int = 1) -> None:
        """Count what was done.

        Args:
            units: of the work.
        """
        self.done += units

    def note(self, text: str) -> None:
        """Show this next to the count from now on.

        Args:
            text: such as "loss 0.1234".
        """

    def finish(self) -> None:
        """Show the count at the end."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class _Bar(Progress):
    """A bar that is drawn again and again in its place; by the first process only."""

    def __init__(self, what: str, total: int, done: int, unit: str):
        super().__init__(total, done)
        hidden = not distributed.is_first_rank()
        self._bar = tqdm(
            total=total, initial=done, unit=unit, desc=what, smoothing=0.05, mininterval=0.5, disable=hidden
        )

    def update(self, units: int = 1) -> None:
        super().update(units)
        self._bar.update(units)

    def note(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        self._bar.close()


class _Lines(Progress):
    """A line a minute and one at the end, by the first process only."""

    def __init__(self, what: str, total: int, done: int, unit: str):
        super().__init__(total, done)
        self._what, self._unit, self._note = what, unit, ""
        self._begun = self._since = time.monotonic()
        self._first = self._before = done

    def update(self, units: int = 1) -> None:
        super().update(units)
        now = time.monotonic()
        if now - self._since >= SECONDS_A_LINE and self._before < self.done < self.total:
            rate = (self.done - self._before) / (now - self._since)
            self._tell(rate, f"{_clock((self.total - self.done) / rate)} left")
            self._since, self._before = now, self.done

    def note(self, text: str) -> None:
        self._note = f", {text}"

    def finish(self) -> None:
        seconds = time.monotonic() - self._begun
        if self.done > self._first:
            self._tell((self.done - self._first) / max(seconds, 1e-9), f"took {_clock(seconds)}")

    def _tell(self, rate: float, time_of_it: str) -> None:
        if distributed.is_first_rank():
            count = f"{self._what}: {self._unit} {self.done} of {self.total}"
            tell(f"{count}{self._note}, {rate:.3g} {self._unit}s/s, {time_of_it}")


def _clock(seconds: float) -> str:
    """As 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


def _is_live() -> bool:
    """Whether what is drawn again and again is seen in its place."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show on standard error how far a piece of work is.

    Args:
        what: the work, such as "train".
        total: units of it in all.
        unit: what is counted, in the singular.
        done: units that are done already.
    """
    shown = (_Bar if _is_live() else _Lines)(what, total, done, unit)
    try:
        yield shown
        shown.finish()
    finally:
        shown.close()
