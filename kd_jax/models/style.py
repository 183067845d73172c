"""What the style-based generators share: equalized layers, and the mapping of StyleGAN2 and 3."""

import math
from collections.abc import Callable
from collections.abc import Mapping as ReadOnly
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.network import Network
from kd_jax.ops import ACTIVATIONS, Activation, bias_act
from kd_jax.types import Array, Variables

AVERAGES = "averages"
"""The collection of what training averages: `w_avg`, magnitudes."""

LINEAR = ACTIVATIONS["linear"]


class Dense(nn.Module):
    """A fully connected layer with an equalized learning rate (Karras et al. 2018, section 4.1).

    The stored weight has a deviation of `1 / lr_multiplier` at first, and is used times
    `lr_multiplier / sqrt(inputs)`; the stored bias is used times `lr_multiplier`.
    """

    features: int
    activation: Activation = LINEAR
    lr_multiplier: float = 1.0
    use_bias: bool = True
    bias_init: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = nn.initializers.normal(1 / self.lr_multiplier)
        weight = self.param("weight", scale, (x.shape[-1], self.features))
        gain = self.lr_multiplier / math.sqrt(x.shape[-1])
        y = x.astype(self.dtype) @ (weight * gain).astype(self.dtype)
        if not self.use_bias:
            return bias_act(y, None, self.activation)
        constant = nn.initializers.constant(self.bias_init / self.lr_multiplier)
        bias = self.param("bias", constant, (self.features,)) * self.lr_multiplier
        return bias_act(y, bias, self.activation)


class Mapping(nn.Module):
    """Latents, and a condition if there is one, to styles.

    Latents and the embedded condition are normalised each by itself, and joined (Karras et al.
    2020, StyleGAN2-ADA).

    Attributes:
      latent: the latent's length; 0 for a mapping of the condition alone (a discriminator's).
      condition: the condition's length; 0 for none. Labels int `[B]` become one-hot; a float
        `[B, condition]` is taken as it is.
      style: the style's length.
      layers: how many times each style is repeated; None for `[B, style]`, neither repeated nor
        truncated.
      depth: fully connected layers.
      hidden: their width, the last one's aside; the style's length by default.
      embedding: the embedded condition's length; the style's length by default.
      lr_multiplier: of these layers.
      activation: theirs, a name in `kd_jax.ops.ACTIVATIONS`.
      average_decay: of `w_avg`, in training.
    """

    latent: int
    condition: int
    style: int
    layers: int | None
    depth: int = 8
    hidden: int | None = None
    embedding: int | None = None
    lr_multiplier: float = 0.01
    activation: str = "lrelu"
    average_decay: float = 0.998

    @nn.compact
    def __call__(
        self,
        latents: Array | None,
        condition: Array | None = None,
        *,
        train: bool = False,
        truncation: float | Array = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Array:
        """The styles.

        Args:
          latents: `[B, latent]`; None where there are none.
          condition: int labels `[B]` or `[B, condition]`.
          train: whether `w_avg` follows this batch.
          truncation: psi: how far the styles stay from `w_avg`; 1 leaves them alone.
          truncation_cutoff: how many of the first layers are truncated; all by default.

        Returns:
          `[B, layers, style]`, or `[B, style]` without layers.
        """
        parts = []
        if self.latent:
            if latents is None or latents.ndim != 2 or latents.shape[1] != self.latent:
                shape = None if latents is None else latents.shape
                raise ValueError(f"latents [B, {self.latent}] are needed, not {shape}")
            parts.append(normalize_second_moment(latents.astype(jnp.float32)))
        if self.condition:
            vector = as_vector(condition, self.condition)
            embedding = Dense(self.embedding or self.style, name="embed")(vector)
            parts.append(normalize_second_moment(embedding))
        elif condition is not None and condition.size:
            raise ValueError(
                f"the network is not conditional, but got a condition {condition.shape}"
            )
        w = jnp.concatenate(parts, axis=-1)
        activation = ACTIVATIONS[self.activation]
        for index in range(self.depth):
            last = index == self.depth - 1
            width = self.style if last else self.hidden or self.style
            w = Dense(width, activation, self.lr_multiplier, name=f"fc{index}")(w)
        if self.layers is None:
            return w
        average = self.variable(AVERAGES, "w_avg", jnp.zeros, (self.style,))
        if train and not self.is_initializing():
            mean = jax.lax.stop_gradient(w).mean(axis=0)
            average.value = mean + self.average_decay * (average.value - mean)
        styles = jnp.broadcast_to(w[:, None], (w.shape[0], self.layers, self.style))
        return truncate(styles, average.value, truncation, truncation_cutoff)


def truncate(
    styles: Array, average: Array, truncation: float | Array, cutoff: int | None = None
) -> Array:
    """Styles drawn towards their average (Karras et al. 2019, appendix B).

    Args:
      styles: `[B, layers, style]`.
      average: `[style]`.
      truncation: psi; 1 leaves the styles alone.
      cutoff: how many of the first layers; all by default.
    """
    if isinstance(truncation, int | float) and truncation == 1:
        return styles
    center = average[None, None]
    truncated = center + truncation * (styles - center)
    first = jnp.arange(styles.shape[1]) < (styles.shape[1] if cutoff is None else cutoff)
    return jnp.where(first[None, :, None], truncated, styles)


def mix_styles(styles: Array, others: Array, probability: float, key: Array) -> Array:
    """Styles whose later layers, from a random one on, are another image's.

    Karras et al. 2019 (StyleGAN), section 3.1; each example has a crossover of its own.

    Args:
      styles: `[B, layers, style]`.
      others: likewise.
      probability: of mixing at all.
      key: for who is mixed, and from which layer on.
    """
    batch, layers, _ = styles.shape
    whether, where = jax.random.split(key)
    cutoff = jax.random.randint(where, (batch,), 1, max(layers, 2))
    mixed = jax.random.bernoulli(whether, probability, (batch,))
    cutoff = jnp.where(mixed, cutoff, layers)
    own = jnp.arange(layers)[None] < cutoff[:, None]
    return jnp.where(own[:, :, None], styles, others)


def map_styles(
    module: Any,
    latents: Array,
    labels: Array | None,
    train: bool,
    truncation: float | Array,
    truncation_cutoff: int | None,
) -> Array:
    """A generator's styles, in training mixed with those of other latents.

    Args:
      module: the generator, with its `mapping` and `style_mixing`, the probability.
      latents: `[B, latent]`.
      labels: the condition, or None.
      train: whether the average follows and styles are mixed; the latter if there is a key.
      truncation: as in `Mapping`.
      truncation_cutoff: likewise.
    """
    options = {"truncation": truncation, "truncation_cutoff": truncation_cutoff}
    styles = module.mapping(latents, labels, train=train, **options)
    mixes = train and module.style_mixing and module.has_rng("params")
    if not mixes or module.is_initializing():
        return styles
    latent_key, mixing_key = jax.random.split(module.make_rng("style_mixing"))
    other = jax.random.normal(latent_key, latents.shape, latents.dtype)
    others = module.mapping(other, labels, **options)
    return mix_styles(styles, others, module.style_mixing, mixing_key)


def truncated(network: Network, truncation: float, cutoff: int | None = None) -> Network:
    """A style network whose styles are always drawn towards their average: a teacher, say.

    Args:
      network: one that has a mapping.
      truncation: psi, as in `truncate`.
      cutoff: how many of the first layers; all by default.

    Raises:
      ValueError: the network has no mapping.
    """
    if network.mapping is None:
        raise ValueError("only a style network (with a mapping) can be truncated")
    options = {"truncation": truncation, "truncation_cutoff": cutoff}
    mapping: Callable[..., Array] = partial(network.mapping, **options)

    def apply(variables: Variables, *inputs: Any, **rest: Any) -> Any:
        return network.apply(variables, *inputs, **{**options, **rest})

    return network._replace(apply=apply, mapping=mapping)


def normalize_second_moment(x: Array, eps: float = 1e-8) -> Array:
    """Vectors `[..., C]` with a mean square of 1."""
    return x * jax.lax.rsqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def as_vector(condition: Array | None, length: int) -> Array:
    """A condition `[B, length]`; int labels `[B]` become one-hot.

    Raises:
      ValueError: there is none, or it has another shape.
    """
    if condition is not None and condition.ndim == 1:
        if not jnp.issubdtype(condition.dtype, jnp.integer):
            raise ValueError(f"labels are integers [B], not {condition.dtype}")
        return jax.nn.one_hot(condition, length)
    if condition is None or condition.ndim != 2 or condition.shape[1] != length:
        got = "none" if condition is None else f"shape {condition.shape}"
        raise ValueError(
            f"the network is conditional: it needs labels int [B] or a condition [B, {length}], "
            f"and got {got}"
        )
    return condition.astype(jnp.float32)


def check_size(size: int, least: int = 8, most: int = 1024) -> None:
    """Raises a ValueError unless an image's side is a power of two between the two."""
    if size < least or size > most or size & (size - 1):
        raise ValueError(f"the size is a power of two from {least} to {most}, not {size}")


def side_widths(
    size: int, base: int, most: int, given: ReadOnly[int, int] | None = None
) -> tuple[int, ...]:
    """Channels at 4x4, 8x8, ..., `size`: `min(base / side, most)`, or those given by side.

    Raises:
      ValueError: a side has none.
    """
    sides = [4 << number for number in range(size.bit_length() - 2)]
    if given is not None and (missing := [side for side in sides if side not in given]):
        raise ValueError(f"{dict(given)} has no width for a side of {missing[0]}")
    widths = tuple(given[side] if given else min(base // side, most) for side in sides)
    for side, width in zip(sides, widths, strict=True):
        if width < 1:
            why = "the widths" if given else f"channel_base={base} and channel_max={most}"
            raise ValueError(f"{why} leave {width} channels at a side of {side}")
    return widths
