"""Whether images and captions belong together."""

import jax
import jax.numpy as jnp

from kd_jax.checks import same_shape
from kd_jax.types import Array


def contrastive(
    images: Array, sentences: Array, same: Array | None = None, *, temperature: float = 0.1
) -> Array:
    """Each image is to find its sentence in the batch, and each sentence its image.

    The cross-entropy of the softmax of cosines over the batch, the mean of both directions: van den
    Oord et al. 2018, eq. 4; between images and sentences as in Zhang et al. 2021 (XMC-GAN), eq. 3.
    Relates the examples of the batch: it has to be the global one.

    Args:
      images: `[B, D]`, what images are described by.
      sentences: `[B, D]`.
      same: `[B, B]` bool, which captions say the same: an image may find any of them. By default
        each says something of its own.
      temperature: what cosines are divided by.

    Returns:
      A scalar of the batch, at least 0.

    Raises:
      ValueError: an argument is None, the shapes differ or do not fit, the temperature is not
        positive, or there is one example only.
    """
    images, sentences = same_shape(images=images, sentences=sentences)
    if images.ndim != 2 or images.shape[0] < 2:
        raise ValueError(f"[B, D] with B of at least 2 are needed, not shape {images.shape}")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} is not positive")
    count = images.shape[0]
    own = jnp.eye(count, dtype=bool) if same is None else same
    if own.shape != (count, count):
        raise ValueError(f"same has shape {own.shape}; {(count, count)} is needed")
    cosines = jnp.matmul(_unit(images), _unit(sentences).T, precision=jax.lax.Precision.HIGHEST)
    wanted = own / own.sum(axis=1, keepdims=True)
    found, asked = (
        -(wanted * jax.nn.log_softmax(products, axis=1)).sum(axis=1).mean()
        for products in (cosines / temperature, cosines.T / temperature)
    )
    return (found + asked) / 2


def same_rows(tokens: Array) -> Array:
    """Which captions `[B, L]` say the same: `[B, B]` bool."""
    return (tokens[:, None] == tokens[None]).all(axis=2)


def _unit(x: Array) -> Array:
    squares = (x**2).sum(axis=1, keepdims=True)
    return x * jax.lax.rsqrt(squares + 1e-12)
