"""Shared parts of style-based generators: equalized layers, StyleGAN2 and 3's mapping network."""

import math
from collections.abc import Callable, Mapping as ReadOnly
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.checks import at_least_float32
from kd_jax.core.network import Network
from kd_jax.core.types import Array, Variables
from kd_jax.ops import ACTIVATIONS, Activation, bias_act

AVERAGES = "averages"
"""The collection of running averages: `w_avg` and magnitudes."""

LINEAR = ACTIVATIONS["linear"]


class Dense(nn.Module):
    """A fully connected layer with an equalized learning rate (Karras et al. 2018, section 4.1).

    The stored weight is initialized with standard deviation `1 / lr_multiplier` and multiplied by
    `lr_multiplier / sqrt(inputs)`; the stored bias is multiplied by `lr_multiplier`.
    """

    features: int
    activation: Activation = LINEAR
    lr_multiplier: float = 1.0
    use_bias: bool = True
    bias_init: float = 0.0
    dtype: Any = None  # of the inputs, at least float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = nn.initializers.normal(1 / self.lr_multiplier)
        weight = self.param("weight", scale, (x.shape[-1], self.features))
        gain = self.lr_multiplier / math.sqrt(x.shape[-1])
        dtype = self.dtype or at_least_float32(x).dtype
        y = x.astype(dtype) @ (weight * gain).astype(dtype)
        if not self.use_bias:
            return bias_act(y, None, self.activation)
        constant = nn.initializers.constant(self.bias_init / self.lr_multiplier)
        bias = self.param("bias", constant, (self.features,)) * self.lr_multiplier
        return bias_act(y, bias, self.activation)


class Mapping(nn.Module):
    """Maps latents, and optionally a condition, to styles.

    Latents and the embedded condition are normalised separately, then concatenated (Karras et al.
    2020, StyleGAN2-ADA).

    Attributes:
      latent: the latent's length; 0 to map only the condition (in a discriminator).
      condition: the condition's length; 0 for none. Labels int `[B]` become one-hot; a float
        `[B, condition]` is used unchanged.
      style: the style's length.
      layers: how many times each style is repeated; None for `[B, style]`, neither repeated nor
        truncated.
      depth: number of fully connected layers.
      hidden: width of these layers, except the last; the style's length by default.
      embedding: the embedded condition's length; the style's length by default.
      lr_multiplier: learning rate multiplier of the fully connected layers.
      activation: their activation, a name in `kd_jax.ops.ACTIVATIONS`.
      average_decay: decay of `w_avg` in training.
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
        """Computes the styles.

        Args:
          latents: `[B, latent]`, or None if `latent` is 0.
          condition: int labels `[B]` or `[B, condition]`.
          train: whether `w_avg` is updated from this batch.
          truncation: psi, the factor of the styles' distance from `w_avg`; 1 for no truncation.
          truncation_cutoff: number of layers that are truncated, from the first; all by default.

        Returns:
          `[B, layers, style]`, or `[B, style]` without layers.
        """
        parts = []
        if self.latent:
            if latents is None or latents.ndim != 2 or latents.shape[1] != self.latent:
                shape = None if latents is None else latents.shape
                raise ValueError(f"latents [B, {self.latent}] are needed, not {shape}")
            parts.append(normalize_second_moment(at_least_float32(latents)))
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
    """Interpolates styles towards their average (Karras et al. 2019, appendix B).

    Args:
      styles: `[B, layers, style]`.
      average: `[style]`.
      truncation: psi; 1 for no truncation.
      cutoff: number of layers that are truncated, from the first; all by default.
    """
    if isinstance(truncation, int | float) and truncation == 1:
        return styles
    center = average[None, None]
    truncated = center + truncation * (styles - center)
    mask = jnp.arange(styles.shape[1]) < (styles.shape[1] if cutoff is None else cutoff)
    return jnp.where(mask[None, :, None], truncated, styles)


def mix_styles(styles: Array, others: Array, probability: float, key: Array) -> Array:
    """Replaces the styles of the last layers, from a random layer on, by those of other images.

    Karras et al. 2019 (StyleGAN), section 3.1; each example has its own crossover point.

    Args:
      styles: `[B, layers, style]`.
      others: the other styles, of the same shape.
      probability: the probability that an example is mixed.
      key: the random key.
    """
    batch, layers, _ = styles.shape
    mixed_key, cutoff_key = jax.random.split(key)
    cutoff = jax.random.randint(cutoff_key, (batch,), 1, max(layers, 2))
    mixed = jax.random.bernoulli(mixed_key, probability, (batch,))
    cutoff = jnp.where(mixed, cutoff, layers)
    unmixed = jnp.arange(layers)[None] < cutoff[:, None]
    return jnp.where(unmixed[:, :, None], styles, others)


def map_styles(
    module: Any,
    latents: Array,
    labels: Array | None,
    train: bool,
    truncation: float | Array,
    truncation_cutoff: int | None,
) -> Array:
    """Computes a generator's styles, in training mixed with those of other latents.

    Args:
      module: the generator, with attributes `mapping` and `style_mixing`, the probability.
      latents: `[B, latent]`.
      labels: the condition, or None.
      train: whether `w_avg` is updated and, given a key, styles are mixed.
      truncation: as in `Mapping`.
      truncation_cutoff: as in `Mapping`.
    """
    options = {"truncation": truncation, "truncation_cutoff": truncation_cutoff}
    styles = module.mapping(latents, labels, train=train, **options)
    mixes = train and module.style_mixing and module.has_rng("params")
    if not mixes or module.is_initializing():
        return styles
    latent_key, mixing_key = jax.random.split(module.make_rng("style_mixing"))
    other_latents = jax.random.normal(latent_key, latents.shape, latents.dtype)
    others = module.mapping(other_latents, labels, **options)
    return mix_styles(styles, others, module.style_mixing, mixing_key)


def truncated(network: Network, truncation: float, cutoff: int | None = None) -> Network:
    """Returns a style network that truncates its styles by default, e.g. as a teacher.

    Args:
      network: a network with a mapping.
      truncation: psi, as in `truncate`.
      cutoff: number of layers that are truncated, from the first; all by default.

    Raises:
      ValueError: the network has no mapping.
    """
    if network.mapping is None:
        raise ValueError("only a style network (with a mapping) can be truncated")
    options = {"truncation": truncation, "truncation_cutoff": cutoff}
    mapping: Callable[..., Array] = partial(network.mapping, **options)

    def apply(variables: Variables, *inputs: Any, **overrides: Any) -> Any:
        return network.apply(variables, *inputs, **{**options, **overrides})

    return network._replace(apply=apply, mapping=mapping)


def normalize_second_moment(x: Array, eps: float = 1e-8) -> Array:
    """Scales vectors `[..., C]` to a mean square of 1."""
    return x * jax.lax.rsqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def as_vector(condition: Array | None, length: int) -> Array:
    """Returns a condition as `[B, length]`; int labels `[B]` become one-hot.

    Raises:
      ValueError: the condition is None, has another shape, or has labels that are not integers.
    """
    if condition is not None and condition.ndim == 1:
        if not jnp.issubdtype(condition.dtype, jnp.integer):
            raise ValueError(f"labels must be integers [B], not {condition.dtype}")
        return jax.nn.one_hot(condition, length)
    if condition is None or condition.ndim != 2 or condition.shape[1] != length:
        got = "none" if condition is None else f"shape {condition.shape}"
        raise ValueError(
            f"the network is conditional: it needs labels int [B] or a condition [B, {length}], "
            f"but got {got}"
        )
    return at_least_float32(condition)


def check_size(size: int, minimum: int = 8, maximum: int = 1024) -> None:
    """Raises a ValueError unless an image's side is a power of two in [`minimum`, `maximum`]."""
    if size < minimum or size > maximum or size & (size - 1):
        raise ValueError(f"the size must be a power of two from {minimum} to {maximum}, not {size}")


def side_widths(
    size: int, channel_base: int, channel_max: int, by_side: ReadOnly[int, int] | None = None
) -> tuple[int, ...]:
    """Channels at 4x4, 8x8, ..., `size`: `min(channel_base / side, channel_max)`, or `by_side`.

    Raises:
      ValueError: a side has no channels.
    """
    sides = [4 << number for number in range(size.bit_length() - 2)]
    if by_side is not None and (missing := [side for side in sides if side not in by_side]):
        raise ValueError(f"{dict(by_side)} has no width for a side of {missing[0]}")
    widths = tuple(
        by_side[side] if by_side else min(channel_base // side, channel_max) for side in sides
    )
    for side, width in zip(sides, widths, strict=True):
        if width < 1:
            source = "the widths" if by_side else f"{channel_base=} and {channel_max=}"
            raise ValueError(f"{source} leave {width} channels at a side of {side}")
    return widths
