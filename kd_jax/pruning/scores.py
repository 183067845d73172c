"""The importance of a network's channels, by group."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core import checks
from kd_jax.core.axes import (
    Axes,
    Axis,
    InputAxis,
    NormScale,
    group_widths,
    part_length,
    parts,
    path_name,
    tensors,
)
from kd_jax.core.network import Network
from kd_jax.core.types import Array, Variables

Scores = Mapping[str, Array]
"""For each group `[C]`: the importance of its channels, nonnegative; higher is better."""


def magnitude(variables: Variables, axes: Axes) -> dict[str, Array]:
    """The sum of |weight| over all kernel entries that read a channel.

    Li et al. 2020 (GAN Compression) select channels like this, by the input axis of kernels. The
    weights that produce a channel are not informative if a normalisation follows them.

    Returns:
      `{group: [C]}`, at least 0.

    Raises:
      ValueError: `axes` does not fit `variables`, or no tensor reads a group.
    """
    sizes = group_widths(variables, axes)
    totals = _totals(_reading_kernels(variables, axes), axes, sizes, InputAxis)
    for group in sizes:
        if group not in totals:
            raise ValueError(f"no tensor reads group {group!r}, so its channels have no magnitude")
    return totals


def norm_scale(variables: Variables, axes: Axes) -> dict[str, Array]:
    """|gamma| of a channel, summed over the normalisation layers of its group.

    Liu et al. 2017 (Network Slimming) and Jin et al. 2021 (CAT). It is informative if a penalty has
    driven gammas to zero, or training has made them different.

    Returns:
      `{group: [C]}`, at least 0.

    Raises:
      ValueError: `axes` does not fit `variables`, or a group has no normalisation layer.
    """
    sizes = group_widths(variables, axes)
    leaves = tensors(variables)
    scales = {path: leaves[path] for path in axes if _has_role(axes[path], NormScale)}
    totals = _totals(scales, axes, sizes, NormScale)
    for group in sizes:
        if group not in totals:
            raise ValueError(f"group {group!r} has no normalisation layer; use another score")
    return totals


def content_saliency(
    network: Network,
    variables: Variables,
    axes: Axes,
    inputs: Sequence[Array],
    mask: Array | Callable[[Array], Array],
    key: Array,
    *,
    density: float = 0.05,
) -> dict[str, Array]:
    """The sensitivity of the image content to the weights that read a channel.

    In each image some pixels of the content are replaced by black or white in all channels, and the
    noisy image is held constant; the score is `sum |d/dw sum |G(z) - noisy||` over the weights that
    read the channel, averaged over the examples. Liu et al. 2021 (CAGC), whose gradients pass
    through the image only; salt-and-pepper noise and its density are those of the authors' code.

    Args:
      network: a generator of images in [-1, 1], applied without `train`.
      variables: the teacher's variables.
      axes: their description.
      inputs: the inputs of the generator, each `[B, ...]`.
      mask: `[B, H, W, 1]` in [0, 1], 1 at the content; or a function that computes it from the
        images `[B, H, W, C]`. Values between 0 and 1 scale the density.
      key: for the noise, and for a network that draws noise itself.
      density: the fraction of the content's pixels that are replaced, in (0, 1].

    Returns:
      `{group: [C]}`, at least 0.

    Raises:
      ValueError: `axes` does not fit `variables`, the mask does not fit the images, the batch sizes
        of the inputs differ, or no tensor reads a group.
    """
    count = _batch_size(inputs)
    noise_key, network_key = jax.random.split(key)
    keys = jax.random.split(network_key, count)

    def image(variables: Variables, inputs: Any, key: Array) -> Array:
        return network.apply(variables, *(x[None] for x in inputs), rngs=key)[0]

    if callable(mask):
        images = jax.lax.map(lambda example: image(variables, *example)[0], (tuple(inputs), keys))
        shape, mask = images.shape, mask(images)
    else:
        output = jax.eval_shape(image, variables, tuple(x[0] for x in inputs), keys[0])
        shape = (count, *output.shape[1:])
    if mask.shape != (*shape[:-1], 1):
        raise ValueError(
            f"the mask has shape {mask.shape}; images {shape} need {shape[:-1]} + (1,)"
        )
    pixel_key, salt_key = jax.random.split(noise_key)
    replaced = jax.random.uniform(pixel_key, mask.shape) < density * mask
    salt = jnp.where(jax.random.bernoulli(salt_key, shape=mask.shape), 1.0, -1.0)

    def loss(variables: Variables, example: Any) -> Array:
        inputs, key, replaced, salt = example
        clean = image(variables, inputs, key)
        # From the same image: a second pass may differ in the last bit, whose sign would count.
        noisy = jnp.where(replaced[None], salt[None], jax.lax.stop_gradient(clean))
        return checks.magnitude(clean - noisy).sum()

    examples = (tuple(inputs), keys, replaced, salt)
    return _saliency(variables, axes, loss, examples, count)


def direction_sensitivity(
    network: Network,
    variables: Variables,
    axes: Axes,
    inputs: Sequence[Array],
    directions: Array,
    *,
    strength: float = 5.0,
    key: Array | None = None,
) -> dict[str, Array]:
    """The sensitivity of differences between images to the weights that read a channel.

    `sum |d/dw mean |G(z) - G(z + strength * direction)||` over the weights that read the channel,
    with separate gradients for each direction and example; summed over the directions and averaged
    over the examples. After Chung et al. 2024 (DCP-GAN), whose code ranks by the squared deviation
    of this sum from its mean over the directions instead.

    Args:
      network: a generator, applied without `train`.
      variables: the teacher's variables.
      axes: their description.
      inputs: the inputs of the generator, each `[B, ...]`; the first are the latents `[B, latent]`.
      directions: `[K, latent]`, unit vectors (`kd_jax.methods.sefa.sefa_directions`).
      strength: the length of the shift. 5 is the authors' value, in StyleGAN2's w space.
      key: for a network that draws noise; the noise is the same for both images of a pair.

    Returns:
      `{group: [C]}`, at least 0.

    Raises:
      ValueError: `axes` does not fit `variables`, the directions do not fit the latents, the batch
        sizes of the inputs differ, or no tensor reads a group.
    """
    count = _batch_size(inputs)
    latents = inputs[0]
    if latents.ndim != 2 or directions.ndim != 2 or directions.shape[1] != latents.shape[1]:
        raise ValueError(
            f"directions {directions.shape} and latents {latents.shape} must be [K, latent] and "
            "[B, latent]"
        )
    num_directions = directions.shape[0]
    example, direction = jnp.divmod(jnp.arange(count * num_directions), num_directions)
    keys = None if key is None else jax.random.split(key, count)[example]

    def loss(variables: Variables, example: Any) -> Array:
        (latent, *rest), direction, key = example

        def image(latent: Array) -> Array:
            return network.apply(variables, latent[None], *(x[None] for x in rest), rngs=key)[0]

        return checks.magnitude(image(latent) - image(latent + strength * direction)).mean()

    examples = (tuple(x[example] for x in map(jnp.asarray, inputs)), directions[direction], keys)
    return _saliency(variables, axes, loss, examples, count)


def _has_role(entry: tuple[Axis, ...], role: type) -> bool:
    return any(isinstance(axis, role) for axis in entry)


def _reading_kernels(variables: Variables, axes: Axes) -> dict[str, Any]:
    """The tensors that read channels, by path."""
    leaves = tensors(variables)
    return {path: leaves[path] for path in axes if _has_role(axes[path], InputAxis)}


def _totals(
    leaves: Mapping[str, Any], axes: Axes, sizes: Mapping[str, int], role: type
) -> dict[str, Array]:
    """`|tensor|`, summed for each channel over its entries along the axes of this role."""
    totals: dict[str, Array] = {}
    for path, leaf in leaves.items():
        values = jnp.abs(checks.at_least_float32(leaf))
        for index, axis in enumerate(axes[path]):
            if not isinstance(axis, role):
                continue
            along = values.sum(axis=tuple(other for other in range(values.ndim) if other != index))
            start = 0
            for part in parts(axis):
                end = start + part_length(part, sizes)
                if isinstance(part, str):
                    totals[part] = totals.get(part, jnp.zeros(())) + along[start:end]
                start = end
    return {group: totals[group] for group in sizes if group in totals}


def _saliency(
    variables: Variables,
    axes: Axes,
    loss: Callable[[Variables, Any], Array],
    examples: Any,
    count: int,
) -> dict[str, Array]:
    """The |gradients| of the reading kernels, summed over `examples` and divided by `count`."""
    sizes = group_widths(variables, axes)
    kernels = _reading_kernels(variables, axes)

    def loss_of_kernels(kernels: Mapping[str, Any], example: Any) -> Array:
        def pick(path: Any, leaf: Any) -> Any:
            return kernels.get(path_name(path), leaf)

        return loss(jax.tree_util.tree_map_with_path(pick, variables), example)

    def add(sums: dict[str, Array], example: Any) -> tuple[dict[str, Array], None]:
        gradients = jax.grad(loss_of_kernels)(kernels, example)
        return jax.tree.map(jnp.add, sums, _totals(gradients, axes, sizes, InputAxis)), None

    # Sequential: the gradients of all examples at once would be as many copies of the kernels.
    start = jax.tree.map(jnp.zeros_like, magnitude(variables, axes))
    sums, _ = jax.lax.scan(add, start, examples)
    return {group: sums[group] / count for group in sizes}


def _batch_size(inputs: Sequence[Array]) -> int:
    shapes = [jnp.shape(x) for x in inputs]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"the inputs must all be [B, ...] for one B, not {shapes}")
    return shapes[0][0]


def check_scores(scores: Scores) -> dict[str, np.ndarray]:
    """The scores as float64, after a check that they are finite."""
    values = {group: np.asarray(score, np.float64) for group, score in scores.items()}
    for group, value in values.items():
        if value.ndim != 1 or not value.size or not np.isfinite(value).all():
            raise ValueError(f"the scores of group {group!r} must be [C] and finite")
    return values
