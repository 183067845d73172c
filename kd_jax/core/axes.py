"""Descriptions of the channels along each axis of a network's tensors.

Channels that must be kept or dropped together form a group: a layer's outputs, its bias, its
normalisation and the input axes of the next layers. An architecture describes its variables as
`Axes`: for each tensor, by its path, one entry per axis, which is

* None: an axis of any length that is never pruned;
* a string: the channels of the group of that name, in order;
* an int: that many values that belong to no group;
* a tuple of entries: their concatenation (concatenated features);
* `Repeat(entry, times)`: the entry repeated `times` times (flattened features);
* `InputAxis(entry)` or `NormScale(entry)`: the entry, and the role of the tensor for its channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

from kd_jax.core.network import CONNECTORS
from kd_jax.core.types import Variables


class Repeat(NamedTuple):
    """`axis`, repeated `times` times: a flattened 4x4 feature has its channels 16 times."""

    axis: "Axis"
    times: int


class InputAxis(NamedTuple):
    """An axis along which a kernel reads the channels; channels that no kernel reads are unused.

    Attributes:
      axis: the entry.
      equalized: whether the layer divides the weights by the square root of their number (Karras et
        al. 2018); after pruning, the remaining weights are rescaled to preserve their effect.
    """

    axis: "Axis"
    equalized: bool = False


class NormScale(NamedTuple):
    """The axis of the gamma of a normalisation layer."""

    axis: "Axis"


Axis: TypeAlias = "int | str | Repeat | InputAxis | NormScale | tuple[Axis, ...] | None"
Axes: TypeAlias = Mapping[str, tuple[Axis, ...]]
"""The entries of each tensor, by its path (`"params/Conv_0/kernel"`)."""


def path_name(path: Any) -> str:
    """A pytree path as `Axes` writes it: `"params/Conv_0/kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tensors(variables: Variables) -> dict[str, Any]:
    """The leaves of `variables` by path."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {path_name(path): leaf for path, leaf in leaves}


def parts(axis: Axis) -> list[int | str | None]:
    """An entry as a flat list of group names and fixed lengths, in order."""
    if isinstance(axis, Repeat):
        return parts(axis.axis) * axis.times
    if isinstance(axis, InputAxis | NormScale):
        return parts(axis.axis)
    if isinstance(axis, tuple):
        return [part for entry in axis for part in parts(entry)]
    return [axis]


def part_length(part: int | str | None, sizes: Mapping[str, int]) -> int:
    """The number of channels of one of `parts`, given the widths of the groups."""
    return sizes[part] if isinstance(part, str) else int(part or 0)


def group_widths(variables: Variables, axes: Axes) -> dict[str, int]:
    """The number of channels of each group, after a check that `axes` fits `variables`.

    Args:
      variables: arrays or `ShapeDtypeStruct`s.
      axes: their description.

    Raises:
      ValueError: a tensor is not described or missing, has another number of axes than its
        description, or an axis whose length is not the sum of its entries; or the variables belong
        to a connected network.
    """
    leaves = tensors(variables)
    for path in leaves:
        if path.startswith(f"params/{CONNECTORS}/"):
            raise ValueError(f"{path} belongs to a connector; pass `disconnect(variables)`")
        if path not in axes:
            raise ValueError(f"{path} of shape {leaves[path].shape} is not described by the axes")
    entries = []
    for path, described in axes.items():
        if path not in leaves:
            raise ValueError(f"{path} is described by the axes, but is not in the variables")
        shape = leaves[path].shape
        if len(shape) != len(described):
            raise ValueError(f"{path} of shape {shape} is described with {len(described)} axes")
        for index, (length, axis) in enumerate(zip(shape, described, strict=True)):
            if axis is not None:
                entries.append((path, index, length, parts(axis)))

    widths: dict[str, int] = {}
    sources: dict[str, str] = {}
    # An axis with one unknown group determines its width; the other axes are checked.
    for path, index, length, flat in sorted(entries, key=lambda entry: len(entry[-1])):
        unknown = list(dict.fromkeys(p for p in flat if isinstance(p, str) and p not in widths))
        if len(unknown) > 1:
            raise ValueError(
                f"group {unknown[0]!r} is not alone on any axis, so its width is unknown"
            )
        for group in unknown:
            others = sum(widths.get(p, 0) if isinstance(p, str) else int(p or 0) for p in flat)
            widths[group], sources[group] = max(length - others, 0) // flat.count(group), path
        if None in flat:
            raise ValueError(
                f"{path}: axis {index} has None inside its entry; None must be the whole entry"
            )
        total = sum(widths[part] if isinstance(part, str) else int(part or 0) for part in flat)
        if total != length:
            groups = dict.fromkeys(part for part in flat if isinstance(part, str))
            reasons = [f"group {g!r} has {widths[g]} channels in {sources[g]}" for g in groups]
            raise ValueError(
                f"{path}: axis {index} has length {length} and should have {total}; "
                f"{', '.join(reasons) or 'it is of a fixed length'}"
            )
    return widths
