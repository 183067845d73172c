"""Every architecture in a small size: `(factory, inputs)`, where an input is a shape or labels."""

from functools import partial

import numpy as np

from kd_jax.models import (
    biggan,
    biggan_deep,
    classifier,
    dcgan,
    inception,
    inpainting,
    mlp,
    pair,
    perceptual,
    r3gan,
    realesrgan,
    resnet,
    stylegan1,
    stylegan2,
    stylegan3,
    superres,
    text,
    tinygan,
    translation,
    waveform,
)

B, CLASSES = 2, 3
Z, LABELS = (B, 8), np.array([2, 0])
TOKENS = np.array([[1, 4, 0], [2, 3, 5]])
WORDS = {"vocabulary": 6, "length": 3, "embedding": 8}
STYLE = {"latent": 8, "style": 8, "channel_base": 64, "channel_max": 8}
D_STYLE = {"channel_base": 64, "channel_max": 8}


def image(side, channels=3):
    return (B, side, side, channels)


def _parallel(**options):
    networks = [translation.resnet_generator(4, blocks=1, **options) for _ in range(2)]
    return pair.parallel(*networks)


FAMILIES = {
    "dcgan generator": (partial(dcgan.generator, 16, 4, classes=CLASSES, depth=1), (Z, LABELS)),
    "dcgan discriminator": (
        partial(dcgan.discriminator, 16, 4, classes=CLASSES, depth=1, minibatch_stddev=True),
        (image(16), LABELS),
    ),
    "dcgan original discriminator": (partial(dcgan.original_discriminator, 16, 4), (image(16),)),
    "mlp generator": (partial(mlp.generator, 8, 8, classes=CLASSES), (Z, LABELS)),
    "mlp discriminator": (partial(mlp.discriminator, 8, classes=CLASSES), (image(8, 1), LABELS)),
    "resnet generator": (partial(resnet.generator, 32, 4, classes=CLASSES), (Z, LABELS)),
    "resnet discriminator": (
        partial(resnet.discriminator, 32, 4, classes=CLASSES), (image(32), LABELS)
    ),
    "biggan generator": (
        partial(biggan.generator, 32, 4, classes=CLASSES, shared=4, attention=(16,)),
        (Z, LABELS),
    ),
    "biggan discriminator": (
        partial(biggan.discriminator, 32, 4, classes=CLASSES, attention=(16,)),
        (image(32), LABELS),
    ),
    "biggan_deep generator": (
        partial(biggan_deep.generator, 32, 8, depth=1, classes=CLASSES, shared=4, attention=(16,)),
        (Z, LABELS),
    ),
    "biggan_deep discriminator": (
        partial(biggan_deep.discriminator, 32, 8, depth=1, classes=CLASSES, attention=(16,)),
        (image(32), LABELS),
    ),
    "tinygan generator": (
        partial(tinygan.generator, 32, 4, classes=CLASSES, shared=4), (Z, LABELS)
    ),
    "tinygan discriminator": (
        partial(tinygan.discriminator, 32, 4, classes=CLASSES), (image(32), LABELS)
    ),
    "stylegan1 generator": (partial(stylegan1.generator, 16, **STYLE), (Z,)),
    "stylegan1 discriminator": (
        partial(stylegan1.discriminator, 16, classes=CLASSES, **D_STYLE), (image(16), LABELS)
    ),
    "stylegan2 generator": (partial(stylegan2.generator, 16, **STYLE), (Z,)),
    "stylegan2 discriminator": (
        partial(stylegan2.discriminator, 16, classes=CLASSES, **D_STYLE), (image(16), LABELS)
    ),
    "stylegan3 generator": (
        partial(stylegan3.generator, 16, num_layers=3, num_critical=1, **STYLE), (Z,)
    ),
    "r3gan generator": (
        partial(r3gan.generator, (8, 4), (2, 1), blocks=1, latent=8, classes=CLASSES, embedding=4),
        (Z, LABELS),
    ),
    "r3gan discriminator": (
        partial(r3gan.discriminator, (8, 8), (2, 1), blocks=1, classes=CLASSES, embedding=4),
        (image(8), LABELS),
    ),
    "superres srresnet": (
        partial(superres.srresnet, 2, 8, 2, batch_norm=True), (image(8),)
    ),
    "superres rrdb": (partial(superres.rrdb, 2, 8, 1, 4), (image(8),)),
    "superres separable": (partial(superres.srresnet, 2, 8, 2, separable=True), (image(8),)),
    "realesrgan rrdb": (partial(realesrgan.rrdb, 2, 8, 1, 4), (image(8),)),
    "realesrgan srvgg": (partial(realesrgan.srvgg, 2, 8, 1), (image(8),)),
    "realesrgan discriminator": (partial(realesrgan.unet_discriminator, 4), (image(16),)),
    "inpainting": (
        partial(inpainting.gated_generator, 4, residual=False), (image(16), (B, 16, 16, 1))
    ),
    "translation resnet": (partial(translation.resnet_generator, 4, blocks=1), (image(16),)),
    "translation pair": (_parallel, ((B, 2, 16, 16, 3),)),
    "translation unet": (
        partial(translation.unet_generator, 4, downs=4, dropout=0.0), (image(16),)
    ),
    "patch discriminator": (partial(translation.patch_discriminator, 4, layers=2), (image(32),)),
    "pixel discriminator": (partial(translation.pixel_discriminator, 4), (image(8),)),
    "affine instance norm": (
        partial(translation.pixel_discriminator, 4, norm=translation.Instance(1e-5, True, True)),
        (image(8),),
    ),
    "text generator": (partial(text.generator, 16, 4, **WORDS), (Z, TOKENS)),
    "text discriminator": (partial(text.discriminator, 16, 4, **WORDS), (image(16), TOKENS)),
    "waveform generator": (partial(waveform.generator, 2, 4, 2), ((B, 32, 1),)),
    "waveform discriminator": (partial(waveform.discriminator, 4, 2), ((B, 32, 1), (B, 32, 1))),
    "classifier": (partial(classifier.classifier, CLASSES, 4), (image(16),)),
    "vgg16": (partial(perceptual.vgg16, (4,) * 5), (image(32),)),
    "alexnet": (partial(perceptual.alexnet, (4,) * 5), (image(64),)),
    "squeezenet": (partial(perceptual.squeezenet, (4,) * 17), (image(32),)),
    "inception": (partial(inception.fid, 5), (image(75),)),
}  # fmt: skip


def draw(rng, shape, scale=1.0):
    """A normal array of this shape; labels and tokens as they are."""
    if not isinstance(shape, tuple):
        return shape
    return (scale * rng.standard_normal(shape)).astype(np.float32)
