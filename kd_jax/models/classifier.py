"""A small convolutional classifier, whose features define a distance.

Images are `[B, H, W, C]`; the output is logits `[B, classes]`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.core.axes import Axes, InputAxis, Repeat, group_widths, tensors
from kd_jax.core.checks import at_least_float32
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array, Variables
from kd_jax.models.layers.spectral import layer_axes


def classifier(classes: int, width: int = 32, *, dtype: Any = jnp.float32) -> Network:
    """`images -> logits [B, classes]`; taps `half`, `quarter` and `features` `[B, 4 * width]`.

    Args:
      classes: number of classes.
      width: channels of the first layer.
      dtype: the computation dtype; parameters and logits are float32.

    Raises:
      ValueError: `classes` or `width` is less than 1.
    """
    if classes < 1 or width < 1:
        raise ValueError(f"classes={classes} and width={width} must be at least 1")
    return from_linen(Classifier(classes, width, dtype))


def classifier_axes(variables: Variables) -> Axes:
    """The channel group of each axis of a classifier's variables, for `kd_jax.pruning`.

    The groups are named like the taps; `half/hidden` precedes `half`, `quarter/hidden` `quarter`.

    Args:
      variables: those of a `classifier`, as arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: the variables are not those of a `classifier`, or include connectors.
    """
    leaves = tensors(variables)
    axes = layer_axes(leaves, "Conv_0", None, "half/hidden")
    axes |= layer_axes(leaves, "Conv_1", "half/hidden", "half")
    axes |= layer_axes(leaves, "Conv_2", "half", "quarter/hidden")
    axes |= layer_axes(leaves, "Conv_3", "quarter/hidden", "quarter")
    axes |= layer_axes(leaves, "Dense_0", None, "features")
    axes |= layer_axes(leaves, "Dense_1", "features", None)
    flat, width = leaves["params/Dense_0/kernel"].shape[0], leaves["params/Conv_3/kernel"].shape[-1]
    # The kernel reads the flattened feature, position by position.
    axes["params/Dense_0/kernel"] = (InputAxis(Repeat("quarter", flat // width)), "features")
    group_widths(variables, axes)
    return axes


class Classifier(nn.Module):
    """See `classifier`."""

    classes: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> tuple[Array, dict[str, Array]]:
        del train
        x, taps = images, {}
        for name, features in (("half", self.width), ("quarter", 2 * self.width)):
            x = nn.relu(nn.Conv(features, (3, 3), dtype=self.dtype)(x))
            x = nn.relu(nn.Conv(features, (3, 3), (2, 2), dtype=self.dtype)(x))
            taps[name] = x
        x = nn.Dense(4 * self.width, dtype=self.dtype)(x.reshape(x.shape[0], -1))
        taps["features"] = x = at_least_float32(nn.relu(x))
        return nn.Dense(self.classes)(x), taps
