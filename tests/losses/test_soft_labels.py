"""Soft-label losses against scipy's entropies and closed-form gradients."""

import jax
import numpy as np
import pytest
import scipy.stats
from scipy.special import expit as sigmoid

from kd_jax.losses.discriminator import bernoulli_kl, soft_label

STUDENT = np.array([2.0, -0.5, 0.3, -3.0], np.float32)
TEACHER = np.array([-1.0, 0.7, 2.5, -3.5], np.float32)


def probabilities(scores, temperature=1.0):
    p = sigmoid(np.float64(scores) / temperature)
    return np.stack([p, 1 - p])


def test_soft_label_is_entropy_plus_divergence():
    p, q = probabilities(TEACHER), probabilities(STUDENT)
    expected = scipy.stats.entropy(p) + scipy.stats.entropy(p, q)
    np.testing.assert_allclose(soft_label(STUDENT, TEACHER), expected, rtol=1e-6)


def test_gradient_of_a_soft_label_is_the_difference_of_probabilities():
    gradient = jax.grad(lambda s: soft_label(s, TEACHER).sum())(STUDENT)
    np.testing.assert_allclose(gradient, sigmoid(STUDENT) - sigmoid(TEACHER), rtol=1e-5)


def test_a_confident_teacher_gives_the_adversarial_losses():
    logits = np.full(4, 1e4, np.float32)
    np.testing.assert_allclose(soft_label(STUDENT, logits), -np.log(sigmoid(STUDENT)), rtol=1e-5)
    np.testing.assert_allclose(soft_label(STUDENT, -logits), -np.log(sigmoid(-STUDENT)), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_bernoulli_kl_matches_scipy(temperature):
    expected = temperature**2 * scipy.stats.entropy(
        probabilities(TEACHER, temperature), probabilities(STUDENT, temperature)
    )
    actual = bernoulli_kl(STUDENT, TEACHER, temperature)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    gradient = jax.grad(lambda s: bernoulli_kl(s, TEACHER, temperature).sum())(STUDENT)
    expected = temperature * (sigmoid(STUDENT / temperature) - sigmoid(TEACHER / temperature))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_bernoulli_kl_of_opposite_confident_logits_is_their_magnitude():
    far = np.array([1e4, -1e4], np.float32)
    np.testing.assert_allclose(bernoulli_kl(-far, far), [1e4, 1e4])
    np.testing.assert_array_equal(bernoulli_kl(far, far), 0)
