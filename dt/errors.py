"""What can go wrong with a policy and its evaluation; `exit_code` is what a command ends with."""

from envs.errors import CannotActError


class PolicyError(CannotActError):
    """A policy that is used wrongly; the message says how and why it cannot work."""


class FailedEpisodesError(RuntimeError):
    """Episodes failed in their environments; the results, already printed and written, are those of the others."""

    exit_code = 4
