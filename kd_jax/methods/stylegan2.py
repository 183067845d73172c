"""StyleGAN2's adversarial loss and its optimizers (Karras et al. 2020)."""

import jax
import jax.numpy as jnp
import optax

from kd_jax import losses
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import PENALTY
from kd_jax.methods.adversarial import nonsaturating


def stylegan2(
    gamma: float = 10.0,
    path_length: float = 2.0,
    *,
    r1_every: int = 16,
    path_every: int = 4,
    decay: float = 0.01,
    shrink: int = 2,
) -> PerNetwork:
    """The adversarial loss of StyleGAN2: non-saturating, with lazy R1 and path-length penalty.

    Karras et al. 2020, section 3. The generator is a style network. With lazy regularisation, the
    learning rate and decays are scaled to `every / (every + 1)` of a step (`lazy_adam`).

    Args:
      gamma: the weight of R1; the authors' heuristic is `0.0002 size^2 / batch`.
      path_length: the weight of the squared distance of path lengths from their running mean.
      r1_every: steps between evaluations of R1.
      path_every: steps between evaluations of the path lengths.
      decay: the update rate of the running mean.
      shrink: path lengths are computed for `1 / shrink` of the batch.
    """

    def penalty(f: Forward, mean: Array) -> tuple[Array, Array]:
        count = max(1, f.student.output.shape[0] // shrink)
        shape = (count, *f.student.output.shape[1:])
        noise = jax.random.normal(jax.random.fold_in(f.key, PENALTY), shape)
        styles = f.student.mapping(*(x[:count] for x in f.inputs.generator))
        path_lengths = losses.penalties.path_lengths(f.student.synthesis, styles, noise)
        # The gradient passes through the mean, as in the authors' code.
        mean = mean + decay * (path_lengths.mean() - mean)
        return ((path_lengths - mean) ** 2).mean(), mean

    generator, discriminator = nonsaturating(gamma, r1_every)
    term = Term(penalty, path_length, path_every, init=lambda: jnp.zeros(()))
    return PerNetwork({**generator, "path_length": term}, discriminator)


def lazy_adam(
    learning_rate: float, every: int = 1, b1: float = 0.0, b2: float = 0.99
) -> optax.GradientTransformation:
    """Adam for a network with a lazy term: Karras et al. 2020 (StyleGAN2), appendix B.

    The authors take a separate step for the regularisation, so that `every` steps here are
    `every + 1` there: the learning rate and the decays are rescaled to match per image.

    Args:
      learning_rate: the rate without lazy regularisation; 0.002 for StyleGAN2.
      every: the interval of the lazy term; 1 for a network without one.
      b1: the decay of the mean, without lazy regularisation. If 0, as for StyleGAN2, the mean is
        the gradient and is not stored, which saves a third of Adam's memory, parameters included.
      b2: the decay of the mean of squares.
    """
    part = every / (every + 1) if every > 1 else 1.0
    if b1:
        return optax.adam(learning_rate * part, b1**part, b2**part, eps=1e-8)
    return optax.rmsprop(
        learning_rate * part, b2**part, eps=1e-8, eps_in_sqrt=False, bias_correction=True
    )
