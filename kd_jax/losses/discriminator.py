"""Soft-label losses between discriminator scores of the student and of the teacher.

A score is a logit, `[B]`, or `[B, ...]` for a patch discriminator, whose loss for an example is
the mean over the patches. The teacher's scores are constants: no gradient reaches them.
"""

import jax

from kd_jax.core.checks import per_example_mean, same_shape
from kd_jax.core.types import Array


def soft_label(student_scores: Array, teacher_scores: Array) -> Array:
    """The cross-entropy of the student's image with the teacher's image as a soft label.

    `-p log q - (1 - p) log(1 - q)` with `p = sigmoid(score of the teacher's image)` and
    `q = sigmoid(score of the student's image)`: the student's images are trained to score as real
    as the teacher's, and no higher. The minimum, at q = p, is the entropy of p, not zero.

    Args:
      student_scores: `[B, ...]` discriminator logits of the student's images.
      teacher_scores: `[B, ...]` logits of the teacher's images for the same inputs.

    Returns:
      `[B]`, >= 0, in nats.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    student, teacher = _detach_teacher(student_scores, teacher_scores)
    real, fake = jax.nn.sigmoid(teacher), jax.nn.sigmoid(-teacher)
    return per_example_mean(real * jax.nn.softplus(-student) + fake * jax.nn.softplus(student))


def bernoulli_kl(student_scores: Array, teacher_scores: Array, temperature: float = 1.0) -> Array:
    """KL(teacher || student) of two discriminators' softened predictions, multiplied by T^2.

    `T^2 (p log(p / q) + (1 - p) log((1 - p) / (1 - q)))` with `p = sigmoid(t / T)` and
    `q = sigmoid(s / T)`: the binary case of Hinton et al. 2015, section 2, for distilling a
    discriminator.

    Args:
      student_scores: `[B, ...]` the student discriminator's logits.
      teacher_scores: `[B, ...]` the teacher discriminator's logits of the same images.
      temperature: T > 0.

    Returns:
      `[B]`, >= 0, in T^2 nats; 0 where the scores are equal.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    student, teacher = _detach_teacher(student_scores, teacher_scores)
    s, t = student / temperature, teacher / temperature
    real = jax.nn.sigmoid(t) * (jax.nn.softplus(-s) - jax.nn.softplus(-t))
    fake = jax.nn.sigmoid(-t) * (jax.nn.softplus(s) - jax.nn.softplus(t))
    return temperature**2 * per_example_mean(real + fake)


def _detach_teacher(student_scores: Array, teacher_scores: Array) -> tuple[Array, Array]:
    student, teacher = same_shape(student_scores=student_scores, teacher_scores=teacher_scores)
    return student, jax.lax.stop_gradient(teacher)
