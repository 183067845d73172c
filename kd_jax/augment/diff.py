"""DiffAugment: the three differentiable augmentations of Zhao et al. 2020, and their composition.

Each is a pure function of the images and of random values, affine in the images, from
`[B, H, W, C]` in [-1, 1] to the same shape. Constants that the paper does not specify are those of
the authors' code.
"""

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array


def diff_augment(
    key: Array,
    images: Array,
    color: bool = True,
    translation: float = 0.125,
    cutout: float = 0.5,
) -> Array:
    """Random color, translation and cutout of each image. Zhao et al. 2020, section 3.

    Args:
      key: the random key.
      images: `[B, H, W, C]` in [-1, 1].
      color: whether to change brightness (by [-0.5, 0.5)), saturation (by a factor in [0, 2)) and
        contrast (by a factor in [0.5, 1.5)).
      translation: the largest shift along an axis, as a fraction of the side, in [0, 1].
      cutout: the side of the rectangle of zeros, as a fraction of the image's side, in [0, 1].

    Returns:
      `[B, H, W, C]`; values may leave [-1, 1].

    Raises:
      ValueError: `images` is not floating-point `[B, H, W, C]`, or a fraction is outside [0, 1].
    """
    check_images(images)
    batch, *sides = images.shape[:3]
    keys = jax.random.split(key, 5)
    if color:
        for subkey, adjust, low, high in (
            (keys[0], brightness, -0.5, 0.5),
            (keys[1], saturation, 0.0, 2.0),
            (keys[2], contrast, 0.5, 1.5),
        ):
            images = adjust(images, jax.random.uniform(subkey, (batch,), minval=low, maxval=high))
    if translation:
        limit = jnp.array([[_part(side, translation, "translation") for side in sides]])
        images = translate(images, jax.random.randint(keys[3], (batch, 2), -limit, limit + 1))
    if cutout:
        # The center of a rectangle of an even side is between pixels, which has one more position.
        places = [side + 1 - _part(side, cutout, "cutout") % 2 for side in sides]
        images = cut_out(
            images, jax.random.randint(keys[4], (batch, 2), 0, jnp.array([places])), cutout
        )
    return images


def brightness(images: Array, amount: Array) -> Array:
    """Adds `amount`, `[B]`, to each image."""
    return images + _per_image(images, amount)


def saturation(images: Array, factor: Array) -> Array:
    """Multiplies each pixel's deviation from the mean of its channels by `factor`, `[B]`."""
    return _scale_deviation(images, images.mean(axis=3, keepdims=True), factor)


def contrast(images: Array, factor: Array) -> Array:
    """Multiplies each value's deviation from the mean of its image by `factor`, `[B]`."""
    return _scale_deviation(images, images.mean(axis=(1, 2, 3), keepdims=True), factor)


def translate(images: Array, shift: Array) -> Array:
    """Translates images by whole pixels; uncovered pixels are 0, the middle of the range.

    Args:
      images: `[B, H, W, C]`.
      shift: int `[B, 2]`, in pixels, down and to the right.

    Raises:
      ValueError: `images` is not floating-point `[B, H, W, C]`, or `shift` is not `[B, 2]`.
    """
    check_images(images)
    _check_draw(images, "shift", shift, 2)
    for axis in (1, 2):
        size = images.shape[axis]
        source = jnp.arange(size)[None] - shift[:, axis - 1, None]
        along = (slice(None), *(slice(None) if a == axis else None for a in (1, 2)), None)
        shifted = jnp.take_along_axis(images, source.clip(0, size - 1)[along], axis=axis)
        images = jnp.where(((source >= 0) & (source < size))[along], shifted, 0)
    return images


def cut_out(images: Array, center: Array, part: float = 0.5) -> Array:
    """Sets a rectangle of each image to 0.

    Args:
      images: `[B, H, W, C]`.
      center: int `[B, 2]`, the row and column of the rectangle's center. For an even side, the
        center is between this pixel and the previous one. The rectangle may extend beyond the
        image.
      part: the sides of the rectangle, as a fraction of the image's sides, rounded to pixels.

    Raises:
      ValueError: `images` is not floating-point `[B, H, W, C]`, `center` is not `[B, 2]`, or `part`
        is outside [0, 1].
    """
    check_images(images)
    _check_draw(images, "center", center, 2)
    masks = []
    for axis, side in enumerate(images.shape[1:3]):
        size = _part(side, part, "cutout")
        place = jnp.arange(side)[None] - (center[:, axis, None] - size // 2)
        masks.append((place >= 0) & (place < size))
    hole = masks[0][:, :, None, None] & masks[1][:, None, :, None]
    return jnp.where(hole, 0, images)


def _scale_deviation(images: Array, mean: Array, factor: Array) -> Array:
    return mean + _per_image(images, factor) * (images - mean)


def _per_image(images: Array, value: Array) -> Array:
    """Reshapes one value per image, `[B]`, to `[B, 1, 1, 1]`."""
    check_images(images)
    _check_draw(images, "amount", value)
    return value.astype(images.dtype)[:, None, None, None]


def _part(side: int, part: float, name: str) -> int:
    if not 0.0 <= part <= 1.0:
        raise ValueError(f"{name}={part} is not in [0, 1], a fraction of the image's side")
    return int(side * part + 0.5)


def check_images(images: Array) -> None:
    """Raises a ValueError unless `images` is floating-point `[B, H, W, C]`."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating-point [B, H, W, C], got {images.dtype} {images.shape}"
        )


def _check_draw(images: Array, name: str, value: Array, *rest: int) -> None:
    shape = (images.shape[0], *rest)
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}; images {images.shape} need {shape}")
