"""3x3 convolutions in fewer multiplications: 4/9 or 1/4 of them, with stride 2 25/36.

Along one axis m outputs are computed at once: F(m, 3) of Winograd 1980 and Lavin & Gray 2016, with
m + 2 products instead of 3 m. With pixels d and taps g it is `S ((P g) * (Q d))`, for m = 2

    y0 = d0 g0 + d1 g1 + d2 g2 = m0 + m1 + m2      m0 = (d0 - d2) g0
    y1 = d1 g0 + d2 g1 + d3 g2 = m1 - m2 - m3      m1 = (d1 + d2) (g0 + g1 + g2) / 2
                                                   m2 = (d2 - d1) (g0 - g1 + g2) / 2
                                                   m3 = (d1 - d3) g2

With stride 2 the outer taps apply to every second pixel, as a filter of two taps, and the middle
tap to the others: F(2, 2) and a product for each output, 5 products for 2 outputs instead of 6

    y0 = d0 g0 + d1 g1 + d2 g2 = m0 + m1 + m3      m0 = (d0 - d2) g0     m3 = d1 g1
    y1 = d2 g0 + d3 g1 + d4 g2 = m1 - m2 + m4      m1 = d2 (g0 + g2)     m4 = d3 g1
                                                   m2 = (d2 - d4) g2

For both axes the number of matrix products is squared. The gradients are the
transposes of the linear maps around the same products. Images are `[B, H, W, Ci]`, kernels
`[3, 3, Ci, Co]`. With stride 1 the padding is 1, and m divides the sides; with stride 2 there is
none, and the sides are 1 more than multiples of 4.

The rounding error is about that of the convolution itself, 1e-6 of the largest output, except for
m = 4, where it is 2e-5; m = 4 is used on large images only. On two cores of an AMD EPYC,
8x64x64x256 to 256, m = 4 takes 0.4 of the time of XLA's convolution.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.types import Array

_Grid: TypeAlias = list[list[Array]]
"""Factors or products, by their index along the rows, then along the columns."""


class _Form(NamedTuple):
    """The three linear maps of one axis, as matrices, and the distance between tiles."""

    pixels: np.ndarray  # [products, pixels]
    taps: np.ndarray  # [products, 3]
    sums: np.ndarray  # [outputs, products]
    block: int  # pixels
    before: int  # zeros padded before the image


_BY_TWO = _Form(
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    block=2,
    before=1,
)
_BY_FOUR = _Form(
    np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
    block=4,
    before=1,
)
_STRIDED = _Form(
    np.array(
        [
            [1, 0, -1, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 1, 0, -1],
            [0, 1, 0, 0, 0],
            [0, 0, 0, 1, 0],
        ]
    ),
    np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0]]),
    np.array([[1, 1, 0, 1, 0], [0, 1, -1, 0, 1]]),
    block=4,
    before=0,
)
LARGE = 2**13
"""Number of pixels from which m = 4 is faster with stride 1; below, the kernel's sums dominate."""


def conv(image: Array, kernel: Array) -> Array:
    """The output `[B, H, W, Co]` with stride 1."""
    return _conv(_select_form(image), image, kernel)


def input_grad(output: Array, kernel: Array) -> Array:
    """The image's gradient with stride 1 if the output's is `output`."""
    return conv(output, kernel[::-1, ::-1].swapaxes(2, 3))


def kernel_grad(image: Array, output: Array) -> Array:
    """The kernel's gradient with stride 1 if the output's is `output`."""
    return _kernel_grad(_select_form(image), image, output)


def strided_conv(image: Array, kernel: Array) -> Array:
    """The output `[B, H // 2, W // 2, Co]` with stride 2."""
    return _conv(_STRIDED, image, kernel)


def strided_input_grad(output: Array, kernel: Array) -> Array:
    """The image's gradient with stride 2 if the output's is `output`."""
    form, channels = _STRIDED, kernel.shape[2]
    batch, rows, columns = (n // m for n, m in zip(output.shape, (1, 2, 2), strict=False))
    products = [
        [y @ g.T for y, g in zip(ys, gs, strict=True)]
        for ys, gs in zip(
            _transform_output(form, output), _transform_kernel(form, kernel), strict=True
        )
    ]

    def merge(pixels: list[Array], axis: int) -> list[Array]:
        """A tile's pixels, the first added to the last of the previous tile; and the end."""
        *own, last = pixels
        edge = jnp.zeros_like(jax.lax.slice_in_dim(last, 0, 1, axis=axis))
        first = jnp.concatenate([own[0], edge], axis) + jnp.concatenate([edge, last], axis)
        count = last.shape[axis]
        return [
            jax.lax.slice_in_dim(first, 0, count, axis=axis),
            *own[1:],
            jax.lax.slice_in_dim(first, count, count + 1, axis=axis),
        ]

    lines = []
    for row in products:
        pixels = [d.reshape(batch, rows, columns, channels) for d in _combine(form.pixels.T, row)]
        *own, end = merge(pixels, axis=2)
        line = jnp.concatenate(own, axis=-1).reshape(batch, rows, 4 * columns, channels)
        lines.append(jnp.concatenate([line, end], axis=2).reshape(batch, rows, -1))
    *own, end = merge(_combine(form.pixels.T, lines), axis=1)
    image = jnp.stack(own, axis=2).reshape(batch, 4 * rows, -1)
    image = jnp.concatenate([image, end], axis=1)
    return image.reshape(batch, 4 * rows + 1, 4 * columns + 1, channels)


def strided_kernel_grad(image: Array, output: Array) -> Array:
    """The kernel's gradient with stride 2 if the output's is `output`."""
    return _kernel_grad(_STRIDED, image, output)


def _select_form(image: Array) -> _Form:
    batch, height, width, _ = image.shape
    by_four = height % 4 == width % 4 == 0 and batch * height * width >= LARGE
    return _BY_FOUR if by_four else _BY_TWO


def _conv(form: _Form, image: Array, kernel: Array) -> Array:
    batch, features, m = image.shape[0], kernel.shape[3], len(form.sums)
    rows, columns = (n // form.block for n in image.shape[1:3])
    products = [
        [d @ g for d, g in zip(ds, gs, strict=True)]
        for ds, gs in zip(
            _transform_image(form, image), _transform_kernel(form, kernel), strict=True
        )
    ]
    lines = []
    for row in products:
        pixels = [y.reshape(batch, rows, columns, features) for y in _combine(form.sums, row)]
        # Concatenated along the channels, which copies whole pixels.
        lines.append(jnp.concatenate(pixels, axis=-1).reshape(batch, rows, -1))
    output = jnp.stack(_combine(form.sums, lines), axis=2)
    return output.reshape(batch, rows * m, columns * m, features)


def _kernel_grad(form: _Form, image: Array, output: Array) -> Array:
    products = [
        [d.T @ y for d, y in zip(ds, ys, strict=True)]
        for ds, ys in zip(
            _transform_image(form, image), _transform_output(form, output), strict=True
        )
    ]
    back = form.taps.T
    by_row = [_combine(back, column) for column in zip(*products, strict=True)]
    return jnp.stack([jnp.stack(_combine(back, row)) for row in zip(*by_row, strict=True)])


def _combine(matrix: np.ndarray, values: Sequence[Array]) -> list[Array]:
    """The product of a matrix of numbers and a column of arrays."""
    scaled = ([w * v for w, v in zip(row, values, strict=True) if w] for row in matrix.tolist())
    return [functools.reduce(operator.add, terms) for terms in scaled]


def _transform_image(form: _Form, image: Array) -> _Grid:
    """`[tiles, Ci]` each: sums of the padded image's pixels."""
    batch, height, width, channels = image.shape
    block, overlap = form.block, form.pixels.shape[1] - form.block
    rows, columns = height // block, width // block
    # There is one block more than tiles; only its overlap is read.
    padding = [(form.before, (n // block + 1) * block - n - form.before) for n in (height, width)]
    padded = jnp.pad(image, ((0, 0), *padding, (0, 0)))
    blocks = padded.reshape(batch, rows + 1, block, -1)
    sums = _combine(
        form.pixels,
        [blocks[:, :-1, k] for k in range(block)] + [blocks[:, 1:, k] for k in range(overlap)],
    )
    # Stacked: otherwise the compiler recomputes each of these sums for each of the next.
    # The axis is separate: along the batch's, several devices would have to exchange the sums.
    lines = jnp.stack(sums).reshape(-1, batch * rows, columns + 1, block, channels)
    return [
        [
            d.reshape(-1, channels)
            for d in _combine(
                form.pixels,
                [line[:, :-1, k] for k in range(block)] + [line[:, 1:, k] for k in range(overlap)],
            )
        ]
        for line in lines
    ]


def _transform_kernel(form: _Form, kernel: Array) -> _Grid:
    """`[Ci, Co]` each: sums of the taps, by one matrix product."""
    both = jnp.asarray(np.kron(form.taps, form.taps), kernel.dtype)
    sums = jnp.matmul(both, kernel.reshape(9, -1), precision=jax.lax.Precision.HIGHEST)
    count = len(form.taps)
    sums = sums.reshape(count, count, *kernel.shape[2:])
    return [[sums[i, j] for j in range(count)] for i in range(count)]


def _transform_output(form: _Form, output: Array) -> _Grid:
    """`[tiles, Co]` each: the transpose of the sums."""
    batch, height, width, features = output.shape
    m, spread = len(form.sums), form.sums.T
    y = output.reshape(batch * height // m, m, -1)
    sums = _combine(spread, [y[:, k] for k in range(m)])
    lines = jnp.stack(sums).reshape(-1, batch * height // m, width // m, m, features)
    return [
        [g.reshape(-1, features) for g in _combine(spread, [line[:, :, k] for k in range(m)])]
        for line in lines
    ]
