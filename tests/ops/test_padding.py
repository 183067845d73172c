"""Padding and cropping, and operations on images of symbolic sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from kd_jax import ops
from kd_jax.ops import primitive

X = np.random.default_rng(0).standard_normal((2, 5, 6, 3)).astype(np.float32)
KERNEL = np.random.default_rng(1).standard_normal((4, 4, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("mode", ["edge", "reflect"])
@pytest.mark.parametrize("around", [((1, 1), (2, 0)), ((0, 3), (4, 4)), ((0, 0), (0, 1))])
def test_padding_is_numpys(mode, around):
    padded = ops.pad(jnp.asarray(X), around, mode)
    np.testing.assert_array_equal(padded, np.pad(X, ((0, 0), *around, (0, 0)), mode=mode))
    np.testing.assert_array_equal(ops.crop(padded, around), X)


@pytest.mark.parametrize(
    ("around", "mode", "message"),
    [(((1, 1), (1, 1)), "wrap", "wrap"), (((5, 0), (0, 0)), "reflect", "side of 5")],
)
def test_padding_that_does_not_fit_is_named(around, mode, message):
    with pytest.raises(ValueError, match=message):
        ops.pad(jnp.asarray(X), around, mode)


def symbolic(function):
    """The function, exported for images of any sides, and called with `X`."""
    scope = jax_export.SymbolicScope(["height >= 4", "width >= 4"])
    shape = jax_export.symbolic_shape("batch, height, width, 3", scope=scope)
    with primitive.portable():
        exported = jax_export.export(jax.jit(function))(jax.ShapeDtypeStruct(shape, jnp.float32))
    return exported.call(X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.conv(x, KERNEL),
        lambda x: ops.conv_transpose(x, KERNEL),
        lambda x: ops.conv_transpose(x, KERNEL, padding="VALID"),
        lambda x: ops.conv_transpose(x, KERNEL[:3, :3], 1),
        lambda x: ops.depthwise_conv(x, jnp.asarray(KERNEL[:3, :3, :, 0])),
        lambda x: ops.upsample2d(x, (1, 3, 3, 1)),
        lambda x: ops.resize(x, (3 * x.shape[1], 3 * x.shape[2]), ops.pil_bicubic),
        lambda x: ops.resize(x, (2 * x.shape[1], 2 * x.shape[2]), ops.pil_bicubic),
        lambda x: ops.resize(x, (2 * x.shape[1], 2 * x.shape[2]), ops.tf1_bilinear),
    ],
)
def test_operations_on_symbolic_sides_are_those_on_fixed_ones(function):
    np.testing.assert_allclose(symbolic(function), function(X), rtol=1e-5, atol=1e-5)


def test_weights_without_a_symbolic_form_are_refused():
    with pytest.raises(ValueError, match="any size"):
        symbolic(lambda x: ops.resize(x, (2 * x.shape[1], 2 * x.shape[2]), ops.torch_bicubic))
    with pytest.raises(ValueError, match="resized"):
        symbolic(lambda x: ops.resize(x, (2 * x.shape[1], x.shape[2]), ops.pil_bicubic))
