"""Restoration of degraded images."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from kd_jax.core.checks import batch_entry
from kd_jax.core.objective import Inputs, MakeInputs
from kd_jax.core.types import Array, Batch
from kd_jax.tasks import degradations

MakeMask: TypeAlias = Callable[[Array, tuple[int, ...]], Array]
"""`(key, images' shape) -> [B, H, W, 1]` of any dtype, 1 for missing pixels."""


Degrade: TypeAlias = Callable[[Array, Array, int], Array]
"""`(key, images [B, H, W, C], factor) -> [B, H / factor, W / factor, C]`, in [-1, 1]."""


def super_resolution(
    factor: int, *, deviation: float = 0.0, degrade: Degrade | None = None
) -> MakeInputs:
    """Images from downsampled versions: generators take `[B, H / factor, W / factor, C]`.

    The discriminator takes only images. `extra["small"]` is the input of the generator.

    Args:
      factor: a divisor of the image sides; see `kd_jax.tasks.degradations.downsample`.
      deviation: the standard deviation of noise added to the small images.
      degrade: in place of `downsample`, a function that makes images smaller, such as
        `kd_jax.tasks.real_degradation`.

    Raises:
      ValueError: `deviation` is negative.
    """
    if not deviation >= 0:
        raise ValueError(f"deviation={deviation} must not be negative")

    def make(key: Array, batch: Batch) -> Inputs:
        images = batch_entry(batch, "image")
        if degrade is None:
            small = degradations.downsample(images, factor)
        else:
            key, degrade_key = jax.random.split(key)
            small = degrade(degrade_key, images, factor)
        if deviation:
            small = degradations.add_noise(key, small, deviation)
        return Inputs((small,), (), images, {**batch, "small": small})

    return make


def inpainting(masks: MakeMask | Sequence[MakeMask]) -> MakeInputs:
    """Images from masked versions: generators take `(image, mask)`.

    Missing pixels of the input images are zero. The discriminator takes the mask after the image.
    `extra["mask"]` is the mask, float32.

    Args:
      masks: a function that draws masks, such as `degradations.free_form_mask`, or several, from
        which one is drawn for each image.

    Raises:
      ValueError: `masks` is empty; (of the task) a mask has the wrong shape.
    """
    choices = [masks] if callable(masks) else list(masks)
    if not choices:
        raise ValueError("inpainting needs at least one function that draws masks")

    def make(key: Array, batch: Batch) -> Inputs:
        images = batch_entry(batch, "image")
        choice_key, *keys = jax.random.split(key, len(choices) + 1)
        # Of one dtype, since functions may draw bool or integers, and a selection follows.
        drawn = [
            jnp.asarray(draw(k, images.shape), jnp.float32)
            for draw, k in zip(choices, keys, strict=True)
        ]
        for mask in drawn:
            if mask.shape != (*images.shape[:3], 1):
                raise ValueError(f"a mask of shape {mask.shape} does not fit images {images.shape}")
        choice = jax.random.randint(choice_key, (images.shape[0], 1, 1, 1), 0, len(choices))
        mask = jax.lax.select_n(jnp.broadcast_to(choice, drawn[0].shape), *drawn)
        known = jnp.where(mask > 0.5, 0.0, images)
        return Inputs((known, mask), (mask,), images, {**batch, "mask": mask})

    return make


def dihedral_augmentation(task: MakeInputs) -> MakeInputs:
    """A task on images with random flips and rotations by multiples of 90 degrees.

    The eight views of an image are equally likely, so that restoration learns no orientation.

    Raises:
      ValueError: (of the task) the images are not square.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        view_key, key = jax.random.split(key)
        images = batch_entry(batch, "image")
        batch_size, height, width, _ = images.shape
        if height != width:
            raise ValueError(f"images of {height}x{width} cannot be rotated: they must be square")
        views = jax.random.bernoulli(view_key, shape=(3, batch_size, 1, 1, 1))
        images = jnp.where(views[0], images.swapaxes(1, 2), images)
        images = jnp.where(views[1], images[:, ::-1], images)
        images = jnp.where(views[2], images[:, :, ::-1], images)
        return task(key, {**batch, "image": images})

    return make
