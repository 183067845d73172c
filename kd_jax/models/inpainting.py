"""Inpainting by gated convolutions (Yu et al. 2019, "Free-form image inpainting").

One stage of the paper's two, without contextual attention. Every layer has a gate of its own, so
that it learns where there is an image to see; nothing is normalised. The network learns what a
smooth filling lacks, unless `residual=False` asks for the paper's, which makes the pixels itself:
the last layer begins small, so that a fresh network fills smoothly and training starts from there.

Images are `[B, H, W, channels]` in [-1, 1]; masks `[B, H, W, 1]`, 1 where pixels are missing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.channels import Axes, Axis, group_widths, tensors
from kd_jax.models.resnet import upsample
from kd_jax.models.spectral import Conv, layer_axes
from kd_jax.models.superres import SeparableConv, conv_axes
from kd_jax.network import Network, from_linen
from kd_jax.types import Array, Variables

# A gate begins at about a half, which leaves a quarter of the variance.
_gated = nn.initializers.variance_scaling(4.0, "fan_in", "normal")
_LEAST_VARIANCE = 1e-4  # about a byte's step, squared, of [-1, 1]
_least = nn.initializers.variance_scaling(1e-4, "fan_in", "normal")


def gated_generator(
    width: int = 48,
    *,
    channels: int = 3,
    downs: int = 2,
    dilations: Sequence[int] = (2, 4, 8, 16),
    separable: bool = False,
    residual: bool = True,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images, masks) -> images`: known pixels as they are, missing ones filled in.

    What an image holds where pixels are missing does not matter, be it NaN. Taps are the layers
    (`stem`, `down_1`, `encoder_1`, ..., `dilated_0`, ..., `middle`, ..., `up_0`, `decoder_0`; the
    numbers are how often the side is halved there, but those of `dilated` count) and `generated`,
    the whole image as the network made it, which `residual` does not clip.

    Args:
      width: channels at full size; they double as the side halves.
      channels: the images' channels.
      downs: how often the sides are halved.
      dilations: of the convolutions in the middle, one for each.
      separable: whether the 3x3 convolutions, but for the last one, are a depthwise 3x3 one and
        a 1x1 one.
      residual: whether the network sees missing pixels filled in smoothly (`ops.smooth`), and adds
        to that; both in units of the known pixels, less their mean and over their deviation, so
        that a smooth image is changed little. Otherwise it sees zeros there, and makes the pixels,
        in [-1, 1], itself.
      dtype: what is computed in; parameters are float32 always, images too.

    Raises:
      ValueError: a number is too small. The network refuses images of another number of channels or
        of sides that are no multiples of `2^downs`, and masks that do not fit them.
    """
    dilations = tuple(int(dilation) for dilation in dilations)
    if min(width, channels, *dilations) < 1 or downs < 0:
        raise ValueError(
            f"width={width}, channels={channels} and dilations={dilations} must be at least 1 and "
            f"downs={downs} at least 0"
        )
    return from_linen(GatedGenerator(width, channels, downs, dilations, separable, residual, dtype))


def gated_generator_axes(variables: Variables) -> Axes:
    """Which axes of a generator's variables hold which channels, for `kd_jax.students`.

    The groups are named like the taps. Each gate is one of its feature's channels.

    Args:
      variables: of any `gated_generator`, arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: they are not, or are a connected network's.
    """
    found = tensors(variables)
    names = list(variables["params"])
    downs, dilated = (sum(n.startswith(part) for n in names) for part in ("down_", "dilated_"))
    axes: dict[str, tuple[Axis, ...]] = {}
    group: Axis = None
    for layer in _layers(downs, (1,) * dilated):
        axes |= conv_axes(found, f"{layer.name}/conv", group, (layer.name, layer.name))
        group = layer.name
    axes |= layer_axes(found, "image", group, None)
    group_widths(variables, axes)
    return axes


class _Layer(NamedTuple):
    """A gated layer at 1 / 2^level of the sides; it may halve them first, or double them."""

    name: str
    level: int
    kernel: int = 3
    halves: bool = False
    doubles: bool = False
    dilation: int = 1


def _layers(downs: int, dilations: Sequence[int]) -> list[_Layer]:
    layers = [_Layer("stem", 0, kernel=5)]
    for level in range(1, downs + 1):
        layers += [_Layer(f"down_{level}", level, halves=True), _Layer(f"encoder_{level}", level)]
    for index, dilation in enumerate(dilations):
        layers.append(_Layer(f"dilated_{index}", downs, dilation=dilation))
    layers.append(_Layer("middle", downs))
    for level in reversed(range(downs)):
        layers += [_Layer(f"up_{level}", level, doubles=True), _Layer(f"decoder_{level}", level)]
    return layers


class DilatedConv(nn.Module):
    """A 3x3 convolution whose taps are `dilation` pixels apart, to the same sides."""

    features: int
    dilation: int
    kernel_init: nn.initializers.Initializer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            ((self.dilation, self.dilation),) * 2,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias[None, None, None]


class GatedConv(nn.Module):
    """`elu(features) * sigmoid(gates)`, of one convolution (Yu et al. 2019, eq. 3)."""

    features: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    separable: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        make: Any = partial(Conv, kernel=self.kernel, stride=self.stride)
        if self.separable and self.kernel == 3:
            make = partial(SeparableConv, stride=self.stride, dilation=self.dilation)
        elif self.dilation > 1:
            make = partial(DilatedConv, dilation=self.dilation)
        both = make(2 * self.features, kernel_init=_gated, dtype=self.dtype, name="conv")(x)
        features, gates = jnp.split(both, 2, axis=-1)
        return nn.elu(features) * nn.sigmoid(gates)


class GatedGenerator(nn.Module):
    """See `gated_generator`."""

    width: int
    channels: int
    downs: int
    dilations: tuple[int, ...]
    separable: bool
    residual: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, masks: Array, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        _check_inputs(images, masks, self.channels, 2**self.downs)
        missing = masks > 0.5
        # Not a product with 1 - mask, which would keep a NaN.
        known = jnp.where(missing, 0.0, images)
        mean, deviation = jnp.zeros(()), jnp.ones(())
        if self.residual:
            mean, deviation = _statistics(known, missing)
            known = ops.smooth(known, missing)
        x = jnp.concatenate([(known - mean) / deviation, missing.astype(known.dtype)], axis=-1)
        taps = {}
        for layer in _layers(self.downs, self.dilations):
            x = upsample(x) if layer.doubles else x
            x = taps[layer.name] = GatedConv(
                self.width * 2**layer.level,
                kernel=layer.kernel,
                stride=2 if layer.halves else 1,
                dilation=layer.dilation,
                separable=self.separable,
                dtype=self.dtype,
                name=layer.name,
            )(x)
        last = Conv(
            self.channels,
            kernel_init=_least if self.residual else nn.initializers.lecun_normal(),
            dtype=self.dtype,
            name="image",
        )
        made = last(x).astype(jnp.float32)
        generated = known + deviation * made if self.residual else jnp.tanh(made)
        taps["generated"] = generated
        return jnp.where(missing, generated, images), taps


def _statistics(known: Array, missing: Array) -> tuple[Array, Array]:
    """The known pixels' mean in each channel `[B, 1, 1, C]` and deviation in all `[B, 1, 1, 1]`."""
    weights = jnp.where(missing, 0.0, 1.0)
    total = jnp.maximum(weights.sum(axis=(1, 2), keepdims=True), 1.0)
    mean = known.sum(axis=(1, 2), keepdims=True) / total
    squares = (weights * (known - mean) ** 2).mean(axis=3, keepdims=True)
    variance = squares.sum(axis=(1, 2), keepdims=True) / total
    return mean, jnp.sqrt(variance + _LEAST_VARIANCE)


def _check_inputs(images: Array, masks: Array, channels: int, multiple: int) -> None:
    if images.ndim != 4 or images.shape[3] != channels:
        raise ValueError(f"images [B, H, W, {channels}] are needed, not shape {images.shape}")
    if any(side % multiple for side in images.shape[1:3]):
        raise ValueError(
            f"images of {images.shape[1]}x{images.shape[2]} pixels need sides that are "
            f"multiples of {multiple}"
        )
    if masks.shape != (*images.shape[:3], 1):
        raise ValueError(
            f"images {images.shape} need masks {(*images.shape[:3], 1)}, not shape {masks.shape}"
        )
