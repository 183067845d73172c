"""Smooth filling: against the membrane solved for in float64, and what has to stay."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.restoration import inpaint_biharmonic

from kd_jax.ops import smooth

RNG = np.random.default_rng(0)


def membrane(image, missing):
    """Each missing pixel the mean of its neighbours; beyond an edge it is its own."""
    places = [tuple(place) for place in np.argwhere(missing)]
    height, width = missing.shape
    matrix, right = np.eye(len(places)), np.zeros(len(places))
    for row, (i, j) in enumerate(places):
        for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            place = (min(max(k, 0), height - 1), min(max(m, 0), width - 1))
            if missing[place]:
                matrix[row, places.index(place)] -= 0.25
            else:
                right[row] += 0.25 * image[place]
    filled = image.copy()
    for place, value in zip(places, np.linalg.solve(matrix, right), strict=True):
        filled[place] = value
    return filled


@pytest.mark.parametrize("sides", [(8, 8), (7, 11), (12, 5)], ids=str)
def test_many_sweeps_find_the_membrane(sides):
    image = RNG.uniform(-1, 1, sides)
    missing = np.zeros(sides, bool)
    missing[2:6, 1:4] = missing[0, 0] = missing[-1, -2:] = True
    made = smooth(
        jnp.asarray(image[None, ..., None], jnp.float32), missing[None, ..., None], 300, 0
    )
    np.testing.assert_allclose(made[0, ..., 0], membrane(image, missing), atol=1e-5)


def test_a_single_missing_pixel_is_the_mean_of_its_neighbours():
    image = jnp.zeros((1, 5, 5, 2)).at[0, 1, 2].set(1.0).at[0, 2, 1].set(2.0).at[0, 3, 2].set(6.0)
    missing = jnp.zeros((1, 5, 5, 1), bool).at[0, 2, 2].set(True)
    made = smooth(image.at[0, 2, 2].set(100.0), missing, 1, 0)
    np.testing.assert_allclose(made[0, 2, 2], [2.25, 2.25], rtol=1e-6)
    np.testing.assert_array_equal(made.at[0, 2, 2].set(0.0), image)


def test_what_stays_and_what_bounds_it():
    images = jnp.asarray(RNG.uniform(-1, 1, (4, 13, 10, 3)), jnp.float32)
    missing = jnp.asarray(RNG.random((4, 13, 10, 1)) < [[[[0.3]]], [[[0.9]]], [[[0.0]]], [[[1.1]]]])
    hidden = jnp.where(missing, jnp.nan, images)
    made = np.asarray(jax.jit(partial(smooth, plate=0))(hidden, missing))
    images, missing = np.asarray(images), np.asarray(missing)
    np.testing.assert_array_equal(np.where(missing, 0.0, made), np.where(missing, 0.0, images))
    for image, before, hole in zip(made[:2], images, missing, strict=False):
        known = before[~np.broadcast_to(hole, before.shape)].reshape(-1, 3)
        assert (image <= known.max(axis=0) + 1e-5).all()
        assert (image >= known.min(axis=0) - 1e-5).all()
    np.testing.assert_array_equal(made[2], images[2])
    np.testing.assert_array_equal(made[3], 0.0)  # of nothing, grey


def test_the_same_colour_all_over_is_kept_however_little_is_known():
    missing = jnp.ones((1, 16, 16, 1), bool).at[0, 3, 12].set(False)
    made = smooth(jnp.full((1, 16, 16, 3), 0.7), missing)
    np.testing.assert_allclose(made, 0.7, rtol=1e-5)


def test_a_hole_in_a_slope_is_nearly_the_slope():
    slope = jnp.broadcast_to(jnp.linspace(-1, 1, 32)[None, :, None, None], (1, 32, 32, 1))
    missing = jnp.zeros((1, 32, 32, 1), bool).at[0, 12:20, 12:20].set(True)
    np.testing.assert_allclose(smooth(slope, missing), slope, atol=0.03)


def test_many_sweeps_find_the_plate_of_scikit_image():
    image = RNG.uniform(-1, 1, (12, 12))
    missing = np.zeros((12, 12), bool)
    missing[4:7, 3:6] = missing[8, 8] = True
    expected = inpaint_biharmonic(image, missing)
    whole = jnp.asarray(image[None, ..., None], jnp.float32)
    made = smooth(whole, jnp.asarray(missing[None, ..., None]), 0, 150)
    np.testing.assert_allclose(made[0, ..., 0], expected, atol=2e-4)


def test_with_a_plate_too_what_is_known_stays_and_nothing_runs_away():
    images = jnp.asarray(RNG.uniform(-1, 1, (4, 13, 10, 3)), jnp.float32)
    missing = jnp.asarray(RNG.random((4, 13, 10, 1)) < [[[[0.3]]], [[[0.9]]], [[[0.0]]], [[[1.1]]]])
    hidden = jnp.where(missing, jnp.nan, images)
    for sweeps in (16, 150):
        made = np.asarray(jax.jit(partial(smooth, plate=sweeps))(hidden, missing))
        known = np.where(missing, 0.0, images)
        np.testing.assert_array_equal(np.where(missing, 0.0, made), known)
        assert np.abs(made).max() < 5
        np.testing.assert_array_equal(made[3], 0.0)  # of nothing, grey
