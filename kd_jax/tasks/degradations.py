"""Degradations for image restoration: of resolution, pixels and colours.

Pure functions of `[B, H, W, C]` images in [-1, 1]. Random ones take a key first, and draw
independently for each image. Masks, from `kd_jax.ops.masks`, are `[B, H, W, 1]`: 1 for missing
pixels and 0 for known ones.
"""

import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.types import Array
from kd_jax.ops.masks import box_mask as box_mask, free_form_mask as free_form_mask


def downsample(images: Array, factor: int) -> Array:
    """Divides height and width by `factor`, with Pillow's antialiased bicubic filter.

    Args:
      images: `[B, H, W, C]`.
      factor: a divisor of H and W.

    Returns:
      `[B, H / factor, W / factor, C]`, clipped to [-1, 1] like an image file, since the filter
      overshoots.

    Raises:
      ValueError: `images` is not 4-dimensional, or the factor does not divide the sides.
    """
    if images.ndim != 4 or factor < 1 or any(n % factor for n in images.shape[1:3]):
        raise ValueError(
            f"images of shape {images.shape} cannot be made {factor} times smaller: their sides "
            f"must be multiples of {factor}"
        )
    sides = (images.shape[1] // factor, images.shape[2] // factor)
    return jnp.clip(ops.resize(images, sides, ops.pil_bicubic), -1.0, 1.0)


def upsample(images: Array, factor: int) -> Array:
    """Multiplies height and width by `factor`, with Pillow's bicubic filter.

    The baseline for super-resolution.

    Args:
      images: `[B, h, w, C]`.
      factor: at least 1.

    Returns:
      `[B, factor h, factor w, C]`, clipped to [-1, 1].

    Raises:
      ValueError: `images` is not 4-dimensional, or the factor is less than 1.
    """
    sides = (factor * images.shape[1], factor * images.shape[2])
    return jnp.clip(ops.resize(images, sides, ops.pil_bicubic), -1.0, 1.0)


def add_noise(key: Array, images: Array, deviation: float) -> Array:
    """Adds white Gaussian noise of a standard deviation and clips to [-1, 1]."""
    noise = jax.random.normal(key, images.shape, images.dtype)
    return jnp.clip(images + deviation * noise, -1.0, 1.0)


def edges(images: Array, *, sigma: float = 1.0) -> Array:
    """The magnitude of the Sobel gradient of the smoothed brightness.

    Sobel & Feldman 1968; a line drawing with bright lines.

    Args:
      images: `[B, H, W, C]`.
      sigma: the standard deviation of the smoothing Gaussian, in pixels.

    Returns:
      `[B, H, W, 1]` in [-1, 1]: -1 for a gradient of zero; 1 from about a quarter of the range.

    Raises:
      ValueError: `sigma` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} of a Gaussian is not positive")
    grey = images.mean(axis=3, keepdims=True)
    radius = max(1, round(3 * sigma))
    offsets = jnp.arange(-radius, radius + 1)
    window = jnp.exp(-(offsets**2) / (2 * sigma**2))
    window = window / window.sum()
    smooth, slope = jnp.array([1.0, 2.0, 1.0]) / 4, jnp.array([-1.0, 0.0, 1.0]) / 2
    soft = _correlate(_correlate(grey, window, 1), window, 2)
    across = _correlate(_correlate(soft, smooth, 1), slope, 2)
    down = _correlate(_correlate(soft, slope, 1), smooth, 2)
    magnitude = jnp.sqrt(across**2 + down**2)
    return jnp.clip(8 * magnitude - 1.0, -1.0, 1.0)


def sepia(images: Array) -> Array:
    """The sepia tone of old photographs: shades of brown by brightness.

    The matrix of common photo editors, documented for Microsoft's and the W3C's filters. Values
    brighter than white are clipped.

    Args:
      images: `[B, H, W, 3]` in [-1, 1].

    Returns:
      `[B, H, W, 3]` in [-1, 1].

    Raises:
      ValueError: the images do not have 3 channels.
    """
    if images.shape[-1] != 3:
        raise ValueError(f"sepia needs images with 3 channels, not of shape {images.shape}")
    mixed = jnp.einsum("...c,dc->...d", (images + 1) / 2, jnp.array(_SEPIA))
    return 2 * jnp.minimum(mixed, 1.0) - 1


_SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))


def _correlate(images: Array, taps: Array, axis: int) -> Array:
    """The correlation along an axis, with edge padding."""
    radius, count = len(taps) // 2, images.shape[axis]
    widths = [(0, 0)] * 4
    widths[axis] = (radius, radius)
    padded = jnp.pad(images, widths, mode="edge")
    shifted = [jax.lax.slice_in_dim(padded, k, k + count, axis=axis) for k in range(len(taps))]
    return sum((taps[k] * values for k, values in enumerate(shifted)), start=jnp.zeros_like(images))
