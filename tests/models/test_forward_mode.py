"""Forward mode and Hessian-vector products of every architecture, against finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import quick

from kd_jax.models import (
    biggan,
    biggan_deep,
    classifier,
    dcgan,
    inpainting,
    mlp,
    r3gan,
    realesrgan,
    resnet,
    stylegan1,
    stylegan2,
    stylegan3,
    superres,
    tinygan,
    translation,
    waveform,
)

B, CLASSES = 2, 3
DOUBLE = {"dtype": jnp.float64}
Z, LABELS = (B, 8), np.array([2, 0])


def image(side, channels=3):
    return (B, side, side, channels)


NETWORKS = {
    "dcgan generator": (partial(dcgan.generator, 16, 4, classes=CLASSES), (Z, LABELS)),
    "stylegan2 generator": (
        partial(stylegan2.generator, 8, latent=8, style=8, channel_base=16, channel_max=4),
        (Z,),
    ),
    "resnet discriminator": (partial(resnet.discriminator, 32, 2, spectral=None), (image(32),)),
    "superres srresnet": (partial(superres.srresnet, 2, 4, 1), (image(8),)),
    "mlp generator": (partial(mlp.generator, 8, 8, classes=CLASSES), (Z, LABELS)),
    "mlp discriminator": (partial(mlp.discriminator, 8, classes=CLASSES), (image(8, 1), LABELS)),
    "dcgan discriminator": (
        partial(dcgan.discriminator, 16, 4, classes=CLASSES, minibatch_stddev=True),
        (image(16), LABELS),
    ),
    "dcgan original discriminator": (partial(dcgan.original_discriminator, 16, 4), (image(16),)),
    "resnet generator": (partial(resnet.generator, 32, 2, classes=CLASSES), (Z, LABELS)),
    "biggan generator": (
        partial(biggan.generator, 32, 2, classes=CLASSES, shared=4, attention=(16,), spectral=None),
        (Z, LABELS),
    ),
    "biggan discriminator": (
        partial(biggan.discriminator, 32, 2, classes=CLASSES, attention=(16,), spectral=None),
        (image(32), LABELS),
    ),
    "biggan_deep generator": (
        partial(
            biggan_deep.generator, 32, 4, classes=CLASSES, shared=4, attention=(16,), spectral=None
        ),
        (Z, LABELS),
    ),
    "biggan_deep discriminator": (
        partial(biggan_deep.discriminator, 32, 4, classes=CLASSES, attention=(16,), spectral=None),
        (image(32), LABELS),
    ),
    "tinygan generator": (
        partial(tinygan.generator, 32, 4, classes=CLASSES, shared=4),
        (Z, LABELS),
    ),
    "tinygan discriminator": (
        partial(tinygan.discriminator, 32, 4, classes=CLASSES),
        (image(32), LABELS),
    ),
    "stylegan1 generator": (
        partial(stylegan1.generator, 8, latent=8, style=8, channel_base=16, channel_max=4),
        (Z,),
    ),
    "stylegan1 discriminator": (
        partial(stylegan1.discriminator, 8, channel_base=16, channel_max=4),
        (image(8),),
    ),
    "stylegan2 discriminator": (
        partial(stylegan2.discriminator, 8, channel_base=16, channel_max=4),
        (image(8),),
    ),
    "stylegan3 generator": (
        partial(
            stylegan3.generator,
            16,
            latent=8,
            style=8,
            channel_base=64,
            channel_max=4,
            num_layers=3,
            num_critical=1,
        ),
        (Z,),
    ),
    "superres rrdb": (partial(superres.rrdb, 2, 4, 1, 2), (image(8),)),
    "superres separable": (partial(superres.srresnet, 2, 4, 1, separable=True), (image(8),)),
    "r3gan generator": (
        partial(r3gan.generator, (4, 2), (2, 1), blocks=1, latent=8, classes=CLASSES, embedding=4),
        (Z, LABELS),
    ),
    "r3gan discriminator": (
        partial(r3gan.discriminator, (2, 4), (2, 1), blocks=1, classes=CLASSES, embedding=4),
        (image(8), LABELS),
    ),
    "realesrgan rrdb": (partial(realesrgan.rrdb, 2, 4, 1, 2), (image(4),)),
    "realesrgan srvgg": (partial(realesrgan.srvgg, 2, 4, 1), (image(4),)),
    "realesrgan discriminator": (partial(realesrgan.unet_discriminator, 2), (image(8),)),
    "inpainting": (
        partial(inpainting.gated_generator, 4, residual=False),
        (image(16), (B, 16, 16, 1)),
    ),
    "translation resnet": (partial(translation.resnet_generator, 4, blocks=1), (image(16),)),
    "translation unet": (partial(translation.unet_generator, 2, downs=4), (image(16),)),
    "patch discriminator": (partial(translation.patch_discriminator, 2, layers=2), (image(32),)),
    "pixel discriminator": (partial(translation.pixel_discriminator, 2), (image(8),)),
    "affine instance norm": (
        partial(translation.pixel_discriminator, 2, norm=translation.Instance(1e-5, True)),
        (image(8),),
    ),
    "waveform generator": (partial(waveform.generator, 2, 4, 1), ((B, 32, 1),)),
    "waveform discriminator": (partial(waveform.discriminator, 4, 2), ((B, 32, 1), (B, 32, 1))),
    "classifier": (partial(classifier.classifier, CLASSES, 4), (image(16),)),
}


def draw(rng, shape, scale=1.0):
    return jnp.asarray(scale * rng.normal(size=shape))


@pytest.mark.parametrize("name", quick(NETWORKS, 4))
def test_derivatives_are_those_of_finite_differences(name, x64):
    make, shapes = NETWORKS[name]
    network, rng = make(**DOUBLE), np.random.default_rng(0)
    inputs = [draw(rng, x) if isinstance(x, tuple) else x for x in shapes]
    variables = jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        jax.jit(network.init)(jax.random.key(0), *inputs),
    )
    params = jax.tree.map(
        lambda x: x + draw(rng, x.shape, 0.1), variables["params"]
    )  # biases and gates of zero are at a kink, or without effect
    tangent, other = (jax.tree.map(lambda x: draw(rng, x.shape, 0.1), params) for _ in range(2))

    def total(params):
        output, _, _ = network.apply({**variables, "params": params}, *inputs)
        assert output.dtype == jnp.float64
        return jnp.sin(output).sum()

    def dot(a, b):
        return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))

    @jax.jit
    def slopes(params, tangent, other):
        """The derivative along `tangent`, and that of the derivative along `other`."""
        first = jax.jvp(total, (params,), (tangent,))[1]
        return first, dot(jax.jvp(jax.grad(total), (params,), (tangent,))[1], other)

    @jax.jit
    def value_and_slope(params, other):
        value, gradient = jax.value_and_grad(total)(params)
        return value, dot(gradient, other)

    step = 1e-6
    ahead, behind = (
        value_and_slope(jax.tree.map(lambda x, t, h=h: x + h * t, params, tangent), other)
        for h in (step, -step)
    )
    expected = [(float(a) - float(b)) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    assert abs(expected[0]) > 1e-6
    np.testing.assert_allclose(slopes(params, tangent, other), expected, rtol=1e-5, atol=1e-6)
