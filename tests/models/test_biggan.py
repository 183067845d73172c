"""BigGAN: the published sizes and the documented options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import biggan
from kd_jax.models.layers.attention import SelfAttention
from kd_jax.models.layers.spectral import Conv, SpectralNorm

B, CLASSES = 3, 5
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def _z(length):
    return jax.ShapeDtypeStruct((B, length), jnp.float32)


def _images(size, channels=3):
    return jax.ShapeDtypeStruct((B, size, size, channels), jnp.float32)


LABELS = jax.ShapeDtypeStruct((B,), jnp.int32)


def _abstract(network, *inputs):
    def run(key, *inputs):
        variables = network.init(key, *inputs)
        output, taps, _ = network.apply(variables, *inputs, train=True)
        return output, taps, variables

    return jax.eval_shape(run, KEY, *inputs)


def _count(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


def _normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_parameter_counts_match_the_published_ones():
    """Counts of the authors' ImageNet networks of 128 pixels, from their program."""
    pair = biggan.gan(128, 96, classes=1000)
    g = jax.eval_shape(pair.generator.init, KEY, _z(120), LABELS)
    d = jax.eval_shape(pair.discriminator.init, KEY, _images(128), LABELS)
    assert (_count(g["params"]), _count(d["params"])) == (70_433_988, 87_982_370)


@pytest.mark.parametrize("size", biggan.GENERATOR)
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_shapes_and_taps(size, classes):
    table, blocks = biggan.GENERATOR[size], biggan.DISCRIMINATOR[size]
    pair = biggan.gan(size, 8, classes=classes, shared=7, attention=(16, 8), channels=1)
    labels = (LABELS,) if classes else ()
    images, taps, variables = _abstract(pair.generator, _z(2 * len(table)), *labels)
    assert images.shape == (B, size, size, 1)
    sides = [4 * 2**level for level in range(len(table))]
    expected = {f"{s}x{s}": (B, s, s, 8 * w) for s, w in zip(sides, table, strict=True)}
    expected |= {f"block_{i}": expected[f"{s}x{s}"] for i, s in enumerate(sides[1:])}
    expected |= {f"attention_{i}": expected[f"{s}x{s}"] for i, s in enumerate((8, 16))}
    assert {name: tap.shape for name, tap in taps.items()} == expected
    gain = variables["params"]["block_0"]["norm1"]["gain"]["kernel"]
    assert gain.shape == (2 + (7 if classes else 0), 8 * table[0])

    scores, taps, variables = _abstract(pair.discriminator, _images(size, 1), *labels)
    assert scores.shape == (B,)
    last = 8 if size == 32 else 4
    sides = [max(size // 2 ** (i + 1), last) for i in range(len(blocks))]
    expected = {f"block_{i}": (B, s, s, 8 * blocks[i]) for i, s in enumerate(sides)}
    expected |= {f"{s}x{s}": expected[f"block_{i}"] for i, s in enumerate(sides)}
    expected |= {
        f"attention_{i}": expected[f"block_{i}"] for i, s in enumerate(sides) if s in (8, 16)
    }
    expected["features"] = (B, 8 * blocks[-1])
    assert {name: tap.shape for name, tap in taps.items()} == expected
    # The shortcut is the identity only if neither the side nor the channels change.
    identity = {name for name, block in variables["params"].items() if "conv1" in block}
    identity -= {name for name in identity if "shortcut" in variables["params"][name]}
    assert identity == (
        {"block_2", "block_3"}
        if size == 32
        else ({f"block_{len(blocks) - 1}"} if size > 64 else set())
    )


def test_labels_without_a_shared_embedding():
    network = biggan.generator(32, 2, classes=CLASSES, shared=0, hierarchical=False)
    _, _, variables = _abstract(network, _z(9), LABELS)
    norm = variables["params"]["block_1"]["norm2"]
    assert norm["gain"]["embedding"].shape == norm["bias"]["embedding"].shape == (CLASSES, 8)
    assert variables["params"]["dense"]["kernel"].shape == (9, 16 * 8)
    assert "norm1" not in variables["spectral"]["block_0"]


def test_wide_sets_the_hidden_width_of_the_blocks():
    for wide, hidden in ((True, [2, 4, 8, 16, 32]), (False, [3, 2, 4, 8, 16])):
        network = biggan.discriminator(64, 2, wide=wide, attention=())
        _, _, variables = _abstract(network, _images(64))
        blocks = (variables["params"][f"block_{i}"] for i in range(5))
        assert [block["conv1"]["kernel"].shape[-1] for block in blocks] == hidden


@pytest.fixture(scope="module")
def generator():
    """A conditional generator with hierarchical latents: jitted apply, variables and inputs."""
    network = biggan.generator(32, 2, classes=CLASSES, shared=3, attention=(16,))
    z, labels = jnp.asarray(_normal(B, 8)), jnp.zeros(B, jnp.int32)

    def draw(path, leaf):
        if path[-1].key in ("var", "gamma"):
            return jnp.asarray(RNG.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(RNG.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    shapes = jax.eval_shape(network.init, KEY, z, labels)
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.jit(network.apply), variables, z, labels


def test_each_block_reads_its_part_of_the_latents(generator):
    apply, variables, z, labels = generator
    _, taps, _ = apply(variables, z, labels)
    order = ["4x4", "block_0", "block_1", "attention_1", "block_2"]
    for part, first in enumerate(["4x4", "block_0", "block_1", "block_2"]):
        _, other_taps, _ = apply(variables, z.at[:, 2 * part].add(1.0), labels)
        changed = [bool(np.abs(taps[name] - other_taps[name]).max() > 1e-5) for name in order]
        assert changed == [index >= order.index(first) for index in range(len(order))]


def test_a_label_affects_only_its_example(generator):
    apply, variables, z, labels = generator
    images, taps, _ = apply(variables, z, labels)
    other_images, other_taps, _ = apply(variables, z, labels.at[1].set(3))
    changed = np.abs(np.asarray(images - other_images)).max(axis=(1, 2, 3)) > 1e-5
    assert changed.tolist() == [False, True, False]
    np.testing.assert_array_equal(taps["4x4"], other_taps["4x4"])
    assert np.abs(images).max() <= 1.0


def test_attention_matches_numpy():
    x = _normal(2, 4, 2, 8)
    weights = {
        name: _normal(1, 1, *shape)
        for name, shape in {
            "query": (8, 1),
            "key": (8, 1),
            "value": (8, 4),
            "output": (4, 8),
        }.items()
    }
    params = {name: {"kernel": w} for name, w in weights.items()} | {"gamma": np.float32(0.7)}
    output = SelfAttention(Conv).apply({"params": params}, x)

    def project(x, name):
        return x @ weights[name][0, 0].astype(np.float64)

    expected = np.empty(x.shape)
    for b in range(2):
        query = project(x[b].reshape(8, 8), "query")
        pooled = {
            name: np.stack(
                [project(x[b, i : i + 2].reshape(4, 8), name).max(axis=0) for i in (0, 2)]
            )
            for name in ("key", "value")
        }
        products = np.exp(query @ pooled["key"].T)
        mixed = products / products.sum(axis=1, keepdims=True) @ pooled["value"]
        expected[b] = x[b] + 0.7 * project(mixed, "output").reshape(4, 2, 8)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_attention_is_initially_the_identity():
    x = _normal(1, 4, 4, 8)
    variables = SelfAttention(Conv).init(KEY, x)
    np.testing.assert_array_equal(SelfAttention(Conv).apply(variables, x), x)


def test_spectral_option():
    for network, x in zip(biggan.gan(32, 2, spectral=None), (_z(8), _images(32)), strict=True):
        assert "spectral" not in _abstract(network, x)[2]
    network = biggan.discriminator(32, 2, spectral=SpectralNorm(vectors=2))
    vectors = _abstract(network, _images(32))[2]["spectral"]["block_0"]["conv1"]
    assert {name: leaf.shape for name, leaf in vectors.items()} == {"u": (2, 8), "sigma": (2,)}


def test_invalid_options_raise():
    for make in (biggan.gan, biggan.generator, biggan.discriminator):
        with pytest.raises(ValueError, match="size must be one of 32, 64, 128, 256, 512, not 16"):
            make(16)
        with pytest.raises(ValueError, match="width=0 must be at least 1"):
            make(32, 0)
    with pytest.raises(ValueError, match="hierarchical latents need a shared class embedding"):
        biggan.generator(32, 4, classes=3, shared=0)
    with pytest.raises(ValueError, match="latents of length 10 cannot be split into 4 equal parts"):
        _abstract(biggan.generator(32, 4), _z(10))
    with pytest.raises(ValueError, match=r"generator of size 32 has 4 widths .*, not 2"):
        biggan.generator(32, (4, 4))


def test_half_precision_applies_to_computation_not_storage():
    pair = biggan.gan(32, 2, classes=3, attention=(8,), dtype=jnp.bfloat16)
    for network, x in zip(pair, (_z(8), _images(32)), strict=True):
        output, taps, variables = _abstract(network, x, LABELS)
        assert output.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        assert taps["8x8"].dtype == jnp.bfloat16
