"""Losses between the outputs of a student and its teacher: images, or class logits.

The teacher's output is a constant: no gradient reaches it.
"""

import jax
import jax.numpy as jnp

from kd_jax.core.checks import magnitude, per_example_mean, per_example_sum, same_shape
from kd_jax.core.types import Array


def l1(student: Array, teacher: Array) -> Array:
    """The mean absolute difference, `mean |S - T|`.

    Args:
      student: `[B, ...]` images.
      teacher: `[B, ...]` the teacher's images for the same inputs.

    Returns:
      `[B]`, >= 0, in units of the images; at most 2 for images in [-1, 1]. Equal elements get
      no gradient.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    student, teacher = _detach_teacher(student=student, teacher=teacher)
    return per_example_mean(magnitude(student - teacher))


def l2(student: Array, teacher: Array) -> Array:
    """The mean squared difference, `mean (S - T)^2`.

    Aguinaldo et al. 2019 use weight 0.3, and weight 0.7 for the adversarial loss.

    Args:
      student: `[B, ...]` images.
      teacher: `[B, ...]` the teacher's images for the same inputs.

    Returns:
      `[B]`, >= 0, in squared units of the images; at most 4 for images in [-1, 1].

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    student, teacher = _detach_teacher(student=student, teacher=teacher)
    return per_example_mean((student - teacher) ** 2)


def gaussian_kl(student: Array, teacher: Array, sigma: float = 1.0) -> Array:
    """KL(teacher || student) between Gaussians of equal sigma centred on the two images.

    `||S - T||^2 / (2 sigma^2)`: `l2` as a divergence, summed over an image's elements. Symmetric.

    Args:
      student: `[B, ...]` images, the means of the student's Gaussians.
      teacher: `[B, ...]` images, the means of the teacher's.
      sigma: the standard deviation of every element, > 0, in units of the images.

    Returns:
      `[B]`, >= 0, in nats per image.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    student, teacher = _detach_teacher(student=student, teacher=teacher)
    return per_example_sum(((student - teacher) / sigma) ** 2) / 2


def laplace_kl(student: Array, teacher: Array, scale: float = 1.0) -> Array:
    """KL(teacher || student) between Laplace distributions of equal scale at the two images.

    `sum |d|/b + exp(-|d|/b) - 1` with `d = S - T` and scale b, summed over an image's elements.
    Symmetric. It is quadratic, `d^2 / (2 b^2)`, for |d| << b, and tends to L1, `|d|/b - 1`, for
    |d| >> b. L1 itself is, up to a constant, a cross-entropy rather than a divergence: the negative
    log-likelihood of the teacher's image under the student's Laplace distribution.

    Args:
      student: `[B, ...]` images, the locations of the student's distributions.
      teacher: `[B, ...]` images, the locations of the teacher's.
      scale: b of every element, > 0, in units of the images.

    Returns:
      `[B]`, >= 0, in nats per image.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    student, teacher = _detach_teacher(student=student, teacher=teacher)
    distance = jnp.abs(student - teacher) / scale
    # expm1 is accurate for small d, where exp(-d) - 1 + d has only rounding errors.
    return per_example_sum(distance + jnp.expm1(-distance))


def softened_kl(
    student_logits: Array,
    teacher_logits: Array,
    temperature: float = 1.0,
    axis: int | tuple[int, ...] = -1,
) -> Array:
    """KL(teacher || student) of the softened distributions, multiplied by T^2.

    `T^2 KL(softmax(t / T) || softmax(s / T))` over `axis`, averaged over the other axes of an
    example. T^2 keeps the gradient's magnitude when T changes. Hinton et al. 2015, section 2.

    Args:
      student_logits: `[B, ...]`, finite.
      teacher_logits: `[B, ...]`, finite.
      temperature: T > 0; a higher value gives unlikely classes more weight.
      axis: the axis or axes of the softmax; not the batch axis.

    Returns:
      `[B]`, >= 0, in T^2 nats.

    Raises:
      ValueError: an argument is None, the shapes differ, or `axis` includes the batch axis.
    """
    student, teacher = _detach_teacher(student_logits=student_logits, teacher_logits=teacher_logits)
    axes = (axis,) if isinstance(axis, int) else axis
    if any(a % student.ndim == 0 for a in axes):
        raise ValueError(f"axis={axis} would normalise over the batch, axis 0 of {student.shape}")
    log_p = jax.nn.log_softmax(teacher / temperature, axis)
    log_q = jax.nn.log_softmax(student / temperature, axis)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis)
    return temperature**2 * per_example_mean(divergence)


def channel_softmax_kl(student: Array, teacher: Array, temperature: float = 1.0) -> Array:
    """`softened_kl` of two images, with each pixel's channels taken as logits.

    The channels of an image are intensities, not scores of mutually exclusive classes. The loss
    ignores anything common to a pixel's channels, such as brightness, and would be exactly 0 for
    images of one channel, which are an error. It is provided because it is in use; `l2`,
    `gaussian_kl` and `laplace_kl` are proper losses between images.

    Args:
      student: `[B, H, W, C]` images, C >= 2.
      teacher: `[B, H, W, C]` the teacher's images for the same inputs.
      temperature: T > 0, in units of the images.

    Returns:
      `[B]`, >= 0, in T^2 nats, averaged over the pixels.

    Raises:
      ValueError: an argument is None, the shapes differ, or there is only one channel.
    """
    student, teacher = _detach_teacher(student=student, teacher=teacher)
    if student.shape[-1] < 2:
        raise ValueError(f"images {student.shape} have one channel, so the softmax is always 1")
    return softened_kl(student, teacher, temperature)


def hinton(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    alpha: float = 0.5,
    temperature: float = 4.0,
) -> Array:
    """Cross-entropy with the labels, mixed with the softened divergence from the teacher.

    `alpha CE(labels, softmax(s)) + (1 - alpha) softened_kl(s, t, T)`. Hinton et al. 2015,
    section 2.

    Args:
      student_logits: `[B, ..., K]` logits of K classes, finite.
      teacher_logits: `[B, ..., K]`, finite.
      labels: `[B, ...]` integer classes, in [0, K).
      alpha: the weight of the hard labels, in [0, 1]; the teacher's weight is 1 - alpha.
      temperature: T > 0 of the divergence; the cross-entropy uses T = 1.

    Returns:
      `[B]`, >= 0.

    Raises:
      ValueError: an argument is None, the shapes do not match, or alpha is outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is not in [0, 1]")
    student, teacher = _detach_teacher(student_logits=student_logits, teacher_logits=teacher_logits)
    same_shape(labels=labels)
    if jnp.shape(labels) != student.shape[:-1]:
        raise ValueError(f"labels has shape {jnp.shape(labels)} for logits {student.shape}")
    log_q = jax.nn.log_softmax(student)
    hard = -jnp.take_along_axis(log_q, jnp.asarray(labels)[..., None], axis=-1)
    soft = softened_kl(student, teacher, temperature)
    return alpha * per_example_mean(hard) + (1 - alpha) * soft


def _detach_teacher(**arrays: Array) -> tuple[Array, Array]:
    student, teacher = same_shape(**arrays)
    return student, jax.lax.stop_gradient(teacher)
