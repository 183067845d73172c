"""The Frechet distance between two sets of features, in float64.

For all features at once: `frechet_distance_of_features(a, b)`. For batches, on several machines:

    state = EMPTY
    for batch in batches:
        state = update(state, batch)
    a = finish(merge(state, state_of_another_machine))
    frechet_distance(a, b)
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from kd_jax.metrics import common

_ROWS = 8192  # converted to double precision at a time


class Moments(NamedTuple):
    """The mean and covariance of a set of features.

    Attributes:
      examples: N. The bias of the distance falls as 1/N: report it with every distance.
      mean: `[D]` float64.
      covariance: `[D, D]` float64, normalised by N - `ddof`, by default N - 1.
    """

    examples: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


class Scatter(NamedTuple):
    """Running statistics of a set of features. `EMPTY` is the initial state.

    Attributes:
      examples: the number of examples.
      mean: `[D]` float64.
      matrix: `[D, D]` float64, the sum of the outer products of the deviations from the mean.
    """

    examples: int
    mean: NDArray[np.float64]
    matrix: NDArray[np.float64]


EMPTY = Scatter(0, np.zeros(0), np.zeros((0, 0)))


def update(state: Scatter, features: ArrayLike) -> Scatter:
    """Adds features `[N, D]`, N >= 1, to the statistics.

    Within a batch the mean is subtracted first (two passes), so no precision is lost where it is
    large relative to the deviations; batches are merged by Chan et al. 1983, eq. 2.1. The division
    into batches affects a distance only by float64 rounding.

    Raises:
      ValueError: there is no example, a feature is not finite (the example's index counts from the
        first batch), or the feature length differs from earlier batches.
    """
    x = common.rows(features, first=state.examples)
    for start in range(0, len(x), _ROWS):
        centred = np.array(x[start : start + _ROWS], np.float64)
        mean = centred.mean(axis=0)
        centred -= mean
        state = merge(state, Scatter(len(centred), mean, centred.T @ centred))
    return state


def merge(a: Scatter, b: Scatter) -> Scatter:
    """The statistics of the union of both sets.

    Raises:
      ValueError: the feature lengths differ.
    """
    if not a.examples or not b.examples:
        return a if a.examples else b
    _same_length(a.mean, b.mean)
    examples = a.examples + b.examples
    gap = b.mean - a.mean
    matrix = np.outer(gap, gap * (a.examples * b.examples / examples))
    matrix += a.matrix
    matrix += b.matrix
    return Scatter(examples, a.mean + gap * (b.examples / examples), matrix)


def finish(state: Scatter, ddof: int = 1) -> Moments:
    """The moments of a set.

    Args:
      state: the statistics of the set.
      ddof: the covariance is divided by N - ddof: 1 as in most tools, 0 as in NVIDIA's.

    Raises:
      ValueError: there are fewer than two examples.
    """
    if state.examples < 2:
        raise ValueError(f"{state.examples} examples have no covariance; two or more are needed")
    return Moments(state.examples, state.mean, state.matrix / (state.examples - ddof))


def moments(features: ArrayLike, ddof: int = 1) -> Moments:
    """The moments of features `[N, D]`, computed in two passes in float64.

    Args:
      features: the features of all examples.
      ddof: see `finish`.

    Raises:
      ValueError: there are fewer than two examples, or a feature is not finite.
    """
    return finish(update(EMPTY, common.rows(features, least=2)), ddof)


def frechet_distance(a: Moments, b: Moments) -> float:
    """`|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`, in [0, inf).

    The squared 2-Wasserstein distance of two Gaussians (Frechet 1957; Heusel et al. 2017, eq. 6).

    No matrix root is computed. For any factors `C_a = F F'` and `C_b = G G'` the eigenvalues of
    `C_a C_b` are the squares of the singular values of `F' G`, so the trace of the root is the sum
    of the singular values. Cholesky factors are used, pivoted where a covariance is rank-deficient.

    Raises:
      ValueError: the feature lengths differ.
    """
    _same_length(a.mean, b.mean)
    return _distance(
        _Gaussian(a.mean, float(np.trace(a.covariance)), _factor(a.covariance)),
        _Gaussian(b.mean, float(np.trace(b.covariance)), _factor(b.covariance)),
    )


def frechet_distance_of_features(a: ArrayLike, b: ArrayLike, ddof: int = 1) -> float:
    """The Frechet distance between two sets of features, `[N, D]` and `[M, D]`.

    Equals the distance of their `moments`. For a set with N <= D the covariance is not computed:
    the centred examples are a factor of it. For two such sets only the products `[N, M]` remain.

    Args:
      a: features `[N, D]`.
      b: features `[M, D]`.
      ddof: see `finish`.

    Raises:
      ValueError: a set has fewer than two examples, a feature is not finite, or the feature lengths
        differ.
    """
    x, y = common.two_sets(a, b, least=2, names=("first features", "second features"))
    return _distance(_gaussian(x, ddof), _gaussian(y, ddof))


class _Gaussian(NamedTuple):
    mean: NDArray[np.float64]
    trace: float  # of the covariance
    factor: NDArray[np.float64]  # [D, rank]; its product with its transpose is the covariance


def _gaussian(x: NDArray[np.floating], ddof: int) -> _Gaussian:
    examples, dimensions = x.shape
    if examples > dimensions:
        mean, covariance = moments(x, ddof)[1:]
        return _Gaussian(mean, float(np.trace(covariance)), _factor(covariance))
    centred = np.array(x, np.float64)
    mean = centred.mean(axis=0)
    centred -= mean
    centred /= np.sqrt(examples - ddof)
    return _Gaussian(mean, float((centred**2).sum()), centred.T)


def _distance(a: _Gaussian, b: _Gaussian) -> float:
    gap = a.mean - b.mean
    cross = _nuclear_norm(a.factor.T @ b.factor)
    return max(float(gap @ gap) + a.trace + b.trace - 2.0 * cross, 0.0)


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """A factor `[D, rank]`: its product with its transpose is the covariance."""
    try:
        return np.linalg.cholesky(covariance).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:  # rank-deficient up to rounding
        lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=1)
        factor = np.empty((len(covariance), rank))
        factor[pivots - 1] = np.tril(lower)[:, :rank]
        return factor


def _nuclear_norm(matrix: NDArray[np.float64]) -> float:
    """The sum of the singular values.

    They are the roots of the Gram matrix's eigenvalues, at a third of the cost. All eigenvalues
    have errors of the largest one's rounding, and the root of such an error is 1e-8 of the largest
    singular value, so where eigenvalues are that small the singular values are computed instead.
    """
    if not matrix.size:
        return 0.0
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    eigenvalues = np.linalg.eigvalsh(wide @ wide.T)
    if eigenvalues[0] > len(wide) * np.finfo(np.float64).eps * eigenvalues[-1]:
        return float(np.sqrt(eigenvalues).sum())
    return float(np.linalg.svd(wide, compute_uv=False).sum())


def _same_length(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    if a.shape != b.shape:
        raise ValueError(f"features of lengths {len(a)} and {len(b)} have no distance")
