"""DiffAugment: the three differentiable augmentations of Zhao et al. 2020, and their mixture.

Each is a pure function of the images and of what was drawn for them, affine in the images; all take
`[B, H, W, C]` in [-1, 1] and return as much. The numbers that the paper leaves open are those of
its authors' code.
"""

import jax
import jax.numpy as jnp

from kd_jax.types import Array


def diff_augment(
    key: Array,
    images: Array,
    color: bool = True,
    translation: float = 0.125,
    cutout: float = 0.5,
) -> Array:
    """Images of another color, place and completeness each. Zhao et al. 2020, section 3.

    Args:
      key: of every draw.
      images: `[B, H, W, C]` in [-1, 1].
      color: whether to draw brightness (in [-0.5, 0.5)), saturation ([0, 2)) and contrast
        ([0.5, 1.5)).
      translation: the largest shift along an axis, as a part of the side, in [0, 1].
      cutout: the side of what is left out, as a part of the image's, in [0, 1].

    Returns:
      `[B, H, W, C]`; brightness may leave [-1, 1].

    Raises:
      ValueError: these are no images, or a part is outside [0, 1].
    """
    check_images(images)
    batch, *sides = images.shape[:3]
    keys = jax.random.split(key, 5)
    if color:
        for one, adjust, low, high in (
            (keys[0], brightness, -0.5, 0.5),
            (keys[1], saturation, 0.0, 2.0),
            (keys[2], contrast, 0.5, 1.5),
        ):
            images = adjust(images, jax.random.uniform(one, (batch,), minval=low, maxval=high))
    if translation:
        most = jnp.array([[_part(side, translation, "translation") for side in sides]])
        images = translate(images, jax.random.randint(keys[3], (batch, 2), -most, most + 1))
    if cutout:
        # The square of an even side lies between pixels, and so has one place more.
        places = [side + 1 - _part(side, cutout, "cutout") % 2 for side in sides]
        images = cut_out(
            images, jax.random.randint(keys[4], (batch, 2), 0, jnp.array([places])), cutout
        )
    return images


def brightness(images: Array, amount: Array) -> Array:
    """Images with `amount` added, `[B]`."""
    return images + _of_images(images, amount)


def saturation(images: Array, factor: Array) -> Array:
    """Each pixel's distance from the mean of its channels multiplied by `factor`, `[B]`."""
    return _away(images, images.mean(axis=3, keepdims=True), factor)


def contrast(images: Array, factor: Array) -> Array:
    """Each value's distance from the mean of its image multiplied by `factor`, `[B]`."""
    return _away(images, images.mean(axis=(1, 2, 3), keepdims=True), factor)


def translate(images: Array, shift: Array) -> Array:
    """Images moved by whole pixels; what comes in is 0, the middle of the range.

    Args:
      images: `[B, H, W, C]`.
      shift: int `[B, 2]`, pixels down and to the right.

    Raises:
      ValueError: these are no images, or there is not one shift for each.
    """
    check_images(images)
    _check_draw(images, "shift", shift, 2)
    for axis in (1, 2):
        size = images.shape[axis]
        source = jnp.arange(size)[None] - shift[:, axis - 1, None]
        along = (slice(None), *(slice(None) if a == axis else None for a in (1, 2)), None)
        moved = jnp.take_along_axis(images, source.clip(0, size - 1)[along], axis=axis)
        images = jnp.where(((source >= 0) & (source < size))[along], moved, 0)
    return images


def cut_out(images: Array, center: Array, part: float = 0.5) -> Array:
    """Images with a rectangle of zeros.

    Args:
      images: `[B, H, W, C]`.
      center: int `[B, 2]`, its row and column. A rectangle of an even side has its center between
        the pixel of that number and the one before; what lies outside the image is lost.
      part: its sides, as a part of the image's, rounded.

    Raises:
      ValueError: these are no images, there is not one center for each, or `part` is outside
        [0, 1].
    """
    check_images(images)
    _check_draw(images, "center", center, 2)
    covered = []
    for axis, side in enumerate(images.shape[1:3]):
        size = _part(side, part, "cutout")
        place = jnp.arange(side)[None] - (center[:, axis, None] - size // 2)
        covered.append((place >= 0) & (place < size))
    hole = covered[0][:, :, None, None] & covered[1][:, None, :, None]
    return jnp.where(hole, 0, images)


def _away(images: Array, middle: Array, factor: Array) -> Array:
    return middle + _of_images(images, factor) * (images - middle)


def _of_images(images: Array, value: Array) -> Array:
    """One number for each image, `[B, 1, 1, 1]`."""
    check_images(images)
    _check_draw(images, "amount", value)
    return value.astype(images.dtype)[:, None, None, None]


def _part(side: int, part: float, name: str) -> int:
    if not 0.0 <= part <= 1.0:
        raise ValueError(f"{name}={part} of an image's side is not in [0, 1]")
    return int(side * part + 0.5)


def check_images(images: Array) -> None:
    """Raises a ValueError unless these are images of a floating type, `[B, H, W, C]`."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images [B, H, W, C] in [-1, 1] are needed, not {images.dtype} of shape {images.shape}"
        )


def _check_draw(images: Array, name: str, value: Array, *rest: int) -> None:
    shape = (images.shape[0], *rest)
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}; images {images.shape} need {shape}")
