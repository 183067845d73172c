"""Networks that are trained as if they were in int8."""

from collections.abc import Callable
from typing import Any

import jax

from kd_jax import ops
from kd_jax.core.network import Network


def rounded_convolutions(network: Network, *inputs: Any) -> int:
    """The number of convolutions that `quantised` rounds; nothing is computed.

    Args:
      network: the network.
      *inputs: its inputs, arrays or `ShapeDtypeStruct`s.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    with ops.rounded() as kernels:
        # A function of its own: JAX does not trace one again that it has traced before.
        jax.eval_shape(lambda variables, *x: network.apply(variables, *x), variables, *inputs)
    return len(kernels)


def quantised(network: Network) -> Network:
    """The network with convolutions as in 8 bits; its variables are those of the network.

    Kernels have a scale for each output, and the images that enter convolutions one for the batch;
    of transposed convolutions, only the kernels are rounded, as in int8 files. The gradient is that
    of the network without rounding at the same values (Jacob et al. 2018, arXiv:1712.05877).
    Other than in a file of `kd_jax.export`, the layer of the output is rounded too, products of
    matrices are not, and a range is that of the batch.

    Args:
      network: of any kind; convolutions that are not those of `kd_jax.ops` stay as they are.
    """

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            with ops.rounded():
                return function(*args, **options)

        return run

    synthesis = network.synthesis and within(network.synthesis)
    return network._replace(apply=within(network.apply), synthesis=synthesis)
