"""Self-attention over the positions of an image (Zhang et al. 2019)."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.axes import Axis, InputAxis
from kd_jax.core.checks import at_least_float32
from kd_jax.core.types import Array
from kd_jax.models.layers.spectral import layer_axes


class SelfAttention(nn.Module):
    """`x + gamma * attention(x)`, with gamma initialized to 0; `[B, H, W, C]` with even H and W.

    Keys and values are max-pooled 2x2, and the attention logits are not scaled, as in Brock et al.
    2019. Queries and keys have C / 8 channels, values C / 2.

    Attributes:
      conv: `(features, kernel=, use_bias=, name=) ->` a convolution.
    """

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, features = x.shape
        if height % 2 or width % 2:
            raise ValueError(f"attention needs features with even sides, not {x.shape}")
        keys, values = max(features // 8, 1), max(features // 2, 1)

        def project(x: Array, features: int, name: str) -> Array:
            return self.conv(features, kernel=1, use_bias=False, name=name)(x)

        def flatten(x: Array) -> Array:
            return x.reshape(batch, -1, x.shape[-1])

        query = flatten(project(x, keys, "query"))
        key = flatten(_max_pool(project(x, keys, "key")))
        value = flatten(_max_pool(project(x, values, "value")))
        logits = at_least_float32(jnp.einsum("bqc,bkc->bqk", query, key))
        weights = jax.nn.softmax(logits).astype(value.dtype)
        mixed = jnp.einsum("bqk,bkc->bqc", weights, value)
        mixed = mixed.reshape(batch, height, width, values)
        gamma = self.param("gamma", nn.initializers.zeros, ())
        return x + gamma.astype(x.dtype) * project(mixed, features, "output")


def attention_axes(
    leaves: Mapping[str, Any], path: str, channels: Axis
) -> dict[str, tuple[Axis, ...]]:
    """The axes of a `SelfAttention`, for `kd_jax.pruning`; its own groups are named by its path.

    Args:
      leaves: the network's variables by path (`kd_jax.core.axes.tensors`).
      path: the layer's path.
      channels: the axis of its inputs and outputs.
    """
    keys, values = f"{path}/keys", f"{path}/values"
    return {
        f"params/{path}/gamma": (),
        **layer_axes(leaves, f"{path}/query", channels, InputAxis(keys)),
        **layer_axes(leaves, f"{path}/key", channels, keys),
        **layer_axes(leaves, f"{path}/value", channels, values),
        **layer_axes(leaves, f"{path}/output", values, channels),
    }


def _max_pool(x: Array) -> Array:
    batch, height, width, features = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, features).max(axis=(2, 4))
