"""R3GAN's networks: counts by hand, initial values, labels, errors, and channels to prune."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import quick

from kd_jax.core.architecture import describe, rebuild
from kd_jax.core.cost import parameter_count
from kd_jax.models import r3gan
from tests.models.shrinking import (
    KEY,
    check_dead_channels,
    check_groups,
    check_student,
    output,
)

RNG = np.random.default_rng(0)
B = 2
G = partial(r3gan.generator, (8, 6), (2, 3), latent=5)
D = partial(r3gan.discriminator, (6, 8), (3, 2))


def _normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def _abstract(network, *inputs):
    variables = jax.eval_shape(network.init, KEY, *inputs)
    return variables, jax.eval_shape(network.apply, variables, *inputs)


def _block(width, groups):
    hidden = 2 * width
    return 2 * width * hidden + 9 * hidden * hidden // groups + 2 * hidden


def test_shapes_and_counts_by_hand():
    stages = 2 * _block(8, 2) + 2 * _block(6, 3)
    variables, (image, taps, _) = _abstract(G(), _normal(B, 5))
    assert (image.shape, image.dtype) == ((B, 8, 8, 3), jnp.float32)
    expected = {"start": (B, 4, 4, 8), "4x4": (B, 4, 4, 8), "8x8": (B, 8, 8, 6)}
    assert {name: tap.shape for name, tap in taps.items()} == expected
    assert parameter_count(variables) == 16 * 8 + 5 * 8 + 8 * 6 + stages + 3 * 6
    variables, (scores, taps, _) = _abstract(D(), _normal(B, 8, 8, 3))
    assert (scores.shape, scores.dtype) == ((B,), jnp.float32)
    expected = {"8x8": (B, 8, 8, 6), "4x4": (B, 4, 4, 8), "features": (B, 8)}
    assert {name: tap.shape for name, tap in taps.items()} == expected
    assert parameter_count(variables) == 3 * 6 + 6 * 8 + stages + 16 * 8 + 8
    equal, _ = _abstract(r3gan.generator((4, 4), (1, 1), blocks=(1, 2)), _normal(B, 64))
    assert "up_1" not in equal["params"]  # equal widths need no convolution
    assert [len(equal["params"][f"stage_{i}"]) for i in range(2)] == [1, 2]


def test_labels_are_embedded():
    z, labels = _normal(B, 5), jnp.array([2, 0])
    network = G(classes=3, embedding=4)
    variables = jax.jit(network.init)(KEY, z, labels)
    assert variables["params"]["embed"]["kernel"].shape == (3, 4)
    ours = output(network, variables, z, labels)
    np.testing.assert_array_equal(ours, output(network, variables, z, jax.nn.one_hot(labels, 3)))
    assert not np.allclose(ours, output(network, variables, z, labels[::-1]), atol=1e-3)
    variables, (scores, _, _) = _abstract(D(classes=3, embedding=4), _normal(B, 8, 8, 3), labels)
    assert scores.shape == (B,)
    assert variables["params"]["score"]["kernel"].shape == (8, 4)


def test_fresh_blocks_are_the_identity_and_activations_keep_their_scale():
    network = r3gan.generator((64, 64), (4, 4), latent=256)
    variables = jax.jit(network.init)(KEY, z := _normal(16, 256))
    _, taps, _ = jax.jit(network.apply)(variables, z)
    np.testing.assert_array_equal(taps["4x4"], taps["start"])
    block = variables["params"]["stage_1"]["block_0"]
    gain = math.sqrt(2 / 1.04) * 4 ** (-1 / 4)
    for name, fan_in in (("expand", 64), ("grouped", 9 * 128 / 4)):
        assert np.std(block[name]["kernel"]) == pytest.approx(gain / math.sqrt(fan_in), rel=0.05)
    assert np.std(taps["start"]) == pytest.approx(1, rel=0.1)


def test_a_checkpoint_describes_the_network():
    network = G(resample_filter=(1, 2, 3, 4))
    rebuilt = rebuild(describe(network, _normal(1, 5)))
    assert rebuilt.network.module == network.module


def test_arguments_out_of_range_raise():
    make = r3gan.generator
    for call, message in (
        (partial(make, ()), "width"),
        (partial(make, (4, 4), (1,)), r"groups=\(1,\) must be 2 numbers"),
        (partial(make, (4,), (1,), blocks=0), "blocks"),
        (partial(make, (4,), (3,)), "3 groups do not divide 8"),
        (partial(make, (4,), (1,), kernel=2), "kernel=2"),
        (partial(make, (4,), (1,), classes=2), "classes=2 cannot have embedding=0"),
        (partial(make, (4,), (1,), latent=0), "latent=0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for network, inputs, message in (
        (G(), (_normal(B, 4),), r"latents \[B, 5\]"),
        (G(), (_normal(B, 5), jnp.array([1, 2])), "not conditional"),
        (G(classes=3, embedding=4), (_normal(B, 5),), "conditional"),
        (D(), (_normal(B, 16, 16, 3),), r"images \[B, 8, 8, C\]"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(network.init, KEY, *inputs)


def _hidden(*names):
    return {f"{side}/block_0/{end}": width for side, width in names for end in ("in", "out")}


CHANNELS = {
    "generator": (
        partial(r3gan.generator, groups=(2, 3), blocks=1, latent=5),
        r3gan.generator_axes,
        _normal(B, 5),
        {"width": (8, 6), "hidden": (8, 6)},
        {"width": (5, 4), "hidden": (6, 3)},
        {"4x4": 8, "8x8": 6, **_hidden(("4x4", 4), ("8x8", 2))},
    ),
    "discriminator": (
        partial(r3gan.discriminator, groups=(3, 2), blocks=1),
        r3gan.discriminator_axes,
        _normal(B, 8, 8, 3),
        {"width": (6, 8), "hidden": (6, 8)},
        {"width": (4, 5), "hidden": (3, 6)},
        {"8x8": 6, "4x4": 8, **_hidden(("8x8", 2), ("4x4", 4))},
    ),
    "equal widths": (
        partial(r3gan.discriminator, groups=(1, 1), blocks=1),
        r3gan.discriminator_axes,
        _normal(B, 8, 8, 3),
        {"width": (4, 4), "hidden": (3, 3)},
        {"width": (3, 3), "hidden": (2, 2)},
        {"8x8": 4, **_hidden(("8x8", 3), ("4x4", 3))},
    ),
}


@pytest.mark.parametrize("name", quick(CHANNELS, 2))
def test_channels_are_pruned(name):
    make, axes, x, wide, narrow, groups = CHANNELS[name]
    check_groups(make(**wide), axes, x, groups)
    check_student(make(**wide), make(**narrow), axes, x)
    check_dead_channels(make(**wide), make(**narrow), axes, x)


def test_variables_of_other_networks_raise():
    g, _ = _abstract(G(), _normal(B, 5))
    d, _ = _abstract(D(), _normal(B, 8, 8, 3))
    for axes, variables in ((r3gan.generator_axes, d), (r3gan.discriminator_axes, g)):
        with pytest.raises(ValueError, match=r"is missing|not in the variables|not described"):
            axes(variables)
