"""One-dimensional networks: shapes, receptive fields, and fresh networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.shrinking import check_dead_channels, check_groups, check_student

from kd_jax import ops
from kd_jax.core.architecture import describe, rebuild
from kd_jax.models import waveform

KEY = jax.random.key(0)
WAVES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 32, 1)), jnp.float32)


def init_and_apply(network, *inputs):
    variables = jax.jit(network.init)(KEY, *inputs)
    return variables, jax.jit(network.apply)(variables, *inputs)


def random_variables(variables, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) / max(1, np.prod(x.shape[:-1])) ** 0.5),
        variables,
    )


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_shapes_and_a_fresh_network_interpolates(factor):
    _, (out, taps, _) = init_and_apply(waveform.generator(factor, 6, 2), WAVES)
    assert out.shape == (3, factor * 32, 1)
    assert out.dtype == jnp.float32
    assert {name: x.shape for name, x in taps.items()} == {
        **dict.fromkeys(("stem", "block_0", "block_1", "trunk"), (3, 32, 6)),
        "up": (3, factor * 32, 6),
    }
    np.testing.assert_allclose(out, ops.interpolate(WAVES, factor), atol=0.1)
    assert np.abs(out - ops.interpolate(WAVES, factor)).max() > 0


def test_receptive_field():
    """A stem, two blocks of two, the upsampling layer and the last: kernels of nine samples."""
    network = waveform.generator(4, 3, 2)
    variables = random_variables(init_and_apply(network, WAVES)[0])
    waves = jnp.zeros((1, 128, 1))
    impulse = network.apply(variables, waves.at[0, 64].set(1.0))[0]
    difference = np.abs(impulse - network.apply(variables, waves)[0])[0, :, 0]
    (affected,) = np.nonzero(difference > 1e-7)
    reach = 4 * 6 * 4 + 4  # six layers of four to a side at the low rate, one at the high rate
    assert 4 * 64 - reach <= affected.min() < 4 * 64 - 50
    assert 4 * 64 + 50 < affected.max() <= 4 * 64 + 3 + reach


def test_examples_are_independent_and_networks_translation_equivariant():
    network = waveform.generator(2, 3, 1)
    variables = random_variables(init_and_apply(network, WAVES)[0])
    whole = network.apply(variables, WAVES)[0]
    np.testing.assert_allclose(whole[1:2], network.apply(variables, WAVES[1:2])[0], atol=1e-5)
    long = jnp.pad(WAVES, ((0, 0), (40, 40), (0, 0)))
    shifted = network.apply(variables, jnp.roll(long, 5, axis=1))[0]
    inside = slice(60, -60)
    np.testing.assert_allclose(
        shifted[:, inside],
        jnp.roll(network.apply(variables, long)[0], 10, axis=1)[:, inside],
        atol=1e-5,
    )


def test_the_discriminator_scores_segments():
    waves = jnp.tile(WAVES, (1, 4, 1))
    network = waveform.discriminator(4, 3)
    _, (scores, taps, _) = init_and_apply(network, waves, waves)
    assert scores.shape == (3, 16)
    assert {name: x.shape for name, x in taps.items()} == {
        "layer_0": (3, 64, 4),
        "layer_1": (3, 32, 8),
        "layer_2": (3, 16, 16),
    }
    variables = random_variables(init_and_apply(network, waves, waves)[0])
    apply = jax.jit(network.apply)
    before, after = (apply(variables, x, waves)[0] for x in (waves, waves.at[:, 0].add(1.0)))
    changed = np.abs(before - after).max(axis=0) > 1e-6
    assert changed[0]
    assert not changed[5:].any()
    other = apply(variables, waves, 2 * waves)[0]
    assert np.abs(before - other).max() > 1e-3
    unconditional = waveform.discriminator(4, 3)
    assert init_and_apply(unconditional, waves)[0]["params"]["layer_0"]["kernel"].shape == (5, 2, 4)


def test_half_precision_is_used_for_computation_but_not_for_output():
    network = waveform.generator(2, 4, 1, dtype=jnp.bfloat16)
    variables, (out, taps, _) = init_and_apply(network, WAVES)
    assert out.dtype == jnp.float32
    assert taps["trunk"].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    discriminator = waveform.discriminator(4, 2, dtype=jnp.bfloat16)
    assert init_and_apply(discriminator, WAVES)[1][0].dtype == jnp.float32


def test_channels_are_described():
    check_groups(
        waveform.generator(4, 3, 2),
        waveform.generator_axes,
        WAVES,
        {"stem": 3, "block_0/hidden": 3, "block_1/hidden": 3, "up": 3},
    )
    check_groups(
        waveform.discriminator(2, 3),
        waveform.discriminator_axes,
        WAVES,
        {"layer_0": 2, "layer_1": 4, "layer_2": 8},
    )


def test_a_student_is_initialized_from_the_teachers_channels():
    for make, axes in (
        (lambda width: waveform.generator(2, width, 2), waveform.generator_axes),
        (lambda width: waveform.discriminator(width, 2), waveform.discriminator_axes),
    ):
        check_student(make(4), make(3), axes, WAVES)
        check_dead_channels(make(4), make(3), axes, WAVES)


@pytest.mark.parametrize("axes", [waveform.generator_axes, waveform.discriminator_axes])
def test_axes_of_another_network_raise(axes):
    with pytest.raises(ValueError, match=r"are not those of such a network: .* is missing"):
        axes({"params": {"Dense_0": {"kernel": jnp.zeros((2, 3))}}})


def test_networks_are_rebuilt_from_their_description():
    for network in (waveform.generator(2, 4, 1), waveform.discriminator(4, 2)):
        rebuilt = rebuild(describe(network, WAVES))
        variables, (out, _, _) = init_and_apply(network, WAVES)
        np.testing.assert_array_equal(rebuilt.network.apply(variables, WAVES)[0], out)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: waveform.generator(0), "factor=0"),
        (lambda: waveform.generator(2, 0), "width=0"),
        (lambda: waveform.generator(2, 2, 0), "blocks=0"),
        (lambda: waveform.discriminator(0), "width=0"),
        (lambda: waveform.discriminator(2, 0), "layers=0"),
        (lambda: init_and_apply(waveform.generator(2, 2, 1), WAVES[..., 0]), r"\[B, L, 1\]"),
        (lambda: init_and_apply(waveform.generator(2, 2, 1, channels=2), WAVES), r"\[B, L, 2\]"),
        (lambda: init_and_apply(waveform.discriminator(2, 6), WAVES), "multiple of 64"),
    ],
)
def test_invalid_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
