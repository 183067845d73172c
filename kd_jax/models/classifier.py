"""A small convolutional classifier, in whose features a distance is measured.

Images are `[B, H, W, C]`; the output is logits `[B, classes]`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.channels import Axes, Reads, Repeat, group_widths, tensors
from kd_jax.models.spectral import layer_axes
from kd_jax.network import Network, from_linen
from kd_jax.types import Array, Variables


def classifier(classes: int, width: int = 32, *, dtype: Any = jnp.float32) -> Network:
    """`images -> logits [B, classes]`; taps `half`, `quarter` and `features` `[B, 4 * width]`.

    Args:
      classes: the number of classes.
      width: channels of the first layer.
      dtype: what is computed in; parameters and logits are float32.

    Raises:
      ValueError: there are no classes, or no channels.
    """
    if classes < 1 or width < 1:
        raise ValueError(f"classes={classes} and width={width} must be at least 1")
    return from_linen(Classifier(classes, width, dtype))


def classifier_axes(variables: Variables) -> Axes:
    """Which axes of a classifier's variables hold which channels, for `kd_jax.students`.

    The groups are named like the taps; `half/hidden` and `quarter/hidden` lie before those.

    Args:
      variables: of any `classifier`, arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: they are not, or are a connected network's.
    """
    found = tensors(variables)
    axes = layer_axes(found, "Conv_0", None, "half/hidden")
    axes |= layer_axes(found, "Conv_1", "half/hidden", "half")
    axes |= layer_axes(found, "Conv_2", "half", "quarter/hidden")
    axes |= layer_axes(found, "Conv_3", "quarter/hidden", "quarter")
    axes |= layer_axes(found, "Dense_0", None, "features")
    axes |= layer_axes(found, "Dense_1", "features", None)
    flat, width = found["params/Dense_0/kernel"].shape[0], found["params/Conv_3/kernel"].shape[-1]
    # Which reads what is at each place, one place after another.
    axes["params/Dense_0/kernel"] = (Reads(Repeat("quarter", flat // width)), "features")
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
        taps["features"] = x = nn.relu(x).astype(jnp.float32)
        return nn.Dense(self.classes)(x), taps
