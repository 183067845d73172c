"""Principal directions: by hand, and against the singular values of the layers."""

import numpy as np
import pytest

from kd_jax import latent

RNG = np.random.default_rng(0)


def test_by_hand():
    # Rows along (1, 0), thrice, and along (0, 1): lengths do not count.
    weights = [np.array([[5.0, 0.0], [-1.0, 0.0]]), np.array([[0.0, 9.0], [2.0, 0.0]])]
    np.testing.assert_allclose(np.abs(latent.directions(weights)), np.eye(2), atol=1e-6)


def test_the_strongest_first():
    weights = [RNG.normal(size=(7, 5)), RNG.normal(size=(4, 5))]
    rows = np.concatenate(weights)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.linalg.svd(rows)[2]
    found = latent.directions(weights)
    np.testing.assert_allclose(np.abs(found @ expected.T), np.eye(5), atol=1e-5)
    np.testing.assert_array_equal(latent.directions(weights, 2), found[:2])


@pytest.mark.parametrize("weights", [[], [np.ones((2, 3)), np.ones((2, 4))], [np.ones(3)]])
def test_other_shapes_are_refused(weights):
    with pytest.raises(ValueError, match="matrices for one latent"):
        latent.directions(weights)
