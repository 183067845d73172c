"""Generators as files for other programs, each compared with JAX before it is kept.

    files = kd_jax.export.export(kd_jax.load("runs/small"), "out", formats=("onnx", "safetensors"))
    files["onnx"].path

Packages: `kd_jax.export.onnx.INSTALL` and `kd_jax.export.tflite.INSTALL`.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.core.checks import UsageError
from kd_jax.core.files import claim_folder, file_lock, naming, read_json, write_json
from kd_jax.core.network import by_path
from kd_jax.export import onnx, parity, quality, quantise, safetensors, stablehlo, tflite
from kd_jax.export.parity import Parity as Parity, ParityError as ParityError
from kd_jax.export.program import Program as Program, make_program as make_program
from kd_jax.export.quality import Inputs, Quality as Quality
from kd_jax.metrics.extractor import Extractor
from kd_jax.model import Model

FORMATS = {
    "onnx": "generator.onnx",
    "tflite": "generator.tflite",
    "stablehlo": "generator.stablehlo",
    "safetensors": "generator.safetensors",
    "original": "generator.original.safetensors",
}
"""The formats and their files. "original" has the names of the program that published it."""

DTYPES = {
    "float32": tuple(FORMATS),
    "float16": ("onnx", "safetensors", "original"),
    "int8": ("onnx",),
    "int8-weights": ("onnx",),
}
"""The dtypes of weights, and the formats that have them; of "int8", activations have it too."""

INDEX = "export.json"
"""The file that describes the program and the files in a folder."""


class Exported(NamedTuple):
    """An exported file.

    Attributes:
      path: the file.
      parity: how its outputs differ from JAX's.
      in_float: layers that stay in float32 in a file of another dtype.
      quality: of a file of another dtype than float32, the loss of quality.
    """

    path: Path
    parity: Parity
    in_float: tuple[str, ...] = ()
    quality: Quality | None = None

    def describe(self) -> dict[str, Any]:
        """JSON values: the file's name and size, and how it differs from JAX."""
        return {
            "file": self.path.name,
            "bytes": self.path.stat().st_size,
            "parity": {name: _plain(value) for name, value in self.parity._asdict().items()},
            "in_float": list(self.in_float),
            "quality": self.quality
            and {name: _plain(value) for name, value in self.quality._asdict().items()},
        }


def export(
    model: Model,
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("onnx",),
    *,
    dtype: str = "float32",
    keep: Sequence[str] = (),
    examples: Sequence[Any] | None = None,
    examples_name: str = "passed examples",
    features: Extractor | None = None,
    **options: Any,
) -> Mapping[str, Exported]:
    """Writes files of a generator, and only those that compute what JAX computes.

    Args:
      model: the generator, from `kd_jax.load`.
      folder: a new or an empty folder, or one with other formats of the same export.
      formats: of `FORMATS`.
      dtype: of the weights, of `DTYPES`.
      keep: layers of an int8 file that stay in float32, besides the last ones.
      examples: arrays `[N, ...]`, one for each input of the program, that are like those of use:
        the first half calibrates an int8 file, and the files are compared on the second. By default
        drawn inputs, of which images are artificial.
      examples_name: a description of them.
      features: for the Frechet distance of files of other dtypes than float32.
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
    if keep and not dtype.startswith("int8"):
        raise ValueError(f"keep={list(keep)} is for dtype='int8', not {dtype!r}")
    program = make_program(model, **options)
    inputs = None
    if examples is not None:
        inputs = quality.split_inputs(program, examples, examples_name)
    path = Path(folder).expanduser()
    settings = {
        "program": program.name,
        **program.describe(),
        "dtype": dtype,
        "keep": list(keep),
        "options": {name: value for name, value in options.items() if value is not None},
        "variables": _fingerprint(model),
        "files": _files_in(path),
    }
    existed = path.exists()
    belonged = claim_folder(path, INDEX, settings, "an export")
    files: dict[str, Exported] = {}
    try:
        with _alone(path):
            for name in dict.fromkeys(formats):
                target = path / FORMATS[name]
                with naming(f"write {target}"):
                    files[name] = _write(
                        name, model, program, target, dtype, tuple(keep), inputs, features
                    )
                    settings["files"] |= {name: files[name].describe()}
                    write_json(path / INDEX, settings)
    finally:
        if not files and not belonged:
            (path / INDEX).unlink(missing_ok=True)
            if not existed:
                path.rmdir()
    return files


def _files_in(folder: Path) -> dict[str, Any]:
    """The files that the index of a folder lists."""
    try:
        files: dict[str, Any] = read_json(folder / INDEX, checked=True)["files"]
    except (OSError, ValueError, KeyError):  # absent or damaged, which claim_folder reports
        return {}
    return files


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Locks a folder, and removes the temporary files of an export that was killed."""
    try:
        with file_lock(folder, needed=False):
            for name in FORMATS.values():
                stem, _, suffix = name.rpartition(".")
                for leftover in folder.glob(f".{stem}.*.{suffix}"):
                    leftover.unlink()
            yield
    except BlockingIOError:
        raise UsageError(f"{folder}: another process exports to it") from None


def _plain(value: Any) -> Any:
    """A JSON value: infinity, which JSON does not have, as None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(
    name: str,
    model: Model,
    program: Program,
    target: Path,
    dtype: str,
    keep: tuple[str, ...],
    inputs: Inputs | None,
    features: Extractor | None,
) -> Exported:
    """Writes one file, if it has parity."""
    examples = None if inputs is None else inputs.measured
    if inputs is None and dtype != "float32":
        inputs = quality.drawn_inputs(program)

    def write_if_equal(
        contents: bytes, load: Callable[[Path], Any], in_float: tuple[str, ...] = ()
    ) -> Exported:
        loss = None
        with _temporary(target) as partial:
            partial.write_bytes(contents)
            run = load(partial)
            result = parity.check(program, run, f"{target} ({name})", dtype, examples)
            if dtype != "float32":
                assert inputs is not None
                loss = quality.measure(program, run, inputs, features)
            os.replace(partial, target)
        return Exported(target, result, in_float, loss)

    if name == "onnx":
        contents = onnx.build(program)
        if dtype == "float32":
            return write_if_equal(contents, onnx.load)
        # The conversion first, by the strict limits: those of few bits hide other errors.
        with _temporary(target) as partial:
            partial.write_bytes(contents)
            parity.check(program, onnx.load(partial), f"{target} (onnx, float32)")
        if dtype == "float16":
            smaller = quantise.to_float16(contents)
        else:
            assert inputs is not None
            calibration = inputs.calibration if dtype == "int8" else None
            smaller = quantise.to_int8(contents, program, keep, calibration)
        return write_if_equal(smaller.contents, onnx.load, smaller.in_float)
    if name == "tflite":
        return write_if_equal(tflite.build(program), tflite.load)
    if name == "stablehlo":
        return write_if_equal(stablehlo.build(program), stablehlo.load)
    build, load = {
        "safetensors": (safetensors.build, safetensors.load),
        "original": (safetensors.build_original, safetensors.load_original),
    }[name]
    return write_if_equal(build(model, dtype), lambda path: load(path, program, model))


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
