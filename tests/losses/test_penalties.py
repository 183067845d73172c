"""Gradient penalties of discriminators with known gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from kd_jax.losses.penalties import gradient_penalty, orthogonal, path_lengths, r1, r2

RNG = np.random.default_rng(1)
SHAPE = (3, 4, 4, 2)
IMAGE = RNG.normal(size=SHAPE).astype(np.float32)
OTHER = RNG.normal(size=SHAPE).astype(np.float32)
SLOPE = RNG.normal(size=SHAPE[1:]).astype(np.float32)
KEY = jax.random.key(3)


def linear(slope):
    return lambda image: (jnp.einsum("bhwc,hwc->b", image, slope) + 5, {})


def quadratic(a):
    return lambda image: (a / 2 * jnp.sum(image**2, axis=(1, 2, 3)), {})


def squared_norms(image):
    return np.square(image, dtype=np.float64).sum(axis=(1, 2, 3))


@pytest.mark.parametrize("penalty", [r1, r2])
def test_linear_and_quadratic_discriminators(penalty):
    value = penalty(linear(SLOPE), IMAGE)
    np.testing.assert_allclose(value, [np.sum(SLOPE**2) / 2] * 3, rtol=1e-5)
    value = penalty(quadratic(1.5), IMAGE)
    np.testing.assert_allclose(value, 1.5**2 * squared_norms(IMAGE) / 2, rtol=1e-5)


@pytest.mark.parametrize("penalty", [r1, r2])
def test_gradient_with_respect_to_the_discriminator(penalty):
    gradient = jax.grad(lambda a: penalty(quadratic(a), IMAGE).sum())(1.5)
    np.testing.assert_allclose(gradient, 1.5 * squared_norms(IMAGE).sum(), rtol=1e-5)
    gradient = jax.grad(lambda w: penalty(linear(w), IMAGE).mean())(SLOPE)
    np.testing.assert_allclose(gradient, SLOPE, rtol=1e-5)


def test_gradient_penalty_of_a_linear_critic():
    norm = np.sqrt(np.sum(np.float64(SLOPE) ** 2))
    value = gradient_penalty(linear(SLOPE), IMAGE, OTHER, KEY)
    np.testing.assert_allclose(value, [(norm - 1) ** 2] * 3, rtol=1e-5)
    gradient = jax.grad(lambda w: gradient_penalty(linear(w), IMAGE, OTHER, KEY).mean())(SLOPE)
    np.testing.assert_allclose(gradient, 2 * (norm - 1) * SLOPE / norm, rtol=1e-5)


def test_gradient_penalty_of_a_constant_critic():
    value, gradient = jax.value_and_grad(
        lambda w: gradient_penalty(linear(w), IMAGE, OTHER, KEY).mean()
    )(np.zeros_like(SLOPE))
    assert value == 1
    np.testing.assert_array_equal(gradient, 0)


def test_interpolation_weights_are_uniform_and_one_per_pair():
    count = 2000
    real = np.ones((count, 3, 3, 1), np.float32)  # norm 3: a gradient of norm 3 u
    value = gradient_penalty(quadratic(1.0), 10 * real, 9 * real, KEY)
    u = (np.sqrt(np.asarray(value, np.float64)) + 1) / 3 - 9
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3
    assert len(np.unique(value)) > 1900
    np.testing.assert_array_equal(value, gradient_penalty(quadratic(1.0), 10 * real, 9 * real, KEY))
    other = gradient_penalty(quadratic(1.0), 10 * real, 9 * real, jax.random.key(4))
    assert np.mean(other == value) < 0.01


def test_patch_scores_are_averaged_before_differentiation():
    def patches(image):
        scores, taps = linear(SLOPE)(image)
        return jnp.stack([scores, 3 * scores], axis=1), taps

    expected = [2**2 * np.sum(SLOPE**2) / 2] * 3
    np.testing.assert_allclose(r1(patches, IMAGE), expected, rtol=1e-5)


def test_half_precision_scores_give_a_float32_penalty():
    def half(image):
        return quadratic(1.0)(image)[0].astype(jnp.bfloat16), {}

    assert r1(half, IMAGE).dtype == jnp.float32


@pytest.mark.parametrize(
    "penalty",
    [
        lambda score, image: r1(score, image),
        lambda score, image: r2(score, image),
        lambda score, image: gradient_penalty(score, image, image[::-1], KEY),
    ],
    ids=["r1", "r2", "gradient_penalty"],
)
def test_second_derivatives_match_finite_differences(penalty, x64):
    image, h = np.float64(IMAGE), 1e-5
    weights = 0.3 * np.random.default_rng(2).normal(size=(2, *SHAPE[1:]))

    def loss(weights):
        def score(image):
            hidden = jnp.tanh(jnp.einsum("bhwc,khwc->bk", image, weights))
            return hidden @ jnp.array([1.0, -2.0]), {}

        return penalty(score, image).sum()

    loss = jax.jit(loss)
    actual, expected = jax.grad(loss)(weights), np.zeros_like(weights)
    for index in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[index] = h
        expected[index] = (loss(weights + step) - loss(weights - step)) / (2 * h)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8)


def test_the_generator_gets_no_gradient():
    gradient = jax.grad(lambda g: r2(quadratic(1.0), g * OTHER).sum())(2.0)
    assert gradient == 0


def test_another_target_norm():
    def score(x):
        return 3.0 * x.sum(axis=(1, 2, 3)), {}

    x = jnp.ones((2, 2, 2, 1))  # the gradient's norm is 3 * 2 everywhere
    np.testing.assert_allclose(gradient_penalty(score, x, x, KEY, 4.0), [4, 4], rtol=1e-6)


def test_orthogonal_by_hand(x64):
    kernel = jnp.array([[1.0, 1.0, 0.0], [0.0, 2.0, 3.0]])  # columns (1, 0), (1, 2), (0, 3)
    params = {"kernel": kernel, "bias": jnp.ones(3), "diagonal": 7 * jnp.eye(4).reshape(2, 2, 4)}
    value, gradient = jax.value_and_grad(orthogonal)(params)
    np.testing.assert_allclose(value, 1 + 0 + 36)
    products = np.array(kernel).T @ np.array(kernel) * (1 - np.eye(3))
    np.testing.assert_allclose(gradient["kernel"], 2 * np.array(kernel) @ products)
    np.testing.assert_array_equal(gradient["bias"], 0)
    np.testing.assert_array_equal(gradient["diagonal"], 0)


def test_path_lengths_of_a_linear_synthesis(x64):
    """Images A w: `J^T y` is `A^T y` over the root of the pixel count, averaged over layers."""
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(3, 5, 4 * 6 * 2)))  # layers, style, pixels
    styles, noise = (jnp.asarray(rng.normal(size=s)) for s in ((2, 3, 5), (2, 4, 6, 2)))

    def synthesis(w, power=1):
        image = jnp.einsum("blk,lkp->bp", w**power, matrix)
        return image.reshape(-1, 4, 6, 2), {}

    gradients = np.einsum("bp,lkp->blk", np.asarray(noise).reshape(2, -1), np.asarray(matrix))
    expected = np.sqrt((gradients**2).sum(axis=2).mean(axis=1) / (4 * 6))
    np.testing.assert_allclose(path_lengths(synthesis, styles, noise), expected)

    def total(w):
        return path_lengths(lambda w: synthesis(w, 2), w, noise).sum()

    gradient = jax.grad(total)(styles)
    for index in [(0, 0, 0), (1, 2, 4)]:
        step = jnp.zeros_like(styles).at[index].set(1e-5)
        slope = (total(styles + step) - total(styles - step)) / 2e-5
        np.testing.assert_allclose(gradient[index], slope, rtol=1e-6)


def test_path_lengths_of_a_constant_have_no_gradient():
    styles, noise = jnp.ones((2, 3, 5)), jnp.ones((2, 4, 4, 1))

    def length(w):
        return path_lengths(lambda w: (0 * w.sum() * noise, {}), w, noise).sum()

    assert float(length(styles)) == 0
    assert (jax.grad(length)(styles) == 0).all()


def test_path_lengths_reject_mismatched_shapes():
    with pytest.raises(ValueError, match=r"image has shape \(2, 4, 4, 1\) but noise has"):
        path_lengths(
            lambda w: (jnp.ones((2, 4, 4, 1)), {}), jnp.ones((2, 3, 5)), jnp.ones((2, 4, 4, 3))
        )
    with pytest.raises(ValueError, match=r"styles has shape \(2, 5\); \[B, layers, style\]"):
        path_lengths(lambda w: (w, {}), jnp.ones((2, 5)), jnp.ones((2, 4, 4, 3)))
