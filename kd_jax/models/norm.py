"""Batch normalisation (Ioffe & Szegedy 2015) as image generators use it.

Statistics live in the collection `batch_stats`, as `mean` and `var`. Under one jit over a mesh they
are those of the global batch.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.channels import Axis, Scales
from kd_jax.models import spectral
from kd_jax.types import Array

COLLECTION = "batch_stats"


class BatchNorm(nn.Module):
    """Each channel over its standard deviation in the batch, then a scale and a bias.

    In training with the batch's statistics, which the running ones approach; otherwise with these.

    Attributes:
      train: whether the statistics are the batch's.
      momentum: what the running statistics keep in a training step, in [0, 1).
      epsilon: added to the variance.
      affine: whether there are a scale and a bias.
      unbiased: whether the running variance follows the unbiased estimate, as in the paper's
        algorithm 2 and in PyTorch; if not, the variance of the batch itself.
      scale_init: of the scale.
      dtype: of the result; everything is computed in float32.
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
        x = x.astype(jnp.float32)
        if self.train:
            axes = tuple(range(x.ndim - 1))
            count = math.prod(x.shape[:-1])
            mean, var = x.mean(axes), x.var(axes)
            estimate = var * (count / max(count - 1, 1)) if self.unbiased else var
            if not self.is_initializing():
                for running, value in ((running_mean, mean), (running_var, estimate)):
                    step = (1 - self.momentum) * (value - running.value)
                    running.value = running.value + step  # `+=` would change a NumPy array
        else:
            mean, var = running_mean.value, running_var.value
        return _scaled(self, x, mean, var).astype(self.dtype)


class TruncationNorm(nn.Module):
    """Normalisation with statistics that were collected beforehand, a set for each truncation.

    Brock et al. 2019 truncate the latents for better images, and the activations' statistics change
    with it. Of `statistics` sets, the first is for truncation 0 and the last for 1, in equal steps.
    They are not trained, and `train` does not change what is computed.

    Attributes:
      statistics: how many sets, at least 2.
      truncation: of the latents, in (0, 1].
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
        mean = sum((share * means[row] for row, share in rows), jnp.zeros(()))
        var = sum((share * variances[row] for row, share in rows), jnp.zeros(()))
        return _scaled(self, x.astype(jnp.float32), mean, var).astype(self.dtype)


def truncation_rows(truncation: float, statistics: int) -> list[tuple[int, float]]:
    """Which sets of statistics belong to a truncation, and their shares, which sum up to 1.

    Between two sets the one further away gets the larger share: Hugging Face's published networks
    compute so, and their images are reproduced here. The position is rounded as theirs is, too.

    Args:
      truncation: in (0, 1].
      statistics: how many sets there are, at least 2.

    Raises:
      ValueError: the truncation is not a number in (0, 1].
    """
    if isinstance(truncation, jax.Array) or not 0 < truncation <= 1:
        raise ValueError(f"truncation={truncation} is not a Python number in (0, 1]")
    share, row = math.modf(truncation / (1.0 / (statistics - 1)))
    if not share:
        return [(int(row), 1.0)]
    return [(int(row), share), (int(row) + 1, 1 - share)]


class ConditionalNorm(nn.Module):
    """A normalisation whose scale and bias depend on a condition (de Vries et al. 2017).

    Attributes:
      normalise: makes the normalisation of `affine=` and `name=`.
      linear: makes what maps the condition to `features`, of `features` and `name=`; the scale is 1
        plus its value.

    Without a condition (None) the normalisation has a scale and a bias of its own.
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


def norm_axes(found: Mapping[str, Any], path: str, channels: Axis) -> dict[str, tuple[Axis, ...]]:
    """The axes of a normalisation of this file, for `kd_jax.students`.

    Args:
      found: the network's variables by path (`kd_jax.channels.tensors`).
      path: the layer's.
      channels: what its channels are.

    Raises:
      ValueError: there is no such layer.
    """
    axes: dict[str, tuple[Axis, ...]] = {}
    inner = f"{path}/norm" if f"{COLLECTION}/{path}/norm/mean" in found else path
    for name in ("mean", "var"):
        tensor = f"{COLLECTION}/{inner}/{name}"
        if tensor not in found:
            raise ValueError(f"the variables are not those of such a network: {tensor} is missing")
        axes[tensor] = (*(None for _ in found[tensor].shape[1:]), channels)
    if f"params/{inner}/scale" in found:
        axes[f"params/{inner}/scale"] = (Scales(channels),)
        axes[f"params/{inner}/bias"] = (channels,)
    for name in ("gain", "bias"):
        if f"params/{path}/{name}/kernel" in found:
            axes |= spectral.layer_axes(found, f"{path}/{name}", None, channels)
        elif f"params/{path}/{name}/embedding" in found:
            axes |= spectral.embedding_axes(found, f"{path}/{name}", channels)
    return axes


def _scaled(module: Any, x: Array, mean: Array, var: Array) -> Array:
    """`(x - mean) / sqrt(var + epsilon)`, with the module's scale and bias if it has them."""
    shape = (1,) * (x.ndim - 1) + (-1,)
    factor = jax.lax.rsqrt(var + module.epsilon)
    if not module.affine:
        return (x - mean.reshape(shape)) * factor.reshape(shape)
    factor = factor * module.param("scale", module.scale_init, (x.shape[-1],))
    bias = module.param("bias", nn.initializers.zeros, (x.shape[-1],))
    return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
