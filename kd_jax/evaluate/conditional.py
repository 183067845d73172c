"""Figures class by class: how near each is to its real images, and whether it is recognised."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kd_jax.evaluate import common
from kd_jax.evaluate.common import PerClass
from kd_jax.evaluate.frechet import frechet_distance_of_features


class Accuracy(NamedTuple):
    """How often a classifier finds the class that was asked for.

    Attributes:
      top1: over all examples, in [0, 1].
      classes: by label, for those that were asked for.
    """

    top1: float
    classes: Mapping[int, float]


def intra_class_frechet_distance(
    generated: ArrayLike,
    generated_labels: ArrayLike,
    real: ArrayLike,
    real_labels: ArrayLike,
    *,
    least: int = 2,
    ddof: int = 1,
) -> PerClass:
    """The Frechet distance of each class's generated examples to its real ones, and their mean.

    Miyato & Koyama 2018, section 6.1 ("intra FID"). Its bias is that of the few examples of a
    class: compare figures of equal numbers only.

    Args:
      generated: features `[N, D]`.
      generated_labels: int `[N]`, the classes that were asked for.
      real: features `[M, D]`.
      real_labels: int `[M]`.
      least: how many examples a class must have on both sides, two or more.
      ddof: 1 for covariances over N - 1, 0 for N.

    Raises:
      ValueError: when a class has too few examples (it is named), the features differ in number,
        or one is not finite.
    """
    x, y = common.two_sets(generated, real)
    ours = common.labels(generated_labels, len(x), "generated_labels")
    theirs = common.labels(real_labels, len(y), "real_labels")
    needed = max(least, 2)
    found = {}
    for label in np.union1d(ours, theirs):
        pair = x[ours == label], y[theirs == label]
        for name, chosen in zip(("generated", "real"), pair, strict=True):
            if len(chosen) < needed:
                raise ValueError(
                    f"class {label} has {len(chosen)} {name} examples; {needed} or more are needed"
                )
        found[int(label)] = frechet_distance_of_features(*pair, ddof=ddof)
    return PerClass(float(np.mean(list(found.values()))), found)


def accuracy(logits: ArrayLike, labels: ArrayLike) -> Accuracy:
    """The part of examples whose largest logit is that of their label.

    Args:
      logits: `[N, classes]`.
      labels: int `[N]` in [0, classes).

    Raises:
      ValueError: when there is no example, a logit is not finite, or a label is of no class.
    """
    x = common.rows(logits, name="logits")
    wanted = common.labels(labels, len(x))
    outside = (wanted < 0) | (wanted >= x.shape[1])
    if outside.any():
        number = int(np.argmax(outside))
        raise ValueError(
            f"example {number} has label {wanted[number]}, but the logits are of "
            f"{x.shape[1]} classes"
        )
    right = x.argmax(axis=1) == wanted
    by_class = {int(label): float(right[wanted == label].mean()) for label in np.unique(wanted)}
    return Accuracy(float(right.mean()), by_class)
