"""Per-class metrics: distance to the real images of a class, and classification accuracy."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kd_jax.metrics import common
from kd_jax.metrics.common import PerClass
from kd_jax.metrics.frechet import frechet_distance_of_features


class Accuracy(NamedTuple):
    """The accuracy of a classifier on the requested classes.

    Attributes:
      top1: the accuracy over all examples, in [0, 1].
      classes: the accuracy by label, for the labels that occur.
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
    """The Frechet distance between generated and real examples of each class, and the mean.

    Miyato & Koyama 2018, section 6.1 ("intra FID"). The bias depends on the number of examples per
    class: compare values with equal numbers only.

    Args:
      generated: features `[N, D]`.
      generated_labels: int `[N]`, the requested classes.
      real: features `[M, D]`.
      real_labels: int `[M]`.
      least: the minimum number of examples per class in both sets, two or more.
      ddof: 1 for covariances normalised by N - 1, 0 by N.

    Raises:
      ValueError: a class (named in the message) has too few examples, the feature lengths differ,
        or a feature is not finite.
    """
    x, y = common.two_sets(generated, real)
    x_labels = common.labels(generated_labels, len(x), "generated_labels")
    y_labels = common.labels(real_labels, len(y), "real_labels")
    minimum = max(least, 2)
    distances = {}
    for label in np.union1d(x_labels, y_labels):
        sets = x[x_labels == label], y[y_labels == label]
        for name, examples in zip(("generated", "real"), sets, strict=True):
            if len(examples) < minimum:
                raise ValueError(
                    f"class {label} has {len(examples)} {name} examples; "
                    f"{minimum} or more are needed"
                )
        distances[int(label)] = frechet_distance_of_features(*sets, ddof=ddof)
    return PerClass(float(np.mean(list(distances.values()))), distances)


def accuracy(logits: ArrayLike, labels: ArrayLike) -> Accuracy:
    """The share of examples whose largest logit is that of their label.

    Args:
      logits: `[N, classes]`.
      labels: int `[N]` in [0, classes).

    Raises:
      ValueError: there is no example, a logit is not finite, or a label is outside [0, classes).
    """
    x = common.rows(logits, name="logits")
    targets = common.labels(labels, len(x))
    outside = (targets < 0) | (targets >= x.shape[1])
    if outside.any():
        number = int(np.argmax(outside))
        raise ValueError(
            f"example {number} has label {targets[number]}, but the logits are of "
            f"{x.shape[1]} classes"
        )
    correct = x.argmax(axis=1) == targets
    by_class = {int(label): float(correct[targets == label].mean()) for label in np.unique(targets)}
    return Accuracy(float(correct.mean()), by_class)
