"""Image-to-image translation: the networks of pix2pix and CycleGAN.

Generators turn an image into another of its size: `resnet_generator` (Johnson et al. 2016; Zhu et
al. 2017, CycleGAN) by residual blocks at a quarter of the sides, `unet_generator` (Isola et al.
2017, pix2pix) through a bottleneck with skips around it. Discriminators score patches
(`patch_discriminator`) or single pixels (`pixel_discriminator`): their scores are `[B, h, w]`, of
which the losses of `kd_jax.losses.adversarial` take each example's mean. Arrangement and counts are
those of the authors' PyTorch program, so that its files can be read
(`kd_jax.pretrained.translation`).

Images are `[B, H, W, C]` in [-1, 1]. What the generators take may have any number of channels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.channels import Axes, Axis, group_widths, tensors
from kd_jax.models.dcgan import Conv
from kd_jax.models.norm import COLLECTION, BatchNorm, norm_axes
from kd_jax.models.resnet import count_blocks
from kd_jax.models.spectral import layer_axes
from kd_jax.network import Network, from_linen
from kd_jax.types import Array, Variables

PADDINGS = {"reflect": "reflect", "replicate": "edge", "zero": "constant"}
"""What may surround the features of residual blocks, and what `jnp.pad` calls it."""

MOST = 8  # the channels of U-Net and patch discriminator double up to this many widths
UNDROPPED = 3  # the U-Net's sides from the largest on that have no dropout


class InstanceNorm(nn.Module):
    """Each channel of each image over its standard deviation (Ulyanov et al. 2016).

    There is nothing learned and nothing kept: training and inference are the same.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(jnp.float32)
        mean, var = (statistic(axis=(1, 2), keepdims=True) for statistic in (x.mean, x.var))
        return ((x - mean) * jax.lax.rsqrt(var + self.epsilon)).astype(self.dtype)


class Instance(NamedTuple):
    """Normalisation by each image's own statistics (`InstanceNorm`).

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float = 1e-5

    def layer(self, *, train: bool, dtype: Any, name: str) -> nn.Module:
        """The normalisation as a layer."""
        del train
        return InstanceNorm(self.epsilon, dtype, name=name)


class Batch(NamedTuple):
    """Normalisation by the batch's statistics (`kd_jax.models.norm.BatchNorm`).

    Attributes:
      epsilon: added to the variance.
      momentum: what the running statistics keep in a training step, in [0, 1).
    """

    epsilon: float = 1e-5
    momentum: float = 0.9

    def layer(self, *, train: bool, dtype: Any, name: str) -> nn.Module:
        """The normalisation as a layer."""
        return BatchNorm(
            train=train, momentum=self.momentum, epsilon=self.epsilon, dtype=dtype, name=name
        )


Norm: TypeAlias = Instance | Batch

INSTANCE, BATCH = Instance(), Batch()


def resnet_generator(
    width: int | Sequence[int] = 64,
    *,
    channels: int = 3,
    blocks: int = 9,
    norm: Norm | None = INSTANCE,
    padding: str = "reflect",
    dropout: float = 0.0,
    separable: bool = False,
    residual: bool = False,
    dtype: Any = jnp.float32,
) -> Network:
    """`images [B, H, W, any] -> images [B, H, W, channels]`; H and W are multiples of 4.

    A 7x7 convolution, two that halve the sides, residual blocks, two transposed convolutions that
    double them and a 7x7 convolution with tanh. Taps are `stem`, `down_0`, `down_1`, `up_0` and
    `up_1`, after activation, and `block_0`, `block_1`, ..., the residual sums. Of nine blocks GAN
    Compression (Li et al. 2020) compares `down_1`, `block_2`, `block_5` and `block_8`.

    Args:
      width: channels at full size; twice and four times as many at a half and a quarter of the
        sides. Or the channels of each group of `resnet_generator_axes`: `stem`, `down_0`, `down_1`,
        those between each block's convolutions, `up_0`, `up_1`.
      channels: of the images that come out.
      blocks: how many residual blocks.
      norm: after each convolution but the last; None for none.
      padding: what surrounds the blocks' features, one of `PADDINGS`. The 7x7 convolutions'
        images are reflected always.
      dropout: the share of the features that are dropped within each block, in training, where
        `apply` has a key.
      separable: whether the blocks' 3x3 convolutions are depthwise ones, normalised, with 1x1
        convolutions after them: about a ninth of the arithmetic (Howard et al. 2017; Li et al.
        2020, section 3.2).
      residual: whether what is made is added to the last `channels` channels of what is given,
        without tanh, and begins small; not so in the papers.
      dtype: what is computed in; parameters are float32 always, images too.

    Raises:
      ValueError: a number is out of range, there are more or fewer widths than groups, or the
        padding is unknown; and of `init` and `apply`, that the images' sides do not fit.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding={padding!r} is none of {', '.join(PADDINGS)}")
    if blocks < 0 or channels < 1:
        raise ValueError(f"blocks={blocks} must be at least 0 and channels={channels} at least 1")
    _check_dropout(dropout)
    widths = _widths("a ResNet generator", width, resnet_multiples(blocks))
    return from_linen(
        ResNetGenerator(widths, channels, norm, padding, dropout, separable, residual, dtype)
    )


def unet_generator(
    width: int | Sequence[int] = 64,
    *,
    channels: int = 3,
    downs: int = 8,
    norm: Norm | None = BATCH,
    dropout: float = 0.5,
    dtype: Any = jnp.float32,
) -> Network:
    """`images [B, H, W, any] -> images [B, H, W, channels]`; H and W are multiples of 2**downs.

    4x4 convolutions halve the sides `downs` times and transposed ones double them again; after each
    doubling the features of the same size on the way down are put before. Taps are `down_0`,
    `down_1`, ... and, of the same sides, `up_0`, `up_1`, ..., all before activation.

    Dropout is the only noise in pix2pix, whose authors keep it, and the batch's statistics, when
    they make images: that is `apply(variables, images, train=True, rngs=key)`.

    Args:
      width: channels at half the sides; they double up to `8 * width` as the sides halve. Or the
        channels of each group of `unet_generator_axes`: `down_0`, `down_1`, ... and, from the
        smallest side to the largest, `up_{downs - 2}`, ..., `up_0`.
      channels: of the images that come out.
      downs: how often the sides are halved, at least 2. The original has 8 for 256 pixels.
      norm: after each convolution but the first, the bottleneck's and the image's; None for none.
      dropout: the share of the features that are dropped, in training where `apply` has a key: in
        `up_3` and smaller ones, but for the first after the bottleneck.
      dtype: what is computed in; parameters are float32 always, images too.

    Raises:
      ValueError: a number is out of range, or there are more or fewer widths than groups; and of
        `init` and `apply`, that the images' sides do not fit.
    """
    if downs < 2 or channels < 1:
        raise ValueError(f"downs={downs} must be at least 2 and channels={channels} at least 1")
    _check_dropout(dropout)
    widths = _widths("a U-Net generator", width, unet_multiples(downs))
    return from_linen(UNetGenerator(widths, channels, norm, dropout, dtype))


def patch_discriminator(
    width: int | Sequence[int] = 64,
    *,
    layers: int = 3,
    norm: Norm | None = INSTANCE,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images[, conditions]) -> scores [B, h, w]` (logits) of overlapping patches: a PatchGAN.

    4x4 convolutions; with three halvings a score sees 70x70 pixels (Isola et al. 2017, section
    3.2.2). The scores are h x w with `h = H // 2**layers - 2` and so on; the losses of
    `kd_jax.losses.adversarial` take such, and an example's is the mean over its patches. Taps are
    `layer_0`, `layer_1`, ..., after activation.

    A conditional one judges an image together with what it was made of: `apply(variables, images,
    sources)`. Conditions are images of the same size, any number of them, and are put before the
    images along the channels; variables are made for as many.

    Args:
      width: channels of the first layer; they double up to `8 * width` from one to the next. Or the
        channels of each of `layers + 1`.
      layers: how many layers halve the sides, at least 1.
      norm: after each convolution but the first and the last; None for none.
      dtype: what is computed in; parameters are float32 always, scores too.

    Raises:
      ValueError: a number is out of range, or there are more or fewer widths than layers; and of
        `init` and `apply`, that an image is too small or a condition does not fit it.
    """
    if layers < 1:
        raise ValueError(f"layers={layers} must be at least 1")
    multiples = {f"layer_{i}": min(2**i, MOST) for i in range(layers + 1)}
    widths = _widths("a patch discriminator", width, multiples)
    return from_linen(Discriminator(widths, (2,) * layers + (1,), 4, norm, dtype))


def pixel_discriminator(
    width: int | Sequence[int] = 64,
    *,
    norm: Norm | None = INSTANCE,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images[, conditions]) -> scores [B, H, W]` (logits) of each pixel, by 1x1 convolutions.

    The 1x1 PixelGAN of Isola et al. 2017, section 4.4. Arguments, conditions, errors and taps are
    those of `patch_discriminator`; there are two layers, the second of `2 * width` channels.
    """
    widths = _widths("a pixel discriminator", width, {"layer_0": 1, "layer_1": 2})
    return from_linen(Discriminator(widths, (1, 1), 1, norm, dtype))


def resnet_multiples(blocks: int) -> dict[str, int]:
    """The groups of a ResNet generator, in the order of its widths, and their multiples of one."""
    hidden = {f"block_{i}/hidden": 4 for i in range(blocks)}
    return {"stem": 1, "down_0": 2, "down_1": 4, **hidden, "up_0": 2, "up_1": 1}


def unet_multiples(downs: int) -> dict[str, int]:
    """The groups of a U-Net generator, in the order of its widths, and their multiples of one."""
    down = {f"down_{i}": min(2**i, MOST) for i in range(downs)}
    return down | {f"up_{i}": down[f"down_{i}"] for i in reversed(range(downs - 1))}


def resnet_generator_axes(variables: Variables) -> Axes:
    """Which axes of a ResNet generator's variables hold which channels, for `kd_jax.students`.

    The groups are named like the taps. All blocks add to `down_1`, and `block_N/hidden` lies
    between a block's convolutions.

    Args:
      variables: of any `resnet_generator`, arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: they are not, or are a connected network's.
    """
    found = tensors(variables)
    axes = _layer_axes(found, "stem", None, "stem")
    axes |= _layer_axes(found, "down_0", "stem", "down_0")
    axes |= _layer_axes(found, "down_1", "down_0", "down_1")
    for index in range(count_blocks(variables)):
        hidden = f"block_{index}/hidden"
        for number, (reads, writes) in enumerate((("down_1", hidden), (hidden, "down_1"))):
            depthwise = f"block_{index}/depthwise_{number}"
            if f"params/{depthwise}/kernel" in found:
                axes[f"params/{depthwise}/kernel"] = (None, None, reads)
                if f"params/{depthwise}/bias" in found:
                    axes[f"params/{depthwise}/bias"] = (reads,)
                axes |= _norm_axes(found, f"{depthwise}/norm", reads)
            axes |= _layer_axes(found, f"block_{index}/layer_{number}", reads, writes)
    axes |= _layer_axes(found, "up_0", "down_1", "up_0")
    axes |= _layer_axes(found, "up_1", "up_0", "up_1")
    axes |= layer_axes(found, "image", "up_1", None)
    group_widths(variables, axes)
    return axes


def unet_generator_axes(variables: Variables) -> Axes:
    """Which axes of a U-Net generator's variables hold which channels, for `kd_jax.students`.

    The groups are named like the taps; skips make a layer read two of them.

    Args:
      variables: of any `unet_generator`, arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: they are not, or are a connected network's.
    """
    found = tensors(variables)
    last = sum(name.startswith("down_") for name in variables["params"]) - 1
    reads: Axis = None
    axes: dict[str, tuple[Axis, ...]] = {}
    for index in range(last + 1):
        axes |= _layer_axes(found, f"down_{index}", reads, f"down_{index}")
        reads = f"down_{index}"
    for index in reversed(range(last)):
        axes |= _layer_axes(found, f"up_{index}", reads, f"up_{index}")
        reads = (f"down_{index}", f"up_{index}")
    axes |= layer_axes(found, "image", reads, None)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """Which axes of a discriminator's variables hold which channels, for `kd_jax.students`.

    The groups are named like the taps, `layer_0`, `layer_1`, ...

    Args:
      variables: of any `patch_discriminator` or `pixel_discriminator`, arrays or
        `ShapeDtypeStruct`s.

    Raises:
      ValueError: they are not, or are a connected network's.
    """
    found = tensors(variables)
    reads: str | None = None
    axes: dict[str, tuple[Axis, ...]] = {}
    for index in range(sum(name.startswith("layer_") for name in variables["params"])):
        axes |= _layer_axes(found, f"layer_{index}", reads, f"layer_{index}")
        reads = f"layer_{index}"
    axes |= layer_axes(found, "score", reads, None)
    group_widths(variables, axes)
    return axes


def _layer_axes(
    found: Mapping[str, Any], path: str, reads: Axis, writes: Axis
) -> dict[str, tuple[Axis, ...]]:
    axes = layer_axes(found, f"{path}/conv", reads, writes)
    return axes | _norm_axes(found, f"{path}/norm", writes)


def _norm_axes(found: Mapping[str, Any], path: str, channels: Axis) -> dict[str, tuple[Axis, ...]]:
    """None of a normalisation that keeps nothing."""
    return norm_axes(found, path, channels) if f"{COLLECTION}/{path}/mean" in found else {}


def _widths(what: str, width: int | Sequence[int], multiples: Mapping[str, int]) -> tuple[int, ...]:
    """The channels of each group: of multiples of one width, or as they are given."""
    if isinstance(width, Sequence):
        widths = tuple(int(count) for count in width)
        if len(widths) != len(multiples):
            raise ValueError(
                f"{what} like this has {len(multiples)} widths ({', '.join(multiples)}), "
                f"not {len(widths)}"
            )
    else:
        widths = tuple(multiple * width for multiple in multiples.values())
    if min(widths) < 1:
        raise ValueError(f"width={width} must be at least 1")
    return widths


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} is not in [0, 1)")


def _check_images(what: str, images: Array, multiple: int, least: int) -> None:
    sides = images.shape[1:3]
    if images.ndim != 4 or any(side % multiple or side < least for side in sides):
        multiples = f"multiples of {multiple} and " if multiple > 1 else ""
        raise ValueError(
            f"{what} takes images [B, H, W, C] whose sides are {multiples}at least {least}, not of "
            f"shape {images.shape}"
        )


def _conv(x: Array, kernel: Array, stride: int = 1, padding: str = "zero") -> Array:
    """A convolution of features that are padded, by `(kernel's side - 1) // 2` everywhere."""
    around = ((kernel.shape[0] - 1) // 2,) * 2
    if padding == "zero":
        return ops.conv(x, kernel, stride, (around, around))
    return ops.conv(_padded(x, around, padding), kernel, stride, "VALID")


def _padded(x: Array, around: tuple[int, int], padding: str) -> Array:
    return jnp.pad(x, ((0, 0), around, around, (0, 0)), mode=PADDINGS[padding])


def _doubled(x: Array, kernel: Array, stride: int) -> Array:
    """A transposed 3x3 convolution whose outputs begin one row and one column late.

    Between zeros, pixel i of the input is then under the middle of the kernel at output 2i.
    """
    return ops.conv_transpose(x, kernel, stride, "VALID")[:, 1:, 1:]


def _start(norm: Norm | None) -> dict[str, Any]:
    """How kernels begin: the papers' 0.02 is too little to learn from if nothing is normalised."""
    return {} if norm else {"kernel_init": nn.initializers.he_normal()}


class Layer(nn.Module):
    """A convolution and a normalisation if any, without activation.

    Attributes:
      features: channels of the output.
      kernel: the convolution's side.
      op: the convolution, of features, kernel and `stride=`.
      norm: the normalisation; where it has a bias the convolution has none.
      train, dtype: as of the network.
      stride: of the convolution.
    """

    features: int
    kernel: int
    op: Callable[..., Array]
    norm: Norm | None
    train: bool
    dtype: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = Conv(
            self.features,
            self.kernel,
            self.op,
            self.stride,
            use_bias=not isinstance(self.norm, Batch),
            dtype=self.dtype,
            name="conv",
            **_start(self.norm),
        )
        return _normed(self, conv(x))


class Depthwise(nn.Module):
    """A 3x3 convolution of each channel with a kernel of its own, and a normalisation if any.

    Attributes:
      padding: what surrounds the features, one of `PADDINGS`.
      norm, train, dtype: as of `Layer`.
    """

    padding: str
    norm: Norm | None
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (3, 3, x.shape[-1])).astype(self.dtype)
        x = _padded(x.astype(self.dtype), (1, 1), self.padding)
        x = ops.depthwise_conv(x, kernel)[:, 1:-1, 1:-1]
        if not isinstance(self.norm, Batch):
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
            x = x + bias.astype(self.dtype)[None, None, None]
        return _normed(self, x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, without activation after the sum.

    Attributes:
      hidden: channels between the two.
      padding, dropout, separable: as of `resnet_generator`.
      norm, train, dtype: as of `Layer`.
    """

    hidden: int
    padding: str
    dropout: float
    separable: bool
    norm: Norm | None
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        common: dict[str, Any] = {"norm": self.norm, "train": self.train, "dtype": self.dtype}

        def layer(h: Array, features: int, number: int) -> Array:
            name = f"layer_{number}"
            if not self.separable:
                return Layer(
                    features, 3, partial(_conv, padding=self.padding), **common, name=name
                )(h)
            h = Depthwise(self.padding, **common, name=f"depthwise_{number}")(h)
            return Layer(features, 1, _conv, **common, name=name)(h)

        h = _dropped(self, nn.relu(layer(x, self.hidden, 0)), self.dropout, self.train)
        return x + layer(h, x.shape[-1], 1)


class ResNetGenerator(nn.Module):
    """See `resnet_generator`."""

    widths: tuple[int, ...]
    channels: int
    norm: Norm | None
    padding: str
    dropout: float
    separable: bool
    residual: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        if self.residual and images.shape[-1] < self.channels:
            raise ValueError(
                f"images of {images.shape[-1]} channels hold none of {self.channels} to add to"
            )
        stem, first, second, *hidden, third, fourth = self.widths
        # The blocks' features have a quarter of the sides, and one pixel reflects nothing.
        least = 8 if self.padding == "reflect" and hidden else 4
        _check_images("a ResNet generator", images, 4, least)
        common: dict[str, Any] = {"norm": self.norm, "train": train, "dtype": self.dtype}
        layer = partial(Layer, **common)
        reflected = partial(_conv, padding="reflect")
        taps: dict[str, Array] = {}

        x = taps["stem"] = nn.relu(layer(stem, 7, reflected, name="stem")(images))
        for index, features in enumerate((first, second)):
            name = f"down_{index}"
            x = taps[name] = nn.relu(layer(features, 3, _conv, stride=2, name=name)(x))
        for index, between in enumerate(hidden):
            name = f"block_{index}"
            block = ResidualBlock(
                between, self.padding, self.dropout, self.separable, **common, name=name
            )
            x = taps[name] = block(x)
        for index, features in enumerate((third, fourth)):
            name = f"up_{index}"
            x = taps[name] = nn.relu(layer(features, 3, _doubled, stride=2, name=name)(x))
        start = {"kernel_init": _least} if self.residual else {}
        image = Conv(self.channels, 7, reflected, dtype=self.dtype, name="image", **start)(x)
        image = image.astype(jnp.float32)
        if self.residual:
            return images[..., -self.channels :] + image, taps
        return jnp.tanh(image), taps


class UNetGenerator(nn.Module):
    """See `unet_generator`."""

    widths: tuple[int, ...]
    channels: int
    norm: Norm | None
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        last = len(self.widths) // 2  # the bottleneck's index: there is one `up` less than `down`s
        down, up = self.widths[: last + 1], self.widths[:last:-1]
        side = 2 ** (last + 1)
        _check_images(f"a U-Net that halves {last + 1} times", images, side, side)
        layer = partial(Layer, kernel=4, stride=2, train=train, dtype=self.dtype)
        taps: dict[str, Array] = {}

        x = images
        for index, features in enumerate(down):
            name = f"down_{index}"
            norm = self.norm if 0 < index < last else None
            x = taps[name] = layer(features, op=_conv, norm=norm, name=name)(
                _leaky_relu(x) if index else x
            )
        for index in reversed(range(last)):
            name = f"up_{index}"
            x = layer(up[index], op=ops.conv_transpose, norm=self.norm, name=name)(nn.relu(x))
            if UNDROPPED <= index < last - 1:
                x = _dropped(self, x, self.dropout, train)
            taps[name] = x
            x = jnp.concatenate([taps[f"down_{index}"], x], axis=-1)
        image = Conv(self.channels, 4, ops.conv_transpose, 2, dtype=self.dtype, name="image")(
            nn.relu(x)
        )
        return jnp.tanh(image.astype(jnp.float32)), taps


class Discriminator(nn.Module):
    """See `patch_discriminator` and `pixel_discriminator`."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    kernel: int
    norm: Norm | None
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, *conditions: Array, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        _check_images("this discriminator", images, 1, self._least())
        for condition in conditions:
            if condition.ndim != 4 or condition.shape[:3] != images.shape[:3]:
                raise ValueError(
                    f"a condition must be images [B, H, W, C] of the size of those that are "
                    f"judged, {images.shape[:3]}, not of shape {condition.shape}"
                )
        x = jnp.concatenate([*conditions, images], axis=-1)
        taps: dict[str, Array] = {}
        for index, (features, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            name = f"layer_{index}"
            layer = Layer(
                features,
                self.kernel,
                _conv,
                self.norm if index else None,
                train,
                self.dtype,
                stride,
                name=name,
            )
            x = taps[name] = _leaky_relu(layer(x))
        score = Conv(1, self.kernel, _conv, dtype=self.dtype, name="score", **_start(self.norm))
        scores = score(x)
        return scores.astype(jnp.float32)[..., 0], taps

    def _least(self) -> int:
        """The smallest side of which a score is left."""
        side, more = 1, self.kernel - 2 * ((self.kernel - 1) // 2)
        for stride in (1, *reversed(self.strides)):
            side = (side - 1) * stride + more
        return side


_leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)
_least = nn.initializers.variance_scaling(1e-4, "fan_in", "normal")


def _normed(module: Any, x: Array) -> Array:
    """The features normalised as a layer's fields say, if at all."""
    if module.norm is None:
        return x
    return module.norm.layer(train=module.train, dtype=module.dtype, name="norm")(x)


def _dropped(module: nn.Module, x: Array, share: float, train: bool) -> Array:
    """Dropout in training, where there is a key for it."""
    kept = not (train and module.has_rng("params"))
    return nn.Dropout(share, deterministic=kept)(x)
