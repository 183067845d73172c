"""BigGAN-deep: the published sizes and the documented options."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import biggan_deep

B, CLASSES = 3, 5
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LABELS = jax.ShapeDtypeStruct((B,), jnp.int32)


def _z(length):
    return jax.ShapeDtypeStruct((B, length), jnp.float32)


def _images(size, channels=3):
    return jax.ShapeDtypeStruct((B, size, size, channels), jnp.float32)


def _abstract(network, *inputs):
    def run(key, *inputs):
        variables = network.init(key, *inputs)
        output, taps, _ = network.apply(variables, *inputs, train=True)
        return output, taps, variables

    return jax.eval_shape(run, KEY, *inputs)


def _count(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("size", "published"), [(128, 50.4), (256, 55.9), (512, 56.2)])
def test_parameter_counts_match_the_published_ones(size, published):
    """In millions; the published generators output 125 more channels, which are not used."""
    network = biggan_deep.generator(size, 128, classes=1000)
    variables = jax.eval_shape(network.init, KEY, _z(128), LABELS)
    count = _count(variables["params"]) + 125 * (9 * 128 + 1)
    assert round(count / 1e6, 1) == published


@pytest.mark.parametrize(
    ("size", "classes", "depth"),
    [(32, CLASSES, 2), (64, 0, 1), (128, CLASSES, 2), (256, 0, 1), (512, 0, 1)],
)
def test_shapes_and_taps(size, classes, depth):
    table, stages = biggan_deep.GENERATOR[size], biggan_deep.DISCRIMINATOR[size]
    pair = biggan_deep.gan(
        size, 8, depth=depth, classes=classes, shared=7, attention=(8,), channels=1
    )
    labels = (LABELS,) if classes else ()
    images, taps, variables = _abstract(pair.generator, _z(6), *labels)
    assert images.shape == (B, size, size, 1)
    expected = {"4x4": (B, 4, 4, 8 * table[0])}
    for level, (a, b) in enumerate(itertools.pairwise(table)):
        s = 4 * 2**level
        for number in range(depth):
            last = number == depth - 1
            shape = (B, 2 * s, 2 * s, 8 * b) if last else (B, s, s, 8 * a)
            expected[f"block_{depth * level + number}"] = shape
            expected[f"{shape[1]}x{shape[1]}"] = shape
    expected[f"attention_{depth - 1}"] = expected["8x8"] = (B, 8, 8, 8 * table[1])
    if depth > 1:  # the last features of a side are the input of the next doubling
        expected |= {
            f"{4 * 2**i}x{4 * 2**i}": (B, 4 * 2**i, 4 * 2**i, 8 * w) for i, w in enumerate(table)
        }
    assert {name: tap.shape for name, tap in taps.items()} == expected
    gain = variables["params"]["block_0"]["norm1"]["gain"]["kernel"]
    assert gain.shape == (6 + (7 if classes else 0), 8 * table[0])

    scores, taps, variables = _abstract(pair.discriminator, _images(size, 1), *labels)
    assert scores.shape == (B,)
    last = 8 if size == 32 else 4
    expected = {"stem": (B, size, size, 8 * stages[0])}
    for stage, w in enumerate(stages[1:]):
        s = max(size // 2 ** (stage + 1), last)
        for number in range(depth):
            expected[f"block_{depth * stage + number}"] = (B, s, s, 8 * w)
        expected[f"{s}x{s}"] = (B, s, s, 8 * w)
        if s == 8:
            expected[f"attention_{depth * (stage + 1) - 1}"] = (B, s, s, 8 * w)
    expected["features"] = (B, 8 * stages[-1])
    assert {name: tap.shape for name, tap in taps.items()} == expected


def _random_variables(network, *inputs):
    def draw(path, leaf):
        if path[-1].key == "var":
            return jnp.asarray(RNG.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(RNG.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, KEY, *inputs))


def test_generator_shortcuts_drop_channels():
    network = biggan_deep.generator_of_blocks((12, 12, 5), (False, True), spectral=None)
    variables = _random_variables(network, _z(4))
    for block in ("block_0", "block_1"):
        for leaf in ("kernel", "bias"):
            variables["params"][block]["conv4"][leaf] *= 0.0
    _, taps, _ = network.apply(variables, jnp.asarray(RNG.normal(size=(B, 4)), jnp.float32))
    np.testing.assert_array_equal(taps["block_0"], taps["4x4"])
    repeated = np.repeat(np.repeat(taps["block_0"][..., :5], 2, axis=1), 2, axis=2)
    np.testing.assert_array_equal(taps["block_1"], repeated)


def test_discriminator_shortcuts_add_channels():
    network = biggan_deep.discriminator(32, (4, 4, 9, 9), depth=1, attention=(), spectral=None)
    variables = _random_variables(network, _images(32))
    for index in range(3):
        for leaf in ("kernel", "bias"):
            variables["params"][f"block_{index}"]["conv4"][leaf] *= 0.0
    images = RNG.normal(size=(B, 32, 32, 3)).astype(np.float32)
    _, taps, _ = network.apply(variables, images)
    x = np.asarray(taps["stem"])
    for index in range(2):
        x = x.reshape(B, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean(axis=(2, 4))
        if index:
            added = variables["params"]["block_1"]["added"]
            more = x @ np.asarray(added["kernel"])[0, 0] + np.asarray(added["bias"])
            x = np.concatenate([x, more], axis=-1)
        np.testing.assert_allclose(taps[f"block_{index}"], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(taps["block_2"], taps["block_1"])


def test_truncation_of_generators_with_sets_of_statistics():
    network = biggan_deep.generator_of_blocks((8, 4), (True,), statistics=3, spectral=None)
    variables = _random_variables(network, _z(4))
    z = jnp.asarray(RNG.normal(size=(B, 4)), jnp.float32)
    first, _, _ = network.apply(variables, z, truncation=1.0)
    np.testing.assert_array_equal(network.apply(variables, z)[0], first)
    trained, _, same = network.apply(variables, z, train=True)
    np.testing.assert_array_equal(trained, first)
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    other, _, _ = network.apply(variables, z, truncation=0.5)
    assert np.abs(np.asarray(first - other)).max() > 1e-3
    # The set for truncation 1/2 is the second of three.
    reordered = jax.tree.map(lambda leaf: leaf[np.array([0, 0, 1])], variables["batch_stats"])
    selected, _, _ = network.apply({**variables, "batch_stats": reordered}, z)
    np.testing.assert_allclose(selected, other, atol=1e-6)
    network = biggan_deep.generator_of_blocks((8, 4), (True,), spectral=None)
    with pytest.raises(ValueError, match="one set of statistics and does not support truncation"):
        network.apply(_random_variables(network, _z(4)), z, truncation=0.5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((8, 4), (True, True)), {}, "2 blocks have 3 widths from input to output, not 2"),
        (((4, 8), (True,)), {}, r"widths=\(4, 8\) must be positive and non-increasing"),
        (((4, 0), (True,)), {}, r"widths=\(4, 0\) must be positive"),
        (((8, 4), (True,)), {"attention": (1,)}, "attention after block 1 of 1 blocks"),
        (((8, 4), (True,)), {"statistics": 1}, "statistics=1 must be at least 2, or None"),
    ],
)
def test_invalid_blocks_raise(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        biggan_deep.generator_of_blocks(*arguments, **options)


def test_invalid_sizes_raise():
    for make in (biggan_deep.gan, biggan_deep.generator, biggan_deep.discriminator):
        with pytest.raises(ValueError, match="size must be one of 32, 64, 128, 256, 512, not 100"):
            make(100)
        with pytest.raises(ValueError, match="depth=0 must be at least 1"):
            make(32, 4, depth=0)
    with pytest.raises(ValueError, match=r"widths=\(4, 8, 4, 8\) must be non-decreasing"):
        biggan_deep.discriminator(32, (4, 8, 4, 8))


def test_half_precision_applies_to_computation_not_storage():
    pair = biggan_deep.gan(32, 2, classes=3, attention=(8,), dtype=jnp.bfloat16)
    for network, x in zip(pair, (_z(8), _images(32)), strict=True):
        output, taps, variables = _abstract(network, x, LABELS)
        assert output.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        assert taps["8x8"].dtype == jnp.bfloat16
