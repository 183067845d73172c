"""CAT (Jin et al. 2021)."""

from kd_jax import losses
from kd_jax.core.network import tap_pairs
from kd_jax.core.objective import Term
from kd_jax.core.setup import PerNetwork
from kd_jax.methods._common import Strength, TapNames
from kd_jax.methods.response import with_reconstruction
from kd_jax.methods.taps import on_taps


def cat(
    taps: TapNames,
    *,
    reconstruction: Strength = 100.0,
    alignment: Strength = 1.0,
    paired: bool = False,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 reconstruction, and kernel alignment of features, summed over layers; no connector.

    Jin et al. 2021 (CAT), section 3.3. The authors tune the weight per model; 1 is ours.

    Args:
      taps: names, or `{student's: teacher's}`.
      reconstruction: the weight of the image term.
      alignment: the weight of the feature term.
      paired: as for `gan_compression`.
      adversarial: the adversarial loss.
    """
    kernels = on_taps(losses.relation.kernel_alignment, taps)
    lower_bound = -float(len(tap_pairs(taps)))
    generator, discriminator = with_reconstruction(reconstruction, paired, adversarial)
    return PerNetwork(
        {**generator, "alignment": Term(kernels, alignment, lower_bound=lower_bound)}, discriminator
    )
