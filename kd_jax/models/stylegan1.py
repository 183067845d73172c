"""StyleGAN (Karras et al. 2019), grown progressively (Karras et al. 2018), from 4x4 up.

The generator is a style network: `mapping` makes a style of the latent, `synthesis` an image of one
style for each layer. A layer convolves, adds noise, and gives each channel a mean and a deviation
that its style says (AdaIN). Each side has convolutions to and from images of its own; a level of
detail, `lod`, says at which side the networks work: 0 is the full size, each 1 halves it, and
between two sides both are blended. `channel_base` and `channel_max` are the compression knobs: a
layer at a side of r has `min(channel_base / r, channel_max)` channels.

Two programs published weights. The defaults here are those of the authors' program; `eps`,
`bias_before_blur` and `shared_noise` of a generator, `inner`, `stddev_group` and
`activate_fromrgb` of a discriminator are where the other (rosinality's) computes something else.

Images are `[B, size, size, channels]`, of no fixed range, data in [-1, 1]; latents `[B, latent]`;
labels int `[B]`, or a float condition `[B, classes]`.
"""

import math
from collections.abc import Mapping as ReadOnly
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.channels import Axes, Axis, Reads, Repeat, group_widths, tensors
from kd_jax.models import style
from kd_jax.models.style import side_widths
from kd_jax.network import Network, from_linen
from kd_jax.ops import ACTIVATIONS, Activation
from kd_jax.ops.resample import Filter
from kd_jax.state import Pair
from kd_jax.types import Array, Variables

Noise = str | Sequence[Array] | None
Lod = float | Array | None
Taps2D = tuple[tuple[float, ...], ...]

LINEAR, LRELU = ACTIVATIONS["linear"], ACTIVATIONS["lrelu"]
SMALLEST = 4
NOISES = ("random", "const", "none")
BOX = (0.5, 0.5)  # the filter of images that are halved or doubled


def gan(
    size: int,
    *,
    channels: int = 3,
    classes: int = 0,
    channel_base: int = 16384,
    channel_max: int = 512,
    latent: int = 512,
    style: int | None = None,
    depth: int = 8,
    style_mixing: float = 0.0,
    lod: float = 0.0,
    dtype: Any = jnp.float32,
) -> Pair:
    """A generator and its discriminator, as a `Pair` of networks.

    Args and errors are those of `generator` and `discriminator`.
    """
    shared: dict[str, Any] = {
        "channels": channels,
        "classes": classes,
        "channel_base": channel_base,
        "channel_max": channel_max,
        "lod": lod,
        "dtype": dtype,
    }
    return Pair(
        generator(
            size, latent=latent, style=style, depth=depth, style_mixing=style_mixing, **shared
        ),
        discriminator(size, **shared),
    )


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
    dtype: Any = jnp.float32,
) -> Network:
    """`(latents[, labels]) -> images`, a style network.

    Options of `apply` by keyword: `truncation` and `truncation_cutoff` (also of `mapping`), and of
    `synthesis` too `noise`, which is "random", "const" (the stored images of noise), "none", or a
    sequence of `[B or 1, H, W, 1]`, one for each layer, and by default random where `rngs` is given
    and constant otherwise; and `lod`, a number or a scalar of the traced step. At any `lod` the
    images have the full size. Taps: `styles` `[B, layers, style]` (of `apply`); `4x4`, `8x8`, ...,
    the features after the second layer of each side.

    Args:
      size: the image's side, a power of two from 4 to 1024.
      channels: the image's channels.
      classes: the number of classes, or the condition's length; 0 for an unconditional network.
      latent: the latent's length.
      style: the style's; the latent's by default.
      depth: layers of the mapping.
      hidden: their width, the last one's aside; the style's length by default.
      channel_base: channels times the side.
      channel_max: no layer has more.
      widths: channels at each side instead, `{4: 512, ...}`.
      blur: the filter after an upsampling; normalised.
      eps: what AdaIN adds to a variance.
      bias_before_blur: whether the bias is blurred with the features, as if there were zeros
        around both.
      shared_noise: whether both layers of a side get the same random noise.
      style_mixing: in training with a key, the probability that an image's later layers get the
        style of another latent. Leave it at 0 where a teacher has to see the same latents.
      lod: the level of detail where `apply` is given none.
      dtype: what the synthesis is computed in; parameters are float32 always, images too.

    Raises:
      ValueError: a side or a level of detail is impossible, or a side has no channels.
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
        blur=_static(blur),
        eps=eps,
        bias_before_blur=bias_before_blur,
        shared_noise=shared_noise,
        style_mixing=style_mixing,
        lod=lod,
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

    With labels there is a score for each class, and the label's is the one. `apply` takes `lod` by
    keyword, as a generator's; the images are halved as often as it says.

    Args:
      size: the image's side, a power of two from 4 to 1024.
      channels: the images'.
      classes: as of `generator`.
      channel_base: channels times the side.
      channel_max: no layer has more.
      widths: channels that enter each side's block instead, `{4: 512, ...}`.
      inner: channels between the two convolutions of each side, those that enter by default.
      features: the width of the last hidden layer; by default what a side of 2 would have, and with
        `widths` those at 4.
      blur: the filter before a downsampling; normalised.
      activate_fromrgb: whether the convolutions of the images are activated.
      stddev_group: examples in a group of the minibatch's standard deviation; None for all.
      stddev_channels: how many values it adds; 0 for none.
      lod: the level of detail where `apply` is given none.
      dtype: what is computed in; parameters are float32 always, scores too.

    Raises:
      ValueError: a side or a level of detail is impossible, or a side has no channels.
    """
    _check_lod(lod, size)
    entering = side_widths(size, channel_base, channel_max, widths)
    if features is None:
        features = widths[SMALLEST] if widths else max(min(channel_base // 2, channel_max), 1)
    module = Discriminator(
        size=size,
        widths=entering,
        inner=entering if inner is None else side_widths(size, channel_base, channel_max, inner),
        features=features,
        channels=channels,
        classes=classes,
        blur=_static(blur),
        activate_fromrgb=activate_fromrgb,
        stddev_group=stddev_group,
        stddev_channels=stddev_channels,
        lod=lod,
        dtype=dtype,
    )
    return from_linen(module)


def generator_axes(variables: Variables) -> Axes:
    """Which axes of a generator's variables hold which channels, for `kd_jax.students`.

    The groups are of each side `8x8/conv0` and `8x8` (named like the tap). The mapping stays whole.

    Args:
      variables: of any `generator`, arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: they are not those of a generator of this file, or are a connected network's.
    """
    synthesis = variables["params"].get("synthesis", {})
    if "const" not in synthesis.get("b4", {}).get("conv0", {}):
        raise ValueError(
            f"these are no StyleGAN generator's variables; they have {sorted(variables['params'])}"
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
            before = Reads(group, equalized=True)
        axes[f"{block}/torgb/weight"] = (None, None, before, None)
        axes[f"{block}/torgb/bias"] = (None,)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """Which axes of a discriminator's variables hold which channels, for `kd_jax.students`.

    The groups are of each side `8x8/in`, what a block reads, and `8x8/conv0`; then `conv` and
    `features` of the last block.

    Args:
      variables: of any `discriminator`, arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: they are not those of a discriminator of this file, or are a connected network's.
    """
    params = variables["params"]
    if "fromrgb" not in params.get("b4", {}):
        raise ValueError(
            f"these are no StyleGAN discriminator's variables; they have {sorted(params)}"
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
                f"b{side}/conv0", Reads(group, equalized=True), f"{side}x{side}/conv0", None, None
            )
            after = f"{side // 2}x{side // 2}/in"
            layer(
                f"b{side}/conv1", Reads(f"{side}x{side}/conv0", equalized=True), after, None, None
            )
    more = params["b4"]["conv"]["weight"].shape[2] - params["b4"]["fromrgb"]["bias"].shape[0]
    entering: Axis = ("4x4/in", more) if more else "4x4/in"
    layer("b4/conv", Reads(entering, equalized=True), "conv", None, None)
    layer("b4/fc", Reads(Repeat("conv", SMALLEST**2), equalized=True), "features")
    layer("b4/out", Reads("features", equalized=True), None)
    group_widths(variables, axes)
    return axes


def adaptive_instance_norm(x: Array, styles: Array, eps: float = 1e-8) -> Array:
    """Channels normalised over each image, then scaled and shifted (Karras et al. 2019, eq. 1).

    Args:
      x: `[B, H, W, C]`.
      styles: `[B, 2 C]`: what the scales have beyond 1, and the shifts.
      eps: added to the variance.

    Returns:
      `[B, H, W, C]` of x's dtype; the statistics are computed in float32 at least.

    Raises:
      ValueError: the styles do not fit the images.
    """
    if styles.shape != (x.shape[0], 2 * x.shape[-1]):
        raise ValueError(f"styles {styles.shape} do not fit images {x.shape}: not [B, 2 C]")
    values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale, shift = jnp.split(styles[:, None, None], 2, axis=-1)
    centered = values - values.mean(axis=(1, 2), keepdims=True)
    variance = (centered**2).mean(axis=(1, 2), keepdims=True)
    return (centered * jax.lax.rsqrt(variance + eps) * (scale + 1) + shift).astype(x.dtype)


def layer_count(size: int) -> int:
    """How many styles, and images of noise, a generator of this size reads."""
    return 2 * (size.bit_length() - 1) - 2


class Convolution(nn.Module):
    """A convolution with an equalized learning rate, a bias and an activation.

    He's constant stands in the kernel, before the bias (Karras et al. 2018, section 4.1).
    """

    features: int
    kernel: int = 3
    down: bool = False
    activation: Activation = LRELU
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        weight = self.param("weight", nn.initializers.normal(1.0), shape)
        weight = _equalized(weight, self.activation.gain).astype(self.dtype)
        x = x.astype(self.dtype)
        x = ops.conv(x, _spread(weight) / 4, stride=2) if self.down else ops.conv(x, weight)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return ops.bias_act(x, bias, self.activation, gain=1.0)


class SynthesisLayer(nn.Module):
    """A constant, or a convolution that may double the side; noise, bias, activation, AdaIN."""

    features: int
    up: bool
    blur: Taps2D
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
            weight = _equalized(weight, LRELU.gain).astype(self.dtype)
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
    """The layers at one side: features, and the image of them."""

    features: int
    channels: int
    blur: Taps2D
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
        return x, torgb(x).astype(jnp.float32)


class Synthesis(nn.Module):
    """Styles to images. The stored images of noise are in the collection `noise`."""

    size: int
    widths: tuple[int, ...]
    channels: int
    style: int
    blur: Taps2D
    eps: float
    bias_before_blur: bool
    shared_noise: bool
    lod: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        styles: Array,
        *,
        train: bool = False,
        noise: Noise = None,
        lod: Lod = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Images and taps of styles `[B, layers, style]`."""
        del train
        layers = layer_count(self.size)
        if styles.ndim != 3 or styles.shape[1:] != (layers, self.style):
            raise ValueError(f"styles [B, {layers}, {self.style}] are needed, not {styles.shape}")
        fades = _fades(self.lod if lod is None else lod, self.size)
        noises = self._noises(noise, styles.shape[0])
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
            own = slice(2 * number, 2 * number + 2)
            x, finer = block(x, styles[:, own], noises[own])
            image = finer if image is None else _blend(finer, ops.upsample2d(image, BOX), fade)
            taps[f"{side}x{side}"] = x
        assert image is not None  # there is a block for 4x4
        return image, taps

    def _noises(self, given: Noise, batch: int) -> list[Array | None]:
        """What each layer adds: `[B or 1, H, W, 1]` or None."""
        sides = [SMALLEST << index // 2 for index in range(layer_count(self.size))]
        key = self.make_rng("params") if self.is_initializing() else None
        constants = [
            self.variable("noise", f"noise{index}", self._drawn, key, index, (side, side))
            for index, side in enumerate(sides)
        ]
        if given is None:
            given = "random" if self.has_rng("params") else "const"
        if isinstance(given, str):
            if given not in NOISES:
                raise ValueError(f"noise={given!r} is none of {', '.join(map(repr, NOISES))}")
            if given == "none":
                return [None] * len(sides)
            if given == "const":
                return [constant.value[None, :, :, None] for constant in constants]
            if not self.has_rng("params"):
                raise ValueError("noise='random' needs a key: rngs=jax.random.key(...)")
            key = self.make_rng("noise")
            return [
                self._drawn(key, index, (batch, side, side, 1)) for index, side in enumerate(sides)
            ]
        if len(given) != len(sides):
            raise ValueError(f"{len(sides)} images of noise are needed, not {len(given)}")
        for index, (image, side) in enumerate(zip(given, sides, strict=True)):
            fitting = [(count, side, side, 1) for count in (batch, 1)]
            if image.shape not in fitting:
                raise ValueError(
                    f"noise {index} has shape {image.shape}, not {fitting[0]} or {fitting[1]}"
                )
        return list(given)

    def _drawn(self, key: Array, layer: int, shape: tuple[int, ...]) -> Array:
        index = layer // 2 if self.shared_noise else layer
        return jax.random.normal(jax.random.fold_in(key, index), shape)


class Mapping(nn.Module):
    """Latents, and a condition if there is one, to styles.

    `style.Mapping`, but the embedded condition is joined to the latents before both are normalised.
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
        """The styles `[B, layers, style]`; options are those of `style.Mapping`."""
        if latents.ndim != 2 or latents.shape[1] != self.latent:
            raise ValueError(f"latents [B, {self.latent}] are needed, not {latents.shape}")
        if self.classes:
            embedded = style.as_vector(labels, self.classes) @ self.embedding
            latents = jnp.concatenate([latents.astype(jnp.float32), embedded], axis=-1)
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
    blur: Taps2D
    eps: float
    bias_before_blur: bool
    shared_noise: bool
    style_mixing: float
    lod: float
    dtype: Any

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
    """At one side: features of an image, and two convolutions, the second of which halves it."""

    features: int
    inner: int
    entering: int
    blur: Taps2D
    activate_fromrgb: bool
    dtype: Any

    def setup(self) -> None:
        self.fromrgb = _fromrgb(self.entering, self.activate_fromrgb, self.dtype)
        self.conv0 = Convolution(self.inner, dtype=self.dtype)
        self.conv1 = Convolution(self.features, down=True, dtype=self.dtype)

    def from_image(self, image: Array) -> Array:
        return self.fromrgb(image)

    def __call__(self, x: Array) -> Array:
        return self.conv1(ops.filter2d(self.conv0(x), self.blur))


class Epilogue(nn.Module):
    """At 4x4: features of an image, and from features to scores."""

    features: int
    inner: int
    entering: int
    classes: int
    activate_fromrgb: bool
    stddev_group: int | None
    stddev_channels: int
    dtype: Any

    def setup(self) -> None:
        self.fromrgb = _fromrgb(self.entering, self.activate_fromrgb, self.dtype)
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
        x = self.conv(x).astype(jnp.float32)
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
    blur: Taps2D
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


def _equalized(weight: Array, gain: float) -> Array:
    return weight * (gain / math.sqrt(math.prod(weight.shape[:-1])))


def _spread(kernel: Array) -> Array:
    """A kernel `[k + 1, k + 1, ...]` that acts as `[k, k, ...]` does on 2x2 pixels at once.

    Upsampling to the nearest neighbour and a convolution, or a convolution and the sum over 2x2
    pixels, are one convolution of this kernel with a stride of 2. The programs call it fused.
    """
    for axis in (0, 1):
        before, after = [(0, 0)] * 4, [(0, 0)] * 4
        before[axis], after[axis] = (1, 0), (0, 1)
        kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
    return kernel


def _fades(lod: float | Array, size: int) -> list[float | Array]:
    """For each side from 4 up: how much of it gives way to the side before, in [0, 1].

    Numbers where `lod` is one: what has no part in the output is then not computed, under jit.
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
    most = size.bit_length() - 3
    if isinstance(lod, int | float):
        if not 0 <= lod <= most:
            raise ValueError(f"lod={lod} is not from 0 ({size}x{size}) to {most} (4x4)")
    elif jnp.ndim(lod):
        raise ValueError(f"lod is one number, not an array {jnp.shape(lod)}")


def _sides_of(parts: ReadOnly[str, Any]) -> list[int]:
    return sorted(int(name[1:]) for name in parts)


def _static(taps: Filter) -> Taps2D:
    """A filter that can be compared, as a module's field has to be."""
    array = ops.resampling_filter(taps, separable=False)
    return tuple(tuple(row) for row in array.tolist())
