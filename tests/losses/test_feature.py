"""Feature losses against hand-computed values."""

import jax
import numpy as np
import pytest

from kd_jax.losses import feature

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
TEACHER = RNG.normal(size=(2, 3, 4, 7)).astype(np.float32)
ATTENTION = [feature.attention_transfer, feature.attention_transfer_norm]


def test_l2_by_hand():
    student = np.array([[1.0, 2.0], [0.0, -3.0]], np.float32)
    teacher = np.array([[0.0, 4.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(feature.l2(student, teacher), [2.5, 8.0])


def test_attention_by_hand():
    # Energies (4, 3) and (0, 2): unit maps (0.8, 0.6) and (0, 1).
    student = np.array([[[[2.0], [3.0**0.5]]]], np.float32)
    teacher = np.array([[[[0.0, 0.0], [1.0, -1.0]]]], np.float32)
    squares = [0.64, 0.16]
    np.testing.assert_allclose(
        feature.attention_transfer(student, teacher), [sum(squares) / 2], rtol=1e-6
    )
    np.testing.assert_allclose(
        feature.attention_transfer_norm(student, teacher), [sum(squares) ** 0.5], rtol=1e-6
    )


def test_attention_reaches_the_documented_maximum():
    disjoint = np.zeros((2, 1, 1, 2, 3), np.float32)
    disjoint[0, ..., 0, :] = disjoint[1, ..., 1, :] = 7.0
    np.testing.assert_allclose(feature.attention_transfer(*disjoint), [2 / 2], rtol=1e-6)
    np.testing.assert_allclose(feature.attention_transfer_norm(*disjoint), [2**0.5], rtol=1e-6)


@pytest.mark.parametrize("loss", ATTENTION)
def test_attention_is_invariant_to_scale_sign_and_channel_order(loss):
    expected = loss(STUDENT, TEACHER)
    for student, teacher in [
        (-30 * STUDENT, TEACHER),
        (STUDENT, 0.01 * TEACHER),
        (STUDENT[..., ::-1], TEACHER),
    ]:
        np.testing.assert_allclose(loss(student, teacher), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ATTENTION)
def test_a_zero_feature_has_a_finite_value_and_zero_gradient(loss):
    zero = np.zeros_like(STUDENT)
    value = loss(zero, TEACHER)
    expected = 1 / 12 if loss is feature.attention_transfer else 1
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda s: loss(s, TEACHER).sum())(zero), 0)


@pytest.mark.parametrize("loss", ATTENTION)
@pytest.mark.parametrize("shape", [(2, 4, 3, 7), (2, 3, 1, 7), (1, 3, 4, 7), (2, 12, 7)])
def test_attention_rejects_different_positions(loss, shape):
    with pytest.raises(ValueError, match="must be") as error:
        loss(STUDENT, np.zeros(shape, np.float32))
    assert "(2, 3, 4, 5)" in str(error.value)
    assert str(shape) in str(error.value)


def test_l1_by_hand():
    student = np.array([[1.0, 2.0], [0.0, -3.0]], np.float32)
    teacher = np.array([[0.0, 4.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(feature.l1(student, teacher), [1.5, 2.0])


def test_channel_means_ignore_positions_and_sizes():
    student = np.array([[1.0, 0.0], [3.0, 4.0]], np.float32).reshape(1, 2, 1, 2)  # means 2 and 2
    teacher = np.array([[5.0, 1.0]], np.float32).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(feature.channel_means(student, teacher), [(9 + 1) / 2])
    np.testing.assert_allclose(feature.channel_means(student[:, ::-1], teacher), [5])


def test_flow_by_hand():
    first = np.array([[1.0], [2.0]], np.float32).reshape(1, 2, 1, 1)
    second = np.array([[1.0, 0.0], [3.0, -1.0]], np.float32).reshape(1, 2, 1, 2)
    expected = [[[(1 * 1 + 2 * 3) / 2, (0 - 2) / 2]]]
    np.testing.assert_allclose(feature.flow_matrix(first, second), expected)
    zero = np.zeros_like(first)
    np.testing.assert_allclose(feature.flow(first, second, zero, second), [3.5**2 + 1])


def test_flow_accepts_another_teacher_size_but_not_other_channels():
    teacher = RNG.normal(size=(2, 6, 8, 5)).astype(np.float32)
    assert feature.flow(STUDENT, STUDENT, teacher, teacher).shape == (2,)
    with pytest.raises(ValueError, match=r"teacher_next have \(2, 3, 4, 7\) and \(2, 3, 4, 7\)"):
        feature.flow(STUDENT, STUDENT, TEACHER, TEACHER)
    with pytest.raises(
        ValueError, match=r"teacher has shape .* but teacher_next has \(2, 6, 8, 5\)"
    ):
        feature.flow(STUDENT, STUDENT, TEACHER, teacher)
