"""Networks that enlarge images by 2, 3, 4 or 8: SRResNet and ESRGAN's generator.

By default both predict a residual to bicubic interpolation, with a last layer initialized near
zero, so that a fresh network interpolates; `residual=False` gives the papers' networks, which
predict the image.

Images are `[B, h, w, channels]` in [-1, 1] and become `[B, scale h, scale w, channels]`, float32
and not clipped. The networks are fully convolutional and accept any sides.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axes, Axis, InputAxis, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, evenly_spaced_taps, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.layers.norm import BatchNorm, norm_axes
from kd_jax.models.layers.spectral import Conv, layer_axes
from kd_jax.models.resnet import count_blocks, upsample

STEPS = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
"""The factors of the upsampling layers, by scale."""

_DENSE = 4  # convolutions of a dense block whose outputs are concatenated
_SCALING = 0.2  # of ESRGAN's residuals

_he = nn.initializers.he_normal()
# A tenth of it at the ends of residuals (Wang et al. 2018, section 3.1), and less for the image's
# layer.
_small = nn.initializers.variance_scaling(0.02, "fan_in", "normal")
_least = nn.initializers.variance_scaling(1e-4, "fan_in", "normal")
_depthwise_init = nn.initializers.variance_scaling(
    1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2
)
_leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)


def srresnet(
    scale: int = 4,
    width: int = 64,
    blocks: int = 16,
    *,
    channels: int = 3,
    window: int = 9,
    batch_norm: bool = False,
    separable: bool = False,
    residual: bool = True,
    dtype: Any = jnp.float32,
) -> Network:
    """SRResNet (Ledig et al. 2017, figure 4), with ReLUs: `images -> larger images`.

    Taps are `stem`, `block_0`, `block_1`, ..., `trunk` (after the skip over all blocks), and
    `up_0`, ..., the upsampled features.

    Args:
      scale: factor of the sides, one of `STEPS`.
      width: channels of every layer.
      blocks: residual blocks, of two convolutions each.
      channels: the images' channels.
      window: kernel size of the first and the last layer: 9 in the paper, 3 in EDSR. At 9 the last
        layer dominates the cost of a narrow network.
      batch_norm: whether the trunk is normalised, as in the paper. Results are better without it
        (Lim et al. 2017, EDSR, section 3.1).
      separable: whether the blocks' convolutions are split into a depthwise 3x3 and a 1x1
        convolution.
      residual: whether the bicubically enlarged image is added to the output.
      dtype: the computation dtype; parameters and images are always float32.

    Raises:
      ValueError: the scale is not in `STEPS`, a number is not positive, or the window is even.
        `init` and `apply` raise it for images of another number of channels.
    """
    _check("an SRResNet", scale, width=width, blocks=blocks, channels=channels, window=window)
    if window % 2 == 0:
        raise ValueError(f"window={window} must be odd")
    return from_linen(
        SRResNet(scale, width, blocks, channels, window, batch_norm, separable, residual, dtype)
    )


def rrdb(
    scale: int = 4,
    width: int = 64,
    blocks: int = 23,
    growth: int = 32,
    *,
    channels: int = 3,
    separable: bool = False,
    residual: bool = True,
    dtype: Any = jnp.float32,
) -> Network:
    """ESRGAN's generator, RRDBNet (Wang et al. 2018, section 3.1): `images -> larger images`.

    Taps are `stem`, `block_0`, `block_1`, ..., `trunk` (after the skip over all blocks), and
    `up_0`, ..., the upsampled features after their convolutions.

    Args:
      scale: factor of the sides, one of `STEPS`.
      width: channels between the blocks and after them.
      blocks: residual-in-residual blocks, of three dense blocks each.
      growth: channels that each convolution in a dense block adds.
      channels: the images' channels.
      separable: whether the blocks' convolutions are split into a depthwise 3x3 and a 1x1
        convolution.
      residual: whether the bicubically enlarged image is added to the output, unlike in the paper.
      dtype: the computation dtype; parameters and images are always float32.

    Raises:
      ValueError: the scale is not in `STEPS`, or a number is not positive. `init` and `apply` raise
        it for images of another number of channels.
    """
    _check("an RRDBNet", scale, width=width, blocks=blocks, growth=growth, channels=channels)
    return from_linen(RRDBNet(scale, width, blocks, growth, channels, separable, residual, dtype))


def srresnet_axes(variables: Variables) -> Axes:
    """The channel group of each axis of an SRResNet's variables, for `kd_jax.pruning`.

    The groups are `stem`, which all blocks add to, `block_N/hidden` between a block's convolutions,
    and `up_N`.

    Args:
      variables: those of an `srresnet`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of an `srresnet`, or include connectors.
    """
    leaves = tensors(variables)
    group = "stem"
    axes = layer_axes(leaves, "stem", None, group)
    for index in range(count_blocks(variables)):
        path = f"block_{index}"
        hidden = f"{path}/hidden"
        axes |= conv_axes(leaves, f"{path}/conv1", group, hidden)
        axes |= conv_axes(leaves, f"{path}/conv2", hidden, group)
        if f"params/{path}/norm1/scale" in leaves:
            axes |= norm_axes(leaves, f"{path}/norm1", hidden)
            axes |= norm_axes(leaves, f"{path}/norm2", group)
    axes |= layer_axes(leaves, "trunk", group, group)
    if "params/trunk_norm/scale" in leaves:
        axes |= norm_axes(leaves, "trunk_norm", group)
    for name in _upsamplings(variables):
        axes[f"params/{name}/kernel"] = (None, None, InputAxis(group), name, None)
        axes[f"params/{name}/bias"] = (name, None)
        group = name
    axes |= layer_axes(leaves, "image", group, None)
    group_widths(variables, axes)
    return axes


def rrdb_axes(variables: Variables) -> Axes:
    """The channel group of each axis of an RRDBNet's variables, for `kd_jax.pruning`.

    The groups are `stem`, which all blocks add to, `block_N/dense_M/conv_K`, the channels that a
    convolution adds to its dense block, `up_N`, and `full` before the image.

    Args:
      variables: those of an `rrdb`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of an `rrdb`, or include connectors.
    """
    leaves = tensors(variables)
    group = "stem"
    axes = layer_axes(leaves, "stem", None, group)
    for index in range(count_blocks(variables)):
        axes |= dense_axes(leaves, f"block_{index}", group)
    axes |= layer_axes(leaves, "trunk", group, group)
    for name in (*_upsamplings(variables), "full"):
        axes |= layer_axes(leaves, name, group, name)
        group = name
    axes |= layer_axes(leaves, "image", group, None)
    group_widths(variables, axes)
    return axes


def dense_axes(leaves: Mapping[str, Any], path: str, channels: str) -> dict[str, tuple[Axis, ...]]:
    """The axes of a `ResidualInResidual`, for `kd_jax.pruning`; `dense_M/conv_K` are its groups.

    Args:
      leaves: the network's variables by path (`kd_jax.core.axes.tensors`).
      path: the block's path, which is part of its groups' names.
      channels: the group of its inputs and outputs.

    Raises:
      ValueError: there is no such block.
    """
    axes: dict[str, tuple[Axis, ...]] = {}
    for dense in range(3):
        grown = [channels]
        for index in range(_DENSE):
            name = f"{path}/dense_{dense}/conv_{index}"
            axes |= conv_axes(leaves, name, tuple(grown), name)
            grown.append(name)
        axes |= conv_axes(leaves, f"{path}/dense_{dense}/conv_{_DENSE}", tuple(grown), channels)
    return axes


def conv_axes(
    leaves: Mapping[str, Any], path: str, reads: Axis, writes: Axis
) -> dict[str, tuple[Axis, ...]]:
    """The axes of a `SeparableConv` or another layer with a kernel, for `kd_jax.pruning`.

    Args:
      leaves: the network's variables by path (`kd_jax.core.axes.tensors`).
      path: the layer's path.
      reads: the entry of its input channels.
      writes: the entry of its output channels.

    Raises:
      ValueError: there is no such layer.
    """
    depthwise = f"params/{path}/depthwise"
    if depthwise not in leaves:
        return layer_axes(leaves, path, reads, writes)
    axes: dict[str, tuple[Axis, ...]] = {depthwise: (None, None, reads)}
    return axes | layer_axes(leaves, f"{path}/pointwise", reads, writes)


def depth_to_space(x: Array, factor: int) -> Array:
    """The pixel shuffle, which rearranges channels into pixels (Shi et al. 2016, eq. 4).

    Args:
      x: `[B, H, W, C factor^2]`; channel `(c factor + i) factor + j` becomes channel c of the pixel
        in row i and column j, which is PyTorch's order.
      factor: scale of the sides, at least 1.

    Returns:
      `[B, factor H, factor W, C]`.

    Raises:
      ValueError: x is not `[B, H, W, C]`, or its channels are not a multiple of `factor^2`.
    """
    if x.ndim != 4 or factor < 1 or x.shape[3] % factor**2:
        raise ValueError(
            f"depth_to_space: [B, H, W, channels] with channels a multiple of {factor}^2 are "
            f"needed, not shape {x.shape}"
        )
    batch, height, width, channels = x.shape
    features = channels // factor**2
    x = x.reshape(batch, height, width, features, factor, factor)
    x = x.transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, factor * height, factor * width, features)


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 convolution, computed at every `stride`-th pixel.

    There is no activation between them, so that a single bias, at the end, suffices.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = _he
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("depthwise", _depthwise_init, (3, 3, x.shape[-1])).astype(self.dtype)
        x = ops.depthwise_conv(x.astype(self.dtype), kernel, self.dilation)
        x = x[:, self.stride - 1 :: self.stride, self.stride - 1 :: self.stride]
        return Conv(
            self.features,
            kernel=1,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="pointwise",
        )(x)


class SubPixelConv(nn.Module):
    """A 3x3 convolution and `depth_to_space`: `[B, H, W, C] -> [B, r H, r W, features]`.

    At initialization all output pixels of an input pixel are equal, which avoids checkerboard
    artifacts (ICNR, Aitken et al. 2017). Kernel and bias have a separate axis of length `r^2` after
    that of the features: reshaped, they are those of the convolution.
    """

    features: int
    factor: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pixels, inputs = self.factor**2, x.shape[-1]

        def icnr(key: Array, shape: tuple[int, ...]) -> Array:
            return jnp.repeat(_he(key, shape[:-1])[..., None], shape[-1], axis=-1)

        kernel = self.param("kernel", icnr, (3, 3, inputs, self.features, pixels))
        bias = self.param("bias", nn.initializers.zeros, (self.features, pixels))
        kernel, bias = kernel.reshape(3, 3, inputs, -1), bias.reshape(1, 1, 1, -1)
        x = ops.conv(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)
        return depth_to_space(x, self.factor)


class ResidualBlock(nn.Module):
    """Two convolutions and a skip connection, without activation after the sum.

    Attributes:
      conv: creates a convolution from `features`, `kernel_init=` and `name=`.
      norm: creates a normalisation from `name=` and optionally `scale_init=`; or None.
    """

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        h = self.conv(features, name="conv1")(x)
        if self.norm is not None:
            h = self.norm(name="norm1")(h)
        h = self.conv(features, kernel_init=_small, name="conv2")(nn.relu(h))
        if self.norm is not None:
            # A scale of 1 would undo the small kernel.
            h = self.norm(scale_init=nn.initializers.constant(0.1), name="norm2")(h)
        return x + h


class DenseBlock(nn.Module):
    """Convolutions that read the outputs of all previous ones; the last is a residual, times 0.2.

    Attributes:
      growth: output channels of all convolutions but the last.
      conv: creates a convolution from `features` and `name=`.
    """

    growth: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        grown = [x]
        for index in range(_DENSE):
            h = self.conv(self.growth, name=f"conv_{index}")(jnp.concatenate(grown, axis=-1))
            grown.append(_leaky_relu(h))
        h = self.conv(x.shape[-1], name=f"conv_{_DENSE}")(jnp.concatenate(grown, axis=-1))
        return x + _SCALING * h


class ResidualInResidual(nn.Module):
    """Three dense blocks, whose output, times 0.2, is added to their input."""

    growth: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = x
        for index in range(3):
            h = DenseBlock(self.growth, self.conv, name=f"dense_{index}")(h)
        return x + _SCALING * h


class SRResNet(nn.Module):
    """See `srresnet`."""

    scale: int
    width: int
    blocks: int
    channels: int
    window: int
    batch_norm: bool
    separable: bool
    residual: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        _check_images(images, self.channels)
        bias = not self.batch_norm  # batch norm has a bias
        plain = partial(Conv, kernel_init=_he, dtype=self.dtype)
        separable = partial(SeparableConv, dtype=self.dtype)
        conv = partial(separable if self.separable else plain, use_bias=bias)
        norm = partial(BatchNorm, train=train, dtype=self.dtype) if self.batch_norm else None

        x = nn.relu(plain(self.width, kernel=self.window, name="stem")(images))
        taps = {"stem": x}
        for index in range(self.blocks):
            name = f"block_{index}"
            x = taps[name] = ResidualBlock(conv, norm, name=name)(x)
        x = plain(self.width, use_bias=bias, name="trunk")(x)
        if norm is not None:
            x = norm(name="trunk_norm")(x)
        x = taps["trunk"] = taps["stem"] + x
        for index, factor in enumerate(STEPS[self.scale]):
            name = f"up_{index}"
            x = nn.relu(SubPixelConv(self.width, factor, self.dtype, name=name)(x))
            taps[name] = x
        last = partial(plain, self.channels, kernel=self.window, name="image")
        return _image(last, x, images, self.scale, self.residual), taps


class RRDBNet(nn.Module):
    """See `rrdb`."""

    scale: int
    width: int
    blocks: int
    growth: int
    channels: int
    separable: bool
    residual: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        del train
        _check_images(images, self.channels)
        plain = partial(Conv, kernel_init=_he, dtype=self.dtype)
        separable = partial(SeparableConv, dtype=self.dtype)
        conv = partial(separable if self.separable else plain, kernel_init=_small)

        x = plain(self.width, name="stem")(images)
        taps = {"stem": x}
        for index in range(self.blocks):
            name = f"block_{index}"
            x = taps[name] = ResidualInResidual(self.growth, conv, name=name)(x)
        x = taps["trunk"] = taps["stem"] + plain(self.width, name="trunk")(x)
        for index, factor in enumerate(STEPS[self.scale]):
            name = f"up_{index}"
            x = _leaky_relu(plain(self.width, name=name)(upsample(x, factor)))
            taps[name] = x
        x = _leaky_relu(plain(self.width, name="full")(x))
        last = partial(plain, self.channels, name="image")
        return _image(last, x, images, self.scale, self.residual), taps


def _image(
    last: Callable[..., nn.Module], x: Array, images: Array, scale: int, residual: bool
) -> Array:
    """The last layer's output, with the interpolated image added if `residual`."""
    if not residual:
        return at_least_float32(last()(x))
    added = at_least_float32(last(kernel_init=_least)(x))
    return _bicubic(at_least_float32(images), scale) + added


def _upsamplings(variables: Variables) -> list[str]:
    """The names of the upsampling layers, `up_0`, `up_1`, ..."""
    count = sum(name.startswith("up_") for name in variables["params"])
    return [f"up_{index}" for index in range(count)]


def _bicubic(images: Array, scale: int) -> Array:
    sides = (scale * images.shape[1], scale * images.shape[2])
    return ops.resize(images, sides, ops.pil_bicubic)


def _check(kind: str, scale: int, **counts: int) -> None:
    if scale not in STEPS:
        raise ValueError(f"{kind}'s scale is one of {', '.join(map(str, STEPS))}, not {scale}")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{kind}'s {name}={count} must be at least 1")


def _check_images(images: Array, channels: int) -> None:
    if images.ndim != 4 or images.shape[3] != channels:
        raise ValueError(f"images [B, h, w, {channels}] are needed, not shape {images.shape}")


FAMILIES = (
    Family(
        "srresnet",
        (SRResNet,),
        narrowed("width"),
        srresnet_axes,
        student=lambda like, width: srresnet(
            like.scale, width, 8, channels=like.channels, window=3, separable=True
        ),
        taps=evenly_spaced_taps,
        method="pixel",
    ),
    Family(
        "interpolating_rrdb",
        (RRDBNet,),
        narrowed("width", "growth"),
        rrdb_axes,
        taps=evenly_spaced_taps,
        method="pixel",
    ),
)
