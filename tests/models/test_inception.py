"""Inception-v3: published shapes and sizes, pools by hand, convolutions against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core.cost import parameter_count
from kd_jax.core.network import tap_shapes
from kd_jax.models import inception
from kd_jax.ops import cpu

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
IMAGE = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)

# Table 1 of the paper, and the published layers between them.
SIDES = {
    "Conv2d_1a_3x3": (149, 32),
    "Conv2d_2a_3x3": (147, 32),
    "Conv2d_2b_3x3": (147, 64),
    "MaxPool_1": (73, 64),
    "Conv2d_3b_1x1": (73, 80),
    "Conv2d_4a_3x3": (71, 192),
    "MaxPool_2": (35, 192),
    "Mixed_5b": (35, 256),
    "Mixed_5c": (35, 288),
    "Mixed_5d": (35, 288),
    "Mixed_6a": (17, 768),
    "Mixed_6e": (17, 768),
    "Mixed_7a": (8, 1280),
    "Mixed_7b": (8, 2048),
    "Mixed_7c": (8, 2048),
}


@pytest.mark.parametrize("make", [inception.fid, inception.torchvision])
def test_published_shapes_and_number_of_parameters(make):
    network = make(1000)
    variables = jax.eval_shape(network.init, KEY, IMAGE)
    # Keras' network of 1,000 classes, whose normalisation has no scale; one bias a channel.
    assert parameter_count(variables) == 23_817_352
    assert set(variables) == {"params"}
    shapes = tap_shapes(network, IMAGE)
    for name, (side, channels) in SIDES.items():
        assert shapes[name] == (2, side, side, channels), name
    for name in ("64", "192", "768", "2048"):
        assert shapes[name] == (2, int(name))
    assert shapes["logits_unbiased"] == (2, 1000)


def test_the_smallest_image():
    network = inception.fid(7)
    for side, fits in ((75, True), (74, False)):
        image = jax.ShapeDtypeStruct((1, side, 99, 3), jnp.float32)
        if fits:
            assert tap_shapes(network, image)["Mixed_7c"] == (1, 1, 1, 2048)
        else:
            with pytest.raises(ValueError, match=r"75x75 pixels or more are needed, not of shape"):
                tap_shapes(network, image)
    with pytest.raises(ValueError, match=r"\[B, H, W, 3\]"):
        tap_shapes(network, jax.ShapeDtypeStruct((1, 299, 299, 1), jnp.float32))


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("sides", [(7, 10), (3, 3)])
def test_max_pool(window, stride, sides):
    x = RNG.normal(size=(2, *sides, 3)).astype(np.float32)
    view = np.lib.stride_tricks.sliding_window_view(x, (window, window), axis=(1, 2))
    expected = view[:, ::stride, ::stride].max(axis=(-2, -1))
    np.testing.assert_array_equal(inception.max_pool(jnp.asarray(x), window, stride), expected)


def test_max_pool_of_a_small_image_raises():
    with pytest.raises(ValueError, match="too small for this network: 2x9 pixels are left"):
        inception.max_pool(jnp.zeros((1, 2, 9, 1)), 3, 2)


def test_means_by_hand():
    x = jnp.asarray([[[1.0, 2.0, 3.0], [4.0, 5.0, 60.0]]]).reshape(1, 2, 3, 1)
    left, middle, right = 1 + 2 + 4 + 5, 75, 2 + 3 + 5 + 60
    for padded, counts in ((False, (4, 6, 4)), (True, (9, 9, 9))):
        row = np.array([left, middle, right]) / counts
        means = inception.same_mean(x, padded=padded)[0, :, :, 0]
        np.testing.assert_allclose(means, np.stack([row, row]), rtol=1e-6)


@pytest.mark.parametrize(("batch", "count"), [(4, 2), (3, 1), (3, 2)])
def test_the_stem_in_batches(batch, count, monkeypatch, cpu_algorithms):
    """Computing some images at a time equals computing the whole batch."""
    monkeypatch.setattr(cpu, "MIN_WORK", 0)
    images = RNG.uniform(-1, 1, size=(batch, 75, 77, 3)).astype(np.float32)
    weights, channels = {}, 3
    for name, features, window, _, _ in inception._STEM:
        if features:
            kernel = RNG.normal(size=(window, window, channels, features)) / channels
            bias = RNG.normal(size=features)
            weights[name], channels = (kernel.astype("f"), bias.astype("f")), features
    outputs = jax.jit(inception._stem_in_batches, static_argnums=2)(images, weights, count)
    monkeypatch.undo()
    expected = inception._stem(jnp.asarray(images), weights)
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        assert outputs[name].shape == values.shape
        np.testing.assert_allclose(outputs[name], values, atol=1e-4 * float(np.abs(values).max()))


def test_half_precision_excludes_means_and_logits():
    network = inception.fid(5, dtype=jnp.bfloat16)
    logits, taps = jax.eval_shape(lambda x: network.apply(network.init(KEY, x), x)[:2], IMAGE)
    assert taps["Mixed_7c"].dtype == jnp.bfloat16
    assert {logits.dtype, taps["2048"].dtype, taps["logits_unbiased"].dtype} == {jnp.float32.dtype}
