"""Safetensors files: a JSON header with the dtype, shape and place of each array, and the data."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kd_jax.pretrained.io.containers import MAX_HEADER

METADATA = "__metadata__"
_NAMES = {"float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL"}
_NAMES |= {f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)}
_NAMES |= {f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)}


def encode(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] = {}) -> bytes:
    """The contents of a safetensors file.

    Args:
      arrays: by name.
      metadata: text by name.

    Raises:
      ValueError: an array has a dtype that the format does not know here.
    """
    header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    parts, end = [], 0
    for name, array in arrays.items():
        if array.dtype.name not in _NAMES:
            raise ValueError(f"{name} has the dtype {array.dtype}, not {', '.join(_NAMES)}")
        part = array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + len(part)],
        }
        parts.append(part)
        end += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files."""
    with path.open("rb") as file:
        start = file.read(9)
        if len(start) < 9 or start[8:] != b"{":
            return {}
        (size,) = struct.unpack("<Q", start[:8])
        if size > MAX_HEADER:
            return {}
        try:
            header = json.loads(b"{" + file.read(size - 1))
        except (ValueError, RecursionError):
            return {}  # the reader of the arrays says what is wrong with it
    metadata = header.get(METADATA) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        return {}
    return {name: text for name, text in metadata.items() if isinstance(text, str)}
