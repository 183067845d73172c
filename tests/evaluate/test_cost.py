"""Cost against hand counts."""

import jax
import numpy as np
import pytest

from kd_jax.evaluate import cost
from kd_jax.models import biggan, biggan_deep, dcgan, mlp, resnet, stylegan1, stylegan2, tinygan


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


@pytest.mark.parametrize(
    ("size", "width", "depth", "channels"), [(16, 12, 1, 3), (16, 8, 0, 1), (32, 16, 0, 3)]
)
def test_deeper_and_larger_dcgans_by_hand(size, width, depth, channels):
    network, z = dcgan.generator(size, width, depth=depth, channels=channels), np.zeros((1, 10))
    v = jax.eval_shape(lambda: variables(network, z.astype(np.float32)))
    widths = {16: [2 * width, width], 32: [4 * width, 2 * width, width]}[size]
    products, side = 10 * 16 * widths[0], 4
    for inputs, outputs in zip(widths, [*widths[1:], channels], strict=True):
        products += depth * (3 * side - 2) ** 2 * inputs**2  # 3x3, its corners outside
        products += (4 * side - 2) ** 2 * inputs * outputs
        side *= 2
    found = cost.multiply_accumulates(network, v, z.astype(np.float32))
    assert 0.99 * products <= found <= 1.1 * products


def test_parameters_are_counted_without_statistics():
    network = dcgan.generator(16, 8, depth=1, classes=3)
    v = jax.eval_shape(
        lambda: variables(network, np.zeros((1, 5), np.float32), np.zeros(1, np.int32))
    )
    label, dense, norms = 3 * 5, (5 + 5) * 16 * 16, 2 * (16 + 16 + 8 + 8)
    convolutions = 9 * (16 * 16 + 8 * 8) + 16 * (16 * 8 + 8 * 3) + 3
    assert v["batch_stats"]
    assert cost.parameter_count(v) == label + dense + norms + convolutions


def test_a_conditional_mlp_by_hand():
    network, inputs = (
        mlp.generator(4, 8, classes=3, depth=1),
        (np.zeros((1, 5), np.float32), np.zeros(1, np.int32)),
    )
    v = jax.eval_shape(lambda: variables(network, *inputs))
    assert cost.parameter_count(v) == (5 + 3 + 1) * 8 + (8 + 1) * 16


def test_calls_that_warm_up_are_not_timed(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    def call():
        calls.append(1)
        clock[0] += 100.0 if len(calls) <= 4 else 0.25
        return np.zeros(2)

    found = cost.latency(call, runs=6, warmup=4)
    assert found == cost.Latency(0.25, 0.25, 0.25, 6)
    assert len(calls) == 10


def test_the_result_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(cost.jax, "block_until_ready", waited.append)
    clock = iter([0.0, 1.0, 1.0, 3.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: [next(clock), waited.append("clock")][0])
    assert cost.latency(lambda: "result", runs=2, warmup=1).median == 1.5
    assert waited == ["result", *["clock", "result", "clock"] * 2]


def same(side):
    """Products of a 3x3 convolution of one channel that keeps the side: none with the padding."""
    return (3 * side - 2) ** 2


Z, LABEL = jax.ShapeDtypeStruct((1, 64), np.float32), jax.ShapeDtypeStruct((1,), np.int32)
STYLE = {"latent": 64, "style": 64, "channel_base": 1024, "channel_max": 64}
BIG = {"classes": 10, "shared": 16}
BLOCKS = sum(map(same, (8, 16, 32)))  # of a 32x32 BigGAN, each layer once
C = 64  # channels of the style networks; of the others 128 = 2 C
DENSE = (8 + 8) * C * C  # the mapping, and the styles of eight layers
TO_RGB = (4**2 + 8**2 + 16**2) * C * 3
IMAGE = same(32) * 128 * 3
SHORTCUTS = (4**2 + 8**2 + 16**2) * 128**2  # before they are upsampled
BY_HAND = {
    # Upsampling layers take nine products for each pixel of the small image. Five demodulations.
    "stylegan2": (
        stylegan2.generator(16, **STYLE),
        (Z,),
        (same(4) + same(8) + same(16) + 9 * (4**2 + 8**2) + 5) * C * C + DENSE + TO_RGB,
    ),
    # Nearest neighbours and a 3x3 kernel are a transposed convolution of 4x4.
    "stylegan1": (
        stylegan1.generator(16, **STYLE),
        (Z,),
        (same(4) + same(8) + same(16) + 14**2 + 30**2) * C * C
        + 8 * C * C + 6 * C * 2 * C + TO_RGB,
    ),
    "biggan": (
        biggan.generator(32, 32, hierarchical=False, **BIG),
        (Z, LABEL),
        2 * BLOCKS * 128**2 + SHORTCUTS + IMAGE + 64 * 2048 + 12 * 16 * 128,
    ),
    "resnet": (
        resnet.generator(32, 32),
        (Z,),
        2 * BLOCKS * 32**2 + (4**2 + 8**2 + 16**2) * 32**2 + same(32) * 32 * 3 + 64 * 512,
    ),
    # Two blocks a side, of which the second upsamples between its first two layers.
    "biggan_deep": (
        biggan_deep.generator(32, 64, **BIG),
        (Z, LABEL),
        2 * (4**2 + 8**2 + 16**2) * 256 * 64
        + 2 * (same(4) + 2 * same(8) + 2 * same(16) + same(32)) * 64**2
        + (4**2 + 2 * 8**2 + 2 * 16**2 + 32**2) * 64 * 256
        + same(32) * 256 * 3 + 80 * 4096 + 6 * 2 * 80 * (256 + 3 * 64),
    ),
    # Separable; each part of the latent goes with the class to one block's norms.
    "tinygan": (
        tinygan.generator(32, 32, **BIG),
        (Z, LABEL),
        2 * (8**2 + 16**2 + 32**2) * 128**2 + 2 * BLOCKS * 128 + SHORTCUTS + IMAGE
        + 16 * 2048 + 12 * 32 * 128,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_products_of_the_architectures_by_hand(name):
    """Element-wise operations are what is counted beyond them."""
    network, inputs, products = BY_HAND[name]
    abstract = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    found = cost.multiply_accumulates(network, abstract, *inputs)
    assert products <= found <= 1.05 * products


def test_peak_memory_holds_at_least_variables_and_images():
    network, z = mlp.generator(28, 128), np.zeros((16, 100), np.float32)
    v = variables(network, z)
    least = 4 * (cost.parameter_count(v) + z.size + 16 * 28 * 28)
    assert least <= cost.peak_memory(network, v, z) <= 1.5 * least
