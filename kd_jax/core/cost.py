"""The cost of a network: parameters, multiply-accumulates, latency, memory."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax.core.network import Network
from kd_jax.core.types import Variables


class Latency(NamedTuple):
    """Seconds per call: the median and the quartiles over `runs` calls, after a warm-up."""

    median: float
    lower: float
    upper: float
    runs: int


class RunningCost(NamedTuple):
    """The cost of one forward pass.

    Attributes:
      latency: of the compiled program, with its variables on the device.
      memory: bytes of variables, inputs, images and temporaries, as the compiler reports for this
        platform.
    """

    latency: Latency
    memory: int


def parameter_count(variables: Variables) -> int:
    """The number of trainable parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))


def multiply_accumulates(
    network: Network, variables: Variables, *inputs: Any, **options: Any
) -> float:
    """Multiply-accumulates of one forward pass for these inputs: half of XLA's FLOP count.

    XLA includes element-wise operations, so for a small network the value is a few per cent above a
    hand count of its convolutions and matrix products.
    """
    traced = _forward(network, options).trace(variables, *inputs)
    # Lowered for an accelerator: on CPU some convolutions use fewer multiplications.
    lowered = traced.lower(lowering_platforms=("tpu",))
    analysis: Any = lowered.cost_analysis()
    return float(analysis["flops"]) / 2.0


def latency(call: Callable[[], Any], runs: int = 50, warmup: int = 5) -> Latency:
    """The time from calling `call` until its result is ready."""
    for _ in range(warmup):
        jax.block_until_ready(call())
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    lower, median, upper = np.percentile(seconds, (25, 50, 75))
    return Latency(float(median), float(lower), float(upper), runs)


def time_interleaved(
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of each step, by candidate, timed in turn.

    Noise of the machine affects all candidates equally.

    Args:
      candidates: the calls to time, by name.
      rounds: the number of timed rounds, after one warm-up round.
      steps: consecutive steps of each candidate in a round.
      clock: the clock, in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, step in candidates.items():
            for _ in range(steps):
                start = clock()
                step()
                if number:  # the first round is a warm-up
                    times[name].append(1e3 * (clock() - start))
    return times


def running_cost(
    network: Network, variables: Variables, *inputs: Any, runs: int = 50, **options: Any
) -> RunningCost:
    """Latency and memory of a generator for these inputs, compiled once for both.

    Further keyword options are passed to `network.apply`, here as in the other functions.
    """
    variables, inputs = jax.device_put((variables, inputs))
    compiled = _forward(network, options).lower(variables, *inputs).compile()
    sizes: Any = compiled.memory_analysis()
    return RunningCost(
        latency(lambda: compiled(variables, *inputs), runs),
        int(sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes),
    )


def generator_latency(
    network: Network, variables: Variables, *inputs: Any, runs: int = 50, **options: Any
) -> Latency:
    """The latency of `running_cost`."""
    return running_cost(network, variables, *inputs, runs=runs, **options).latency


def _forward(network: Network, options: dict[str, Any]) -> Any:
    return jax.jit(lambda v, *i: network.apply(v, *i, **options)[0])
