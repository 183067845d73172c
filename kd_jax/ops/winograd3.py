"""The 3x3 convolution of stride 1 and padding 1 in 4/9 of the multiplications, or in 1/4.

Of one axis m outputs are computed at once, with m + 2 products instead of 3 m: F(m, 3) of Winograd
1980 and Lavin & Gray 2016. With pixels d and taps g it is `S ((P g) * (Q d))`, for m = 2

    y0 = d0 g0 + d1 g1 + d2 g2 = m0 + m1 + m2      m0 = (d0 - d2) g0
    y1 = d1 g0 + d2 g1 + d3 g2 = m1 - m2 - m3      m1 = (d1 + d2) (g0 + g1 + g2) / 2
                                                   m2 = (d2 - d1) (g0 - g1 + g2) / 2
                                                   m3 = (d1 - d3) g2

Both axes together take (m + 2)^2 matrix products. The kernel's gradient is the transpose of the
linear maps around the same products; the image's gradient is the convolution with the turned
kernel. Images are `[B, H, W, Ci]` with sides that m divides, kernels `[3, 3, Ci, Co]`.

Rounding is about that of the convolution itself where m is 2, 1e-6 of the largest output. Where
m is 4 it is 2e-5; it is used on large images only, where it takes another quarter off. On two cores
of an AMD EPYC, 8x64x64x256 to 256, m = 4 needs half the time of XLA's convolution, and a quarter of
that of its kernel gradient.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.types import Array

_Grid: TypeAlias = list[list[Array]]
"""What is multiplied, or the products: by their number along the rows, then along the columns."""


class _Maps(NamedTuple):
    """The three linear maps of one axis, as matrices."""

    pixels: np.ndarray  # [m + 2, m + 2]
    taps: np.ndarray  # [m + 2, 3]
    sums: np.ndarray  # [m, m + 2]


_BY_OUTPUTS = {
    2: _Maps(
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
        np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    ),
    4: _Maps(
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
        np.array(
            [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
        ),
    ),
}
_BETTER_BY_FOUR = 512  # tiles; below, the kernel's part of the work is too large


def conv(image: Array, kernel: Array) -> Array:
    """The output `[B, H, W, Co]`."""
    batch, height, width, _ = image.shape
    features, m = kernel.shape[3], _outputs(image)
    tiles = (batch, height // m, width // m, features)
    products = [
        [d @ g for d, g in zip(ds, gs, strict=True)]
        for ds, gs in zip(_of_image(image, m), _of_kernel(kernel, m), strict=True)
    ]
    sums = _BY_OUTPUTS[m].sums
    by_row = [_combined(sums, column) for column in zip(*products, strict=True)]
    lines = []
    for line in zip(*by_row, strict=True):
        pixels = [pixel.reshape(tiles) for pixel in _combined(sums, line)]
        # Joined along the channels, where whole pixels are copied.
        joined = jnp.concatenate(pixels, axis=-1)
        lines.append(joined.reshape(batch, height // m, width, features))
    return jnp.stack(lines, axis=2).reshape(batch, height, width, features)


def input_grad(output: Array, kernel: Array) -> Array:
    """The image's gradient where the output's is `output`."""
    return conv(output, kernel[::-1, ::-1].swapaxes(2, 3))


def kernel_grad(image: Array, output: Array) -> Array:
    """The kernel's gradient where the output's is `output`."""
    m = _outputs(image)
    products = [
        [d.T @ y for d, y in zip(ds, ys, strict=True)]
        for ds, ys in zip(_of_image(image, m), _of_output(output, m), strict=True)
    ]
    back = _BY_OUTPUTS[m].taps.T
    by_row = [_combined(back, column) for column in zip(*products, strict=True)]
    return jnp.stack([jnp.stack(_combined(back, row)) for row in zip(*by_row, strict=True)])


def _outputs(image: Array) -> int:
    """How many outputs of an axis to compute at once."""
    batch, height, width, _ = image.shape
    by_four = height % 4 == width % 4 == 0 and batch * height * width >= 16 * _BETTER_BY_FOUR
    return 4 if by_four else 2


def _combined(matrix: np.ndarray, values: Sequence[Array]) -> list[Array]:
    """The product of a matrix of numbers with a column of arrays."""
    scaled = ([w * v for w, v in zip(row, values, strict=True) if w] for row in matrix.tolist())
    return [functools.reduce(operator.add, terms) for terms in scaled]


def _of_image(image: Array, m: int) -> _Grid:
    """`[tiles, Ci]` each: sums of the padded image's pixels."""
    batch, height, width, channels = image.shape
    padding = (1, m - 1)  # the last ones are never read beyond the first
    padded = jnp.pad(image, ((0, 0), padding, padding, (0, 0)))
    blocks = padded.reshape(batch, height // m + 1, m, width // m + 1, m * channels)

    def seen(phases: Sequence[Array], axis: int) -> list[Array]:
        """The pixels of a tile: those of its own block, and two of the next."""

        def part(x: Array, start: int) -> Array:
            return jax.lax.slice_in_dim(x, start, start + x.shape[axis] - 1, axis=axis)

        return [part(phase, 0) for phase in phases] + [part(phases[k], 1) for k in (0, 1)]

    matrix = _BY_OUTPUTS[m].pixels
    rows = _combined(matrix, seen([blocks[:, :, k] for k in range(m)], 1))
    split = [[row[..., k * channels :][..., :channels] for k in range(m)] for row in rows]
    return [
        [d.reshape(-1, channels) for d in _combined(matrix, seen(phases, 2))] for phases in split
    ]


def _of_kernel(kernel: Array, m: int) -> _Grid:
    """`[Ci, Co]` each: sums of the taps, by one matrix product."""
    taps = _BY_OUTPUTS[m].taps
    both = jnp.asarray(np.kron(taps, taps), kernel.dtype)
    sums = jnp.matmul(both, kernel.reshape(9, -1), precision=jax.lax.Precision.HIGHEST)
    sums = sums.reshape(m + 2, m + 2, *kernel.shape[2:])
    return [[sums[i, j] for j in range(m + 2)] for i in range(m + 2)]


def _of_output(output: Array, m: int) -> _Grid:
    """`[tiles, Co]` each: the transpose of the sums."""
    batch, height, width, features = output.shape
    y = output.reshape(batch, height // m, m, width // m, m * features)
    spread = _BY_OUTPUTS[m].sums.T
    rows = _combined(spread, [y[:, :, k] for k in range(m)])
    split = [[row[..., k * features :][..., :features] for k in range(m)] for row in rows]
    return [[g.reshape(-1, features) for g in _combined(spread, phases)] for phases in split]
