"""Image resizing as in TensorFlow 1, PyTorch and Pillow: two small matrix products, one per axis.

The conventions differ in their weights, `(inputs, outputs) -> [outputs, inputs]`.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from kd_jax.core.types import Array
from kd_jax.ops.resample import upfirdn2d

Weights: TypeAlias = Callable[[int, int], NDArray[np.float64]]
"""`(inputs, outputs) -> [outputs, inputs]`: the weights of the inputs in each output, of sum 1."""


def tf1_bilinear(inputs: int, outputs: int, *, align_corners: bool = False) -> NDArray[np.float64]:
    """TensorFlow 1's weights `[outputs, inputs]`, without half-pixel centers or antialiasing.

    Args:
      inputs: number of input pixels.
      outputs: number of output pixels.
      align_corners: whether the first and the last pixels of input and output coincide.
    """
    if align_corners and outputs > 1:
        return _linear(np.arange(outputs) * (inputs - 1) / (outputs - 1), inputs)
    return _linear(np.arange(outputs) * inputs / outputs, inputs)


def torch_bilinear(inputs: int, outputs: int) -> NDArray[np.float64]:
    """PyTorch's weights `[outputs, inputs]`, with half-pixel centers, without antialiasing."""
    return _linear((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, inputs)


def pil_bicubic(inputs: int, outputs: int) -> NDArray[np.float64]:
    """Pillow's weights `[outputs, inputs]`: Keys 1981, eq. 4, a = -1/2; wider to downsample."""
    step = inputs / outputs
    widening = max(step, 1.0)
    centres = (np.arange(outputs) + 0.5) * step
    distance = np.abs(np.arange(inputs) + 0.5 - centres[:, None]) / widening
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def torch_bicubic(inputs: int, outputs: int) -> NDArray[np.float64]:
    """PyTorch's and ncnn's weights `[outputs, inputs]`: Keys 1981, eq. 4, with a = -3/4.

    Half-pixel centers, without antialiasing; the pixels at the borders are repeated outwards.
    """
    positions = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    taps = np.floor(positions)[:, None] + np.arange(-1, 3)
    distance = np.abs(positions[:, None] - taps)
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    weights = np.zeros((outputs, inputs))
    columns = np.clip(taps, 0, inputs - 1).astype(int)
    np.add.at(weights, (np.arange(outputs)[:, None], columns), np.where(distance < 1, near, far))
    return weights


def _linear(positions: NDArray[np.float64], inputs: int) -> NDArray[np.float64]:
    """Linear interpolation weights of the positions, which are clipped to the image."""
    distance = np.abs(np.clip(positions, 0, inputs - 1)[:, None] - np.arange(inputs))
    return np.maximum(1 - distance, 0.0)


def resize(images: Array, size: tuple[int, int], weights: Weights) -> Array:
    """Resizes images `[B, H, W, C]`, of any range, to `[B, *size, C]`, float32.

    Symbolic sides, of files for images of any size, are enlarged by a whole factor.

    Raises:
      ValueError: the images are not 4-D, or a side is not positive; of symbolic sides, the factor
        is not whole, or the weights at the edges are not those of a filter of sum 1.
    """
    if images.ndim != 4 or any(n < 1 for n in (*images.shape[1:3], *size)):
        raise ValueError(f"images of shape {images.shape} cannot be resized to {size}")
    if not all(isinstance(n, int) for n in images.shape[1:3]):
        return _enlarge(images, size, weights)
    rows, columns = (
        jnp.asarray(weights(n, m), jnp.float32)
        for n, m in zip(images.shape[1:3], size, strict=True)
    )
    highest = jax.lax.Precision.HIGHEST  # GPUs round to ten bits by default
    x = jnp.einsum("bhwc,vw->bhvc", images.astype(jnp.float32), columns, precision=highest)
    return jnp.einsum("bhvc,uh->buvc", x, rows, precision=highest)


def _enlarge(images: Array, size: tuple[int, int], weights: Weights) -> Array:
    """`resize` of symbolic sides by a whole factor: a filter, divided by its sum in the image."""
    factor = size[0] // images.shape[1]
    if not isinstance(factor, int) or size[1] // images.shape[2] != factor:
        raise ValueError(f"images of shape {images.shape} cannot be resized to {size}")
    side, middle = 32, 16
    matrix = weights(side, factor * side)
    (reached,) = matrix[:, middle].nonzero()
    taps = matrix[reached[0] : reached[-1] + 1, middle]
    before = len(taps) - 1 - factor * middle + int(reached[0])
    impulses = np.zeros((side, factor * side))
    impulses[np.arange(side), factor * np.arange(side)] = 1
    start = len(taps) - 1 - before
    columns = np.array([np.convolve(row, taps)[start:] for row in impulses])[:, : factor * side].T
    if not np.allclose(columns / columns.sum(axis=1, keepdims=True), matrix, atol=1e-6):
        raise ValueError("these weights have no form for images of any size")
    pads = ((before, len(taps) - 1 - before),) * 2

    def filtered(x: Array) -> Array:
        return upfirdn2d(x, taps, up=factor, padding=(pads[0], pads[1]))

    images = images.astype(jnp.float32)
    # Not jnp.ones: converters do not know arrays of ones of symbolic shapes.
    return filtered(images) / filtered(0 * images[:1, :, :, :1] + 1)
