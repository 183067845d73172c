"""Smooth inpainting of missing pixels from their surroundings.

    filled = harmonic_inpaint(images, missing)

It is linear in the known pixels, differentiable, and of constant cost for any mask.
"""

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array

_DAMPING = 0.6  # the plate's sweeps diverge above 0.625


def harmonic_inpaint(images: Array, missing: Array, membrane: int = 16, plate: int = 16) -> Array:
    """Inpaints missing pixels as a smooth continuation of their surroundings.

    An image pyramid (Gortler et al. 1996, "The Lumigraph", section 3.4) first fills every hole from
    the coarser scales at which pixels are known. Sweeps of Jacobi's method then approach the
    membrane over the hole, whose pixels are the means of their four neighbours; further, damped
    sweeps approach the thin plate (the biharmonic equation), which also continues slopes. After few
    sweeps the image is between both: in wide holes, where the plate overshoots, it remains a
    membrane.

    Args:
      images: `[B, H, W, C]`; values at missing pixels are ignored, even NaN.
      missing: `[B, H, W, 1]` bool.
      membrane: sweeps towards the membrane.
      plate: sweeps towards the plate.

    Returns:
      `[B, H, W, C]`, known pixels unchanged; 0 in an image without known pixels.
    """
    known = jnp.where(missing, 0.0, images)
    x = _fill_from_pyramid(known, jnp.where(missing, 0.0, jnp.ones_like(known[..., :1])))
    # Loops, since thirty unrolled sweeps take minutes to compile.
    x = jax.lax.fori_loop(
        0, membrane, lambda _, x: jnp.where(missing, _membrane_values(x), known), x
    )
    return jax.lax.fori_loop(
        0, plate, lambda _, x: jnp.where(missing, x + _DAMPING * (_plate_values(x) - x), known), x
    )


def _fill_from_pyramid(sums: Array, weights: Array) -> Array:
    """Fills from coarser scales; `sums` are the values times their weights, in [0, 1]."""
    height, width = sums.shape[1:3]
    if height == width == 1:
        return sums / jnp.maximum(weights, 1e-8)
    pooled, total = _mean_pool(sums), _mean_pool(weights)
    # A block counts as known if one of its four pixels is.
    gain = jnp.minimum(1.0, 4 * total) / jnp.maximum(total, 1e-8)
    coarse = _fill_from_pyramid(pooled * gain, total * gain)
    batch, _, _, channels = sums.shape
    sides = (2 * coarse.shape[1], 2 * coarse.shape[2])
    finer = jax.image.resize(coarse, (batch, *sides, channels), "linear")[:, :height, :width]
    return sums + (1 - weights) * finer


def _mean_pool(x: Array) -> Array:
    """Means of 2x2 pixels, with zeros beyond an odd edge."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _membrane_values(x: Array) -> Array:
    """The value of each pixel on a membrane; beyond an edge a pixel is its own neighbour."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    middle = slice(1, -1)
    return (x[:, :-2, middle] + x[:, 2:, middle] + x[:, middle, :-2] + x[:, middle, 2:]) / 4


def _plate_values(x: Array) -> Array:
    """The value of each pixel on a plate, by the stencil of 13 points without its centre."""
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
