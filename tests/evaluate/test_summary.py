"""Means, intervals and gaps, against numbers from elsewhere."""

import math

import numpy as np
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


def test_two_seeds_by_hand():
    # Deviation |a - b| / sqrt(2); t(0.975, 1) is tan(0.475 pi) = 12.7062.
    found = summarize([1.0, 4.0])
    assert found.mean == 2.5
    assert found.deviation == pytest.approx(3 / math.sqrt(2))
    half = math.tan(0.475 * math.pi) * 1.5
    assert (found.low, found.high) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))


def test_the_interval_holds_the_mean_in_19_of_20():
    rng = np.random.default_rng(0)
    found = [summarize(list(rng.normal(3.0, 2.0, 4))) for _ in range(1000)]
    held = sum(s.low <= 3.0 <= s.high for s in found)
    assert 920 <= held <= 975  # 950 expected, with a deviation of 7


def test_equal_figures_have_an_empty_interval():
    assert summarize((0.5, 0.5, 0.5)) == (0.5, 0.0, 0.5, 0.5, (0.5, 0.5, 0.5))


def test_what_comes_back_are_floats():
    found = summarize([np.float32(0.5), 2])
    assert all(type(x) is float for x in (*found[:4], *found.values))
    assert math.isnan(summarize([1.0]).high)


def test_a_teacher_that_is_worse_leaves_no_gap():
    with pytest.raises(ValueError, match=r"the student alone \(2\) is as good as .* \(3\.5\)"):
        gap_closed(2.0, 1.0, 3.5)
