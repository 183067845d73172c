"""Real-ESRGAN's networks: two generators that enlarge images, and a discriminator of pixels.

`rrdb` is BasicSR's RRDBNet (Wang et al. 2018, ESRGAN; Wang et al. 2021, Real-ESRGAN, section 3.3)
with pixel unshuffling in front for scales below 4; `srvgg` is its small network for videos, a stack
of 3x3 convolutions; `unet_discriminator` is the spectrally normalised U-Net of Real-ESRGAN, section
3.3. Layers and parameter counts are those of the authors' PyTorch code, so that its files can be
read (`kd_jax.pretrained.realesrgan`). To train a network from scratch, `kd_jax.models.superres` has
variants that start from interpolation.

Images are `[B, H, W, C]` in [-1, 1], as everywhere in kd_jax. The published weights expect [0, 1],
and since zero padding means black there, the range cannot be folded into them: the networks map
their inputs to [0, 1] and the generators their outputs back. Outputs are not clipped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axes, Axis, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, evenly_spaced_taps, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.layers.spectral import Conv, SpectralNorm, layer_axes
from kd_jax.models.resnet import count_blocks, upsample
from kd_jax.models.superres import ResidualInResidual, dense_axes, depth_to_space

UNSHUFFLING = {1: 4, 2: 2, 4: 1}
"""The factor by which pixels become channels at the input of `rrdb`, by its scale."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leakyrelu": partial(nn.leaky_relu, negative_slope=0.1),
}
"""The activations of `srvgg` without parameters; the third is "prelu"."""

TORCH = SpectralNorm(stored=True)
"""The spectral normalisation of `torch.nn.utils.spectral_norm`."""

_he = nn.initializers.he_normal()
# A tenth of it within residual blocks (Wang et al. 2018, section 3.1).
_small = nn.initializers.variance_scaling(0.02, "fan_in", "normal")
_leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)


def rrdb(
    scale: int = 4,
    width: int = 64,
    blocks: int = 23,
    growth: int = 32,
    *,
    channels: int = 3,
    inputs: int | None = None,
    dtype: Any = jnp.float32,
) -> Network:
    """RRDBNet: `images [B, h, w, inputs] -> [B, scale h, scale w, channels]`.

    The features are enlarged by 4 in any case. For scales 2 and 1 each 2x2 or 4x4 pixels become one
    with their channels (`space_to_depth`) first, which must divide the sides. Taps are `stem`,
    `block_0`, `block_1`, ..., `trunk` (after the skip over all blocks), `up_0` and `up_1`, after
    their convolutions and activations.

    Args:
      scale: factor of the sides, one of `UNSHUFFLING`.
      width: channels between the blocks and after them.
      blocks: residual-in-residual blocks, of three dense blocks each; 23 in x4plus and 6 in
        x4plus-anime.
      growth: channels that each convolution in a dense block adds.
      channels: channels of the output images.
      inputs: channels of the input images; `channels` by default.
      dtype: the computation dtype; parameters and images are always float32.

    Raises:
      ValueError: the scale is not in `UNSHUFFLING`, or a number is not positive. `init` and `apply`
        raise it if the images' sides or channels do not fit.
    """
    if scale not in UNSHUFFLING:
        raise ValueError(
            f"an RRDBNet's scale is one of {', '.join(map(str, UNSHUFFLING))}, not {scale}"
        )
    inputs = channels if inputs is None else inputs
    _check(
        "an RRDBNet", width=width, blocks=blocks, growth=growth, channels=channels, inputs=inputs
    )
    return from_linen(RRDBNet(scale, width, blocks, growth, channels, inputs, dtype))


def srvgg(
    scale: int = 4,
    width: int = 64,
    layers: int = 16,
    *,
    activation: str = "prelu",
    channels: int = 3,
    inputs: int | None = None,
    output_scale: int | None = None,
    dtype: Any = jnp.float32,
) -> Network:
    """SRVGGNetCompact: `images [B, h, w, inputs] -> [B, scale h, scale w, channels]`.

    3x3 convolutions with activations, and a last one whose channels become pixels
    (`superres.depth_to_space`); the enlarged input, by repetition of pixels, is added. Taps are
    `layer_0`, `layer_1`, ..., `layer_{layers}`, after activation.

    Args:
      scale: factor of the sides, at least 1.
      width: channels of every layer.
      layers: convolutions between the first and the last: 16 in animevideov3, 32 in general-x4v3.
      activation: "prelu", with a slope per channel, or one of `ACTIVATIONS`.
      channels: channels of the output images.
      inputs: channels of the input images; `channels` by default, or 1, which is added to each.
      output_scale: factor of the sides of the output images, to which those of `scale` are resized
        (`ops.torch_bicubic`); by default they are not. So the authors' programs in ncnn enlarge by
        2 and 3 with the weights of scale 4.
      dtype: the computation dtype; parameters and images are always float32.

    Raises:
      ValueError: a number is not positive, `inputs` is neither `channels` nor 1, or the activation
        is unknown. `init` and `apply` raise it for images of another number of channels.
    """
    inputs = channels if inputs is None else inputs
    final = scale if output_scale is None else output_scale
    _check(
        "an SRVGGNet",
        scale=scale,
        width=width,
        channels=channels,
        inputs=inputs,
        output_scale=final,
    )
    if layers < 0:
        raise ValueError(f"an SRVGGNet's layers={layers} must be at least 0")
    if inputs not in (channels, 1):
        raise ValueError(f"an SRVGGNet's inputs={inputs} must be channels={channels} or 1")
    if activation not in ("prelu", *ACTIVATIONS):
        raise ValueError(f"activation={activation!r} is not one of prelu, {', '.join(ACTIVATIONS)}")
    return from_linen(
        SRVGGNet(scale, width, layers, activation, channels, inputs, dtype, output_scale)
    )


def unet_discriminator(
    width: int = 64,
    *,
    skip: bool = True,
    spectral: SpectralNorm | None = TORCH,
    dtype: Any = jnp.float32,
) -> Network:
    """`images [B, H, W, any] -> scores [B, H, W]` (logits), one per pixel.

    The losses of `kd_jax.losses.adversarial` average the scores per example. Three convolutions
    halve the sides, and three others double them after bilinear interpolation. Taps are `down_0`
    (full size), ..., `down_3`, `up_2`, `up_1` and `up_0`, after activation and the skip connection,
    and `head_0` and `head_1`.

    Args:
      width: channels at full size; they double with each halving, to `8 * width`.
      skip: whether `down_2`, `down_1` and `down_0` are added to features of the same size.
      spectral: how all kernels but the first and the last are normalised, or None.
      dtype: the computation dtype; parameters and scores are always float32.

    Raises:
      ValueError: the width is not positive. `init` and `apply` raise it unless the images' sides
        are multiples of 8; without skip connections they are at least 8, and the scores have the
        sides `H // 8 * 8` and `W // 8 * 8`.
    """
    _check("a U-Net discriminator", width=width)
    return from_linen(UNetDiscriminator(width, skip, spectral, dtype))


def rrdb_axes(variables: Variables) -> Axes:
    """The channel group of each axis of an RRDBNet's variables, for `kd_jax.pruning`.

    The groups are `stem`, which all blocks add to, `block_N/dense_M/conv_K`, the channels that a
    convolution adds to its dense block, `up_0`, `up_1`, and `full` before the image.

    Args:
      variables: those of an `rrdb`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of an `rrdb`, or include connectors.
    """
    leaves, group = tensors(variables), "stem"
    axes = layer_axes(leaves, "stem", None, group)
    for index in range(count_blocks(variables)):
        axes |= dense_axes(leaves, f"block_{index}", group)
    axes |= layer_axes(leaves, "trunk", group, group)
    for name in ("up_0", "up_1", "full"):
        axes |= layer_axes(leaves, name, group, name)
        group = name
    axes |= layer_axes(leaves, "image", group, None)
    group_widths(variables, axes)
    return axes


def srvgg_axes(variables: Variables) -> Axes:
    """The channel group of each axis of an SRVGGNet's variables, for `kd_jax.pruning`.

    The groups are named like the taps, `layer_0`, `layer_1`, ...

    Args:
      variables: those of an `srvgg`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of an `srvgg`, or include connectors.
    """
    leaves = tensors(variables)
    reads: str | None = None
    axes: dict[str, tuple[Axis, ...]] = {}
    for index in range(sum(name.startswith("layer_") for name in variables["params"])):
        name = f"layer_{index}"
        axes |= layer_axes(leaves, name, reads, name)
        if f"params/slope_{index}" in leaves:
            axes[f"params/slope_{index}"] = (name,)
        reads = name
    axes |= layer_axes(leaves, "image", reads, None)
    group_widths(variables, axes)
    return axes


def unet_discriminator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a U-Net discriminator's variables, for `kd_jax.pruning`.

    The groups are `down_0`, ..., `down_3`, `head_0` and `head_1`. Features of one size share a
    group, with or without skip connections between them.

    Args:
      variables: those of a `unet_discriminator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `unet_discriminator`, or include connectors.
    """
    leaves = tensors(variables)
    axes: dict[str, tuple[Axis, ...]] = {}
    reads: str | None = None
    for name in (*(f"down_{i}" for i in range(4)), "up_2", "up_1", "up_0", "head_0", "head_1"):
        group = name.replace("up", "down")
        axes |= layer_axes(leaves, name, reads, group)
        reads = group
    axes |= layer_axes(leaves, "score", reads, None)
    group_widths(variables, axes)
    return axes


def space_to_depth(x: Array, factor: int) -> Array:
    """The pixel unshuffle, the inverse of `kd_jax.models.superres.depth_to_space`.

    Args:
      x: `[B, factor H, factor W, C]`.
      factor: number of pixels along each side that become one, at least 1.

    Returns:
      `[B, H, W, C factor^2]`; the pixel in row i and column j of channel c is the channel
      `(c factor + i) factor + j`, which is PyTorch's order.

    Raises:
      ValueError: x is not `[B, H, W, C]`, or its sides are not multiples of `factor`.
    """
    if x.ndim != 4 or factor < 1 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"space_to_depth: [B, H, W, C] with sides that are multiples of {factor} are needed, "
            f"not shape {x.shape}"
        )
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, height // factor, width // factor, channels * factor**2)


class RRDBNet(nn.Module):
    """See `rrdb`."""

    scale: int
    width: int
    blocks: int
    growth: int
    channels: int
    inputs: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        del train
        multiple = UNSHUFFLING[self.scale]
        x = _unit_range(images, self.inputs, multiple)
        conv = partial(Conv, self.width, kernel_init=_he, dtype=self.dtype)
        inner = partial(Conv, kernel_init=_small, dtype=self.dtype)

        x = conv(name="stem")(space_to_depth(x, multiple))
        taps = {"stem": x}
        for index in range(self.blocks):
            name = f"block_{index}"
            x = taps[name] = ResidualInResidual(self.growth, inner, name=name)(x)
        x = taps["trunk"] = taps["stem"] + conv(name="trunk")(x)
        for name in ("up_0", "up_1"):
            x = taps[name] = _leaky_relu(conv(name=name)(upsample(x)))
        x = _leaky_relu(conv(name="full")(x))
        image = Conv(self.channels, kernel_init=_small, dtype=self.dtype, name="image")(x)
        return 2 * at_least_float32(image) - 1, taps


class SRVGGNet(nn.Module):
    """See `srvgg`."""

    scale: int
    width: int
    layers: int
    activation: str
    channels: int
    inputs: int
    dtype: Any
    output_scale: int | None = None

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        del train
        x = source = _unit_range(images, self.inputs)
        taps: dict[str, Array] = {}
        for index in range(self.layers + 1):
            name = f"layer_{index}"
            x = Conv(self.width, kernel_init=_he, dtype=self.dtype, name=name)(x)
            if self.activation == "prelu":  # He et al. 2015, with their initial slope
                start = nn.initializers.constant(0.25)
                slope = self.param(f"slope_{index}", start, (self.width,)).astype(x.dtype)
                x = jnp.where(x >= 0, x, slope[None, None, None] * x)
            else:
                x = ACTIVATIONS[self.activation](x)
            taps[name] = x
        last = self.channels * self.scale**2
        x = Conv(last, kernel_init=_small, dtype=self.dtype, name="image")(x)
        image = depth_to_space(at_least_float32(x), self.scale) + upsample(source, self.scale)
        if self.output_scale is not None:
            height, width = (self.output_scale * side for side in images.shape[1:3])
            image = ops.resize(image, (height, width), ops.torch_bicubic)
        return 2 * image - 1, taps


class UNetDiscriminator(nn.Module):
    """See `unet_discriminator`."""

    width: int
    skip: bool
    spectral: SpectralNorm | None
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        sides = images.shape[1:3]
        if images.ndim != 4 or min(sides) < 8 or (self.skip and any(side % 8 for side in sides)):
            raise ValueError(
                f"this discriminator takes images [B, H, W, C] whose sides are "
                f"{'multiples of' if self.skip else 'at least'} 8, not of shape {images.shape}"
            )
        outer = partial(Conv, kernel_init=_he, dtype=self.dtype)
        conv = partial(outer, norm=self.spectral, train=train, use_bias=False)

        x = outer(self.width, name="down_0")(_unit_range(images, images.shape[3]))
        x = _leaky_relu(x)
        taps = {"down_0": x}
        for index in (1, 2, 3):
            name, (height, width) = f"down_{index}", x.shape[1:3]
            x = conv(self.width * 2**index, kernel=4, stride=2, name=name)(x)
            # PyTorch's padding of 1 drops the last pixel of an odd side.
            x = taps[name] = _leaky_relu(x[:, : height // 2, : width // 2])
        for index in (2, 1, 0):
            x = _leaky_relu(conv(self.width * 2**index, name=f"up_{index}")(_bilinear(x)))
            if self.skip:
                x = x + taps[f"down_{index}"]
            taps[f"up_{index}"] = x
        for name in ("head_0", "head_1"):
            x = taps[name] = _leaky_relu(conv(self.width, name=name)(x))
        return at_least_float32(outer(1, name="score")(x))[..., 0], taps


def _bilinear(x: Array) -> Array:
    """Twice the sides, as `kd_jax.ops.resize` with `torch_bilinear`, in the dtype of `x`."""
    x = ops.pad(x, ((1, 1), (1, 1)), "edge")
    return ops.crop(ops.upsample2d(x, (1 / 8, 3 / 8, 3 / 8, 1 / 8)), ((2, 2), (2, 2)))


def _unit_range(images: Array, channels: int, multiple: int = 1) -> Array:
    """Images in [-1, 1] as images in [0, 1], after a check of their shape."""
    if (
        images.ndim != 4
        or images.shape[3] != channels
        or any(side % multiple or not side for side in images.shape[1:3])
    ):
        sides = f" whose sides are multiples of {multiple}" if multiple > 1 else ""
        raise ValueError(
            f"images [B, h, w, {channels}]{sides} are needed, not shape {images.shape}"
        )
    return (at_least_float32(images) + 1) / 2


def _check(kind: str, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{kind}'s {name}={count} must be at least 1")


FAMILIES = (
    Family(
        "rrdb",
        (RRDBNet,),
        narrowed("width", "growth"),
        rrdb_axes,
        taps=evenly_spaced_taps,
        method="pixel",
    ),
    Family(
        "srvgg",
        (SRVGGNet,),
        narrowed("width"),
        srvgg_axes,
        student=lambda like, width: srvgg(
            like.scale, width, channels=like.channels, inputs=like.inputs[0].shape[-1]
        ),
        taps=evenly_spaced_taps,
        method="pixel",
    ),
)
