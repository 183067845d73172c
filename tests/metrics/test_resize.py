"""The network inputs of each resize convention."""

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import ops
from kd_jax.metrics import resize
from kd_jax.report.pictures import to_uint8

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", resize.CONVENTIONS)
def test_prepared_values(name):
    """Black and white for each tool, and rounding to 8 bits."""
    how = resize.convention(name)
    extremes = {"torch-bilinear": (-1, 1)}.get(name, (-1, 127 / 128))
    for value, expected in zip((-1.0, 1.0), extremes, strict=True):
        prepared = resize.prepared(jnp.full((1, 3, 4, 1), value), how, 8)
        np.testing.assert_allclose(prepared, np.full((1, 8, 8, 1), expected), atol=1e-6)
    x = RNG.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    levels = np.float32(to_uint8(x)) / 127.5 - 1
    rounded = resize.prepared(jnp.asarray(x), how, 8)
    exact = resize.prepared(jnp.asarray(levels), how, 8, quantise=False)
    np.testing.assert_allclose(rounded, exact, atol=1e-6)
    plain = resize.prepared(jnp.asarray(x), how, 8, quantise=False)
    assert np.abs(rounded - plain).max() > 1e-3


def test_overshoot_of_the_cubic_filter_is_clipped():
    edge = jnp.asarray(np.where(np.arange(8) < 4, -1.0, 1.0), jnp.float32).reshape(1, 1, 8, 1)
    for how in resize.CONVENTIONS.values():
        pixels = resize.prepared(edge, how, 64) * how.scale + how.centre
        assert pixels.min() >= 0
        assert pixels.max() <= 255
    raw = ops.resize(edge, (1, 64), ops.pil_bicubic)
    assert raw.max() > 1.01


def test_an_unknown_convention():
    with pytest.raises(ValueError, match="no resize convention 'nearest'; there are tf1-bilinear"):
        resize.convention("nearest")
