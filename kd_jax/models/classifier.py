"""A small convolutional classifier, in whose features a distance is measured.

Images are `[B, H, W, C]`; the output is logits `[B, classes]`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.network import Network, from_linen
from kd_jax.types import Array


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
