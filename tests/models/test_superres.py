"""Super-resolution: counts by hand and of the papers, receptive fields, and fresh networks."""

import functools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import pruning
from kd_jax.core.architecture import describe, rebuild
from kd_jax.core.cost import parameter_count
from kd_jax.core.network import connect
from kd_jax.models import superres
from tests.models.shrinking import (
    KEY,
    check_dead_channels,
    check_groups,
    check_student,
    output,
    random_like,
)

RNG = np.random.default_rng(0)
QUICK = jax.random.key(0, impl="rbg")  # compiles faster
B = 2


def _images(height, width, channels=3):
    return jnp.asarray(RNG.uniform(-1, 1, (B, height, width, channels)), jnp.float32)


def _shapes(network, *inputs):
    return jax.eval_shape(network.init, KEY, *inputs)


def _abstract(network, x, **options):
    return jax.eval_shape(lambda key, x: network.apply(network.init(key, x), x, **options), KEY, x)


def _scaled(network, x, seed=0):
    """Random variables, all with an effect, that preserve the scale of the features."""

    def scale(path, leaf):
        if path[-1].key == "var":
            return 1 + jnp.abs(leaf)
        return leaf / np.sqrt(max(1, np.prod(leaf.shape[:3] if leaf.ndim > 3 else leaf.shape[:-1])))

    return jax.tree_util.tree_map_with_path(scale, random_like(_shapes(network, x), seed))


# --- operations -----------------------------------------------------------------------------------


def test_depth_to_space_by_hand():
    x = jnp.arange(16.0).reshape(1, 1, 2, 8)
    y = superres.depth_to_space(x, 2)
    first = [[0, 1, 8, 9], [2, 3, 10, 11]]
    np.testing.assert_array_equal(y[0, :, :, 0], first)
    np.testing.assert_array_equal(y[0, :, :, 1], np.add(first, 4))
    assert superres.depth_to_space(jnp.zeros((2, 3, 5, 18)), 3).shape == (2, 9, 15, 2)


@pytest.mark.parametrize("shape", [(1, 2, 2, 6), (2, 2, 8)])
def test_depth_to_space_of_other_channels_raises(shape):
    with pytest.raises(ValueError, match=r"channels a multiple of 2\^2 .*, not shape \("):
        superres.depth_to_space(jnp.zeros(shape), 2)


def enlarged_by_two(x):
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "cubic")


def _zeros(module, x):
    return jax.tree.map(jnp.zeros_like, jax.eval_shape(module.init, KEY, x))


def test_a_residual_block_by_hand():
    x = jnp.asarray([-2.0, -1.0, 1.0, 3.0]).reshape(1, 2, 2, 1)
    block = superres.ResidualBlock(superres.Conv, None)
    variables = _zeros(block, x)
    for name in ("conv1", "conv2"):  # the identity
        kernel = variables["params"][name]["kernel"]
        variables["params"][name]["kernel"] = kernel.at[1, 1, 0, 0].set(1.0)
    np.testing.assert_allclose(block.apply(variables, x).ravel(), [-2, -1, 2, 6])


def test_a_residual_in_residual_block_by_hand():
    x = jnp.asarray([-2.0, -1.0, 1.0, 3.0]).reshape(1, 2, 2, 1)
    block = superres.ResidualInResidual(2, superres.Conv)
    variables = _zeros(block, x)
    np.testing.assert_allclose(block.apply(variables, x), 1.2 * x, rtol=1e-6)
    for name in ("dense_0", "dense_1"):  # x + 0.2 x
        last = variables["params"][name]["conv_4"]
        last["kernel"] = last["kernel"].at[1, 1, 0, 0].set(1.0)
    np.testing.assert_allclose(block.apply(variables, x), (1 + 0.2 * 1.2**2) * x, rtol=1e-6)
    # The third block adds 0.2 of the third convolution's second channel, after its leaky ReLU.
    dense = variables["params"]["dense_2"]
    dense["conv_2"]["kernel"] = dense["conv_2"]["kernel"].at[1, 1, 0, 1].set(1.0)
    dense["conv_4"]["kernel"] = dense["conv_4"]["kernel"].at[1, 1, 6, 0].set(1.0)
    slopes = np.where(x < 0, 0.2, 1.0)
    expected = (1 + 0.2 * 1.2**2 * (1 + 0.2 * slopes)) * x
    np.testing.assert_allclose(block.apply(variables, x), expected, rtol=1e-6)


# --- networks -------------------------------------------------------------------------------------


def test_the_papers_parameter_counts():
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    stem, last = 81 * 3 * 64 + 64, 81 * 64 * 3 + 3
    conv = 9 * 64 * 64 + 64
    count = stem + (2 * 16 + 1) * conv + 2 * (9 * 64 * 256 + 256) + last
    assert count == 1_545_219
    assert parameter_count(_shapes(superres.srresnet(), image)) == count
    # The norms have two parameters per channel, the convolutions before them no bias.
    normalised = _shapes(superres.srresnet(batch_norm=True), image)
    assert parameter_count(normalised) == count + (2 * 16 + 1) * 64
    assert parameter_count(_shapes(superres.rrdb(), image)) == 16_697_987


def test_parameter_counts_of_narrow_networks():
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    separable = superres.srresnet(3, 4, 2, channels=1, window=3, separable=True)
    count = 9 * 4 + 4 + 4 * (9 * 4 + 4 * 4 + 4) + (9 * 16 + 4) + (9 * 4 * 36 + 36) + 9 * 4 + 1
    assert parameter_count(_shapes(separable, image)) == count
    separable = superres.rrdb(2, 4, 1, 2, channels=1, separable=True)
    dense = sum(9 * n + 2 * n + 2 for n in (4, 6, 8, 10)) + 9 * 12 + 4 * 12 + 4
    count = 9 * 4 + 4 + 3 * dense + 3 * (9 * 16 + 4) + 9 * 4 + 1
    assert parameter_count(_shapes(separable, image)) == count


MAKES = {
    "srresnet": partial(superres.srresnet, width=4, blocks=1),
    "srresnet, separable": partial(superres.srresnet, width=4, blocks=1, separable=True, window=3),
    "srresnet, normalised": partial(superres.srresnet, width=4, blocks=1, batch_norm=True),
    "rrdb": partial(superres.rrdb, width=4, blocks=1, growth=2),
    "rrdb, separable": partial(superres.rrdb, width=4, blocks=1, growth=2, separable=True),
}
every_network = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@functools.cache
def _fresh(make):
    """A network of scale 2, its initial variables, images and the enlarged images."""
    network, x = make(2), _images(6, 7)
    variables = jax.jit(network.init)(QUICK, x)
    return network, variables, x, output(network, variables, x)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "make",
    [
        partial(superres.srresnet, width=4, blocks=2, separable=True),
        partial(superres.srresnet, width=4, blocks=2, batch_norm=True),
        partial(superres.rrdb, width=4, blocks=2, growth=2),
    ],
)
def test_sides_and_taps(make, scale):
    steps = {2: (2,), 3: (3,), 4: (2, 4), 8: (2, 4, 8)}[scale]
    image = jax.ShapeDtypeStruct((B, 3, 5, 3), jnp.float32)
    enlarged, taps, _ = _abstract(make(scale), image)
    assert enlarged.shape == (B, 3 * scale, 5 * scale, 3)
    assert enlarged.dtype == jnp.float32
    expected = dict.fromkeys(("stem", "block_0", "block_1", "trunk"), (B, 3, 5, 4))
    for index, step in enumerate(steps):
        expected[f"up_{index}"] = (B, 3 * step, 5 * step, 4)
    assert {name: tap.shape for name, tap in taps.items()} == expected


@every_network
def test_images_of_a_single_pixel(make):
    x = _images(1, 1)
    network = make(2)
    enlarged = output(network, _scaled(network, x), x)
    assert enlarged.shape == (B, 2, 2, 3)
    assert np.isfinite(enlarged).all()


@every_network
def test_a_fresh_network_interpolates(make):
    _, _, x, enlarged = _fresh(make)
    assert 1e-4 < np.abs(enlarged - enlarged_by_two(x)).max() < 0.15


@pytest.mark.parametrize("name", ["srresnet", "rrdb"])
def test_the_interpolated_image_is_added(name):
    make = MAKES[name]
    _, variables, x, enlarged = _fresh(make)
    residual = output(make(2, residual=False), variables, x)
    np.testing.assert_allclose(enlarged, residual + enlarged_by_two(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["srresnet", "rrdb"])
def test_a_skip_connection_spans_all_blocks(name):
    network, variables, x, _ = _fresh(MAKES[name])
    params = variables["params"]
    silent = {**params, "trunk": jax.tree.map(jnp.zeros_like, params["trunk"])}
    _, taps, _ = jax.jit(network.apply)({"params": silent}, x)
    np.testing.assert_array_equal(taps["trunk"], taps["stem"])
    assert np.abs(taps["block_0"] - taps["stem"]).max() > 1e-3


def test_a_fresh_network_has_no_checkerboard():
    x = _images(4, 5)
    network = superres.srresnet(3, 4, 1)
    _, taps, _ = jax.jit(lambda x: network.apply(network.init(QUICK, x), x))(x)
    pixels = np.asarray(taps["up_0"]).reshape(B, 4, 3, 5, 3, 4)
    np.testing.assert_allclose(pixels, pixels[:, :, :1, :, :1].repeat(3, 2).repeat(3, 4), rtol=1e-5)
    assert np.abs(pixels).max() > 0.1


def test_sub_pixel_kernels_equal_those_of_a_convolution():
    x = _images(4, 5)
    layer = superres.SubPixelConv(2, 2)
    variables = random_like(jax.eval_shape(layer.init, KEY, x))
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    flat = jax.lax.conv_general_dilated(
        x, kernel.reshape(3, 3, 3, 8), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) + bias.reshape(1, 1, 1, 8)
    y = layer.apply(variables, x)
    for row in range(2):
        for column in range(2):
            expected = flat[..., 2 * row + column :: 4]
            np.testing.assert_allclose(y[:, row::2, column::2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "reach"),
    [
        # Stem, two of a block, trunk, upsampling; then the image's layer, in larger pixels.
        (partial(superres.srresnet, 2, 8, 1, window=3, separable=True), 1 + 2 + 1 + 1),
        (partial(superres.srresnet, 2, 8, 2, window=5), 2 + 4 + 1 + 1),
    ],
)
def test_receptive_field_by_hand(make, reach):
    side, at = 24, 12
    network = make()
    window = network.module.window
    x = _images(side, side)
    variables = _scaled(network, x)
    changed = x.at[:, at, at - 1].add(0.5)
    differ = np.abs(output(network, variables, x) - output(network, variables, changed))
    rows, columns = (np.flatnonzero(differ.max(axis=axes) > 0) for axes in ((0, 2, 3), (0, 1, 3)))
    last = window // 2
    for positions, centre in ((rows, at), (columns, at - 1)):
        first, end = 2 * (centre - reach) - last, 2 * (centre + reach) + 1 + last
        assert (positions.min(), positions.max()) == (first, end)


@every_network
def test_networks_are_translation_equivariant(make):
    network, shift = make(2), (1, 2)
    side, border = 30, 26  # of the larger image
    if isinstance(network.module, superres.RRDBNet):
        side, border = 52, 48
    x = _images(side, side)
    variables = _scaled(network, x)
    y = output(network, variables, x)
    shifted = output(network, variables, jnp.roll(x, shift, axis=(1, 2)))
    expected = np.roll(y, (2, 4), axis=(1, 2))
    inner = np.s_[:, border:-border, border:-border]
    assert expected[inner].size
    np.testing.assert_allclose(shifted[inner], expected[inner], rtol=1e-4, atol=1e-5)


@every_network
def test_every_parameter_is_trained(make):
    network, variables, x, _ = _fresh(make)
    target = _images(12, 14)
    rest = {name: part for name, part in variables.items() if name != "params"}

    def loss(params):
        image, _, after = network.apply({"params": params, **rest}, x, train=True)
        return jnp.abs(image - target).mean(), after

    gradients, after = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    if rest:
        before = jax.tree.leaves(variables["batch_stats"])
        changed = jax.tree.leaves(after["batch_stats"])
        assert all((a != b).any() for a, b in zip(before, changed, strict=True))


@every_network
def test_half_precision_is_used_for_computation_but_not_for_storage(make):
    _, variables, x, exact = _fresh(make)
    network = make(2, dtype=jnp.bfloat16)
    image, taps, shapes = _abstract(network, x)
    assert image.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    assert {tap.dtype for tap in taps.values()} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(output(network, variables, x), exact, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 5}, "scale is one of 2, 3, 4, 8, not 5"),
        ({"scale": 1}, "not 1"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"blocks": 0}, "blocks=0 must be at least 1"),
        ({"channels": 0}, "channels=0 must be at least 1"),
    ],
)
def test_invalid_networks_raise(options, message):
    for make in (superres.srresnet, superres.rrdb):
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_an_even_window_or_no_growth_raises():
    with pytest.raises(ValueError, match="window=4"):
        superres.srresnet(window=4)
    with pytest.raises(ValueError, match="growth=0 must be at least 1"):
        superres.rrdb(growth=0)


@every_network
def test_invalid_images_raise(make):
    for shape in ((B, 4, 4, 1), (4, 4, 3)):
        with pytest.raises(ValueError, match=r"images \[B, h, w, 3\] are needed, not shape \("):
            _abstract(make(2), jax.ShapeDtypeStruct(shape, jnp.float32))


@every_network
def test_a_network_is_rebuilt_from_its_description(make):
    x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    network = make(4)
    rebuilt = rebuild(json.loads(json.dumps(describe(network, x)))).network
    assert rebuilt.module == network.module


def test_multiply_accumulates_by_hand():
    def taps(side, window):  # taps that read the image, along an axis
        reach = window // 2
        return side * window - reach * (reach + 1)

    side, width, blocks = 16, 8, 2
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    hidden = taps(side, 3) ** 2 * width
    rest = taps(side, 9) ** 2 * 3 * width + 5 * hidden * width
    count = rest + 4 * hidden * width + taps(2 * side, 9) ** 2 * 3 * width
    macs = pruning.macs(superres.srresnet(2, width, blocks), image)
    assert count <= macs < 1.04 * count  # XLA counts additions too


# --- channels -------------------------------------------------------------------------------------

SRRESNET = {"stem": 6, "block_0/hidden": 6, "block_1/hidden": 6, "up_0": 6, "up_1": 6}
DENSE = {f"block_0/dense_{i}/conv_{j}": 3 for i in range(3) for j in range(4)}
CHANNELS = {
    "srresnet": (superres.srresnet, superres.srresnet_axes, (6, 2), (4, 2), SRRESNET),
    "srresnet, separable": (
        partial(superres.srresnet, separable=True, window=3),
        superres.srresnet_axes,
        (6, 2),
        (4, 2),
        SRRESNET,
    ),
    "srresnet, normalised": (
        partial(superres.srresnet, batch_norm=True, window=3),
        superres.srresnet_axes,
        (6, 2),
        (4, 2),
        SRRESNET,
    ),
    "rrdb": (
        superres.rrdb,
        superres.rrdb_axes,
        (6, 1, 3),
        (4, 1, 2),
        {"stem": 6, **DENSE, "up_0": 6, "up_1": 6, "full": 6},
    ),
    "rrdb, separable": (
        partial(superres.rrdb, separable=True),
        superres.rrdb_axes,
        (6, 1, 3),
        (4, 1, 2),
        {"stem": 6, **DENSE, "up_0": 6, "up_1": 6, "full": 6},
    ),
}
every_description = pytest.mark.parametrize("case", CHANNELS.values(), ids=CHANNELS)


@every_description
def test_channel_groups(case):
    make, axes, wide, _, groups = case
    check_groups(make(4, *wide), axes, _images(4, 4), groups)


@every_description
def test_a_narrower_student_gets_exactly_its_shapes(case):
    make, axes, wide, narrow, _ = case
    check_student(make(4, *wide), make(4, *narrow), axes, _images(4, 4))


@every_description
def test_pruning_unread_channels_does_not_change_the_output(case):
    make, axes, wide, narrow, _ = case
    networks = [make(2, *width) for width in (wide, narrow)]
    # Normalised by batch statistics, since random running variances may be negative.
    networks = [network._replace(apply=partial(network.apply, train=True)) for network in networks]
    check_dead_channels(*networks, axes, _images(3, 4))


def test_variables_of_other_networks_raise():
    x = _images(4, 4)
    srresnet, rrdb = (_shapes(MAKES[name](2), x) for name in ("srresnet", "rrdb"))
    for describe_axes, variables in (
        (superres.srresnet_axes, rrdb),
        (superres.rrdb_axes, srresnet),
    ):
        with pytest.raises(ValueError, match=r"is missing|not described"):
            describe_axes(variables)
    network = connect(MAKES["srresnet"](2), {"trunk": (1, 4, 4, 8)})
    with pytest.raises(ValueError, match="belongs to a connector"):
        superres.srresnet_axes(_shapes(network, x))
