"""Soft labels for the discriminator."""

from kd_jax import losses
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import Strength
from kd_jax.methods.adversarial import nonsaturating


def soft_label(weight: Strength = 1.0, adversarial: PerNetwork | None = None) -> PerNetwork:
    """The adversarial loss, and `losses.discriminator.soft_label` with the teacher's image."""

    def cross_entropy(f: Forward) -> Array:
        return losses.discriminator.soft_label(
            f.discriminator.fake_scores, f.discriminator(f.teacher.output)[0]
        )

    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork({**generator, "soft_label": Term(cross_entropy, weight)}, discriminator)
