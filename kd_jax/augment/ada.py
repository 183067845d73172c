"""ADA's pipeline: Karras et al. 2020, "Training GANs with limited data", appendix B.

Five stages, in this order: geometry, color, filtering, noise and cutout. Every transformation is
applied to an image with the probability `multiplier * p`, its strength drawn anew. What is random
comes from outside, as `Draws`: the rest is a pure function of it, affine in the images, and what
becomes of an image depends on no other.

    images = augment_pipe(key, images, p, BGC)

Images are `[B, H, W, C]` in [-1, 1]. The numbers that the paper leaves open are those of its
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
from kd_jax.types import Array


class Settings(NamedTuple):
    """Which transformations there are, and how strong. The strengths are the paper's.

    Attributes:
      xflip, rotate90, xint: multipliers of p for mirroring, quarter turns and shifts by whole
        pixels; like all multipliers >= 0, and 0 where there is no such thing.
      scale, rotate, aniso, xfrac: for scaling, turning, stretching and shifts by any amount.
      brightness, contrast, lumaflip, hue, saturation: for the colors.
      imgfilter: for amplifying a band of frequencies, each on its own.
      noise, cutout: for noise and for a grey rectangle.
      xint_max: the largest whole shift, as a part of the side.
      scale_std: the deviation of the scale's logarithm to base 2.
      rotate_max: the largest angle, as a part of a half turn.
      aniso_std: the deviation of the stretching's logarithm to base 2.
      xfrac_std: the deviation of a shift, as a part of the side.
      brightness_std: the deviation of what is added.
      contrast_std: the deviation of the contrast's logarithm to base 2.
      hue_max: the largest turn of the hue, as a part of a half turn.
      saturation_std: the deviation of the saturation's logarithm to base 2.
      imgfilter_bands: multipliers of `imgfilter` for each band, the lowest first.
      imgfilter_std: the deviation of the amplification's logarithm to base 2.
      noise_std: the deviation of the noise's deviation.
      cutout_size: the rectangle's side, as a part of the image's.
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
BGC = _with(BG, *_COLOR)  # what the paper settles on
BGCF = _with(BGC, "imgfilter")
BGCFN = _with(BGCF, "noise")
BGCFNC = _with(BGCFN, "cutout")


class Draws(NamedTuple):
    """All that is random, by the transformation's name; `[B]` unless another shape is given.

    Attributes:
      gates: uniform in [0, 1): a transformation is applied where the gate is below its probability;
        of `imgfilter` `[B, 4]`.
      uniform: uniform in [0, 1), of `xint` and `cutout` (x and y) `[B, 2]`.
      normal: standard normal, of `xfrac` `[B, 2]`, of `imgfilter` `[B, 4]`.
      pixels: standard normal `[B, H, W, C]`, the noise.
    """

    gates: Mapping[str, Array]
    uniform: Mapping[str, Array]
    normal: Mapping[str, Array]
    pixels: Array


Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Sample: TypeAlias = Callable[[Array, tuple[int, ...]], Array]

BANDS = 4
# Of turning there are two, before stretching and after.
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
    """What is random for images of this shape, `[B, H, W, C]`."""
    keys = jax.random.split(key, 4)

    def each(sample: Sample, key: Array, shapes: Shapes) -> dict[str, Array]:
        # One draw of many numbers, since each draw is a program of its own to compile.
        counts = [math.prod(rest) for rest in shapes.values()]
        numbers = sample(key, (shape[0], sum(counts)))
        parts = jnp.split(numbers, np.cumsum(counts)[:-1], axis=1)
        return {
            name: part.reshape(shape[0], *rest)
            for part, (name, rest) in zip(parts, shapes.items(), strict=True)
        }

    return Draws(
        each(jax.random.uniform, keys[0], _GATES),
        each(jax.random.uniform, keys[1], _UNIFORM),
        each(jax.random.normal, keys[2], _NORMAL),
        jax.random.normal(keys[3], shape),
    )


def augment_pipe(
    key: Array, images: Array, p: float | Array = 1.0, settings: Settings = BGC
) -> Array:
    """Images through the pipeline. Karras et al. 2020, appendix B.

    Memory: geometry samples from images of 36 times as many pixels, since each is first continued
    by its mirror images on every side and then made twice as large.

    Args:
      key: of every draw.
      images: `[B, H, W, C]` in [-1, 1], with 1 or 3 channels where colors change.
      p: the probability, in [0, 1]; may be traced.
      settings: which transformations there are.

    Returns:
      `[B, H, W, C]` of the images' dtype; may leave [-1, 1].

    Raises:
      ValueError: these are no images, they have no colors to change, p (a Python number) is outside
        [0, 1], or a setting is negative.
    """
    check_images(images)
    return augment(draw(key, images.shape), images, p, settings)


def augment(draws: Draws, images: Array, p: float | Array, settings: Settings) -> Array:
    """`augment_pipe` of what has been drawn already; the other arguments are the same."""
    _check(settings, p)
    applied = partial(_applied, draws, p, settings)
    result = images
    if _any(settings, *_BLIT, *_GEOM):
        result = warp(result, inverse_transforms(draws, p, settings, images.shape[1:3]))
    if _any(settings, *_COLOR):
        result = recolor(result, *color_transforms(draws, p, settings))
    if _any(settings, "imgfilter"):
        result = amplify(result, band_gains(draws, p, settings))
    if _any(settings, "noise"):
        deviation = applied("noise", jnp.abs(draws.normal["noise"]) * settings.noise_std, 0.0)
        result = result + deviation[:, None, None, None] * draws.pixels
    if _any(settings, "cutout"):
        size = applied("cutout", jnp.full((images.shape[0],), settings.cutout_size), 0.0)
        result = cut_out(result, draws.uniform["cutout"], size)
    return result.astype(images.dtype)


# Geometry.


def inverse_transforms(
    draws: Draws, p: float | Array, settings: Settings, size: tuple[int, ...]
) -> Array:
    """`[B, 3, 3]`: where a pixel's color comes from, both places `(x, y, 1)` from the center.

    The paper's product G of all geometric transformations, inverted.

    Args:
      draws: what is random.
      p: the probability.
      settings: which transformations there are.
      size: `(height, width)`.
    """
    height, width = size
    uniform, normal = draws.uniform, draws.normal
    applied = partial(_applied, draws, p, settings)
    sides = jnp.array([width, height], jnp.float32)[None]

    flip = applied("xflip", 1 - 2 * jnp.floor(2 * uniform["xflip"]), 1.0)
    turns = applied("rotate90", jnp.floor(4 * uniform["rotate90"]), 0.0)
    steps = applied("xint", jnp.round((2 * uniform["xint"] - 1) * settings.xint_max * sides), 0.0)

    scale = applied("scale", jnp.exp2(normal["scale"] * settings.scale_std), 1.0)
    stretch = applied("aniso", jnp.exp2(normal["aniso"] * settings.aniso_std), 1.0)
    # So that an image is turned at all, before or after, with the probability `rotate * p`.
    turned = 1 - jnp.sqrt(jnp.clip(1 - settings.rotate * p, 0, 1))
    most = np.pi * settings.rotate_max
    before, after = (
        _where(draws.gates[name], turned, (2 * uniform[name] - 1) * most, 0.0)
        for name in ("rotate", "rotate_after")
    )
    drift = applied("xfrac", normal["xfrac"] * settings.xfrac_std * sides, 0.0)

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
    """Images whose pixel at x has the color that was at `inverse x`.

    Each is continued by its mirror images, once on every side, and grey (0) beyond; made twice as
    large; sampled bilinearly; and made small again. With the wavelet's orthogonal filter nothing is
    lost by that where nothing moves. The paper continues images just as far as they are needed,
    which no program of static shapes can.

    Args:
      images: `[B, H, W, C]`.
      inverses: `[B, 3, 3]`, of places `(x, y, 1)` in pixels from the center, y downwards.

    Returns:
      `[B, H, W, C]`.
    """
    height, width = images.shape[1:3]
    pads = ((0, 0), (height - 1, height - 1), (width - 1, width - 1), (0, 0))
    source = ops.upsample2d(jnp.pad(images, pads, mode="reflect"), _SYM6)
    # Pixel 2 n of `source` is pixel n of what it was made of. The result is larger than the images
    # by what the last filter reaches beyond them.
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
    """Colors `[B, h, w, C]` at the places `[B, h, w]`, counted in pixels; 0 outside."""
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
    """From x towards y."""
    c, s, one, zero = jnp.cos(angle), jnp.sin(angle), jnp.ones_like(angle), jnp.zeros_like(angle)
    return _matrix([[c, -s, zero], [s, c, zero], [zero, zero, one]])


def _matrix(rows: list[list[Array]]) -> Array:
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


# Colors.


def color_transforms(draws: Draws, p: float | Array, settings: Settings) -> tuple[Array, Array]:
    """What to add to each image, `[B]`, and what to multiply colors with then, `[B, 3, 3]`.

    After the brightness all the paper's transformations are functions of the luma axis, and
    commute: the matrix is `c (f P + s (cos(a) (I - P) + sin(a) K))`, where P projects on the axis,
    K is the vector product with it, c is the contrast, f the luma's sign, s the saturation and a
    the hue's angle.

    Args:
      draws: what is random.
      p: the probability.
      settings: which transformations there are.
    """
    uniform, normal = draws.uniform, draws.normal
    applied = partial(_applied, draws, p, settings)
    brightness = applied("brightness", normal["brightness"] * settings.brightness_std, 0.0)
    contrast = applied("contrast", jnp.exp2(normal["contrast"] * settings.contrast_std), 1.0)
    sign = applied("lumaflip", 1 - 2 * jnp.floor(2 * uniform["lumaflip"]), 1.0)
    angle = applied("hue", (2 * uniform["hue"] - 1) * np.pi * settings.hue_max, 0.0)
    saturation = applied(
        "saturation", jnp.exp2(normal["saturation"] * settings.saturation_std), 1.0
    )

    luma = jnp.full((1, 3, 3), 1 / 3)
    across = jnp.array([[[0, -1, 1], [1, 0, -1], [-1, 1, 0]]]) / math.sqrt(3)
    sign, angle, saturation, contrast = (
        value[:, None, None] for value in (sign, angle, saturation, contrast)
    )
    chroma = jnp.cos(angle) * (jnp.eye(3)[None] - luma) + jnp.sin(angle) * across
    return brightness, contrast * (sign * luma + saturation * chroma)


def recolor(images: Array, brightness: Array, matrices: Array) -> Array:
    """`matrix (color + brightness)` of every pixel.

    Args:
      images: `[B, H, W, 3]`, or `[B, H, W, 1]`, which are taken for those of three equal channels
        and become the mean of three.
      brightness: `[B]`.
      matrices: `[B, 3, 3]`.

    Raises:
      ValueError: the images have another number of channels.
    """
    channels = images.shape[3]
    if channels not in (1, 3):
        raise ValueError(f"colors change of images with 1 or 3 channels, not of {images.shape}")
    if channels == 1:
        matrices = matrices.sum(axis=2, keepdims=True).mean(axis=1, keepdims=True)
    images = images + brightness[:, None, None, None].astype(images.dtype)
    matrices = matrices.astype(images.dtype)
    return jnp.einsum("bij,bhwj->bhwi", matrices, images, precision=jax.lax.Precision.HIGHEST)


# Filtering.

_POWER = np.array([10, 1, 1, 1]) / 13  # expected of natural images, by band


def _band_filters() -> np.ndarray:
    """`[4, 43]`: filters without phase, the lowest band's first, whose sum is one tap of 1."""
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
    """`[B, 4]`: what each band of frequencies is multiplied with.

    One band is amplified after another, and each time all of them are attenuated by as much as
    keeps the expected power.

    Args:
      draws: what is random.
      p: the probability.
      settings: which transformations there are.
    """
    gains = jnp.ones((1, BANDS))
    for band, multiplier in enumerate(settings.imgfilter_bands):
        one = jnp.exp2(draws.normal["imgfilter"][:, band] * settings.imgfilter_std)
        probability = settings.imgfilter * multiplier * p
        one = _where(draws.gates["imgfilter"][:, band], probability, one, 1.0)
        power = 1 + _POWER[band] * (one**2 - 1)
        here = jnp.where(jnp.arange(BANDS)[None] == band, one[:, None], 1.0)
        gains = gains * here / jnp.sqrt(power)[:, None]
    return gains


def amplify(images: Array, gains: Array) -> Array:
    """Images with each band of frequencies multiplied, mirrored at their borders.

    Args:
      images: `[B, H, W, C]`.
      gains: `[B, 4]`, of the lowest band first. The bands are octaves, the lowest one everything
        below an eighth of the highest frequency; they are separated along each axis by the wavelet
        sym2.

    Returns:
      `[B, H, W, C]`.
    """
    taps = jnp.matmul(gains, BAND_FILTERS, precision=jax.lax.Precision.HIGHEST)
    # As matrix products, which are fast everywhere, their derivatives too: a convolution with
    # filters of each image's own is not.
    length = taps.shape[1]
    ended = jnp.pad(taps, ((0, 0), (0, 1))).astype(images.dtype)
    for axis, product in ((1, "biv,bvwc->biwc"), (2, "bjv,bhvc->bhjc")):
        pads = [(length // 2,) * 2 if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, pads, mode="reflect")
        tap = np.arange(padded.shape[axis])[None] - np.arange(images.shape[axis])[:, None]
        matrices = ended[:, np.where((tap >= 0) & (tap < length), tap, length)]
        images = jnp.einsum(product, matrices, padded, precision=jax.lax.Precision.HIGHEST)
    return images


# Corruptions.


def cut_out(images: Array, center: Array, size: Array) -> Array:
    """Images with a rectangle of zeros.

    Args:
      images: `[B, H, W, C]`.
      center: `[B, 2]`, x and y as parts of the width and the height.
      size: `[B]`, of the rectangle's sides as a part of the image's.
    """
    reach = size[:, None] / 2

    def covered(axis: int, at: Array) -> Array:
        side = images.shape[axis]
        places = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side
        return jnp.abs(places[None] - at[:, None]) < reach

    hole = covered(1, center[:, 1])[:, :, None, None] & covered(2, center[:, 0])[:, None, :, None]
    return jnp.where(hole, 0, images)


def _applied(
    draws: Draws,
    p: float | Array,
    settings: Settings,
    name: str,
    value: Array,
    otherwise: float,
) -> Array:
    """`value` of the images that the transformation of that name is applied to."""
    return _where(draws.gates[name], getattr(settings, name) * p, value, otherwise)


def _where(gate: Array, probability: float | Array, value: Array, otherwise: float) -> Array:
    """`value` where the gate, one for each image, is below the probability."""
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
