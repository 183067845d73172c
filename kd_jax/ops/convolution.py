"""Convolutions on `[B, H, W, C]` images and their transposes, with fast gradients of every order.

The values are those of `jax.lax`; only the derivatives are computed differently. A convolution is
bilinear, and three bilinear maps are closed under differentiation: the convolution, its input
gradient (a transposed convolution) and its kernel gradient; the derivatives of each are the two
others. JAX does not use this structure: it transposes the dilated convolution of the previous
order, and some of the results have no fast implementation on CPU. CPU time on an AMD EPYC, jax
0.10.2, kernel 4x4, stride 2: the kernel gradient of 64x8x8x128 -> 64x16x16x64 takes 304 ms by
`lax.conv_transpose` and 13 ms here; R1's through 64x16x16x64 -> 64x8x8x128 takes 349 ms by
`lax.conv_general_dilated` and 61 ms here.

The compiler implements the three maps, except for common layers of these networks: on CPU the 4x4
kernels of stride 2 of a DCGAN are computed with 9/16 of the multiplications (`winograd4`), large
3x3 layers with 1/4 to 0.7 of them (`winograd3`) and large 1x7 and 7x1 layers with 10/28
(`winograd7`). A 1x1 convolution is a matrix product everywhere. Forward mode (`jax.jvp`,
`jax.hessian`) is not supported, because of `jax.custom_vjp`; reverse mode nests arbitrarily.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from kd_jax.ops import winograd3, winograd4, winograd7
from kd_jax.types import Array

Padding: TypeAlias = str | Sequence[tuple[int, int]]

CPU_ALGORITHMS = True
"""Whether programs for CPUs use the algorithms that run faster and compile slower."""

_MIN_WORK = 2**28  # pixels x channels x features from which faster forms pay for their compilation
_MAX_OUTPUT_RATIO = 1.35  # of outputs computed, with those cropped, to outputs needed

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class _Geometry(NamedTuple):
    """Parameters of a convolution that two of image, kernel and output do not determine."""

    stride: int
    padding: tuple[tuple[int, int], ...]
    sides: tuple[int, ...]  # the image's height and width: the larger ones
    window: tuple[int, ...]  # the kernel's
    times: int = 1  # how often it is computed


def conv(
    x: Array, kernel: Array, stride: int = 1, padding: Padding = "SAME", *, times: int = 1
) -> Array:
    """The cross-correlation of images with a kernel, as in `jax.lax.conv_general_dilated`.

    Args:
      x: `[B, H, W, Cin]`.
      kernel: `[kh, kw, Cin, Cout]`, of x's dtype.
      stride: of both axes, at least 1.
      padding: "SAME", "VALID", or zeros to add `((top, bottom), (left, right))`.
      times: number of evaluations in a surrounding loop. Faster forms take longer to compile and
        are chosen if the total work is large enough.

    Returns:
      `[B, H', W', Cout]`; with "SAME", H' is H / stride rounded up.

    Raises:
      ValueError: the ranks, the channels or the stride do not fit.
      TypeError: the dtypes differ.
    """
    _check(x, kernel, stride)
    sides, window = x.shape[1:3], kernel.shape[:2]
    explicit = (
        jax.lax.padtype_to_pads(sides, window, (stride, stride), padding)
        if isinstance(padding, str)
        else padding
    )
    pads = tuple((int(low), int(high)) for low, high in explicit)
    if window == (1, 1) and stride == 1 and pads == ((0, 0), (0, 0)):
        # A matrix product, whose kernel gradient does not copy its transpose.
        y = x.reshape(-1, x.shape[3]) @ kernel[0, 0]
        return y.reshape(*x.shape[:3], kernel.shape[3])
    return _conv(_Geometry(stride, pads, sides, window, times), x, kernel)


def conv_transpose(x: Array, kernel: Array, stride: int = 2, padding: str = "SAME") -> Array:
    """The transposed convolution of images with a kernel, as in `jax.lax.conv_transpose`.

    The kernel is not flipped: this is `conv` of images with `stride - 1` zeros after each pixel.

    Args:
      x: `[B, H, W, Cin]`.
      kernel: `[kh, kw, Cin, Cout]`, of x's dtype.
      stride: of both axes, at least 1.
      padding: "SAME", or "VALID" for every pixel that the kernel reaches.

    Returns:
      `[B, stride * H, stride * W, Cout]` with "SAME"; with "VALID" `stride * (H - 1)` and the
      kernel's height, or `stride * H` if that is more, and so on.

    Raises:
      ValueError: the ranks, the channels, the stride or the padding do not fit.
      TypeError: the dtypes differ.
    """
    _check(x, kernel, stride)
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"padding={padding!r} is neither 'SAME' nor 'VALID'")
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    if padding == "VALID":
        sides = tuple(
            stride * (n - 1) + max(k, stride)
            for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
        )
        return _input_grad(_Geometry(stride, ((0, 0),) * 2, sides, kernel.shape[:2]), x, flipped)
    # The input gradient of the convolution with the flipped kernel. The windows overlap by
    # k - stride rows, half of which, rounded down, are cropped before the image.
    pads = []
    for size in kernel.shape[:2]:
        before = max(size - stride, 0) // 2
        pads.append((before, size - stride - before))
    sides = (stride * x.shape[1], stride * x.shape[2])
    geometry = _Geometry(stride, tuple(pads), sides, kernel.shape[:2])
    return _input_grad(geometry, x, flipped)


def _check(x: Array, kernel: Array, stride: int) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"images [B, H, W, Cin] and a kernel [kh, kw, Cin, Cout] are needed, "
            f"not shapes {x.shape} and {kernel.shape}"
        )
    if x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"images {x.shape} have {x.shape[3]} channels, the kernel {kernel.shape} takes "
            f"{kernel.shape[2]}"
        )
    if stride < 1:
        raise ValueError(f"stride={stride} is not a positive integer")
    if x.dtype != kernel.dtype:
        raise TypeError(f"the images are {x.dtype}, the kernel is {kernel.dtype}")


def _lax_conv(geometry: _Geometry, image: Array, kernel: Array) -> Array:
    strides = (geometry.stride, geometry.stride)
    return jax.lax.conv_general_dilated(
        image, kernel, strides, geometry.padding, dimension_numbers=_LAYOUT
    )


class _Maps(NamedTuple):
    """The three maps, each from two of image, kernel and output; None if XLA's is as fast."""

    conv: Callable[..., Array] | None
    input_grad: Callable[..., Array] | None
    kernel_grad: Callable[..., Array] | None


def _cpu_maps(geometry: _Geometry, widths: tuple[int, ...], *args: Array) -> _Maps:
    """The maps that are faster than XLA's convolutions on CPU.

    Measured on two cores: with fewer multiplications the maps take 0.5 to 0.8 of the time in a
    DCGAN's layers (64 and 128 channels), 0.3 to 0.9 in StyleGAN2's and 0.5 in Inception's;
    Inception's first layer takes 0.4 of it as a matrix product.
    """
    channels, features = widths
    work = args[0].shape[0] * math.prod(geometry.sides) * channels * features * geometry.times
    stride, pads = geometry.stride, geometry.padding
    if not CPU_ALGORITHMS:
        return _Maps(None, None, None)
    if not all(x.dtype in (jnp.float32, jnp.float64) for x in args):
        return _Maps(None, None, None)  # the differences lose precision
    # Each takes a second to compile and saves milliseconds, so only large convolutions use them.
    if geometry.window == (3, 3) and work >= _MIN_WORK and min(channels, features) >= 32:
        return _winograd3_maps(geometry, args[0].shape[0])
    if geometry.window == (3, 3) and stride == 2 and channels <= 4 and work >= _MIN_WORK // 64:
        return _Maps(partial(_as_matrix, geometry), None, None)
    # Below 16 channels the sums cost more than the products they save.
    fours = geometry.window == (4, 4) and stride == 2 and pads == ((1, 1), (1, 1))
    if fours and not any(n % 4 for n in geometry.sides) and channels >= 16:
        return _Maps(winograd4.conv, winograd4.input_grad, winograd4.kernel_grad)
    sevens = ((1, 7), ((0, 0), (3, 3))), ((7, 1), ((3, 3), (0, 0)))
    if (geometry.window, pads) in sevens and stride == 1 and work >= _MIN_WORK // 4:
        return _Maps(winograd7.conv, None, None)
    return _Maps(None, None, None)


def _winograd3_maps(geometry: _Geometry, batch: int) -> _Maps:
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
        return _Maps(None, None, None)
    if math.prod(whole) > _MAX_OUTPUT_RATIO * math.prod(outputs):
        return _Maps(None, None, None)
    output = [(before, n - m - before) for n, m in zip(whole, outputs, strict=True)]
    return _Maps(
        lambda x, k: _crop(convolve(_pad(x, image), k), output),
        lambda y, k: _crop(input_grad(_pad(y, output), k), image),
        lambda x, y: kernel_grad(_pad(x, image), _pad(y, output)),
    )


def _pad(x: Array, by: Sequence[tuple[int, int]]) -> Array:
    return jnp.pad(x, ((0, 0), *by, (0, 0))) if any(map(any, by)) else x


def _crop(x: Array, by: Sequence[tuple[int, int]]) -> Array:
    (top, bottom), (left, right) = by
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


def _as_matrix(geometry: _Geometry, image: Array, kernel: Array) -> Array:
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


def _by_platform(
    cpu_map: Callable[..., Array] | None, lax_map: Callable[..., Array], *args: Array
) -> Array:
    if cpu_map is None:
        return lax_map(*args)
    return jax.lax.platform_dependent(*args, cpu=cpu_map, default=lax_map)


# The three maps, each of two of image [B, *sides, Ci], kernel [kh, kw, Ci, Co] and output
# [B, h, w, Co].


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geometry: _Geometry, image: Array, kernel: Array) -> Array:
    faster = _cpu_maps(geometry, kernel.shape[2:], image, kernel).conv
    return _by_platform(faster, partial(_lax_conv, geometry), image, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_grad(geometry: _Geometry, output: Array, kernel: Array) -> Array:
    shape = (output.shape[0], *geometry.sides, kernel.shape[2])
    image = jax.ShapeDtypeStruct(shape, output.dtype)

    def lax_map(output: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: _lax_conv(geometry, x, kernel), image)(output)[0]

    faster = _cpu_maps(geometry, kernel.shape[2:], output, kernel).input_grad
    return _by_platform(faster, lax_map, output, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_grad(geometry: _Geometry, image: Array, output: Array) -> Array:
    shape = (*geometry.window, image.shape[3], output.shape[3])
    kernel = jax.ShapeDtypeStruct(shape, output.dtype)

    def lax_map(image: Array, output: Array) -> Array:
        return jax.linear_transpose(lambda k: _lax_conv(geometry, image, k), kernel)(output)[0]

    faster = _cpu_maps(geometry, (image.shape[3], output.shape[3]), image, output).kernel_grad
    return _by_platform(faster, lax_map, image, output)


_conv.defvjp(
    lambda geometry, image, kernel: (_conv(geometry, image, kernel), (image, kernel)),
    lambda geometry, residuals, g: (
        _input_grad(geometry, g, residuals[1]),
        _kernel_grad(geometry, residuals[0], g),
    ),
)
_input_grad.defvjp(
    lambda geometry, output, kernel: (_input_grad(geometry, output, kernel), (output, kernel)),
    lambda geometry, residuals, g: (
        _conv(geometry, g, residuals[1]),
        _kernel_grad(geometry, g, residuals[0]),
    ),
)
_kernel_grad.defvjp(
    lambda geometry, image, output: (_kernel_grad(geometry, image, output), (image, output)),
    lambda geometry, residuals, g: (
        _input_grad(geometry, residuals[1], g),
        _conv(geometry, residuals[0], g),
    ),
)
