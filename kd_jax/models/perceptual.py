"""VGG16, AlexNet and SqueezeNet 1.1 as trunks of perceptual distances.

Only the convolutions, without the classifier layers: Simonyan & Zisserman 2015 (configuration D),
Krizhevsky 2014 and Iandola et al. 2016. The taps are those that LPIPS compares (Zhang et al. 2018,
section 3.1), for `kd_jax.losses.perceptual.lpips`. Inference only.

Images are `[B, H, W, 3]` in [-1, 1], or of one channel, which is broadcast to three. The input of a
trunk is `(images - shift) / scale`, by default with LPIPS's constants, ImageNet's means and
deviations.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array
from kd_jax.models.inception import max_pool

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""LPIPS's constants, for images in [-1, 1]."""

HEADS = "heads"
"""The collection that holds the weights of LPIPS: `{tap: [C]}`."""

Widths = Sequence[int]
Triple = Sequence[float]

VGG16_DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions in each of the five groups of VGG16, between its pools."""
VGG16_WIDTHS = (64, 128, 256, 512, 512)
ALEXNET_WIDTHS = (64, 192, 384, 256, 256)
SQUEEZENET_WIDTHS = (64, 16, 64, 16, 64, 32, 128, 32, 128, 48, 192, 48, 192, 64, 256, 64, 256)


def vgg16(
    widths: Widths = VGG16_WIDTHS,
    *,
    shift: Triple = SHIFT,
    scale: Triple = SCALE,
    heads: bool = False,
    dtype: Any = jnp.float32,
) -> Network:
    """`images -> features`, the last tap; taps `relu1_2`, `relu2_2`, `relu3_3` to `relu5_3`.

    With `shift=(-1,) * 3` and `scale=(2,) * 3` the input is `(images + 1) / 2`, as in Ren et al.
    2021 (OMGD).

    Args:
      widths: the channels of the five groups of convolutions.
      shift: subtracted from the images' channels.
      scale: divides the shifted channels.
      heads: whether the variables include LPIPS's weights, in the collection `HEADS`.
      dtype: the computation dtype; parameters are float32, taps at least float32.

    Raises:
      ValueError: the number of widths or of channel constants is wrong, a width is not positive, or
        a scale is 0.
    """
    _check("VGG16", widths, len(VGG16_WIDTHS), shift, scale)
    return from_linen(VGG16(tuple(widths), tuple(shift), tuple(scale), heads, dtype))


def alexnet(
    widths: Widths = ALEXNET_WIDTHS,
    *,
    shift: Triple = SHIFT,
    scale: Triple = SCALE,
    heads: bool = False,
    dtype: Any = jnp.float32,
) -> Network:
    """`images -> features`, the last tap; taps `relu1` to `relu5`, after each convolution.

    Arguments and errors are those of `vgg16`; the widths are those of the five convolutions.
    """
    _check("AlexNet", widths, len(ALEXNET_WIDTHS), shift, scale)
    return from_linen(AlexNet(tuple(widths), tuple(shift), tuple(scale), heads, dtype))


def squeezenet(
    widths: Widths = SQUEEZENET_WIDTHS,
    *,
    shift: Triple = SHIFT,
    scale: Triple = SCALE,
    heads: bool = False,
    dtype: Any = jnp.float32,
) -> Network:
    """`images -> features`, the last tap; taps `relu1` to `relu7`, before the pools and at the end.

    Arguments and errors are those of `vgg16`; the widths are that of the first convolution, then
    for each of the eight fire modules its squeeze channels and half of its expand channels.
    """
    _check("SqueezeNet 1.1", widths, len(SQUEEZENET_WIDTHS), shift, scale)
    return from_linen(SqueezeNet(tuple(widths), tuple(shift), tuple(scale), heads, dtype))


def _check(kind: str, widths: Widths, count: int, shift: Triple, scale: Triple) -> None:
    if len(widths) != count or min(widths) < 1:
        raise ValueError(f"{kind} has {count} positive widths, not {tuple(widths)}")
    if len(shift) != 3 or len(scale) != 3 or 0 in scale:
        raise ValueError(
            f"shift={tuple(shift)} and scale={tuple(scale)} need three numbers each; "
            "scale must not contain 0"
        )


class Conv(nn.Module):
    """A convolution with bias, and a ReLU."""

    features: int
    window: int = 3
    stride: int = 1
    padding: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.window, self.window, x.shape[3], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        pads = ((self.padding, self.padding),) * 2
        x = ops.conv(x, kernel.astype(x.dtype), self.stride, pads)
        return jax.nn.relu(x + bias.astype(x.dtype)[None, None, None])


class Fire(nn.Module):
    """Iandola et al. 2016, section 3.2: a 1x1 squeeze, then 1x1 and 3x3 expand convolutions."""

    squeezed: int
    expanded: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.squeezed, 1, padding=0, name="squeeze")(x)
        parts = (
            Conv(self.expanded, 1, padding=0, name="expand1x1")(x),
            Conv(self.expanded, name="expand3x3")(x),
        )
        return jnp.concatenate(parts, axis=3)


class Trunk(nn.Module):
    """The base class of the trunks. `features` computes the taps.

    Attributes:
      widths: see the factories.
      shift: subtracted from the images' channels.
      scale: divides the shifted channels.
      heads: whether there is a weight for each channel of each tap.
      dtype: the computation dtype.
    """

    widths: tuple[int, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    heads: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        del train  # training and inference are the same
        if images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(
                f"images [B, H, W, C] of 1 or 3 channels are needed, not {images.shape}"
            )
        shift, scale = (
            jnp.asarray(x, jnp.float32)[None, None, None] for x in (self.shift, self.scale)
        )
        taps = self.features(((images - shift) / scale).astype(self.dtype))
        tap_dtype = jnp.promote_types(self.dtype, jnp.float32)
        taps = {name: x.astype(tap_dtype) for name, x in taps.items()}
        if self.heads:
            for name, x in taps.items():
                self.variable(HEADS, name, jnp.ones, x.shape[3:])
        return list(taps.values())[-1], taps

    def features(self, x: Array) -> dict[str, Array]:
        """The taps, in order."""
        raise NotImplementedError


class VGG16(Trunk):
    """See `vgg16`."""

    def features(self, x: Array) -> dict[str, Array]:
        taps = {}
        for group, (width, depth) in enumerate(zip(self.widths, VGG16_DEPTHS, strict=True), 1):
            if group > 1:
                x = max_pool(x, 2, 2)
            for index in range(1, depth + 1):
                x = Conv(width, name=f"conv{group}_{index}")(x)
            taps[f"relu{group}_{depth}"] = x
        return taps


class AlexNet(Trunk):
    """See `alexnet`."""

    def features(self, x: Array) -> dict[str, Array]:
        a, b, c, d, e = self.widths
        taps = {}
        taps["relu1"] = x = Conv(a, 11, 4, 2, name="conv1")(x)
        taps["relu2"] = x = Conv(b, 5, 1, 2, name="conv2")(max_pool(x, 3, 2))
        taps["relu3"] = x = Conv(c, name="conv3")(max_pool(x, 3, 2))
        taps["relu4"] = x = Conv(d, name="conv4")(x)
        taps["relu5"] = Conv(e, name="conv5")(x)
        return taps


class SqueezeNet(Trunk):
    """See `squeezenet`."""

    def features(self, x: Array) -> dict[str, Array]:
        first, *rest = self.widths
        fires = list(zip(rest[::2], rest[1::2], strict=True))
        taps = {}
        taps["relu1"] = x = Conv(first, 3, 2, 0, name="conv1")(x)
        for index, fire in enumerate(fires):
            if index in (0, 2, 4):
                x = max_pool(_pad_last_window(x), 3, 2)
            x = Fire(*fire, name=f"fire{index + 2}")(x)  # numbering includes the first convolution
            if index in (1, 3, 4, 5, 6, 7):
                taps[f"relu{len(taps) + 1}"] = x
        return taps


def _pad_last_window(x: Array) -> Array:
    """Pads with zeros at the end, so that 3x3 windows of stride 2 cover every pixel.

    The maxima of ReLU outputs do not change.
    """
    rows, columns = ((n - 1) % 2 for n in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))
