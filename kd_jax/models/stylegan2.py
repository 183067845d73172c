"""StyleGAN2 (Karras et al. 2020) with the conditioning of StyleGAN2-ADA, from 4x4 up.

The generator is a style network: `mapping` maps a latent to a style, and `synthesis` maps one style
per layer to an image. Its convolutions are modulated by the styles and demodulated. `architecture`
is one of the paper's figure 7: with skip connections between images ("skip"), residual blocks
("resnet"), or neither ("orig"). `channel_base` and `channel_max` are the compression knobs: a layer
at side r has `min(channel_base / r, channel_max)` channels.

Images are `[B, size, size, channels]`, unbounded, data in [-1, 1]; latents `[B, latent]`; labels
int `[B]`, or a float condition `[B, classes]`.
"""

import math
from collections.abc import Mapping as ReadOnly, Sequence
from functools import wraps
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axes, Axis, InputAxis, NormScale, Repeat, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.factories import make_gan
from kd_jax.models.layers import style
from kd_jax.models.layers.remat import remat as remat_block
from kd_jax.models.layers.style import side_widths
from kd_jax.ops.resample import Filter

Architecture = Literal["skip", "resnet", "orig"]
ARCHITECTURES = ("skip", "resnet", "orig")
Noise = str | Sequence[Array] | None
Filter2D = tuple[tuple[float, ...], ...]

SMALLEST = 4
RESIDUAL = math.sqrt(0.5)  # preserves the variance in a sum of two terms


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
    image_filter: Filter | None = None,
    activation: str = "lrelu",
    noise: bool = True,
    conv_clamp: float | None = None,
    fused: bool = False,
    style_mixing: float = 0.0,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """`(latents[, labels]) -> images`, a style network.

    Options of `apply`, by keyword: `truncation` and `truncation_cutoff` (also of `mapping`), and
    `noise` (also of `synthesis`): "random", "const" (the stored noise images), "none", or a
    sequence of `[B or 1, H, W, 1]`, one per convolution; the default is random with `rngs` and
    constant without. Taps: `styles` `[B, layers, style]`; `4x4`, `8x8`, ..., each block's
    features; and, of a skip generator, `image/4x4`, ..., the sum of the images up to that side.

    Args:
      size: the image's side, a power of two from 4 to 1024.
      channels: the image's channels.
      classes: number of classes, or the condition's length; 0 for an unconditional network.
      latent: the latent's length.
      style: the style's length.
      channel_base: channels times the side.
      channel_max: upper bound on the channels of each layer.
      widths: channels at each side, `{4: 512, ...}`, instead of these two.
      architecture: "skip", "resnet" or "orig".
      mapping: further fields of `layers.style.Mapping` (`depth`, `lr_multiplier`, ...).
      resample_filter: the filter of up- and downsampling; it is normalised.
      image_filter: the filter that enlarges the images of a skip generator; by default the same.
      activation: a name in `kd_jax.ops.ACTIVATIONS`.
      noise: whether the layers have noise inputs.
      conv_clamp: the largest magnitude of a layer's output, for half precision.
      fused: whether the kernels are modulated for each example, rather than the features.
      style_mixing: in training with a key, the probability that an image's later layers get the
        style of another latent. Leave it at 0 if a teacher must see the same latents.
      dtype: the computation dtype of the synthesis; parameters and images are always float32.
      remat: whether the gradient recomputes the activations within the block of each side.

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
        mapping_options=_freeze(mapping),
        architecture=architecture,
        resample_filter=_hashable_filter(resample_filter),
        activation=activation,
        noise=noise,
        conv_clamp=conv_clamp,
        fused=fused,
        style_mixing=style_mixing,
        dtype=dtype,
        remat=remat,
        image_filter=None if image_filter is None else _hashable_filter(image_filter),
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
    remat: bool = False,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits). Taps ..., `8x8`, `4x4`, and `features` `[B, C]`.

    With labels the score is the scalar product of the last layer's output and an embedding of the
    label.

    Args:
      size: the image's side, a power of two from 8 to 1024.
      channels: the image's channels.
      classes: number of classes, or the condition's length; 0 for an unconditional network.
      channel_base: channels times the side.
      channel_max: upper bound on the channels of each layer.
      widths: channels at each side, `{4: 512, ...}`, instead of these two.
      architecture: "skip", "resnet" or "orig".
      condition: length of the label's embedding; the channels at 4x4 by default.
      mapping: further fields of `layers.style.Mapping` for the label.
      resample_filter: the filter of the downsampling; it is normalised.
      activation: a name in `kd_jax.ops.ACTIVATIONS`.
      conv_clamp: the largest magnitude of a layer's output, for half precision.
      stddev_group: group size of the minibatch standard deviation; None for the whole batch.
      stddev_channels: channels it adds; 0 for none.
      dtype: the computation dtype, except of the last layers; parameters and scores are float32.
      remat: whether the gradient recomputes the activations within the block of each side.

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
        mapping_options=_freeze(mapping),
        resample_filter=_hashable_filter(resample_filter),
        activation=activation,
        conv_clamp=conv_clamp,
        stddev_group=stddev_group,
        stddev_channels=stddev_channels,
        dtype=dtype,
        remat=remat,
    )
    return from_linen(module)


@wraps(generator)
def _generator_of_gan(size: int, *, latent: int = 512, **options: Any) -> Network:
    return generator(size, latent=latent, style=latent, **options)


gan = make_gan(
    _generator_of_gan,
    discriminator,
    fixed={
        "style": "as long as the latent",
        "architecture": "a skip generator and a residual discriminator, as in configuration F",
        "mapping": "the default of each network",
    },
)
"""The paper's configuration F, as a `PerNetwork`: a skip `generator`, with styles as long as the
latent, and a residual `discriminator`, with the other arguments of both."""


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are `const` and, for each side, e.g. `8x8/conv0` and `8x8` (named like the tap). The
    mapping network is not pruned. An affine layer's bias scales a channel as a norm's scale does.

    Args:
      variables: those of a `generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `generator`, or include connectors.
    """
    synthesis = variables["params"].get("synthesis")
    if synthesis is None or "b4" not in synthesis:
        raise ValueError(
            "the variables are not those of a StyleGAN2 generator: their parameters are "
            f"{sorted(variables['params'])}"
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
            axes[f"{layer}/weight"] = (None, None, InputAxis(reads, equalized=True), writes)
            axes[f"{layer}/bias"] = (writes,)
            axes[f"{layer}/affine/weight"] = (None, reads)
            axes[f"{layer}/affine/bias"] = (NormScale(reads),)
            if "noise_strength" in block[name]:
                axes[f"{layer}/noise_strength"] = ()
            reads = writes or reads
        if "skip" in block:
            axes[f"params/synthesis/b{side}/skip/weight"] = (
                None,
                None,
                InputAxis(before, equalized=True),
                group,
            )
        before = group
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a discriminator's variables, for `kd_jax.pruning`.

    Each side has two groups, e.g. `8x8/in`, the block's input, and `8x8/conv0`; the last block has
    `conv` and `features`. The label's mapping network is not pruned.

    Args:
      variables: those of a `discriminator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `discriminator`, or include connectors.
    """
    params = variables["params"]
    if "b4" not in params or "fc" not in params["b4"]:
        raise ValueError(
            "the variables are not those of a StyleGAN2 discriminator: their parameters are "
            f"{sorted(params)}"
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
            axes[f"{layer}/conv/weight"] = (None, None, InputAxis(reads, equalized=True), "conv")
            axes[f"{layer}/conv/bias"] = ("conv",)
            axes[f"{layer}/fc/weight"] = (
                InputAxis(Repeat("conv", SMALLEST**2), equalized=True),
                "features",
            )
            axes[f"{layer}/fc/bias"] = ("features",)
            axes[f"{layer}/out/weight"] = (InputAxis("features", equalized=True), None)
            axes[f"{layer}/out/bias"] = (None,)
            continue
        inner = f"{side}x{side}/conv0"
        axes[f"{layer}/conv0/weight"] = (None, None, InputAxis(group, equalized=True), inner)
        axes[f"{layer}/conv0/bias"] = (inner,)
        axes[f"{layer}/conv1/weight"] = (None, None, InputAxis(inner, equalized=True), after)
        axes[f"{layer}/conv1/bias"] = (after,)
        if "skip" in block:
            axes[f"{layer}/skip/weight"] = (None, None, InputAxis(group, equalized=True), after)
    group_widths(variables, axes)
    return axes


def _sides_of(blocks: ReadOnly[str, Any]) -> list[int]:
    return sorted(int(name[1:]) for name in blocks if name[0] == "b" and name[1:].isdigit())


def _width_before(params: ReadOnly[str, Any]) -> int:
    """The output channels of the second to last block."""
    return params[f"b{2 * SMALLEST}"]["conv1"]["weight"].shape[-1]


class Convolution(nn.Module):
    """An equalized convolution with resampling, bias, activation and clamp."""

    features: int
    kernel: int
    resample_filter: Filter2D
    activation: str = "linear"
    use_bias: bool = True
    up: int = 1
    down: int = 1
    conv_clamp: float | None = None
    dtype: Any = None  # of the inputs, at least float32

    @nn.compact
    def __call__(self, x: Array, gain: float = 1.0) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        weight = self.param("weight", nn.initializers.normal(1.0), shape)
        weight = weight / math.sqrt(math.prod(shape[:3]))
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        dtype = self.dtype or at_least_float32(x).dtype
        x = ops.conv_resample(
            x.astype(dtype),
            weight.astype(dtype),
            self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.kernel // 2,
        )
        return _bias_act(x, bias, self.activation, gain, self.conv_clamp)


class SynthesisLayer(nn.Module):
    """A modulated 3x3 convolution, noise, bias and activation."""

    features: int
    side: int
    resample_filter: Filter2D
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
            self.resample_filter if self.up > 1 else None,
            up=self.up,
            padding=1,
            fused=self.fused,
        )
        if self.noise:
            strength = self.param("noise_strength", nn.initializers.zeros, ())
            constant = self.variable("noise", "noise_const", self._draw_noise)
            values = self._noise_values(noise, constant.value, x)
            if values is not None:
                x = x + (values * strength).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return _bias_act(x, bias, self.activation, gain, self.conv_clamp)

    def _draw_noise(self) -> Array:
        return jax.random.normal(self.make_rng("params"), (self.side, self.side))

    def _noise_values(self, noise: Any, constant: Array, x: Array) -> Array | None:
        if not isinstance(noise, str):
            if jnp.ndim(noise) != 4 or noise.shape[1:] != (*x.shape[1:3], 1):
                raise ValueError(
                    f"noise of shape {jnp.shape(noise)} does not fit a layer that needs "
                    f"[B or 1, {x.shape[1]}, {x.shape[2]}, 1]"
                )
            return noise
        if noise == "random":
            return jax.random.normal(self.make_rng("noise"), (*x.shape[:3], 1))
        return constant[None, :, :, None] if noise == "const" else None


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
        return at_least_float32(ops.bias_act(x, bias, clamp=self.conv_clamp))


class SynthesisBlock(nn.Module):
    """The layers of the generator at one side."""

    side: int
    features: int
    channels: int
    last: bool
    architecture: Architecture
    resample_filter: Filter2D
    activation: str
    noise: bool
    conv_clamp: float | None
    fused: bool
    dtype: Any
    image_filter: Filter2D | None = None

    @nn.compact
    def __call__(
        self, x: Array | None, image: Array | None, styles: list[Array], noises: tuple[Any, ...]
    ) -> tuple[Array, Array | None]:
        def layer(name: str, up: int = 1) -> SynthesisLayer:
            return SynthesisLayer(
                self.features,
                self.side,
                self.resample_filter,
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
                self.features,
                1,
                self.resample_filter,
                use_bias=False,
                up=2,
                dtype=self.dtype,
                name="skip",
            )
            y = skip(x, gain=RESIDUAL)
            x = layer("conv0", up=2)(x, styles[0], noises[0])
            x = y + layer("conv1")(x, styles[1], noises[1], gain=RESIDUAL)
        else:
            x = layer("conv0", up=2)(x, styles[0], noises[0])
            x = layer("conv1")(x, styles[1], noises[1])
        if image is not None:
            image = ops.upsample2d(image, self.image_filter or self.resample_filter)
        if self.last or self.architecture == "skip":
            torgb = ToRGB(self.channels, self.conv_clamp, self.fused, self.dtype, name="torgb")
            y = torgb(x, styles[-1])
            image = y if image is None else image + y
        return x, image


class Synthesis(nn.Module):
    """Maps styles to images."""

    size: int
    widths: tuple[int, ...]
    channels: int
    style: int
    architecture: Architecture
    resample_filter: Filter2D
    activation: str
    noise: bool
    conv_clamp: float | None
    fused: bool
    dtype: Any
    remat: bool = False
    image_filter: Filter2D | None = None

    @nn.compact
    def __call__(
        self, styles: Array, *, train: bool = False, noise: Noise = None
    ) -> tuple[Array, dict[str, Array]]:
        """Maps styles `[B, layers, style]` to images and taps."""
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
                raise ValueError(f"noise={noise!r} is not one of 'random', 'const', 'none'")
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
            static = (4,) if isinstance(noise, str) else ()
            block = remat_block(SynthesisBlock, self.remat, static)(
                side,
                features,
                self.channels,
                side == self.size,
                self.architecture,
                self.resample_filter,
                self.activation,
                self.noise,
                self.conv_clamp,
                self.fused,
                self.dtype,
                self.image_filter,
                name=f"b{side}",
            )
            # A style for each convolution, and the next one for the image.
            block_styles = [styles[:, i] for i in range(index, index + count + 1)]
            x, image = block(x, image, block_styles, tuple(noises[index : index + count]))
            taps[f"{side}x{side}"] = x
            if image is not None:
                taps[f"image/{side}x{side}"] = image
            index += count
        assert image is not None  # the last block creates it
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
    resample_filter: Filter2D
    activation: str
    noise: bool
    conv_clamp: float | None
    fused: bool
    style_mixing: float
    dtype: Any
    remat: bool = False
    image_filter: Filter2D | None = None

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
            self.resample_filter,
            self.activation,
            self.noise,
            self.conv_clamp,
            self.fused,
            self.dtype,
            self.remat,
            self.image_filter,
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
    resample_filter: Filter2D
    activation: str
    conv_clamp: float | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array | None, image: Array) -> tuple[Array, Array]:
        def layer(name: str, features: int, kernel: int, **options: Any) -> Convolution:
            options = {"activation": self.activation, "conv_clamp": self.conv_clamp} | options
            return Convolution(
                features, kernel, self.resample_filter, dtype=self.dtype, name=name, **options
            )

        if self.first or self.architecture == "skip":
            y = layer("fromrgb", self.inner, 1)(image)
            x = y if x is None else x + y
        if self.architecture == "skip":
            image = ops.downsample2d(image, self.resample_filter)
        assert x is not None  # the first block computes it from the image
        if self.architecture == "resnet":
            plain = {"activation": "linear", "conv_clamp": None, "use_bias": False}
            y = layer("skip", self.features, 1, down=2, **plain)(x, gain=RESIDUAL)
            x = layer("conv0", self.inner, 3)(x)
            return y + layer("conv1", self.features, 3, down=2)(x, gain=RESIDUAL), image
        x = layer("conv0", self.inner, 3)(x)
        return layer("conv1", self.features, 3, down=2)(x), image


class Epilogue(nn.Module):
    """Maps the features at 4x4 to the score."""

    features: int
    condition: int
    architecture: Architecture
    resample_filter: Filter2D
    activation: str
    conv_clamp: float | None
    stddev_group: int | None
    stddev_channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, image: Array, embedding: Array | None) -> tuple[Array, Array]:
        convolution = {"activation": self.activation, "dtype": self.dtype}
        if self.architecture == "skip":
            fromrgb = Convolution(
                self.features, 1, self.resample_filter, name="fromrgb", **convolution
            )
            x = x + fromrgb(image)
        if self.stddev_channels:
            group = x.shape[0] if self.stddev_group is None else self.stddev_group
            deviation = ops.minibatch_stddev(x, group, self.stddev_channels)
            x = jnp.concatenate([x, deviation], axis=-1)
        conv = Convolution(
            self.features,
            3,
            self.resample_filter,
            conv_clamp=self.conv_clamp,
            name="conv",
            **convolution,
        )
        x = at_least_float32(conv(x))
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
    resample_filter: Filter2D
    activation: str
    conv_clamp: float | None
    stddev_group: int | None
    stddev_channels: int
    dtype: Any
    remat: bool = False

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
            block = remat_block(DiscriminatorBlock, self.remat)(
                self.widths[number - 1],
                self.widths[number],
                side == self.size,
                self.architecture,
                self.resample_filter,
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
            embedding = taps["mapping"] = mapping(None, labels)
        elif labels is not None and labels.size:
            raise ValueError(f"the network is not conditional, but got labels {labels.shape}")
        epilogue = Epilogue(
            self.widths[0],
            length,
            self.architecture,
            self.resample_filter,
            self.activation,
            self.conv_clamp,
            self.stddev_group,
            self.stddev_channels,
            self.dtype,
            name="b4",
        )
        scores, taps["features"] = epilogue(x, image, embedding)
        return at_least_float32(scores), taps


def layer_count(size: int) -> int:
    """The number of styles that a generator of this size reads."""
    return 2 * (size.bit_length() - 1) - 2


def _bias_act(
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
            raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")


def _hashable_filter(resample_filter: Filter) -> Filter2D:
    """The filter as tuples: fields of a module must be hashable."""
    array = ops.resampling_filter(resample_filter)
    if array.ndim == 1:
        return tuple(array.tolist())
    return tuple(tuple(row) for row in array.tolist())


def _freeze(options: ReadOnly[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((options or {}).items()))


FAMILY = Family(
    "stylegan2",
    (Generator,),
    narrowed("widths"),
    generator_axes,
    student=lambda like, width: generator(
        like.size,
        channels=like.channels,
        classes=like.classes,
        latent=like.latent,
        style=like.latent,
        mapping={"depth": 2},
        channel_base=width * like.size,
        channel_max=8 * width,
    ),
)
