"""Losses between the relations of a batch's examples in the student's and the teacher's features.

They need the global batch, return a scalar, and are undefined for a batch of one.
"""

import jax
import jax.numpy as jnp

from kd_jax.core.checks import same_shape
from kd_jax.core.types import Array


def similarity_preserving(student: Array, teacher: Array, order: int = 2) -> Array:
    """The mean squared difference of the batch's similarity matrices. A scalar.

    `||G_S - G_T||_F^2 / B^2`, where G is the Gram matrix of the flattened features, uncentred,
    each row divided by its norm. Tung & Mori 2019, section 3. The teacher's features are
    constants. Shapes may differ beyond the batch, so no connector is needed.

    Args:
      student: `[B, ...]` feature, B >= 2.
      teacher: `[B, ...]` feature.
      order: the order of the row norm: 2 in the paper, 1 in torchdistill's code.

    Returns:
      A scalar in [0, 4 / B]. Invariant to the scale of either feature.

    Raises:
      ValueError: an argument is None, the batch sizes differ, or the batch is smaller than 2.
    """
    student, teacher = _check_batches(student=student, teacher=teacher)
    difference = _similarities(student, order) - jax.lax.stop_gradient(
        _similarities(teacher, order)
    )
    return jnp.mean(difference**2)


def kernel_alignment(student: Array, teacher: Array) -> Array:
    """The negative alignment of the batch's Gram matrices. A scalar.

    `-<K_S, K_T> / (||K_S|| ||K_T||)` with Frobenius norms, where K is the Gram matrix of the
    flattened features, uncentred. Jin et al. 2021 (CAT), eq. 5, summed over layers. The teacher's
    features are constants. Shapes may differ beyond the batch, so no connector is needed.

    Args:
      student: `[B, ...]` feature, B >= 2.
      teacher: `[B, ...]` feature.

    Returns:
      A scalar in [-1, 0]: -1 where the kernels are proportional, which they always are for a batch
      of one. Invariant to the scale of either feature.

    Raises:
      ValueError: an argument is None, the batch sizes differ, or the batch is smaller than 2.
    """
    student, teacher = _check_batches(student=student, teacher=teacher)
    kernels = _normalize(_gram(student)), jax.lax.stop_gradient(_normalize(_gram(teacher)))
    return -jnp.sum(kernels[0] * kernels[1])


def distance(student: Array, teacher: Array) -> Array:
    """The Huber loss between the batch's pairwise distances. A scalar.

    Distances are divided by the mean of the nonzero ones. Park et al. 2019 (RKD), eq. 7 and 8, with
    weight 1, and weight 2 for `angle`; as in the authors' code the mean over pairs includes each
    example with itself. The teacher's features are constants.

    Args:
      student: `[B, ...]` feature, B >= 2.
      teacher: `[B, ...]` feature; shapes may differ beyond the batch.

    Returns:
      A scalar, >= 0. Invariant to scale, rotation and offset of either feature.

    Raises:
      ValueError: an argument is None, the batch sizes differ, or the batch is smaller than 2.
    """
    student, teacher = _check_batches(student=student, teacher=teacher)

    def relative(feature: Array) -> Array:
        distances = _distances(_centred_gram(feature))
        distinct = distances > 0
        mean = jnp.sum(distances) / jnp.maximum(jnp.sum(distinct), 1)
        return distances / jnp.where(mean > 0, mean, 1)

    return jnp.mean(_huber(relative(student) - jax.lax.stop_gradient(relative(teacher))))


def angle(student: Array, teacher: Array) -> Array:
    """The Huber loss between the cosines of the angles in all triangles of the batch. A scalar.

    Park et al. 2019 (RKD), eq. 9 and 10, with weight 2, and weight 1 for `distance`; as in the
    authors' code the mean is over all B^3 triples. The teacher's features are constants.

    Args:
      student: `[B, ...]` feature, B >= 3; memory grows as B^3.
      teacher: `[B, ...]` feature; shapes may differ beyond the batch.

    Returns:
      A scalar in [0, 1.5]. Invariant to scale, rotation and offset of either feature.

    Raises:
      ValueError: an argument is None, the batch sizes differ, or the batch is smaller than 3.
    """
    student, teacher = _check_batches(3, student=student, teacher=teacher)

    def cosines(feature: Array) -> Array:
        gram = _centred_gram(feature)
        distances = _distances(gram)
        # [j, i, k]: between the directions from example j to i and to k.
        corner = jnp.diagonal(gram)[:, None, None]
        products = gram[None] - gram[:, :, None] - gram[:, None, :] + corner
        lengths = distances[:, :, None] * distances[:, None, :]
        return jnp.where(lengths > 0, products / jnp.where(lengths > 0, lengths, 1), 0)

    return jnp.mean(_huber(cosines(student) - jax.lax.stop_gradient(cosines(teacher))))


def probability_transfer(student: Array, teacher: Array, epsilon: float = 1e-7) -> Array:
    """The divergence of the batch's conditional neighbourhood probabilities. A scalar.

    `mean_ij p_ij log(p_ij / q_ij)`, where p and q are the teacher's and the student's cosine
    similarities, mapped to [0, 1] and divided by their row sums. Passalis & Tefas 2018 (PKT),
    eq. 6 to 8. The teacher's features are constants.

    Args:
      student: `[B, ...]` feature, B >= 2.
      teacher: `[B, ...]` feature; shapes may differ beyond the batch.
      epsilon: added to both probabilities.

    Returns:
      A scalar, >= 0. Invariant to the scale of a feature.

    Raises:
      ValueError: an argument is None, the batch sizes differ, or the batch is smaller than 2.
    """
    student, teacher = _check_batches(student=student, teacher=teacher)

    def probabilities(feature: Array) -> Array:
        similarities = (_cosines(feature, feature) + 1) / 2
        return similarities / jnp.sum(similarities, axis=1, keepdims=True)

    p = jax.lax.stop_gradient(probabilities(teacher)) + epsilon
    q = probabilities(student) + epsilon
    return jnp.mean((p - epsilon) * jnp.log(p / q))


def direction_kl(student: Array, shifted: Array, teacher: Array, teacher_shifted: Array) -> Array:
    """The divergence of the similarities between images and latent-shifted images. A scalar.

    `C[i, j]` is the cosine of the features of image i and of image j after a step in latent space;
    the loss is the mean over i of KL(softmax_j C_T || softmax_j C_S). Xu et al. 2022 (StyleKD),
    eq. 5 to 7, summed over middle layers with weight 30. The teacher's features are constants.

    Args:
      student: `[B, ...]` feature of the student's images, B >= 2.
      shifted: `[B, ...]` feature of the student's images from shifted latents.
      teacher: `[B, ...]` feature of the teacher's images.
      teacher_shifted: `[B, ...]` feature of the teacher's images from the same shifted latents.

    Returns:
      A scalar, >= 0. Invariant to the scale of a feature.

    Raises:
      ValueError: an argument is None, batch sizes differ or are smaller than 2, or one network's
        two features differ in shape.
    """
    similarities, target = _shift_similarities(student, shifted, teacher, teacher_shifted)
    log_p, log_q = jax.nn.log_softmax(target, axis=1), jax.nn.log_softmax(similarities, axis=1)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1))


def direction_l2(student: Array, shifted: Array, teacher: Array, teacher_shifted: Array) -> Array:
    """The mean squared difference of the similarities of `direction_kl`. A scalar in [0, 4].

    Arguments and errors are those of `direction_kl`.
    """
    similarities, target = _shift_similarities(student, shifted, teacher, teacher_shifted)
    return jnp.mean((similarities - target) ** 2)


def correlation(
    student_logits: Array, teacher_logits: Array, temperature: float = 1.0, epsilon: float = 1e-8
) -> Array:
    """`1 - correlation` of predictions, within examples and within classes. A scalar.

    `t^2 (1 - mean_i corr(p_i, q_i)) + t^2 (1 - mean_c corr(p_:c, q_:c))` of softmax(logits / t).
    Huang et al. 2022 (DIST), eq. 8 to 10, with weights 1 and 1. The teacher's logits are
    constants.

    Args:
      student_logits: `[B, K]`, B >= 2.
      teacher_logits: `[B, K]`.
      temperature: t.
      epsilon: the lower bound of the product of norms that correlations are divided by.

    Returns:
      A scalar in [0, 4 t^2].

    Raises:
      ValueError: an argument is None, the shapes differ, or the batch is smaller than 2.
    """
    student, teacher = same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    _check_batches(student_logits=student, teacher_logits=teacher)
    p = jax.nn.softmax(student / temperature, axis=-1)
    q = jax.lax.stop_gradient(jax.nn.softmax(teacher / temperature, axis=-1))

    def decorrelation(axis: int) -> Array:
        a, b = (x - jnp.mean(x, axis=axis, keepdims=True) for x in (p, q))
        squares = jnp.sum(a**2, axis=axis) * jnp.sum(b**2, axis=axis)
        norms = jnp.sqrt(jnp.maximum(squares, epsilon**2))
        return 1 - jnp.mean(jnp.sum(a * b, axis=axis) / norms)

    return temperature**2 * (decorrelation(1) + decorrelation(0))


def _check_batches(minimum: int = 2, **features: Array) -> tuple[Array, ...]:
    """Checks that the features have the same batch size, of at least `minimum`."""
    (first, reference), *_ = features.items()
    arrays = {name: same_shape(**{name: value})[0] for name, value in features.items()}
    for name, value in arrays.items():
        if value.ndim == 0 or value.shape[:1] != jnp.shape(reference)[:1]:
            raise ValueError(
                f"{first} has shape {jnp.shape(reference)} but {name} has {value.shape}; "
                "both must have the same batch size"
            )
    size = jnp.shape(reference)[0]
    if size < minimum:
        raise ValueError(
            f"{first} has shape {jnp.shape(reference)}; "
            f"a batch of {minimum} or more examples is needed"
        )
    return tuple(arrays.values())


def _shift_similarities(
    student: Array, shifted: Array, teacher: Array, teacher_shifted: Array
) -> tuple[Array, Array]:
    student, shifted, teacher, teacher_shifted = _check_batches(
        student=student, shifted=shifted, teacher=teacher, teacher_shifted=teacher_shifted
    )
    same_shape(student=student, shifted=shifted)
    same_shape(teacher=teacher, teacher_shifted=teacher_shifted)
    return _cosines(student, shifted), jax.lax.stop_gradient(_cosines(teacher, teacher_shifted))


def _products(a: Array, b: Array) -> Array:
    # The default matmul precision of accelerators is below float32.
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _gram(feature: Array) -> Array:
    rows = feature.reshape(feature.shape[0], -1)
    return _products(rows, rows)


def _centred_gram(feature: Array) -> Array:
    """The Gram matrix of the centred features: distances and angles lose fewer digits."""
    return _gram(feature - jnp.mean(feature, axis=0, keepdims=True))


def _distances(gram: Array) -> Array:
    """Pairwise distances from inner products; 0, with zero gradient, for equal examples."""
    squares = jnp.diagonal(gram)
    squares = squares[:, None] + squares[None, :] - 2 * gram
    # Equal examples have nonzero distances by rounding: values below the threshold are set to 0.
    threshold = 4 * jnp.finfo(gram.dtype).eps * jnp.max(jnp.diagonal(gram))
    distinct = squares > jax.lax.stop_gradient(threshold)
    return jnp.where(distinct, jnp.sqrt(jnp.where(distinct, squares, 1)), 0)


def _cosines(a: Array, b: Array) -> Array:
    def unit_rows(feature: Array) -> Array:
        rows = feature.reshape(feature.shape[0], -1)
        scale = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=1, keepdims=True))
        rows = rows / jnp.where(scale > 0, scale, 1)  # squares of large values overflow
        squares = jnp.sum(rows**2, axis=1, keepdims=True)
        return rows / jnp.sqrt(jnp.where(squares > 0, squares, 1))

    return _products(unit_rows(a), unit_rows(b))


def _normalize(matrix: Array) -> Array:
    """A matrix divided by its Frobenius norm; a zero matrix stays zero."""
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix)))
    matrix = matrix / jnp.where(scale > 0, scale, 1)
    squares = jnp.sum(matrix**2)
    return matrix / jnp.sqrt(jnp.where(squares > 0, squares, 1))


def _huber(difference: Array) -> Array:
    size = jnp.abs(difference)
    return jnp.where(size < 1, difference**2 / 2, size - 0.5)


def _similarities(feature: Array, order: int) -> Array:
    gram = _gram(feature)
    powers = jnp.sum(jnp.abs(gram) ** order, axis=1, keepdims=True)
    # An all-zero example has zero similarities and zero gradient. Both branches of `where` are
    # differentiated, so the root must be finite in the unused one.
    positive = powers > 0
    return jnp.where(positive, gram / jnp.where(positive, powers, 1) ** (1 / order), 0)
