"""Response losses against numerical integrals and scipy's divergences."""

import itertools
import re

import numpy as np
import pytest
import scipy.stats
from scipy.integrate import quad
from scipy.special import log_softmax, softmax

from kd_jax.losses import response

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(3, 4, 5, 3)).astype(np.float32)
TEACHER = RNG.normal(size=(3, 4, 5, 3)).astype(np.float32)
LOGITS_S, LOGITS_T = 2 * STUDENT[:, 0, 0], 2 * TEACHER[:, 0, 0]
LABELS = np.array([2, 0, 1])


def test_l1_and_l2_by_hand():
    student = np.array([[1.0, 2.0], [0.0, -3.0]], np.float32)
    teacher = np.array([[0.0, 4.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(response.l1(student, teacher), [1.5, 2.0])
    np.testing.assert_allclose(response.l2(student, teacher), [2.5, 8.0])


def integrated_kl(p, q, kinks):
    """KL(p || q) of two densities on the line, by quadrature."""
    pieces = [-60.0, *sorted(kinks), 60.0]
    return sum(
        quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), a, b, epsabs=1e-12)[0]
        for a, b in itertools.pairwise(pieces)
    )


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("loss", "distribution"),
    [(response.gaussian_kl, scipy.stats.norm), (response.laplace_kl, scipy.stats.laplace)],
)
def test_divergence_matches_its_integral(loss, distribution, width):
    student, teacher = np.array([[0.3, -1.0]]), np.array([[1.1, -0.6]])
    expected = sum(
        integrated_kl(distribution(t, width), distribution(s, width), (s, t))
        for s, t in zip(student[0], teacher[0], strict=True)
    )
    np.testing.assert_allclose(loss(student, teacher, width), [expected], rtol=1e-5)


def test_laplace_kl_is_quadratic_for_small_and_linear_for_large_distances():
    zero = np.zeros((1, 1), np.float32)
    for near in (1e-2, 1e-3):
        np.testing.assert_allclose(
            response.laplace_kl(zero, zero + near), [near**2 / 2 - near**3 / 6], rtol=1e-3
        )
    np.testing.assert_allclose(response.laplace_kl(zero, zero + 90, 3.0), [90 / 3 - 1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softened_kl_matches_scipy(temperature):
    expected = temperature**2 * scipy.stats.entropy(
        softmax(np.float64(LOGITS_T) / temperature, axis=1),
        softmax(np.float64(LOGITS_S) / temperature, axis=1),
        axis=1,
    )
    actual = response.softened_kl(LOGITS_S, LOGITS_T, temperature)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_softened_kl_over_any_axes():
    for axis, rest in [(1, (1, 2)), (3, (1, 2)), ((1, 2), 1), ((1, 2, 3), ())]:
        expected = scipy.stats.entropy(
            softmax(np.float64(TEACHER), axis).reshape(TEACHER.shape),
            softmax(np.float64(STUDENT), axis).reshape(STUDENT.shape),
            axis=axis,
        ).mean(axis=rest)
        actual = response.softened_kl(STUDENT, TEACHER, axis=axis)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_softened_kl_at_high_temperature_matches_centred_logits():
    # Hinton et al. 2015, eq. 4, integrated: 1 / (2 K) times the squared distance.
    centred = (LOGITS_S - LOGITS_S.mean(1, keepdims=True)) - (
        LOGITS_T - LOGITS_T.mean(1, keepdims=True)
    )
    expected = np.square(centred).mean(axis=1) / 2
    actual = response.softened_kl(LOGITS_S, LOGITS_T, temperature=200.0)
    np.testing.assert_allclose(actual, expected, rtol=3e-2)


def test_softened_kl_is_invariant_to_a_shift_of_the_logits():
    expected = response.softened_kl(LOGITS_S, LOGITS_T, 2.0)
    actual = response.softened_kl(LOGITS_S + 3, LOGITS_T - 2, 2.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, -4, (0, 1)])
def test_softened_kl_rejects_the_batch_axis(axis):
    with pytest.raises(ValueError, match=r"over the batch, axis 0 of \(3, 4, 5, 3\)"):
        response.softened_kl(STUDENT, TEACHER, axis=axis)


def test_channel_softmax_kl_by_hand_is_invariant_to_brightness():
    student = np.zeros((1, 1, 1, 2), np.float32)
    teacher = np.log(np.array([[[[3.0, 1.0]]]], np.float32))
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    np.testing.assert_allclose(response.channel_softmax_kl(student, teacher), [expected], rtol=1e-6)
    np.testing.assert_allclose(
        response.channel_softmax_kl(student + 5, teacher), [expected], rtol=1e-5
    )
    # Doubling the temperature and the images leaves the divergence the same, times T^2.
    np.testing.assert_allclose(
        response.channel_softmax_kl(2 * student, 2 * teacher, 2.0), [4 * expected], rtol=1e-6
    )


def test_channel_softmax_kl_rejects_one_channel():
    with pytest.raises(ValueError, match=r"\(3, 4, 5, 1\) have one channel"):
        response.channel_softmax_kl(STUDENT[..., :1], TEACHER[..., :1])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_hinton_mixes_hard_and_soft_labels(alpha):
    hard = -log_softmax(np.float64(LOGITS_S), axis=1)[np.arange(3), LABELS]
    soft = 2.5**2 * scipy.stats.entropy(
        softmax(np.float64(LOGITS_T) / 2.5, axis=1),
        softmax(np.float64(LOGITS_S) / 2.5, axis=1),
        axis=1,
    )
    actual = response.hinton(LOGITS_S, LOGITS_T, LABELS, alpha, 2.5)
    np.testing.assert_allclose(actual, alpha * hard + (1 - alpha) * soft, rtol=1e-5)


def test_hinton_per_pixel():
    labels = RNG.integers(3, size=(3, 4, 5))
    hard = -np.take_along_axis(log_softmax(np.float64(STUDENT), -1), labels[..., None], -1)
    actual = response.hinton(STUDENT, TEACHER, labels, alpha=1.0)
    np.testing.assert_allclose(actual, hard.mean(axis=(1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_hinton_rejects_alpha_outside_the_unit_interval(alpha):
    with pytest.raises(ValueError, match=rf"alpha={alpha} is not in \[0, 1\]"):
        response.hinton(LOGITS_S, LOGITS_T, LABELS, alpha)


def test_hinton_rejects_invalid_labels():
    with pytest.raises(ValueError, match="labels is missing"):
        response.hinton(LOGITS_S, LOGITS_T, None)
    for labels in (LABELS[:2], LABELS[:, None]):
        with pytest.raises(ValueError, match=rf"labels has shape {re.escape(str(labels.shape))}"):
            response.hinton(LOGITS_S, LOGITS_T, labels)
    with pytest.raises(TypeError, match="integer"):
        response.hinton(LOGITS_S, LOGITS_T, LABELS.astype(np.float32))
