"""Per-example losses between intermediate features of a student and its teacher.

The teacher's features are constants: no gradient reaches them.
"""

import jax
import jax.numpy as jnp

from kd_jax.core.checks import (
    magnitude,
    per_example_mean,
    per_example_sum,
    same_channels,
    same_shape,
)
from kd_jax.core.types import Array


def l1(student: Array, teacher: Array) -> Array:
    """The mean absolute difference, `mean |S - T|`.

    Chang & Lu 2020 (TinyGAN), eq. 3, on a discriminator's features of the student's and of the
    teacher's image, from the first to the last layer with weights 1/32, 1/16, 1/8, 1/4, 1.

    Args:
      student: `[B, ...]` feature.
      teacher: `[B, ...]` feature.

    Returns:
      `[B]`, >= 0, in units of the features.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    student, teacher = same_shape(student=student, teacher=teacher)
    return per_example_mean(magnitude(student - jax.lax.stop_gradient(teacher)))


def l2(student: Array, teacher: Array) -> Array:
    """The mean squared difference, `mean (S - T)^2`.

    Romero et al. 2015 (FitNets), eq. 3, up to a constant factor; Li et al. 2020 (GAN Compression),
    summed over layers with weight 1 and a reconstruction weight of 100. Use
    `kd_jax.connect` to match the shape of a student's feature to the teacher's.

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


def channel_means(student: Array, teacher: Array) -> Array:
    """The mean squared difference of the channels' spatial means.

    Ren et al. 2021 (OMGD), section 3.3, summed over layers. Use `kd_jax.connect` to match
    the channels of a student's feature to the teacher's; heights and widths may differ.

    Args:
      student: `[B, H, W, C]` feature.
      teacher: `[B, H', W', C]` feature.

    Returns:
      `[B]`, >= 0, in squared units of the features.

    Raises:
      ValueError: an argument is None, a feature is not 4-D, or batch or channels differ.
    """
    student, teacher = same_channels(student=student, teacher=teacher)
    means = jnp.mean(student, axis=(1, 2)), jnp.mean(teacher, axis=(1, 2))
    return per_example_mean((means[0] - jax.lax.stop_gradient(means[1])) ** 2)


def flow_matrix(first: Array, second: Array) -> Array:
    """The products of two layers' channels, averaged over positions: `[B, C, C']`.

    Yim et al. 2017 (FSP), eq. 1.

    Args:
      first: `[B, H, W, C]` feature.
      second: `[B, H, W, C']` feature of the same height and width.

    Raises:
      ValueError: an argument is None, or the shapes differ in more than the channels.
    """
    return _flow_matrix(first=first, second=second)


def flow(student: Array, student_next: Array, teacher: Array, teacher_next: Array) -> Array:
    """The squared distance of the flow matrices between two layers, `||G_T - G_S||_F^2`.

    Yim et al. 2017 (FSP), eq. 2, summed over pairs of layers.

    Args:
      student: `[B, H, W, C]` feature of one layer.
      student_next: `[B, H, W, C']` feature of another.
      teacher: `[B, H', W', C]` feature of the corresponding layer.
      teacher_next: `[B, H', W', C']` feature of the layer that corresponds to `student_next`.

    Returns:
      `[B]`, >= 0, in fourth powers of the features' units.

    Raises:
      ValueError: an argument is None, a network's two features differ in more than the channels,
        or the networks' features differ in batch or channels.
    """
    student_matrix = _flow_matrix(student=student, student_next=student_next)
    teacher_matrix = _flow_matrix(teacher=teacher, teacher_next=teacher_next)
    if student_matrix.shape != teacher_matrix.shape:
        raise ValueError(
            f"student and student_next have shapes {student.shape} and {student_next.shape} but "
            f"teacher and teacher_next have {teacher.shape} and {teacher_next.shape}; "
            "batch and channels must be the same"
        )
    return per_example_sum((student_matrix - jax.lax.stop_gradient(teacher_matrix)) ** 2)


def attention_transfer(student: Array, teacher: Array) -> Array:
    """The mean squared difference of normalised spatial attention maps.

    A map is the mean over channels of the squared feature, flattened and divided by its L2 norm.
    Zagoruyko & Komodakis 2017, as implemented in their code; `attention_transfer_norm` is the
    paper's equation. Invariant to the number of channels and to the scale of a feature.

    Args:
      student: `[B, H, W, C]` feature.
      teacher: `[B, H, W, C']` feature of the same height and width.

    Returns:
      `[B]`, in [0, 2 / (H W)].

    Raises:
      ValueError: an argument is None, or the shapes differ in more than the channels.
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
      `[B]`, in [0, sqrt 2]; the gradient is defined as zero where the maps are equal.

    Raises:
      ValueError: an argument is None, or the shapes differ in more than the channels.
    """
    student, teacher = _attention_maps(student, teacher)
    squares = per_example_sum((student - teacher) ** 2)
    # Both branches of `where` are differentiated, so the root must be finite in the unused one.
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def _flow_matrix(**features: Array) -> Array:
    first, second = _check_positions(**features)
    positions = first.shape[1] * first.shape[2]
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("bhwc,bhwd->bcd", first, second, precision=precision) / positions


def _attention_maps(student: Array, teacher: Array) -> tuple[Array, Array]:
    student, teacher = _check_positions(student=student, teacher=teacher)
    return _attention_map(student), jax.lax.stop_gradient(_attention_map(teacher))


def _check_positions(**features: Array) -> tuple[Array, Array]:
    (name, _), (other, _) = features.items()
    first, second = (same_shape(**{key: value})[0] for key, value in features.items())
    if not first.ndim == second.ndim == 4 or first.shape[:3] != second.shape[:3]:
        raise ValueError(
            f"{name} has shape {first.shape} but {other} has {second.shape}; "
            "both must be [B, H, W, channels] with the same B, H and W"
        )
    return first, second


def _attention_map(feature: Array) -> Array:
    energy = jnp.mean(feature**2, axis=-1).reshape(feature.shape[0], -1)
    squared_norm = jnp.sum(energy**2, axis=1, keepdims=True)
    # An all-zero feature has no direction: its map and its gradient are zero.
    return energy * jax.lax.rsqrt(jnp.maximum(squared_norm, 1e-24))
