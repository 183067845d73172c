"""Principal directions: by hand, and against the singular values of the layers."""

import numpy as np
import pytest

from kd_jax.methods import sefa

RNG = np.random.default_rng(0)


def test_directions_by_hand():
    # Rows along (1, 0), three of them, and along (0, 1): rows are normalised.
    weights = [np.array([[5.0, 0.0], [-1.0, 0.0]]), np.array([[0.0, 9.0], [2.0, 0.0]])]
    np.testing.assert_allclose(np.abs(sefa.sefa_directions(weights)), np.eye(2), atol=1e-6)


def test_directions_are_sorted_by_singular_values():
    weights = [RNG.normal(size=(7, 5)), RNG.normal(size=(4, 5))]
    rows = np.concatenate(weights)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.linalg.svd(rows)[2]
    directions = sefa.sefa_directions(weights)
    np.testing.assert_allclose(np.abs(directions @ expected.T), np.eye(5), atol=1e-5)
    np.testing.assert_array_equal(sefa.sefa_directions(weights, 2), directions[:2])


@pytest.mark.parametrize("weights", [[], [np.ones((2, 3)), np.ones((2, 4))], [np.ones(3)]])
def test_other_shapes_raise(weights):
    with pytest.raises(ValueError, match="matrices for one latent"):
        sefa.sefa_directions(weights)
