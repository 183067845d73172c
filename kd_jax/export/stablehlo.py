"""StableHLO files, written and read by `jax.export`.

JAX promises to read them for six months: they are a cache of a compiled program, not an archive.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export as jax_export

from kd_jax.core.checks import UsageError
from kd_jax.export.program import Program
from kd_jax.ops.primitive import portable

PLATFORMS = ("cpu", "cuda", "tpu")

INSTALL = "pip install 'kd_jax[export]'"


def build(program: Program) -> bytes:
    """The contents of the program's file, for all of `PLATFORMS`.

    Raises:
      UsageError: `flatbuffers` is missing, by which JAX writes them.
    """
    # JAX imports it when it serializes, after the tracing, and raises an error of another kind.
    if importlib.util.find_spec("flatbuffers") is None:
        raise UsageError(f"StableHLO needs flatbuffers, which is not installed: {INSTALL}")
    with portable():
        export = jax_export.export(jax.jit(lambda *x: program.apply(*x)), platforms=PLATFORMS)
        exported = export(*program.arguments())
    return bytes(exported.serialize())


def load(path: Path) -> Callable[..., np.ndarray]:
    """The function in a file, `(*inputs) -> output`, compiled for this machine."""
    call = jax.jit(jax_export.deserialize(bytearray(path.read_bytes())).call)
    return lambda *inputs: np.asarray(call(*inputs))
