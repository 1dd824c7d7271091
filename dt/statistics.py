"""Statistics of runs and data: interquartile means with bootstrap intervals, and histograms. numpy only."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES, COVERAGE = 10_000, 0.95
"""Bootstrap samples of an interval, and the share of them that lies within it."""

MOST_BINS = 30
"""Bins of a histogram."""


class Interval(NamedTuple):
    """A mean with its bootstrap interval, in the unit of the scores; NaN where one seed shows no spread."""

    mean: float
    low: float
    high: float


def interquartile_mean(*samples: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
    """Mean of the middle half of all samples' values together: a quarter is left out at each end.

    Args:
        samples: arrays that are joined along `axis`.
        axis: along which the mean is taken.

    Returns:
        The samples' shape without `axis`.

    Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
    """
    values = np.sort(np.concatenate(samples, axis=axis), axis=axis)
    count = values.shape[axis]
    cut = count // 4
    return np.asarray(np.take(values, range(cut, count - cut), axis=axis).mean(axis=axis))


def interquartile_interval(strata: Sequence[ArrayLike]) -> Interval:
    """The interquartile mean over all strata and its 95 % interval, by the stratified bootstrap of rliable.

    Seeds are drawn again with replacement within each stratum, from one fixed generator. So the same scores always
    give the same interval.

    Args:
        strata: for each dataset, or each target return, the scores of its seeds: each (seeds,).

    Source: Agarwal et al. 2021, section 4.1.
    """
    scores = [np.asarray(stratum, np.float64) for stratum in strata]
    mean = float(interquartile_mean(*scores))
    if min(map(len, scores)) < 2:
        return Interval(mean, np.nan, np.nan)
    rng = np.random.default_rng(0)
    drawn = [each[rng.integers(0, len(each), (RESAMPLES, len(each)))] for each in scores]  # each (RESAMPLES, seeds)
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(interquartile_mean(*drawn), (tail, 100 - tail))
    return Interval(mean, float(low), float(high))


def standard_error(values: ArrayLike) -> float:
    """Standard error of a mean, from the sample's own deviation (divided by one less than its size); NaN below two."""
    known = np.asarray(values, np.float64)
    return float(known.std(ddof=1) / len(known) ** 0.5) if len(known) > 1 else float("nan")


def span(values: NDArray[Any]) -> tuple[float, float]:
    """Lowest and highest value, moved apart where they differ by rounding only: a histogram needs a width."""
    low, high = float(values.min()), float(values.max())
    least = 1e-9 * max(abs(low), abs(high)) or 1.0
    return (low, high) if high - low >= least else (low - least / 2, high + least / 2)


def histogram(values: NDArray[Any]) -> dict[str, list[float]]:
    """A histogram as JSON: `counts`, and `edges`, which has one entry more.

    values: (E,). Whole numbers get bins of a whole width, with whole numbers in their middle or between them.
    """
    low, high = float(values.min()), float(values.max())
    if high - low < 1e6 and (values == np.round(values)).all():
        width = max(1, -(-(high - low + 1) // MOST_BINS))
        bins = max(1, int(-(-(high - low + 1) // width)))
        counts, edges = np.histogram(values, bins=low - 0.5 + width * np.arange(bins + 1))
    else:
        counts, edges = np.histogram(values, bins=MOST_BINS, range=span(values))
    return {"counts": counts.tolist(), "edges": edges.tolist()}
