"""Image losses by hand, and written out in loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses import image

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.uniform(-1, 1, size=(2, 2, 8, 6, 3)).astype(np.float32)


def ssim_in_loops(a, b, window, sigma, data_range, padding):
    """Wang et al.'s equation 13 at every position, in float64."""
    half = window // 2
    offsets = np.arange(window) - half
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    if padding == "SAME":
        a, b = (np.pad(x, ((half, half), (half, half))) for x in (a, b))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(a.shape[0] - window + 1):
        for j in range(a.shape[1] - window + 1):
            x, y = (z[i : i + window, j : j + window].astype(np.float64) for z in (a, b))
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            cov = (weights * (x - mx) * (y - my)).sum()
            values.append(
                (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            )
    return np.mean(values)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("window", "sigma", "data_range"), [(5, 1.5, 2.0), (3, 0.7, 1.0)])
def test_ssim_in_loops(window, sigma, data_range, padding):
    settings = {"window": window, "sigma": sigma, "data_range": data_range, "padding": padding}
    expected = [
        np.mean([ssim_in_loops(a[..., c], b[..., c], **settings) for c in range(3)])
        for a, b in zip(STUDENT, TEACHER, strict=True)
    ]
    np.testing.assert_allclose(image.ssim(STUDENT, TEACHER, **settings), expected, rtol=1e-4)
    np.testing.assert_allclose(
        image.structural(STUDENT, TEACHER, **settings), 1 - np.array(expected), rtol=1e-4
    )


def test_ssim_of_constants():
    a, b = jnp.full((1, 16, 16, 1), 0.5), jnp.full((1, 16, 16, 1), -0.5)
    expected = (-0.5 + 4e-4) / (0.5 + 4e-4)
    np.testing.assert_allclose(image.ssim(a, b, padding="VALID"), [expected], rtol=1e-4)
    np.testing.assert_allclose(image.ssim(a, a), [1], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 4}, "window=4 is not an odd"),
        ({"padding": "VALID"}, r"window=11 is larger than the images: image has \(2, 8, 6, 3\)"),
    ],
)
def test_windows_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        image.ssim(STUDENT, TEACHER, **settings)


def test_style_by_hand():
    student = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32).reshape(1, 1, 2, 2)
    grams = np.array([[1 + 9, 2 + 12], [2 + 12, 4 + 16]]) / 4
    np.testing.assert_allclose(image.gram_matrix(student)[0], grams)
    np.testing.assert_allclose(image.style(student, 0 * student), [grams.mean()])
    np.testing.assert_allclose(image.style(student, student[:, :, ::-1]), [0], atol=1e-7)
    assert image.style(STUDENT, TEACHER[:, :4]).shape == (2,)


def test_total_variation_by_hand():
    x = np.array([[1.0, 3.0, 3.0], [0.0, 5.0, -1.0]], np.float32).reshape(1, 2, 3, 1)
    np.testing.assert_allclose(image.total_variation(x), [1 + 2 + 4 + 2 + 0 + 5 + 6])


def test_haar_keeps_energy_and_names_its_bands():
    bands = image.haar(STUDENT)
    np.testing.assert_allclose(np.sum(bands**2), np.sum(STUDENT**2), rtol=1e-5)
    x, y = np.meshgrid(np.arange(4.0), np.arange(4.0))
    for picture, expected in (
        (np.ones((4, 4)), [2, 0, 0, 0]),
        (np.where(x % 2, -1, 1), [0, 2, 0, 0]),  # changes along a row
        (np.where(y % 2, -1, 1), [0, 0, 2, 0]),
        (np.where((x + y) % 2, -1, 1), [0, 0, 0, 2]),
    ):
        found = image.haar(picture.astype(np.float32).reshape(1, 4, 4, 1))
        np.testing.assert_allclose(found[0, :, :, :, 0], np.broadcast_to(expected, (2, 2, 4)))


def test_wavelet_by_hand():
    difference = np.array([[4.0, 0.0], [0.0, 0.0]], np.float32).reshape(1, 2, 2, 1)
    # All four coefficients are 2.
    np.testing.assert_allclose(image.wavelet(difference, 0 * difference), [2 + 4])


def test_scales_by_hand():
    difference = np.zeros((1, 4, 4, 1), np.float32)
    difference[0, 0, 0, 0], difference[0, 0, 1, 0] = 4.0, -4.0
    fine, coarse = 8 / 16 + 32 / 16, 0.0  # the two cancel in the square of four
    value = image.multi_scale(difference, 0 * difference, scales=2)
    np.testing.assert_allclose(value, [(fine + coarse) / 2])
    np.testing.assert_allclose(image.multi_scale(difference, 0 * difference, scales=1), [fine])


@pytest.mark.parametrize("scales", [0, 3])
def test_scales_that_do_not_fit_are_refused(scales):
    with pytest.raises(ValueError, match=r"scales=0|cannot be halved 2 times"):
        image.multi_scale(STUDENT, TEACHER, scales=scales)


def test_odd_images_have_no_wavelets():
    with pytest.raises(ValueError, match="must be multiples of 2"):
        image.wavelet(STUDENT[:, :7], TEACHER[:, :7])
