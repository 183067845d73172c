"""Widths for a number of multiply-accumulates."""

import bisect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kd_jax.core import cost
from kd_jax.core.network import Network
from kd_jax.pruning.scores import Scores, check_scores


def macs(network: Network, *inputs: Any) -> float:
    """Multiply-accumulates of one call (`kd_jax.core.cost.multiply_accumulates`).

    Args:
      network: any network.
      *inputs: its inputs, arrays or `ShapeDtypeStruct`s. Nothing is computed or allocated.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return cost.multiply_accumulates(network, variables, *inputs)


def width_for(macs: Callable[[int], float], target: float, most: int = 4096) -> int:
    """The largest width whose cost does not exceed `target`.

        pruning.width_for(lambda w: pruning.macs(dcgan.generator(64, w), latents), 1e9)

    Args:
      macs: the cost of a width, nondecreasing in the width.
      target: the budget, in the same unit.
      most: the largest width to consider.

    Raises:
      ValueError: even a width of 1 costs more.
    """
    # Each cost may need a network's program, so few are computed. It is about quadratic in the
    # width: the root is extrapolated, then interpolated; a bracket that does not halve is bisected.
    within, beyond = (0, 0.0), (most + 1, math.inf)
    guess, bisected = min(8, most), True
    while beyond[0] - within[0] > 1:
        cost, last = macs(guess), beyond[0] - within[0]
        if cost <= target:
            within = guess, cost
        else:
            beyond = guess, cost
        size = beyond[0] - within[0]
        low, high, root = (math.sqrt(x) for x in (within[1], beyond[1], target))
        if beyond[1] == math.inf:
            guess = round(guess * max(2.0, root / low)) if low else 2 * guess
        elif bisected or 2 * size <= last:
            guess, bisected = within[0] + round(size * (root - low) / (high - low)), False
        else:
            guess, bisected = within[0] + size // 2, True
        guess = min(max(guess, within[0] + 1), beyond[0] - 1)
    if not within[0]:
        raise ValueError(
            f"even a width of 1 costs {beyond[1]:g}, more than the target of {target:g}"
        )
    return within[0]


def threshold(
    scores: Scores, macs: Callable[[Mapping[str, int]], float], target: float
) -> dict[str, np.ndarray]:
    """The channels above the lowest threshold, common to all groups, that meets a budget.

    Each group keeps at least its best channel. Jin et al. 2021 (CAT) prune like this, by
    normalisation scales and for a budget of computation; GAN Slimming (Wang et al. 2020) has a
    common threshold, too. The scores of different groups must be comparable, like `norm_scale`.

        pruning.threshold(
            pruning.norm_scale(variables, axes),
            lambda w: pruning.macs(dcgan.generator(16, [w["4x4"], w["8x8"]]), latents),
            target=1e6,
        )

    Args:
      scores: `{group: [C]}`.
      macs: the cost of `{group: width}`, nondecreasing in each width.
      target: the budget, in the same unit.

    Returns:
      `{group: [width]}`, ascending indices.

    Raises:
      ValueError: `scores` is empty or not finite, or one channel per group already exceeds the
        budget.
    """
    values = check_scores(scores)
    if not values:
        raise ValueError("there are no scores to threshold")

    def select(cut: float) -> dict[str, np.ndarray]:
        return {
            group: np.flatnonzero((value >= cut) | (np.arange(value.size) == value.argmax()))
            for group, value in values.items()
        }

    def cost_at(cut: float) -> float:
        return macs({group: indices.size for group, indices in select(cut).items()})

    cuts = [*np.unique(np.concatenate(list(values.values()))), np.inf]
    index = bisect.bisect_left(cuts, True, key=lambda cut: cost_at(cut) <= target)
    if index == len(cuts):
        raise ValueError(
            f"even one channel of each group costs {cost_at(np.inf):g}, more than the target of "
            f"{target:g}"
        )
    return select(cuts[index])
