"""Two networks as one, for tasks that need two at once: translation both ways.

What they take and make is stacked on the axis after the batch, `[B, 2, ...]`: of each example the
first network sees the first entry, the second one the second. To the step that is one network.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.network import Network, from_linen
from kd_jax.types import Array


def side_by_side(first: Network, second: Network) -> Network:
    """`[B, 2, ...] -> [B, 2, ...]`, or scores `[B, 2]` or `[B, 2, h, w]` of discriminators.

    Every input is split, conditions too. Taps are the networks' own, as `first/NAME` and
    `second/NAME`; so are the variables, in each collection.

    Args:
      first: made by `from_linen`.
      second: the same, of equal outputs.

    Raises:
      ValueError: a network was made in another way; by the network, an input has no axis of two, or
        the outputs have different shapes.
    """
    modules = []
    for name, network in (("first", first), ("second", second)):
        if network.module is None or network.mapping is not None:
            raise ValueError(f"the {name} network is not made of one Linen module of one part")
        # A clone: Linen would give one module that is there twice one set of parameters.
        modules.append(network.module.clone())
    return from_linen(SideBySide(*modules))


class SideBySide(nn.Module):
    """See `side_by_side`."""

    first: nn.Module
    second: nn.Module

    def __call__(self, *inputs: Array, train: bool, **options: Any) -> tuple[Array, dict[str, Any]]:
        for x in inputs:
            if x.ndim < 2 or x.shape[1] != 2:
                raise ValueError(f"inputs [B, 2, ...] are needed, not of shape {x.shape}")
        outputs: list[Array] = []
        taps: dict[str, Any] = {}
        for index, name in enumerate(("first", "second")):
            network: Any = getattr(self, name)
            y, found = network(*(x[:, index] for x in inputs), train=train, **options)
            outputs.append(y)
            taps |= {f"{name}/{tap}": feature for tap, feature in found.items()}
        if outputs[0].shape != outputs[1].shape:
            raise ValueError(f"the outputs have shapes {outputs[0].shape} and {outputs[1].shape}")
        return jnp.stack(outputs, axis=1), taps
