"""Missing pixels filled in smoothly, from what is around them.

    filled = smooth(images, masks)

Linear in the known pixels, differentiable, and of fixed cost whatever the mask.
"""

import jax
import jax.numpy as jnp

from kd_jax.types import Array

_DAMPING = 0.6  # below 0.625, above which the plate's sweeps diverge


def smooth(images: Array, missing: Array, membrane: int = 16, plate: int = 16) -> Array:
    """Images whose missing pixels go on as smoothly as what is around them.

    Push and pull (Gortler et al. 1996, "The Lumigraph", section 3.4) fills every hole from the
    coarsest scale at which something is known of it. Some sweeps of Jacobi's method draw the result
    towards the membrane over the hole, whose pixels are the means of their four neighbours; some
    more, damped, from there towards the thin plate (the biharmonic equation), which goes on with
    slopes too. Of few sweeps that is an image between both: in wide holes, where the plate
    overshoots, it stays a membrane.

    Args:
      images: `[B, H, W, C]`; what they hold where pixels are missing does not matter, be it NaN.
      missing: `[B, H, W, 1]` bool.
      membrane: sweeps towards the membrane.
      plate: sweeps towards the plate.

    Returns:
      `[B, H, W, C]`, known pixels as they are; 0 in an image of which nothing is known.
    """
    known = jnp.where(missing, 0.0, images)
    x = _pushed_and_pulled(known, jnp.where(missing, 0.0, jnp.ones_like(known[..., :1])))
    # Loops: unrolled, thirty sweeps take the compiler minutes.
    x = jax.lax.fori_loop(0, membrane, lambda _, x: jnp.where(missing, _of_membrane(x), known), x)
    return jax.lax.fori_loop(
        0, plate, lambda _, x: jnp.where(missing, x + _DAMPING * (_of_plate(x) - x), known), x
    )


def _pushed_and_pulled(sums: Array, weights: Array) -> Array:
    """`sums` are the values times their weights, which are in [0, 1]."""
    height, width = sums.shape[1:3]
    if height == width == 1:
        return sums / jnp.maximum(weights, 1e-8)
    pooled, total = _pooled(sums), _pooled(weights)
    # One known pixel of four is knowledge enough.
    gain = jnp.minimum(1.0, 4 * total) / jnp.maximum(total, 1e-8)
    coarse = _pushed_and_pulled(pooled * gain, total * gain)
    batch, _, _, channels = sums.shape
    sides = (2 * coarse.shape[1], 2 * coarse.shape[2])
    finer = jax.image.resize(coarse, (batch, *sides, channels), "linear")[:, :height, :width]
    return sums + (1 - weights) * finer


def _pooled(x: Array) -> Array:
    """Means of 2x2 pixels; beyond an odd edge there are zeros."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _of_membrane(x: Array) -> Array:
    """What each pixel would be on a membrane; beyond an edge a pixel is its own neighbour."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    middle = slice(1, -1)
    return (x[:, :-2, middle] + x[:, 2:, middle] + x[:, middle, :-2] + x[:, middle, 2:]) / 4


def _of_plate(x: Array) -> Array:
    """What each pixel would be on a plate: of the stencil of 13 points, all but its middle."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")

    def ring(*steps: tuple[int, int]) -> Array:
        return sum(
            (x[:, 2 + i : 2 + i + height, 2 + j : 2 + j + width] for i, j in steps),
            start=jnp.zeros(()),
        )

    near = ring((0, 1), (0, -1), (1, 0), (-1, 0))
    diagonal = ring((1, 1), (1, -1), (-1, 1), (-1, -1))
    far = ring((0, 2), (0, -2), (2, 0), (-2, 0))
    return (8 * near - 2 * diagonal - far) / 20
