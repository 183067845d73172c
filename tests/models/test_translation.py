"""Image-to-image networks: published counts, fields of view, and the effects of options."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.shrinking import KEY, check_dead_channels, check_groups, check_student, drawn, output
from selection import quick

from kd_jax.core.architecture import describe, rebuild
from kd_jax.losses import adversarial
from kd_jax.models import translation
from kd_jax.models.translation import BATCH, INSTANCE, PADDINGS, Batch, Instance

B = 2
RNG = np.random.default_rng(0)
LOUD = Batch(epsilon=30.0)  # random running variances may be negative


def images(*sides, channels=3):
    return jax.ShapeDtypeStruct((B, *sides, channels), jnp.float32)


def noise(*sides, channels=3):
    return jnp.asarray(RNG.uniform(-1, 1, (B, *sides, channels)), jnp.float32)


def abstract(network, *inputs):
    """Output, taps and variables as shapes and dtypes, without computing anything."""

    def run(key, *inputs):
        variables = network.init(key, *inputs)
        result, taps, _ = network.apply(variables, *inputs, train=True)
        return result, taps, variables

    return jax.eval_shape(run, KEY, *inputs)


def count(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


# --- shapes and counts ----------------------------------------------------------------------------


def test_published_parameter_counts():
    """Millions of parameters: CycleGAN (nine blocks, instance norm) and pix2pix (batch norm)."""
    cyclegan = translation.resnet_generator(), translation.patch_discriminator()
    pix2pix = translation.unet_generator(), translation.patch_discriminator(norm=BATCH)
    inputs = [[images(256, 256)]] * 3 + [[images(256, 256)] * 2]
    expected = [11.378, 2.765, 54.414, 2.769]
    for network, shapes, millions in zip((*cyclegan, *pix2pix), inputs, expected, strict=True):
        params = abstract(network, *shapes)[2]["params"]
        total = count(params)
        if network is pix2pix[0]:  # the authors' has no biases without normalisation
            total -= sum(count(params[name]["conv"]["bias"]) for name in ("down_0", "down_7"))
        assert round(total / 1e6, 3) == millions


@pytest.mark.parametrize("separable", [False, True])
def test_resnet_shapes(separable):
    network = translation.resnet_generator(3, channels=2, blocks=2, norm=BATCH, separable=separable)
    result, taps, variables = abstract(network, images(32, 20, channels=5))
    assert result.shape == (B, 32, 20, 2)
    assert {name: tap.shape[1:] for name, tap in taps.items()} == {
        "stem": (32, 20, 3),
        "down_0": (16, 10, 6),
        "down_1": (8, 5, 12),
        "block_0": (8, 5, 12),
        "block_1": (8, 5, 12),
        "up_0": (16, 10, 6),
        "up_1": (32, 20, 3),
    }
    layer = 9 * 12 + 24 + 12 * 12 + 24 if separable else 9 * 12 * 12 + 24
    assert count(variables["params"]["block_1"]) == 2 * layer


def test_unet_shapes():
    network = translation.unet_generator(2, channels=1, downs=5)
    result, taps, variables = abstract(network, images(64, 32))
    assert result.shape == (B, 64, 32, 1)
    widths = (2, 4, 8, 16, 16)
    sides = [(64 >> i + 1, 32 >> i + 1) for i in range(5)]
    down = {f"down_{i}": (*sides[i], widths[i]) for i in range(5)}
    up = {f"up_{i}": (*sides[i], widths[i]) for i in range(4)}
    assert {name: tap.shape[1:] for name, tap in taps.items()} == down | up
    assert set(variables["batch_stats"]) == {f"down_{i}" for i in (1, 2, 3)} | set(up)


@pytest.mark.parametrize(("layers", "side", "scores"), [(1, 6, 1), (3, 24, 1), (3, 70, 6)])
def test_patch_discriminator_shapes(layers, side, scores):
    network = translation.patch_discriminator(2, layers=layers, norm=BATCH)
    inputs = images(side, side + 1), images(side, side + 1, channels=1)
    result, taps, variables = abstract(network, *inputs)
    assert set(variables["batch_stats"]) == {f"layer_{i}" for i in range(1, layers + 1)}
    assert result.shape[:2] == (B, scores)
    assert result.dtype == jnp.float32
    widths = [2, 4, 8, 16][: layers + 1]
    sides = [side >> i + 1 for i in range(layers)] + [(side >> layers) - 1]
    shapes = {name: tap.shape[1::2] for name, tap in taps.items()}
    assert shapes == {f"layer_{i}": (sides[i], widths[i]) for i in range(layers + 1)}


def test_pixel_discriminator_shapes():
    result, taps, variables = abstract(translation.pixel_discriminator(2), images(5, 7))
    assert result.shape == (B, 5, 7)
    assert {name: tap.shape for name, tap in taps.items()} == {
        "layer_0": (B, 5, 7, 2),
        "layer_1": (B, 5, 7, 4),
    }
    assert count(variables) == 3 * 2 + 2 + 2 * 4 + 4 + 4 + 1


def test_half_precision_is_used_for_computation_but_not_for_storage():
    half = {"dtype": jnp.bfloat16}
    for network, tap in (
        (translation.resnet_generator(2, blocks=1, separable=True, **half), "block_0"),
        (translation.unet_generator(2, downs=3, **half), "up_1"),
        (translation.patch_discriminator(2, **half), "layer_3"),
    ):
        result, taps, variables = abstract(network, images(32, 32))
        assert (result.dtype, taps[tap].dtype) == (jnp.float32, jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


# --- layers ---------------------------------------------------------------------------------------


def test_instance_norm_by_hand():
    x = RNG.normal(3, 2, size=(B, 4, 5, 3))
    mean, var = x.mean(axis=(1, 2), keepdims=True), x.var(axis=(1, 2), keepdims=True)
    ours = translation.InstanceNorm(epsilon=0.1).apply({}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ours, (x - mean) / np.sqrt(var + 0.1), rtol=1e-4, atol=1e-5)


def test_running_statistics_of_an_instance_norm_by_hand():
    """Averages over the images, of unbiased variances; training uses each image's own."""
    x = RNG.normal(3, 2, size=(B, 4, 5, 3))
    mean, var = x.mean(axis=(1, 2), keepdims=True), x.var(axis=(1, 2), keepdims=True)
    norm = partial(translation.InstanceNorm, affine=True, tracked=True, momentum=0.75)
    scale, bias = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]])
    stats = {"mean": np.array([1.0, 2.0, 3.0]), "var": np.array([4.0, 1.0, 9.0])}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)
    x = x.astype(np.float32)
    ours, after = norm(train=True).apply(variables, x, mutable="batch_stats")
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    unbiased = var.mean(axis=(0, 1, 2)) * 20 / 19
    for name, batch in (("mean", mean.mean(axis=(0, 1, 2))), ("var", unbiased)):
        expected = 0.75 * stats[name] + 0.25 * batch
        np.testing.assert_allclose(after["batch_stats"][name], expected, rtol=1e-5)
    ours = norm(train=False).apply(variables, x)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale + bias
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_transposed_convolution_is_centred_on_even_pixels():
    """Row i of the input reaches rows 2 i - 1 to 2 i + 1 of the output, by the flipped kernel."""
    kernel = RNG.normal(size=(3, 3, 1, 1)).astype(np.float32)
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 3] = x[0, 2, 0] = 1
    expected = np.zeros((8, 8))
    expected[1:4, 5:8] = kernel[::-1, ::-1, 0, 0]
    expected[3:6, 0:2] += kernel[::-1, :2, 0, 0][:, ::-1]  # the first column is cropped
    np.testing.assert_allclose(
        translation._conv_transpose(x, kernel, 2)[0, :, :, 0], expected, atol=1e-6
    )


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_of_blocks(padding, separable):
    """A block whose first kernel reads up and left adds each pixel's neighbour there."""
    x = RNG.uniform(0.1, 1, (1, 4, 3, 2)).astype(np.float32)
    block = translation.ResidualBlock(
        2, padding, 0.0, separable, None, train=False, dtype=jnp.float32
    )
    corner, centre = np.zeros((2, 3, 3, 1, 1), np.float32)
    corner[0, 0] = centre[1, 1] = 1
    zero = np.zeros(2, np.float32)
    params = {}
    for number, window in enumerate((corner, centre)):
        eye = np.eye(2, dtype=np.float32)
        if separable:
            kernel = np.broadcast_to(window[..., 0], (3, 3, 2))
            params[f"depthwise_{number}"] = {"kernel": kernel, "bias": zero}
            window = np.ones((1, 1, 1, 1), np.float32)
        params[f"layer_{number}"] = {"conv": {"kernel": window * eye, "bias": zero}}
    rows, columns = {
        "reflect": ([1, 0, 1, 2], [1, 0, 1]),
        "replicate": ([0, 0, 1, 2], [0, 0, 1]),
        "zero": ([0, 0, 1, 2], [0, 0, 1]),
    }[padding]
    neighbours = x[:, rows][:, :, columns].copy()
    if padding == "zero":
        neighbours[:, 0] = neighbours[:, :, 0] = 0
    np.testing.assert_allclose(block.apply({"params": params}, x), x + neighbours, rtol=1e-6)


def test_a_residual_generator_adds_to_the_last_channels_of_its_input():
    """A fresh one changes its input little; the residual equals the output without `residual`."""
    network = translation.resnet_generator(4, channels=3, blocks=1, residual=True)
    x = noise(16, 16, channels=4)
    fresh = jax.jit(network.init)(jax.random.key(0, impl="rbg"), x)
    result = output(network, fresh, x)
    np.testing.assert_allclose(result, x[..., 1:], atol=0.1)
    assert np.abs(result - x[..., 1:]).max() > 0
    variables = drawn(network, x)
    plain = translation.resnet_generator(4, channels=3, blocks=1)
    residual = output(network, variables, x) - x[..., 1:]
    np.testing.assert_allclose(np.tanh(residual), output(plain, variables, x), atol=1e-4)
    with pytest.raises(ValueError, match="at least 3 channels, not of 1"):
        abstract(network, images(16, 16, channels=1))


def test_dropout_needs_training_and_a_key():
    x = noise(8, 8)
    network = translation.resnet_generator(2, blocks=1, dropout=0.5)
    variables = drawn(network, x)
    apply = jax.jit(network.apply, static_argnames="train")
    expected = apply(variables, x)[0]
    key = jax.random.key(1)
    for options in ({"rngs": key}, {"train": True}):  # instance norm is the same in training
        np.testing.assert_allclose(apply(variables, x, **options)[0], expected, atol=1e-5)
    one, two = (apply(variables, x, train=True, rngs=k)[0] for k in (key, jax.random.key(2)))
    assert np.abs(one - expected).max() > 0.01
    assert np.abs(one - two).max() > 0.01


def test_the_unets_layers_with_dropout():
    x = noise(64, 64)
    network = translation.unet_generator(4, downs=6, norm=None)
    variables = drawn(network, x)
    _, taps, _ = jax.jit(lambda v, x: network.apply(v, x, train=True, rngs=KEY))(variables, x)
    shares = {f"up_{i}": float((taps[f"up_{i}"] == 0).mean()) for i in range(5)}
    assert 0.4 < shares.pop("up_3") < 0.6
    assert set(shares.values()) == {0.0}


# --- discriminators -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "side", "field"),
    [
        (translation.patch_discriminator(1, norm=None), 128, 70),  # the paper's
        (translation.patch_discriminator(1, layers=1, norm=None), 32, 16),  # and its small one
        (translation.pixel_discriminator(1, norm=None), 4, 1),
    ],
)
def test_field_of_view(network, side, field):
    x = noise(side, side)
    variables = jax.tree.map(jnp.abs, drawn(network, x))
    x = jnp.abs(x)  # so that all summands are positive

    def middle(x):
        scores = network.apply(variables, x)[0]
        return scores[0, scores.shape[1] // 2, scores.shape[2] // 2]

    visible = np.asarray(jax.jit(jax.grad(middle))(x)) != 0
    assert not visible[1].any()
    assert visible[0].sum(axis=0).max() == visible[0].sum(axis=1).max() == field
    assert visible[0].sum() == field**2 * 3


def test_conditions_come_before_the_image():
    network = translation.patch_discriminator(2, layers=1)
    x, source, mask = noise(8, 8), noise(8, 8), noise(8, 8, channels=1)
    variables = drawn(network, x, source, mask)
    together = jnp.concatenate([source, mask, x], axis=-1)
    scores = output(network, variables, x, source, mask)
    np.testing.assert_array_equal(scores, output(network, variables, together))
    assert adversarial.hinge_d(scores, scores).shape == (B,)
    labels = jnp.zeros(B, jnp.int32)
    for wrong in (labels, noise(8, 4)):
        with pytest.raises(ValueError, match=r"a condition must be images .* \(2, 8, 8\), not of"):
            network.apply(variables, x, wrong)


# --- channels -------------------------------------------------------------------------------------

ENDS = {"up_0": 8, "up_1": 4}
ONE_BLOCK = {"stem": 4, "down_0": 8, "down_1": 16, "block_0/hidden": 16} | ENDS
RESNET = {"stem": 4, "down_0": 8, "down_1": 16, "block_0/hidden": 16, "block_1/hidden": 16} | ENDS
UNET = {"down_0": 4, "down_1": 8, "down_2": 16, "up_0": 4, "up_1": 8}
SHRINKING = {
    "resnet": (
        lambda width: translation.resnet_generator(width, blocks=2, norm=LOUD),
        translation.resnet_generator_axes,
        RESNET,
    ),
    "separable": (
        lambda width: translation.resnet_generator(width, blocks=1, norm=LOUD, separable=True),
        translation.resnet_generator_axes,
        ONE_BLOCK,
    ),
    "separable, with biases": (
        lambda width: translation.resnet_generator(width, blocks=1, separable=True),
        translation.resnet_generator_axes,
        ONE_BLOCK,
    ),
    "unet": (
        lambda width: translation.unet_generator(width, downs=3, norm=LOUD),
        translation.unet_generator_axes,
        UNET,
    ),
    "patch": (
        lambda width: translation.patch_discriminator(width, layers=2, norm=LOUD),
        translation.discriminator_axes,
        {"layer_0": 4, "layer_1": 8, "layer_2": 16},
    ),
    "affine": (
        lambda width: translation.pixel_discriminator(width, norm=Instance(0.1, affine=True)),
        translation.discriminator_axes,
        {"layer_0": 4, "layer_1": 8},
    ),
    "tracked": (
        lambda width: translation.pixel_discriminator(width, norm=Instance(30.0, True, True)),
        translation.discriminator_axes,
        {"layer_0": 4, "layer_1": 8},
    ),
    "pixel": (
        translation.pixel_discriminator,
        translation.discriminator_axes,
        {"layer_0": 4, "layer_1": 8},
    ),
}


@pytest.mark.parametrize(
    "name", quick(SHRINKING, lambda name: name in ("resnet", "separable", "affine"))
)
def test_channels_can_be_pruned(name):
    make, describe_axes, groups = SHRINKING[name]
    x = noise(16, 16)
    check_groups(make(4), describe_axes, x, groups)
    check_student(make(4), make(3), describe_axes, x)
    narrow = [max(width - 1 - i, 1) for i, width in enumerate(groups.values())]
    assert not np.isnan(output(make(4), drawn(make(4), x), x)).any()
    check_dead_channels(make(4), make(narrow), describe_axes, x)


def test_variables_of_other_networks_raise():
    shapes = jax.eval_shape(translation.unet_generator(2, downs=2).init, KEY, images(8, 8))
    for describe_axes in (translation.resnet_generator_axes, translation.discriminator_axes):
        with pytest.raises(ValueError, match="is missing"):
            describe_axes(shapes)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            "resnet_generator",
            {"padding": "circular"},
            "'circular' is not one of reflect, replicate",
        ),
        ("resnet_generator", {"blocks": -1}, "blocks=-1 must be at least 0"),
        ("resnet_generator", {"dropout": 1.0}, "dropout=1.0 is not in"),
        ("resnet_generator", {"width": 0}, "width=0 must be at least 1"),
        ("resnet_generator", {"width": [4, 8], "blocks": 0}, r"5 widths \(stem, .* up_1\), not 2"),
        ("unet_generator", {"downs": 1}, "downs=1 must be at least 2"),
        ("unet_generator", {"channels": 0}, "channels=0 at least 1"),
        ("patch_discriminator", {"layers": 0}, "layers=0 must be at least 1"),
        ("pixel_discriminator", {"width": [2]}, "2 widths .*, not 1"),
    ],
)
def test_invalid_networks_raise(make, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(translation, make)(**options)


@pytest.mark.parametrize(
    ("network", "sides", "message"),
    [
        (translation.resnet_generator(2, blocks=1), (16, 18), "multiples of 4 and at least 8"),
        (translation.resnet_generator(2, blocks=1), (4, 16), "multiples of 4 and at least 8"),
        (translation.resnet_generator(2, blocks=0), (2, 16), "multiples of 4 and at least 4"),
        (translation.unet_generator(2, downs=4), (24, 16), "multiples of 16 and at least 16"),
        (translation.patch_discriminator(2), (23, 64), "whose sides are at least 24"),
        (translation.patch_discriminator(2), (64,), r"not of shape \(2, 64, 3\)"),
    ],
)
def test_invalid_images_raise(network, sides, message):
    with pytest.raises(ValueError, match=message) as caught:
        abstract(network, images(*sides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "network",
    [
        translation.resnet_generator(2, blocks=1, padding="replicate"),
        translation.unet_generator(2, downs=2, norm=None),
        translation.patch_discriminator(2, layers=1, norm=INSTANCE),
    ],
)
def test_a_network_is_rebuilt_from_its_description(network):
    x = noise(8, 8)
    rebuilt = rebuild(json.loads(json.dumps(describe(network, x)))).network
    variables = drawn(network, x)
    np.testing.assert_array_equal(output(rebuilt, variables, x), output(network, variables, x))
