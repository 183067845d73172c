"""Upsampling, filtering and downsampling of `[B, H, W, C]` images by small fixed filters.

A filter is a NumPy array, constant at trace time, so that its zeros and its separability can be
exploited. Only outputs that remain are computed, and inserted zeros are never multiplied: each
phase of the output is a sum of shifted slices, which compilers fuse on every platform. The
transpose of such an operation is another one, with `up` and `down` exchanged, so that derivatives
of every order in reverse mode cost as much as the operation.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.types import Array
from kd_jax.ops import primitive

Filter: TypeAlias = np.ndarray | Sequence[float] | Sequence[Sequence[float]] | None
"""1-D: the same taps along both axes; 2-D: `[rows, columns]`; None: one tap of 1."""

Two: TypeAlias = int | tuple[int, int]
"""A number for both axes, or one each for height and width."""

Pads: TypeAlias = int | tuple[tuple[int, int], tuple[int, int]]
"""Zeros to add `((top, bottom), (left, right))`, or on every side; negative numbers crop."""


def resampling_filter(
    taps: Filter,
    *,
    normalize: bool = True,
    flip: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
) -> np.ndarray:
    """A filter from a list of taps, as in StyleGAN's configurations.

    Args:
      taps: 1-D or 2-D; None is one tap of 1.
      normalize: whether to divide by the sum.
      flip: whether to reverse it along every axis.
      gain: gain for an image filtered along both axes.
      separable: whether a 1-D list stays 1-D rather than becoming its outer product; by default
        if it has 8 taps or more.

    Returns:
      `[taps]` or `[rows, columns]`, float32.

    Raises:
      ValueError: there are no taps, or they have more than two axes.
    """
    array = np.asarray(1.0 if taps is None else taps, np.float64)
    if array.ndim > 2 or not array.size:
        raise ValueError(f"a filter has one or two axes and a tap, not shape {array.shape}")
    array = np.atleast_1d(array)
    if separable is None:
        separable = array.ndim == 1 and array.size >= 8
    if array.ndim == 1 and not separable:
        array = np.outer(array, array)
    if normalize:
        array = array / array.sum()
    if flip:
        array = array[(slice(None, None, -1),) * array.ndim]
    return (array * gain ** (array.ndim / 2)).astype(np.float32)


def upfirdn2d(
    x: Array,
    taps: Filter,
    *,
    up: Two = 1,
    down: Two = 1,
    padding: Pads = 0,
    flip: bool = False,
    gain: float = 1.0,
) -> Array:
    """Inserts zeros, pads, convolves with a filter and subsamples.

    Karras et al. 2019 (StyleGAN2) name it after the signal processing toolboxes' `upfirdn`.

    Args:
      x: `[B, H, W, C]`.
      taps: the filter.
      up: `up - 1` zeros follow each pixel, in each axis.
      down: each `down`-th pixel of the result is kept, the first one included.
      padding: padding after the insertion of zeros.
      flip: whether to correlate instead of convolving, which reverses the filter.
      gain: factor of the result.

    Returns:
      `[B, H', W', C]` of x's dtype; `H' = (up H + top + bottom - rows) // down + 1`.

    Raises:
      ValueError: x is not `[B, H, W, C]`, a factor is not positive, or the padded image is smaller
        than the filter.
    """
    if x.ndim != 4:
        raise ValueError(f"images [B, H, W, C] are needed, not shape {x.shape}")
    rows, columns = _separate(taps)
    ups, downs, pads = two(up), two(down), pads_of(padding)
    for axis, name in enumerate(("height", "width")):
        length = x.shape[axis + 1] * ups[axis] + sum(pads[axis])
        if length < (size := _length(rows, columns, axis)):
            raise ValueError(
                f"upfirdn2d: a {name} of {x.shape[axis + 1]} becomes {length} with up={ups[axis]} "
                f"and padding {pads[axis]}, less than the filter's {size}"
            )
    scale = np.sqrt(abs(gain)) if columns is not None else gain
    sign = np.sign(gain) if columns is not None else 1.0

    def static(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
        values = values if flip else values[::-1, ::-1]  # `_apply` correlates
        return tuple(tuple(float(v) for v in row) for row in values)

    if columns is None:
        shape = (x.shape[1], x.shape[2])
        return _apply(_Geometry(static(rows * scale), ups, downs, pads, shape), x)
    passes = [
        _Geometry(
            static(sign * scale * rows), (ups[0], 1), (downs[0], 1), (pads[0], (0, 0)), (0, 0)
        ),
        _Geometry(static(scale * columns), (1, ups[1]), (1, downs[1]), ((0, 0), pads[1]), (0, 0)),
    ]
    for geometry in passes:
        x = _apply(geometry._replace(sides=(x.shape[1], x.shape[2])), x)
    return x


def filter2d(
    x: Array, taps: Filter, *, padding: Pads = 0, flip: bool = False, gain: float = 1.0
) -> Array:
    """Filters images, which keep their size plus `padding`.

    Args and errors are those of `upfirdn2d`.
    """
    return upfirdn2d(
        x, taps, padding=_same_padding(taps, padding, (1, 1), (1, 1)), flip=flip, gain=gain
    )


def upsample2d(
    x: Array,
    taps: Filter,
    up: Two = 2,
    *,
    padding: Pads = 0,
    flip: bool = False,
    gain: float = 1.0,
) -> Array:
    """Upsamples images by `up`; a filter whose sum is 1 preserves their mean.

    Args and errors are those of `upfirdn2d`; padding is counted in pixels of the result.
    """
    ups = two(up)
    pads = _same_padding(taps, padding, ups, (1, 1))
    return upfirdn2d(x, taps, up=ups, padding=pads, flip=flip, gain=gain * math.prod(ups))


def downsample2d(
    x: Array,
    taps: Filter,
    down: Two = 2,
    *,
    padding: Pads = 0,
    flip: bool = False,
    gain: float = 1.0,
) -> Array:
    """Downsamples images by `down`.

    Args and errors are those of `upfirdn2d`; padding is counted in pixels of x.
    """
    downs = two(down)
    pads = _same_padding(taps, padding, (1, 1), downs)
    return upfirdn2d(x, taps, down=downs, padding=pads, flip=flip, gain=gain)


def filter_shape(taps: Filter) -> tuple[int, int]:
    """Rows and columns of a filter."""
    rows, columns = _separate(taps)
    return _length(rows, columns, 0), _length(rows, columns, 1)


def _same_padding(
    taps: Filter, padding: Pads, ups: tuple[int, int], downs: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding with which the size changes only by the factors."""
    pads, result = pads_of(padding), []
    for axis, size in enumerate(filter_shape(taps)):
        up, down = ups[axis], downs[axis]
        before = (size - down + 1) // 2 if down > 1 else (size + up - 1) // 2
        after = (size - down) // 2 if down > 1 else (size - up) // 2
        result.append((pads[axis][0] + before, pads[axis][1] + after))
    return result[0], result[1]


def two(value: Two) -> tuple[int, int]:
    """A factor for the height and one for the width.

    Raises:
      ValueError: a factor is not positive.
    """
    first, second = (value, value) if isinstance(value, int) else value
    if first < 1 or second < 1:
        raise ValueError(f"a factor of {value} is not positive")
    return int(first), int(second)


def pads_of(padding: Pads) -> tuple[tuple[int, int], tuple[int, int]]:
    """`((top, bottom), (left, right))`."""
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _separate(taps: Filter) -> tuple[np.ndarray, np.ndarray | None]:
    """A filter's factors, a column `[rows, 1]` and a row `[1, columns]`; or the filter and None."""
    array = np.asarray(1.0 if taps is None else taps, np.float64)
    if array.ndim > 2 or not array.size:
        raise ValueError(f"a filter has one or two axes and a tap, not shape {array.shape}")
    array = np.atleast_1d(array)
    if array.ndim == 1:
        return array[:, None], array[None, :]
    peak = np.unravel_index(np.abs(array).argmax(), array.shape)
    if array[peak] == 0 or 1 in array.shape:
        return array, None
    column, row = array[:, peak[1]], array[peak[0]] / array[peak]
    # The taps of published filters are products in float32.
    if np.abs(np.outer(column, row) - array).max() > 1e-7 * np.abs(array[peak]):
        return array, None
    return column[:, None], row[None, :]


def _length(rows: np.ndarray, columns: np.ndarray | None, axis: int) -> int:
    return (rows if axis == 0 or columns is None else columns).shape[axis]


class _Geometry(NamedTuple):
    taps: tuple[tuple[float, ...], ...]  # to correlate with
    up: tuple[int, int]
    down: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    sides: tuple[int, int]  # of the input


class _Phases(NamedTuple):
    """Along one axis: output `count m + r` is the sum of `tap k * x[step m + offset]`."""

    outputs: int
    step: int
    offsets: list[list[tuple[int, int]]]  # for each r: (k, offset)


def _phases(size: int, taps: int, up: int, down: int, pads: tuple[int, int]) -> _Phases:
    common = math.gcd(up, down)
    offsets = []
    for r in range(up // common):
        positions = [(k, r * down + k - pads[0]) for k in range(taps)]
        offsets.append([(k, position // up) for k, position in positions if position % up == 0])
    return _Phases((size * up + sum(pads) - taps) // down + 1, down // common, offsets)


def _apply_map(geometry: _Geometry, x: Array) -> Array:
    taps = geometry.taps
    along = [
        _phases(x.shape[1], len(taps), geometry.up[0], geometry.down[0], geometry.pads[0]),
        _phases(x.shape[2], len(taps[0]), geometry.up[1], geometry.down[1], geometry.pads[1]),
    ]
    lengths = [-(-axis.outputs // len(axis.offsets)) for axis in along]  # outputs of a phase
    pads = [
        (0, 0),
        *(_reach(axis, n, s) for axis, n, s in zip(along, lengths, x.shape[1:3], strict=True)),
    ]
    x = jnp.pad(x, [*pads, (0, 0)])

    def phase(r: int, c: int) -> Array:
        total = None
        for k, row in along[0].offsets[r]:
            for j, column in along[1].offsets[c]:
                if not taps[k][j]:
                    continue
                starts = (0, row + pads[1][0], column + pads[2][0], 0)
                steps = (1, along[0].step, along[1].step, 1)
                ends = [
                    x.shape[0],
                    *(
                        s + d * (n - 1) + 1
                        for s, d, n in zip(starts[1:3], steps[1:3], lengths, strict=True)
                    ),
                    x.shape[3],
                ]
                value = jax.lax.slice(x, starts, ends, steps)
                value = value * jnp.asarray(taps[k][j], x.dtype)
                total = value if total is None else total + value
        return jnp.zeros((x.shape[0], *lengths, x.shape[3]), x.dtype) if total is None else total

    counts = [len(axis.offsets) for axis in along]
    lines = []
    for r in range(counts[0]):
        columns = [phase(r, c) for c in range(counts[1])]
        # Concatenated along the channels, which copies whole pixels.
        line = columns[0] if counts[1] == 1 else jnp.concatenate(columns, axis=-1)
        lines.append(line.reshape(x.shape[0], lengths[0], lengths[1] * counts[1], x.shape[3]))
    y = lines[0]
    if counts[0] > 1:
        y = jnp.stack(lines, axis=2).reshape(x.shape[0], -1, *y.shape[2:])
    return y[:, : along[0].outputs, : along[1].outputs]


def _reach(phases: _Phases, length: int, size: int) -> tuple[int, int]:
    """How far the phases read beyond an axis, before its start and after its end."""
    offsets = [offset for phase in phases.offsets for _, offset in phase]
    if not offsets:
        return 0, 0
    return max(0, -min(offsets)), max(0, max(offsets) + phases.step * (length - 1) + 1 - size)


def _transpose(geometry: _Geometry) -> _Geometry:
    taps = geometry.taps
    pads, outputs = [], []
    for axis, count in enumerate((len(taps), len(taps[0]))):
        size, up, down = geometry.sides[axis], geometry.up[axis], geometry.down[axis]
        padding = geometry.pads[axis]
        output = (size * up + sum(padding) - count) // down + 1
        before = count - 1 - padding[0]
        outputs.append(output)
        pads.append((before, size * up - output * down + count - before - up))
    return _Geometry(
        tuple(row[::-1] for row in taps[::-1]),
        geometry.down,
        geometry.up,
        (pads[0], pads[1]),
        (outputs[0], outputs[1]),
    )


_apply = primitive.define("kd_upfirdn2d", _apply_map)
primitive.set_transpose(_apply, lambda geometry, g: _apply(_transpose(geometry), g))
