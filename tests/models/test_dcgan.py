"""DCGAN: shapes and parameter counts by hand for every size, and the effects of its options."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import pruning
from kd_jax.core.axes import group_widths
from kd_jax.core.network import tap_shapes
from kd_jax.models import dcgan

B, LATENT = 4, 6
RNG = np.random.default_rng(0)
FLOAT, INT = jnp.float32, jnp.int32
WIDTHS = {  # of width 4, at 4x4, 8x8, ...: doubling as the side halves, up to 8 * 4
    16: (8, 4),
    32: (16, 8, 4),
    64: (32, 16, 8, 4),
    128: (32, 32, 16, 8, 4),
    256: (32, 32, 32, 16, 8, 4),
}


def _inputs(size, classes=0, channels=3):
    labels = (jax.ShapeDtypeStruct((B,), INT),) if classes else ()
    z = jax.ShapeDtypeStruct((B, LATENT), FLOAT)
    return (z, *labels), (jax.ShapeDtypeStruct((B, size, size, channels), FLOAT), *labels)


def _abstract(network, inputs):
    """Output, taps and variables as shapes and dtypes, without computing anything."""

    def run(key, *inputs):
        variables = network.init(key, *inputs)
        output, taps, _ = network.apply(variables, *inputs, train=True)
        return output, taps, variables

    return jax.eval_shape(run, jax.random.key(0), *inputs)


def _count(variables):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(variables["params"]))


def _generator_count(widths, channels, classes, depth):
    count = classes * LATENT + LATENT * (2 if classes else 1) * 16 * widths[0]
    for index, width in enumerate(widths):
        count += 16 * widths[index - 1] * width if index else 0
        count += 2 * width  # batch norm
        count += depth * (9 * width * width + 2 * width)
    return count + 16 * widths[-1] * channels + channels


def _discriminator_count(widths, channels, classes, depth, stddev):
    count, before = 0, channels
    for width in reversed(widths):
        count += 16 * before * width + width + depth * (9 * width * width + width)
        before = width
    count += 16 * (before + stddev) * before + before  # dense
    return count + before + 1 + classes * before


@pytest.mark.parametrize("size", dcgan.SIZES)
@pytest.mark.parametrize(("classes", "depth", "channels"), [(0, 0, 3), (5, 2, 1)])
def test_shapes_taps_and_parameters(size, classes, depth, channels):
    widths = WIDTHS[size]
    sides = [4 * 2**level for level in range(len(widths))]
    pair = dcgan.gan(
        size, 4, channels=channels, classes=classes, depth=depth, minibatch_stddev=bool(classes)
    )
    g_inputs, d_inputs = _inputs(size, classes, channels)

    images, taps, variables = _abstract(pair.generator, g_inputs)
    assert images.shape == (B, size, size, channels)
    expected = {f"{s}x{s}": (B, s, s, w) for s, w in zip(sides, widths, strict=True)}
    assert {name: tap.shape for name, tap in taps.items()} == expected
    assert list(tap_shapes(pair.generator, *g_inputs)) == sorted(expected)
    assert _count(variables) == _generator_count(widths, channels, classes, depth)

    scores, taps, variables = _abstract(pair.discriminator, d_inputs)
    assert scores.shape == (B,)
    expected["features"] = (B, widths[0])
    assert {name: tap.shape for name, tap in taps.items()} == expected
    count = _discriminator_count(widths, channels, classes, depth, stddev=bool(classes))
    assert _count(variables) == count
    assert set(variables) == {"params"}  # no batch norm


def test_width_scales_every_layer():
    for width in (1, 3, 16):
        taps = _abstract(dcgan.generator(64, width), _inputs(64)[0])[1]
        assert [taps[f"{side}x{side}"].shape[-1] for side in (4, 8, 16, 32)] == [
            8 * width,
            4 * width,
            2 * width,
            width,
        ]


def test_max_width_caps_the_channels():
    pair = dcgan.gan(64, 4, max_width=10)
    for network, inputs in zip(pair, _inputs(64), strict=True):
        taps = _abstract(network, inputs)[1]
        assert [taps[f"{side}x{side}"].shape[-1] for side in (4, 8, 16, 32)] == [10, 10, 8, 4]


def test_half_precision_is_used_for_computation_but_not_for_storage():
    pair = dcgan.gan(16, 4, classes=3, depth=1, minibatch_stddev=True, dtype=jnp.bfloat16)
    for network, inputs in zip(pair, _inputs(16, 3), strict=True):
        output, taps, variables = _abstract(network, inputs)
        assert output.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        assert taps["4x4"].dtype == taps["8x8"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("size", "width", "depth", "message"),
    [
        (8, 4, 0, "a DCGAN's size is one of 16, 32, 64, 128, 256, not 8"),
        (48, 4, 0, "not 48"),
        (512, 4, 0, "not 512"),
        (16, 0, 0, "width=0 must be at least 1"),
        (16, 4, -1, "depth=-1 at least 0"),
    ],
)
def test_invalid_sizes_raise(size, width, depth, message):
    for make in (dcgan.gan, dcgan.generator, dcgan.discriminator):
        with pytest.raises(ValueError, match=message):
            make(size, width, depth=depth)


def test_labels_are_required_by_conditional_networks_only():
    for network, inputs in zip(dcgan.gan(16, 4, classes=3), _inputs(16), strict=True):
        with pytest.raises(ValueError, match="made for 3 classes, but none were given"):
            _abstract(network, inputs)
    for network, inputs in zip(dcgan.gan(16, 4), _inputs(16, 3), strict=True):
        with pytest.raises(ValueError, match=r"0 classes, but labels of shape \(4,\) were given"):
            _abstract(network, inputs)


@pytest.fixture(scope="module")
def generated():
    """A conditional generator with residual layers: the network, its variables, latents."""
    network = dcgan.generator(16, 2, classes=3, depth=1)
    z = jnp.asarray(RNG.normal(size=(B, LATENT)), FLOAT)
    labels = jnp.zeros(B, INT)
    return jax.jit(network.apply), jax.jit(network.init)(jax.random.key(0), z, labels), z


def test_generated_images_are_in_range(generated):
    apply, variables, z = generated
    amplified = jax.tree.map(lambda leaf: 30 * leaf, variables)
    for scaled in (variables, amplified):
        images = np.asarray(apply(scaled, z, jnp.zeros(B, INT))[0])
        assert np.abs(images).max() <= 1.0
        assert images.std() > 0.0
    assert np.abs(images).max() > 0.5  # the range is used


def test_generator_depends_on_its_labels_per_example(generated):
    apply, variables, z = generated
    variables = jax.tree.map(lambda leaf: 3 * leaf, variables)
    images = np.asarray(apply(variables, z, jnp.array([0, 0, 0, 0]))[0])
    other = np.asarray(apply(variables, z, jnp.array([0, 0, 2, 0]))[0])
    changed = np.abs(images - other).max(axis=(1, 2, 3)) > 1e-4
    assert changed.tolist() == [False, False, True, False]


def test_residual_layers_are_initially_the_identity(generated):
    apply, variables, z = generated
    labels = jnp.array([0, 1, 2, 0])
    image = apply(variables, z, labels)[0]

    def without(leaf):  # the 3x3 kernels are those of the residual layers
        return jnp.ones_like(leaf) if leaf.shape[:2] == (3, 3) else leaf

    other = {**variables, "params": jax.tree.map(without, variables["params"])}
    np.testing.assert_allclose(apply(other, z, labels)[0], image, atol=1e-6)
    perturbed = {**variables, "params": jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])}
    identity = {**perturbed, "params": jax.tree.map(without, perturbed["params"])}
    difference = apply(perturbed, z, labels)[0] - apply(identity, z, labels)[0]
    assert np.abs(np.asarray(difference)).max() > 1e-3


@pytest.mark.parametrize("stddev", [False, True])
def test_examples_interact_only_through_the_minibatch_deviation(stddev):
    network = dcgan.discriminator(16, 2, minibatch_stddev=stddev)
    images = RNG.uniform(-1, 1, size=(B, 16, 16, 3)).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), images)
    score = jax.jit(lambda images: network.apply(variables, images)[0])
    changed = images.copy()
    changed[2] = 0.0
    differ = np.abs(np.asarray(score(images) - score(changed))) > 1e-5
    assert differ.tolist() == ([True] * B if stddev else [False, False, True, False])


def test_projection_head():
    network = dcgan.discriminator(16, 2, classes=3)
    images = RNG.uniform(-1, 1, size=(B, 16, 16, 3)).astype(np.float32)
    one, two = jnp.array([0, 0, 1, 2]), jnp.array([1, 0, 2, 0])
    variables = jax.jit(network.init)(jax.random.key(0), images, one)
    apply = jax.jit(network.apply)
    scores, taps, _ = apply(variables, images, one)
    embedding = np.asarray(variables["params"]["label"]["embedding"], np.float64)
    difference = ((embedding[one] - embedding[two]) * np.asarray(taps["features"])).sum(axis=1)
    np.testing.assert_allclose(scores - apply(variables, images, two)[0], difference, atol=1e-5)
    assert abs(difference[0]) > 1e-3


@pytest.mark.parametrize("size", dcgan.SIZES)
def test_the_papers_discriminator(size):
    widths = WIDTHS[size][::-1]
    scores, taps, variables = _abstract(dcgan.original_discriminator(size, 4), _inputs(size)[1])
    assert scores.shape == (B,)
    sides = [size // 2 ** (level + 1) for level in range(len(widths))]
    expected = {f"{s}x{s}": (B, s, s, w) for s, w in zip(sides, widths, strict=True)}
    assert {name: tap.shape for name, tap in taps.items()} == expected
    count = sum(16 * a * b for a, b in itertools.pairwise((3, *widths, 1)))
    assert _count(variables) == count + 2 * sum(widths[1:])  # no biases, norms after the first
    assert set(variables["batch_stats"]) == {f"norm_{i}" for i in range(1, len(widths))}


def test_the_papers_discriminator_with_biases():
    network = dcgan.original_discriminator(32, (9, 7, 5), bias=True)
    plain = dcgan.original_discriminator(32, (9, 7, 5))
    variables, like = (_abstract(one, _inputs(32)[1])[2] for one in (network, plain))
    assert _count(variables) == _count(like) + 5 + 1
    axes = dcgan.original_discriminator_axes(variables)
    assert axes["params/conv_0/bias"] == ("16x16",)
    assert group_widths(variables, axes) == {"16x16": 5, "8x8": 7, "4x4": 9}


def test_the_length_of_the_labels_embedding():
    network = dcgan.generator(16, (8, 4), classes=5, embedding=2)
    variables = _abstract(network, _inputs(16, 5)[0])[2]
    assert variables["params"]["label"]["embedding"].shape == (5, 2)
    assert variables["params"]["Dense_0"]["kernel"].shape == (LATENT + 2, 16 * 8)
    assert group_widths(variables, dcgan.generator_axes(variables)) == {"4x4": 8, "8x8": 4}
    for options in ({"embedding": 0, "classes": 5}, {"embedding": 2}):
        with pytest.raises(ValueError, match=f"embedding={options['embedding']}"):
            dcgan.generator(16, (8, 4), **options)


def test_the_papers_discriminator_can_be_pruned():
    images = RNG.uniform(-1, 1, size=(B, 32, 32, 3)).astype(np.float32)
    network = dcgan.original_discriminator(32, (9, 7, 5))
    variables = jax.jit(network.init)(jax.random.key(0), images)
    axes = dcgan.original_discriminator_axes(variables)
    assert group_widths(variables, axes) == {"16x16": 5, "8x8": 7, "4x4": 9}
    like = jax.eval_shape(
        dcgan.original_discriminator(32, (6, 4, 3)).init, jax.random.key(0), images
    )
    scores = pruning.magnitude(variables, axes)
    small = pruning.from_teacher(variables, axes, scores, like)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, like)
    # Pruning channels with zero input weights does not change the output.
    channel_indices = {"8x8": np.array([0, 3, 4])}
    small = pruning.shrink(variables, axes, channel_indices)
    zeroed = variables["params"]["conv_2"]["kernel"].at[:, :, np.array([1, 2, 5, 6])].set(0.0)
    variables["params"]["conv_2"]["kernel"] = zeroed
    other, _, _ = dcgan.original_discriminator(32, (9, 3, 5)).apply(small, images)
    np.testing.assert_allclose(other, network.apply(variables, images)[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"is not described|but is not in the variables"):
        dcgan.original_discriminator_axes(
            jax.eval_shape(dcgan.discriminator(16, 2).init, jax.random.key(0), images)
        )
