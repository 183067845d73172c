"""Real-ESRGAN's networks: counts by hand and of the authors, shapes, ranges, errors, pruning."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import quick

from kd_jax.core.cost import parameter_count
from kd_jax.models import realesrgan, superres
from tests.models.shrinking import (
    KEY,
    check_dead_channels,
    check_groups,
    check_student,
    drawn,
    output,
)

RNG = np.random.default_rng(0)
B = 2


def _images(height, width, channels=3):
    return jnp.asarray(RNG.uniform(-1, 1, (B, height, width, channels)), jnp.float32)


def _count(network, channels=3):
    image = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
    return parameter_count(jax.eval_shape(network.init, KEY, image))


def test_parameter_counts_of_the_published_networks():
    assert _count(realesrgan.rrdb()) == 16_697_987
    assert _count(realesrgan.rrdb(blocks=6)) == 4_467_779
    assert _count(realesrgan.srvgg()) == 621_424
    # 3x3 kernels at full size and after each interpolation, 4x4 kernels that halve the sides.
    n = 64
    halving = 16 * (n * 2 * n + 2 * n * 4 * n + 4 * n * 8 * n)
    doubling = 9 * (8 * n * 4 * n + 4 * n * 2 * n + 2 * n * n)
    ends = (9 * 3 * n + n) + 2 * 9 * n * n + (9 * n + 1)
    assert _count(realesrgan.unet_discriminator()) == halving + doubling + ends


def test_pixel_unshuffle_by_hand():
    x = jnp.arange(16.0).reshape(1, 2, 4, 2)  # channels 0 and 1 of 2 rows of 4 pixels
    y = realesrgan.space_to_depth(x, 2)
    np.testing.assert_array_equal(y[0, 0, 0], [0, 2, 8, 10, 1, 3, 9, 11])
    np.testing.assert_array_equal(superres.depth_to_space(y, 2), x)
    with pytest.raises(ValueError, match=r"multiples of 3.*\(1, 2, 4, 2\)"):
        realesrgan.space_to_depth(x, 3)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_sides_and_taps_of_rrdb(scale):
    network = realesrgan.rrdb(scale, 4, 2, 2, channels=1, inputs=3)
    image = jax.ShapeDtypeStruct((B, 4, 8, 3), jnp.float32)
    enlarged, taps, _ = jax.eval_shape(
        lambda key, x: network.apply(network.init(key, x), x), KEY, image
    )
    assert enlarged.shape == (B, 4 * scale, 8 * scale, 1)
    sides = [(factor * scale, 2 * factor * scale) for factor in (1, 2, 4)]
    expected = dict.fromkeys(("stem", "block_0", "block_1", "trunk"), (B, *sides[0], 4))
    expected |= {"up_0": (B, *sides[1], 4), "up_1": (B, *sides[2], 4)}
    assert {name: tap.shape for name, tap in taps.items()} == expected


@pytest.mark.parametrize("activation", ["prelu", "relu", "leakyrelu"])
def test_srvgg_adds_its_input_with_repeated_pixels(activation):
    x = _images(2, 3, channels=1)
    network = realesrgan.srvgg(3, 4, 1, activation=activation, channels=3, inputs=1)
    variables = drawn(network, x)
    assert ("slope_1" in variables["params"]) == (activation == "prelu")
    image = variables["params"]["image"]
    zero = {**variables["params"], "image": jax.tree.map(jnp.zeros_like, image)}
    expected = np.broadcast_to(np.asarray(x).repeat(3, 1).repeat(3, 2), (B, 6, 9, 3))
    np.testing.assert_allclose(output(network, {"params": zero}, x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "negative"), [("prelu", -0.5), ("relu", 0.0), ("leakyrelu", -0.2)]
)
def test_activations_by_hand(activation, negative):
    """Kernels of zero and biases of -2 and 3."""
    x = _images(1, 1)
    network = realesrgan.srvgg(1, 2, 0, activation=activation)
    params = jax.tree.map(jnp.zeros_like, drawn(network, x))["params"]
    params["layer_0"]["bias"] = jnp.array([-2.0, 3.0])
    if activation == "prelu":
        params["slope_0"] += 0.25
    _, taps, _ = jax.jit(network.apply)({"params": params}, x)
    np.testing.assert_allclose(taps["layer_0"][0, 0, 0], [negative, 3], atol=1e-6)


def test_images_are_computed_in_the_unit_range():
    """A bias of 3/4 of the last layer is 3/4 of the range from -1 to 1."""
    x = _images(2, 2)
    network = realesrgan.rrdb(2, 4, 1, 2)
    params = jax.tree.map(jnp.zeros_like, drawn(network, x))["params"]
    params["image"]["bias"] += 0.75
    np.testing.assert_allclose(output(network, {"params": params}, x), 0.5, atol=1e-6)


def test_a_discriminator_scores_pixels():
    def outputs(network, height, width):
        x = jax.ShapeDtypeStruct((B, height, width, 3), jnp.float32)
        return jax.eval_shape(lambda key, x: network.apply(network.init(key, x), x), KEY, x)

    scores, taps, _ = outputs(realesrgan.unet_discriminator(2), 8, 16)
    assert scores.shape == (B, 8, 16)
    sides = {"down_0": (8, 16, 2), "down_3": (1, 2, 16), "up_2": (2, 4, 8), "head_1": (8, 16, 2)}
    assert {name: taps[name].shape[1:] for name in sides} == sides
    without = realesrgan.unet_discriminator(2, skip=False)
    assert outputs(without, 9, 23)[0].shape == (B, 8, 16)
    with pytest.raises(ValueError, match=r"multiples of 8, not of shape \(2, 9, 23, 3\)"):
        outputs(realesrgan.unet_discriminator(2), 9, 23)


def test_a_discriminator_without_skip_connections():
    x = _images(8, 8)
    networks = [realesrgan.unet_discriminator(1, skip=skip) for skip in (True, False)]
    variables = drawn(networks[0], x)
    (_, skip, _), (_, without, _) = (jax.jit(n.apply)(variables, x) for n in networks)
    expected = without["up_2"] + without["down_2"]
    np.testing.assert_allclose(
        skip["up_2"], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )
    assert not np.allclose(skip["head_1"], without["head_1"])


def test_arguments_out_of_range_raise():
    for make, message in (
        (partial(realesrgan.rrdb, 3), "scale is one of 1, 2, 4, not 3"),
        (partial(realesrgan.rrdb, growth=0), "growth=0"),
        (partial(realesrgan.srvgg, 0), "scale=0"),
        (partial(realesrgan.srvgg, layers=-1), "layers=-1"),
        (partial(realesrgan.srvgg, inputs=2), "inputs=2 must be channels=3 or 1"),
        (partial(realesrgan.srvgg, activation="elu"), "'elu'"),
        (partial(realesrgan.unet_discriminator, 0), "width=0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for network, x, message in (
        (realesrgan.rrdb(2, 4, 1, 2), _images(3, 4), "multiples of 2"),
        (realesrgan.srvgg(2, 4, 1), _images(3, 4, 1), r"\[B, h, w, 3\] are needed, not .*3, 4, 1"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(network.init, KEY, x)


DENSE = {f"block_0/dense_{i}/conv_{j}": 3 for i in range(3) for j in range(4)}
CHANNELS = {
    "rrdb": (
        partial(realesrgan.rrdb, 2, blocks=1),
        realesrgan.rrdb_axes,
        {"width": 6, "growth": 3},
        {"width": 4, "growth": 2},
        {"stem": 6, **DENSE, "up_0": 6, "up_1": 6, "full": 6},
    ),
    "srvgg": (
        partial(realesrgan.srvgg, 2, layers=1),
        realesrgan.srvgg_axes,
        {"width": 6},
        {"width": 4},
        {"layer_0": 6, "layer_1": 6},
    ),
    "unet": (
        realesrgan.unet_discriminator,
        realesrgan.unet_discriminator_axes,
        {"width": 3},
        {"width": 2},
        {"down_0": 3, "down_1": 6, "down_2": 12, "down_3": 24, "head_0": 3, "head_1": 3},
    ),
}


@pytest.mark.parametrize("name", quick(CHANNELS, lambda name: name != "rrdb"))
def test_channels_are_pruned(name):
    make, axes, wide, narrow, groups = CHANNELS[name]
    x = _images(8, 8)
    check_groups(make(**wide), axes, x, groups)
    check_student(make(**wide), make(**narrow), axes, x)
    # The largest singular value depends on channels that no layer reads.
    options = {"spectral": None} if make is realesrgan.unet_discriminator else {}
    check_dead_channels(make(**wide, **options), make(**narrow, **options), axes, x)


def test_variables_of_other_networks_raise():
    shapes = jax.eval_shape(realesrgan.srvgg(2, 4, 1).init, KEY, _images(4, 4))
    for axes in (realesrgan.rrdb_axes, realesrgan.unet_discriminator_axes):
        with pytest.raises(ValueError, match="is missing"):
            axes(shapes)
