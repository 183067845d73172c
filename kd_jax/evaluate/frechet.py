"""The Frechet distance between two sets of features, in float64."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Moments(NamedTuple):
    """What the distance needs of a set of features.

    Attributes:
      examples: N. The bias of the distance falls as 1/N: state it with every figure.
      mean: `[D]` float64.
      covariance: `[D, D]` float64, normalised by N - 1.
    """

    examples: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def moments(features: ArrayLike) -> Moments:
    """The moments of features `[N, D]`, two-pass and in float64.

    Raises:
      ValueError: when there are fewer than two examples, or a feature is not finite.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or x.shape[0] < 2:
        raise ValueError(f"features have shape {x.shape}; the moments need [N, D] with N >= 2")
    if not np.isfinite(x).all():
        raise ValueError(
            f"features of example {np.argmin(np.isfinite(x).all(axis=1))} are not finite"
        )
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred / (len(x) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """`|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`, in [0, inf).

    The squared 2-Wasserstein distance of two Gaussians (Frechet 1957; Heusel et al. 2017, eq. 6).
    The trace of the root is computed as that of the symmetric `(R C_b R)^(1/2)`, `R = C_a^(1/2)`.

    Raises:
      ValueError: when the features differ in number.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of lengths {len(a.mean)} and {len(b.mean)} have no distance")
    root = _symmetric_sqrt(a.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    gap = a.mean - b.mean
    distance = gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * cross
    return float(max(distance, 0.0))


def _symmetric_sqrt(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
