"""Images resized as TensorFlow 1, PyTorch and Pillow do: two small matrix products, one an axis.

What tells the conventions apart are the weights, `(inputs, outputs) -> [outputs, inputs]`.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from kd_jax.types import Array

Weights: TypeAlias = Callable[[int, int], NDArray[np.float64]]
"""`(inputs, outputs) -> [outputs, inputs]`: each output's share of each input; rows sum up to 1."""


def tf1_bilinear(inputs: int, outputs: int, *, align_corners: bool = False) -> NDArray[np.float64]:
    """TensorFlow 1's weights `[outputs, inputs]`: neither halves of pixels nor an antialias filter.

    Args:
      inputs: pixels.
      outputs: pixels.
      align_corners: whether the first and the last pixels of both lie on each other.
    """
    if align_corners and outputs > 1:
        return _linear(np.arange(outputs) * (inputs - 1) / (outputs - 1), inputs)
    return _linear(np.arange(outputs) * inputs / outputs, inputs)


def torch_bilinear(inputs: int, outputs: int) -> NDArray[np.float64]:
    """PyTorch's weights `[outputs, inputs]`, with halves of pixels, without an antialias filter."""
    return _linear((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, inputs)


def pil_bicubic(inputs: int, outputs: int) -> NDArray[np.float64]:
    """Pillow's weights `[outputs, inputs]`: Keys 1981, eq. 4, a = -1/2; wider where it shrinks."""
    step = inputs / outputs
    widening = max(step, 1.0)
    centres = (np.arange(outputs) + 0.5) * step
    distance = np.abs(np.arange(inputs) + 0.5 - centres[:, None]) / widening
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def _linear(positions: NDArray[np.float64], inputs: int) -> NDArray[np.float64]:
    """The weights of the two pixels around each position, the first or last one outside."""
    distance = np.abs(np.clip(positions, 0, inputs - 1)[:, None] - np.arange(inputs))
    return np.maximum(1 - distance, 0.0)


def resize(images: Array, size: tuple[int, int], weights: Weights) -> Array:
    """Images `[B, H, W, C]` as `[B, *size, C]`, of any range; float32.

    Raises:
      ValueError: they are no images, or a side is not positive.
    """
    if images.ndim != 4 or min(images.shape[1:3]) < 1 or min(size) < 1:
        raise ValueError(f"images of shape {images.shape} cannot be resized to {size}")
    rows, columns = (
        jnp.asarray(weights(n, m), jnp.float32)
        for n, m in zip(images.shape[1:3], size, strict=True)
    )
    highest = jax.lax.Precision.HIGHEST  # a GPU's shortcut would round to ten bits
    x = jnp.einsum("bhwc,vw->bhvc", images.astype(jnp.float32), columns, precision=highest)
    return jnp.einsum("bhvc,uh->buvc", x, rows, precision=highest)
