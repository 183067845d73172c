"""A network's architecture as JSON values, so that a checkpoint describes its network.

A network made by `from_linen` is described by its module's class and fields, one made by
`from_factory` by the function and its arguments, and rebuilt from them, without a registry of
architectures. Both are looked up only in `kd_jax.models` and in packages that the caller names; a
description cannot run any other code.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.network import Network, from_factory, from_linen, shape_differences
from kd_jax.core.types import Variables

_FLAX_FIELDS = ("parent", "name")

# Former names of modules, classes and fields: descriptions in existing checkpoints remain valid.
_MODULES = {
    f"kd_jax.models.{name}": f"kd_jax.models.layers.{name}"
    for name in ("attention", "conditioning", "norm", "spectral", "style")
}
_CLASSES = {"kd_jax.models.pair:SideBySide": "kd_jax.models.pair:Parallel"}
_FIELDS = {
    "kd_jax.models.stylegan2:Generator": {"taps": "resample_filter"},
    "kd_jax.models.stylegan2:Discriminator": {"taps": "resample_filter"},
}
_PLAIN = (bool, int, float, str)


class Architecture(NamedTuple):
    """A network and the specification of its inputs.

    Attributes:
      network: the network, without connectors.
      inputs: shapes and dtypes for a batch of one.
      classes: the number of classes of its labels; 0 if it takes no labels.
    """

    network: Network
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    classes: int


def describe(network: Network, *inputs: Any) -> dict[str, Any]:
    """Describes a network as JSON values, from which `rebuild` constructs it.

    Args:
      network: made by `from_linen` or `from_factory`, with or without connectors.
      *inputs: a batch of inputs, arrays or `ShapeDtypeStruct`s. If they include labels, the
        module's field `classes`, or the factory's argument, is the number of classes.

    Raises:
      ValueError: it was made otherwise, a field of its module has no JSON form, or an input is not
        an array.
    """
    for value in inputs:
        if not hasattr(value, "shape"):
            raise ValueError(f"an input is a {type(value).__name__}; pass arrays or their shapes")
    shapes = [[list(x.shape[1:]), np.dtype(x.dtype).name] for x in inputs]
    if network.factory is not None:
        path, arguments = network.factory
        return {
            "factory": path,
            "arguments": {name: _encode(value, name) for name, value in arguments.items()},
            "inputs": shapes,
            "classes": arguments.get("classes", 0),
        }
    if network.module is None:
        raise ValueError(
            "the architecture of the network is unknown: it was made neither by from_linen nor by "
            "from_factory(function, **arguments)"
        )
    return {
        "module": _encode(network.module, type(network.module).__name__),
        "style": network.mapping is not None,
        "inputs": shapes,
        "classes": getattr(network.module, "classes", 0),
    }


def rebuild(description: Mapping[str, Any], packages: Sequence[str] = ()) -> Architecture:
    """Constructs a network from its description by `describe`.

    Args:
      description: JSON values.
      packages: further packages whose classes and factories may be used; they are imported.

    Raises:
      ValueError: the description is invalid, or names a class or a factory of another package.
    """
    allowed = ("kd_jax.models", *packages)
    try:
        inputs = tuple(
            jax.ShapeDtypeStruct((1, *shape), jnp.dtype(dtype))
            for shape, dtype in description["inputs"]
        )
        classes = int(description["classes"])
        if "factory" in description:
            factory = _lookup(description["factory"], allowed)
            arguments = {name: _decode(v, allowed) for name, v in description["arguments"].items()}
            if not inspect.isfunction(factory):
                raise ValueError(f"{description['factory']} is not a function")
            return Architecture(from_factory(factory, **arguments), inputs, classes)
        module = _decode(description["module"], allowed)
        style = bool(description["style"])
    except (
        LookupError,
        TypeError,
        AttributeError,
        ImportError,
        ArithmeticError,
        RecursionError,
    ) as e:
        raise ValueError(f"not the description of a network: {e!r}") from None
    if not isinstance(module, nn.Module):
        raise ValueError(f"not the description of a network, but of a {type(module).__name__}")
    return Architecture(from_linen(module, style=style), inputs, classes)


def check_variables(architecture: Architecture, variables: Variables) -> None:
    """Checks that variables have the shapes of the network's; nothing is computed.

    Raises:
      ValueError: a variable is missing, unexpected or of another shape (it is named), or the
        network cannot be traced with its inputs.
    """
    try:
        differences = list(shape_differences(architecture.network, variables, *architecture.inputs))
    # The values of a description reach Flax, JAX and the code of models.
    except Exception as error:
        raise ValueError(f"not the description of a network: {error!r}") from None
    for path, ours, described in differences:
        raise ValueError(
            f"the variable {path} has shape {ours}, in the described network {described}"
        )


def _lookup(path: str, packages: Sequence[str]) -> Any:
    """The definition of `package.module:name`, if the module is in one of the packages."""
    module, _, name = path.partition(":")
    if not any(module == package or module.startswith(f"{package}.") for package in packages):
        raise ValueError(f"{path} is not in the packages {', '.join(packages)}")
    value = getattr(importlib.import_module(module), name)
    # Only what the module defines, not what it imports.
    if getattr(value, "__module__", None) != module:
        raise ValueError(f"{path} is not a class of {module}")
    return value


def _encode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, _PLAIN):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.name not in _FLAX_FIELDS]
        return _encode_class(value, {name: getattr(value, name) for name in names}, where)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _encode_class(value, value._asdict(), where)
    if isinstance(value, tuple | list):
        return [_encode(part, f"{where}[{i}]") for i, part in enumerate(value)]
    if isinstance(value, Mapping):
        pairs = [[_encode(k, where), _encode(v, f"{where}[{k}]")] for k, v in value.items()]
        return {"mapping": pairs}
    try:
        return {"dtype": jnp.dtype(value).name}
    except TypeError:
        raise ValueError(
            f"{where} is a {type(value).__name__}, which has no JSON form: the architecture cannot "
            "be described"
        ) from None


def _encode_class(value: Any, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = type(value)
    encoded = {name: _encode(field, f"{where}.{name}") for name, field in fields.items()}
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": encoded}


def _decode(value: Any, packages: Sequence[str]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(part, packages) for part in value)
    if not isinstance(value, Mapping):
        return value
    if "dtype" in value:
        return jnp.dtype(value["dtype"]).type
    if "mapping" in value:
        return {_decode(k, packages): _decode(v, packages) for k, v in value["mapping"]}
    kind_name: str = value["class"]
    kind_name = _CLASSES.get(kind_name, kind_name)
    path, _, name = kind_name.partition(":")
    kind = _lookup(f"{_MODULES.get(path, path)}:{name}", packages)
    renamed = _FIELDS.get(kind_name, {})
    if not isinstance(kind, type):
        raise ValueError(f"{value['class']} is not a class of {path}")
    if not (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
        raise ValueError(f"{value['class']} is neither a dataclass nor a NamedTuple")
    return kind(**{renamed.get(f, f): _decode(v, packages) for f, v in value["fields"].items()})
