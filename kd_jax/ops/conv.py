"""Convolutions on `[B, H, W, C]` images, and their transposes."""

import jax

from kd_jax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(x: Array, kernel: Array, stride: int = 1, padding: str = "SAME") -> Array:
    """Cross-correlation of `x` [B, H, W, Cin] with `kernel` [kh, kw, Cin, Cout]."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT
    )


def conv_transpose(x: Array, kernel: Array, stride: int = 2) -> Array:
    """`x` [B, H, W, Cin] upsampled by `kernel` [kh, kw, Cin, Cout] to [B, sH, sW, Cout]."""
    return jax.lax.conv_transpose(x, kernel, (stride, stride), "SAME", dimension_numbers=_LAYOUT)
