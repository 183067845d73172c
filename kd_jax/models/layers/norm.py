"""Batch normalisation (Ioffe & Szegedy 2015), and its variants in image generators.

Statistics are stored in the collection `batch_stats`, as `mean` and `var`. Under jit over a mesh
they are those of the global batch.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.axes import Axis, NormScale
from kd_jax.core.checks import at_least_float32
from kd_jax.core.types import Array
from kd_jax.models.layers import spectral

COLLECTION = "batch_stats"


class BatchNorm(nn.Module):
    """Normalises each channel, then applies a scale and a bias.

    Training normalises by the batch's statistics and updates the running ones; inference normalises
    by the running statistics.

    Attributes:
      train: whether to use the batch's statistics.
      momentum: decay of the running statistics per training step, in [0, 1).
      epsilon: added to the variance.
      affine: whether there are a scale and a bias.
      unbiased: whether the running variance averages the unbiased estimate, as in the paper's
        algorithm 2 and in PyTorch, rather than the batch variance.
      scale_init: initializer of the scale.
      dtype: dtype of the result; everything is computed in float32.
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    affine: bool = True
    unbiased: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        running_mean = self.variable(COLLECTION, "mean", jnp.zeros, (width,))
        running_var = self.variable(COLLECTION, "var", jnp.ones, (width,))
        x = at_least_float32(x)
        if self.train:
            axes = tuple(range(x.ndim - 1))
            count = math.prod(x.shape[:-1])
            mean, var = x.mean(axes), x.var(axes)
            estimate = var * (count / max(count - 1, 1)) if self.unbiased else var
            if not self.is_initializing():
                for running, value in ((running_mean, mean), (running_var, estimate)):
                    step = (1 - self.momentum) * (value - running.value)
                    running.value = running.value + step  # `+=` would modify a NumPy array in place
        else:
            mean, var = running_mean.value, running_var.value
        return _normalise(self, x, mean, var).astype(self.dtype)


class TruncationNorm(nn.Module):
    """Normalisation by precomputed statistics, with one set for each truncation.

    Brock et al. 2019 truncate the latents for better images, which changes the statistics of the
    activations. The sets correspond to truncations from 0 to 1, in equal steps. They are not
    trained, and the layer is the same in training and inference.

    Attributes:
      statistics: number of sets, at least 2.
      truncation: truncation of the latents, in (0, 1].
      epsilon, affine, scale_init, dtype: as in `BatchNorm`.
    """

    statistics: int
    truncation: float
    epsilon: float = 1e-5
    affine: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.statistics, x.shape[-1])
        means = self.variable(COLLECTION, "mean", jnp.zeros, shape).value
        variances = self.variable(COLLECTION, "var", jnp.ones, shape).value
        rows = truncation_rows(self.truncation, self.statistics)
        mean = sum((weight * means[row] for row, weight in rows), jnp.zeros(()))
        var = sum((weight * variances[row] for row, weight in rows), jnp.zeros(()))
        return _normalise(self, at_least_float32(x), mean, var).astype(self.dtype)


def truncation_rows(truncation: float, statistics: int) -> list[tuple[int, float]]:
    """The indices and weights of the sets of statistics for a truncation; the weights sum to 1.

    Between two sets the farther one gets the larger weight, as in Hugging Face's published
    networks, whose images are reproduced here. The position is rounded as in theirs, too.

    Args:
      truncation: in (0, 1].
      statistics: number of sets, at least 2.

    Raises:
      ValueError: the truncation is not a number in (0, 1].
    """
    if isinstance(truncation, jax.Array) or not 0 < truncation <= 1:
        raise ValueError(f"truncation={truncation} is not a Python number in (0, 1]")
    weight, row = math.modf(truncation / (1.0 / (statistics - 1)))
    if not weight:
        return [(int(row), 1.0)]
    return [(int(row), weight), (int(row) + 1, 1 - weight)]


class ConditionalNorm(nn.Module):
    """A normalisation whose scale and bias depend on a condition (de Vries et al. 2017).

    Attributes:
      normalise: `(affine=, name=) ->` the normalisation.
      linear: `(features, name=) ->` a layer that maps the condition to `[B, features]`; the scale
        is 1 plus its output.

    Without a condition (None) the normalisation has its own scale and bias.
    """

    normalise: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, condition: Array | None) -> Array:
        x = self.normalise(affine=condition is None, name="norm")(x)
        if condition is None:
            return x
        gain = 1 + self.linear(x.shape[-1], name="gain")(condition)
        bias = self.linear(x.shape[-1], name="bias")(condition)
        return x * gain[:, None, None] + bias[:, None, None]


def norm_axes(leaves: Mapping[str, Any], path: str, channels: Axis) -> dict[str, tuple[Axis, ...]]:
    """The axes of a normalisation of this module, for `kd_jax.pruning`.

    Args:
      leaves: the network's variables by path (`kd_jax.core.axes.tensors`).
      path: the layer's path.
      channels: the axis of its channels.

    Raises:
      ValueError: there is no layer at `path`.
    """
    axes: dict[str, tuple[Axis, ...]] = {}
    inner = f"{path}/norm" if f"{COLLECTION}/{path}/norm/mean" in leaves else path
    for name in ("mean", "var"):
        tensor = f"{COLLECTION}/{inner}/{name}"
        if tensor not in leaves:
            raise ValueError(f"the variables are not those of such a network: {tensor} is missing")
        axes[tensor] = (*(None for _ in leaves[tensor].shape[1:]), channels)
    if f"params/{inner}/scale" in leaves:
        axes[f"params/{inner}/scale"] = (NormScale(channels),)
        axes[f"params/{inner}/bias"] = (channels,)
    for name in ("gain", "bias"):
        if f"params/{path}/{name}/kernel" in leaves:
            axes |= spectral.layer_axes(leaves, f"{path}/{name}", None, channels)
        elif f"params/{path}/{name}/embedding" in leaves:
            axes |= spectral.embedding_axes(leaves, f"{path}/{name}", channels)
    return axes


def _normalise(module: Any, x: Array, mean: Array, var: Array) -> Array:
    """`(x - mean) / sqrt(var + epsilon)`, with the module's scale and bias if it has them."""
    shape = (1,) * (x.ndim - 1) + (-1,)
    factor = jax.lax.rsqrt(var + module.epsilon)
    if not module.affine:
        return (x - mean.reshape(shape)) * factor.reshape(shape)
    factor = factor * module.param("scale", module.scale_init, (x.shape[-1],))
    bias = module.param("bias", nn.initializers.zeros, (x.shape[-1],))
    return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
