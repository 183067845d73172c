"""Feature losses by hand, and torchdistill's and GAN Compression's numbers."""

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


def test_attention_is_at_most_what_it_says():
    apart = np.zeros((2, 1, 1, 2, 3), np.float32)
    apart[0, ..., 0, :] = apart[1, ..., 1, :] = 7.0
    np.testing.assert_allclose(feature.attention_transfer(*apart), [2 / 2], rtol=1e-6)
    np.testing.assert_allclose(feature.attention_transfer_norm(*apart), [2**0.5], rtol=1e-6)


@pytest.mark.parametrize("loss", ATTENTION)
def test_attention_ignores_scale_sign_and_order_of_channels(loss):
    expected = loss(STUDENT, TEACHER)
    for student, teacher in [
        (-30 * STUDENT, TEACHER),
        (STUDENT, 0.01 * TEACHER),
        (STUDENT[..., ::-1], TEACHER),
    ]:
        np.testing.assert_allclose(loss(student, teacher), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ATTENTION)
def test_a_dead_feature_is_no_nan(loss):
    dead = np.zeros_like(STUDENT)
    value = loss(dead, TEACHER)
    expected = 1 / 12 if loss is feature.attention_transfer else 1
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda s: loss(s, TEACHER).sum())(dead), 0)


@pytest.mark.parametrize("loss", ATTENTION)
@pytest.mark.parametrize("shape", [(2, 4, 3, 7), (2, 3, 1, 7), (1, 3, 4, 7), (2, 12, 7)])
def test_attention_refuses_other_places(loss, shape):
    with pytest.raises(ValueError, match="must be") as error:
        loss(STUDENT, np.zeros(shape, np.float32))
    assert "(2, 3, 4, 5)" in str(error.value)
    assert str(shape) in str(error.value)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def test_torchdistill(golden):
    paths = [*golden.glob("distill_torchdistill_*.npz")]
    for path in paths:
        file = np.load(path)
        layers = [i for i in range(9) if f"in/fs{i}" in file]
        students = [nhwc(file[f"in/fs{i}"]) for i in layers]
        teachers = [nhwc(file[f"in/ft{i}"]) for i in layers]
        for key, loss in [
            ("AT_code", feature.attention_transfer),
            ("AT_paper", feature.attention_transfer_norm),
        ]:

            def total(students, loss=loss, teachers=teachers):
                pairs = zip(students, teachers, strict=True)
                return sum((i + 1) * loss(s, t).mean() for i, (s, t) in enumerate(pairs))

            value, gradients = jax.value_and_grad(total)(students)
            np.testing.assert_allclose(value, file[f"out/{key}"], rtol=1e-5)
            for i, gradient in enumerate(gradients):
                theirs = nhwc(file[f"out/grad/{key}/{i}"])
                atol = 1e-5 * np.abs(theirs).max()
                np.testing.assert_allclose(gradient, theirs, rtol=1e-4, atol=atol)

        weight, bias = file["sd/fitnet_reg.weight"][:, :, 0, 0], file["sd/fitnet_reg.bias"]

        def fitnet(s, weight=weight, bias=bias, teacher=teachers[0]):
            return feature.l2(s @ weight.T + bias.reshape(1, 1, 1, -1), teacher).mean()

        value, gradient = jax.value_and_grad(fitnet)(students[0])
        np.testing.assert_allclose(value, file["out/FitNet_mse"], rtol=1e-5)
        np.testing.assert_allclose(
            gradient, nhwc(file["out/grad/FitNet_mse/fs0"]), rtol=1e-4, atol=1e-7
        )
    assert paths


def test_gan_compression(golden):
    for path in golden.glob("distill_mapping_*.npz"):
        file = np.load(path)
        prefix = "out/gancompression_distill_layer"
        for i in [k.removeprefix(prefix) for k in file.files if k.startswith(prefix)]:
            weight, bias = file[f"sd/netA{i}.weight"][:, :, 0, 0], file[f"sd/netA{i}.bias"]
            mapped = nhwc(file[f"in/S{i}"]) @ weight.T + bias
            value = feature.l2(mapped, nhwc(file[f"in/T{i}"])).mean()
            np.testing.assert_allclose(value, file[f"{prefix}{i}"], rtol=1e-5)
