"""Means, intervals and gaps against independent references."""

import math

import numpy as np
import pytest
from scipy import stats

from kd_jax.report.summary import gap_closed, summarize


def test_by_hand():
    # Deviation of 1, 2, 3, 4, 5 is sqrt(2.5); t(0.975, 4) is 2.776445 in every table.
    summary = summarize([1, 2, 3, 4, 5])
    assert summary.mean == 3
    assert summary.deviation == pytest.approx(math.sqrt(2.5))
    assert summary.high - summary.mean == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)


def test_matches_scipys_interval():
    x = [0.61, 0.59, 0.34, -0.51, 0.4]
    low, high = stats.t.interval(0.95, 4, loc=sum(x) / 5, scale=stats.sem(x))
    summary = summarize(x)
    assert (summary.low, summary.high) == (pytest.approx(low), pytest.approx(high))
    assert summary.values == tuple(x)


def test_one_seed_has_no_interval():
    summary = summarize([2.5])
    assert summary.mean == 2.5
    assert math.isnan(summary.deviation)
    assert math.isnan(summary.low)


def test_no_values():
    with pytest.raises(ValueError, match="no value"):
        summarize([])


@pytest.mark.parametrize(
    ("from_scratch", "distilled", "teacher", "expected"),
    [(10, 2, 2, 1.0), (10, 10, 2, 0.0), (10, 6, 2, 0.5), (10, 14, 2, -0.5), (10, 1, 2, 1.125)],
)
def test_the_gap(from_scratch, distilled, teacher, expected):
    assert gap_closed(from_scratch, distilled, teacher) == pytest.approx(expected)


def test_no_gap():
    with pytest.raises(ValueError, match="as good as the teacher"):
        gap_closed(2, 1, 2)


def test_two_seeds_by_hand():
    # Deviation |a - b| / sqrt(2); t(0.975, 1) is tan(0.475 pi) = 12.7062.
    summary = summarize([1.0, 4.0])
    assert summary.mean == 2.5
    assert summary.deviation == pytest.approx(3 / math.sqrt(2))
    half = math.tan(0.475 * math.pi) * 1.5
    assert (summary.low, summary.high) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))


def test_the_interval_covers_the_mean_in_19_of_20_cases():
    rng = np.random.default_rng(0)
    summaries = [summarize(list(rng.normal(3.0, 2.0, 4))) for _ in range(1000)]
    covered = sum(s.low <= 3.0 <= s.high for s in summaries)
    assert 920 <= covered <= 975  # 950 expected, with a deviation of 7


def test_equal_values_have_an_empty_interval():
    assert summarize((0.5, 0.5, 0.5)) == (0.5, 0.0, 0.5, 0.5, (0.5, 0.5, 0.5))


def test_results_are_python_floats():
    summary = summarize([np.float32(0.5), 2])
    assert all(type(x) is float for x in (*summary[:4], *summary.values))
    assert math.isnan(summarize([1.0]).high)


def test_no_gap_to_a_worse_teacher():
    with pytest.raises(ValueError, match=r"from scratch \(2\) .* the teacher \(3\.5\)"):
        gap_closed(2.0, 1.0, 3.5)
