"""Which axis of which tensor holds which channels: the vocabulary in which a network is described.

Channels that must be kept or dropped together form a group: a layer's outputs, and with them its
bias, its normalisation and what the next layer reads. An architecture describes its variables as
`Axes`: for each tensor, by its path, one entry per axis, which is

* None: kept whole, whatever its length;
* a string: the channels of the group of that name, in order;
* an int: so many values that belong to no group;
* a tuple of entries: these one after another (concatenated features);
* `Repeat(entry, times)`: the entry `times` times over (flattened features);
* `Reads(entry)` or `Scales(entry)`: the same, and what the tensor does with the channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax

from kd_jax.network import CONNECTORS
from kd_jax.types import Variables


class Repeat(NamedTuple):
    """`axis`, `times` times over: a 4x4 feature, flattened, has its channels 16 times."""

    axis: "Axis"
    times: int


class Reads(NamedTuple):
    """An axis along which a kernel reads the channels: without these weights nothing uses them.

    Attributes:
      axis: the entry.
      equalized: whether the weights are used divided by the root of how many there are (Karras et
        al. 2018); where some are dropped the others are made smaller, so that they count the same.
    """

    axis: "Axis"
    equalized: bool = False


class Scales(NamedTuple):
    """The axis of a normalisation layer's gamma."""

    axis: "Axis"


Axis: TypeAlias = "int | str | Repeat | Reads | Scales | tuple[Axis, ...] | None"
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
    """An entry as a flat list: the group names and fixed lengths that follow one another."""
    if isinstance(axis, Repeat):
        return parts(axis.axis) * axis.times
    if isinstance(axis, Reads | Scales):
        return parts(axis.axis)
    if isinstance(axis, tuple):
        return [part for entry in axis for part in parts(entry)]
    return [axis]


def group_widths(variables: Variables, axes: Axes) -> dict[str, int]:
    """The number of channels of each group, once `axes` is known to fit `variables`.

    Args:
      variables: arrays or `ShapeDtypeStruct`s.
      axes: their description.

    Raises:
      ValueError: a tensor is not described or missing, has another number of axes than its
        description or an axis of a length that its groups do not add up to; or the variables are
        those of a connected network.
    """
    found = tensors(variables)
    for path in found:
        if path.startswith(f"params/{CONNECTORS}/"):
            raise ValueError(f"{path} belongs to a connector; give `disconnect(variables)`")
        if path not in axes:
            raise ValueError(f"{path} of shape {found[path].shape} is not described by the axes")
    entries = []
    for path, described in axes.items():
        if path not in found:
            raise ValueError(f"{path} is described by the axes, but is not in the variables")
        shape = found[path].shape
        if len(shape) != len(described):
            raise ValueError(f"{path} of shape {shape} is described with {len(described)} axes")
        for index, (length, axis) in enumerate(zip(shape, described, strict=True)):
            if axis is not None:
                entries.append((path, index, length, parts(axis)))

    known: dict[str, int] = {}
    seen: dict[str, str] = {}
    # Where one group is unknown its width can be read; elsewhere they must add up.
    for path, index, length, flat in sorted(entries, key=lambda entry: len(entry[-1])):
        unknown = list(dict.fromkeys(p for p in flat if isinstance(p, str) and p not in known))
        if len(unknown) > 1:
            raise ValueError(f"group {unknown[0]!r} stands alone on no axis of any tensor")
        for group in unknown:
            others = sum(known.get(p, 0) if isinstance(p, str) else int(p or 0) for p in flat)
            known[group], seen[group] = max(length - others, 0) // flat.count(group), path
        if None in flat:
            raise ValueError(f"{path}: None stands inside the entry of axis {index}, not alone")
        total = sum(known[part] if isinstance(part, str) else int(part or 0) for part in flat)
        if total != length:
            groups = dict.fromkeys(part for part in flat if isinstance(part, str))
            because = [f"group {g!r} has {known[g]} channels in {seen[g]}" for g in groups]
            raise ValueError(
                f"{path}: axis {index} has length {length} and should have {total}; "
                f"{', '.join(because) or 'it is of a fixed length'}"
            )
    return known
