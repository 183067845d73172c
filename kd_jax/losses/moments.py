"""Losses between a batch and a whole distribution, known by the moments of its features.

The moments are constants: made once from many images, no gradient reaches them.
"""

import math

import jax
import jax.numpy as jnp

from kd_jax.checks import magnitude, same_shape
from kd_jax.types import Array


def moments(features: Array) -> tuple[Array, Array]:
    """The first two raw moments of features, dimension by dimension: `E[x]` and `E[x^2]`.

    Those of a large set are the means, weighted by their sizes, of those of its parts. The second
    is not centred, so that this holds, and not a matrix, so that a batch smaller than D can have
    it.

    Args:
      features: `[N, ...]`, with all axes after the first flattened to D.

    Returns:
      `[D]` and `[D]`, in units of the features and in their squares.

    Raises:
      ValueError: the argument is None, or has no axis after the first, or no example.
    """
    rows = _rows(features)
    return jnp.mean(rows, axis=0), jnp.mean(rows**2, axis=0)


def matching(features: Array, mean: Array, second: Array) -> Array:
    """The distance of the batch's moments from those of a distribution. A scalar.

    `mean_d |E[x_d] - mean_d| + mean_d |E[x_d^2] - second_d|`, with expectations over the batch.
    Yeo et al. 2024 (NICKEL & DiME), with weight 20 on features of DINO and 15 on those of CLIP;
    that dimensions are averaged, not summed, is this library's choice. The sampling error of the
    batch's moments counts too, so that larger batches reach smaller values.

    Args:
      features: `[B, ...]` features of the student's images, B >= 2, with D elements per example.
      mean: `[D]`, from `moments` of the teacher's or of real images' features; a constant.
      second: `[D]`, likewise.

    Returns:
      A scalar, >= 0; its parts are in units of the features and in their squares.

    Raises:
      ValueError: an argument is None, `mean` or `second` has another shape than `[D]`, or the batch
        is smaller than 2: one example is no distribution, and would be drawn to the mean.
    """
    rows = _rows(features, least=2)
    distance = jnp.zeros(())
    for ours, (name, value) in zip(
        moments(rows), {"mean": mean, "second": second}.items(), strict=True
    ):
        (theirs,) = same_shape(**{name: value})
        if theirs.shape != ours.shape:
            raise ValueError(
                f"features has shape {jnp.shape(features)} but {name} has {theirs.shape}; "
                f"{ours.shape} is needed"
            )
        distance = distance + jnp.mean(magnitude(ours - jax.lax.stop_gradient(theirs)))
    return distance


def _rows(features: Array, least: int = 1) -> Array:
    """`[N, D]`: the features with all axes after the first flattened."""
    (features,) = same_shape(features=features)
    if features.ndim < 2:
        raise ValueError(f"features has shape {features.shape}; [B, ...] is needed")
    if features.shape[0] < least:
        raise ValueError(
            f"a batch of {features.shape[0]} has no moments to match: features has shape "
            f"{features.shape}, and {least} examples are needed"
        )
    return features.reshape(features.shape[0], math.prod(features.shape[1:]))
