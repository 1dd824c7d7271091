"""What can go wrong with settings, runs and text; `exit_code` is what a command ends with."""

import signal


class ConfigError(Exception):
    """A setting that cannot work; the message names the setting and its value."""

    # No ValueError: the command line's parser would take that for its own and print a page about it.
    exit_code = 2


class CheckpointError(ValueError):
    """A run or checkpoint that cannot be used or written; the message names the file."""

    exit_code = 2


class TextError(ValueError):
    """Text that cannot be used; the message names the file and line, or the text."""

    exit_code = 2


class LogitsError(ValueError):
    """A model without a prediction of the next token: its logits are NaN or infinite."""

    exit_code = 2


class CompilerError(ConfigError):
    """Torch's compiler could not do what it was asked for."""


class TrainingError(RuntimeError):
    """Training broke down; the last checkpoint is as it was."""

    exit_code = 3


class NonFiniteError(TrainingError):
    """A number is NaN or infinite: the loss or its gradient, before an update; a weight or a moment, before a save."""


class MemoryExhaustedError(TrainingError):
    """A step needs more memory than there is."""


class LostProcessError(RuntimeError):
    """Another process ended in the middle of the work that it shared."""

    exit_code = 3


class FailedElsewhereError(RuntimeError):
    """The first process failed at what the others wait for; only the first one prints why."""

    exit_code = 2


class Stopped(Exception):  # noqa: N818 (it is not an error)
    """A signal or a callback stopped the training; a checkpoint was written first.

    signal_number: None where a callback asked for it. `exit_code` is 128 + this number, or 0.
    step: gradient steps done.
    """

    def __init__(self, signal_number: int | None, step: int):
        by = "a callback" if signal_number is None else signal.Signals(signal_number).name
        super().__init__(f"stopped by {by} after step {step}; --resume goes on from there")
        self.exit_code = 0 if signal_number is None else 128 + signal_number
