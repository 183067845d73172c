"""Layers whose weights have a largest singular value of 1 (Miyato et al. 2018).

The largest singular value sigma of a weight, as a matrix, is estimated by power iteration, with one
iteration per training step; the layer computes with weight / sigma. The collection `spectral` holds
the vectors of the iteration, `u`, over the outputs, and `sigma`, the estimates of the last training
step, which indicate training collapse (Brock et al. 2019, section 4.1).

With `norm=None` the layers have no spectral normalisation.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax import ops
from kd_jax.core.axes import Axis, InputAxis, Repeat
from kd_jax.core.checks import at_least_float32
from kd_jax.core.types import Array

COLLECTION = "spectral"


class SpectralNorm(NamedTuple):
    """How the largest singular value is estimated.

    Attributes:
      iterations: power iterations per training step.
      vectors: number of singular values that are estimated; the weight is divided by the largest.
      epsilon: lower bound on the norm by which a vector is divided.
      stored: whether inference uses both vectors of the last training step unchanged, as
        `torch.nn.utils.spectral_norm` does; the second is then stored, too, as `v`, over the
        inputs. Otherwise inference does one more iteration from `u`, as Brock et al.'s program
        does.
    """

    iterations: int = 1
    vectors: int = 1
    epsilon: float = 1e-12
    stored: bool = False


ONE_STEP = SpectralNorm()
"""The common choice: one power iteration per training step."""


def power_iteration(matrix: Array, u: Array, epsilon: float = 1e-12) -> tuple[Array, Array, Array]:
    """Iterates once towards the largest singular values (Miyato et al. 2018, algorithm 1).

    Each vector is orthogonalized to the previous ones (Gram-Schmidt).

    Args:
      matrix: `[inputs, outputs]`.
      u: `[k, outputs]`, from the previous iteration.
      epsilon: lower bound on the norm by which a vector is divided.

    Returns:
      The new `u [k, outputs]`, `v [k, inputs]`, and the singular values `v M u` `[k]`. Only the
      singular values are differentiable, with the vectors as constants.
    """
    constant = jax.lax.stop_gradient(matrix)
    us: list[Array] = []
    vs: list[Array] = []
    sigma = []
    for index in range(u.shape[0]):
        vs.append(_normalize(_orthogonalize(_matmul(constant, u[index]), vs), epsilon))
        product = _matmul(vs[-1], matrix)
        us.append(_normalize(_orthogonalize(jax.lax.stop_gradient(product), us), epsilon))
        sigma.append(product @ us[-1])
    return jnp.stack(us), jnp.stack(vs), jnp.stack(sigma)


def singular_values(matrix: Array, u: Array, v: Array) -> Array:
    """`v M u` for each pair of vectors, `[k]`."""
    return (_matmul(v, matrix) * u).sum(axis=1)


class Dense(nn.Module):
    """`[B, inputs] -> [B, features]`."""

    features: int
    norm: SpectralNorm | None = None
    train: bool = False
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.orthogonal()
    dtype: Any = None  # of the inputs, at least float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        kernel = _spectral_normalize(self, kernel, kernel, self.norm, self.train)
        dtype = self.dtype or at_least_float32(x).dtype
        return _add_bias(self, x.astype(dtype) @ kernel.astype(dtype), self.use_bias)


class Conv(nn.Module):
    """`[B, H, W, inputs] -> [B, H / stride, W / stride, features]`, with `kd_jax.ops.conv`."""

    features: int
    kernel: int = 3
    stride: int = 1
    norm: SpectralNorm | None = None
    train: bool = False
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.orthogonal()
    dtype: Any = None  # of the inputs, at least float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        matrix = kernel.reshape(-1, self.features)
        kernel = _spectral_normalize(self, kernel, matrix, self.norm, self.train)
        dtype = self.dtype or at_least_float32(x).dtype
        y = ops.conv(x.astype(dtype), kernel.astype(dtype), self.stride)
        return _add_bias(self, y, self.use_bias)


class Embed(nn.Module):
    """Labels, int `[B]`, `-> [B, features]`. Its matrix is `[features, classes]`."""

    features: int
    classes: int
    norm: SpectralNorm | None = None
    train: bool = False
    embedding_init: nn.initializers.Initializer = nn.initializers.orthogonal()
    dtype: Any = None  # of the parameters

    @nn.compact
    def __call__(self, labels: Array) -> Array:
        shape = (self.classes, self.features)
        embedding = self.param("embedding", self.embedding_init, shape)
        embedding = _spectral_normalize(self, embedding, embedding.T, self.norm, self.train)
        return jnp.take(embedding, labels, axis=0).astype(self.dtype or embedding.dtype)


def layer_axes(
    leaves: Mapping[str, Any], path: str, reads: Axis, writes: Axis
) -> dict[str, tuple[Axis, ...]]:
    """The axes of a `Dense` or `Conv`, for `kd_jax.pruning`.

    Args:
      leaves: the network's variables by path (`kd_jax.core.axes.tensors`).
      path: the layer's path, e.g. `"block_0/conv1"`.
      reads: the axis of its inputs.
      writes: the axis of its outputs; an `InputAxis` if they are multiplied with other channels.

    Raises:
      ValueError: there is no layer at `path`.
    """
    kernel = f"params/{path}/kernel"
    if kernel not in leaves:
        raise ValueError(f"the variables are not those of such a network: {kernel} is missing")
    *window, _, _ = leaves[kernel].shape
    inputs: Axis = None if reads is None else InputAxis(reads)
    axes: dict[str, tuple[Axis, ...]] = {kernel: (*(None for _ in window), inputs, writes)}
    if f"params/{path}/bias" in leaves:
        axes[f"params/{path}/bias"] = (writes,)
    flat: Axis = None if reads is None else Repeat(reads, window[0] * window[1] if window else 1)
    return axes | _vector_axes(leaves, path, flat, _plain(writes))


def embedding_axes(
    leaves: Mapping[str, Any], path: str, features: Axis
) -> dict[str, tuple[Axis, ...]]:
    """The axes of an `Embed`, for `kd_jax.pruning`.

    Args:
      leaves: the network's variables by path (`kd_jax.core.axes.tensors`).
      path: the layer's path.
      features: the axis of its outputs; an `InputAxis` if they are multiplied with features.
    """
    axes: dict[str, tuple[Axis, ...]] = {f"params/{path}/embedding": (None, features)}
    return axes | _vector_axes(leaves, path, _plain(features), None)


def _plain(axis: Axis) -> Axis:
    return axis.axis if isinstance(axis, InputAxis) else axis


def _vector_axes(
    leaves: Mapping[str, Any], path: str, inputs: Axis, outputs: Axis
) -> dict[str, tuple[Axis, ...]]:
    entries = {"u": (None, outputs), "v": (None, inputs), "sigma": (None,)}
    paths = {f"{COLLECTION}/{path}/{name}": entry for name, entry in entries.items()}
    return {path: entry for path, entry in paths.items() if path in leaves}


def _spectral_normalize(
    module: nn.Module, weight: Array, matrix: Array, norm: SpectralNorm | None, train: bool
) -> Array:
    """Divides a weight by its largest singular value; the vectors are variables of the module."""
    if norm is None:
        return weight

    def initialize() -> Array:
        shape = (norm.vectors, matrix.shape[1])
        return jax.random.normal(module.make_rng("params"), shape)

    u = module.variable(COLLECTION, "u", initialize)
    if norm.stored:
        v = module.variable(COLLECTION, "v", lambda: power_iteration(matrix, u.value)[1])
    if norm.stored and not train:
        sigma = singular_values(matrix, u.value, v.value)
    else:
        new_u = u.value
        for _ in range(norm.iterations if train else 1):
            new_u, new_v, sigma = power_iteration(matrix, new_u, norm.epsilon)
    estimate = module.variable(COLLECTION, "sigma", lambda: sigma)
    if train:
        u.value, estimate.value = new_u, sigma
        if norm.stored:
            v.value = new_v
    return weight / sigma[0]


def _add_bias(module: nn.Module, x: Array, use_bias: bool) -> Array:
    if not use_bias:
        return x
    bias = module.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(x.dtype)
    return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _matmul(a: Array, b: Array) -> Array:
    # At a TPU's default precision sigma would be off by half a percent.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _orthogonalize(x: Array, others: list[Array]) -> Array:
    for other in others:
        x = x - (x @ other) / (other @ other) * other
    return x


def _normalize(x: Array, epsilon: float) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), epsilon)
