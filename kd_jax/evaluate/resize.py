"""How the tools that measure generators bring images to the side that their network takes.

The figures depend on it (Parmar et al. 2022), so every one is stated with the convention's name:

* `tf1-bilinear`: of torch-fidelity, and inside NVIDIA's network, as TensorFlow 1 resized: pixel i
  of the output is read at `i * inputs / outputs`. Then `(x - 128) / 128`, of x in [0, 255].
* `torch-bilinear`: of pytorch-fid, PyTorch's `interpolate(align_corners=False)`: pixels' centres
  lie at halves. Then `2 x - 1`, of x in [0, 1].
* `pil-bicubic`: of clean-fid: Pillow's bicubic filter on numbers of floating point, one channel
  after the other, which alone averages what it makes smaller. The result is clipped to [0, 255] and
  not rounded (clean-fid's first releases did not clip). Then `(x - 128) / 128`.

The tools read image files, or round a generator's images to bytes first. Here images are in
[-1, 1], and `prepared` rounds them to the nearest of the 256 levels unless told not to.

A resize is two small matrix products, one for each axis.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from kd_jax.types import Array

Weights: TypeAlias = Callable[[int, int], NDArray[np.float64]]
"""`(inputs, outputs) -> [outputs, inputs]`: each output's share of each input; rows sum up to 1."""


class Convention(NamedTuple):
    """What a tool does to an image.

    Attributes:
      weights: of the resize.
      centre: the value in [0, 255] that the network sees as 0.
      scale: the distance from there that it sees as 1.
      clips: whether values are brought back to [0, 255] after the resize.
    """

    weights: Weights
    centre: float
    scale: float
    clips: bool


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


CONVENTIONS: Mapping[str, Convention] = {
    "tf1-bilinear": Convention(tf1_bilinear, 128.0, 128.0, clips=False),
    "torch-bilinear": Convention(torch_bilinear, 127.5, 127.5, clips=False),
    "pil-bicubic": Convention(pil_bicubic, 128.0, 128.0, clips=True),
}
"""The conventions by name."""


def convention(name: str) -> Convention:
    """The convention of that name.

    Raises:
      ValueError: there is none; it lists them.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"no resize convention {name!r}; there are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


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


def prepared(images: Array, how: Convention, side: int, *, quantise: bool = True) -> Array:
    """What a tool's network sees of images, `[B, side, side, C]`, about [-1, 1].

    Args:
      images: `[B, H, W, C]` in [-1, 1].
      how: one of `CONVENTIONS`.
      side: that of the network's images.
      quantise: whether they are rounded to the levels of bytes first, as in files.

    Raises:
      ValueError: they are no images.
    """
    pixels = (images.astype(jnp.float32) + 1.0) * 127.5
    if quantise:
        pixels = jnp.clip(jnp.rint(pixels), 0.0, 255.0)
    pixels = resize(pixels, (side, side), how.weights)
    if how.clips:
        pixels = jnp.clip(pixels, 0.0, 255.0)
    return (pixels - how.centre) / how.scale
