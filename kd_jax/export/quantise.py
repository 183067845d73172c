"""ONNX files with smaller weights: float16, or int8 calibrated on the program's inputs.

The results are for the same runtimes, and for inputs and outputs in float32.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.export.onnx import quiet, require
from kd_jax.export.program import Program

LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operations whose weights are quantised."""

SMALLEST = 64
"""Arrays of fewer numbers stay in float32."""

CALIBRATION = 16
"""Examples that the ranges of activations are measured on."""


class Quantised(NamedTuple):
    """A file and what is not quantised in it.

    Attributes:
      contents: of the ONNX file.
      in_float: names of layers that stay in float32.
    """

    contents: bytes
    in_float: tuple[str, ...]


def to_float16(contents: bytes) -> Quantised:
    """Weights in float16, converted to float32 where they are used: half the size, the same speed.

    Computations stay in float32, since few processors and browsers have them in float16.

    Raises:
      ValueError: a weight is infinite in float16.
    """
    onnx = require("onnx")
    model = onnx.load_from_string(contents)
    in_float, weights, casts = [], [], []
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < SMALLEST:
            weights.append(tensor)
            continue
        if np.abs(array).max() > np.finfo(np.float16).max:
            in_float.append(tensor.name)
            weights.append(tensor)
            continue
        stored = f"{tensor.name}/float16"
        weights.append(onnx.numpy_helper.from_array(array.astype(np.float16), stored))
        casts.append(
            onnx.helper.make_node(
                "Cast", [stored], [tensor.name], f"{stored}_cast", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(weights)
    model.graph.node.extend([*casts, *nodes])
    return Quantised(model.SerializeToString(), tuple(in_float))


def to_int8(contents: bytes, program: Program, keep: tuple[str, ...] = ()) -> Quantised:
    """Weights in int8 per channel and activations in int8, as QuantizeLinear and DequantizeLinear.

    The layers that compute the output stay in float32: their rounding is seen in the image. The
    ranges of activations are those of `CALIBRATION` examples of the program.

    Args:
      contents: of a float32 file of the program.
      program: the program.
      keep: names of further layers that stay in float32.

    Raises:
      UsageError: a package is missing.
      ValueError: `keep` names a layer that there is not, or there is nothing to quantise.
    """
    onnx = require("onnx")
    tools = require("onnxruntime.quantization")
    model = onnx.load_from_string(_fold(contents))
    _drop_scalar_zeros(onnx, model.graph)
    names = _layers(model.graph)
    if unknown := [name for name in keep if name not in names]:
        raise ValueError(f"no layer {unknown[0]!r}; there are {', '.join(names)}")
    in_float = tuple(sorted({*keep, *_last_layers(model.graph, names)}))
    if len(in_float) == len(names):
        raise ValueError(
            f"{program.name} has no layer to quantise: {', '.join(in_float)} stay in float"
        )
    reader = type("Reader", (tools.CalibrationDataReader,), {"get_next": _Examples(program).next})
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model.SerializeToString())
        tools.quantize_static(
            str(source),
            str(target),
            reader(),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=list(in_float),
        )
        return Quantised(target.read_bytes(), in_float)


def _fold(contents: bytes) -> bytes:
    """The file with its constant expressions, such as transposed kernels, as constants."""
    runtime = require("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        runtime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
        return Path(options.optimized_model_filepath).read_bytes()


def _drop_scalar_zeros(onnx: Any, graph: Any) -> None:
    """Leaves out biases that are a single 0, which the quantiser expects to be vectors."""
    zeros = {
        tensor.name
        for tensor in graph.initializer
        if not tensor.dims and not onnx.numpy_helper.to_array(tensor)
    }
    for node in graph.node:
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]


class _Examples:
    """Single examples of a program, drawn one after another."""

    def __init__(self, program: Program):
        self.names = [slot.name for slot in program.inputs]
        self.rest = self._draw(program)

    def _draw(self, program: Program) -> Iterator[Mapping[str, np.ndarray]]:
        count = program.batch or 1
        for seed in range(-(-CALIBRATION // count)):
            inputs = program.draw(1000 + seed, count, seed % len(program.sides))
            yield dict(zip(self.names, inputs, strict=True))

    def next(self, _: Any = None) -> Mapping[str, np.ndarray] | None:
        """The next example, or None."""
        return next(self.rest, None)


def _layers(graph: Any) -> dict[str, Any]:
    """The layers with constant weights by name, in order."""
    constants = {tensor.name for tensor in graph.initializer}
    return {
        node.name: node
        for node in graph.node
        if node.op_type in LAYERS and constants & set(node.input)
    }


def _last_layers(graph: Any, layers: Mapping[str, Any]) -> set[str]:
    """The layers from which a path leads to the output without another layer."""
    producers = {output: node for node in graph.node for output in node.output}
    pending, last, visited = [value.name for value in graph.output], set(), set()
    while pending:
        node = producers.get(pending.pop())
        if node is None or node.name in visited:
            continue
        visited.add(node.name)
        if node.name in layers:
            last.add(node.name)
        else:
            pending += node.input
    return last
