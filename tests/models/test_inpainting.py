"""Inpainting: known pixels are unchanged, missing ones are ignored, gates by hand."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import ops, pruning
from kd_jax.core.architecture import describe, rebuild
from kd_jax.core.axes import group_widths
from kd_jax.core.cost import parameter_count
from kd_jax.core.network import connect
from kd_jax.models import inpainting
from tests.models.shrinking import KEY, output, random_like

B, SIDE = 2, 16
RNG = np.random.default_rng(0)
QUICK = jax.random.key(0, impl="rbg")  # compiles faster


def _inputs(height=SIDE, width=SIDE, channels=3):
    """Images in [-1, 1], and masks with about a third of the pixels missing."""
    images = RNG.uniform(-1, 1, (B, height, width, channels))
    masks = RNG.random((B, height, width, 1)) < 0.3
    return jnp.asarray(images, jnp.float32), jnp.asarray(masks, jnp.float32)


def _shapes(network, *inputs):
    return jax.eval_shape(network.init, KEY, *inputs)


def _abstract(network, *inputs):
    def run(key, *inputs):
        variables = network.init(key, *inputs)
        return *network.apply(variables, *inputs)[:2], variables

    return jax.eval_shape(run, KEY, *inputs)


def _scaled(network, *inputs):
    """Random variables, all with an effect, that preserve the scale of the features."""

    def scale(leaf):
        return 2 * leaf / np.sqrt(max(1, np.prod(leaf.shape[:-1])))

    return jax.tree.map(scale, random_like(_shapes(network, *inputs)))


SMALL = {"width": 4, "dilations": (2, 3)}


@functools.cache
def _fresh(separable):
    network = inpainting.gated_generator(**SMALL, separable=separable)
    inputs = _inputs()
    return network, jax.jit(network.apply), jax.jit(network.init)(QUICK, *inputs), inputs


both_kinds = pytest.mark.parametrize("separable", [False, True])


@both_kinds
def test_known_pixels_are_unchanged_and_missing_ones_generated(separable):
    _, apply, variables, (images, masks) = _fresh(separable)
    filled, taps, _ = apply(variables, images, masks)
    missing = np.broadcast_to(np.asarray(masks) == 1, images.shape)
    np.testing.assert_array_equal(filled[~missing], images[~missing])
    np.testing.assert_array_equal(filled[missing], taps["generated"][missing])
    assert (filled[missing] != images[missing]).all()
    # Neither vanishing nor saturated.
    assert 0.005 < taps["generated"].std() < 0.9


@both_kinds
def test_missing_pixels_are_ignored(separable):
    _, apply, variables, (images, masks) = _fresh(separable)
    expected, *_ = apply(variables, images, masks)
    for hidden in (np.nan, np.inf, 0.3):
        filled, *_ = apply(variables, jnp.where(masks == 1, hidden, images), masks)
        np.testing.assert_array_equal(filled, expected)
    known = masks[0, :, :, 0] == 0
    at = tuple(np.argwhere(np.asarray(known))[20])
    other = apply(variables, images.at[0, *at].set(0.9), masks)[1]["generated"]
    changed = np.abs(other - apply(variables, images, masks)[1]["generated"]).max(axis=(1, 2, 3))
    assert (changed > 1e-5).tolist() == [True, False]


def test_missing_pixels_differ_from_grey_ones():
    _, apply, variables, (images, masks) = _fresh(False)
    grey = jnp.zeros_like(images)
    features = apply(variables, grey, masks)[1]["decoder_0"]
    other = apply(variables, grey, jnp.zeros_like(masks))[1]["decoder_0"]
    assert np.abs(features - other).max() > 1e-2


def test_a_fresh_network_inpaints_smoothly_unless_it_predicts_the_pixels():
    _, apply, variables, (images, masks) = _fresh(False)
    smooth = ops.harmonic_inpaint(images, masks > 0.5)
    np.testing.assert_allclose(apply(variables, images, masks)[0], smooth, atol=0.05)
    paper = inpainting.gated_generator(**SMALL, residual=False)
    variables = jax.jit(paper.init)(QUICK, images, masks)
    filled = jax.jit(paper.apply)(variables, images, masks)[0]
    assert np.abs(filled - smooth).max() > 0.3
    amplified = jax.tree.map(lambda leaf: 30 * leaf, variables)
    generated = jax.jit(paper.apply)(amplified, images, masks)[1]["generated"]
    assert 0.9 < np.abs(generated).max() <= 1


def test_mask_values_above_a_half_are_missing():
    _, apply, variables, (images, masks) = _fresh(False)
    expected, *_ = apply(variables, images, masks)
    soft = jnp.where(masks == 1, 0.51, 0.5)
    np.testing.assert_array_equal(apply(variables, images, soft)[0], expected)
    np.testing.assert_array_equal(apply(variables, images, masks == 1)[0], expected)


@both_kinds
def test_gradients_reach_every_parameter_and_known_pixel(separable):
    network, _, variables, (images, masks) = _fresh(separable)
    images = jnp.where(masks == 1, jnp.nan, images)

    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(variables, images):
        filled, _, _ = network.apply(variables, images, masks)
        return (jnp.where(masks == 1, filled, 0.0) ** 2).sum()

    of_variables, of_images = jax.jit(gradients)(variables, images)
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_variables):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    missing = np.broadcast_to(np.asarray(masks) == 1, images.shape)
    assert not of_images[missing].any()
    assert np.isfinite(of_images).all()
    assert (of_images[~missing] != 0).mean() > 0.9


def test_taps_and_parameters():
    network = inpainting.gated_generator(4, downs=2, dilations=(2, 4, 8))
    filled, taps, variables = _abstract(network, *_inputs(16, 24))
    assert filled.shape == (B, 16, 24, 3)
    assert filled.dtype == jnp.float32
    expected = {
        "stem": (B, 16, 24, 4),
        "down_1": (B, 8, 12, 8),
        "encoder_1": (B, 8, 12, 8),
        "down_2": (B, 4, 6, 16),
        "encoder_2": (B, 4, 6, 16),
        **{f"dilated_{i}": (B, 4, 6, 16) for i in range(3)},
        "middle": (B, 4, 6, 16),
        "up_1": (B, 8, 12, 8),
        "decoder_1": (B, 8, 12, 8),
        "up_0": (B, 16, 24, 4),
        "decoder_0": (B, 16, 24, 4),
    }
    assert {name: tap.shape for name, tap in taps.items()} == expected | {
        "generated": (B, 16, 24, 3)
    }
    widths = [shape[-1] for shape in expected.values()]
    pairs = list(itertools.pairwise(widths))
    count = 25 * 4 * 8 + 8 + sum(9 * a * 2 * b + 2 * b for a, b in pairs) + 9 * 4 * 3 + 3
    assert parameter_count(variables) == count
    separable = inpainting.gated_generator(4, downs=2, dilations=(2, 4, 8), separable=True)
    filled, taps, variables = _abstract(separable, *_inputs(16, 24))
    assert {name: tap.shape for name, tap in taps.items() if name in expected} == expected
    count = 25 * 4 * 8 + 8 + sum(9 * a + a * 2 * b + 2 * b for a, b in pairs) + 9 * 4 * 3 + 3
    assert parameter_count(variables) == count


def test_a_gate_by_hand():
    layer = inpainting.GatedConv(2)
    x = jnp.asarray(RNG.normal(size=(1, 3, 4, 1)), jnp.float32)
    # Only the middle of the window counts: features 2x + 0.1 and -x, gates 3x and 0.5.
    kernel = np.zeros((3, 3, 1, 4), np.float32)
    kernel[1, 1, 0] = 2, -1, 3, 0
    params = {"conv": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray([0.1, 0, 0, 0.5])}}
    y = layer.apply({"params": params}, x)
    v = np.asarray(x, np.float64)[..., 0]
    for channel, (feature, gate) in enumerate([(2 * v + 0.1, 3 * v), (-v, np.full_like(v, 0.5))]):
        elu = np.where(feature > 0, feature, np.exp(feature) - 1)
        np.testing.assert_allclose(y[..., channel], elu / (1 + np.exp(-gate)), rtol=1e-4)


@both_kinds
@pytest.mark.parametrize("dilation", [2, 5])
def test_dilated_windows_by_hand(separable, dilation):
    layer = inpainting.GatedConv(1, dilation=dilation, separable=separable)
    x = jnp.zeros((1, 13, 13, 1)).at[0, 6, 6, 0].set(1.0)
    variables = jax.tree.map(jnp.ones_like, jax.eval_shape(layer.init, KEY, x))
    y = np.asarray(layer.apply(variables, x))[0, :, :, 0]
    # With kernels and biases of 1 a feature is 2 where a tap reads the pixel, and 1 elsewhere.
    taps = [6 - dilation, 6, 6 + dilation]
    positions = {tuple(at) for at in np.argwhere(y > 1.5).tolist()}
    assert positions == set(itertools.product(taps, taps))


@both_kinds
def test_the_papers_network_is_translation_equivariant(separable):
    """Smooth inpainting is not: the pixels of its coarser scales are larger."""
    network = inpainting.gated_generator(
        3, downs=1, dilations=(3,), separable=separable, residual=False
    )
    images, masks = _inputs(48, 40)
    variables = _scaled(network, images, masks)
    # Stem 2, halving 1 or 2, at half the side 1 + 3 + 1, the last two layers and the image's 3.
    border = 2 + 2 + 2 * 5 + 3 + 4
    y = output(network, variables, images, masks)
    shifted = [jnp.roll(x, (2, 4), axis=(1, 2)) for x in (images, masks)]
    inner = np.s_[:, border:-border]
    restored = np.roll(output(network, variables, *shifted), (-2, -4), axis=(1, 2))
    centre = np.s_[:, border - 2 : -border, border - 4 : -border]
    np.testing.assert_allclose(restored[centre], y[centre], rtol=1e-3, atol=1e-5)
    assert y[inner].std() > 0.1


@both_kinds
def test_inpainting_is_equivariant_to_brightness_and_contrast(separable, x64):
    network = inpainting.gated_generator(
        4, downs=1, dilations=(2,), separable=separable, dtype=jnp.float64
    )
    images, masks = (x.astype(jnp.float64) for x in _inputs())
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), _scaled(network, images, masks))
    colour = jnp.array([0.3, -2.0, 1.0])[None, None, None]
    images = 30 * images  # so that the minimum variance is negligible
    filled = output(network, variables, images, masks)
    brighter = output(network, variables, 2 * images + colour, masks)
    np.testing.assert_allclose(brighter, 2 * filled + colour, rtol=1e-3, atol=1e-3)
    assert np.abs(filled - ops.harmonic_inpaint(images, masks > 0.5)).max() > 1


def test_half_precision_is_used_for_computation_but_not_for_storage():
    _, apply, variables, (images, masks) = _fresh(False)
    network = inpainting.gated_generator(**SMALL, dtype=jnp.bfloat16)
    filled, taps, shapes = _abstract(network, images, masks)
    assert filled.dtype == taps["generated"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    assert {tap.dtype for name, tap in taps.items() if name != "generated"} == {
        jnp.dtype(jnp.bfloat16)
    }
    expected, *_ = apply(variables, images, masks)
    filled = output(network, variables, images, masks)
    np.testing.assert_allclose(filled, expected, atol=0.05)
    known = np.broadcast_to(np.asarray(masks) == 0, images.shape)
    np.testing.assert_array_equal(filled[known], images[known])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width=0"),
        ({"channels": 0}, "channels=0"),
        ({"dilations": (2, 0)}, r"dilations=\(2, 0\) must be at least 1"),
        ({"downs": -1}, "downs=-1 at least 0"),
    ],
)
def test_invalid_networks_raise(options, message):
    with pytest.raises(ValueError, match=message):
        inpainting.gated_generator(**options)


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ((B, 16, 16, 1), (B, 16, 16, 1), r"images \[B, H, W, 3\] are needed, not shape \(2, 16"),
        ((16, 16, 3), (16, 16, 1), r"images \[B, H, W, 3\] are needed, not shape \(16"),
        ((B, 16, 18, 3), (B, 16, 18, 1), "16x18 pixels need sides that are multiples of 4"),
        ((B, 16, 16, 3), (B, 16, 16, 3), r"need masks \(2, 16, 16, 1\), not shape \(2, 16, 16, 3"),
        ((B, 16, 16, 3), (B, 16, 16), r"need masks \(2, 16, 16, 1\), not shape \(2, 16, 16\)"),
        ((B, 16, 16, 3), (1, 16, 16, 1), r"need masks \(2, 16, 16, 1\), not shape \(1, 16"),
    ],
)
def test_invalid_inputs_raise(images, masks, message):
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (images, masks)]
    with pytest.raises(ValueError, match=message) as error:
        _abstract(inpainting.gated_generator(**SMALL), *inputs)
    assert "\n" not in str(error.value)


def test_halvings_and_dilations_are_optional():
    network = inpainting.gated_generator(2, channels=1, downs=0, dilations=())
    filled, taps, _ = _abstract(network, *_inputs(5, 7, 1))
    assert filled.shape == (B, 5, 7, 1)
    assert set(taps) == {"stem", "middle", "generated"}


@both_kinds
def test_a_network_is_rebuilt_from_its_description(separable):
    network, _, _, inputs = _fresh(separable)
    rebuilt = rebuild(json.loads(json.dumps(describe(network, *inputs)))).network
    assert rebuilt.module == network.module


# --- channels -------------------------------------------------------------------------------------


def _wide_and_narrow(separable):
    options = {"downs": 1, "dilations": (2,), "separable": separable}
    return [inpainting.gated_generator(width, **options) for width in (6, 4)]


@both_kinds
def test_channels_and_a_narrower_student(separable):
    wide, narrow = _wide_and_narrow(separable)
    inputs = _inputs(8, 8)
    variables = random_like(_shapes(wide, *inputs))
    axes = inpainting.gated_generator_axes(variables)
    halved = ("down_1", "encoder_1", "dilated_0", "middle")
    whole = ("stem", "up_0", "decoder_0")
    assert group_widths(variables, axes) == dict.fromkeys(halved, 12) | dict.fromkeys(whole, 6)
    same = pruning.shrink(variables, axes, {})
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    like = _shapes(narrow, *inputs)
    small = pruning.from_teacher(variables, axes, pruning.magnitude(variables, axes), like)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, like)


@both_kinds
def test_pruning_unread_channels_does_not_change_the_output(separable):
    wide, narrow = _wide_and_narrow(separable)
    inputs = _inputs(8, 8)
    variables = _scaled(wide, *inputs)
    axes = inpainting.gated_generator_axes(variables)
    widths = group_widths(variables, axes)
    targets = group_widths(_shapes(narrow, *inputs), axes)
    channel_indices = {g: np.sort(RNG.permutation(n)[: targets[g]]) for g, n in widths.items()}

    params = jax.tree.map(np.array, variables["params"])
    before = None
    for name in (*widths, "image"):  # the layers, from first to last
        layer = params[name] if name == "image" else params[name]["conv"]
        kernel = layer["pointwise"]["kernel"] if "pointwise" in layer else layer["kernel"]
        if before is not None:
            pruned = np.setdiff1d(np.arange(widths[before]), channel_indices[before])
            kernel[:, :, pruned] = 0.0
        before = name
    dead = {"params": params}
    small = pruning.shrink(dead, axes, channel_indices)
    expected = output(wide, dead, *inputs)
    np.testing.assert_allclose(output(narrow, small, *inputs), expected, rtol=1e-3, atol=1e-5)
    assert np.abs(output(wide, variables, *inputs) - expected).max() > 0.01


def test_variables_of_other_networks_raise():
    network, _, _, inputs = _fresh(False)
    with pytest.raises(ValueError, match="is missing"):
        inpainting.gated_generator_axes({"params": {"stem": {"kernel": jnp.zeros((3, 3, 3, 4))}}})
    connected = connect(network, {"middle": (1, 4, 4, 8)})
    with pytest.raises(ValueError, match="belongs to a connector"):
        inpainting.gated_generator_axes(_shapes(connected, *inputs))
