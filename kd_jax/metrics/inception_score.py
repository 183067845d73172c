"""The inception score: the confidence of a classifier's predictions and their diversity."""

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_jax.metrics import common
from kd_jax.metrics.common import Estimate


def inception_score(
    logits: ArrayLike, splits: int = 10, *, shuffle_seed: int | None = None
) -> Estimate:
    """`exp E_x KL(p(y|x) || p(y))`: mean and deviation over splits of the images.

    Salimans et al. 2016, section 4, in float64. `p(y)` is the mean of a split's `p(y|x)`, so the
    score depends on the size of a split: report it with the number of images.

    Args:
      logits: `[N, classes]` of the generated images. The published tools leave out the last
        layer's bias.
      splits: the number of parts of (nearly) equal size.
      shuffle_seed: the seed of a permutation of the images before splitting, by NumPy's legacy
        generator; torch-fidelity uses 2020. None keeps the order.

    Returns:
      Scores in [1, classes].

    Raises:
      ValueError: `splits` is not positive or exceeds the number of images, or a logit is not
        finite.
    """
    x = common.rows(logits, name="logits").astype(np.float64)
    if splits < 1 or len(x) < splits:
        raise ValueError(f"{len(x)} images cannot be divided into splits={splits}")
    if shuffle_seed is not None:
        x = x[np.random.RandomState(shuffle_seed).permutation(len(x))]
    edges = [i * len(x) // splits for i in range(splits + 1)]
    scores = [_score(x[a:b]) for a, b in itertools.pairwise(edges)]
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: NDArray[np.float64]) -> float:
    conditional = logits - _log_sum_exp(logits, axis=1)
    # In the log domain p(y) stays positive where all p(y|x) underflow.
    marginal = _log_sum_exp(conditional, axis=0) - np.log(len(logits))
    divergence = (np.exp(conditional) * (conditional - marginal)).sum(axis=1)
    return float(np.exp(divergence.mean()))


def _log_sum_exp(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    largest = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - largest).sum(axis=axis, keepdims=True)) + largest
