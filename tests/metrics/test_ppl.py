"""Path lengths of generators with known paths, and diversity against hand-computed values."""

import numpy as np
import pytest

from kd_jax.metrics import ppl
from kd_jax.metrics.ppl import cropped_mean, diversity, lerp, path_distances, slerp

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 40, 6))
T = RNG.uniform(size=40)
MATRIX = RNG.normal(size=(6, 12))


def squares(a, b):
    """Quadratic in small steps, like LPIPS."""
    return ((np.asarray(a, np.float64) - b) ** 2).sum(axis=(1, 2, 3))


def linear(latents):
    return (latents.astype(np.float64) @ MATRIX).reshape(-1, 2, 2, 3)


def test_a_linear_generator_in_w():
    """Its images change at constant speed, |M (b - a)|, at any position and step."""
    expected = (((B - A) @ MATRIX) ** 2).sum(axis=1)
    for t, epsilon in ((T, 1e-2), (0 * T, 1e-2), (T, 1e-3)):
        distances = path_distances(
            linear, squares, A, B, t, interpolate=lerp, epsilon=epsilon, batch=7
        )
        np.testing.assert_allclose(distances, expected, rtol=1e-2)


def test_the_identity_on_a_circle():
    """The speed between unit vectors is their angle."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (A, B))
    angles = np.arccos((a * b).sum(axis=1))
    distances = path_distances(
        lambda z: z.reshape(-1, 1, 2, 3), squares, a, b, T, interpolate=slerp, epsilon=1e-3
    )
    np.testing.assert_allclose(distances, angles**2, rtol=1e-2)


def test_styles_of_several_layers_and_labels():
    a, b = RNG.normal(size=(2, 5, 4, 6))
    used_labels = []

    def generate(styles, labels):
        used_labels.extend(labels)
        assert styles.dtype == np.float32
        return (styles.astype(np.float64) * labels[:, None, None]).reshape(-1, 4, 6, 1)

    labels = np.arange(1, 6)
    distances = path_distances(
        generate, squares, a, b, np.full(5, 0.5), interpolate=lerp, epsilon=1e-2, labels=labels,
        batch=2,
    )  # fmt: skip
    np.testing.assert_allclose(distances, ((b - a) ** 2).sum(axis=(1, 2)) * labels**2, rtol=1e-2)
    assert used_labels == [1, 2, 1, 2, 3, 4, 3, 4, 5, 5]


def test_slerp_by_hand():
    a, b = np.array([[2.0, 0, 0]]), np.array([[0.0, 4, 0]])
    t = np.array([[0.0], [0.5], [1.0]])
    points = slerp(a, b, t)
    np.testing.assert_allclose(points, [[2, 0, 0], [4.5**0.5, 4.5**0.5, 0], [0, 4, 0]], atol=1e-12)


def test_slerp_has_constant_speed_and_handles_equal_and_opposite_latents():
    t = np.linspace(0, 1, 9)[:, None]
    a, b = A[:1] / np.linalg.norm(A[0]), B[:1] / np.linalg.norm(B[0])
    steps = np.linalg.norm(np.diff(slerp(a, b, t), axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    np.testing.assert_allclose(slerp(A[:1], A[:1], t), np.repeat(A[:1], 9, 0), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(slerp(a, -a, t), axis=1)[[0, -1]], 1, rtol=1e-9)


def test_the_crop_by_hand():
    values = RNG.permutation(np.arange(101.0)) ** 2
    assert cropped_mean(values) == pytest.approx(np.mean(np.arange(1, 100.0) ** 2))
    assert cropped_mean(values, 0, 100) == pytest.approx(np.mean(np.arange(101.0) ** 2))
    # A percentile between two values is rounded to the outer one.
    assert cropped_mean([1, 2, 3, 1000], 10, 60) == 2
    assert cropped_mean([7.0]) == 7


def test_diversity_by_hand():
    images = np.array([0.0, 1, 3]).reshape(3, 1, 1, 1)
    assert diversity(images, squares) == pytest.approx((1 + 9 + 4) / 3)
    assert diversity(images, squares, batch=2) == pytest.approx((1 + 9 + 4) / 3)
    value = diversity(images, squares, pairs=30_000, seed=1)
    assert value == pytest.approx((1 + 9 + 4) / 3, rel=0.02)
    assert diversity(np.ones((5, 2, 2, 1)), squares, pairs=9) == 0


def test_random_pairs_are_of_different_images():
    def equal(a, b):
        return (a == b).all(axis=(1, 2, 3)).astype(float)

    assert diversity(np.arange(4.0).reshape(4, 1, 1, 1), equal, pairs=500) == 0


def test_diversity_within_conditions():
    images = np.array([0.0, 100, 1, 104, 5]).reshape(5, 1, 1, 1)
    values = ppl.conditional_diversity(images, [7, 2, 7, 2, 7], squares)
    assert values.classes == {2: pytest.approx(16), 7: pytest.approx((1 + 25 + 16) / 3)}
    assert values.mean == pytest.approx((16 + 14) / 2)


def nan_at_9(a, b):
    return np.where(a[:, 0, 0, 0] == 9, np.nan, 0.0)


LATENTS = np.arange(12.0)[:, None] * np.ones((1, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: path_distances(linear, squares, A, B[:3], T, interpolate=lerp), r"\(3, 6\)"),
        (lambda: path_distances(linear, squares, A, B, 0.5, interpolate=lerp), r"positions \(\)"),
        (
            lambda: path_distances(
                lambda z: z[:, None, None], nan_at_9, LATENTS, LATENTS, 0 * T[:12],
                interpolate=lerp, batch=5,
            ),
            "distance of pair 9 is not finite",
        ),
        (
            lambda: path_distances(
                linear, lambda a, b: squares(a, b).mean(), A, B, T, interpolate=lerp
            ),
            r"distance returned shape \(\) for 16 pairs",
        ),
        (lambda: path_distances(linear, squares, A, B, T, interpolate=lerp, labels=[1]), "labels"),
        (lambda: cropped_mean([]), r"\(0,\)"),
        (lambda: cropped_mean([1, np.nan]), "finite"),
        (lambda: cropped_mean([1, 2], 60, 40), "low=60 and high=40"),
        (lambda: diversity(np.ones((1, 2, 2, 1)), squares), "N >= 2"),
        (lambda: diversity(np.ones((2, 2, 2, 1)), squares, pairs=0), "pairs=0"),
        (
            lambda: ppl.conditional_diversity(np.ones((3, 1, 1, 1)), [0, 0, 4], squares),
            "condition 4 has 1 image",
        ),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
