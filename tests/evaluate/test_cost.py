"""Cost against hand counts."""

import jax
import numpy as np
import pytest

from kd_jax.evaluate import cost
from kd_jax.models import dcgan, mlp


def variables(network, *inputs):
    return network.init(jax.random.key(0), *inputs)


def test_mlp_by_hand():
    network, z = mlp.generator(28, 128), np.zeros((1, 100), np.float32)
    v = variables(network, z)
    products = 100 * 128 + 128 * 128 + 128 * 784
    assert cost.parameter_count(v) == products + 128 + 128 + 784
    found = cost.multiply_accumulates(network, v, z)
    assert products <= found <= 1.05 * products


def test_dcgan_by_hand():
    network, z = dcgan.generator(16, 64, channels=3), np.zeros((1, 64), np.float32)
    v = variables(network, z)

    # Dense, then two transposed convolutions from side n to 2n: of the 4n rows that the n windows
    # of 4 write, one at each end falls outside.
    def taps(n):
        return (4 * n - 2) ** 2

    products = 64 * 16 * 128 + taps(4) * 128 * 64 + taps(8) * 64 * 3
    assert products <= cost.multiply_accumulates(network, v, z) <= 1.05 * products


def test_latency_is_the_median(monkeypatch):
    # Three timed calls of 1, 5 and 2 seconds.
    clock = iter([0, 1, 10, 15, 20, 22])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))
    calls = []
    found = cost.latency(lambda: calls.append(1), runs=3, warmup=2)
    assert found.median == 2.0
    assert (found.lower, found.upper) == (1.5, 3.5)
    assert len(calls) == 5


def test_a_generators_latency_is_positive():
    network, z = mlp.generator(4, 8), np.zeros((2, 3), np.float32)
    found = cost.generator_latency(network, variables(network, z), z, runs=5)
    assert 0 < found.lower <= found.median <= found.upper
    assert found.runs == 5


@pytest.mark.parametrize("factor", [2, 3])
def test_the_count_grows_with_the_batch(factor):
    network, z = mlp.generator(28, 128), np.zeros((1, 100), np.float32)
    v = variables(network, z)
    one = cost.multiply_accumulates(network, v, z)
    assert cost.multiply_accumulates(network, v, np.repeat(z, factor, 0)) == pytest.approx(
        factor * one, rel=0.01
    )
