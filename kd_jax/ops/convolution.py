"""Convolutions on `[B, H, W, C]` images and their transposes, with fast gradients of every order.

The values are those of `jax.lax`; only the derivatives are computed differently. A convolution is
bilinear, and three bilinear maps are closed under differentiation: the convolution, its input
gradient (a transposed convolution) and its kernel gradient; the derivatives of each are the two
others. JAX does not use this structure: it transposes the dilated convolution of the previous
order, and some of the results have no fast implementation on CPU. CPU time on an AMD EPYC, jax
0.10.2, kernel 4x4, stride 2: the kernel gradient of 64x8x8x128 -> 64x16x16x64 takes 304 ms by
`lax.conv_transpose` and 13 ms here; R1's through 64x16x16x64 -> 64x8x8x128 takes 349 ms by
`lax.conv_general_dilated` and 61 ms here.

The three maps are primitives (`kd_jax.ops.primitive`): forward mode, reverse mode and their
compositions of any order apply them. Each is XLA's convolution, except for large ones on CPU
(`kd_jax.ops.cpu`). A 1x1 convolution is a matrix product everywhere.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax

from kd_jax.core.types import Array
from kd_jax.ops import cpu, primitive, quantisation
from kd_jax.ops.cpu import Geometry

Padding: TypeAlias = str | Sequence[tuple[int, int]]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(x: Array, kernel: Array, stride: int = 1, padding: Padding = "SAME") -> Array:
    """The cross-correlation of images with a kernel, as in `jax.lax.conv_general_dilated`.

    Args:
      x: `[B, H, W, Cin]`.
      kernel: `[kh, kw, Cin, Cout]`, of x's dtype.
      stride: of both axes, at least 1.
      padding: "SAME", "VALID", or zeros to add `((top, bottom), (left, right))`.

    Returns:
      `[B, H', W', Cout]`; with "SAME", H' is H / stride rounded up.

    Raises:
      ValueError: the ranks, the channels or the stride do not fit.
      TypeError: the dtypes differ.
    """
    _check(x, kernel, stride)
    if quantisation.is_rounded():
        x, kernel = quantisation.round_image(x), quantisation.round_kernel(kernel)
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
    return _conv(Geometry(stride, pads, sides, window), x, kernel)


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
    if quantisation.is_rounded():
        kernel = quantisation.round_kernel(kernel)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    if padding == "VALID":
        sides = tuple(
            stride * (n - 1) + max(k, stride)
            for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
        )
        return _input_grad(Geometry(stride, ((0, 0),) * 2, sides, kernel.shape[:2]), x, flipped)
    # The input gradient of the convolution with the flipped kernel. The windows overlap by
    # k - stride rows, half of which, rounded down, are cropped before the image.
    pads = []
    for size in kernel.shape[:2]:
        before = max(size - stride, 0) // 2
        pads.append((before, size - stride - before))
    sides = (stride * x.shape[1], stride * x.shape[2])
    geometry = Geometry(stride, tuple(pads), sides, kernel.shape[:2])
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


# The three maps, each of two of image [B, *sides, Ci], kernel [kh, kw, Ci, Co] and output
# [B, h, w, Co].


def _lax_conv(geometry: Geometry, image: Array, kernel: Array) -> Array:
    strides = (geometry.stride, geometry.stride)
    return jax.lax.conv_general_dilated(
        image, kernel, strides, geometry.padding, dimension_numbers=_LAYOUT
    )


def _lax_input_grad(geometry: Geometry, output: Array, kernel: Array) -> Array:
    shape = (output.shape[0], *geometry.sides, kernel.shape[2])
    image = jax.ShapeDtypeStruct(shape, output.dtype)
    return jax.linear_transpose(lambda x: _lax_conv(geometry, x, kernel), image)(output)[0]


def _portable_input_grad(geometry: Geometry, output: Array, kernel: Array) -> Array:
    # Without the transposed kernel layout of `jax.linear_transpose`, which few formats have.
    stride = geometry.stride
    pads = [
        (window - 1 - low, side - stride * (count - 1) - 1 + low)
        for window, (low, _), side, count in zip(
            geometry.window, geometry.padding, geometry.sides, output.shape[1:3], strict=True
        )
    ]
    return jax.lax.conv_general_dilated(
        output,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        pads,
        lhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
    )


def _lax_kernel_grad(geometry: Geometry, image: Array, output: Array) -> Array:
    shape = (*geometry.window, image.shape[3], output.shape[3])
    kernel = jax.ShapeDtypeStruct(shape, output.dtype)
    return jax.linear_transpose(lambda k: _lax_conv(geometry, image, k), kernel)(output)[0]


def _cpu_conv(geometry: Geometry, image: Array, kernel: Array) -> Array:
    fast = cpu.fast_maps(geometry, kernel.shape[2], kernel.shape[3], image, kernel).conv
    return fast(image, kernel) if fast else _lax_conv(geometry, image, kernel)


def _cpu_input_grad(geometry: Geometry, output: Array, kernel: Array) -> Array:
    fast = cpu.fast_maps(geometry, kernel.shape[2], kernel.shape[3], output, kernel).input_grad
    return fast(output, kernel) if fast else _lax_input_grad(geometry, output, kernel)


def _cpu_kernel_grad(geometry: Geometry, image: Array, output: Array) -> Array:
    fast = cpu.fast_maps(geometry, image.shape[3], output.shape[3], image, output).kernel_grad
    return fast(image, output) if fast else _lax_kernel_grad(geometry, image, output)


_conv = primitive.define("kd_conv", _lax_conv, _cpu_conv)
_input_grad = primitive.define(
    "kd_conv_input_grad", _lax_input_grad, _cpu_input_grad, portable=_portable_input_grad
)
_kernel_grad = primitive.define("kd_conv_kernel_grad", _lax_kernel_grad, _cpu_kernel_grad)

primitive.set_transposes(
    _conv,
    lambda geometry, g, kernel: _input_grad(geometry, g, kernel),
    lambda geometry, g, image: _kernel_grad(geometry, image, g),
)
primitive.set_transposes(
    _input_grad,
    lambda geometry, g, kernel: _conv(geometry, g, kernel),
    lambda geometry, g, output: _kernel_grad(geometry, g, output),
)
primitive.set_transposes(
    _kernel_grad,
    lambda geometry, g, output: _input_grad(geometry, output, g),
    lambda geometry, g, image: _conv(geometry, image, g),
)
