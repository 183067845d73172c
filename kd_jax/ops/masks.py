"""Random masks of missing pixels: `[B, H, W, 1]`, 1 where pixels are missing.

Pure functions of a key, which draw independently for each image.
"""

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array


def box_mask(key: Array, shape: tuple[int, ...], smallest: float, largest: float) -> Array:
    """A missing rectangle in each image.

    Args:
      key: a PRNG key.
      shape: the shape of the images, `[B, H, W, C]`.
      smallest: the minimum height and width, as a fraction of the image's, above 0.
      largest: the maximum, at most 1; both sides are uniform in between, and at least one pixel.

    Returns:
      `[B, H, W, 1]` float32, 1 for missing pixels.

    Raises:
      ValueError: the fractions are not in order, or `shape` is not that of images.
    """
    batch, height, width, _ = _check_shape(shape)
    if not 0 < smallest <= largest <= 1:
        raise ValueError(
            f"a box of {smallest} to {largest} of an image: expected 0 < smallest <= largest <= 1"
        )

    def draw_side(key: Array, count: int) -> Array:
        """`[B, count]`: whether the box covers each position along an axis."""
        size_key, start_key = jax.random.split(key)
        fraction = jax.random.uniform(size_key, (batch, 1), minval=smallest, maxval=largest)
        size = jnp.clip(jnp.round(fraction * count), 1, count)
        start = jnp.floor(jax.random.uniform(start_key, (batch, 1)) * (count - size + 1))
        position = jnp.arange(count)[None, :]
        return (position >= start) & (position < start + size)

    row_key, column_key = jax.random.split(key)
    rows, columns = draw_side(row_key, height), draw_side(column_key, width)
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
    """Random brush strokes on each image (Yu et al. 2019, appendix).

    A stroke is a line of `turns` straight segments with round ends. Each segment has about the
    direction of the one before the last, like the back-and-forth of an eraser.

    Args:
      key: a PRNG key.
      shape: the shape of the images, `[B, H, W, C]`.
      strokes: the number of strokes.
      turns: the number of segments of a stroke.
      thickness: the mean width of strokes, as a fraction of the shorter side; widths are uniform
        from half to one and a half of it.
      length: the mean length of segments, as a fraction of the shorter side; likewise.

    Returns:
      `[B, H, W, 1]` float32, 1 for missing pixels, of which each image has at least one.

    Raises:
      ValueError: a number is not positive, or `shape` is not that of images.
    """
    batch, height, width, _ = _check_shape(shape)
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
    # Every second segment has the opposite direction, with some deviation.
    heading = jax.random.uniform(keys[1], (batch, strokes, 1), maxval=2 * jnp.pi)
    back = jnp.pi * (jnp.arange(turns) % 2)[None, None]
    angle = heading + 0.6 * jax.random.normal(keys[2], count) + back
    step = side * length * jax.random.uniform(keys[3], count, minval=0.5, maxval=1.5)
    offsets = step[..., None] * jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    corners = jnp.concatenate([first, first + jnp.cumsum(offsets, axis=2)], axis=2)
    radius = jax.random.uniform(keys[4], (batch, strokes), minval=0.25, maxval=0.75)
    radius = jnp.maximum(radius * thickness * side, 0.75)
    corners = jnp.clip(corners, 0.0, border)

    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    pixels = jnp.stack([rows, columns], axis=-1).reshape(-1, 2).astype(jnp.float32)

    def missing(start: Array, end: Array, radius: Array) -> Array:
        """`[H W]`: whether pixels lie within a radius of the segment."""
        along = end - start
        fraction = (pixels - start[None]) @ along / jnp.maximum(along @ along, 1e-6)
        nearest = start[None] + jnp.clip(fraction, 0.0, 1.0)[:, None] * along[None]
        return ((pixels - nearest) ** 2).sum(axis=1) <= radius**2

    def draw_strokes(corners: Array, radius: Array) -> Array:
        """`[H W]`: the union of all segments, scanned to use the memory of one."""
        starts = corners[:, :-1].reshape(-1, 2)
        ends = corners[:, 1:].reshape(-1, 2)

        def add(mask: Array, segment: tuple[Array, Array, Array]) -> tuple[Array, None]:
            return mask | missing(*segment), None

        empty = jnp.zeros(height * width, bool)
        return jax.lax.scan(add, empty, (starts, ends, jnp.repeat(radius, turns)))[0]

    masks = jax.vmap(draw_strokes)(corners, radius)
    return masks.reshape(batch, height, width, 1).astype(jnp.float32)


def _check_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"a mask for images of shape {shape}: expected [B, H, W, C]")
    batch, height, width, channels = shape
    return batch, height, width, channels
