"""What stands in for the objects of published weight files, and what is read off it.

The tables name, by module and name, everything that a file may refer to; the functions here make of
it NumPy arrays, numbers, dicts and the two stand-ins for networks: `Persistent` (NVIDIA's PyTorch
snapshots) and `TFNetwork` (the TensorFlow ones). None of the libraries named is imported, and the
source text that NVIDIA's snapshots carry is dropped unread.

A tensor's size, strides and offset are checked against its storage before a view is made. A dtype
is a plain number's, or it is refused. Arrays are views of the file, and read-only.
"""

import math
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from kd_jax.pretrained.unpickle import (
    ITEM,
    MAX_ARGUMENTS,
    Attributes,
    Budget,
    Constructor,
    Constructors,
    Hollow,
    StandIn,
    UnsafeFileError,
    checked_key,
    shown,
)

MAX_RANK = 32
"""Axes of one array."""
MAX_EMPTY = 1 << 40
"""The product of an empty array's other sizes."""

DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(getattr(jnp, name))
    for name in (
        *("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    )
}
"""The dtypes of tensors by PyTorch's names (and NumPy's `bool_`)."""


# --------------------------------------------------------------------------- networks


@dataclass(frozen=True, eq=False)
class Persistent(StandIn):
    """A module of an NVIDIA snapshot: the attributes it had, without its class.

    Attributes:
      class_name: its class's name, "Generator" of StyleGAN2 and of StyleGAN3.
    """

    class_name: str


class TFNetwork(StandIn):
    """A network of a TensorFlow snapshot: the attributes it had, without its class."""


def state_dict(module: Persistent) -> dict[str, np.ndarray]:
    """A module's parameters and buffers by their dotted names, as PyTorch's `state_dict` has them.

    Its own come first, parameters before buffers, then its submodules'. What is None, and buffers
    that are not persistent, are left out.

    Raises:
      ValueError: something among them is not an array, or a submodule is not a `Persistent`.
    """
    found = {}
    transient = module.state.get("_non_persistent_buffers_set")
    transient = transient if isinstance(transient, set) else ()
    for kind in ("_parameters", "_buffers"):
        for name, value in _named(module, kind):
            if value is None or (kind == "_buffers" and name in transient):
                continue
            if not isinstance(value, np.ndarray):
                raise ValueError(
                    f"{shown(name)} of {module} is of type {type(value).__name__}, no tensor"
                )
            found[name] = value
    for name, child in _modules(module):
        found |= {f"{name}.{below}": value for below, value in state_dict(child).items()}
    return found


def submodule(module: Persistent, path: str) -> Persistent:
    """The module at a dotted path, "synthesis.b4.conv1"; itself at "".

    Raises:
      ValueError: there is none.
    """
    for name in path.split(".") if path else ():
        children = dict(_modules(module))
        if name not in children:
            raise ValueError(
                f"there is no module {shown(path)}: {module} has {shown(', '.join(children))}"
            )
        module = children[name]
    return module


def attribute(module: Persistent, path: str) -> Any:
    """A plain attribute at a dotted path, "synthesis.b4.conv_clamp", as it is in the file.

    Raises:
      ValueError: there is none.
    """
    above, _, name = path.rpartition(".")
    owner = submodule(module, above)
    if name not in owner.state:
        raise ValueError(f"there is no attribute {shown(path)}: {owner} has none of that name")
    return owner.state[name]


def init_kwargs(module: Persistent) -> dict[str, Any]:
    """The keyword arguments that a module was made with; those it left out are not there.

    Raises:
      ValueError: the file does not tell.
    """
    return _mapping(module, "_init_kwargs")


def variables(network: TFNetwork) -> dict[str, np.ndarray]:
    """A network's variables by their full names, its own first, then `component/name`.

    Raises:
      ValueError: something among them is not an array, or a component is not a `TFNetwork`.
    """
    found = {}
    own = network.state.get("variables")
    if not isinstance(own, list):
        raise ValueError(f"{network} has no list of variables")
    for item in own:
        match item:
            case (str(name), np.ndarray() | np.generic() as value):
                found[name] = np.asarray(value)
            case _:
                raise ValueError(f"a variable of {network} is not a name and an array")
    for name, component in _mapping(network, "components").items():
        if not isinstance(component, TFNetwork):
            raise ValueError(f"the component {shown(name)} of {network} is not a network")
        found |= {f"{name}/{below}": value for below, value in variables(component).items()}
    return found


def static_kwargs(network: TFNetwork) -> dict[str, Any]:
    """The keyword arguments that a network was built with; those it left out are not there.

    Raises:
      ValueError: the file does not tell.
    """
    return _mapping(network, "static_kwargs")


def _mapping(owner: StandIn, name: str) -> dict[str, Any]:
    found = owner.state.get(name)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{owner} has no {name}")
    return dict(found)


def _named(module: Persistent, kind: str) -> list[tuple[str, Any]]:
    return list(_mapping(module, kind).items())


def _modules(module: Persistent) -> list[tuple[str, Persistent]]:
    children = []
    for name, child in _named(module, "_modules"):
        if isinstance(child, Persistent):
            children.append((name, child))
        elif child is not None:
            raise ValueError(
                f"the module {shown(name)} of {module} is of type {type(child).__name__}"
            )
    return children


def _persistent(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case ({"type": str(kind), "class_name": str(name), "state": dict(state)},):
            return Persistent(state, shown(name)) if kind == "class" else NotImplemented
    return NotImplemented


def _tf_network(arguments: tuple, budget: Budget) -> Any:
    return Hollow("dnnlib.tflib.network.Network", _tf_state) if arguments == () else NotImplemented


def _tf_state(state: Any, budget: Budget) -> Any:
    if not isinstance(state, dict):
        return NotImplemented
    budget.charge(ITEM * len(state))
    return TFNetwork({name: value for name, value in state.items() if name != "build_module_src"})


# --------------------------------------------------------------------------- tensors


@dataclass(frozen=True, eq=False)
class StorageClass:
    """What a tensor's numbers are kept as.

    Attributes:
      dtype: theirs, or None for bytes that only the tensor says how to read.
    """

    dtype: np.dtype | None

    @property
    def itemsize(self) -> int:
        """An element's bytes."""
        return 1 if self.dtype is None else self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Storage:
    """A tensor's numbers, in this machine's byte order.

    Attributes:
      data: their bytes.
      kind: what they are.
    """

    data: memoryview
    kind: StorageClass


def stored(data: memoryview, kind: StorageClass, byteorder: str, budget: Budget) -> Storage:
    """A storage of these bytes, "little" or "big" end first.

    Raises:
      ValueError: they would have to be swapped, and the file does not say by how many.
    """
    if byteorder == sys.byteorder or (kind.itemsize == 1 and kind.dtype is not None):
        return Storage(data, kind)
    if kind.dtype is None:
        raise ValueError(f"has bytes without a dtype, and is of the {byteorder}-endian order")
    budget.charge(len(data))
    size = kind.itemsize // 2 if kind.dtype.kind == "c" else kind.itemsize
    swapped = np.frombuffer(data, np.dtype(f"u{size}")).byteswap()
    return Storage(swapped.view(np.uint8).data, kind)


def _view(storage: Storage, offset: Any, size: Any, stride: Any, dtype: Any, budget: Budget) -> Any:
    """The tensor of these sizes at these elements of a storage."""
    if not isinstance(dtype, np.dtype):
        return NotImplemented
    counts = type(offset) is int and offset >= 0 and _are_sizes(size) and _are_sizes(stride)
    if not counts or len(size) != len(stride):
        raise UnsafeFileError("has a tensor whose sizes, strides or offset are no counts")
    count = len(storage.data) // dtype.itemsize
    if 0 in size:
        return _empty(size, dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= count or math.prod(size) > count:
        raise UnsafeFileError(
            f"has a tensor of size {_sizes(size)}, strides {_sizes(stride)} and offset {offset} "
            f"in a storage of {count} elements"
        )
    budget.charge(math.prod(size) * dtype.itemsize)
    steps = (step if n > 1 else 1 for n, step in zip(size, stride, strict=True))
    return _frozen(
        np.ndarray(
            size,
            dtype,
            storage.data,
            offset * dtype.itemsize,
            tuple(step * dtype.itemsize for step in steps),
        )
    )


def _tensor(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (Storage() as storage, offset, size, stride, *rest) if len(rest) <= 3:
            return _view(storage, offset, size, stride, storage.kind.dtype, budget)
    return NotImplemented


def _typed_tensor(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (Storage() as storage, offset, size, stride, _, _, dtype, *rest) if len(rest) <= 1:
            return _view(storage, offset, size, stride, dtype, budget)
    return NotImplemented


def _parameter(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (np.ndarray() as value, *rest) if len(rest) <= 3:
            return value
    return NotImplemented


def _with_type(arguments: tuple, budget: Budget) -> Any:
    match arguments:  # a tensor with attributes of its own, which are dropped
        case (Constructor() as what, Constructor(), tuple(inner), _) if what in _REBUILDERS:
            assert what.call is not None
            return what.call(inner, budget) if len(inner) <= MAX_ARGUMENTS else NotImplemented
    return NotImplemented


# --------------------------------------------------------------------------- NumPy

_NUMPY_DTYPES = (
    *("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"),
    *("f2", "f4", "f8", "c8", "c16"),
)


def array_of(data: Any, dtype: np.dtype, shape: tuple[int, ...], budget: Budget) -> np.ndarray:
    """The array of this shape that these bytes are, row by row; in this machine's byte order.

    Raises:
      UnsafeFileError: the bytes are too few or too many.
    """
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise UnsafeFileError(
            f"has {len(data)} bytes for an array of shape {_sizes(shape)} and dtype {dtype}"
        )
    if not len(data):
        return _empty(shape, dtype)
    budget.charge(len(data))
    value = np.ndarray(shape, dtype, data)
    return _frozen(value.astype(dtype.newbyteorder("="), copy=False))


def _dtype(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (str(name), *rest) if name in _NUMPY_DTYPES and len(rest) <= 2:
            return Hollow("numpy.dtype", lambda state, budget: _dtype_state(name, state))
    return NotImplemented


def _dtype_state(name: str, state: Any) -> Any:
    match state:  # version, byte order; subarray, names, fields; and nothing for plain numbers
        case (int(version), str(order), None, None, None, int(), int(), int()):
            if version == 3 and order in ("<", ">", "|", "="):
                return np.dtype(order + name)
    return NotImplemented


def _scalar(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (np.dtype() as dtype, bytes() | memoryview() as data):
            return array_of(data, dtype, (), budget)[()]
    return NotImplemented


def _array(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (Constructor() as kind, tuple(), bytes() | memoryview()) if kind is _NDARRAY:
            return Hollow("numpy.ndarray", _array_state)
    return NotImplemented


def _array_state(state: Any, budget: Budget) -> Any:
    match state:
        case (int(), shape, np.dtype() as dtype, bool(by_column), bytes() | memoryview() as data):
            return _array_from(data, dtype, shape, "F" if by_column else "C", budget)
    return NotImplemented


def _array_from_buffer(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (bytes() | memoryview() as data, np.dtype() as dtype, shape, str(order)):
            return _array_from(data, dtype, shape, order, budget)
    return NotImplemented


def _array_from(data: Any, dtype: np.dtype, shape: Any, order: str, budget: Budget) -> Any:
    if not _are_sizes(shape) or order not in ("C", "F"):
        return NotImplemented
    if order == "C":
        return array_of(data, dtype, shape, budget)
    return array_of(data, dtype, shape[::-1], budget).T


def _are_sizes(value: Any) -> bool:
    """Whether a value is as many sizes, or strides, as an array may have."""
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_RANK
        and all(type(n) is int and n >= 0 for n in value)
    )


def _sizes(sizes: tuple[int, ...]) -> str:
    """Sizes, for an error: there may be many, and long ones."""
    return shown(str(sizes))


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if math.prod(max(n, 1) for n in shape) > MAX_EMPTY:
        raise UnsafeFileError(f"has an empty array of shape {_sizes(shape)}")
    return _frozen(np.empty(shape, dtype.newbyteorder("=")))


def _frozen(value: np.ndarray) -> np.ndarray:
    value.flags.writeable = False
    return value


# --------------------------------------------------------------------------- Python


def _attributes(arguments: tuple, budget: Budget) -> Any:
    return Attributes() if arguments == () else NotImplemented


def _ordered_dict(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case ():
            return OrderedDict()
        case (list(pairs),) if all(
            type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs
        ):
            budget.charge(ITEM * len(pairs))
            return OrderedDict((checked_key(key), value) for key, value in pairs)
    return NotImplemented


def _default_dict(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case () | (None | Constructor(),):
            return {}
    return NotImplemented


def _set(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (list(items),):
            budget.charge(ITEM * len(items))
            return set(map(checked_key, items))
    return NotImplemented


def _no_bytes(arguments: tuple, budget: Budget) -> Any:
    return b"" if arguments == () else NotImplemented


def _encoded(arguments: tuple, budget: Budget) -> Any:
    match arguments:  # how protocol 2 writes bytes
        case (str(text), str(codec)) if codec in ("latin1", "latin-1"):
            budget.charge(len(text))
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                raise ValueError("is damaged: bytes that are written as text are not") from None
    return NotImplemented


def _reconstructed(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (Constructor() as kind, Constructor() as base, None) if kind.new and base in _OBJECT:
            return kind.new((), budget)
    return NotImplemented


def _text_of(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (str(name),):
            return name
        case (str(name), int(index)):
            return f"{shown(name)}:{index}"
    return NotImplemented


def _size(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (sizes,) if _are_sizes(sizes):
            return sizes
    return NotImplemented


# --------------------------------------------------------------------------- tables


def _table(*rows: tuple[str, str, Any, Any]) -> Constructors:
    """Constructors by module and name, of rows (module, name, call, new)."""
    return {
        (module, name): Constructor(f"{module}.{name}", call, new)
        for module, name, call, new in rows
    }


_PYTHON = _table(
    ("collections", "OrderedDict", _ordered_dict, None),
    ("collections", "defaultdict", _default_dict, None),
    ("argparse", "Namespace", None, _attributes),
    ("_codecs", "encode", _encoded, None),
    *((module, "_reconstructor", _reconstructed, None) for module in ("copyreg", "copy_reg")),
    *(
        (module, name, call, None)
        for module in ("builtins", "__builtin__")
        for name, call in {
            "object": None,
            "set": _set,
            "bytes": _no_bytes,
            # a defaultdict's
            **dict.fromkeys(("dict", "list", "int", "long", "float")),
        }.items()
    ),
)
_NUMPY = _table(
    ("numpy", "ndarray", None, None),
    ("numpy", "dtype", _dtype, None),
    *(
        (f"{core}.{module}", name, call, None)
        for core in ("numpy.core", "numpy._core")  # before NumPy 2 and since
        for module, name, call in (
            ("multiarray", "_reconstruct", _array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array_from_buffer),
        )
    ),
)
_NVIDIA = _table(
    ("torch_utils.persistence", "_reconstruct_persistent_obj", _persistent, None),
    ("dnnlib.util", "EasyDict", None, _attributes),
    ("dnnlib.tflib.network", "Network", None, _tf_network),
)
_TORCH = _table(
    ("torch", "Size", _size, None),
    ("torch", "device", _text_of, None),
    ("torch", "Tensor", None, None),
    ("torch._utils", "_rebuild_tensor", _tensor, None),
    ("torch._utils", "_rebuild_tensor_v2", _tensor, None),
    ("torch._utils", "_rebuild_tensor_v3", _typed_tensor, None),
    ("torch._utils", "_rebuild_parameter", _parameter, None),
    ("torch._utils", "_rebuild_parameter_with_state", _parameter, None),
    ("torch._tensor", "_rebuild_from_type_v2", _with_type, None),
    ("torch.nn.parameter", "Parameter", _parameter, _parameter),
)
_TORCH_DTYPES = {("torch", name.rstrip("_")): dtype for name, dtype in DTYPES.items()}

_OBJECT = _PYTHON["builtins", "object"], _PYTHON["__builtin__", "object"]
_NDARRAY = _NUMPY["numpy", "ndarray"]
_REBUILDERS = [
    _TORCH["torch._utils", name]
    for name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
]

STORAGES: Constructors = {
    **{
        ("torch", f"{name}Storage"): StorageClass(DTYPES[dtype])
        for name, dtype in {
            "Bool": "bool_",
            "Char": "int8",
            "Short": "int16",
            "Int": "int32",
            "Long": "int64",
            "Byte": "uint8",
            "Half": "float16",
            "BFloat16": "bfloat16",
            "Float": "float32",
            "Double": "float64",
            "ComplexFloat": "complex64",
            "ComplexDouble": "complex128",
        }.items()
    },
    ("torch", "UntypedStorage"): StorageClass(None),
    ("torch.storage", "UntypedStorage"): StorageClass(None),
}
"""What a pickle inside a storage may refer to."""

OBJECTS: Constructors = {**_PYTHON, **_NUMPY, **_NVIDIA, **_TORCH, **_TORCH_DTYPES, **STORAGES}
"""What the pickle of a file may refer to."""
