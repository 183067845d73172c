"""R3GAN's files, against the original layers implemented in float64 on `[B, C, H, W]`.

The files of `tests/test_parity.py` may lack labels, unequal numbers of blocks and other filters.
"""

import re

import jax
import numpy as np
import pytest
from pretrained.io.test_containers import torch_zip

from kd_jax import pretrained
from kd_jax.pretrained import r3gan, registry

RNG = np.random.default_rng(0)
TAPS = np.array([1.0, 3.0, 5.0, 2.0])
FILTER = np.outer(TAPS, TAPS) / TAPS.sum() ** 2


def normal(*shape, scale=1.0):
    return RNG.normal(0, scale, shape).astype(np.float32)


def conv(x, weight):
    """Zero-padded, in as many groups as the kernel's inputs imply."""
    _, inputs, side, _ = weight.shape
    groups, reach = x.shape[1] // inputs, side // 2
    x = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (2, 3))
    parts = np.split(windows, groups, axis=1), np.split(weight, groups, axis=0)
    return np.concatenate(
        [np.einsum("bihwkl,oikl->bohw", *part) for part in zip(*parts, strict=True)], axis=1
    )


def act(x, bias):
    x = x + bias[None, :, None, None]
    return np.where(x > 0, x, 0.2 * x)


def filtered(x, before, after):
    """The convolution with the filter, which flips it, of an image with added zeros."""
    x = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (4, 4), (2, 3))
    return np.einsum("bchwkl,kl->bchw", windows, FILTER[::-1, ::-1])


def up(x):
    batch, channels, height, width = x.shape
    spread = np.zeros((batch, channels, 2 * height, 2 * width))
    spread[:, :, ::2, ::2] = x
    return 4 * filtered(spread, 2, 1)


def down(x):
    return filtered(x, 1, 1)[:, :, ::2, ::2]


class Stages:
    """The blocks of each stage, `[width, groups, blocks]`, and their tensors."""

    def __init__(self, stages, first):
        self.tensors, self.stages, self.first = {}, stages, first
        for index, (width, groups, blocks) in enumerate(stages):
            for number in range(first, first + blocks):
                name = f"Model.MainLayers.{index}.Layers.{number}"
                shapes = [(3 * width, width, 1, 1), (3 * width, 3 * width // groups, 3, 3)]
                shapes += [(width, 3 * width, 1, 1)]
                for i, shape in enumerate(shapes, 1):
                    key = f"{name}.LinearLayer{i}.Layer.weight"
                    self.tensors[key] = normal(*shape, scale=1 / np.sqrt(np.prod(shape[1:])))
                for i in (1, 2):
                    self.tensors[f"{name}.NonLinearity{i}.Bias"] = normal(3 * width)

    def resample(self, name, before, after):
        """The tensors of a resampling layer, which exist also without a convolution."""
        self.tensors[f"{name}.Resampler.Kernel"] = FILTER.astype(np.float32)
        if before != after:
            self.tensors[f"{name}.LinearLayer.Layer.weight"] = normal(after, before, 1, 1)

    def transition(self, name, x, resampled):
        weight = self.tensors.get(f"{name}.LinearLayer.Layer.weight")
        if resampled is up:
            return up(x if weight is None else conv(x, weight))
        return down(x) if weight is None else conv(down(x), weight)

    def run(self, index, x):
        for number in range(self.first, self.first + self.stages[index][2]):
            name = f"Model.MainLayers.{index}.Layers.{number}"
            weights = [self.tensors[f"{name}.LinearLayer{i}.Layer.weight"] for i in (1, 2, 3)]
            biases = [self.tensors[f"{name}.NonLinearity{i}.Bias"] for i in (1, 2)]
            h = act(conv(x, weights[0]), biases[0])
            x = x + conv(act(conv(h, weights[1]), biases[1]), weights[2])
        return x


def generator(stages, latent, classes=0, embedding=0):
    net = Stages(stages, 1)
    width = stages[0][0]
    start = "Model.MainLayers.0.Layers.0"
    net.tensors[f"{start}.Basis"] = normal(width, 4, 4)
    net.tensors[f"{start}.LinearLayer.weight"] = normal(width, latent + embedding, scale=0.3)
    for index in range(1, len(stages)):
        name = f"Model.MainLayers.{index}.Layers.0"
        net.resample(name, stages[index - 1][0], stages[index][0])
    net.tensors["Model.AggregationLayer.Layer.weight"] = normal(3, stages[-1][0], 1, 1)
    if classes:
        net.tensors["Model.EmbeddingLayer.weight"] = normal(embedding, classes)

    def apply(z, c=None):
        if classes:
            z = np.concatenate([z, c @ net.tensors["Model.EmbeddingLayer.weight"].T], axis=1)
        weights = z @ net.tensors[f"{start}.LinearLayer.weight"].T
        x = net.run(0, net.tensors[f"{start}.Basis"][None] * weights[:, :, None, None])
        for index in range(1, len(stages)):
            name = f"Model.MainLayers.{index}.Layers.0"
            x = net.run(index, net.transition(name, x, up))
        return conv(x, net.tensors["Model.AggregationLayer.Layer.weight"])

    return net.tensors, apply


def discriminator(stages, classes=0, embedding=0):
    net = Stages(stages, 0)
    last = len(stages) - 1
    net.tensors["Model.ExtractionLayer.Layer.weight"] = normal(stages[0][0], 3, 1, 1)
    names = [f"Model.MainLayers.{i}.Layers.{stage[2]}" for i, stage in enumerate(stages)]
    for index in range(last):
        net.resample(names[index], stages[index][0], stages[index + 1][0])
    net.tensors[f"{names[last]}.Basis.weight"] = normal(stages[-1][0], 1, 4, 4, scale=0.3)
    net.tensors[f"{names[last]}.LinearLayer.weight"] = normal(embedding or 1, stages[-1][0])
    if classes:
        net.tensors["Model.EmbeddingLayer.weight"] = normal(embedding, classes)

    def apply(x, c=None):
        x = conv(x, net.tensors["Model.ExtractionLayer.Layer.weight"])
        for index in range(last):
            x = net.transition(names[index], net.run(index, x), down)
        x = (net.run(last, x) * net.tensors[f"{names[last]}.Basis.weight"][:, 0]).sum((2, 3))
        x = x @ net.tensors[f"{names[last]}.LinearLayer.weight"].T
        return (x * (c @ net.tensors["Model.EmbeddingLayer.weight"].T) if classes else x).sum(1)

    return net.tensors, apply


LABELS = np.eye(3)[[2, 0]]


@pytest.mark.parametrize("classes", [0, 3])
def test_generators(classes):
    stages = [(6, 3, 2), (4, 2, 1), (4, 1, 1)]
    tensors, original = generator(stages, 5, classes, 2 * (classes > 0))
    converted = r3gan.generator(tensors)
    config = {key: converted.config[key] for key in ("width", "groups", "blocks", "hidden")}
    assert list(zip(*config.values(), strict=True)) == [(*s, 3 * s[0]) for s in stages]
    assert (converted.config["classes"], converted.config["latent"]) == (classes, 5)
    z, labels = RNG.normal(size=(2, 5)), [LABELS] * (classes > 0)
    ours = jax.jit(converted.network.apply)(
        converted.variables, *(x.astype(np.float32) for x in (z, *labels))
    )[0]
    theirs = original(z, *labels).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("classes", [0, 3])
def test_discriminators(classes):
    stages = [(4, 1, 1), (4, 2, 2), (6, 3, 1)]
    tensors, original = discriminator(stages, classes, 2 * (classes > 0))
    converted = r3gan.discriminator(tensors)
    assert converted.config["blocks"] == [1, 2, 1]
    assert [x.shape for x in converted.inputs] == [(1, 16, 16, 3), (1,)][: 1 + (classes > 0)]
    x, labels = RNG.normal(size=(2, 3, 16, 16)), [LABELS] * (classes > 0)
    inputs = (x.transpose(0, 2, 3, 1), *labels)
    ours = jax.jit(converted.network.apply)(
        converted.variables, *(value.astype(np.float32) for value in inputs)
    )[0]
    theirs = original(x, *labels)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


SMALL = {
    "generator": generator([(4, 2, 1), (2, 1, 1)], 5)[0],
    "discriminator": discriminator([(2, 1, 1), (4, 2, 1)])[0],
}


@pytest.mark.parametrize("name", SMALL)
def test_files_are_recognised_by_their_tensors(name, tmp_path):
    path = tmp_path / "network.pt"
    path.write_bytes(torch_zip({"ema": SMALL[name]}))
    parts = pretrained.parts(path)
    assert {key: (part.kind, part.generates) for key, part in parts.items()} == {
        "ema": (f"R3GAN {name}", name == "generator")
    }
    fitting = [kind.name for kind in registry.KINDS if kind.fits(list(SMALL[name]))]
    assert fitting == [f"R3GAN {name}"]
    pretrained.load(path)


L = "Model.MainLayers."


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("generator", f"{L}0.Layers.1.LinearLayer2.Layer.weight", None, "LinearLayer2.Layer.weigh"),
        ("generator", f"{L}1.Layers.1.LinearLayer1.Layer.weight", None, "Layers.1.LinearLayer1.L"),
        ("generator", f"{L}0.Layers.1.LinearLayer2.Layer.weight", (12, 5, 3, 3), "has 5 inputs"),
        ("generator", "Model.Extra", (1,), "unknown tensors Model.Extra"),
        ("generator", f"{L}1.Layers.0.Resampler.Kernel", (4,), "Kernel has shape (4,), not 2 axes"),
        ("discriminator", f"{L}1.Layers.1.Basis.weight", None, "Basis.weight is missing"),
        ("discriminator", f"{L}1.Layers.0.NonLinearity2.Bias", (3,), "grouped/bias has shape (3,)"),
        ("discriminator", f"{L}1.Layers.1.LinearLayer.weight", (2, 4), "score/kernel has shape"),
    ],
)
def test_refusals(name, key, value, message):
    tensors = {k: v for k, v in SMALL[name].items() if k != key}
    if value is not None:
        tensors[key] = np.ones(value, np.float32)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        getattr(r3gan, name)(tensors)
    assert "\n" not in str(caught.value)
