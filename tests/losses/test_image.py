"""Image losses against hand-computed values and loop implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core.types import Taps
from kd_jax.losses import image, response

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.uniform(-1, 1, size=(2, 2, 8, 6, 3)).astype(np.float32)


def ssim_with_loops(a, b, window, sigma, data_range, padding):
    """Wang et al.'s equation 13 at every position, in float64."""
    half = window // 2
    offsets = np.arange(window) - half
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    if padding == "SAME":
        a, b = (np.pad(x, ((half, half), (half, half))) for x in (a, b))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(a.shape[0] - window + 1):
        for j in range(a.shape[1] - window + 1):
            x, y = (z[i : i + window, j : j + window].astype(np.float64) for z in (a, b))
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            cov = (weights * (x - mx) * (y - my)).sum()
            values.append(
                (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            )
    return np.mean(values)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("window", "sigma", "data_range"), [(5, 1.5, 2.0), (3, 0.7, 1.0)])
def test_ssim_matches_loops(window, sigma, data_range, padding):
    settings = {"window": window, "sigma": sigma, "data_range": data_range, "padding": padding}
    expected = [
        np.mean([ssim_with_loops(a[..., c], b[..., c], **settings) for c in range(3)])
        for a, b in zip(STUDENT, TEACHER, strict=True)
    ]
    np.testing.assert_allclose(image.ssim(STUDENT, TEACHER, **settings), expected, rtol=1e-4)
    np.testing.assert_allclose(
        image.structural(STUDENT, TEACHER, **settings), 1 - np.array(expected), rtol=1e-4
    )


def test_ssim_of_constants():
    a, b = jnp.full((1, 16, 16, 1), 0.5), jnp.full((1, 16, 16, 1), -0.5)
    expected = (-0.5 + 4e-4) / (0.5 + 4e-4)
    np.testing.assert_allclose(image.ssim(a, b, padding="VALID"), [expected], rtol=1e-4)
    np.testing.assert_allclose(image.ssim(a, a), [1], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 4}, "window=4 is not an odd"),
        ({"padding": "VALID"}, r"window=11 is larger than the images: image has \(2, 8, 6, 3\)"),
    ],
)
def test_invalid_windows_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        image.ssim(STUDENT, TEACHER, **settings)


def test_style_by_hand():
    student = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32).reshape(1, 1, 2, 2)
    grams = np.array([[1 + 9, 2 + 12], [2 + 12, 4 + 16]]) / 4
    np.testing.assert_allclose(image.gram_matrix(student)[0], grams)
    np.testing.assert_allclose(image.style(student, 0 * student), [grams.mean()])
    np.testing.assert_allclose(image.style(student, student[:, :, ::-1]), [0], atol=1e-7)
    assert image.style(STUDENT, TEACHER[:, :4]).shape == (2,)


def test_total_variation_by_hand():
    x = np.array([[1.0, 3.0, 3.0], [0.0, 5.0, -1.0]], np.float32).reshape(1, 2, 3, 1)
    np.testing.assert_allclose(image.total_variation(x), [1 + 2 + 4 + 2 + 0 + 5 + 6])


def test_haar_preserves_energy_and_orders_its_bands():
    bands = image.haar(STUDENT)
    np.testing.assert_allclose(np.sum(bands**2), np.sum(STUDENT**2), rtol=1e-5)
    x, y = np.meshgrid(np.arange(4.0), np.arange(4.0))
    for picture, expected in (
        (np.ones((4, 4)), [2, 0, 0, 0]),
        (np.where(x % 2, -1, 1), [0, 2, 0, 0]),  # changes along a row
        (np.where(y % 2, -1, 1), [0, 0, 2, 0]),
        (np.where((x + y) % 2, -1, 1), [0, 0, 0, 2]),
    ):
        coefficients = image.haar(picture.astype(np.float32).reshape(1, 4, 4, 1))
        np.testing.assert_allclose(
            coefficients[0, :, :, :, 0], np.broadcast_to(expected, (2, 2, 4))
        )


def test_wavelet_by_hand():
    difference = np.array([[4.0, 0.0], [0.0, 0.0]], np.float32).reshape(1, 2, 2, 1)
    # All four coefficients are 2.
    np.testing.assert_allclose(image.wavelet(difference, 0 * difference), [2 + 4])


def test_multi_scale_by_hand():
    difference = np.zeros((1, 4, 4, 1), np.float32)
    difference[0, 0, 0, 0], difference[0, 0, 1, 0] = 4.0, -4.0
    fine, coarse = 8 / 16 + 32 / 16, 0.0  # the two cancel in their 2x2 block
    value = image.multi_scale(difference, 0 * difference, scales=2)
    np.testing.assert_allclose(value, [(fine + coarse) / 2])
    np.testing.assert_allclose(image.multi_scale(difference, 0 * difference, scales=1), [fine])


@pytest.mark.parametrize("scales", [0, 3])
def test_invalid_scales_are_rejected(scales):
    with pytest.raises(ValueError, match=r"scales=0|cannot be halved 2 times"):
        image.multi_scale(STUDENT, TEACHER, scales=scales)


def test_odd_images_are_rejected_by_wavelet():
    with pytest.raises(ValueError, match="must be multiples of 2"):
        image.wavelet(STUDENT[:, :7], TEACHER[:, :7])


def test_masked_l1_by_hand():
    student = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32).reshape(1, 1, 2, 2)  # two pixels
    teacher = np.array([[0.0, 4.0], [9.0, 9.0]], np.float32).reshape(1, 1, 2, 2)
    for mask, expected in (
        ([1, 0], 3 / 4),  # over all four elements, not only the two inside
        ([0, 0.5], 5.5 / 4),
        ([1, 1], 14 / 4),
        ([True, False], 3 / 4),
    ):
        mask = np.array(mask).reshape(1, 1, 2, 1)
        np.testing.assert_allclose(image.masked_l1(student, teacher, mask), [expected])
    channel_mask = np.array([[0.0, 1.0], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(image.masked_l1(student, teacher, channel_mask), [2 / 4])


def test_masked_l1_with_a_full_mask_is_response_l1():
    np.testing.assert_allclose(
        image.masked_l1(STUDENT, TEACHER, np.ones_like(STUDENT)),
        response.l1(STUDENT, TEACHER),
        rtol=1e-6,
    )


@pytest.mark.parametrize("shape", [(2, 8, 6, 2), (2, 8, 6), (1, 8, 6, 1), (2, 1, 1, 1)])
def test_masks_that_would_broadcast_are_rejected(shape):
    with pytest.raises(ValueError, match=r"student has shape \(2, 8, 6, 3\) but mask has \("):
        image.masked_l1(STUDENT, TEACHER, np.ones(shape, np.float32))


def test_masked_images_of_different_shapes_are_rejected():
    mask = np.ones((2, 8, 6, 1), np.float32)
    with pytest.raises(ValueError, match=r"student has .* but teacher has \(2, 8, 6, 1\)"):
        image.masked_l1(STUDENT, TEACHER[..., :1], mask)
    with pytest.raises(ValueError, match=r"student has shape \(2, 8, 6\); \[B, H, W, C\]"):
        image.masked_l1(STUDENT[..., 0], TEACHER[..., 0], mask[..., 0])


def test_perceptual_by_hand():
    student = Taps(
        near=np.array([[3.0, 4.0], [0.0, 2.0]], np.float32).reshape(1, 1, 2, 2),
        far=np.array([[1.0, 0.0, 0.0]], np.float32).reshape(1, 1, 1, 3),
    )
    teacher = Taps(
        near=np.array([[5.0, 0.0], [0.0, 9.0]], np.float32).reshape(1, 1, 2, 2),
        far=np.array([[-7.0, 0.0, 0.0]], np.float32).reshape(1, 1, 1, 3),
    )
    near = ((0.6 - 1) ** 2 + 0.8**2 + 0) / 2  # the mean over two positions, the sum over channels
    far = 4.0  # opposite directions
    np.testing.assert_allclose(image.perceptual(student, teacher), [near + far], rtol=1e-6)
    weighted = image.perceptual(student, teacher, {"near": 2.0, "far": 0.25})
    np.testing.assert_allclose(weighted, [2 * near + far / 4], rtol=1e-6)
    np.testing.assert_allclose(image.perceptual(student, teacher, {"near": 1}), [near], rtol=1e-6)
    scaled = jax.tree.map(lambda x: 50 * x, student)
    np.testing.assert_allclose(image.perceptual(scaled, teacher), [near + far], rtol=1e-6)


def test_only_the_weighted_layers_need_to_be_images():
    student, teacher = (Taps(conv=x, logits=x[:, 0, 0]) for x in (STUDENT, TEACHER))
    expected = image.perceptual({"conv": STUDENT}, {"conv": TEACHER})
    np.testing.assert_array_equal(image.perceptual(student, teacher, {"conv": 1.0}), expected)
    with pytest.raises(ValueError, match=r"layer 'logits' of student_features has shape \(2, 3\)"):
        image.perceptual(student, teacher)


def test_zero_features_have_a_finite_value_and_zero_gradient():
    student = STUDENT * np.array([0, 1], np.float32).reshape(2, 1, 1, 1)
    value, gradient = jax.vmap(
        jax.value_and_grad(lambda s, t: image.perceptual({"a": s[None]}, {"a": t[None]})[0])
    )(student, TEACHER)
    np.testing.assert_allclose(value[0], 1, rtol=1e-5)  # the teacher's direction is a unit vector
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.all(np.isfinite(gradient[1]))


@pytest.mark.parametrize(
    ("student", "teacher", "weights", "message"),
    [
        (None, {}, None, "student_features is missing"),
        ({}, None, None, "teacher_features is missing"),
        ({}, {}, None, "there is no layer to compare"),
        ({"a": STUDENT}, {"a": TEACHER}, {}, "there is no layer to compare"),
        ({"a": STUDENT}, {"b": TEACHER}, None, "teacher_features has no layer 'a'; it has 'b'"),
        ({"a": STUDENT}, {}, None, "teacher_features has no layer 'a'; it has none at all"),
        ({}, {"b": TEACHER}, None, "student_features has no layer 'b'; it has none"),
        ({"a": STUDENT}, {"a": TEACHER}, {"b": 1.0}, "student_features has no layer 'b'"),
        (
            {"a": STUDENT},
            {"a": TEACHER[:, :4]},
            None,
            r"layer 'a' of student_features has shape \(2, 8, 6, 3\) but "
            r"layer 'a' of teacher_features has \(2, 4, 6, 3\)",
        ),
        (
            {"a": STUDENT, "b": STUDENT[:1]},
            {"a": TEACHER, "b": TEACHER[:1]},
            None,
            "layer 'b' has a batch of 1 but those before 2",
        ),
    ],
)
def test_mismatched_layers_are_named(student, teacher, weights, message):
    with pytest.raises(ValueError, match=message):
        image.perceptual(student, teacher, weights)
