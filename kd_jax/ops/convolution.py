"""Convolutions on `[B, H, W, C]` images and their transposes, with gradients of every order fast.

The values are those of `jax.lax`. What differs is how the derivatives are computed. A convolution
is bilinear, and three bilinear maps are closed under differentiation: the convolution, its input
gradient (a transposed convolution) and its kernel gradient; the derivatives of each are the two
others. JAX does not know of the three: it transposes whatever dilated convolution it wrote before,
and of what comes out some has no fast code on CPU. CPU time on an AMD EPYC, jax 0.10.2, kernel 4x4,
stride 2: the kernel gradient of 64x8x8x128 -> 64x16x16x64 takes 304 ms by `lax.conv_transpose` and
13 ms here; R1's through 64x16x16x64 -> 64x8x8x128 takes 349 ms by `lax.conv_general_dilated` and
61 ms here.

Each of the three is left to the compiler, but for the 4x4 kernels of stride 2 that a DCGAN is made
of: on CPU these are computed with 9/16 of the multiplications. im2col, one product per tap, and one
convolution per output phase were no faster there. The price of the three is forward mode
(`jax.jvp`, `jax.hessian`), which `jax.custom_vjp` excludes; reverse mode nests at will.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from kd_jax.types import Array

Padding: TypeAlias = str | Sequence[tuple[int, int]]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class _Geometry(NamedTuple):
    """What two of image, kernel and output do not tell about the third."""

    stride: int
    padding: tuple[tuple[int, int], ...]
    sides: tuple[int, ...]  # the image's height and width: the larger ones
    window: tuple[int, ...]  # the kernel's


_Map: TypeAlias = Callable[[_Geometry, Array, Array], Array]


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
      ValueError: when the ranks, the channels or the stride do not fit.
      TypeError: when the dtypes differ.
    """
    _check(x, kernel, stride)
    sides, window = x.shape[1:3], kernel.shape[:2]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(sides, window, (stride, stride), padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(_Geometry(stride, pads, sides, window), x, kernel)


def conv_transpose(x: Array, kernel: Array, stride: int = 2) -> Array:
    """Images upsampled by a kernel, as in `jax.lax.conv_transpose` with "SAME" padding.

    The kernel is not turned: between zeros, `stride - 1` of them after each pixel, this is `conv`.

    Args:
      x: `[B, H, W, Cin]`.
      kernel: `[kh, kw, Cin, Cout]`, of x's dtype.
      stride: of both axes, at least 1.

    Returns:
      `[B, stride * H, stride * W, Cout]`.

    Raises:
      ValueError: when the ranks, the channels or the stride do not fit.
      TypeError: when the dtypes differ.
    """
    _check(x, kernel, stride)
    # The input gradient of the convolution with the turned kernel. Of the k - stride rows by which
    # the windows overlap, the first half, rounded down, is cut off before the image.
    padding = []
    for size in kernel.shape[:2]:
        before = max(size - stride, 0) // 2
        padding.append((before, size - stride - before))
    sides = (stride * x.shape[1], stride * x.shape[2])
    geometry = _Geometry(stride, tuple(padding), sides, kernel.shape[:2])
    return _input_grad(geometry, x, kernel[::-1, ::-1].swapaxes(2, 3))


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


def _winograd_conv(geometry: _Geometry, image: Array, kernel: Array) -> Array:
    """The 4x4 convolution of stride 2 and padding 1 in 9/16 of the multiplications.

    It is a 2x2 convolution of stride 1 on the 2x2 phases of the image, whose outputs are made two
    by two along each axis with three products instead of four (Winograd 1980; Lavin & Gray 2016,
    F(2, 2)): of pixels d and taps g, d0 g0 + d1 g1 = m0 + m1 and d1 g0 + d2 g1 = m1 + m2, where
    m = (d0 - d1) g0, d1 (g0 + g1), (d2 - d1) g1.
    """
    del geometry
    batch, height, width, channels = image.shape
    features = kernel.shape[3]
    rows, columns = height // 4, width // 4  # pairs of outputs

    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    phases = padded.reshape(batch, height // 2 + 1, 2, width // 2 + 1, 2, channels)
    phases = phases.transpose(0, 1, 3, 2, 4, 5).reshape(*phases.shape[:2], -1, 4 * channels)
    taps = kernel.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    taps = taps.reshape(2, 2, 4 * channels, features)

    def pixels(x: Array, axis: int, pairs: int) -> list[Array]:
        d = [jax.lax.slice_in_dim(x, k, k + 2 * pairs - 1, 2, axis) for k in range(3)]
        return [d[0] - d[1], d[1], d[2] - d[1]]

    # Nine matrix products, not one batched: what XLA has for those is slower on CPU.
    products = [
        [
            (d.reshape(-1, 4 * channels) @ g).reshape(batch, rows, columns, features)
            for d, g in zip(
                pixels(d_row, 2, columns),
                (g_row[0], g_row[0] + g_row[1], g_row[1]),
                strict=True,
            )
        ]
        for d_row, g_row in zip(
            pixels(phases, 1, rows), (taps[0], taps[0] + taps[1], taps[1]), strict=True
        )
    ]
    sums = [[a + b for a, b in zip(products[i], products[i + 1], strict=True)] for i in range(2)]
    outputs = [jnp.stack([m[0] + m[1], m[1] + m[2]], axis=3) for m in sums]
    return jnp.stack(outputs, axis=2).reshape(batch, 2 * rows, 2 * columns, features)


def _by_platform(
    geometry: _Geometry, channels: int, make: Callable[[_Map], Callable[..., Array]], *args: Array
) -> Array:
    """`make(map)(*args)`, for the fastest map from image and kernel to output that there is.

    Measured on two cores for a DCGAN's layers (64 and 128 channels): Winograd's map, its input
    gradient and its kernel gradient take 0.5 to 0.8 of the time of XLA's convolutions.
    """
    fits = (
        geometry.stride == 2
        and geometry.window == (4, 4)
        and geometry.padding == ((1, 1), (1, 1))
        and all(side % 4 == 0 for side in geometry.sides)
        and channels >= 16  # below, the sums cost more than the products they save
        and all(x.dtype in (jnp.float32, jnp.float64) for x in args)  # differences lose bits
    )
    if not fits:
        return make(_lax_conv)(*args)
    return jax.lax.platform_dependent(*args, cpu=make(_winograd_conv), default=make(_lax_conv))


# Below: image [B, *sides, Ci], kernel [kh, kw, Ci, Co], output [B, h, w, Co]; each from the others.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geometry: _Geometry, image: Array, kernel: Array) -> Array:
    return _by_platform(
        geometry, kernel.shape[2], lambda conv: partial(conv, geometry), image, kernel
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_grad(geometry: _Geometry, output: Array, kernel: Array) -> Array:
    shape = (output.shape[0], *geometry.sides, kernel.shape[2])
    image = jax.ShapeDtypeStruct(shape, output.dtype)

    def make(conv: _Map) -> Callable[..., Array]:
        return lambda output, kernel: jax.linear_transpose(
            lambda x: conv(geometry, x, kernel), image
        )(output)[0]

    return _by_platform(geometry, kernel.shape[2], make, output, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_grad(geometry: _Geometry, image: Array, output: Array) -> Array:
    shape = (*geometry.window, image.shape[3], output.shape[3])
    kernel = jax.ShapeDtypeStruct(shape, output.dtype)

    def make(conv: _Map) -> Callable[..., Array]:
        return lambda image, output: jax.linear_transpose(
            lambda k: conv(geometry, image, k), kernel
        )(output)[0]

    return _by_platform(geometry, image.shape[3], make, image, output)


_conv.defvjp(
    lambda geometry, image, kernel: (_conv(geometry, image, kernel), (image, kernel)),
    lambda geometry, kept, g: (
        _input_grad(geometry, g, kept[1]),
        _kernel_grad(geometry, kept[0], g),
    ),
)
_input_grad.defvjp(
    lambda geometry, output, kernel: (_input_grad(geometry, output, kernel), (output, kernel)),
    lambda geometry, kept, g: (
        _conv(geometry, g, kept[1]),
        _kernel_grad(geometry, g, kept[0]),
    ),
)
_kernel_grad.defvjp(
    lambda geometry, image, output: (_kernel_grad(geometry, image, output), (image, output)),
    lambda geometry, kept, g: (
        _input_grad(geometry, kept[1], g),
        _conv(geometry, kept[0], g),
    ),
)
