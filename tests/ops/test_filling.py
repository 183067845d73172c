"""Smooth inpainting: against the membrane solved in float64, unchanged pixels, and bounds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.restoration import inpaint_biharmonic

from kd_jax.ops import harmonic_inpaint

RNG = np.random.default_rng(0)


def membrane(image, missing):
    """Missing pixels as the means of their neighbours; beyond an edge a pixel is its own."""
    positions = [tuple(position) for position in np.argwhere(missing)]
    height, width = missing.shape
    matrix, rhs = np.eye(len(positions)), np.zeros(len(positions))
    for row, (i, j) in enumerate(positions):
        for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            position = (min(max(k, 0), height - 1), min(max(m, 0), width - 1))
            if missing[position]:
                matrix[row, positions.index(position)] -= 0.25
            else:
                rhs[row] += 0.25 * image[position]
    filled = image.copy()
    for position, value in zip(positions, np.linalg.solve(matrix, rhs), strict=True):
        filled[position] = value
    return filled


@pytest.mark.parametrize("sides", [(8, 8), (7, 11), (12, 5)], ids=str)
def test_many_sweeps_converge_to_the_membrane(sides):
    image = RNG.uniform(-1, 1, sides)
    missing = np.zeros(sides, bool)
    missing[2:6, 1:4] = missing[0, 0] = missing[-1, -2:] = True
    filled = harmonic_inpaint(
        jnp.asarray(image[None, ..., None], jnp.float32), missing[None, ..., None], 300, 0
    )
    np.testing.assert_allclose(filled[0, ..., 0], membrane(image, missing), atol=1e-5)


def test_a_single_missing_pixel_is_the_mean_of_its_neighbours():
    image = jnp.zeros((1, 5, 5, 2)).at[0, 1, 2].set(1.0).at[0, 2, 1].set(2.0).at[0, 3, 2].set(6.0)
    missing = jnp.zeros((1, 5, 5, 1), bool).at[0, 2, 2].set(True)
    filled = harmonic_inpaint(image.at[0, 2, 2].set(100.0), missing, 1, 0)
    np.testing.assert_allclose(filled[0, 2, 2], [2.25, 2.25], rtol=1e-6)
    np.testing.assert_array_equal(filled.at[0, 2, 2].set(0.0), image)


def test_known_pixels_are_unchanged_and_bound_the_others():
    images = jnp.asarray(RNG.uniform(-1, 1, (4, 13, 10, 3)), jnp.float32)
    missing = jnp.asarray(RNG.random((4, 13, 10, 1)) < [[[[0.3]]], [[[0.9]]], [[[0.0]]], [[[1.1]]]])
    hidden = jnp.where(missing, jnp.nan, images)
    filled = np.asarray(jax.jit(partial(harmonic_inpaint, plate=0))(hidden, missing))
    images, missing = np.asarray(images), np.asarray(missing)
    np.testing.assert_array_equal(np.where(missing, 0.0, filled), np.where(missing, 0.0, images))
    for image, before, hole in zip(filled[:2], images, missing, strict=False):
        known = before[~np.broadcast_to(hole, before.shape)].reshape(-1, 3)
        assert (image <= known.max(axis=0) + 1e-5).all()
        assert (image >= known.min(axis=0) - 1e-5).all()
    np.testing.assert_array_equal(filled[2], images[2])
    np.testing.assert_array_equal(filled[3], 0.0)  # grey without known pixels


def test_a_constant_colour_is_preserved_from_a_single_pixel():
    missing = jnp.ones((1, 16, 16, 1), bool).at[0, 3, 12].set(False)
    filled = harmonic_inpaint(jnp.full((1, 16, 16, 3), 0.7), missing)
    np.testing.assert_allclose(filled, 0.7, rtol=1e-5)


def test_a_slope_is_continued():
    slope = jnp.broadcast_to(jnp.linspace(-1, 1, 32)[None, :, None, None], (1, 32, 32, 1))
    missing = jnp.zeros((1, 32, 32, 1), bool).at[0, 12:20, 12:20].set(True)
    np.testing.assert_allclose(harmonic_inpaint(slope, missing), slope, atol=0.03)


def test_many_sweeps_converge_to_the_plate_of_scikit_image():
    image = RNG.uniform(-1, 1, (12, 12))
    missing = np.zeros((12, 12), bool)
    missing[4:7, 3:6] = missing[8, 8] = True
    expected = inpaint_biharmonic(image, missing)
    whole = jnp.asarray(image[None, ..., None], jnp.float32)
    filled = harmonic_inpaint(whole, jnp.asarray(missing[None, ..., None]), 0, 150)
    np.testing.assert_allclose(filled[0, ..., 0], expected, atol=2e-4)


def test_known_pixels_are_unchanged_with_a_plate_and_the_others_stay_bounded():
    images = jnp.asarray(RNG.uniform(-1, 1, (4, 13, 10, 3)), jnp.float32)
    missing = jnp.asarray(RNG.random((4, 13, 10, 1)) < [[[[0.3]]], [[[0.9]]], [[[0.0]]], [[[1.1]]]])
    hidden = jnp.where(missing, jnp.nan, images)
    for sweeps in (16, 150):
        filled = np.asarray(jax.jit(partial(harmonic_inpaint, plate=sweeps))(hidden, missing))
        known = np.where(missing, 0.0, images)
        np.testing.assert_array_equal(np.where(missing, 0.0, filled), known)
        assert np.abs(filled).max() < 5
        np.testing.assert_array_equal(filled[3], 0.0)  # grey without known pixels
