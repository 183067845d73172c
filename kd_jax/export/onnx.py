"""ONNX files, converted by jax2onnx and run by onnxruntime.

The weights are within the file, as browsers need. A file is for onnxruntime, onnxruntime-web and
phones: operations of opset `OPSET` only.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax.core.checks import import_package
from kd_jax.export.program import Program
from kd_jax.ops.primitive import portable

OPSET = 18

INSTALL = "pip install 'kd_jax[export]' && pip install --no-deps jax2onnx"
"""Two commands, since jax2onnx asks for an older Orbax, which it does not need for this."""


def build(program: Program) -> bytes:
    """The contents of the program's ONNX file.

    Raises:
      UsageError: a package is missing; the message has the commands that install it.
      ValueError: the network computes in another dtype than float32, or the converter does not
        know an operation of the program.
    """
    dtype = np.dtype(getattr(program.network.module, "dtype", None) or np.float32)
    if dtype != np.float32:
        raise ValueError(
            f"{program.name} computes in {dtype}, and ONNX files in float32: rebuild the network "
            "with dtype=float32; its variables fit"
        )
    jax2onnx = require("jax2onnx")
    arguments = program.arguments()
    blocks = [slot.multiple for slot in program.inputs]

    def apply(*inputs: Any) -> Any:
        # The converter knows symbols, but not their multiples, as sides of inputs.
        return program.apply(
            *(x.reshape(like.shape) for x, like in zip(inputs, arguments, strict=True))
        )

    # Without jit: what it has traced outside the converter is not in its operations.
    # The converter's layers of Flax add biases by promotion, which a user may have turned off.
    promotion = jax.numpy_rank_promotion("allow")
    with quiet(), _without_examples(), portable(), jax.disable_jit(), promotion:
        try:
            model = jax2onnx.to_onnx(
                apply,
                [_in_blocks(x, n) for x, n in zip(arguments, blocks, strict=True)],
                model_name="kd_jax",
                opset=OPSET,
                input_names=[slot.name for slot in program.inputs],
                output_names=[program.output.name],
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(f"{program.name} cannot be written as ONNX: {reason}") from error
    for slot, multiple in zip(program.inputs, blocks, strict=True):
        if multiple > 1:
            _take_blocks(model.graph, slot.name, multiple)
    for value, slot in zip(
        (*model.graph.input, *model.graph.output), (*program.inputs, program.output), strict=True
    ):
        tensor = value.type.tensor_type
        value.CopyFrom(
            require("onnx").helper.make_tensor_value_info(value.name, tensor.elem_type, slot.shape)
        )
    # The converter's shapes of intermediate values are wrong for some reshapes, and not needed.
    del model.graph.value_info[:]
    contents: bytes = model.SerializeToString()
    return contents


def _in_blocks(images: jax.ShapeDtypeStruct, multiple: int) -> jax.ShapeDtypeStruct:
    """`[B, n h, n w, C]` as `[B, h, n, w, n, C]`."""
    if multiple == 1:
        return images
    batch, height, width, channels = images.shape
    shape = (batch, height // multiple, multiple, width // multiple, multiple, channels)
    return jax.ShapeDtypeStruct(shape, images.dtype)


def _take_blocks(graph: Any, name: str, multiple: int) -> None:
    """Reshapes an input `[B, n h, n w, C]` to the `[B, h, n, w, n, C]` that the graph reads."""
    onnx = require("onnx")
    for reader in graph.node:
        reader.input[:] = [f"{name}/blocks" if other == name else other for other in reader.input]

    def constant(suffix: str, values: list[int]) -> str:
        array = np.array(values, np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}/{suffix}"))
        return f"{name}/{suffix}"

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        path = f"{name}/{output}"
        return onnx.helper.make_node(kind, inputs, [path], f"{path}_node", **attributes)

    factors, last = constant("factors", [1, multiple, multiple, 1]), constant("side", [multiple])
    order = constant("order", [0, 1, 4, 2, 4, 3])
    nodes = [
        node("Shape", [name], "shape"),
        node("Div", [f"{name}/shape", factors], "counts"),
        node("Concat", [f"{name}/counts", last], "sides", axis=0),
        node("Gather", [f"{name}/sides", order], "block_shape", axis=0),
        node("Reshape", [name, f"{name}/block_shape"], "blocks"),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def load(path: Path) -> Callable[..., np.ndarray]:
    """The function in an ONNX file, `(*inputs) -> output`, as onnxruntime computes it on CPU.

    Raises:
      ValueError: onnxruntime does not take the file or, of the function, the inputs.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    with _as_value_error(path):
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: np.ndarray) -> np.ndarray:
        with _as_value_error(path):
            output: np.ndarray = session.run(None, dict(zip(names, inputs, strict=True)))[0]
        return output

    return run


def require(name: str) -> Any:
    """A package of the extra, or jax2onnx.

    Raises:
      UsageError: it is not installed; the message has the commands that install it.
    """
    with quiet():
        return import_package(name, "ONNX", INSTALL)


@contextmanager
def _as_value_error(path: Path) -> Iterator[None]:
    """Turns the errors of onnxruntime, which have no common class, into a line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: onnxruntime refuses it: {reason}") from error


@contextmanager
def _without_examples() -> Iterator[None]:
    """Without the import of the examples of jax2onnx, which compile programs for ten seconds."""
    names = [f"jax2onnx.plugins.{name}" for name in ("examples", "equinox", "dm_pix")]
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: not importable
    try:
        yield
    finally:
        for name in absent:
            if sys.modules[name] is None:
                del sys.modules[name]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes of jax2onnx on absent frameworks and on its conversions."""
    loggers = {logging.getLogger(name): 0 for name in (None, "jax2onnx", "onnx_ir")}
    for logger in loggers:
        loggers[logger] = logger.level
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
