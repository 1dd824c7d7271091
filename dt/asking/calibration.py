"""Which request earns a target return: what a run was seen to earn for each request, made monotone and inverted.

A calibration holds one curve for each guidance that was tried: it maps each request (x) to its mean return (y). For a
target, the curve that comes closest is chosen, and on it the request that earns the target. numpy only.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dt.asking.guidance import Request
from dt.asking.limits import MAX_GUIDANCE
from dt.curves import Floats, Points, find_request

NEAR = 0.05
"""Requests that are so close to each other, as a share of what the curve covers, tell of each other's spread."""

MOST_CURVES, MOST_REQUESTS = 20, 1_000
"""What a calibration's file may hold: more than any plan asks for, and looked up within a second."""


@dataclass(frozen=True)
class Episode:
    """One episode of a calibration.

    request: what the model was conditioned on.
    total_return: what it earned, in the reward's unit.
    length: its steps.
    """

    request: Request
    total_return: float
    length: int


def monotone(values: Floats, weights: Floats) -> Floats:
    """The closest sequence that never falls, by weighted squares (pool adjacent violators, Ayer et al. 1955).

    values: (N,), in the order in which the result may not fall.
    weights: (N,), above 0.
    """
    blocks: list[list[float]] = []  # mean, weight and length of each run of equal results
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, mass, count = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * mass) / (before[1] + mass)
            before[1] += mass
            before[2] += count
    return np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])


@dataclass(frozen=True)
class Curve:
    """What was earned for each request with one guidance.

    guidance: see `Request`.
    requests: (N,), rising, in the reward's unit.
    returns: for each request the returns of its episodes.
    """

    guidance: float
    requests: Floats
    returns: tuple[Floats, ...]

    @cached_property
    def means(self) -> Floats:
        """Mean return at each request: (N,)."""
        return np.array([returns.mean() for returns in self.returns])

    @cached_property
    def counts(self) -> Floats:
        """Episodes at each request: (N,)."""
        return np.array([float(len(returns)) for returns in self.returns])

    @cached_property
    def peak(self) -> int:
        """Index of the request that earned most, less the standard error of its mean; of equals the last.

        Beyond it, mostly beyond the data, a model breaks down: a higher request earns less.
        """
        several = [returns - returns.mean() for returns in self.returns if len(returns) > 1]
        std = float(np.concatenate(several).std()) if several else 0.0
        sure = self.means - std / np.sqrt(self.counts)
        return int(np.flatnonzero(sure >= sure.max() - 1e-9 * abs(sure.max()))[-1])

    @cached_property
    def achieved(self) -> Floats:
        """The means up to the peak, made monotone: (peak + 1,)."""
        end = self.peak + 1
        return monotone(self.means[:end], self.counts[:end])

    @cached_property
    def spreads(self) -> Floats:
        """Mean distance of a return from what its request earns, with episodes of near requests: (peak + 1,).

        Near are the neighbours and all within `NEAR`. So a request next to a jump has the spread of both its sides.
        """
        distances = [np.abs(returns - now) for returns, now in zip(self.returns, self.achieved, strict=False)]
        requests = self.requests[: len(distances)]
        reach = NEAR * (requests[-1] - requests[0])
        found = []
        for i, request in enumerate(requests):
            first = min(max(0, i - 1), int(np.searchsorted(requests, request - reach, side="left")))
            last = max(i + 1, int(np.searchsorted(requests, request + reach, side="right")) - 1)
            found.append(np.concatenate(distances[first : last + 1]).mean())
        return np.array(found)

    @property
    def best_request(self) -> float:
        """The request that earned most."""
        return float(self.requests[self.peak])

    def ask(self, target: float) -> tuple[Request, float, float]:
        """The request for a target return, what it earns, and how far single episodes are from that.

        It is the inverse, unless a request that was played is surer: at the edge where a policy begins to stay upright,
        some episodes fall and others do not.
        """
        guidance, *answer = find_request([self.points], target)
        return Request(answer[0], guidance), answer[1], answer[2]

    @property
    def points(self) -> Points:
        """What a request is looked up in."""
        return Points(self.guidance, self.requests[: len(self.achieved)], self.achieved, self.spreads)


@dataclass(frozen=True)
class Calibration:
    """A run's answers to requests.

    binding: what they hold for: checkpoint, environment and how it was played; see `binding_of`.
    curves: one for each guidance, the lowest first.
    steps: environment steps that it took.
    """

    binding: Mapping[str, Any]
    curves: tuple[Curve, ...]
    steps: int

    def request_for(self, target_return: float) -> Request:
        """The request and the guidance whose answer comes closest to a target return, the lowest guidance of equals."""
        return self._best(target_return)[0]

    def answer_to(self, target_return: float) -> float:
        """The mean return that `request_for` was seen to earn."""
        return self._best(target_return)[1]

    def _best(self, target_return: float) -> tuple[Request, float]:
        guidance, request, answer, _ = find_request([curve.points for curve in self.curves], target_return)
        return Request(request, guidance), answer

    @property
    def highest(self) -> float:
        """The highest mean return that any request was seen to earn."""
        return max(float(curve.achieved[-1]) for curve in self.curves)

    def plain_answers(self) -> list[tuple[float, float]]:
        """Request and mean return of the curve of guidance 1: what the run earns without calibration."""
        plain = next(curve for curve in self.curves if curve.guidance == 1)
        return list(zip(plain.requests.tolist(), plain.means.tolist(), strict=True))


def curves_of(episodes: Iterable[Episode]) -> tuple[Curve, ...]:
    """The curves of all episodes, the lowest guidance first."""
    found: dict[float, dict[float, list[float]]] = {}
    for episode in episodes:
        request = episode.request
        found.setdefault(request.guidance, {}).setdefault(request.return_to_go, []).append(episode.total_return)
    curves = []
    for guidance, returns in sorted(found.items()):
        requests = sorted(returns)
        curves.append(Curve(guidance, np.array(requests), tuple(np.array(returns[request]) for request in requests)))
    return tuple(curves)


def to_json(calibration: Calibration) -> dict[str, Any]:
    """As plain JSON: every episode's return, so that the curves can be computed again."""
    curves = [
        {
            "guidance": curve.guidance,
            "requests": curve.requests.tolist(),
            "returns": [returns.tolist() for returns in curve.returns],
        }
        for curve in calibration.curves
    ]
    return {"schema": 1, "binding": dict(calibration.binding), "steps": calibration.steps, "curves": curves}


def from_json(document: Any) -> Calibration:
    """From `to_json`'s form. It may come from anywhere: what is not such a document raises `ValueError`."""
    try:
        if document["schema"] != 1:
            raise ValueError(f"schema {str(document['schema'])[:20]}, this version reads 1")
        curves = tuple(_curve(curve) for curve in _list(document["curves"], MOST_CURVES))
        steps, binding = document["steps"], document["binding"]
        guidances = [curve.guidance for curve in curves]
        if not curves or sorted(set(guidances)) != guidances or 1.0 not in guidances:
            raise ValueError("curves: expected one for each guidance, rising, 1 among them")
        if not isinstance(binding, dict) or not isinstance(steps, int) or isinstance(steps, bool):
            raise ValueError("binding or steps: of another type")
        return Calibration(binding, curves, steps)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a calibration ({type(error).__name__}: {str(error)[:80]})") from None


def _curve(document: Mapping[str, Any]) -> Curve:
    requests = _floats(_list(document["requests"], MOST_REQUESTS))
    returns = tuple(_floats(each) for each in _list(document["returns"], MOST_REQUESTS))
    (guidance,) = _floats([document["guidance"]])
    if not 1 <= len(requests) == len(returns) or not all(len(each) for each in returns):
        raise ValueError("requests and returns: expected as many of both, and an episode for each request")
    if (np.diff(requests) <= 0).any():
        raise ValueError("requests: not rising")
    if not 0 <= guidance <= MAX_GUIDANCE:
        raise ValueError(f"guidance {guidance:g}: expected 0 to {MAX_GUIDANCE:g}")
    return Curve(float(guidance), requests, returns)


def _list(value: Any, most: int) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"expected a list of at most {most}")
    return value


def _floats(value: Any) -> Floats:
    numbers = _list(value, 1_000_000)
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
        raise ValueError("expected numbers")
    floats = np.array([float(each) for each in numbers])
    if not all(math.isfinite(each) and abs(each) <= 1e38 for each in floats.tolist()):
        raise ValueError("expected finite numbers of at most 1e38")
    return floats
