"""Resampling against zero-stuffing and explicit sums, with derivatives of two orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import ops
from kd_jax.ops.resample import filter_shape

RNG = np.random.default_rng(0)
ASYMMETRIC = np.outer([1.0, 2.0, -1.0], [3.0, 0.5, 1.0, 0.25])
FULL = RNG.normal(size=(3, 4))


def by_hand(x, taps, up, down, padding, flip=False, gain=1.0):
    """Inserted zeros, padding, a convolution pixel by pixel, and subsampling."""
    batch, height, width, channels = x.shape
    stuffed = np.zeros((batch, height * up[0], width * up[1], channels))
    stuffed[:, :: up[0], :: up[1]] = x
    (top, bottom), (left, right) = padding
    stuffed = np.pad(stuffed, ((0, 0), *((max(p, 0), max(q, 0)) for p, q in padding), (0, 0)))
    stuffed = stuffed[
        :,
        max(-top, 0) : stuffed.shape[1] - max(-bottom, 0),
        max(-left, 0) : stuffed.shape[2] - max(-right, 0),
    ]
    taps = np.outer(taps, taps) if np.ndim(taps) == 1 else np.asarray(taps)
    taps = taps if flip else taps[::-1, ::-1]
    rows, columns = taps.shape
    full = sum(
        taps[i, j]
        * stuffed[:, i : stuffed.shape[1] - rows + 1 + i, j : stuffed.shape[2] - columns + 1 + j]
        for i in range(rows)
        for j in range(columns)
    )
    return gain * full[:, :: down[0], :: down[1]]


CASES = [
    (ASYMMETRIC, (1, 1), (1, 1), ((1, 2), (2, 1)), False, 1.0),
    (FULL, (2, 2), (1, 1), ((2, 1), (1, 2)), False, 4.0),
    (FULL, (1, 1), (2, 2), ((1, 1), (2, 2)), True, 1.0),
    (ASYMMETRIC, (3, 2), (2, 3), ((4, 3), (-1, 5)), False, -0.7),
    (FULL, (2, 3), (4, 1), ((0, 5), (3, -2)), True, 2.0),
    ((1.0, 3.0, 3.0, 1.0), (2, 2), (1, 1), ((2, 1), (2, 1)), False, 4.0),
    ((1.0, 2.0, 3.0), (2, 1), (3, 2), ((-1, 4), (2, 2)), False, 1.0),
    (np.zeros((2, 2)), (2, 2), (1, 1), ((0, 0), (0, 0)), False, 1.0),
]
every_case = pytest.mark.parametrize(("taps", "up", "down", "padding", "flip", "gain"), CASES)


@every_case
def test_values_equal_the_definition(x64, taps, up, down, padding, flip, gain):
    x = RNG.normal(size=(2, 5, 6, 2))
    actual = ops.upfirdn2d(
        jnp.asarray(x), taps, up=up, down=down, padding=padding, flip=flip, gain=gain
    )
    np.testing.assert_allclose(
        actual, by_hand(x, taps, up, down, padding, flip, gain), rtol=1e-10, atol=1e-10
    )


@every_case
def test_derivatives_are_those_of_a_linear_map(x64, taps, up, down, padding, flip, gain):
    """The gradient is that of the transposed matrix; a gradient penalty's uses the matrix again."""
    x = jnp.asarray(RNG.normal(size=(1, 4, 5, 1)))

    def fn(x):
        return ops.upfirdn2d(x, taps, up=up, down=down, padding=padding, flip=flip, gain=gain)

    units = np.eye(x.size).reshape(x.size, *x.shape[1:])
    matrix = by_hand(units, taps, up, down, padding, flip, gain).reshape(x.size, -1)
    y, transpose = jax.vjp(fn, x)
    cotangent = jnp.asarray(RNG.normal(size=y.shape))
    np.testing.assert_allclose(
        transpose(cotangent)[0].reshape(-1), matrix @ cotangent.reshape(-1), atol=1e-10
    )

    def penalty(x):
        return (jax.grad(lambda x: (fn(x) ** 3).sum())(x) ** 2).sum()

    def penalty_by_matrix(x):
        y = x.reshape(-1) @ matrix
        return ((matrix @ (3 * y**2)) ** 2).sum()

    np.testing.assert_allclose(
        jax.grad(penalty)(x), jax.grad(penalty_by_matrix)(x), rtol=1e-8, atol=1e-8
    )


def test_constants_are_preserved():
    x = jnp.ones((1, 16, 12, 3))
    taps = ops.resampling_filter((1, 3, 3, 1))
    for y, shape in (
        (ops.upsample2d(x, taps), (32, 24)),
        (ops.downsample2d(x, taps), (8, 6)),
        (ops.filter2d(x, taps), (16, 12)),
    ):
        assert y.shape == (1, *shape, 3)
        np.testing.assert_allclose(y[:, 2:-2, 2:-2], 1.0, rtol=1e-6)


def test_inserted_zeros_are_not_multiplied():
    """There are two products per axis and pixel: half of the taps meet zeros."""
    x = jnp.ones((1, 64, 64, 8))
    taps = ops.resampling_filter((1, 3, 3, 1))
    call = jax.jit(lambda x: ops.upsample2d(x, taps))
    flops = call.lower(x).compile().cost_analysis()["flops"]
    assert flops < 1.2 * (2 * 2 * 128 * 64 + 2 * 2 * 128 * 128) * 8


def test_filters():
    np.testing.assert_allclose(
        ops.resampling_filter((1, 3, 3, 1)), np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    )
    eight = ops.resampling_filter(range(1, 9), gain=4, flip=True)
    np.testing.assert_allclose(eight, 2 * np.arange(8, 0, -1) / 36, rtol=1e-6)
    assert filter_shape(eight) == (8, 8)
    assert filter_shape(None) == (1, 1)
    np.testing.assert_array_equal(ops.resampling_filter([[1, 2]], normalize=False), [[1, 2]])


def test_bfloat16_is_preserved():
    x = jnp.ones((1, 8, 8, 4), jnp.bfloat16)
    taps = ops.resampling_filter((1, 3, 3, 1))
    y, transpose = jax.vjp(lambda x: ops.upsample2d(x, taps), x)
    assert y.dtype == transpose(y)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.upfirdn2d(jnp.ones((4, 4, 1)), None), r"images \[B, H, W, C\] are needed"),
        (lambda: ops.upfirdn2d(jnp.ones((1, 2, 9, 1)), np.ones(4)), "a height of 2 becomes 2"),
        (lambda: ops.upfirdn2d(jnp.ones((1, 2, 2, 1)), None, up=0), "a factor of 0"),
        (lambda: ops.resampling_filter(np.ones((2, 2, 2))), "one or two axes"),
        (lambda: ops.resampling_filter([]), "one or two axes"),
        (
            lambda: ops.bias_act(jnp.ones((1, 2, 2, 3)), jnp.ones(2)),
            r"a bias \(2,\) does not fit 3 channels",
        ),
    ],
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_activations_preserve_a_normal_inputs_mean_square():
    """He et al. 2015: a ReLU passes half of it, a leaky one of slope 0.2 passes 0.52 of it."""
    x = jnp.asarray(RNG.normal(size=(1, 1, 1, 100_000)), jnp.float32)
    for name, expected in (("relu", 1.0), ("lrelu", 1.04), ("linear", 1.0)):
        y = ops.bias_act(x, activation=ops.ACTIVATIONS[name])
        assert float((y**2).mean()) == pytest.approx(expected, rel=0.02)


def test_a_filtered_activation_of_the_identity_is_a_resampling():
    x = jnp.asarray(RNG.normal(size=(1, 8, 8, 2)), jnp.float32)
    taps = ops.resampling_filter((1, 3, 3, 1))
    actual = ops.filtered_lrelu(
        x, taps, taps, up=2, down=2, padding=((3, 3), (3, 3)), gain=1.0, slope=1.0
    )
    both = ops.upfirdn2d(x, taps, up=2, padding=((3, 3), (3, 3)), gain=4)
    np.testing.assert_allclose(actual, ops.upfirdn2d(both, taps, down=2), rtol=1e-5)
    clamped = ops.filtered_lrelu(x, taps, None, up=2, padding=((2, 1), (2, 1)), clamp=0.1)
    assert float(jnp.abs(clamped).max()) == np.float32(0.1)
