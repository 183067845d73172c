"""Two networks as one, for tasks that train two at once, such as translation in both directions.

Inputs and outputs are stacked along the axis after the batch, `[B, 2, ...]`: the first network
reads entry 0 of each example, the second network entry 1. The train step treats both as one.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.architecture import Architecture
from kd_jax.core.axes import Axes, Axis, InputAxis, NormScale, Repeat, group_widths
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables

PARTS = ("first", "second")
"""The names of both networks, in their order."""


def parallel(first: Network, second: Network) -> Network:
    """`[B, 2, ...] -> [B, 2, ...]`, or scores `[B, 2]` or `[B, 2, h, w]` of discriminators.

    Every input is split, including conditions. Taps are those of the networks, as `first/NAME` and
    `second/NAME`; so are the variables of each collection.

    Args:
      first: a network created by `from_linen`.
      second: another one, with outputs of the same shape.

    Raises:
      ValueError: a network was not created by `from_linen`. `init` and `apply` raise it if axis 1
        of an input does not have length 2, or the outputs have different shapes.
    """
    modules = []
    for name, network in zip(PARTS, (first, second), strict=True):
        if network.module is None or network.mapping is not None:
            raise ValueError(f"the {name} network is not a single Linen module (`from_linen`)")
        # Cloned, since Linen shares the parameters of a module that occurs twice.
        modules.append(network.module.clone())
    return from_linen(Parallel(*modules))


def select(
    architecture: Architecture, variables: Variables, part: str
) -> tuple[Architecture, Variables]:
    """A part of two networks in parallel: its architecture and its variables.

    Args:
      architecture: of a `parallel`.
      variables: its variables.
      part: one of `PARTS`.
    """
    module = getattr(architecture.network.module, part)
    inputs = tuple(
        jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype) for x in architecture.inputs
    )
    own = {kind: tree[part] for kind, tree in variables.items() if part in tree}
    return Architecture(from_linen(module), inputs, getattr(module, "classes", 0)), own


def pair_axes(
    first: Callable[[Variables], Axes], second: Callable[[Variables], Axes]
) -> Callable[[Variables], Axes]:
    """Combines the axis descriptions of two networks for `parallel`, for `kd_jax.pruning`.

        describe = pair_axes(resnet_generator_axes, resnet_generator_axes)

    The groups are those of the networks, as `first/NAME` and `second/NAME`, like the taps: the
    networks may keep different channels, and different numbers of channels.

    Args:
      first: `variables -> axes` of the first network.
      second: `variables -> axes` of the second network.

    Returns:
      `variables -> axes` for a `parallel` of such networks, of arrays or `ShapeDtypeStruct`s. It
      raises a ValueError if the variables are not those of one, or include connectors.
    """

    def describe(variables: Variables) -> Axes:
        axes: dict[str, tuple[Axis, ...]] = {}
        for name, own in zip(PARTS, (first, second), strict=True):
            part = {kind: tree[name] for kind, tree in variables.items() if name in tree}
            for path, entries in own(part).items():
                kind, _, inside = path.partition("/")
                axes[f"{kind}/{name}/{inside}"] = tuple(
                    _with_prefix(axis, name) for axis in entries
                )
        group_widths(variables, axes)
        return axes

    return describe


def _with_prefix(axis: Axis, name: str) -> Axis:
    """An entry whose groups are prefixed with `name`."""
    match axis:
        case str():
            return f"{name}/{axis}"
        case Repeat() | InputAxis() | NormScale():
            return axis._replace(axis=_with_prefix(axis.axis, name))
        case tuple():
            return tuple(_with_prefix(entry, name) for entry in axis)
    return axis


class Parallel(nn.Module):
    """See `parallel`."""

    first: nn.Module
    second: nn.Module

    def __call__(self, *inputs: Array, train: bool, **options: Any) -> tuple[Array, dict[str, Any]]:
        for x in inputs:
            if x.ndim < 2 or x.shape[1] != 2:
                raise ValueError(f"inputs [B, 2, ...] are needed, not shape {x.shape}")
        outputs: list[Array] = []
        taps: dict[str, Any] = {}
        for index, name in enumerate(PARTS):
            network: Any = getattr(self, name)
            y, network_taps = network(*(x[:, index] for x in inputs), train=train, **options)
            outputs.append(y)
            taps |= {f"{name}/{tap}": feature for tap, feature in network_taps.items()}
        if outputs[0].shape != outputs[1].shape:
            raise ValueError(f"the outputs have shapes {outputs[0].shape} and {outputs[1].shape}")
        return jnp.stack(outputs, axis=1), taps
