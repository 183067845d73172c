"""StyleGAN (Karras et al. 2019), grown progressively from 4x4 up (Karras et al. 2018).

The generator is a style network: `mapping` maps a latent to a style, and `synthesis` maps one style
per layer to an image. A layer convolves, adds noise, and sets each channel's mean and standard
deviation from its style (AdaIN). Each side has its own convolutions to and from images; a level of
detail, `lod`, selects the side at which the networks work: 0 is the full size, each 1 halves it,
and fractional levels blend the two adjacent sides. `channel_base` and `channel_max` are the
compression knobs: a layer at side r has `min(channel_base / r, channel_max)` channels.

Two programs published weights. The defaults are those of the authors' program; `eps`,
`bias_before_blur` and `shared_noise` of a generator, and `inner`, `stddev_group` and
`activate_fromrgb` of a discriminator, are the options in which the other (rosinality's) differs.

Images are `[B, size, size, channels]`, unbounded, data in [-1, 1]; latents `[B, latent]`; labels
int `[B]`, or a float condition `[B, classes]`.
"""

import math
from collections.abc import Mapping as ReadOnly, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axes, Axis, InputAxis, Repeat, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.factories import make_gan
from kd_jax.models.layers import style
from kd_jax.models.layers.style import side_widths
from kd_jax.ops import ACTIVATIONS, Activation
from kd_jax.ops.resample import Filter

Noise = str | Sequence[Array] | None
Lod = float | Array | None
Filter2D = tuple[tuple[float, ...], ...]

LINEAR, LRELU = ACTIVATIONS["linear"], ACTIVATIONS["lrelu"]
SMALLEST = 4
NOISES = ("random", "const", "none")
BOX = (0.5, 0.5)  # the resampling filter of images


def generator(
    size: int,
    *,
    channels: int = 3,
    classes: int = 0,
    latent: int = 512,
    style: int | None = None,
    depth: int = 8,
    hidden: int | None = None,
    channel_base: int = 16384,
    channel_max: int = 512,
    widths: ReadOnly[int, int] | None = None,
    blur: Filter = (1, 2, 1),
    eps: float = 1e-8,
    bias_before_blur: bool = False,
    shared_noise: bool = False,
    style_mixing: float = 0.0,
    lod: float = 0.0,
    tanh: bool = False,
    dtype: Any = jnp.float32,
) -> Network:
    """`(latents[, labels]) -> images`, a style network.

    Options of `apply`, by keyword: `truncation` and `truncation_cutoff` (also of `mapping`); and,
    also of `synthesis`, `noise` and `lod`. `noise` is "random", "const" (the stored noise images),
    "none", or a sequence of `[B or 1, H, W, 1]`, one per layer; the default is random with `rngs`
    and constant without. `lod` is a number or a traced scalar; at any `lod` the images have the
    full size. Taps: `styles` `[B, layers, style]` (of `apply`); `4x4`, `8x8`, ..., the features
    after the second layer of each side.

    Args:
      size: the image's side, a power of two from 4 to 1024.
      channels: the image's channels.
      classes: number of classes, or the condition's length; 0 for an unconditional network.
      latent: the latent's length.
      style: the style's length; the latent's by default.
      depth: layers of the mapping.
      hidden: width of these layers, except the last; the style's length by default.
      channel_base: channels times the side.
      channel_max: upper bound on the channels of each layer.
      widths: channels at each side, `{4: 512, ...}`, instead of these two.
      blur: the filter after an upsampling; it is normalised.
      eps: added to the variance in AdaIN.
      bias_before_blur: whether the bias is added before the blur, which then sees zeros around both
        features and bias.
      shared_noise: whether both layers of a side get the same random noise.
      style_mixing: in training with a key, the probability that an image's later layers get the
        style of another latent. Leave it at 0 if a teacher must see the same latents.
      lod: the level of detail if none is passed to `apply`.
      tanh: whether the image is the hyperbolic tangent of the last sum.
      dtype: the computation dtype of the synthesis; parameters and images are always float32.

    Raises:
      ValueError: a side or a level of detail is out of range, or a side has no channels.
    """
    _check_lod(lod, size)
    module = Generator(
        size=size,
        widths=side_widths(size, channel_base, channel_max, widths),
        channels=channels,
        latent=latent,
        classes=classes,
        style=latent if style is None else style,
        depth=depth,
        hidden=hidden,
        blur=_hashable_filter(blur),
        eps=eps,
        bias_before_blur=bias_before_blur,
        shared_noise=shared_noise,
        style_mixing=style_mixing,
        lod=lod,
        tanh=tanh,
        dtype=dtype,
    )
    return from_linen(module, style=True)


def discriminator(
    size: int,
    *,
    channels: int = 3,
    classes: int = 0,
    channel_base: int = 16384,
    channel_max: int = 512,
    widths: ReadOnly[int, int] | None = None,
    inner: ReadOnly[int, int] | None = None,
    features: int | None = None,
    blur: Filter = (1, 2, 1),
    activate_fromrgb: bool = True,
    stddev_group: int | None = 4,
    stddev_channels: int = 1,
    lod: float = 0.0,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits). Taps ..., `8x8`, `4x4`, and `features` `[B, C]`.

    With labels the network computes one score per class and returns that of the label. `apply`
    takes `lod` by keyword, as a generator does; the images are downsampled accordingly.

    Args:
      size: the image's side, a power of two from 4 to 1024.
      channels: the image's channels.
      classes: as in `generator`.
      channel_base: channels times the side.
      channel_max: upper bound on the channels of each layer.
      widths: input channels of each side's block, `{4: 512, ...}`, instead of these two.
      inner: channels between the two convolutions of each side; the input channels by default.
      features: width of the last hidden layer; by default that of a side of 2, or with `widths`
        that at 4.
      blur: the filter before a downsampling; it is normalised.
      activate_fromrgb: whether the convolutions of the images are activated.
      stddev_group: group size of the minibatch standard deviation; None for the whole batch.
      stddev_channels: channels it adds; 0 for none.
      lod: the level of detail if none is passed to `apply`.
      dtype: the computation dtype; parameters and scores are always float32.

    Raises:
      ValueError: a side or a level of detail is out of range, or a side has no channels.
    """
    _check_lod(lod, size)
    in_widths = side_widths(size, channel_base, channel_max, widths)
    if features is None:
        features = widths[SMALLEST] if widths else max(min(channel_base // 2, channel_max), 1)
    module = Discriminator(
        size=size,
        widths=in_widths,
        inner=in_widths if inner is None else side_widths(size, channel_base, channel_max, inner),
        features=features,
        channels=channels,
        classes=classes,
        blur=_hashable_filter(blur),
        activate_fromrgb=activate_fromrgb,
        stddev_group=stddev_group,
        stddev_channels=stddev_channels,
        lod=lod,
        dtype=dtype,
    )
    return from_linen(module)


gan = make_gan(generator, discriminator)
"""A `generator` and its `discriminator`, as a `PerNetwork`, with the arguments of both."""


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    Each side has two groups, e.g. `8x8/conv0` and `8x8` (named like the tap). The mapping network
    is not pruned.

    Args:
      variables: those of a `generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `generator`, or include connectors.
    """
    synthesis = variables["params"].get("synthesis", {})
    if "const" not in synthesis.get("b4", {}).get("conv0", {}):
        raise ValueError(
            "the variables are not those of a StyleGAN generator: their parameters are "
            f"{sorted(variables['params'])}"
        )
    axes: dict[str, tuple[Axis, ...]] = {}
    for path, leaf in tensors(variables).items():
        if "/mapping/" in path or path.startswith("noise/"):
            axes[path] = (None,) * len(leaf.shape)
    before: Axis = None
    for side in _sides_of(synthesis):
        block, last = f"params/synthesis/b{side}", f"{side}x{side}"
        for name, group in (("conv0", f"{last}/conv0"), ("conv1", last)):
            layer = f"{block}/{name}"
            if before is None:
                axes[f"{layer}/const"] = (None, None, group)
            else:
                axes[f"{layer}/weight"] = (None, None, before, group)
            axes[f"{layer}/noise_strength"] = axes[f"{layer}/bias"] = (group,)
            axes[f"{layer}/affine/weight"] = (None, Repeat(group, 2))
            axes[f"{layer}/affine/bias"] = (Repeat(group, 2),)
            before = InputAxis(group, equalized=True)
        axes[f"{block}/torgb/weight"] = (None, None, before, None)
        axes[f"{block}/torgb/bias"] = (None,)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a discriminator's variables, for `kd_jax.pruning`.

    Each side has two groups, e.g. `8x8/in`, the block's input, and `8x8/conv0`; the last block has
    `conv` and `features`.

    Args:
      variables: those of a `discriminator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `discriminator`, or include connectors.
    """
    params = variables["params"]
    if "fromrgb" not in params.get("b4", {}):
        raise ValueError(
            "the variables are not those of a StyleGAN discriminator: their parameters are "
            f"{sorted(params)}"
        )
    axes: dict[str, tuple[Axis, ...]] = {}

    def layer(path: str, reads: Axis, writes: Axis, *window: None) -> None:
        axes[f"params/{path}/weight"] = (*window, reads, writes)
        axes[f"params/{path}/bias"] = (writes,)

    for side in _sides_of(params):
        group = f"{side}x{side}/in"
        layer(f"b{side}/fromrgb", None, group, None, None)
        if side > SMALLEST:
            layer(
                f"b{side}/conv0",
                InputAxis(group, equalized=True),
                f"{side}x{side}/conv0",
                None,
                None,
            )
            after = f"{side // 2}x{side // 2}/in"
            layer(
                f"b{side}/conv1",
                InputAxis(f"{side}x{side}/conv0", equalized=True),
                after,
                None,
                None,
            )
    extra = params["b4"]["conv"]["weight"].shape[2] - params["b4"]["fromrgb"]["bias"].shape[0]
    reads: Axis = ("4x4/in", extra) if extra else "4x4/in"
    layer("b4/conv", InputAxis(reads, equalized=True), "conv", None, None)
    layer("b4/fc", InputAxis(Repeat("conv", SMALLEST**2), equalized=True), "features")
    layer("b4/out", InputAxis("features", equalized=True), None)
    group_widths(variables, axes)
    return axes


def adaptive_instance_norm(x: Array, styles: Array, eps: float = 1e-8) -> Array:
    """Normalises each channel over each image, scales and shifts it (Karras et al. 2019, eq. 1).

    Args:
      x: `[B, H, W, C]`.
      styles: `[B, 2 C]`: the scales minus 1, then the shifts.
      eps: added to the variance.

    Returns:
      `[B, H, W, C]` of x's dtype; the statistics are computed in float32 or higher precision.

    Raises:
      ValueError: the shapes of `styles` and `x` do not match.
    """
    if styles.shape != (x.shape[0], 2 * x.shape[-1]):
        raise ValueError(f"styles {styles.shape} do not match images {x.shape}: not [B, 2 C]")
    values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale, shift = jnp.split(styles[:, None, None], 2, axis=-1)
    centered = values - values.mean(axis=(1, 2), keepdims=True)
    variance = (centered**2).mean(axis=(1, 2), keepdims=True)
    return (centered * jax.lax.rsqrt(variance + eps) * (scale + 1) + shift).astype(x.dtype)


def layer_count(size: int) -> int:
    """The number of layers, and thus of styles and noise images, of a generator of this size."""
    return 2 * (size.bit_length() - 1) - 2


class Convolution(nn.Module):
    """A convolution with an equalized learning rate, a bias and an activation.

    He's constant multiplies the kernel, not the bias (Karras et al. 2018, section 4.1).
    """

    features: int
    kernel: int = 3
    down: bool = False
    activation: Activation = LRELU
    dtype: Any = None  # of the inputs, at least float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        weight = self.param("weight", nn.initializers.normal(1.0), shape)
        dtype = self.dtype or at_least_float32(x).dtype
        weight = _equalize(weight, self.activation.gain).astype(dtype)
        x = x.astype(dtype)
        x = ops.conv(x, _spread(weight) / 4, stride=2) if self.down else ops.conv(x, weight)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return ops.bias_act(x, bias, self.activation, gain=1.0)


class SynthesisLayer(nn.Module):
    """A constant or a convolution, optionally upsampling; then noise, bias, activation, AdaIN."""

    features: int
    up: bool
    blur: Filter2D
    eps: float
    bias_before_blur: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array | None, w: Array, noise: Array | None) -> Array:
        zeros = nn.initializers.zeros
        bias: Array | None = self.param("bias", zeros, (self.features,))
        if x is None:
            shape = (SMALLEST, SMALLEST, self.features)
            const = self.param("const", nn.initializers.ones, shape).astype(self.dtype)
            x = jnp.broadcast_to(const[None], (w.shape[0], *shape))
        else:
            window = (3, 3, x.shape[-1], self.features)
            weight = self.param("weight", nn.initializers.normal(1.0), window)
            weight = _equalize(weight, LRELU.gain).astype(self.dtype)
            x = x.astype(self.dtype)
            if not self.up:
                x = ops.conv(x, weight)
            else:
                x = ops.conv_transpose(x, _spread(weight), stride=2)
                if self.bias_before_blur:
                    x, bias = ops.bias_act(x, bias), None
                x = ops.filter2d(x, self.blur)
        strength = self.param("noise_strength", zeros, (self.features,))
        if noise is not None:
            x = x + (noise * strength[None, None, None]).astype(x.dtype)
        x = ops.bias_act(x, bias, LRELU, gain=1.0)
        return adaptive_instance_norm(x, style.Dense(2 * self.features, name="affine")(w), self.eps)


class SynthesisBlock(nn.Module):
    """The layers at one side, and the projection of their features to an image."""

    features: int
    channels: int
    blur: Filter2D
    eps: float
    bias_before_blur: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Array | None, styles: Array, noises: Sequence[Array | None]
    ) -> tuple[Array, Array]:
        options = (self.blur, self.eps, self.bias_before_blur, self.dtype)
        conv0 = SynthesisLayer(self.features, True, *options, name="conv0")
        conv1 = SynthesisLayer(self.features, False, *options, name="conv1")
        torgb = Convolution(self.channels, 1, activation=LINEAR, dtype=self.dtype, name="torgb")
        x = conv0(x, styles[:, 0], noises[0])
        x = conv1(x, styles[:, 1], noises[1])
        return x, at_least_float32(torgb(x))


class Synthesis(nn.Module):
    """Maps styles to images. The stored noise images are in the collection `noise`."""

    size: int
    widths: tuple[int, ...]
    channels: int
    style: int
    blur: Filter2D
    eps: float
    bias_before_blur: bool
    shared_noise: bool
    lod: float
    dtype: Any
    tanh: bool = False

    @nn.compact
    def __call__(
        self,
        styles: Array,
        *,
        train: bool = False,
        noise: Noise = None,
        lod: Lod = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Maps styles `[B, layers, style]` to images and taps."""
        del train
        layers = layer_count(self.size)
        if styles.ndim != 3 or styles.shape[1:] != (layers, self.style):
            raise ValueError(f"styles [B, {layers}, {self.style}] are needed, not {styles.shape}")
        fades = _fades(self.lod if lod is None else lod, self.size)
        noises = self._layer_noises(noise, styles.shape[0])
        taps: dict[str, Array] = {}
        x = image = None
        for number, (features, fade) in enumerate(zip(self.widths, fades, strict=True)):
            side = SMALLEST << number
            block = SynthesisBlock(
                features,
                self.channels,
                self.blur,
                self.eps,
                self.bias_before_blur,
                self.dtype,
                name=f"b{side}",
            )
            layer_pair = slice(2 * number, 2 * number + 2)
            x, finer = block(x, styles[:, layer_pair], noises[layer_pair])
            image = finer if image is None else _blend(finer, ops.upsample2d(image, BOX), fade)
            taps[f"{side}x{side}"] = x
        assert image is not None  # there is a block for 4x4
        return jnp.tanh(image) if self.tanh else image, taps

    def _layer_noises(self, noise: Noise, batch: int) -> list[Array | None]:
        """The noise of each layer, `[B or 1, H, W, 1]` or None."""
        sides = [SMALLEST << index // 2 for index in range(layer_count(self.size))]
        key = self.make_rng("params") if self.is_initializing() else None
        constants = [
            self.variable("noise", f"noise{index}", self._draw_noise, key, index, (side, side))
            for index, side in enumerate(sides)
        ]
        if noise is None:
            noise = "random" if self.has_rng("params") else "const"
        if isinstance(noise, str):
            if noise not in NOISES:
                raise ValueError(f"noise={noise!r} is not one of {', '.join(map(repr, NOISES))}")
            if noise == "none":
                return [None] * len(sides)
            if noise == "const":
                return [constant.value[None, :, :, None] for constant in constants]
            if not self.has_rng("params"):
                raise ValueError("noise='random' needs a key: rngs=jax.random.key(...)")
            key = self.make_rng("noise")
            return [
                self._draw_noise(key, index, (batch, side, side, 1))
                for index, side in enumerate(sides)
            ]
        if len(noise) != len(sides):
            raise ValueError(f"{len(sides)} images of noise are needed, not {len(noise)}")
        for index, (image, side) in enumerate(zip(noise, sides, strict=True)):
            fitting = [(count, side, side, 1) for count in (batch, 1)]
            if image.shape not in fitting:
                raise ValueError(
                    f"noise {index} has shape {image.shape}, not {fitting[0]} or {fitting[1]}"
                )
        return list(noise)

    def _draw_noise(self, key: Array, layer: int, shape: tuple[int, ...]) -> Array:
        index = layer // 2 if self.shared_noise else layer
        return jax.random.normal(jax.random.fold_in(key, index), shape)


class Mapping(nn.Module):
    """Maps latents, and optionally a condition, to styles.

    It differs from `style.Mapping` in that the embedded condition is concatenated to the latents
    before the normalisation.
    """

    latent: int
    classes: int
    style: int
    layers: int
    depth: int
    hidden: int | None

    def setup(self) -> None:
        length = 2 * self.latent if self.classes else self.latent
        self.dense = style.Mapping(
            length,
            0,
            self.style,
            self.layers,
            self.depth,
            self.hidden,
            average_decay=0.995,
        )
        nn.share_scope(self, self.dense)
        if self.classes:
            shape = (self.classes, self.latent)
            self.embedding = self.param("embedding", nn.initializers.normal(1.0), shape)

    def __call__(self, latents: Array, labels: Array | None = None, **options: Any) -> Array:
        """Returns styles `[B, layers, style]`; options are those of `style.Mapping`."""
        if latents.ndim != 2 or latents.shape[1] != self.latent:
            raise ValueError(f"latents [B, {self.latent}] are needed, not {latents.shape}")
        if self.classes:
            embedded = style.as_vector(labels, self.classes) @ self.embedding
            latents = jnp.concatenate([at_least_float32(latents), embedded], axis=-1)
            labels = None
        return self.dense(latents, labels, **options)


class Generator(nn.Module):
    """See `generator`."""

    size: int
    widths: tuple[int, ...]
    channels: int
    latent: int
    classes: int
    style: int
    depth: int
    hidden: int | None
    blur: Filter2D
    eps: float
    bias_before_blur: bool
    shared_noise: bool
    style_mixing: float
    lod: float
    dtype: Any
    tanh: bool = False

    def setup(self) -> None:
        self.mapping = Mapping(
            self.latent,
            self.classes,
            self.style,
            layer_count(self.size),
            self.depth,
            self.hidden,
        )
        self.synthesis = Synthesis(
            self.size,
            self.widths,
            self.channels,
            self.style,
            self.blur,
            self.eps,
            self.bias_before_blur,
            self.shared_noise,
            self.lod,
            self.dtype,
            self.tanh,
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
        lod: Lod = None,
    ) -> tuple[Array, dict[str, Array]]:
        styles = style.map_styles(self, latents, labels, train, truncation, truncation_cutoff)
        image, taps = self.synthesis(styles, train=train, noise=noise, lod=lod)
        return image, {"styles": styles, **taps}


class DiscriminatorBlock(nn.Module):
    """The layers at one side: `fromrgb` of an image, and two convolutions; the second halves it."""

    features: int
    inner: int
    in_features: int
    blur: Filter2D
    activate_fromrgb: bool
    dtype: Any

    def setup(self) -> None:
        self.fromrgb = _fromrgb(self.in_features, self.activate_fromrgb, self.dtype)
        self.conv0 = Convolution(self.inner, dtype=self.dtype)
        self.conv1 = Convolution(self.features, down=True, dtype=self.dtype)

    def from_image(self, image: Array) -> Array:
        return self.fromrgb(image)

    def __call__(self, x: Array) -> Array:
        return self.conv1(ops.filter2d(self.conv0(x), self.blur))


class Epilogue(nn.Module):
    """The layers at 4x4: `fromrgb` of an image, and from features to scores."""

    features: int
    inner: int
    in_features: int
    classes: int
    activate_fromrgb: bool
    stddev_group: int | None
    stddev_channels: int
    dtype: Any

    def setup(self) -> None:
        self.fromrgb = _fromrgb(self.in_features, self.activate_fromrgb, self.dtype)
        self.conv = Convolution(self.inner, dtype=self.dtype)
        self.fc = style.Dense(self.features, LRELU)
        self.out = style.Dense(self.classes or 1)

    def from_image(self, image: Array) -> Array:
        return self.fromrgb(image)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        if self.stddev_channels:
            group = x.shape[0] if self.stddev_group is None else self.stddev_group
            deviation = ops.minibatch_stddev(x, group, self.stddev_channels)
            x = jnp.concatenate([x, deviation], axis=-1)
        x = at_least_float32(self.conv(x))
        x = self.fc(x.reshape(x.shape[0], -1))
        return self.out(x), x


class Discriminator(nn.Module):
    """See `discriminator`."""

    size: int
    widths: tuple[int, ...]
    inner: tuple[int, ...]
    features: int
    channels: int
    classes: int
    blur: Filter2D
    activate_fromrgb: bool
    stddev_group: int | None
    stddev_channels: int
    lod: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        images: Array,
        labels: Array | None = None,
        *,
        train: bool,
        lod: Lod = None,
    ) -> tuple[Array, dict[str, Array]]:
        del train
        if images.ndim != 4 or images.shape[1:] != (self.size, self.size, self.channels):
            raise ValueError(
                f"images [B, {self.size}, {self.size}, {self.channels}] are needed, not "
                f"{images.shape}"
            )
        if not self.classes and labels is not None and labels.size:
            raise ValueError(f"the network is not conditional, but got labels {labels.shape}")
        fades = _fades(self.lod if lod is None else lod, self.size)
        blocks: list[Any] = [
            Epilogue(
                self.features,
                self.inner[0],
                self.widths[0],
                self.classes,
                self.activate_fromrgb,
                self.stddev_group,
                self.stddev_channels,
                self.dtype,
                name="b4",
            )
        ]
        for number in range(1, len(self.widths)):
            block = DiscriminatorBlock(
                self.widths[number - 1],
                self.inner[number],
                self.widths[number],
                self.blur,
                self.activate_fromrgb,
                self.dtype,
                name=f"b{SMALLEST << number}",
            )
            blocks.append(block)
        taps: dict[str, Array] = {}
        x = blocks[-1].from_image(images)
        for number in reversed(range(1, len(blocks))):
            images = ops.downsample2d(images, BOX)
            coarser = blocks[number - 1].from_image(images)
            x = _blend(blocks[number](x), coarser, fades[number])
            side = SMALLEST << number - 1
            taps[f"{side}x{side}"] = x
        scores, taps["features"] = blocks[0](x)
        if self.classes:
            scores = scores * style.as_vector(labels, self.classes)
        return scores.sum(axis=1), taps


def _fromrgb(features: int, activated: bool, dtype: Any) -> Convolution:
    return Convolution(features, 1, activation=LRELU if activated else LINEAR, dtype=dtype)


def _equalize(weight: Array, gain: float) -> Array:
    return weight * (gain / math.sqrt(math.prod(weight.shape[:-1])))


def _spread(kernel: Array) -> Array:
    """Sums a kernel `[k, k, ...]` over the four shifts of 2x2 pixels, to `[k + 1, k + 1, ...]`.

    Nearest-neighbour upsampling followed by a convolution, or a convolution followed by a sum over
    2x2 pixels, is one convolution with this kernel and a stride of 2 ("fused" in the programs).
    """
    for axis in (0, 1):
        before, after = [(0, 0)] * 4, [(0, 0)] * 4
        before[axis], after[axis] = (1, 0), (0, 1)
        kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
    return kernel


def _fades(lod: float | Array, size: int) -> list[float | Array]:
    """For each side from 4 up, the weight of the coarser side in the blend, in [0, 1].

    Python numbers if `lod` is one, so that jit can drop layers that do not affect the output.
    """
    _check_lod(lod, size)
    levels = reversed(range(size.bit_length() - 2))
    if isinstance(lod, int | float):
        return [min(max(float(lod) - level, 0.0), 1.0) for level in levels]
    return [jnp.clip(lod - level, 0.0, 1.0) for level in levels]


def _blend(fine: Array, coarse: Array, fade: float | Array) -> Array:
    if isinstance(fade, float) and fade in (0.0, 1.0):
        return coarse if fade else fine
    return fine + (coarse - fine) * jnp.asarray(fade, fine.dtype)


def _check_lod(lod: float | Array, size: int) -> None:
    style.check_size(size, SMALLEST)
    maximum = size.bit_length() - 3
    if isinstance(lod, int | float):
        if not 0 <= lod <= maximum:
            raise ValueError(f"lod={lod} is not from 0 ({size}x{size}) to {maximum} (4x4)")
    elif jnp.ndim(lod):
        raise ValueError(f"lod must be a scalar, not an array of shape {jnp.shape(lod)}")


def _sides_of(parts: ReadOnly[str, Any]) -> list[int]:
    return sorted(int(name[1:]) for name in parts)


def _hashable_filter(blur: Filter) -> Filter2D:
    """The 2-D filter as tuples: fields of a module must be hashable."""
    array = ops.resampling_filter(blur, separable=False)
    return tuple(tuple(row) for row in array.tolist())


FAMILY = Family(
    "stylegan1",
    (Generator,),
    narrowed("widths"),
    generator_axes,
    student=lambda like, width: generator(
        like.size,
        channels=like.channels,
        classes=like.classes,
        latent=like.latent,
        depth=2,
        channel_base=width * like.size,
        channel_max=8 * width,
    ),
)
