"""A GAN of multilayer perceptrons, from noise to small images (Goodfellow et al. 2014).

The generator is 128-128-784 for 28x28 images: two hidden layers and a tanh. Images are
`[B, size, size, channels]` in [-1, 1]; latents `[B, latent]`; labels, if any, int `[B]`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.axes import Axes, Axis, InputAxis, group_widths
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.factories import make_gan
from kd_jax.models.layers.conditioning import check_labels


def generator(
    size: int = 28,
    width: int | Sequence[int] = 128,
    *,
    channels: int = 1,
    classes: int = 0,
    depth: int = 2,
    dtype: Any = jnp.float32,
) -> Network:
    """`(latents[, labels]) -> images`; taps `hidden0`, `hidden1`, ... are `[B, width]`.

    Args:
      size: the image's side.
      width: units of all hidden layers, or one number for each, starting at the input.
      channels: the image's channels.
      classes: number of classes; 0 for unconditional networks, which take no labels.
      depth: number of hidden layers.
      dtype: the computation dtype; parameters, images and scores are always float32.

    Raises:
      ValueError: the number of widths differs from `depth`, or a width is not positive.
    """
    return from_linen(Generator(size, _widths(width, depth), channels, classes, dtype))


def discriminator(
    width: int | Sequence[int] = 128,
    *,
    classes: int = 0,
    depth: int = 2,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits); taps `hidden0`, `hidden1`, ...

    Args and errors are those of `generator`.
    """
    return from_linen(Discriminator(_widths(width, depth), classes, dtype))


gan = make_gan(generator, discriminator)
"""A `generator` and its `discriminator`, as a `PerNetwork`, with the arguments of both."""


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are named like the taps, `hidden0`, `hidden1`, ...

    Args:
      variables: those of a `generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `generator`, or include connectors.
    """
    return _axes(variables)


def discriminator_axes(variables: Variables) -> Axes:
    """As `generator_axes`, for a discriminator's variables."""
    return _axes(variables)


def _axes(variables: Variables) -> Axes:
    last = sum(name.startswith("Dense_") for name in variables["params"]) - 1
    axes: dict[str, tuple[Axis, ...]] = {}
    reads: Axis = None
    for layer in range(last + 1):
        group = f"hidden{layer}" if layer < last else None
        axes[f"params/Dense_{layer}/kernel"] = (reads, group)
        axes[f"params/Dense_{layer}/bias"] = (group,)
        reads = InputAxis(group)
    group_widths(variables, axes)
    return axes


def _widths(width: int | Sequence[int], depth: int) -> tuple[int, ...]:
    widths = [int(units) for units in width] if isinstance(width, Sequence) else [width] * depth
    if len(widths) != depth:
        raise ValueError(f"{depth} hidden layers have {depth} widths, not {len(widths)}")
    if min(widths, default=1) < 1:
        raise ValueError(f"width={width} must be at least 1")
    return tuple(widths)


class Generator(nn.Module):
    """See `generator`."""

    size: int
    widths: tuple[int, ...]
    channels: int
    classes: int
    dtype: Any

    @nn.compact
    def __call__(
        self, latents: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        x, taps = _hidden(_with_label(latents, labels, self.classes), self)
        shape = (self.size, self.size, self.channels)
        x = nn.Dense(self.size**2 * self.channels, dtype=self.dtype)(x)
        return jnp.tanh(at_least_float32(x)).reshape(-1, *shape), taps


class Discriminator(nn.Module):
    """See `discriminator`."""

    widths: tuple[int, ...]
    classes: int
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        flat = images.reshape(images.shape[0], -1)
        x, taps = _hidden(_with_label(flat, labels, self.classes), self)
        return at_least_float32(nn.Dense(1, dtype=self.dtype)(x)[:, 0]), taps


def _hidden(x: Array, module: Generator | Discriminator) -> tuple[Array, dict[str, Array]]:
    taps = {}
    for layer, width in enumerate(module.widths):
        x = nn.leaky_relu(nn.Dense(width, dtype=module.dtype)(x), 0.2)
        taps[f"hidden{layer}"] = x
    return x, taps


def _with_label(x: Array, labels: Array | None, classes: int) -> Array:
    check_labels(classes, labels)
    if labels is None:
        return x
    return jnp.concatenate([x, jax.nn.one_hot(labels, classes, dtype=x.dtype)], axis=-1)


FAMILY = Family(
    "mlp",
    (Generator,),
    narrowed("widths"),
    generator_axes,
    discriminator=lambda like: discriminator(classes=like.classes),
    student=lambda like, width: generator(
        like.size, width, channels=like.channels, classes=like.classes
    ),
)
