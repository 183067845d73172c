"""Channels are selected, and every tensor is sliced to the selected ones."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.axes import (
    Axes,
    Axis,
    InputAxis,
    group_widths,
    part_length,
    parts,
    path_name,
    tensors,
)
from kd_jax.core.types import Array, Variables
from kd_jax.pruning.scores import Scores, check_scores

ChannelIndices = Mapping[str, np.ndarray]
"""For each group `[width]`: the distinct indices of the channels to keep."""


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
    values = check_scores(scores)
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

    # In one program, since each gather by itself would be compiled, too.
    small: Variables = jax.jit(partial(jax.tree_util.tree_map_with_path, take))(variables)
    return small


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
        length = part_length(part, sizes)
        offsets = (
            selected[part] if isinstance(part, str) and part in selected else np.arange(length)
        )
        positions.append(start + offsets)
        start += length
    return np.concatenate(positions)


def _quote(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
