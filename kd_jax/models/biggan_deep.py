"""BigGAN-deep (Brock et al. 2019, appendix B), for any power-of-two size from 32 to 512.

It is four times as deep as BigGAN (`kd_jax.models.biggan`) and cheaper: blocks are bottlenecks of
1x1, 3x3, 3x3 and 1x1 convolutions. The generator's shortcuts drop surplus channels and have no
parameters; the discriminator's shortcuts append missing channels by a 1x1 convolution. Every block
receives the whole latent and the class embedding.

Images are `[B, size, size, channels]` in [-1, 1]; latents `[B, latent]`; labels int `[B]`.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.axes import Axes, Axis, InputAxis, Repeat, group_widths, parts, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models import biggan, resnet
from kd_jax.models.factories import make_gan
from kd_jax.models.layers.attention import SelfAttention, attention_axes
from kd_jax.models.layers.conditioning import check_labels
from kd_jax.models.layers.norm import BatchNorm, ConditionalNorm, TruncationNorm, norm_axes
from kd_jax.models.layers.remat import remat as remat_block
from kd_jax.models.layers.spectral import (
    ONE_STEP,
    Conv,
    Dense,
    Embed,
    SpectralNorm,
    embedding_axes,
    layer_axes,
)

# Channels of the generator at 4x4, 8x8, ..., and of the discriminator after its first convolution
# and each of its stages, as multiples of `width` (tables 7 to 9 of the paper, and the authors'
# program).
GENERATOR = biggan.GENERATOR
DISCRIMINATOR = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
    512: (1, 1, 2, 4, 8, 8, 16, 16),
}

BOTTLENECK = 4  # ratio of a block's channels to its hidden channels


def generator(
    size: int,
    width: int | Sequence[int] = 128,
    *,
    depth: int = 2,
    channels: int = 3,
    classes: int = 0,
    shared: int = 128,
    attention: Sequence[int] = (64,),
    spectral: SpectralNorm | None = ONE_STEP,
    epsilon: float = 1e-5,
    unbiased: bool = True,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """`(latents[, labels]) -> images`: `generator_of_blocks` with the paper's arrangement.

    The last block of each side doubles the side and drops channels; attention follows it.

    Args:
      size: the image's side, 32, 64, 128, 256 or 512.
      width: channels of the generator at full size (for 128 pixels and more); they double as the
        side halves, up to 16 times as many. 128 in the paper. Or the channels at 4x4, 8x8, ...,
        full size, in non-increasing order.
      depth: blocks for each side; 2 in the paper.
      channels: the image's channels.
      classes: number of classes; 0 for unconditional networks, which take no labels.
      shared: length of the class embedding.
      attention: sides at which self-attention follows the last block.
      spectral: spectral normalisation of the weights, or None.
      epsilon: that of the batch normalisations.
      unbiased: whether their running variance averages the unbiased estimate, rather than the batch
        variance.
      dtype: the computation dtype; parameters, images and scores are always float32.
      remat: whether the gradient recomputes the activations within each block and attention.

    Raises:
      ValueError: the size is not supported, a number is not positive, or widths increase.
    """
    side_widths = resnet.block_widths("a BigGAN-deep generator", GENERATOR, size, width)
    _check_depth(depth)
    widths, doublings, attention_blocks = [side_widths[0]], [], []
    side = resnet.BOTTOM
    for before, features in itertools.pairwise(side_widths):
        widths += [before] * (depth - 1) + [features]
        doublings += [False] * (depth - 1) + [True]
        side *= 2
        if side in attention:
            attention_blocks.append(len(doublings) - 1)
    return generator_of_blocks(
        widths,
        doublings,
        channels=channels,
        classes=classes,
        shared=shared,
        attention=attention_blocks,
        spectral=spectral,
        epsilon=epsilon,
        unbiased=unbiased,
        dtype=dtype,
        remat=remat,
    )


def generator_of_blocks(
    widths: Sequence[int],
    doublings: Sequence[bool],
    *,
    channels: int = 3,
    classes: int = 0,
    shared: int = 128,
    attention: Sequence[int] = (),
    spectral: SpectralNorm | None = ONE_STEP,
    epsilon: float = 1e-5,
    unbiased: bool = True,
    statistics: int | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """`(latents[, labels]) -> images`, from a list of blocks.

    Taps are `4x4`, the blocks' outputs `block_N`, and `attention_N` after block N; `8x8`, ... are
    the last features of their side.

    Args:
      widths: channels at 4x4 and after each block, in non-increasing order.
      doublings: for each block, whether it doubles the side.
      attention: indices of the blocks, from 0, that self-attention follows.
      channels: the image's channels.
      classes: number of classes; 0 for a generator that takes no labels.
      shared: length of the class embedding.
      spectral: spectral normalisation of the weights, or None.
      epsilon: epsilon of the batch normalisations.
      unbiased: whether their running variance averages the unbiased estimate.
      statistics: number of sets of fixed statistics of the batch normalisations, as in the
        published generators (`layers.norm.TruncationNorm`); such a generator has an option
        `truncation` in (0, 1], by default 1, to be set to the latents' truncation. None for
        ordinary batch normalisation.
      dtype: the computation dtype; parameters and images are always float32.
      remat: whether the gradient recomputes the activations within each block and attention.

    Raises:
      ValueError: the number of widths is not that of `doublings` plus one, a width is not positive,
        widths increase, an index in `attention` is not that of a block, or `statistics` is less
        than 2.
    """
    if len(widths) != len(doublings) + 1:
        raise ValueError(
            f"{len(doublings)} blocks have {len(doublings) + 1} widths from input to output, "
            f"not {len(widths)}"
        )
    if min(widths) < 1 or list(widths) != sorted(widths, reverse=True):
        raise ValueError(f"widths={tuple(widths)} must be positive and non-increasing")
    unknown = [index for index in attention if not 0 <= index < len(doublings)]
    if unknown:
        raise ValueError(f"attention after block {unknown[0]} of {len(doublings)} blocks")
    if statistics is not None and statistics < 2:
        raise ValueError(f"statistics={statistics} must be at least 2, or None")
    return from_linen(
        Generator(
            tuple(widths),
            tuple(bool(double) for double in doublings),
            channels,
            classes,
            shared,
            tuple(attention),
            spectral,
            epsilon,
            unbiased,
            statistics,
            dtype,
            remat,
        )
    )


def discriminator(
    size: int,
    width: int | Sequence[int] = 128,
    *,
    depth: int = 2,
    classes: int = 0,
    attention: Sequence[int] = (64,),
    spectral: SpectralNorm | None = ONE_STEP,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits).

    Taps are `stem`, `block_N`, and `attention_N` after block N; `8x8`, ... are the last features of
    their side, and `features` is the sum of the last ones over the positions.

    Args and errors are those of `generator`; `width` may list the channels of the first
    convolution and of each stage, in non-decreasing order.
    """
    widths = resnet.block_widths("a BigGAN-deep discriminator", DISCRIMINATOR, size, width)
    _check_depth(depth)
    if list(widths) != sorted(widths):
        raise ValueError(f"widths={widths} must be non-decreasing")
    return from_linen(
        Discriminator(
            widths, resnet.halvings(size), depth, classes, tuple(attention), spectral, dtype, remat
        )
    )


gan = make_gan(generator, discriminator)
"""A `generator` and its `discriminator`, as a `PerNetwork`, with the arguments of both."""


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are `image`, the last block's output; `block_N/dropped`, for each block that drops
    channels; and `block_N/hidden1`, `2` and `3`, the outputs of each block's first three
    convolutions. Attention layers have their own groups. A student's blocks can only drop as many
    channels as the teacher's.

    Args:
      variables: those of a generator of this module, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of such a generator, or include connectors.
    """
    leaves = tensors(variables)
    count = resnet.count_blocks(variables)
    last = leaves.get(f"params/block_{count - 1}/conv4/kernel")
    if last is None or "params/dense/kernel" not in leaves:
        raise ValueError("the variables are not those of a BigGAN-deep generator")
    axes: dict[str, tuple[Axis, ...]] = {}
    channels, width = cast(Axis, "image"), last.shape[3]
    axes |= norm_axes(leaves, "norm", channels)
    axes |= layer_axes(leaves, "image", channels, None)
    for index in reversed(range(count)):
        path = f"block_{index}"
        if f"params/attention_{index}/gamma" in leaves:
            axes |= attention_axes(leaves, f"attention_{index}", channels)
        writes, before = channels, leaves[f"params/{path}/conv1/kernel"].shape[2]
        if before > width:
            channels, width = (*_flatten(channels), f"{path}/dropped"), before
        axes |= _bottleneck_axes(leaves, path, channels, writes)
    positions = leaves["params/dense/kernel"].shape[1] // width
    axes |= layer_axes(leaves, "dense", None, Repeat(channels, positions))
    if "params/shared/embedding" in leaves:
        axes |= embedding_axes(leaves, "shared", None)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a discriminator's variables, for `kd_jax.pruning`.

    The groups are `stem`, the first convolution's output; `block_N/added`, for each block that adds
    channels; and `block_N/hidden1`, `2` and `3`, the outputs of each block's first three
    convolutions. Attention layers have their own groups.

    Args:
      variables: those of a `discriminator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `discriminator`, or include connectors.
    """
    leaves = tensors(variables)
    channels: Axis = "stem"
    axes: dict[str, tuple[Axis, ...]] = {**layer_axes(leaves, "stem", None, channels)}
    for index in range(resnet.count_blocks(variables)):
        path = f"block_{index}"
        reads = channels
        if f"params/{path}/added/kernel" in leaves:
            added = f"{path}/added"
            axes |= layer_axes(leaves, added, channels, added)
            channels = (*_flatten(channels), added)
        axes |= _bottleneck_axes(leaves, path, reads, channels)
        if f"params/attention_{index}/gamma" in leaves:
            axes |= attention_axes(leaves, f"attention_{index}", channels)
    axes |= layer_axes(leaves, "score", channels, None)
    if "params/label/embedding" in leaves:
        axes |= embedding_axes(leaves, "label", InputAxis(channels))
    group_widths(variables, axes)
    return axes


def _flatten(channels: Axis) -> tuple[Axis, ...]:
    return tuple(parts(channels))


def _bottleneck_axes(
    leaves: dict[str, Any], path: str, reads: Axis, writes: Axis
) -> dict[str, tuple[Axis, ...]]:
    steps = (reads, *(f"{path}/hidden{number}" for number in (1, 2, 3)), writes)
    axes: dict[str, tuple[Axis, ...]] = {}
    for number, (before, after) in enumerate(itertools.pairwise(steps), start=1):
        axes |= layer_axes(leaves, f"{path}/conv{number}", before, after)
        if f"batch_stats/{path}/norm{number}/norm/mean" in leaves:
            axes |= norm_axes(leaves, f"{path}/norm{number}", before)
    return axes


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise ValueError(f"depth={depth} must be at least 1")


class GeneratorBlock(nn.Module):
    """`(x, condition) -> features`; x has at least as many channels as the output.

    Attributes:
      features: channels of the output.
      double: whether the side is doubled.
      norm: `(name=) ->` a normalisation, called with features and condition.
      conv: `(features, kernel=, name=) ->` a convolution.
    """

    features: int
    double: bool
    norm: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, condition: Array | None) -> Array:
        hidden = max(x.shape[-1] // BOTTLENECK, 1)

        def norm_relu(x: Array, name: str) -> Array:
            return jax.nn.relu(self.norm(name=name)(x, condition))

        h = self.conv(hidden, kernel=1, name="conv1")(norm_relu(x, "norm1"))
        h = norm_relu(h, "norm2")
        x = x[..., : self.features]
        if self.double:
            h, x = resnet.upsample(h), resnet.upsample(x)
        h = self.conv(hidden, name="conv2")(h)
        h = self.conv(hidden, name="conv3")(norm_relu(h, "norm3"))
        return x + self.conv(self.features, kernel=1, name="conv4")(norm_relu(h, "norm4"))


class DiscriminatorBlock(nn.Module):
    """A block whose output has at least as many channels as its input.

    Attributes:
      features: channels of the output.
      halve: whether the side is halved.
      conv: `(features, kernel=, name=) ->` a convolution.
    """

    features: int
    halve: bool
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = max(self.features // BOTTLENECK, 1)
        h = self.conv(hidden, kernel=1, name="conv1")(jax.nn.relu(x))
        h = self.conv(hidden, name="conv2")(jax.nn.relu(h))
        h = jax.nn.relu(self.conv(hidden, name="conv3")(jax.nn.relu(h)))
        if self.halve:
            h, x = resnet.average_pool(h), resnet.average_pool(x)
        if added := self.features - x.shape[-1]:
            more = self.conv(added, kernel=1, name="added")(x)
            x = jnp.concatenate([x, more], axis=-1)
        return x + self.conv(self.features, kernel=1, name="conv4")(h)


class Generator(nn.Module):
    """See `generator_of_blocks`."""

    widths: tuple[int, ...]
    doublings: tuple[bool, ...]
    channels: int
    classes: int
    shared: int
    attention: tuple[int, ...]
    spectral: SpectralNorm | None
    epsilon: float
    unbiased: bool
    statistics: int | None
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        latents: Array,
        labels: Array | None = None,
        *,
        train: bool,
        truncation: float | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        check_labels(self.classes, labels)
        normalise = self._normalisation(train, truncation)
        layer: dict[str, Any] = {"norm": self.spectral, "train": train, "dtype": self.dtype}
        conv, linear = partial(Conv, **layer), partial(Dense, use_bias=False, **layer)
        norm = partial(ConditionalNorm, normalise, linear)

        condition = latents.astype(self.dtype)
        if labels is not None:
            shared = Embed(self.shared, self.classes, dtype=self.dtype, name="shared")(labels)
            condition = jnp.concatenate([shared, condition], axis=-1)
        x = Dense(resnet.BOTTOM**2 * self.widths[0], name="dense", **layer)(condition)
        x = x.reshape(-1, resnet.BOTTOM, resnet.BOTTOM, self.widths[0])
        block = remat_block(GeneratorBlock, self.remat)
        attention = remat_block(SelfAttention, self.remat)
        taps = {resnet.side(x): x}
        for index, (features, double) in enumerate(
            zip(self.widths[1:], self.doublings, strict=True)
        ):
            name = f"block_{index}"
            x = taps[name] = block(features, double, norm, conv, name=name)(x, condition)
            if index in self.attention:
                name = f"attention_{index}"
                x = taps[name] = attention(conv, name=name)(x)
            taps[resnet.side(x)] = x
        x = jax.nn.relu(normalise(name="norm")(x))
        image = conv(self.channels, name="image")(x)
        return jnp.tanh(at_least_float32(image)), taps

    def _normalisation(self, train: bool, truncation: float | None) -> Callable[..., nn.Module]:
        options: dict[str, Any] = {"epsilon": self.epsilon, "dtype": self.dtype}
        if self.statistics is not None:
            truncation = 1.0 if truncation is None else truncation
            return partial(TruncationNorm, self.statistics, truncation, **options)
        if truncation is not None:
            raise ValueError(
                "the generator has one set of statistics and does not support truncation"
            )
        return partial(BatchNorm, train=train, unbiased=self.unbiased, **options)


class Discriminator(nn.Module):
    """See `discriminator`."""

    widths: tuple[int, ...]
    halvings: int
    depth: int
    classes: int
    attention: tuple[int, ...]
    spectral: SpectralNorm | None
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        check_labels(self.classes, labels)
        layer: dict[str, Any] = {"norm": self.spectral, "train": train}
        conv = partial(Conv, dtype=self.dtype, **layer)
        x = conv(self.widths[0], name="stem")(images)
        block = remat_block(DiscriminatorBlock, self.remat)
        attention = remat_block(SelfAttention, self.remat)
        taps = {"stem": x}
        for stage, features in enumerate(self.widths[1:]):
            for number in range(self.depth):
                index = stage * self.depth + number
                name = f"block_{index}"
                halve = number == 0 and stage < self.halvings
                x = taps[name] = block(features, halve, conv, name=name)(x)
            if x.shape[1] in self.attention:
                name = f"attention_{index}"
                x = taps[name] = attention(conv, name=name)(x)
            taps[resnet.side(x)] = x
        summed = taps["features"] = at_least_float32(jax.nn.relu(x)).sum(axis=(1, 2))
        dense, embed = partial(Dense, **layer), partial(Embed, classes=self.classes, **layer)
        return resnet.projection_scores(summed, labels, dense, embed), taps


# Blocks that drop channels have other axes than those that do not.
FAMILY = Family("biggan_deep", (Generator,), narrowed("widths", distinct=True), generator_axes)
