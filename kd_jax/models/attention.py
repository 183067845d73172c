"""Self-attention over the positions of an image (Zhang et al. 2019)."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.channels import Axis, Reads
from kd_jax.models.spectral import layer_axes
from kd_jax.types import Array


class SelfAttention(nn.Module):
    """`x + gamma * attention(x)`, where gamma begins at 0; `[B, H, W, C]` with even H and W.

    Keys and values are pooled 2x2 and their products are not scaled, as Brock et al. 2019 do it.
    Queries and keys have C / 8 channels, values C / 2.

    Attributes:
      conv: makes a convolution of `features`, `kernel=`, `use_bias=` and `name=`.
    """

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, features = x.shape
        if features < 8 or height % 2 or width % 2:
            raise ValueError(
                f"attention needs 8 channels or more and even sides, not features {x.shape}"
            )

        def project(x: Array, features: int, name: str) -> Array:
            return self.conv(features, kernel=1, use_bias=False, name=name)(x)

        def flat(x: Array) -> Array:
            return x.reshape(batch, -1, x.shape[-1])

        query = flat(project(x, features // 8, "query"))
        key = flat(_max_pool(project(x, features // 8, "key")))
        value = flat(_max_pool(project(x, features // 2, "value")))
        products = jnp.einsum("bqc,bkc->bqk", query, key).astype(jnp.float32)
        weights = jax.nn.softmax(products).astype(value.dtype)
        mixed = jnp.einsum("bqk,bkc->bqc", weights, value)
        mixed = mixed.reshape(batch, height, width, features // 2)
        gamma = self.param("gamma", nn.initializers.zeros, ())
        return x + gamma.astype(x.dtype) * project(mixed, features, "output")


def attention_axes(
    found: Mapping[str, Any], path: str, channels: Axis
) -> dict[str, tuple[Axis, ...]]:
    """The axes of a `SelfAttention`, for `kd_jax.students`; its own groups are called by its path.

    Args:
      found: the network's variables by path (`kd_jax.channels.tensors`).
      path: the layer's.
      channels: what its inputs and outputs are.
    """
    keys, values = f"{path}/keys", f"{path}/values"
    return {
        f"params/{path}/gamma": (),
        **layer_axes(found, f"{path}/query", channels, Reads(keys)),
        **layer_axes(found, f"{path}/key", channels, keys),
        **layer_axes(found, f"{path}/value", channels, values),
        **layer_axes(found, f"{path}/output", values, channels),
    }


def _max_pool(x: Array) -> Array:
    batch, height, width, features = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, features).max(axis=(2, 4))
