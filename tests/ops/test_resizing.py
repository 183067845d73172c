"""Resizing against Pillow, `jax.image`, and numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kd_jax import ops

RNG = np.random.default_rng(0)
SIZES = [(5, 7), (64, 48), (11, 3), (1, 2)]
WEIGHTS = [ops.tf1_bilinear, ops.torch_bilinear, ops.torch_bicubic, ops.pil_bicubic]


def images(size, channels=3):
    return RNG.uniform(0, 255, (2, *size, channels)).astype(np.float32)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 13), (13, 5), (1, 4), (4, 1), (7, 7)])
def test_weights_preserve_constants(weights, inputs, outputs):
    matrix = weights(inputs, outputs)
    assert matrix.shape == (outputs, inputs)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
    if inputs == outputs:
        np.testing.assert_allclose(matrix, np.eye(inputs), atol=1e-12)


def test_weights_by_hand():
    """From two pixels to four: sampled at 0, 1/2, 1, 3/2 and at -1/4, 1/4, 3/4, 5/4."""
    second = ops.tf1_bilinear(2, 4)[:, 1]
    np.testing.assert_allclose(second, [0, 0.5, 1, 1])
    np.testing.assert_allclose(ops.torch_bilinear(2, 4)[:, 1], [0, 0.25, 0.75, 1])
    aligned = ops.tf1_bilinear(2, 4, align_corners=True)[:, 1]
    np.testing.assert_allclose(aligned, [0, 1 / 3, 2 / 3, 1])
    half = ops.torch_bicubic(8, 4)  # between four pixels; a border's pixel stands for two
    np.testing.assert_allclose(half[1, 1:5], np.array([-3, 19, 19, -3]) / 32)
    np.testing.assert_allclose(half[0, :3], np.array([16, 19, -3]) / 32)
    # Halfway between four pixels: the cubic convolution's (-1, 9, 9, -1) / 16.
    middle = ops.pil_bicubic(8, 16)[7] * 0.5 + ops.pil_bicubic(8, 16)[8] * 0.5
    np.testing.assert_allclose(middle, middle[::-1], atol=1e-12)
    np.testing.assert_allclose(ops.pil_bicubic(7, 21)[10], np.eye(7)[3], atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(9, 12), (299, 299)])
def test_equals_pillow(size, target):
    x = images(size)
    resized = jax.jit(ops.resize, static_argnums=(1, 2))(x, target, ops.pil_bicubic)
    for index in np.ndindex(2, 3):
        channel = Image.fromarray(x[index[0], :, :, index[1]])
        assert channel.mode == "F"
        expected = channel.resize(target[::-1], Image.Resampling.BICUBIC)
        reference = np.asarray(expected)
        np.testing.assert_allclose(resized[index[0], :, :, index[1]], reference, atol=1e-4 * 255)
        assert np.abs(resized[index[0], :, :, index[1]] - reference).max() < 1e-3


@pytest.mark.parametrize(
    ("weights", "method", "antialias"),
    [(ops.torch_bilinear, "linear", False), (ops.pil_bicubic, "cubic", True)],
)
@pytest.mark.parametrize("target", [(4, 5), (23, 40)])
def test_equals_jax_image(weights, method, antialias, target):
    x = images((16, 13))
    expected = jax.image.resize(x, (2, *target, 3), method, antialias=antialias)
    np.testing.assert_allclose(ops.resize(jnp.asarray(x), target, weights), expected, atol=2e-3)


def test_invalid_shapes_raise():
    for shape, size in (((2, 3, 4), (5, 5)), ((1, 0, 4, 3), (5, 5)), ((1, 2, 2, 1), (0, 5))):
        with pytest.raises(ValueError, match="cannot be resized"):
            ops.resize(jnp.zeros(shape), size, ops.torch_bilinear)


def test_keys_kernel_by_hand():
    impulse = jnp.zeros((1, 1, 9, 1)).at[0, 0, 4, 0].set(1.0)
    # Keys's kernel at -1.75, -1.25, -0.75, -0.25 and so on.
    half = [-0.0234375, -0.0703125, 0.2265625, 0.8671875]
    row = np.zeros(18)
    row[5:13] = half + half[::-1]
    resized = ops.resize(impulse, (2, 18), ops.pil_bicubic)[0, :, :, 0]
    np.testing.assert_allclose(resized, [row, row], atol=1e-6)
