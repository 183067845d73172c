"""Tasks: functions from a batch and a key to the inputs of the networks and the targets.

A task is a function `(key, batch) -> Inputs`; generation, restoration and translation of images
differ in nothing else, and the step is independent of the task. Random degradations are drawn from
the step's key, so that an image is degraded differently each time.

Tasks with a target image put it into `Inputs.real`, which terms read as `forward.real`.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from kd_jax import degradations, ops
from kd_jax.objective import Inputs, MakeInputs
from kd_jax.types import Array, Batch

MakeMask: TypeAlias = Callable[[Array, tuple[int, ...]], Array]
"""`(key, images' shape) -> [B, H, W, 1]` of any dtype, 1 for missing pixels."""


def latents(size: int, conditional: bool = True) -> MakeInputs:
    """Images from noise, optionally conditioned on class labels.

    Args:
      size: the length of the latents, which are standard normal `[B, size]`.
      conditional: whether the networks also take `batch["label"]`, int `[B]`.

    Raises:
      ValueError: (of the task) when the batch has no `label`, or, if unconditional, neither `label`
        nor `image`.
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
    """Images from noise, with latents and labels both drawn.

    A data-free run needs no batch: `{}` suffices. Images in a batch are the real images, and labels
    in a batch replace the drawn ones.

    Args:
      size: the length of the latents, which are standard normal `[B, size]`.
      batch_size: the number of latents, unless given by the batch.
      classes: labels are uniform in [0, classes); 0 for networks without labels.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        extra = dict(batch)
        leaves = jax.tree.leaves(extra)
        count = leaves[0].shape[0] if leaves else batch_size
        z_key, label_key = jax.random.split(key)
        if classes and "label" not in extra:
            extra["label"] = jax.random.randint(label_key, (count,), 0, classes)
        labels = (extra["label"],) if classes else ()
        z = jax.random.normal(z_key, (count, size))
        return Inputs((z, *labels), labels, extra.get("image"), extra)

    return make


def text_to_image(
    size: int, tokens: Callable[[Array, Array], Array] | str = "tokens"
) -> MakeInputs:
    """Images from noise and a caption: generators take `(latents, tokens)`.

    The discriminator takes the tokens after the image; they are also `extra["tokens"]`.

    Args:
      size: the length of the latents, which are standard normal `[B, size]`.
      tokens: the batch entry of the captions, int `[B, L]`, or a function from images and labels to
        captions, such as `kd_jax.data.captions.Captioner.tokens`.
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
    """Images from downsampled versions: generators take `[B, H / factor, W / factor, C]`.

    The discriminator takes only images. `extra["small"]` is the input of the generator.

    Args:
      factor: a divisor of the image sides; see `kd_jax.degradations.downsample`.
      deviation: the standard deviation of noise added to the small images.

    Raises:
      ValueError: `deviation` is negative.
    """
    if not deviation >= 0:
        raise ValueError(f"deviation={deviation} must not be negative")

    def make(key: Array, batch: Batch) -> Inputs:
        images = _entry(batch, "image")
        small = degradations.downsample(images, factor)
        if deviation:
            small = degradations.add_noise(key, small, deviation)
        return Inputs((small,), (), images, {**batch, "small": small})

    return make


def bandwidth_extension(factor: int) -> MakeInputs:
    """Waveforms from decimated versions: generators take `[B, L / factor, C]`.

    The discriminator takes, after the waveform `[B, L, C]`, the interpolated input of the
    generator. The batch entry is `wave`.

    Args:
      factor: a divisor of the waveform length; see `kd_jax.ops.decimate`.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        waves = _entry(batch, "wave")
        low = ops.decimate(waves, factor)
        return Inputs((low,), (ops.interpolate(low, factor),), waves, batch)

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
        images = _entry(batch, "image")
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


def paired(source: Callable[[Array], Array] | str, *, conditional: bool = True) -> MakeInputs:
    """Images from their counterparts (Isola et al. 2017, pix2pix): generators take the source.

    Args:
      source: a function from images to their counterparts (`degradations.edges`), or the name of
        their batch entry.
      conditional: whether the discriminator takes the source after the image.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        images = _entry(batch, "image")
        sources = _entry(batch, source) if isinstance(source, str) else source(images)
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
        a, b = _entry(batch, first), _entry(batch, second)
        if a.shape != b.shape:
            raise ValueError(f"the images of the two domains have shapes {a.shape} and {b.shape}")
        return Inputs((jnp.stack([a, b], axis=1),), (), jnp.stack([b, a], axis=1), batch)

    return make


def classification() -> MakeInputs:
    """Logits from images, without a discriminator; `extra["label"]` is the target class."""

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        _entry(batch, "label")
        return Inputs((_entry(batch, "image"),), extra=batch)

    return make


def dihedral_augmentation(task: MakeInputs) -> MakeInputs:
    """A task on images with random flips and rotations by multiples of 90 degrees.

    The eight views of an image are equally likely, so that restoration learns no orientation.

    Raises:
      ValueError: (of the task) the images are not square.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        view_key, key = jax.random.split(key)
        images = _entry(batch, "image")
        batch_size, height, width, _ = images.shape
        if height != width:
            raise ValueError(f"images of {height}x{width} cannot be rotated: they must be square")
        views = jax.random.bernoulli(view_key, shape=(3, batch_size, 1, 1, 1))
        images = jnp.where(views[0], images.swapaxes(1, 2), images)
        images = jnp.where(views[1], images[:, ::-1], images)
        images = jnp.where(views[2], images[:, :, ::-1], images)
        return task(key, {**batch, "image": images})

    return make


def _entry(batch: Batch, name: str) -> Array:
    if name not in batch:
        raise ValueError(f"the batch has {sorted(batch)}; this task needs {name!r}")
    return batch[name]
