"""What a target return and a guidance may be. No numpy and no torch: the command line needs this for its refusals."""

import math
import re

from transformer.config import require

MAX_GUIDANCE = 100.0
"""More is a mistake: the output is then the return's direction and nothing of the state."""

MAX_TARGET = 1e38
"""A target above this is nearly infinite in float32, which models compute in."""

PERCENTILE, SHARE = re.compile(r"p(\d{1,3})"), re.compile(r"([+-]?\d+(?:\.\d+)?)x")
"""Targets as texts: a percentile of the data's returns, and a share of their range."""


def check_strength(guidance: float) -> None:
    """Raise `ConfigError` unless a guidance is in its bounds."""
    right = math.isfinite(guidance) and 0 <= guidance <= MAX_GUIDANCE
    require(right, f"guidance must be at least 0 and at most {MAX_GUIDANCE:g}, not {guidance}")


def check_target(target: float | str) -> None:
    """Raise `ConfigError` unless this is a target return: a number, pN, max or a number followed by x."""
    number = number_of(target)
    if number is not None:
        right = abs(number) <= MAX_TARGET
        require(right, f"target_return must be finite and at most {MAX_TARGET:g}, not {target}")
    elif match := PERCENTILE.fullmatch(str(target)):
        require(int(match[1]) <= 100, f"target_return {target}: a percentile is p0 to p100")
    else:
        right = target == "max" or SHARE.fullmatch(str(target)) is not None
        require(right, f"target_return {str(target)[:40]!r}: expected a number, p90, max or 1.2x")


def number_of(target: float | str) -> float | None:
    """A target that is a number, None where it is another text."""
    try:
        return float(target)
    except ValueError:
        return None
