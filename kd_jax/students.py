"""From a large trained teacher to the variables of a smaller student of the same architecture.

Score the channels of each group, choose some, and take their slices of every tensor:

    axes = dcgan.generator_axes(teacher_variables)
    scores = students.magnitude(teacher_variables, axes)
    like = jax.eval_shape(student.init, key, *inputs)
    variables = students.from_teacher(teacher_variables, axes, scores, like)

All of it works on arrays and on a description of the architecture (`kd_jax.channels`), so that a
new architecture needs a description only.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import checks
from kd_jax.channels import Axes, Axis, Reads, Scales, group_widths, parts, path_name, tensors
from kd_jax.evaluate import cost
from kd_jax.network import Network
from kd_jax.types import Array, Variables

Scores = Mapping[str, Array]
"""For each group `[C]`: the importance of its channels, not negative; more is better."""

Kept = Mapping[str, np.ndarray]
"""For each group the indices of the channels that stay, `[width]`, each once."""


def magnitude(variables: Variables, axes: Axes) -> dict[str, Array]:
    """The summed |weight| of the kernels that read a channel, in every place that they read it.

    Li et al. 2020 (GAN Compression) choose channels so: by the kernels' input axis. The weights
    that produce a channel say nothing about it where a normalisation follows them.

    Returns:
      `{group: [C]}`, at least 0.

    Raises:
      ValueError: `axes` does not fit `variables`, or no tensor reads a group.
    """
    sizes = group_widths(variables, axes)
    totals = _totals(_read(variables, axes), axes, sizes, Reads)
    for group in sizes:
        if group not in totals:
            raise ValueError(f"no tensor reads group {group!r}, so its channels have no magnitude")
    return totals


def norm_scale(variables: Variables, axes: Axes) -> dict[str, Array]:
    """|gamma| of the normalisation layers over a channel, summed where layers share the group.

    Liu et al. 2017 (Network Slimming) and Jin et al. 2021 (CAT). It means something where a
    penalty has driven gammas to zero, or training has left them different.

    Returns:
      `{group: [C]}`, at least 0.

    Raises:
      ValueError: `axes` does not fit `variables`, or a group has no normalisation layer.
    """
    sizes = group_widths(variables, axes)
    found = tensors(variables)
    scales = {path: found[path] for path in axes if _has(axes[path], Scales)}
    totals = _totals(scales, axes, sizes, Scales)
    for group in sizes:
        if group not in totals:
            raise ValueError(f"group {group!r} has no normalisation layer; score it otherwise")
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
    """How much a channel's readers matter to the content of the images.

    In each image a few pixels of the content are replaced by black or white, all channels alike,
    and held fixed; the score is `sum |d/dw sum |G(z) - noisy||` over the weights that read the
    channel, averaged over the examples. Liu et al. 2021 (CAGC), whose gradients go through the
    image only; the noise is salt and pepper as in the authors' program, and so is its density.

    Args:
      network: a generator of images in [-1, 1], applied without `train`.
      variables: the teacher's.
      axes: their description.
      inputs: the generator's, each `[B, ...]`.
      mask: `[B, H, W, 1]` in [0, 1], 1 where the content is; or a function that finds it in the
        images `[B, H, W, C]`. Between, it is a share of the density.
      key: for the noise, and for a network that draws some of its own.
      density: the share of the content's pixels that are replaced, in (0, 1].

    Returns:
      `{group: [C]}`, at least 0.

    Raises:
      ValueError: `axes` does not fit `variables`, the mask the images, or the inputs each other; or
        no tensor reads a group.
    """
    count = _examples(inputs)
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
    chosen_key, salt_key = jax.random.split(noise_key)
    chosen = jax.random.uniform(chosen_key, mask.shape) < density * mask
    salt = jnp.where(jax.random.bernoulli(salt_key, shape=mask.shape), 1.0, -1.0)

    def loss(variables: Variables, example: Any) -> Array:
        inputs, key, chosen, salt = example
        clean = image(variables, inputs, key)
        # From this very image: computed twice, it may differ in the last bit, and its sign count.
        noisy = jnp.where(chosen[None], salt[None], jax.lax.stop_gradient(clean))
        return checks.magnitude(clean - noisy).sum()

    examples = (tuple(inputs), keys, chosen, salt)
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
    """How much a channel's readers matter to what changes between images.

    `sum |d/dw mean |G(z) - G(z + strength * direction)||` over the weights that read the channel,
    each direction and example on its own; summed over the directions and averaged over the
    examples. After Chung et al. 2024 (DCP-GAN); their program ranks by the squared deviation of
    this sum from its mean over the directions instead.

    Args:
      network: a generator, applied without `train`.
      variables: the teacher's.
      axes: their description.
      inputs: the generator's, each `[B, ...]`; the first are the latents `[B, latent]`.
      directions: `[K, latent]`, unit vectors (`kd_jax.latent.directions`).
      strength: how far to go along them. 5 is the authors' value, in StyleGAN2's w space.
      key: for a network that draws noise: the same for both images of a pair.

    Returns:
      `{group: [C]}`, at least 0.

    Raises:
      ValueError: `axes` does not fit `variables`, the directions the latents, or the inputs each
        other; or no tensor reads a group.
    """
    count = _examples(inputs)
    latents = inputs[0]
    if latents.ndim != 2 or directions.ndim != 2 or directions.shape[1] != latents.shape[1]:
        raise ValueError(
            f"directions {directions.shape} and latents {latents.shape} must be [K, latent] and "
            "[B, latent]"
        )
    many = directions.shape[0]
    example, direction = jnp.divmod(jnp.arange(count * many), many)
    keys = None if key is None else jax.random.split(key, count)[example]

    def loss(variables: Variables, example: Any) -> Array:
        (latent, *rest), direction, key = example

        def image(latent: Array) -> Array:
            return network.apply(variables, latent[None], *(x[None] for x in rest), rngs=key)[0]

        return checks.magnitude(image(latent) - image(latent + strength * direction)).mean()

    examples = (tuple(x[example] for x in map(jnp.asarray, inputs)), directions[direction], keys)
    return _saliency(variables, axes, loss, examples, count)


def top_channels(scores: Scores, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The channels with the highest scores; of equal ones the first.

    Args:
      scores: `{group: [C]}`.
      widths: how many to choose of which groups.

    Returns:
      `{group: [width]}`, ascending indices, for the groups in `widths`.

    Raises:
      ValueError: a group has no scores, or one that is not finite; or a width is less than 1 or
        more than there are channels.
    """
    values = _finite(scores)
    kept = {}
    for group, width in widths.items():
        if group not in values:
            raise ValueError(f"group {group!r} has no scores; there are {_listed(values)}")
        if not 1 <= width <= values[group].size:
            raise ValueError(
                f"group {group!r} cannot have {width} of its {values[group].size} channels"
            )
        kept[group] = np.sort(np.argsort(-values[group], kind="stable")[:width])
    return kept


def shrink(variables: Variables, axes: Axes, kept: Kept) -> Variables:
    """The variables with only the kept channels, in the order given, in every tensor they touch.

    Values are not changed, but for those of equalized layers (`Reads`); keeping all is the
    identity. The arrays are new ones, so that donating the student's does not delete the teacher's.

    Args:
      variables: the teacher's.
      axes: their description.
      kept: `{group: [width]}`, indices without repetition (`top_channels`); a group that is missing
        is kept whole.

    Raises:
      ValueError: `axes` does not fit `variables`, a group is unknown, or its indices are none,
        repeated, no integers or out of range.
    """
    sizes = group_widths(variables, axes)
    chosen = {group: _indices(group, kept[group], sizes) for group in kept}

    def take(path: Any, leaf: Any) -> Array:
        leaf = jnp.copy(leaf)
        for index, axis in enumerate(axes[path_name(path)]):
            places = _places(axis, chosen, sizes)
            if places is not None:
                before = leaf.shape[index]
                leaf = jnp.take(leaf, places, axis=index)
                if isinstance(axis, Reads) and axis.equalized:
                    leaf = leaf * math.sqrt(len(places) / before)
        return leaf

    return jax.tree_util.tree_map_with_path(take, variables)


def from_teacher(
    teacher_variables: Variables, axes: Axes, scores: Scores, like: Variables
) -> Variables:
    """The teacher's best channels, as many of each group as a student has.

    Args:
      teacher_variables: what to choose from.
      axes: their description.
      scores: `{group: [C]}`; a group in which the student is as wide as the teacher needs none.
      like: the student's variables or their shapes, `jax.eval_shape(student.init, key, *inputs)`.

    Returns:
      Variables of `like`'s structure and shapes.

    Raises:
      ValueError: `axes` does not fit the variables of both, the student is wider than the teacher,
        a group lacks scores, or a tensor differs in a length that belongs to no group.
    """
    sizes = group_widths(teacher_variables, axes)
    targets = group_widths(like, axes)
    narrower = {group: width for group, width in targets.items() if width != sizes[group]}
    small = shrink(teacher_variables, axes, top_channels(scores, narrower))
    wanted = tensors(like)
    for path, leaf in tensors(small).items():
        if leaf.shape != wanted[path].shape:
            raise ValueError(
                f"{path} has shape {leaf.shape} from the teacher, but {wanted[path].shape} in the "
                "student, and no choice of channels changes that"
            )
    return small


def inherit(
    student_variables: Variables,
    teacher_variables: Variables,
    names: Sequence[str] | None = None,
) -> Variables:
    """The student's variables with some parts replaced by the teacher's, whole.

    For what both have in the same size: a mapping network, a label embedding, a discriminator.

    Args:
      student_variables: where to.
      teacher_variables: where from; copied.
      names: submodules, or paths below them (`"label"`, `"mapping/Dense_0"`), in every collection
        that has them; everything if None.

    Raises:
      ValueError: a name is in neither or one of them only, or a tensor is missing or has another
        shape.
    """
    student, teacher = tensors(student_variables), tensors(teacher_variables)

    def below(path: str, name: str) -> bool:
        inside = path.partition("/")[2]
        return inside == name or inside.startswith(f"{name}/")

    chosen = set(student | teacher) if names is None else set()
    for name in names or ():
        for owner, found in (("student", student), ("teacher", teacher)):
            matching = {path for path in found if below(path, name)}
            if not matching:
                parts = dict.fromkeys(path.split("/")[1] for path in found)
                raise ValueError(f"the {owner} has no part {name!r}; it has {_listed(parts)}")
            chosen |= matching
    for path in sorted(chosen):
        for owner, found in (("student", student), ("teacher", teacher)):
            if path not in found:
                raise ValueError(f"{path} cannot be inherited: the {owner} has no such tensor")
        if student[path].shape != teacher[path].shape:
            raise ValueError(
                f"{path} cannot be inherited: it has shape {teacher[path].shape} in the teacher "
                f"and {student[path].shape} in the student"
            )

    def pick(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        return jnp.copy(teacher[name]) if name in chosen else leaf

    return jax.tree_util.tree_map_with_path(pick, student_variables)


def macs(network: Network, *inputs: Any) -> float:
    """Multiply-accumulates of one call (`kd_jax.evaluate.cost.multiply_accumulates`).

    Args:
      network: any.
      *inputs: its inputs, arrays or `ShapeDtypeStruct`s. Nothing is computed or allocated.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return cost.multiply_accumulates(network, variables, *inputs)


def width_for(macs: Callable[[int], float], target: float, most: int = 4096) -> int:
    """The largest width whose cost does not exceed `target`.

        students.width_for(lambda w: students.macs(dcgan.generator(64, w), latents), 1e9)

    Args:
      macs: the cost of a width, which must not fall as the width grows.
      target: in the same unit.
      most: where to stop.

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
    """The channels above one threshold for all groups, the lowest that is cheap enough.

    Each group keeps its best channel whatever its score. Jin et al. 2021 (CAT) prune so, by the
    scales of the norms, for a budget of computation; GAN Slimming (Wang et al. 2020) has one
    threshold too. The scores of different groups have to be comparable, as `norm_scale` is.

        students.threshold(
            students.norm_scale(variables, axes),
            lambda w: students.macs(dcgan.generator(16, [w["4x4"], w["8x8"]]), latents),
            target=1e6,
        )

    Args:
      scores: `{group: [C]}`.
      macs: the cost of `{group: width}`, which must not fall as a width grows.
      target: in the same unit.

    Returns:
      `{group: [width]}`, ascending indices.

    Raises:
      ValueError: there are no scores or one is not finite, or even one channel of each group costs
        more.
    """
    values = _finite(scores)
    if not values:
        raise ValueError("there are no scores to find a threshold for")

    def chosen(cut: float) -> dict[str, np.ndarray]:
        return {
            group: np.flatnonzero((value >= cut) | (np.arange(value.size) == value.argmax()))
            for group, value in values.items()
        }

    def price(cut: float) -> float:
        return macs({group: kept.size for group, kept in chosen(cut).items()})

    cuts = [*np.unique(np.concatenate(list(values.values()))), np.inf]
    index = bisect.bisect_left(cuts, True, key=lambda cut: price(cut) <= target)
    if index == len(cuts):
        raise ValueError(
            f"even one channel of each group costs {price(np.inf):g}, more than the target of "
            f"{target:g}"
        )
    return chosen(cuts[index])


def _has(entry: tuple[Axis, ...], role: type) -> bool:
    return any(isinstance(axis, role) for axis in entry)


def _read(variables: Variables, axes: Axes) -> dict[str, Any]:
    """The tensors that read channels, by path."""
    found = tensors(variables)
    return {path: found[path] for path in axes if _has(axes[path], Reads)}


def _totals(
    found: Mapping[str, Any], axes: Axes, sizes: Mapping[str, int], role: type
) -> dict[str, Array]:
    """`|tensor|`, summed for each channel over the places that the axes of this role give it."""
    totals: dict[str, Array] = {}
    for path, leaf in found.items():
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
    kernels = _read(variables, axes)

    def of_kernels(kernels: Mapping[str, Any], example: Any) -> Array:
        def pick(path: Any, leaf: Any) -> Any:
            return kernels.get(path_name(path), leaf)

        return loss(jax.tree_util.tree_map_with_path(pick, variables), example)

    def add(sums: dict[str, Array], example: Any) -> tuple[dict[str, Array], None]:
        gradients = jax.grad(of_kernels)(kernels, example)
        return jax.tree.map(jnp.add, sums, _totals(gradients, axes, sizes, Reads)), None

    # One example after another: all their gradients at once would be as many copies of the kernels.
    start = jax.tree.map(jnp.zeros_like, magnitude(variables, axes))
    sums, _ = jax.lax.scan(add, start, examples)
    return {group: sums[group] / count for group in sizes}


def _examples(inputs: Sequence[Array]) -> int:
    shapes = [jnp.shape(x) for x in inputs]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"the inputs must all be [B, ...] for one B, not {shapes}")
    return shapes[0][0]


def _finite(scores: Scores) -> dict[str, np.ndarray]:
    values = {group: np.asarray(score, np.float64) for group, score in scores.items()}
    for group, value in values.items():
        if value.ndim != 1 or not value.size or not np.isfinite(value).all():
            raise ValueError(f"the scores of group {group!r} must be [C] and finite")
    return values


def _indices(group: str, indices: Any, sizes: Mapping[str, int]) -> np.ndarray:
    if group not in sizes:
        raise ValueError(f"there is no group {group!r}; the axes have {_listed(sizes)}")
    indices = np.asarray(indices)
    if indices.ndim != 1 or not indices.size or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"group {group!r} keeps integer indices [width], at least one")
    size = sizes[group]
    if indices.min() < 0 or indices.max() >= size or np.unique(indices).size != indices.size:
        raise ValueError(f"group {group!r} keeps each of its channels 0 to {size - 1} at most once")
    return indices


def _places(axis: Axis, kept: Kept, sizes: Mapping[str, int]) -> np.ndarray | None:
    """Where along an axis the kept channels lie, and what belongs to no group; None for all."""
    flat = parts(axis)
    if not any(part in kept for part in flat):
        return None
    start, places = 0, []
    for part in flat:
        length = _length(part, sizes)
        stays = kept[part] if isinstance(part, str) and part in kept else np.arange(length)
        places.append(start + stays)
        start += length
    return np.concatenate(places)


def _length(part: int | str | None, sizes: Mapping[str, int]) -> int:
    return sizes[part] if isinstance(part, str) else int(part or 0)


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
