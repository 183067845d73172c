"""Statistics over several seeds, and the share of the teacher gap that distillation closes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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
