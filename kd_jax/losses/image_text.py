"""Contrastive losses between images and captions."""

import jax
import jax.numpy as jnp

from kd_jax.core.checks import same_shape
from kd_jax.core.types import Array


def image_text_contrastive(
    images: Array, sentences: Array, same: Array | None = None, *, temperature: float = 0.1
) -> Array:
    """The symmetric contrastive (InfoNCE) loss between image and sentence embeddings.

    The cross-entropy of the softmax of cosines over the batch, the mean of both directions: van den
    Oord et al. 2018, eq. 4; between images and sentences as in Zhang et al. 2021 (XMC-GAN), eq. 3.
    A batch-relational loss: it needs the global batch.

    Args:
      images: `[B, D]` image embeddings.
      sentences: `[B, D]` sentence embeddings.
      same: `[B, B]` bool, which captions are equivalent: an image has all of them as
        positives. By
        default all captions differ.
      temperature: the divisor of the cosines.

    Returns:
      A scalar, >= 0.

    Raises:
      ValueError: an argument is None, the shapes differ or do not fit, the temperature is not
        positive, or the batch is smaller than 2.
    """
    images, sentences = same_shape(images=images, sentences=sentences)
    if images.ndim != 2 or images.shape[0] < 2:
        raise ValueError(f"images has shape {images.shape}; [B, D] with B >= 2 is needed")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} is not positive")
    count = images.shape[0]
    positives = jnp.eye(count, dtype=bool) if same is None else same
    if positives.shape != (count, count):
        raise ValueError(f"same has shape {positives.shape}; {(count, count)} is needed")
    cosines = jnp.matmul(
        _normalize(images), _normalize(sentences).T, precision=jax.lax.Precision.HIGHEST
    )
    targets = positives / positives.sum(axis=1, keepdims=True)
    image_to_text, text_to_image = (
        -(targets * jax.nn.log_softmax(logits, axis=1)).sum(axis=1).mean()
        for logits in (cosines / temperature, cosines.T / temperature)
    )
    return (image_to_text + text_to_image) / 2


def same_rows(tokens: Array) -> Array:
    """Which captions `[B, L]` are identical: `[B, B]` bool."""
    return (tokens[:, None] == tokens[None]).all(axis=2)


def _normalize(x: Array) -> Array:
    squares = (x**2).sum(axis=1, keepdims=True)
    return x * jax.lax.rsqrt(squares + 1e-12)
