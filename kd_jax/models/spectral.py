"""Layers whose weights have a largest singular value of 1 (Miyato et al. 2018).

The largest singular value sigma of a weight, as a matrix, is estimated by power iteration, one step
a training step; the layer computes with weight / sigma. The vectors of the iteration live in the
collection `spectral`: `u`, over the outputs, and `sigma`, the estimates of the last training step,
which tell when training collapses (Brock et al. 2019, section 4.1).

With `norm=None` the layers are plain ones.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.channels import Axis, Reads, Repeat
from kd_jax.types import Array

COLLECTION = "spectral"


class SpectralNorm(NamedTuple):
    """How the largest singular value is found.

    Attributes:
      iterations: steps of the power iteration in a training step.
      vectors: how many singular values are followed; the weight is divided by the largest.
      epsilon: a vector shorter than this is not normalised to length 1.
      stored: whether inference takes both vectors of the last training step as they are, as
        `torch.nn.utils.spectral_norm` does; the second is kept too then, as `v`, over the inputs.
        Otherwise inference takes one more step from `u`, as Brock et al.'s program does.
    """

    iterations: int = 1
    vectors: int = 1
    epsilon: float = 1e-12
    stored: bool = False


ONE_STEP = SpectralNorm()
"""The usual one: a step of the iteration in each training step."""


def power_iteration(matrix: Array, u: Array, epsilon: float = 1e-12) -> tuple[Array, Array, Array]:
    """One step towards the largest singular values (Miyato et al. 2018, algorithm 1).

    Further vectors are kept orthogonal to those before them, by Gram and Schmidt.

    Args:
      matrix: `[inputs, outputs]`.
      u: `[k, outputs]`, from the step before.
      epsilon: a vector shorter than this is not normalised to length 1.

    Returns:
      The new `u [k, outputs]`, `v [k, inputs]`, and the singular values `v M u` `[k]`. Only the
      latter are differentiated, with constant vectors.
    """
    constant = jax.lax.stop_gradient(matrix)
    us: list[Array] = []
    vs: list[Array] = []
    sigma = []
    for index in range(u.shape[0]):
        vs.append(_unit(_orthogonal(_product(constant, u[index]), vs), epsilon))
        product = _product(vs[-1], matrix)
        us.append(_unit(_orthogonal(jax.lax.stop_gradient(product), us), epsilon))
        sigma.append(product @ us[-1])
    return jnp.stack(us), jnp.stack(vs), jnp.stack(sigma)


def singular_values(matrix: Array, u: Array, v: Array) -> Array:
    """`v M u` for each pair of vectors, `[k]`."""
    return (_product(v, matrix) * u).sum(axis=1)


class Dense(nn.Module):
    """`[B, inputs] -> [B, features]`."""

    features: int
    norm: SpectralNorm | None = None
    train: bool = False
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.orthogonal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        kernel = _normalised(self, kernel, kernel, self.norm, self.train)
        return _with_bias(self, x.astype(self.dtype) @ kernel.astype(self.dtype), self.use_bias)


class Conv(nn.Module):
    """`[B, H, W, inputs] -> [B, H / stride, W / stride, features]`, by `kd_jax.ops.conv`."""

    features: int
    kernel: int = 3
    stride: int = 1
    norm: SpectralNorm | None = None
    train: bool = False
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.orthogonal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        matrix = kernel.reshape(-1, self.features)
        kernel = _normalised(self, kernel, matrix, self.norm, self.train).astype(self.dtype)
        return _with_bias(self, ops.conv(x.astype(self.dtype), kernel, self.stride), self.use_bias)


class Embed(nn.Module):
    """Labels, int `[B]`, `-> [B, features]`. The classes are the outputs of its matrix."""

    features: int
    classes: int
    norm: SpectralNorm | None = None
    train: bool = False
    embedding_init: nn.initializers.Initializer = nn.initializers.orthogonal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, labels: Array) -> Array:
        shape = (self.classes, self.features)
        embedding = self.param("embedding", self.embedding_init, shape)
        embedding = _normalised(self, embedding, embedding.T, self.norm, self.train)
        return jnp.take(embedding, labels, axis=0).astype(self.dtype)


def layer_axes(
    found: Mapping[str, Any], path: str, reads: Axis, writes: Axis
) -> dict[str, tuple[Axis, ...]]:
    """The axes of a `Dense` or `Conv`, for `kd_jax.students`.

    Args:
      found: the network's variables by path (`kd_jax.channels.tensors`).
      path: the layer's, `"block_0/conv1"`.
      reads: what its inputs are.
      writes: what its outputs are; `Reads` where they are multiplied with other channels.

    Raises:
      ValueError: there is no such layer.
    """
    kernel = f"params/{path}/kernel"
    if kernel not in found:
        raise ValueError(f"the variables are not those of such a network: {kernel} is missing")
    *window, _, _ = found[kernel].shape
    inputs: Axis = None if reads is None else Reads(reads)
    axes: dict[str, tuple[Axis, ...]] = {kernel: (*(None for _ in window), inputs, writes)}
    if f"params/{path}/bias" in found:
        axes[f"params/{path}/bias"] = (writes,)
    flat: Axis = None if reads is None else Repeat(reads, window[0] * window[1] if window else 1)
    return axes | _vector_axes(found, path, flat, _plain(writes))


def embedding_axes(
    found: Mapping[str, Any], path: str, features: Axis
) -> dict[str, tuple[Axis, ...]]:
    """The axes of an `Embed`, for `kd_jax.students`.

    Args:
      found: the network's variables by path (`kd_jax.channels.tensors`).
      path: the layer's.
      features: what its outputs are; `Reads` where they are multiplied with features.
    """
    axes: dict[str, tuple[Axis, ...]] = {f"params/{path}/embedding": (None, features)}
    return axes | _vector_axes(found, path, _plain(features), None)


def _plain(axis: Axis) -> Axis:
    return axis.axis if isinstance(axis, Reads) else axis


def _vector_axes(
    found: Mapping[str, Any], path: str, inputs: Axis, outputs: Axis
) -> dict[str, tuple[Axis, ...]]:
    entries = {"u": (None, outputs), "v": (None, inputs), "sigma": (None,)}
    paths = {f"{COLLECTION}/{path}/{name}": entry for name, entry in entries.items()}
    return {path: entry for path, entry in paths.items() if path in found}


def _normalised(
    module: nn.Module, weight: Array, matrix: Array, norm: SpectralNorm | None, train: bool
) -> Array:
    """The weight over its largest singular value; the vectors belong to the module."""
    if norm is None:
        return weight

    def start() -> Array:
        shape = (norm.vectors, matrix.shape[1])
        return jax.random.normal(module.make_rng("params"), shape)

    u = module.variable(COLLECTION, "u", start)
    if norm.stored:
        v = module.variable(COLLECTION, "v", lambda: power_iteration(matrix, u.value)[1])
    if norm.stored and not train:
        sigma = singular_values(matrix, u.value, v.value)
    else:
        new = u.value
        for _ in range(norm.iterations if train else 1):
            new, other, sigma = power_iteration(matrix, new, norm.epsilon)
    followed = module.variable(COLLECTION, "sigma", lambda: sigma)
    if train:
        u.value, followed.value = new, sigma
        if norm.stored:
            v.value = other
    return weight / sigma[0]


def _with_bias(module: nn.Module, x: Array, use_bias: bool) -> Array:
    if not use_bias:
        return x
    bias = module.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(x.dtype)
    return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _product(a: Array, b: Array) -> Array:
    # A TPU's default precision would leave sigma wrong by half a per cent.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _orthogonal(x: Array, others: list[Array]) -> Array:
    for other in others:
        x = x - (x @ other) / (other @ other) * other
    return x


def _unit(x: Array, epsilon: float) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), epsilon)
