"""StyleGAN2: invariances, closed forms and counts; tests/parity compares with the original."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models.shrinking import check_dead_channels, check_groups, check_student, drawn, output

from kd_jax import methods, ops
from kd_jax.core.mesh import compile_step, initialize
from kd_jax.core.setup import Networks, PerNetwork, Setup
from kd_jax.core.state import init_state
from kd_jax.core.step import make_train_step
from kd_jax.models import stylegan2
from kd_jax.models.layers import style
from kd_jax.tasks import latents

B, LATENT = 4, 6
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(B, LATENT)), jnp.float32)
IMAGES = jnp.asarray(RNG.uniform(-1, 1, size=(B, 16, 16, 3)), jnp.float32)
SMALL = {"channel_base": 64, "channel_max": 7}  # 7, 7 and 4 channels at 4, 8 and 16
G_OPTIONS = {
    "latent": LATENT,
    "style": 5,
    "mapping": {"depth": 2, "hidden": 9, "lr_multiplier": 1.0},
    **SMALL,
}


@pytest.fixture(scope="module")
def generator():
    network = stylegan2.generator(16, **G_OPTIONS)
    return network, drawn(network, Z)


def test_parameter_counts_match_the_paper():
    """30.0M and 28.9M at 256x256 (Karras et al. 2020, appendix), as compressed by StyleKD."""
    z = jax.ShapeDtypeStruct((1, 512), jnp.float32)
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    pair = stylegan2.gan(256)
    for network, inputs, millions in ((pair.generator, z, 30.03), (pair.discriminator, x, 28.86)):
        shapes = jax.eval_shape(network.init, KEY, inputs)["params"]
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
        assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_synthesis_after_mapping_is_apply(generator):
    network, variables = generator
    styles = network.mapping(variables, Z)
    assert styles.shape == (B, stylegan2.layer_count(16), 5) == (B, 6, 5)
    image, taps = network.synthesis(variables, styles)
    applied, applied_taps, _ = network.apply(variables, Z)
    np.testing.assert_array_equal(image, applied)
    np.testing.assert_array_equal(applied_taps["styles"], styles)
    assert set(taps) == {f"{pre}{n}x{n}" for n in (4, 8, 16) for pre in ("", "image/")}
    np.testing.assert_array_equal(taps["image/16x16"], image)


def test_truncation_zero_yields_the_average_for_all(generator):
    network, variables = generator
    images = output(network, variables, Z, truncation=0.0)
    np.testing.assert_allclose(images, np.broadcast_to(images[:1], images.shape), rtol=1e-5)
    styles = network.mapping(variables, Z, truncation=0.5, truncation_cutoff=2)
    untruncated, average = network.mapping(variables, Z), variables["averages"]["mapping"]["w_avg"]
    np.testing.assert_array_equal(styles[:, 2:], untruncated[:, 2:])
    np.testing.assert_allclose(
        styles[:, :2], (untruncated[:, :2] + average[None, None]) / 2, rtol=1e-5, atol=1e-5
    )


def test_truncated_network_truncates_by_default(generator):
    network, variables = generator
    truncated = style.truncated(network, 0.3, 4)
    expected = network.mapping(variables, Z, truncation=0.3, truncation_cutoff=4)
    np.testing.assert_array_equal(truncated.mapping(variables, Z), expected)
    np.testing.assert_array_equal(truncated.apply(variables, Z)[1]["styles"], expected)
    with pytest.raises(ValueError, match="only a style network"):
        style.truncated(stylegan2.discriminator(16, **SMALL), 0.5)


def test_training_updates_the_average_style(generator):
    network, variables = generator
    _, _, after = network.apply(variables, Z, train=True)
    before = variables["averages"]["mapping"]["w_avg"]
    mean = network.mapping(variables, Z)[:, 0].mean(axis=0)
    expected = 0.998 * before + 0.002 * mean
    np.testing.assert_allclose(after["averages"]["mapping"]["w_avg"], expected, rtol=1e-5)
    _, _, same = network.apply(variables, Z)
    assert same is variables


def test_noise_options(generator):
    network, variables = generator
    styles = network.mapping(variables, Z)
    synthesize = partial(network.synthesis, variables, styles)
    stored = synthesize()[0]
    np.testing.assert_array_equal(synthesize(noise="const")[0], stored)
    constants = variables["noise"]["synthesis"]
    images = [
        constants[f"b{side}"][name]["noise_const"][None, :, :, None]
        for side, name in ((4, "conv1"), (8, "conv0"), (8, "conv1"), (16, "conv0"), (16, "conv1"))
    ]
    np.testing.assert_allclose(synthesize(noise=images)[0], stored, rtol=1e-6)
    silent = synthesize(noise=[0 * image for image in images])[0]
    np.testing.assert_allclose(synthesize(noise="none")[0], silent, rtol=1e-6)
    first, second = synthesize(rngs=KEY)[0], synthesize(rngs=KEY)[0]
    np.testing.assert_array_equal(first, second)
    other = synthesize(rngs=jax.random.key(1))[0]
    assert np.abs(first - other).max() > 1e-3 < np.abs(first - stored).max()
    with pytest.raises(ValueError, match=r"noise='loud' is not one of 'random', 'const', 'none'"):
        synthesize(noise="loud")
    with pytest.raises(ValueError, match="noise='random' needs a key"):
        synthesize(noise="random")
    with pytest.raises(ValueError, match="5 images of noise are needed, not 4"):
        synthesize(noise=images[:4])
    with pytest.raises(ValueError, match=r"needs \[B or 1, 16, 16, 1\]"):
        synthesize(noise=[*images[:4], images[0]])


@pytest.mark.parametrize("architecture", stylegan2.ARCHITECTURES)
def test_fused_modulation_yields_the_same_images(architecture):
    images = []
    for fused in (False, True):
        network = stylegan2.generator(16, **G_OPTIONS, architecture=architecture, fused=fused)
        images.append(output(network, drawn(network, Z), Z))
    np.testing.assert_allclose(*images, rtol=1e-4, atol=1e-4 * np.abs(images[0]).max())


def test_features_do_not_depend_on_the_scale_of_a_style(generator):
    """Demodulation divides it out: only the ratios between channels matter."""
    network, variables = generator
    layer = variables["params"]["synthesis"]["b8"]["conv1"]
    scaled = jax.tree.map(lambda x: 3 * x, layer["affine"])
    changed = jax.tree.map(lambda x: x, variables)
    changed["params"]["synthesis"]["b8"]["conv1"] = {**layer, "affine": scaled}
    np.testing.assert_allclose(
        output(network, changed, Z), output(network, variables, Z), rtol=1e-3, atol=1e-3
    )


def test_conv_clamp_limits_every_layer():
    network = stylegan2.generator(16, **G_OPTIONS, conv_clamp=0.25)
    _, taps, _ = network.apply(drawn(network, Z), Z)
    for side in (4, 8, 16):
        assert np.abs(taps[f"{side}x{side}"]).max() == 0.25


def test_style_mixing_changes_the_later_layers_of_some_images():
    network = stylegan2.generator(16, **G_OPTIONS, style_mixing=0.5)
    variables = drawn(network, Z)
    z = jnp.asarray(np.random.default_rng(3).normal(size=(64, LATENT)), jnp.float32)
    own = network.mapping(variables, z)
    mixed = network.apply(variables, z, train=True, rngs=KEY)[1]["styles"]
    same = np.isclose(mixed, own, rtol=1e-5, atol=1e-5).all(axis=2)
    assert same[:, 0].all()
    assert (np.diff(same.astype(int), axis=1) <= 0).all()  # mixed from some layer to the last
    assert 0.3 < same.all(axis=1).mean() < 0.7
    for options in ({"train": False, "rngs": KEY}, {"train": True, "rngs": None}):
        np.testing.assert_allclose(
            network.apply(variables, z, **options)[1]["styles"], own, rtol=1e-6, atol=1e-6
        )


def test_labels_change_the_output_and_are_required():
    options = {**G_OPTIONS, "classes": 3}
    network = stylegan2.generator(8, **options)
    labels = jnp.array([0, 1, 2, 0])
    variables = drawn(network, Z, labels)
    one_hot = jax.nn.one_hot(labels, 3)
    images = output(network, variables, Z, labels)
    np.testing.assert_array_equal(output(network, variables, Z, one_hot), images)
    same = output(network, variables, jnp.broadcast_to(Z[:1], Z.shape), labels)
    np.testing.assert_allclose(same[0], same[3], rtol=1e-5, atol=1e-5)
    assert np.abs(same[0] - same[1]).max() > 1e-3
    with pytest.raises(ValueError, match=r"needs labels int \[B\] or a condition \[B, 3\].*none"):
        network.apply(variables, Z)
    with pytest.raises(ValueError, match=r"labels must be integers \[B\], not float32"):
        network.apply(variables, Z, jnp.ones(4))
    discriminator = stylegan2.discriminator(16, **SMALL, classes=3)
    scores = output(discriminator, drawn(discriminator, IMAGES, labels), IMAGES, labels)
    assert scores.shape == (B,)
    unconditional = stylegan2.discriminator(16, **SMALL)
    with pytest.raises(ValueError, match="not conditional, but got labels"):
        unconditional.apply(drawn(unconditional, IMAGES), IMAGES, labels)


@pytest.mark.parametrize("architecture", stylegan2.ARCHITECTURES)
def test_mirrored_kernels_score_mirrored_images_equally(architecture):
    """Every resampling is centred: mirroring both image and kernels preserves the scores."""
    network = stylegan2.discriminator(16, **SMALL, architecture=architecture)
    variables = drawn(network, IMAGES)

    def mirror(path, leaf):
        if leaf.ndim == 4:
            return leaf[:, ::-1]
        if path[-2].key == "fc" and leaf.ndim == 2:
            return leaf.reshape(4, 4, -1, leaf.shape[1])[:, ::-1].reshape(leaf.shape)
        return leaf

    mirrored = jax.tree_util.tree_map_with_path(mirror, variables)
    np.testing.assert_allclose(
        output(network, mirrored, IMAGES[:, :, ::-1]),
        output(network, variables, IMAGES),
        rtol=1e-3,
    )


WIDE, NARROW = {4: 9, 8: 8, 16: 6}, {4: 5, 8: 4, 16: 3}
SIDES = {f"{side}x{side}{part}": n for side, n in WIDE.items() for part in ("/conv0", "")}
CASES = {
    "skip": (
        lambda widths: stylegan2.generator(16, **{**G_OPTIONS, "widths": widths}),
        stylegan2.generator_axes,
        Z,
        {"const": 9, **{k: v for k, v in SIDES.items() if k != "4x4/conv0"}},
    ),
    "resnet": (
        lambda widths: stylegan2.generator(
            16, **{**G_OPTIONS, "widths": widths}, architecture="resnet", noise=False
        ),
        stylegan2.generator_axes,
        Z,
        {"const": 9, **{k: v for k, v in SIDES.items() if k != "4x4/conv0"}},
    ),
    **{
        f"discriminator, {architecture}": (
            lambda widths, architecture=architecture: stylegan2.discriminator(
                16, widths=widths, architecture=architecture, stddev_channels=0
            ),
            stylegan2.discriminator_axes,
            IMAGES,
            {
                "4x4/in": 9, "8x8/in": 8, "8x8/conv0": 8, "16x16/in": 6, "16x16/conv0": 6,
                "conv": 9, "features": 9,
            },
        )
        for architecture in ("resnet", "skip")
    },
}  # fmt: skip
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


def test_pruning_preserves_the_minibatch_deviation():
    network = stylegan2.discriminator(16, widths=WIDE)
    check_student(
        network, stylegan2.discriminator(16, widths=NARROW), stylegan2.discriminator_axes, IMAGES
    )


def test_axes_of_other_networks_raise():
    for describe, kind in (
        (stylegan2.generator_axes, "generator"),
        (stylegan2.discriminator_axes, "discriminator"),
    ):
        with pytest.raises(ValueError, match=rf"not those of a StyleGAN2 {kind}: .*\['Dense_0'\]"):
            describe({"params": {"Dense_0": {}}})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stylegan2.generator(24), "a power of two from 4 to 1024, not 24"),
        (lambda: stylegan2.discriminator(4), "at least 8, not 4"),
        (
            lambda: stylegan2.generator(8, architecture="dense"),
            "architecture='dense' is not one of",
        ),
        (lambda: stylegan2.generator(8, activation="gelu"), "activation='gelu' is not one of"),
        (lambda: stylegan2.generator(8, widths={4: 3}), "has no width for a side of 8"),
        (lambda: stylegan2.generator(64, channel_base=32), "leave 0 channels at a side of 64"),
    ],
)
def test_invalid_options_raise_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_invalid_inputs_raise(generator):
    network, variables = generator
    with pytest.raises(ValueError, match=r"latents \[B, 6\] are needed, not \(4, 5\)"):
        network.apply(variables, Z[:, :5])
    with pytest.raises(ValueError, match=r"styles \[B, 6, 5\] are needed, not \(4, 3, 5\)"):
        network.synthesis(variables, jnp.zeros((B, 3, 5)))
    discriminator = stylegan2.discriminator(16, **SMALL)
    with pytest.raises(ValueError, match=r"images \[B, \*\(16, 16, 3\)\] are needed"):
        discriminator.init(KEY, IMAGES[:, :8])


@pytest.mark.slow
def test_training():
    """Lazy R1 and path length penalties, with the running mean in the state, compiled."""
    pair = stylegan2.gan(8, latent=LATENT, **SMALL, style_mixing=0.9)
    terms = methods.stylegan2(1.0, 2.0, r1_every=2, path_every=2)
    adam = methods.lazy_adam(2e-3, 2)
    parts = {
        "networks": Networks(*pair),
        "optimizers": PerNetwork(adam, adam),
        "task": latents(LATENT),
        "losses": PerNetwork(terms.generator, terms.discriminator),
    }
    batch = {"image": np.asarray(IMAGES[:, :8, :8])}
    state = initialize(lambda: init_state(Setup(**parts), KEY, batch))
    step = compile_step(make_train_step(Setup(**parts)))
    means = []
    for _ in range(3):
        state, metrics = step(state, None, batch)
        assert np.isfinite(list(metrics.values())).all()
        means.append(float(state.terms.generator["path_length"].state))
    assert 0 < means[0] == means[1] < means[2]
    assert float(metrics["g/path_length"]) > 0 < float(metrics["d/r1"])


def test_lazy_adam_preserves_the_rate_per_image():
    """StyleGAN2's constants: c = k / (k + 1) of the rate 0.002, and beta2 = 0.99 ** c."""
    params = {"w": jnp.zeros(())}
    for every, rate, b2 in ((16, 0.002 * 16 / 17, 0.99 ** (16 / 17)), (1, 0.002, 0.99)):
        adam = methods.lazy_adam(0.002, every)
        state = adam.init(params)
        updates, state = adam.update({"w": jnp.ones(())}, state, params)
        assert float(updates["w"]) == pytest.approx(-rate, rel=1e-5)
        updates, state = adam.update({"w": jnp.zeros(())}, state, params)
        assert float(state[0].nu["w"]) == pytest.approx((1 - b2) * b2, rel=1e-4)


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_lazy_adam_equals_adam_and_stores_no_mean_if_b1_is_zero(b1):
    params = {"w": jnp.asarray([1.0, -2.0, 3.0])}
    adams = (methods.lazy_adam(0.1, 1, b1, 0.9), optax.adam(0.1, b1, 0.9))
    states = [adam.init(params) for adam in adams]
    sizes = [sum(x.size for x in jax.tree.leaves(state) if x.ndim) for state in states]
    assert sizes == [3 if b1 == 0 else 6, 6]
    for seed in range(4):
        gradient = {"w": jax.random.normal(jax.random.key(seed), (3,))}
        updates = []
        for number, adam in enumerate(adams):
            update, states[number] = adam.update(gradient, states[number], params)
            updates.append(update["w"])
        np.testing.assert_allclose(*updates, rtol=1e-5)


def test_stddev_group_none_uses_the_whole_batch():
    x = jnp.asarray(RNG.normal(size=(6, 4, 4, 2)), jnp.float32)
    network = stylegan2.discriminator(8, **SMALL, stddev_group=None)
    assert output(network, drawn(network, IMAGES[:, :8, :8]), IMAGES[:, :8, :8]).shape == (B,)
    deviation = ops.minibatch_stddev(x, 6)
    np.testing.assert_allclose(deviation, np.asarray(x).std(axis=0).mean(), rtol=1e-4)
