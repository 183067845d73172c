"""Moments of features against hand-computed values."""

import jax
import numpy as np
import pytest

from kd_jax.losses import moments

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 2, 3)).astype(np.float32)
MEAN, SECOND = np.zeros(6, np.float32), np.ones(6, np.float32)


def test_moments_by_hand():
    mean, second = moments.moments(np.array([[1.0, 0.0], [3.0, -4.0]], np.float32))
    np.testing.assert_allclose(mean, [2, -2])
    np.testing.assert_allclose(second, [(1 + 9) / 2, (0 + 16) / 2])  # not centred


def test_features_are_flattened():
    mean, second = moments.moments(FEATURES)
    assert mean.shape == second.shape == (6,)
    np.testing.assert_allclose(mean, FEATURES.reshape(6, 6).mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(second, (FEATURES.reshape(6, 6) ** 2).mean(0), rtol=1e-5)


def test_moments_of_a_set_are_averages_over_its_parts():
    whole = moments.moments(FEATURES)
    small, large = moments.moments(FEATURES[:2]), moments.moments(FEATURES[2:])
    for expected, a, b in zip(whole, small, large, strict=True):
        np.testing.assert_allclose((2 * a + 4 * b) / 6, expected, rtol=1e-5, atol=1e-6)


def test_matching_by_hand():
    features = np.array([[1.0, 0.0], [3.0, -4.0]], np.float32)  # moments 2, -2 and 5, 8
    value = moments.moment_matching(features, np.array([1.5, 0.0]), np.array([5.0, 11.0]))
    np.testing.assert_allclose(value, (0.5 + 2) / 2 + (0 + 3) / 2, rtol=1e-6)
    only_mean = moments.moment_matching(features, np.zeros(2), np.array([5.0, 8.0]))
    np.testing.assert_allclose(only_mean, 2, rtol=1e-6)
    only_second = moments.moment_matching(features, np.array([2.0, -2.0]), np.zeros(2))
    np.testing.assert_allclose(only_second, 6.5, rtol=1e-6)


def test_zero_and_stationary_at_the_target_moments():
    mean, second = moments.moments(FEATURES)
    value, gradient = jax.value_and_grad(moments.moment_matching)(FEATURES, mean, second)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    other = np.concatenate([FEATURES[::-1], FEATURES])  # other images, same moments
    np.testing.assert_allclose(moments.moment_matching(other, mean, second), 0, atol=1e-6)
    assert moments.moment_matching(FEATURES + 1, mean, second) > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FEATURES[:1], MEAN, SECOND), r"features has shape \(1, 2, 3\); a batch of 2 or more"),
        ((FEATURES[:0], MEAN, SECOND), r"features has shape \(0, 2, 3\); a batch of 2 or more"),
        ((FEATURES[:, 0, 0], MEAN, SECOND), r"features has shape \(6,\); \[B, ...\] is needed"),
        ((FEATURES, MEAN[:1], SECOND), r"\(6, 2, 3\) but mean has \(1,\); \(6,\) is needed"),
        ((FEATURES, MEAN, SECOND[:1]), r"\(6, 2, 3\) but second has \(1,\); \(6,\) is needed"),
        ((FEATURES, MEAN.reshape(2, 3), SECOND), r"but mean has \(2, 3\)"),
        ((FEATURES, MEAN, np.float32(1)), r"but second has \(\)"),
    ],
)
def test_mismatched_shapes_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        moments.moment_matching(*arguments)


def test_moments_of_an_empty_batch_are_rejected():
    moments.moments(FEATURES[:1])
    with pytest.raises(ValueError, match=r"features has shape \(0, 2, 3\)"):
        moments.moments(FEATURES[:0])
    with pytest.raises(ValueError, match="features is missing"):
        moments.moments(None)
