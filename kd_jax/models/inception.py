"""Inception-v3 (Szegedy et al. 2016), the feature extractor of the Frechet inception distance.

Two networks share its layers. That of Heusel et al. 2017, from TensorFlow's models of 2015, has
1,008 classes; its average pools exclude the padding from the mean, and the pool of its last block
is a max pool. Torchvision's is an average pool in every block, with the zeros included.

Inference only: the batch normalisation after each convolution (epsilon 0.001) is folded into its
kernel and bias, as `kd_jax.pretrained.inception` does. Layers and taps are named as in the
published files. Images are `[B, H, W, 3]`, usually 299x299 in [-1, 1]; `kd_jax.metrics.resize`
prepares them.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import ops
from kd_jax.core.checks import at_least_float32
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array

SIDE = 299
"""The side of the images that the network was trained on."""
SMALLEST = 75

_ACROSS, _DOWN = (1, 7), (7, 1)

_STEM = (  # layer, window, stride and padding, or a pool
    ("Conv2d_1a_3x3", 32, 3, 2, "VALID"),
    ("Conv2d_2a_3x3", 32, 3, 1, "VALID"),
    ("Conv2d_2b_3x3", 64, 3, 1, "SAME"),
    ("MaxPool_1", 0, 3, 2, "VALID"),
    ("Conv2d_3b_1x1", 80, 1, 1, "VALID"),
    ("Conv2d_4a_3x3", 192, 3, 1, "VALID"),
    ("MaxPool_2", 0, 3, 2, "VALID"),
)


def fid(classes: int = 1008, *, stem_batch: int = 0, dtype: Any = jnp.float32) -> Network:
    """`images -> logits [B, classes]`: the network of the Frechet inception distance.

    Taps are the published layers, `Conv2d_1a_3x3` to `Mixed_7c`, `[B, h, w, C]` each; the spatial
    means after the first two pools, before `Mixed_7a` and at the end, `64`, `192`, `768` and
    `2048`, `[B, C]` each; and `logits_unbiased` `[B, classes]`, the logits without their bias, from
    which the inception score is computed.

    Args:
      classes: outputs of the last layer.
      stem_batch: the number of images that pass through the first layers at once, whose features
        are the largest; 0 for all. On CPU the features of 2 fit in the cache.
      dtype: the computation dtype; parameters, means and logits are float32.
    """
    return from_linen(
        Inception(
            classes, padded_means=False, last_maximum=True, dtype=dtype, stem_batch=stem_batch
        )
    )


def torchvision(classes: int = 1000, *, stem_batch: int = 0, dtype: Any = jnp.float32) -> Network:
    """`images -> logits [B, classes]`: torchvision's network. Arguments and taps are `fid`'s."""
    return from_linen(
        Inception(
            classes, padded_means=True, last_maximum=False, dtype=dtype, stem_batch=stem_batch
        )
    )


def max_pool(x: Array, window: int, stride: int) -> Array:
    """Max pooling of `[B, H, W, C]` without padding, one axis after the other.

    It is computed from slices, which compile to one loop; equal maxima share the gradient.

    Raises:
      ValueError: a side is shorter than the window.
    """
    if min(x.shape[1:3]) < window:
        raise ValueError(
            f"the images are too small for this network: {x.shape[1]}x{x.shape[2]} pixels are left "
            f"for a {window}x{window} pool"
        )
    for axis in (1, 2):
        count = (x.shape[axis] - window) // stride + 1
        parts = [
            jax.lax.slice_in_dim(x, k, k + (count - 1) * stride + 1, stride, axis)
            for k in range(window)
        ]
        x = parts[0]
        for part in parts[1:]:
            x = jnp.maximum(x, part)
    return x


def same_mean(x: Array, *, padded: bool) -> Array:
    """The means of 3x3 windows around each pixel of `[B, H, W, C]`.

    Args:
      x: the features.
      padded: whether the zeros outside the features count.
    """
    counts: Any = 9.0
    if not padded:
        rows, columns = (3 - (np.arange(n) == 0) - (np.arange(n) == n - 1) for n in x.shape[1:3])
        counts = (rows[:, None] * columns)[None, :, :, None]
    for axis in (1, 2):
        widths = [(0, 0)] * 4
        widths[axis] = (1, 1)
        n, around = x.shape[axis], jnp.pad(x, widths)
        left, middle, right = (jax.lax.slice_in_dim(around, k, k + n, 1, axis) for k in range(3))
        x = left + middle + right
    return x * jnp.asarray(1 / counts, x.dtype)


class Weights(nn.Module):
    """A convolution's kernel and bias: `channels -> ([h, w, channels, features], [features])`."""

    features: int
    window: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        shape = (*self.window, channels, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def _bias_relu(x: Array, bias: Array) -> Array:
    return jax.nn.relu(x + bias.astype(x.dtype)[None, None, None])


# The functions below create layers in the module whose `__call__` calls them.


def _layer(
    x: Array,
    name: str,
    features: int,
    window: tuple[int, int] = (3, 3),
    stride: int = 1,
    padding: str = "SAME",
) -> Array:
    """A convolution, its bias and a ReLU."""
    kernel, bias = Weights(features, window, name=name)(x.shape[3])
    return _bias_relu(ops.conv(x, kernel.astype(x.dtype), stride, padding), bias)


def _branches(x: Array, widths: Mapping[str, int], pool: str = "", **mean: bool) -> list[Array]:
    """1x1 layers of the same features, computed as one matrix product.

    Args:
      x: the features.
      widths: output channels of the layers, by name.
      pool: the layer whose input is mean-pooled. The pool commutes with the layer's product and is
        applied to the product, which has fewer channels than the features.
      **mean: the options of `same_mean`.
    """
    layers = {name: Weights(n, name=name)(x.shape[3]) for name, n in widths.items()}
    kernel = jnp.concatenate([kernel for kernel, _ in layers.values()], axis=3)
    products = ops.conv(x, kernel.astype(x.dtype))
    ends = np.cumsum(list(widths.values()))[:-1].tolist()
    outputs = []
    for (name, (_, bias)), y in zip(layers.items(), jnp.split(products, ends, axis=3), strict=True):
        outputs.append(_bias_relu(same_mean(y, **mean) if name == pool else y, bias))
    return outputs


def _stem(x: Array, weights: Mapping[str, tuple[Array, Array]]) -> dict[str, Array]:
    """The outputs of the first layers, from `[B, H, W, 3]`."""
    outputs = {}
    for name, features, window, stride, padding in _STEM:
        if features:
            kernel, bias = weights[name]
            x = _bias_relu(ops.conv(x, kernel, stride, padding), bias)
        else:
            x = max_pool(x, window, stride)
        outputs[name] = x
    return outputs


def _stem_in_batches(
    x: Array, weights: Mapping[str, tuple[Array, Array]], count: int
) -> dict[str, Array]:
    """As `_stem`, `count` images after `count` others; all at once if 0 or not a divisor."""
    if not count or x.shape[0] % count:
        return _stem(x, weights)
    batches = x.reshape(x.shape[0] // count, count, *x.shape[1:])
    outputs = jax.lax.map(lambda batch: _stem(batch, weights), batches)
    return jax.tree.map(lambda y: y.reshape(x.shape[0], *y.shape[2:]), outputs)


class BlockA(nn.Module):
    """Figure 5 of the paper, at 35x35."""

    pooled: int
    padded: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        widths = {"branch1x1": 64, "branch5x5_1": 48, "branch3x3dbl_1": 64}
        widths |= {"branch_pool": self.pooled}
        a, b, c, d = _branches(x, widths, "branch_pool", padded=self.padded)
        b = _layer(b, "branch5x5_2", 64, (5, 5))
        c = _layer(c, "branch3x3dbl_2", 96)
        c = _layer(c, "branch3x3dbl_3", 96)
        return jnp.concatenate([a, b, c, d], axis=3)


class BlockB(nn.Module):
    """From 35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        a = _layer(x, "branch3x3", 384, stride=2, padding="VALID")
        (b,) = _branches(x, {"branch3x3dbl_1": 64})
        b = _layer(b, "branch3x3dbl_2", 96)
        b = _layer(b, "branch3x3dbl_3", 96, stride=2, padding="VALID")
        return jnp.concatenate([a, b, max_pool(x, 3, 2)], axis=3)


class BlockC(nn.Module):
    """Figure 6 of the paper, at 17x17."""

    width: int
    padded: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n = self.width
        widths = {"branch1x1": 192, "branch7x7_1": n, "branch7x7dbl_1": n, "branch_pool": 192}
        a, b, c, d = _branches(x, widths, "branch_pool", padded=self.padded)
        b = _layer(b, "branch7x7_2", n, _ACROSS)
        b = _layer(b, "branch7x7_3", 192, _DOWN)
        c = _layer(c, "branch7x7dbl_2", n, _DOWN)
        c = _layer(c, "branch7x7dbl_3", n, _ACROSS)
        c = _layer(c, "branch7x7dbl_4", n, _DOWN)
        c = _layer(c, "branch7x7dbl_5", 192, _ACROSS)
        return jnp.concatenate([a, b, c, d], axis=3)


class BlockD(nn.Module):
    """From 17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        a, b = _branches(x, {"branch3x3_1": 192, "branch7x7x3_1": 192})
        a = _layer(a, "branch3x3_2", 320, stride=2, padding="VALID")
        b = _layer(b, "branch7x7x3_2", 192, _ACROSS)
        b = _layer(b, "branch7x7x3_3", 192, _DOWN)
        b = _layer(b, "branch7x7x3_4", 192, stride=2, padding="VALID")
        return jnp.concatenate([a, b, max_pool(x, 3, 2)], axis=3)


class BlockE(nn.Module):
    """Figure 7 of the paper, at 8x8; with a mean or a max pool."""

    maximum: bool
    padded: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        widths = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
        if self.maximum:
            a, b, c = _branches(x, widths)
            around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # ReLU outputs: never below 0
            (d,) = _branches(max_pool(around, 3, 1), {"branch_pool": 192})
        else:
            widths |= {"branch_pool": 192}
            a, b, c, d = _branches(x, widths, "branch_pool", padded=self.padded)
        c = _layer(c, "branch3x3dbl_2", 384)
        b1, b2 = _layer(b, "branch3x3_2a", 384, (1, 3)), _layer(b, "branch3x3_2b", 384, (3, 1))
        c1 = _layer(c, "branch3x3dbl_3a", 384, (1, 3))
        c2 = _layer(c, "branch3x3dbl_3b", 384, (3, 1))
        return jnp.concatenate([a, b1, b2, c1, c2, d], axis=3)


class Inception(nn.Module):
    """See `fid` and `torchvision`.

    Attributes:
      classes: outputs of the last layer.
      padded_means: whether zeros outside the features count in the average pools.
      last_maximum: whether the last block's pool is a max pool.
      dtype: the computation dtype.
      stem_batch: the number of images that pass through the first layers at once; 0 for all.
    """

    classes: int
    padded_means: bool
    last_maximum: bool
    dtype: Any
    stem_batch: int = 0

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        del train  # training and inference are the same
        if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"images [B, H, W, 3] of {SMALLEST}x{SMALLEST} pixels or more are needed, "
                f"not of shape {images.shape}"
            )
        padded = self.padded_means
        taps: dict[str, Array] = {}

        def tap(name: str, x: Array) -> Array:
            taps[name] = x
            return x

        def mean(name: str, x: Array) -> Array:
            return tap(name, at_least_float32(x).mean(axis=(1, 2)))

        x = images.astype(self.dtype)
        weights, channels = {}, x.shape[3]
        for name, features, window, _, _ in _STEM:
            if features:
                kernel, bias = Weights(features, (window, window), name=name)(channels)
                weights[name], channels = (kernel.astype(x.dtype), bias), features
        for name, y in _stem_in_batches(x, weights, self.stem_batch).items():
            x = tap(name, y)
            if name.startswith("MaxPool"):
                mean(str(x.shape[3]), x)
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = tap(name, BlockA(pooled, padded, name=name)(x))
        x = tap("Mixed_6a", BlockB(name="Mixed_6a")(x))
        for name, width in (
            ("Mixed_6b", 128),
            ("Mixed_6c", 160),
            ("Mixed_6d", 160),
            ("Mixed_6e", 192),
        ):
            x = tap(name, BlockC(width, padded, name=name)(x))
        mean("768", x)
        x = tap("Mixed_7a", BlockD(name="Mixed_7a")(x))
        x = tap("Mixed_7b", BlockE(False, padded, name="Mixed_7b")(x))
        x = tap("Mixed_7c", BlockE(self.last_maximum, padded, name="Mixed_7c")(x))
        (kernel, bias) = Head(self.classes, name="fc")(mean("2048", x).shape[1])
        unbiased = jnp.matmul(taps["2048"], kernel, precision=jax.lax.Precision.HIGHEST)
        return tap("logits_unbiased", unbiased) + bias[None], taps


class Head(nn.Module):
    """The last layer's weights: `channels -> ([channels, classes], [classes])`."""

    classes: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        shape = (channels, self.classes)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return kernel, self.param("bias", nn.initializers.zeros, (self.classes,))
