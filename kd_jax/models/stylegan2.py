"""StyleGAN2 (Karras et al. 2020), with the conditions of StyleGAN2-ADA, from 4x4 up.

The generator is a style network: `mapping` makes a style of the latent, `synthesis` an image of one
style for each layer. Its convolutions are scaled by the styles and demodulated. `architecture` is
one of the paper's figure 7: with skip connections between images ("skip"), residual blocks
("resnet"), or neither ("orig"). `channel_base` and `channel_max` are the compression knobs: a layer
at a side of r has `min(channel_base / r, channel_max)` channels.

Images are `[B, size, size, channels]`, of no fixed range, data in [-1, 1]; latents `[B, latent]`;
labels int `[B]`, or a float condition `[B, classes]`.
"""

import math
from collections.abc import Mapping as ReadOnly
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.channels import Axes, Axis, Reads, Repeat, Scales, group_widths, tensors
from kd_jax.models import style
from kd_jax.models.style import side_widths
from kd_jax.network import Network, from_linen
from kd_jax.ops.resample import Filter
from kd_jax.state import Pair
from kd_jax.types import Array, Variables

Architecture = Literal["skip", "resnet", "orig"]
ARCHITECTURES = ("skip", "resnet", "orig")
Noise = str | Sequence[Array] | None
Taps2D = tuple[tuple[float, ...], ...]

SMALLEST = 4
RESIDUAL = math.sqrt(0.5)  # keeps the variance of a sum of two


def gan(
    size: int,
    *,
    channels: int = 3,
    classes: int = 0,
    channel_base: int = 32768,
    channel_max: int = 512,
    latent: int = 512,
    style_mixing: float = 0.0,
    conv_clamp: float | None = None,
    dtype: Any = jnp.float32,
) -> Pair:
    """A skip generator and a residual discriminator, the paper's configuration F.

    Args and errors are those of `generator` and `discriminator`.
    """
    shared: dict[str, Any] = {
        "channels": channels,
        "classes": classes,
        "channel_base": channel_base,
        "channel_max": channel_max,
        "conv_clamp": conv_clamp,
        "dtype": dtype,
    }
    return Pair(
        generator(size, latent=latent, style=latent, style_mixing=style_mixing, **shared),
        discriminator(size, **shared),
    )


def generator(
    size: int,
    *,
    channels: int = 3,
    classes: int = 0,
    latent: int = 512,
    style: int = 512,
    channel_base: int = 32768,
    channel_max: int = 512,
    widths: ReadOnly[int, int] | None = None,
    architecture: Architecture = "skip",
    mapping: ReadOnly[str, Any] | None = None,
    resample_filter: Filter = (1, 3, 3, 1),
    activation: str = "lrelu",
    noise: bool = True,
    conv_clamp: float | None = None,
    fused: bool = False,
    style_mixing: float = 0.0,
    dtype: Any = jnp.float32,
) -> Network:
    """`(latents[, labels]) -> images`, a style network.

    Options of `apply` by keyword: `truncation` and `truncation_cutoff` (also of `mapping`), and
    `noise` (also of `synthesis`): "random", "const" (the stored images of noise), "none", or a
    sequence of `[B or 1, H, W, 1]`, one for each convolution; by default random where `rngs` is
    given and constant otherwise. Taps: `styles` `[B, layers, style]`; `4x4`, `8x8`, ..., each
    block's features; `image/4x4`, ... of a skip generator, the images up to there.

    Args:
      size: the image's side, a power of two from 4 to 1024.
      channels: the image's channels.
      classes: the number of classes, or the condition's length; 0 for an unconditional network.
      latent: the latent's length.
      style: the style's.
      channel_base: channels times the side.
      channel_max: no layer has more.
      widths: channels at each side instead, `{4: 512, ...}`.
      architecture: "skip", "resnet" or "orig".
      mapping: further fields of `kd_jax.models.style.Mapping` (`depth`, `lr_multiplier`, ...).
      resample_filter: of the up- and downsampling; normalised.
      activation: a name in `kd_jax.ops.ACTIVATIONS`.
      noise: whether the layers have noise inputs.
      conv_clamp: the largest magnitude of a layer's output, for half precision.
      fused: whether each example has its own scaled kernels, rather than scaled images.
      style_mixing: in training with a key, the probability that an image's later layers get the
        style of another latent. Leave it at 0 where a teacher has to see the same latents.
      dtype: what the synthesis is computed in; parameters are float32 always, images too.

    Raises:
      ValueError: the size, the architecture or the activation is unknown, or a side has no width.
    """
    _check(size, architecture, activation)
    module = Generator(
        size=size,
        widths=side_widths(size, channel_base, channel_max, widths),
        channels=channels,
        latent=latent,
        classes=classes,
        style=style,
        mapping_options=_frozen(mapping),
        architecture=architecture,
        taps=_static(resample_filter),
        activation=activation,
        noise=noise,
        conv_clamp=conv_clamp,
        fused=fused,
        style_mixing=style_mixing,
        dtype=dtype,
    )
    return from_linen(module, style=True)


def discriminator(
    size: int,
    *,
    channels: int = 3,
    classes: int = 0,
    channel_base: int = 32768,
    channel_max: int = 512,
    widths: ReadOnly[int, int] | None = None,
    architecture: Architecture = "resnet",
    condition: int | None = None,
    mapping: ReadOnly[str, Any] | None = None,
    resample_filter: Filter = (1, 3, 3, 1),
    activation: str = "lrelu",
    conv_clamp: float | None = None,
    stddev_group: int | None = 4,
    stddev_channels: int = 1,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits). Taps `8x8`, `4x4`, ..., and `features` `[B, C]`.

    With labels the score is the product of the features with an embedding of the label.

    Args:
      size: the image's side, a power of two from 8 to 1024.
      channels: the image's channels.
      classes: the number of classes, or the condition's length; 0 for an unconditional network.
      channel_base: channels times the side.
      channel_max: no layer has more.
      widths: channels at each side instead, `{4: 512, ...}`.
      architecture: "skip", "resnet" or "orig".
      condition: the embedded label's length; the channels at 4x4 by default.
      mapping: further fields of the label's `kd_jax.models.style.Mapping`.
      resample_filter: of the downsampling; normalised.
      activation: a name in `kd_jax.ops.ACTIVATIONS`.
      conv_clamp: the largest magnitude of a layer's output, for half precision.
      stddev_group: examples in a group of the minibatch's standard deviation; None for all.
      stddev_channels: how many values it adds; 0 for none.
      dtype: what is computed in, but for the last layers; parameters are float32, scores too.

    Raises:
      ValueError: the size, the architecture or the activation is unknown, or a side has no width.
    """
    _check(size, architecture, activation)
    if size == SMALLEST:
        raise ValueError(f"a discriminator's size is at least 8, not {size}")
    module = Discriminator(
        size=size,
        widths=side_widths(size, channel_base, channel_max, widths),
        channels=channels,
        classes=classes,
        architecture=architecture,
        condition=condition,
        mapping_options=_frozen(mapping),
        taps=_static(resample_filter),
        activation=activation,
        conv_clamp=conv_clamp,
        stddev_group=stddev_group,
        stddev_channels=stddev_channels,
        dtype=dtype,
    )
    return from_linen(module)


def generator_axes(variables: Variables) -> Axes:
    """Which axes of a generator's variables hold which channels, for `kd_jax.students`.

    The groups are `const`, and of each side `8x8/conv0` and `8x8` (named like the tap). The mapping
    stays whole. An affine layer's bias scales a channel as a norm's would.

    Args:
      variables: of any `generator`, arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: they are not those of a generator of this file, or are a connected network's.
    """
    synthesis = variables["params"].get("synthesis")
    if synthesis is None or "b4" not in synthesis:
        raise ValueError(
            f"these are no StyleGAN2 generator's variables; they have {sorted(variables['params'])}"
        )
    axes: dict[str, tuple[Axis, ...]] = {"params/synthesis/b4/const": (None, None, "const")}
    for path, leaf in tensors(variables).items():
        if "/mapping/" in path or path.startswith("noise/"):
            axes[path] = (None,) * len(leaf.shape)
    before = "const"
    for side in _sides_of(synthesis):
        block, group = synthesis[f"b{side}"], f"{side}x{side}"
        reads = before
        for name, writes in (("conv0", f"{group}/conv0"), ("conv1", group), ("torgb", None)):
            if name not in block:
                continue
            layer = f"params/synthesis/b{side}/{name}"
            axes[f"{layer}/weight"] = (None, None, Reads(reads, equalized=True), writes)
            axes[f"{layer}/bias"] = (writes,)
            axes[f"{layer}/affine/weight"] = (None, reads)
            axes[f"{layer}/affine/bias"] = (Scales(reads),)
            if "noise_strength" in block[name]:
                axes[f"{layer}/noise_strength"] = ()
            reads = writes or reads
        if "skip" in block:
            axes[f"params/synthesis/b{side}/skip/weight"] = (
                None,
                None,
                Reads(before, equalized=True),
                group,
            )
        before = group
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """Which axes of a discriminator's variables hold which channels, for `kd_jax.students`.

    The groups are of each side `8x8/in`, what a block reads, and `8x8/conv0`; then `conv` and
    `features` of the last block. The label's mapping stays whole.

    Args:
      variables: of any `discriminator`, arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: they are not those of a discriminator of this file, or are a connected network's.
    """
    params = variables["params"]
    if "b4" not in params or "fc" not in params["b4"]:
        raise ValueError(
            f"these are no StyleGAN2 discriminator's variables; they have {sorted(params)}"
        )
    axes: dict[str, tuple[Axis, ...]] = {}
    for path, leaf in tensors(variables).items():
        if "/mapping/" in path:
            axes[path] = (None,) * len(leaf.shape)
    for side in reversed(_sides_of(params)):
        group, after = f"{side}x{side}/in", f"{side // 2}x{side // 2}/in"
        block, layer = params[f"b{side}"], f"params/b{side}"
        if "fromrgb" in block:
            axes[f"{layer}/fromrgb/weight"] = (None, None, None, group)
            axes[f"{layer}/fromrgb/bias"] = (group,)
        if side == SMALLEST:
            extra = block["conv"]["weight"].shape[2] - _width_before(params)
            reads: Axis = (group, extra) if extra else group
            axes[f"{layer}/conv/weight"] = (None, None, Reads(reads, equalized=True), "conv")
            axes[f"{layer}/conv/bias"] = ("conv",)
            axes[f"{layer}/fc/weight"] = (
                Reads(Repeat("conv", SMALLEST**2), equalized=True),
                "features",
            )
            axes[f"{layer}/fc/bias"] = ("features",)
            axes[f"{layer}/out/weight"] = (Reads("features", equalized=True), None)
            axes[f"{layer}/out/bias"] = (None,)
            continue
        inner = f"{side}x{side}/conv0"
        axes[f"{layer}/conv0/weight"] = (None, None, Reads(group, equalized=True), inner)
        axes[f"{layer}/conv0/bias"] = (inner,)
        axes[f"{layer}/conv1/weight"] = (None, None, Reads(inner, equalized=True), after)
        axes[f"{layer}/conv1/bias"] = (after,)
        if "skip" in block:
            axes[f"{layer}/skip/weight"] = (None, None, Reads(group, equalized=True), after)
    group_widths(variables, axes)
    return axes


def _sides_of(blocks: ReadOnly[str, Any]) -> list[int]:
    return sorted(int(name[1:]) for name in blocks if name[0] == "b" and name[1:].isdigit())


def _width_before(params: ReadOnly[str, Any]) -> int:
    """The channels that the block before the last one writes."""
    return params[f"b{2 * SMALLEST}"]["conv1"]["weight"].shape[-1]


class Convolution(nn.Module):
    """An equalized convolution that resamples, with bias, activation and clamp."""

    features: int
    kernel: int
    taps: Taps2D
    activation: str = "linear"
    use_bias: bool = True
    up: int = 1
    down: int = 1
    conv_clamp: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, gain: float = 1.0) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        weight = self.param("weight", nn.initializers.normal(1.0), shape)
        weight = weight / math.sqrt(math.prod(shape[:3]))
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        x = ops.conv_resample(
            x.astype(self.dtype),
            weight.astype(self.dtype),
            self.taps,
            up=self.up,
            down=self.down,
            padding=self.kernel // 2,
        )
        return _activated(x, bias, self.activation, gain, self.conv_clamp)


class SynthesisLayer(nn.Module):
    """A modulated 3x3 convolution, noise, bias and activation."""

    features: int
    side: int
    taps: Taps2D
    up: int
    activation: str
    noise: bool
    conv_clamp: float | None
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, w: Array, noise: Any, gain: float = 1.0) -> Array:
        styles = style.Dense(x.shape[-1], bias_init=1.0, name="affine")(w)
        shape = (3, 3, x.shape[-1], self.features)
        weight = self.param("weight", nn.initializers.normal(1.0), shape)
        x = ops.modulated_conv(
            x.astype(self.dtype),
            weight,
            styles,
            self.taps if self.up > 1 else None,
            up=self.up,
            padding=1,
            fused=self.fused,
        )
        if self.noise:
            strength = self.param("noise_strength", nn.initializers.zeros, ())
            constant = self.variable("noise", "noise_const", self._drawn)
            values = self._noise(noise, constant.value, x)
            if values is not None:
                x = x + (values * strength).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return _activated(x, bias, self.activation, gain, self.conv_clamp)

    def _drawn(self) -> Array:
        return jax.random.normal(self.make_rng("params"), (self.side, self.side))

    def _noise(self, given: Any, constant: Array, x: Array) -> Array | None:
        if not isinstance(given, str):
            if jnp.ndim(given) != 4 or given.shape[1:] != (*x.shape[1:3], 1):
                raise ValueError(
                    f"noise of shape {jnp.shape(given)} does not fit a layer that needs "
                    f"[B or 1, {x.shape[1]}, {x.shape[2]}, 1]"
                )
            return given
        if given == "random":
            return jax.random.normal(self.make_rng("noise"), (*x.shape[:3], 1))
        return constant[None, :, :, None] if given == "const" else None


class ToRGB(nn.Module):
    """A modulated 1x1 convolution to an image, without demodulation."""

    channels: int
    conv_clamp: float | None
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, w: Array) -> Array:
        styles = style.Dense(x.shape[-1], bias_init=1.0, name="affine")(w)
        shape = (1, 1, x.shape[-1], self.channels)
        weight = self.param("weight", nn.initializers.normal(1.0), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        styles = styles / math.sqrt(x.shape[-1])
        x = x.astype(self.dtype)
        x = ops.modulated_conv(x, weight, styles, demodulate=False, fused=self.fused)
        return ops.bias_act(x, bias, clamp=self.conv_clamp).astype(jnp.float32)


class SynthesisBlock(nn.Module):
    """The layers at one side."""

    side: int
    features: int
    channels: int
    last: bool
    architecture: Architecture
    taps: Taps2D
    activation: str
    noise: bool
    conv_clamp: float | None
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Array | None, image: Array | None, styles: list[Array], noises: list[Any]
    ) -> tuple[Array, Array | None]:
        def layer(name: str, up: int = 1) -> SynthesisLayer:
            return SynthesisLayer(
                self.features,
                self.side,
                self.taps,
                up,
                self.activation,
                self.noise,
                self.conv_clamp,
                self.fused,
                self.dtype,
                name=name,
            )

        if x is None:
            shape = (SMALLEST, SMALLEST, self.features)
            const = self.param("const", nn.initializers.normal(1.0), shape)
            x = jnp.broadcast_to(const[None], (styles[0].shape[0], *shape)).astype(self.dtype)
            x = layer("conv1")(x, styles[0], noises[0])
        elif self.architecture == "resnet":
            skip = Convolution(
                self.features, 1, self.taps, use_bias=False, up=2, dtype=self.dtype, name="skip"
            )
            y = skip(x, gain=RESIDUAL)
            x = layer("conv0", up=2)(x, styles[0], noises[0])
            x = y + layer("conv1")(x, styles[1], noises[1], gain=RESIDUAL)
        else:
            x = layer("conv0", up=2)(x, styles[0], noises[0])
            x = layer("conv1")(x, styles[1], noises[1])
        if image is not None:
            image = ops.upsample2d(image, self.taps)
        if self.last or self.architecture == "skip":
            torgb = ToRGB(self.channels, self.conv_clamp, self.fused, self.dtype, name="torgb")
            y = torgb(x, styles[-1])
            image = y if image is None else image + y
        return x, image


class Synthesis(nn.Module):
    """Styles to images."""

    size: int
    widths: tuple[int, ...]
    channels: int
    style: int
    architecture: Architecture
    taps: Taps2D
    activation: str
    noise: bool
    conv_clamp: float | None
    fused: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, styles: Array, *, train: bool = False, noise: Noise = None
    ) -> tuple[Array, dict[str, Array]]:
        """Images and taps of styles `[B, layers, style]`."""
        del train
        expected = (layer_count(self.size), self.style)
        if styles.ndim != 3 or styles.shape[1:] != expected:
            raise ValueError(
                f"styles [B, {expected[0]}, {expected[1]}] are needed, not {styles.shape}"
            )
        if noise is None:
            noise = "random" if self.has_rng("params") else "const"
        convolutions = expected[0] - 1
        if isinstance(noise, str):
            if noise == "random" and not self.has_rng("params"):
                raise ValueError("noise='random' needs a key: rngs=jax.random.key(...)")
            if noise not in ("random", "const", "none"):
                raise ValueError(f"noise={noise!r} is none of 'random', 'const', 'none'")
            noises: list[Any] = [noise] * convolutions
        elif len(noise) != convolutions:
            raise ValueError(f"{convolutions} images of noise are needed, not {len(noise)}")
        else:
            noises = list(noise)
        taps: dict[str, Array] = {}
        x = image = None
        index = 0
        for number, features in enumerate(self.widths):
            side = SMALLEST << number
            count = 1 if number == 0 else 2
            block = SynthesisBlock(
                side,
                features,
                self.channels,
                side == self.size,
                self.architecture,
                self.taps,
                self.activation,
                self.noise,
                self.conv_clamp,
                self.fused,
                self.dtype,
                name=f"b{side}",
            )
            own = [styles[:, i] for i in range(index, index + count + 1)]  # the last is the image's
            x, image = block(x, image, own, noises[index : index + count])
            taps[f"{side}x{side}"] = x
            if image is not None:
                taps[f"image/{side}x{side}"] = image
            index += count
        assert image is not None  # the last block makes one
        return image, taps


class Generator(nn.Module):
    """See `generator`."""

    size: int
    widths: tuple[int, ...]
    channels: int
    latent: int
    classes: int
    style: int
    mapping_options: tuple[tuple[str, Any], ...]
    architecture: Architecture
    taps: Taps2D
    activation: str
    noise: bool
    conv_clamp: float | None
    fused: bool
    style_mixing: float
    dtype: Any

    def setup(self) -> None:
        self.mapping = style.Mapping(
            self.latent,
            self.classes,
            self.style,
            layer_count(self.size),
            **dict(self.mapping_options),
        )
        self.synthesis = Synthesis(
            self.size,
            self.widths,
            self.channels,
            self.style,
            self.architecture,
            self.taps,
            self.activation,
            self.noise,
            self.conv_clamp,
            self.fused,
            self.dtype,
        )

    def __call__(
        self,
        latents: Array,
        labels: Array | None = None,
        *,
        train: bool,
        truncation: float | Array = 1.0,
        truncation_cutoff: int | None = None,
        noise: Noise = None,
    ) -> tuple[Array, dict[str, Array]]:
        styles = style.map_styles(self, latents, labels, train, truncation, truncation_cutoff)
        image, taps = self.synthesis(styles, train=train, noise=noise)
        return image, {"styles": styles, **taps}


class DiscriminatorBlock(nn.Module):
    """Two convolutions, the second of which halves the side."""

    features: int
    inner: int
    first: bool
    architecture: Architecture
    taps: Taps2D
    activation: str
    conv_clamp: float | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array | None, image: Array) -> tuple[Array, Array]:
        def layer(name: str, features: int, kernel: int, **options: Any) -> Convolution:
            options = {"activation": self.activation, "conv_clamp": self.conv_clamp} | options
            return Convolution(features, kernel, self.taps, dtype=self.dtype, name=name, **options)

        if self.first or self.architecture == "skip":
            y = layer("fromrgb", self.inner, 1)(image)
            x = y if x is None else x + y
        if self.architecture == "skip":
            image = ops.downsample2d(image, self.taps)
        assert x is not None  # the first block has made it of the image
        if self.architecture == "resnet":
            plain = {"activation": "linear", "conv_clamp": None, "use_bias": False}
            y = layer("skip", self.features, 1, down=2, **plain)(x, gain=RESIDUAL)
            x = layer("conv0", self.inner, 3)(x)
            return y + layer("conv1", self.features, 3, down=2)(x, gain=RESIDUAL), image
        x = layer("conv0", self.inner, 3)(x)
        return layer("conv1", self.features, 3, down=2)(x), image


class Epilogue(nn.Module):
    """From 4x4 to the score."""

    features: int
    condition: int
    architecture: Architecture
    taps: Taps2D
    activation: str
    conv_clamp: float | None
    stddev_group: int | None
    stddev_channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, image: Array, embedding: Array | None) -> tuple[Array, Array]:
        convolution = {"activation": self.activation, "dtype": self.dtype}
        if self.architecture == "skip":
            fromrgb = Convolution(self.features, 1, self.taps, name="fromrgb", **convolution)
            x = x + fromrgb(image)
        if self.stddev_channels:
            group = x.shape[0] if self.stddev_group is None else self.stddev_group
            deviation = ops.minibatch_stddev(x, group, self.stddev_channels)
            x = jnp.concatenate([x, deviation], axis=-1)
        conv = Convolution(
            self.features, 3, self.taps, conv_clamp=self.conv_clamp, name="conv", **convolution
        )
        x = conv(x).astype(jnp.float32)
        activation = ops.ACTIVATIONS[self.activation]
        x = style.Dense(self.features, activation, name="fc")(x.reshape(x.shape[0], -1))
        scores = style.Dense(self.condition or 1, name="out")(x)
        if embedding is None:
            return scores[:, 0], x
        return (scores * embedding).sum(axis=1) / math.sqrt(self.condition), x


class Discriminator(nn.Module):
    """See `discriminator`."""

    size: int
    widths: tuple[int, ...]
    channels: int
    classes: int
    architecture: Architecture
    condition: int | None
    mapping_options: tuple[tuple[str, Any], ...]
    taps: Taps2D
    activation: str
    conv_clamp: float | None
    stddev_group: int | None
    stddev_channels: int
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        expected = (self.size, self.size, self.channels)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"images [B, *{expected}] are needed, not {images.shape}")
        taps: dict[str, Array] = {}
        x, image = None, images
        for number in reversed(range(1, len(self.widths))):
            side = SMALLEST << number
            block = DiscriminatorBlock(
                self.widths[number - 1],
                self.widths[number],
                side == self.size,
                self.architecture,
                self.taps,
                self.activation,
                self.conv_clamp,
                self.dtype,
                name=f"b{side}",
            )
            x, image = block(x, image)
            taps[f"{side // 2}x{side // 2}"] = x
        embedding, length = None, 0
        if self.classes:
            length = self.widths[0] if self.condition is None else self.condition
            options = dict(self.mapping_options)
            mapping = style.Mapping(0, self.classes, length, None, name="mapping", **options)
            embedding = mapping(None, labels)
        elif labels is not None and labels.size:
            raise ValueError(f"the network is not conditional, but got labels {labels.shape}")
        epilogue = Epilogue(
            self.widths[0],
            length,
            self.architecture,
            self.taps,
            self.activation,
            self.conv_clamp,
            self.stddev_group,
            self.stddev_channels,
            self.dtype,
            name="b4",
        )
        scores, taps["features"] = epilogue(x, image, embedding)
        return scores.astype(jnp.float32), taps


def layer_count(size: int) -> int:
    """How many styles a generator of this size reads."""
    return 2 * (size.bit_length() - 1) - 2


def _activated(
    x: Array, bias: Array | None, activation: str, gain: float, clamp: float | None
) -> Array:
    act = ops.ACTIVATIONS[activation]
    limit = None if clamp is None else clamp * gain
    return ops.bias_act(x, bias, act, gain=act.gain * gain, clamp=limit)


def _check(size: int, architecture: str, activation: str) -> None:
    style.check_size(size, SMALLEST)
    for name, value, known in (
        ("architecture", architecture, ARCHITECTURES),
        ("activation", activation, tuple(ops.ACTIVATIONS)),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} is none of {', '.join(known)}")


def _static(taps: Filter) -> Taps2D:
    array = ops.resampling_filter(taps)
    if array.ndim == 1:
        return tuple(array.tolist())
    return tuple(tuple(row) for row in array.tolist())


def _frozen(options: ReadOnly[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((options or {}).items()))
