"""Degradations against Pillow, scikit-image and SciPy, and what masks are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import morphology

from kd_jax import degrade

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def photos(*shape):
    return jnp.asarray(ndimage.gaussian_filter(RNG.uniform(-2, 2, shape), (0, 1, 1, 0)), "float32")


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("way", ["downsampled", "upsampled"])
def test_sizes_are_changed_as_pillow_does(way, factor):
    images = photos(2, 24, 36, 3)
    found = getattr(degrade, way)(images, factor)
    height, width = (n * factor if way == "upsampled" else n // factor for n in (24, 36))
    for index in np.ndindex(2, 3):
        channel = Image.fromarray(np.asarray(images[index[0], :, :, index[1]]))
        theirs = np.asarray(channel.resize((width, height), Image.Resampling.BICUBIC))
        ours = found[index[0], :, :, index[1]]
        np.testing.assert_allclose(ours, np.clip(theirs, -1, 1), atol=1e-5)


def test_bytes_are_changed_as_pillow_does():
    """Of 8 bits Pillow rounds after each axis: a level at most, and a half as a rule."""
    pixels = np.uint8(RNG.integers(0, 256, (32, 32, 3)))
    theirs = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC)
    ours = degrade.downsampled(jnp.asarray(pixels[None] / 127.5 - 1, "float32"), 4)[0]
    levels = np.abs(np.rint((ours + 1) * 127.5) - np.asarray(theirs, np.float32))
    assert levels.max() <= 1
    assert levels.mean() < 0.3


def test_sides_that_are_no_multiples():
    with pytest.raises(ValueError, match=r"\(1, 10, 12, 3\) cannot be made 4 times smaller"):
        degrade.downsampled(jnp.zeros((1, 10, 12, 3)), 4)


def test_noise_has_the_deviation_that_was_asked_for():
    grey = jnp.zeros((4, 64, 64, 3))
    noise = degrade.noisy(KEY, grey, 0.1)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.003)
    assert float(jnp.abs(degrade.noisy(KEY, grey + 0.99, 1.0)).max()) == 1.0


def draw_box(key, shape, smallest=0.25, largest=0.5):
    return degrade.box_mask(key, shape, smallest, largest)


@pytest.mark.parametrize("draw", [draw_box, degrade.free_form_mask])
def test_masks_are_drawn_for_each_image_anew(draw):
    shape = (5, 24, 40, 3)
    mask = np.asarray(jax.jit(draw, static_argnums=1)(KEY, shape))
    assert mask.shape == (5, 24, 40, 1)
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert len({image.tobytes() for image in mask}) == 5
    np.testing.assert_array_equal(mask, draw(KEY, shape))
    assert (mask != draw(jax.random.key(1), shape)).any()


@pytest.mark.parametrize(("smallest", "largest"), [(0.25, 0.5), (0.001, 0.001), (1.0, 1.0)])
def test_boxes_are_boxes_of_the_sizes_asked_for(smallest, largest):
    mask = np.asarray(draw_box(KEY, (200, 20, 40, 1), smallest, largest))[..., 0]
    for image in mask:
        rows, columns = image.any(axis=1), image.any(axis=0)
        assert image.sum() == rows.sum() * columns.sum()
        for side, count in ((rows, 20), (columns, 40)):
            assert max(1, round(smallest * count)) <= side.sum() <= max(1, round(largest * count))
            assert np.abs(np.diff(np.pad(side.astype(int), 1))).sum() == 2  # one piece
    for axis in (1, 2):  # every place is drawn: the borders are not spared
        assert mask.any(axis=(0, axis)).all()


def test_strokes_are_as_wide_and_many_as_asked_for():
    """One stroke is one piece; without its pixels near the border it is gone when thinned."""
    shape = (40, 64, 64, 3)
    mask = np.asarray(degrade.free_form_mask(KEY, shape, strokes=1, thickness=0.1))[..., 0]
    for image in mask:
        assert ndimage.label(image, np.ones((3, 3)))[1] == 1
        assert 0 < image.mean() < 0.3
    # A straight piece of thickness 0.1: between half and one and a half of 6.4 pixels across.
    straight = degrade.free_form_mask(KEY, shape, strokes=1, turns=1, thickness=0.1, length=0.5)
    for image in np.asarray(straight)[..., 0] > 0:
        inside = ndimage.distance_transform_edt(np.pad(image, 1))
        assert 3.2 / 2 - 1 <= inside.max() <= 9.6 / 2 + 1
        assert morphology.skeletonize(image).sum() >= 1
    many = degrade.free_form_mask(KEY, shape, strokes=8, thickness=0.1)
    assert float(many.mean()) > 3 * mask.mean()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: degrade.box_mask(KEY, (1, 8, 8, 3), 0.5, 0.2), "0.5 to 0.2 of an image"),
        (lambda: degrade.box_mask(KEY, (1, 8, 8, 3), 0.0, 0.2), "0 < smallest"),
        (lambda: degrade.box_mask(KEY, (8, 8, 3), 0.1, 0.2), r"\[B, H, W, C\] is needed"),
        (lambda: degrade.free_form_mask(KEY, (1, 8, 8, 3), strokes=0), "strokes=0"),
        (lambda: degrade.free_form_mask(KEY, (1, 0, 8, 3)), r"\(1, 0, 8, 3\)"),
    ],
)
def test_masks_that_cannot_be_drawn(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_sepia():
    """By the published matrix, of black, white, red, and a colour."""
    given = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0.2, 0.4, 0.6]], np.float64)
    expected = [
        [0, 0, 0],
        [1, 1, 0.937],
        [0.393, 0.349, 0.272],
        [0.0786 + 0.3076 + 0.1134, 0.0698 + 0.2744 + 0.1008, 0.0544 + 0.2136 + 0.0786],
    ]
    found = degrade.sepia(jnp.asarray(2 * given - 1, jnp.float32).reshape(1, 2, 2, 3))
    np.testing.assert_allclose((found.reshape(-1, 3) + 1) / 2, expected, atol=1e-6)
    with pytest.raises(ValueError, match="sepia is of 3 channels"):
        degrade.sepia(jnp.zeros((1, 4, 4, 1)))


def test_edges_are_those_of_scipy():
    images = np.asarray(photos(2, 20, 24, 3), np.float64)
    soft = ndimage.gaussian_filter(images.mean(axis=3), (0, 1, 1), mode="nearest", truncate=3)
    across, down = (
        np.stack([ndimage.sobel(image, axis, mode="nearest") / 8 for image in soft])
        for axis in (1, 0)
    )
    expected = np.clip(8 * np.hypot(across, down) - 1, -1, 1)
    np.testing.assert_allclose(degrade.edges(jnp.asarray(images))[..., 0], expected, atol=1e-5)
    assert float(degrade.edges(jnp.full((1, 9, 9, 3), 0.3)).max()) == -1.0


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_gaussian_without_a_width(sigma):
    with pytest.raises(ValueError, match=f"sigma={sigma} of a Gaussian is not positive"):
        degrade.edges(jnp.zeros((1, 8, 8, 1)), sigma=sigma)
