"""Seven taps with fewer multiplications, against XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.ops import conv, cpu
from kd_jax.ops.cpu import winograd7

pytestmark = pytest.mark.usefixtures("cpu_algorithms")

RNG = np.random.default_rng(0)


def both(x, kernel, convolve):
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return convolve(jnp.asarray(x), jnp.asarray(kernel)), expected


@pytest.mark.parametrize("window", [(1, 7), (7, 1)])
@pytest.mark.parametrize("sides", [(17, 17), (8, 5), (1, 3)])
def test_in_double_precision(window, sides, x64):
    x, kernel = RNG.normal(size=(2, *sides, 3)), RNG.normal(size=(*window, 3, 4))
    actual, expected = both(x, kernel, winograd7.conv)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [(1, 7), (7, 1)])
def test_rounding(window):
    x = np.maximum(RNG.normal(size=(2, 17, 17, 64)), 0).astype(np.float32)
    kernel = RNG.normal(size=(*window, 64, 32)).astype(np.float32)
    actual, expected = both(x, kernel, winograd7.conv)
    error = np.abs(actual - expected) / np.abs(expected).max()
    assert error.max() < 2e-5
    assert error.mean() < 2e-6


def test_it_is_used_for_large_layers(monkeypatch):
    x = RNG.normal(size=(1, 6, 6, 8)).astype(np.float32)
    kernel = RNG.normal(size=(1, 7, 8, 8)).astype(np.float32)

    def has_convolution(limit):
        monkeypatch.setattr(cpu, "MIN_WORK", limit)
        traced = jax.jit(lambda x, kernel: conv(x, kernel)).lower(x, kernel)
        return "stablehlo.convolution" in traced.as_text()

    work = 36 * 8 * 8
    assert has_convolution(4 * work + 4)
    assert not has_convolution(4 * work)
