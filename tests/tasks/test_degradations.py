"""Degradations against Pillow, scikit-image and SciPy, and properties of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import morphology

from kd_jax.tasks import degradations

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def photos(*shape):
    return jnp.asarray(ndimage.gaussian_filter(RNG.uniform(-2, 2, shape), (0, 1, 1, 0)), "float32")


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("name", ["downsample", "upsample"])
def test_resampling_equals_pillow_s(name, factor):
    images = photos(2, 24, 36, 3)
    resampled = getattr(degradations, name)(images, factor)
    height, width = (n * factor if name == "upsample" else n // factor for n in (24, 36))
    for index in np.ndindex(2, 3):
        channel = Image.fromarray(np.asarray(images[index[0], :, :, index[1]]))
        theirs = np.asarray(channel.resize((width, height), Image.Resampling.BICUBIC))
        ours = resampled[index[0], :, :, index[1]]
        np.testing.assert_allclose(ours, np.clip(theirs, -1, 1), atol=1e-5)


def test_downsampling_of_bytes_is_close_to_pillow_s():
    """Pillow rounds 8-bit images after each axis: errors of at most a level, usually half."""
    pixels = np.uint8(RNG.integers(0, 256, (32, 32, 3)))
    theirs = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC)
    ours = degradations.downsample(jnp.asarray(pixels[None] / 127.5 - 1, "float32"), 4)[0]
    levels = np.abs(np.rint((ours + 1) * 127.5) - np.asarray(theirs, np.float32))
    assert levels.max() <= 1
    assert levels.mean() < 0.3


def test_sides_that_are_not_multiples_of_the_factor_raise():
    with pytest.raises(ValueError, match=r"\(1, 10, 12, 3\) cannot be made 4 times smaller"):
        degradations.downsample(jnp.zeros((1, 10, 12, 3)), 4)


def test_noise_has_the_requested_deviation():
    grey = jnp.zeros((4, 64, 64, 3))
    noise = degradations.add_noise(KEY, grey, 0.1)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.003)
    assert float(jnp.abs(degradations.add_noise(KEY, grey + 0.99, 1.0)).max()) == 1.0


def draw_box(key, shape, smallest=0.25, largest=0.5):
    return degradations.box_mask(key, shape, smallest, largest)


@pytest.mark.parametrize("draw", [draw_box, degradations.free_form_mask])
def test_masks_are_drawn_independently_for_each_image(draw):
    shape = (5, 24, 40, 3)
    mask = np.asarray(jax.jit(draw, static_argnums=1)(KEY, shape))
    assert mask.shape == (5, 24, 40, 1)
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert len({image.tobytes() for image in mask}) == 5
    np.testing.assert_array_equal(mask, draw(KEY, shape))
    assert (mask != draw(jax.random.key(1), shape)).any()


@pytest.mark.parametrize(("smallest", "largest"), [(0.25, 0.5), (0.001, 0.001), (1.0, 1.0)])
def test_boxes_are_rectangles_of_the_requested_sizes(smallest, largest):
    mask = np.asarray(draw_box(KEY, (200, 20, 40, 1), smallest, largest))[..., 0]
    for image in mask:
        rows, columns = image.any(axis=1), image.any(axis=0)
        assert image.sum() == rows.sum() * columns.sum()
        for side, count in ((rows, 20), (columns, 40)):
            assert max(1, round(smallest * count)) <= side.sum() <= max(1, round(largest * count))
            assert np.abs(np.diff(np.pad(side.astype(int), 1))).sum() == 2  # contiguous
    for axis in (1, 2):  # all positions are covered, including the borders
        assert mask.any(axis=(0, axis)).all()


def test_strokes_have_the_requested_width_and_number():
    """A stroke is connected, and its width is bounded by the thickness."""
    shape = (40, 64, 64, 3)
    mask = np.asarray(degradations.free_form_mask(KEY, shape, strokes=1, thickness=0.1))[..., 0]
    for image in mask:
        assert ndimage.label(image, np.ones((3, 3)))[1] == 1
        assert 0 < image.mean() < 0.3
    # A straight segment of thickness 0.1 is between half and one and a half of 6.4 pixels wide.
    straight = degradations.free_form_mask(
        KEY, shape, strokes=1, turns=1, thickness=0.1, length=0.5
    )
    for image in np.asarray(straight)[..., 0] > 0:
        inside = ndimage.distance_transform_edt(np.pad(image, 1))
        assert 3.2 / 2 - 1 <= inside.max() <= 9.6 / 2 + 1
        assert morphology.skeletonize(image).sum() >= 1
    many = degradations.free_form_mask(KEY, shape, strokes=8, thickness=0.1)
    assert float(many.mean()) > 3 * mask.mean()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: degradations.box_mask(KEY, (1, 8, 8, 3), 0.5, 0.2), "0.5 to 0.2 of an image"),
        (lambda: degradations.box_mask(KEY, (1, 8, 8, 3), 0.0, 0.2), "0 < smallest"),
        (
            lambda: degradations.box_mask(KEY, (8, 8, 3), 0.1, 0.2),
            r"\(8, 8, 3\): expected \[B, H, W, C\]",
        ),
        (lambda: degradations.free_form_mask(KEY, (1, 8, 8, 3), strokes=0), "strokes=0"),
        (lambda: degradations.free_form_mask(KEY, (1, 0, 8, 3)), r"\(1, 0, 8, 3\)"),
    ],
)
def test_invalid_mask_arguments_raise(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_sepia():
    """The published matrix, applied to black, white, red, and another colour."""
    colours = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0.2, 0.4, 0.6]], np.float64)
    expected = [
        [0, 0, 0],
        [1, 1, 0.937],
        [0.393, 0.349, 0.272],
        [0.0786 + 0.3076 + 0.1134, 0.0698 + 0.2744 + 0.1008, 0.0544 + 0.2136 + 0.0786],
    ]
    images = degradations.sepia(jnp.asarray(2 * colours - 1, jnp.float32).reshape(1, 2, 2, 3))
    np.testing.assert_allclose((images.reshape(-1, 3) + 1) / 2, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"sepia needs .*\(1, 4, 4, 1\)"):
        degradations.sepia(jnp.zeros((1, 4, 4, 1)))


def test_edges_equal_scipy_s():
    images = np.asarray(photos(2, 20, 24, 3), np.float64)
    soft = ndimage.gaussian_filter(images.mean(axis=3), (0, 1, 1), mode="nearest", truncate=3)
    across, down = (
        np.stack([ndimage.sobel(image, axis, mode="nearest") / 8 for image in soft])
        for axis in (1, 0)
    )
    expected = np.clip(8 * np.hypot(across, down) - 1, -1, 1)
    np.testing.assert_allclose(degradations.edges(jnp.asarray(images))[..., 0], expected, atol=1e-5)
    assert float(degradations.edges(jnp.full((1, 9, 9, 3), 0.3)).max()) == -1.0


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_sigma_that_is_not_positive_raises(sigma):
    with pytest.raises(ValueError, match=f"sigma={sigma} of a Gaussian is not positive"):
        degradations.edges(jnp.zeros((1, 8, 8, 1)), sigma=sigma)
