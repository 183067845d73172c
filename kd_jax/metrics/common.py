"""Common parts of the metrics: result types and checks of features and labels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Estimate(NamedTuple):
    """A metric estimated on several parts of the data.

    Attributes:
      mean: the mean over the parts.
      deviation: the standard deviation over the parts (`ddof=0`); 0 for one part.
    """

    mean: float
    deviation: float


class PerClass(NamedTuple):
    """A metric of each class.

    Attributes:
      mean: the unweighted mean over the classes.
      classes: the values by label.
    """

    mean: float
    classes: Mapping[int, float]


def rows(
    features: ArrayLike, least: int = 1, name: str = "features", first: int = 0
) -> np.ndarray[Any, Any]:
    """Checked features `[N, D]`, converted to float64 unless they are float32 or float64.

    Args:
      features: one row per example.
      least: the minimum N.
      name: the features' name in errors.
      first: the index of the first example, for errors.

    Raises:
      ValueError: the shape is not `[N, D]`, N is too small, or a feature is not finite.
    """
    x = np.asarray(features)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    if x.ndim != 2 or len(x) < least:
        raise ValueError(f"{name} have shape {x.shape} but need [N, D] with N >= {least}")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name} of example {first + np.argmin(finite)} are not finite")
    return x


def two_sets(
    a: ArrayLike,
    b: ArrayLike,
    least: int = 1,
    names: tuple[str, str] = ("generated features", "real features"),
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Two sets of features `[N, D]` and `[M, D]`, checked as by `rows`.

    Raises:
      ValueError: as `rows`, or the feature lengths differ.
    """
    x, y = rows(a, least, names[0]), rows(b, least, names[1])
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} have length {x.shape[1]} but {names[1]} {y.shape[1]}; "
            "both must come from the same extractor"
        )
    return x, y


def labels(values: ArrayLike, count: int, name: str = "labels") -> np.ndarray[Any, Any]:
    """Checked integer labels `[count]`.

    Raises:
      ValueError: the labels are not integers, or their shape is not `[count]`.
    """
    x = np.asarray(values)
    if not np.issubdtype(x.dtype, np.integer) or x.shape != (count,):
        raise ValueError(f"{name} have shape {x.shape} of {x.dtype}; integers [{count}] are needed")
    return x
