"""Batch-relational losses against hand-computed values and loop implementations."""

import inspect

import jax
import numpy as np
import pytest

from kd_jax.losses import relation
from kd_jax.losses.relation import similarity_preserving

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(4, 3, 2, 2)).astype(np.float32)
TEACHER = RNG.normal(size=(4, 6)).astype(np.float32)


def test_by_hand():
    student = np.eye(2, dtype=np.float32)  # similarities 1, 0; 0, 1
    teacher = np.ones((2, 3), np.float32)  # rows proportional to 1, 1
    half = 0.5**0.5
    expected = (2 * (1 - half) ** 2 + 2 * half**2) / 4
    np.testing.assert_allclose(similarity_preserving(student, teacher), expected, rtol=1e-6)
    np.testing.assert_allclose(similarity_preserving(student, teacher, order=1), 0.25, rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_invariant_to_scale_rotation_and_shape(order):
    expected = similarity_preserving(STUDENT, TEACHER, order=order)
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0].astype(np.float32)
    for student, teacher in [
        (STUDENT, 50 * TEACHER),
        (0.02 * STUDENT, TEACHER),
        (STUDENT, TEACHER @ rotation),
        (STUDENT.reshape(4, 12), -TEACHER),
    ]:
        actual = similarity_preserving(student, teacher, order=order)
        np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_zero_examples_are_finite(order):
    for features in (np.zeros_like(STUDENT), STUDENT * np.array([0, 1, 1, 1]).reshape(4, 1, 1, 1)):
        student = np.asarray(features, np.float32)
        value, gradient = jax.value_and_grad(
            lambda s: similarity_preserving(s, TEACHER, order=order)
        )(student)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
        assert np.abs(gradient).max() < 10
        assert np.all(np.isfinite(similarity_preserving(TEACHER, student, order=order)))


def rows(feature):
    return feature.reshape(len(feature), -1).astype(np.float64)


def huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def cosines(feature, other):
    return np.array([[cosine(a, b) for b in rows(other)] for a in rows(feature)])


def test_kernel_alignment():
    kernels = [rows(x) @ rows(x).T for x in (STUDENT, TEACHER)]
    expected = -np.sum(kernels[0] * kernels[1]) / np.prod([np.linalg.norm(k) for k in kernels])
    np.testing.assert_allclose(relation.kernel_alignment(STUDENT, TEACHER), expected, rtol=1e-5)
    np.testing.assert_allclose(relation.kernel_alignment(STUDENT, -9 * STUDENT), -1, rtol=1e-5)
    basis = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(relation.kernel_alignment(basis, basis[:, :1]), -0.5, rtol=1e-6)


def test_distances():
    def relative(feature):
        pairs = [[np.linalg.norm(a - b) for b in rows(feature)] for a in rows(feature)]
        return np.array(pairs) / np.sum(pairs) * (len(pairs) ** 2 - len(pairs))

    for student in (STUDENT, STUDENT * np.array([9, 1, 1, 1], np.float32).reshape(4, 1, 1, 1)):
        expected = huber(relative(student) - relative(TEACHER)).mean()
        np.testing.assert_allclose(relation.distance(student, TEACHER), expected, rtol=1e-4)


def test_distances_are_normalised_by_nonzero_pairs():
    student = np.array([[0.0], [0.0], [3.0]], np.float32)  # distances 0 and 3: relative 0 and 1
    teacher = np.array([[0.0], [1.0], [2.0]], np.float32)  # 1, 1, 2: relative 3/4, 3/4, 3/2
    expected = 2 * (0.75**2 / 2 + 0.5**2 / 2 + 0.25**2 / 2) / 9
    np.testing.assert_allclose(relation.distance(student, teacher), expected, rtol=1e-6)


def test_rounding_errors_between_equal_examples_are_ignored():
    value_and_gradient = jax.jit(jax.value_and_grad(relation.distance))
    rng = np.random.default_rng(1)
    for _ in range(20):
        student = rng.normal(size=(8, 30)).astype(np.float32)
        student[1] = student[0] * (1 + 1e-6)
        teacher = rng.normal(size=(8, 5)).astype(np.float32)
        duplicates = np.concatenate([student[:1], student[:1], student[2:]])
        value, gradient = value_and_gradient(student, teacher)
        expected, _ = value_and_gradient(duplicates, teacher)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert np.abs(gradient).max() < 1


def test_angles():
    def corners(feature):
        x, size = rows(feature), len(feature)
        angles = np.zeros((size,) * 3)
        for i, j, k in np.ndindex(angles.shape):
            if j not in (i, k):
                angles[i, j, k] = cosine(x[i] - x[j], x[k] - x[j])
        return angles

    expected = huber(corners(STUDENT) - corners(TEACHER)).mean()
    np.testing.assert_allclose(relation.angle(STUDENT, TEACHER), expected, rtol=1e-4)


@pytest.mark.parametrize("loss", [relation.distance, relation.angle])
def test_invariant_to_offset_rotation_and_scale(loss):
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0].astype(np.float32)
    expected = loss(STUDENT, TEACHER)
    for student, teacher in [
        (STUDENT + 1000, TEACHER),
        (STUDENT, 3 * TEACHER @ rotation),
        (0.01 * STUDENT, TEACHER),
    ]:
        np.testing.assert_allclose(loss(student, teacher), expected, rtol=1e-3)


def test_probability_transfer():
    def probabilities(feature):
        similarities = (cosines(feature, feature) + 1) / 2
        return similarities / similarities.sum(axis=1, keepdims=True)

    p, q = probabilities(TEACHER), probabilities(STUDENT)
    value = relation.probability_transfer(STUDENT, TEACHER)
    np.testing.assert_allclose(value, (p * np.log(p / q)).mean(), rtol=1e-4)


def test_directions():
    shifted = STUDENT[::-1] + 1
    student, teacher = cosines(STUDENT, shifted), cosines(TEACHER, TEACHER[::-1])
    arguments = (STUDENT, shifted, TEACHER, TEACHER[::-1])
    p, q = (np.exp(c) / np.exp(c).sum(axis=1, keepdims=True) for c in (teacher, student))
    expected = (p * np.log(p / q)).sum(axis=1).mean()
    np.testing.assert_allclose(relation.direction_kl(*arguments), expected, rtol=1e-4)
    np.testing.assert_allclose(
        relation.direction_l2(*arguments), ((student - teacher) ** 2).mean(), rtol=1e-4
    )


def test_correlation():
    student, teacher = RNG.normal(size=(2, 5, 3)).astype(np.float32)

    def softmax(x):
        return np.exp(x / 2) / np.exp(x / 2).sum(axis=1, keepdims=True)

    p, q = softmax(student), softmax(teacher)
    within = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    across = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    value = relation.correlation(student, teacher, temperature=2.0)
    np.testing.assert_allclose(value, 4 * (2 - within - across), rtol=1e-4)


PAIRWISE = [
    similarity_preserving,
    relation.kernel_alignment,
    relation.distance,
    relation.angle,
    relation.probability_transfer,
]


EVERY_LOSS = [
    value
    for name, value in vars(relation).items()
    if getattr(value, "__module__", None) == relation.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("loss", EVERY_LOSS)
def test_too_small_batches_are_rejected(loss):
    parameters = inspect.signature(loss).parameters.values()
    names = [p.name for p in parameters if p.default is p.empty]
    minimum = 3 if loss is relation.angle else 2
    assert np.isfinite(loss(**dict.fromkeys(names, TEACHER[:minimum])))
    for size in range(1, minimum):
        message = rf"{names[0]} has shape \({size}, 6\); a batch of {minimum} or more"
        with pytest.raises(ValueError, match=message):
            loss(**dict.fromkeys(names, TEACHER[:size]))


@pytest.mark.parametrize("loss", PAIRWISE)
def test_equal_examples_are_finite(loss):
    equal = np.repeat(STUDENT[:1], 4, axis=0)
    for student, teacher in ((equal, TEACHER), (STUDENT, equal[:, 0]), (equal, equal)):
        value, gradient = jax.value_and_grad(loss)(student, teacher)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
