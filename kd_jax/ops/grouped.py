"""Grouped convolutions: channels in groups that do not see each other."""

import jax.numpy as jnp

from kd_jax.core.types import Array
from kd_jax.ops.convolution import conv

_WIDTH = 128
"""Input channels up to which neighbouring groups are computed as one convolution."""


def grouped_conv(x: Array, kernel: Array, groups: int) -> Array:
    """A convolution in groups of channels, zero-padded to the input's sides.

    Neighbouring groups are computed together, by a kernel that is zero between them: a few plain
    convolutions, which are fast on every platform with all derivatives. On two CPU cores it takes
    10 ms for `[8, 8, 8, 1536]` in 96 groups, and 50 ms with the gradients; XLA's grouped
    convolution takes 13 ms, and 3.6 s with the gradients already for `[16, 16, 16, 192]` in 24.

    Args:
      x: `[B, H, W, Cin]`.
      kernel: `[k, k, Cin / groups, Cout]`, k odd, of x's dtype; the outputs of the first group are
        the first `Cout / groups`.
      groups: their number, which divides Cin and Cout.

    Raises:
      ValueError: the ranks or the channels do not fit.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != groups * kernel.shape[2]:
        raise ValueError(
            f"images [B, H, W, C] and a kernel [k, k, C / {groups}, any] are needed, not shapes "
            f"{x.shape} and {kernel.shape}"
        )
    rows, columns, inputs, features = kernel.shape
    if features % groups:
        raise ValueError(f"{groups} groups do not divide the kernel's {features} outputs")
    fitting = [n for n in range(1, groups + 1) if groups % n == 0 and n * inputs <= _WIDTH]
    together = max(fitting, default=1)
    kernel = kernel.reshape(rows, columns, 1, inputs, -1, together, features // groups)
    own = jnp.eye(together, dtype=kernel.dtype).reshape(1, 1, together, 1, 1, together, 1)
    # [rows, columns, group of the input, input, part, group of the output, output]
    kernel = (kernel * own).reshape(rows, columns, together * inputs, groups // together, -1)
    parts = jnp.split(x, groups // together, axis=3)
    return jnp.concatenate([conv(part, kernel[:, :, :, i]) for i, part in enumerate(parts)], -1)
