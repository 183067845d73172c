"""Cost against hand counts."""

import jax
import numpy as np
import pytest

from kd_jax.core import cost
from kd_jax.models import (
    biggan,
    biggan_deep,
    classifier,
    dcgan,
    inception,
    mlp,
    perceptual,
    resnet,
    stylegan1,
    stylegan2,
    stylegan3,
    tinygan,
)


def variables(network, *inputs):
    return network.init(jax.random.key(0), *inputs)


def test_mlp_by_hand():
    network, z = mlp.generator(28, 128), np.zeros((1, 100), np.float32)
    v = variables(network, z)
    products = 100 * 128 + 128 * 128 + 128 * 784
    assert cost.parameter_count(v) == products + 128 + 128 + 784
    count = cost.multiply_accumulates(network, v, z)
    assert products <= count <= 1.05 * products


def test_dcgan_by_hand():
    network, z = dcgan.generator(16, 64, channels=3), np.zeros((1, 64), np.float32)
    v = variables(network, z)

    # Dense, then two transposed convolutions from side n to 2n: n windows of 4 write 4n rows, with
    # one row at each end outside the output.
    def taps(n):
        return (4 * n - 2) ** 2

    products = 64 * 16 * 128 + taps(4) * 128 * 64 + taps(8) * 64 * 3
    assert products <= cost.multiply_accumulates(network, v, z) <= 1.05 * products


def test_latency_is_the_median(monkeypatch):
    # Three timed calls of 1, 5 and 2 seconds.
    clock = iter([0, 1, 10, 15, 20, 22])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))
    calls = []
    latency = cost.latency(lambda: calls.append(1), runs=3, warmup=2)
    assert latency.median == 2.0
    assert (latency.lower, latency.upper) == (1.5, 3.5)
    assert len(calls) == 5


def test_a_generators_latency_is_positive():
    network, z = mlp.generator(4, 8), np.zeros((2, 3), np.float32)
    latency = cost.generator_latency(network, variables(network, z), z, runs=5)
    assert 0 < latency.lower <= latency.median <= latency.upper
    assert latency.runs == 5


@pytest.mark.parametrize("factor", [2, 3])
def test_the_count_is_proportional_to_the_batch_size(factor):
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
        products += depth * (3 * side - 2) ** 2 * inputs**2  # 3x3, without the padding
        products += (4 * side - 2) ** 2 * inputs * outputs
        side *= 2
    count = cost.multiply_accumulates(network, v, z.astype(np.float32))
    assert 0.99 * products <= count <= 1.1 * products


def test_batch_statistics_are_not_parameters():
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


def test_warm_up_calls_are_not_timed(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    def call():
        calls.append(1)
        clock[0] += 100.0 if len(calls) <= 4 else 0.25
        return np.zeros(2)

    latency = cost.latency(call, runs=6, warmup=4)
    assert latency == cost.Latency(0.25, 0.25, 0.25, 6)
    assert len(calls) == 10


def test_latency_waits_for_the_result(monkeypatch):
    events = []
    monkeypatch.setattr(cost.jax, "block_until_ready", events.append)
    clock = iter([0.0, 1.0, 1.0, 3.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: [next(clock), events.append("clock")][0])
    assert cost.latency(lambda: "result", runs=2, warmup=1).median == 1.5
    assert events == ["result", *["clock", "result", "clock"] * 2]


def line(side, window):
    """Products of a window along one axis of a convolution that preserves the side."""
    return window * side - (window**2 - 1) // 4  # products with the padding are not counted


def same(side, window=3):
    """Products along both axes, for one channel."""
    return line(side, window) ** 2


def stylegan3_products(channels, window, filters):
    """Products of four layers (sides 16, 16, 32 with margins of 10, then 32) and the image.

    The whole window reads every pixel. Features are activated at twice the sampling rate, for as
    many samples as the downsampling filter needs; in upsampling 6 taps meet samples and the others
    zeros, along one axis, then along the other. `filters` are the downsampling filters by layer.
    """
    products = 2 * 64**2 + 64 * 4 + 36**2 * channels**2  # the mapping, the waves' pose and mixture
    before = 36
    for side, filtered in zip((36, 36, 52, 32), filters, strict=True):
        products += 64 * channels + (window**2 * before**2 + 1) * channels**2  # 1 to demodulate
        low, high = before + window - 1, 2 * (side - 1) + 12
        products += (6 * low * high + 6 * high**2 + filtered(side, high)) * channels
        before = side
    return products + 64 * channels + 32**2 * channels * 3


def separable(side, high):
    """12 taps along one axis, then along the other."""
    return 12 * side * high + 12 * side**2


def radial(side, high):
    """12x12 taps."""
    del high
    return 144 * side**2


def inception_products(classes):
    """The paper's table 1, for 299x299; the pools' means are taken after their products."""
    products = 149**2 * 9 * 3 * 32 + 147**2 * 9 * 32 * 32 + same(147) * 32 * 64
    products += 73**2 * 64 * 80 + 71**2 * 9 * 80 * 192
    for channels, pooled in ((192, 32), (256, 64), (288, 64)):
        products += 35**2 * channels * (64 + 48 + 64 + pooled)
        products += same(35, 5) * 48 * 64 + same(35) * (64 + 96) * 96
    products += 17**2 * 9 * (288 * 384 + 96 * 96) + 35**2 * 288 * 64 + same(35) * 64 * 96
    seven = 17 * line(17, 7)
    for width in (128, 160, 160, 192):
        products += 17**2 * 768 * 2 * (192 + width) + seven * width * (4 * width + 2 * 192)
    products += 17**2 * 768 * 2 * 192 + seven * 2 * 192**2 + 8**2 * 9 * 192 * (320 + 192)
    for channels in (1280, 2048):
        products += 8**2 * channels * (320 + 384 + 448 + 192)
        products += same(8) * 448 * 384 + 4 * 8 * line(8, 3) * 384**2
    return products + 2048 * classes


def images(side, channels=3):
    return (jax.ShapeDtypeStruct((1, side, side, channels), np.float32),)


Z, LABEL = jax.ShapeDtypeStruct((1, 64), np.float32), jax.ShapeDtypeStruct((1,), np.int32)
STYLE = {"latent": 64, "style": 64, "channel_base": 1024, "channel_max": 64}
STYLE3 = {"latent": 64, "style": 64, "widths": [128] * 4, "num_layers": 4, "num_critical": 1}
BIG = {"classes": 10, "shared": 16}
FIRES = ((15, 64, 16, 64), (15, 128, 16, 64), (7, 128, 32, 128), (7, 256, 32, 128),
         (3, 256, 48, 192), (3, 384, 48, 192), (3, 384, 64, 256), (3, 512, 64, 256))  # fmt: skip
BLOCKS = sum(map(same, (8, 16, 32)))  # of a 32x32 BigGAN, each layer once
C = 64  # channels of the style networks; the others have 128 = 2 C
DENSE = (8 + 8) * C * C  # the mapping, and the styles of eight layers
TO_RGB = (4**2 + 8**2 + 16**2) * C * 3
IMAGE = same(32) * 128 * 3
SHORTCUTS = (4**2 + 8**2 + 16**2) * 128**2  # before they are upsampled
BY_HAND = {
    # Upsampling layers need nine products per pixel of the smaller image. Five demodulations.
    "stylegan2": (
        stylegan2.generator(16, **STYLE),
        (Z,),
        (same(4) + same(8) + same(16) + 9 * (4**2 + 8**2) + 5) * C * C + DENSE + TO_RGB,
    ),
    # Nearest-neighbour upsampling and a 3x3 kernel equal a transposed 4x4 convolution.
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
    # Two blocks per side; the second upsamples between its first two layers.
    "biggan_deep": (
        biggan_deep.generator(32, 64, **BIG),
        (Z, LABEL),
        2 * (4**2 + 8**2 + 16**2) * 256 * 64
        + 2 * (same(4) + 2 * same(8) + 2 * same(16) + same(32)) * 64**2
        + (4**2 + 2 * 8**2 + 2 * 16**2 + 32**2) * 64 * 256
        + same(32) * 256 * 3 + 80 * 4096 + 6 * 2 * 80 * (256 + 3 * 64),
    ),
    # Separable; each part of the latent is an input of one block's norms, with the class.
    "tinygan": (
        tinygan.generator(32, 32, **BIG),
        (Z, LABEL),
        2 * (8**2 + 16**2 + 32**2) * 128**2 + 2 * BLOCKS * 128 + SHORTCUTS + IMAGE
        + 16 * 2048 + 12 * 32 * 128,
    ),
    # Filters are included: 6% of the products of T, and half of those of R.
    "stylegan3 T": (
        stylegan3.generator(32, **STYLE3),
        (Z,),
        stylegan3_products(128, 3, [separable] * 4),
    ),
    "stylegan3 R": (
        stylegan3.generator(32, conv_kernel=1, use_radial_filters=True, **STYLE3),
        (Z,),
        stylegan3_products(128, 1, [radial] * 3 + [separable]),
    ),
    # The last windows of 3 with stride 2 include one pixel of padding.
    "classifier": (
        classifier.classifier(10, 32),
        images(16, 1),
        same(16) * 32 + 23**2 * 32**2 + same(8) * 32 * 64 + 11**2 * 64**2
        + 16 * 64 * 128 + 128 * 10,
    ),
    "inception": (inception.fid(), images(299), inception_products(1008)),
    "inception of torchvision": (inception.torchvision(), images(299), inception_products(1000)),
    "vgg16": (
        perceptual.vgg16(),
        images(32),
        same(32) * (3 + 64) * 64 + same(16) * (64 + 128) * 128 + same(8) * (128 + 512) * 256
        + same(4) * (256 + 1024) * 512 + same(2) * 3 * 512**2,
    ),
    # The first windows of 11 pixels include two pixels of padding, the last ones one.
    "alexnet": (
        perceptual.alexnet(),
        images(64),
        (15 * 11 - 3) ** 2 * 3 * 64 + same(7, 5) * 64 * 192
        + same(3) * (192 * 384 + 384 * 256 + 256 * 256),
    ),
    "squeezenet": (
        perceptual.squeezenet(),
        images(64),
        31**2 * 9 * 3 * 64
        + sum(n**2 * (c * s + s * e) + same(n) * s * e for n, c, s, e in FIRES),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_products_of_the_architectures_by_hand(name):
    """The count is larger only by element-wise operations."""
    network, inputs, products = BY_HAND[name]
    abstract = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    count = cost.multiply_accumulates(network, abstract, *inputs)
    assert products <= count <= 1.05 * products


def test_memory_holds_at_least_variables_and_images():
    network, z = mlp.generator(28, 128), np.zeros((16, 100), np.float32)
    v = variables(network, z)
    minimum = 4 * (cost.parameter_count(v) + z.size + 16 * 28 * 28)
    assert minimum <= cost.running_cost(network, v, z, runs=1).memory <= 1.5 * minimum


def test_latency_and_memory_share_a_compilation():
    network, z, traced = mlp.generator(4, 8), np.zeros((2, 3), np.float32), []

    def apply(*args, **options):
        traced.append(args)
        return network.apply(*args, **options)

    costs = cost.running_cost(network._replace(apply=apply), variables(network, z), z, runs=3)
    assert costs.latency.runs == 3
    assert len(traced) == 1
