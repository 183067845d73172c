"""Checks that run while a function is traced, so that a wrong shape never broadcasts silently."""

import contextlib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array, Batch


class UsageError(Exception):
    """A request that cannot be met; the message is one line that also says what is possible."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns ValueErrors and FileNotFoundErrors caused by a user's settings into `UsageError`s."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


def same_shape(**arrays: Any) -> tuple[Array, ...]:
    """The arrays, in order, after a check that their shapes are equal.

    Args:
      **arrays: two or more arrays, named as the error message should name them.

    Raises:
      ValueError: an array is missing (None), or its shape differs from that of the first.
    """
    (first, reference), *rest = arrays.items()
    for name, value in arrays.items():
        if value is None:
            raise ValueError(f"{name} is missing: no network or input of this step provides it")
    for name, value in rest:
        if jnp.shape(value) != jnp.shape(reference):
            raise ValueError(
                f"{first} has shape {jnp.shape(reference)} but {name} has {jnp.shape(value)}"
            )
    return tuple(at_least_float32(value) for value in arrays.values())


def same_channels(**features: Any) -> tuple[Array, ...]:
    """Two features `[B, H, W, C]`, in order, after a check that batch and channels are equal.

    Args:
      **features: two arrays, named as the error message should name them.

    Raises:
      ValueError: a feature is missing (None) or not 4-dimensional, or batch or channels differ.
    """
    (name, _), (other, _) = features.items()
    first, second = (same_shape(**{key: value})[0] for key, value in features.items())
    if not first.ndim == second.ndim == 4 or first.shape[::3] != second.shape[::3]:
        raise ValueError(
            f"{name} has shape {first.shape} but {other} has {second.shape}; "
            "both must be [B, height, width, C] with the same B and C"
        )
    return first, second


def at_least_float32(x: Any) -> Array:
    """`x` as float32, or as float64 if it is float64: losses are not summed in half precision."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def magnitude(x: Array) -> Array:
    """`|x|` with gradient 0 at 0; `jnp.abs` has gradient 1 there, even where both sides agree."""
    return x * jnp.sign(x)


def per_example_mean(x: Array) -> Array:
    """The mean over every axis but the first, `[B, ...] -> [B]`."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:])).mean(axis=1)


def per_example_sum(x: Array) -> Array:
    """The sum over every axis but the first, `[B, ...] -> [B]`."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:])).sum(axis=1)


def batch_entry(batch: Batch, name: str) -> Any:
    """The array `name` of a batch.

    Raises:
      ValueError: the batch has none.
    """
    if name not in batch:
        raise ValueError(f"the batch has {sorted(batch)}; this task needs {name!r}")
    return batch[name]


def check_batch(batch: Any) -> None:
    """Raises a ValueError unless a batch is a dict of numeric arrays by name."""
    if not isinstance(batch, Mapping):
        kind = type(batch).__name__
        if hasattr(batch, "shape"):
            kind = f"{kind} of shape {tuple(batch.shape)}"
        raise ValueError(
            f'the batch is a {kind}; it must be a dict of arrays by name: {{"image": images}}'
        )
    for name, entry in batch.items():
        if not isinstance(entry, jax.Array) and (content := non_numeric(entry)):
            raise ValueError(
                f"batch[{name!r}] holds {content}; a batch holds arrays of numbers: leave it out"
            )


def non_numeric(tree: Any) -> str | None:
    """The type or dtype of the first leaf that cannot be an argument of a compiled function."""
    for leaf in jax.tree.leaves(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and not isinstance(leaf, bool | int | float | complex):
            return f"a {type(leaf).__name__}"
        if getattr(dtype, "kind", "") in _NOT_NUMBERS:
            return f"values of dtype {dtype}"
    return None


_NOT_NUMBERS = tuple("OSUMm")  # numpy's kinds: objects, bytes, strings, dates and durations


def differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """The differences of two trees of JSON values, one line each."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *(k for k in here if k not in there)]:
            name = f"{path}.{key}" if path else str(key)
            if key in there and key in here:
                yield from differences(there[key], here[key], name)
            else:
                yield f"{name} is only {'here' if key in here else 'there'}"
    elif there != here:
        yield f"{path} is {there!r} there, {here!r} here"


def shorten(lines: Sequence[str], most: int = 4) -> str:
    """The first lines in one, and the number of the others."""
    rest = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + rest


def import_package(name: str, user: str, install: str) -> Any:
    """A module of an optional package.

    Args:
      name: of the module.
      user: the name of that which needs it, for the message.
      install: the command that installs it.

    Raises:
      UsageError: it is not installed; the message names the first module that is missing.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{user} needs {error.name}, which is not installed: {install}") from None
