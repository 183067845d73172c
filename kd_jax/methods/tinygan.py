"""TinyGAN (Chang & Lu 2020)."""

from collections.abc import Sequence

import optax

from kd_jax import losses
from kd_jax.core.network import tap_pairs
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import Strength, add, pixel_l1, scale_weights
from kd_jax.methods.adversarial import nonsaturating


def tinygan(
    taps: Sequence[str],
    steps: int,
    *,
    feature: Strength = 1.0,
    pixel: float = 0.2,
    adversarial_weight: float = 0.1,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 of the discriminator's features of both images, a fading L1, and an adversarial loss.

    Chang & Lu 2020 (TinyGAN), section 3. The last layer has weight 1, and the weights halve
    backwards from the last but one: 1/32, 1/16, 1/8, 1/4, 1 for five layers.

    Args:
      taps: the discriminator's taps, from first to last.
      steps: the number of steps over which the L1 fades linearly to zero.
      feature: the weight of the features.
      pixel: the initial weight of the L1.
      adversarial_weight: a factor of the generator's adversarial terms; ours.
      adversarial: the adversarial loss.

    Raises:
      ValueError: when `steps` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} is not a positive number")
    layers = [0.5 ** (len(taps) - index) for index in range(len(taps) - 1)] + [1.0]

    def feature_matching(f: Forward) -> Array:
        _, theirs = f.discriminator(f.teacher.output)
        return add(
            [
                weight * losses.feature.l1(f.discriminator.fake_taps[tap], theirs[tap])
                for weight, tap in zip(layers, taps, strict=True)
            ]
        )

    tap_pairs(taps)
    generator, discriminator = adversarial or nonsaturating()
    fading = optax.linear_schedule(pixel, 0.0, steps)
    terms = {"features": Term(feature_matching, feature), "pixel": Term(pixel_l1, fading)}
    return PerNetwork({**scale_weights(generator, adversarial_weight), **terms}, discriminator)
