"""Biases, activations with variance-preserving gains, and clamps."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array
from kd_jax.ops.resample import Filter, Pads, Two, two, upfirdn2d


class Activation(NamedTuple):
    """A nonlinearity and the gain of its output that preserves a normal input's mean square."""

    fn: Callable[[Array], Array]
    gain: float = 1.0


def leaky_relu(slope: float = 0.2) -> Activation:
    """`max(x, slope x)`, times sqrt(2)."""
    return Activation(lambda x: jnp.where(x < 0, slope * x, x), math.sqrt(2))


ACTIVATIONS = {
    "linear": Activation(lambda x: x),
    "relu": Activation(jax.nn.relu, math.sqrt(2)),
    "lrelu": leaky_relu(),
    "tanh": Activation(jnp.tanh),
    "sigmoid": Activation(jax.nn.sigmoid),
    "elu": Activation(jax.nn.elu),
    "selu": Activation(jax.nn.selu),
    "softplus": Activation(jax.nn.softplus),
    "swish": Activation(jax.nn.silu, math.sqrt(2)),
}
"""Activations by the names of StyleGAN's configurations."""


def bias_act(
    x: Array,
    bias: Array | None = None,
    activation: Activation = ACTIVATIONS["linear"],
    *,
    gain: float | None = None,
    clamp: float | None = None,
) -> Array:
    """`clip(gain * activation(x + bias), -clamp, clamp)`.

    Args:
      x: `[..., C]`.
      bias: `[C]`, or None.
      activation: one of `ACTIVATIONS`, or a custom one.
      gain: replaces the activation's gain.
      clamp: not negative; None for no limit.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: the bias is not `[C]`.
    """
    if bias is not None:
        if bias.shape != x.shape[-1:]:
            raise ValueError(
                f"a bias {bias.shape} does not fit {x.shape[-1]} channels of {x.shape}"
            )
        x = x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    x = activation.fn(x)
    gain = activation.gain if gain is None else gain
    if gain != 1:
        x = x * jnp.asarray(gain, x.dtype)
    return x if clamp is None else jnp.clip(x, -clamp, clamp)


def filtered_lrelu(
    x: Array,
    up_filter: Filter,
    down_filter: Filter,
    bias: Array | None = None,
    *,
    up: Two = 1,
    down: Two = 1,
    padding: Pads = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip: bool = False,
) -> Array:
    """A leaky ReLU at a higher sampling rate: bias, upsampling, activation, clamp, downsampling.

    Karras et al. 2021 (StyleGAN3), section 3.2.

    Args:
      x: `[B, H, W, C]`.
      up_filter: filter of the upsampling, which has a gain of `up` in each axis.
      down_filter: filter of the downsampling.
      bias: `[C]`, or None.
      up: the factor of upsampling.
      down: the factor of downsampling.
      padding: as in `upfirdn2d`, of the upsampled image.
      gain: gain of the activation.
      slope: slope of the negative side.
      clamp: the largest magnitude, after the gain.
      flip: whether to correlate with the filters instead of convolving.

    Returns:
      `[B, H', W', C]` of x's dtype.

    Raises:
      ValueError: the shapes do not fit, or the image is smaller than a filter.
    """
    ups = two(up)
    x = bias_act(x, bias)
    x = upfirdn2d(x, up_filter, up=ups, padding=padding, flip=flip, gain=math.prod(ups))
    x = bias_act(x, activation=leaky_relu(slope), gain=gain, clamp=clamp)
    return upfirdn2d(x, down_filter, down=down, flip=flip)
