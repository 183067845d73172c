"""The multilayer perceptron GAN: sizes of Goodfellow et al. 2014, and a forward pass in numpy."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import mlp

RNG = np.random.default_rng(0)
B, LATENT = 3, 5


def _abstract(network, *inputs):
    def run(key, *inputs):
        variables = network.init(key, *inputs)
        return *network.apply(variables, *inputs)[:2], variables

    return jax.eval_shape(run, jax.random.key(0), *inputs)


def _count(variables):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(variables["params"]))


def test_the_default_is_128_128_784():
    pair = mlp.gan()
    images, taps, variables = _abstract(pair.generator, jnp.zeros((B, 100)))
    assert images.shape == (B, 28, 28, 1)
    assert {name: tap.shape for name, tap in taps.items()} == {
        "hidden0": (B, 128),
        "hidden1": (B, 128),
    }
    assert _count(variables) == (100 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 784

    scores, taps, variables = _abstract(pair.discriminator, images)
    assert scores.shape == (B,)
    assert set(taps) == {"hidden0", "hidden1"}
    assert _count(variables) == (784 + 1) * 128 + (128 + 1) * 128 + (128 + 1)


@pytest.mark.parametrize(("depth", "width", "channels", "classes"), [(0, 8, 3, 0), (3, 16, 3, 4)])
def test_sizes(depth, width, channels, classes):
    pair = mlp.gan(6, width, channels=channels, classes=classes, depth=depth)
    labels = (jnp.zeros(B, jnp.int32),) if classes else ()
    images, taps, variables = _abstract(pair.generator, jnp.zeros((B, LATENT)), *labels)
    assert images.shape == (B, 6, 6, channels)
    assert {name: tap.shape for name, tap in taps.items()} == {
        f"hidden{layer}": (B, width) for layer in range(depth)
    }
    pixels = 36 * channels
    for first, last, tree in (
        (LATENT, pixels, variables),
        (pixels, 1, _abstract(pair.discriminator, images, *labels)[2]),
    ):
        sizes = [first + classes, *[width] * depth, last]
        expected = sum((a + 1) * b for a, b in pairwise(sizes))
        assert _count(tree) == expected


def _leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def _dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"]).reshape(1, -1)


def test_forward_passes_by_numpy():
    pair = mlp.gan(4, 8, channels=2, classes=3)
    z = RNG.normal(size=(B, LATENT)).astype(np.float32)
    labels = np.array([2, 0, 1])
    one_hot = np.eye(3)[labels]
    variables = pair.generator.init(jax.random.key(0), z, labels)
    params = variables["params"]
    images, taps, after = pair.generator.apply(variables, z, labels)
    hidden = _leaky(_dense(np.concatenate([z, one_hot], axis=1), params["Dense_0"]))
    np.testing.assert_allclose(taps["hidden0"], hidden, rtol=1e-4, atol=1e-5)
    hidden = _leaky(_dense(hidden, params["Dense_1"]))
    expected = np.tanh(_dense(hidden, params["Dense_2"])).reshape(B, 4, 4, 2)
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-5)
    assert after is variables

    variables = pair.discriminator.init(jax.random.key(1), images, labels)
    params = variables["params"]
    scores = pair.discriminator.apply(variables, images, labels)[0]
    x = np.concatenate([np.asarray(images).reshape(B, -1), one_hot], axis=1)
    hidden = _leaky(_dense(_leaky(_dense(x, params["Dense_0"])), params["Dense_1"]))
    np.testing.assert_allclose(
        scores, _dense(hidden, params["Dense_2"])[:, 0], rtol=1e-4, atol=1e-5
    )


def test_half_precision_is_used_for_computation_but_not_for_storage():
    pair = mlp.gan(4, 8, classes=3, dtype=jnp.bfloat16)
    labels = jnp.zeros(B, jnp.int32)
    for network, x in zip(pair, (jnp.zeros((B, LATENT)), jnp.zeros((B, 4, 4, 1))), strict=True):
        output, taps, variables = _abstract(network, x, labels)
        assert output.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        assert {tap.dtype for tap in taps.values()} == {jnp.dtype(jnp.bfloat16)}


def test_labels_are_required_by_conditional_networks_only():
    inputs = (jnp.zeros((B, LATENT)), jnp.zeros((B, 4, 4, 1)))
    for network, x in zip(mlp.gan(4, 8, classes=3), inputs, strict=True):
        with pytest.raises(ValueError, match="made for 3 classes, but none were given"):
            _abstract(network, x)
    for network, x in zip(mlp.gan(4, 8), inputs, strict=True):
        with pytest.raises(ValueError, match=r"0 classes, but labels of shape \(3,\) were given"):
            _abstract(network, x, jnp.zeros(B, jnp.int32))
