"""MobileStyleGAN (Belousov 2021)."""

from collections.abc import Sequence

from kd_jax import losses
from kd_jax.core.objective import Term
from kd_jax.core.setup import PerNetwork
from kd_jax.methods._common import Strength, perceptual_loss
from kd_jax.methods.adversarial import nonsaturating


def mobile_stylegan(
    layers: Sequence[str] = (),
    *,
    scales: int = 3,
    pixel: Strength = 1.0,
    wavelet: Strength = 1.0,
    perceptual: Strength = 1.0,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 and L2 of the images at several scales and of their Haar coefficients.

    Belousov 2021 (MobileStyleGAN), section 3.5. Weights of 1 are ours.

    Args:
      layers: the extractor's taps for the perceptual distance; if empty, the term is omitted.
      scales: the number of scales, each half the size of the previous one.
      pixel: the weight of the images.
      wavelet: the weight of the coefficients.
      perceptual: the weight of the perceptual distance.
      adversarial: the adversarial loss.
    """
    generator, discriminator = adversarial or nonsaturating()
    terms = {
        "pixel": Term(
            lambda f: losses.image.multi_scale(f.student.output, f.teacher.output, scales), pixel
        ),
        "wavelet": Term(
            lambda f: losses.image.wavelet(f.student.output, f.teacher.output), wavelet
        ),
    }
    if layers:
        terms["perceptual"] = Term(perceptual_loss(layers), perceptual)
    return PerNetwork({**generator, **terms}, discriminator)
