"""Depthwise convolutions against XLA's grouped ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.scaling import collectives
from kd_jax import make_mesh, ops

RNG = np.random.default_rng(0)


def _grouped(x, kernel, dilation):
    reach = kernel.shape[0] // 2 * dilation
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (1, 1),
        ((reach, reach),) * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


@pytest.mark.parametrize(("side", "dilation"), [(1, 1), (3, 1), (3, 2), (3, 6), (5, 2)])
def test_depthwise_convolution_equals_a_grouped_one(side, dilation):
    x = RNG.normal(size=(2, 5, 4, 6)).astype(np.float32)
    kernel = RNG.normal(size=(side, side, 6)).astype(np.float32)
    actual = ops.depthwise_conv(x, kernel, dilation)
    np.testing.assert_allclose(actual, _grouped(x, kernel, dilation), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "dilation"), [((2, 8, 3, 2), 1), ((1, 3, 5, 2), 2)])
def test_depthwise_gradients_equal_grouped_ones(shape, dilation):
    x, g = RNG.normal(size=(2, *shape)).astype(np.float32)
    kernel = RNG.normal(size=(3, 3, shape[3])).astype(np.float32)

    def gradients(conv):
        def first(x, kernel):
            return (conv(x, kernel, dilation) * g).sum()

        def second(x, kernel):
            once = jax.grad(lambda *a: (conv(*a, dilation) ** 3).sum(), (0, 1))(x, kernel)
            return sum((part**2).sum() for part in once)

        return jax.jit(lambda *a: [jax.grad(f, (0, 1))(*a) for f in (first, second)])(x, kernel)

    ours, reference = (jax.tree.leaves(gradients(conv)) for conv in (ops.depthwise_conv, _grouped))
    for actual, expected in zip(ours, reference, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-5)


def test_invalid_kernels_raise():
    x = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"not shapes \(1, 4, 4, 3\) and \(3, 3, 2\)"):
        ops.depthwise_conv(x, jnp.zeros((3, 3, 2)))
    with pytest.raises(ValueError, match=r"equal odd sides, not shape \(2, 2, 3\)"):
        ops.depthwise_conv(x, jnp.zeros((2, 2, 3)))


def test_several_devices_exchange_only_kernel_gradients():
    mesh = make_mesh(data=4, devices=jax.devices()[:4])
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x = jax.ShapeDtypeStruct((8, 8, 8, 4), np.float32, sharding=split)
    kernel = jax.ShapeDtypeStruct((3, 3, 4), np.float32, sharding=whole)

    def both(x, kernel, y):
        output, transpose = jax.vjp(ops.depthwise_conv, x, kernel)
        return output, transpose(y)

    program = jax.jit(both, out_shardings=(split, (split, whole))).lower(x, kernel, x).compile()
    assert collectives(program.as_text()) == {"all-reduce": 4 * 3 * 3 * 4}
