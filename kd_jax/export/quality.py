"""The loss of quality of a file whose weights have fewer bits: its outputs beside those of JAX."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax.export.program import IMAGES, Arrays, Program
from kd_jax.metrics.extractor import Extractor
from kd_jax.metrics.frechet import frechet_distance_of_features

COUNT = 64
"""Drawn inputs to calibrate with, and as many others to measure on."""

PASS = 8
"""Examples in a pass of a file that takes any number."""


class Inputs(NamedTuple):
    """Inputs of a program, which are not measured on the examples that they are calibrated with.

    Attributes:
      name: a description of them, for people.
      calibration: for the ranges of activations, arrays `[N, ...]`; scalars are for all examples.
      measured: for the comparison with JAX.
    """

    name: str
    calibration: Arrays
    measured: Arrays


class Quality(NamedTuple):
    """How the outputs of a file differ from those of JAX, over examples.

    Attributes:
      psnr: in dB, over all examples, for the range 2 of images or the range of JAX's outputs.
      frechet: the Frechet distance of their features; None without features.
      features: the name of the extractor; empty without.
      inputs: a description of the inputs.
      examples: the number of examples.
    """

    psnr: float
    frechet: float | None
    features: str
    inputs: str
    examples: int

    def sentence(self) -> str:
        """The figures in words."""
        distance = f", Frechet distance {self.frechet:.3g} ({self.features})"
        return (
            f"PSNR {self.psnr:.1f} dB{distance if self.frechet is not None else ''} to float32, "
            f"over {self.examples} of {self.inputs}"
        )


def drawn_inputs(program: Program) -> Inputs:
    """`COUNT` drawn inputs for each purpose, or a few more if batches have a fixed size."""
    size = program.batch or 1
    count = size * -(-COUNT // size)
    name = "drawn " + ", ".join(slot.name for slot in program.inputs)
    return Inputs(name, program.draw(1000, count), program.draw(2000, count))


def split_inputs(program: Program, arrays: Sequence[Any], name: str) -> Inputs:
    """The first half of examples to calibrate with, and the second to measure on.

    Args:
      program: the program.
      arrays: one array `[N, ...]` for each of the program's inputs.
      name: a description of them.

    Raises:
      ValueError: they do not fit the inputs, or are too few; the message names the input.
    """
    slots = program.inputs
    if len(arrays) != len(slots):
        names = ", ".join(slot.name for slot in slots)
        raise ValueError(f"examples has {len(arrays)} arrays; the inputs are {names}")
    values = tuple(np.asarray(x, slot.dtype) for x, slot in zip(arrays, slots, strict=True))
    for x, slot in zip(values, slots, strict=True):
        fits = len(x.shape) == len(slot.shape) and all(
            have % int(axis.rpartition("*")[0] or 1) == 0 if isinstance(axis, str) else have == axis
            for have, axis in zip(x.shape[1:], slot.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(f"examples of {slot.name} have shape {x.shape}, not {slot.shape}")
    counts = {len(x) for x in values if x.ndim}
    size = program.batch or 1
    half = min(counts) // 2 // size * size
    if len(counts) != 1 or not half:
        raise ValueError(
            f"examples has {sorted(counts)} rows; as many of each input and {2 * size} or more are "
            "needed"
        )
    parts = (slice(0, half), slice(half, 2 * half))
    calibration, measured = (tuple(x[part] if x.ndim else x for x in values) for part in parts)
    return Inputs(name, calibration, measured)


def measure(
    program: Program,
    run: Callable[..., np.ndarray],
    inputs: Inputs,
    features: Extractor | None = None,
) -> Quality:
    """The quality of a file.

    Args:
      program: the program that it was written from.
      run: the function in the file.
      inputs: the inputs.
      features: of images, for the Frechet distance.
    """
    size = program.batch or PASS
    apply = jax.jit(program.apply)
    count = max(len(x) for x in inputs.measured if x.ndim)
    outputs: list[tuple[np.ndarray, np.ndarray]] = []
    for at in range(0, count, size):
        batch = [x[at : at + size] if x.ndim else x for x in inputs.measured]
        outputs.append((np.asarray(apply(*batch)), np.asarray(run(*batch))))
    exact, actual = (
        np.concatenate(parts).astype(np.float64) for parts in zip(*outputs, strict=True)
    )
    pictures = program.output.values == IMAGES
    extent = 2.0 if pictures else float(exact.max() - exact.min())
    error = float(((exact - actual) ** 2).mean())
    psnr = 10 * math.log10(extent**2 / error) if error and extent else math.inf
    if features is None or not pictures:
        return Quality(psnr, None, "", inputs.name, count)
    ours, theirs = (
        features.features(np.clip(x, -1, 1).astype(np.float32)) for x in (exact, actual)
    )
    distance = frechet_distance_of_features(ours, theirs)
    return Quality(psnr, distance, features.name, inputs.name, count)
