"""A pool of previously generated images, a history that the discriminator is trained on.

Shrivastava et al. 2017, section 2.3, as used by CycleGAN. The pool is a value: the state of a term,
and thus part of the train state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array


class ImagePool(NamedTuple):
    """Previously generated images.

    Attributes:
      images: `[size, ...]`; the first `num_images` are filled.
      num_images: the number of images in the pool, int32 scalar.
    """

    images: Array
    num_images: Array


def init(size: int, shape: tuple[int, ...]) -> ImagePool:
    """An empty pool for `size` images of a shape.

    Raises:
      ValueError: `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"a pool of {size} images: size must be at least 1")
    return ImagePool(jnp.zeros((size, *shape)), jnp.zeros((), jnp.int32))


def query(key: Array, pool: ImagePool, images: Array) -> tuple[Array, ImagePool]:
    """Images for the discriminator in place of `images`, and the updated pool.

    Images are processed in order: while the pool is not full, an image is stored and returned.
    Afterwards, with probability 1/2, it replaces a uniformly drawn image of the pool, which is
    returned instead.

    Args:
      key: a PRNG key.
      pool: from `init`, or from the previous call.
      images: `[B, ...]` of the pool's shape.

    Returns:
      The images `[B, ...]` and the pool.

    Raises:
      ValueError: the images have another shape than those of the pool.
    """
    if images.shape[1:] != pool.images.shape[1:]:
        raise ValueError(
            f"images of shape {images.shape[1:]} do not fit a pool of {pool.images.shape[1:]}"
        )
    size = pool.images.shape[0]

    def step(pool: ImagePool, inputs: tuple[Array, Array]) -> tuple[ImagePool, Array]:
        image, key = inputs
        swap_key, slot_key = jax.random.split(key)
        full = pool.num_images == size
        slot = jnp.where(full, jax.random.randint(slot_key, (), 0, size), pool.num_images)
        swap = full & jax.random.bernoulli(swap_key)
        stored = pool.images[slot]
        new = jnp.where(swap | ~full, image, stored)
        num_images = jnp.minimum(pool.num_images + 1, size)
        return ImagePool(pool.images.at[slot].set(new), num_images), jnp.where(swap, stored, image)

    after, outputs = jax.lax.scan(step, pool, (images, jax.random.split(key, images.shape[0])))
    return outputs, after
