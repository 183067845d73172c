"""Short `repr`s of records: sizes in place of arrays, and names in place of functions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

LONG = 200
"""The length from which a dict is shown without its values."""


def short(value: Any) -> str:
    """A value in a line: `12 arrays of 6,401 numbers` for arrays, the name of a function."""
    if isinstance(value, nn.Module):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _call(value, {k: v for k, v in fields.items() if k not in ("parent", "name")})
    if isinstance(value, type):
        return value.__name__
    own = getattr(type(value).__repr__, "__module__", None) or ""
    if isinstance(value, str) or own.startswith("kd_jax."):
        return repr(value)
    leaves = jax.tree.leaves(value)
    if leaves and all(hasattr(leaf, "shape") and not isinstance(leaf, type) for leaf in leaves):
        if len(leaves) < 5 and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            return f"({', '.join(f'{leaf.dtype}{list(leaf.shape)}' for leaf in leaves)})"
        count = f"{len(leaves)} array{'s' * (len(leaves) > 1)}"
        return f"<{count} of {sum(leaf.size for leaf in leaves):,} numbers>"
    if hasattr(value, "_asdict"):
        return record_repr(value)
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}: {short(inner)}" for key, inner in value.items())
        return f"{{{text}}}" if len(text) < LONG else f"<dict of {', '.join(map(str, value))}>"
    if type(value) in (tuple, list):
        return f"({', '.join(map(short, value))}{',' * (len(value) == 1)})"
    if callable(value):
        function = getattr(value, "func", value)  # of a partial
        name = getattr(function, "__qualname__", type(value).__qualname__)
        return str(name).replace("<locals>.", "")
    return " ".join(repr(value).split())


def record_repr(record: Any) -> str:
    """The `__repr__` of a NamedTuple or dataclass: its fields by `short`, without unset ones."""
    if dataclasses.is_dataclass(record):
        fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        unset: Mapping[str, Any] = {}
    else:
        fields, unset = record._asdict(), record._field_defaults
    return _call(record, {k: v for k, v in fields.items() if v is not unset.get(k)})


def _call(value: Any, fields: Mapping[str, Any]) -> str:
    return f"{type(value).__name__}({', '.join(f'{k}={short(v)}' for k, v in fields.items())})"
