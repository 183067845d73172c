"""Reads published weight files as plain data, whatever they are packed in.

`read` tells the kinds apart by their first bytes:

* pickles: the snapshots of NVIDIA's repositories (PyTorch and TensorFlow);
* what `torch.save` writes: a zip archive since PyTorch 1.6, consecutive pickles before;
* safetensors.

Nothing in a file is executed, imported, or written to disk; `kd_jax.pretrained.unpickle` says how.
"""

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.pretrained import archive
from kd_jax.pretrained.stand_ins import (
    DTYPES,
    MAX_RANK,
    OBJECTS,
    STORAGES,
    Storage,
    StorageClass,
    array_of,
    stored,
)
from kd_jax.pretrained.unpickle import (
    Budget,
    Constructor,
    Constructors,
    UnsafeFileError,
    checked,
    load,
    shown,
)

MAX_BYTES = 8 << 30
"""Bytes of one file."""
MAX_HEADER = 8 << 20
"""Bytes of a safetensors file's header."""

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_START = b"\x8a\x0a" + _TORCH_MAGIC.to_bytes(10, "little")
_TORCH_PROTOCOL = 1001


def read(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> Any:
    """What a weight file holds, as plain data.

    Args:
      path: the file. Its name's ending does not matter.
      max_bytes: the largest file that is read. It takes as much memory, and for a moment twice
        that; a file made to be wasteful, some times more.

    Returns:
      Dicts, lists, tuples, sets, text, bytes (as views), numbers, dtypes and NumPy arrays (views of
      the file's bytes, read-only), `kd_jax.pretrained.stand_ins.Persistent` and `TFNetwork` for
      networks, and dicts for other objects of which only the attributes are data. Of a state dict
      or a safetensors file it is a dict of arrays by name; of an NVIDIA snapshot a dict with the
      keys `G_ema`, `D`, ...; of a TensorFlow snapshot a tuple (G, D, Gs).

    Raises:
      UnsafeFileError: the file asks for what is not plain data, or for more than it holds.
      ValueError: it is missing, damaged, too long, or of another kind.
    """
    try:
        return _read(_bytes_of(Path(path), max_bytes))
    except ValueError as error:
        kind = UnsafeFileError if isinstance(error, UnsafeFileError) else ValueError
        name = str(path) if str(path).isprintable() else ascii(str(path))
        raise kind(f"{name}: {error}") from None


def _bytes_of(path: Path, limit: int) -> memoryview:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise ValueError("is a folder, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is not a regular file")
        if found.st_size > limit:
            raise ValueError(f"has {found.st_size} bytes; {limit} are read")
        with path.open("rb") as file:
            data = file.read(found.st_size)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    if not data:
        raise ValueError("is empty")
    return memoryview(data)


def _read(data: memoryview) -> Any:
    start = bytes(data[:64])
    if start.startswith(b"PK"):
        return checked(_torch_archive(data))
    if _is_safetensors(data):
        return _safetensors(data)
    if start.startswith(tuple(bytes([0x80, protocol]) for protocol in range(2, 6))):
        budget = Budget(len(data))
        if start.find(_TORCH_START) in (2, 11):  # after the protocol's opcode, or a frame's too
            return checked(_torch_pickles(data, OBJECTS, budget))
        return checked(_snapshot(data, budget))
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("is a git-lfs pointer to the weights, not the weights: fetch them first")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ValueError("is a web page, not weights: the download was answered with one")
    raise ValueError(
        f"begins with {start[:8]!r}, as no pickle, PyTorch file or safetensors file does"
    )


# --------------------------------------------------------------------------- pickles


def _snapshot(data: memoryview, budget: Budget) -> Any:
    """A bare pickle, whose tensors' storages are PyTorch files in it."""

    def storage(arguments: tuple, budget: Budget) -> Any:
        match arguments:
            case (bytes() | memoryview() as inner,):
                return _torch_pickles(memoryview(inner), STORAGES, budget)
        return NotImplemented

    name = "torch.storage", "_load_from_bytes"
    constructors = {**OBJECTS, name: Constructor(".".join(name), storage)}
    value, end = load(data, 0, constructors, budget)
    _expect_end(data, end)
    return value


def _torch_pickles(data: memoryview, constructors: Constructors, budget: Budget) -> Any:
    """What `torch.save` wrote before it wrote archives: pickles, then the storages' bytes.

    Those are a magic number, a protocol's, some facts on the machine, the object, and the list of
    the storages' keys. An object's storages are made when it names them, and filled afterwards.
    """
    magic, at = load(data, 0, {}, budget)
    protocol, at = load(data, at, {}, budget)
    system, at = load(data, at, {}, budget)
    if magic != _TORCH_MAGIC or protocol != _TORCH_PROTOCOL or type(system) is not dict:
        raise ValueError(f"is not a PyTorch file of protocol {_TORCH_PROTOCOL}")
    byteorder = "little" if system.get("little_endian", True) else "big"

    claims: dict[str, Storage] = {}

    def claim(reference: Any) -> Storage:
        kind, key, count, view = _reference(reference)
        if key not in claims:
            size, left = count * kind.itemsize, len(data) - at
            if size > left:
                raise UnsafeFileError(
                    f"claims {size} bytes for the storage {shown(key)}, of {left}"
                )
            budget.charge(size)
            claims[key] = Storage(np.empty(size, np.uint8).data, kind)
        storage = claims[key]
        if storage.kind is not kind or len(storage.data) != count * kind.itemsize:
            raise UnsafeFileError(f"has the storage {shown(key)} in two ways")
        return storage if view is None else _part(storage, view)

    value, at = load(data, at, constructors, budget, claim)
    keys, at = load(data, at, {}, budget)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise ValueError("is damaged: its list of storages is none")
    for key in keys:
        if key not in claims:
            raise ValueError(f"is damaged: the storage {shown(key)} is there twice, or no tensor's")
        storage = claims.pop(key)
        size = len(storage.data)
        if at + 8 + size > len(data):
            raise ValueError(f"ends too early: the storage {shown(key)} is not all there")
        if int.from_bytes(data[at : at + 8], "little") * storage.kind.itemsize != size:
            raise UnsafeFileError(f"has the storage {shown(key)} in two sizes")
        raw = data[at + 8 : at + 8 + size]
        storage.data[:] = stored(raw, storage.kind, byteorder, budget).data
        at += 8 + size
    if claims:
        raise ValueError(f"is damaged: the storage {shown(next(iter(claims)))} is missing")
    _expect_end(data, at)
    return value


def _torch_archive(data: memoryview) -> Any:
    """What `torch.save` writes: an archive of a pickle and of the storages that it names."""
    files = archive.entries(data)
    roots = [name.split("/")[0] for name in files if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise ValueError("is a zip archive, but not one of PyTorch's: it has no single data.pkl")
    (root,) = roots
    if f"{root}/constants.pkl" in files:
        raise UnsafeFileError("is a TorchScript archive, a program; save its state_dict() instead")
    budget = Budget(sum(entry.size for entry in files.values()))
    byteorder = "little"
    if f"{root}/byteorder" in files:
        byteorder = str(bytes(archive.content(files[f"{root}/byteorder"])), "latin-1")
        if byteorder not in ("little", "big"):
            raise ValueError(f"has its bytes in an unknown order, {shown(byteorder)}")
    storages: dict[str, Storage] = {}

    def find(reference: Any) -> Storage:
        kind, key, count, view = _reference(reference)
        if view is not None:
            raise UnsafeFileError(f"has the storage {shown(key)} as a part of another")
        if key not in storages:
            if f"{root}/data/{key}" not in files:
                raise ValueError(f"is damaged: the storage {shown(key)} is missing")
            entry = files[f"{root}/data/{key}"]
            if count * kind.itemsize != entry.size:
                raise UnsafeFileError(f"has the storage {shown(key)} in two sizes")
            storages[key] = stored(archive.content(entry), kind, byteorder, budget)
        if storages[key].kind is not kind:
            raise UnsafeFileError(f"has the storage {shown(key)} in two ways")
        return storages[key]

    pickled = archive.content(files[f"{root}/data.pkl"])
    value, end = load(pickled, 0, OBJECTS, budget, find)
    _expect_end(pickled, end)
    return value


def _reference(reference: Any) -> tuple[StorageClass, str, int, Any]:
    """Class, key, elements and view of the storage that a persistent id names."""
    match reference:
        case (str(word), StorageClass() as kind, str(key), str(), int(count), *view):
            if word == "storage" and type(count) is int and count >= 0 and len(view) <= 1:
                return kind, key, count, view[0] if view else None
    raise UnsafeFileError("has a persistent id that is not a storage's")


def _part(storage: Storage, view: Any) -> Storage:
    """The elements of a storage that a view's key, offset and size name."""
    match view:
        case (str(), int(offset), int(count)) if offset >= 0 and count >= 0:
            size = storage.kind.itemsize
            if (offset + count) * size <= len(storage.data):
                part = storage.data[offset * size : (offset + count) * size]
                return Storage(part, storage.kind)
    raise UnsafeFileError("has a part of a storage that is not in it")


def _expect_end(data: memoryview, end: int) -> None:
    if end != len(data):
        raise ValueError(f"is damaged: {len(data) - end} bytes follow its end")


# --------------------------------------------------------------------------- safetensors

_SAFETENSORS = {
    **{"BOOL": "bool_", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64"},
}


def _is_safetensors(data: memoryview) -> bool:
    """Whether a header of JSON follows its own length, which a pickle's bytes cannot be."""
    if bytes(data[8:9]) != b"{":
        return False
    (size,) = struct.unpack_from("<Q", data)
    return size < 1 << 40


def _safetensors(data: memoryview) -> dict[str, np.ndarray]:
    """Arrays by name, of a file whose header gives each one's dtype, shape, beginning and end."""
    (size,) = struct.unpack_from("<Q", data)
    if size > MAX_HEADER:
        raise UnsafeFileError(f"has a header of {size} bytes; {MAX_HEADER} are read")
    if 8 + size > len(data):
        raise ValueError(f"ends too early: its header has {size} bytes")
    header = _json(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    budget = Budget(len(data))
    found, end = {}, 0
    claims = {name: _claim(name, fields) for name, fields in header.items()}
    for name, (dtype, shape, begin, stop) in sorted(claims.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise UnsafeFileError(
                f"puts the tensor {shown(name)} at byte {begin}, not at byte {end} where it follows"
            )
        if stop > len(body):
            raise ValueError(f"ends too early: the tensor {shown(name)} is not all there")
        found[name] = array_of(body[begin:stop], dtype, shape, budget)
        end = stop
    _expect_end(body, end)
    return {name: found[name] for name in claims}


def _json(data: memoryview) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise UnsafeFileError("has a header with a name in it twice")
        return found

    try:
        found = json.loads(str(data, "utf-8"), object_pairs_hook=unique)
    except UnsafeFileError:
        raise
    except (ValueError, RecursionError):
        raise ValueError("is damaged: its header is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("is damaged: its header is not a JSON object")
    return found


def _claim(name: str, fields: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, beginning and end of a tensor, from its entry in the header."""
    match fields:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end], **rest}:
            numbers = (begin, end, *shape)
            if (
                not rest
                and kind in _SAFETENSORS
                and len(shape) <= MAX_RANK
                and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
                and begin <= end
            ):
                return DTYPES[_SAFETENSORS[kind]].newbyteorder("<"), tuple(shape), begin, end
    raise UnsafeFileError(
        f"describes the tensor {shown(name)} by a dtype, shape or offsets that are not read"
    )
