"""Decimation and interpolation of waveforms, against SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import resample_poly

from kd_jax.ops import decimate, interpolate

WAVES = np.random.default_rng(0).normal(size=(2, 96, 3))


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_both_directions_equal_scipy(factor):
    waves = jnp.asarray(WAVES, jnp.float32)
    low, high = decimate(waves, factor), interpolate(waves, factor)
    assert low.shape == (2, 96 // factor, 3)
    np.testing.assert_allclose(low, resample_poly(WAVES, 1, factor, axis=1), atol=2e-6)
    np.testing.assert_allclose(high, resample_poly(WAVES, factor, 1, axis=1), atol=2e-6)


def test_a_low_tone_survives_a_round_trip():
    tone = np.sin(0.1 * np.arange(400))[None, :, None].astype(np.float32)
    restored = interpolate(decimate(jnp.asarray(tone), 4), 4)
    np.testing.assert_allclose(restored[:, 50:-50], tone[:, 50:-50], atol=5e-3)


@pytest.mark.parametrize(
    ("shape", "factor"), [((2, 10, 1), 4), ((2, 8), 2), ((2, 8, 1), 0)], ids=str
)
def test_invalid_arguments_raise(shape, factor):
    with pytest.raises(ValueError, match="waves"):
        decimate(jnp.zeros(shape), factor)
