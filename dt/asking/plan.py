"""Calibration of a run: episodes at many requests and guidances, first spread evenly, then where targets need them.

The plan is a function of the returns so far and of nothing else. So it does not matter how many environments or
processes play, and an interrupted calibration goes on from the episodes that it has.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dt.asking.calibration import Calibration, Curve, Episode, curves_of
from dt.asking.guidance import MODULATED, Request
from dt.config import CALIBRATION_SEED, ModelConfig
from transformer.config import require

GUIDANCES = (1.0, 1.5, 2.0, 3.0)
"""The guidances that are tried where a model can be guided."""

NUM_REQUESTS = 13
"""Requests of a curve at first: from 10 % of the data's range below its lowest return to 30 % above its highest."""

BELOW, ABOVE = 0.1, 0.3

EVEN_SHARE = 0.25
"""Share of the steps after which episodes are no longer spread evenly."""

MOST_EVEN = 3
"""Episodes at each request of each curve that are spread evenly at most."""

COARSE, FINE = 0.05, 0.005
"""A request is added between two neighbours if their achieved returns differ by more than COARSE of the plan's `scale`,
and the requests themselves by more than FINE of the data's range."""

LEAST = 4
"""Episodes at the two requests around a target below which its answer is never settled."""

SETTLED = 0.01
"""Standard error of the answers at which nothing is left to measure, as a share of the plan's `scale`."""

LEAST_SCALE = 0.1
"""The plan's `scale` is at least this share of the data's range."""

Outcome = tuple[float, int] | None
"""Return and steps of an episode; None where its environment failed."""

Finished = Callable[[int, Outcome], None]

Play = Callable[[Mapping[int, Request], Finished], Mapping[int, Outcome]]
"""Plays episodes, each known by its number, and calls the function with each that is finished."""


@dataclass
class Plan:
    """What to play next, from what was played.

    minimum, maximum: the lowest and the highest return of the episodes that the model learned from.
    levels: (M,), the target returns that have to be answered well, in that range.
    guidances: those to try; 1 first.
    longest: steps that an episode can take.
    steps: environment steps that may be taken in all.
    scale: the distance of returns that answers are measured by; the data's range, or less where most returns are close
        to each other.
    """

    minimum: float
    maximum: float
    levels: NDArray[np.float64]
    guidances: tuple[float, ...]
    longest: int
    steps: int
    scale: float
    episodes: dict[int, Episode | None] = field(default_factory=dict)  # by number; None: its environment failed
    num_settled_episodes: int = 0  # episodes of whole rounds; what comes next depends on these only
    known: dict[int, Episode] = field(
        default_factory=dict
    )  # of an interrupted calibration, used where they are asked for

    @property
    def range(self) -> float:
        """Highest less lowest return of the data."""
        return self.maximum - self.minimum

    @property
    def steps_taken(self) -> int:
        """Environment steps of all whole rounds; an episode that failed counts as the longest."""
        episodes = (self.episodes[number] for number in range(self.num_settled_episodes))
        return sum(episode.length if episode else self.longest for episode in episodes)

    @property
    def curves(self) -> tuple[Curve, ...]:
        """What was earned in whole rounds. A curve needs two requests, since the rest is read between them."""
        episodes = (self.episodes[number] for number in range(self.num_settled_episodes))
        return tuple(curve for curve in curves_of(filter(None, episodes)) if len(curve.requests) > 1)

    @property
    def first_requests(self) -> NDArray[np.float64]:
        """The requests that each curve begins with: (NUM_REQUESTS,)."""
        return np.linspace(self.minimum - BELOW * self.range, self.maximum + ABOVE * self.range, NUM_REQUESTS)

    def next_round(self) -> list[Request]:
        """The episodes to play next, none where the plan is done. They are numbered on from those of whole rounds."""
        affordable = (self.steps - self.steps_taken) // self.longest
        rounds = self._even() or self._where_needed()
        return rounds[: max(0, affordable)]

    def _even(self) -> list[Request]:
        """One episode at each first request of each guidance, while little is spent."""
        each = [Request(float(request), w) for w in self.guidances for request in self.first_requests]
        done = self.num_settled_episodes // len(each)  # rounds of this kind come first
        if done >= MOST_EVEN or (done and self.steps_taken > EVEN_SHARE * self.steps):
            return []
        return each

    def _where_needed(self) -> list[Request]:
        """Episodes around the answers that are not settled, each request once; none where all are."""
        curves = self.curves
        if not curves:  # nearly every episode failed
            return []
        wanted = {request: None for level in self.levels.tolist() for request in self._around(curves, level)}
        highest = max(float(curve.achieved[-1]) for curve in curves)
        if wanted and self.levels[-1] > highest:  # out of reach: which peak is the highest, and where does it end?
            for curve in curves:
                wanted |= {Request(float(r), curve.guidance): None for r in curve.requests[curve.peak : curve.peak + 2]}
        return list(wanted)

    def _around(self, curves: Sequence[Curve], level: float) -> list[Request]:
        """The two requests around a level's answer, or one between them where they are far apart; none if settled."""
        curve, request = _chosen(curves, level)
        right = max(1, min(int(np.searchsorted(curve.requests, request)), curve.peak))
        low, high = curve.requests[right - 1 : right + 1].tolist()
        earned = curve.achieved[right] - curve.achieved[right - 1] if right <= curve.peak else 0.0
        if earned > COARSE * self.scale and high - low > FINE * self.range:
            return [Request((low + high) / 2, curve.guidance)]
        count = curve.counts[right - 1 : right + 1].sum()
        error = curve.spreads[min(right, curve.peak)] / math.sqrt(count)
        if count >= LEAST and error <= SETTLED * self.scale:
            return []
        return [Request(low, curve.guidance), Request(high, curve.guidance)]


def _chosen(curves: Sequence[Curve], level: float) -> tuple[Curve, float]:
    """The curve that a target return is asked on, and the request there."""
    request = Calibration({}, tuple(curves), 0).request_for(level)
    return next(curve for curve in curves if curve.guidance == request.guidance), request.return_to_go


def make_plan(percentiles: Sequence[float], config: ModelConfig, longest: int, steps: int) -> Plan:
    """The plan of a run's calibration.

    percentiles: (101,), the returns of the episodes that the model learned from, at 0, 1, ..., 100 %.
    config: the model's.
    longest: steps that an episode can take.
    steps: environment steps that may be taken.

    Raises:
        ConfigError: the data's returns do not vary, or there are too few steps for one episode at each request.
    """
    minimum, maximum = float(percentiles[0]), float(percentiles[-1])
    require(maximum > minimum, f"every episode of the data returns {maximum:g}: there is nothing to calibrate")
    guidances: tuple[float, ...] = GUIDANCES if config.conditioning in MODULATED else (1.0,)
    needed = NUM_REQUESTS * longest
    require(
        steps >= needed,
        f"calibration_steps {steps}: an episode at each of {NUM_REQUESTS} requests may take {needed} steps; "
        f"give --calibration-steps {needed} or more, or --no-calibration",
    )
    while len(guidances) > 1 and steps < 2 * len(guidances) * needed:
        guidances = guidances[:-1]
    even = np.linspace(minimum, maximum, NUM_REQUESTS)
    common = np.percentile(percentiles, np.linspace(0, 100, NUM_REQUESTS))
    levels = np.unique(np.concatenate([even, common]))
    return Plan(minimum, maximum, levels, guidances, longest, steps, _scale(percentiles))


def _scale(percentiles: Sequence[float]) -> float:
    """Twice the distance in which nine tenths of the returns are, within 10 to 100 % of their range.

    A few very bad episodes widen the range. Measured by it, targets that most episodes are near would seem equal.
    """
    whole = percentiles[-1] - percentiles[0]
    return min(whole, max(2 * (percentiles[95] - percentiles[5]), LEAST_SCALE * whole))


def carry_out(plan: Plan, play: Play, save: Callable[[Plan], None]) -> tuple[Curve, ...]:
    """Play the plan to its end; returns the curves.

    play: plays numbered episodes; episode i starts from environment seed `CALIBRATION_SEED + i`.
    save: called after each round with the plan and its episodes.

    Raises:
        ConfigError: every episode at some guidance failed.
    """
    while requests := plan.next_round():
        numbered = dict(enumerate(requests, plan.num_settled_episodes))
        for number, request in numbered.items():
            if number in plan.known and plan.known[number].request == request:
                plan.episodes[number] = plan.known[number]
        waiting = {number: request for number, request in numbered.items() if number not in plan.episodes}

        def finished(number: int, outcome: Outcome, numbered: Mapping[int, Request] = numbered) -> None:
            plan.episodes[number] = None if outcome is None else Episode(numbered[number], *outcome)

        try:
            # Each process records its own episodes as they end, so that a signal loses none; play() returns all.
            for number, outcome in play(waiting, finished).items():
                finished(number, outcome)
            plan.num_settled_episodes += len(requests)
        finally:
            save(plan)
    curves = plan.curves
    require(bool(curves) and curves[0].guidance == 1, "calibration: nearly every episode failed in its environment")
    return curves


def seed_of(number: int) -> int:
    """The environment seed of a calibration's episode."""
    return CALIBRATION_SEED + number


def number_of(seed: int) -> int:
    """The number of a calibration's episode, from its environment seed."""
    return seed - CALIBRATION_SEED
