"""Convolutions as in 8 bits, for the training of networks whose files are to be int8."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array

_ROUNDED: ContextVar[list[tuple[int, ...]] | None] = ContextVar("rounded", default=None)


@contextlib.contextmanager
def rounded() -> Iterator[list[tuple[int, ...]]]:
    """Within it, `conv` rounds its image and its kernel, and `conv_transpose` its kernel.

    Yields:
      The shapes of the kernels that were rounded, in their order.
    """
    kernels: list[tuple[int, ...]] = []
    token = _ROUNDED.set(kernels)
    try:
        yield kernels
    finally:
        _ROUNDED.reset(token)


def is_rounded() -> bool:
    """Whether a function is being traced within `rounded`."""
    return _ROUNDED.get() is not None


def round_kernel(kernel: Array) -> Array:
    """A kernel `[..., Cout]` in 255 steps for each output, symmetric to 0.

    The gradient is that of the identity (straight-through). Jacob et al. 2018, section 3.
    """
    if (kernels := _ROUNDED.get()) is not None:
        kernels.append(kernel.shape)
    fixed = jax.lax.stop_gradient(kernel)
    largest = jnp.abs(fixed).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True)
    scale = jnp.maximum(largest / 127, 1e-30)
    return kernel + (jnp.round(fixed / scale) * scale - fixed)


def round_image(x: Array) -> Array:
    """Features of a batch in 256 steps of their range, with 0 among them; as `round_kernel`."""
    fixed = jax.lax.stop_gradient(x)
    low, high = jnp.minimum(fixed.min(), 0), jnp.maximum(fixed.max(), 0)
    scale = jnp.maximum((high - low) / 255, 1e-30)
    zero = jnp.round(-low / scale)
    steps = jnp.clip(jnp.round(fixed / scale) + zero, 0, 255)
    return x + ((steps - zero) * scale - fixed)
