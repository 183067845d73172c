"""Images of a generator for numbered seeds, and interpolations between them."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from kd_jax.core.mesh import make_mesh
from kd_jax.evaluate.generator import EvaluatedGenerator, sampler
from kd_jax.metrics.ppl import slerp
from kd_jax.model import Model

Images = NDArray[np.uint8]

IMAGES_PER_PASS = 4
"""Always the same number, so that an image does not depend on the others."""


def seeded_inputs(
    model: Model, seeds: Sequence[int], labels: Sequence[int] | None = None
) -> tuple[np.ndarray, ...]:
    """The inputs for these seeds, one example each.

    Latents are `numpy.random.RandomState(seed).randn(1, N)`, as in NVIDIA's programs: a published
    generator has the same images for the same seeds there.

    Args:
      model: a generator that takes latents.
      seeds: from 0 to 2**32 - 1.
      labels: classes, repeated for more seeds; by default class `seed % classes`.

    Raises:
      ValueError: the generator takes images or tokens; labels are out of range, or it takes none.
    """
    interface = model.interface
    if interface.takes_images:
        raise ValueError(f"the generator takes {interface.describe()}, and has no seeds")
    interface.check_drawn()
    if labels is not None and not interface.classes:
        raise ValueError("the generator takes no labels")
    latents = np.stack([np.random.RandomState(s).randn(interface.latent) for s in seeds])
    if not interface.classes:
        return (latents.astype(np.float32),)
    chosen = [seed % interface.classes for seed in seeds]
    if labels is not None:
        chosen = [labels[i % len(labels)] for i in range(len(seeds))]
    if not 0 <= min(chosen) <= max(chosen) < interface.classes:
        raise ValueError(f"labels={chosen} are not all from 0 to {interface.classes - 1}")
    return latents.astype(np.float32), np.array(chosen, np.int32)


def interpolated_inputs(
    inputs: Sequence[np.ndarray], frames: int, *, loop: bool = True
) -> tuple[np.ndarray, ...]:
    """Inputs on great circles from each latent to the next (White 2016).

    Args:
      inputs: from `seeded_inputs`, of at least two seeds. Labels change half way.
      frames: the number of inputs from one to the next, the first included.
      loop: whether the last is followed by the first.

    Raises:
      ValueError: there are fewer than two examples, or `frames` is not positive.
    """
    latents, *labels = inputs
    if len(latents) < 2 or frames < 1:
        raise ValueError(f"{len(latents)} seeds and {frames} frames: at least 2 and 1 are needed")
    count = len(latents) if loop else len(latents) - 1
    start = np.repeat(np.arange(count), frames)
    end = (start + 1) % len(latents)
    positions = np.tile(np.arange(frames) / frames, count)
    ends = latents[start].astype(np.float64), latents[end].astype(np.float64)
    path = slerp(*ends, positions[:, None])
    nearest = np.where(positions < 0.5, start, end)
    return np.asarray(path, np.float32), *(x[nearest] for x in labels)


def generate(
    model: Model,
    inputs: Sequence[np.ndarray],
    *,
    truncation: float | None = None,
    batch: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> Images:
    """Images `[N, H, W, C]` for these inputs.

    Args:
      model: a generator.
      inputs: its inputs, `[N, ...]` each.
      truncation: the truncation psi, for a generator that supports it.
      batch: the number of images per transfer from the devices.
      progress: called with the number of finished images.

    Raises:
      ValueError: the generator takes no truncation, or an image is not finite.
    """
    options = {} if truncation is None else {"truncation": truncation}
    like = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.asarray(x[:1]).dtype) for x in inputs)
    subject = EvaluatedGenerator(
        "the generator", "", model.network, model.variables, like, model.classes, options
    )
    try:
        _ = subject.image_shape
    except TypeError:
        if truncation is None:
            raise
        raise ValueError(
            f"--truncation={truncation}: the generator takes no truncation (in Python, truncation=)"
        ) from None
    mesh = make_mesh(devices=jax.local_devices())
    images: Images = sampler(subject, batch, mesh, IMAGES_PER_PASS)(inputs, progress).images
    return images
