"""Rematerialisation of a network's blocks: less memory for another forward pass of each block.

Of a block, only the inputs are stored for the gradient; its activations are computed again (Chen et
al. 2016). Outputs, gradients and parameter paths are those without it. XLA's CPU compiler removes
the barriers between the two passes and merges them again (jax 0.10.2), so that a CPU saves nothing.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn


def remat(
    block: Callable[..., Any], enabled: bool, static: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """The block itself, or its rematerialised version.

    Args:
      block: a module's class, whose instances need an explicit `name` (an automatic one would
        differ), or a function of a module and arrays.
      enabled: whether to rematerialise.
      static: positions of the call's arguments that are not arrays, where the module is position 0.
    """
    return nn.remat(block, static_argnums=static) if enabled else block
