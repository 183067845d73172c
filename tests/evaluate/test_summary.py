"""Means, intervals and gaps, against numbers from elsewhere."""

import math

import pytest
from scipy import stats

from kd_jax.evaluate.summary import gap_closed, summarize


def test_by_hand():
    # Deviation of 1, 2, 3, 4, 5 is sqrt(2.5); t(0.975, 4) is 2.776445 in every table.
    found = summarize([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.deviation == pytest.approx(math.sqrt(2.5))
    assert found.high - found.mean == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)


def test_scipys_interval():
    x = [0.61, 0.59, 0.34, -0.51, 0.4]
    low, high = stats.t.interval(0.95, 4, loc=sum(x) / 5, scale=stats.sem(x))
    found = summarize(x)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.values == tuple(x)


def test_one_seed_has_no_interval():
    found = summarize([2.5])
    assert found.mean == 2.5
    assert math.isnan(found.deviation)
    assert math.isnan(found.low)


def test_nothing():
    with pytest.raises(ValueError, match="no figure"):
        summarize([])


@pytest.mark.parametrize(
    ("alone", "distilled", "teacher", "expected"),
    [(10, 2, 2, 1.0), (10, 10, 2, 0.0), (10, 6, 2, 0.5), (10, 14, 2, -0.5), (10, 1, 2, 1.125)],
)
def test_the_gap(alone, distilled, teacher, expected):
    assert gap_closed(alone, distilled, teacher) == pytest.approx(expected)


def test_no_gap():
    with pytest.raises(ValueError, match="as good as the teacher"):
        gap_closed(2, 1, 2)
