"""The comparison of an exported file, in its own runtime, with JAX: no file is kept without it."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from kd_jax.export.program import Arrays, Program

COUNT = 4
"""The least number of examples for each of the program's sides."""


class Parity(NamedTuple):
    """How the outputs of a file differ from those of JAX, over all draws.

    Attributes:
      difference: the largest absolute difference.
      peak: the largest magnitude of JAX's outputs.
      psnr: in dB, for the range of JAX's outputs; infinite if all are equal.
    """

    difference: float
    peak: float
    psnr: float


class Tolerance(NamedTuple):
    """Limits of a dtype.

    Attributes:
      share: the largest difference, as a share of the peak.
      psnr: the least PSNR, in dB.
    """

    share: float
    psnr: float


TOLERANCES = {
    "float32": Tolerance(1e-4, 0.0),
    "float16": Tolerance(0.05, 40.0),
    "int8": Tolerance(math.inf, 20.0),
    "int8-weights": Tolerance(math.inf, 25.0),
}
"""By dtype of the weights. Those of fewer bits are of a float32 file that has parity."""


class ParityError(ValueError):
    """A file computes something else than JAX."""


def check(
    program: Program,
    run: Callable[..., np.ndarray],
    what: str,
    dtype: str = "float32",
    examples: Arrays | None = None,
) -> Parity:
    """Compares a file's outputs with those of the program.

    JAX computes all examples in one batch, and the file as many as it takes and, if it takes any
    number, single examples too: an example's output must not depend on the others, as it does in
    a network that is in training mode.

    Args:
      program: the program that the file was written from.
      run: the function in the file.
      what: the file and its format, for messages.
      dtype: of the weights, a key of `TOLERANCES`.
      examples: inputs to compare besides the drawn ones.

    Raises:
      ParityError: they differ by more than the tolerance; the message has the largest difference.
    """
    largest, peak, squares, low, high = 0.0, 0.0, [], math.inf, -math.inf
    for inputs, expected, start, stop in _draws(program, examples):
        batch = [x[start:stop] if x.ndim else x for x in inputs]
        actual = np.asarray(run(*batch))
        reference = expected[start:stop]
        if actual.shape != reference.shape:
            raise ParityError(
                f"{what} returns the shape {actual.shape} instead of {reference.shape}"
            )
        error = np.abs(actual.astype(np.float64) - reference)
        # A NaN is larger than every limit.
        largest = max(largest, float(np.where(np.isfinite(error), error, np.inf).max()))
        squares.append(float((np.minimum(error, 1e30) ** 2).mean()))
        peak = max(peak, float(np.abs(reference).max()))
        low, high = min(low, float(reference.min())), max(high, float(reference.max()))
    mean_square = float(np.mean(squares))
    psnr = (
        10 * math.log10((high - low) ** 2 / mean_square) if mean_square and high > low else math.inf
    )
    tolerance, result = TOLERANCES[dtype], Parity(largest, peak, psnr)
    if not largest <= tolerance.share * peak or psnr < tolerance.psnr or not math.isfinite(largest):
        raise ParityError(
            f"{what} differs from JAX by up to {largest:.2g} (peak {peak:.2g}, PSNR {psnr:.1f} "
            f"dB); the limits for {dtype} are {tolerance.share:g} of the peak and "
            f"{tolerance.psnr:g} dB"
        )
    return result


def _draws(
    program: Program, examples: Arrays | None
) -> Iterator[tuple[Arrays, np.ndarray, int, int]]:
    """Inputs, JAX's outputs, and the examples that the file computes in one batch."""
    size = program.batch
    count = size * max(2, -(-COUNT // size)) if size else COUNT
    starts = [(at, at + size) for at in range(0, count, size)] if size else [(0, count), (1, 2)]
    apply = jax.jit(program.apply)
    drawn = [program.draw(variant, count, variant) for variant in range(len(program.sides))]
    if examples is not None:
        # As many again, or as there are.
        rows = np.arange(count) % max(len(x) for x in examples if x.ndim)
        drawn.append(tuple(x[rows] if x.ndim else x for x in examples))
    for inputs in drawn:
        expected = np.asarray(apply(*inputs), np.float64)
        if not np.isfinite(expected).all():
            raise ParityError(f"{program.name} has outputs that are not finite")
        for start, stop in starts:
            yield inputs, expected, start, stop
