"""Depthwise convolutions: one kernel per channel."""

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array
from kd_jax.ops import primitive


def depthwise_conv(x: Array, kernel: Array, dilation: int = 1) -> Array:
    """A depthwise convolution, zero-padded to the input's sides.

    It is computed as a sum of shifted products, which compilers fuse. On two CPU cores it takes
    0.4 ms for `[16, 32, 32, 32]` and 2 ms with the gradients; XLA's grouped convolution takes 15
    and 18 ms.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[k, k, C]`, k odd, of x's dtype.
      dilation: distance between the kernel's taps.

    Raises:
      ValueError: x is not `[B, H, W, C]`, or the kernel has other channels or no equal odd sides.
    """
    if x.ndim != 4 or kernel.ndim != 3 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"images [B, H, W, C] and a kernel [k, k, C] are needed, not shapes {x.shape} and "
            f"{kernel.shape}"
        )
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"a depthwise kernel has equal odd sides, not shape {kernel.shape}")
    return _depthwise((kernel.shape[0], dilation), x, kernel)


def _depthwise_map(geometry: tuple[int, int], x: Array, kernel: Array) -> Array:
    taps = kernel.reshape(-1, 1, 1, 1, kernel.shape[2])
    windows = _windows(x, *geometry)
    products = (part * tap for part, tap in zip(windows, taps, strict=True))
    return sum(products, jnp.zeros((), x.dtype))


def _windows(x: Array, size: int, dilation: int) -> list[Array]:
    """The input of each tap of a kernel, row by row: x, shifted."""
    batch, height, width, channels = x.shape
    reach = size // 2 * dilation
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    starts = range(0, size * dilation, dilation)
    # Not x[:, i : i + height], which may become a gather if the sides are symbolic.
    return [
        jax.lax.slice(x, (0, i, j, 0), (batch, i + height, j + width, channels))
        for i in starts
        for j in starts
    ]


def _pixel_sum(x: Array) -> Array:
    """`[B, H, W, C] -> [C]`. The sum of 16 parts is taken first: XLA's plain reduction is slow.

    On two cores, the gradient of the nine taps for `[16, 32, 32, 96]` takes 2 to 5 ms instead of
    20. More parts are too many for one fused loop. Each image is split, not the batch, which may
    be sharded over devices.
    """
    x = x.reshape(x.shape[0], -1, x.shape[3])
    for _ in range(4):
        if x.shape[1] % 2 == 0:
            x = x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]
    return x.sum(axis=(0, 1))


def _kernel_grad_map(geometry: tuple[int, int], x: Array, output: Array) -> Array:
    sums = [_pixel_sum(part * output) for part in _windows(x, *geometry)]
    return jnp.stack(sums).reshape(geometry[0], geometry[0], x.shape[3])


_depthwise = primitive.define("kd_depthwise_conv", _depthwise_map)
_kernel_grad = primitive.define("kd_depthwise_conv_kernel_grad", _kernel_grad_map)


def _input_grad(geometry: tuple[int, int], output: Array, kernel: Array) -> Array:
    return _depthwise(geometry, output, kernel[::-1, ::-1])


primitive.set_transposes(
    _depthwise,
    _input_grad,
    lambda geometry, g, x: _kernel_grad(geometry, x, g),
)
primitive.set_transposes(
    _kernel_grad,
    lambda geometry, g, output: _input_grad(geometry, output, g),
    lambda geometry, g, x: _depthwise(geometry, x, g),
)
