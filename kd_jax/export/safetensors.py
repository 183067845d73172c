"""Safetensors files: the variables with the architecture, or under the names of another program."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from kd_jax.core.architecture import describe
from kd_jax.core.network import by_path
from kd_jax.export.program import Program
from kd_jax.model import EXPORTED, Model, load as load_model
from kd_jax.pretrained import registry
from kd_jax.pretrained.io.safetensors import encode
from kd_jax.pretrained.originals import original


def build(model: Model, dtype: str = "float32") -> bytes:
    """The contents of a file that `kd_jax.load` reads.

    The arrays have the paths of the variables as names, such as `params/Conv_0/kernel`; the
    metadata `kd_jax` is the architecture as JSON.

    Args:
      model: the model.
      dtype: of the floating-point numbers in the file, "float32" or "float16".

    Raises:
      ValueError: the network has no description, or its variables no place in the format.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in by_path(model.variables).items()}
    if dtype == "float16":
        arrays = {name: _half(name, x) for name, x in arrays.items()}
    description = describe(model.network, *model.inputs)
    return encode(arrays, {EXPORTED: json.dumps({"architecture": description})})


def build_original(model: Model, dtype: str = "float32") -> bytes:
    """The contents of a file with the tensors of the original program, under its names.

    Raises:
      ValueError: there is no original program for this network.
    """
    tensors, _ = original(model.network, model.variables, model.classes)
    if dtype == "float16":
        tensors = {name: _half(name, x) for name, x in tensors.items()}
    return encode(tensors)


def _half(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.float32:
        return array
    if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        raise ValueError(f"{name} has values that are infinite in float16")
    return array.astype(np.float16)


def load(path: Path, program: Program, model: Model) -> Callable[..., np.ndarray]:
    """The function of the network that `kd_jax` reads from a file, with the program's options."""
    return _function(program, model, load_model(path))


def load_original(path: Path, program: Program, model: Model) -> Callable[..., np.ndarray]:
    """The function of the network that is read as a file of the original program."""
    _, converted = original(model.network, model.variables, model.classes)
    parts = registry.parts(path)
    read = registry.convert(path, next(iter(parts.values())), **converted.options)
    return _function(program, model, model._replace(network=read.network, variables=read.variables))


def _function(program: Program, model: Model, read: Model) -> Callable[..., np.ndarray]:
    apply = jax.jit(partial(program.of, read.network))
    return lambda *inputs: np.asarray(apply(read.variables, *inputs))
