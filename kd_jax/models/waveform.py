"""Networks for waveforms: a generator for bandwidth extension, and a discriminator.

The generator is a one-dimensional SRResNet (Ledig et al. 2017; Kuleshov et al. 2017 for audio):
residual blocks at the low rate, and one layer that upsamples. It predicts a residual to
band-limited interpolation, with a last layer initialized near zero, so that a fresh network
interpolates. The discriminator scores segments of a waveform, as PatchGAN scores patches, with
layers that halve the rate (Kumar et al. 2019, MelGAN).

Waveforms are `[B, L, channels]`, usually in [-1, 1].
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axes, Axis, InputAxis, Repeat, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables

_he = nn.initializers.he_normal()
_least = nn.initializers.variance_scaling(1e-4, "fan_in", "normal")
_KERNEL = 9
_SLOPE = 0.2


def generator(
    factor: int = 4,
    width: int = 32,
    blocks: int = 6,
    *,
    channels: int = 1,
    dtype: Any = jnp.float32,
) -> Network:
    """`waves [B, l, channels] -> waves [B, factor l, channels]`, not clipped.

    Taps are `stem`, `block_0`, `block_1`, ..., `trunk` (after the skip over all blocks), all at the
    low rate, and `up` at the high one.

    Args:
      factor: output samples per input sample.
      width: channels of every layer.
      blocks: residual blocks, of two convolutions each.
      channels: the waveforms' channels.
      dtype: the computation dtype; parameters and waveforms are always float32.

    Raises:
      ValueError: a number is not positive. `init` and `apply` raise it for waveforms of another
        shape.
    """
    _check(factor=factor, width=width, blocks=blocks, channels=channels)
    return from_linen(Generator(factor, width, blocks, channels, dtype))


def discriminator(width: int = 16, layers: int = 4, *, dtype: Any = jnp.float32) -> Network:
    """`waves [B, L, any][, condition [B, L, any]] -> scores [B, L / 2^layers]` (logits).

    The kernel of each layer spans five pairs of samples.

    Taps are `layer_0`, `layer_1`, ..., after activation.

    Args:
      width: channels of the first layer; they double with each, up to eight times as many.
      layers: number of halvings of the rate.
      dtype: the computation dtype; parameters and scores are always float32.

    Raises:
      ValueError: a number is not positive. `init` and `apply` raise it for lengths that are not
        multiples of `2^layers`.
    """
    _check(width=width, layers=layers)
    return from_linen(Discriminator(width, layers, dtype))


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are named like the taps: all blocks add to `stem`, `block_N/hidden` lies between a
    block's convolutions, and `up` is at the high rate.

    Args:
      variables: those of a `generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `generator`, or include connectors.
    """
    _check_has(variables, "stem", "up", "wave")
    leaves = tensors(variables)
    # `up` produces `factor` consecutive samples for each one at the low rate.
    factor = leaves["params/up/kernel"].shape[-1] // leaves["params/wave/kernel"].shape[1]
    axes = _layer_axes("stem", None, "stem")
    for index in range(sum(name.startswith("block_") for name in variables["params"]) // 2):
        hidden = f"block_{index}/hidden"
        axes |= _layer_axes(f"block_{index}_0", InputAxis("stem"), hidden)
        axes |= _layer_axes(f"block_{index}_1", InputAxis(hidden), "stem")
    axes |= _layer_axes("up", InputAxis("stem"), Repeat("up", factor))
    axes |= _layer_axes("wave", InputAxis("up"), None)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a discriminator's variables, for `kd_jax.pruning`.

    The groups are named like the taps.

    Args:
      variables: those of a `discriminator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `discriminator`, or include connectors.
    """
    _check_has(variables, "layer_0", "score")
    axes: dict[str, tuple[Axis, ...]] = {}
    reads: Axis = None
    last = ""
    for index in range(sum(name.startswith("layer_") for name in variables["params"])):
        last = f"layer_{index}"
        axes |= _layer_axes(last, reads, last)
        reads = InputAxis(Repeat(last, 2))  # pairs of samples
    axes |= _layer_axes("score", InputAxis(last), None)
    group_widths(variables, axes)
    return axes


def _layer_axes(path: str, reads: Axis, writes: Axis) -> dict[str, tuple[Axis, ...]]:
    return {f"params/{path}/kernel": (None, reads, writes), f"params/{path}/bias": (writes,)}


def _check_has(variables: Variables, *names: str) -> None:
    for name in names:
        if name not in variables["params"]:
            raise ValueError(f"the variables are not those of such a network: {name} is missing")


class Conv(nn.Module):
    """A convolution along the samples of `kd_jax.ops`, with fast gradients."""

    features: int
    kernel: int = _KERNEL
    kernel_init: nn.initializers.Initializer = _he
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = ops.conv(x.astype(self.dtype)[:, None], kernel[None])[:, 0]
        return x + bias[None, None]


class Generator(nn.Module):
    """See `generator`."""

    factor: int
    width: int
    blocks: int
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, waves: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        del train
        if waves.ndim != 3 or waves.shape[2] != self.channels:
            raise ValueError(f"waves [B, L, {self.channels}] are needed, not {waves.shape}")
        conv = partial(Conv, dtype=self.dtype)
        taps = {}
        x = taps["stem"] = nn.relu(conv(self.width, name="stem")(waves))
        trunk = x
        for index in range(self.blocks):
            y = nn.relu(conv(self.width, name=f"block_{index}_0")(x))
            y = conv(self.width, kernel_init=_least, name=f"block_{index}_1")(y)
            x = taps[f"block_{index}"] = x + y
        x = taps["trunk"] = trunk + x
        x = conv(self.factor * self.width, name="up")(x)
        batch, length, _ = waves.shape
        x = taps["up"] = nn.relu(x).reshape(batch, self.factor * length, self.width)
        x = conv(self.channels, kernel_init=_least, name="wave")(x)
        return ops.interpolate(waves, self.factor) + at_least_float32(x), taps


class Discriminator(nn.Module):
    """See `discriminator`."""

    width: int
    layers: int
    dtype: Any

    @nn.compact
    def __call__(
        self, waves: Array, condition: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        if waves.ndim != 3 or waves.shape[1] % 2**self.layers:
            raise ValueError(
                f"waves [B, L, C] with L a multiple of {2**self.layers} are needed, not "
                f"{waves.shape}"
            )
        x = waves if condition is None else jnp.concatenate([waves, condition], axis=2)
        taps = {}
        for index in range(self.layers):
            features = self.width * min(8, 2**index)
            batch, length, channels = x.shape
            x = x.reshape(batch, length // 2, 2 * channels)  # pairs of samples
            x = Conv(features, kernel=5, dtype=self.dtype, name=f"layer_{index}")(x)
            x = taps[f"layer_{index}"] = jax.nn.leaky_relu(x, _SLOPE)
        scores = Conv(1, kernel=3, dtype=self.dtype, name="score")(x)
        return at_least_float32(scores[..., 0]), taps
