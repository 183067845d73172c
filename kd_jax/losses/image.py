"""Image losses beyond single pixels: structure, texture, scales, smoothness.

The teacher's images and features are constants: no gradient reaches them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.checks import (
    magnitude,
    per_example_mean,
    per_example_sum,
    same_channels,
    same_shape,
)
from kd_jax.core.types import Array
from kd_jax.losses.perceptual import directions


def ssim(
    image: Array,
    other: Array,
    *,
    window: int = 11,
    sigma: float = 1.5,
    data_range: float = 2.0,
    padding: str = "SAME",
) -> Array:
    """The structural similarity of images, averaged over positions and channels.

    Wang et al. 2004, eq. 13, with a Gaussian window, K1 = 0.01 and K2 = 0.03.

    Args:
      image: `[B, H, W, C]`.
      other: `[B, H, W, C]`.
      window: side of the window, odd.
      sigma: its standard deviation, in pixels.
      data_range: the largest difference that two pixels can have; 2 for images in [-1, 1].
      padding: "SAME" pads the images with zeros, as most loss implementations do; "VALID" uses
        whole windows only, as in the paper.

    Returns:
      `[B]`, in [-1, 1]; 1 for equal images.

    Raises:
      ValueError: an argument is None, the shapes differ or are not `[B, H, W, C]`, the window is
        even, or with "VALID" larger than the images.
    """
    image, other = same_shape(image=image, other=other)
    _check_images(image=image)
    weights = gaussian_window(window, sigma).astype(image.dtype)
    if padding == "VALID" and window > min(image.shape[1:3]):
        raise ValueError(f"window={window} is larger than the images: image has {image.shape}")
    channels = image.shape[3]

    def local_mean(x: Array) -> Array:
        for shape in ((window, 1), (1, window)):
            kernel = jnp.tile(weights.reshape(*shape, 1, 1), (1, 1, 1, channels))
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=channels,
                precision=jax.lax.Precision.HIGHEST,
            )
        return x

    mean_a, mean_b = local_mean(image), local_mean(other)
    variance_a = local_mean(image**2) - mean_a**2
    variance_b = local_mean(other**2) - mean_b**2
    covariance = local_mean(image * other) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    return per_example_mean(similarity)


def gaussian_window(window: int, sigma: float) -> Array:
    """Samples of a Gaussian centred in the window, `[window]`, normalised to sum 1.

    Raises:
      ValueError: the window is not odd.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window={window} is not an odd number of pixels")
    weights = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * sigma**2))
    return jnp.asarray(weights / weights.sum())


def structural(
    student: Array,
    teacher: Array,
    *,
    window: int = 11,
    sigma: float = 1.5,
    data_range: float = 2.0,
    padding: str = "SAME",
) -> Array:
    """The structural dissimilarity, `1 - SSIM`.

    Ren et al. 2021 (OMGD), section 3.2, with weight 10. The settings are those of `ssim`.

    Args:
      student: `[B, H, W, C]` image.
      teacher: `[B, H, W, C]` image.
      window: see `ssim`.
      sigma: see `ssim`.
      data_range: see `ssim`.
      padding: see `ssim`.

    Returns:
      `[B]`, in [0, 2].

    Raises:
      ValueError: as in `ssim`.
    """
    student, teacher = same_shape(student=student, teacher=teacher)
    teacher = jax.lax.stop_gradient(teacher)
    return 1 - ssim(
        student, teacher, window=window, sigma=sigma, data_range=data_range, padding=padding
    )


def gram_matrix(feature: Array) -> Array:
    """The inner products of a feature's channels, divided by H W C: `[B, C, C]`.

    Johnson et al. 2016, eq. 3.

    Args:
      feature: `[B, H, W, C]`.

    Raises:
      ValueError: the argument is None or not `[B, H, W, C]`.
    """
    (feature,) = _check_images(feature=feature)
    size = feature.shape[1] * feature.shape[2] * feature.shape[3]
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("bhwc,bhwd->bcd", feature, feature, precision=precision) / size


def style(student: Array, teacher: Array) -> Array:
    """The mean absolute difference of the features' Gram matrices.

    Ren et al. 2021 (OMGD), section 3.2, on features of an image classifier, summed over layers
    with weight 1e4. Heights and widths may differ.

    Args:
      student: `[B, H, W, C]` feature of the student's image.
      teacher: `[B, H', W', C]` feature of the teacher's image.

    Returns:
      `[B]`, >= 0, in squared units of the features.

    Raises:
      ValueError: an argument is None, a feature is not 4-D, or batch or channels differ.
    """
    student, teacher = same_channels(student=student, teacher=teacher)
    teacher_gram = jax.lax.stop_gradient(gram_matrix(teacher))
    return per_example_mean(magnitude(gram_matrix(student) - teacher_gram))


def total_variation(image: Array) -> Array:
    """The sum of the absolute differences between vertical and horizontal neighbour pixels.

    Rudin et al. 1992, in the anisotropic form; Ren et al. 2021 (OMGD) with weight 1e-5.

    Args:
      image: `[B, H, W, C]`.

    Returns:
      `[B]`, >= 0; a sum, so it grows with the image size.

    Raises:
      ValueError: the argument is None or not `[B, H, W, C]`.
    """
    (image,) = _check_images(image=image)
    down = per_example_sum(magnitude(image[:, 1:] - image[:, :-1]))
    return down + per_example_sum(magnitude(image[:, :, 1:] - image[:, :, :-1]))


def multi_scale(student: Array, teacher: Array, scales: int = 3) -> Array:
    """The mean over scales of `mean |S - T| + mean (S - T)^2`, each scale half as large.

    Belousov 2021 (MobileStyleGAN), eq. 4, where the images of all scales come from the generator;
    here the smaller ones are 2x2 averages.

    Args:
      student: `[B, H, W, C]` image, H and W divisible by `2 ** (scales - 1)`.
      teacher: `[B, H, W, C]` image.
      scales: the number of scales, including the full size.

    Returns:
      `[B]`, >= 0.

    Raises:
      ValueError: an argument is None, the shapes differ or are not `[B, H, W, C]`, a side is not
        divisible by `2 ** (scales - 1)`, or `scales` is not positive.
    """
    student, teacher = same_shape(student=student, teacher=teacher)
    _check_halvable(student, scales - 1)
    difference = student - jax.lax.stop_gradient(teacher)
    total = _l1_and_l2(difference)
    for _ in range(scales - 1):
        difference = _blocks(difference).mean(axis=-2)
        total = total + _l1_and_l2(difference)
    return total / scales


def wavelet(student: Array, teacher: Array) -> Array:
    """`mean |d| + mean d^2` of the differences d of the images' Haar coefficients.

    Belousov 2021 (MobileStyleGAN), eq. 4: one level of the orthonormal transform.

    Args:
      student: `[B, H, W, C]` image, H and W even.
      teacher: `[B, H, W, C]` image.

    Returns:
      `[B]`, >= 0; the squared part equals that of the pixels.

    Raises:
      ValueError: an argument is None, the shapes differ or are not `[B, H, W, C]`, or a side is
        odd.
    """
    student, teacher = same_shape(student=student, teacher=teacher)
    return _l1_and_l2(haar(student) - jax.lax.stop_gradient(haar(teacher)))


def haar(image: Array) -> Array:
    """A single level of the orthonormal Haar transform: `[B, H / 2, W / 2, 4, C]`.

    The four bands are sums and differences of 2x2 pixels, divided by 2: low-low, then the
    differences along rows, along columns, and along both (Mallat 1989).

    Args:
      image: `[B, H, W, C]`, H and W even.

    Raises:
      ValueError: the argument is None or not `[B, H, W, C]`, or a side is odd.
    """
    (image,) = _check_images(image=image)
    _check_halvable(image, 1)
    a, b, c, d = jnp.moveaxis(_blocks(image), -2, 0)  # a b above c d
    bands = (a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d)
    return jnp.stack(bands, axis=-2) / 2


def masked_l1(student: Array, teacher: Array, mask: Array) -> Array:
    """The mean absolute difference inside a mask, `mean |M S - M T|`.

    Liu et al. 2021 (CAGC), with weight 3, and weight 3 for `perceptual` on the masked images. The
    mask is the content that a parser segments in the teacher's images. As in the authors' code the
    mean is over all H W C elements, masked or not, so a small mask gives a small loss.

    Args:
      student: `[B, H, W, C]` image.
      teacher: `[B, H, W, C]` image.
      mask: `[B, H, W, 1]` or `[B, H, W, C]` in [0, 1], or boolean; a constant.

    Returns:
      `[B]`, >= 0, in units of the images; `response.l1` where the mask is 1 everywhere.

    Raises:
      ValueError: an argument is None, the images' shapes differ or are not `[B, H, W, C]`, or the
        mask has neither of the shapes above.
    """
    student, teacher = _check_images(student=student, teacher=teacher)
    (mask,) = same_shape(mask=mask)
    if mask.shape not in (student.shape, (*student.shape[:3], 1)):
        raise ValueError(
            f"student has shape {student.shape} but mask has {mask.shape}; "
            f"it must have that shape or {(*student.shape[:3], 1)}"
        )
    difference = student - jax.lax.stop_gradient(teacher)
    return per_example_mean(magnitude(jax.lax.stop_gradient(mask) * difference))


def perceptual(
    student_features: Mapping[str, Array],
    teacher_features: Mapping[str, Array],
    weights: Mapping[str, float] | None = None,
) -> Array:
    """The squared distance between unit feature vectors, summed over layers of a network.

    `sum_l w_l mean_hw ||u_S - u_T||^2`, where u is a layer's feature at one position divided by its
    norm over channels. Zhang et al. 2018 (LPIPS), eq. 1, with one weight for all channels of a
    layer; as in the authors' code it multiplies the squared distance, so it is
    the equation's `w_l^2`.
    Weight 3 in Liu et al. 2021 (CAGC) and in Xu et al. 2022 (StyleKD).

    Args:
      student_features: features `[B, H, W, C]` of the student's images by layer, such as the taps
        of an image network; H, W and C may differ between layers.
      teacher_features: those of the teacher's images.
      weights: the weight of each layer to compare; None for all layers with weight 1.

    Returns:
      `[B]`, in [0, 4 sum_l w_l], or half of that if no feature is negative. Invariant to the scale
      of a feature. A feature that is 0 in all channels has no direction and gets no gradient.

    Raises:
      ValueError: an argument is None, there is no layer, or a layer (named in the message) is
        missing on either side, has shapes that differ or are not `[B, H, W, C]`, or another batch
        size than the first one.
    """
    if weights is None:
        weights = dict.fromkeys((*(student_features or ()), *(teacher_features or ())), 1.0)
    sides = {"student_features": student_features, "teacher_features": teacher_features}
    values = []
    for layer, student, teacher in directions(weights, sides):
        squares = (student - jax.lax.stop_gradient(teacher)) ** 2
        values.append(weights[layer] * squares.sum(axis=3).mean(axis=(1, 2)))
    return sum(values[1:], values[0])


def _l1_and_l2(difference: Array) -> Array:
    return per_example_mean(magnitude(difference)) + per_example_mean(difference**2)


def _blocks(image: Array) -> Array:
    """The pixels of each 2x2 block: `[B, H / 2, W / 2, 4, C]`."""
    batch, height, width, channels = image.shape
    blocks = image.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return blocks.swapaxes(2, 3).reshape(batch, height // 2, width // 2, 4, channels)


def _check_images(**images: Array) -> tuple[Array, ...]:
    arrays = same_shape(**images)
    for name, image in zip(images, arrays, strict=True):
        if image.ndim != 4:
            raise ValueError(f"{name} has shape {image.shape}; [B, H, W, C] is needed")
    return arrays


def _check_halvable(image: Array, times: int) -> None:
    _check_images(image=image)
    if times < 0:
        raise ValueError(f"scales={times + 1} is not a positive number")
    if any(side % 2**times for side in image.shape[1:3]):
        raise ValueError(
            f"images of shape {image.shape} cannot be halved {times} times: "
            f"height and width must be multiples of {2**times}"
        )
