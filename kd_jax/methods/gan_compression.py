"""GAN Compression (Li et al. 2020)."""

from kd_jax import losses
from kd_jax.core.objective import Term
from kd_jax.core.setup import PerNetwork
from kd_jax.methods._common import Strength, TapNames
from kd_jax.methods.response import with_reconstruction
from kd_jax.methods.taps import on_taps


def gan_compression(
    taps: TapNames,
    *,
    reconstruction: Strength = 100.0,
    distill: Strength = 1.0,
    paired: bool = False,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 reconstruction, and connected features in L2, summed over layers.

    Li et al. 2020 (GAN Compression), section 3.1. The student must be connected at `taps`.

    Args:
      taps: names, or `{student's: teacher's}`.
      reconstruction: the weight of the image term.
      distill: the weight of the feature term.
      paired: whether the batch has the target image of each input (image translation); otherwise
        the teacher's image is the target.
      adversarial: the adversarial loss.
    """
    features = on_taps(losses.feature.l2, taps, connect=True)
    generator, discriminator = with_reconstruction(reconstruction, paired, adversarial)
    return PerNetwork({**generator, "features": Term(features, distill)}, discriminator)
