"""Adversarial losses: the terms of both networks, without distillation."""

from collections.abc import Callable, Mapping

import jax

from kd_jax import losses
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import ADVERSARIAL, PENALTY


def nonsaturating(gamma: float = 1.0, every: int = 1) -> PerNetwork:
    """The non-saturating GAN with R1 (Goodfellow et al. 2014; Mescheder et al. 2018).

    Args:
      gamma: the weight of R1; larger for larger images.
      every: steps between evaluations of R1.
    """
    loss = losses.adversarial
    return _adversarial_loss(loss.nonsaturating_g, loss.minimax_d, 0.0, {"r1": _r1(gamma, every)})


def hinge() -> PerNetwork:
    """The hinge GAN (Lim & Ye 2017), for discriminators with spectral normalisation."""
    return _adversarial_loss(losses.adversarial.hinge_g, losses.adversarial.hinge_d, 0.0, {})


def least_squares() -> PerNetwork:
    """The least-squares GAN (Mao et al. 2017)."""
    loss = losses.adversarial
    return _adversarial_loss(loss.least_squares_g, loss.least_squares_d, 0.0, {})


def wasserstein(penalty: float = 10.0) -> PerNetwork:
    """The Wasserstein GAN with gradient penalty (Gulrajani et al. 2017)."""

    def gradient_penalty(f: Forward) -> Array:
        key = jax.random.fold_in(f.key, PENALTY)
        return losses.penalties.gradient_penalty(f.discriminator, f.real, f.student.output, key)

    loss = losses.adversarial
    terms = {"gradient_penalty": Term(gradient_penalty, penalty)}
    return _adversarial_loss(loss.wasserstein_g, loss.wasserstein_d, None, terms)


def relativistic(gamma: float = 1.0, every: int = 1) -> PerNetwork:
    """The relativistic pairing GAN with R1 and R2 (Huang et al. 2024, R3GAN)."""

    def r2(f: Forward) -> Array:
        return losses.penalties.r2(f.discriminator, f.student.output)

    loss = losses.adversarial
    return PerNetwork(
        {
            ADVERSARIAL: Term(
                lambda f: loss.relativistic_g(
                    f.discriminator.real_scores, f.discriminator.fake_scores
                )
            )
        },
        {
            ADVERSARIAL: Term(
                lambda f: loss.relativistic_d(
                    f.discriminator.real_scores, f.discriminator.fake_scores
                ),
                lower_bound=0.0,
            ),
            "r1": _r1(gamma, every),
            "r2": Term(r2, gamma, every),
        },
    )


def _adversarial_loss(
    generator: Callable[[Array], Array],
    discriminator: Callable[[Array, Array], Array],
    lower_bound: float | None,
    penalties: Mapping[str, Term],
) -> PerNetwork:
    return PerNetwork(
        {ADVERSARIAL: Term(lambda f: generator(f.discriminator.fake_scores))},
        {
            ADVERSARIAL: Term(
                lambda f: discriminator(f.discriminator.real_scores, f.discriminator.fake_scores),
                lower_bound=lower_bound,
            ),
            **penalties,
        },
    )


def _r1(gamma: float, every: int) -> Term:
    return Term(lambda f: losses.penalties.r1(f.discriminator, f.real), gamma, every)
