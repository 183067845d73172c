"""Batch-relational losses by hand, and torchdistill's numbers."""

import jax
import numpy as np
import pytest

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
def test_only_relations_count(order):
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
def test_dead_examples_are_no_nan(order):
    for dead in (np.zeros_like(STUDENT), STUDENT * np.array([0, 1, 1, 1]).reshape(4, 1, 1, 1)):
        student = np.asarray(dead, np.float32)
        value, gradient = jax.value_and_grad(
            lambda s: similarity_preserving(s, TEACHER, order=order)
        )(student)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
        assert np.abs(gradient).max() < 10
        assert np.all(np.isfinite(similarity_preserving(TEACHER, student, order=order)))


def test_a_batch_of_one_has_no_relations():
    with pytest.raises(ValueError, match="a batch of one"):
        similarity_preserving(STUDENT[:1], TEACHER[:1])


def test_torchdistill(golden):
    paths = [*golden.glob("distill_torchdistill_*.npz")]
    for path in paths:
        file = np.load(path)
        batch = file["in/fs0"].shape[0]
        for key, layer, times in [("SP_batchmean", 0, 1), ("SP_sum", 1, batch**2)]:
            student, teacher = (
                file[f"in/{who}{layer}"].transpose(0, 2, 3, 1) for who in ("fs", "ft")
            )
            value, gradient = jax.value_and_grad(
                lambda s, t=teacher, times=times: times * similarity_preserving(s, t, order=1)
            )(student)
            np.testing.assert_allclose(value, file[f"out/{key}"], rtol=1e-4)
            theirs = file[f"out/grad/{key}/0"].transpose(0, 2, 3, 1)
            atol = 1e-4 * np.abs(theirs).max()
            np.testing.assert_allclose(gradient, theirs, rtol=1e-4, atol=atol)
    assert paths
