"""A network's architecture as JSON values, so that a checkpoint says what its variables belong to.

A network made by `from_linen` is described by its module's class and fields, and rebuilt from them:
no table of architectures, and nothing to register. Classes are looked up in kd_jax, and in packages
that the caller names; a description can run no other code.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.network import Network, from_linen

_OF_FLAX = ("parent", "name")
_PLAIN = (bool, int, float, str)


class Architecture(NamedTuple):
    """A network and what it takes.

    Attributes:
      network: as it was made, without connectors.
      inputs: shapes and dtypes for a batch of one.
      classes: labels, where it takes them, are below it; 0 where it takes none.
    """

    network: Network
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    classes: int


def describe(network: Network, *inputs: Any) -> dict[str, Any]:
    """JSON values from which `rebuild` makes the network again.

    Args:
      network: made by `from_linen`, connected or not.
      *inputs: a batch that it takes, arrays or `ShapeDtypeStruct`s. If there are labels among
        them, its module says in a field `classes` what they are below.

    Raises:
      ValueError: it was made in another way, or a field of its module is no plain value.
    """
    if network.module is None:
        raise ValueError("the network was not made by from_linen: its architecture is not known")
    return {
        "module": _encoded(network.module, type(network.module).__name__),
        "style": network.mapping is not None,
        "inputs": [[list(x.shape[1:]), np.dtype(x.dtype).name] for x in inputs],
        "classes": getattr(network.module, "classes", 0),
    }


def rebuild(description: Mapping[str, Any], packages: Sequence[str] = ()) -> Architecture:
    """The network that `describe` described.

    Args:
      description: its JSON values.
      packages: further packages whose classes may be used; they are imported.

    Raises:
      ValueError: it is no description, or names a class of another package.
    """
    try:
        module = _decoded(description["module"], ("kd_jax.models", *packages))
        inputs = tuple(
            jax.ShapeDtypeStruct((1, *shape), jnp.dtype(dtype))
            for shape, dtype in description["inputs"]
        )
        style, classes = bool(description["style"]), int(description["classes"])
    except (KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"not the description of a network: {error!r}") from None
    if not isinstance(module, nn.Module):
        raise ValueError(f"not the description of a network, but of a {type(module).__name__}")
    return Architecture(from_linen(module, style=style), inputs, classes)


def _encoded(value: Any, where: str) -> Any:
    if value is None or isinstance(value, _PLAIN):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.name not in _OF_FLAX]
        return _class(value, {name: getattr(value, name) for name in names}, where)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _class(value, value._asdict(), where)
    if isinstance(value, tuple | list):
        return [_encoded(part, f"{where}[{i}]") for i, part in enumerate(value)]
    if isinstance(value, Mapping):
        pairs = [[_encoded(k, where), _encoded(v, f"{where}[{k}]")] for k, v in value.items()]
        return {"mapping": pairs}
    try:
        return {"dtype": jnp.dtype(value).name}
    except TypeError:
        raise ValueError(
            f"{where} is a {type(value).__name__}, which JSON cannot hold: the architecture "
            "cannot be described"
        ) from None


def _class(value: Any, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = type(value)
    encoded = {name: _encoded(field, f"{where}.{name}") for name, field in fields.items()}
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": encoded}


def _decoded(value: Any, packages: Sequence[str]) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(part, packages) for part in value)
    if not isinstance(value, Mapping):
        return value
    if "dtype" in value:
        return jnp.dtype(value["dtype"]).type
    if "mapping" in value:
        return {_decoded(k, packages): _decoded(v, packages) for k, v in value["mapping"]}
    path, _, name = value["class"].partition(":")
    if not any(path == package or path.startswith(f"{package}.") for package in packages):
        raise ValueError(f"{value['class']} is in none of the packages {', '.join(packages)}")
    kind = getattr(importlib.import_module(path), name)
    # A class of that module itself, not what it imports.
    if not isinstance(kind, type) or kind.__module__ != path:
        raise ValueError(f"{value['class']} is not a class of {path}")
    if not (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
        raise ValueError(f"{value['class']} is neither a module nor a record")
    return kind(**{field: _decoded(v, packages) for field, v in value["fields"].items()})
