"""Batch normalisation against its formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models.layers import norm

RNG = np.random.default_rng(0)


def _normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = 2 * _normal(3, 2, 2, 4) + 5
MEAN, VAR = _normal(4), RNG.uniform(0.5, 2, 4).astype(np.float32)
SCALE, BIAS = _normal(4), _normal(4)
VARIABLES = {
    "params": {"scale": SCALE, "bias": BIAS},
    "batch_stats": {"mean": MEAN, "var": VAR},
}


@pytest.mark.parametrize("unbiased", [True, False])
def test_training_normalises_by_the_batch_and_updates_running_statistics(unbiased):
    layer = norm.BatchNorm(train=True, momentum=0.8, epsilon=1e-3, unbiased=unbiased)
    output, updates = layer.apply(VARIABLES, X, mutable="batch_stats")
    flat = X.reshape(12, 4).astype(np.float64)
    mean, deviation = flat.mean(axis=0), flat - flat.mean(axis=0)
    var = (deviation**2).sum(axis=0) / 12
    expected = deviation / np.sqrt(var + 1e-3) * SCALE + BIAS
    np.testing.assert_allclose(output.reshape(12, 4), expected, rtol=1e-4, atol=1e-5)
    estimate = (deviation**2).sum(axis=0) / (11 if unbiased else 12)
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.8 * MEAN + 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.8 * VAR + 0.2 * estimate, rtol=1e-5)


def test_inference_normalises_by_the_running_statistics():
    output = norm.BatchNorm(train=False).apply(VARIABLES, X)
    expected = (X - MEAN) / np.sqrt(VAR + 1e-5) * SCALE + BIAS
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    plain = norm.BatchNorm(train=False, affine=False)
    output = plain.apply({"batch_stats": VARIABLES["batch_stats"]}, X)
    np.testing.assert_allclose(output, (X - MEAN) / np.sqrt(VAR + 1e-5), rtol=1e-4, atol=1e-5)


def test_a_single_value_has_a_finite_running_variance():
    layer = norm.BatchNorm(train=True, affine=False)
    stats = layer.init(jax.random.key(0), X[:1, :1, :1])
    np.testing.assert_array_equal(stats["batch_stats"]["var"], np.ones(4))  # init updates nothing
    _, updates = layer.apply(stats, X[:1, :1, :1], mutable="batch_stats")
    np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 * np.ones(4), rtol=1e-6)


def test_half_precision_computes_statistics_in_float32():
    layer = norm.BatchNorm(train=True, dtype=jnp.bfloat16)
    large = (X + 300).astype(jnp.bfloat16)
    output, updates = layer.apply(VARIABLES, large, mutable="batch_stats")
    assert output.dtype == jnp.bfloat16
    assert updates["batch_stats"]["mean"].dtype == jnp.float32
    mean = np.asarray(large, np.float64).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.9 * MEAN + 0.1 * mean, rtol=1e-5)


@pytest.mark.parametrize(
    ("truncation", "statistics", "rows"),
    [
        (1.0, 51, {50: 1.0}),
        (0.5, 51, {25: 1.0}),
        (0.37, 51, {18: 0.5, 19: 0.5}),
        (0.375, 51, {18: 0.75, 19: 0.25}),  # the farther set has the larger weight
        # 0.14 / 0.02 is a little more than 7 in floating point, 0.58 / 0.02 a little less than 29.
        (0.14, 51, {7: 0.0, 8: 1.0}),
        (0.58, 51, {28: 1.0, 29: 0.0}),
        (0.25, 3, {0: 0.5, 1: 0.5}),
    ],
)
def test_truncation_rows(truncation, statistics, rows):
    weights = dict(norm.truncation_rows(truncation, statistics))
    assert weights.keys() == rows.keys()
    for row, weight in rows.items():
        assert weights[row] == pytest.approx(weight, abs=1e-9)


@pytest.mark.parametrize("truncation", [0.0, -0.5, 1.5, float("nan"), jnp.asarray(0.5)])
def test_invalid_truncations_raise(truncation):
    with pytest.raises(ValueError, match=r"is not a Python number in \(0, 1\]"):
        norm.truncation_rows(truncation, 51)


def test_truncation_selects_the_statistics():
    means, variances = _normal(3, 4), RNG.uniform(0.5, 2, (3, 4)).astype(np.float32)
    variables = {"batch_stats": {"mean": means, "var": variances}}
    for truncation, mix in ((1.0, [0, 0, 1]), (0.5, [0, 1, 0]), (0.6, [0, 0.2, 0.8])):
        layer = norm.TruncationNorm(3, truncation, epsilon=1e-4, affine=False)
        output = layer.apply(variables, X)
        mean, var = np.array(mix) @ means, np.array(mix) @ variances
        expected = (X - mean) / np.sqrt(var + 1e-4)
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_conditional_scale_and_bias():
    weight = _normal(5, 4)

    def linear(features, name):
        return norm.spectral.Dense(features, use_bias=False, name=name)

    def normalise(affine, name):
        return norm.BatchNorm(train=False, affine=affine, name=name)

    layer = norm.ConditionalNorm(normalise, linear)
    condition = _normal(3, 5)
    variables = {
        "params": {"gain": {"kernel": weight}, "bias": {"kernel": -2 * weight}},
        "batch_stats": {"norm": VARIABLES["batch_stats"]},
    }
    output = layer.apply(variables, X, condition)
    y = (condition @ weight)[:, None, None]
    expected = (X - MEAN) / np.sqrt(VAR + 1e-5) * (1 + y) - 2 * y
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
    plain = {
        "params": {"norm": VARIABLES["params"]},
        "batch_stats": {"norm": VARIABLES["batch_stats"]},
    }
    expected = (X - MEAN) / np.sqrt(VAR + 1e-5) * SCALE + BIAS
    np.testing.assert_allclose(layer.apply(plain, X, None), expected, rtol=1e-4, atol=1e-5)
