"""StyleGAN3: filters in closed form, the published schedule, equivariance, averages, channels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import pruning
from kd_jax.core.axes import group_widths
from kd_jax.core.network import tap_shapes
from kd_jax.models import stylegan3
from kd_jax.models.stylegan3 import CONFIG_R, CONSTANTS, Design, lowpass_filter

B, LATENT, STYLE = 2, 6, 8
RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(B, LATENT)), jnp.float32)
KEY = jax.random.key(0)


def _tiny(size=16, widths=(5, 4), **options):
    options = {"latent": LATENT, "style": STYLE, "num_critical": 1, "margin_size": 6} | options
    return stylegan3.generator(size, widths=widths, num_layers=len(widths), **options)


def _abstract(network):
    """Shapes and dtypes of image, taps and updated variables."""

    def run(key):
        return network.apply(network.init(key, Z), Z, train=True)

    return jax.eval_shape(run, KEY)


def _random_variables(network, *inputs):
    """Random variables, including poses and averages; no compilation."""
    rng = np.random.default_rng(1)
    deviations = {"bias": 0.3, "frequencies": 1.0, "phases": 0.5, "w_avg": 0.5}

    def draw(path, leaf):
        name, module = path[-1].key, path[-2].key
        if name == "magnitude_ema":
            value = np.exp(0.3 * rng.normal())
        elif name == "transform":
            value = np.eye(3)
        elif module == "affine" and name == "bias" and leaf.shape == (4,):
            value = np.array([0.9, 0.3, 0.1, -0.1])
        else:
            value = deviations.get(name, 1.0) * rng.normal(size=leaf.shape)
            if module.startswith("fc"):
                value = 100 * value  # to be multiplied by lr_multiplier
            if name == "frequencies":
                value /= np.maximum(1, np.linalg.norm(value, axis=1, keepdims=True) / 2)
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, KEY, *inputs))


@pytest.fixture(scope="module")
def tiny():
    """A network, its variables and its jitted apply."""
    network = _tiny()
    apply = jax.jit(network.apply, static_argnames=("train", "truncation", "truncation_cutoff"))
    return network, _random_variables(network, Z), apply


def _translation(x, y):
    return jnp.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _with_pose(variables, pose):
    """The variables with the same pose for every style."""
    affine = variables["params"]["synthesis"]["input"]["affine"]
    fixed = {"weight": jnp.zeros_like(affine["weight"]), "bias": pose}
    return _replace(variables, "input", affine=fixed)


def _upright(variables):
    return _with_pose(variables, jnp.array([1.0, 0.0, 0.0, 0.0]))


def _replace(variables, layer, **parameters):
    """The variables with some parameters of a layer replaced."""
    synthesis = variables["params"]["synthesis"]
    synthesis = {**synthesis, layer: {**synthesis[layer], **parameters}}
    return {**variables, "params": {**variables["params"], "synthesis": synthesis}}


# --- filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("numtaps", [1, 12, 13])
def test_filters_preserve_a_constant_and_are_symmetric(numtaps, radial):
    coefficients = lowpass_filter(numtaps, 2.0, 4.0, 32, radial)
    assert coefficients.shape == (numtaps,) * (2 if radial else 1)
    assert coefficients.dtype == np.float32
    np.testing.assert_allclose(coefficients.sum(dtype=np.float64), 1.0, rtol=1e-6)
    np.testing.assert_allclose(coefficients, np.flip(coefficients), rtol=1e-5)
    if radial:
        np.testing.assert_allclose(coefficients, coefficients.T, rtol=1e-5)


def test_attenuation_follows_kaisers_formula():
    numtaps, cutoff, width, fs = 49, 5.0, 4.0, 32.0
    coefficients = lowpass_filter(numtaps, cutoff, width, fs).astype(np.float64)
    frequencies = np.linspace(0, fs / 2, 2000)
    times = (np.arange(numtaps) - (numtaps - 1) / 2) / fs
    gain = np.cos(2 * np.pi * frequencies[:, None] * times[None]) @ coefficients
    ripple = 10 ** (-(2.285 * (numtaps - 1) * 2 * np.pi * width / fs + 7.95) / 20)
    assert ripple < 2e-5
    assert np.abs(gain[frequencies >= cutoff + width / 2]).max() < 1.5 * ripple
    assert np.abs(gain[frequencies <= cutoff - width / 2] - 1).max() < 1.5 * ripple
    np.testing.assert_allclose(np.interp(cutoff, frequencies, gain), 0.5, atol=1e-3)


def test_radial_filters_follow_the_bessel_function():
    # A transition this narrow has a rectangular window, and at this cutoff the coefficient at
    # distance r is J1(r) / r. Values of J1 from Abramowitz & Stegun, table 9.1.
    coefficients = lowpass_filter(11, 1 / (2 * np.pi), 0.01, 1.0, radial=True).astype(np.float64)
    center = coefficients[5, 5]
    for x, y, r, j1 in ((1, 0, 1, 0.4400505857), (0, 2, 2, 0.5767248078), (3, 4, 5, -0.3275791376)):
        np.testing.assert_allclose(coefficients[5 + y, 5 + x] / center, 2 * j1 / r, rtol=1e-6)
    np.testing.assert_allclose(coefficients[5 + 3, 5 + 4], coefficients[5, 0], rtol=1e-6)


@pytest.mark.parametrize(("numtaps", "cutoff"), [(0, 2.0), (12, 0.0), (12, 16.0)])
def test_invalid_filters_raise(numtaps, cutoff):
    with pytest.raises(ValueError, match=f"a filter of {numtaps} taps with a cutoff of {cutoff:g}"):
        lowpass_filter(numtaps, cutoff, 1.0, 32.0)


# --- the schedule ---------------------------------------------------------------------------------


def test_sizes_and_channels_match_the_published_ones():
    # The layers' names in the published StyleGAN3-R of size 1024.
    published = (
        "36_1024 36_1024 52_1024 52_1024 84_1024 148_1024 148_1024 276_645 276_406 532_256 "
        "1044_161 1044_102 1044_64 1024_64 1024_3"
    )
    design = Design(1024, conv_kernel=1, use_radial_filters=True)
    widths = design.widths(CONFIG_R["channel_base"], CONFIG_R["channel_max"])
    names = [
        f"{band.size}_{width}" for band, width in zip(design.bands(), (*widths, 3), strict=True)
    ]
    assert names == published.split()


def test_bands_grow_geometrically_and_fit_their_rates():
    design = Design(256)
    bands = design.bands()
    assert bands[0].cutoff == 2
    assert [band.cutoff for band in bands[-3:]] == [128.0] * 3
    ratios = [b.cutoff / a.cutoff for a, b in itertools.pairwise(bands[:13])]
    np.testing.assert_allclose(ratios, 64 ** (1 / 12), rtol=1e-12)
    for index, band in enumerate(bands):
        assert band.rate in (16, 32, 64, 128, 256)
        # Except for the critical layers, the cutoff is below the Nyquist frequency.
        assert band.cutoff + band.half_width >= band.rate / 2
        assert band.cutoff < band.rate / 2 or index >= 12
    assert bands[-2].half_width == pytest.approx(128 * (2**0.3 - 1))


def test_filters_of_noncritical_layers_are_radial():
    for radial in (False, True):
        design = Design(64, num_layers=4, use_radial_filters=radial)
        filters = [design.resampling(index) for index in range(5)]
        assert [f.up_filter.ndim for f in filters[:4]] == [1, 1, 1, 1]
        assert [f.down_filter.ndim for f in filters[:4]] == ([2, 2, 1, 1] if radial else [1] * 4)
        assert filters[4].up_filter is filters[4].down_filter is None


def test_filter_gain_at_the_cutoff_is_a_half():
    design = Design(64, num_layers=6, filter_size=24)
    bands = design.bands()
    for index in range(6):
        before, after = bands[max(index - 1, 0)], bands[index]
        resampling = design.resampling(index)
        rate = 2 * max(before.rate, after.rate)
        for coefficients, band in (
            (resampling.up_filter, before),
            (resampling.down_filter, after),
        ):
            times = (np.arange(coefficients.size) - (coefficients.size - 1) / 2) / rate
            gain = np.cos(2 * np.pi * band.cutoff * times) @ coefficients.astype(np.float64)
            np.testing.assert_allclose(gain, 0.5, atol=0.05)


@pytest.mark.parametrize("options", [{}, CONFIG_R])
def test_shapes_and_taps(options):
    network = stylegan3.generator(
        64, latent=LATENT, style=STYLE, **{**options, "channel_base": 512, "channel_max": 12}
    )
    image, taps, variables = _abstract(network)
    assert image.shape == (B, 64, 64, 3)
    shapes = {name: tap.shape for name, tap in taps.items()}
    assert set(shapes) == {"fourier", "input", *(f"L{index}" for index in range(14))}
    assert shapes["fourier"] == shapes["input"] == (B, 36, 36, 12)
    assert shapes["L8"] == (B, 84, 84, 12)
    assert shapes["L13"] == (B, 64, 64, 8)
    side = options.get("conv_kernel", 3)
    assert variables["params"]["synthesis"]["L3"]["weight"].shape == (side, side, 12, 12)
    assert variables["params"]["synthesis"]["L14"]["weight"].shape == (1, 1, 8, 3)


def test_size_need_not_be_a_power_of_two():
    assert _abstract(_tiny(size=20))[0].shape == (B, 20, 20, 3)


def test_half_precision_applies_to_computation_not_storage():
    image, taps, variables = _abstract(_tiny(dtype=jnp.bfloat16))
    assert image.dtype == taps["fourier"].dtype == jnp.float32
    assert taps["L0"].dtype == taps["L1"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "first_cutoff=2 must be between 0 and both first_stopband=4.28709 and half"),
        ({"first_cutoff": 5}, "first_cutoff=5 must be between 0 and both first_stopband=4.28709"),
        ({"num_critical": 2}, "num_critical=2 must be less than num_layers=2"),
        ({"num_critical": -1}, "num_critical must be at least 0, not -1"),
        ({"last_stopband_rel": 1.0}, "last_stopband_rel=1 must be greater than 1"),
        ({"lrelu_upsampling": 1}, "lrelu_upsampling must be at least 2, not 1"),
        ({"margin_size": -1}, "margin_size must be at least 0, not -1"),
        ({"conv_kernel": 0}, "conv_kernel must be at least 1, not 0"),
        ({"widths": (5, 0)}, "the smallest width must be at least 1, not 0"),
        ({"latent": 0}, "latent must be at least 1, not 0"),
        ({"classes": -1}, "classes must be at least 0, not -1"),
        ({"num_layers": 3}, "3 layers have 3 widths, not 2"),
    ],
)
def test_invalid_options_raise(options, message):
    size = options.pop("size", 16)
    arguments = {"widths": (5, 4), "num_layers": 2, "num_critical": 1} | options
    with pytest.raises(ValueError, match=message):
        stylegan3.generator(size, **arguments)


def test_invalid_inputs_raise(tiny):
    network, variables, _ = tiny
    with pytest.raises(ValueError, match=r"latents \[B, 6\] are needed, not \(2, 8\)"):
        network.apply(variables, jnp.zeros((2, 8)))
    with pytest.raises(ValueError, match=r"styles \[B, 4, 8\] are needed, not \(2, 3, 8\)"):
        network.synthesis(variables, jnp.zeros((2, 3, 8)))
    with pytest.raises(ValueError, match=r"a transform is \[3, 3\] or \[B, 3, 3\], not \(2, 3\)"):
        network.apply(variables, Z, transform=jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="the network is not conditional"):
        network.apply(variables, Z, jnp.zeros(B, jnp.int32))


# --- equivariance ---------------------------------------------------------------------------------


def test_an_integer_translation_of_the_input_translates_the_image():
    # The first layers have half the image's rate: a shift by a pixel falls between their samples,
    # and the remaining error is what the filters let through.
    network = _tiny(32, (6, 6, 6, 6), num_critical=2, margin_size=10)
    variables = _random_variables(network, Z)
    render = jax.jit(lambda transform: network.apply(variables, Z, transform=transform)[0])
    image = np.asarray(render(jnp.eye(3)))
    translated = np.asarray(render(_translation(-2 / 32, 1 / 32)))  # right by 2, up by 1
    error = translated[:, :-1, 2:] - image[:, 1:, :-2]
    assert np.abs(translated - image).max() > 0.5 * image.std()
    assert np.sqrt((error**2).mean()) < 1e-3 * image.std()


def test_only_r_is_equivariant_to_rotation():
    quarter = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    errors = {}
    for name, options in (("t", {}), ("r", {"conv_kernel": 1, "use_radial_filters": True})):
        network = _tiny(32, (6, 6, 6), margin_size=10, **options)
        variables = _random_variables(network, Z)
        render = jax.jit(lambda v, t, network=network: network.apply(v, Z, transform=t)[0])
        image, rotated = (render(_upright(variables), t) for t in (jnp.eye(3), quarter))
        error = np.abs(np.rot90(image, axes=(1, 2)) - rotated).max()
        errors[name] = error / np.std(image)
    assert errors["r"] < 1e-4
    assert errors["t"] > 0.5


def test_a_pose_equals_the_inverse_transform(tiny):
    _, variables, apply = tiny
    x, y, angle = 0.1, -0.2, 0.7
    c, s = np.cos(angle), np.sin(angle)
    # A pose is normalised by the length of its rotation vector.
    posed = _with_pose(variables, 3 * jnp.array([c, s, x, y], jnp.float32))
    inverse = jnp.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ _translation(-x, -y)

    expected = apply(_upright(variables), Z, transform=inverse)[0]
    image = apply(posed, Z, transform=jnp.eye(3))[0]
    np.testing.assert_allclose(image, expected, atol=1e-5)
    images = apply(_upright(variables), Z, transform=jnp.stack([inverse, jnp.eye(3)]))[0]
    np.testing.assert_allclose(images[0], expected[0], atol=1e-5)
    assert np.abs(images[1] - expected[1]).max() > 1e-2


def test_waves_fade_out_towards_the_nyquist_frequency(tiny):
    _, variables, apply = tiny
    frequencies = variables[CONSTANTS]["synthesis"]["input"]["frequencies"]
    norms = np.linalg.norm(frequencies, axis=1)
    assert (norms <= 2).all()
    for zoom in (1.0, 3.0, 8 / norms.min() + 0.01):
        waves = apply(variables, Z, transform=jnp.diag(jnp.array([zoom, zoom, 1.0])))[1]["fourier"]
        amplitudes = np.clip(1 - (zoom * norms - 2) / (16 / 2 - 2), 0, 1)
        magnitudes = np.abs(waves).max(axis=(0, 1, 2))
        assert (magnitudes <= amplitudes + 1e-6).all()
        assert (magnitudes >= 0.9 * amplitudes).all()
    assert amplitudes.max() == 0


def test_initial_input_has_no_rotation_and_frequencies_in_a_disc():
    design = Design(16, num_layers=2, num_critical=1, first_cutoff=3.0)
    styles = jnp.zeros((B, STYLE))
    module = stylegan3.SynthesisInput(256, design.bands()[0])
    variables = jax.jit(module.init)(KEY, styles, None)
    constants = variables[CONSTANTS]
    frequencies, phases = (np.asarray(constants[name]) for name in ("frequencies", "phases"))
    radii = np.linalg.norm(frequencies, axis=1)
    assert radii.max() <= 3.0
    # Half of them lie in the inner disc of half the area, and half on either side of each axis.
    assert 0.4 < (radii < 3 / np.sqrt(2)).mean() < 0.6
    assert ((frequencies > 0).mean(axis=0) > 0.4).all()
    assert -0.5 <= phases.min() < -0.45
    assert 0.45 < phases.max() <= 0.5
    assert not variables["params"]["affine"]["weight"].any()
    assert variables["params"]["affine"]["bias"].tolist() == [1, 0, 0, 0]

    last = stylegan3.SynthesisLayer(3, design, 2, None, 0.999)
    variables = jax.jit(last.init, static_argnums=3)(KEY, jnp.zeros((B, 16, 16, 4)), styles, False)
    assert variables["averages"]["magnitude_ema"] == 1.0
    assert variables["params"]["affine"]["bias"].tolist() == [1.0] * 4


# --- training and styles --------------------------------------------------------------------------


def test_training_updates_magnitudes_and_w_avg(tiny):
    network, variables, apply = tiny
    _, taps, after = apply(variables, Z, train=True)
    before = variables["averages"]["synthesis"]
    # The first layer's input does not depend on the averages; later layers read the updated ones.
    for name, source in (("L0", "input"), ("L1", "L0"), ("L2", "L1")):
        mean = (np.asarray(taps[source], np.float64) ** 2).mean()
        expected = 0.999 * float(before[name]["magnitude_ema"]) + 0.001 * mean
        np.testing.assert_allclose(
            after["averages"]["synthesis"][name]["magnitude_ema"], expected, rtol=1e-6
        )
        assert abs(mean - float(before[name]["magnitude_ema"])) > 1e-2
    w = np.asarray(network.mapping(variables, Z)[:, 0], np.float64).mean(axis=0)
    w_avg = np.asarray(variables["averages"]["mapping"]["w_avg"], np.float64)
    np.testing.assert_allclose(
        after["averages"]["mapping"]["w_avg"], 0.998 * w_avg + 0.002 * w, rtol=1e-5, atol=1e-6
    )
    for before_leaf, after_leaf in zip(
        jax.tree.leaves(variables[CONSTANTS]), jax.tree.leaves(after[CONSTANTS]), strict=True
    ):
        np.testing.assert_array_equal(before_leaf, after_leaf)


def test_a_layer_divides_by_its_magnitude(tiny):
    _, variables, apply = tiny
    averages = variables["averages"]
    last = averages["synthesis"]["L2"]["magnitude_ema"]
    scaled = {**averages["synthesis"], "L2": {"magnitude_ema": 4 * last}}
    bias = variables["params"]["synthesis"]["L2"]["bias"]
    image = apply(variables, Z)[0]
    other = apply({**variables, "averages": {**averages, "synthesis": scaled}}, Z)[0]
    offset = 0.25 * bias[None, None, None]
    np.testing.assert_allclose(other - offset, (image - offset) / 2, atol=1e-6)


def test_activations_are_clamped(tiny):
    _, variables, apply = tiny
    assert np.abs(apply(variables, Z)[0]).max() > 0.25 * 0.2
    network = _tiny(conv_clamp=0.2)
    image, taps, _ = jax.jit(network.apply)(variables, Z)
    np.testing.assert_allclose(np.abs(image).max(), 0.25 * 0.2, rtol=1e-6)
    assert 0.1 < np.abs(taps["L1"]).max() < 0.3  # the filter follows the clamp


def test_magnitudes_have_no_gradient(tiny):
    # Scaling the waves' mixture changes the mean square as well as the image; the gradient must
    # treat the magnitude as a constant.
    _, variables, _ = tiny
    fast = _tiny(magnitude_ema_beta=0.0)
    after = jax.jit(lambda v: fast.apply(v, Z, train=True)[2])(variables)

    def gradient(network, variables, train):
        def loss(weight):
            changed = _replace(variables, "input", weight=weight)
            return (network.apply(changed, Z, train=train)[0] ** 2).sum()

        return jax.jit(jax.grad(loss))(variables["params"]["synthesis"]["input"]["weight"])

    updated = gradient(fast, variables, train=True)
    constant = gradient(fast, after, train=False)
    assert np.abs(constant).max() > 1e-3
    np.testing.assert_allclose(updated, constant, rtol=1e-4, atol=1e-6)


def test_mapping_and_synthesis_compose_to_apply(tiny):
    network, variables, apply = tiny
    options = {"truncation": 0.6, "truncation_cutoff": 2}
    styles = network.mapping(variables, Z, **options)
    assert styles.shape == (B, 4, STYLE)
    transform = _translation(0.1, 0.0)
    images, taps = jax.jit(network.synthesis)(variables, styles, transform=transform)
    expected, expected_taps, _ = apply(variables, Z, **options, transform=transform)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    assert taps.keys() == expected_taps.keys()


def test_each_layer_reads_its_own_style(tiny):
    network, variables, _ = tiny
    styles = RNG.normal(size=(B, 4, STYLE)).astype(np.float32)
    synthesis = jax.jit(network.synthesis)

    def features(styles):
        image, taps = synthesis(variables, styles)
        return [taps["fourier"], taps["L0"], taps["L1"], image]

    before = features(styles)
    for index in range(4):
        other = styles.copy()
        other[:, index] += 1
        changes = [np.abs(a - b).max() for a, b in zip(before, features(other), strict=True)]
        assert [change > 1e-3 for change in changes] == [i >= index for i in range(4)]


def test_truncation_interpolates_to_the_average(tiny):
    network, variables, apply = tiny
    images = np.asarray(apply(variables, Z, truncation=0.0)[0])
    np.testing.assert_allclose(images[0], images[1], atol=1e-6)
    assert np.abs(np.diff(np.asarray(apply(variables, Z)[0]), axis=0)).max() > 1e-2
    average = variables["averages"]["mapping"]["w_avg"]
    styles = network.mapping(variables, Z, truncation=0.5)
    expected = (np.asarray(network.mapping(variables, Z)) + np.asarray(average)[None, None]) / 2
    np.testing.assert_allclose(styles, expected, atol=1e-6)


def test_labels_change_the_styles():
    network = _tiny(classes=3)
    labels = jnp.array([0, 2])
    variables = _random_variables(network, Z, labels)
    mapping = jax.jit(network.mapping)
    w = mapping(variables, Z, labels)
    np.testing.assert_allclose(w, mapping(variables, Z, jnp.eye(3)[labels]), atol=1e-6)
    changed = np.abs(w - mapping(variables, Z, jnp.array([0, 1]))).max(axis=(1, 2)) > 1e-3
    assert changed.tolist() == [False, True]
    with pytest.raises(ValueError, match="the network is conditional"):
        network.mapping(variables, Z)


# --- channels -------------------------------------------------------------------------------------


def test_every_group_is_a_tap_of_that_width(tiny):
    network, variables, _ = tiny
    axes = stylegan3.generator_axes(variables)
    taps = {name: shape[-1] for name, shape in tap_shapes(network, Z).items()}
    assert group_widths(variables, axes) == taps


def test_a_student_without_the_unused_channels_generates_the_same_images():
    teacher, student = _tiny(widths=(7, 6)), _tiny(widths=(5, 4))
    variables = _random_variables(teacher, Z)
    axes = stylegan3.generator_axes(variables)
    widths = group_widths(variables, axes)
    unpruned = pruning.shrink(variables, axes, {k: np.arange(n) for k, n in widths.items()})
    jax.tree.map(np.testing.assert_array_equal, unpruned, variables)

    # Set the weights that read dropped channels to zero; retained channels have higher scores.
    scores = {group: RNG.permutation(width) + 1.0 for group, width in widths.items()}
    dropped = {group: np.argsort(score)[:2] for group, score in scores.items()}
    for before, name in zip(
        ("fourier", "input", "L0", "L1"), ("input", "L0", "L1", "L2"), strict=True
    ):
        weight = np.array(variables["params"]["synthesis"][name]["weight"])
        weight[..., dropped[before], :] = 0
        variables = _replace(variables, name, weight=jnp.asarray(weight))

    like = jax.eval_shape(student.init, KEY, Z)
    small = pruning.from_teacher(variables, axes, scores, like)
    assert jax.tree.structure(small) == jax.tree.structure(like)
    for leaf, shape in zip(jax.tree.leaves(small), jax.tree.leaves(like), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    expected = jax.jit(teacher.apply)(variables, Z)[0]
    np.testing.assert_allclose(jax.jit(student.apply)(small, Z)[0], expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def test_magnitude_scores_every_group(tiny):
    _, variables, _ = tiny
    axes = stylegan3.generator_axes(variables)
    scores = pruning.magnitude(variables, axes)
    weight = np.abs(np.asarray(variables["params"]["synthesis"]["L1"]["weight"]))
    np.testing.assert_allclose(scores["L0"], weight.sum(axis=(0, 1, 3)), rtol=1e-5)


def test_axes_of_other_networks_raise():
    with pytest.raises(ValueError, match="not those of a StyleGAN3 generator"):
        stylegan3.generator_axes({"params": {"Dense_0": {"kernel": jnp.zeros((2, 2))}}})
