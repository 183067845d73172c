"""Generators as files for other programs, each compared with JAX before it is kept.

    files = kd_jax.export.export(kd_jax.load("runs/small"), "out", formats=("onnx", "safetensors"))
    files["onnx"].path

ONNX needs two commands: `kd_jax.export.onnx.INSTALL`.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.core.files import claim_folder, naming
from kd_jax.core.network import by_path
from kd_jax.export import onnx, parity, quantise, safetensors, stablehlo
from kd_jax.export.parity import Parity as Parity, ParityError as ParityError
from kd_jax.export.program import Program as Program, make_program as make_program
from kd_jax.model import Model

FORMATS = {
    "onnx": "generator.onnx",
    "stablehlo": "generator.stablehlo",
    "safetensors": "generator.safetensors",
    "original": "generator.original.safetensors",
}
"""The formats and their files. "original" has the names of the program that published it."""

DTYPES = {
    "float32": tuple(FORMATS),
    "float16": ("onnx", "safetensors", "original"),
    "int8": ("onnx",),
}
"""The dtypes of weights, and the formats that have them."""

INDEX = "export.json"
"""The file that describes the program in a folder."""


class Exported(NamedTuple):
    """An exported file.

    Attributes:
      path: the file.
      parity: how its outputs differ from JAX's.
      in_float: layers that stay in float32 in a file of another dtype.
    """

    path: Path
    parity: Parity
    in_float: tuple[str, ...] = ()


def export(
    model: Model,
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("onnx",),
    *,
    dtype: str = "float32",
    keep: Sequence[str] = (),
    **options: Any,
) -> Mapping[str, Exported]:
    """Writes files of a generator, and only those that compute what JAX computes.

    Args:
      model: the generator, from `kd_jax.load`.
      folder: a new or an empty folder, or one with other formats of the same export.
      formats: of `FORMATS`.
      dtype: of the weights, of `DTYPES`.
      keep: layers of an int8 file that stay in float32, besides the last ones.
      **options: those of `make_program`: `batch`, `size`, `truncation`, `labels`, `part`.

    Returns:
      The files by format.

    Raises:
      ValueError: an argument does not fit the generator; nothing is written.
      ParityError: a file computes something else (a ValueError); it is not kept.
      UsageError: a package is missing, or the folder holds something else.
    """
    if not formats:
        raise ValueError("formats is empty; choose of " + ", ".join(FORMATS))
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"no format {name!r}; there are {', '.join(FORMATS)}")
        if name not in DTYPES.get(dtype, ()):
            fitting = [other for other, names in DTYPES.items() if name in names]
            raise ValueError(f"dtype={dtype!r} of {name}: it is one of {', '.join(fitting)}")
    if keep and dtype != "int8":
        raise ValueError(f"keep={list(keep)} is for dtype='int8', not {dtype!r}")
    program = make_program(model, **options)
    path = Path(folder).expanduser()
    settings = {
        "program": program.name,
        **program.describe(),
        "dtype": dtype,
        "keep": list(keep),
        "options": {name: value for name, value in options.items() if value is not None},
        "variables": _fingerprint(model),
    }
    existed = path.exists()
    belonged = claim_folder(path, INDEX, settings, "an export")
    files: dict[str, Exported] = {}
    try:
        for name in dict.fromkeys(formats):
            target = path / FORMATS[name]
            with naming(f"write {target}"):
                files[name] = _write(name, model, program, target, dtype, tuple(keep))
    finally:
        if not files and not belonged:
            (path / INDEX).unlink(missing_ok=True)
            if not existed:
                path.rmdir()
    return files


def _write(
    name: str, model: Model, program: Program, target: Path, dtype: str, keep: tuple[str, ...]
) -> Exported:
    """Writes one file, if it has parity."""

    def write_if_equal(contents: bytes, load: Callable[[Path], Any], dtype: str) -> Parity:
        with _temporary(target) as partial:
            partial.write_bytes(contents)
            result = parity.check(program, load(partial), f"{target} ({name})", dtype)
            os.replace(partial, target)
        return result

    if name == "onnx":
        contents = onnx.build(program)
        if dtype == "float32":
            return Exported(target, write_if_equal(contents, onnx.load, dtype))
        # The conversion first, by the strict limits: those of few bits hide other errors.
        with _temporary(target) as partial:
            partial.write_bytes(contents)
            parity.check(program, onnx.load(partial), f"{target} (onnx, float32)")
        if dtype == "float16":
            smaller = quantise.to_float16(contents)
        else:
            smaller = quantise.to_int8(contents, program, keep)
        result = write_if_equal(smaller.contents, onnx.load, dtype)
        return Exported(target, result, smaller.in_float)
    if name == "stablehlo":
        contents = stablehlo.build(program)
        return Exported(target, write_if_equal(contents, stablehlo.load, dtype))
    build, load = {
        "safetensors": (safetensors.build, safetensors.load),
        "original": (safetensors.build_original, safetensors.load_original),
    }[name]
    contents = build(model, dtype)
    result = write_if_equal(contents, lambda path: load(path, program, model), dtype)
    return Exported(target, result)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name beside a file, which is free afterwards."""
    path = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _fingerprint(model: Model) -> str:
    """A hash of the variables."""
    result = hashlib.sha256()
    for path, leaf in sorted(by_path(model.variables).items()):
        result.update(path.encode())
        result.update(np.ascontiguousarray(leaf).tobytes())
    return result.hexdigest()
