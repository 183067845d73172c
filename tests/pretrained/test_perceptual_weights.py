"""Weight files of narrow trunks and LPIPS: the place of each tensor, and refusals."""

import re

import numpy as np
import pytest
from parity.perceptual import halves

from kd_jax.pretrained import perceptual

RNG = np.random.default_rng(0)
# The narrow networks' convolutions in torchvision's order: index, outputs, inputs, kernel size.
VGG16 = [
    *((0, 2, 3), (2, 2, 2), (5, 4, 2), (7, 4, 4), (10, 5, 4), (12, 5, 5), (14, 5, 5)),
    *((17, 6, 5), (19, 6, 6), (21, 6, 6), (24, 7, 6), (26, 7, 7), (28, 7, 7)),
]
ALEXNET = [(0, 2, 3, 11), (3, 3, 2, 5), (6, 4, 3, 3), (8, 5, 4, 3), (10, 6, 5, 3)]
SLICES = {  # of LPIPS's module, by torchvision's index
    "vgg": {i: 1 + sum(i >= start for start in (4, 9, 16, 23)) for i in range(30)},
    "alex": {0: 1, 3: 2, 6: 3, 8: 4, 10: 5},
    "squeeze": {0: 1, 3: 2, 4: 2, 6: 3, 7: 3, 9: 4, 10: 5, 11: 6, 12: 7},
}
HEADS = {"vgg": (2, 4, 5, 6, 7), "alex": (2, 3, 4, 5, 6), "squeeze": (2, 6, 10, 14, 18, 22, 26)}
CLASSIFIERS = {"vgg": (0, 3, 6), "alex": (1, 4, 6), "squeeze": (1,)}


def _normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def trunk(net):
    tensors = {}

    def layer(name, outputs, inputs, window):
        tensors[f"features.{name}.weight"] = _normal(outputs, inputs, window, window)
        tensors[f"features.{name}.bias"] = _normal(outputs)

    if net == "squeeze":
        layer(0, 2, 3, 3)
        before = 2
        for index, half in zip((3, 4, 6, 7, 9, 10, 11, 12), (2, 3, 4, 5, 6, 7, 9, 13), strict=True):
            layer(f"{index}.squeeze", half + 1, before, 1)
            layer(f"{index}.expand1x1", half, half + 1, 1)
            layer(f"{index}.expand3x3", half, half + 1, 3)
            before = 2 * half
    for index, outputs, inputs, *window in {"vgg": VGG16, "alex": ALEXNET}.get(net, []):
        layer(index, outputs, inputs, window[0] if window else 3)
    return tensors


def heads(net):
    widths = (2, 6, 10, 12, 14, 18, 26) if net == "squeeze" else HEADS[net]
    return {f"lin{i}.model.1.weight": np.abs(_normal(1, n, 1, 1)) for i, n in enumerate(widths)}


def whole(net, tensors, weights):
    module = {f"scaling_layer.{part}": _normal(1, 3, 1, 1) for part in ("shift", "scale")}
    for name, value in tensors.items():
        _, index, rest = name.split(".", 2)
        module[f"net.slice{SLICES[net][int(index)]}.{index}.{rest}"] = value
    module |= weights
    return module | {name.replace("lin", "lins."): value for name, value in weights.items()}


@pytest.mark.parametrize("net", CLASSIFIERS)
def test_both_layouts(net):
    tensors, weights = trunk(net), heads(net)
    classifier = {
        f"classifier.{i}.{p}": _normal(2) for i in CLASSIFIERS[net] for p in ("weight", "bias")
    }
    split = perceptual.lpips({**tensors, **classifier}, weights)
    module = whole(net, tensors, weights)
    both = perceptual.lpips(module)
    trunk_only = perceptual.trunk({**tensors, **classifier})
    first = split.variables["params"]["conv1_1" if net == "vgg" else "conv1"]
    np.testing.assert_array_equal(
        first["kernel"], tensors["features.0.weight"].transpose(2, 3, 1, 0)
    )
    for converted in (both, trunk_only):
        for name, layer in converted.variables["params"].items():
            for part, value in layer.items():
                expected = split.variables["params"][name][part]
                np.testing.assert_array_equal(
                    value["kernel"] if isinstance(value, dict) else value,
                    expected["kernel"] if isinstance(expected, dict) else expected,
                )
    assert "heads" not in trunk_only.variables
    for index, value in enumerate(split.variables["heads"].values()):
        np.testing.assert_array_equal(value, weights[f"lin{index}.model.1.weight"].reshape(-1))
    np.testing.assert_allclose(both.config["shift"], module["scaling_layer.shift"].reshape(3))
    assert perceptual.lpips(module, scaled=False).config["scale"] == (1, 1, 1)
    assert perceptual.is_lpips(module)
    assert perceptual.is_trunk(tensors)
    assert not perceptual.is_trunk(module)
    again, lins = halves(module)
    assert again.keys() == tensors.keys()
    assert lins.keys() == weights.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.12.weight": None}, "features.12.weight is missing"),
        ({"lin3.model.1.weight": None}, "lin3.model.1.weight is missing"),
        ({"lin5.model.1.weight": _normal(1, 2, 1, 1)}, "unknown tensors lin5.model.1.weight"),
        ({"lin0.model.1.weight": _normal(1, 3, 1, 1)}, "heads/relu1_2 has shape (3,)"),
        ({"lin0.model.1.weight": _normal(2)}, "instead of (1, C, 1, 1)"),
        ({"features.7.weight": _normal(9, 4, 3, 3)}, "conv2_2/kernel has shape (3, 3, 4, 9)"),
        ({"features.7.weight": _normal(4, 4, 3)}, "not 4 axes"),
        ({"features.2.weight": None}, "not a VGG16, AlexNet or SqueezeNet 1.1: none of"),
        ({"features.99.bias": _normal(1)}, "unknown tensors features.99.bias"),
    ],
)
def test_refusals(change, message):
    tensors, weights = trunk("vgg"), heads("vgg")
    for name, value in change.items():
        side = weights if name.startswith("lin") else tensors
        side.pop(name, None)
        if value is not None:
            side[name] = value
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        perceptual.lpips(tensors, weights)
    assert "\n" not in str(caught.value)


def test_one_tensor_in_both_files():
    with pytest.raises(ValueError, match=r"features\.0\.bias is in both files"):
        perceptual.lpips(trunk("alex"), {**heads("alex"), "features.0.bias": _normal(2)})


def test_a_layer_in_the_wrong_slice():
    tensors = whole("alex", trunk("alex"), heads("alex"))
    tensors["net.slice1.3.weight"] = tensors.pop("net.slice2.3.weight")
    with pytest.raises(ValueError, match=r"net\.slice2\.3\.weight is missing"):
        perceptual.lpips(tensors)


def test_files(tmp_path):
    path = tmp_path / "vgg.pth"
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="is a web page"):
        perceptual.load(path)
