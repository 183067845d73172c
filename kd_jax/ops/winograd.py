"""The 4x4 convolution of stride 2 and padding 1 in 9/16 of the multiplications.

It is a 2x2 convolution of stride 1 on the 2x2 phases of the padded image, and of those one axis at
a time is computed two outputs by two, with three products instead of four (Winograd 1980; Lavin &
Gray 2016, F(2, 2)): of pixels d and taps g,

    y0 = d0 g0 + d1 g1 = m0 + m1        m0 = (d0 - d1) g0
    y1 = d1 g0 + d2 g1 = m1 + m2        m1 = d1 (g0 + g1)
                                        m2 = (d2 - d1) g1

The gradients are the transposes of these three linear maps, around the same nine matrix products.

Written for XLA's CPU compiler: nine products, as it has nothing as fast for a batched one, and
phases joined by concatenation, as it copies pixel by pixel what is transposed and reshaped at once.
Images are `[B, H, W, Ci]` with H and W multiples of 4, kernels `[4, 4, Ci, Co]`, outputs
`[B, H / 2, W / 2, Co]`.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from kd_jax.types import Array

Nine: TypeAlias = list[list[Array]]  # by the product's number along the rows, then the columns


def conv(image: Array, kernel: Array) -> Array:
    """The output."""
    batch, rows, columns = _tiles(image.shape)
    features = kernel.shape[3]
    m = [
        [(d @ g).reshape(batch, rows, columns, features) for d, g in zip(ds, gs, strict=True)]
        for ds, gs in zip(_of_image(image), _of_kernel(kernel), strict=True)
    ]
    lines = []
    for row in ([a + b for a, b in zip(m[i], m[i + 1], strict=True)] for i in range(2)):
        line = jnp.concatenate([row[0] + row[1], row[1] + row[2]], axis=-1)
        lines.append(line.reshape(batch, rows, 2 * columns, features))
    return jnp.stack(lines, axis=2).reshape(batch, 2 * rows, 2 * columns, features)


def input_grad(output: Array, kernel: Array) -> Array:
    """The image's gradient where the output's is `output`."""
    batch, height, width, _ = output.shape
    rows, columns, channels = height // 2, width // 2, kernel.shape[2]
    phases = (batch, rows, columns, 2, 2, channels)
    m = [
        [(y @ g.T).reshape(phases) for y, g in zip(ys, gs, strict=True)]
        for ys, gs in zip(_of_output(output), _of_kernel(kernel), strict=True)
    ]
    # Of four neighbours along an axis the first and the last belong to two tiles.
    by_row = [_unfold(three, axis=2, phase=4) for three in m]
    lines = []
    for four in zip(*([_unfold(three, axis=1, phase=3) for three in zip(*by_row, strict=True)]), strict=True):
        lines.append(jnp.concatenate(four, axis=-1).reshape(batch, rows, 4 * columns, channels))
    return jnp.stack(lines, axis=2).reshape(batch, 4 * rows, 4 * columns, channels)


def kernel_grad(image: Array, output: Array) -> Array:
    """The kernel's gradient where the output's is `output`."""
    channels, features = image.shape[3], output.shape[3]
    m = [
        [d.T @ y for d, y in zip(ds, ys, strict=True)]
        for ds, ys in zip(_of_image(image), _of_output(output), strict=True)
    ]
    rows = [[a + b for a, b in zip(m[i], m[i + 1], strict=True)] for i in range(2)]
    taps = jnp.stack([jnp.stack([row[0] + row[1], row[1] + row[2]]) for row in rows])
    taps = taps.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return taps.reshape(4, 4, channels, features)


def _tiles(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], shape[1] // 4, shape[2] // 4


def _of_image(image: Array) -> Nine:
    """`[tiles, 4 Ci]` each: differences of the four phases of the padded image."""
    batch, height, width, channels = image.shape
    _, rows, columns = _tiles(image.shape)
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    padded = padded.reshape(batch, height // 2 + 1, 2, width // 2 + 1, 2 * channels)
    phases = jnp.concatenate([padded[:, :, 0], padded[:, :, 1]], axis=-1)

    def differences(x: Array, axis: int, tiles: int) -> list[Array]:
        d = [jax.lax.slice_in_dim(x, k, k + 2 * tiles - 1, 2, axis) for k in range(3)]
        return [d[0] - d[1], d[1], d[2] - d[1]]

    return [
        [d.reshape(-1, 4 * channels) for d in differences(row, 2, columns)]
        for row in differences(phases, 1, rows)
    ]


def _of_kernel(kernel: Array) -> Nine:
    """`[4 Ci, Co]` each: sums of the taps of each phase."""
    channels, features = kernel.shape[2:]
    taps = kernel.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    taps = taps.reshape(2, 2, 4 * channels, features)
    return [[g[0], g[0] + g[1], g[1]] for g in (taps[0], taps[0] + taps[1], taps[1])]


def _of_output(output: Array) -> Nine:
    """`[tiles, Co]` each: sums of two neighbours, along one axis and the other."""
    batch, height, width, features = output.shape
    y = output.reshape(batch, height // 2, 2, width // 2, 2 * features)
    first, second = y[:, :, 0], y[:, :, 1]
    return [
        [
            x.reshape(-1, features)
            for x in (
                row[..., :features],
                row[..., :features] + row[..., features:],
                row[..., features:],
            )
        ]
        for row in (first, first + second, second)
    ]


def _unfold(products: Sequence[Array], axis: int, phase: int) -> list[Array]:
    """The four neighbours that a tile has along an axis, from the three products of the tiles.

    Of the padded image's phases d0, d1, d2 along the axis a tile covers, d0 is the d2 of the tile
    before. Four neighbours of the image itself are d0's second phase, d1's two, and d2's first.
    """
    first, middle, last = products
    inner = middle - first - last
    take = jax.lax.index_in_dim

    def phase_of(x: Array, which: int) -> Array:
        return take(x, which, phase, keepdims=False)

    tiles = first.shape[axis]
    return [
        phase_of(first, 1) + _shifted(phase_of(last, 1), axis, 1, tiles),
        phase_of(inner, 0),
        phase_of(inner, 1),
        phase_of(last, 0) + _shifted(phase_of(first, 0), axis, -1, tiles),
    ]


def _shifted(x: Array, axis: int, by: int, tiles: int) -> Array:
    """`x` moved by one along an axis, with zeros where nothing comes from."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (1, 0) if by > 0 else (0, 1)
    kept = jax.lax.slice_in_dim(x, 0, tiles - 1, axis=axis) if by > 0 else jax.lax.slice_in_dim(
        x, 1, tiles, axis=axis
    )
    return jnp.pad(kept, pads)
