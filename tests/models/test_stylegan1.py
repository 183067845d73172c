"""StyleGAN: closed forms, parameter counts computed by hand, and documented options."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.shrinking import (
    check_dead_channels,
    check_groups,
    check_student,
    drawn,
    output,
    random_like,
)

from kd_jax import losses, ops
from kd_jax.core.axes import InputAxis, path_name
from kd_jax.core.mesh import compile_step, initialize
from kd_jax.core.objective import Term
from kd_jax.core.setup import Networks, PerNetwork, Setup
from kd_jax.core.state import init_state
from kd_jax.core.step import make_simultaneous_step
from kd_jax.models import stylegan1
from kd_jax.tasks import latents

B, LATENT, STYLE, CLASSES = 4, 6, 5, 3
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
Z = jnp.asarray(RNG.normal(size=(B, LATENT)), jnp.float32)
IMAGES = jnp.asarray(RNG.uniform(-1, 1, size=(B, 16, 16, 3)), jnp.float32)
LABELS = jnp.array([0, 2, 1, 2])
SMALL = {"channel_base": 64, "channel_max": 7}  # 7, 7 and 4 channels at 4, 8 and 16
G_OPTIONS = {"latent": LATENT, "style": STYLE, "depth": 2, "hidden": 9, **SMALL}


def count(variables):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(variables["params"]))


def upsample_nearest(images):
    return np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)


@pytest.fixture(scope="module")
def generator():
    """An unconditional 8x8 generator and its variables."""
    network = stylegan1.generator(8, **G_OPTIONS)
    return network, drawn(network, Z)


@pytest.fixture(scope="module")
def discriminator():
    network = stylegan1.discriminator(16, **SMALL)
    return network, drawn(network, IMAGES)


# --- shapes and parameters ------------------------------------------------------------------------


def test_generator_shapes_and_parameters():
    network = stylegan1.generator(16, classes=CLASSES, **G_OPTIONS)

    def run(key):
        variables = network.init(key, Z, LABELS)
        return network.apply(variables, Z, LABELS), variables

    (images, taps, _), variables = jax.eval_shape(run, KEY)
    assert images.shape == (B, 16, 16, 3)
    assert {name: tap.shape for name, tap in taps.items()} == {
        "styles": (B, 6, STYLE),
        "4x4": (B, 4, 4, 7),
        "8x8": (B, 8, 8, 7),
        "16x16": (B, 16, 16, 4),
    }
    mapping = CLASSES * LATENT + (2 * LATENT + 1) * 9 + (9 + 1) * STYLE
    # Each layer has noise, bias and style; the first has a constant, the others have a kernel.
    per_channel = 2 + 2 * (STYLE + 1)
    layers = sum(width * per_channel for width in (7, 7, 7, 7, 4, 4))
    kernels = 16 * 7 + 9 * (7 * 7 + 7 * 7 + 7 * 7 + 7 * 4 + 4 * 4)
    images = sum((width + 1) * 3 for width in (7, 7, 4))
    assert count(variables) == mapping + layers + kernels + images
    sides = {name: x.shape for name, x in variables["noise"]["synthesis"].items()}
    assert sides == {f"noise{i}": (4 << i // 2,) * 2 for i in range(6)}


def test_discriminator_shapes_and_parameters():
    network = stylegan1.discriminator(
        16, classes=CLASSES, inner={4: 5, 8: 6, 16: 8}, features=10, **SMALL
    )

    def run(key):
        variables = network.init(key, IMAGES, LABELS)
        return network.apply(variables, IMAGES, LABELS), variables

    (scores, taps, _), variables = jax.eval_shape(run, KEY)
    assert scores.shape == (B,)
    shapes = {name: tap.shape for name, tap in taps.items()}
    assert shapes == {"8x8": (B, 8, 8, 7), "4x4": (B, 4, 4, 7), "features": (B, 10)}
    fromrgb = sum((3 + 1) * width for width in (4, 7, 7))
    blocks = (9 * 4 + 1) * 8 + (9 * 8 + 1) * 7 + (9 * 7 + 1) * 6 + (9 * 6 + 1) * 7
    last = (9 * 8 + 1) * 5 + (16 * 5 + 1) * 10 + (10 + 1) * CLASSES
    assert count(variables) == fromrgb + blocks + last


def test_channels_of_the_paper():
    """512 channels up to 32x32, then halved at each doubling of the side, to 16 at 1024x1024."""
    network = stylegan1.generator(1024, latent=512)
    taps = jax.eval_shape(
        lambda key, z: network.apply(network.init(key, z), z)[1], KEY, jnp.zeros((1, 512))
    )
    widths = {name: tap.shape[-1] for name, tap in taps.items() if name != "styles"}
    assert taps["styles"].shape == (1, 18, 512)
    assert widths == {
        f"{4 << i}x{4 << i}": min(512, 512 >> i - 3) if i > 3 else 512 for i in range(9)
    }


def test_half_precision_applies_to_computation_not_storage():
    pair = stylegan1.gan(8, latent=LATENT, depth=1, dtype=jnp.bfloat16, **SMALL)
    for network, x in ((pair.generator, Z), (pair.discriminator, IMAGES[:, :8, :8])):

        def run(key, x, network=network):
            variables = network.init(key, x)
            output, taps, _ = network.apply(variables, x, train=True, rngs=key)
            return output, taps, variables

        output, taps, variables = jax.eval_shape(run, KEY, x)
        assert output.dtype == jnp.float32
        assert taps["4x4"].dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


# --- layers, by hand ------------------------------------------------------------------------------


def test_adaptive_instance_norm_sets_mean_and_deviation():
    x = jnp.asarray(RNG.normal(3.0, 2.0, size=(2, 5, 4, 3)), jnp.float32)
    styles = jnp.asarray(RNG.normal(size=(2, 6)), jnp.float32)
    y = np.asarray(stylegan1.adaptive_instance_norm(x, styles))
    np.testing.assert_allclose(y.mean(axis=(1, 2)), styles[:, 3:], atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(1, 2)), np.abs(styles[:, :3] + 1), atol=1e-5)


def test_adaptive_instance_norm_adds_eps_to_the_variance():
    x = jnp.asarray([-1.0, 1.0]).reshape(1, 2, 1, 1)  # of variance 1
    y = stylegan1.adaptive_instance_norm(x, jnp.zeros((1, 2)), eps=3.0)
    np.testing.assert_allclose(y.reshape(-1), [-0.5, 0.5], rtol=1e-6)


def test_adaptive_instance_norm_gradients_match_finite_differences(x64):
    rng = np.random.default_rng(1)
    x, styles = rng.normal(size=(2, 3, 3, 2)), rng.normal(size=(2, 4))
    weights = rng.normal(size=x.shape)

    def loss(x, styles):
        return (stylegan1.adaptive_instance_norm(x, styles, 1e-5) * weights).sum()

    for index, gradient in enumerate(jax.grad(loss, (0, 1))(jnp.asarray(x), jnp.asarray(styles))):
        assert gradient.dtype == jnp.float64
        direction = rng.normal(size=gradient.shape)
        above, below = [x, styles], [x, styles]
        above[index] = above[index] + 1e-6 * direction
        below[index] = below[index] - 1e-6 * direction
        difference = (loss(*map(jnp.asarray, above)) - loss(*map(jnp.asarray, below))) / 2e-6
        np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-6)


def test_resampling_convolutions_upsample_by_nearest_neighbour_and_downsample_by_averages():
    x = jnp.asarray(RNG.normal(size=(2, 6, 5, 3)), jnp.float32)
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 3, 4)), jnp.float32)
    up = ops.conv_transpose(x, stylegan1._spread(kernel), stride=2)
    np.testing.assert_allclose(up, ops.conv(jnp.asarray(upsample_nearest(x)), kernel), atol=1e-4)
    x = jnp.asarray(RNG.normal(size=(2, 12, 10, 3)), jnp.float32)
    params = {"weight": kernel, "bias": jnp.arange(4.0)}
    full, down = (
        stylegan1.Convolution(4, down=down, activation=stylegan1.LINEAR).apply(
            {"params": params}, x
        )
        for down in (False, True)
    )
    averages = np.asarray(full).reshape(2, 6, 2, 5, 2, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(down, averages, atol=1e-4)


def test_gains_of_equalized_layers():
    """A kernel of ones over n inputs of 1 yields sqrt(2 n), or sqrt(n) without an activation."""
    ones = jnp.ones((1, 4, 4, 8))
    for activation, expected in ((stylegan1.LRELU, 4.0), (stylegan1.LINEAR, np.sqrt(8))):
        layer = stylegan1.Convolution(1, 1, activation=activation)
        params = {"weight": jnp.ones((1, 1, 8, 1)), "bias": jnp.full(1, -10.0)}
        y = layer.apply({"params": params}, ones)
        value = expected - 10.0
        value = 0.2 * value if activation is stylegan1.LRELU else value
        np.testing.assert_allclose(y, np.full((1, 4, 4, 1), value), rtol=1e-6)


def test_conditional_mapping_matches_a_manual_computation():
    network = stylegan1.generator(8, classes=CLASSES, latent=LATENT, style=STYLE, depth=1, **SMALL)
    variables = drawn(network, Z, LABELS)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["mapping"])
    joined = np.concatenate([np.asarray(Z, np.float64), params["embedding"][LABELS]], axis=1)
    joined = joined / np.sqrt((joined**2).mean(axis=1, keepdims=True) + 1e-8)
    w = 0.01 * (joined @ params["fc0"]["weight"] / np.sqrt(2 * LATENT) + params["fc0"]["bias"])
    w = np.sqrt(2) * np.where(w < 0, 0.2 * w, w)
    one_hot = jnp.asarray(np.eye(CLASSES)[LABELS], jnp.float32)
    for condition in (LABELS, one_hot):
        styles = network.mapping(variables, Z, condition)
        np.testing.assert_allclose(styles, np.repeat(w[:, None], 4, axis=1), rtol=1e-4, atol=1e-7)


def test_a_conditional_discriminator_has_a_score_for_each_class():
    network = stylegan1.discriminator(8, classes=CLASSES, **SMALL)
    images = IMAGES[:, :8, :8]
    variables = drawn(network, images, LABELS)
    scores, taps, _ = network.apply(variables, images, LABELS)
    out = variables["params"]["b4"]["out"]
    class_scores = taps["features"] @ out["weight"] / np.sqrt(7) + out["bias"][None]
    np.testing.assert_allclose(
        scores, np.asarray(class_scores)[np.arange(B), LABELS], rtol=1e-4, atol=1e-5
    )


def test_examples_interact_only_in_the_minibatch_deviation():
    changed = IMAGES.at[0].set(0.0)
    for group, count, differ in ((4, 1, [True] * 4), (2, 1, [True, False, True, False]), (4, 0, 0)):
        network = stylegan1.discriminator(16, stddev_group=group, stddev_channels=count, **SMALL)
        variables = drawn(network, IMAGES)
        one, other = (output(network, variables, x) for x in (IMAGES, changed))
        expected = differ or [True, False, False, False]
        assert (np.abs(one - other) > 1e-5).tolist() == expected


def test_the_deviation_of_the_minibatch_is_the_last_channel():
    """If the next layer ignores it, the examples do not interact."""
    network = stylegan1.discriminator(8, **SMALL)
    images = IMAGES[:, :8, :8]
    variables = drawn(network, images)
    conv = variables["params"]["b4"]["conv"]
    conv["weight"] = conv["weight"].at[:, :, -1].set(0.0)
    one, other = (output(network, variables, x) for x in (images, images.at[0].set(0.0)))
    assert (np.abs(one - other) > 1e-5).tolist() == [True, False, False, False]


def test_bias_before_blur():
    """A constant blurred by [1, 2, 1] / 4 with zero padding: 3/4 at an edge, 9/16 in a corner."""
    blur = stylegan1._hashable_filter((1, 2, 1))
    outputs = []
    for before in (False, True):
        layer = stylegan1.SynthesisLayer(1, True, blur, 1e-8, before, jnp.float32)
        params = random_like(
            jax.eval_shape(layer.init, KEY, jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 2)), None)
        )["params"]
        params = {**params, "bias": jnp.ones(1), "weight": jnp.zeros((3, 3, 1, 1))}
        params["affine"] = jax.tree.map(jnp.zeros_like, params["affine"])
        y = layer.apply({"params": params}, jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 2)), None)
        outputs.append(np.asarray(y)[0, :, :, 0])
    assert np.abs(outputs[0]).max() == 0  # normalising a constant yields 0
    corner, edge, inside = outputs[1][0, 0], outputs[1][0, 1], outputs[1][1, 1]
    np.testing.assert_allclose((corner - inside) / (edge - inside), (7 / 16) / (4 / 16), rtol=1e-4)


# --- styles ---------------------------------------------------------------------------------------


def test_mapping_and_synthesis_compose_to_apply(generator):
    network, variables = generator
    options = {"truncation": 0.6, "truncation_cutoff": 3}
    run = jax.jit(partial(network.apply, **options, noise="none"))
    images, taps, _ = run(variables, Z)
    styles = network.mapping(variables, Z, **options)
    synthesized, _ = jax.jit(partial(network.synthesis, noise="none"))(variables, styles)
    np.testing.assert_allclose(synthesized, images, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(taps["styles"], styles, rtol=1e-6)
    w = network.mapping(variables, Z)[:, :1]
    average = variables["averages"]["mapping"]["w_avg"][None, None]
    truncated = average + 0.6 * (w - average)
    expected = np.concatenate([truncated, truncated, truncated, w], axis=1)
    np.testing.assert_allclose(styles, expected, rtol=1e-5, atol=1e-6)


def test_truncation_zero_yields_the_image_of_the_average_style(generator):
    network, variables = generator
    images = output(network, variables, Z, truncation=0.0)
    average = variables["averages"]["mapping"]["w_avg"]
    styles = jnp.broadcast_to(average[None, None], (1, 4, STYLE))
    image, _ = jax.jit(network.synthesis)(variables, styles)
    np.testing.assert_allclose(images, np.repeat(image, B, axis=0), rtol=1e-4, atol=1e-4)


def test_training_updates_the_average_style(generator):
    network, variables = generator
    after = jax.jit(partial(network.apply, train=True, rngs=KEY))(variables, Z)[2]
    mean = np.asarray(network.mapping(variables, Z))[:, 0].mean(axis=0)
    old = np.asarray(variables["averages"]["mapping"]["w_avg"])
    expected = 0.995 * old + 0.005 * mean
    np.testing.assert_allclose(after["averages"]["mapping"]["w_avg"], expected, rtol=1e-5)


def test_style_mixing():
    network = stylegan1.generator(8, style_mixing=1.0, **G_OPTIONS)
    variables = drawn(network, Z)
    own = np.asarray(network.mapping(variables, Z))
    styles = jax.jit(partial(network.apply, train=True, rngs=KEY))(variables, Z)[1]["styles"]
    unmixed = (np.abs(np.asarray(styles) - own) < 1e-6).all(axis=2)
    assert unmixed[:, 0].all()
    assert not unmixed[:, -1].any()
    assert (np.sort(~unmixed, axis=1) == ~unmixed).all()  # mixed from some layer to the last
    for options in ({"rngs": KEY}, {"train": True}):  # in inference, or without a key
        styles = jax.jit(partial(network.apply, **options))(variables, Z)[1]["styles"]
        np.testing.assert_allclose(styles, own, rtol=1e-6)


# --- noise ----------------------------------------------------------------------------------------


def test_noise(generator):
    network, variables = generator
    const, none = (output(network, variables, Z, noise=noise) for noise in ("const", "none"))
    draw = jax.jit(lambda key: network.apply(variables, Z, rngs=key)[0])
    one, other = draw(jax.random.key(1)), draw(jax.random.key(2))
    np.testing.assert_array_equal(output(network, variables, Z), const)
    np.testing.assert_array_equal(output(network, variables, Z, rngs=KEY, noise="const"), const)
    for a, b in ((const, none), (one, const), (one, other)):
        assert np.abs(a - b).max() > 0.1
    stored = variables["noise"]["synthesis"]
    noises = [stored[f"noise{i}"][None, :, :, None] for i in range(4)]
    images = output(network, variables, Z, noise=noises)
    np.testing.assert_allclose(images, const, rtol=1e-4, atol=1e-4)
    per_example = [jnp.repeat(noise, B, axis=0).at[1].set(0.0) for noise in noises]
    images = output(network, variables, Z, noise=per_example)
    expected = np.stack([none[i] if i == 1 else const[i] for i in range(B)])
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-4)


def test_noise_differs_between_examples(generator):
    network, variables = generator
    images = output(network, variables, jnp.repeat(Z[:1], B, axis=0), rngs=KEY)
    assert np.abs(images[0] - images[1]).max() > 0.1


def test_noise_strength_is_initially_zero():
    network = stylegan1.generator(8, **G_OPTIONS)
    variables = jax.jit(network.init)(KEY, Z)
    images = [output(network, variables, Z, noise=noise) for noise in ("const", "none")]
    np.testing.assert_array_equal(*images)
    stored = variables["noise"]["synthesis"]
    assert np.abs(np.asarray(stored["noise0"] - stored["noise1"])).max() > 0.1


def test_both_layers_of_a_side_can_share_their_noise():
    network = stylegan1.generator(8, shared_noise=True, **G_OPTIONS)
    stored = jax.jit(network.init)(KEY, Z)["noise"]["synthesis"]
    for first, second in (("noise0", "noise1"), ("noise2", "noise3")):
        np.testing.assert_array_equal(stored[first], stored[second])


# --- levels of detail -----------------------------------------------------------------------------


def test_a_level_of_detail_equals_a_smaller_generator():
    network = stylegan1.generator(16, **G_OPTIONS)
    variables = drawn(network, Z)
    params, noise = variables["params"], variables["noise"]["synthesis"]
    synthesis = {name: part for name, part in params["synthesis"].items() if name != "b16"}
    smaller = {
        "params": {**params, "synthesis": synthesis},
        "noise": {"synthesis": {name: x for name, x in noise.items() if name < "noise4"}},
        "averages": variables["averages"],
    }
    half = stylegan1.generator(8, **G_OPTIONS)
    traced = jax.jit(lambda lod: network.apply(variables, Z, lod=lod)[0])
    images = {lod: np.asarray(traced(jnp.float32(lod))) for lod in (0, 0.3, 1, 2)}
    assert np.abs(images[0] - images[1]).max() > 0.1
    for lod in (1, 2):
        coarse = output(half, smaller, Z, lod=lod - 1)
        np.testing.assert_allclose(images[lod], upsample_nearest(coarse), rtol=1e-3, atol=1e-3)
    blended = 0.7 * images[0] + 0.3 * images[1]
    np.testing.assert_allclose(images[0.3], blended, rtol=1e-3, atol=1e-3)
    for lod in (0.3, 1.0):  # static
        np.testing.assert_allclose(
            output(network, variables, Z, lod=lod), images[lod], rtol=1e-3, atol=1e-3
        )


def test_a_level_of_detail_equals_a_smaller_discriminator(discriminator):
    network, variables = discriminator
    traced = jax.jit(lambda lod: network.apply(variables, IMAGES, lod=lod)[:2])
    outputs = {lod: traced(jnp.float32(lod)) for lod in (0, 0.4, 1, 1.5)}
    half = stylegan1.discriminator(8, **SMALL)
    small = {"params": {k: v for k, v in variables["params"].items() if k != "b16"}}
    averages = np.asarray(IMAGES).reshape(B, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    for lod in (1, 1.5):
        expected = output(half, small, averages, lod=lod - 1)
        np.testing.assert_allclose(outputs[lod][0], expected, rtol=1e-3, atol=1e-3)
        static = output(network, variables, IMAGES, lod=float(lod))
        np.testing.assert_allclose(static, expected, rtol=1e-3, atol=1e-3)
    # Between the two, features are blended before the block of 8x8.
    features = {lod: np.asarray(taps["8x8"]) for lod, (_, taps) in outputs.items()}
    blended = 0.6 * features[0] + 0.4 * features[1]
    np.testing.assert_allclose(features[0.4], blended, rtol=1e-3, atol=1e-3)


def test_default_level_of_detail(generator, discriminator):
    network = stylegan1.generator(8, lod=1.0, **G_OPTIONS)
    images = output(*generator, Z, lod=1.0)
    np.testing.assert_array_equal(output(network, generator[1], Z), images)
    network = stylegan1.discriminator(16, lod=1.0, **SMALL)
    scores = output(*discriminator, IMAGES, lod=1.0)
    np.testing.assert_array_equal(output(network, discriminator[1], IMAGES), scores)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 12}, "power of two from 4 to 1024, not 12"),
        ({"size": 2048}, "not 2048"),
        ({"size": 8, "channel_base": 4}, "leave 0 channels at a side of 8"),
        ({"size": 8, "widths": {4: 8}}, r"\{4: 8\} has no width for a side of 8"),
        ({"size": 8, "lod": 1.5}, r"lod=1.5 is not from 0 \(8x8\) to 1 \(4x4\)"),
    ],
)
def test_invalid_options_raise(options, message):
    options = dict(options)
    size = options.pop("size")
    for make in (stylegan1.generator, stylegan1.discriminator):
        with pytest.raises(ValueError, match=message):
            make(size, **options)


def test_invalid_generator_inputs_raise(generator):
    network, variables = generator
    stored = [jnp.zeros((1, 4 << i // 2, 4 << i // 2, 1)) for i in range(4)]
    for inputs, options, message in (
        ((Z[:, :5],), {}, r"latents \[B, 6\] are needed, not \(4, 5\)"),
        ((Z, LABELS), {}, r"not conditional, but got a condition \(4,\)"),
        ((Z,), {"noise": "loud"}, "noise='loud' is not one of 'random', 'const', 'none'"),
        ((Z,), {"noise": "random"}, "noise='random' needs a key"),
        ((Z,), {"noise": stored[1:]}, "4 images of noise are needed, not 3"),
        ((Z,), {"noise": stored[::-1]}, r"noise 0 has shape \(1, 8, 8, 1\), not \(4, 4, 4, 1\)"),
        ((Z,), {"lod": 2.5}, r"lod=2.5 is not from 0 \(8x8\) to 1 \(4x4\)"),
        ((Z,), {"lod": jnp.zeros(4)}, r"lod must be a scalar, .* \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            network.apply(variables, *inputs, **options)
    with pytest.raises(ValueError, match=r"styles \[B, 4, 5\] are needed, not \(4, 5\)"):
        network.synthesis(variables, jnp.zeros((4, 5)))


def test_invalid_discriminator_inputs_raise(discriminator):
    network, variables = discriminator
    with pytest.raises(ValueError, match=r"images \[B, 16, 16, 3\] are needed, not \(4, 8, 8, 3\)"):
        network.apply(variables, IMAGES[:, :8, :8])
    with pytest.raises(ValueError, match=r"not conditional, but got labels \(4,\)"):
        network.apply(variables, IMAGES, LABELS)
    with pytest.raises(ValueError, match="needs labels"):
        jax.eval_shape(stylegan1.discriminator(16, classes=3, **SMALL).init, KEY, IMAGES)


def test_mismatched_styles_raise():
    with pytest.raises(ValueError, match=r"styles \(2, 3\) .* images \(2, 4, 4, 3\)"):
        stylegan1.adaptive_instance_norm(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 3)))


# --- channels -------------------------------------------------------------------------------------

WIDE, NARROW = {4: 9, 8: 8, 16: 6}, {4: 7, 8: 5, 16: 3}
CASES = {
    "generator": (
        lambda widths: stylegan1.generator(16, **{**G_OPTIONS, "widths": widths}),
        stylegan1.generator_axes,
        Z,
        {"4x4/conv0": 9, "4x4": 9, "8x8/conv0": 8, "8x8": 8, "16x16/conv0": 6, "16x16": 6},
    ),
    "discriminator": (
        lambda widths: stylegan1.discriminator(16, widths=widths, stddev_channels=0),
        stylegan1.discriminator_axes,
        IMAGES,
        {
            "4x4/in": 9,
            "8x8/in": 8,
            "8x8/conv0": 8,
            "16x16/in": 6,
            "16x16/conv0": 6,
            "conv": 9,
            "features": 9,
        },
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_axes_contain_every_group(case):
    make, describe, x, groups = CASES[case]
    check_groups(make(WIDE), describe, x, groups)


@every_case
def test_pruned_teacher_has_the_student_shapes(case):
    make, describe, x, _ = CASES[case]
    check_student(make(WIDE), make(NARROW), describe, x)


@every_case
def test_removing_unused_channels_preserves_the_output(case):
    make, describe, x, _ = CASES[case]
    check_dead_channels(make(WIDE), make(NARROW), describe, x)


def test_the_minibatch_deviation_is_not_in_a_group():
    shapes = jax.eval_shape(stylegan1.discriminator(8, **SMALL).init, KEY, IMAGES[:, :8, :8])
    axes = stylegan1.discriminator_axes(shapes)
    assert axes["params/b4/conv/weight"] == (
        None,
        None,
        InputAxis(("4x4/in", 1), equalized=True),
        "conv",
    )


def test_axes_of_other_networks_raise():
    for describe in (stylegan1.generator_axes, stylegan1.discriminator_axes):
        with pytest.raises(ValueError, match=r"not those of a StyleGAN (generator|discriminator)"):
            describe({"params": {"b4": {}, "synthesis": {"b4": {"const": 0}}}})


# --- training -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training():
    pair = stylegan1.gan(8, latent=LATENT, depth=1, style_mixing=0.9, **SMALL)
    adversarial, penalties = losses.adversarial, losses.penalties
    parts = {
        "networks": Networks(*pair),
        "optimizers": PerNetwork(optax.adam(1e-2, b1=0.0), optax.adam(1e-2, b1=0.0)),
        "task": latents(LATENT),
        "losses": PerNetwork(
            {"adv": Term(lambda f: adversarial.nonsaturating_g(f.discriminator.fake_scores))},
            {
                "adv": Term(
                    lambda f: adversarial.minimax_d(
                        f.discriminator.real_scores, f.discriminator.fake_scores
                    )
                ),
                "r1": Term(lambda f: penalties.r1(f.discriminator, f.real), weight=0.1),
            },
        ),
    }
    batch = {"image": np.asarray(IMAGES[:, :8, :8])}
    state = initialize(lambda: init_state(Setup(**parts), KEY, batch))
    before = jax.tree.map(np.array, (state.generator.variables, state.discriminator.variables))
    step = compile_step(make_simultaneous_step(Setup(**parts)))
    for _ in range(2):
        state, metrics = step(state, None, batch)
    assert np.isfinite(list(metrics.values())).all()
    after = (state.generator.variables, state.discriminator.variables)
    unchanged = set()
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        assert np.isfinite(new).all()
        if np.array_equal(old, new):
            unchanged.add(path_name(path).split("/", 1)[1])
    # Parameters that only other levels of detail use, and constants.
    assert unchanged == {
        *(f"params/synthesis/b4/torgb/{name}" for name in ("weight", "bias")),
        *(f"params/b4/fromrgb/{name}" for name in ("weight", "bias")),
        *(f"noise/synthesis/noise{i}" for i in range(4)),
    }
