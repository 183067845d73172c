"""The random degradations that Real-ESRGAN is trained to undo (Wang et al. 2021, section 3).

Two rounds of blur, resizing, noise and JPEG compression, and a last filter with ringing. Ranges and
probabilities are those of the paper's published settings.

Images of random sizes have no static shape: they lie in the upper left corner of a canvas of the
largest size, and `size`, an int array `[height, width]`, says how much of it they fill.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.types import Array
from kd_jax.tasks.compression import jpeg

REACH = 10
"""Pixels from the middle of the largest blur kernel, 21x21, to its sides; the least are 3."""

AREA, BILINEAR, BICUBIC = range(3)
"""The filters of resizing."""

GAUSSIAN, GENERALISED, PLATEAU = range(3)
"""The shapes of blur kernels, each of them isotropic or not."""

_SHAPES = ((0.45, 0.25), (0.12, 0.03), (0.12, 0.03))  # isotropic, anisotropic
_SINC = 0.1  # the share of sinc kernels among those of a round
_LAST_SINC = 0.8
_GAUSSIAN_NOISE, _GREY_NOISE = 0.5, 0.4
_QUALITIES = (30, 95)
_FILTERS = (1 / 3,) * 3
_NUMBERS = 17  # of a round


class Round(NamedTuple):
    """The ranges of a round.

    Attributes:
      blur: the probability of a blur.
      sigma: the largest standard deviation of its kernel, in pixels; the least is 0.2.
      resize: the probabilities of larger, smaller and equal sizes.
      scales: the least and the largest scale.
      noise: the largest deviation of Gaussian noise, in levels of 255; the least is 1.
      poisson: the largest strength of Poisson noise, 1 for that of 256 photons in a white pixel;
        the least is 0.05.
    """

    blur: float
    sigma: float
    resize: tuple[float, float, float]
    scales: tuple[float, float]
    noise: float
    poisson: float


FIRST = Round(1.0, 3.0, (0.2, 0.7, 0.1), (0.15, 1.5), 30.0, 3.0)
SECOND = Round(0.8, 1.5, (0.3, 0.4, 0.3), (0.3, 1.2), 25.0, 2.5)


def real_degradation(key: Array, images: Array, factor: int) -> Array:
    """Divides height and width by `factor`, after the random degradations of Real-ESRGAN.

    Each image has its own draws. The differences to the published program: sizes are drawn for
    each image, not for each batch; images are continued by their edges, not by reflection; Poisson
    noise has 256 levels whatever the image, and its distribution is that of `poisson_deviate`; the
    qualities of JPEG are whole, and it rounds as libjpeg does. The images themselves, which are
    the targets of a training, are not sharpened.

    Args:
      key: a key.
      images: `[B, H, W, 3]` in [-1, 1].
      factor: a divisor of H and W.

    Returns:
      `[B, H / factor, W / factor, 3]` in [-1, 1], of 256 levels, float32.

    Raises:
      ValueError: the images do not have 3 channels, or the factor does not divide the sides.
    """
    if images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images [B, H, W, 3] are needed, not shape {images.shape}")
    if factor < 1 or any(n % factor for n in images.shape[1:3]):
        raise ValueError(
            f"images of shape {images.shape} cannot be made {factor} times smaller: their sides "
            f"must be multiples of {factor}"
        )
    keys = jax.random.split(key, len(images))
    return jax.vmap(lambda k, image: _degrade(k, image, factor))(keys, images)


def _degrade(key: Array, image: Array, factor: int) -> Array:
    """`real_degradation` of an image `[H, W, 3]`."""
    height, width = image.shape[:2]
    sides, small = (height, width), (height // factor, width // factor)
    # All numbers but the noise at once: each call of the generator adds to the compilation time.
    draw_key, *noise_keys = jax.random.split(key, 3)
    numbers = jax.random.uniform(draw_key, (3, _NUMBERS))
    x, size = (image.astype(jnp.float32) + 1) / 2, jnp.array(sides)
    x, size = _apply_round(noise_keys[0], numbers[0], x, size, sides, FIRST)
    x = _compress(numbers[0, -1], x, size)
    x, size = _apply_round(noise_keys[1], numbers[1], x, size, small, SECOND)
    # The last JPEG compression comes before the last resizing, or after it.
    order, ringing, kind, reach, cutoff, quality = numbers[2, :6]
    before = order < 0.5
    x = jnp.where(before, _compress(quality, x, size), x)
    last = jnp.array(small)
    x = _resize(x, size, last, small, _pick(kind, _FILTERS))
    kernel = sinc_kernel(_draw_reach(reach), jnp.pi * (1 + 2 * cutoff) / 3)
    x = jnp.where(ringing < _LAST_SINC, blur(x, last, kernel), x)
    x = jnp.where(before, x, _compress(quality, x, last))
    return (2 * jnp.round(255 * jnp.clip(x, 0, 1)) - 255) / 255


def _apply_round(
    key: Array, numbers: Array, x: Array, size: Array, sides: tuple[int, int], ranges: Round
) -> tuple[Array, Array]:
    """Blur, resizing to a random multiple of `sides`, and noise; the image and its size.

    Args:
      key: of the noise.
      numbers: uniform in [0, 1), `[_NUMBERS]`; the last one is that of the JPEG compression.
      x: `[H, W, C]` in [0, 1].
      size: of the image in it.
      sides: of the images that a scale of 1 results in.
      ranges: of the round.
    """
    blurs, way, scale, kind, *noise = numbers[:7]
    x = jnp.where(blurs < ranges.blur, blur(x, size, draw_kernel(numbers[7:-1], ranges.sigma)), x)
    least, largest = ranges.scales
    scales = jnp.stack([1 + (largest - 1) * scale, least + (1 - least) * scale, jnp.ones(())])
    scaled = scales[_pick(way, ranges.resize)] * jnp.array(sides)
    canvas = (int(largest * sides[0]), int(largest * sides[1]))
    outputs = jnp.clip(jnp.floor(scaled).astype(int), 1, jnp.array(canvas))
    x = _resize(x, size, outputs, canvas, _pick(kind, _FILTERS))
    return random_noise(key, noise, x, ranges), outputs


def _pick(number: Array, shares: Sequence[float]) -> Array:
    """The index of the share, of a sum of 1, that a uniform number in [0, 1) falls into."""
    return (number >= np.cumsum(shares[:-1])).sum()


def _continue(x: Array, size: Array, margin: int = 0) -> Array:
    """Repeats the edges of an image over the canvas, and over a margin around it."""
    rows, columns = (
        jnp.clip(jnp.arange(-margin, n + margin), 0, size[axis] - 1)
        for axis, n in enumerate(x.shape[:2])
    )
    return x[rows][:, columns]


def blur(x: Array, size: Array, kernel: Array) -> Array:
    """An image `[H, W, C]`, its edges repeated, convolved with `[21, 21]` by Fourier transforms."""
    padded = _continue(x, size, REACH)
    sides = padded.shape[:2]
    spectrum = jnp.fft.rfft2(padded, axes=(0, 1)) * jnp.fft.rfft2(kernel, sides)[..., None]
    result: Array = jnp.fft.irfft2(spectrum, sides, axes=(0, 1))
    return result[2 * REACH :, 2 * REACH :]


def _grid(reach: Array) -> tuple[Array, Array, Array]:
    """Offsets from the middle, `[21, 1]` and `[1, 21]`, and `[21, 21]`, 1 within the reach."""
    offsets = jnp.arange(-REACH, REACH + 1.0)
    down, across = offsets[:, None], offsets[None]
    near = jnp.maximum(jnp.abs(down), jnp.abs(across)) <= reach
    return down, across, near.astype(jnp.float32)


def _draw_reach(number: Array) -> Array:
    return 3 + jnp.floor((REACH - 2) * number)


def draw_kernel(numbers: Array, sigma: float) -> Array:
    """A random blur kernel `[21, 21]` of sum 1.

    Args:
      numbers: uniform in [0, 1), `[9]`.
      sigma: the largest standard deviation, in pixels.
    """
    sinc, size, kind, across, along, angle, power, large, cutoff = numbers
    reach, index = _draw_reach(size), _pick(kind, [share for row in _SHAPES for share in row])
    shape, anisotropic = index // 2, index % 2 == 1
    sigmas = 0.2 + (sigma - 0.2) * jnp.stack([across, jnp.where(anisotropic, along, across)])
    # Half of the powers are below 1: those of plateaus, from 1 on, are then equal to 1.
    least, largest = (jnp.array(limits)[shape] for limits in ((1, 0.5, 1), (1, 4, 2)))
    limit = jnp.where(large < 0.5, least, largest)
    bell = bell_kernel(reach, sigmas, 2 * jnp.pi * angle, shape, 1 + (limit - 1) * power)
    lowest = jnp.where(reach < 6, jnp.pi / 3, jnp.pi / 5)
    return jnp.where(sinc < _SINC, sinc_kernel(reach, lowest + (jnp.pi - lowest) * cutoff), bell)


def bell_kernel(reach: Array, sigmas: Array, angle: Array, shape: Array, power: Array) -> Array:
    """A kernel `[21, 21]` of sum 1 with a maximum in the middle; section 3.1.

    With q the square of the distance in units of the deviations, it is exp(-q^power / 2), a
    Gaussian if the power is 1, or 1 / (1 + q^power) with a plateau.

    Args:
      reach: the number of pixels from the middle to the sides, at most 10.
      sigmas: `[2]`, the deviations along both axes, in pixels.
      angle: from the columns' axis to the first of them, in radians.
      shape: `GAUSSIAN`, `GENERALISED` or `PLATEAU`.
      power: the exponent; positive.
    """
    down, across, inside = _grid(reach)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    q = ((cosine * across + sine * down) / sigmas[0]) ** 2
    q = (q + ((cosine * down - sine * across) / sigmas[1]) ** 2) ** power
    kernel = inside * jnp.where(shape == PLATEAU, 1 / (1 + q), jnp.exp(-q / 2))
    return kernel / kernel.sum()


def sinc_kernel(reach: Array, cutoff: Array) -> Array:
    """The ideal low-pass filter of two dimensions, `[21, 21]`, truncated, of sum 1; section 3.3.

    Args:
      reach: the number of pixels from the middle to the sides, at most 10.
      cutoff: the highest angular frequency, up to pi.
    """
    down, across, inside = _grid(reach)
    radius = jnp.sqrt(down**2 + across**2)
    # Bessel's integral: J1(x) is the mean of cos(t - x sin t) over half a period. 48 points are
    # exact in float32 for x up to 44.
    t = (jnp.arange(48).reshape(1, 1, -1) + 0.5) * (jnp.pi / 48)
    bessel = jnp.cos(t - cutoff * radius[..., None] * jnp.sin(t)).mean(axis=-1)
    middle = cutoff**2 / (4 * jnp.pi)
    kernel = cutoff * bessel / (2 * jnp.pi * jnp.maximum(radius, 1))
    kernel = inside * jnp.where(radius == 0, middle, kernel)
    return kernel / kernel.sum()


def _resize(x: Array, size: Array, outputs: Array, canvas: tuple[int, int], kind: Array) -> Array:
    """An image of `size` as one of the size `outputs`, on a canvas."""
    rows, columns = (
        resampling_weights(size[axis], outputs[axis], (canvas[axis], x.shape[axis]), kind)
        for axis in (0, 1)
    )
    x = jnp.einsum("hwc,vw->hvc", x, columns, precision="highest")
    return jnp.einsum("hvc,uh->uvc", x, rows, precision="highest")


def resampling_weights(inputs: Array, outputs: Array, shape: tuple[int, int], kind: Array) -> Array:
    """PyTorch's weights for `inputs` to `outputs` pixels, without antialiasing.

    The numbers of pixels may be traced. Rows behind the outputs repeat the last one.

    Args:
      inputs: the number of input pixels, at most `shape[1]`.
      outputs: the number of output pixels.
      shape: of the result.
      kind: `AREA`, the mean of all input pixels that an output pixel touches; `BILINEAR`; or
        `BICUBIC`, Keys 1981, eq. 4, with a = -3/4.

    Returns:
      Float32 of `shape`; each row has the sum 1.
    """
    u = jnp.minimum(jnp.arange(shape[0]), outputs - 1)[:, None]
    columns = jnp.arange(shape[1])[None]
    first, last = u * inputs // outputs, -(-(u + 1) * inputs // outputs)
    area = ((columns >= first) & (columns < last)) / (last - first)
    position = (u + 0.5) * inputs / outputs - 0.5
    base = jnp.floor(position)
    t = position - base
    near_by = jnp.arange(-1, 3)[None]
    taps = jnp.clip(base.astype(int) + near_by, 0, inputs - 1)
    distance = jnp.abs(t - near_by)
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    bicubic = jnp.where(distance < 1, near, far)
    weights = jnp.where(kind == BILINEAR, jnp.maximum(1 - distance, 0), bicubic)
    smooth = (weights[..., None] * (taps[..., None] == columns[None])).sum(axis=1)
    return jnp.where(kind == AREA, area, smooth)


def random_noise(key: Array, numbers: Sequence[Array], x: Array, ranges: Round) -> Array:
    """Gaussian or Poisson noise, of each channel or the same in all; clipped to [0, 1].

    Args:
      key: of the noise.
      numbers: uniform in [0, 1): for the distribution, its channels and its strength.
      x: `[H, W, 3]` in [0, 1].
      ranges: of the round.
    """
    kind, colour, size = numbers
    grey = colour < _GREY_NOISE
    normal = jax.random.normal(key, x.shape)
    normal = jnp.where(grey, normal[..., :1], normal)
    gaussian = (1 + (ranges.noise - 1) * size) / 255 * normal
    brightness = (x * jnp.array([[[0.299, 0.587, 0.114]]])).sum(axis=2, keepdims=True)
    levels = jnp.round(255 * jnp.clip(jnp.where(grey, brightness, x), 0, 1)) * (256 / 255)
    strength = 0.05 + (ranges.poisson - 0.05) * size
    poisson = strength * (poisson_deviate(normal, levels) - levels) / 256
    return jnp.clip(x + jnp.where(kind < _GAUSSIAN_NOISE, gaussian, poisson), 0, 1)


def poisson_deviate(normal: Array, mean: Array) -> Array:
    """Poisson deviates from standard normal ones: Cornish & Fisher 1938, to the second order.

    Mean, variance and skewness are right from a mean of about 5 on; the deviates are not whole.
    `jax.random.poisson` is exact, and takes a hundred times as long.
    """
    return jnp.maximum(mean + jnp.sqrt(mean) * normal + (normal**2 - 1) / 6, 0)


def _compress(number: Array, x: Array, size: Array) -> Array:
    """JPEG of the quality of a uniform number in [0, 1)."""
    lowest, highest = _QUALITIES
    quality = jnp.floor(lowest + (highest + 1 - lowest) * number).astype(int)
    continued = 2 * jnp.clip(_continue(x, size), 0, 1) - 1
    return (jpeg(continued[None], quality[None])[0] + 1) / 2
