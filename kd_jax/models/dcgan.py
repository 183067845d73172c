"""A class-conditional DCGAN (Radford et al. 2016), for any power-of-two size from 16 to 256.

The generator projects the latent and an embedding of the label to 4x4 and doubles the size with
4x4 transposed convolutions; the discriminator mirrors it, with a projection head for the label
(Miyato & Koyama 2018). `width` is the compression knob: every channel count is proportional to it,
unless it is given per side. `depth` adds residual 3x3 convolutions at each size, for teachers of
any depth.

Images are `[B, size, size, channels]` in [-1, 1]; latents `[B, latent]`; labels int `[B]`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axes, Axis, InputAxis, NormScale, Repeat, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.factories import make_gan
from kd_jax.models.layers.conditioning import check_labels
from kd_jax.models.layers.norm import BatchNorm, norm_axes
from kd_jax.models.layers.remat import remat as remat_block

SIZES = (16, 32, 64, 128, 256)
SMALLEST = 4  # the side at which the generator starts and the discriminator ends
RESAMPLING = 4  # kernel size of convolutions that halve or double the side; others use 3

_normal = nn.initializers.normal(0.02)  # Radford et al. 2016, section 4
_he = nn.initializers.he_normal()  # without a norm to follow, the signal would vanish with 0.02


def generator(
    size: int,
    width: int | Sequence[int] = 64,
    *,
    channels: int = 3,
    classes: int = 0,
    depth: int = 0,
    max_width: int | None = None,
    embedding: int | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """`(latents[, labels]) -> images`; taps `4x4`, `8x8`, ... are features, after activation.

    Args:
      size: the image's side, one of `SIZES`.
      width: channels at half the image's side, doubled as the side halves; or one count for
        each side, from 4x4 to half the image's side.
      channels: the image's channels.
      classes: number of classes; 0 for unconditional networks, which take no labels.
      depth: residual 3x3 convolutions after each resampling.
      max_width: upper bound on the channels of each layer; by default `8 * width`, or none if
        `width` is given per side.
      embedding: the length of the label's embedding; by default that of the latents.
      dtype: the computation dtype; parameters, images and scores are always float32.
      remat: whether the gradient recomputes the activations within each block, a convolution with
        its normalisation and activation.

    Raises:
      ValueError: `size` is not one of `SIZES`, a number is out of range, or the number of widths
        differs from that of the sides.
    """
    widths = _widths(size, width, depth, max_width)
    if embedding is not None and (embedding < 1 or not classes):
        raise ValueError(
            f"embedding={embedding} must be at least 1 and needs classes, not classes={classes}"
        )
    return from_linen(Generator(widths, channels, classes, depth, dtype, remat, embedding))


def discriminator(
    size: int,
    width: int | Sequence[int] = 64,
    *,
    classes: int = 0,
    depth: int = 0,
    max_width: int | None = None,
    minibatch_stddev: bool = False,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits); taps ..., `8x8`, `4x4`, after activation.

    Args and errors are those of `generator`. With `minibatch_stddev` the minibatch standard
    deviation is one more feature (Karras et al. 2018).
    """
    widths = _widths(size, width, depth, max_width)
    return from_linen(Discriminator(widths, classes, depth, minibatch_stddev, dtype, remat))


gan = make_gan(generator, discriminator)
"""A `generator` and its `discriminator`, as a `PerNetwork`, with the arguments of both."""


def original_discriminator(
    size: int,
    width: int | Sequence[int] = 64,
    *,
    max_width: int | None = None,
    final_stride: int = 1,
    bias: bool = False,
    dtype: Any = jnp.float32,
) -> Network:
    """`images -> scores [B]`: the paper's discriminator, with batch norm.

    It consists of convolutions that halve the side and a 4x4 convolution that scores the last
    feature. Taps are those of `discriminator` except `features`. In training, batch statistics
    couple the examples: real and generated images belong in separate batches, and gradient
    penalties, which assume independent examples, are hardly meaningful.

    Args:
      size: the image's side.
      width: as in `generator`.
      max_width: as in `generator`.
      dtype: the computation dtype.
      final_stride: 1: the last convolution has no padding and reads 4x4. 2: it halves the side, as
        the others do, and reads 2x2 or 3x3; `width` then lists a count for each convolution but the
        last, N of them, and `size` is from `2**(N + 1)` to `2**(N + 2) - 1`.
      bias: whether the first and the last convolution, which no norm follows, have a bias.

    Raises:
      ValueError: an argument is out of range.
    """
    if final_stride == 1:
        return from_linen(OriginalDiscriminator(_widths(size, width, 0, max_width), dtype, 1, bias))
    if final_stride != 2 or not isinstance(width, Sequence) or max_width is not None:
        raise ValueError(
            f"final_stride={final_stride} must be 1 or 2; 2 needs a list of widths, not "
            f"width={width} and max_width={max_width}"
        )
    widths = tuple(width)
    smallest = 2 ** (len(widths) + 1)
    if not smallest <= size < 2 * smallest or min(widths, default=0) < 1:
        raise ValueError(
            f"size={size} must be from {smallest} to {2 * smallest - 1} for the positive "
            f"width={list(widths)} and final_stride=2"
        )
    return from_linen(OriginalDiscriminator(widths, dtype, final_stride, bias))


def generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are named like the taps, `4x4`, `8x8`, ...; residual convolutions share the group of
    their side.

    Args:
      variables: those of a `generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `generator`, or include connectors.
    """
    kernels = _kernels(variables)
    side, last = SMALLEST, len(kernels) - 1
    group = f"{side}x{side}"
    axes: dict[str, tuple[Axis, ...]] = {
        "params/Dense_0/kernel": (None, Repeat(group, SMALLEST**2)),
        f"params/Conv_{last}/bias": (None,),
    }
    for index, kernel in enumerate(kernels):
        axes[f"params/BatchNorm_{index}/scale"] = (NormScale(group),)
        axes[f"params/BatchNorm_{index}/bias"] = (group,)
        axes[f"batch_stats/BatchNorm_{index}/mean"] = (group,)
        axes[f"batch_stats/BatchNorm_{index}/var"] = (group,)
        before = group
        if kernel == RESAMPLING:
            side *= 2
            group = f"{side}x{side}"
        writes = None if index == last else group
        axes[f"params/Conv_{index}/kernel"] = (None, None, InputAxis(before), writes)
    if "label" in variables["params"]:
        axes["params/label/embedding"] = (None, None)
    group_widths(variables, axes)
    return axes


def discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a discriminator's variables, for `kd_jax.pruning`.

    The groups are named like the taps, ..., `8x8`, `4x4` and `features`; residual convolutions
    share the group of their side. The minibatch standard deviation is one more input of the dense
    layer, an average over the remaining channels of `4x4`.

    Args:
      variables: those of a `discriminator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `discriminator`, or include connectors.
    """
    kernels = _kernels(variables)
    side = SMALLEST * 2 ** kernels.count(RESAMPLING)
    axes: dict[str, tuple[Axis, ...]] = {}
    reads: Axis = None
    group = ""
    for index, kernel in enumerate(kernels):
        if kernel == RESAMPLING:
            side //= 2
            group = f"{side}x{side}"
        axes[f"params/Conv_{index}/kernel"] = (None, None, reads, group)
        axes[f"params/Conv_{index}/bias"] = (group,)
        reads = InputAxis(group)
    leaves = tensors(variables)
    rows = leaves["params/Dense_0/kernel"].shape[0]
    width = leaves[f"params/Conv_{len(kernels) - 1}/kernel"].shape[-1]
    position: Axis = (group, 1) if rows > SMALLEST**2 * width else group  # minibatch_stddev
    axes["params/Dense_0/kernel"] = (InputAxis(Repeat(position, SMALLEST**2)), "features")
    axes["params/Dense_0/bias"] = ("features",)
    axes["params/score/kernel"] = (InputAxis("features"), None)
    axes["params/score/bias"] = (None,)
    if "label" in variables["params"]:
        axes["params/label/embedding"] = (None, InputAxis("features"))
    group_widths(variables, axes)
    return axes


def original_discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of an `original_discriminator`'s variables.

    The groups are named like the taps, ..., `8x8`, `4x4`.

    Args:
      variables: those of a `original_discriminator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of an `original_discriminator`, or include
        connectors.
    """
    leaves = tensors(variables)
    count = sum(name.startswith("conv_") for name in variables["params"])
    side = SMALLEST * 2**count
    reads: Axis = None
    axes: dict[str, tuple[Axis, ...]] = {}
    for index in range(count):
        side //= 2
        group = f"{side}x{side}"
        axes[f"params/conv_{index}/kernel"] = (None, None, reads, group)
        if f"params/conv_{index}/bias" in leaves:
            axes[f"params/conv_{index}/bias"] = (group,)
        if index:
            axes |= norm_axes(leaves, f"norm_{index}", group)
        reads = InputAxis(group)
    axes["params/score/kernel"] = (None, None, reads, None)
    if "params/score/bias" in leaves:
        axes["params/score/bias"] = (None,)
    group_widths(variables, axes)
    return axes


def _kernels(variables: Variables) -> list[int]:
    """The kernel size of each convolution: `RESAMPLING`, or 3 for a residual one."""
    params = variables["params"]
    count = sum(name.startswith("Conv_") for name in params)
    if not count or "Dense_0" not in params:
        raise ValueError(f"these are not a DCGAN's variables; its parts are {sorted(params)}")
    return [params[f"Conv_{index}"]["kernel"].shape[0] for index in range(count)]


def _widths(
    size: int, width: int | Sequence[int], depth: int, max_width: int | None
) -> tuple[int, ...]:
    """Channels at 4x4, 8x8, ..., size/2."""
    if size not in SIZES:
        raise ValueError(f"a DCGAN's size is one of {', '.join(map(str, SIZES))}, not {size}")
    sides, side = [], SMALLEST
    while side < size:
        sides.append(side)
        side *= 2
    if isinstance(width, Sequence):
        widths, limit = [int(count) for count in width], max_width
        if len(widths) != len(sides):
            raise ValueError(
                f"a DCGAN of size {size} has {len(sides)} widths, from {SMALLEST}x{SMALLEST} to "
                f"{sides[-1]}x{sides[-1]}, not {len(widths)}"
            )
    else:
        widths = [width * (size // 2) // side for side in sides]
        limit = 8 * width if max_width is None else max_width
    if min(widths) < 1 or depth < 0:
        raise ValueError(f"width={width} must be at least 1 and depth={depth} at least 0")
    return tuple(widths if limit is None else (min(limit, count) for count in widths))


class Conv(nn.Module):
    """A convolution of `kd_jax.ops`, with fast gradients, that halves, keeps or doubles sides."""

    features: int
    kernel: int
    op: Callable[..., Array]
    stride: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = _normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = self.op(x.astype(self.dtype), kernel, stride=self.stride)
        if not self.use_bias:
            return x
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return x + bias.astype(self.dtype)[None, None, None]


class Generator(nn.Module):
    """See `generator`."""

    widths: tuple[int, ...]
    channels: int
    classes: int
    depth: int
    dtype: Any
    remat: bool = False
    embedding: int | None = None

    @nn.compact
    def __call__(
        self, latents: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        check_labels(self.classes, labels)
        x = latents
        if labels is not None:
            length = latents.shape[-1] if self.embedding is None else self.embedding
            embedding = nn.Embed(self.classes, length, name="label")(labels)
            x = jnp.concatenate([x, embedding], axis=-1)
        x = nn.Dense(
            SMALLEST**2 * self.widths[0], use_bias=False, kernel_init=_normal, dtype=self.dtype
        )(x).reshape(-1, SMALLEST, SMALLEST, self.widths[0])

        taps, number = {}, 0
        block = remat_block(Generator._block, self.remat, static=(2, 3, 4, 5))
        for features in self.widths:
            for residual in (False, *(True,) * self.depth):
                x = block(self, x, number, features, residual, train)
                number += 1
            taps[_side(x)] = x
        image = Conv(
            self.channels,
            RESAMPLING,
            ops.conv_transpose,
            stride=2,
            dtype=self.dtype,
            name=f"Conv_{number - 1}",
        )(x)
        return jnp.tanh(at_least_float32(image)), taps

    def _block(self, x: Array, number: int, features: int, residual: bool, train: bool) -> Array:
        """A convolution, except in block 0, with its norm and activation."""
        conv = partial(
            Conv, features, use_bias=False, dtype=self.dtype, name=f"Conv_{number - 1}"
        )  # batch norm has the bias
        norm = partial(BatchNorm, train=train, dtype=self.dtype, name=f"BatchNorm_{number}")
        if residual:
            # Residuals initialized to zero keep hundreds of layers trainable.
            y = norm(scale_init=nn.initializers.zeros)(conv(kernel=3, op=ops.conv)(x))
            return nn.relu(x + y)
        if number:
            x = conv(kernel=RESAMPLING, op=ops.conv_transpose, stride=2)(x)
        return nn.relu(norm()(x))


class Discriminator(nn.Module):
    """See `discriminator`. Without batch norm, R1's gradients are per example."""

    widths: tuple[int, ...]
    classes: int
    depth: int
    minibatch_stddev: bool
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        check_labels(self.classes, labels)
        x, taps, number = images, {}, 0
        block = remat_block(Discriminator._block, self.remat, static=(2, 3, 4))
        for features in reversed(self.widths):
            for residual in (False, *(True,) * self.depth):
                x = block(self, x, number, features, residual)
                number += 1
            taps[_side(x)] = x
        if self.minibatch_stddev:
            x = jnp.concatenate([x, ops.minibatch_stddev(x)], axis=-1)
        x = nn.Dense(self.widths[0], dtype=self.dtype)(x.reshape(x.shape[0], -1))
        x = taps["features"] = at_least_float32(_leaky_relu(x))
        scores = nn.Dense(1, name="score")(x)[:, 0]
        if labels is not None:
            embedding = nn.Embed(self.classes, x.shape[-1], name="label")(labels)
            scores = scores + (embedding * x).sum(axis=-1)
        return scores, taps

    def _block(self, x: Array, number: int, features: int, residual: bool) -> Array:
        conv = partial(Conv, features, kernel_init=_he, dtype=self.dtype, name=f"Conv_{number}")
        if residual:
            return x + _leaky_relu(conv(kernel=3, op=ops.conv)(x))
        return _leaky_relu(conv(kernel=RESAMPLING, op=ops.conv, stride=2)(x))


class OriginalDiscriminator(nn.Module):
    """See `original_discriminator`."""

    widths: tuple[int, ...]
    dtype: Any
    final_stride: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        conv = partial(Conv, kernel=RESAMPLING, dtype=self.dtype)
        # Of an odd side, "SAME" would keep more than half.
        halve = partial(ops.conv, padding=((1, 1), (1, 1)))
        x, taps = images, {}
        for index, features in enumerate(reversed(self.widths)):
            biased = self.bias and not index
            x = conv(features, op=halve, stride=2, use_bias=biased, name=f"conv_{index}")(x)
            if index:
                x = BatchNorm(train=train, dtype=self.dtype, name=f"norm_{index}")(x)
            x = _leaky_relu(x)
            taps[_side(x)] = x
        op = halve if self.final_stride == 2 else partial(ops.conv, padding="VALID")
        scores = conv(1, op=op, stride=self.final_stride, use_bias=self.bias, name="score")(x)
        return at_least_float32(scores)[:, 0, 0, 0], taps


_leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)


def _side(x: Array) -> str:
    return f"{x.shape[1]}x{x.shape[2]}"


FAMILY = Family(
    "dcgan",
    (Generator,),
    narrowed("widths"),
    generator_axes,
    student=lambda like, width: generator(
        like.size, width, channels=like.channels, classes=like.classes
    ),
)
