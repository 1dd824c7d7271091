"""What a run reports to other programs while it trains, such as a tracker of experiments or a search for settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformer.errors import ConfigError
from transformer.runs import distributed
from transformer.runs.console import tell


class Callback:
    """A base class: override the methods that you need.

    They are called by the first process only, and get copies, so they cannot change the run's numbers. One that raises
    is named on standard error, its callback is not called again, and training goes on.
    """

    def on_log(self, step: int, numbers: dict[str, float]) -> bool | None:
        """Take what was measured since the last log: loss, gradient_norm, learning_rate, seconds, steps_per_second.

        Args:
            step: gradient steps done.
            numbers: by name, as in the run's log.jsonl.

        Returns:
            True to stop training after this step, with a checkpoint; `Stopped` is then raised.
        """

    def on_evaluate(self, step: int, numbers: dict[str, float]) -> bool | None:
        """Take an evaluation's numbers; `score`, where there is one, decides which checkpoint is the best.

        Args:
            step: gradient steps done.
            numbers: by name, as in the run's log.jsonl.

        Returns:
            True to stop training after this step, with a checkpoint; `Stopped` is then raised.
        """

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Take a checkpoint that is complete on disk.

        Args:
            step: gradient steps done.
            folder: the checkpoint's folder. Later checkpoints may replace it.
        """

    def on_end(self, error: BaseException | None) -> None:
        """Close what is open: training has ended.

        Args:
            error: what ended it early, such as `Stopped`; None at the last step.
        """


class Callbacks:
    """The callbacks of one run, where an error in one of them is its own.

    callbacks: in the order in which they are called.
    """

    def __init__(self, callbacks: Sequence[Callback]):
        for callback in callbacks:
            if not isinstance(callback, Callback):
                kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
                raise ConfigError(
                    f"callbacks: {kind} is not an instance of dt.Callback. Subclass it, and pass objects."
                )
        self._callbacks = list(callbacks)
        self.stop = False
        """Whether one of them has asked to stop training."""

    def log(self, step: int, numbers: dict[str, Any]) -> None:
        """Report a line of the log."""
        self._call("on_log", step, numbers)

    def evaluate(self, step: int, numbers: dict[str, Any]) -> None:
        """Report an evaluation."""
        self._call("on_evaluate", step, numbers)

    def checkpoint(self, step: int, folder: Path) -> None:
        """Report a checkpoint."""
        self._call("on_checkpoint", step, folder)

    def end(self, error: BaseException | None) -> None:
        """Report the end."""
        self._call("on_end", error)

    def _call(self, method: str, *arguments: Any) -> None:
        if not distributed.is_first_rank():
            return
        for callback in list(self._callbacks):
            given = [dict(argument) if isinstance(argument, dict) else argument for argument in arguments]
            try:
                if getattr(callback, method)(*given) is True:
                    self.stop = True
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a tracker may even end the program
                self._callbacks.remove(callback)
                raised = " ".join(f"{type(error).__name__}: {error}".split())
                name = f"callback {type(callback).__name__}"
                tell(f"\n{name}: {method} raised {raised}. It is not called again; training goes on.")
