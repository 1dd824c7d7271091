"""What can go wrong with a policy and its evaluation; `exit_code` is what a command ends with."""

import signal

from envs.errors import CannotActError


class PolicyError(CannotActError):
    """A policy cannot do what it is asked for; the message says what and why."""


class HubError(RuntimeError):
    """The Hugging Face hub, or the way to it, refused a run; the message says why."""

    exit_code = 2


class FailedEpisodesError(RuntimeError):
    """Episodes failed in their environments; the results, already printed and written, are those of the others."""

    exit_code = 4


class InterruptedEvaluation(Exception):  # noqa: N818 (it is not an error)
    """A signal stopped an evaluation; what was played is printed and written. `exit_code` is 128 + the signal."""

    def __init__(self, signal_number: int, played: int, planned: int):
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}: {played} of {planned} episodes were played to their end")
        self.exit_code = 128 + signal_number
