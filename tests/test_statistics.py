"""Statistics over seeds and of data, against scipy's."""

import numpy as np
import pytest
from scipy import stats

from dt.statistics import MOST_BINS, histogram, interquartile_interval, interquartile_mean, span, standard_error


def test_the_interquartile_mean_leaves_a_quarter_out_at_either_side():
    assert interquartile_mean(np.array([1.0, 2, 900]), np.array([4.0, 5, 6, -50, 3])) == pytest.approx(3.5)


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 13])
def test_the_interquartile_mean_is_scipys_trimmed_mean(count):
    values = np.random.default_rng(count).normal(size=(5, count))
    np.testing.assert_allclose(interquartile_mean(values), stats.trim_mean(values, 0.25, axis=-1))


def test_the_interval_is_scipys_bootstrap_within_each_stratum():
    rng = np.random.default_rng(7)
    strata = [rng.normal(5, 3, 11), rng.normal(50, 1, 7), rng.exponential(9, 5)]
    drawn = stats.bootstrap(
        strata,
        interquartile_mean,
        n_resamples=10_000,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    found = interquartile_interval(strata)
    assert found.mean == pytest.approx(stats.trim_mean(np.concatenate(strata), 0.25))
    assert (found.low, found.high) == pytest.approx(tuple(drawn.confidence_interval))
    assert found.low < found.mean < found.high
    assert interquartile_interval(strata) == found  # no chance in it


def test_strata_are_not_mixed():
    """Equal seeds within each dataset leave nothing to draw, however far the datasets are from each other."""
    assert interquartile_interval([[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]]) == (5.0, 5.0, 5.0)


def test_one_seed_has_no_interval_and_no_standard_error():
    mean, low, high = interquartile_interval([[3.0], [5.0]])
    assert mean == 4
    assert np.isnan([low, high, standard_error([3.0])]).all()


def test_the_standard_error_is_scipys():
    values = [1.0, 2.0, 7.0, 11.0, 13.0]
    assert standard_error(values) == pytest.approx(stats.sem(values))


def test_a_histogram_counts_every_value_once():
    values = np.random.default_rng(0).normal(3, 7, 101)
    found = histogram(values)
    assert sum(found["counts"]) == 101
    assert len(found["counts"]) == MOST_BINS
    assert found["edges"][0] == values.min()
    assert found["edges"][-1] == values.max()


@pytest.mark.parametrize(("lengths", "counts"), [([7, 7, 7], [3]), ([3, 5, 5, 4], [1, 1, 2])])
def test_few_lengths_have_a_bin_each(lengths, counts):
    assert histogram(np.array(lengths))["counts"] == counts


def test_many_lengths_share_bins_of_one_whole_width():
    found = histogram(np.arange(11, 1012))
    assert len(found["counts"]) <= MOST_BINS
    assert sum(found["counts"]) == 1001
    assert set(np.diff(found["edges"])) == {34.0}


def test_whole_returns_have_bins_of_whole_width():
    assert histogram(np.array([-2.0, 0.0, 0.0, 1.0])) == {"counts": [1, 0, 2, 1], "edges": [-2.5, -1.5, -0.5, 0.5, 1.5]}


def test_equal_returns_have_a_histogram_too():
    assert sum(histogram(np.full(5, 1e12))["counts"]) == 5
    assert sum(histogram(np.full(5, 1e-3))["counts"]) == 5
    assert sum(histogram(np.full(5, 1e17))["counts"]) == 5
    assert span(np.zeros(3)) == (-0.5, 0.5)
