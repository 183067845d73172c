"""The kernel inception distance (KID): the squared maximum mean discrepancy of features."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_jax.metrics import common
from kd_jax.metrics.common import Estimate

Kernel = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""From `[N, D]` and `[M, D]` to `[N, M]`."""

_TILE = 4096  # rows and columns of a block of the kernel matrix


def polynomial(degree: int = 3, scale: float | None = None, offset: float = 1.0) -> Kernel:
    """`k(x, y) = (scale x.y + offset)^degree` (Binkowski et al. 2018, section 3, with degree 3).

    Args:
      degree: a positive integer.
      scale: None for 1 / D.
      offset: the constant term.

    Raises:
      ValueError: the degree is not positive.
    """
    if degree < 1:
        raise ValueError(f"degree={degree} is not a positive integer")

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        base = x @ y.T
        base *= 1.0 / x.shape[1] if scale is None else scale
        base += offset
        power = base.copy()
        for _ in range(degree - 1):  # ten times faster than NumPy's power
            power *= base
        return power

    return kernel


def gaussian(sigma: float = 10.0) -> Kernel:
    """`k(x, y) = exp(-|x - y|^2 / (2 sigma^2))` (Gretton et al. 2012, section 2.2)."""

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        squares = -2.0 * (x @ y.T)
        squares += (x**2).sum(axis=1)[:, None]
        squares += (y**2).sum(axis=1)[None, :]
        return np.exp(np.maximum(squares, 0.0) / (-2.0 * sigma**2))

    return kernel


KID_KERNEL = polynomial()


def kid(
    generated: ArrayLike,
    real: ArrayLike,
    *,
    subsets: int = 100,
    size: int = 1000,
    kernel: Kernel = KID_KERNEL,
    seed: int = 2020,
) -> Estimate:
    """The mean and deviation of the unbiased estimate over random subsets.

    Binkowski et al. 2018, section 4. Each subset's examples are drawn without replacement by
    NumPy's legacy generator, first the generated ones, as in torch-fidelity and clean-fid.
    `unbiased` is the same estimate on all examples.

    Args:
      generated: features `[N, D]`.
      real: features `[M, D]`.
      subsets: the number of subsets of each set.
      size: the number of examples in each subset.
      kernel: the kernel.
      seed: the seed of the subsets. torch-fidelity's default is 2020; clean-fid uses NumPy's global
        state.

    Returns:
      The mean, which may be slightly negative, and the deviation.

    Raises:
      ValueError: a set has fewer examples than a subset, `subsets` or `size` is too small, the
        feature lengths differ, or a feature is not finite.
    """
    x, y = common.two_sets(generated, real)
    if subsets < 1 or size < 2:
        raise ValueError(f"subsets={subsets} of size={size}; at least 1 of size 2 is needed")
    for name, features in (("generated", x), ("real", y)):
        if len(features) < size:
            raise ValueError(
                f"{size} {name} examples are needed for subsets of size={size}, "
                f"but there are {len(features)}"
            )
    draw = np.random.RandomState(seed).choice
    values = []
    for _ in range(subsets):
        a = x[draw(len(x), size, replace=False)]
        b = y[draw(len(y), size, replace=False)]
        values.append(unbiased(a, b, kernel))
    return Estimate(float(np.mean(values)), float(np.std(values)))


def unbiased(x: ArrayLike, y: ArrayLike, kernel: Kernel = KID_KERNEL) -> float:
    """`MMD_u^2`: the mean of `k(x, x') + k(y, y')` over distinct examples minus the mean of
    `2 k(x, y)` over all pairs (Gretton et al. 2012, eq. 3).

    Args:
      x: features `[N, D]`, N >= 2.
      y: features `[M, D]`, M >= 2.
      kernel: the kernel.

    Returns:
      The estimate; its expectation is 0 for equal distributions, so it may be negative.

    Raises:
      ValueError: there are too few examples, the feature lengths differ, or a feature is not
        finite.
    """
    x, y = common.two_sets(x, y, 2, ("first features", "second features"))
    return _mean_of_distinct(x, kernel) + _mean_of_distinct(y, kernel) - 2 * _mean(x, y, kernel)


def biased(x: ArrayLike, y: ArrayLike, kernel: Kernel = KID_KERNEL) -> float:
    """`MMD_b^2`: as `unbiased`, with the means over all pairs (Gretton et al. 2012, eq. 5).

    Args:
      x: features `[N, D]`.
      y: features `[M, D]`.
      kernel: the kernel.

    Returns:
      The squared distance between the mean embeddings of the sets, in [0, inf).

    Raises:
      ValueError: as `unbiased`.
    """
    x, y = common.two_sets(x, y, 1, ("first features", "second features"))
    return _mean(x, x, kernel) + _mean(y, y, kernel) - 2 * _mean(x, y, kernel)


def u_statistic(x: ArrayLike, y: ArrayLike, kernel: Kernel = KID_KERNEL) -> float:
    """As `unbiased`, without the pairs `(x_i, y_i)`: one U-statistic of pairs of examples.

    Gretton et al. 2012, eq. 4. Its variance is that of a U-statistic; the sets have equal sizes.

    Args:
      x: features `[N, D]`, N >= 2.
      y: features `[N, D]`.
      kernel: the kernel.

    Raises:
      ValueError: as `unbiased`, or the sets differ in size.
    """
    x, y = common.two_sets(x, y, 2, ("first features", "second features"))
    if len(x) != len(y):
        raise ValueError(f"sets of {len(x)} and {len(y)} examples; equal sizes are needed")
    total, trace = _totals(x, y, kernel)
    across = (total - trace) / (len(x) * (len(x) - 1))
    return _mean_of_distinct(x, kernel) + _mean_of_distinct(y, kernel) - 2 * across


def _mean(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], kernel: Kernel) -> float:
    return _totals(x, y, kernel)[0] / (len(x) * len(y))


def _mean_of_distinct(x: np.ndarray[Any, Any], kernel: Kernel) -> float:
    total, trace = _totals(x, x, kernel)
    return (total - trace) / (len(x) * (len(x) - 1))


def _totals(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], kernel: Kernel
) -> tuple[float, float]:
    """The sums of the kernel over all pairs and over pairs of equal indices, in blocks."""
    total = trace = 0.0
    for i in range(0, len(x), _TILE):
        a = x[i : i + _TILE].astype(np.float64)
        for j in range(0, len(y), _TILE):
            # A product of an array with itself is symmetric, at half the cost.
            b = a if x is y and i == j else y[j : j + _TILE].astype(np.float64)
            values = kernel(a, b)
            total += float(values.sum())
            if i == j:
                trace += float(np.trace(values))
    return total, trace
