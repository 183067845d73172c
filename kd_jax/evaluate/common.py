"""What the metrics share: how a figure over parts is given, and what features must be."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Estimate(NamedTuple):
    """A figure made several times, on parts of the data.

    Attributes:
      mean: over the parts.
      deviation: the parts' standard deviation (over their number, not one less): 0 for one part.
    """

    mean: float
    deviation: float


class PerClass(NamedTuple):
    """A figure of each class.

    Attributes:
      mean: over the classes, each with the same weight.
      classes: by label.
    """

    mean: float
    classes: Mapping[int, float]


def rows(
    features: ArrayLike, least: int = 1, name: str = "features", first: int = 0
) -> np.ndarray[Any, Any]:
    """Features `[N, D]` as they are if they have single or double precision, else in double.

    Args:
      features: one row per example.
      least: the smallest N.
      name: what an error calls them.
      first: the number of the first example, for errors.

    Raises:
      ValueError: when they have another shape, are fewer, or one is not finite.
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
      ValueError: as `rows`, or when the features differ in number.
    """
    x, y = rows(a, least, names[0]), rows(b, least, names[1])
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} have length {x.shape[1]} but {names[1]} {y.shape[1]}: "
            "one extractor must make both"
        )
    return x, y


def labels(values: ArrayLike, count: int, name: str = "labels") -> np.ndarray[Any, Any]:
    """Integer labels `[count]`.

    Raises:
      ValueError: when they are no integers, or not one per example.
    """
    x = np.asarray(values)
    if not np.issubdtype(x.dtype, np.integer) or x.shape != (count,):
        raise ValueError(f"{name} have shape {x.shape} of {x.dtype}; integers [{count}] are needed")
    return x
