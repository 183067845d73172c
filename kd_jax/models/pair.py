"""Two networks as one, for tasks that need two at once: translation both ways.

What they take and make is stacked on the axis after the batch, `[B, 2, ...]`: of each example the
first network sees the first entry, the second one the second. To the step that is one network.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.channels import Axes, Axis, Reads, Repeat, Scales, group_widths
from kd_jax.network import Network, from_linen
from kd_jax.types import Array, Variables


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


def pair_axes(
    first: Callable[[Variables], Axes], second: Callable[[Variables], Axes]
) -> Callable[[Variables], Axes]:
    """Of two networks' descriptions that of both side by side, for `kd_jax.students`.

        describe = pair_axes(resnet_generator_axes, resnet_generator_axes)

    The groups are the networks' own, as `first/NAME` and `second/NAME`, like the taps: each may
    keep other channels, and another number of them.

    Args:
      first: `variables -> axes` of the first network.
      second: of the second one.

    Returns:
      `variables -> axes`, of any `side_by_side` of such networks, arrays or `ShapeDtypeStruct`s. It
      raises a ValueError where they are not, or are a connected network's.
    """

    def describe(variables: Variables) -> Axes:
        axes: dict[str, tuple[Axis, ...]] = {}
        for name, own in (("first", first), ("second", second)):
            part = {kind: tree[name] for kind, tree in variables.items() if name in tree}
            for path, entries in own(part).items():
                kind, _, inside = path.partition("/")
                axes[f"{kind}/{name}/{inside}"] = tuple(_renamed(axis, name) for axis in entries)
        group_widths(variables, axes)
        return axes

    return describe


def _renamed(axis: Axis, name: str) -> Axis:
    """An entry with `name` before its groups."""
    match axis:
        case str():
            return f"{name}/{axis}"
        case Repeat() | Reads() | Scales():
            return axis._replace(axis=_renamed(axis.axis, name))
        case tuple():
            return tuple(_renamed(entry, name) for entry in axis)
    return axis


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
