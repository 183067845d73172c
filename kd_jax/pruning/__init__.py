"""Initializes a smaller student from a trained teacher of the same architecture, by pruning.

Channels of each group are scored and selected, and every tensor is sliced to the selected ones:

    axes = dcgan.generator_axes(teacher_variables)
    scores = pruning.magnitude(teacher_variables, axes)
    like = jax.eval_shape(student.init, key, *inputs)
    variables = pruning.from_teacher(teacher_variables, axes, scores, like)

The functions work on arrays and on a description of the architecture (`kd_jax.core.axes`), so that
a new architecture only needs a description.
"""

from kd_jax.pruning.budget import macs, threshold, width_for
from kd_jax.pruning.scores import (
    Scores,
    content_saliency,
    direction_sensitivity,
    magnitude,
    norm_scale,
)
from kd_jax.pruning.selection import ChannelIndices, from_teacher, inherit, shrink, top_channels

__all__ = [
    "ChannelIndices",
    "Scores",
    "content_saliency",
    "direction_sensitivity",
    "from_teacher",
    "inherit",
    "macs",
    "magnitude",
    "norm_scale",
    "shrink",
    "threshold",
    "top_channels",
    "width_for",
]
