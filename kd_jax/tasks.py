"""Tasks: what the networks are given, and what is right, made of a batch and a key.

A task is a function `(key, batch) -> Inputs`; that is all that differs between generating,
restoring and translating images, and the step knows of none of them. What a task degrades it draws
from the step's key: the same image is asked for in another way each time it comes.

Tasks with a right answer put it into `Inputs.real`, where the terms find it as `forward.real`.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from kd_jax import degrade, ops
from kd_jax.objective import Inputs, MakeInputs
from kd_jax.types import Array, Batch

MakeMask: TypeAlias = Callable[[Array, tuple[int, ...]], Array]
"""`(key, images' shape) -> [B, H, W, 1]`, 1 where pixels are missing; of any dtype."""


def latents(size: int, conditional: bool = True) -> MakeInputs:
    """Images from noise, given class labels or not.

    Args:
      size: the latent's length; latents are standard normal `[B, size]`.
      conditional: whether the networks take `batch["label"]`, int `[B]`, beside the latents.

    Raises:
      ValueError: (of the task) when the batch has neither `label` nor `image` to count.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        counted = batch.get("label", batch.get("image"))
        if counted is None or (conditional and "label" not in batch):
            needed = "'label'" if conditional else "'label' or 'image'"
            raise ValueError(f"the batch has {sorted(batch)}; drawing latents needs {needed}")
        labels = (batch["label"],) if conditional else ()
        count = counted.shape[0]
        z = jax.random.normal(key, (count, size))
        return Inputs((z, *labels), labels, batch.get("image"), batch)

    return make


def noise(size: int, batch_size: int, classes: int = 0) -> MakeInputs:
    """Images from nothing: latents and labels are both drawn.

    With it a data-free run needs no batch: `{}` will do. What a batch has is used: its images are
    the real ones, its labels those to be drawn for.

    Args:
      size: the latent's length; latents are standard normal `[B, size]`.
      batch_size: how many, unless the batch says.
      classes: labels are uniform in [0, classes); 0 for networks that take none.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        given = dict(batch)
        known = jax.tree.leaves(given)
        count = known[0].shape[0] if known else batch_size
        z_key, label_key = jax.random.split(key)
        if classes and "label" not in given:
            given["label"] = jax.random.randint(label_key, (count,), 0, classes)
        labels = (given["label"],) if classes else ()
        z = jax.random.normal(z_key, (count, size))
        return Inputs((z, *labels), labels, given.get("image"), given)

    return make


def text_to_image(
    size: int, tokens: Callable[[Array, Array], Array] | str = "tokens"
) -> MakeInputs:
    """Images from noise and a caption: generators take `(latents, tokens)`.

    The discriminator takes the tokens after the image; `extra["tokens"]` has them too.

    Args:
      size: the latent's length; latents are standard normal `[B, size]`.
      tokens: the batch's entry that holds the captions, int `[B, L]`, or what makes them of its
        images and labels, `kd_jax.data.captions.Captioner.tokens` for one.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        images = _entry(batch, "image")
        if isinstance(tokens, str):
            words = _entry(batch, tokens)
        else:
            words = tokens(images, _entry(batch, "label"))
        z = jax.random.normal(key, (images.shape[0], size))
        return Inputs((z, words), (words,), images, {**batch, "tokens": words})

    return make


def super_resolution(factor: int, *, deviation: float = 0.0) -> MakeInputs:
    """Images from their own, `factor` times smaller: generators take `[B, H / f, W / f, C]`.

    The discriminator takes images alone. `extra["small"]` is what the generator was given.

    Args:
      factor: divides the images' sides; see `kd_jax.degrade.downsampled`.
      deviation: of the noise that the small images are given.

    Raises:
      ValueError: the deviation is negative.
    """
    if not deviation >= 0:
        raise ValueError(f"deviation={deviation} is a standard deviation, and negative")

    def make(key: Array, batch: Batch) -> Inputs:
        images = _entry(batch, "image")
        small = degrade.downsampled(images, factor)
        if deviation:
            small = degrade.noisy(key, small, deviation)
        return Inputs((small,), (), images, {**batch, "small": small})

    return make


def bandwidth_extension(factor: int) -> MakeInputs:
    """Waveforms from what a rate `factor` times lower leaves of them: `[B, L / f, C]`.

    The discriminator takes, after the waveform `[B, L, C]`, what interpolation makes of what the
    generator was given. The batch's entry is `wave`.

    Args:
      factor: divides the waveforms' lengths; see `kd_jax.ops.decimated`.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        waves = _entry(batch, "wave")
        low = ops.decimated(waves, factor)
        return Inputs((low,), (ops.interpolated(low, factor),), waves, batch)

    return make


def inpainting(masks: MakeMask | Sequence[MakeMask]) -> MakeInputs:
    """Images from what a mask leaves of them: generators take `(image, mask)`.

    The images are given with zeros where pixels are missing. The discriminator takes the mask after
    the image. `extra["mask"]` is the mask, float32.

    Args:
      masks: what draws them, `degrade.free_form_mask` for one. Of several each image gets one by
        chance.

    Raises:
      ValueError: there is nothing to draw them; (of the task) a mask is of another shape.
    """
    choices = [masks] if callable(masks) else list(masks)
    if not choices:
        raise ValueError("inpainting needs at least one function that draws masks")

    def make(key: Array, batch: Batch) -> Inputs:
        images = _entry(batch, "image")
        choice_key, *keys = jax.random.split(key, len(choices) + 1)
        # Some draw bool or integers; those of several are chosen from, and are all alike then.
        drawn = [
            jnp.asarray(draw(k, images.shape), jnp.float32)
            for draw, k in zip(choices, keys, strict=True)
        ]
        for mask in drawn:
            if mask.shape != (*images.shape[:3], 1):
                raise ValueError(f"a mask of shape {mask.shape} does not fit images {images.shape}")
        chosen = jax.random.randint(choice_key, (images.shape[0], 1, 1, 1), 0, len(choices))
        mask = jax.lax.select_n(jnp.broadcast_to(chosen, drawn[0].shape), *drawn)
        known = jnp.where(mask > 0.5, 0.0, images)
        return Inputs((known, mask), (mask,), images, {**batch, "mask": mask})

    return make


def paired(source: Callable[[Array], Array] | str, *, conditional: bool = True) -> MakeInputs:
    """Images from their counterparts (Isola et al. 2017, pix2pix): generators take the source.

    Args:
      source: makes the counterparts of the images (`degrade.edges`), or is the batch's entry that
        holds them.
      conditional: whether the discriminator takes the source after the image.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        images = _entry(batch, "image")
        given = _entry(batch, source) if isinstance(source, str) else source(images)
        condition = (given,) if conditional else ()
        return Inputs((given,), condition, images, {**batch, "source": given})

    return make


def unpaired(first: str = "first", second: str = "second") -> MakeInputs:
    """Images of two domains into each other (Zhu et al. 2017, CycleGAN), both ways at once.

    For networks that `kd_jax.models.pair.side_by_side` has put together: the generator takes
    `[B, 2, H, W, C]`, an image of the first and one of the second domain, and makes of them one of
    the second and one of the first. The real images are stacked alike: second, first.

    Args:
      first: the batch's entry with images of one domain.
      second: with images of the other, of the same shape.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        a, b = _entry(batch, first), _entry(batch, second)
        if a.shape != b.shape:
            raise ValueError(f"images of two domains have shapes {a.shape} and {b.shape}")
        return Inputs((jnp.stack([a, b], axis=1),), (), jnp.stack([b, a], axis=1), batch)

    return make


def classification() -> MakeInputs:
    """Logits from images, for networks without a discriminator: `extra["label"]` is right."""

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        _entry(batch, "label")
        return Inputs((_entry(batch, "image"),), extra=batch)

    return make


def turned(task: MakeInputs) -> MakeInputs:
    """A task on images that are mirrored and turned by quarters, each by chance.

    Eight views of each image, all as likely: what is restored does not depend on where is up.

    Raises:
      ValueError: (of the task) the images are no squares.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        turn_key, key = jax.random.split(key)
        images = _entry(batch, "image")
        batch_size, height, width, _ = images.shape
        if height != width:
            raise ValueError(f"images of {height}x{width} cannot be turned: squares are needed")
        views = jax.random.bernoulli(turn_key, shape=(3, batch_size, 1, 1, 1))
        images = jnp.where(views[0], images.swapaxes(1, 2), images)
        images = jnp.where(views[1], images[:, ::-1], images)
        images = jnp.where(views[2], images[:, :, ::-1], images)
        return task(key, {**batch, "image": images})

    return make


def _entry(batch: Batch, name: str) -> Array:
    if name not in batch:
        raise ValueError(f"the batch has {sorted(batch)}; this task needs {name!r}")
    return batch[name]
