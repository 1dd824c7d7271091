"""Target returns as people give them, and the numbers that say how well they were reached."""

import numpy as np
import pytest

from dt.asking.alignment import alignment_error, episode_error, quantile_error
from dt.asking.targets import default_targets, default_targets_of, percentiles_of, resolve
from dt.config import EvaluationConfig
from dt.evaluation import TargetResult
from dt.sharing.report import measure_line, measures
from transformer.errors import ConfigError

RETURNS = np.array([3.0, -1.0, 7.0, 4.0, 19.0, 4.0, 5.5])


def test_targets_are_numbers_percentiles_the_maximum_and_shares_of_the_range():
    known = percentiles_of(RETURNS)
    asked = (12.0, "p90", "max", "1.2x", "0x", "-0.5x", "7", "p0", "p100")
    expected = (12.0, np.quantile(RETURNS, 0.9), 19.0, -1 + 1.2 * 20, -1.0, -11.0, 7.0, -1.0, 19.0)
    assert resolve(asked, known) == pytest.approx(expected)


def test_default_targets_come_back_from_the_percentiles_of_a_run():
    assert default_targets_of(percentiles_of(RETURNS)) == default_targets(RETURNS)
    assert default_targets_of([]) == ()


@pytest.mark.parametrize("wrong", ["p101", "x", "max1", "p", "1.2y", "nan", "inf", "1e39", "auto"])
def test_a_target_that_means_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match="target_return"):
        EvaluationConfig(target_return=(3.0, wrong))


def test_a_target_of_the_data_is_refused_where_the_data_is_not_known():
    assert resolve([4.0, "5"], []) == (4.0, 5.0)
    with pytest.raises(ConfigError, match="give a number"):
        resolve(["p90"], [])


def result(target, *returns):
    return TargetResult(target, returns, (1,) * len(returns), None)


def test_errors_are_mean_distances_as_shares_of_the_datas_range():
    results = [result(0.0, 1.0, 3.0), result(10.0, 10.0, 10.0), result(20.0, 12.0, 18.0), result(5.0)]
    assert alignment_error(results, 0.0, 20.0) == pytest.approx((2 + 0 + 5) / 3 / 20)
    assert quantile_error(results, 0.0, 20.0) == pytest.approx((2 + 0) / 2 / 20)
    assert episode_error(results, 0.0, 20.0) == pytest.approx((2 + 0 + 5) / 3 / 20)
    coin = [result(10.0, 0.0, 20.0)]  # the mean is right, and no episode is
    assert alignment_error(coin, 0.0, 20.0) == 0
    assert episode_error(coin, 0.0, 20.0) == pytest.approx(0.5)
    assert np.isnan(alignment_error(results, 3.0, 3.0))


def test_other_targets_have_a_mean_error_and_never_an_alignment_error():
    results = [result(0.0, 1.0), result(20.0, 19.0)]
    known = percentiles_of(np.array([0.0, 20.0]))
    assert measures(results, known, standard=True)["alignment_error"] == pytest.approx(0.05)
    other = measures(results, known, standard=False)
    assert other["mean_error"] == pytest.approx(0.05)
    assert "alignment_error" not in other
    assert "quantile_error" not in other
    assert measure_line(other) == "mean error 0.050, episode error 0.050, rank correlation 1.000"
    assert measures([result(1.0, 1.0)], [], standard=False) == {}
