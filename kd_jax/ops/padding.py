"""Padding of images with their own pixels, and cropping."""

from functools import partial

import jax

from kd_jax.core.types import Array

MODES = ("edge", "reflect")


def pad(x: Array, around: tuple[tuple[int, int], tuple[int, int]], mode: str) -> Array:
    """Pads images, as `jax.numpy.pad` does in these modes.

    It is written in slices along the two axes, which also have a form for sides of any length in
    other formats.

    Args:
      x: `[B, H, W, C]`.
      around: pixels to add, `((top, bottom), (left, right))`, not negative.
      mode: "edge" repeats the first and last pixels, "reflect" mirrors about them: fewer pixels are
        then added than there are.

    Raises:
      ValueError: the images or the mode do not fit.
    """
    if x.ndim != 4 or mode not in MODES:
        raise ValueError(f"pad: images [B, H, W, C] and a mode of {MODES}, not {x.shape}, {mode!r}")
    for axis, (before, after) in enumerate(around, 1):
        side, part = x.shape[axis], partial(jax.lax.slice_in_dim, x, axis=axis)
        if mode == "reflect" and max(before, after) >= side:
            raise ValueError(f"pad: {(before, after)} mirrored pixels of a side of {side}")
        if mode == "edge":
            first, last = [part(0, 1)] * before, [part(side - 1, side)] * after
        else:
            first = [part(n, n + 1) for n in range(before, 0, -1)]
            last = [part(side - 1 - n, side - n) for n in range(1, after + 1)]
        # Not jnp.concatenate, whose replacement in jax2onnx has no symbolic sides.
        x = jax.lax.concatenate([*first, x, *last], axis)
    return x


def crop(x: Array, around: tuple[tuple[int, int], tuple[int, int]]) -> Array:
    """Images `[B, H, W, C]` without the outer pixels `((top, bottom), (left, right))`."""
    (top, bottom), (left, right) = around
    batch, height, width, channels = x.shape
    # Not x[:, top:], which may become a gather if the sides are symbolic.
    return jax.lax.slice(x, (0, top, left, 0), (batch, height - bottom, width - right, channels))
