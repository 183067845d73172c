"""R3GAN's generator and discriminator (Huang et al. 2024), for images of 4 * 2**n pixels.

Stages of residual blocks, one per resolution, of a 1x1 convolution that expands, a grouped 3x3
convolution and a 1x1 convolution that reduces, with leaky ReLUs and without normalisation. A smooth
filter resamples between stages. The losses are `kd_jax.methods.relativistic` with R1 and R2.
Layers and parameter counts are those of the authors' PyTorch code, so that its files can be read
(`kd_jax.pretrained.r3gan`).

Images are `[B, size, size, channels]` in [-1, 1], not clipped; latents `[B, latent]`; labels int
`[B]` or conditions `[B, classes]`.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axes, Axis, InputAxis, Repeat, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, scale_widths
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.layers.spectral import Conv, Dense, layer_axes
from kd_jax.models.layers.style import as_vector
from kd_jax.models.resnet import count_blocks
from kd_jax.ops.resample import Filter

SMALLEST = 4
"""The side of the first features of the generator, and of the last of the discriminator."""

_SLOPE = 0.2
_LAYERS = 3  # convolutions of a block
_linear = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_basis = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
_leaky_relu = partial(nn.leaky_relu, negative_slope=_SLOPE)


def generator(
    width: Sequence[int] = (768, 768, 768, 768),
    groups: Sequence[int] = (96, 96, 96, 96),
    *,
    blocks: Sequence[int] | int = 2,
    hidden: Sequence[int] | None = None,
    latent: int = 64,
    channels: int = 3,
    classes: int = 0,
    embedding: int = 0,
    kernel: int = 3,
    resample_filter: Filter = (1, 3, 3, 1),
    dtype: Any = jnp.float32,
) -> Network:
    """`(latents[, labels]) -> images`; by default the paper's network for CIFAR-10, 32x32.

    Taps are `start`, the learned 4x4 features weighted by the latents, and `4x4`, `8x8`, ..., the
    outputs of the stages. The embedded labels are concatenated to the latents.

    Args:
      width: channels of each stage, from 4x4 to full size; their number determines the size.
      groups: groups of each stage's 3x3 convolutions.
      blocks: residual blocks of each stage, at least 1.
      hidden: channels between a block's convolutions for each stage; by default twice its width.
      latent: the latent's length.
      channels: the image's channels.
      classes: number of classes; 0 for an unconditional network, which takes no labels.
      embedding: the embedded label's length, if there are classes.
      kernel: kernel size of the grouped convolutions.
      resample_filter: taps of the filter, normalised to a sum of 1.
      dtype: the computation dtype; parameters and images are always float32.

    Raises:
      ValueError: a number is out of range, or the sequences differ in length. `apply` raises it for
        latents or labels of other shapes.
    """
    stages = _stages("an R3GAN generator", width, groups, blocks, hidden, kernel)
    _check("an R3GAN generator", channels, classes, embedding, latent)
    taps = _taps(resample_filter)
    return from_linen(Generator(*stages, kernel, latent, channels, classes, embedding, taps, dtype))


def discriminator(
    width: Sequence[int] = (768, 768, 768, 768),
    groups: Sequence[int] = (96, 96, 96, 96),
    *,
    blocks: Sequence[int] | int = 2,
    hidden: Sequence[int] | None = None,
    classes: int = 0,
    embedding: int = 0,
    kernel: int = 3,
    resample_filter: Filter = (1, 3, 3, 1),
    dtype: Any = jnp.float32,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits); by default the paper's for CIFAR-10, 32x32.

    Taps are ..., `8x8`, `4x4`, the outputs of the stages' blocks, and `features`, those of the
    learned 4x4 weights. With labels the score is the inner product of an output and the embedded
    label (Miyato & Koyama 2018).

    Args and errors are those of `generator`; the widths are from full size to 4x4. The images may
    have any number of channels, and `apply` raises a ValueError for images of another size.
    """
    stages = _stages("an R3GAN discriminator", width, groups, blocks, hidden, kernel)
    _check("an R3GAN discriminator", 1, classes, embedding)
    taps = _taps(resample_filter)
    return from_linen(Discriminator(*stages, kernel, classes, embedding, taps, dtype))


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are named like the taps, `4x4`, `8x8`, ...; stages of equal width share that of the
    first of them. The channels between a block's convolutions, `8x8/block_0/in` before and
    `8x8/block_0/out` after the grouped one, are counted within a group of the convolution, since
    all its groups must have equally many.

    Args:
      variables: those of a `generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `generator`, or include connectors.
    """
    leaves = tensors(variables)
    stages = _count_stages(variables)
    group = _side(SMALLEST)
    axes = layer_axes(leaves, "start/linear", None, group)
    axes["params/start/basis"] = (None, None, group)
    for index in range(stages):
        side = _side(SMALLEST << index)
        if f"params/up_{index}/conv/kernel" in leaves:
            axes |= layer_axes(leaves, f"up_{index}/conv", group, side)
            group = side
        axes |= _stage_axes(leaves, variables, f"stage_{index}", side, group)
    axes |= layer_axes(leaves, "image", group, None)
    if "params/embed/kernel" in leaves:
        axes |= layer_axes(leaves, "embed", None, None)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a discriminator's variables, for `kd_jax.pruning`.

    The groups are those of `generator_axes`.

    Args:
      variables: those of a `discriminator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `discriminator`, or include connectors.
    """
    leaves = tensors(variables)
    stages = _count_stages(variables)
    group = _side(SMALLEST << max(stages - 1, 0))
    axes = layer_axes(leaves, "image", None, group)
    for index in range(stages):
        side = _side(SMALLEST << (stages - 1 - index))
        if f"params/down_{index}/conv/kernel" in leaves:
            axes |= layer_axes(leaves, f"down_{index}/conv", group, side)
            group = side
        axes |= _stage_axes(leaves, variables, f"stage_{index}", side, group)
    axes["params/basis"] = (None, None, group)
    axes |= layer_axes(leaves, "score", group, None)
    if "params/embed/kernel" in leaves:
        axes |= layer_axes(leaves, "embed", None, None)
    group_widths(variables, axes)
    return axes


def _stage_axes(
    leaves: Any, variables: Variables, path: str, side: str, channels: str
) -> dict[str, tuple[Axis, ...]]:
    axes: dict[str, tuple[Axis, ...]] = {}
    for index in range(count_blocks({"params": variables["params"][path]})):
        block, name = f"{path}/block_{index}", f"{side}/block_{index}"
        grouped = f"params/{block}/grouped"
        if f"{grouped}/kernel" not in leaves or f"params/{block}/expand/kernel" not in leaves:
            raise ValueError(
                f"the variables are not those of such a network: {grouped}/kernel is missing"
            )
        times = leaves[f"params/{block}/expand/kernel"].shape[3] // max(
            leaves[f"{grouped}/kernel"].shape[2], 1
        )
        before, after = Repeat(f"{name}/in", times), Repeat(f"{name}/out", times)
        axes |= layer_axes(leaves, f"{block}/expand", channels, before)
        axes[f"{grouped}/kernel"] = (None, None, InputAxis(f"{name}/in"), after)
        axes[f"{grouped}/bias"] = (after,)
        axes |= layer_axes(leaves, f"{block}/reduce", after, channels)
    return axes


class GroupedConv(nn.Module):
    """A convolution whose channels are split into groups, `[B, H, W, C] -> [B, H, W, features]`.

    Attributes:
      features, kernel, dtype: as in `spectral.Conv`.
      groups: number of groups, which divides the inputs and the features.
      gain: standard deviation of the initial outputs for inputs of mean square 1.
    """

    features: int
    groups: int
    kernel: int
    gain: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", _scaled(self.gain), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = ops.grouped_conv(x.astype(self.dtype), kernel, self.groups)
        return x + bias[None, None, None]


class Block(nn.Module):
    """`x + reduce(act(grouped(act(expand(x)))))`; the last kernel is initialized to zero.

    Attributes:
      hidden, groups, kernel: as in `generator`, for one stage.
      gain: standard deviation of the initial outputs of the first two convolutions.
      dtype: the computation dtype.
    """

    hidden: int
    groups: int
    kernel: int
    gain: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = partial(Conv, kernel=1, dtype=self.dtype)
        h = conv(self.hidden, kernel_init=_scaled(self.gain), name="expand")(x)
        grouped = GroupedConv(
            self.hidden, self.groups, self.kernel, self.gain, self.dtype, name="grouped"
        )
        h = _leaky_relu(grouped(_leaky_relu(h)))
        zeros = nn.initializers.zeros
        reduce = conv(x.shape[-1], use_bias=False, kernel_init=zeros, name="reduce")
        return x + reduce(h)


class Stage(nn.Module):
    """Residual blocks of one resolution.

    Attributes:
      blocks: their number.
      hidden, groups, kernel, gain, dtype: as in `Block`.
    """

    blocks: int
    hidden: int
    groups: int
    kernel: int
    gain: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index in range(self.blocks):
            x = Block(
                self.hidden, self.groups, self.kernel, self.gain, self.dtype, name=f"block_{index}"
            )(x)
        return x


class Resample(nn.Module):
    """Doubles or halves the sides; a 1x1 convolution at the smaller size changes the channels.

    Attributes:
      features: channels of the output; if the input has as many, there is no convolution.
      double: whether the sides are doubled instead of halved.
      taps: the filter.
      dtype: the computation dtype.
    """

    features: int
    double: bool
    taps: Filter
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        taps, x = ops.resampling_filter(self.taps), x.astype(self.dtype)
        if not self.double:
            x = ops.downsample2d(x, taps)
        if x.shape[-1] != self.features:
            conv = partial(Conv, kernel=1, use_bias=False, kernel_init=_linear, dtype=self.dtype)
            x = conv(self.features, name="conv")(x)
        return ops.upsample2d(x, taps) if self.double else x


class Start(nn.Module):
    """Learned features `[4, 4, features]`, each channel weighted by a linear map of the input."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (SMALLEST, SMALLEST, self.features)
        basis = self.param("basis", nn.initializers.normal(1.0), shape).astype(self.dtype)
        linear = Dense(
            self.features, use_bias=False, kernel_init=_linear, dtype=self.dtype, name="linear"
        )
        return basis[None] * linear(x)[:, None, None]


class Generator(nn.Module):
    """See `generator`."""

    width: tuple[int, ...]
    groups: tuple[int, ...]
    blocks: tuple[int, ...]
    hidden: tuple[int, ...]
    kernel: int
    latent: int
    channels: int
    classes: int
    embedding: int
    resample_filter: Any
    dtype: Any

    @nn.compact
    def __call__(
        self, latents: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        if latents.ndim != 2 or latents.shape[1] != self.latent:
            raise ValueError(f"latents [B, {self.latent}] are needed, not {latents.shape}")
        x, condition = at_least_float32(latents), _condition(labels, self.classes)
        if condition is not None:
            embed = Dense(self.embedding, use_bias=False, kernel_init=_linear, name="embed")
            x = jnp.concatenate([x, embed(condition)], axis=-1)
        x = Start(self.width[0], self.dtype, name="start")(x)
        taps = {"start": x}
        for index, features in enumerate(self.width):
            if index:
                resample = Resample(
                    features, True, self.resample_filter, self.dtype, name=f"up_{index}"
                )
                x = resample(x)
            x = _stage(self, index)(x)
            taps[_side(x.shape[1])] = x
        image = Conv(
            self.channels,
            kernel=1,
            use_bias=False,
            kernel_init=_linear,
            dtype=self.dtype,
            name="image",
        )
        return at_least_float32(image(x)), taps


class Discriminator(nn.Module):
    """See `discriminator`."""

    width: tuple[int, ...]
    groups: tuple[int, ...]
    blocks: tuple[int, ...]
    hidden: tuple[int, ...]
    kernel: int
    classes: int
    embedding: int
    resample_filter: Any
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        size = SMALLEST << (len(self.width) - 1)
        if images.ndim != 4 or images.shape[1:3] != (size, size):
            raise ValueError(f"images [B, {size}, {size}, C] are needed, not shape {images.shape}")
        condition = _condition(labels, self.classes)
        conv = partial(Conv, kernel=1, use_bias=False, kernel_init=_linear, dtype=self.dtype)
        x = conv(self.width[0], name="image")(images)
        taps: dict[str, Array] = {}
        for index, features in enumerate(self.width):
            if index:
                resample = Resample(
                    features, False, self.resample_filter, self.dtype, name=f"down_{index}"
                )
                x = resample(x)
            x = _stage(self, index)(x)
            taps[_side(x.shape[1])] = x
        basis = self.param("basis", _basis, x.shape[1:]).astype(self.dtype)
        x = taps["features"] = (x * basis[None]).sum(axis=(1, 2))
        score = Dense(
            self.embedding if self.classes else 1,
            use_bias=False,
            kernel_init=_linear,
            dtype=self.dtype,
            name="score",
        )
        x = at_least_float32(score(x))
        if condition is not None:
            small = _scaled(1 / math.sqrt(self.embedding))
            embed = Dense(self.embedding, use_bias=False, kernel_init=small, name="embed")
            x = x * embed(condition)
        return x.sum(axis=1), taps


def _stage(network: Any, index: int) -> Stage:
    """The stage of a network, with the initial gains of Huang et al. 2024, appendix."""
    gain = math.sqrt(2 / (1 + _SLOPE**2))  # preserves the mean square through a leaky ReLU
    gain *= sum(network.blocks) ** (-1 / (2 * _LAYERS - 2))  # Zhang et al. 2019, Fixup
    return Stage(
        network.blocks[index],
        network.hidden[index],
        network.groups[index],
        network.kernel,
        gain,
        network.dtype,
        name=f"stage_{index}",
    )


def _scaled(gain: float) -> nn.initializers.Initializer:
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


def _condition(labels: Array | None, classes: int) -> Array | None:
    if classes:
        return as_vector(labels, classes)
    if labels is not None and labels.size:
        raise ValueError(f"the network is not conditional, but got labels of shape {labels.shape}")
    return None


def _side(side: int) -> str:
    return f"{side}x{side}"


def _count_stages(variables: Variables) -> int:
    return sum(name.startswith("stage_") for name in variables["params"])


def _taps(taps: Filter) -> Any:
    """The normalised filter as nested tuples, a field of a module."""
    array = ops.resampling_filter(taps)
    return tuple(tuple(map(float, row)) if array.ndim == 2 else float(row) for row in array)


def _stages(
    kind: str,
    width: Sequence[int],
    groups: Sequence[int],
    blocks: Sequence[int] | int,
    hidden: Sequence[int] | None,
    kernel: int,
) -> tuple[tuple[int, ...], ...]:
    """Widths, groups, blocks and hidden channels of each stage."""
    widths = tuple(int(count) for count in width)
    numbers = {
        "groups": tuple(groups),
        "blocks": (blocks,) * len(widths) if isinstance(blocks, int) else tuple(blocks),
        "hidden": tuple(2 * count for count in widths) if hidden is None else tuple(hidden),
    }
    if not widths or min(widths) < 1:
        raise ValueError(f"{kind}'s width={widths} must have stages of at least 1 channel")
    for name, values in numbers.items():
        if len(values) != len(widths) or min(values) < 1:
            raise ValueError(
                f"{kind}'s {name}={values} must be {len(widths)} numbers of at least 1, as there "
                f"are stages"
            )
    for between, count in zip(numbers["hidden"], numbers["groups"], strict=True):
        if between % count:
            raise ValueError(f"{kind}: {count} groups do not divide {between} hidden channels")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"{kind}'s kernel={kernel} must be odd")
    return widths, *numbers.values()


def _check(kind: str, channels: int, classes: int, embedding: int, latent: int = 1) -> None:
    if min(channels, latent) < 1 or classes < 0:
        raise ValueError(
            f"{kind}'s channels={channels} and latent={latent} must be at least 1, and "
            f"classes={classes} at least 0"
        )
    if (classes > 0) != (embedding > 0):
        raise ValueError(f"{kind} with classes={classes} cannot have embedding={embedding}")


def _narrow(module: Generator, share: float) -> Generator:
    hidden = [
        groups * scale_widths(hidden // groups, share)
        for groups, hidden in zip(module.groups, module.hidden, strict=True)
    ]
    # Stages of different widths are joined by a convolution, others are not.
    return module.clone(
        width=scale_widths(module.width, share, distinct=True), hidden=tuple(hidden)
    )


FAMILY = Family("r3gan", (Generator,), _narrow, generator_axes)
