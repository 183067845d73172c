"""Image-to-image translation: the networks of pix2pix and CycleGAN.

Generators map an image to another of the same size: `resnet_generator` (Johnson et al. 2016; Zhu et
al. 2017, CycleGAN) with residual blocks at a quarter of the sides, `unet_generator` (Isola et al.
2017, pix2pix) with a bottleneck and skip connections. Discriminators score patches
(`patch_discriminator`) or single pixels (`pixel_discriminator`): their scores are `[B, h, w]`, and
the losses of `kd_jax.losses.adversarial` average them per example. Layers and parameter counts are
those of the authors' PyTorch code, so that its files can be read (`kd_jax.pretrained.translation`).

Images are `[B, H, W, C]` in [-1, 1]. The generators' inputs may have any number of channels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axes, Axis, NormScale, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, evenly_spaced_taps, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.dcgan import Conv
from kd_jax.models.layers.norm import COLLECTION, BatchNorm, norm_axes
from kd_jax.models.layers.spectral import layer_axes
from kd_jax.models.resnet import count_blocks

PADDINGS = {"reflect": "reflect", "replicate": "edge", "zero": "constant"}
"""The paddings of residual blocks, and their modes of `jnp.pad`."""

MOST = 8  # channels of U-Net and patch discriminator double up to this multiple of the width
UNDROPPED = 3  # number of the U-Net's largest sides without dropout


class InstanceNorm(nn.Module):
    """Standardizes each channel of each image (Ulyanov et al. 2016).

    Without running statistics training and inference are the same.

    Attributes:
      train: whether the image's statistics are used if there are running ones, which are updated.
      epsilon, affine, tracked, momentum: as in `Instance`.
      dtype: dtype of the result; everything is computed in float32.
    """

    train: bool = False
    epsilon: float = 1e-5
    affine: bool = False
    tracked: bool = False
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = at_least_float32(x)
        mean, var = (statistic(axis=(1, 2), keepdims=True) for statistic in (x.mean, x.var))
        if self.tracked:
            mean, var = self._track(mean, var, x.shape[1] * x.shape[2])
        x = (x - mean) * jax.lax.rsqrt(var + self.epsilon)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
            x = x * scale[None, None, None] + bias[None, None, None]
        return x.astype(self.dtype)

    def _track(self, mean: Array, var: Array, count: int) -> tuple[Array, Array]:
        """In training these statistics, which update the running ones; in inference the latter."""
        width = mean.shape[-1:]
        running_mean = self.variable(COLLECTION, "mean", jnp.zeros, width)
        running_var = self.variable(COLLECTION, "var", jnp.ones, width)
        if not self.train:
            shape = (1, 1, 1, -1)
            return running_mean.value.reshape(shape), running_var.value.reshape(shape)
        if not self.is_initializing():
            unbiased = var * (count / max(count - 1, 1))
            for running, values in ((running_mean, mean), (running_var, unbiased)):
                step = (1 - self.momentum) * (values.mean(axis=(0, 1, 2)) - running.value)
                running.value = running.value + step  # `+=` would modify a NumPy array in place
        return mean, var


class Instance(NamedTuple):
    """Normalisation by each image's own statistics (`InstanceNorm`).

    Attributes:
      epsilon: added to the variance.
      affine: whether a scale and a bias per channel follow.
      tracked: whether inference uses running statistics instead of the image's: averages over the
        training images, of unbiased variances, as PyTorch's `track_running_stats`.
      momentum: share of the running statistics that a training step retains, in [0, 1).
    """

    epsilon: float = 1e-5
    affine: bool = False
    tracked: bool = False
    momentum: float = 0.9

    def layer(self, *, train: bool, dtype: Any, name: str) -> nn.Module:
        """The normalisation as a layer."""
        return InstanceNorm(train, *self, dtype=dtype, name=name)


class Batch(NamedTuple):
    """Normalisation by the batch's statistics (`kd_jax.models.layers.norm.BatchNorm`).

    Attributes:
      epsilon: added to the variance.
      momentum: share of the running statistics that a training step retains, in [0, 1).
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
    `up_1`, after activation, and `block_0`, `block_1`, ..., the residual sums. With nine blocks,
    GAN Compression (Li et al. 2020) distills `down_1`, `block_2`, `block_5` and `block_8`.

    Args:
      width: channels at full size; twice and four times as many at a half and a quarter of the
        sides. Or the channels of each group of `resnet_generator_axes`: `stem`, `down_0`, `down_1`,
        those between each block's convolutions, `up_0`, `up_1`.
      channels: channels of the output images.
      blocks: number of residual blocks.
      norm: normalisation after each convolution but the last, or None.
      padding: padding of the blocks' features, one of `PADDINGS`. The 7x7 convolutions always use
        reflection.
      dropout: dropout rate within each block, applied in training if `apply` has a key.
      separable: whether the blocks' 3x3 convolutions are split into normalised depthwise and 1x1
        convolutions: about a ninth of the arithmetic (Howard et al. 2017; Li et al. 2020, section
        3.2).
      residual: whether the output, without tanh and initialized near zero, is added to the last
        `channels` channels of the input; unlike in the papers.
      dtype: the computation dtype; parameters and images are always float32.

    Raises:
      ValueError: a number is out of range, the number of widths differs from that of the groups, or
        the padding is unknown. `init` and `apply` raise it if the images' sides do not fit.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding={padding!r} is not one of {', '.join(PADDINGS)}")
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
    doubling the encoder's features of the same size are concatenated in front. Taps are `down_0`,
    `down_1`, ... and, with the same sides, `up_0`, `up_1`, ..., all before activation.

    Dropout is the only noise in pix2pix, whose authors also generate images with dropout and batch
    statistics: `apply(variables, images, train=True, rngs=key)`.

    Args:
      width: channels at half the sides; they double up to `8 * width` as the sides halve. Or the
        channels of each group of `unet_generator_axes`: `down_0`, `down_1`, ... and, from the
        smallest side to the largest, `up_{downs - 2}`, ..., `up_0`.
      channels: channels of the output images.
      downs: number of halvings of the sides, at least 2. The original has 8 for 256 pixels.
      norm: normalisation after each convolution but the first, the bottleneck's and the image's, or
        None.
      dropout: dropout rate, applied in training if `apply` has a key, in `up_3` and smaller sides
        except the first after the bottleneck.
      dtype: the computation dtype; parameters and images are always float32.

    Raises:
      ValueError: a number is out of range, or the number of widths differs from that of the groups.
        `init` and `apply` raise it if the images' sides do not fit.
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

    4x4 convolutions; with three halvings the field of view of a score is 70x70 pixels (Isola et al.
    2017, section 3.2.2). There are h x w scores, with `h = H // 2**layers - 2` and w likewise; the
    losses of `kd_jax.losses.adversarial` average them per example. Taps are `layer_0`, `layer_1`,
    ..., after activation.

    A conditional discriminator also reads the source image: `apply(variables, images, sources)`.
    Conditions are any number of images of the same size, concatenated in front of the images along
    the channels; variables fit the number that they were initialized with.

    Args:
      width: channels of the first layer; they double up to `8 * width` from one to the next. Or the
        channels of each of `layers + 1`.
      layers: number of layers that halve the sides, at least 1.
      norm: normalisation after each convolution but the first and the last, or None.
      dtype: the computation dtype; parameters and scores are always float32.

    Raises:
      ValueError: a number is out of range, or the number of widths differs from that of the layers.
        `init` and `apply` raise it if an image is too small or a condition does not fit it.
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
    """The groups of a ResNet generator in the order of its widths, and their multiples of one."""
    hidden = {f"block_{i}/hidden": 4 for i in range(blocks)}
    return {"stem": 1, "down_0": 2, "down_1": 4, **hidden, "up_0": 2, "up_1": 1}


def unet_multiples(downs: int) -> dict[str, int]:
    """The groups of a U-Net generator in the order of its widths, and their multiples of one."""
    down = {f"down_{i}": min(2**i, MOST) for i in range(downs)}
    return down | {f"up_{i}": down[f"down_{i}"] for i in reversed(range(downs - 1))}


def resnet_generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a ResNet generator's variables, for `kd_jax.pruning`.

    The groups are named like the taps. All blocks add to `down_1`, and `block_N/hidden` lies
    between a block's convolutions.

    Args:
      variables: those of a `resnet_generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `resnet_generator`, or include connectors.
    """
    leaves = tensors(variables)
    axes = _layer_axes(leaves, "stem", None, "stem")
    axes |= _layer_axes(leaves, "down_0", "stem", "down_0")
    axes |= _layer_axes(leaves, "down_1", "down_0", "down_1")
    for index in range(count_blocks(variables)):
        hidden = f"block_{index}/hidden"
        for number, (reads, writes) in enumerate((("down_1", hidden), (hidden, "down_1"))):
            depthwise = f"block_{index}/depthwise_{number}"
            if f"params/{depthwise}/kernel" in leaves:
                axes[f"params/{depthwise}/kernel"] = (None, None, reads)
                if f"params/{depthwise}/bias" in leaves:
                    axes[f"params/{depthwise}/bias"] = (reads,)
                axes |= _norm_axes(leaves, f"{depthwise}/norm", reads)
            axes |= _layer_axes(leaves, f"block_{index}/layer_{number}", reads, writes)
    axes |= _layer_axes(leaves, "up_0", "down_1", "up_0")
    axes |= _layer_axes(leaves, "up_1", "up_0", "up_1")
    axes |= layer_axes(leaves, "image", "up_1", None)
    group_widths(variables, axes)
    return axes


def unet_generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a U-Net generator's variables, for `kd_jax.pruning`.

    The groups are named like the taps; a layer after a skip connection reads two of them.

    Args:
      variables: those of a `unet_generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `unet_generator`, or include connectors.
    """
    leaves = tensors(variables)
    last = sum(name.startswith("down_") for name in variables["params"]) - 1
    reads: Axis = None
    axes: dict[str, tuple[Axis, ...]] = {}
    for index in range(last + 1):
        axes |= _layer_axes(leaves, f"down_{index}", reads, f"down_{index}")
        reads = f"down_{index}"
    for index in reversed(range(last)):
        axes |= _layer_axes(leaves, f"up_{index}", reads, f"up_{index}")
        reads = (f"down_{index}", f"up_{index}")
    axes |= layer_axes(leaves, "image", reads, None)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a discriminator's variables, for `kd_jax.pruning`.

    The groups are named like the taps, `layer_0`, `layer_1`, ...

    Args:
      variables: those of a `patch_discriminator` or `pixel_discriminator`, as arrays or
        `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of such a discriminator, or include connectors.
    """
    leaves = tensors(variables)
    reads: str | None = None
    axes: dict[str, tuple[Axis, ...]] = {}
    for index in range(sum(name.startswith("layer_") for name in variables["params"])):
        axes |= _layer_axes(leaves, f"layer_{index}", reads, f"layer_{index}")
        reads = f"layer_{index}"
    axes |= layer_axes(leaves, "score", reads, None)
    group_widths(variables, axes)
    return axes


def _layer_axes(
    leaves: Mapping[str, Any], path: str, reads: Axis, writes: Axis
) -> dict[str, tuple[Axis, ...]]:
    axes = layer_axes(leaves, f"{path}/conv", reads, writes)
    return axes | _norm_axes(leaves, f"{path}/norm", writes)


def _norm_axes(leaves: Mapping[str, Any], path: str, channels: Axis) -> dict[str, tuple[Axis, ...]]:
    """Empty for a normalisation without variables."""
    if f"{COLLECTION}/{path}/mean" in leaves:
        return norm_axes(leaves, path, channels)
    if f"params/{path}/scale" not in leaves:
        return {}
    return {f"params/{path}/scale": (NormScale(channels),), f"params/{path}/bias": (channels,)}


def _widths(kind: str, width: int | Sequence[int], multiples: Mapping[str, int]) -> tuple[int, ...]:
    """The channels of each group: multiples of one width, or the given sequence."""
    if isinstance(width, Sequence):
        widths = tuple(int(count) for count in width)
        if len(widths) != len(multiples):
            raise ValueError(
                f"{kind} with these options has {len(multiples)} widths ({', '.join(multiples)}), "
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


def _check_images(kind: str, images: Array, multiple: int, least: int) -> None:
    sides = images.shape[1:3]
    if images.ndim != 4 or any(side % multiple or side < least for side in sides):
        multiples = f"multiples of {multiple} and " if multiple > 1 else ""
        raise ValueError(
            f"{kind} takes images [B, H, W, C] whose sides are {multiples}at least {least}, not of "
            f"shape {images.shape}"
        )


def _conv(x: Array, kernel: Array, stride: int = 1, padding: str = "zero") -> Array:
    """A convolution with padding of `(kernel size - 1) // 2` on every side."""
    around = ((kernel.shape[0] - 1) // 2,) * 2
    if padding == "zero":
        return ops.conv(x, kernel, stride, (around, around))
    return ops.conv(_pad(x, around, padding), kernel, stride, "VALID")


def _pad(x: Array, around: tuple[int, int], padding: str) -> Array:
    if padding == "zero":
        return jnp.pad(x, ((0, 0), around, around, (0, 0)))
    return ops.pad(x, (around, around), PADDINGS[padding])


def _conv_transpose(x: Array, kernel: Array, stride: int) -> Array:
    """A transposed 3x3 convolution without its first row and column of outputs.

    The kernel at output 2i is then centred on pixel i of the input.
    """
    return ops.crop(ops.conv_transpose(x, kernel, stride, "VALID"), ((1, 0), (1, 0)))


def _init_options(norm: Norm | None) -> dict[str, Any]:
    """The initializer of kernels: without normalisation the papers' 0.02 is too small to train."""
    return {} if norm else {"kernel_init": nn.initializers.he_normal()}


class Layer(nn.Module):
    """A convolution and an optional normalisation, without activation.

    Attributes:
      features: channels of the output.
      kernel: kernel size of the convolution.
      op: the convolution, a function of features, kernel and `stride=`.
      norm: the normalisation; if it has a bias, the convolution does not.
      train, dtype: as in the network.
      stride: stride of the convolution.
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
            **_init_options(self.norm),
        )
        return _normalize(self, conv(x))


class Depthwise(nn.Module):
    """A depthwise 3x3 convolution and an optional normalisation.

    Attributes:
      padding: padding of the features, one of `PADDINGS`.
      norm, train, dtype: as in `Layer`.
    """

    padding: str
    norm: Norm | None
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (3, 3, x.shape[-1])).astype(self.dtype)
        x = _pad(x.astype(self.dtype), (1, 1), self.padding)
        x = ops.crop(ops.depthwise_conv(x, kernel), ((1, 1), (1, 1)))
        if not isinstance(self.norm, Batch):
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
            x = x + bias.astype(self.dtype)[None, None, None]
        return _normalize(self, x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection, without activation after the sum.

    Attributes:
      hidden: channels between the convolutions.
      padding, dropout, separable: as in `resnet_generator`.
      norm, train, dtype: as in `Layer`.
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

        h = _dropout(self, nn.relu(layer(x, self.hidden, 0)), self.dropout, self.train)
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
                f"a residual generator needs images of at least {self.channels} channels, not of "
                f"{images.shape[-1]}"
            )
        stem, first, second, *hidden, third, fourth = self.widths
        # The blocks' features have a quarter of the sides, and a single pixel cannot be reflected.
        least = 8 if self.padding == "reflect" and hidden else 4
        _check_images("a ResNet generator", images, 4, least)
        common: dict[str, Any] = {"norm": self.norm, "train": train, "dtype": self.dtype}
        layer = partial(Layer, **common)
        reflect_conv = partial(_conv, padding="reflect")
        taps: dict[str, Array] = {}

        x = taps["stem"] = nn.relu(layer(stem, 7, reflect_conv, name="stem")(images))
        for index, features in enumerate((first, second)):
            name = f"down_{index}"
            x = taps[name] = nn.relu(layer(features, 3, _conv, stride=2, name=name)(x))
        for index, features in enumerate(hidden):
            name = f"block_{index}"
            block = ResidualBlock(
                features, self.padding, self.dropout, self.separable, **common, name=name
            )
            x = taps[name] = block(x)
        for index, features in enumerate((third, fourth)):
            name = f"up_{index}"
            x = taps[name] = nn.relu(layer(features, 3, _conv_transpose, stride=2, name=name)(x))
        init_options = {"kernel_init": _least} if self.residual else {}
        image = Conv(
            self.channels, 7, reflect_conv, dtype=self.dtype, name="image", **init_options
        )(x)
        image = at_least_float32(image)
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
        last = len(self.widths) // 2  # the bottleneck's index: there is one `up` fewer than `down`
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
                x = _dropout(self, x, self.dropout, train)
            taps[name] = x
            x = jnp.concatenate([taps[f"down_{index}"], x], axis=-1)
        image = Conv(self.channels, 4, ops.conv_transpose, 2, dtype=self.dtype, name="image")(
            nn.relu(x)
        )
        return jnp.tanh(at_least_float32(image)), taps


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
        _check_images("this discriminator", images, 1, self._smallest_side())
        for condition in conditions:
            if condition.ndim != 4 or condition.shape[:3] != images.shape[:3]:
                raise ValueError(
                    f"a condition must be images [B, H, W, C] of the scored images' batch and "
                    f"sides, {images.shape[:3]}, not of shape {condition.shape}"
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
        score = Conv(
            1, self.kernel, _conv, dtype=self.dtype, name="score", **_init_options(self.norm)
        )
        scores = score(x)
        return at_least_float32(scores)[..., 0], taps

    def _smallest_side(self) -> int:
        """The smallest side of an image that has a score."""
        side, more = 1, self.kernel - 2 * ((self.kernel - 1) // 2)
        for stride in (1, *reversed(self.strides)):
            side = (side - 1) * stride + more
        return side


_leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)
_least = nn.initializers.variance_scaling(1e-4, "fan_in", "normal")


def _normalize(module: Any, x: Array) -> Array:
    """Applies the normalisation of a layer, if it has one."""
    if module.norm is None:
        return x
    return module.norm.layer(train=module.train, dtype=module.dtype, name="norm")(x)


def _dropout(module: nn.Module, x: Array, share: float, train: bool) -> Array:
    """Dropout in training, if `apply` has a key."""
    deterministic = not (train and module.has_rng("params"))
    return nn.Dropout(share, deterministic=deterministic)(x)


FAMILIES = (
    Family(
        "translation_resnet",
        (ResNetGenerator,),
        narrowed("widths"),
        resnet_generator_axes,
        student=lambda like, width: resnet_generator(
            width, channels=like.channels, blocks=6, separable=True
        ),
        taps=evenly_spaced_taps,
        method="response",
    ),
    Family(
        "unet",
        (UNetGenerator,),
        narrowed("widths"),
        unet_generator_axes,
        method="response",
    ),
)
