"""Figures over several seeds, and how much of a gap was closed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    """The mean of some seeds' figures.

    Attributes:
      mean: the mean.
      deviation: the sample standard deviation; NaN for one seed.
      low, high: the 95% confidence interval of the mean by Student's t; NaN for one seed.
      values: the figures.
    """

    mean: float
    deviation: float
    low: float
    high: float
    values: tuple[float, ...]


def summarize(values: Sequence[float]) -> Summary:
    """Mean, deviation and 95% confidence interval of one figure per seed.

    Raises:
      ValueError: when there is none.
    """
    if not values:
        raise ValueError("there is no figure to summarize")
    x = np.asarray(values, np.float64)
    if len(x) == 1:
        return Summary(float(x[0]), math.nan, math.nan, math.nan, (float(x[0]),))
    from scipy import stats  # slow to import

    deviation = float(x.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(x) - 1)) * deviation / math.sqrt(len(x))
    mean = float(x.mean())
    return Summary(mean, deviation, mean - half, mean + half, tuple(map(float, x)))


def gap_closed(alone: float, distilled: float, teacher: float) -> float:
    """`(alone - distilled) / (alone - teacher)`: 1 when the student reaches its teacher, 0 when
    distillation did not help, negative when it hurt.

    Args:
      alone: the distance of the student trained without the teacher; lower is better.
      distilled: that of the distilled student.
      teacher: the teacher's.

    Raises:
      ValueError: when the student alone is no worse than the teacher: there is no gap.
    """
    if alone <= teacher:
        raise ValueError(f"the student alone ({alone:g}) is as good as the teacher ({teacher:g})")
    return (alone - distilled) / (alone - teacher)
