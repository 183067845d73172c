"""Resampling and modulated convolutions against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import ops

RNG = np.random.default_rng(0)
TAPS = RNG.normal(size=(4, 5))


def arrays(*shapes):
    return [jnp.asarray(RNG.normal(size=shape)) for shape in shapes]


def sequential(x, kernel, taps, up, down, padding):
    """Upsampling, correlation and downsampling, one after the other at full size."""
    x = ops.upsample2d(x, taps, up, padding=padding) if up > 1 else x
    pads = ((0, 0), (0, 0)) if up > 1 else ((padding, padding),) * 2
    x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return ops.downsample2d(x, taps, down) if down > 1 else x


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 3)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)])
def test_the_three_operations_commute(x64, kernel, up, down):
    x, weights = arrays((2, 6, 8, 3), (*kernel, 3, 4))
    padding = kernel[0] // 2

    def ours(x, weights):
        return ops.conv_resample(x, weights, TAPS, up=up, down=down, padding=padding)

    def reference(x, weights):
        return sequential(x, weights, TAPS, up, down, padding)

    actual, expected = (jax.jit(fn)(x, weights) for fn in (ours, reference))
    if down > 1:  # at the border the cropping differs
        assert actual.shape == expected.shape
        actual, expected = actual[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2]
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)

    def penalty(fn):
        def total(x, weights):
            y = fn(x, weights)
            y = y[:, 2:-2, 2:-2] if down > 1 else y
            return jnp.sin(y).sum()

        return lambda x, w: (jax.grad(total)(x, w) ** 2).sum()

    for gradient, expected_gradient in zip(
        *(jax.jit(jax.grad(penalty(fn), (0, 1)))(x, weights) for fn in (ours, reference)),
        strict=True,
    ):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-7, atol=1e-7)


def test_groups_are_independent(x64):
    x, weights = arrays((2, 6, 6, 4), (3, 3, 2, 6))
    both = ops.conv_resample(x, weights, TAPS, up=2, padding=1, groups=2)
    for group in (0, 1):
        single = ops.conv_resample(
            x[..., 2 * group :][..., :2], weights[..., 3 * group :][..., :3], TAPS, up=2, padding=1
        )
        np.testing.assert_allclose(both[..., 3 * group :][..., :3], single, rtol=1e-9)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_each_example_has_its_kernel(x64, fused, normalize, up, down):
    """Equations 1 and 3 of Karras et al. 2020, for one example at a time."""
    x, weights, styles = arrays((3, 6, 6, 4), (3, 3, 4, 5), (3, 4))
    options = {"up": up, "down": down, "padding": 1}
    actual = jax.jit(
        lambda x, weights, styles: ops.modulated_conv(
            x, weights, styles, TAPS, fused=fused, normalize=normalize, input_gain=0.5, **options
        )
    )(x, weights, styles)
    convolve = jax.jit(lambda x, kernel: ops.conv_resample(x, kernel, TAPS, **options))
    for i in range(3):
        kernel = np.asarray(weights) * np.asarray(styles)[i][None, None, :, None]
        kernel = kernel / np.sqrt((kernel**2).sum(axis=(0, 1, 2), keepdims=True))
        single = convolve(x[i : i + 1], jnp.asarray(0.5 * kernel))
        np.testing.assert_allclose(actual[i : i + 1], single, rtol=1e-5, atol=1e-6)


def test_without_demodulation_styles_only_scale(x64):
    x, weights, styles = arrays((2, 4, 4, 3), (1, 1, 3, 2), (2, 3))
    actual = ops.modulated_conv(x, weights, styles, demodulate=False)
    np.testing.assert_allclose(
        actual, (x * styles[:, None, None]) @ weights[0, 0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ops.modulated_conv(
                jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 2)), jnp.ones((2, 2))
            ),
            r"styles \(2, 2\) do not fit",
        ),
        (
            lambda: ops.conv_resample(jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 2, 2))),
            r"1 groups do not fit",
        ),
        (
            lambda: ops.conv_resample(jnp.ones((2, 4, 4, 4)), jnp.ones((3, 3, 2, 3)), groups=2),
            "2 groups do not divide the 3 outputs",
        ),
    ],
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
