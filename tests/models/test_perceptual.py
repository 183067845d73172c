"""The trunks: published sizes, taps, input normalization, pools at the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core.cost import parameter_count
from kd_jax.core.network import tap_shapes
from kd_jax.models import perceptual

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
IMAGE = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
TINY = {
    perceptual.vgg16: (2, 3, 4, 5, 6),
    perceptual.alexnet: (2, 3, 4, 5, 6),
    perceptual.squeezenet: tuple(range(2, 19)),
}
MAKERS = list(TINY)


@pytest.mark.parametrize(
    ("make", "parameters", "shapes"),
    [
        # Torchvision's numbers, without the classifier layers.
        (perceptual.vgg16, 14_714_688, [(64, 64), (32, 128), (16, 256), (8, 512), (4, 512)]),
        (perceptual.alexnet, 2_469_696, [(15, 64), (7, 192), (3, 384), (3, 256), (3, 256)]),
        (
            perceptual.squeezenet,
            1_235_496 - 513_000,
            [(31, 64), (15, 128), (7, 256), (3, 384), (3, 384), (3, 512), (3, 512)],
        ),
    ],
)
def test_published_sizes(make, parameters, shapes):
    network = make(heads=True)
    variables = jax.eval_shape(network.init, KEY, IMAGE)
    assert parameter_count({"params": variables["params"]}) == parameters
    taps = tap_shapes(network, IMAGE)
    assert list(taps.values()) == [(2, side, side, channels) for side, channels in shapes]
    assert {k: v.shape for k, v in variables["heads"].items()} == {
        name: shape[3:] for name, shape in taps.items()
    }
    assert "heads" not in jax.eval_shape(make().init, KEY, IMAGE)


def test_input_normalization():
    """Grey images are repeated; shift and scale are part of the network. All trunks share this."""
    make, widths = perceptual.alexnet, (2, 3, 4, 5, 6)
    images = RNG.uniform(-1, 1, (2, 31, 33, 3)).astype(np.float32)
    shift, scale = np.float32([0.1, -0.2, 0.3]), np.float32([0.5, 2.0, 4.0])
    plain = make(widths, shift=(0, 0, 0), scale=(1, 1, 1))
    scaled = make(widths, shift=shift.tolist(), scale=scale.tolist())
    shapes = jax.eval_shape(plain.init, KEY, images)
    variables = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), shapes)
    grey = images[..., :1]
    normalized = (images - shift) / scale

    @jax.jit
    def outputs(variables, images, grey, repeated, normalized):
        inputs = (plain, grey), (plain, repeated), (scaled, images), (plain, normalized)
        return [network.apply(variables, x)[0] for network, x in inputs]

    a, b, c, d = outputs(variables, images, grey, np.repeat(grey, 3, 3), normalized)
    assert np.abs(a).max() > 1
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
    np.testing.assert_allclose(c, d, rtol=1e-4, atol=1e-4 * np.abs(d).max())


def test_imagenet_constants():
    """As for [0, 1], where the means are .485, .456, .406 and the deviations .229, .224, .225."""
    means, deviations = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(perceptual.SHIFT, 2 * means - 1, atol=1e-9)
    np.testing.assert_allclose(perceptual.SCALE, 2 * deviations)


@pytest.mark.parametrize("side", [7, 8, 9, 10])
def test_the_last_window_covers_every_pixel(side):
    x = RNG.uniform(0, 1, (1, side, side + 1, 2)).astype(np.float32)
    pooled = perceptual.max_pool(perceptual._pad_last_window(jnp.asarray(x)), 3, 2)
    rows, columns = (-(-(n - 3) // 2) + 1 for n in x.shape[1:3])
    expected = [
        [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(1, 2)) for j in range(columns)]
        for i in range(rows)
    ]
    np.testing.assert_array_equal(pooled, np.stack([np.stack(row, 1) for row in expected], 1))


@pytest.mark.parametrize("make", MAKERS)
def test_invalid_arguments_raise(make):
    with pytest.raises(ValueError, match="positive widths, not"):
        make(TINY[make][1:])
    with pytest.raises(ValueError, match="three numbers each"):
        make(scale=(1, 0, 1))
    for shape, message in (((1, 64, 64, 4), "of 1 or 3 channels"), ((1, 8, 64, 3), "too small")):
        with pytest.raises(ValueError, match=message):
            tap_shapes(make(TINY[make]), jax.ShapeDtypeStruct(shape, jnp.float32))
