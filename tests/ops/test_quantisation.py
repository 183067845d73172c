"""Convolutions as in 8 bits against plain rounding in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax as kd
from kd_jax import ops


def rounded_kernel(kernel):
    """Each output's weights as multiples of a 127th of its largest."""
    steps = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    return np.rint(kernel / steps) * steps


def rounded_image(x):
    """The nearest of 256 values, of which one is 0."""
    step = (x.max() - min(x.min(), 0)) / 255
    zero = np.rint(-min(x.min(), 0) / step)
    return (np.rint(x / step).clip(-zero, 255 - zero)) * step


def arrays(seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=(2, 6, 6, 3)).astype(np.float32)
    return x, random.normal(size=(3, 3, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_convolutions_are_those_of_rounded_numbers(op):
    x, kernel = arrays(0)
    function = getattr(ops, op)
    with ops.rounded():
        ours = jax.jit(lambda x, kernel: function(x, kernel))(x, kernel)
    image = rounded_image(x) if op == "conv" else x
    theirs = function(jnp.float32(image), jnp.float32(rounded_kernel(kernel)))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    plain = function(jnp.array(x), jnp.array(kernel))
    assert np.abs(ours - plain).max() > 1e-3


def test_the_gradient_is_that_at_the_rounded_numbers():
    x, kernel = arrays(1)

    def loss(x, kernel):
        return (ops.conv(x, kernel) ** 2).sum()

    with ops.rounded():
        ours = jax.grad(loss, (0, 1))(x, kernel)
    at = jnp.float32(rounded_image(x)), jnp.float32(rounded_kernel(kernel))
    for a, b in zip(ours, jax.grad(loss, (0, 1))(*at), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_zeros_remain_zeros():
    np.testing.assert_array_equal(ops.round_kernel(jnp.zeros((1, 1, 2, 2))), 0)
    np.testing.assert_array_equal(ops.round_image(jnp.zeros((1, 2, 2, 2))), 0)
    x = jnp.float32(np.linspace(-0.3, 1, 99)).at[7].set(0)
    assert ops.round_image(x.reshape(1, 9, 11, 1)).reshape(-1)[7] == 0
    positive = 255 * ops.round_image(jnp.linspace(0.5, 1, 12).reshape(1, 3, 4, 1))
    np.testing.assert_allclose(positive, np.rint(positive), atol=1e-4)


@pytest.mark.parametrize("remat", [False, True])
def test_networks_keep_their_variables_and_their_statistics(remat):
    network = kd.models.dcgan.generator(16, 4, remat=remat, depth=1)
    latents = jax.random.normal(jax.random.key(0), (4, 3))
    variables = network.init(jax.random.key(1), latents)
    coarse = kd.models.quantised.quantised(network)
    jax.tree.map(np.testing.assert_array_equal, coarse.init(jax.random.key(1), latents), variables)
    images, _, updated = coarse.apply(variables, latents, train=True)
    plain, _, expected = network.apply(variables, latents, train=True)
    assert jax.tree.structure(updated) == jax.tree.structure(expected)
    assert 1e-5 < np.abs(images - plain).max() < 0.2
    again, _, _ = network.apply(variables, latents, train=True)
    np.testing.assert_array_equal(again, plain)


def test_the_synthesis_of_a_style_network_is_rounded_too():
    network = kd.models.stylegan2.generator(8, latent=4, style=4, channel_max=4)
    latents = jnp.ones((1, 4))
    variables = network.init(jax.random.key(0), latents)
    styles = network.mapping(variables, latents)
    coarse = kd.models.quantised.quantised(network)
    ours, _ = coarse.synthesis(variables, styles)
    np.testing.assert_allclose(ours, coarse.apply(variables, latents)[0], atol=1e-6)
    assert np.abs(ours - network.synthesis(variables, styles)[0]).max() > 1e-6
