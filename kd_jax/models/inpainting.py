"""Inpainting by gated convolutions (Yu et al. 2019, "Free-form image inpainting").

A single stage instead of the paper's two, without contextual attention. Every layer has its own
gates, which learn where pixels are valid; there is no normalisation. By default the network
predicts a residual to a smooth inpainting, with a last layer initialized near zero, so that a fresh
network inpaints smoothly; `residual=False` gives the paper's network, which predicts the pixels.

Images are `[B, H, W, channels]` in [-1, 1]; masks `[B, H, W, 1]`, 1 where pixels are missing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axes, Axis, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, evenly_spaced_taps, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.layers.spectral import Conv, layer_axes
from kd_jax.models.resnet import upsample
from kd_jax.models.superres import SeparableConv, conv_axes

# A fresh gate is about 0.5, which leaves a quarter of the variance.
_gated = nn.initializers.variance_scaling(4.0, "fan_in", "normal")
_LEAST_VARIANCE = 1e-4  # about the square of one 8-bit step of [-1, 1]
_least = nn.initializers.variance_scaling(1e-4, "fan_in", "normal")


def gated_generator(
    width: int = 48,
    *,
    channels: int = 3,
    downs: int = 2,
    dilations: Sequence[int] = (2, 4, 8, 16),
    separable: bool = False,
    residual: bool = True,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images, masks) -> images`: known pixels unchanged, missing ones inpainted.

    Values at missing pixels are ignored, even NaN. Taps are the layers (`stem`, `down_1`,
    `encoder_1`, ..., `dilated_0`, ..., `middle`, ..., `up_0`, `decoder_0`; the number is that of
    halvings of the side, for `dilated` an index) and `generated`, the network's prediction of the
    whole image, not clipped if `residual`.

    Args:
      width: channels at full size; they double as the side halves.
      channels: the images' channels.
      downs: number of halvings of the sides.
      dilations: of the convolutions at the smallest side, one each.
      separable: whether the 3x3 convolutions, except the last, are split into a depthwise 3x3 and
        a 1x1 convolution.
      residual: whether the network reads the image inpainted by `ops.harmonic_inpaint` and predicts
        a residual to it, both standardized by the mean and deviation of the known pixels, so that a
        smooth image changes little. Otherwise missing pixels are zeros in the input, and the
        network predicts the pixels, in [-1, 1].
      dtype: the computation dtype; parameters and images are always float32.

    Raises:
      ValueError: a number is too small. `init` and `apply` raise it for images of another number of
        channels or with sides that are not multiples of `2^downs`, and for masks of another shape.
    """
    dilations = tuple(int(dilation) for dilation in dilations)
    if min(width, channels, *dilations) < 1 or downs < 0:
        raise ValueError(
            f"width={width}, channels={channels} and dilations={dilations} must be at least 1 and "
            f"downs={downs} at least 0"
        )
    return from_linen(GatedGenerator(width, channels, downs, dilations, separable, residual, dtype))


def hide_strokes(numbers: Array, images: Array) -> tuple[Array, Array]:
    """Images with missing pixels, which are zero, and their masks: inputs of `gated_generator`.

    The masks are free-form strokes (`ops.free_form_mask`) that depend only on the image's number.

    Args:
      numbers: int `[B]`.
      images: `[B, H, W, C]`.
    """

    # A loop, so that the bits of a mask do not depend on its batch.
    def draw(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), number)
        return ops.free_form_mask(key, (1, *images.shape[1:]))[0]

    masks = jax.lax.map(draw, jnp.asarray(numbers))
    return jnp.where(masks > 0.5, 0.0, images), masks


def gated_generator_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a generator's variables, for `kd_jax.pruning`.

    The groups are named like the taps. A gate belongs to the group of its feature.

    Args:
      variables: those of a `gated_generator`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `gated_generator`, or include connectors.
    """
    leaves = tensors(variables)
    names = list(variables["params"])
    downs, dilated = (sum(n.startswith(part) for n in names) for part in ("down_", "dilated_"))
    axes: dict[str, tuple[Axis, ...]] = {}
    group: Axis = None
    for layer in _layers(downs, (1,) * dilated):
        axes |= conv_axes(leaves, f"{layer.name}/conv", group, (layer.name, layer.name))
        group = layer.name
    axes |= layer_axes(leaves, "image", group, None)
    group_widths(variables, axes)
    return axes


class _Layer(NamedTuple):
    """A gated layer with output at 1 / 2^level of the sides; it may halve or double its input."""

    name: str
    level: int
    kernel: int = 3
    halves: bool = False
    doubles: bool = False
    dilation: int = 1


def _layers(downs: int, dilations: Sequence[int]) -> list[_Layer]:
    layers = [_Layer("stem", 0, kernel=5)]
    for level in range(1, downs + 1):
        layers += [_Layer(f"down_{level}", level, halves=True), _Layer(f"encoder_{level}", level)]
    for index, dilation in enumerate(dilations):
        layers.append(_Layer(f"dilated_{index}", downs, dilation=dilation))
    layers.append(_Layer("middle", downs))
    for level in reversed(range(downs)):
        layers += [_Layer(f"up_{level}", level, doubles=True), _Layer(f"decoder_{level}", level)]
    return layers


class DilatedConv(nn.Module):
    """A 3x3 convolution with taps `dilation` pixels apart, padded to the input's sides."""

    features: int
    dilation: int
    kernel_init: nn.initializers.Initializer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            ((self.dilation, self.dilation),) * 2,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias[None, None, None]


class GatedConv(nn.Module):
    """`elu(features) * sigmoid(gates)`, both from one convolution (Yu et al. 2019, eq. 3)."""

    features: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    separable: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        make: Any = partial(Conv, kernel=self.kernel, stride=self.stride)
        if self.separable and self.kernel == 3:
            make = partial(SeparableConv, stride=self.stride, dilation=self.dilation)
        elif self.dilation > 1:
            make = partial(DilatedConv, dilation=self.dilation)
        both = make(2 * self.features, kernel_init=_gated, dtype=self.dtype, name="conv")(x)
        features, gates = jnp.split(both, 2, axis=-1)
        return nn.elu(features) * nn.sigmoid(gates)


class GatedGenerator(nn.Module):
    """See `gated_generator`."""

    width: int
    channels: int
    downs: int
    dilations: tuple[int, ...]
    separable: bool
    residual: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, masks: Array, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        del train
        _check_inputs(images, masks, self.channels, 2**self.downs)
        missing = masks > 0.5
        # Not a product with 1 - mask, which would propagate NaN.
        known = jnp.where(missing, 0.0, images)
        mean, deviation = jnp.zeros(()), jnp.ones(())
        if self.residual:
            mean, deviation = _statistics(known, missing)
            known = ops.harmonic_inpaint(known, missing)
        x = jnp.concatenate([(known - mean) / deviation, missing.astype(known.dtype)], axis=-1)
        taps = {}
        for layer in _layers(self.downs, self.dilations):
            x = upsample(x) if layer.doubles else x
            x = taps[layer.name] = GatedConv(
                self.width * 2**layer.level,
                kernel=layer.kernel,
                stride=2 if layer.halves else 1,
                dilation=layer.dilation,
                separable=self.separable,
                dtype=self.dtype,
                name=layer.name,
            )(x)
        last = Conv(
            self.channels,
            kernel_init=_least if self.residual else nn.initializers.lecun_normal(),
            dtype=self.dtype,
            name="image",
        )
        predicted = at_least_float32(last(x))
        generated = known + deviation * predicted if self.residual else jnp.tanh(predicted)
        taps["generated"] = generated
        return jnp.where(missing, generated, images), taps


def _statistics(known: Array, missing: Array) -> tuple[Array, Array]:
    """The known pixels' mean per channel `[B, 1, 1, C]` and deviation overall `[B, 1, 1, 1]`."""
    weights = jnp.where(missing, 0.0, 1.0)
    total = jnp.maximum(weights.sum(axis=(1, 2), keepdims=True), 1.0)
    mean = known.sum(axis=(1, 2), keepdims=True) / total
    squares = (weights * (known - mean) ** 2).mean(axis=3, keepdims=True)
    variance = squares.sum(axis=(1, 2), keepdims=True) / total
    return mean, jnp.sqrt(variance + _LEAST_VARIANCE)


def _check_inputs(images: Array, masks: Array, channels: int, multiple: int) -> None:
    if images.ndim != 4 or images.shape[3] != channels:
        raise ValueError(f"images [B, H, W, {channels}] are needed, not shape {images.shape}")
    if any(side % multiple for side in images.shape[1:3]):
        raise ValueError(
            f"images of {images.shape[1]}x{images.shape[2]} pixels need sides that are "
            f"multiples of {multiple}"
        )
    if masks.shape != (*images.shape[:3], 1):
        raise ValueError(
            f"images {images.shape} need masks {(*images.shape[:3], 1)}, not shape {masks.shape}"
        )


FAMILY = Family(
    "inpainting",
    (GatedGenerator,),
    narrowed("width"),
    gated_generator_axes,
    # Not the predicted image, most of whose pixels are not in the output.
    taps=lambda shapes: evenly_spaced_taps(
        {name: shape for name, shape in shapes.items() if name != "generated"}
    ),
    method="pixel",
    degrade=hide_strokes,
)
