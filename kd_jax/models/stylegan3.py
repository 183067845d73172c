"""The generators of StyleGAN3, T and R (Karras et al. 2021): alias-free and equivariant.

Features represent continuous signals: each layer's features are band-limited, sampled at more than
twice their bandwidth, and extend beyond the image by a margin. A layer convolves, upsamples,
activates and filters down; bandwidths grow geometrically from a few waves to all that the image can
represent. The first features are waves of random frequencies, rotated and translated by the style.
T is equivariant to translation; R, with 1x1 kernels and radially symmetric filters, also to
rotation.

The generator trains against StyleGAN2's discriminator. Images are `[B, size, size, channels]`,
roughly in [-1, 1]; latents `[B, latent]`; labels int `[B]`, or conditions `[B, classes]`.
"""

import math
from collections.abc import Callable, Mapping as ReadOnly, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.axes import Axes, Axis, InputAxis, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, scale_widths
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.layers.remat import remat as remat_block
from kd_jax.models.layers.style import AVERAGES, Dense, Mapping
from kd_jax.ops import filtered_lrelu, modulated_conv

CONSTANTS = "constants"
"""The collection of values that are drawn once and not trained: frequencies and phases."""

CONFIG_R = {
    "conv_kernel": 1,
    "use_radial_filters": True,
    "channel_base": 65536,
    "channel_max": 1024,
}
"""Keyword arguments of `generator` for StyleGAN3-R; the defaults are StyleGAN3-T."""


def generator(
    size: int,
    *,
    latent: int = 512,
    style: int = 512,
    channels: int = 3,
    classes: int = 0,
    channel_base: int = 32768,
    channel_max: int = 512,
    widths: Sequence[int] | None = None,
    num_layers: int = 14,
    num_critical: int = 2,
    first_cutoff: float = 2.0,
    first_stopband: float = 2**2.1,
    last_stopband_rel: float = 2**0.3,
    margin_size: int = 10,
    filter_size: int = 6,
    lrelu_upsampling: int = 2,
    use_radial_filters: bool = False,
    conv_kernel: int = 3,
    conv_clamp: float | None = 256.0,
    output_scale: float = 0.25,
    magnitude_ema_beta: float = 0.999,
    mapping: ReadOnly[str, Any] | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """`(latents[, labels]) -> images`, a style network.

    Taps are `fourier`, the waves; `input`, a linear mixture of them; and `L0`, `L1`, ..., the
    features of all layers except the last, which outputs the image. There are `num_layers + 2`
    styles. With `train`, `w_avg` and the layers' magnitudes are updated from the batch. Options of
    `apply`:

    * truncation, truncation_cutoff: as in `style.truncate`; also of `mapping`.
    * transform: `[3, 3]` or `[B, 3, 3]`: maps a point (x, y, 1) of the image to the input
      coordinates, before the style's rotation and translation. The image has width and height 1
      and center 0, and y points down. The default is the stored transform, initially the identity.
      Also of `synthesis`.

    Args:
      size: the image's side; not necessarily a power of two, though designed for these.
      latent: the latent's length.
      style: the style's length.
      channels: the image's channels.
      classes: the condition's length; 0 for an unconditional generator.
      channel_base: a layer of cutoff f has `channel_base / (2 f)` channels.
      channel_max: upper bound on the channels of each layer.
      widths: channels of each layer except the last, instead of these two; the input has as many as
        the first layer.
      num_layers: layers before the last one.
      num_critical: number of critical layers, the last of these: their band extends to the image's
        Nyquist frequency, at the cost of a low stopband attenuation.
      first_cutoff: cutoff of the first layer, in waves across the image.
      first_stopband: stopband of the first layer.
      last_stopband_rel: stopband of the last layer, relative to its cutoff.
      margin_size: samples on each side beyond the image.
      filter_size: filter length per factor of resampling.
      lrelu_upsampling: upsampling factor of the activation, relative to the layer's rates.
      use_radial_filters: whether non-critical layers downsample with radially symmetric filters.
      conv_kernel: the kernels' side.
      conv_clamp: the largest magnitude of an activation; None for no limit.
      output_scale: factor of the image.
      magnitude_ema_beta: the decay of the mean squares by which layers normalise their input;
        0.5^(batch size / 20000) in published models.
      mapping: further fields of `kd_jax.models.layers.style.Mapping`; its depth is 2 by default.
      dtype: the computation dtype of the layers; parameters, waves and images are always float32.
      remat: whether the gradient recomputes the activations within each layer.

    Raises:
      ValueError: a number is out of range, or the number of widths differs from that of the layers.
    """
    design = Design(
        size,
        num_layers,
        num_critical,
        float(first_cutoff),
        float(first_stopband),
        float(last_stopband_rel),
        margin_size,
        filter_size,
        lrelu_upsampling,
        use_radial_filters,
        conv_kernel,
    )
    design.check()
    counts = design.widths(channel_base, channel_max) if widths is None else tuple(widths)
    if len(counts) != num_layers:
        raise ValueError(f"{num_layers} layers have {num_layers} widths, not {len(counts)}")
    for name, value, minimum in (
        ("latent", latent, 1),
        ("style", style, 1),
        ("channels", channels, 1),
        ("the smallest width", min(counts), 1),
        ("classes", classes, 0),
    ):
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, not {value}")
    return from_linen(
        Generator(
            design,
            (*counts, channels),
            latent,
            style,
            classes,
            tuple(sorted({"depth": 2, **(mapping or {})}.items())),
            conv_clamp,
            output_scale,
            magnitude_ema_beta,
            dtype,
            remat,
        ),
        style=True,
    )


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are named like the taps; styles and the mapping network are not pruned.

    Args:
      variables: those of a `generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `generator`, or include connectors.
    """
    leaves = tensors(variables)
    frequencies = f"{CONSTANTS}/synthesis/input/frequencies"
    if frequencies not in leaves:
        raise ValueError(
            f"the variables are not those of a StyleGAN3 generator: {frequencies} is missing"
        )
    layers = sum(name.startswith("L") for name in variables["params"]["synthesis"])
    axes: dict[str, tuple[Axis, ...]] = {
        path: (None,) * leaf.ndim for path, leaf in leaves.items()
    }  # for the mapping network and variables without channels
    axes[frequencies] = ("fourier", None)
    axes[f"{CONSTANTS}/synthesis/input/phases"] = ("fourier",)
    axes["params/synthesis/input/weight"] = (InputAxis("fourier", equalized=True), "input")
    before = "input"
    for index in range(layers):
        name = f"L{index}"
        after = None if index == layers - 1 else name
        path = f"params/synthesis/{name}"
        axes[f"{path}/weight"] = (None, None, InputAxis(before, equalized=after is None), after)
        axes[f"{path}/bias"] = (after,)
        axes[f"{path}/affine/weight"] = (None, before)
        axes[f"{path}/affine/bias"] = (before,)
        before = name
    group_widths(variables, axes)
    return axes


class Band(NamedTuple):
    """The frequency band and the sampling of a layer's features.

    Frequencies are in waves across the image: the image's Nyquist frequency is half its side.
    """

    cutoff: float  # the frequency at which the filter's gain is 1/2
    half_width: float  # half the width of the filter's transition band around the cutoff
    rate: int  # samples across the image
    size: int  # samples including the margins


class Resampling(NamedTuple):
    """The resampling around a layer's activation: arguments of `ops.filtered_lrelu`."""

    up: int
    down: int
    padding: tuple[tuple[int, int], tuple[int, int]]
    up_filter: np.ndarray | None
    down_filter: np.ndarray | None


class Design(NamedTuple):
    """The parameters that determine bands and filters; see `generator`."""

    size: int
    num_layers: int = 14
    num_critical: int = 2
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    last_stopband_rel: float = 2**0.3
    margin_size: int = 10
    filter_size: int = 6
    lrelu_upsampling: int = 2
    use_radial_filters: bool = False
    conv_kernel: int = 3

    def check(self) -> None:
        """Raises a ValueError if a number is out of range."""
        for name, value, minimum in (
            ("margin_size", self.margin_size, 0),
            ("filter_size", self.filter_size, 1),
            ("lrelu_upsampling", self.lrelu_upsampling, 2),
            ("conv_kernel", self.conv_kernel, 1),
            ("num_critical", self.num_critical, 0),
        ):
            if value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, not {value}")
        if self.num_critical >= self.num_layers:
            raise ValueError(
                f"num_critical={self.num_critical} must be less than num_layers={self.num_layers}"
            )
        if not 0 < self.first_cutoff < min(self.first_stopband, self.size / 2):
            raise ValueError(
                f"first_cutoff={self.first_cutoff:g} must be between 0 and both "
                f"first_stopband={self.first_stopband:g} and half the size, {self.size / 2:g}"
            )
        if self.last_stopband_rel <= 1:
            raise ValueError(f"last_stopband_rel={self.last_stopband_rel:g} must be greater than 1")

    def bands(self) -> tuple[Band, ...]:
        """The band of each layer's output, including the last; the input's is that of the first.

        Cutoffs and stopbands grow geometrically up to the critical layers. The rate is the smallest
        power of two that is at least twice the stopband or the image's side, whichever is less.
        """
        last_cutoff = self.size / 2
        bands = []
        for index in range(self.num_layers + 1):
            progress = min(index / (self.num_layers - self.num_critical), 1)
            growth = last_cutoff / self.first_cutoff
            cutoff = self.first_cutoff * growth**progress
            growth = last_cutoff * self.last_stopband_rel / self.first_stopband
            stopband = self.first_stopband * growth**progress
            rate = 2 ** math.ceil(math.log2(min(2 * stopband, self.size)))
            size = self.size if index >= self.num_layers - 1 else rate + 2 * self.margin_size
            bands.append(Band(cutoff, max(stopband, rate / 2) - cutoff, rate, size))
        return tuple(bands)

    def widths(self, channel_base: float, channel_max: int) -> tuple[int, ...]:
        """The channels of each layer except the last."""
        counts = (min(channel_base / 2 / band.cutoff, channel_max) for band in self.bands()[:-1])
        return tuple(round(count) for count in counts)

    def kernel(self, index: int) -> int:
        """The side of a layer's kernel."""
        return 1 if index == self.num_layers else self.conv_kernel

    def resampling(self, index: int) -> Resampling:
        """The resampling around a layer's activation; the last layer has neither."""
        bands = self.bands()
        before, after = bands[max(index - 1, 0)], bands[index]
        last = index == self.num_layers
        rate = max(before.rate, after.rate) * (1 if last else self.lrelu_upsampling)
        up, down = rate // before.rate, rate // after.rate
        up_size, down_size = (1 if last or n == 1 else self.filter_size * n for n in (up, down))
        radial = self.use_radial_filters and index < self.num_layers - self.num_critical

        def lowpass(numtaps: int, band: Band, radial: bool) -> np.ndarray | None:
            if numtaps == 1:
                return None
            return lowpass_filter(numtaps, band.cutoff, 2 * band.half_width, rate, radial)

        # The side that the downsampling needs, minus what the convolution and both filters yield.
        side = (before.size + self.kernel(index) - 1) * up
        padding = (after.size - 1) * down + 1 - side + up_size + down_size - 2
        first = (padding + up) // 2
        pads = (first, padding - first)
        return Resampling(
            up,
            down,
            (pads, pads),
            lowpass(up_size, before, False),
            lowpass(down_size, after, radial),
        )


@lru_cache(maxsize=256)
def lowpass_filter(
    numtaps: int, cutoff: float, width: float, fs: float, radial: bool = False
) -> np.ndarray:
    """A low-pass filter: the ideal impulse response times a Kaiser window.

    Karras et al. 2021, appendix C; the window's shape parameter is computed from the transition
    width by the formulas of Kaiser 1974.

    Args:
      numtaps: filter length along each axis.
      cutoff: cutoff frequency, in the unit of fs; below fs / 2.
      width: width of the transition band around the cutoff.
      fs: the sampling rate.
      radial: whether the passband is a disc, rather than an interval along each axis.

    Returns:
      `[numtaps]`, the coefficients along each axis, or `[numtaps, numtaps]` if radial; float32,
      read-only, with sum 1.

    Raises:
      ValueError: `numtaps` is less than 1, or the cutoff is not between 0 and fs / 2.
    """
    if numtaps < 1 or not 0 < cutoff < fs / 2:
        raise ValueError(
            f"a filter of {numtaps} taps with a cutoff of {cutoff:g} at a rate of {fs:g} is "
            "impossible: at least 1 tap and a cutoff between 0 and half the rate are needed"
        )
    times = (np.arange(numtaps) - (numtaps - 1) / 2) / fs
    attenuation = 2.285 * (numtaps - 1) * np.pi * width / (fs / 2) + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        excess = max(attenuation - 21, 0.0)
        beta = 0.5842 * excess**0.4 + 0.07886 * excess
    window = np.kaiser(numtaps, beta)
    if radial:
        coefficients = _jinc(2 * np.pi * cutoff * np.hypot(times[:, None], times[None])) * np.outer(
            window, window
        )
    else:
        coefficients = np.sinc(2 * cutoff * times) * window
    coefficients = (coefficients / coefficients.sum()).astype(np.float32)
    coefficients.setflags(write=False)
    return coefficients


def _jinc(x: np.ndarray) -> np.ndarray:
    """`J1(x) / x`, the Fourier transform of a disc; 1/2 at 0.

    J1(x) = mean of cos(t - x sin t) over a period (Bessel's integral). With equally spaced points
    the error decreases faster than any power of their number once that exceeds x.
    """
    count = 64 + 2 * int(np.abs(x).max(initial=0))
    t = 2 * np.pi * np.arange(count) / count
    bessel = np.cos(t - x[..., None] * np.sin(t)).mean(axis=-1)
    zero = x == 0
    return np.where(zero, 0.5, bessel / np.where(zero, 1, x))


class Generator(nn.Module):
    """See `generator`; `widths` includes the channels of the image, as the last item."""

    design: Design
    widths: tuple[int, ...]
    latent: int
    style: int
    classes: int
    mapping_options: tuple[tuple[str, Any], ...]
    conv_clamp: float | None
    output_scale: float
    magnitude_ema_beta: float
    dtype: Any
    remat: bool = False

    def setup(self) -> None:
        self.mapping = Mapping(
            self.latent,
            self.classes,
            self.style,
            self.design.num_layers + 2,
            **dict(self.mapping_options),
        )
        self.synthesis = Synthesis(
            self.design,
            self.widths,
            self.style,
            self.conv_clamp,
            self.output_scale,
            self.magnitude_ema_beta,
            self.dtype,
            self.remat,
        )

    def __call__(
        self,
        latents: Array,
        condition: Array | None = None,
        *,
        train: bool,
        truncation: float | Array = 1.0,
        truncation_cutoff: int | None = None,
        transform: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        styles = self.mapping(
            latents,
            condition,
            train=train,
            truncation=truncation,
            truncation_cutoff=truncation_cutoff,
        )
        return self.synthesis(styles, train=train, transform=transform)


class Synthesis(nn.Module):
    """Maps styles to images."""

    design: Design
    widths: tuple[int, ...]
    style: int
    conv_clamp: float | None
    output_scale: float
    magnitude_ema_beta: float
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(
        self, styles: Array, *, train: bool = False, transform: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Maps styles `[B, num_layers + 2, style]` to images `[B, size, size, C]` and taps."""
        expected = (len(self.widths) + 1, self.style)
        if styles.ndim != 3 or styles.shape[1:] != expected:
            raise ValueError(
                f"styles [B, {expected[0]}, {expected[1]}] are needed, not {styles.shape}"
            )
        last = self.design.num_layers
        first = SynthesisInput(self.widths[0], self.design.bands()[0], name="input")
        x, fourier = first(styles[:, 0], transform)
        taps = {"fourier": fourier, "input": x}
        x = x.astype(self.dtype)
        for index, width in enumerate(self.widths):
            layer = remat_block(SynthesisLayer, self.remat, static=(3,))
            x = layer(
                width,
                self.design,
                index,
                self.conv_clamp,
                self.magnitude_ema_beta,
                name=f"L{index}",
            )(x, styles[:, index + 1], train)
            if index < last:
                taps[f"L{index}"] = x
        return at_least_float32(x) * self.output_scale, taps


class SynthesisInput(nn.Module):
    """Waves of fixed frequencies, rotated and translated by a style, and mixed (section 3.2)."""

    features: int
    band: Band

    @nn.compact
    def __call__(self, styles: Array, transform: Array | None) -> tuple[Array, Array]:
        """Returns features `[B, size, size, features]`, and the waves before mixing.

        Args:
          styles: `[B, style]`.
          transform: `[3, 3]` or `[B, 3, 3]`; None for the stored one.
        """
        count, band = self.features, self.band

        def constant(name: str, init: Callable[..., Any], *args: Any) -> Array:
            return self.variable(CONSTANTS, name, init, *args).value

        def phase() -> Array:
            return jax.random.uniform(self.make_rng("params"), (count,)) - 0.5

        frequencies = constant(
            "frequencies", lambda: _sample_disc(self.make_rng("params"), count, band.cutoff)
        )
        phases = constant("phases", phase)
        stored = constant("transform", jnp.eye, 3)
        weight = self.param("weight", nn.initializers.normal(1.0), (count, self.features))

        transform = stored if transform is None else jnp.asarray(transform, jnp.float32)
        if transform.shape not in ((3, 3), (styles.shape[0], 3, 3)):
            raise ValueError(f"a transform is [3, 3] or [B, 3, 3], not {transform.shape}")
        pose = _pose(Pose(name="affine")(at_least_float32(styles)))
        transform = jnp.matmul(pose, transform.reshape(-1, 3, 3), precision="highest")

        # f . (A p + b) + phase = (f A) . p + (phase + f . b)
        phases = phases[None] + jnp.einsum(
            "fi,bi->bf", frequencies, transform[:, :2, 2], precision="highest"
        )
        frequencies = jnp.einsum(
            "fi,bij->bfj", frequencies, transform[:, :2, :2], precision="highest"
        )
        # Frequencies beyond the band, after a zoom, fade out linearly up to the Nyquist frequency.
        excess = jnp.linalg.norm(frequencies, axis=-1) - band.cutoff
        amplitudes = jnp.clip(1 - excess / (band.rate / 2 - band.cutoff), 0, 1)

        positions = (jnp.arange(band.size) + 0.5 - band.size / 2) / band.rate
        along_x = positions[None, None, :, None] * frequencies[:, None, None, :, 0]
        along_y = positions[None, :, None, None] * frequencies[:, None, None, :, 1]
        phase_turns = along_x + along_y + phases[:, None, None]
        fourier = jnp.sin(2 * jnp.pi * phase_turns) * amplitudes[:, None, None]
        return fourier @ (weight / math.sqrt(count)), fourier


class Pose(nn.Module):
    """Maps styles to poses `[B, 4]`: cosine and sine of a rotation, and a translation (x, y).

    It is initialized to no rotation and no translation for every style.
    """

    @nn.compact
    def __call__(self, styles: Array) -> Array:
        weight = self.param("weight", nn.initializers.zeros, (styles.shape[1], 4))
        bias = self.param("bias", lambda _: jnp.array([1.0, 0.0, 0.0, 0.0]))
        return styles @ (weight / math.sqrt(styles.shape[1])) + bias[None]


def _pose(pose: Array) -> Array:
    """Maps poses `[B, 4]` to transforms `[B, 3, 3]`: a translation, then a rotation."""
    pose = pose / jnp.linalg.norm(pose[:, :2], axis=1, keepdims=True)
    cosine, sine, x, y = pose.T
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    rows = [
        [cosine, -sine, sine * y - cosine * x],
        [sine, cosine, -sine * x - cosine * y],
        [zero, zero, one],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _sample_disc(key: Array, count: int, radius: float) -> Array:
    """Draws points `[count, 2]` uniformly in a disc."""
    radius_key, angle_key = jax.random.split(key)
    radii = radius * jnp.sqrt(jax.random.uniform(radius_key, (count,)))
    angles = jax.random.uniform(angle_key, (count,), maxval=2 * jnp.pi)
    return radii[:, None] * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)


class SynthesisLayer(nn.Module):
    """A modulated convolution and a filtered leaky ReLU; the last layer has neither norm nor ReLU.

    Its input is divided by the root of a running mean of squares (section 3.2), not by that of the
    batch, so that an image does not depend on the others in its batch.
    """

    features: int
    design: Design
    index: int
    clamp: float | None
    magnitude_ema_beta: float

    @nn.compact
    def __call__(self, x: Array, styles: Array, train: bool) -> Array:
        last = self.index == self.design.num_layers
        side = self.design.kernel(self.index)
        shape = (side, side, x.shape[-1], self.features)
        weight = self.param("weight", nn.initializers.normal(1.0), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        scales = Dense(x.shape[-1], bias_init=1.0, name="affine")(styles)
        if last:
            scales = scales / math.sqrt(
                x.shape[-1]
            )  # demodulation makes this unnecessary elsewhere

        magnitude = self.variable(AVERAGES, "magnitude_ema", lambda: jnp.ones(()))
        if train and not self.is_initializing():
            mean = (at_least_float32(jax.lax.stop_gradient(x)) ** 2).mean()
            magnitude.value = mean + self.magnitude_ema_beta * (magnitude.value - mean)

        x = modulated_conv(
            x,
            weight,
            scales,
            demodulate=not last,
            normalize=True,
            input_gain=jax.lax.rsqrt(magnitude.value),
            padding=side - 1,
        )
        resampling = self.design.resampling(self.index)
        return filtered_lrelu(
            x,
            resampling.up_filter,
            resampling.down_filter,
            bias,
            up=resampling.up,
            down=resampling.down,
            padding=resampling.padding,
            gain=1.0 if last else math.sqrt(2),
            slope=1.0 if last else 0.2,
            clamp=self.clamp,
        )


def _narrow(module: Generator, share: float) -> Generator:
    *widths, image = module.widths  # the last width is the number of the image's channels
    return module.clone(widths=(*scale_widths(widths, share), image))


FAMILY = Family("stylegan3", (Generator,), _narrow, generator_axes)
