"""Minibatch standard deviation against loops of numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.ops import minibatch_stddev

RNG = np.random.default_rng(0)


def _by_loops(x, group, channels):
    """Karras et al. 2018, section 3; groups as StyleGAN2 strides them."""
    batch, height, width, features = x.shape
    group = min(group, batch)
    groups = batch // group
    per_set = features // channels
    result = np.zeros((batch, height, width, channels))
    for member in range(groups):
        examples = [i for i in range(batch) if i % groups == member]
        for channel in range(channels):
            deviations = []
            for feature in range(channel * per_set, (channel + 1) * per_set):
                for row in range(height):
                    for column in range(width):
                        values = [float(x[i, row, column, feature]) for i in examples]
                        centre = sum(values) / group
                        variance = sum((value - centre) ** 2 for value in values) / group
                        deviations.append((variance + 1e-8) ** 0.5)
            for i in examples:
                result[i, :, :, channel] = sum(deviations) / len(deviations)
    return result


@pytest.mark.parametrize(
    ("batch", "group", "channels"),
    [(8, 4, 1), (8, 4, 3), (8, 2, 2), (3, 4, 1), (6, 1, 1), (6, 6, 6)],
)
def test_against_loops(batch, group, channels):
    x = RNG.normal(size=(batch, 2, 3, 6)).astype(np.float32)
    actual = minibatch_stddev(x, group, channels)
    assert actual.shape == (batch, 2, 3, channels)
    np.testing.assert_allclose(actual, _by_loops(x, group, channels), rtol=1e-5)


def test_groups_are_strided():
    # Examples 0, 2, 4, 6 are alike, and 1, 3, 5, 7 are 0 or 6: deviation 3 in their group only.
    x = np.array([5, 0, 5, 6, 5, 0, 5, 6], np.float32).reshape(8, 1, 1, 1)
    expected = np.array([1e-4, 3, 1e-4, 3, 1e-4, 3, 1e-4, 3]).reshape(8, 1, 1, 1)
    np.testing.assert_allclose(minibatch_stddev(x), expected, rtol=1e-5)


def test_a_constant_batch_has_a_finite_gradient():
    x = jnp.ones((4, 2, 2, 3))
    value, gradient = jax.value_and_grad(lambda x: minibatch_stddev(x).sum())(x)
    np.testing.assert_allclose(value, 16 * 1e-4, rtol=1e-4)
    np.testing.assert_array_equal(gradient, np.zeros(x.shape))


def test_half_precision_is_kept_but_not_used_for_computation():
    # 1000 and 1008 are bfloat16 numbers; the difference of their squares would be lost in it.
    x = jnp.array([1000.0, 1008.0, 1000.0, 1008.0], jnp.bfloat16).reshape(4, 1, 1, 1)
    actual = minibatch_stddev(x)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_array_equal(actual.astype(jnp.float32), np.full((4, 1, 1, 1), 4.0))


@pytest.mark.parametrize(("group", "channels"), [(4, 1), (2, 4), (5, 1)])
def test_sizes_that_do_not_divide_raise(group, channels):
    with pytest.raises(
        ValueError, match=rf"group of {group} must divide the batch, and {channels}"
    ):
        minibatch_stddev(jnp.zeros((6, 2, 2, 6)), group, channels)


def test_the_last_block_of_stylegan2s_discriminator(golden):
    """NVlabs' epilogue: deviation, 3x3 convolution and two dense layers, with their gains."""
    file = np.load(golden / "stylegan2_d_a.npz")
    weights = {key.removeprefix("sd/b4."): file[key] for key in file if key.startswith("sd/b4.")}

    def activate(x, bias):
        x = x + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return np.where(x > 0, x, 0.2 * x) * 2**0.5

    x = file["out/act_b8"].transpose(0, 2, 3, 1)
    x = np.concatenate([x, minibatch_stddev(x)], axis=-1)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = weights["conv.weight"] / (9 * x.shape[-1]) ** 0.5  # [O, I, 3, 3]
    x = sum(
        np.einsum("bhwi,oi->bhwo", padded[:, r : r + 4, c : c + 4], kernel[:, :, r, c])
        for r in range(3)
        for c in range(3)
    )
    x = activate(x, weights["conv.bias"]).transpose(0, 3, 1, 2).reshape(len(x), -1)
    x = activate(x @ weights["fc.weight"].T / x.shape[1] ** 0.5, weights["fc.bias"])
    logits = x @ weights["out.weight"].T / x.shape[1] ** 0.5 + weights["out.bias"].reshape(1, -1)
    np.testing.assert_allclose(logits, file["out/logits"], rtol=1e-4, atol=1e-5)
