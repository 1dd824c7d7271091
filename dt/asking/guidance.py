"""What a policy is conditioned on in one episode: a return, and how strongly the model follows it."""

from dataclasses import dataclass

from dt.asking.limits import check_strength
from dt.config import ModelConfig
from transformer.config import require

MODULATED = ("decoupled", "single")
"""The conditionings in which a step's return-to-go acts on that step's output only."""


@dataclass(frozen=True)
class Request:
    """The input that an episode begins with. Without calibration it is the target return itself, with guidance 1.

    return_to_go: what the model is conditioned on at the first step, in the reward's unit.
    guidance: w in n + w (c - n), with n the model's output without the return and c with it.
    """

    return_to_go: float
    guidance: float = 1.0


def check_guidance(config: ModelConfig, guidance: float) -> None:
    """Raise `ConfigError` unless a model of this configuration can be played with this guidance."""
    check_strength(guidance)
    require(
        guidance == 1 or config.conditioning in MODULATED,
        f"guidance {guidance:g}: a model with conditioning {config.conditioning} has no output without the return; "
        "train with --conditioning single or decoupled, or play with --guidance 1",
    )
