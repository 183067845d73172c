"""Adversarial losses against explicit probabilities, closed-form gradients and torch values."""

import jax
import numpy as np
import pytest
from scipy.special import expit as sigmoid

from kd_jax.losses import adversarial as loss

REAL = np.array([2.0, -0.5, 0.3, -3.0], np.float32)
FAKE = np.array([-1.0, 0.7, 2.5, -1.5], np.float32)
P, Q = sigmoid(REAL.astype(np.float64)), sigmoid(FAKE.astype(np.float64))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-7)


def test_minimax_matches_explicit_probabilities():
    close(loss.minimax_d(REAL, FAKE), -np.log(P) - np.log(1 - Q))
    close(loss.minimax_g(FAKE), np.log(1 - Q))
    close(loss.nonsaturating_g(FAKE), -np.log(Q))


def test_hinge_by_hand():
    close(loss.hinge_d(REAL, FAKE), [0 + 0, 1.5 + 1.7, 0.7 + 3.5, 4.0 + 0])
    close(loss.hinge_g(FAKE), [1.0, -0.7, -2.5, 1.5])


def test_wasserstein_by_hand():
    close(loss.wasserstein_d(REAL, FAKE), [-3.0, 1.2, 2.2, 1.5])
    close(loss.wasserstein_g(FAKE), [1.0, -0.7, -2.5, 1.5])


def test_least_squares_by_hand():
    close(loss.least_squares_d(REAL, FAKE), [1.0, 1.37, 3.37, 9.125])
    close(loss.least_squares_g(FAKE), [2.0, 0.045, 1.125, 3.125])


def test_relativistic_is_the_log_likelihood_of_the_pair():
    close(loss.relativistic_d(REAL, FAKE), -np.log(sigmoid(np.float64(REAL) - FAKE)))
    close(loss.relativistic_g(REAL, FAKE), -np.log(sigmoid(np.float64(FAKE) - REAL)))


def test_a_discriminator_at_chance_level():
    zero = np.zeros(1, np.float32)
    close(loss.minimax_d(zero, zero), 2 * np.log(2))
    close(loss.hinge_d(zero, zero), 2)
    close(loss.relativistic_d(zero + 7, zero + 7), np.log(2))


@pytest.mark.parametrize("function", [loss.relativistic_d, loss.relativistic_g, loss.wasserstein_d])
def test_invariant_to_a_common_shift_of_the_scores(function):
    close(function(REAL + 2, FAKE + 2), function(REAL, FAKE))


GRADIENTS = {
    loss.minimax_g: -Q,
    loss.nonsaturating_g: Q - 1,
    loss.hinge_g: -np.ones(4),
    loss.wasserstein_g: -np.ones(4),
    loss.least_squares_g: FAKE - 1,
}


@pytest.mark.parametrize(("generator", "gradient"), GRADIENTS.items())
def test_gradient_of_the_generator_loss(generator, gradient):
    close(jax.grad(lambda fake: generator(fake).sum())(FAKE), gradient)


def test_only_the_minimax_generator_loss_saturates():
    rejected = np.array([-20.0], np.float32)
    assert abs(jax.grad(lambda f: loss.minimax_g(f)[0])(rejected)[0]) < 1e-8
    close(jax.grad(lambda f: loss.nonsaturating_g(f)[0])(rejected), [-1.0])


def test_stylegan2(golden):
    for path in golden.glob("stylegan2_loss_*.npz"):
        file = np.load(path)
        generator_scores = file["out/Gmain/scores/fake/0"]
        close(loss.nonsaturating_g(generator_scores), file["out/Gmain/G/loss/0"][:, 0])
        real, fake = file["out/Dmain/scores/real/0"], file["out/Dmain/scores/fake/0"]
        close(loss.minimax_d(real, fake), file["out/Dmain/D/loss/0"][:, 0])
