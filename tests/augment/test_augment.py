"""Augmentations against numpy's shifts and rotations, closed forms and hand-computed sequences."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forwards import make_forward
from selection import FUSED, quick

import kd_jax as kd
from kd_jax import losses
from kd_jax.augment import (
    BG,
    BGC,
    BGCF,
    BGCFN,
    BGCFNC,
    BLIT,
    COLOR,
    CUTOUT,
    FILTER,
    GEOM,
    NOISE,
    Settings,
    ada,
    adapt,
    augment_pipe,
    diff,
    diff_augment,
    sign_statistic,
    with_ada,
    with_augmentation,
)
from kd_jax.train.checkpoint import Checkpoints

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SHAPE = (3, 12, 16, 3)
IMAGES = RNG.uniform(-1, 1, SHAPE).astype(np.float32)
B = SHAPE[0]


# DiffAugment.


def shift_with_zeros(image, down, right):
    """The image shifted, with uncovered pixels set to 0."""
    height, width = image.shape[:2]
    shifted = np.roll(image, (down, right), (0, 1))
    rows, columns = np.arange(height) - down, np.arange(width) - right
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return shifted * inside[..., None]


def test_translation_by_whole_pixels():
    shifts = np.array([[2, -3], [0, 5], [-12, 1]])
    expected = [
        shift_with_zeros(image, *shift) for image, shift in zip(IMAGES, shifts, strict=True)
    ]
    np.testing.assert_array_equal(diff.translate(IMAGES, shifts), expected)


def test_diff_augment_colors_by_hand():
    images = np.float32([[[[0.1, 0.4, -0.2]], [[0.5, 0.5, 0.8]]]])  # means 0.1 and 0.6
    np.testing.assert_allclose(diff.brightness(images, jnp.array([0.25])), images + 0.25)
    expected = [[[[0.1, 0.7, -0.5]], [[0.4, 0.4, 1.0]]]]
    np.testing.assert_allclose(diff.saturation(images, jnp.array([2.0])), expected, atol=1e-6)
    expected = 0.35 + 0.5 * (images - 0.35)
    np.testing.assert_allclose(diff.contrast(images, jnp.array([0.5])), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "rows", "columns"),
    [(0.5, range(2, 8), range(12, 16)), (0.25, range(4, 7), range(13, 16))],
)
def test_a_rectangle_is_cut_out(part, rows, columns):
    """Rectangles of 6 x 8 and 3 x 4 pixels that extend beyond the right border."""
    centers = jnp.array([[5, 15]] * B) + jnp.array([[0, 1 if part == 0.5 else 0]])
    expected = IMAGES.copy()
    expected[:, rows.start : rows.stop, columns.start : columns.stop] = 0
    np.testing.assert_array_equal(diff.cut_out(IMAGES, centers, part), expected)


def test_diff_augment_draws_within_its_ranges():
    count, size = 400, 8
    flat = jnp.full((count, size, size, 3), 0.5)
    bright = np.asarray(diff_augment(KEY, flat, translation=0, cutout=0))
    assert np.ptp(bright, axis=(1, 2, 3)).max() < 1e-6  # a constant grey image has no contrast
    shift = bright[:, 0, 0, 0] - 0.5
    assert -0.5 <= shift.min() < -0.47
    assert 0.47 < shift.max() < 0.5
    assert abs(shift.mean()) < 4 * 0.289 / np.sqrt(count)

    dot = jnp.zeros((count, 9, 7, 1)).at[:, 4, 3].set(1.0)
    shifted = np.asarray(diff_augment(KEY, dot, color=False, translation=0.3, cutout=0))
    places = np.argwhere(shifted[..., 0])
    assert len(places) == count
    counts = [np.bincount(places[:, axis], minlength=9) for axis in (1, 2)]
    assert [np.flatnonzero(c).tolist() for c in counts] == [list(range(1, 8)), list(range(1, 6))]
    assert min(c[c > 0].min() for c in counts) > count / 7 / 2

    holes = np.asarray(diff_augment(KEY, jnp.ones((count, 4, 5, 1)), color=False, translation=0))
    # 2 rows, with the center at one of 5 places between rows; 3 columns, around one of 5.
    areas = (holes == 0).sum(axis=(1, 2, 3))
    assert set(areas) == {2, 3, 4, 6}
    np.testing.assert_allclose(np.mean(areas), 2 * 0.8 * (3 * 0.6 + 2 * 0.4), rtol=0.05)


def test_diff_augment_without_augmentations_is_the_identity():
    plain = diff_augment(KEY, IMAGES, color=False, translation=0, cutout=0)
    np.testing.assert_array_equal(plain, IMAGES)
    everything = np.asarray(jax.jit(diff_augment)(KEY, IMAGES))
    assert everything.shape == SHAPE
    assert everything.dtype == np.float32
    np.testing.assert_allclose(everything, diff_augment(KEY, IMAGES), atol=1e-6)
    assert np.abs(everything - np.asarray(diff_augment(jax.random.key(1), IMAGES))).max() > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diff_augment(KEY, IMAGES[0]), r"\[B, H, W, C\], got float32 \(12, 16, 3\)"),
        (
            lambda: diff_augment(KEY, jnp.zeros(SHAPE, jnp.uint8)),
            r"\[B, H, W, C\], got uint8 \(3, 12, 16, 3\)",
        ),
        (lambda: diff_augment(KEY, IMAGES, cutout=1.5), r"cutout=1.5 is not in \[0, 1\]"),
        (lambda: diff_augment(KEY, IMAGES, translation=-1), r"translation=-1 is not in \[0, 1\]"),
        (lambda: diff.brightness(IMAGES, jnp.zeros(2)), r"amount has shape \(2,\); images"),
        (lambda: diff.translate(IMAGES, jnp.zeros((2, 3), int)), r"need \(3, 2\)"),
        (lambda: diff.cut_out(IMAGES, jnp.zeros(3, int)), r"center has shape \(3,\)"),
        (lambda: augment_pipe(KEY, IMAGES[0]), r"\[B, H, W, C\], got float32 \(12, 16, 3\)"),
        (lambda: augment_pipe(KEY, IMAGES, 1.5), r"probability p=1.5 is not in \[0, 1\]"),
        (lambda: augment_pipe(KEY, IMAGES, 1.0, Settings(hue=-1)), "hue=-1 is negative"),
        (
            lambda: augment_pipe(KEY, IMAGES, 1.0, Settings(imgfilter_bands=(1, 1, 1, -2))),
            r"imgfilter_bands=\(1, 1, 1, -2\) is negative",
        ),
        (
            lambda: augment_pipe(KEY, IMAGES[..., :2], 1.0, COLOR),
            r"1 or 3 channels, got images \(3, 12, 16, 2\)",
        ),
        (lambda: with_ada(None, start=-0.1), r"start=-0.1 .* \[0, 1\]"),
        (lambda: adapt(None, target=1.0), r"target=1.0 .* not in \(-1, 1\)"),
        (lambda: adapt(None, interval=0), "interval=0 and images=500000 must both be"),
        (lambda: adapt(None, images=0), "interval=4 and images=0 must both be"),
    ],
)
def test_invalid_arguments_are_errors(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ADA: transformations.


def identity_draws(shape=SHAPE):
    """Draws with all gates closed and neutral strengths."""
    draws = ada.draw(KEY, shape)
    return draws._replace(
        gates=jax.tree.map(jnp.ones_like, draws.gates),
        uniform=jax.tree.map(lambda x: jnp.full_like(x, 0.5), draws.uniform),
        normal=jax.tree.map(jnp.zeros_like, draws.normal),
    )


def with_one(name, value, shape=SHAPE, gate=None, kind="uniform"):
    """`identity_draws`, except for one transformation with the random value `value`."""
    draws = identity_draws(shape)
    gate = gate or name
    values = getattr(draws, kind)
    filled = jnp.broadcast_to(jnp.asarray(value, jnp.float32), values[name].shape)
    return draws._replace(
        gates={**draws.gates, gate: jnp.zeros_like(draws.gates[gate])},
        **{kind: {**values, name: filled}},
    )


run = jax.jit(ada.augment, static_argnums=3)


def augment(draws, images=IMAGES, settings=BGCFNC):
    return np.asarray(run(draws, images, 1.0, settings))


def wave(x, y):
    return np.cos(0.15 * x + 0.1 * y + 0.3)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return wave(x - (width - 1) / 2, y - (height - 1) / 2)[None, ..., None].astype(np.float32)


@pytest.mark.parametrize("shape", [SHAPE, (1, 7, 9, 1)])
def test_probability_zero_is_the_identity(shape):
    images = RNG.uniform(-1, 1, shape).astype(np.float32)
    same = np.asarray(run(ada.draw(KEY, shape), images, 0.0, BGCFNC))
    np.testing.assert_allclose(same, images, atol=3e-6)
    assert np.array_equal(augment_pipe(KEY, jnp.asarray(images), 1.0, Settings()), images)


# The wavelet is not exactly symmetric: upsampling shifts images by 0.05 pixels and downsampling
# shifts them back, or by as much again if they are flipped in between.


def test_horizontal_flip():
    image = smooth(12, 16)
    for value, expected in ((0.7, image[:, :, ::-1]), (0.4, image)):
        actual = augment(with_one("xflip", value, image.shape), image, BLIT)
        np.testing.assert_allclose(actual, expected, atol=0.04)
    assert np.abs(image - image[:, :, ::-1]).max() > 0.5


@pytest.mark.parametrize("side", [12, 13])
@pytest.mark.parametrize("turns", range(4))
def test_rotation_by_multiples_of_90_degrees(turns, side):
    image = smooth(side, side)
    draws = with_one("rotate90", turns / 4 + 0.1, image.shape)
    expected = np.rot90(image, turns, axes=(1, 2))
    np.testing.assert_allclose(augment(draws, image, BLIT), expected, atol=0.04)


def test_translation_by_whole_pixels_reflects_at_the_borders():
    draws = with_one("xint", jnp.array([[1.0, 0.1]]))  # round(0.25 * (16, -0.8 * 12)) = (4, -2)
    padded = np.pad(IMAGES, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    expected = padded[:, 6 : 6 + 12, 0:16]  # 4 to the right, 2 up
    np.testing.assert_allclose(
        augment(draws, settings=BLIT._replace(xint_max=0.25)), expected, atol=1e-5
    )


@pytest.mark.parametrize(
    ("draws", "source"),
    [
        ({"name": "scale", "value": 2.0, "kind": "normal"}, lambda x, y: (x / 1.32, y / 1.32)),
        ({"name": "aniso", "value": -2.0, "kind": "normal"}, lambda x, y: (x * 1.32, y / 1.32)),
        (
            {"name": "xfrac", "value": [[1.0, -2.0]], "kind": "normal"},
            lambda x, y: (x - 4, y + 6),  # for width 32 and height 24
        ),
        (  # counter-clockwise, y pointing down
            {"name": "rotate", "value": 0.5 + 1 / 12},
            lambda x, y: (0.866 * x - 0.5 * y, 0.5 * x + 0.866 * y),
        ),
        (
            {"name": "rotate_after", "value": 0.5 - 1 / 12},
            lambda x, y: (0.866 * x + 0.5 * y, -0.5 * x + 0.866 * y),
        ),
    ],
    ids=["scale", "aniso", "xfrac", "rotate", "rotate_after"],
)
def test_geometry_of_a_smooth_image(draws, source):
    height, width = 24, 32
    y, x = np.mgrid[:height, :width] - np.array([11.5, 15.5])[:, None, None]
    image = smooth(height, width)
    result = augment(with_one(**draws, shape=image.shape), image, GEOM)[0, :, :, 0]
    from_x, from_y = source(x, y)
    inside = (np.abs(from_x) < 13) & (np.abs(from_y) < 9)
    assert inside.sum() > 150
    np.testing.assert_allclose(result[inside], wave(from_x, from_y)[inside], atol=0.01)


def test_the_order_of_geometric_transformations():
    """The product of the paper's matrices, in the paper's order, inverted by numpy."""
    height, width = SHAPE[1:3]
    draws = ada.draw(jax.random.key(3), SHAPE)
    draws = draws._replace(gates=jax.tree.map(jnp.zeros_like, draws.gates))
    u, n = jax.tree.map(partial(np.asarray, dtype=np.float64), (draws.uniform, draws.normal))

    def rotation(angle):
        return np.array(
            [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
        )

    def translation(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])

    expected = []
    for b in range(B):
        scale, stretch = 2 ** (0.2 * n["scale"][b]), 2 ** (0.2 * n["aniso"][b])
        whole = np.round(0.125 * (2 * u["xint"][b] - 1) * (width, height))
        forward = np.diag([1 - 2 * np.floor(2 * u["xflip"][b]), 1, 1])
        forward = rotation(-np.pi / 2 * np.floor(4 * u["rotate90"][b])) @ forward
        forward = translation(*whole) @ forward
        forward = np.diag([scale, scale, 1]) @ forward
        forward = rotation(-np.pi * (2 * u["rotate"][b] - 1)) @ forward
        forward = np.diag([stretch, 1 / stretch, 1]) @ forward
        forward = rotation(-np.pi * (2 * u["rotate_after"][b] - 1)) @ forward
        forward = translation(*(0.125 * n["xfrac"][b] * (width, height))) @ forward
        expected.append(np.linalg.inv(forward))
    actual = ada.inverse_transforms(draws, 1.0, BGC, (height, width))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_brightness_contrast_and_luma():
    result = augment(with_one("brightness", 1.5, kind="normal"))
    np.testing.assert_allclose(result, IMAGES + 0.3, atol=1e-5)
    result = augment(with_one("contrast", 2.0, kind="normal"))
    np.testing.assert_allclose(result, 2 * IMAGES, atol=1e-5)
    grey = IMAGES.mean(axis=3, keepdims=True)
    expected = IMAGES - 2 * grey
    np.testing.assert_allclose(augment(with_one("lumaflip", 0.6)), expected, atol=1e-5)
    np.testing.assert_allclose(augment(with_one("lumaflip", 0.4)), IMAGES, atol=1e-5)


def test_hue_and_saturation():
    full = augment(with_one("hue", 1.0), settings=COLOR._replace(hue_max=2.0))
    np.testing.assert_allclose(full, IMAGES, atol=1e-5)
    third = augment(with_one("hue", 0.5 + 1 / 3))  # red becomes green
    np.testing.assert_allclose(third, np.roll(IMAGES, 1, axis=3), atol=1e-5)
    grey = IMAGES.mean(axis=3, keepdims=True)
    half = augment(with_one("saturation", -1.0, kind="normal"))
    np.testing.assert_allclose(half, grey + (IMAGES - grey) / 2, atol=1e-5)
    rotated = augment(with_one("hue", 0.6))
    np.testing.assert_allclose(rotated.mean(axis=3, keepdims=True), grey, atol=1e-5)
    np.testing.assert_allclose((rotated**2).sum(3), (IMAGES**2).sum(3), rtol=1e-4)


def test_brightness_is_applied_first():
    draws = with_one("brightness", 1.0, kind="normal")
    draws = draws._replace(
        gates=jax.tree.map(jnp.zeros_like, draws.gates),
        normal={**draws.normal, "contrast": jnp.full(B, -2.0), "saturation": jnp.full(B, 1.0)},
        uniform={**draws.uniform, "lumaflip": jnp.full(B, 0.9)},
    )
    grey = IMAGES.mean(axis=3, keepdims=True)
    actual = augment(draws, settings=COLOR)
    np.testing.assert_allclose(actual, -(grey + 0.2) / 2 + (IMAGES - grey), atol=1e-5)


def test_grey_images_do_not_depend_on_hue():
    grey, draws = jnp.asarray(IMAGES[..., :1]), ada.draw(KEY, (*SHAPE[:3], 1))
    hue_and_saturation = Settings(hue=1.0, saturation=1.0)
    np.testing.assert_allclose(ada.augment(draws, grey, 1.0, hue_and_saturation), grey, atol=1e-6)
    colored = ada.augment(draws, jnp.repeat(grey, 3, axis=3), 1.0, COLOR)
    actual = ada.augment(draws, grey, 1.0, COLOR)
    np.testing.assert_allclose(np.repeat(actual, 3, axis=3), colored, atol=1e-5)


def test_band_filters_sum_to_the_identity_and_partition_the_spectrum():
    delta = np.zeros(43)
    delta[21] = 1
    np.testing.assert_allclose(ada.BAND_FILTERS.sum(axis=0), delta, atol=1e-6)
    np.testing.assert_array_equal(ada.BAND_FILTERS, ada.BAND_FILTERS[:, ::-1])
    frequencies = np.array([0.0, 0.19, 0.375, 0.75, 1.0]) * np.pi  # the centers of the bands
    gains = ada.BAND_FILTERS @ np.cos(np.outer(np.arange(-21, 22), frequencies))
    assert np.array_equal(gains.argmax(axis=0), [0, 1, 2, 3, 3])
    np.testing.assert_allclose(gains[:, [0, 4]], np.eye(4)[:, [0, 3]], atol=1e-6)
    np.testing.assert_allclose(gains.sum(axis=0), 1, atol=1e-6)


def test_band_gains_preserve_the_expected_power():
    draws = with_one("imgfilter", jnp.array([[2.0, 0.0, 0.0, 1.0]]), kind="normal")
    # Amplifying only the first band by t divides all gains by sqrt((10 t^2 + 3) / 13).
    lowest, highest = np.sqrt((10 * 16 + 3) / 13), np.sqrt((12 + 4) / 13)
    expected = np.array([4, 1, 1, 2]) / lowest / highest
    gains = ada.band_gains(draws, 1.0, FILTER)
    np.testing.assert_allclose(gains, np.tile(expected, (B, 1)), rtol=1e-6)
    # An image that is constant along one axis and alternating along the other.
    stripes = np.broadcast_to((-1.0) ** np.arange(16)[None, None, :, None], SHAPE)
    result = augment(draws, stripes.astype(np.float32))
    np.testing.assert_allclose(result, expected[0] * expected[3] * stripes, rtol=1e-4)
    some = FILTER._replace(imgfilter_bands=(0.0, 1.0, 1.0, 1.0))
    expected = np.array([1, 1, 1, 2]) / highest
    gains = ada.band_gains(draws, 1.0, some)
    np.testing.assert_allclose(gains, np.tile(expected, (B, 1)), rtol=1e-6)


def test_filtering_reflects_at_the_borders():
    gains = jnp.asarray(RNG.uniform(0.2, 2.0, (2, 4)).astype(np.float32))
    images = RNG.normal(size=(2, 22, 30, 2)).astype(np.float32)
    actual = np.asarray(ada.amplify(images, gains))
    for image, gain, result in zip(images, np.asarray(gains), actual, strict=True):
        taps = gain @ ada.BAND_FILTERS
        padded = np.pad(image, ((21, 21), (21, 21), (0, 0)), mode="reflect")
        for axis in (0, 1):
            padded = np.apply_along_axis(np.convolve, axis, padded, taps, "valid")
        np.testing.assert_allclose(result, padded, atol=1e-5)


def test_noise_and_cutout():
    draws = with_one("noise", -1.5, kind="normal")
    expected = IMAGES + 0.15 * np.asarray(draws.pixels)
    np.testing.assert_allclose(augment(draws), expected, atol=1e-5)
    expected = IMAGES.copy()
    expected[:, 0:5, 8:16] = 0  # 6 rows around 1.2, two of them outside; 8 columns around 12
    result = augment(with_one("cutout", jnp.array([[0.75, 0.15]])))
    np.testing.assert_allclose(result, expected, atol=3e-6)


# ADA: randomness.

MANY = (20_000, 1, 1, 3)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_p_is_the_fraction_of_changed_images(p):
    """Multipliers scale p; half of the flips and a quarter of the rotations are the identity."""
    draws = ada.draw(jax.random.key(5), MANY)

    def fraction(settings):
        inverses = ada.inverse_transforms(draws, p, settings, (8, 8))
        brightness, matrices = ada.color_transforms(draws, p, settings)
        warped = jnp.abs(inverses - jnp.eye(3)[None]).max(axis=(1, 2)) > 1e-6
        colored = jnp.abs(matrices - jnp.eye(3)[None]).max(axis=(1, 2)) > 1e-6
        gains = jnp.abs(ada.band_gains(draws, p, settings) - 1).max(axis=1) > 1e-6
        return float((warped | colored | (brightness != 0) | gains).mean())

    expected = {
        **dict.fromkeys(("scale", "rotate", "aniso", "xfrac", "brightness", "contrast"), p),
        **dict.fromkeys(("hue", "saturation"), p),
        **dict.fromkeys(("xflip", "lumaflip"), p / 2),
        "rotate90": 3 * p / 4,
        "xint": 3 / 4 * p,  # shifts by -1, 0 and 1 pixels: a quarter, a half and a quarter
        "imgfilter": 1 - (1 - p) ** 4,
    }
    for name, probability in expected.items():
        deviation = np.sqrt(probability * (1 - probability) / MANY[0])
        assert abs(fraction(Settings(**{name: 1.0})) - probability) <= 4 * deviation + 1e-3, name
    half = fraction(Settings(scale=0.5))
    assert abs(half - p / 2) < 4 * np.sqrt(p / 2 / MANY[0])


def test_strengths_have_the_standard_deviations_of_the_paper():
    draws = ada.draw(jax.random.key(6), MANY)
    error = 4 / np.sqrt(2 * MANY[0])
    scale = ada.inverse_transforms(draws, 1.0, Settings(scale=1.0), (8, 8))[:, 0, 0]
    stretch = ada.inverse_transforms(draws, 1.0, Settings(aniso=1.0), (8, 8))[:, 0, 0]
    for inverse in (scale, stretch):
        np.testing.assert_allclose(np.log2(inverse).std(), 0.2, rtol=error)
    drift = ada.inverse_transforms(draws, 1.0, Settings(xfrac=1.0), (16, 8))[:, :2, 2]
    np.testing.assert_allclose(np.std(drift, axis=0), [1.0, 2.0], rtol=error)
    brightness, _ = ada.color_transforms(draws, 1.0, Settings(brightness=1.0))
    np.testing.assert_allclose(brightness.std(), 0.2, rtol=error)
    _, matrices = ada.color_transforms(draws, 1.0, Settings(contrast=1.0))
    np.testing.assert_allclose(np.log2(matrices[:, 0, 0]).std(), 0.5, rtol=error)
    # The determinant of a saturation matrix is the square of the saturation.
    _, matrices = ada.color_transforms(draws, 1.0, Settings(saturation=1.0))
    np.testing.assert_allclose(np.log2(np.linalg.det(matrices)).std(), 2.0, rtol=error)
    rotations = ada.inverse_transforms(draws, 1.0, Settings(rotate=1.0), (8, 8))
    angles = np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0])
    assert np.histogram(angles, 8, (-np.pi, np.pi))[0].min() > MANY[0] / 8 * 0.9


def test_images_are_augmented_independently():
    other = IMAGES.copy()
    other[1] = 0.3
    draws = ada.draw(KEY, SHAPE)
    a, b = run(draws, IMAGES, 0.9, BGCFNC), run(draws, other, 0.9, BGCFNC)
    changed = np.abs(np.asarray(a - b)).max(axis=(1, 2, 3)) > 1e-6
    assert changed.tolist() == [False, True, False]
    c = run(ada.draw(jax.random.key(1), SHAPE), IMAGES, 0.9, BGCFNC)
    assert np.abs(np.asarray(a - c)).max() > 0.1


def test_the_dtype_is_preserved():
    for dtype in (jnp.bfloat16, jnp.float32):
        images = jnp.asarray(IMAGES, dtype)
        for augment in (diff_augment, partial(augment_pipe, settings=BGCFNC)):
            assert jax.eval_shape(augment, KEY, images).dtype == dtype


# Derivatives.


def score_of(weights):
    def score(images):
        return jnp.tanh(jnp.einsum("bhwc,hwc->b", images, weights)), {}

    return score


@pytest.mark.parametrize(
    "augment",
    quick(
        [diff_augment, *(partial(augment_pipe, settings=s) for s in (COLOR, GEOM, BLIT, BGCFNC))],
        3,
    ),
    ids=["diff", "color", "geom", "blit", "bgcfnc"],
)
def test_derivatives_through_r1(augment, x64):
    """First derivatives in the images, second derivatives in the discriminator's weights."""
    rng = np.random.default_rng(1)
    images, weights = rng.uniform(-1, 1, (2, 5, 4, 3)), 0.1 * rng.normal(size=(5, 4, 3))

    @jax.jit
    def total(images, weights):
        return score_of(weights)(augment(KEY, images))[0].sum()

    @jax.jit
    def penalty(images, weights):
        discriminate = score_of(weights)
        return losses.penalties.r1(lambda x: discriminate(augment(KEY, x)), images).sum()

    for fn, at in (
        (lambda x: total(x, weights), images),
        (lambda w: penalty(images, w), weights),
    ):
        gradient = np.asarray(jax.jit(jax.grad(fn))(at))
        assert np.abs(gradient).max() > 1e-3
        for seed in range(3):
            direction = np.random.default_rng(seed).normal(size=at.shape)
            slope = (fn(at + 1e-5 * direction) - fn(at - 1e-5 * direction)) / 2e-5
            np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-5)


# In training.


class LinearDiscriminator(nn.Module):
    """Scores that are linear in the images; the images are a tap."""

    @nn.compact
    def __call__(self, images, labels=None, *, train):
        scores = nn.Dense(1)(images.reshape(images.shape[0], -1))[:, 0]
        return scores, {"images": images}


DISCRIMINATOR = kd.from_linen(LinearDiscriminator())


def test_images_are_augmented_only_in_training_with_a_key():
    network = with_augmentation(DISCRIMINATOR, lambda key, images: images + jax.random.normal(key))
    variables = network.init(KEY, IMAGES)
    apply = partial(network.apply, variables, IMAGES)
    for options in ({}, {"train": True}, {"rngs": KEY}):
        assert np.array_equal(apply(**options)[1]["images"], IMAGES)
    shift = np.asarray(apply(train=True, rngs=KEY)[1]["images"]) - IMAGES
    assert np.ptp(shift) < 1e-6
    assert abs(shift.mean()) > 1e-3
    other = np.asarray(apply(train=True, rngs=jax.random.key(1))[1]["images"]) - IMAGES
    assert abs(other.mean() - shift.mean()) > 1e-3
    labelled = network.apply(variables, IMAGES, np.zeros(B, int), train=True, rngs=KEY)
    np.testing.assert_allclose(labelled[1]["images"], IMAGES + shift, atol=1e-6)


def test_with_ada_uses_the_probability_in_the_variables():
    network = with_ada(DISCRIMINATOR, lambda key, images, p: images + p, start=0.25)
    variables = network.init(KEY, IMAGES)
    assert set(variables) == {"params", "augment"}
    assert variables["augment"]["p"].dtype == jnp.float32
    scores, taps, after = network.apply(variables, IMAGES, train=True, rngs=KEY)
    np.testing.assert_allclose(taps["images"], IMAGES + 0.25)
    assert jax.tree.structure(after) == jax.tree.structure(variables)
    assert np.array_equal(network.apply(variables, IMAGES)[1]["images"], IMAGES)
    plain = DISCRIMINATOR.apply({"params": variables["params"]}, IMAGES + np.float32(0.25))[0]
    np.testing.assert_array_equal(scores, plain)
    with pytest.raises(ValueError, match="already has variables 'augment'"):
        with_ada(network).init(KEY, IMAGES)
    with pytest.raises(ValueError, match=r"'augment', got params: .*with_ada"):
        network.apply({"params": variables["params"]}, IMAGES)


def fake_step(state, teacher_variables, batch):
    del teacher_variables
    return state._replace(step=state.step + 1), {"d/sign_statistic": batch["sign"].mean()}


def fake_state(p):
    variables = with_ada(DISCRIMINATOR, start=p).init(KEY, IMAGES)
    return kd.TrainState(jnp.zeros((), jnp.int32), KEY, (), kd.NetworkState(variables, ()), {}, ())


def signs(positive, count=10):
    return {"sign": np.where(np.arange(count) < positive, 1.0, -1.0).astype(np.float32)}


def test_the_heuristic_by_hand():
    """Changes by 20 of 100 images, every other step, from the mean sign over both steps."""
    step = jax.jit(adapt(fake_step, target=0.6, interval=2, images=100))
    state, probabilities = fake_state(0.1), []
    #     means 1, 0.4: above | 0.6, 0.4: below | -1, -1: below | 1, 1 four times, then below
    for positive in (10, 7, 8, 7, 0, 0, *[10] * 12, 5, 9):
        state, metrics = step(state, None, signs(positive))
        probabilities.append(float(metrics["augment/p"]))
        assert float(state.discriminator.variables["augment"]["p"]) == metrics["augment/p"]
    expected = [0.1, 0.3, 0.3, 0.1, 0.1, 0.0, 0.0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1.0]
    np.testing.assert_allclose(probabilities, [*expected, 1.0, 1.0, 1.0, 0.8], atol=1e-6)


def test_signs_and_images_are_counted():
    step = adapt(fake_step, interval=3)
    state = fake_state(0.0)
    for positive, count in ((3, 4), (1, 2)):
        state, _ = step(state, None, signs(positive, count))
    counted = state.discriminator.variables["augment"]
    assert (float(counted["signs"]), int(counted["count"])) == (2.0, 6)
    state, metrics = step(state, None, signs(4, 4))  # r_t = 6 / 10
    counted = state.discriminator.variables["augment"]
    assert (float(counted["signs"]), int(counted["count"])) == (0.0, 0)
    state = fake_state(0.0)
    for _ in range(3):
        state, metrics = step(state, None, signs(9, 10))  # r_t = 0.8, not 0.6
    np.testing.assert_allclose(metrics["augment/p"], 30 / 500_000, rtol=1e-6)


def test_adapt_without_ada_images_or_statistic_is_an_error():
    with pytest.raises(ValueError, match=r"'augment', got none: .*with_ada"):
        adapt(fake_step)(fake_state(0.0)._replace(discriminator=()), None, signs(1))
    with pytest.raises(ValueError, match=r"adapt\(\) .* the batch is empty"):
        adapt(fake_step)(fake_state(0.0), None, {})
    with pytest.raises(ValueError, match=r"adapt\(\) reads the metric 'd/other'.*as 'other'"):
        adapt(fake_step, term="other")(fake_state(0.0), None, signs(1))


SIZE = 4
GAN = kd.models.mlp.gan(SIZE, 8)
BATCH = {"image": RNG.uniform(-1, 1, (8, SIZE, SIZE, 1)).astype(np.float32)}
SOME = Settings(xflip=1.0, scale=1.0, brightness=1.0)


def parts(discriminator):
    return {
        "networks": kd.Networks(GAN.generator, discriminator),
        "optimizers": kd.PerNetwork(optax.adam(1e-2), optax.adam(1e-2)),
        "task": kd.latents(3),
        "losses": kd.PerNetwork(
            {
                "adversarial": kd.Term(
                    lambda f: losses.adversarial.nonsaturating_g(f.discriminator.fake_scores)
                )
            },
            {
                "adversarial": kd.Term(
                    lambda f: losses.adversarial.minimax_d(
                        f.discriminator.real_scores, f.discriminator.fake_scores
                    )
                ),
                "r1": kd.Term(lambda f: losses.penalties.r1(f.discriminator, f.real), 0.1, every=2),
                "sign_statistic": sign_statistic(),
            },
        ),
    }


ADAPTIVE = parts(with_ada(GAN.discriminator, partial(augment_pipe, settings=SOME), start=0.5))


def start():
    return kd.init_state(kd.Setup(**ADAPTIVE), jax.random.key(1), BATCH)


def make_step():
    # Fast enough for visible changes: 3 steps of 8 images change p by 0.24.
    return adapt(kd.make_train_step(kd.Setup(**ADAPTIVE)), target=0.0, interval=3, images=100)


def same(a, b, atol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def trained():
    """The states, beginning with the initial state, and the metrics of seven steps."""
    step, states, metrics_list = kd.compile_step(make_step(), donate=True), [start()], []
    for _ in range(7):
        state, metrics = step(jax.tree.map(jnp.copy, states[-1]), None, BATCH)
        states.append(state)
        metrics_list.append(metrics)
    return states, metrics_list


def test_training_adapts_the_probability_to_the_signs(trained):
    states, metrics_list = trained
    r_t = [float(metrics["d/sign_statistic"]) for metrics in metrics_list]
    assert all((8 * r) % 1 == 0 for r in r_t)  # of 8 images
    p, expected = 0.5, []
    for index in range(7):
        if index % 3 == 2:
            p = np.clip(p + 0.24 * np.sign(sum(r_t[index - 2 : index + 1])), 0, 1)
        expected.append(p)
    np.testing.assert_allclose([m["augment/p"] for m in metrics_list], expected, atol=1e-6)
    assert expected[-1] != 0.5
    counted = states[-1].discriminator.variables["augment"]
    assert int(counted["count"]) == 8
    np.testing.assert_allclose(counted["signs"], 8 * r_t[-1])
    assert all(np.isfinite(float(v)) for metrics in metrics_list for v in metrics.values())
    changes = jax.tree.map(
        lambda a, b: np.abs(a - b).max(),
        states[0].discriminator.variables["params"],
        states[-1].discriminator.variables["params"],
    )
    assert min(jax.tree.leaves(changes)) > 0


def test_the_statistic_does_not_change_training():
    """Neither does the adaptation in the first step, before the probability changes."""
    terms = dict(ADAPTIVE["losses"].discriminator)
    del terms["sign_statistic"]
    without = {**ADAPTIVE, "losses": ADAPTIVE["losses"]._replace(discriminator=terms)}
    state = kd.init_state(kd.Setup(**without), jax.random.key(1), BATCH)
    step = jax.jit(kd.make_train_step(kd.Setup(**without)), compiler_options=FUSED)
    state, _ = step(state, None, BATCH)
    adapted, _ = jax.jit(make_step(), compiler_options=FUSED)(start(), None, BATCH)
    same(state.generator, adapted.generator)
    params, opt = state.discriminator.variables["params"], state.discriminator.opt_state
    other = adapted.discriminator
    same((params, opt), (other.variables["params"], other.opt_state))


def test_resuming_in_the_middle_of_an_interval_is_exact(trained, tmp_path):
    states, _ = trained
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(4, states[4], {})
    checkpoints.wait()
    state, _ = checkpoints.restore(jax.eval_shape(start))
    checkpoints.close()
    assert int(state.discriminator.variables["augment"]["count"]) == 8
    step = kd.compile_step(make_step(), donate=True)
    for index in (5, 6, 7):
        state, _ = step(jax.tree.map(jnp.copy, state), None, BATCH)
        same(state, states[index])


def test_multi_step(trained):
    states, metrics_list = trained
    batch = {"image": np.tile(BATCH["image"], (6, 1, 1, 1))}
    state, metrics = jax.jit(kd.multi_step(make_step(), 6))(start(), None, batch)
    same(state.discriminator.variables, states[6].discriminator.variables, atol=1e-4)
    expected = np.mean([float(m["augment/p"]) for m in metrics_list[:6]])
    np.testing.assert_allclose(metrics["augment/p"], expected, rtol=1e-5)


def test_on_a_mesh(trained):
    states, _ = trained
    mesh = kd.make_mesh(4, 2)
    step = kd.compile_step(make_step(), mesh)
    state, batch = kd.initialize(start, mesh), kd.place_batch(BATCH, mesh)
    for _ in range(3):
        state, _ = step(state, None, batch)
    same(state.discriminator.variables, states[3].discriminator.variables, atol=1e-4)


def test_the_whole_pipeline_on_a_mesh():
    images = RNG.uniform(-1, 1, (8, 12, 10, 3)).astype(np.float32)
    mesh = kd.make_mesh(4, 2)
    run = jax.jit(partial(augment_pipe, settings=BGCFNC))
    whole, split = run(KEY, images, 0.9), run(KEY, kd.place_batch(images, mesh), 0.9)
    np.testing.assert_allclose(split, whole, atol=1e-5)


def test_the_sign_statistic_is_the_mean_sign_per_example():
    term = sign_statistic()
    assert term.weight == 0.0
    scores = jnp.array([[2.0, -1.0], [0.5, 3.0], [-1.0, -4.0]])
    value = term.fn(make_forward(0.0, real=scores, discriminate=lambda x: (x, {})))
    np.testing.assert_array_equal(value, [0.0, 1.0, -1.0])
    with pytest.raises(ValueError, match=r"Inputs\(real=None\)"):
        term.fn(make_forward(0.0, discriminate=lambda x: (x, {})))
    with pytest.raises(ValueError, match=r"networks\.discriminator is None"):
        term.fn(make_forward(0.0))


def test_presets():
    presets = {
        BLIT: "xflip rotate90 xint",
        GEOM: "scale rotate aniso xfrac",
        COLOR: "brightness contrast lumaflip hue saturation",
        FILTER: "imgfilter",
        NOISE: "noise",
        CUTOUT: "cutout",
    }
    for preset, names in presets.items():
        assert preset == Settings(**dict.fromkeys(names.split(), 1.0))
    parts = list(presets.values())
    for count, preset in ((2, BG), (3, BGC), (4, BGCF), (5, BGCFN), (6, BGCFNC)):
        assert preset == Settings(**dict.fromkeys(" ".join(parts[:count]).split(), 1.0))
