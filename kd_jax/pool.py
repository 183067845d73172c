"""A pool of generated images, of which some are shown to the discriminator once more.

Shrivastava et al. 2017, section 2.3, as CycleGAN uses it: the discriminator does not forget what
the generator made before. The pool is a value: a term's state, and so part of the train state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.types import Array


class Pool(NamedTuple):
    """Images made before.

    Attributes:
      images: `[size, ...]`; the first `filled` of them are some.
      filled: how many, int32 scalar.
    """

    images: Array
    filled: Array


def empty(size: int, shape: tuple[int, ...]) -> Pool:
    """A pool with room for `size` images of a shape.

    Raises:
      ValueError: the size is not positive.
    """
    if size < 1:
        raise ValueError(f"a pool of {size} images has no room for any")
    return Pool(jnp.zeros((size, *shape)), jnp.zeros((), jnp.int32))


def exchange(key: Array, pool: Pool, images: Array) -> tuple[Array, Pool]:
    """What the discriminator is shown in the place of `images`, and the pool afterwards.

    One image after the other: while there is room it is kept, and shown. Then, as likely as not,
    it takes the place of one in the pool, drawn uniformly, which is shown instead.

    Args:
      key: of the draw.
      pool: from `empty`, or from the last call.
      images: `[B, ...]` of the pool's shape.

    Raises:
      ValueError: the images have another shape.
    """
    if images.shape[1:] != pool.images.shape[1:]:
        raise ValueError(
            f"images of shape {images.shape[1:]} do not fit a pool of {pool.images.shape[1:]}"
        )
    size = pool.images.shape[0]

    def one(pool: Pool, given: tuple[Array, Array]) -> tuple[Pool, Array]:
        image, key = given
        swap_key, slot_key = jax.random.split(key)
        full = pool.filled == size
        slot = jnp.where(full, jax.random.randint(slot_key, (), 0, size), pool.filled)
        swap = full & jax.random.bernoulli(swap_key)
        there = pool.images[slot]
        kept = jnp.where(swap | ~full, image, there)
        filled = jnp.minimum(pool.filled + 1, size)
        return Pool(pool.images.at[slot].set(kept), filled), jnp.where(swap, there, image)

    after, shown = jax.lax.scan(one, pool, (images, jax.random.split(key, images.shape[0])))
    return shown, after
