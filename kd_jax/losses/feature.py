"""Losses between intermediate features of a student and its teacher, example by example.

The teacher's features are constants: no gradient reaches them.
"""

import jax
import jax.numpy as jnp

from kd_jax.checks import per_example_mean, per_example_sum, same_shape
from kd_jax.types import Array


def l2(student: Array, teacher: Array) -> Array:
    """The mean squared difference, `mean (S - T)^2`.

    Romero et al. 2015 (FitNets), eq. 3, up to a constant factor; Li et al. 2020 (GAN Compression),
    summed over layers with weight 1 beside a reconstruction of 100. Bring a student's feature to
    the teacher's shape with `kd_jax.network.connect`.

    Args:
      student: `[B, ...]` feature.
      teacher: `[B, ...]` feature.

    Returns:
      `[B]`, >= 0, in squared units of the features.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    student, teacher = same_shape(student=student, teacher=teacher)
    return per_example_mean((student - jax.lax.stop_gradient(teacher)) ** 2)


def attention_transfer(student: Array, teacher: Array) -> Array:
    """The mean squared difference of normalised spatial attention maps.

    A map is the mean over channels of the squared feature, flattened and divided by its L2 norm.
    Zagoruyko & Komodakis 2017, as their code computes it; `attention_transfer_norm` is the
    equation. The number of channels and the scale of a feature do not matter.

    Args:
      student: `[B, H, W, C]` feature.
      teacher: `[B, H, W, C']` feature of the same height and width.

    Returns:
      `[B]`, in [0, 2 / (H W)].

    Raises:
      ValueError: an argument is None, or more than the channels differs.
    """
    student, teacher = _attention_maps(student, teacher)
    return per_example_mean((student - teacher) ** 2)


def attention_transfer_norm(student: Array, teacher: Array) -> Array:
    """The L2 distance of normalised spatial attention maps.

    A map is the sum over channels of the squared feature, flattened and divided by its L2 norm.
    Zagoruyko & Komodakis 2017, eq. 2 with p = 2, without the factor beta / 2.

    Args:
      student: `[B, H, W, C]` feature.
      teacher: `[B, H, W, C']` feature of the same height and width.

    Returns:
      `[B]`, in [0, sqrt 2]; its gradient where the maps agree is taken to be zero.

    Raises:
      ValueError: an argument is None, or more than the channels differs.
    """
    student, teacher = _attention_maps(student, teacher)
    squares = per_example_sum((student - teacher) ** 2)
    # Both branches of `where` are differentiated, so the root must be finite in the unused one.
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def _attention_maps(student: Array, teacher: Array) -> tuple[Array, Array]:
    (student,), (teacher,) = same_shape(student=student), same_shape(teacher=teacher)
    if not student.ndim == teacher.ndim == 4 or student.shape[:3] != teacher.shape[:3]:
        raise ValueError(
            f"student has shape {student.shape} but teacher has {teacher.shape}; "
            "both must be [B, H, W, channels] with the same B, H and W"
        )
    return _attention_map(student), jax.lax.stop_gradient(_attention_map(teacher))


def _attention_map(feature: Array) -> Array:
    energy = jnp.mean(feature**2, axis=-1).reshape(feature.shape[0], -1)
    squared_norm = jnp.sum(energy**2, axis=1, keepdims=True)
    # A dead feature has no direction: its map is zero and so is its gradient.
    return energy * jax.lax.rsqrt(jnp.maximum(squared_norm, 1e-24))
