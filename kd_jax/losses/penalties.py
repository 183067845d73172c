"""Penalties on the gradient of a discriminator's score with respect to the image.

`score` maps images `[B, H, W, C]` to `(scores, taps)`; see `kd_jax.Forward.discriminate`.
For a patch discriminator, with scores `[B, ...]`, the mean over the patches is differentiated. The
gradient is that of the sum of the batch's scores. It equals the per-example gradient unless the
discriminator relates the examples of a batch (batch normalisation, minibatch standard deviation),
where StyleGAN2 differentiates the sum as well. The images are constants; the penalty is
differentiable with respect to anything `score` closes over.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from kd_jax.core.checks import at_least_float32, per_example_mean, per_example_sum, same_shape
from kd_jax.core.types import Array

Score: TypeAlias = Callable[[Array], tuple[Array, Any]]
"""`images [B, H, W, C] -> (scores [B, ...], taps)`."""

Synthesis: TypeAlias = Callable[[Array], tuple[Array, Any]]
"""`styles [B, layers, style] -> (images [B, H, W, C], taps)`."""


def r1(score: Score, real: Array) -> Array:
    """Half the squared norm of the score's gradient at real images, `1/2 ||grad D(x)||^2`.

    With weight gamma this is Mescheder et al. 2018, eq. 9, where gamma = 10. Gamma must grow with
    the resolution.

    Args:
      score: the discriminator, `[B, H, W, C] -> (logits, taps)`.
      real: `[B, H, W, C]` real images.

    Returns:
      `[B]`, >= 0, in squared logits per squared pixel value; summed over an image's elements.

    Raises:
      ValueError: the images are None.
    """
    (image,) = same_shape(real=real)
    return per_example_sum(_gradient(score, image) ** 2) / 2


def r2(score: Score, fake: Array) -> Array:
    """Half the squared norm of the score's gradient at generated images, `1/2 ||grad D(G(z))||^2`.

    With weight gamma this is Mescheder et al. 2018, eq. 10. No gradient reaches the generator.

    Args:
      score: the discriminator, `[B, H, W, C] -> (logits, taps)`.
      fake: `[B, H, W, C]` generated images.

    Returns:
      `[B]`, >= 0, in squared logits per squared pixel value; summed over an image's elements.

    Raises:
      ValueError: the images are None.
    """
    (image,) = same_shape(fake=fake)
    return per_example_sum(_gradient(score, image) ** 2) / 2


def gradient_penalty(
    score: Score, real: Array, fake: Array, key: Array, norm: float = 1.0
) -> Array:
    """The squared difference of the score's gradient norm from 1, at interpolated images.

    `(||grad D(u x + (1 - u) G(z))|| - 1)^2`, with one u ~ U[0, 1) per pair of images. Gulrajani et
    al. 2017, eq. 3, with weight 10. The penalty's gradient is defined as zero where the score's
    gradient is zero.

    Args:
      score: the critic, `[B, H, W, C] -> (scores, taps)`.
      real: `[B, H, W, C]` real images.
      fake: `[B, H, W, C]` generated images.
      key: the random key of u.
      norm: the target of the gradient norm; 1 in the paper.

    Returns:
      `[B]`, >= 0.

    Raises:
      ValueError: images are None, or their shapes differ.
    """
    real, fake = same_shape(real=real, fake=fake)
    u = jax.random.uniform(key, (real.shape[0],) + (1,) * (real.ndim - 1), real.dtype)
    squares = per_example_sum(_gradient(score, u * real + (1 - u) * fake) ** 2)
    # Both branches of `where` are differentiated, so the root must be finite in the unused one.
    positive = squares > 0
    norms = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
    return (norms - norm) ** 2


def path_lengths(synthesis: Synthesis, styles: Array, noise: Array) -> Array:
    """The sensitivity of an image to its styles, `||J^T y||` for random images y.

    Karras et al. 2020 (StyleGAN2), eq. 4: the penalty is the squared distance of these lengths from
    their running mean, with weight 2. Squares are summed over a style and averaged over the layers,
    as in the authors' code.

    Args:
      synthesis: `[B, layers, style] -> (images [B, H, W, C], taps)`.
      styles: `[B, layers, style]`; gradients pass through them, to the mapping.
      noise: `[B, H, W, C]` standard normal samples; divided by the root of H W internally.

    Returns:
      `[B]`, >= 0, in pixel values per unit of style.

    Raises:
      ValueError: the noise does not have the images' shape, or the styles are not 3-D.
    """
    if styles.ndim != 3:
        raise ValueError(f"styles has shape {styles.shape}; [B, layers, style] is needed")

    def projected(styles: Array) -> Array:
        image, _ = synthesis(styles)
        image, direction = same_shape(image=image, noise=noise)
        return (image * direction).sum() / math.sqrt(image.shape[1] * image.shape[2])

    gradient = jax.grad(projected)(styles)
    squares = (gradient**2).sum(axis=2).mean(axis=1)
    positive = squares > 0  # the root is not differentiable at 0 (a constant generator)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def orthogonal(params: Any) -> Array:
    """Half the squared inner products between different filters of each layer. A scalar.

    `sum ||W^T W * (1 - I)||_F^2 / 2` over the leaves with two axes or more, where W's columns are
    the leaf's slices along its last axis; filter norms are free. Brock et al. 2019 (BigGAN),
    eq. 3, with weight 1e-4; halved, as in their code.

    Args:
      params: a pytree of kernels `[..., features]`; leaves with one axis are ignored.

    Returns:
      A scalar, >= 0.
    """
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(params):
        if leaf.ndim > 1:
            columns = at_least_float32(leaf.reshape(-1, leaf.shape[-1]))
            products = jnp.matmul(columns.T, columns, precision=jax.lax.Precision.HIGHEST)
            total = total + jnp.sum(jnp.triu(products, 1) ** 2)
    return total


def _gradient(score: Score, image: Array) -> Array:
    def total(image: Array) -> Array:
        scores, _ = score(image)
        return per_example_mean(scores).sum()

    return jax.grad(total)(jax.lax.stop_gradient(image))
