"""Reads published weight files of several formats as plain data.

`read` distinguishes the formats by their first bytes:

* pickles: the snapshots of NVIDIA's repositories (PyTorch and TensorFlow);
* files of `torch.save`: a zip archive since PyTorch 1.6, consecutive pickles before;
* safetensors;
* ncnn's graphs `.param`, whose weights are in the file `.bin` of the same name beside them.

Nothing in a file is executed, imported or written to disk; see `kd_jax.pretrained.io.unpickle`.
"""

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.pretrained.io import archive, ncnn
from kd_jax.pretrained.io.allowed_types import (
    DTYPES,
    MAX_RANK,
    OBJECTS,
    STORAGES,
    Storage,
    StorageClass,
    make_array,
    make_storage,
)
from kd_jax.pretrained.io.unpickle import (
    Budget,
    Constructor,
    Constructors,
    UnsafeFileError,
    check_plain,
    load,
    printable,
)

MAX_BYTES = 8 << 30
"""Maximum bytes of a file."""
MAX_HEADER = 8 << 20
"""Maximum bytes of a safetensors file's header."""

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_START = b"\x8a\x0a" + _TORCH_MAGIC.to_bytes(10, "little")
_TORCH_PROTOCOL = 1001


def read(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> Any:
    """The contents of a weight file as plain data.

    Args:
      path: the file. Its extension does not matter.
      max_bytes: the maximum size of the file. Reading takes as much memory as the file has bytes,
        briefly twice that, and a few times more for a file designed to waste memory.

    Returns:
      Dicts, lists, tuples, sets, text, bytes (as views), numbers, dtypes and NumPy arrays (views of
      the file's bytes, read-only), `allowed_types.Persistent` and `TFNetwork` for
      networks, and dicts for other objects, reduced to their attributes. A state dict or a
      safetensors file gives a dict of arrays by name; an NVIDIA snapshot a dict with the keys
      `G_ema`, `D`, ...; a TensorFlow snapshot a tuple (G, D, Gs); an ncnn graph an `ncnn.Graph`.

    Raises:
      UnsafeFileError: the file contains something other than plain data, or claims more data than
        it has.
      ValueError: it is missing, damaged, too large or of an unknown format.
    """
    try:
        data = _read_bytes(Path(path), max_bytes)
        if bytes(data[: len(ncnn.MAGIC)]) == ncnn.MAGIC:
            return ncnn.parse(data, _beside(Path(path), max_bytes))
        return _read(data)
    except ValueError as error:
        kind = UnsafeFileError if isinstance(error, UnsafeFileError) else ValueError
        name = str(path) if str(path).isprintable() else ascii(str(path))
        raise kind(f"{name}: {error}") from None


def _beside(path: Path, limit: int) -> memoryview:
    """The weights of an ncnn graph."""
    weights = path.with_suffix(".bin")
    try:
        return _read_bytes(weights, limit)
    except ValueError as error:
        raise ValueError(f"is an ncnn graph, whose weights {weights.name!r} {error}") from None


def _read_bytes(path: Path, limit: int) -> memoryview:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        if status.st_size > limit:
            raise ValueError(f"has {status.st_size} bytes; the limit is {limit}")
        with path.open("rb") as file:
            data = file.read(status.st_size)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    if not data:
        raise ValueError("is empty")
    return memoryview(data)


def _read(data: memoryview) -> Any:
    start = bytes(data[:64])
    if start.startswith(b"PK"):
        return check_plain(_torch_archive(data))
    if _is_safetensors(data):
        return _safetensors(data)
    if start.startswith(tuple(bytes([0x80, protocol]) for protocol in range(2, 6))):
        budget = Budget(len(data))
        if start.find(_TORCH_START) in (2, 11):  # after the opcode PROTO, or PROTO and FRAME
            return check_plain(_torch_pickles(data, OBJECTS, budget))
        return check_plain(_snapshot(data, budget))
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("is a git-lfs pointer to the weights, not the weights: fetch them first")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ValueError("is a web page, not a weight file: the download returned HTML")
    if start.startswith(b"Gk0\x01"):
        raise ValueError("has the weights of an ncnn network: read its graph, the .param file")
    raise ValueError(
        f"starts with {start[:8]!r}, which is not a pickle, PyTorch file or safetensors file"
    )


# --------------------------------------------------------------------------- pickles


def _snapshot(data: memoryview, budget: Budget) -> Any:
    """A bare pickle, in which each tensor's storage is an embedded PyTorch file."""

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
    """A file of `torch.save` before PyTorch 1.6: pickles, followed by the storages' bytes.

    The pickles are a magic number, the protocol's number, facts about the machine, the object, and
    the list of the storages' keys. Storages are allocated when the object refers to them, and
    filled afterwards.
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
                    f"claims {size} bytes for the storage {printable(key)}; {left} are left"
                )
            budget.charge(size)
            claims[key] = Storage(np.empty(size, np.uint8).data, kind)
        storage = claims[key]
        if storage.kind is not kind or len(storage.data) != count * kind.itemsize:
            raise UnsafeFileError(f"has two types or sizes of the storage {printable(key)}")
        return storage if view is None else _part(storage, view)

    value, at = load(data, at, constructors, budget, claim)
    keys, at = load(data, at, {}, budget)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise ValueError("is damaged: its list of storages is not a list of strings")
    for key in keys:
        if key not in claims:
            raise ValueError(f"is damaged: the storage {printable(key)} is repeated or unused")
        storage = claims.pop(key)
        size = len(storage.data)
        if at + 8 + size > len(data):
            raise ValueError(f"is truncated: the storage {printable(key)} is incomplete")
        if int.from_bytes(data[at : at + 8], "little") * storage.kind.itemsize != size:
            raise UnsafeFileError(f"has two sizes of the storage {printable(key)}")
        raw = data[at + 8 : at + 8 + size]
        storage.data[:] = make_storage(raw, storage.kind, byteorder, budget).data
        at += 8 + size
    if claims:
        raise ValueError(f"is damaged: the storage {printable(next(iter(claims)))} is missing")
    _expect_end(data, at)
    return value


def _torch_archive(data: memoryview) -> Any:
    """A file of `torch.save` since PyTorch 1.6: an archive of a pickle and its storages."""
    files = archive.entries(data)
    roots = [name.split("/")[0] for name in files if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise ValueError("is a zip archive, but not a PyTorch file: it has no single data.pkl")
    (root,) = roots
    if f"{root}/constants.pkl" in files:
        raise UnsafeFileError(
            "is a TorchScript archive, not a state dict; save its state_dict() instead"
        )
    budget = Budget(sum(entry.size for entry in files.values()))
    byteorder = "little"
    if f"{root}/byteorder" in files:
        byteorder = str(bytes(archive.content(files[f"{root}/byteorder"])), "latin-1")
        if byteorder not in ("little", "big"):
            raise ValueError(f"has the unknown byte order {printable(byteorder)}")
    storages: dict[str, Storage] = {}

    def find(reference: Any) -> Storage:
        kind, key, count, view = _reference(reference)
        if view is not None:
            raise UnsafeFileError(f"has the storage {printable(key)} as a view of another")
        if key not in storages:
            if f"{root}/data/{key}" not in files:
                raise ValueError(f"is damaged: the storage {printable(key)} is missing")
            entry = files[f"{root}/data/{key}"]
            if count * kind.itemsize != entry.size:
                raise UnsafeFileError(f"has two sizes of the storage {printable(key)}")
            storages[key] = make_storage(archive.content(entry), kind, byteorder, budget)
        if storages[key].kind is not kind:
            raise UnsafeFileError(f"has two types or sizes of the storage {printable(key)}")
        return storages[key]

    pickled = archive.content(files[f"{root}/data.pkl"])
    value, end = load(pickled, 0, OBJECTS, budget, find)
    _expect_end(pickled, end)
    return value


def _reference(reference: Any) -> tuple[StorageClass, str, int, Any]:
    """Class, key, number of elements and view of the storage that a persistent id names."""
    match reference:
        case (str(word), StorageClass() as kind, str(key), str(), int(count), *view):
            if word == "storage" and type(count) is int and count >= 0 and len(view) <= 1:
                return kind, key, count, view[0] if view else None
    raise UnsafeFileError("has a persistent id that is not a storage's")


def _part(storage: Storage, view: Any) -> Storage:
    """The part of a storage that a view's key, offset and size describe."""
    match view:
        case (str(), int(offset), int(count)) if offset >= 0 and count >= 0:
            size = storage.kind.itemsize
            if (offset + count) * size <= len(storage.data):
                part = storage.data[offset * size : (offset + count) * size]
                return Storage(part, storage.kind)
    raise UnsafeFileError("has a view of a storage that is out of its bounds")


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
    """Whether the data start with a length and a JSON header, as a pickle cannot."""
    if bytes(data[8:9]) != b"{":
        return False
    (size,) = struct.unpack_from("<Q", data)
    return size < 1 << 40


def _safetensors(data: memoryview) -> dict[str, np.ndarray]:
    """Arrays by name, from a file whose header gives each one's dtype, shape, start and end."""
    (size,) = struct.unpack_from("<Q", data)
    if size > MAX_HEADER:
        raise UnsafeFileError(f"has a header of {size} bytes; the limit is {MAX_HEADER}")
    if 8 + size > len(data):
        raise ValueError(f"is truncated: its header has {size} bytes")
    header = _json(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    budget = Budget(len(data))
    arrays, end = {}, 0
    claims = {name: _claim(name, fields) for name, fields in header.items()}
    for name, (dtype, shape, begin, stop) in sorted(claims.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise UnsafeFileError(
                f"has the tensor {printable(name)} at byte {begin}; expected byte {end}"
            )
        if stop > len(body):
            raise ValueError(f"is truncated: the tensor {printable(name)} is incomplete")
        arrays[name] = make_array(body[begin:stop], dtype, shape, budget)
        end = stop
    _expect_end(body, end)
    return {name: arrays[name] for name in claims}


def _json(data: memoryview) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        items = dict(pairs)
        if len(items) != len(pairs):
            raise UnsafeFileError("has a header in which a name is repeated")
        return items

    try:
        header = json.loads(str(data, "utf-8"), object_pairs_hook=unique)
    except UnsafeFileError:
        raise
    except (ValueError, RecursionError):
        raise ValueError("is damaged: its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("is damaged: its header is not a JSON object")
    return header


def _claim(name: str, fields: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Dtype, shape, start and end of a tensor, from its entry in the header."""
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
        f"has an invalid or unsupported dtype, shape or offsets of the tensor {printable(name)}"
    )
