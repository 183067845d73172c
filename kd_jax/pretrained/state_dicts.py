"""Finds the state dicts of networks in the contents of a file, whatever wraps them.

Programs store a network below names of their own (`{"g_ema": {...}}`), beside counters, or with a
prefix before each tensor: `module.` of data-parallel training and of `AveragedModel`, `_orig_mod.`
of `torch.compile`, `ema_model.` of averages, `netG.` of Lightning.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

TRANSPARENT = ("module", "_orig_mod", "models", "model_state_dict", "state_dict", "state_dicts")
"""Wrappers whose names do not become a part of the name of a network."""

MAX_DEPTH = 6
"""The number of wrappers around a network; data below more is not searched."""

_AVERAGED = {"average", "averaged", "avg", "ema", "gs", "running", "shadow", "smooth", "swa"}
_OPTIMIZER = {"opt", "optim", "optimizer", "sched", "scheduler"}

Tensors = Mapping[str, np.ndarray]


class Entry(NamedTuple):
    """A state dict in a file.

    Attributes:
      tensors: its arrays by their names, without prefixes; None if its name is that of an averaged
        network, but its contents are not those of a known one.
      average: the average of the styles that stands beside it (rosinality's `latent_avg`), or None.
    """

    tensors: Tensors | None
    average: Any = None


def is_averaged(name: str) -> bool:
    """Whether this is a name of averaged weights, such as `G_ema`, `Gs`, `g_running`, `shadow`."""
    words = set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    return bool(words & _AVERAGED) and not words & _OPTIMIZER


def state_dicts(tree: Mapping[Any, Any], known: Callable[[Tensors], bool]) -> dict[str, Entry]:
    """The state dicts of known networks in a tree of plain data, by name.

    A name has the names of the wrappers, joined by dots, without those in `TRANSPARENT`; it is
    empty for a network that has no other wrapper.

    Args:
      tree: the contents of a file.
      known: whether tensors of these names are those of a known network.
    """
    entries: dict[str, Entry] = {}
    for path, entry in _search(tree, known, 0):
        short = ".".join(name for name in path if name not in TRANSPARENT)
        entries[short if short not in entries else ".".join(path)] = entry
    if not any(entry.tensors is not None for entry in entries.values()):
        return {}
    return entries


def _search(
    tree: Mapping[Any, Any], known: Callable[[Tensors], bool], depth: int
) -> Iterator[tuple[tuple[str, ...], Entry]]:
    """The entries of a tree with the names of their wrappers."""
    arrays = {str(name): x for name, x in tree.items() if isinstance(x, np.ndarray)}
    if arrays and known(arrays):
        # Counters such as `n_averaged` and `step` stand beside the tensors, whose names have dots.
        tensors = {name: x for name, x in arrays.items() if "." in name or x.size > 1}
        yield (), Entry(tensors)
        return
    if depth == MAX_DEPTH:
        return
    average = tree.get("latent_avg")
    for name, inner in _children(tree, arrays):
        entries = list(_search(inner, known, depth + 1)) if isinstance(inner, Mapping) else []
        unknown = all(entry.tensors is None for _, entry in entries)
        if unknown and is_averaged(name) and _has_arrays(inner, MAX_DEPTH):
            entries = [((), Entry(None))]
        for path, entry in entries:
            beside = average if entry.average is None else entry.average
            yield (name, *path), entry._replace(average=beside)


def _children(tree: Mapping[Any, Any], arrays: Tensors) -> Iterator[tuple[str, Any]]:
    """The containers in a tree, and its arrays grouped by the first part of their names."""
    for name, inner in tree.items():
        if isinstance(inner, Mapping | list | tuple):
            yield str(name), inner
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, x in arrays.items():
        first, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(first, {})[rest] = x
    yield from groups.items()


def _has_arrays(tree: Any, depth: int) -> bool:
    """Whether there is an array of more than one number in a tree."""
    if isinstance(tree, np.ndarray):
        return tree.size > 1
    inner = tree.values() if isinstance(tree, Mapping) else tree
    return (
        depth > 0
        and isinstance(tree, Mapping | list | tuple)
        and any(_has_arrays(x, depth - 1) for x in inner)
    )
