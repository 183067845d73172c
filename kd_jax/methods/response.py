"""The response: L1 to the teacher's image."""

from kd_jax import losses
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import Strength, pixel_l1
from kd_jax.methods.adversarial import nonsaturating


def response(pixel: Strength = 5.0, adversarial: PerNetwork | None = None) -> PerNetwork:
    """The adversarial loss, and L1 to the teacher's image. The weight is ours."""
    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork({**generator, "pixel": Term(pixel_l1, pixel)}, discriminator)


def with_reconstruction(
    reconstruction: Strength, paired: bool, adversarial: PerNetwork | None
) -> PerNetwork:
    """The adversarial loss, and L1 to the target image, or to the teacher's without pairs."""

    def l1(f: Forward) -> Array:
        return losses.response.l1(f.student.output, f.real) if paired else pixel_l1(f)

    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork({**generator, "reconstruction": Term(l1, reconstruction)}, discriminator)
