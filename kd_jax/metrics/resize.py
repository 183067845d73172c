"""The resize conventions of evaluation tools, from images to the input of their feature network.

Metrics depend on the resize (Parmar et al. 2022), so they are reported with the convention's name:

* `tf1-bilinear`: torch-fidelity, and inside NVIDIA's network, as in TensorFlow 1: pixel i of the
  output samples the input at `i * inputs / outputs`. Then `(x - 128) / 128`, for x in [0, 255].
* `torch-bilinear`: pytorch-fid, PyTorch's `interpolate(align_corners=False)`: pixel centres lie at
  half-integers. Then `2 x - 1`, for x in [0, 1].
* `pil-bicubic`: clean-fid: Pillow's bicubic filter in floating point, channel by channel; the only
  one with antialiasing when it downsamples. The result is clipped to [0, 255] and not rounded
  (clean-fid's first releases did not clip). Then `(x - 128) / 128`.

The tools read image files, or round generated images to 8 bits first. Here images are in [-1, 1],
and `prepared` rounds them to the nearest of the 256 levels by default.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from kd_jax.core.types import Array
from kd_jax.ops.resizing import Weights, pil_bicubic, resize, tf1_bilinear, torch_bilinear


class Convention(NamedTuple):
    """The preprocessing of an image.

    Attributes:
      weights: the resize weights.
      centre: the value in [0, 255] that is mapped to 0.
      scale: the distance from `centre` that is mapped to 1.
      clips: whether values are clipped to [0, 255] after the resize.
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
    """The convention of the given name.

    Raises:
      ValueError: there is no such convention; the message lists the names.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"no resize convention {name!r}; there are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def prepared(images: Array, how: Convention, side: int, *, quantise: bool = True) -> Array:
    """The input of a tool's network, `[B, side, side, C]`, about [-1, 1].

    Args:
      images: `[B, H, W, C]` in [-1, 1].
      how: one of `CONVENTIONS`.
      side: the height and width of the network's input.
      quantise: whether images are rounded to 8 bits first, as in files.

    Raises:
      ValueError: the images are not `[B, H, W, C]`.
    """
    pixels = (images.astype(jnp.float32) + 1.0) * 127.5
    if quantise:
        pixels = jnp.clip(jnp.rint(pixels), 0.0, 255.0)
    pixels = resize(pixels, (side, side), how.weights)
    if how.clips:
        pixels = jnp.clip(pixels, 0.0, 255.0)
    return (pixels - how.centre) / how.scale
