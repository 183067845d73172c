"""Initializes a smaller student from a trained teacher of the same architecture, by pruning.

Channels of each group are scored and selected, and every tensor is sliced to the selected ones:

    axes = dcgan.generator_axes(teacher_variables)
    scores = pruning.magnitude(teacher_variables, axes)
    like = jax.eval_shape(student.init, key, *inputs)
    variables = pruning.from_teacher(teacher_variables, axes, scores, like)

The functions work on arrays and on a description of the architecture (`kd_jax.axes`), so that a
new architecture only needs a description.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import checks
from kd_jax.axes import Axes, Axis, InputAxis, NormScale, group_widths, parts, path_name, tensors
from kd_jax.evaluate import cost
from kd_jax.network import Network
from kd_jax.types import Array, Variables

Scores = Mapping[str, Array]
"""For each group `[C]`: the importance of its channels, nonnegative; higher is better."""

ChannelIndices = Mapping[str, np.ndarray]
"""For each group `[width]`: the distinct indices of the channels to keep."""


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
      directions: `[K, latent]`, unit vectors (`kd_jax.sefa.sefa_directions`).
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


def top_channels(scores: Scores, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The channels with the highest scores; ties go to the lower index.

    Args:
      scores: `{group: [C]}`.
      widths: the number of channels to select, by group.

    Returns:
      `{group: [width]}`, ascending indices, for the groups in `widths`.

    Raises:
      ValueError: a group has no scores, a score is not finite, or a width is less than 1 or greater
        than the number of channels.
    """
    values = _check_scores(scores)
    indices = {}
    for group, width in widths.items():
        if group not in values:
            raise ValueError(f"group {group!r} has no scores; there are {_quote(values)}")
        if not 1 <= width <= values[group].size:
            raise ValueError(
                f"group {group!r} cannot have {width} of its {values[group].size} channels"
            )
        indices[group] = np.sort(np.argsort(-values[group], kind="stable")[:width])
    return indices


def shrink(variables: Variables, axes: Axes, channel_indices: ChannelIndices) -> Variables:
    """The variables with only the selected channels, in the order of their indices.

    Values are unchanged, except for those of equalized layers (`InputAxis`); selecting all channels
    is the identity. The arrays are copies, so that donating the student's does not delete the
    teacher's.

    Args:
      variables: the teacher's variables.
      axes: their description.
      channel_indices: `{group: [width]}`, distinct indices (`top_channels`); missing groups keep
        all channels.

    Raises:
      ValueError: `axes` does not fit `variables`, a group is unknown, or its indices are empty,
        repeated, not integers or out of range.
    """
    sizes = group_widths(variables, axes)
    selected = {
        group: _check_indices(group, indices, sizes) for group, indices in channel_indices.items()
    }

    def take(path: Any, leaf: Any) -> Array:
        leaf = jnp.copy(leaf)
        for index, axis in enumerate(axes[path_name(path)]):
            positions = _positions(axis, selected, sizes)
            if positions is not None:
                length = leaf.shape[index]
                leaf = jnp.take(leaf, positions, axis=index)
                if isinstance(axis, InputAxis) and axis.equalized:
                    leaf = leaf * math.sqrt(len(positions) / length)
        return leaf

    return jax.tree_util.tree_map_with_path(take, variables)


def from_teacher(
    teacher_variables: Variables, axes: Axes, scores: Scores, like: Variables
) -> Variables:
    """The teacher's highest-scoring channels, as many in each group as the student has.

    Args:
      teacher_variables: the variables to prune.
      axes: their description.
      scores: `{group: [C]}`; optional for groups in which the student is as wide as the teacher.
      like: the student's variables or their shapes, `jax.eval_shape(student.init, key, *inputs)`.

    Returns:
      Variables with the structure and shapes of `like`.

    Raises:
      ValueError: `axes` does not fit the variables of both networks, the student is wider than the
        teacher, a group has no scores, or a tensor differs along an axis without a group.
    """
    sizes = group_widths(teacher_variables, axes)
    targets = group_widths(like, axes)
    narrower = {group: width for group, width in targets.items() if width != sizes[group]}
    small = shrink(teacher_variables, axes, top_channels(scores, narrower))
    expected = tensors(like)
    for path, leaf in tensors(small).items():
        if leaf.shape != expected[path].shape:
            raise ValueError(
                f"{path} has shape {leaf.shape} from the teacher, but {expected[path].shape} in "
                "the student, and differs along an axis that is not pruned"
            )
    return small


def inherit(
    student_variables: Variables,
    teacher_variables: Variables,
    names: Sequence[str] | None = None,
) -> Variables:
    """The student's variables with some parts copied from the teacher.

    For parts of equal size in both: a mapping network, a label embedding, a discriminator.

    Args:
      student_variables: the variables to replace.
      teacher_variables: the variables to copy.
      names: submodules, or paths below them (`"label"`, `"mapping/Dense_0"`), in every collection
        that has them; None for all.

    Raises:
      ValueError: a name is missing in one of the networks, or a tensor is missing or has another
        shape.
    """
    student, teacher = tensors(student_variables), tensors(teacher_variables)

    def is_below(path: str, name: str) -> bool:
        subpath = path.partition("/")[2]
        return subpath == name or subpath.startswith(f"{name}/")

    paths = set(student | teacher) if names is None else set()
    for name in names or ():
        for owner, leaves in (("student", student), ("teacher", teacher)):
            matching = {path for path in leaves if is_below(path, name)}
            if not matching:
                modules = dict.fromkeys(path.split("/")[1] for path in leaves)
                raise ValueError(f"the {owner} has no part {name!r}; it has {_quote(modules)}")
            paths |= matching
    for path in sorted(paths):
        for owner, leaves in (("student", student), ("teacher", teacher)):
            if path not in leaves:
                raise ValueError(f"{path} cannot be inherited: the {owner} has no such tensor")
        if student[path].shape != teacher[path].shape:
            raise ValueError(
                f"{path} cannot be inherited: it has shape {teacher[path].shape} in the teacher "
                f"and {student[path].shape} in the student"
            )

    def pick(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        return jnp.copy(teacher[name]) if name in paths else leaf

    return jax.tree_util.tree_map_with_path(pick, student_variables)


def macs(network: Network, *inputs: Any) -> float:
    """Multiply-accumulates of one call (`kd_jax.evaluate.cost.multiply_accumulates`).

    Args:
      network: any network.
      *inputs: its inputs, arrays or `ShapeDtypeStruct`s. Nothing is computed or allocated.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return cost.multiply_accumulates(network, variables, *inputs)


def width_for(macs: Callable[[int], float], target: float, most: int = 4096) -> int:
    """The largest width whose cost does not exceed `target`.

        pruning.width_for(lambda w: pruning.macs(dcgan.generator(64, w), latents), 1e9)

    Args:
      macs: the cost of a width, nondecreasing in the width.
      target: the budget, in the same unit.
      most: the largest width to consider.

    Raises:
      ValueError: even a width of 1 costs more.
    """
    width = bisect.bisect_right(range(1, most + 1), False, key=lambda width: macs(width) > target)
    if not width:
        raise ValueError(f"even a width of 1 costs {macs(1):g}, more than the target of {target:g}")
    return width


def threshold(
    scores: Scores, macs: Callable[[Mapping[str, int]], float], target: float
) -> dict[str, np.ndarray]:
    """The channels above the lowest threshold, common to all groups, that meets a budget.

    Each group keeps at least its best channel. Jin et al. 2021 (CAT) prune like this, by
    normalisation scales and for a budget of computation; GAN Slimming (Wang et al. 2020) has a
    common threshold, too. The scores of different groups must be comparable, like `norm_scale`.

        pruning.threshold(
            pruning.norm_scale(variables, axes),
            lambda w: pruning.macs(dcgan.generator(16, [w["4x4"], w["8x8"]]), latents),
            target=1e6,
        )

    Args:
      scores: `{group: [C]}`.
      macs: the cost of `{group: width}`, nondecreasing in each width.
      target: the budget, in the same unit.

    Returns:
      `{group: [width]}`, ascending indices.

    Raises:
      ValueError: `scores` is empty or not finite, or one channel per group already exceeds the
        budget.
    """
    values = _check_scores(scores)
    if not values:
        raise ValueError("there are no scores to threshold")

    def select(cut: float) -> dict[str, np.ndarray]:
        return {
            group: np.flatnonzero((value >= cut) | (np.arange(value.size) == value.argmax()))
            for group, value in values.items()
        }

    def cost_at(cut: float) -> float:
        return macs({group: indices.size for group, indices in select(cut).items()})

    cuts = [*np.unique(np.concatenate(list(values.values()))), np.inf]
    index = bisect.bisect_left(cuts, True, key=lambda cut: cost_at(cut) <= target)
    if index == len(cuts):
        raise ValueError(
            f"even one channel of each group costs {cost_at(np.inf):g}, more than the target of "
            f"{target:g}"
        )
    return select(cuts[index])


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
                end = start + _length(part, sizes)
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


def _check_scores(scores: Scores) -> dict[str, np.ndarray]:
    values = {group: np.asarray(score, np.float64) for group, score in scores.items()}
    for group, value in values.items():
        if value.ndim != 1 or not value.size or not np.isfinite(value).all():
            raise ValueError(f"the scores of group {group!r} must be [C] and finite")
    return values


def _check_indices(group: str, indices: Any, sizes: Mapping[str, int]) -> np.ndarray:
    if group not in sizes:
        raise ValueError(f"there is no group {group!r}; the axes have {_quote(sizes)}")
    indices = np.asarray(indices)
    if indices.ndim != 1 or not indices.size or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"group {group!r} needs integer indices [width], at least one")
    size = sizes[group]
    if indices.min() < 0 or indices.max() >= size or np.unique(indices).size != indices.size:
        raise ValueError(f"group {group!r} needs distinct indices of its channels 0 to {size - 1}")
    return indices


def _positions(axis: Axis, selected: ChannelIndices, sizes: Mapping[str, int]) -> np.ndarray | None:
    """The positions of selected channels and of values without a group; None for all."""
    flat = parts(axis)
    if not any(part in selected for part in flat):
        return None
    start, positions = 0, []
    for part in flat:
        length = _length(part, sizes)
        offsets = (
            selected[part] if isinstance(part, str) and part in selected else np.arange(length)
        )
        positions.append(start + offsets)
        start += length
    return np.concatenate(positions)


def _length(part: int | str | None, sizes: Mapping[str, int]) -> int:
    return sizes[part] if isinstance(part, str) else int(part or 0)


def _quote(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
