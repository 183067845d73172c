"""Translation of images."""

from collections.abc import Callable

import jax.numpy as jnp

from kd_jax.core.checks import batch_entry
from kd_jax.core.objective import Inputs, MakeInputs
from kd_jax.core.types import Array, Batch


def paired(source: Callable[[Array], Array] | str, *, conditional: bool = True) -> MakeInputs:
    """Images from their counterparts (Isola et al. 2017, pix2pix): generators take the source.

    Args:
      source: a function from images to their counterparts (`degradations.edges`), or the name of
        their batch entry.
      conditional: whether the discriminator takes the source after the image.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        images = batch_entry(batch, "image")
        sources = batch_entry(batch, source) if isinstance(source, str) else source(images)
        condition = (sources,) if conditional else ()
        return Inputs((sources,), condition, images, {**batch, "source": sources})

    return make


def unpaired(first: str = "first", second: str = "second") -> MakeInputs:
    """Translation between two unpaired domains (Zhu et al. 2017, CycleGAN), in both directions.

    For networks combined by `kd_jax.models.pair.parallel`: the generator takes `[B, 2, H, W, C]`,
    an image of the first and one of the second domain, and translates each into the other domain.
    The real images are stacked in the order of the outputs: second, first.

    Args:
      first: the batch entry with images of one domain.
      second: the batch entry with images of the other domain, of the same shape.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        a, b = batch_entry(batch, first), batch_entry(batch, second)
        if a.shape != b.shape:
            raise ValueError(f"the images of the two domains have shapes {a.shape} and {b.shape}")
        return Inputs((jnp.stack([a, b], axis=1),), (), jnp.stack([b, a], axis=1), batch)

    return make
