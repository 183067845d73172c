"""Statistics over seeds, the share of the teacher gap that distillation closes, and verdicts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.report.columns import Column, Figure, format_figure


class Summary(NamedTuple):
    """Statistics of a metric over seeds.

    Attributes:
      mean: the mean.
      deviation: the sample standard deviation; NaN for one seed.
      low, high: the 95% confidence interval of the mean by Student's t; NaN for one seed.
      values: the values.
    """

    mean: float
    deviation: float
    low: float
    high: float
    values: tuple[float, ...]


def summarize(values: Sequence[float]) -> Summary:
    """Mean, deviation and 95% confidence interval of one value per seed.

    Raises:
      ValueError: there are no values.
    """
    if not values:
        raise ValueError("there is no value to summarize")
    x = np.asarray(values, np.float64)
    if len(x) == 1:
        return Summary(float(x[0]), math.nan, math.nan, math.nan, (float(x[0]),))
    from scipy import stats  # slow to import

    deviation = float(x.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(x) - 1)) * deviation / math.sqrt(len(x))
    mean = float(x.mean())
    return Summary(mean, deviation, mean - half, mean + half, tuple(map(float, x)))


def over_seeds(figures: Sequence[Figure]) -> Figure:
    """The mean over seeds with its standard deviation; a single seed's figure as it is."""
    if len(figures) == 1:
        return figures[0]._replace(values=(figures[0].value,))
    summary = summarize([figure.value for figure in figures])
    return Figure(summary.mean, summary.deviation, values=summary.values)


def over_draws(values: Sequence[float]) -> Figure:
    """The mean over draws of the latents with its standard deviation; none for a single draw."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Figure(float(np.mean(values)), deviation)


def gap_closed(from_scratch: float, distilled: float, teacher: float) -> float:
    """The closed share of the gap, `(from_scratch - distilled) / (from_scratch - teacher)`.

    It is 1 where the student reaches its teacher, 0 where distillation does not help, and negative
    where it hurts.

    Args:
      from_scratch: the distance of the student trained from scratch; lower is better.
      distilled: the distance of the distilled student.
      teacher: the distance of the teacher.

    Raises:
      ValueError: the student from scratch is as good as the teacher, so there is no gap.
    """
    if from_scratch <= teacher:
        raise ValueError(
            f"the student from scratch ({from_scratch:g}) is as good as the teacher ({teacher:g})"
        )
    return (from_scratch - distilled) / (from_scratch - teacher)


def gap(
    from_scratch: Sequence[float], distilled: Sequence[float], teacher: Sequence[float]
) -> Figure | None:
    """`gap_closed` over seeds, with its 95% confidence interval.

    None if in a seed the student from scratch is as good as its teacher.

    Args:
      from_scratch: distances of the student trained from scratch, one per seed; lower is better.
      distilled: those of the distilled student.
      teacher: those of the teacher.

    Raises:
      ValueError: the numbers of seeds differ.
    """
    seeds = list(zip(from_scratch, distilled, teacher, strict=True))
    if any(scratch <= large for scratch, _, large in seeds):
        return None
    summary = summarize([gap_closed(*values) for values in seeds])
    interval = None if math.isnan(summary.low) else (summary.low, summary.high)
    return Figure(summary.mean, None, interval, summary.values)


GAP = Column(
    "gap",
    "gap closed",
    "(from scratch - distilled) / (from scratch - teacher), per seed; in brackets, the 95% "
    "confidence interval of the mean.",
    better="higher",
    digits=0,
    scale=100,
    unit="%",
)
"""The column of `gap`."""


def verdict(
    name: str, other: str, ours: Sequence[float], theirs: Sequence[float], column: Column
) -> str:
    """A sentence that compares two networks by the paired differences of one metric.

    Args:
      name: the first network's name.
      other: the second network's name.
      ours: the first network's values, one per seed.
      theirs: the second network's; a single value of a baseline stands for all seeds.
      column: the metric.

    Raises:
      ValueError: the numbers of seeds differ.
    """
    theirs = list(theirs) * (len(ours) if len(theirs) == 1 else 1)
    pairs = list(zip(ours, theirs, strict=True))
    summary = summarize([(a - b) * column.scale for a, b in pairs])
    exact = column._replace(scale=1.0, unit="")
    mine, yours = (
        format_figure(Figure(summarize(values).mean * column.scale), exact)
        for values in (ours, theirs)
    )
    values = f"{column.title} {mine} against {yours}"
    if len(pairs) == 1:
        return f"{name} against {other}: {values}. A single seed decides nothing."
    better = column.difference(summarize(ours).mean, summarize(theirs).mean) > 0
    wins = sum(column.difference(a, b) > 0 for a, b in pairs)
    low, change, high = (
        f"{value:+.{2 if column.digits is None else column.digits}f}"
        for value in (summary.low, summary.mean, summary.high)
    )
    return (
        f"{name} **{'beats' if better else 'does not beat'}** {other}: {values}, a difference of "
        f"{change} (95% confidence interval {low} to {high}), better in {wins} of {len(pairs)} "
        "seeds."
    )
