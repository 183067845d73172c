"""Soft labels for the discriminator."""

from kd_jax import losses
from kd_jax.core.objective import Forward, Term
from kd_jax.core.state import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import Strength, needs_teacher
from kd_jax.methods.adversarial import nonsaturating


def soft_label(weight: Strength = 1.0, adversarial: PerNetwork | None = None) -> PerNetwork:
    """The adversarial loss, and `losses.discriminator.soft_label` with the teacher's image."""

    def cross_entropy(f: Forward) -> Array:
        if f.discriminate is None:
            raise ValueError("nets has no discriminator")
        return losses.discriminator.soft_label(f.fake_scores, f.discriminate(needs_teacher(f))[0])

    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork({**generator, "soft_label": Term(cross_entropy, weight)}, discriminator)
