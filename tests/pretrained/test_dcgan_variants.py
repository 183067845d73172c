"""Variants of PyTorch's example DCGAN: shifted layer numbers, biases and one-hot labels."""

import itertools
import json
import pickle

import jax
import numpy as np
import pytest

import kd_jax as kd
from kd_jax.cli import inspect
from kd_jax.core import architecture
from kd_jax.pretrained import dcgan, registry

G_WIDTHS, D_WIDTHS = (7, 4, 3, 2), (2, 3, 4, 5, 1)
PLAIN = {"generator": [0, 3, 6], "discriminator": [0, 2, 5, 8]}
DROPOUT = {"generator": [0, 4, 7], "discriminator": [1, 4, 8, 14]}
"""The numbers of the convolutions in the example, and with layers that have no tensors."""


def state_dict(kind, numbers, biased=False):
    """Layers of these numbers; norms follow all but the outermost, or but the last."""
    rng = np.random.default_rng(0)
    widths = G_WIDTHS if kind == "generator" else D_WIDTHS
    tensors = {}
    for index, (number, (a, b)) in enumerate(zip(numbers, itertools.pairwise(widths), strict=True)):
        shape = (a, b) if kind == "generator" else (b, a)
        tensors[f"main.{number}.weight"] = rng.normal(size=(*shape, 4, 4))
        bias = rng.normal(size=b)
        if biased:
            tensors[f"main.{number}.bias"] = bias
        if (index or kind == "generator") and index < len(numbers) - 1:
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensors[f"main.{number + 1}.{name}"] = rng.uniform(0.5, 2, size=b)
            tensors[f"main.{number + 1}.num_batches_tracked"] = np.array(3)
    return {name: np.asarray(x, "f4" if x.ndim else "i8") for name, x in tensors.items()}


def normalize(tensors, number, x, train):
    if f"main.{number}.weight" not in tensors:
        return x
    scale, bias, mean, var = (
        tensors[f"main.{number}.{name}"].reshape(-1, 1, 1)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    if train:
        mean, var = (np.expand_dims(f(x, axis=(0, 2, 3)), (1, 2)) for f in (np.mean, np.var))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def generate(tensors, numbers, latents, train=False):
    """The program's generator, by scattering each pixel over the kernel."""
    x = latents[:, :, None, None].astype(float)
    for number in numbers:
        weight = tensors[f"main.{number}.weight"]
        stride, pad = (1, 0) if number == numbers[0] else (2, 1)
        side = stride * (x.shape[2] - 1) + 4
        total = np.zeros((len(x), weight.shape[1], side, side))
        for i, j in np.ndindex(*x.shape[2:]):
            patch = np.einsum("bc,cohw->bohw", x[:, :, i, j], weight)
            total[:, :, stride * i : stride * i + 4, stride * j : stride * j + 4] += patch
        x = total[:, :, pad : side - pad, pad : side - pad]
        x = x + tensors.get(f"main.{number}.bias", np.zeros(1)).reshape(-1, 1, 1)
        if number != numbers[-1]:
            x = np.maximum(normalize(tensors, number + 1, x, train), 0)
    return np.tanh(x).transpose(0, 2, 3, 1)


def score(tensors, numbers, images, train=False):
    """The program's discriminator, before the sigmoid."""
    x = images.transpose(0, 3, 1, 2).astype(float)
    for number in numbers:
        stride, pad = (1, 0) if number == numbers[-1] else (2, 1)
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (4, 4), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride]
        x = np.einsum("bchwij,ocij->bohw", windows, tensors[f"main.{number}.weight"])
        x = x + tensors.get(f"main.{number}.bias", np.zeros(1)).reshape(-1, 1, 1)
        if number != numbers[-1]:
            x = normalize(tensors, number + 1, x, train)
            x = np.where(x > 0, x, 0.2 * x)
    return x.reshape(-1)


CASES = {
    "generator": (dcgan.generator, dcgan.is_generator, dcgan.is_discriminator, generate, (7,)),
    "discriminator": (
        dcgan.discriminator, dcgan.is_discriminator, dcgan.is_generator, score, (32, 32, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_layers_are_read_in_the_order_of_their_numbers(kind):
    convert, fits, other, _, _ = CASES[kind]
    plain, shifted = (state_dict(kind, numbers[kind]) for numbers in (PLAIN, DROPOUT))
    shifted = dict(reversed(shifted.items()))  # the order of the names is not that of the numbers
    assert fits(shifted)
    assert not other(shifted)
    one, two = convert(plain), convert(shifted)
    jax.tree.map(np.testing.assert_array_equal, one.variables, two.variables)
    assert one.config == two.config
    assumed = " ".join(set(two.notes) - set(one.notes))
    gaps = {"generator": ["main.1 ", "main.4"], "discriminator": ["main.1,", "main.4", "main.14"]}
    assert all(name in assumed for name in gaps[kind])
    assert "dropout" not in " ".join(one.notes)


@pytest.mark.parametrize("kind", CASES)
def test_biases_of_convolutions(kind):
    convert, fits, other, original, shape = CASES[kind]
    numbers = DROPOUT[kind]
    tensors = state_dict(kind, numbers, biased=True)
    assert fits(tensors)
    assert not other(tensors)
    network, variables, *_ = convert(tensors)
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype("f4")
    for train in (False, True):
        expected = original(tensors, numbers, x, train)
        actual, _, after = network.apply(variables, x, train=train)
        np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())
    if kind == "generator":
        first = np.einsum("bc,cohw->bohw", x, tensors["main.0.weight"]).mean(axis=(0, 2, 3))
        mean = 0.9 * tensors["main.1.running_mean"] + 0.1 * (first + tensors["main.0.bias"])
        running = after["batch_stats"]["BatchNorm_0"]["mean"] + tensors["main.0.bias"]
        np.testing.assert_allclose(running, mean, atol=1e-5)


def test_a_discriminator_with_a_bias_of_its_last_convolution_only():
    numbers = PLAIN["discriminator"]
    biased = state_dict("discriminator", numbers, biased=True)
    last = f"main.{numbers[-1]}.bias"
    tensors = {n: x for n, x in biased.items() if n in state_dict("discriminator", numbers)}
    params = dcgan.discriminator({**tensors, last: biased[last]}).variables["params"]
    np.testing.assert_array_equal(params["score"]["bias"], biased[last])
    np.testing.assert_array_equal(params["conv_0"]["bias"], np.zeros(3))


@pytest.mark.parametrize("classes", [3, 5])  # fewer and more than the latent's numbers
def test_one_hot_labels_behind_the_latents(tmp_path, classes, capsys):
    path = tmp_path / "g.pkl"
    path.write_bytes(pickle.dumps(state_dict("generator", DROPOUT["generator"]), protocol=4))
    whole, model = kd.load(path), kd.load(path, options={"classes": classes})
    assert whole.interface.describe().startswith("latents [7] ->")
    assert whole.info["options"] == {"classes": 0}
    assert any("option classes" in note for note in whole.info["notes"])
    assert not any("option classes" in note for note in model.info["notes"])
    assert model.classes == classes
    latents = np.random.default_rng(1).normal(size=(classes, 7 - classes)).astype("f4")
    labels = np.arange(classes)[::-1]
    inputs = np.concatenate([latents, np.eye(classes, dtype="f4")[labels]], axis=1)
    images = model.network.apply(model.variables, latents, labels)[0]
    expected = whole.network.apply(whole.variables, inputs)[0]
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert np.abs(images[0] - images[1]).max() > 0.1
    # A checkpoint describes the network.
    described = json.loads(json.dumps(architecture.describe(model.network, *model.inputs)))
    architecture.check_variables(architecture.rebuild(described), model.variables)
    inspect.main([str(path), f"--option=classes={classes}"])
    assert f"latents [{7 - classes}] and labels of {classes} classes" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [-1, 7, 2.0, True, "3"], ids=repr)
def test_numbers_of_classes_that_do_not_fit(classes):
    with pytest.raises(ValueError, match=f"classes={classes!r} .*from 0 to 6") as error:
        dcgan.generator(state_dict("generator", PLAIN["generator"]), classes=classes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "numbers", "change", "named"),
    [
        ("generator", [0, 2, 5], {}, r"between main\.1 and main\.2"),
        ("discriminator", [0, 1, 4, 7], {}, r"between main\.0 and main\.1"),
        ("generator", [0, 3, 6], {"main.3.weight": None}, r"main\.3\.weight is missing"),
        ("generator", [0, 3, 6], {"main.6.weight": None}, r"main\.6\.weight is missing"),
        ("generator", [0, 3, 6], {"main.8.weight": (3, 2, 4, 4)}, r"main\.7\.running_mean"),
        ("generator", [0, 3, 6], {"main.6.bias": (3,)}, r"main\.6\.bias has shape \(3,\)"),
        ("discriminator", [0, 2, 5, 8], {"main.1.running_mean": (2,)}, r"no norm main\.1"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_named(kind, numbers, change, named):
    tensors = state_dict(kind, numbers)
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = np.ones(shape, "f4")
    with pytest.raises(ValueError, match=named) as error:
        CASES[kind][0](tensors)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        # residual blocks between the layers (Choi et al. 2018, StarGAN)
        ["main.0.weight", "main.1.running_mean", "main.3.weight", "main.6.main.0.weight"],
        ["main.0.weight", "main.2.weight", "main.4.weight"],  # no norms
        ["model.0.weight", "model.1.running_mean", "model.3.weight", "model.4.running_mean"],
        ["main.0.weight", "main.1.running_mean"],
        [],
    ],
)
def test_other_networks_are_not_taken(names):
    assert not dcgan.is_generator(names)
    assert not dcgan.is_discriminator(names)
    tensors = {name: np.ones((2, 2, 4, 4), "f4") for name in names}
    assert registry._kind(tensors) is None
