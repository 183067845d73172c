"""Aguinaldo et al. 2019: the mean squared error to the teacher beside the adversarial loss."""

from kd_jax import losses
from kd_jax.core.objective import Term
from kd_jax.core.setup import PerNetwork
from kd_jax.methods._common import check_alpha, scale_weights
from kd_jax.methods.adversarial import nonsaturating


def aguinaldo(alpha: float = 0.3, adversarial: PerNetwork | None = None) -> PerNetwork:
    """`(1 - alpha)` times the adversarial loss, `alpha` times the mean squared error.

    Aguinaldo et al. 2019 (compressing GANs by distillation), the joint loss.

    Args:
      alpha: the weight of the teacher's term, in [0, 1].
      adversarial: the adversarial loss.

    Raises:
      ValueError: when `alpha` is outside [0, 1].
    """
    check_alpha(alpha)
    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork(
        {
            **scale_weights(generator, 1.0 - alpha),
            "pixel": Term(lambda f: losses.response.l2(f.student.output, f.teacher.output), alpha),
        },
        discriminator,
    )
