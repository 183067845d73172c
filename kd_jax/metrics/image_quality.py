"""Full-reference image quality (PSNR, SSIM), in float64."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_IMAGES = 32  # per batch


def psnr(images: ArrayLike, targets: ArrayLike, *, data_range: float = 2.0) -> NDArray[np.float64]:
    """The peak signal-to-noise ratio, `10 log10(data_range^2 / mean (x - y)^2)`, in dB.

    Args:
      images: `[N, H, W, C]`.
      targets: `[N, H, W, C]`.
      data_range: the largest difference that two pixels can have; 2 for images in [-1, 1].

    Returns:
      `[N]`, higher for closer images; inf for equal ones.

    Raises:
      ValueError: the shapes differ or are not `[N, H, W, C]`, or a pixel is not finite.
    """
    x, y = _check_pair(images, targets)
    errors = [
        np.square(np.subtract(a, b, dtype=np.float64)).mean() for a, b in zip(x, y, strict=True)
    ]
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(data_range**2 / np.array(errors))


def ssim(
    images: ArrayLike,
    targets: ArrayLike,
    *,
    window: int = 11,
    sigma: float = 1.5,
    data_range: float = 2.0,
) -> NDArray[np.float64]:
    """The structural similarity, averaged over positions and channels.

    Wang et al. 2004, eq. 13, with a Gaussian window, whole windows only, K1 = 0.01, K2 = 0.03;
    equals scikit-image's with gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
    `kd_jax.losses.image.ssim` is the differentiable version.

    Args:
      images: `[N, H, W, C]`.
      targets: `[N, H, W, C]`.
      window: side of the window, odd.
      sigma: its standard deviation, in pixels.
      data_range: the largest difference that two pixels can have; 2 for images in [-1, 1].

    Returns:
      `[N]`, in [-1, 1]; 1 for equal images.

    Raises:
      ValueError: as in `psnr`, or the window is even or larger than the images.
    """
    x, y = _check_pair(images, targets)
    if window < 1 or window % 2 == 0 or window > min(x.shape[1:3]):
        raise ValueError(
            f"window={window} with images of {x.shape[1]}x{x.shape[2]}; "
            "an odd number no larger than the images is needed"
        )
    weights = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * sigma**2))
    weights /= weights.sum()

    def local_mean(z: NDArray[np.float64]) -> NDArray[np.float64]:
        for axis in (1, 2):
            windows = np.lib.stride_tricks.sliding_window_view(z, window, axis)
            z = windows @ weights
        return z

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarities = np.empty(len(x))
    for start in range(0, len(x), _IMAGES):
        part = slice(start, start + _IMAGES)
        a, b = x[part].astype(np.float64), y[part].astype(np.float64)
        mean_a, mean_b = local_mean(a), local_mean(b)
        variances = local_mean(a**2 + b**2) - mean_a**2 - mean_b**2
        covariance = local_mean(a * b) - mean_a * mean_b
        similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
            (mean_a**2 + mean_b**2 + c1) * (variances + c2)
        )
        similarities[part] = similarity.mean(axis=(1, 2, 3))
    return similarities


def _check_pair(images: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(images), np.asarray(targets)
    if x.shape != y.shape or x.ndim != 4 or not x.size:
        raise ValueError(
            f"images have shape {x.shape} and targets {y.shape}; both must be [N, H, W, C]"
        )
    for name, values in (("images", x), ("targets", y)):
        finite = np.isfinite(values).all(axis=(1, 2, 3))
        if not finite.all():
            raise ValueError(f"image {np.argmin(finite)} of {name} is not finite")
    return x, y
