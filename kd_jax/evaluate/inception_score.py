"""The inception score: how sure a classifier is of each image, and how varied its answers are."""

import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_jax.evaluate import common
from kd_jax.evaluate.common import Estimate


def inception_score(
    logits: ArrayLike, splits: int = 10, *, shuffle_seed: int | None = None
) -> Estimate:
    """`exp E_x KL(p(y|x) || p(y))`, mean and deviation over splits of the images.

    Salimans et al. 2016, section 4, in float64. `p(y)` is the mean of a split's `p(y|x)`, so the
    score depends on a split's size: state it with the number of images.

    Args:
      logits: `[N, classes]` of the generated images. The published tools leave out the last
        layer's bias.
      splits: how many parts of (nearly) the same size.
      shuffle_seed: of a permutation of the images by NumPy's legacy generator before they are
        split, as torch-fidelity makes it with 2020; None for the order that they have.

    Returns:
      Scores in [1, classes].

    Raises:
      ValueError: when there is no split, fewer images than splits, or a logit is not finite.
    """
    x = common.rows(logits, name="logits").astype(np.float64)
    if splits < 1 or len(x) < splits:
        raise ValueError(f"{len(x)} images cannot be cut into splits={splits}")
    if shuffle_seed is not None:
        x = x[np.random.RandomState(shuffle_seed).permutation(len(x))]
    edges = [i * len(x) // splits for i in range(splits + 1)]
    scores = [_score(x[a:b]) for a, b in itertools.pairwise(edges)]
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: NDArray[np.float64]) -> float:
    given_image = logits - _log_sum_exp(logits, axis=1)
    # Summed as logarithms, p(y) is positive even where each p(y|x) is too small to be a number.
    overall = _log_sum_exp(given_image, axis=0) - np.log(len(logits))
    divergence = (np.exp(given_image) * (given_image - overall)).sum(axis=1)
    return float(np.exp(divergence.mean()))


def _log_sum_exp(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    largest = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - largest).sum(axis=axis, keepdims=True)) + largest
