"""Losses between a batch and a whole distribution, represented by moments of its features.

The moments are constants, computed once from many images; no gradient reaches them.
"""

import math

import jax
import jax.numpy as jnp

from kd_jax.core.checks import magnitude, same_shape
from kd_jax.core.types import Array


def moments(features: Array) -> tuple[Array, Array]:
    """The first two raw moments of features, dimension by dimension: `E[x]` and `E[x^2]`.

    The moments of a set are the averages of the moments of its parts, weighted by their sizes. The
    second moment is not centred, so that this holds, and not a matrix, so that a batch smaller than
    D suffices.

    Args:
      features: `[N, ...]`, with all axes after the first flattened to D.

    Returns:
      `[D]` and `[D]`, in units of the features and in squared units.

    Raises:
      ValueError: the argument is None, has no axis after the first, or no example.
    """
    rows = _flatten(features)
    return jnp.mean(rows, axis=0), jnp.mean(rows**2, axis=0)


def moment_matching(features: Array, mean: Array, second: Array) -> Array:
    """The L1 distance between the batch's moments and a distribution's. A scalar.

    `mean_d |E[x_d] - mean_d| + mean_d |E[x_d^2] - second_d|`, with expectations over the batch.
    Yeo et al. 2024 (NICKEL & DiME), with weight 20 on features of DINO and 15 on those of CLIP;
    averaging over dimensions instead of summing is this library's choice. The value includes the
    sampling error of the batch's moments, so larger batches reach smaller values.

    Args:
      features: `[B, ...]` features of the student's images, B >= 2, with D elements per example.
      mean: `[D]`, from `moments` of the teacher's or of real images' features; a constant.
      second: `[D]`, from `moments` as well; a constant.

    Returns:
      A scalar, >= 0; the two parts are in units of the features and in squared units.

    Raises:
      ValueError: an argument is None, `mean` or `second` is not `[D]`, or the batch is smaller than
        2, where the loss would match every single example to the mean.
    """
    rows = _flatten(features, minimum=2)
    distance = jnp.zeros(())
    for moment, (name, value) in zip(
        moments(rows), {"mean": mean, "second": second}.items(), strict=True
    ):
        (target,) = same_shape(**{name: value})
        if target.shape != moment.shape:
            raise ValueError(
                f"features has shape {jnp.shape(features)} but {name} has {target.shape}; "
                f"{moment.shape} is needed"
            )
        distance = distance + jnp.mean(magnitude(moment - jax.lax.stop_gradient(target)))
    return distance


def _flatten(features: Array, minimum: int = 1) -> Array:
    """`[N, D]`: the features with all axes after the first flattened."""
    (features,) = same_shape(features=features)
    if features.ndim < 2:
        raise ValueError(f"features has shape {features.shape}; [B, ...] is needed")
    if features.shape[0] < minimum:
        raise ValueError(
            f"features has shape {features.shape}; a batch of {minimum} or more examples is needed"
        )
    return features.reshape(features.shape[0], math.prod(features.shape[1:]))
