"""Means, intervals and gaps against independent references."""

import math

import numpy as np
import pytest
from scipy import stats

from kd_jax.report.columns import Column, Figure
from kd_jax.report.summary import gap, gap_closed, over_seeds, summarize, verdict


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


TEACHER, FROM_SCRATCH, DISTILLED = (1.0, 1.5, 2.0), (9.0, 11.5, 10.0), (5.0, 4.5, 7.0)
SHARES = [(9 - 5) / 8, (11.5 - 4.5) / 10, (10 - 7) / 8]


def test_the_gap_over_seeds():
    figure = gap(FROM_SCRATCH, DISTILLED, TEACHER)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(SHARES), scale=stats.sem(SHARES))
    assert figure.value == pytest.approx(np.mean(SHARES))
    assert figure.interval == (pytest.approx(low), pytest.approx(high))
    assert figure.values == pytest.approx(SHARES)
    assert gap((9.0,), (5.0,), (1.0,)) == Figure(0.5, None, None, (0.5,))
    assert gap((9.0, 3.0), (5.0, 2.0), (1.0, 3.0)) is None
    with pytest.raises(ValueError, match="shorter"):
        gap((3.0, 10.0), (2.0,), (1.0, 1.0))


def test_figures_over_seeds():
    """A deviation over draws of latents is that of one seed; over seeds, that of their means."""
    one = Figure(3.0, 0.5)
    assert over_seeds([one]) == Figure(3.0, 0.5, values=(3.0,))
    figure = over_seeds([one, Figure(4.0, 0.1)])
    assert (figure.value, figure.values) == (3.5, (3.0, 4.0))
    assert figure.deviation == pytest.approx(math.sqrt(0.5))


def test_verdicts():
    error = Column("error", "error", digits=1)
    # By hand: the interval of (-3, -1) is -2 -+ 12.7062 sqrt(2) / sqrt(2).
    assert verdict("teacher", "rule", (2.0, 4.0), (5.0,), error) == (
        "teacher **beats** rule: error 3.0 against 5.0, a difference of -2.0 (95% confidence "
        "interval -14.7 to +10.7), better in 2 of 2 seeds."
    )
    text = verdict("distilled", "scratch", (5.0, 4.0), (4.0, 4.5), error)
    assert text.startswith("distilled **does not beat** scratch: error 4.5 against 4.2")
    assert text.endswith("a difference of +0.2 (95% confidence interval -9.3 to +9.8), better in "
                         "1 of 2 seeds.")  # fmt: skip
    higher = error._replace(better="higher")
    assert "**does not beat**" in verdict("teacher", "rule", (2.0, 4.0), (5.0,), higher)
    assert "in 0 of 2 seeds" in verdict("teacher", "rule", (2.0, 4.0), (5.0,), higher)
    share = Column("share", "share", better="higher", digits=0, scale=100)
    assert "share 30 against 20" in verdict("a", "b", (0.2, 0.4), (0.2, 0.2), share)


def test_a_single_seed_has_no_verdict():
    text = verdict("distilled", "scratch", (5.0,), (9.0,), Column("x", "distance", digits=2))
    assert text == (
        "distilled against scratch: distance 5.00 against 9.00. A single seed decides nothing."
    )
