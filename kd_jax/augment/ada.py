"""The pipeline of ADA: Karras et al. 2020, "Training GANs with limited data", appendix B.

Five stages, in this order: geometry, color, filtering, noise and cutout. Every transformation is
applied to each image independently, with the probability `multiplier * p` and a random strength.
All random values are in `Draws`; `augment` is a pure function of them, affine in the images.

    images = augment_pipe(key, images, p, BGC)

Images are `[B, H, W, C]` in [-1, 1]. Constants that the paper does not specify are those of the
authors' code.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import ops
from kd_jax.augment.diff import check_images
from kd_jax.core.types import Array


class Settings(NamedTuple):
    """The probabilities and strengths of the transformations; by default the paper's strengths.

    Attributes:
      xflip, rotate90, xint: multipliers of p for horizontal flips, rotations by multiples of 90
        degrees and translations by whole pixels; like all multipliers >= 0, and 0 to disable the
        transformation.
      scale, rotate, aniso, xfrac: multipliers for isotropic scaling, rotation, anisotropic scaling
        and fractional translation.
      brightness, contrast, lumaflip, hue, saturation: multipliers for the color transformations.
      imgfilter: the multiplier for the amplification of each frequency band.
      noise, cutout: multipliers for additive noise and for a grey rectangle.
      xint_max: the largest translation by whole pixels, as a fraction of the side.
      scale_std: the standard deviation of the scale's logarithm to base 2.
      rotate_max: the largest angle, as a fraction of 180 degrees.
      aniso_std: the standard deviation of the anisotropic scale's logarithm to base 2.
      xfrac_std: the standard deviation of a translation, as a fraction of the side.
      brightness_std: the standard deviation of the added brightness.
      contrast_std: the standard deviation of the contrast's logarithm to base 2.
      hue_max: the largest rotation of the hue, as a fraction of 180 degrees.
      saturation_std: the standard deviation of the saturation's logarithm to base 2.
      imgfilter_bands: multipliers of `imgfilter` for each band, the lowest first.
      imgfilter_std: the standard deviation of the amplification's logarithm to base 2.
      noise_std: the scale of the noise's standard deviation, which is half-normal.
      cutout_size: the side of the rectangle, as a fraction of the image's side.
    """

    xflip: float = 0.0
    rotate90: float = 0.0
    xint: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0
    aniso: float = 0.0
    xfrac: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    lumaflip: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    imgfilter: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0
    xint_max: float = 0.125
    scale_std: float = 0.2
    rotate_max: float = 1.0
    aniso_std: float = 0.2
    xfrac_std: float = 0.125
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1.0
    saturation_std: float = 1.0
    imgfilter_bands: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    imgfilter_std: float = 1.0
    noise_std: float = 0.1
    cutout_size: float = 0.5


_BLIT = ("xflip", "rotate90", "xint")
_GEOM = ("scale", "rotate", "aniso", "xfrac")
_COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
_ALL = (*_BLIT, *_GEOM, *_COLOR, "imgfilter", "noise", "cutout")


def _with(settings: Settings, *names: str) -> Settings:
    values: dict[str, Any] = dict.fromkeys(names, 1.0)
    return settings._replace(**values)


BLIT = _with(Settings(), *_BLIT)
GEOM = _with(Settings(), *_GEOM)
COLOR = _with(Settings(), *_COLOR)
FILTER = _with(Settings(), "imgfilter")
NOISE = _with(Settings(), "noise")
CUTOUT = _with(Settings(), "cutout")
BG = _with(BLIT, *_GEOM)
BGC = _with(BG, *_COLOR)  # the paper's choice
BGCF = _with(BGC, "imgfilter")
BGCFN = _with(BGCF, "noise")
BGCFNC = _with(BGCFN, "cutout")


class Draws(NamedTuple):
    """All random values, by the name of the transformation; `[B]` unless stated otherwise.

    Attributes:
      gates: uniform in [0, 1): a transformation is applied where the gate is below its probability;
        `[B, 4]` for `imgfilter`.
      uniform: uniform in [0, 1); `[B, 2]` (x and y) for `xint` and `cutout`.
      normal: standard normal; `[B, 2]` for `xfrac`, `[B, 4]` for `imgfilter`.
      pixels: standard normal `[B, H, W, C]`, the noise.
    """

    gates: Mapping[str, Array]
    uniform: Mapping[str, Array]
    normal: Mapping[str, Array]
    pixels: Array


Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Sample: TypeAlias = Callable[[Array, tuple[int, ...]], Array]

BANDS = 4
# There are two rotations, before and after anisotropic scaling.
_GATES: Shapes = {
    **dict.fromkeys((*_ALL, "rotate_after"), ()),
    "imgfilter": (BANDS,),
}
_UNIFORM: Shapes = {
    **dict.fromkeys(("xflip", "rotate90", "rotate", "rotate_after", "lumaflip", "hue"), ()),
    **dict.fromkeys(("xint", "cutout"), (2,)),
}
_NORMAL: Shapes = {
    **dict.fromkeys(("scale", "aniso", "brightness", "contrast", "saturation", "noise"), ()),
    "xfrac": (2,),
    "imgfilter": (BANDS,),
}


def draw(key: Array, shape: tuple[int, ...]) -> Draws:
    """Draws the random values for images of this shape, `[B, H, W, C]`."""
    keys = jax.random.split(key, 4)

    def draw_all(sample: Sample, key: Array, shapes: Shapes) -> dict[str, Array]:
        # A single draw: every call of `sample` adds to the compilation time.
        counts = [math.prod(rest) for rest in shapes.values()]
        numbers = sample(key, (shape[0], sum(counts)))
        parts = jnp.split(numbers, np.cumsum(counts)[:-1], axis=1)
        return {
            name: part.reshape(shape[0], *rest)
            for part, (name, rest) in zip(parts, shapes.items(), strict=True)
        }

    return Draws(
        draw_all(jax.random.uniform, keys[0], _GATES),
        draw_all(jax.random.uniform, keys[1], _UNIFORM),
        draw_all(jax.random.normal, keys[2], _NORMAL),
        jax.random.normal(keys[3], shape),
    )


def augment_pipe(
    key: Array, images: Array, p: float | Array = 1.0, settings: Settings = BGC
) -> Array:
    """Applies the pipeline to images. Karras et al. 2020, appendix B.

    Memory: the geometric transformations sample from images of 36 times as many pixels, since each
    image is padded by reflection on every side and then upsampled by 2.

    Args:
      key: the random key.
      images: `[B, H, W, C]` in [-1, 1], with 1 or 3 channels for color transformations.
      p: the probability, in [0, 1]; may be traced.
      settings: the probabilities and strengths of the transformations.

    Returns:
      `[B, H, W, C]` of the images' dtype; may leave [-1, 1].

    Raises:
      ValueError: `images` is not floating-point `[B, H, W, C]` or has another number of channels,
        p (a Python number) is outside [0, 1], or a setting is negative.
    """
    check_images(images)
    return augment(draw(key, images.shape), images, p, settings)


def augment(draws: Draws, images: Array, p: float | Array, settings: Settings) -> Array:
    """`augment_pipe` with given random values; the other arguments are the same."""
    _check(settings, p)
    gate = partial(_gate, draws, p, settings)
    result = images
    if _any(settings, *_BLIT, *_GEOM):
        result = warp(result, inverse_transforms(draws, p, settings, images.shape[1:3]))
    if _any(settings, *_COLOR):
        result = recolor(result, *color_transforms(draws, p, settings))
    if _any(settings, "imgfilter"):
        result = amplify(result, band_gains(draws, p, settings))
    if _any(settings, "noise"):
        deviation = gate("noise", jnp.abs(draws.normal["noise"]) * settings.noise_std, 0.0)
        result = result + deviation[:, None, None, None] * draws.pixels
    if _any(settings, "cutout"):
        size = gate("cutout", jnp.full((images.shape[0],), settings.cutout_size), 0.0)
        result = cut_out(result, draws.uniform["cutout"], size)
    return result.astype(images.dtype)


# Geometry.


def inverse_transforms(
    draws: Draws, p: float | Array, settings: Settings, size: tuple[int, ...]
) -> Array:
    """The inverse of the paper's product G of all geometric transformations.

    Args:
      draws: the random values.
      p: the probability.
      settings: the probabilities and strengths of the transformations.
      size: `(height, width)`.

    Returns:
      `[B, 3, 3]`, from a pixel to the origin of its color; both are `(x, y, 1)` in pixels relative
      to the center.
    """
    height, width = size
    uniform, normal = draws.uniform, draws.normal
    gate = partial(_gate, draws, p, settings)
    sides = jnp.array([width, height], jnp.float32)[None]

    flip = gate("xflip", 1 - 2 * jnp.floor(2 * uniform["xflip"]), 1.0)
    turns = gate("rotate90", jnp.floor(4 * uniform["rotate90"]), 0.0)
    steps = gate("xint", jnp.round((2 * uniform["xint"] - 1) * settings.xint_max * sides), 0.0)

    scale = gate("scale", jnp.exp2(normal["scale"] * settings.scale_std), 1.0)
    stretch = gate("aniso", jnp.exp2(normal["aniso"] * settings.aniso_std), 1.0)
    # An image is rotated at least once with the probability `rotate * p`.
    p_rotation = 1 - jnp.sqrt(jnp.clip(1 - settings.rotate * p, 0, 1))
    max_angle = np.pi * settings.rotate_max
    before, after = (
        _where(draws.gates[name], p_rotation, (2 * uniform[name] - 1) * max_angle, 0.0)
        for name in ("rotate", "rotate_after")
    )
    drift = gate("xfrac", normal["xfrac"] * settings.xfrac_std * sides, 0.0)

    inverses = (
        _scaling(flip, jnp.ones_like(flip)),
        _rotation(np.pi / 2 * turns),
        _translation(-steps),
        _scaling(1 / scale, 1 / scale),
        _rotation(before),
        _scaling(1 / stretch, stretch),
        _rotation(after),
        _translation(-drift),
    )
    return reduce(_product, inverses)


# The low-pass filter of the wavelet sym6 (Daubechies 1992, table 6.3), of sum 1.
_SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
]) / math.sqrt(2)  # fmt: skip


def warp(images: Array, inverses: Array) -> Array:
    """Geometric transformation of images: pixel x of the result has the color at `inverse x`.

    Each image is padded by one reflection on every side, and by grey (0) beyond, upsampled by 2,
    sampled bilinearly and downsampled. With the orthogonal wavelet filter, this is lossless for the
    identity. The paper pads images only as far as necessary, which static shapes do not allow.

    Args:
      images: `[B, H, W, C]`.
      inverses: `[B, 3, 3]`, for positions `(x, y, 1)` in pixels from the center, y downwards.

    Returns:
      `[B, H, W, C]`.
    """
    height, width = images.shape[1:3]
    pads = ((0, 0), (height - 1, height - 1), (width - 1, width - 1), (0, 0))
    source = ops.upsample2d(jnp.pad(images, pads, mode="reflect"), _SYM6)
    # Pixel 2 n of `source` is pixel n of the padded image. The sampled image has a margin for the
    # reach of the downsampling filter.
    reach = len(_SYM6) // 2
    y, x = (
        jnp.arange(-reach, 2 * side + reach, dtype=jnp.float32) / 2 - (side - 1) / 2
        for side in (height, width)
    )
    m = inverses[:, :, :, None, None]
    x, y = (
        m[:, row, 0] * x[None, None, :] + m[:, row, 1] * y[None, :, None] + m[:, row, 2]
        for row in (0, 1)
    )
    sampled = _bilinear(source, 2 * y + 3 * (height - 1), 2 * x + 3 * (width - 1))
    return ops.downsample2d(sampled, _SYM6, padding=-reach, flip=True)


def _bilinear(images: Array, y: Array, x: Array) -> Array:
    """Colors `[B, h, w, C]` at the positions `[B, h, w]`, in pixels; 0 outside of the images."""
    rows, columns = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)

    @jax.vmap
    def colors(image: Array, row: Array, column: Array) -> Array:
        at = image.at[row, column]
        return at.get(mode="fill", fill_value=0, wrap_negative_indices=False)

    total = jnp.zeros((), images.dtype)
    for row in (rows, rows + 1):
        for column in (columns, columns + 1):
            weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
            total = total + weight[..., None].astype(images.dtype) * colors(images, row, column)
    return total


def _translation(shift: Array) -> Array:
    one, zero = jnp.ones_like(shift[:, 0]), jnp.zeros_like(shift[:, 0])
    return _matrix([[one, zero, shift[:, 0]], [zero, one, shift[:, 1]], [zero, zero, one]])


def _scaling(x: Array, y: Array) -> Array:
    one, zero = jnp.ones_like(x), jnp.zeros_like(x)
    return _matrix([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def _rotation(angle: Array) -> Array:
    """Rotation by `angle` from x towards y."""
    c, s, one, zero = jnp.cos(angle), jnp.sin(angle), jnp.ones_like(angle), jnp.zeros_like(angle)
    return _matrix([[c, -s, zero], [s, c, zero], [zero, zero, one]])


def _matrix(rows: list[list[Array]]) -> Array:
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


# Colors.


def color_transforms(draws: Draws, p: float | Array, settings: Settings) -> tuple[Array, Array]:
    """The color transformations: a brightness, `[B]`, and a matrix, `[B, 3, 3]`, per image.

    All of the paper's transformations after the brightness are functions of the luma axis and
    commute: the matrix is `c (f P + s (cos(a) (I - P) + sin(a) K))`, where P is the projection onto
    the axis, K the cross product with it, c the contrast, f the sign of the luma, s the saturation
    and a the angle of the hue.

    Args:
      draws: the random values.
      p: the probability.
      settings: the probabilities and strengths of the transformations.

    Returns:
      The brightness to add, then the matrix to multiply the colors with.
    """
    uniform, normal = draws.uniform, draws.normal
    gate = partial(_gate, draws, p, settings)
    brightness = gate("brightness", normal["brightness"] * settings.brightness_std, 0.0)
    contrast = gate("contrast", jnp.exp2(normal["contrast"] * settings.contrast_std), 1.0)
    sign = gate("lumaflip", 1 - 2 * jnp.floor(2 * uniform["lumaflip"]), 1.0)
    angle = gate("hue", (2 * uniform["hue"] - 1) * np.pi * settings.hue_max, 0.0)
    saturation = gate("saturation", jnp.exp2(normal["saturation"] * settings.saturation_std), 1.0)

    luma = jnp.full((1, 3, 3), 1 / 3)
    across = jnp.array([[[0, -1, 1], [1, 0, -1], [-1, 1, 0]]]) / math.sqrt(3)
    sign, angle, saturation, contrast = (
        value[:, None, None] for value in (sign, angle, saturation, contrast)
    )
    chroma = jnp.cos(angle) * (jnp.eye(3)[None] - luma) + jnp.sin(angle) * across
    return brightness, contrast * (sign * luma + saturation * chroma)


def recolor(images: Array, brightness: Array, matrices: Array) -> Array:
    """Computes `matrix (color + brightness)` for every pixel.

    Args:
      images: `[B, H, W, 3]`, or `[B, H, W, 1]`, which is treated as three equal channels and
        results in the mean of three.
      brightness: `[B]`.
      matrices: `[B, 3, 3]`.

    Raises:
      ValueError: the images do not have 1 or 3 channels.
    """
    channels = images.shape[3]
    if channels not in (1, 3):
        raise ValueError(f"color transformations need 1 or 3 channels, got images {images.shape}")
    if channels == 1:
        matrices = matrices.sum(axis=2, keepdims=True).mean(axis=1, keepdims=True)
    images = images + brightness[:, None, None, None].astype(images.dtype)
    matrices = matrices.astype(images.dtype)
    return jnp.einsum("bij,bhwj->bhwi", matrices, images, precision=jax.lax.Precision.HIGHEST)


# Filtering.

_POWER = np.array([10, 1, 1, 1]) / 13  # the expected power of each band in natural images


def _band_filters() -> np.ndarray:
    """`[4, 43]`: zero-phase filters, the lowest band first, whose sum is a unit impulse."""
    root = math.sqrt(3)
    sym2 = np.array([1 + root, 3 + root, 3 - root, 1 - root]) / (4 * math.sqrt(2))
    low = np.convolve(sym2, sym2[::-1]) / 2
    high = low * (-1.0) ** np.arange(-3, 4)

    def spread(taps: np.ndarray, factor: int) -> np.ndarray:
        spaced = np.zeros((len(taps) - 1) * factor + 1)
        spaced[::factor] = taps
        return spaced

    first, second, third = low, spread(low, 2), spread(low, 4)
    lowest = np.convolve(np.convolve(first, second), third)
    filters = [
        lowest,
        np.convolve(np.convolve(first, second), spread(high, 4)),
        np.convolve(first, spread(high, 2)),
        high,
    ]
    return np.stack([np.pad(taps, (len(lowest) - len(taps)) // 2) for taps in filters])


BAND_FILTERS = _band_filters().astype(np.float32)


def band_gains(draws: Draws, p: float | Array, settings: Settings) -> Array:
    """The gain of each frequency band, `[B, 4]`.

    Bands are amplified one after another; after each, all gains are scaled to preserve the expected
    power.

    Args:
      draws: the random values.
      p: the probability.
      settings: the probabilities and strengths of the transformations.
    """
    gains = jnp.ones((1, BANDS))
    for band, multiplier in enumerate(settings.imgfilter_bands):
        gain = jnp.exp2(draws.normal["imgfilter"][:, band] * settings.imgfilter_std)
        probability = settings.imgfilter * multiplier * p
        gain = _where(draws.gates["imgfilter"][:, band], probability, gain, 1.0)
        power = 1 + _POWER[band] * (gain**2 - 1)
        band_gain = jnp.where(jnp.arange(BANDS)[None] == band, gain[:, None], 1.0)
        gains = gains * band_gain / jnp.sqrt(power)[:, None]
    return gains


def amplify(images: Array, gains: Array) -> Array:
    """Multiplies each frequency band by its gain, with reflection at the borders.

    Args:
      images: `[B, H, W, C]`.
      gains: `[B, 4]`, the lowest band first. The bands are octaves, except that the lowest band is
        everything below 1/8 of the highest frequency; they are separated along each axis by the
        wavelet sym2.

    Returns:
      `[B, H, W, C]`.
    """
    taps = jnp.matmul(gains, BAND_FILTERS, precision=jax.lax.Precision.HIGHEST)
    # Matrix products and their derivatives are fast on all devices; convolutions with a filter per
    # image are not.
    length = taps.shape[1]
    zero_ended = jnp.pad(taps, ((0, 0), (0, 1))).astype(images.dtype)
    for axis, product in ((1, "biv,bvwc->biwc"), (2, "bjv,bhvc->bhjc")):
        pads = [(length // 2,) * 2 if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, pads, mode="reflect")
        tap = np.arange(padded.shape[axis])[None] - np.arange(images.shape[axis])[:, None]
        matrices = zero_ended[:, np.where((tap >= 0) & (tap < length), tap, length)]
        images = jnp.einsum(product, matrices, padded, precision=jax.lax.Precision.HIGHEST)
    return images


# Corruptions.


def cut_out(images: Array, center: Array, size: Array) -> Array:
    """Sets a rectangle of each image to 0.

    Args:
      images: `[B, H, W, C]`.
      center: `[B, 2]`, x and y as fractions of the width and the height.
      size: `[B]`, the sides of the rectangle as a fraction of the image's sides.
    """
    reach = size[:, None] / 2

    def mask(axis: int, middle: Array) -> Array:
        side = images.shape[axis]
        positions = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side
        return jnp.abs(positions[None] - middle[:, None]) < reach

    hole = mask(1, center[:, 1])[:, :, None, None] & mask(2, center[:, 0])[:, None, :, None]
    return jnp.where(hole, 0, images)


def _gate(
    draws: Draws,
    p: float | Array,
    settings: Settings,
    name: str,
    value: Array,
    otherwise: float,
) -> Array:
    """`value` for the images that the transformation is applied to, `otherwise` for the others."""
    return _where(draws.gates[name], getattr(settings, name) * p, value, otherwise)


def _where(gate: Array, probability: float | Array, value: Array, otherwise: float) -> Array:
    """`value` where the gate of the image is below the probability, else `otherwise`."""
    return jnp.where(
        (gate < probability).reshape(gate.shape + (1,) * (value.ndim - 1)), value, otherwise
    )


def _any(settings: Settings, *names: str) -> bool:
    return any(getattr(settings, name) > 0 for name in names)


def _check(settings: Settings, p: float | Array) -> None:
    for name, value in settings._asdict().items():
        if min(value) < 0 if isinstance(value, tuple) else value < 0:
            raise ValueError(f"augmentation: {name}={value} is negative")
    if isinstance(p, (int, float)) and not 0 <= p <= 1:
        raise ValueError(f"augmentation: the probability p={p} is not in [0, 1]")
