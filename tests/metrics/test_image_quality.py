"""PSNR and SSIM against scikit-image and hand-computed values."""

import numpy as np
import pytest
from skimage import metrics

from kd_jax.metrics import image_quality

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (3, 14, 17, 3))
Y = np.clip(X + RNG.normal(0, 0.3, X.shape), -1, 1)


def skimage_ssim(a, b, data_range=2.0, sigma=1.5):
    return metrics.structural_similarity(
        a, b, data_range=data_range, channel_axis=-1, gaussian_weights=True, sigma=sigma,
        use_sample_covariance=False,
    )  # fmt: skip


@pytest.mark.parametrize("data_range", [2.0, 1.0, 255.0])
def test_matches_scikit_image(data_range):
    pairs = list(zip(X, Y, strict=True))
    np.testing.assert_allclose(
        image_quality.ssim(X, Y, data_range=data_range),
        [skimage_ssim(a, b, data_range) for a, b in pairs],
        rtol=1e-9,
    )
    np.testing.assert_allclose(
        image_quality.psnr(X, Y, data_range=data_range),
        [metrics.peak_signal_noise_ratio(a, b, data_range=data_range) for a, b in pairs],
        rtol=1e-9,
    )


def test_another_window():
    # scikit-image truncates its window at 3.5 standard deviations.
    expected = [skimage_ssim(a, b, sigma=0.8) for a, b in zip(X, Y, strict=True)]
    np.testing.assert_allclose(image_quality.ssim(X, Y, sigma=0.8, window=7), expected, rtol=1e-9)


def test_images_are_processed_in_parts(monkeypatch):
    expected = image_quality.ssim(X, Y)
    monkeypatch.setattr(image_quality, "_IMAGES", 2)
    np.testing.assert_array_equal(image_quality.ssim(X, Y), expected)


def test_one_channel_in_single_precision():
    x, y = X[..., :1].astype(np.float32), Y[..., :1].astype(np.float32)
    expected = image_quality.ssim(x.astype(np.float64), y.astype(np.float64))
    np.testing.assert_array_equal(image_quality.ssim(x, y), expected)
    assert image_quality.psnr(x, y).dtype == np.float64


def test_by_hand():
    a = np.zeros((2, 11, 11, 1))
    b = a + np.array([0.2, 2.0])[:, None, None, None]
    np.testing.assert_allclose(image_quality.psnr(a, b), [20, 0], atol=1e-9)
    c1 = 4e-4
    np.testing.assert_allclose(
        image_quality.ssim(a, b), [c1 / (0.04 + c1), c1 / (4 + c1)], rtol=1e-6
    )


def test_equal_images():
    assert (image_quality.psnr(X, X) == np.inf).all()
    np.testing.assert_allclose(image_quality.ssim(X, X), 1, rtol=1e-12)


def test_errors():
    with pytest.raises(ValueError, match=r"\(3, 14, 17, 3\) and targets \(2, 14, 17, 3\)"):
        image_quality.psnr(X, Y[:2])
    with pytest.raises(ValueError, match=r"must be \[N, H, W, C\]"):
        image_quality.ssim(X[0], Y[0])
    for window in (10, 15):
        with pytest.raises(ValueError, match=f"window={window} with images of 14x17"):
            image_quality.ssim(X, Y, window=window)
    bad = Y.copy()
    bad[1, 2, 3, 0] = np.nan
    with pytest.raises(ValueError, match="image 1 of targets is not finite"):
        image_quality.psnr(X, bad)
