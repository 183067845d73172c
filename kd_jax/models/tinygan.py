"""TinyGAN (Chang & Lu 2020): a student of BigGAN with depthwise separable convolutions.

The generator has BigGAN's inputs and arrangement (`kd_jax.models.biggan`), so that it takes the
teacher's latents, but uses bilinear upsampling and neither attention nor spectral normalisation.
The discriminator is a stack of 4x4 convolutions with spectral normalisation, whose features the
distillation method compares.

Images are `[B, size, size, channels]` in [-1, 1]; latents `[B, latent]`; labels int `[B]`.
"""

from collections.abc import Callable, Sequence
from functools import partial
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
from kd_jax.models import biggan, resnet
from kd_jax.models.factories import make_gan
from kd_jax.models.layers.conditioning import check_labels
from kd_jax.models.layers.norm import BatchNorm, ConditionalNorm, norm_axes
from kd_jax.models.layers.spectral import (
    Conv,
    Dense,
    Embed,
    SpectralNorm,
    embedding_axes,
    layer_axes,
)

_WINDOW = 3
_STORED = SpectralNorm(stored=True)  # as in the authors' program


def generator(
    size: int,
    width: int | Sequence[int] = 32,
    *,
    channels: int = 3,
    classes: int = 0,
    shared: int = 128,
    hierarchical: bool = True,
    dtype: Any = jnp.float32,
) -> Network:
    """`(latents[, labels]) -> images`; taps `4x4`, `8x8`, ... and `block_N`, the block's output.

    Args:
      size: the image's side, 32, 64, 128, 256 or 512.
      width: as in `kd_jax.models.biggan.generator`.
      channels: the image's channels.
      classes: number of classes; 0 for an unconditional network, which takes no labels.
      shared: length of the class embedding, or 0: see `kd_jax.models.biggan.generator`.
      hierarchical: whether every block gets a part of the latents, as in the teacher.
      dtype: the computation dtype; parameters and images are always float32.

    Raises:
      ValueError: the size is not supported, a number is not positive, or the latents are
        hierarchical and the classes have no shared embedding.
    """
    widths = resnet.block_widths("a TinyGAN generator", biggan.GENERATOR, size, width)
    if hierarchical and classes and not shared:
        raise ValueError("hierarchical latents need a shared class embedding; shared is 0")
    return from_linen(
        Generator(widths, channels, classes, shared if classes else 0, hierarchical, dtype)
    )


def discriminator(
    size: int,
    width: int | Sequence[int] = 32,
    *,
    classes: int = 0,
    spectral: SpectralNorm | None = _STORED,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits); taps by side, after activation.

    Args:
      size: the image's side.
      width: channels of the first layer, which double as the side halves, down to 4; or the
        channels of each layer, for any number of layers.
      classes: number of classes; 0 for a network that takes no labels.
      spectral: spectral normalisation of the weights, or None.
      dtype: the computation dtype; parameters and scores are always float32.

    Raises:
      ValueError: the size is not a power of two of at least 8, a width is not positive, or the
        number of layers is 0 or more than it takes to halve the side to 1.
    """
    halvings = size.bit_length() - 1
    if size < 8 or size != 2**halvings:
        raise ValueError(f"a TinyGAN discriminator's size must be a power of two >= 8, not {size}")
    if isinstance(width, Sequence):
        widths = tuple(int(count) for count in width)
    else:
        widths = tuple(width * 2**level for level in range(halvings - 2))
    if not 1 <= len(widths) <= halvings or min(widths) < 1:
        raise ValueError(
            f"width={width} must be at least 1 for each of 1 to {halvings} layers at size {size}"
        )
    return from_linen(Discriminator(widths, classes, spectral, dtype))


gan = make_gan(generator, discriminator)
"""A `generator` and its `discriminator`, as a `PerNetwork`, with the arguments of both."""


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are `dense` and, for each block, `block_N` (named like the tap) and `block_N/hidden`.

    Args:
      variables: those of a `generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `generator`, or include connectors.
    """
    leaves = tensors(variables)
    shortcut = leaves.get("params/block_0/shortcut/kernel")
    if shortcut is None or "params/dense/kernel" not in leaves:
        raise ValueError("the variables are not those of a TinyGAN generator")
    positions = leaves["params/dense/kernel"].shape[1] // shortcut.shape[2]
    group = "dense"
    axes = layer_axes(leaves, "dense", None, Repeat(group, positions))
    if "params/shared/embedding" in leaves:
        axes |= embedding_axes(leaves, "shared", None)
    for index in range(resnet.count_blocks(variables)):
        path = f"block_{index}"
        hidden = f"{path}/hidden"
        steps = ((1, group, hidden), (2, hidden, path))
        for number, before, after in steps:
            axes |= norm_axes(leaves, f"{path}/norm{number}", before)
            axes[f"params/{path}/conv{number}/depthwise"] = (None, None, before)
            axes[f"params/{path}/conv{number}/depthwise_bias"] = (before,)
            axes |= layer_axes(leaves, f"{path}/conv{number}/pointwise", before, after)
        axes |= layer_axes(leaves, f"{path}/shortcut", group, path)
        group = path
    axes |= norm_axes(leaves, "norm", group)
    axes |= layer_axes(leaves, "image", group, None)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a discriminator's variables, for `kd_jax.pruning`.

    The groups are `conv_0`, `conv_1`, ...

    Args:
      variables: those of a `discriminator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `discriminator`, or include connectors.
    """
    leaves = tensors(variables)
    count = sum(name.startswith("conv_") for name in variables["params"])
    before: str | None = None
    axes: dict[str, tuple[Axis, ...]] = {}
    for index in range(count):
        axes |= layer_axes(leaves, f"conv_{index}", before, f"conv_{index}")
        before = f"conv_{index}"
    axes |= layer_axes(leaves, "score", before, None)
    if "params/label/embedding" in leaves:
        axes |= embedding_axes(leaves, "label", InputAxis(before))
    group_widths(variables, axes)
    return axes


def bilinear_upsample(x: Array) -> Array:
    """`[B, H, W, C] -> [B, 2H, 2W, C]`, linear between pixel centres, constant outside."""
    for axis in (1, 2):
        around = ((1, 1), (0, 0)) if axis == 1 else ((0, 0), (1, 1))
        padded = ops.pad(x, around, "edge")
        side = x.shape[axis]
        before = jax.lax.slice_in_dim(padded, 0, side, axis=axis)
        after = jax.lax.slice_in_dim(padded, 2, side + 2, axis=axis)
        pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
        shape = list(x.shape)
        shape[axis] *= 2
        x = pairs.reshape(shape)
    return x


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 convolution, both with biases."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (_WINDOW, _WINDOW, x.shape[-1])
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
        kernel = self.param("depthwise", init, shape).astype(self.dtype)
        bias = self.param("depthwise_bias", nn.initializers.zeros, shape[-1:]).astype(self.dtype)
        x = ops.depthwise_conv(x.astype(self.dtype), kernel) + bias[None, None, None]
        return Conv(self.features, kernel=1, dtype=self.dtype, name="pointwise")(x)


class GeneratorBlock(nn.Module):
    """A residual block that doubles the side: `(x, condition) -> features`.

    Attributes:
      features: channels of the output.
      norm: `(name=) ->` a normalisation, called with features and condition.
      dtype: the computation dtype.
    """

    features: int
    norm: Callable[..., nn.Module]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array | None) -> Array:
        conv = partial(SeparableConv, self.features, dtype=self.dtype)
        h = jax.nn.relu(self.norm(name="norm1")(x, condition))
        h = conv(name="conv1")(bilinear_upsample(h))
        h = conv(name="conv2")(jax.nn.relu(self.norm(name="norm2")(h, condition)))
        # The 1x1 convolution commutes with the upsampling and is cheaper on fewer pixels.
        shortcut = Conv(self.features, kernel=1, dtype=self.dtype, name="shortcut")(x)
        return h + bilinear_upsample(shortcut)


class Generator(nn.Module):
    """See `generator`."""

    widths: tuple[int, ...]
    channels: int
    classes: int
    shared: int
    hierarchical: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, latents: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        check_labels(self.classes, labels)
        normalise = partial(BatchNorm, train=train, dtype=self.dtype)
        linear: Callable[..., nn.Module] = partial(Dense, dtype=self.dtype)
        condition = labels
        if self.shared:
            condition = Embed(self.shared, self.classes, dtype=self.dtype, name="shared")(labels)
        elif self.classes:
            linear = partial(Embed, classes=self.classes, dtype=self.dtype)
        norm = partial(ConditionalNorm, normalise, linear)
        blocks = self.widths[1:]
        latents, conditions = biggan.split_conditions(
            latents, condition, len(blocks), self.hierarchical
        )
        x = Dense(resnet.BOTTOM**2 * self.widths[0], dtype=self.dtype, name="dense")(latents)
        x = x.reshape(-1, resnet.BOTTOM, resnet.BOTTOM, self.widths[0])
        taps = {resnet.side(x): x}
        for index, features in enumerate(blocks):
            name = f"block_{index}"
            x = GeneratorBlock(features, norm, self.dtype, name=name)(x, conditions[index])
            taps[name] = taps[resnet.side(x)] = x
        x = jax.nn.relu(normalise(name="norm")(x))
        image = Conv(self.channels, dtype=self.dtype, name="image")(x)
        return jnp.tanh(at_least_float32(image)), taps


class Discriminator(nn.Module):
    """See `discriminator`."""

    widths: tuple[int, ...]
    classes: int
    spectral: SpectralNorm | None
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        check_labels(self.classes, labels)
        layer: dict[str, Any] = {"norm": self.spectral, "train": train}
        x, taps = images, {}
        for index, features in enumerate(self.widths):
            conv = Conv(
                features, kernel=4, stride=2, dtype=self.dtype, name=f"conv_{index}", **layer
            )
            x = nn.leaky_relu(conv(x), negative_slope=0.01)
            taps[resnet.side(x)] = x
        summed = taps["features"] = at_least_float32(x).sum(axis=(1, 2))
        dense, embed = partial(Dense, **layer), partial(Embed, classes=self.classes, **layer)
        return resnet.projection_scores(summed, labels, dense, embed), taps


FAMILY = Family(
    "tinygan",
    (Generator,),
    narrowed("widths"),
    generator_axes,
    student=lambda like, width: generator(
        like.size,
        width,
        channels=like.channels,
        classes=like.classes,
        hierarchical=like.classes > 0,
    ),
)
