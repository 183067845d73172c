"""Types shared by every module: arrays, variables, batches and taps."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
Variables: TypeAlias = Mapping[str, Any]
"""A network's arrays by collection: `params`, and others that it needs (`batch_stats`, ...)."""

Batch: TypeAlias = Mapping[str, Any]
"""A global batch: arrays by name (`image`, `label`, ...), all with the same leading axis."""


class MissingTapError(KeyError):
    """A requested tap does not exist; the message lists the taps of the network."""

    __str__ = Exception.__str__  # KeyError would quote the message like a key.


class Taps(dict[str, Any]):
    """Named intermediate features of a network, as a pytree.

    A dict whose lookup of an unknown name raises a `MissingTapError` that lists the known names.
    """

    def __missing__(self, name: str) -> Any:
        known = ", ".join(repr(k) for k in self) or "none at all"
        raise MissingTapError(f"no tap {name!r}; this network has {known}")


def _flatten(taps: Taps) -> tuple[Iterable[tuple[Any, Any]], tuple[str, ...]]:
    names = tuple(sorted(taps))
    return [(jax.tree_util.DictKey(name), taps[name]) for name in names], names


jax.tree_util.register_pytree_with_keys(
    Taps, _flatten, lambda names, values: Taps(zip(names, values, strict=True))
)
