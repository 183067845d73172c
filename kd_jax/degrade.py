"""What images lose before a network is asked to restore them: resolution, pixels, colours.

Pure functions of `[B, H, W, C]` images in [-1, 1]; what draws takes a key first, and draws for each
image anew. Masks are `[B, H, W, 1]`, 1 where pixels are missing and 0 where they are known.
"""

import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.types import Array


def downsampled(images: Array, factor: int) -> Array:
    """Images with `1 / factor` of the rows and columns, by Pillow's antialiased bicubic filter.

    Args:
      images: `[B, H, W, C]`.
      factor: divides H and W.

    Returns:
      `[B, H / factor, W / factor, C]`; the filter overshoots, and values are clipped to [-1, 1] as
      in a file.

    Raises:
      ValueError: they are no images, or the factor does not divide the sides.
    """
    if images.ndim != 4 or factor < 1 or any(n % factor for n in images.shape[1:3]):
        raise ValueError(
            f"images of shape {images.shape} cannot be made {factor} times smaller: their sides "
            f"must be multiples of {factor}"
        )
    sides = (images.shape[1] // factor, images.shape[2] // factor)
    return jnp.clip(ops.resize(images, sides, ops.pil_bicubic), -1.0, 1.0)


def upsampled(images: Array, factor: int) -> Array:
    """Images with `factor` times as many rows and columns, by Pillow's bicubic filter.

    What super-resolution has to beat.

    Args:
      images: `[B, h, w, C]`.
      factor: at least 1.

    Returns:
      `[B, factor h, factor w, C]`, clipped to [-1, 1].

    Raises:
      ValueError: they are no images, or the factor is less than 1.
    """
    sides = (factor * images.shape[1], factor * images.shape[2])
    return jnp.clip(ops.resize(images, sides, ops.pil_bicubic), -1.0, 1.0)


def noisy(key: Array, images: Array, deviation: float) -> Array:
    """Images with white Gaussian noise of a standard deviation, in units of [-1, 1]."""
    noise = jax.random.normal(key, images.shape, images.dtype)
    return jnp.clip(images + deviation * noise, -1.0, 1.0)


def box_mask(key: Array, shape: tuple[int, ...], smallest: float, largest: float) -> Array:
    """One missing rectangle in each image.

    Args:
      key: of the draw.
      shape: the images', `[B, H, W, C]`.
      smallest: least height and width, as a part of the image's, above 0.
      largest: greatest, at most 1; both sides are drawn uniformly between, at least a pixel.

    Returns:
      `[B, H, W, 1]` float32, 1 where pixels are missing.

    Raises:
      ValueError: the parts are not in order, or the shape is no images'.
    """
    batch, height, width, _ = _shape(shape)
    if not 0 < smallest <= largest <= 1:
        raise ValueError(
            f"a box of {smallest} to {largest} of an image: 0 < smallest <= largest <= 1 is needed"
        )

    def one_side(key: Array, count: int) -> Array:
        """`[B, count]`: where along one axis the box is."""
        size_key, place_key = jax.random.split(key)
        part = jax.random.uniform(size_key, (batch, 1), minval=smallest, maxval=largest)
        size = jnp.clip(jnp.round(part * count), 1, count)
        start = jnp.floor(jax.random.uniform(place_key, (batch, 1)) * (count - size + 1))
        place = jnp.arange(count)[None, :]
        return (place >= start) & (place < start + size)

    row_key, column_key = jax.random.split(key)
    rows, columns = one_side(row_key, height), one_side(column_key, width)
    return (rows[:, :, None] & columns[:, None, :])[..., None].astype(jnp.float32)


def free_form_mask(
    key: Array,
    shape: tuple[int, ...],
    *,
    strokes: int = 4,
    turns: int = 6,
    thickness: float = 0.08,
    length: float = 0.2,
) -> Array:
    """Brush strokes that wander over each image (Yu et al. 2019, appendix).

    Each is a line of `turns` straight pieces with round ends. Of a stroke's pieces each goes on in
    about the direction of the one before the last, as a hand does that rubs something out.

    Args:
      key: of the draw.
      shape: the images', `[B, H, W, C]`.
      strokes: how many of them.
      turns: pieces of each.
      thickness: the mean width of strokes, as a part of the shorter side; uniform from half to one
        and a half of it.
      length: the mean length of pieces, likewise.

    Returns:
      `[B, H, W, 1]` float32, 1 where pixels are missing; at least one pixel of each image is.

    Raises:
      ValueError: a number is not positive, or the shape is no images'.
    """
    batch, height, width, _ = _shape(shape)
    if min(strokes, turns) < 1 or min(thickness, length) <= 0:
        raise ValueError(
            f"strokes={strokes}, turns={turns}, thickness={thickness} and length={length} must be "
            "positive"
        )
    side = min(height, width)
    keys = jax.random.split(key, 5)
    count = (batch, strokes, turns)
    border = jnp.array([height - 1.0, width - 1.0]).reshape(1, 1, 1, 2)
    first = jax.random.uniform(keys[0], (batch, strokes, 1, 2)) * border
    # Back and forth: every second piece goes the other way, each some way off.
    heading = jax.random.uniform(keys[1], (batch, strokes, 1), maxval=2 * jnp.pi)
    back = jnp.pi * (jnp.arange(turns) % 2)[None, None]
    angle = heading + 0.6 * jax.random.normal(keys[2], count) + back
    step = side * length * jax.random.uniform(keys[3], count, minval=0.5, maxval=1.5)
    moves = step[..., None] * jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    corners = jnp.concatenate([first, first + jnp.cumsum(moves, axis=2)], axis=2)
    radius = jax.random.uniform(keys[4], (batch, strokes), minval=0.25, maxval=0.75)
    radius = jnp.maximum(radius * thickness * side, 0.75)
    corners = jnp.clip(corners, 0.0, border)

    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    pixels = jnp.stack([rows, columns], axis=-1).reshape(-1, 2).astype(jnp.float32)

    def missing(start: Array, end: Array, radius: Array) -> Array:
        """`[H W]`: the pixels within a radius of the segment."""
        along = end - start
        part = (pixels - start[None]) @ along / jnp.maximum(along @ along, 1e-6)
        nearest = start[None] + jnp.clip(part, 0.0, 1.0)[:, None] * along[None]
        return ((pixels - nearest) ** 2).sum(axis=1) <= radius**2

    def image(corners: Array, radius: Array) -> Array:
        """`[H W]`: all pieces, one after the other, in the memory of one."""
        starts = corners[:, :-1].reshape(-1, 2)
        ends = corners[:, 1:].reshape(-1, 2)

        def add(found: Array, piece: tuple[Array, Array, Array]) -> tuple[Array, None]:
            return found | missing(*piece), None

        empty = jnp.zeros(height * width, bool)
        return jax.lax.scan(add, empty, (starts, ends, jnp.repeat(radius, turns)))[0]

    found = jax.vmap(image)(corners, radius)
    return found.reshape(batch, height, width, 1).astype(jnp.float32)


def edges(images: Array, *, sigma: float = 1.0) -> Array:
    """The magnitude of Sobel's gradient of the smoothed brightness.

    Sobel & Feldman 1968; a line drawing whose lines are light.

    Args:
      images: `[B, H, W, C]`.
      sigma: of the Gaussian that smooths, in pixels.

    Returns:
      `[B, H, W, 1]` in [-1, 1]: -1 where nothing changes; 1 from about a quarter of the range on.

    Raises:
      ValueError: `sigma` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} of a Gaussian is not positive")
    grey = images.mean(axis=3, keepdims=True)
    radius = max(1, round(3 * sigma))
    places = jnp.arange(-radius, radius + 1)
    window = jnp.exp(-(places**2) / (2 * sigma**2))
    window = window / window.sum()
    smooth, slope = jnp.array([1.0, 2.0, 1.0]) / 4, jnp.array([-1.0, 0.0, 1.0]) / 2
    soft = _filtered(_filtered(grey, window, 1), window, 2)
    across = _filtered(_filtered(soft, smooth, 1), slope, 2)
    down = _filtered(_filtered(soft, slope, 1), smooth, 2)
    magnitude = jnp.sqrt(across**2 + down**2)
    return jnp.clip(8 * magnitude - 1.0, -1.0, 1.0)


def sepia(images: Array) -> Array:
    """Colours as an old photograph has them: brightness alone, in brown.

    The matrix that photo editors use (it is documented with Microsoft's and the W3C's filters);
    what would be brighter than white is white.

    Args:
      images: `[B, H, W, 3]` in [-1, 1].

    Returns:
      `[B, H, W, 3]` in [-1, 1].

    Raises:
      ValueError: images of another number of channels.
    """
    if images.shape[-1] != 3:
        raise ValueError(f"sepia is of 3 channels, not of images of shape {images.shape}")
    mixed = jnp.einsum("...c,dc->...d", (images + 1) / 2, jnp.array(_SEPIA))
    return 2 * jnp.minimum(mixed, 1.0) - 1


_SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))


def _filtered(images: Array, taps: Array, axis: int) -> Array:
    """The correlation along an axis; the border's pixels are repeated outside."""
    radius, count = len(taps) // 2, images.shape[axis]
    widths = [(0, 0)] * 4
    widths[axis] = (radius, radius)
    padded = jnp.pad(images, widths, mode="edge")
    parts = [jax.lax.slice_in_dim(padded, k, k + count, axis=axis) for k in range(len(taps))]
    return sum((taps[k] * part for k, part in enumerate(parts)), start=jnp.zeros_like(images))


def _shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"a mask for images of shape {shape}: [B, H, W, C] is needed")
    batch, height, width, channels = shape
    return batch, height, width, channels
