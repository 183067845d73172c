"""Inception's weight files: folding of normalisation computed by hand, and refusals."""

import json
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.inception import shapes

from kd_jax.pretrained import inception

STATISTICS = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture(scope="module")
def zeros():
    """A state dict for 3 classes; only its shapes matter."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes(3).items()}


def test_normalisation_is_folded(zeros):
    random = np.random.default_rng(0)
    name = "Mixed_5b.branch3x3dbl_2"
    weight = random.normal(size=(96, 64, 3, 3)).astype(np.float32)
    values = dict(zip(STATISTICS, random.uniform(0.5, 2, (4, 96)).astype(np.float32), strict=True))
    values["weight"][0] *= -1
    own = {f"{name}.conv.weight": weight} | {f"{name}.bn.{k}": v for k, v in values.items()}
    converted = inception.fid({**zeros, **own})
    assert dict(converted.config) == {"classes": 3}
    layer = converted.variables["params"]["Mixed_5b"]["branch3x3dbl_2"]
    x = random.normal(size=(1, 5, 5, 64)).astype(np.float32)
    layout = ("NHWC", "HWIO", "NHWC")

    def conv(kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

    normed = (
        conv(jnp.asarray(weight.transpose(2, 3, 1, 0))) - values["running_mean"][None, None, None]
    ) / np.sqrt(values["running_var"] + 0.001)[None, None, None]
    expected = normed * values["weight"][None, None, None] + values["bias"][None, None, None]
    np.testing.assert_allclose(
        conv(layer["kernel"]) + layer["bias"][None, None, None], expected, rtol=1e-4, atol=1e-3
    )


def test_files_without_counters_and_with_auxiliary_layers(zeros):
    fewer = {k: v for k, v in zeros.items() if not k.endswith("num_batches_tracked")}
    inception.fid(fewer)
    auxiliary = {
        "AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1)),
        "AuxLogits.conv1.bn.running_var": np.zeros(768),
        "AuxLogits.fc.bias": np.zeros(3),
    }
    inception.torchvision({**zeros, **auxiliary})
    with pytest.raises(ValueError, match=r"unknown tensors AuxLogits\.conv0\.conv\.weight, Aux"):
        inception.fid({**zeros, **auxiliary})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Mixed_6b.branch7x7_2.conv.weight": None}, "Mixed_6b.branch7x7_2.conv.weight is missing"),
        ({"fc.bias": None}, "fc.bias is missing"),
        ({"Mixed_7c.branch_pool.bn.running_var": np.zeros(5)}, "has shape (5,) instead of (192,)"),
        ({"Conv2d_1a_3x3.conv.weight": np.zeros((32, 1, 3, 3))}, "has shape (32, 1, 3, 3) instead"),
        ({"fc.weight": np.zeros((4, 2048))}, "params/fc/kernel has shape (2048, 4)"),
        ({"Mixed_8a.conv.weight": np.zeros(1)}, "unknown tensors Mixed_8a.conv.weight"),
    ],
)
def test_refusals(zeros, change, message):
    tensors = {k: v for k, v in {**zeros, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        inception.fid(tensors)
    assert "\n" not in str(caught.value)


def safetensors(path, tensors):
    header, parts, end = {}, [], 0
    for name, value in tensors.items():
        data = value.astype("<f4").tobytes()
        offsets = [end, end + len(data)]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}
        parts.append(data)
        end += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def test_files(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors(path, {"conv.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"other\.safetensors: not an Inception-v3: fc\.bias is"):
        inception.load(path)
    with pytest.raises(ValueError, match=r"nothing\.pth: cannot be read"):
        inception.load(tmp_path / "nothing.pth")


def test_names():
    assert inception.is_inception(shapes())
    assert not inception.is_inception(name for name in shapes() if not name.startswith("fc."))
