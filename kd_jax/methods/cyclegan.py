"""CycleGAN (Zhu et al. 2017): unpaired translation."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import ADVERSARIAL, POOL, Strength
from kd_jax.methods.image_pool import ImagePool, init, query


def cyclegan(
    shape: Sequence[int],
    *,
    cycle: Strength = 10.0,
    identity: Strength = 5.0,
    pool: int = 50,
) -> PerNetwork:
    """Translation between two domains without pairs: Zhu et al. 2017 (CycleGAN), section 4.

    The least-squares adversarial loss of both directions, the L1 cycle-consistency loss, and the L1
    identity loss of images that are already in the target domain. For `tasks.unpaired` and networks
    combined by `models.pair.parallel`: the first generator translates the first domain into the
    second, and the first discriminator is that of the second domain.

    Args:
      shape: the image shape, `(H, W, C)`.
      cycle: the weight of the cycle consistency, summed over both directions.
      identity: the weight of the identity loss; half of `cycle`, as in the authors' code. 0 omits
        it.
      pool: the size of the image pool of each domain (`kd_jax.methods.image_pool`); 0 for none.

    Raises:
      ValueError: when a weight is not a finite, nonnegative number, or `pool` is negative.
    """
    loss = losses.adversarial
    for name, value in (("cycle", cycle), ("identity", identity), ("pool", pool)):
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} must be finite and not negative")

    def cycle_loss(f: Forward) -> Array:
        return 2 * losses.response.l1(f.student(f.student.output[:, ::-1])[0], f.real)

    def identity_loss(f: Forward) -> Array:
        real = f.real
        return 2 * losses.response.l1(f.student(real)[0], real)

    def d_loss(f: Forward, fake_scores: Any) -> Array:
        real_scores: Any = f.discriminator.real_scores
        return 2 * loss.least_squares_d(real_scores, fake_scores)

    def pooled_d_loss(f: Forward, pools: ImagePool) -> tuple[Array, ImagePool]:
        keys = jax.random.split(jax.random.fold_in(f.key, POOL), 2)
        query_pools = jax.vmap(query, in_axes=(0, 0, 1), out_axes=(1, 0))
        images, pools = query_pools(keys, pools, f.student.output)
        return d_loss(f, f.discriminator(images)[0]), pools

    def init_pools() -> ImagePool:
        return jax.vmap(lambda _: init(pool, tuple(shape)))(jnp.arange(2))

    generator = {
        # The mean over both directions' scores; the authors' losses are sums over directions.
        ADVERSARIAL: Term(lambda f: 4 * loss.least_squares_g(f.discriminator.fake_scores)),
        "cycle": Term(cycle_loss, cycle),
    }
    if identity:
        generator["identity"] = Term(identity_loss, identity)
    if pool:
        return PerNetwork(generator, {ADVERSARIAL: Term(pooled_d_loss, init=init_pools)})
    return PerNetwork(
        generator, {ADVERSARIAL: Term(lambda f: d_loss(f, f.discriminator.fake_scores))}
    )
