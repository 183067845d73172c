"""TFLite files, converted by jax2tf and TensorFlow and run by LiteRT.

The weights are within the file, in float32. TensorFlow is needed to write a file, not to run it.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.core.checks import import_package
from kd_jax.export.program import Program
from kd_jax.ops.primitive import portable

INSTALL = "pip install 'kd_jax[tflite]'"


def build(program: Program) -> bytes:
    """The contents of the program's TFLite file.

    Inputs have the names of the program's. Images have sides of fixed length: LiteRT computes some
    shapes when the file is written.

    Raises:
      UsageError: a package is missing; the message has the command that installs it.
      ValueError: the program takes images of any size, or TensorFlow does not convert an operation
        of it.
    """
    if any(isinstance(n, str) for slot in program.inputs for n in slot.shape[1:]):
        raise ValueError(f"{program.name}: TFLite files have images of one size, not size='any'")
    tensorflow = require("tensorflow")
    with _quiet():
        jax2tf = require("jax.experimental.jax2tf")
        signature = [
            tensorflow.TensorSpec(
                [None if isinstance(n, str) else n for n in slot.shape], slot.dtype, slot.name
            )
            for slot in program.inputs
        ]
        shapes = [f"({', '.join(map(str, slot.shape))})" for slot in program.inputs]
        try:
            with portable():
                converted = jax2tf.convert(
                    program.apply, with_gradient=False, polymorphic_shapes=shapes
                )
                function = tensorflow.function(
                    lambda *inputs: converted(*inputs), input_signature=signature, autograph=False
                )
                concrete = function.get_concrete_function()
            converter = tensorflow.lite.TFLiteConverter.from_concrete_functions(
                [concrete], function
            )
            contents: bytes = converter.convert()
        # The errors of jax2tf and of the converter have no common class.
        except Exception as error:
            # A stack trace is around the message.
            reason = str(error).rpartition("error: ")[2].partition("\n")[0][:200]
            reason = reason or type(error).__name__
            hint = "" if program.batch else "; batch=1 (--batch 1) needs fewer operations"
            raise ValueError(
                f"{program.name} cannot be written as TFLite: {reason}{hint}"
            ) from error
    return contents


def load(path: Path) -> Callable[..., np.ndarray]:
    """The function in a TFLite file, `(*inputs) -> output`, as LiteRT computes it on CPU.

    Raises:
      ValueError: LiteRT does not take the file or, of the function, the inputs.
    """
    litert = require("ai_edge_litert.interpreter")
    with _quiet():
        try:
            interpreter = litert.Interpreter(model_path=str(path))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: LiteRT refuses it: {_line(error)}") from error
    indices = [detail["index"] for detail in interpreter.get_input_details()]

    def run(*inputs: np.ndarray) -> np.ndarray:
        try:
            for index, x in zip(indices, inputs, strict=True):
                interpreter.resize_tensor_input(index, x.shape)
            interpreter.allocate_tensors()
            for index, x in zip(indices, inputs, strict=True):
                interpreter.set_tensor(index, np.ascontiguousarray(x))
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: LiteRT refuses the inputs: {_line(error)}") from error
        output: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return output

    return run


def require(name: str) -> Any:
    """A module of the extra.

    Raises:
      UsageError: it is not installed; the message has the command that installs it.
    """
    with _quiet():
        return import_package(name, "TFLite", INSTALL)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of TensorFlow on its hardware, and the warnings of its imports."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
