"""Convolutions with fewer multiplications, for CPUs, and where they pay.

Winograd's forms take 1/4 to 0.7 of the multiplications of a 3x3 convolution (`winograd3`), 9/16 of
those of a 4x4 one of stride 2 (`winograd4`) and 10/28 of those of a 1x7 one (`winograd7`). Each
takes about a second longer to compile than the operation it replaces, so `fast_maps` selects them
for large convolutions only. `ENABLED` switches all of them off for programs lowered afterwards.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from kd_jax.core.types import Array
from kd_jax.ops.cpu import winograd3, winograd4, winograd7

ENABLED = True
"""Whether `fast_maps` selects any of them."""

MIN_WORK = 2**28
"""Pixels x channels x features from which a 3x3 convolution is replaced."""

MIN_WORK_4X4 = 2**26
"""The same for a 4x4 convolution of stride 2."""

_MAX_OUTPUT_RATIO = 1.35  # of outputs computed, with those cropped, to outputs needed


class Geometry(NamedTuple):
    """The parameters of a convolution that its arrays do not determine.

    Attributes:
      stride: of both axes.
      padding: zeros before and after the height, and the width.
      sides: the image's height and width.
      window: the kernel's height and width.
    """

    stride: int
    padding: tuple[tuple[int, int], ...]
    sides: tuple[int, ...]
    window: tuple[int, ...]


class Maps(NamedTuple):
    """The three maps, each from two of image, kernel and output; None if XLA's is as fast."""

    conv: Callable[..., Array] | None = None
    input_grad: Callable[..., Array] | None = None
    kernel_grad: Callable[..., Array] | None = None


def fast_maps(geometry: Geometry, channels: int, features: int, *arrays: Array) -> Maps:
    """The maps that are faster than XLA's convolutions on CPU.

    Measured on two cores: with fewer multiplications the maps take 0.5 to 0.8 of the time in a
    DCGAN's layers (64 and 128 channels), 0.3 to 0.9 in StyleGAN2's and 0.5 in Inception's; the
    first layer of Inception takes 0.4 of it as a matrix product.

    Args:
      geometry: of the convolution.
      channels: of the image.
      features: of the output.
      *arrays: two of image, kernel and output, of which the first has the batch.
    """
    batch, stride, pads = arrays[0].shape[0], geometry.stride, geometry.padding
    work = batch * math.prod(geometry.sides) * channels * features
    if not ENABLED or not all(x.dtype in (jnp.float32, jnp.float64) for x in arrays):
        return Maps()  # in half precision the differences lose bits
    large = work >= MIN_WORK or (min(geometry.sides) >= 128 and work >= MIN_WORK // 16)
    if geometry.window == (3, 3) and large and min(channels, features) >= 32:
        return _winograd3_maps(geometry, batch)
    if geometry.window == (3, 3) and stride == 2 and channels <= 4 and work >= MIN_WORK // 64:
        return Maps(conv=partial(_as_matrix, geometry))
    # Below 16 channels the sums cost more than the products they save.
    fours = geometry.window == (4, 4) and stride == 2 and pads == ((1, 1), (1, 1))
    fours = fours and not any(n % 4 for n in geometry.sides) and channels >= 16
    if fours and work >= MIN_WORK_4X4:
        return Maps(winograd4.conv, winograd4.input_grad, winograd4.kernel_grad)
    sevens = ((1, 7), ((0, 0), (3, 3))), ((7, 1), ((3, 3), (0, 0)))
    if (geometry.window, pads) in sevens and stride == 1 and work >= MIN_WORK // 4:
        return Maps(conv=winograd7.conv)
    return Maps()


def _winograd3_maps(geometry: Geometry, batch: int) -> Maps:
    """`winograd3`'s maps, of images padded to sides that it supports."""
    stride, sides, pads = geometry.stride, geometry.sides, geometry.padding
    outputs = [
        (n + low + high - 3) // stride + 1 for n, (low, high) in zip(sides, pads, strict=True)
    ]
    if stride == 1 and pads in (((0, 0), (0, 0)), ((1, 1), (1, 1))):
        unit = 4 if batch * math.prod(sides) >= winograd3.LARGE else 2
        image = [(0, -n % unit) for n in sides]
        whole = [n + more for n, (_, more) in zip(sides, image, strict=True)]
        before = 1 - pads[0][0]
        convolve, input_grad, kernel_grad = (
            winograd3.conv,
            winograd3.input_grad,
            winograd3.kernel_grad,
        )
    elif stride == 2 and min(min(pair) for pair in pads) >= 0:
        whole = [n + sum(pair) for n, pair in zip(sides, pads, strict=True)]
        whole = [n + (1 - n) % 4 for n in whole]
        image = [(low, n - m - low) for n, m, (low, _) in zip(whole, sides, pads, strict=True)]
        whole, before = [n // 2 for n in whole], 0
        convolve, input_grad, kernel_grad = (
            winograd3.strided_conv,
            winograd3.strided_input_grad,
            winograd3.strided_kernel_grad,
        )
    else:
        return Maps()
    if math.prod(whole) > _MAX_OUTPUT_RATIO * math.prod(outputs):
        return Maps()
    output = [(before, n - m - before) for n, m in zip(whole, outputs, strict=True)]
    return Maps(
        lambda x, k: _crop(convolve(_pad(x, image), k), output),
        lambda y, k: _crop(input_grad(_pad(y, output), k), image),
        lambda x, y: kernel_grad(_pad(x, image), _pad(y, output)),
    )


def _pad(x: Array, by: Sequence[tuple[int, int]]) -> Array:
    return jnp.pad(x, ((0, 0), *by, (0, 0))) if any(map(any, by)) else x


def _crop(x: Array, by: Sequence[tuple[int, int]]) -> Array:
    (top, bottom), (left, right) = by
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


def _as_matrix(geometry: Geometry, image: Array, kernel: Array) -> Array:
    """The convolution as a matrix product, with the image's windows as rows."""
    x, stride = _pad(image, geometry.padding), geometry.stride
    reach = [n - (n - k) % stride - k + 1 for n, k in zip(x.shape[1:3], kernel.shape, strict=False)]
    parts = [
        x[:, i : i + reach[0] : stride, j : j + reach[1] : stride]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    rows = jnp.concatenate(parts, axis=3)
    y = rows.reshape(-1, rows.shape[3]) @ kernel.reshape(-1, kernel.shape[3])
    return y.reshape(*rows.shape[:3], kernel.shape[3])
