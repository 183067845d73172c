"""LPIPS against a NumPy implementation, its gradients and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core.types import Taps
from kd_jax.losses import image
from kd_jax.losses.perceptual import distance, lpips, lpips_map

RNG = np.random.default_rng(0)


def features(batch=2):
    shapes = {"near": (batch, 4, 6, 3), "far": (batch, 2, 3, 5)}
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


HEADS = {
    "near": np.float32([0.5, 2.0, 0.0]),
    "far": np.float32([1.0, 0.0, 3.0, 0.25, 0.5]),
}


def in_numpy(a, b, heads):
    total = 0
    for name, weights in heads.items():
        x, y = (f[name].astype(np.float64) for f in (a, b))
        x, y = (f / (np.sqrt((f**2).sum(axis=3, keepdims=True)) + 1e-10) for f in (x, y))
        total = total + ((x - y) ** 2 * weights).sum(axis=3).mean(axis=(1, 2))
    return total


def test_matches_numpy():
    a, b = features(), features()
    np.testing.assert_allclose(lpips(a, b, HEADS), in_numpy(a, b, HEADS), rtol=1e-5)
    only = {"far": HEADS["far"]}
    np.testing.assert_allclose(lpips(a, b, only), in_numpy(a, b, only), rtol=1e-5)
    ones = {name: np.ones(x.shape[3]) for name, x in a.items()}
    np.testing.assert_allclose(lpips(a, b), in_numpy(a, b, ones), rtol=1e-5)
    np.testing.assert_allclose(lpips(a, b), image.perceptual(a, b), rtol=1e-5)


def test_two_positions_by_hand():
    """Directions (1, 0) and (0, 1), then equal ones: the mean of sum_c w_c and 0."""
    a = {"x": jnp.asarray([[[[3.0, 0.0], [1.0, 1.0]]]])}
    b = {"x": jnp.asarray([[[[0.0, 7.0], [5.0, 5.0]]]])}
    heads = {"x": jnp.asarray([0.25, 0.5])}
    np.testing.assert_allclose(lpips(a, b, heads), [0.375], rtol=1e-6)
    distances = lpips_map(a, b, heads, size=(1, 4))
    np.testing.assert_allclose(distances, [[[0.75, 0.5625, 0.1875, 0.0]]], rtol=1e-6, atol=1e-7)


def test_invariances():
    a, b = features(), features()
    np.testing.assert_allclose(lpips(a, b, HEADS), lpips(b, a, HEADS), rtol=1e-6)
    scaled = {name: 17 * x for name, x in a.items()}
    np.testing.assert_allclose(lpips(scaled, b, HEADS), lpips(a, b, HEADS), rtol=1e-5)
    np.testing.assert_array_equal(lpips(a, a, HEADS), [0, 0])
    second = {name: x[1:] for name, x in a.items()}, {name: x[1:] for name, x in b.items()}
    np.testing.assert_allclose(lpips(*second, HEADS), lpips(a, b, HEADS)[1:], rtol=1e-6)


def test_the_map_of_one_layer_averages_to_the_distance():
    a, b = features(), features()
    only = {"near": HEADS["near"]}
    mean = lpips_map(a, b, only, size=(4, 6)).mean(axis=(1, 2))
    np.testing.assert_allclose(mean, lpips(a, b, only), rtol=1e-5)
    assert lpips_map(a, b, size=(8, 9)).shape == (2, 8, 9)


def test_gradients(x64):
    """Gradients in both features and in the weights match finite differences."""
    arguments = [jax.tree.map(np.float64, part) for part in (features(1), features(1), HEADS)]
    directions = jax.tree.map(lambda x: RNG.normal(size=x.shape), arguments)
    gradients = jax.grad(lambda x: lpips(*x).sum())(arguments)
    slope = sum(
        (g * d).sum() for g, d in zip(*map(jax.tree.leaves, (gradients, directions)), strict=True)
    )

    def along(step):
        return float(lpips(*jax.tree.map(lambda x, d: x + step * d, arguments, directions))[0])

    np.testing.assert_allclose(slope, (along(1e-6) - along(-1e-6)) / 2e-6, rtol=1e-6)


def test_zero_features_get_no_gradient():
    a, b = features(), features()
    a["near"][0] = 0
    gradient = jax.grad(lambda a, b: lpips(a, b, HEADS).sum())(a, b)
    assert all(np.isfinite(g).all() for g in gradient.values())
    np.testing.assert_array_equal(gradient["near"][0], 0)


def test_distance_of_images():
    def apply(variables, images):
        return None, Taps(layer=images * variables["factor"]), variables

    heads = {"layer": np.float32([1.0, 2.0, 3.0])}
    x, y = RNG.normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
    variables = {"factor": jnp.asarray([[[[1.0, -2.0, 0.5]]]])}
    distances = distance(apply, variables, heads)(jnp.asarray(x), jnp.asarray(y))
    a, b = ({"layer": f * np.asarray(variables["factor"])} for f in (x, y))
    np.testing.assert_allclose(distances, in_numpy(a, b, heads), rtol=1e-5)
    with pytest.raises(ValueError, match="images has shape"):
        distance(apply, variables, heads)(jnp.asarray(x), jnp.asarray(y[:1]))


def test_errors():
    a, b = features(), features()
    for arguments, message in (
        ((a, b, {"mid": np.ones(3)}), "features has no layer 'mid'; it has 'near', 'far'"),
        ((a, {"near": b["near"]}), "others has no layer 'far'; it has 'near'"),
        ((a, b, {}), "there is no layer to compare"),
        ((a, b, {"near": np.ones(4)}), "layer 'near' has 3 channels but weights of shape"),
        ((a, {**b, "near": b["near"][:, :2]}), "layer 'near' of features has shape"),
        (({"near": a["near"][0]}, {"near": b["near"][0]}), "is needed"),
        ((None, b), "features is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            lpips(*arguments)
    with pytest.raises(ValueError, match=r"size=\(0, 3\)"):
        lpips_map(a, b, size=(0, 3))
    with pytest.raises(ValueError, match="has a batch of 1 but those before 2"):
        lpips({**a, "far": a["far"][:1]}, {**b, "far": b["far"][:1]})
