"""Pix2pix's and CycleGAN's files, against the original layers implemented in float64.

The classes below are those layers as PyTorch numbers and computes them, on `[B, C, H, W]`. Networks
of them have the original tensor names in every configuration.
"""

import re

import jax
import numpy as np
import pytest
from pretrained.io.test_containers import torch_zip

from kd_jax import pretrained
from kd_jax.models.translation import Instance
from kd_jax.pretrained import registry, translation

RNG = np.random.default_rng(0)
NORMS = ("batch", "instance", "instance affine", "instance tracked", "none")
AFFINE, STATISTICS = ("weight", "bias"), ("running_mean", "running_var")


class Conv:
    def __init__(self, inputs, outputs, side, stride=1, pad=0, bias=True):
        scale = np.sqrt(2 / (inputs * side**2))
        self.stride, self.pad = stride, pad
        self.tensors = {"weight": RNG.normal(0, scale, (outputs, inputs, side, side))}
        if bias:
            self.tensors["bias"] = RNG.normal(0, 0.1, outputs)

    def __call__(self, x):
        weight, s, p = self.tensors["weight"], self.stride, self.pad
        x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
        y = np.einsum("bihwkl,oikl->bohw", windows[:, :, ::s, ::s], weight, optimize=True)
        return y + self.tensors.get("bias", np.zeros(len(weight)))[None, :, None, None]


class ConvTranspose:
    """Doubles the resolution; each pixel is scattered over the kernel."""

    def __init__(self, inputs, outputs, side, bias=True):
        scale = np.sqrt(8 / (inputs * side**2))
        self.tensors = {"weight": RNG.normal(0, scale, (inputs, outputs, side, side))}
        if bias:
            self.tensors["bias"] = RNG.normal(0, 0.1, outputs)

    def __call__(self, x):
        weight = self.tensors["weight"]
        batch, _, height, width = x.shape
        y = np.zeros((batch, weight.shape[1], 2 * height + 2, 2 * width + 2))
        for i, j in np.ndindex(weight.shape[2:]):
            spread = np.einsum("bihw,io->bohw", x, weight[:, :, i, j])
            y[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2] += spread
        y = y[:, :, 1 : 2 * height + 1, 1 : 2 * width + 1]
        return y + self.tensors.get("bias", np.zeros(weight.shape[1]))[None, :, None, None]


class Norm:
    def __init__(self, kind, width):
        self.kind, self.tensors = kind, {}
        names = {"batch": AFFINE + STATISTICS, "instance affine": AFFINE}
        names["instance tracked"] = names["batch"]
        self.tensors = {name: RNG.normal(size=width) for name in names.get(kind, ())}
        if "running_var" in self.tensors:
            self.tensors["running_var"] = RNG.uniform(0.5, 2, width)
            self.tensors["num_batches_tracked"] = np.array(7)

    def __call__(self, x):
        if self.kind == "none":
            return x
        mean, var = x.mean(axis=(2, 3), keepdims=True), x.var(axis=(2, 3), keepdims=True)
        values = {"running_mean": mean, "running_var": var, "weight": 1.0, "bias": 0.0}
        for name in values.keys() & self.tensors.keys():
            values[name] = self.tensors[name][None, :, None, None]
        mean, var, scale, bias = values.values()
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


class Plain:
    """A layer without tensors."""

    def __init__(self, function):
        self.tensors, self.function = {}, function

    def __call__(self, x):
        return self.function(x)


class Sequential:
    def __init__(self, layers, name="", around=lambda x, y: y):
        self.layers, self.around = layers, around
        self.tensors = {
            f"{name}{i}.{key}": value
            for i, layer in enumerate(layers)
            for key, value in layer.tensors.items()
        }

    def __call__(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return self.around(x, y)


RELU = Plain(lambda x: np.maximum(x, 0))
LEAKY = Plain(lambda x: np.where(x > 0, x, 0.2 * x))
TANH, DROPOUT = Plain(np.tanh), Plain(lambda x: x)


def pad(reach, mode):
    return Plain(lambda x: np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode))


def resnet(width, blocks, norm, padding="reflect", dropout=False, inputs=3, outputs=3):
    bias = norm.startswith("instance")

    def half():
        around = {"reflect": [pad(1, "reflect")], "replicate": [pad(1, "edge")], "zero": []}
        conv = Conv(4 * width, 4 * width, 3, pad=1 if padding == "zero" else 0, bias=bias)
        return [*around[padding], conv, Norm(norm, 4 * width)]

    layers = [pad(3, "reflect"), Conv(inputs, width, 7, bias=bias), Norm(norm, width), RELU]
    for n in (width, 2 * width):
        layers += [Conv(n, 2 * n, 3, 2, 1, bias), Norm(norm, 2 * n), RELU]
    for _ in range(blocks):
        inner = [*half(), RELU, *([DROPOUT] if dropout else []), *half()]
        layers.append(Sequential(inner, "conv_block.", lambda x, y: x + y))
    for n in (4 * width, 2 * width):
        layers += [ConvTranspose(n, n // 2, 3, bias), Norm(norm, n // 2), RELU]
    return Sequential([*layers, pad(3, "reflect"), Conv(width, outputs, 7), TANH], "model.")


def unet(width, downs, norm, inputs=3, outputs=3):
    bias = norm.startswith("instance")
    widths = [width * min(2**i, 8) for i in range(downs)]

    def level(index):
        before, after = widths[index - 1 : index + 1] if index else (inputs, widths[0])
        conv = Conv(before, after, 4, 2, 1, bias)
        if index == 0:
            up = ConvTranspose(2 * after, outputs, 4)
            return Sequential([conv, level(1), RELU, up, TANH], "model.")
        skip = {"name": "model.", "around": lambda x, y: np.concatenate([x, y], axis=1)}
        if index == downs - 1:
            up = [ConvTranspose(after, before, 4, bias), Norm(norm, before)]
            return Sequential([LEAKY, conv, RELU, *up], **skip)
        up = [ConvTranspose(2 * after, before, 4, bias), Norm(norm, before)]
        layers = [LEAKY, conv, Norm(norm, after), level(index + 1), RELU, *up]
        return Sequential([*layers, *([DROPOUT] if index > 3 else [])], **skip)

    outer = level(0)
    outer.tensors = {f"model.{name}": value for name, value in outer.tensors.items()}
    return outer


def patch(width, count, norm, inputs=3):
    bias = norm.startswith("instance")
    layers, before = [Conv(inputs, width, 4, 2, 1), LEAKY], width
    for i in range(1, count + 1):
        after = width * min(2**i, 8)
        stride = 2 if i < count else 1
        layers += [Conv(before, after, 4, stride, 1, bias), Norm(norm, after), LEAKY]
        before = after
    return Sequential([*layers, Conv(before, 1, 4, 1, 1)], "model.")


def pixel(width, norm, inputs=3):
    bias = norm.startswith("instance")
    layers = [Conv(inputs, width, 1), LEAKY, Conv(width, 2 * width, 1, bias=bias)]
    return Sequential(
        [*layers, Norm(norm, 2 * width), LEAKY, Conv(2 * width, 1, 1, bias=bias)], "net."
    )


def float32(tensors):
    return {k: v.astype(np.float32) if v.dtype == float else v for k, v in tensors.items()}


def assert_close(original, converted, *sides):
    shape = converted.inputs[0].shape
    x = RNG.uniform(-1, 1, (2, *sides, shape[3]))
    ours = jax.jit(converted.network.apply)(converted.variables, x.astype(np.float32))[0]
    theirs = original(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    if ours.ndim == 3:
        theirs = theirs[..., 0]
    assert theirs.std() > 0.02
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=3e-5)


# --- supported files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "padding", "dropout", "blocks"),
    [
        ("batch", "zero", True, 1),
        ("batch", "replicate", True, 2),
        ("instance", "zero", False, 2),
        ("instance affine", "reflect", True, 1),
        ("none", "reflect", True, 1),
        ("none", "reflect", False, 0),
    ],
)
def test_resnet_generators(norm, padding, dropout, blocks):
    original = resnet(2, blocks, norm, padding, dropout, inputs=4, outputs=2)
    options = {"padding": padding} if padding == "replicate" else {}
    converted = translation.resnet_generator(float32(original.tensors), **options)
    config = dict(converted.config)
    kind, *options = norm.split()
    assert type(config["norm"]).__name__.lower().startswith(kind)
    assert getattr(config.pop("norm"), "affine", False) == (options == ["affine"])
    assert config == {
        "width": [2, 4, 8, *[8] * blocks, 4, 2],
        "channels": 2,
        "blocks": blocks,
        "padding": padding,
        "dropout": 0.5 if dropout else 0.0,
    }
    assert_close(original, converted, 16, 20)


@pytest.mark.parametrize(("norm", "downs"), [("instance tracked", 2), ("none", 3), ("batch", 6)])
def test_unet_generators(norm, downs):
    original = unet(2, downs, norm, inputs=1, outputs=2)
    converted = translation.unet_generator(float32(original.tensors), dropout=0.25)
    assert converted.config["downs"] == downs
    assert converted.config["dropout"] == 0.25
    assert converted.inputs[0].shape == (1, 256, 256, 1)
    assert_close(original, converted, 2**downs, 2 ** (downs + 1))


@pytest.mark.parametrize(
    ("norm", "layers"), [("batch", 1), ("instance", 2), ("instance affine", 1), ("none", 5)]
)
def test_patch_discriminators(norm, layers):
    original = patch(2, layers, norm, inputs=4)
    converted = translation.patch_discriminator(float32(original.tensors))
    assert converted.config["layers"] == layers
    assert_close(original, converted, 3 * 2**layers, 4 * 2**layers + 1)


@pytest.mark.parametrize("norm", NORMS)
def test_pixel_discriminators(norm):
    original = pixel(3, norm)
    assert_close(original, translation.pixel_discriminator(float32(original.tensors)), 5, 7)


def test_the_first_files_of_parallel_training():
    """Files of 2017: unused statistics of instance norms, no counters, names with a prefix."""
    original = resnet(2, 1, "instance")
    tensors = dict(original.tensors)
    for name, width in (("model.2", 2), ("model.10.conv_block.6", 8), ("model.15", 2)):
        tensors[f"{name}.running_mean"] = RNG.normal(size=width)
        tensors[f"{name}.running_var"] = RNG.uniform(size=width)
    tensors = {f"module.module.{name}": value for name, value in float32(tensors).items()}
    assert translation.is_resnet_generator(tensors)
    assert_close(original, translation.resnet_generator(tensors), 8, 8)
    newer = {f"{n}.num_batches_tracked": np.array(0) for n in ("model.2", "model.5")}
    translation.resnet_generator(float32(original.tensors) | newer)
    unbiased = {
        k: v for k, v in float32(patch(2, 2, "batch").tensors).items() if "tracked" not in k
    }
    translation.patch_discriminator(unbiased)


def test_other_names_of_blocks():
    original = resnet(2, 1, "instance affine")
    renamed = {k.replace("conv_block", "block"): v for k, v in original.tensors.items()}
    assert_close(original, translation.resnet_generator(float32(renamed)), 8, 8)


def test_running_statistics_are_used_on_request_or_with_a_scale():
    tensors = float32(patch(2, 1, "instance tracked").tensors)
    assert translation.patch_discriminator(tensors).config["norm"] == Instance(1e-5, True, True)
    without = translation.patch_discriminator(tensors, tracked=False)
    assert without.config["norm"] == Instance(1e-5, True, False)
    plain = {k: v for k, v in tensors.items() if k not in ("model.3.weight", "model.3.bias")}
    assert translation.patch_discriminator(plain).config["norm"] == Instance()
    used = translation.patch_discriminator(plain, tracked=True)
    assert used.config["norm"] == Instance(1e-5, False, True)
    mean = used.variables["batch_stats"]["layer_1"]["norm"]["mean"]
    np.testing.assert_array_equal(mean, tensors["model.3.running_mean"])
    with pytest.raises(ValueError, match=r"net\.3\.running_mean is missing"):
        translation.pixel_discriminator(float32(pixel(2, "instance").tensors), tracked=True)
    with pytest.raises(ValueError, match=r"tracked=True .* batch normalisation"):
        translation.patch_discriminator(float32(patch(2, 1, "batch").tensors), tracked=True)


KINDS = {
    "resnet": (resnet(2, 1, "batch"), "ResNet generator (CycleGAN)"),
    "unet": (unet(2, 3, "batch"), "U-Net generator (pix2pix)"),
    "patch": (patch(2, 1, "batch"), "patch discriminator (pix2pix, CycleGAN)"),
    "pixel": (pixel(2, "batch"), "pixel discriminator (pix2pix, CycleGAN)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_files_are_recognised_by_their_tensors(name, tmp_path):
    original, kind = KINDS[name]
    path = tmp_path / "latest_net_G_A.pth"
    path.write_bytes(torch_zip(float32(original.tensors)))
    (part,) = pretrained.parts(path).values()
    assert part.kind == kind
    assert part.generates == (name in ("resnet", "unet"))
    fitting = [other.name for other in registry.KINDS if other.fits(list(original.tensors))]
    assert fitting == [kind]
    network, variables = pretrained.load(path)
    x = np.zeros((1, 8, 8, 3), np.float32)
    assert network.apply(variables, x)[0].shape[:1] == (1,)


# --- refusals -------------------------------------------------------------------------------------


def modify(name, **changes):
    tensors = float32(KINDS[name][0].tensors)
    for key, value in changes.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = np.zeros(value, np.float32)
    return tensors


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet", {"model.1.weight": None}, "not a ResNet generator: model.1.weight is missing"),
        ("resnet", {"model.1.weight": (2, 3)}, "model.1.weight has shape (2, 3), not 4 axes"),
        ("resnet", {"model.4.weight": (4, 3, 3, 3)}, "model.4.weight has shape (4, 3, 3, 3) inst"),
        ("resnet", {"model.5.running_var": (5,)}, "model.5.running_var has shape (5,) instead of"),
        ("resnet", {"model.18.bias": None}, "model.18.bias is missing"),
        ("resnet", {"model.10.conv_block.7.weight": (8,)}, "unknown tensors model.10.conv_block.7"),
        ("resnet", {"model.11.bias": (4,)}, "unknown tensors model.11.bias"),
        ("unet", {"model.model.3.bias": None}, "model.model.3.bias is missing"),
        (
            "unet",
            {"model.model.1.model.5.weight": (4, 2, 4, 4)},
            "model.model.1.model.5.weight has shape (4, 2, 4, 4)",
        ),
        (
            "patch",
            {"model.5.weight": (2, 4, 4, 4)},
            "model.5.weight has shape (2, 4, 4, 4) instead",
        ),
        ("patch", {"model.6.weight": (2,)}, "unknown tensors model.6.weight"),
        ("pixel", {"net.0.bias": None}, "net.0.bias is missing"),
        ("pixel", {"net.0.weight": (2, 3, 3, 3)}, "net.0.weight has shape (2, 3, 3, 3) instead"),
    ],
)
def test_refusals(name, changes, message):
    read = {
        "resnet": translation.resnet_generator,
        "unet": translation.unet_generator,
        "patch": translation.patch_discriminator,
        "pixel": translation.pixel_discriminator,
    }[name]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(modify(name, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("theirs", "ours"), [("zero", "reflect"), ("reflect", "zero")])
def test_padding_that_contradicts_the_file(theirs, ours):
    tensors = float32(resnet(2, 1, "batch", theirs).tensors)
    with pytest.raises(ValueError, match=f"padding='{ours}'"):
        translation.resnet_generator(tensors, padding=ours)
