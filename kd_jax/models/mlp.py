"""A GAN of multilayer perceptrons, from noise to small images (Goodfellow et al. 2014).

The generator is 128-128-784 for 28x28 images: two hidden layers and a tanh. Images are
`[B, size, size, channels]` in [-1, 1]; latents `[B, latent]`; labels, if any, int `[B]`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.models.conditioning import check_labels
from kd_jax.network import Network, from_linen
from kd_jax.state import Pair
from kd_jax.types import Array


def gan(
    size: int = 28,
    width: int = 128,
    *,
    channels: int = 1,
    classes: int = 0,
    depth: int = 2,
    dtype: Any = jnp.float32,
) -> Pair:
    """A generator and its discriminator, as a `Pair` of networks.

    Args:
      size: the image's side.
      width: units of each hidden layer.
      channels: the image's channels.
      classes: the number of classes; 0 for an unconditional pair, whose networks take no labels.
      depth: hidden layers.
      dtype: what is computed in; parameters are float32 always, images and scores too.
    """
    return Pair(
        generator(size, width, channels=channels, classes=classes, depth=depth, dtype=dtype),
        discriminator(width, classes=classes, depth=depth, dtype=dtype),
    )


def generator(
    size: int = 28,
    width: int = 128,
    *,
    channels: int = 1,
    classes: int = 0,
    depth: int = 2,
    dtype: Any = jnp.float32,
) -> Network:
    """`(latents[, labels]) -> images`; taps `hidden0`, `hidden1`, ... are `[B, width]`."""
    return from_linen(Generator(size, width, channels, classes, depth, dtype))


def discriminator(
    width: int = 128, *, classes: int = 0, depth: int = 2, dtype: Any = jnp.float32
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits); taps `hidden0`, `hidden1`, ..."""
    return from_linen(Discriminator(width, classes, depth, dtype))


class Generator(nn.Module):
    """See `generator`."""

    size: int
    width: int
    channels: int
    classes: int
    depth: int
    dtype: Any

    @nn.compact
    def __call__(
        self, latents: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        x, taps = _hidden(_with_label(latents, labels, self.classes), self)
        shape = (self.size, self.size, self.channels)
        x = nn.Dense(self.size**2 * self.channels, dtype=self.dtype)(x)
        return jnp.tanh(x.astype(jnp.float32)).reshape(-1, *shape), taps


class Discriminator(nn.Module):
    """See `discriminator`."""

    width: int
    classes: int
    depth: int
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        flat = images.reshape(images.shape[0], -1)
        x, taps = _hidden(_with_label(flat, labels, self.classes), self)
        return nn.Dense(1, dtype=self.dtype)(x)[:, 0].astype(jnp.float32), taps


def _hidden(x: Array, module: Generator | Discriminator) -> tuple[Array, dict[str, Array]]:
    taps = {}
    for layer in range(module.depth):
        x = nn.leaky_relu(nn.Dense(module.width, dtype=module.dtype)(x), 0.2)
        taps[f"hidden{layer}"] = x
    return x, taps


def _with_label(x: Array, labels: Array | None, classes: int) -> Array:
    check_labels(classes, labels)
    if labels is None:
        return x
    return jnp.concatenate([x, jax.nn.one_hot(labels, classes, dtype=x.dtype)], axis=-1)
