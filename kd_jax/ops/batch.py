"""Operations across the examples of a batch."""

import jax.numpy as jnp

from kd_jax.core.checks import at_least_float32
from kd_jax.core.types import Array


def minibatch_stddev(x: Array, group: int = 4, channels: int = 1) -> Array:
    """The minibatch standard deviation (Karras et al. 2018, section 3).

    The standard deviation of each feature over a group, averaged over the positions and over each
    of `channels` sets of features, and repeated for every position and every example of the group.

    Args:
      x: features `[B, H, W, C]`.
      group: examples in a group (at most; the whole batch where that is smaller). The groups are
        strided: example i is in group i mod (B / group), as in StyleGAN2.
      channels: number of output channels; divides C.

    Returns:
      `[B, H, W, channels]`, of `x`'s dtype, not negative.

    Raises:
      ValueError: the group does not divide the batch, or `channels` the features.
    """
    batch, height, width, features = x.shape
    group = min(group, batch)
    if batch % group or features % channels:
        raise ValueError(
            f"minibatch_stddev of {x.shape}: the group of {group} must divide the batch, and "
            f"{channels} channels the features"
        )
    grouped = at_least_float32(x).reshape(
        group, batch // group, height, width, channels, features // channels
    )
    deviation = jnp.sqrt(grouped.var(axis=0) + 1e-8).mean(axis=(1, 2, 4))
    # Example i is at row i // (B / group), column i % (B / group) of the grouping.
    tiled = jnp.tile(deviation, (group, 1))[:, None, None, :]
    return jnp.broadcast_to(tiled, (batch, height, width, channels)).astype(x.dtype)
