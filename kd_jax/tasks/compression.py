"""JPEG compression as a function of images: the losses of the format, without its bytes."""

import jax.numpy as jnp
import numpy as np

from kd_jax import ops
from kd_jax.core.types import Array

BRIGHTNESS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""The steps of quality 50, by vertical and horizontal frequency: ITU-T T.81, table K.1."""

COLOURS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
"""Those of the colours: table K.2."""

_TO_YCBCR = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168736, -0.331264, 0.5],
        [0.5, -0.418688, -0.081312],
    ],
    np.float32,
)  # ITU-T T.871, 7
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)
_FREQUENCIES, _PLACES = np.arange(8)[:, None], np.arange(8)
_COSINES = np.float32(
    np.where(_FREQUENCIES == 0, np.sqrt(1 / 8), 1 / 2)
    * np.cos((2 * _PLACES + 1) * _FREQUENCIES * np.pi / 16)
)  # the orthonormal DCT-II


def jpeg(images: Array, quality: Array) -> Array:
    """Images after JPEG compression, as libjpeg's defaults lose their details.

    ITU-T T.81: YCbCr, half the resolution of the colours (4:2:0), the DCT of 8x8 blocks, rounded to
    multiples of the tables K.1 and K.2, which are scaled by the quality as libjpeg does. The
    decoder interpolates the colours linearly. Only the integer arithmetic of the codecs differs: by
    a level here and there, and by a step of a coefficient that lies between two multiples.

    Args:
      images: `[B, H, W, 3]` in [-1, 1].
      quality: integers `[B]`, 1 to 100.

    Returns:
      `[B, H, W, 3]` in [-1, 1], of 256 levels.

    Raises:
      ValueError: the images do not have 3 channels, or there is not one quality for each.
    """
    if images.ndim != 4 or images.shape[3] != 3 or quality.shape != images.shape[:1]:
        raise ValueError(
            f"JPEG needs images [B, H, W, 3] and qualities [B], not shapes {images.shape} and "
            f"{quality.shape}"
        )
    height, width = images.shape[1:3]
    pads = ((0, 0), (0, -height % 16), (0, -width % 16), (0, 0))
    levels = jnp.round(127.5 * (jnp.pad(images, pads, mode="edge") + 1))
    # Centred, as the DCT takes them: brightness is 128 less, and colours have no offset.
    planes = jnp.round(_mix(levels, _TO_YCBCR)) - np.array([[[[128, 0, 0]]]], np.float32)
    brightness, colours = planes[..., :1], _halved(planes[..., 1:])
    scale = jnp.where(quality < 50, 5000 // jnp.maximum(quality, 1), 200 - 2 * quality)
    brightness = _quantise(brightness, BRIGHTNESS, scale)
    colours = _quantise(colours, COLOURS, scale)
    sides = (levels.shape[1], levels.shape[2])
    colours = jnp.round(ops.resize(colours, sides, ops.torch_bilinear))
    decoded = _mix(jnp.concatenate([brightness + 128, colours], axis=3), _TO_RGB)
    levels = jnp.clip(jnp.round(decoded), 0, 255)[:, :height, :width]
    return (2 * levels - 255) / 255  # compiled, 255 / 127.5 - 1 is more than 1


def _mix(images: Array, matrix: np.ndarray) -> Array:
    return jnp.einsum("...c,dc->...d", images, matrix, precision="highest")


def _halved(planes: Array) -> Array:
    """The means of 2x2 pixels; halves are rounded down and up by turns, as libjpeg does."""
    batch, height, width, channels = planes.shape
    sums = planes.reshape(batch, height // 2, 2, width // 2, 2, channels).sum(axis=(2, 4))
    return jnp.floor((sums + 1 + jnp.arange(width // 2).reshape(1, 1, -1, 1) % 2) / 4)


def _quantise(planes: Array, table: tuple[tuple[int, ...], ...], scale: Array) -> Array:
    """Planes `[B, 8 h, 8 w, C]` of rounded DCT coefficients, as integers of a byte's range."""
    steps = jnp.clip((np.array(table)[None] * scale[:, None, None] + 50) // 100, 1, 255)
    steps = steps.astype(jnp.float32)[:, None, :, None, :, None]
    batch, height, width, channels = planes.shape
    blocks = planes.reshape(batch, height // 8, 8, width // 8, 8, channels)
    coefficients = jnp.einsum(
        "ux,vy,bixjyc->biujvc", _COSINES, _COSINES, blocks, precision="highest"
    )
    coefficients = steps * jnp.round(coefficients / steps)
    blocks = jnp.einsum(
        "ux,vy,biujvc->bixjyc", _COSINES, _COSINES, coefficients, precision="highest"
    )
    return jnp.clip(jnp.round(blocks.reshape(planes.shape)), -128, 127)
