"""Converters of StyleGAN's weights: configurations from names and shapes, and refusals.

Agreement of the networks with the original programs is checked in tests/test_parity.py.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import ops
from kd_jax.models import stylegan1 as model
from kd_jax.pretrained import stylegan1

LATENT, STYLE, HIDDEN, DEPTH = 4, 5, 6, 3
WIDTHS = (7, 6, 4)  # at 4x4, 8x8, 16x16
BLUR = np.outer([1, 2, 1], [1, 2, 1]) / 16


def numbers(shapes, seed=0):
    """A random state dict of these shapes; arrays and scalars in place of shapes are kept."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        if isinstance(shape, tuple)
        else np.asarray(shape, np.float32)
        for name, shape in shapes.items()
    }


def blur(width):
    return np.broadcast_to(BLUR, (width, 1, 3, 3))


def layer(name, *shape, weight="weight"):
    return {f"{name}.{weight}": shape, f"{name}.bias": (shape[0],)}


def genforce_g(classes=0):
    shapes = {"synthesis.lod": 0.0, "truncation.w_avg": (STYLE,)}
    if classes:
        shapes["mapping.label_weight"] = (classes, LATENT)
    lengths = [LATENT * (2 if classes else 1), HIDDEN, HIDDEN, STYLE]
    for i in range(DEPTH):
        shapes |= layer(f"mapping.dense{i}", lengths[i + 1], lengths[i])
    before = None
    for i in range(6):
        width, name = WIDTHS[i // 2], f"synthesis.layer{i}"
        shapes[f"{name}.bias"] = shapes[f"{name}.apply_noise.weight"] = (width,)
        shapes[f"{name}.apply_noise.noise"] = (1, 1, 4 << i // 2, 4 << i // 2)
        shapes |= layer(f"{name}.style", 2 * width, STYLE)
        if i == 0:
            shapes[f"{name}.const"] = (1, width, 4, 4)
        else:
            shapes[f"{name}.weight"] = (width, before, 3, 3)
            if i % 2 == 0:
                shapes[f"{name}.blur.kernel"] = blur(width)
        before = width
    for i, width in enumerate(WIDTHS):
        shapes |= layer(f"synthesis.output{i}", 3, width, 1, 1)
    return numbers(shapes)


def genforce_d(classes=0):
    shapes = {"lod": 0.0}
    for i, width in enumerate(WIDTHS[::-1]):
        shapes |= layer(f"input{i}", width, 3, 1, 1)
        if i < 2:
            after = WIDTHS[1 - i]
            shapes |= layer(f"layer{2 * i}", width, width, 3, 3)
            shapes |= layer(f"layer{2 * i + 1}", after, width, 3, 3)
            shapes[f"layer{2 * i + 1}.blur.kernel"] = blur(after)
    shapes |= layer("layer4", 7, 7 + 1, 3, 3)
    shapes |= layer("layer5", 9, 7 * 16)
    shapes |= layer("layer6", classes or 1, 9)
    return numbers(shapes)


def rosinality_g(fused=True):
    shapes, orig = {}, "weight_orig"
    for i in range(DEPTH):
        shapes |= layer(f"style.{2 * i + 1}.linear", LATENT, LATENT, weight=orig)
    before = None
    for i, width in enumerate(WIDTHS):
        name = f"generator.progression.{i}"
        for j in (1, 2):
            shapes[f"{name}.noise{j}.{orig}"] = (1, width, 1, 1)
            shapes |= layer(f"{name}.adain{j}.style.linear", 2 * width, LATENT, weight=orig)
        if i == 0:
            shapes[f"{name}.conv1.input"] = (1, width, 4, 4)
        else:
            if fused and i == 2:
                shapes[f"{name}.conv1.0.weight"] = (before, width, 3, 3)
                shapes[f"{name}.conv1.0.bias"] = (width,)
                filters = f"{name}.conv1.1"
            else:
                shapes |= layer(f"{name}.conv1.1.conv", width, before, 3, 3, weight=orig)
                filters = f"{name}.conv1.2"
            shapes |= {f"{filters}.weight": blur(width), f"{filters}.weight_flip": blur(width)}
        shapes |= layer(f"{name}.conv2.conv", width, width, 3, 3, weight=orig)
        shapes |= layer(f"generator.to_rgb.{i}.conv", 3, width, 1, 1, weight=orig)
        before = width
    return numbers(shapes)


def rosinality_d(activated=True):
    shapes, orig = {}, "weight_orig"
    for i, width in enumerate(WIDTHS[::-1]):
        rgb = f"from_rgb.{i}.0.conv" if activated else f"from_rgb.{i}.conv"
        shapes |= layer(rgb, width, 3, 1, 1, weight=orig)
        name = f"progression.{i}"
        if i < 2:
            after = WIDTHS[1 - i]
            shapes |= layer(f"{name}.conv1.0.conv", after, width, 3, 3, weight=orig)
            shapes |= {f"{name}.conv2.0.{key}": blur(after) for key in ("weight", "weight_flip")}
            if i == 0:  # fused
                shapes |= layer(f"{name}.conv2.1", after, after, 3, 3)
            else:
                shapes |= layer(f"{name}.conv2.1.conv", after, after, 3, 3, weight=orig)
        else:
            shapes |= layer(f"{name}.conv1.0.conv", 8, width + 1, 3, 3, weight=orig)
            shapes |= layer(f"{name}.conv2.0.conv", 9, 8, 4, 4, weight=orig)
    shapes |= layer("linear.linear", 1, 9, weight=orig)
    return numbers(shapes)


READERS = {
    "genforce_g": (genforce_g, stylegan1.genforce_generator, {}),
    "genforce_d": (genforce_d, stylegan1.genforce_discriminator, {}),
    "rosinality_g": (rosinality_g, stylegan1.rosinality_generator, {"average": np.zeros(LATENT)}),
    "rosinality_d": (rosinality_d, stylegan1.rosinality_discriminator, {}),
}
every_reader = pytest.mark.parametrize("which", READERS)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (
            "genforce_g",
            {
                "latent": LATENT,
                "style": STYLE,
                "depth": DEPTH,
                "hidden": HIDDEN,
                "classes": 0,
                "widths": {4: 7, 8: 6, 16: 4},
                "lod": 0.0,
            },
        ),
        (
            "genforce_d",
            {
                "classes": 0,
                "widths": {4: 7, 8: 6, 16: 4},
                "inner": {4: 7, 8: 6, 16: 4},
                "features": 9,
                "stddev_channels": 1,
            },
        ),
        (
            "rosinality_g",
            {
                "latent": LATENT,
                "style": LATENT,
                "depth": DEPTH,
                "widths": {4: 7, 8: 6, 16: 4},
                "eps": 1e-5,
            },
        ),
        (
            "rosinality_d",
            {
                "widths": {4: 7, 8: 6, 16: 4},
                "inner": {4: 8, 8: 7, 16: 6},
                "features": 9,
                "activate_fromrgb": True,
                "stddev_group": None,
            },
        ),
    ],
)
def test_the_configuration_is_inferred_from_shapes(which, expected):
    make, read, options = READERS[which]
    config = read(make(), **options).config
    assert {name: config[name] for name in expected} == expected
    assert (config["size"], config["channels"]) == (16, 3)
    np.testing.assert_allclose(config["blur"], BLUR)


@every_reader
def test_missing_tensors_are_refused(which):
    make, read, options = READERS[which]
    tensors = make()
    for name in tensors:
        rest = {other: value for other, value in tensors.items() if other != name}
        with pytest.raises(ValueError, match=rf"^[^\n]*{re.escape(name)} is missing$"):
            read(rest, **options)


@every_reader
def test_tensors_of_another_shape_are_refused(which):
    make, read, options = READERS[which]
    tensors = make()
    for name, value in tensors.items():
        with pytest.raises(ValueError, match=rf"^[^\n]*{re.escape(name)} has shape \(1,[^\n]*$"):
            read({**tensors, name: value[None]}, **options)


@every_reader
def test_unknown_tensors_are_refused(which):
    make, read, options = READERS[which]
    with pytest.raises(ValueError, match=r"^not a StyleGAN .*: unknown tensors more\.weight$"):
        read({**make(), "more.weight": np.zeros(3, np.float32)}, **options)


def test_each_predicate_recognises_its_own_files():
    predicates = {
        "genforce_g": stylegan1.is_genforce_generator,
        "genforce_d": stylegan1.is_genforce_discriminator,
        "rosinality_g": stylegan1.is_rosinality_generator,
        "rosinality_d": stylegan1.is_rosinality_discriminator,
    }
    for which, (make, _, _) in READERS.items():
        assert [name for name, known in predicates.items() if known(make())] == [which]
    # StyleGAN2's generator and discriminator in genforce's names, and the progressive GAN's.
    for names in (
        ("synthesis.early_layer.const", "synthesis.layer0.weight", "synthesis.layer0.noise"),
        ("input.weight", "layer0.weight", "layer1.weight", "layer1.filter.kernel"),
        ("input0.weight", "input1.weight", "layer0.weight", "layer1.weight"),
    ):
        assert not any(known(names) for known in predicates.values())


@pytest.mark.parametrize("which", ["genforce_g", "rosinality_g"])
def test_fused_kernels_are_transposed_convolutions(which):
    """Pixel x[i] is added to y[2 i + m - 1], weighted by sums of neighbouring kernel entries."""
    make, read, options = READERS[which]
    tensors = make()
    if which == "genforce_g":
        options, stored = {"fused_from": 16}, tensors["synthesis.layer4.weight"]
    else:  # stored as [in, out], and averaged over the four
        stored = tensors["generator.progression.2.conv1.0.weight"].swapaxes(0, 1) / 4
    x = np.random.default_rng(1).normal(size=(8, 8, 6))
    padded = np.pad(stored, ((0, 0), (0, 0), (1, 1), (1, 1)))
    kernel = sum(padded[:, :, a : a + 4, b : b + 4] for a in (0, 1) for b in (0, 1))
    y = np.zeros((18, 18, 4))
    for i in range(8):
        for j in range(8):
            y[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("c,ochw->hwo", x[i, j], kernel)
    weight = read(tensors, **options).variables["params"]["synthesis"]["b16"]["conv0"]["weight"]
    spread = model._spread(jnp.asarray(weight))
    image = ops.conv_transpose(jnp.asarray(x, jnp.float32)[None], spread, stride=2)
    np.testing.assert_allclose(image[0], y[1:-1, 1:-1], rtol=1e-4, atol=1e-4)


def test_the_stored_level_of_detail_is_the_default():
    tensors = genforce_g() | {"synthesis.lod": np.float32(1.0)}
    network, variables, config, *_ = stylegan1.genforce_generator(tensors)
    assert config["lod"] == 1.0
    z = jnp.ones((2, LATENT))
    apply = jax.jit(lambda lod: network.apply(variables, z, lod=lod)[0], static_argnums=0)
    np.testing.assert_array_equal(apply(None), apply(1.0))
    with pytest.raises(ValueError, match=r"lod=7\.0 is not from 0"):
        stylegan1.genforce_generator(genforce_g() | {"synthesis.lod": np.float32(7.0)})
    read = stylegan1.genforce_discriminator
    assert read(genforce_d() | {"lod": np.float32(1.5)}).config["lod"] == 1.5


def test_labels():
    config = stylegan1.genforce_generator(genforce_g(classes=3)).config
    assert (config["classes"], config["latent"]) == (3, LATENT)
    assert stylegan1.genforce_discriminator(genforce_d(classes=3)).config["classes"] == 3


def test_overrides_reach_the_network():
    options = {"eps": 1e-3, "lod": 2.0, "style_mixing": 0.9}
    config = stylegan1.genforce_generator(genforce_g(), **options).config
    assert {name: config[name] for name in options} == options
    with pytest.raises(TypeError, match="loudness"):
        stylegan1.genforce_discriminator(genforce_d(), loudness=3)


def test_files_may_contain_untrained_blocks():
    """A network below full size equals the full network at a level of detail."""
    z = jnp.asarray(np.random.default_rng(1).normal(size=(2, LATENT)), jnp.float32)
    tensors, average = rosinality_g(), np.zeros(LATENT)
    full = stylegan1.rosinality_generator(tensors, average=average)
    part = stylegan1.rosinality_generator(tensors, average=average, size=8)
    assert part.config["widths"] == {4: 7, 8: 6}
    coarse = jax.jit(lambda v: full.network.apply(v, z, lod=1.0)[0])(full.variables)
    image = jax.jit(part.network.apply)(part.variables, z)[0]
    np.testing.assert_allclose(coarse[:, ::2, ::2], image, rtol=1e-4, atol=1e-4)

    tensors = rosinality_d()
    full = stylegan1.rosinality_discriminator(tensors)
    part = stylegan1.rosinality_discriminator(tensors, size=8)
    images = jnp.repeat(jnp.repeat(image, 2, axis=1), 2, axis=2)
    coarse = jax.jit(lambda v: full.network.apply(v, images, lod=1.0)[0])(full.variables)
    scores = jax.jit(part.network.apply)(part.variables, image)[0]
    np.testing.assert_allclose(scores, coarse, rtol=1e-4, atol=1e-4)
    for read in (stylegan1.rosinality_generator, stylegan1.rosinality_discriminator):
        make = rosinality_g if read is stylegan1.rosinality_generator else rosinality_d
        with pytest.raises(ValueError, match=r"size=32 is not one of its sizes \[4, 8, 16\]"):
            read(make(), size=32)


def test_the_average_style():
    tensors = rosinality_g()
    average = np.arange(LATENT, dtype=np.float32)
    variables = stylegan1.rosinality_generator(tensors, average=average[None]).variables
    np.testing.assert_array_equal(variables["averages"]["mapping"]["w_avg"], average)
    with pytest.raises(ValueError, match=r"averages/mapping/w_avg has shape \(3,\)"):
        stylegan1.rosinality_generator(tensors, average=np.zeros(3))

    w = np.random.default_rng(2).normal(size=(20_000, LATENT))
    w = w / np.sqrt((w**2).mean(axis=1, keepdims=True))
    for i in (1, 3, 5):
        weight, bias = (tensors[f"style.{i}.linear.{part}"] for part in ("weight_orig", "bias"))
        w = w @ weight.T * np.sqrt(2 / LATENT) + bias
        w = np.where(w < 0, 0.2 * w, w)
    variables = stylegan1.rosinality_generator(tensors, size=4).variables
    away = variables["averages"]["mapping"]["w_avg"] - w.mean(axis=0)
    assert (np.abs(away) < 5 * w.std(axis=0) / np.sqrt(10_000)).all()


def test_all_layers_share_a_filter():
    tensors = genforce_g()
    taps = np.array([[1, 2, 3], [0, 1, 0], [2, 0, 1]], np.float32) / 10
    for i in (2, 4):
        shape = tensors[f"synthesis.layer{i}.blur.kernel"].shape
        tensors[f"synthesis.layer{i}.blur.kernel"] = np.broadcast_to(taps, shape)
    config = stylegan1.genforce_generator(tensors).config
    np.testing.assert_allclose(config["blur"], taps[::-1, ::-1])  # convolved, not correlated
    with pytest.raises(ValueError, match=r"filters .*layer4\.blur\.kernel and"):
        stylegan1.genforce_generator({**tensors, "synthesis.layer4.blur.kernel": blur(4)})
    small = {**tensors, "synthesis.layer4.blur.kernel": np.ones((4, 1, 2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"has shape \(4, 1, 2, 2\), not \[C, 1, 3, 3\]"):
        stylegan1.genforce_generator(small)


def test_huge_numbers_in_names_are_refused():
    tensors = genforce_g()
    for number in (99_999_999, 10**40):
        with pytest.raises(ValueError, match="too few tensors for synthesis"):
            stylegan1.genforce_generator(
                {**tensors, f"synthesis.output{number}.weight": np.ones((3, 4, 1, 1))}
            )
