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
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from kd_jax.ops.resizing import Weights, pil_bicubic, resize, tf1_bilinear, torch_bilinear
from kd_jax.types import Array


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
