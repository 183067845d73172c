"""Distillation of the discriminator: its teacher's predictions."""

import jax

from kd_jax import losses
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import Strength, add
from kd_jax.methods.adversarial import nonsaturating


def discriminator_distillation(
    weight: Strength = 1.0, temperature: float = 1.0, adversarial: PerNetwork | None = None
) -> PerNetwork:
    """The adversarial loss, with a discriminator distilled from the teacher's.

    `KL(teacher || student)` of the predictions, averaged over the real and the generated images.

    Args:
      weight: the weight of the divergence.
      temperature: the temperature of the divergence.
      adversarial: the adversarial loss.
    """

    def divergence(f: Forward) -> Array:
        score = f.teacher_discriminator
        fake = jax.lax.stop_gradient(f.student.output)
        scores = [(f.discriminator(fake)[0], score(fake)[0])]
        if f.inputs.real is not None:
            scores.append((f.discriminator.real_scores, score(f.real)[0]))
        divergences = [losses.discriminator.bernoulli_kl(s, t, temperature) for s, t in scores]
        return add(divergences) / len(divergences)

    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork(generator, {**discriminator, "discriminator_kl": Term(divergence, weight)})
