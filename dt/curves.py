"""Looks up which request earns a target return, on curves of what requests were seen to earn.

numpy only: `dt export` copies this file next to the model, where nothing else of this package is installed.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPREAD_WEIGHT = 0.25
"""Weight of the spread of single episodes against the distance of their mean: what it adds to the error of the mean of
20 episodes, roughly."""

SURER = 0.005
"""By how much a request that was played has to be better than one between two, as a share of what the curve spans."""


class Points(NamedTuple):
    """A curve: what was earned for each request, with one guidance.

    guidance: how strongly the model followed the return.
    requests: (N,), rising.
    achieved: (N,), the mean return of each request, never falling.
    spreads: (N,), mean distance of a single return from it.
    """

    guidance: float
    requests: Floats
    achieved: Floats
    spreads: Floats


def find_request(curves: Iterable[Points], target: float) -> tuple[float, float, float, float]:
    """The guidance and the request for a target return, what they earn, and how far single episodes are from that.

    The curve is chosen by the distance of its answer from the target and by its spread, the first of equals.
    """
    found = [(curve.guidance, *_on_curve(curve, target)) for curve in curves]
    return min(found, key=lambda each: abs(each[2] - target) + SPREAD_WEIGHT * each[3])


def _on_curve(curve: Points, target: float) -> tuple[float, float, float]:
    """The request on one curve, what it earns and its spread.

    It is the inverse, unless a request that was played is surer: at the edge where a policy begins to stay upright,
    some episodes fall and others do not.
    """
    _, requests, achieved, spreads = curve
    request, answer = inverse(requests, achieved, target)
    spread = float(np.interp(request, requests, spreads))
    played = np.abs(achieved - target) + SPREAD_WEIGHT * spreads  # (N,)
    best, span = int(played.argmin()), achieved[-1] - achieved[0]
    if played[best] < abs(answer - target) + SPREAD_WEIGHT * spread - SURER * span:
        return float(requests[best]), float(achieved[best]), float(spreads[best])
    return request, answer, spread


def inverse(requests: Floats, achieved: Floats, target: float) -> tuple[float, float]:
    """The request that earns the target, and what it earns.

    requests: (N,), rising.
    achieved: (N,), what each earns; never falling. Between two requests it is a straight line.
    target: the return to earn. Outside what can be earned the nearest end is taken.

    Where several requests earn the same (a plateau), the one nearest to the target is taken. Noise decides where a
    plateau ends, so a request far from the target may earn something else.
    """
    answer = float(np.clip(target, achieved[0], achieved[-1]))
    left = int(np.searchsorted(achieved, answer, side="left"))  # the first that earns at least the answer
    right = int(np.searchsorted(achieved, answer, side="right")) - 1  # the last that earns at most the answer
    if left <= right:  # a plateau, or a single point
        return float(np.clip(target, requests[left], requests[right])), answer
    share = (answer - achieved[right]) / (achieved[left] - achieved[right])
    return float(requests[right] + share * (requests[left] - requests[right])), answer
