"""Grouped convolutions, against one plain convolution per group in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import ops
from kd_jax.ops import grouped

RNG = np.random.default_rng(0)


def by_group(x, kernel, groups):
    size, _, inputs, features = kernel.shape
    reach = size // 2
    x = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    outputs = []
    for group in range(groups):
        own = windows[:, :, :, group * inputs : (group + 1) * inputs]
        after = features // groups
        weight = kernel[..., group * after : (group + 1) * after]
        outputs.append(np.einsum("bhwikl,klio->bhwo", own, weight))
    return np.concatenate(outputs, axis=-1)


@pytest.mark.parametrize(("inputs", "features", "groups"), [(12, 6, 6), (12, 24, 3), (4, 2, 1)])
@pytest.mark.parametrize("width", [1, 4, 128])
def test_groups_are_independent(inputs, features, groups, width, monkeypatch):
    monkeypatch.setattr(grouped, "_WIDTH", width)
    x = RNG.normal(size=(2, 3, 4, inputs)).astype(np.float32)
    kernel = RNG.normal(size=(3, 3, inputs // groups, features)).astype(np.float32)
    ours = ops.grouped_conv(jnp.asarray(x), jnp.asarray(kernel), groups)
    np.testing.assert_allclose(ours, by_group(x, kernel, groups), rtol=1e-4, atol=1e-4)


def test_channels_that_do_not_fit_raise():
    x = jnp.zeros((1, 2, 2, 6))
    for shape, message in (((3, 3, 2, 6), r"C / 2, any\]"), ((3, 3, 3, 5), "2 groups .* 5")):
        with pytest.raises(ValueError, match=message):
            ops.grouped_conv(x, jnp.zeros(shape), 2)
