"""TinyGAN: its operations against references, and the documented options."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import biggan, tinygan

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


def test_bilinear_upsampling_matches_jax_image_resize():
    x = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = jax.image.resize(x, (2, 6, 10, 4), "bilinear")
    np.testing.assert_allclose(tinygan.bilinear_upsample(x), expected, rtol=1e-5, atol=1e-6)


def test_shapes_taps_and_parameters():
    pair = tinygan.gan(64, 2, classes=CLASSES, shared=7)
    images, taps, variables = _abstract(pair.generator, _z(15), LABELS)
    assert images.shape == (B, 64, 64, 3)
    widths = (32, 32, 16, 8, 4)
    shapes = {f"{s}x{s}": (B, s, s, w) for s, w in zip((4, 8, 16, 32, 64), widths, strict=True)}
    by_block = {f"block_{i}": shape for i, shape in enumerate(list(shapes.values())[1:])}
    assert {name: tap.shape for name, tap in taps.items()} == shapes | by_block
    condition = 7 + 3
    count = CLASSES * 7 + 3 * 16 * 32 + 16 * 32
    for a, b in itertools.pairwise(widths):
        count += 2 * (condition + 1) * (a + b)  # scales and biases
        count += 9 * a + a + a * b + b + 9 * b + b + b * b + b + a * b + b
    count += 2 * 4 + 27 * 4 + 3
    assert _count(variables["params"]) == count

    scores, taps, variables = _abstract(pair.discriminator, _images(64), LABELS)
    assert scores.shape == (B,)
    shapes = {f"{s}x{s}": (B, s, s, w) for s, w in ((32, 2), (16, 4), (8, 8), (4, 16))}
    assert {name: tap.shape for name, tap in taps.items()} == shapes | {"features": (B, 16)}
    assert set(variables["spectral"]["conv_0"]) == {"u", "v", "sigma"}


def test_inputs_and_taps_match_the_teachers():
    inputs = (_z(18), LABELS)
    options = {"classes": CLASSES, "shared": 7}
    student = _abstract(tinygan.generator(128, 8, **options), *inputs)
    teacher = _abstract(biggan.generator(128, 8, attention=(), **options), *inputs)
    assert student[0].shape == teacher[0].shape
    assert student[1].keys() == teacher[1].keys()
    assert _count(student[2]["params"]) < _count(teacher[2]["params"]) / 3


def test_discriminators_of_other_depths():
    network = tinygan.discriminator(16, (4, 6, 8, 9))
    _, taps, _ = _abstract(network, _images(16))
    assert taps["1x1"].shape == (B, 1, 1, 9)
    for size, width, message in (
        (24, 4, "a power of two >= 8, not 24"),
        (4, 4, "a power of two >= 8, not 4"),
        (16, 0, "width=0 must be at least 1 for each of 1 to 4 layers at size 16"),
        (16, (), "1 to 4 layers"),
        (16, (4,) * 5, "1 to 4 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            tinygan.discriminator(size, width)


def test_invalid_generators_raise():
    with pytest.raises(
        ValueError, match=r"TinyGAN generator's size must be one of 32, 64, .* not 16"
    ):
        tinygan.generator(16)
    with pytest.raises(ValueError, match="hierarchical latents need a shared class embedding"):
        tinygan.generator(32, classes=3, shared=0)
    network = tinygan.generator(32, 2, classes=3, shared=0, hierarchical=False)
    _, _, variables = _abstract(network, _z(5), LABELS)
    assert variables["params"]["block_0"]["norm1"]["gain"]["embedding"].shape == (3, 8)
