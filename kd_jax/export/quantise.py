"""ONNX files with smaller weights: float16, or int8 without or with the activations.

The results are for the same runtimes, and for inputs and outputs in float32.
"""

import contextlib
import io
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.export.onnx import quiet, require
from kd_jax.export.program import Arrays, Program

LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operations whose weights are quantised."""

INTEGER = ("Conv", "MatMul", "Gemm")
"""Those that onnxruntime computes in integers: others gain nothing from activations in int8."""

SMALLEST = 64
"""Arrays of fewer numbers stay in float32."""

PERCENTILE = 99.999
"""Of the values of an activation, those in its range: a rare large one costs all others bits."""


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


def to_int8(
    contents: bytes,
    program: Program,
    keep: tuple[str, ...] = (),
    calibration: Arrays | None = None,
) -> Quantised:
    """Weights in int8 with a scale per channel and, if there are examples, activations in int8.

    The layers that compute the output stay in float32: their rounding is seen in the image. So do
    the activations of other operations than `INTEGER`, and of the layers that read latents, whose
    values beyond the measured range would be clipped.

    Args:
      contents: of a float32 file of the program.
      program: the program.
      keep: names of further layers that stay in float32.
      calibration: inputs that the ranges of activations are measured on; None for weights only.

    Raises:
      UsageError: a package is missing.
      ValueError: `keep` names a layer that there is not, or there is nothing to quantise.
    """
    onnx = require("onnx")
    model = onnx.load_from_string(contents)
    _add_instead_of_subtract(onnx, model.graph)
    model = onnx.load_from_string(_fold(model.SerializeToString()))
    _drop_scalar_zeros(onnx, model.graph)
    layers = _layers(model.graph)
    if unknown := [name for name in keep if name not in layers]:
        raise ValueError(f"no layer {unknown[0]!r}; there are {', '.join(layers)}")
    outputs = [value.name for value in model.graph.output]
    in_float = tuple(sorted({*keep, *(_nearest(model.graph, layers, outputs) & layers.keys())}))
    if len(in_float) == len(layers):
        raise ValueError(
            f"{program.name} has no layer to quantise: {', '.join(in_float)} stay in float"
        )
    if calibration is not None:
        latents = {slot.name for slot in program.inputs if slot.name == "latents"}
        ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
        integer = [
            name
            for name, node in layers.items()
            if name not in in_float
            and node.op_type in INTEGER
            # A product of matrices in integers takes its weights as a second matrix only.
            and (node.op_type == "Conv" or ranks.get(node.input[1]) == 2)
            and not latents & _nearest(model.graph, layers, node.input[:1])
        ]
        if integer:
            model = _with_activations(model, program, integer, calibration)
    _quantise_weights(onnx, model.graph, in_float)
    return Quantised(model.SerializeToString(), in_float)


class _Reader:
    """Examples in batches of one, or as many as the program takes, for the quantiser."""

    def __init__(self, program: Program, inputs: Arrays):
        self.names = [slot.name for slot in program.inputs]
        self.inputs, self.size = inputs, program.batch or 1
        self.next, self.end = 0, len(self)

    def __len__(self) -> int:
        return max(len(x) for x in self.inputs if x.ndim) // self.size

    def set_range(self, start_index: int, end_index: int) -> None:
        self.next, self.end = start_index, end_index

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self.next >= self.end:
            return None
        at = self.next * self.size
        self.next += 1
        batch = (x[at : at + self.size] if x.ndim else x for x in self.inputs)
        return dict(zip(self.names, batch, strict=True))


def _with_activations(model: Any, program: Program, names: list[str], calibration: Arrays) -> Any:
    """The model with the weights, inputs and, of convolutions, outputs of these layers in int8."""
    onnx, tools = require("onnx"), require("onnxruntime.quantization")
    operations = [*INTEGER, "Relu"]  # a convolution's output is rounded after its ReLU
    others = [
        node.name for node in model.graph.node if node.op_type in INTEGER and node.name not in names
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        quiet(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model.SerializeToString())
        tools.quantize_static(
            str(source),
            str(target),
            _Reader(program, calibration),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=operations,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=others,
            calibrate_method=tools.CalibrationMethod.Percentile,
            extra_options={
                "CalibPercentile": PERCENTILE,
                "CalibStridedMinMax": 1,  # an example at a time: their activations are in memory
                # onnxruntime multiplies matrices in integers without, convolutions only with it.
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )
        return onnx.load_from_string(target.read_bytes())


def _quantise_weights(onnx: Any, graph: Any, in_float: Collection[str]) -> None:
    """Stores the weights that are not in int8 yet with a scale per channel of the output."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for layer in _layers(graph).values():
        for name in layer.input[:2]:
            if layer.name in in_float or name not in tensors:
                continue
            weight = onnx.numpy_helper.to_array(tensors.pop(name))
            if weight.ndim < 2 or weight.size < SMALLEST:
                continue
            axis = _output_axis(layer, name, weight.ndim)
            others = tuple(number for number in range(weight.ndim) if number != axis)
            scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True) / 127, 1e-30)
            values = np.round(weight / scale).astype(np.int8)
            stored = onnx.numpy_helper.from_array(values, f"{name}/int8")
            scales = onnx.numpy_helper.from_array(scale.reshape(-1), f"{name}/scale")
            graph.initializer.extend([stored, scales])
            names = [stored.name, scales.name]
            nodes.append(
                onnx.helper.make_node(
                    "DequantizeLinear", names, [name], f"{name}/dequantise", axis=axis
                )
            )
    computed = {output for node in nodes for output in node.output}
    rest = [tensor for tensor in graph.initializer if tensor.name not in computed]
    layers = list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(rest)
    graph.node.extend([*nodes, *layers])


def _output_axis(layer: Any, weight: str, rank: int) -> int:
    """The axis of a weight that the channels of the layer's output are in."""
    if layer.op_type in ("Conv", "ConvTranspose"):
        return 0 if layer.op_type == "Conv" else 1
    first = weight == layer.input[0]
    transposed = {x.name: x.i for x in layer.attribute}.get("transA" if first else "transB", 0)
    return rank - 2 if first != bool(transposed) else rank - 1


def _add_instead_of_subtract(onnx: Any, graph: Any) -> None:
    """`x - constant` as `x + (-constant)`, which is folded into a convolution before it."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Sub" and node.input[1] in tensors:
            value = onnx.numpy_helper.to_array(tensors[node.input[1]])
            name = f"{node.input[1]}/{node.name}/negative"
            graph.initializer.append(onnx.numpy_helper.from_array(-value, name))
            node.op_type = "Add"
            node.input[1] = name


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


def _layers(graph: Any) -> dict[str, Any]:
    """The layers with constant weights by name, in order."""
    constants = {tensor.name for tensor in graph.initializer}
    return {
        node.name: node
        for node in graph.node
        if node.op_type in LAYERS and constants & set(node.input)
    }


def _nearest(graph: Any, layers: Mapping[str, Any], values: list[str]) -> set[str]:
    """The layers from which a path leads to one of the values without another layer; and inputs."""
    producers = {output: node for node in graph.node for output in node.output}
    pending, nearest, visited = list(values), set(), set()
    while pending:
        name = pending.pop()
        node = producers.get(name)
        if node is None:
            nearest.add(name)
        elif node.name in layers:
            nearest.add(node.name)
        elif node.name not in visited:
            visited.add(node.name)
            pending += node.input
    return nearest
