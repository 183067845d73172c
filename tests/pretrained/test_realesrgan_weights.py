"""Real-ESRGAN's files: parts, what the tensors determine, and refusals.

Values are compared with the originals in `tests/test_parity.py`.
"""

import re

import numpy as np
import pytest
from pretrained.io.test_containers import torch_zip

from kd_jax import pretrained
from kd_jax.pretrained import realesrgan, registry

RNG = np.random.default_rng(0)


def conv(outputs, inputs, side=3):
    return RNG.normal(0, 0.2, (outputs, inputs, side, side)).astype(np.float32)


def layer(name, outputs, inputs, side=3):
    bias = RNG.normal(0, 0.1, outputs).astype(np.float32)
    return {f"{name}.weight": conv(outputs, inputs, side), f"{name}.bias": bias}


def rrdb(first=3, channels=3, width=4, growth=2, blocks=1):
    tensors = layer("conv_first", width, first)
    for block in range(blocks):
        for dense in (1, 2, 3):
            for i in range(5):
                name = f"body.{block}.rdb{dense}.conv{i + 1}"
                tensors |= layer(name, growth if i < 4 else width, width + i * growth)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        tensors |= layer(name, width, width)
    return tensors | layer("conv_last", channels, width)


def srvgg(last=12, inputs=3, width=4, layers=1, slopes=True):
    tensors = layer("body.0", width, inputs)
    for index in range(layers + 1):
        if slopes:
            tensors[f"body.{2 * index + 1}.weight"] = RNG.uniform(0, 1, width).astype(np.float32)
        after = last if index == layers else width
        tensors |= layer(f"body.{2 * index + 2}", after, width)
    return tensors


def unet(width=2):
    tensors = layer("conv0", width, 3) | layer("conv9", 1, width)
    sizes = [(2, 1, 4), (4, 2, 4), (8, 4, 4), (4, 8, 3), (2, 4, 3), (1, 2, 3), (1, 1, 3), (1, 1, 3)]
    for number, (after, before, side) in enumerate(sizes, 1):
        weight = conv(after * width, before * width, side)
        vectors = {"u": weight.shape[0], "v": weight[0].size}
        tensors[f"conv{number}.weight_orig"] = weight
        for name, length in vectors.items():
            tensors[f"conv{number}.weight_{name}"] = RNG.normal(size=length).astype(np.float32)
    return tensors


KINDS = {
    "rrdb": (rrdb(), "RRDBNet (Real-ESRGAN)"),
    "srvgg": (srvgg(), "SRVGGNetCompact (Real-ESRGAN)"),
    "unet": (unet(), "U-Net discriminator (Real-ESRGAN)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_averaged_weights_are_the_default(name, tmp_path):
    tensors, kind = KINDS[name]
    average = {k: v + 1 for k, v in tensors.items()}
    path = tmp_path / "published.pth"
    path.write_bytes(torch_zip({"params": tensors, "params_ema": average}))
    parts = pretrained.parts(path)
    assert {key: (part.kind, part.generates) for key, part in parts.items()} == dict.fromkeys(
        ("params", "params_ema"), (kind, name != "unet")
    )
    bias = {"rrdb": "conv_last.bias", "srvgg": "body.4.bias", "unet": "conv9.bias"}[name]
    ours = "score" if name == "unet" else "image"
    for part, expected in ((None, average), ("params", tensors)):
        _, variables = pretrained.load(path, part)
        np.testing.assert_array_equal(variables["params"][ours]["bias"], expected[bias])
    fitting = [other.name for other in registry.KINDS if other.fits(list(tensors))]
    assert fitting == [kind]


@pytest.mark.parametrize(("first", "scale"), [(3, 4), (12, 2), (48, 1)])
def test_the_input_of_an_rrdb_determines_its_scale(first, scale):
    config = realesrgan.rrdb(rrdb(first)).config
    assert (config["scale"], config["inputs"], config["channels"]) == (scale, 3, 3)


def test_scales_and_activations_that_the_file_does_not_determine():
    config = realesrgan.rrdb(rrdb(1, channels=3)).config
    assert (config["scale"], config["inputs"]) == (4, 1)  # 1 is not a multiple of 4
    with pytest.raises(ValueError, match=r"8 inputs of conv_first and 3 outputs.*`scale`"):
        realesrgan.rrdb(rrdb(8))
    assert realesrgan.rrdb(rrdb(8), scale=2).config["inputs"] == 2
    with pytest.raises(ValueError, match=r"1 inputs of body\.0 and 12 outputs of body\.4.*`scale`"):
        realesrgan.srvgg(srvgg(12, 1))
    assert realesrgan.srvgg(srvgg(12, 1), scale=2).config["channels"] == 3
    plain = srvgg(slopes=False)
    assert realesrgan.srvgg(plain).config["activation"] == "relu"
    assert realesrgan.srvgg(plain, activation="leakyrelu").config["activation"] == "leakyrelu"
    assert not realesrgan.unet_discriminator(unet(), skip=False).network.module.skip


def change(tensors, **changes):
    """With zeros of another shape instead of a tensor, or without it (None)."""
    tensors = tensors | {k: np.zeros(v or 0, np.float32) for k, v in changes.items()}
    return {k: v for k, v in tensors.items() if changes.get(k, ()) is not None}


@pytest.mark.parametrize(
    ("read", "tensors", "message"),
    [
        ("rrdb", change(rrdb(), **{"conv_hr.bias": None}), "conv_hr.bias is missing"),
        ("rrdb", rrdb() | {"extra": np.zeros(1)}, "unknown tensors extra"),
        (
            "rrdb",
            change(rrdb(), **{"body.0.rdb2.conv3.weight": (2, 7, 3, 3)}),
            "block_0/dense_1/conv_2/kernel has shape (3, 3, 7, 2)",
        ),
        ("rrdb", change(rrdb(), **{"conv_first.weight": (4, 3)}), "conv_first.weight has shape"),
        ("srvgg", change(srvgg(), **{"body.3.weight": None}), "body.3.weight is missing"),
        ("srvgg", change(srvgg(), **{"body.4.weight": (11, 4, 3, 3)}), "11 outputs of body.4"),
        ("srvgg", change(srvgg(), **{"body.4.weight": None, "body.4.bias": None}), "body.3"),
        ("unet", change(unet(), **{"conv5.weight_v": (7,)}), "conv5.weight_v has shape (7,)"),
        ("unet", change(unet(), **{"conv9.bias": None}), "conv9.bias is missing"),
    ],
)
def test_refusals(read, tensors, message):
    read = {
        "rrdb": realesrgan.rrdb,
        "srvgg": realesrgan.srvgg,
        "unet": realesrgan.unet_discriminator,
    }[read]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(tensors)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("read", "tensors", "options", "message"),
    [
        (realesrgan.rrdb, rrdb(), {"scale": 2}, "scale=2 needs a multiple of 4"),
        (realesrgan.rrdb, rrdb(), {"scale": 3}, "one of 1, 2, 4, not 3"),
        (realesrgan.srvgg, srvgg(), {"scale": 3}, "scale=3 needs a multiple of 9"),
        (realesrgan.srvgg, srvgg(), {"activation": "relu"}, "activation='relu'"),
        (realesrgan.srvgg, srvgg(slopes=False), {"activation": "prelu"}, "activation='prelu'"),
    ],
)
def test_options_that_contradict_the_file(read, tensors, options, message):
    with pytest.raises(ValueError, match=message):
        read(tensors, **options)
