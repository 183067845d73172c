"""The 4x4 convolution of stride 2 and padding 1 in 9/16 of the multiplications.

It is a 2x2 convolution of stride 1 on the 2x2 phases of the padded image. Along each axis in turn,
two outputs are computed at once with three products instead of four (Winograd 1980; Lavin & Gray
2016, F(2, 2)): with pixels d and taps g,

    y0 = d0 g0 + d1 g1 = m0 + m1        m0 = (d0 - d1) g0
    y1 = d1 g0 + d2 g1 = m1 + m2        m1 = d1 (g0 + g1)
                                        m2 = (d2 - d1) g1

The gradients are the transposes of these three linear maps, around the same nine matrix products.
Images are `[B, H, W, Ci]` with H and W multiples of 4, kernels `[4, 4, Ci, Co]`, outputs
`[B, H / 2, W / 2, Co]`; a tile is 2x2 outputs, or the 4x4 pixels between their centers.

The shapes are those that XLA's CPU compiler has fast code for: nine products, because a batched one
is slower, and phases merged by concatenation, because a transpose combined with a reshape copies
element by element. Four outputs at once (F(4, 2)) save another third of the products; on two cores
the sums took as long, and the rounding error was seven times as large.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array

_Nine: TypeAlias = list[list[Array]]
"""Factors or products, by their index along the rows, then along the columns."""


def conv(image: Array, kernel: Array) -> Array:
    """The output."""
    batch, height, width, _ = image.shape
    rows, columns, features = height // 4, width // 4, kernel.shape[3]
    m = [
        [(d @ g).reshape(batch, rows, columns, features) for d, g in zip(ds, gs, strict=True)]
        for ds, gs in zip(_transform_image(image), _transform_kernel(kernel), strict=True)
    ]
    lines = [
        jnp.concatenate(row, axis=-1).reshape(batch, rows, 2 * columns, features)
        for row in _two_by_two(m)
    ]
    return jnp.stack(lines, axis=2).reshape(batch, 2 * rows, 2 * columns, features)


def input_grad(output: Array, kernel: Array) -> Array:
    """The image's gradient if the output's is `output`."""
    batch, height, width, _ = output.shape
    rows, columns, channels = height // 2, width // 2, kernel.shape[2]
    phases = (batch, rows, columns, 2, 2, channels)
    m = [
        [(y @ g.T).reshape(phases) for y, g in zip(ys, gs, strict=True)]
        for ys, gs in zip(_transform_output(output), _transform_kernel(kernel), strict=True)
    ]
    by_column = [_pixels(products, axis=2, phase=4) for products in m]
    pixels = [_pixels(products, axis=1, phase=3) for products in zip(*by_column, strict=True)]
    lines = [
        jnp.concatenate(row, axis=-1).reshape(batch, rows, 4 * columns, channels)
        for row in zip(*pixels, strict=True)
    ]
    return jnp.stack(lines, axis=2).reshape(batch, 4 * rows, 4 * columns, channels)


def kernel_grad(image: Array, output: Array) -> Array:
    """The kernel's gradient if the output's is `output`."""
    channels, features = image.shape[3], output.shape[3]
    m = [
        [d.T @ y for d, y in zip(ds, ys, strict=True)]
        for ds, ys in zip(_transform_image(image), _transform_output(output), strict=True)
    ]
    taps, half = _two_by_two(m), 2 * channels
    rows = [taps[u][v][p * half :][:half] for u in (0, 1) for p in (0, 1) for v in (0, 1)]
    return jnp.concatenate(rows).reshape(4, 4, channels, features)


def _two_by_two(m: _Nine) -> list[list[Array]]:
    """The sums m0 + m1 and m1 + m2, along one axis and then the other: outputs, or taps."""
    rows = [[a + b for a, b in zip(m[i], m[i + 1], strict=True)] for i in (0, 1)]
    return [[row[0] + row[1], row[1] + row[2]] for row in rows]


def _transform_image(image: Array) -> _Nine:
    """`[tiles, 4 Ci]` each: differences of the phases of the padded image."""
    batch, height, width, channels = image.shape
    wide = (batch, height // 2 + 1, width // 2 + 1, 2 * channels)

    def differences(x: Array, axis: int) -> list[Array]:
        length = x.shape[axis] - 2
        d = [jax.lax.slice_in_dim(x, k, k + length, 2, axis) for k in range(3)]
        return [d[0] - d[1], d[1], d[2] - d[1]]

    # The even rows of the padded image are the odd rows of the image after a row of zeros.
    even = jnp.pad(image[:, 1::2], ((0, 0), (1, 0), (1, 1), (0, 0))).reshape(wide)
    odd = jnp.pad(image[:, 0::2], ((0, 0), (0, 1), (1, 1), (0, 0))).reshape(wide)
    return [
        [
            jnp.concatenate(phases, axis=-1).reshape(-1, 4 * channels)
            for phases in zip(*(differences(row, 2) for row in rows), strict=True)
        ]
        for rows in zip(differences(even, 1), differences(odd, 1), strict=True)
    ]


def _transform_kernel(kernel: Array) -> _Nine:
    """`[4 Ci, Co]` each: sums of the taps of each phase."""
    channels, features = kernel.shape[2:]
    k = kernel.reshape(2, 2, 2, 2 * channels, features)
    taps = [[jnp.concatenate([k[u, 0, v], k[u, 1, v]]) for v in (0, 1)] for u in (0, 1)]
    both = [a + b for a, b in zip(*taps, strict=True)]
    return [[g[0], g[0] + g[1], g[1]] for g in (taps[0], both, taps[1])]


def _transform_output(output: Array) -> _Nine:
    """`[tiles, Co]` each: sums of two neighbours."""
    batch, height, width, features = output.shape
    y = output.reshape(batch, height // 2, 2, width // 2, 2 * features)
    first, second = y[:, :, 0], y[:, :, 1]

    def sums(row: Array) -> list[Array]:
        left, right = row[..., :features], row[..., features:]
        return [x.reshape(-1, features) for x in (left, left + right, right)]

    return [sums(row) for row in (first, first + second, second)]


def _pixels(products: Sequence[Array], axis: int, phase: int) -> list[Array]:
    """A tile's four pixels along an axis, from the three products of all tiles.

    Pixel 0 is the second phase of d0, pixels 1 and 2 are d1's phases, pixel 3 is the first phase of
    d2. A tile's d2 is the next tile's d0: their parts are added.
    """
    first, middle, last = products
    d0, d1, d2 = first, middle - first - last, last
    tiles = d0.shape[axis]

    def select(d: Array, index: int) -> Array:
        return jax.lax.index_in_dim(d, index, phase, keepdims=False)

    def shift(x: Array, by: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (max(by, 0), max(-by, 0))
        inner = jax.lax.slice_in_dim(x, max(-by, 0), tiles - max(by, 0), axis=axis)
        return jnp.pad(inner, widths)

    return [
        select(d0, 1) + shift(select(d2, 1), 1),
        select(d1, 0),
        select(d1, 1),
        select(d2, 0) + shift(select(d0, 0), -1),
    ]
