"""Losses between the relations that a student and its teacher see among the examples of a batch.

They need the whole batch, return a scalar, and have no meaning for a batch of one.
"""

import jax
import jax.numpy as jnp

from kd_jax.checks import same_shape
from kd_jax.types import Array


def similarity_preserving(student: Array, teacher: Array, order: int = 2) -> Array:
    """The mean squared difference of the batch's similarity matrices. A scalar.

    `||G_S - G_T||_F^2 / B^2`, where G is the Gram matrix of the flattened features, uncentred,
    each row divided by its norm. Tung & Mori 2019, section 3. Teacher's features are constants.
    Shapes need not agree beyond the batch, so no connector is needed.

    Args:
      student: `[B, ...]` feature, B >= 2.
      teacher: `[B, ...]` feature.
      order: of the norm of the rows: 2 in the paper, 1 in torchdistill's code.

    Returns:
      A scalar in [0, 4 / B]. The scale of either feature does not matter.

    Raises:
      ValueError: an argument is None, the batch sizes differ, or the batch is smaller than 2.
    """
    (student,), (teacher,) = same_shape(student=student), same_shape(teacher=teacher)
    if student.shape[:1] != teacher.shape[:1]:
        raise ValueError(
            f"student has shape {student.shape} but teacher has {teacher.shape}; "
            "both must hold the same examples"
        )
    if student.shape[0] < 2:
        raise ValueError(f"a batch of one has no relations: student has shape {student.shape}")
    difference = _similarities(student, order) - jax.lax.stop_gradient(
        _similarities(teacher, order)
    )
    return jnp.mean(difference**2)


def _similarities(feature: Array, order: int) -> Array:
    rows = feature.reshape(feature.shape[0], -1)
    # The default precision of accelerators is less than float32 here.
    gram = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    powers = jnp.sum(jnp.abs(gram) ** order, axis=1, keepdims=True)
    # An example without any signal resembles none: its row is zero, and so is its gradient. Both
    # branches of `where` are differentiated, so the root must be finite in the unused one.
    positive = powers > 0
    return jnp.where(positive, gram / jnp.where(positive, powers, 1) ** (1 / order), 0)
