"""DGL-GAN (Tian et al. 2023)."""

from kd_jax import losses
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import Strength
from kd_jax.methods.adversarial import nonsaturating


def dgl(teacher: Strength = 0.1, adversarial: PerNetwork | None = None) -> PerNetwork:
    """The adversarial loss, and a non-saturating loss of weight 0.1 by the teacher's discriminator.

    Tian et al. 2023 (DGL-GAN), `softplus(-D_S(S)) + 0.1 softplus(-D_T(S))`. The teacher's
    discriminator is assumed to return logits, whatever the adversarial loss.

    Args:
      teacher: the weight of the loss by the teacher's discriminator.
      adversarial: the adversarial loss.
    """

    def against_teacher(f: Forward) -> Array:
        scores, _ = f.teacher_discriminator(f.student.output)
        return losses.adversarial.nonsaturating_g(scores)

    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork({**generator, "teacher": Term(against_teacher, teacher)}, discriminator)
