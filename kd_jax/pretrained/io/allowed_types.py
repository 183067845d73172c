"""The types that weight files may refer to, and their replacements by plain data.

The tables list, by module and name, everything that a file may refer to. The functions here replace
it by NumPy arrays, numbers, dicts and two types for networks: `Persistent` (NVIDIA's PyTorch
snapshots) and `TFNetwork` (the TensorFlow ones). None of the named libraries is imported, and the
source text in NVIDIA's snapshots is dropped unread.

A tensor's size, strides and offset are checked against its storage before a view is created. Only
dtypes of plain numbers are accepted. Arrays are read-only views of the file.
"""

import math
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from kd_jax.pretrained.io.unpickle import (
    ITEM,
    MAX_ARGUMENTS,
    Attributes,
    Budget,
    Constructor,
    Constructors,
    OpaqueObject,
    PendingObject,
    UnsafeFileError,
    check_key,
    printable,
)

MAX_RANK = 32
"""Maximum number of axes of an array."""
MAX_EMPTY = 1 << 40
"""Maximum product of the non-zero sizes of an empty array."""

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
class Persistent(OpaqueObject):
    """A module of an NVIDIA snapshot: its attributes, without its class.

    Attributes:
      class_name: the name of its class; "Generator" both for StyleGAN2 and StyleGAN3.
    """

    class_name: str


class TFNetwork(OpaqueObject):
    """A network of a TensorFlow snapshot: its attributes, without its class."""


def state_dict(module: Persistent) -> dict[str, np.ndarray]:
    """A module's parameters and buffers by their dotted names, as in PyTorch's `state_dict`.

    Its own come first, parameters before buffers, then those of its submodules. None values and
    non-persistent buffers are left out.

    Raises:
      ValueError: a parameter or buffer is not an array, or a submodule is not a `Persistent`.
    """
    tensors = {}
    transient = module.state.get("_non_persistent_buffers_set")
    transient = transient if isinstance(transient, set) else ()
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(module, kind):
            if value is None or (kind == "_buffers" and name in transient):
                continue
            if not isinstance(value, np.ndarray):
                raise ValueError(
                    f"{printable(name)} of {module} is of type {type(value).__name__}, not a tensor"
                )
            tensors[name] = value
    for name, child in _modules(module):
        tensors |= {f"{name}.{inner}": value for inner, value in state_dict(child).items()}
    return tensors


def submodule(module: Persistent, path: str) -> Persistent:
    """The module at a dotted path, such as "synthesis.b4.conv1"; the module itself at "".

    Raises:
      ValueError: there is no module at this path.
    """
    for name in path.split(".") if path else ():
        children = dict(_modules(module))
        if name not in children:
            raise ValueError(
                f"no module {printable(path)}: {module} has {printable(', '.join(children))}"
            )
        module = children[name]
    return module


def attribute(module: Persistent, path: str) -> Any:
    """The attribute at a dotted path, such as "synthesis.b4.conv_clamp", as stored in the file.

    Raises:
      ValueError: there is no attribute at this path.
    """
    parent, _, name = path.rpartition(".")
    owner = submodule(module, parent)
    if name not in owner.state:
        raise ValueError(f"no attribute {printable(path)}: {owner} has none of that name")
    return owner.state[name]


def init_kwargs(module: Persistent) -> dict[str, Any]:
    """The keyword arguments that a module was created with, without those left at their defaults.

    Raises:
      ValueError: the file does not contain them.
    """
    return _mapping(module, "_init_kwargs")


def variables(network: TFNetwork) -> dict[str, np.ndarray]:
    """A network's variables by their full names, its own first, then `component/name`.

    Raises:
      ValueError: a variable is not an array, or a component is not a `TFNetwork`.
    """
    arrays = {}
    own = network.state.get("variables")
    if not isinstance(own, list):
        raise ValueError(f"{network} has no list of variables")
    for item in own:
        match item:
            case (str(name), np.ndarray() | np.generic() as value):
                arrays[name] = np.asarray(value)
            case _:
                raise ValueError(f"a variable of {network} is not a name and an array")
    for name, component in _mapping(network, "components").items():
        if not isinstance(component, TFNetwork):
            raise ValueError(f"the component {printable(name)} of {network} is not a network")
        arrays |= {f"{name}/{inner}": value for inner, value in variables(component).items()}
    return arrays


def static_kwargs(network: TFNetwork) -> dict[str, Any]:
    """The keyword arguments that a network was built with, without those left at their defaults.

    Raises:
      ValueError: the file does not contain them.
    """
    return _mapping(network, "static_kwargs")


def _mapping(owner: OpaqueObject, name: str) -> dict[str, Any]:
    mapping = owner.state.get(name)
    if not isinstance(mapping, dict) or not all(isinstance(key, str) for key in mapping):
        raise ValueError(f"{owner} has no {name}")
    return dict(mapping)


def _items(module: Persistent, kind: str) -> list[tuple[str, Any]]:
    return list(_mapping(module, kind).items())


def _modules(module: Persistent) -> list[tuple[str, Persistent]]:
    children = []
    for name, child in _items(module, "_modules"):
        if isinstance(child, Persistent):
            children.append((name, child))
        elif child is not None:
            raise ValueError(
                f"the module {printable(name)} of {module} is of type {type(child).__name__}"
            )
    return children


def _persistent(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case ({"type": str(kind), "class_name": str(name), "state": dict(state)},):
            return Persistent(state, printable(name)) if kind == "class" else NotImplemented
    return NotImplemented


def _tf_network(arguments: tuple, budget: Budget) -> Any:
    return (
        PendingObject("dnnlib.tflib.network.Network", _tf_state)
        if arguments == ()
        else NotImplemented
    )


def _tf_state(state: Any, budget: Budget) -> Any:
    if not isinstance(state, dict):
        return NotImplemented
    budget.charge(ITEM * len(state))
    return TFNetwork({name: value for name, value in state.items() if name != "build_module_src"})


# --------------------------------------------------------------------------- tensors


@dataclass(frozen=True, eq=False)
class StorageClass:
    """The type of a tensor's storage.

    Attributes:
      dtype: the dtype of its elements, or None for bytes whose dtype is given by the tensor.
    """

    dtype: np.dtype | None

    @property
    def itemsize(self) -> int:
        """The number of bytes of an element."""
        return 1 if self.dtype is None else self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Storage:
    """A tensor's storage, in this machine's byte order.

    Attributes:
      data: the bytes of its elements.
      kind: its type.
    """

    data: memoryview
    kind: StorageClass


def make_storage(data: memoryview, kind: StorageClass, byteorder: str, budget: Budget) -> Storage:
    """A storage of these bytes, whose byte order is "little" or "big".

    Raises:
      ValueError: the bytes have to be swapped, but the file does not give the size of an element.
    """
    if byteorder == sys.byteorder or (kind.itemsize == 1 and kind.dtype is not None):
        return Storage(data, kind)
    if kind.dtype is None:
        raise ValueError(f"has {byteorder}-endian bytes without a dtype")
    budget.charge(len(data))
    size = kind.itemsize // 2 if kind.dtype.kind == "c" else kind.itemsize
    swapped = np.frombuffer(data, np.dtype(f"u{size}")).byteswap()
    return Storage(swapped.view(np.uint8).data, kind)


def _view(storage: Storage, offset: Any, size: Any, stride: Any, dtype: Any, budget: Budget) -> Any:
    """The tensor of this size, stride and offset in a storage."""
    if not isinstance(dtype, np.dtype):
        return NotImplemented
    counts = type(offset) is int and offset >= 0 and _are_sizes(size) and _are_sizes(stride)
    if not counts or len(size) != len(stride):
        raise UnsafeFileError("has a tensor whose sizes, strides or offset are not valid counts")
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
    return _freeze(
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
    match arguments:  # a tensor with extra attributes, which are dropped
        case (Constructor() as what, Constructor(), tuple(inner), _) if what in _REBUILDERS:
            assert what.call is not None
            return what.call(inner, budget) if len(inner) <= MAX_ARGUMENTS else NotImplemented
    return NotImplemented


# --------------------------------------------------------------------------- NumPy

_NUMPY_DTYPES = (
    *("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"),
    *("f2", "f4", "f8", "c8", "c16"),
)


def make_array(data: Any, dtype: np.dtype, shape: tuple[int, ...], budget: Budget) -> np.ndarray:
    """These bytes as an array of this shape in C order, in this machine's byte order.

    Raises:
      UnsafeFileError: there are too few or too many bytes.
    """
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise UnsafeFileError(
            f"has {len(data)} bytes for an array of shape {_sizes(shape)} and dtype {dtype}"
        )
    if not len(data):
        return _empty(shape, dtype)
    budget.charge(len(data))
    value = np.ndarray(shape, dtype, data)
    return _freeze(value.astype(dtype.newbyteorder("="), copy=False))


def _dtype(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (str(name), *rest) if name in _NUMPY_DTYPES and len(rest) <= 2:
            return PendingObject("numpy.dtype", lambda state, budget: _dtype_state(name, state))
    return NotImplemented


def _dtype_state(name: str, state: Any) -> Any:
    match state:  # version, byte order; subarray, names, fields: None for plain numbers
        case (int(version), str(order), None, None, None, int(), int(), int()):
            if version == 3 and order in ("<", ">", "|", "="):
                return np.dtype(order + name)
    return NotImplemented


def _scalar(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (np.dtype() as dtype, bytes() | memoryview() as data):
            return make_array(data, dtype, (), budget)[()]
    return NotImplemented


def _array(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (Constructor() as kind, tuple(), bytes() | memoryview()) if kind is _NDARRAY:
            return PendingObject("numpy.ndarray", _array_state)
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
        return make_array(data, dtype, shape, budget)
    return make_array(data, dtype, shape[::-1], budget).T


def _are_sizes(value: Any) -> bool:
    """Whether a value is a tuple of sizes or strides, at most one for each possible axis."""
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_RANK
        and all(type(n) is int and n >= 0 for n in value)
    )


def _sizes(sizes: tuple[int, ...]) -> str:
    """Sizes for an error message, shortened."""
    return printable(str(sizes))


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if math.prod(max(n, 1) for n in shape) > MAX_EMPTY:
        raise UnsafeFileError(f"has an empty array of shape {_sizes(shape)}")
    return _freeze(np.empty(shape, dtype.newbyteorder("=")))


def _freeze(value: np.ndarray) -> np.ndarray:
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
            return OrderedDict((check_key(key), value) for key, value in pairs)
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
            return set(map(check_key, items))
    return NotImplemented


def _no_bytes(arguments: tuple, budget: Budget) -> Any:
    return b"" if arguments == () else NotImplemented


def _encode(arguments: tuple, budget: Budget) -> Any:
    match arguments:  # how protocol 2 writes bytes
        case (str(text), str(codec)) if codec in ("latin1", "latin-1"):
            budget.charge(len(text))
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                raise ValueError(
                    "is damaged: bytes written as Latin-1 text are not Latin-1"
                ) from None
    return NotImplemented


def _reconstruct(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (Constructor() as kind, Constructor() as base, None) if kind.new and base in _OBJECT:
            return kind.new((), budget)
    return NotImplemented


def _text_of(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (str(name),):
            return name
        case (str(name), int(index)):
            return f"{printable(name)}:{index}"
    return NotImplemented


def _size(arguments: tuple, budget: Budget) -> Any:
    match arguments:
        case (sizes,) if _are_sizes(sizes):
            return sizes
    return NotImplemented


# --------------------------------------------------------------------------- tables


def _table(*rows: tuple[str, str, Any, Any]) -> Constructors:
    """Constructors by module and name, from rows (module, name, call, new)."""
    return {
        (module, name): Constructor(f"{module}.{name}", call, new)
        for module, name, call, new in rows
    }


_PYTHON = _table(
    ("collections", "OrderedDict", _ordered_dict, None),
    ("collections", "defaultdict", _default_dict, None),
    ("argparse", "Namespace", None, _attributes),
    ("_codecs", "encode", _encode, None),
    *((module, "_reconstructor", _reconstruct, None) for module in ("copyreg", "copy_reg")),
    *(
        (module, name, call, None)
        for module in ("builtins", "__builtin__")
        for name, call in {
            "object": None,
            "set": _set,
            "bytes": _no_bytes,
            # factories of a defaultdict
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
"""The names that a pickle inside a storage may refer to."""

OBJECTS: Constructors = {**_PYTHON, **_NUMPY, **_NVIDIA, **_TORCH, **_TORCH_DTYPES, **STORAGES}
"""The names that the pickle of a file may refer to."""
