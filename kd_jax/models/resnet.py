"""The residual generator and discriminator of SNGAN (Miyato et al. 2018), for 32, 64 or 128 pixels.

The generator doubles the size in blocks of two 3x3 convolutions with batch normalisation, which is
class-conditional if there are classes; the discriminator mirrors it with spectral normalisation and
a projection head for the label (Miyato & Koyama 2018). BigGAN (`kd_jax.models.biggan`) uses the
same blocks.

Images are `[B, size, size, channels]` in [-1, 1]; latents `[B, latent]`; labels int `[B]`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.axes import Axes, Axis, InputAxis, Repeat, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.factories import make_gan
from kd_jax.models.layers.attention import attention_axes
from kd_jax.models.layers.conditioning import check_labels
from kd_jax.models.layers.norm import BatchNorm, ConditionalNorm, norm_axes
from kd_jax.models.layers.spectral import (
    ONE_STEP,
    Conv,
    Dense,
    Embed,
    SpectralNorm,
    embedding_axes,
    layer_axes,
)

# Channels of the generator at 4x4, 8x8, ..., and of the discriminator's blocks, as multiples of
# `width`; tables 3 to 5 of the paper, whose 32x32 networks have 256 and 128 channels everywhere.
GENERATOR = {32: (1, 1, 1, 1), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
DISCRIMINATOR = {32: (1, 1, 1, 1), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}

BOTTOM = 4  # the side at which the generator starts

_glorot = nn.initializers.glorot_uniform()
# Block convolutions are initialized larger by sqrt(2): a ReLU precedes each of them.
_block = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")


def generator(
    size: int,
    width: int | Sequence[int] = 64,
    *,
    channels: int = 3,
    classes: int = 0,
    spectral: SpectralNorm | None = None,
    dtype: Any = jnp.float32,
) -> Network:
    """`(latents[, labels]) -> images`; taps `4x4`, `8x8`, ... and `block_N`, before activation.

    Args:
      size: the image's side, 32, 64 or 128.
      width: channels of the generator at full size; they double as the side halves, up to 16 times
        as many. At 32 pixels all layers have `width` channels: 256 in the paper's generator and 128
        in its discriminator. Or the channels at 4x4, 8x8, ..., full size.
      channels: the image's channels.
      classes: number of classes; 0 for unconditional networks, which take no labels.
      spectral: spectral normalisation of the weights, or None as in the paper's generator.
      dtype: the computation dtype; parameters, images and scores are always float32.

    Raises:
      ValueError: the size is not supported, or the width is not positive.
    """
    widths = block_widths("an SNGAN generator", GENERATOR, size, width)
    return from_linen(Generator(widths, channels, classes, spectral, dtype))


def discriminator(
    size: int,
    width: int | Sequence[int] = 64,
    *,
    classes: int = 0,
    spectral: SpectralNorm | None = ONE_STEP,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits); taps `block_N`, ..., `8x8`, and `features`.

    Args and errors are those of `generator`; `width` may list the channels of each block:
    4, 5 or 6 numbers for the three sizes.
    """
    widths = block_widths("an SNGAN discriminator", DISCRIMINATOR, size, width)
    return from_linen(Discriminator(widths, halvings(size), classes, spectral, dtype))


gan = make_gan(
    generator, discriminator, fixed={"spectral": "only the discriminator's weights are normalised"}
)
"""A `generator` and its `discriminator`, as a `PerNetwork`, with the other arguments of both."""


def block_widths(
    what: str, tables: dict[int, tuple[int, ...]], size: int, width: int | Sequence[int]
) -> tuple[int, ...]:
    """The channels of a network, from a table of multiples for each size.

    Args:
      what: the network, for error messages.
      tables: `{size: multiples}`.
      size: one of the keys of `tables`.
      width: the factor of the multiples, or the list of channels.

    Raises:
      ValueError: there is no table for the size, the number of widths is wrong, or a width is not
        positive.
    """
    if size not in tables:
        raise ValueError(f"{what}'s size must be one of {', '.join(map(str, tables))}, not {size}")
    table = tables[size]
    if isinstance(width, Sequence):
        widths = tuple(int(count) for count in width)
        if len(widths) != len(table):
            raise ValueError(
                f"{what} of size {size} has {len(table)} widths from input to output, "
                f"not {len(widths)}"
            )
    else:
        widths = tuple(multiple * width for multiple in table)
    if min(widths) < 1:
        raise ValueError(f"width={width} must be at least 1")
    return widths


def halvings(size: int) -> int:
    """Number of times a discriminator halves the side: down to 4, or to 8 for 32-pixel images."""
    return 2 if size == 32 else (size // BOTTOM).bit_length() - 1


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are `dense` and, for each block, `block_N` (named like the tap) and `block_N/hidden`,
    the features between its convolutions. BigGAN's attention layers have their own groups.

    Args:
      variables: those of a `generator` of this module or of `kd_jax.models.biggan`, as arrays or
        `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of such a generator, or include connectors.
    """
    leaves = tensors(variables)
    shortcut = leaves.get("params/block_0/shortcut/kernel")
    if shortcut is None or "params/dense/kernel" not in leaves:
        raise ValueError("the variables are not those of a residual generator")
    positions = leaves["params/dense/kernel"].shape[1] // shortcut.shape[2]
    group = "dense"
    axes: dict[str, tuple[Axis, ...]] = {
        **layer_axes(leaves, "dense", None, Repeat(group, positions))
    }
    if "params/shared/embedding" in leaves:
        axes |= embedding_axes(leaves, "shared", None)
    for index in range(count_blocks(variables)):
        path = f"block_{index}"
        hidden = f"{path}/hidden"
        axes |= norm_axes(leaves, f"{path}/norm1", group)
        axes |= layer_axes(leaves, f"{path}/conv1", group, hidden)
        axes |= norm_axes(leaves, f"{path}/norm2", hidden)
        axes |= layer_axes(leaves, f"{path}/conv2", hidden, path)
        axes |= layer_axes(leaves, f"{path}/shortcut", group, path)
        group = path
        if f"params/attention_{index}/gamma" in leaves:
            axes |= attention_axes(leaves, f"attention_{index}", group)
    axes |= norm_axes(leaves, "norm", group)
    axes |= layer_axes(leaves, "image", group, None)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a discriminator's variables, for `kd_jax.pruning`.

    The groups are `block_N` (named like the taps) and `block_N/hidden`, the features between a
    block's convolutions; a block with an identity shortcut shares the group of the previous block.
    BigGAN's attention layers have their own groups.

    Args:
      variables: those of a `discriminator` of this module or of `kd_jax.models.biggan`, as arrays
        or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of such a discriminator, or include connectors.
    """
    leaves = tensors(variables)
    group: str | None = None
    axes: dict[str, tuple[Axis, ...]] = {}
    for index in range(count_blocks(variables)):
        path = f"block_{index}"
        hidden = f"{path}/hidden"
        before = group
        if f"params/{path}/shortcut/kernel" in leaves:
            group = path
            axes |= layer_axes(leaves, f"{path}/shortcut", before, group)
        axes |= layer_axes(leaves, f"{path}/conv1", before, hidden)
        axes |= layer_axes(leaves, f"{path}/conv2", hidden, group)
        if f"params/attention_{index}/gamma" in leaves:
            axes |= attention_axes(leaves, f"attention_{index}", group)
    axes |= layer_axes(leaves, "score", group, None)
    if "params/label/embedding" in leaves:
        axes |= embedding_axes(leaves, "label", InputAxis(group))
    group_widths(variables, axes)
    return axes


def count_blocks(variables: Variables) -> int:
    """The number of modules `block_N`, numbered consecutively from 0."""
    count = 0
    while f"block_{count}" in variables["params"]:
        count += 1
    return count


def upsample(x: Array, factor: int = 2) -> Array:
    """`[B, H, W, C] -> [B, factor H, factor W, C]`, each pixel repeated `factor^2` times."""
    batch, height, width, features = x.shape
    shape = (batch, height, factor, width, factor, features)
    x = jnp.broadcast_to(x[:, :, None, :, None, :], shape)
    return x.reshape(batch, factor * height, factor * width, features)


def average_pool(x: Array) -> Array:
    """`[B, H, W, C] -> [B, H / 2, W / 2, C]`, the means of 2x2 pixels."""
    batch, height, width, features = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, features).mean(axis=(2, 4))


class GeneratorBlock(nn.Module):
    """A residual block that doubles the side: `(x, condition) -> features`.

    Attributes:
      features: channels of the output.
      norm: `(name=) ->` a normalisation, called with features and condition.
      conv: `(features, kernel=, name=) ->` a convolution.
    """

    features: int
    norm: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, condition: Array | None) -> Array:
        h = jax.nn.relu(self.norm(name="norm1")(x, condition))
        h = self.conv(self.features, name="conv1")(upsample(h))
        h = jax.nn.relu(self.norm(name="norm2")(h, condition))
        h = self.conv(self.features, name="conv2")(h)
        # The 1x1 convolution commutes with the upsampling and costs a quarter before it.
        return h + upsample(self.conv(self.features, kernel=1, name="shortcut")(x))


class DiscriminatorBlock(nn.Module):
    """A residual block that optionally halves the side.

    Attributes:
      features: channels of the output.
      hidden: channels between the convolutions.
      downsample: whether the side is halved.
      activate: whether a ReLU precedes the first convolution; not in the first block, whose input
        is the image.
      conv: `(features, kernel=, name=) ->` a convolution.
    """

    features: int
    hidden: int
    downsample: bool
    activate: bool
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = jax.nn.relu(x) if self.activate else x
        h = self.conv(self.hidden, name="conv1")(h)
        h = self.conv(self.features, name="conv2")(jax.nn.relu(h))
        if not self.downsample and x.shape[-1] == self.features:
            return h + x
        if self.downsample:
            h, x = average_pool(h), average_pool(x)
        return h + self.conv(self.features, kernel=1, name="shortcut")(x)


class Generator(nn.Module):
    """See `generator`."""

    widths: tuple[int, ...]
    channels: int
    classes: int
    spectral: SpectralNorm | None
    dtype: Any

    @nn.compact
    def __call__(
        self, latents: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        check_labels(self.classes, labels)
        layer: dict[str, Any] = {"norm": self.spectral, "train": train, "dtype": self.dtype}
        zeros = nn.initializers.zeros  # initially a scale of 1 and a bias of 0 for each class
        norm = partial(
            ConditionalNorm,
            partial(BatchNorm, train=train, dtype=self.dtype),
            partial(Embed, classes=self.classes, embedding_init=zeros, dtype=self.dtype),
        )
        first = self.widths[0]
        x = Dense(BOTTOM**2 * first, kernel_init=_glorot, name="dense", **layer)(latents)
        x = x.reshape(-1, BOTTOM, BOTTOM, first)
        taps = {side(x): x}
        conv = partial(Conv, kernel_init=_block, **layer)
        for index, features in enumerate(self.widths[1:]):
            name = f"block_{index}"
            x = GeneratorBlock(features, norm, conv, name=name)(x, labels)
            taps[name] = taps[side(x)] = x
        x = jax.nn.relu(BatchNorm(train=train, dtype=self.dtype, name="norm")(x))
        image = Conv(self.channels, kernel_init=_glorot, name="image", **layer)(x)
        return jnp.tanh(at_least_float32(image)), taps


class Discriminator(nn.Module):
    """See `discriminator`."""

    widths: tuple[int, ...]
    halvings: int
    classes: int
    spectral: SpectralNorm | None
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        check_labels(self.classes, labels)
        layer: dict[str, Any] = {"norm": self.spectral, "train": train}
        conv = partial(Conv, kernel_init=_block, dtype=self.dtype, **layer)
        x, taps = images, {}
        for index, features in enumerate(self.widths):
            name = f"block_{index}"
            x = DiscriminatorBlock(
                features,
                hidden=features if index == 0 else x.shape[-1],
                downsample=index < self.halvings,
                activate=index > 0,
                conv=conv,
                name=name,
            )(x)
            taps[name] = taps[side(x)] = x
        summed = taps["features"] = at_least_float32(jax.nn.relu(x)).sum(axis=(1, 2))
        dense = partial(Dense, kernel_init=_glorot, **layer)
        embed = partial(Embed, classes=self.classes, embedding_init=_glorot, **layer)
        return projection_scores(summed, labels, dense, embed), taps


def projection_scores(
    features: Array,
    labels: Array | None,
    dense: Callable[..., nn.Module],
    embed: Callable[..., nn.Module],
) -> Array:
    """Scores `[B]` of features `[B, C]` and labels (Miyato & Koyama 2018, eq. 4).

    Args:
      features: `[B, C]`, float32.
      labels: int `[B]`, or None.
      dense: `(features, name=) ->` a linear layer.
      embed: `(features, name=) ->` an embedding of the labels.
    """
    scores = dense(1, name="score")(features)[:, 0]
    if labels is None:
        return scores
    return scores + (embed(features.shape[-1], name="label")(labels) * features).sum(axis=-1)


def side(x: Array) -> str:
    """The tap name of features `[B, H, W, C]` by their side, e.g. `8x8`."""
    return f"{x.shape[1]}x{x.shape[2]}"


FAMILY = Family(
    "resnet",
    (Generator,),
    narrowed("widths"),
    generator_axes,
    student=lambda like, width: generator(
        like.size, width, channels=like.channels, classes=like.classes
    ),
)
