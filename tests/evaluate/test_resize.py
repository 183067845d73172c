"""Resize conventions against Pillow, `jax.image`, and numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kd_jax.evaluate import resize
from kd_jax.evaluate.pictures import to_uint8

RNG = np.random.default_rng(0)
SIZES = [(5, 7), (64, 48), (11, 3), (1, 2)]
WEIGHTS = [resize.tf1_bilinear, resize.torch_bilinear, resize.pil_bicubic]


def images(size, channels=3):
    return RNG.uniform(0, 255, (2, *size, channels)).astype(np.float32)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 13), (13, 5), (1, 4), (4, 1), (7, 7)])
def test_weights_keep_constants(weights, inputs, outputs):
    matrix = weights(inputs, outputs)
    assert matrix.shape == (outputs, inputs)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
    if inputs == outputs:
        np.testing.assert_allclose(matrix, np.eye(inputs), atol=1e-12)


def test_weights_by_hand():
    """Two pixels as four: read at 0, 1/2, 1, 3/2 and at -1/4, 1/4, 3/4, 5/4."""
    second = resize.tf1_bilinear(2, 4)[:, 1]
    np.testing.assert_allclose(second, [0, 0.5, 1, 1])
    np.testing.assert_allclose(resize.torch_bilinear(2, 4)[:, 1], [0, 0.25, 0.75, 1])
    aligned = resize.tf1_bilinear(2, 4, align_corners=True)[:, 1]
    np.testing.assert_allclose(aligned, [0, 1 / 3, 2 / 3, 1])
    # Halfway between four pixels: the cubic convolution's (-1, 9, 9, -1) / 16.
    middle = resize.pil_bicubic(8, 16)[7] * 0.5 + resize.pil_bicubic(8, 16)[8] * 0.5
    np.testing.assert_allclose(middle, middle[::-1], atol=1e-12)
    np.testing.assert_allclose(resize.pil_bicubic(7, 21)[10], np.eye(7)[3], atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(9, 12), (299, 299)])
def test_as_pillow(size, target):
    x = images(size)
    found = jax.jit(resize.resize, static_argnums=(1, 2))(x, target, resize.pil_bicubic)
    for index in np.ndindex(2, 3):
        channel = Image.fromarray(x[index[0], :, :, index[1]])
        assert channel.mode == "F"
        expected = channel.resize(target[::-1], Image.Resampling.BICUBIC)
        theirs = np.asarray(expected)
        np.testing.assert_allclose(found[index[0], :, :, index[1]], theirs, atol=1e-4 * 255)
        assert np.abs(found[index[0], :, :, index[1]] - theirs).max() < 1e-3


@pytest.mark.parametrize(
    ("weights", "method", "antialias"),
    [(resize.torch_bilinear, "linear", False), (resize.pil_bicubic, "cubic", True)],
)
@pytest.mark.parametrize("target", [(4, 5), (23, 40)])
def test_as_jax_image(weights, method, antialias, target):
    x = images((16, 13))
    expected = jax.image.resize(x, (2, *target, 3), method, antialias=antialias)
    np.testing.assert_allclose(resize.resize(jnp.asarray(x), target, weights), expected, atol=2e-3)


@pytest.mark.parametrize("name", resize.CONVENTIONS)
def test_prepared_values(name):
    """Black, the middle and white, for each tool; and the levels of bytes."""
    how = resize.convention(name)
    ends = {"torch-bilinear": (-1, 1)}.get(name, (-1, 127 / 128))
    for value, expected in zip((-1.0, 1.0), ends, strict=True):
        found = resize.prepared(jnp.full((1, 3, 4, 1), value), how, 8)
        np.testing.assert_allclose(found, np.full((1, 8, 8, 1), expected), atol=1e-6)
    x = RNG.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    levels = np.float32(to_uint8(x)) / 127.5 - 1
    rounded = resize.prepared(jnp.asarray(x), how, 8)
    exact = resize.prepared(jnp.asarray(levels), how, 8, quantise=False)
    np.testing.assert_allclose(rounded, exact, atol=1e-6)
    plain = resize.prepared(jnp.asarray(x), how, 8, quantise=False)
    assert np.abs(rounded - plain).max() > 1e-3


def test_only_the_cubic_overshoots_and_is_clipped():
    edge = jnp.asarray(np.where(np.arange(8) < 4, -1.0, 1.0), jnp.float32).reshape(1, 1, 8, 1)
    for how in resize.CONVENTIONS.values():
        pixels = resize.prepared(edge, how, 64) * how.scale + how.centre
        assert pixels.min() >= 0
        assert pixels.max() <= 255
    raw = resize.resize(edge, (1, 64), resize.pil_bicubic)
    assert raw.max() > 1.01


def test_errors():
    with pytest.raises(ValueError, match="no resize convention 'nearest'; there are tf1-bilinear"):
        resize.convention("nearest")
    for shape, size in (((2, 3, 4), (5, 5)), ((1, 0, 4, 3), (5, 5)), ((1, 2, 2, 1), (0, 5))):
        with pytest.raises(ValueError, match="cannot be resized"):
            resize.resize(jnp.zeros(shape), size, resize.torch_bilinear)
