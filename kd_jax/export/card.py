"""The card of an export: a README.md with everything that a user of the files must know."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax.core import cost
from kd_jax.core.files import read_json, write_atomically
from kd_jax.export import onnx, stablehlo
from kd_jax.export.program import IMAGES, Program, Slot
from kd_jax.model import Model

CARD = "README.md"

BATCHES = (1, 16)
"""The batches that are timed, where the program takes any number."""

ROUNDS = 7
"""Timed calls of each runtime, in turn."""

JAVASCRIPT = {"float32": "Float32Array", "int32": "Int32Array"}
BUFFERS = {"float32": "FloatBuffer", "int32": "IntBuffer"}
"""The arrays of the dtypes of inputs, in JavaScript and in Java."""


def write(
    folder: str | os.PathLike[str],
    index: str,
    model: Model,
    program: Program,
    *,
    license: str = "",
    report: str = "",
) -> Path:
    """Writes the card beside the files, and measures what they need here.

    Args:
      folder: the folder of the export.
      index: the name of the file in it that lists the files.
      model: the generator.
      program: the program that the files were written from.
      license: of the weights, as the user states it.
      report: the text of the `report.md` of a distillation; empty without one.

    Returns:
      The path of the card.
    """
    path = Path(folder).expanduser()
    contents = read_json(path / index, checked=True)
    sections = [
        f"# {program.name[0].upper()}{program.name[1:]}",
        _origin(model, contents, license),
        *_distillation(report),
        "## Inputs and output\n\n" + _slots(program),
        "## Files\n\n" + _files(contents["files"]),
        "## Cost\n\n" + _cost(path, model, program, contents["files"]),
        *_usage(program, contents["files"]),
    ]
    target = path / CARD
    write_atomically(target, "\n\n".join(sections) + "\n")
    return target


def _origin(model: Model, contents: Mapping[str, Any], license: str) -> str:
    info = model.info
    configuration = info.get("configuration") or {}
    module = model.network.module
    source = info.get("file") or "/".join(Path(info.get("folder") or "").parts[-2:])
    lines = [
        f"* architecture: {type(module).__name__ if module is not None else 'not a Linen module'}",
        f"* source: {source or 'variables in memory'}",
        f"* SHA-256 of the variables: `{contents['variables']}`",
        f"* licence, as given: {license or 'not stated'}",
    ]
    if "teacher" in configuration:
        lines.insert(2, f"* distilled from a teacher with the digest `{configuration['teacher']}`")
    lines += [f"* option {name}: {value}" for name, value in contents["options"].items()]
    return "\n".join(lines)


def _distillation(report: str) -> list[str]:
    """The sentences and the first table of a distillation's report."""
    text = report.partition("\n## Examples")[0]
    parts = [part for part in text.split("\n\n") if not part.startswith("#")]
    body = "\n\n".join(parts).strip()
    return [f"## Distillation\n\n{body}"] if body else []


def _slots(program: Program) -> str:
    rows = ["| | name | shape | dtype | values |", "|---|---|---|---|---|"]
    for kind, slots in (("input", program.inputs), ("output", (program.output,))):
        rows += [
            f"| {kind} | `{slot.name}` | `[{', '.join(map(str, slot.shape))}]` | {slot.dtype} | "
            f"{slot.values} |"
            for slot in slots
        ]
    text = "\n".join(rows)
    if any(len(slot.shape) == 4 for slot in (*program.inputs, program.output)):
        text += "\n\nImages are `[batch, height, width, channels]`, channels red, green and blue."
    return text


def _files(files: Mapping[str, Any]) -> str:
    rows = [
        "| format | file | size | largest difference from JAX | peak of JAX |",
        "|---|---|---|---|---|",
    ]
    notes = []
    for name, file in files.items():
        parity = file["parity"]
        rows.append(
            f"| {name} | `{file['file']}` | {file['bytes'] / 1e6:.2f} MB | "
            f"{parity['difference']:.1e} | {parity['peak']:.2g} |"
        )
        if quality := file["quality"]:
            distance = quality["frechet"]
            notes.append(
                f"{name}: PSNR {quality['psnr'] or float('inf'):.1f} dB"
                + (f", Frechet distance {distance:.3g} ({quality['features']})" if distance else "")
                + f" to float32, over {quality['examples']} of {quality['inputs']}."
            )
        if file["in_float"]:
            notes.append(f"{name}: in float32 are {', '.join(file['in_float'])}.")
    if "stablehlo" in files:
        notes.append(
            "The StableHLO file is a cache, not an archive: `jax.export` promises to read it for "
            f"six months after the version that wrote it (JAX {jax.__version__})."
        )
    return "\n\n".join(["\n".join(rows), *notes])


def _cost(folder: Path, model: Model, program: Program, files: Mapping[str, Any]) -> str:
    parameters = cost.parameter_count(model.variables)
    macs = cost.multiply_accumulates(model.network, model.variables, *model.inputs)
    shapes = " and ".join("x".join(map(str, x.shape)) for x in model.inputs)
    text = (
        f"{parameters:,} parameters; {macs / 1e6:,.1f} million multiply-accumulates for inputs of "
        f"{shapes}, of the network as a whole.\n\n"
    )
    loaders = {"onnx": ("onnxruntime", onnx.load), "stablehlo": ("StableHLO", stablehlo.load)}
    rows = ["| runtime | batch | median latency |", "|---|---|---|"]
    for batch in (program.batch,) if program.batch else BATCHES:
        inputs = program.draw(0, batch)
        calls = {"JAX": _call(jax.jit(program.apply), inputs)}
        for name, (runtime, load) in loaders.items():
            if name in files:
                calls[runtime] = _call(load(folder / files[name]["file"]), inputs)
        times = cost.time_interleaved(calls, ROUNDS, 1)
        rows += [f"| {name} | {batch} | {np.median(x):.2f} ms |" for name, x in times.items()]
    sides = "x".join(map(str, program.sides[0]))
    images = f" Images of {sides} are the inputs." if _takes_images(program) else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        text
        + "\n".join(rows)
        + f"\n\nMeasured in turn where the files were written: {jax.default_backend()}, "
        f"{cores} cores, onnxruntime on the CPU.{images}"
    )


def _call(run: Callable[..., Any], inputs: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(run(*inputs))


def _takes_images(program: Program) -> bool:
    return any(slot.values == IMAGES for slot in program.inputs)


def _usage(program: Program, files: Mapping[str, Any]) -> list[str]:
    """How the ONNX file is run in three languages."""
    if "onnx" not in files:
        return []
    file = files["onnx"]["file"]
    shapes = [tuple(x.shape) for x in program.draw(0, program.batch or 1)]
    pixels = program.output.values == IMAGES
    python = [
        "import numpy as np",
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{file}")',
        "inputs = {",
        *(f'    "{s.name}": {_numpy(s, x)},' for s, x in zip(program.inputs, shapes, strict=True)),
        "}",
        "(output,) = session.run(None, inputs)",
        *(["pixels = np.clip(127.5 * output + 128, 0, 255).astype(np.uint8)"] if pixels else []),
    ]
    script = [
        'import * as ort from "onnxruntime-web";',
        "",
        f'const session = await ort.InferenceSession.create("{file}");',
        "const inputs = {",
        *(
            f'  {s.name}: new ort.Tensor("{s.dtype}", new {JAVASCRIPT[s.dtype]}('
            f"{int(np.prod(x))}).fill(0), {list(x)}),"
            for s, x in zip(program.inputs, shapes, strict=True)
        ),
        "};",
        "const { output } = await session.run(inputs);  // output.data, output.dims",
    ]
    kotlin = [
        '// implementation("com.microsoft.onnxruntime:onnxruntime-android:latest.release")',
        "val environment = OrtEnvironment.getEnvironment()",
        f'val session = environment.createSession(assets.open("{file}").readBytes())',
        "val inputs = mapOf(",
        *(
            f'    "{s.name}" to OnnxTensor.createTensor(environment, {BUFFERS[s.dtype]}.wrap('
            f"{s.name}), longArrayOf({', '.join(map(str, x))})),"
            for s, x in zip(program.inputs, shapes, strict=True)
        ),
        ")",
        "val output = (session.run(inputs)[0] as OnnxTensor).floatBuffer",
    ]
    blocks = (("In Python", "python", python), ("In JavaScript", "js", script))
    android = ("On Android", "kotlin", kotlin)
    return [
        f"## {name}\n\n```{language}\n" + "\n".join(lines) + "\n```"
        for name, language, lines in (*blocks, android)
    ]


def _numpy(slot: Slot, shape: tuple[int, ...]) -> str:
    """An expression for values of the input."""
    if slot.values == "standard normal":
        return f"np.random.default_rng(0).standard_normal({shape}).astype(np.{slot.dtype})"
    return f"np.zeros({shape}, np.{slot.dtype})"
