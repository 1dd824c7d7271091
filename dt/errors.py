"""What can go wrong with a policy and its evaluation; `exit_code` is what a command ends with."""

from envs.errors import CannotActError


class PolicyError(CannotActError):
    """A policy cannot do what it is asked for; the message says what and why."""


class FailedEpisodesError(RuntimeError):
    """Episodes failed in their environments; the results, already printed and written, are those of the others."""

    exit_code = 4
