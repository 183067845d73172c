"""Hinton et al. 2015: soft labels of a classifier."""

import math

import optax

from kd_jax import losses
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import check_alpha


def hinton(alpha: float = 0.5, temperature: float = 4.0) -> PerNetwork:
    """`alpha` cross-entropy with the labels, `1 - alpha` divergence from the teacher's logits.

    Hinton et al. 2015. For classifiers: the student's and the teacher's outputs are logits
    `[B, K]`, `label` of the task's `Inputs.extra` the classes `[B]`, and the networks have no
    discriminator:

        networks = Networks(classifier(10, 8), teacher=classifier(10, 64))
        inputs = lambda key, batch: Inputs((batch["image"],), extra=batch)

    Args:
      alpha: the weight of the labels, in [0, 1]. With 1 no teacher is needed.
      temperature: the temperature of the divergence, positive.

    Raises:
      ValueError: when `alpha` is outside [0, 1], or the temperature is not positive.
    """
    check_alpha(alpha)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} is not a positive number")

    def classification(f: Forward) -> Array:
        if "label" not in f.inputs.extra:
            raise ValueError(f"labels are needed; inputs.extra has {sorted(f.inputs.extra)}")
        label = f.inputs.extra["label"]
        if alpha == 1:
            return optax.softmax_cross_entropy_with_integer_labels(f.student.output, label)
        return losses.response.hinton(f.student.output, f.teacher.output, label, alpha, temperature)

    return PerNetwork({"hinton": Term(classification)}, {})
