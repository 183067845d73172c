"""A page that runs a generator in the browser: a folder for any static server, without a network.

    from kd_jax.export import page
    page.write(kd_jax.load("runs/small"), "site", teacher=kd_jax.load("teacher.pkl"))

    python -m http.server --directory site

The model is the ONNX file of `kd_jax.export.export`; onnxruntime-web runs it in WebAssembly, and in
WebGPU where the browser has it and the outputs are those that are stored beside the model.
"""

import hashlib
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core import cost
from kd_jax.core.axes import tensors
from kd_jax.core.family import Interface
from kd_jax.core.files import naming, write_atomically
from kd_jax.export import Exported, export, web_runtime
from kd_jax.export.parity import TOLERANCES
from kd_jax.export.program import Program, make_program
from kd_jax.methods import sefa_directions
from kd_jax.model import Model

ASSETS = Path(__file__).with_name("page_assets")

INDEX, DESCRIPTION, REFERENCE = "index.html", "page.json", "reference.bin"
"""The page, what it shows, and the inputs and outputs that it is compared with."""

RUNTIME = "runtime"
"""The folder of the runtime's files."""

TEACHER = "teacher"
"""The folder of the teacher's export."""

DIRECTIONS = 8
"""The sliders of a page."""

EXAMPLES = 2
"""Examples that the page compares with JAX's outputs."""

NUMBERS = 1 << 18
"""At most so many numbers of an output are stored, at even distances."""


class Page(NamedTuple):
    """A page.

    Attributes:
      path: its `index.html`.
      files: the generator's exported files by format.
      teacher: the teacher's ONNX file; None without one.
      runtime: bytes of the runtime's files.
      directions: the number of sliders along principal directions.
    """

    path: Path
    files: Mapping[str, Exported]
    teacher: Exported | None
    runtime: int
    directions: int


def write(
    model: Model,
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("onnx",),
    *,
    teacher: Model | None = None,
    runtime: str | os.PathLike[str] | None = None,
    title: str | None = None,
    exporting: Mapping[str, Any] = {},
    **options: Any,
) -> Page:
    """Exports a generator with a page that shows it.

    Args:
      model: the generator, from latents or from images, with or without labels.
      folder: as of `export`.
      formats: as of `export`; "onnx" is among them.
      teacher: a generator with the same inputs and outputs, to be shown beside it, in float32.
      runtime: the npm package onnxruntime-web as `.tgz` or as a folder; by default it is fetched,
        once, as `web_runtime.read` describes.
      title: of the page.
      exporting: further arguments of `export` for the generator, such as its `dtype`.
      **options: those of `make_program`.

    Raises:
      ValueError: an argument does not fit, or the page does not show such a generator; nothing is
        written.
      ParityError: an ONNX file computes something else than JAX; there is no page.
      UsageError: the runtime cannot be fetched, or as of `export`.
    """
    if "onnx" not in formats:
        raise ValueError(f"formats={list(formats)}: a page needs onnx among them")
    models = {"student": model} if teacher is None else {"teacher": teacher, "student": model}
    programs = {name: make_program(m, **options) for name, m in models.items()}
    for program in programs.values():
        _check_shown(program)
    if teacher is not None:
        _check_alike(programs["teacher"], programs["student"])
    parts = web_runtime.read(None if runtime is None else Path(runtime).expanduser())

    path = Path(folder).expanduser()
    files = export(model, path, formats, **exporting, **options)
    exported = {"student": files["onnx"]}
    dtypes = {"student": exporting.get("dtype", "float32"), "teacher": "float32"}
    if teacher is not None:
        exported["teacher"] = export(teacher, path / TEACHER, **options)["onnx"]

    directions = principal_directions(model)
    reference = _Reference()
    inputs = programs["student"].draw(7, programs["student"].batch or EXAMPLES)
    stored = [reference.add(x, 1) for x in inputs]
    description = {
        "title": title or _title(model),
        "about": _about(model.interface, programs["student"]),
        **programs["student"].describe(),
        "classes": model.classes,
        "directions": np.round(directions, 6).tolist(),
        "images": _sides(model.interface, list(programs.values())),
        "networks": {
            name: {
                "file": exported[name].path.relative_to(path).as_posix(),
                **_sized(exported[name].path.read_bytes()),
                "dtype": dtypes[name],
                "parameters": cost.parameter_count(m.variables),
                "macs": cost.multiply_accumulates(m.network, m.variables, *m.inputs),
                "output": reference.add(_outputs(programs[name], inputs), NUMBERS),
                "share": _finite(TOLERANCES[dtypes[name]].share),
                "psnr": TOLERANCES[dtypes[name]].psnr,
            }
            for name, m in models.items()
        },
        "reference": {"file": REFERENCE, "inputs": stored, **_sized(reference.contents)},
        "runtime": {
            "version": web_runtime.VERSION,
            **{
                kind: {
                    "script": f"{RUNTIME}/{kind}.js",
                    "file": f"{RUNTIME}/{kind}.wasm",
                    **_sized(parts[f"{kind}.wasm"]),
                }
                for kind in ("wasm", "webgpu")
            },
        },
    }
    with naming(f"write the page to {path}"):
        for name, contents in parts.items():
            write_atomically(path / RUNTIME / name, contents)
        write_atomically(path / REFERENCE, reference.contents)
        write_atomically(path / DESCRIPTION, json.dumps(description, allow_nan=False) + "\n")
        for asset in sorted(ASSETS.iterdir()):
            text = asset.read_text(encoding="utf-8")
            if asset.name == INDEX:
                text = text.replace("__TITLE__", html.escape(str(description["title"])))
            write_atomically(path / asset.name, text)
    total = sum(len(contents) for contents in parts.values())
    return Page(path / INDEX, files, exported.get("teacher"), total, len(directions))


def principal_directions(model: Model, count: int = DIRECTIONS) -> np.ndarray:
    """The directions of the latent that the first layer reads most: `sefa_directions`.

    Args:
      model: a generator.
      count: at most so many.

    Returns:
      `[K, latent]`, unit vectors, strongest first, each with a positive sum; K is 0 for generators
      of images from images, and for those without a layer that reads all of the latent.
    """
    if model.interface.takes_images:
        return np.zeros((0, 0), np.float32)
    length = model.interface.latent
    # The first layer may read one-hot labels after the latent; that of a mapping, embedded ones.
    widths = {length, length + model.classes}
    for path, leaf in tensors(model.variables).items():
        if (
            path.endswith("/mapping/fc0/weight")
            if model.network.mapping is not None
            else path.endswith("/kernel") and leaf.ndim == 2 and leaf.shape[0] in widths
        ):
            rows = jnp.asarray(leaf)[:length].T
            vectors = np.asarray(sefa_directions([rows], min(count, len(rows))))
            return vectors * np.where(vectors.sum(axis=1, keepdims=True) < 0, -1, 1)
    return np.zeros((0, length), np.float32)


class _Reference:
    """Arrays one after another in a file: numbers of four bytes, little-endian."""

    def __init__(self) -> None:
        self.contents = b""

    def add(self, array: np.ndarray, most: int) -> dict[str, Any]:
        """Stores an array, or every nth number of it; where and how, as JSON values."""
        step = max(1, -(-array.size // most)) if most > 1 else 1
        start, values = len(self.contents), array.reshape(-1)[::step]
        self.contents += values.astype(f"<{values.dtype.kind}4").tobytes()
        return {"shape": list(array.shape), "start": start, "count": values.size, "step": step}


def _outputs(program: Program, inputs: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(jax.jit(program.apply)(*inputs), np.float32)


def _sized(contents: bytes) -> dict[str, Any]:
    return {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _title(model: Model) -> str:
    interface = model.interface
    height, width, _ = interface.output
    if not interface.takes_images:
        return f"A generator of {width}×{height} images"
    return f"{interface.scale}× super-resolution" if interface.scale > 1 else "Image to image"


def _about(interface: Interface, program: Program) -> str:
    if interface.takes_images and program.inputs[0].shape[1] != interface.inputs[0].shape[1]:
        scale = interface.output[0] / interface.inputs[0].shape[1]
        result = "of the same size" if scale == 1 else f"{scale:g} times as large"
        return f"images of any size → images {result}"
    return interface.describe().replace("->", "→")


def _check_shown(program: Program) -> None:
    """Checks that the page has an interface for such a program."""
    names = [slot.name for slot in program.inputs]
    fitting = names[0] in ("latents", "images") and len(set(names)) == len(names)
    if not fitting or program.output.values != "-1 to 1":
        raise ValueError(
            f"a page shows generators of images from latents or from one image, not {program.name}"
        )
    shapes = [s.shape for s in (*program.inputs, program.output) if len(s.shape) == 4]
    if channels := [shape[3] for shape in shapes if shape[3] not in (1, 3)]:
        raise ValueError(f"a page shows images of 1 or 3 channels, not {channels[0]}")


def _check_alike(teacher: Program, student: Program) -> None:
    """Checks that two programs take the same inputs."""

    def axes(program: Program) -> dict[str, tuple[Any, ...]]:
        slots = {slot.name: slot for slot in (*program.inputs, program.output)}
        return {
            name: tuple("any" if isinstance(n, str) else n for n in slot.shape)
            for name, slot in slots.items()
        }

    first, second = axes(teacher), axes(student)
    for name in dict.fromkeys([*first, *second]):
        if first.get(name) != second.get(name):
            raise ValueError(
                f"the teacher's {name} {list(first.get(name, ()))} differ from the student's "
                f"{list(second.get(name, ()))}: a page gives both the same"
            )
    scales = [p.output.multiple / p.inputs[0].multiple for p in (teacher, student)]
    if scales[0] != scales[1]:
        raise ValueError(f"the teacher enlarges images {scales[0]:g} times, not {scales[1]:g}")


def _sides(interface: Interface, programs: Sequence[Program]) -> dict[str, Any] | None:
    """The sides of the images that all programs take, and of their outputs; None without images.

    They are `height` and `width` if these are fixed; otherwise multiples of them, and at least
    `least`. `size` is that of the training, for which the cost is counted.
    """
    images = [program.inputs[0] for program in programs if program.inputs[0].name == "images"]
    if not images:
        return None
    height, width = images[0].shape[1:3]
    fixed = isinstance(height, int)
    if not fixed:
        height = width = max(slot.multiple for slot in images)  # powers of 2
    sides = [min(min(pair) for pair in program.sides) for program in programs]
    return {
        "height": height,
        "width": width,
        "fixed": fixed,
        "least": max(sides),
        "size": list(interface.inputs[0].shape[1:3]),
        "scale": interface.output[0] / interface.inputs[0].shape[1],
    }
