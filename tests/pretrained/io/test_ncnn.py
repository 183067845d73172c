"""Reading ncnn's graphs, and Real-ESRGAN's generators in them.

The files are written here from the public description of the format, with the layers and names of
the authors' published graphs.
"""

import re
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from pretrained.test_realesrgan_weights import rrdb, srvgg

from kd_jax import pretrained
from kd_jax.pretrained import realesrgan
from kd_jax.pretrained.io import ncnn
from kd_jax.pretrained.io.containers import read
from kd_jax.pretrained.io.unpickle import UnsafeFileError

RNG = np.random.default_rng(0)
HALF = (0x01306B47).to_bytes(4, "little")


class Writer:
    """The lines of a graph and the bytes of its weights."""

    def __init__(self, half=False):
        self.lines, self.blobs, self.weights, self.half = [], set(), b"", half
        self.layer("Input", "data", [], ["data"])

    def layer(self, kind, name, inputs, outputs, parameters=""):
        counts = f"{len(inputs)} {len(outputs)}"
        self.lines.append(" ".join([kind, name, counts, *inputs, *outputs, parameters]).rstrip())
        self.blobs |= set(outputs)
        return outputs[0]

    def split(self, blob, count):
        names = [f"{blob}_{i}" for i in range(count)]
        self.layer("Split", f"split_{blob}", [blob], names)
        return names

    def conv(self, tensors, name, source, activation=""):
        weight = tensors[f"{name}.weight"]
        values = f"0={len(weight)} 1={weight.shape[-1]} 4=1 5=1 6={weight.size}"
        data = weight.astype("<f2" if self.half else "<f4").tobytes()
        self.weights += (HALF if self.half else bytes(4)) + data + bytes(-len(data) % 4)
        self.weights += tensors[f"{name}.bias"].astype("<f4").tobytes()
        return self.layer("Convolution", name, [source], [f"{name}_out"], f"{values} {activation}")

    def param(self):
        counts = f"{len(self.lines)} {len(self.blobs)}"
        return "\n".join(["7767517", counts, *self.lines, ""])


def write_srvgg(tensors, scale, half=False, activation="PReLU"):
    writer = Writer(half)
    base, h = writer.split("data", 2)
    last = max(int(name.split(".")[1]) for name in tensors)
    for index in range(0, last, 2):
        h = writer.conv(
            tensors, f"body.{index}", h, activation if activation.startswith("9=") else ""
        )
        name = f"body.{index + 1}"
        if activation == "PReLU":
            slope = tensors[f"{name}.weight"]
            h = writer.layer("PReLU", name, [h], [f"{name}_out"], f"0={len(slope)}")
            writer.weights += slope.astype("<f4").tobytes()
        elif not activation.startswith("9="):
            h = writer.layer("ReLU", name, [h], [f"{name}_out"], activation.partition(" ")[2])
    h = writer.conv(tensors, f"body.{last}", h)
    h = writer.layer("PixelShuffle", "shuffle", [h], ["shuffled"], f"0={scale}")
    factor = f"{float(scale):e}"
    base = writer.layer("Interp", "resize", [base], ["base"], f"0=1 1={factor} 2={factor}")
    writer.layer("BinaryOp", "add", [h, base], ["output"])
    return writer


def write_rrdb(tensors, half=False, two_layers=False):
    writer, leaky = Writer(half), "9=2 -23310=1,2.000000e-01"

    def add_scaled(name, residual, source):
        if not two_layers:
            values = "0=1 -23301=2,2.000000e-01,1.000000e+00"
            return writer.layer("Eltwise", name, [residual, source], [f"{name}_out"], values)
        scaled = writer.layer(
            "BinaryOp", f"{name}_scale", [residual], [f"{name}_scaled"], "0=2 1=1 2=2.000000e-01"
        )
        return writer.layer("BinaryOp", name, [scaled, source], [f"{name}_out"], "0=0")

    def conv(name, source):
        if not two_layers:
            return writer.conv(tensors, name, source, leaky)
        h = writer.conv(tensors, name, source)
        return writer.layer("ReLU", f"{name}_act", [h], [f"{name}_act_out"], "0=0.2")

    stem = writer.conv(tensors, "conv_first", "data")
    stems = writer.split(stem, 9)
    h = stems.pop()
    for block in range(sum(name.endswith("rdb1.conv1.bias") for name in tensors)):
        start = h
        for dense in (1, 2, 3):
            path, grown = f"body.{block}.rdb{dense}", [h]
            for index in range(1, 5):
                joined = h
                if index > 1:
                    joined = writer.layer("Concat", f"{path}.c{index}", grown, [f"{path}.c{index}"])
                grown.append(conv(f"{path}.conv{index}", joined))
            joined = writer.layer("Concat", f"{path}.c5", grown, [f"{path}.c5"], "0=0")
            h = add_scaled(path, writer.conv(tensors, f"{path}.conv5", joined), h)
        h = add_scaled(f"body.{block}", h, start)
    h = writer.conv(tensors, "conv_body", h)
    h = writer.layer("BinaryOp", "add", [stems.pop(), h], ["trunk"], "0=0")
    for name in ("conv_up1", "conv_up2"):
        h = writer.layer("Interp", f"{name}.resize", [h], [f"{name}.big"], "0=1 1=2.0 2=2.0")
        h = conv(name, h)
    writer.conv(tensors, "conv_last", conv("conv_hr", h))
    return writer


@pytest.fixture
def save(tmp_path):
    """Writes a graph, or a text, and its weights."""

    def to_files(text, weights=None):
        text, weights = (
            (text.param(), text.weights) if isinstance(text, Writer) else (text, weights)
        )
        path = tmp_path / "network.param"
        path.write_text(text)
        if weights is not None:
            path.with_suffix(".bin").write_bytes(weights)
        return path

    return to_files


def same(actual, expected, half):
    for layer, arrays in expected.items():
        if isinstance(arrays, dict):
            same(actual[layer], arrays, half)
        else:
            exact = np.asarray(arrays)
            rounded = exact.astype(np.float16) if half and layer == "kernel" else exact
            np.testing.assert_array_equal(actual[layer], rounded)
    assert actual.keys() == expected.keys()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("two_layers", [False, True])
def test_rrdb_graphs(half, two_layers, save):
    tensors = rrdb(blocks=2, width=3)
    path = save(write_rrdb(tensors, half, two_layers))
    (part,) = pretrained.parts(path).values()
    assert part == ("RRDBNet (Real-ESRGAN, ncnn)", part.convert, True, "")
    expected, converted = realesrgan.rrdb(tensors), part.convert()
    assert converted.config == expected.config
    assert not converted.options  # the graph determines all
    same(converted.variables, expected.variables, half)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("written", "activation"),
    [
        ("PReLU", "prelu"),
        ("ReLU", "relu"),
        ("ReLU 0=0.1", "leakyrelu"),
        ("9=1", "relu"),
        ("9=2 -23310=1,1.000000e-01", "leakyrelu"),
    ],
)
def test_srvgg_graphs(half, written, activation, save):
    tensors = srvgg(27, slopes=activation == "prelu", layers=2, width=3)
    path = save(write_srvgg(tensors, 3, half, written))
    expected = realesrgan.srvgg(tensors, activation=activation)
    (part,) = pretrained.parts(path).values()
    converted = part.convert()
    assert converted.config == expected.config
    assert converted.config["scale"] == 3
    assert not converted.options
    same(converted.variables, expected.variables, half)


GRAPH = write_srvgg(srvgg(width=2), 2)


def test_a_graph_by_hand():
    text = b"7767517\n3 4\nInput in 0 1 a\nSplit s 1 2 a b c\nReLU r 1 1 c d 0=1.5e-1\n"
    layer = ncnn.Layer("ReLU", "r", ("a",), "d", {0: 0.15}, {})
    assert ncnn.parse(memoryview(text), memoryview(b"")) == ncnn.Graph("a", (layer,))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ReLU", "Sigmoid", "type PSigmoid; supported are Input, Split"),
        ("0=2 1=3 4=1 5=1", "0=2 1=3 3=2 4=1 5=1", "3=2 of the Convolution body.0"),
        ("0=2 1=3 4=1 5=1", "0=2 1=3 4=1 5=1 0=2", "body.0 has the parameter 0=2"),
        ("0=2 1=3 4=1 5=1", "0=2 1=0 4=1 5=1", "body.0 has the size 0"),
        ("0=2 1=3 4=1 5=1", "0=2 1=3.5 4=1 5=1", "the parameter 1=3.5"),
        ("6=54", "6=55", "55 weights for 2 outputs of 3x3"),
        ("6=54", "6=5400", "weights of body.0 are incomplete"),
        ("6=54", "6=x", "has the value x"),
        ("body.0 1 1 data_1", "body.0 1 1 data_7", "body.0 reads data_7"),
        ("body.0 1 1 data_1 body.0_out", "body.0 1 1 data_1 data_0", "writes data_0 again"),
        ("body.0 1 1 data_1 body.0_out", "body.0 1 0 data_1", "1 inputs and 0 outputs"),
        ("body.0 1 1", "body.0 1 -1", "-1 is not a number"),
        ("body.0 1 1", "body.0 9 9", "body.0 has fewer blobs"),
        ("Input data 0 1 data", "Input data 0 1 data 0=x", "has the value x"),
        ("7767517\n10 ", "7767517\n11 ", "it has 10 layers"),
        ("7767517\n10 11", "7767517\n10 12", "it has 11 blobs"),
        ("0=1 1=2", "-23300=2,1 1=2", "the parameter -23300=2,1"),
    ],
)
def test_damaged_graphs(old, new, message, save):
    text = GRAPH.param()
    assert text.count(old)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(save(text.replace(old, new, 1), GRAPH.weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (GRAPH.weights[:-1], "is truncated"),
        (GRAPH.weights + b"0", "1 bytes follow the weights"),
        (b"\x48\x4b\x0d\x00" + GRAPH.weights[4:], "the tag 0x000d4b48"),
        (None, "network.bin' cannot be read"),
    ],
)
def test_damaged_weights(weights, message, save):
    with pytest.raises(ValueError, match=message):
        read(save(GRAPH.param(), weights))


def test_weights_without_a_graph(tmp_path):
    path = tmp_path / "network.bin"
    path.write_bytes(write_srvgg(srvgg(), 2, half=True).weights)
    with pytest.raises(ValueError, match=r"its graph, the \.param file"):
        read(path)


def test_random_changes_raise_value_errors(save):
    """Of bytes of the text; a graph with another value may still be read."""
    text = GRAPH.param()
    messages = []
    for _ in range(300):
        at = RNG.integers(len(text))
        changed = text[:at] + chr(RNG.integers(1, 128)) + text[at + RNG.integers(2) :]
        try:
            ncnn.parse(memoryview(changed.encode()), memoryview(GRAPH.weights))
        except (ValueError, UnsafeFileError) as error:
            messages.append(str(error))
    assert len(messages) > 150
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0=1 1=2.000000e+00", "0=3 1=2.000000e+00", "Interp resize has the parameter 0=3, not 1"),
        ("0=1 1=2.000000e+00", "0=1 1=3.000000e+00", "Interp resize has the parameter 1=3.0"),
        (
            "BinaryOp add 2 1 shuffled base output",
            "BinaryOp add 2 1 shuffled base output 0=2",
            "0=2",
        ),
        ("BinaryOp add 2 1 shuffled base", "BinaryOp add 2 1 shuffled shuffled", "BinaryOp add"),
        ("5=1 6=54", "5=0 6=54", "5=0, not 1"),
    ],
)
def test_other_graphs(old, new, message, save):
    text = GRAPH.param()
    assert text.count(old)
    weights = GRAPH.weights
    if "5=0" in new:
        weights = weights[: 4 + 54 * 4] + weights[4 + 54 * 4 + 8 :]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        pretrained.load(save(text.replace(old, new, 1), weights))
    assert "\n" not in str(caught.value)


def keys(distance):
    """Keys's kernel with a = -3/4, as in his eq. 4."""
    s, a = abs(distance), Fraction(-3, 4)
    if s < 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else Fraction(0)


def shrunk(image, outputs):
    """`[H, W, C]`, resized along its first axis; the borders are repeated."""
    inputs = len(image)
    rows = []
    for number in range(outputs):
        position = Fraction(2 * number + 1, 2) * Fraction(inputs, outputs) - Fraction(1, 2)
        near = range(floor(position) - 1, floor(position) + 3)
        rows.append(
            sum(float(keys(position - i)) * image[min(max(i, 0), inputs - 1)] for i in near)
        )
    return np.stack(rows)


@pytest.mark.parametrize("output_scale", [2, 3])
def test_graphs_that_shrink_the_images_of_scale_4(save, output_scale):
    tensors = srvgg(48, width=2)
    large, variables = pretrained.load(save(write_srvgg(tensors, 4)))
    writer, factor = write_srvgg(tensors, 4), output_scale / 4
    writer.layer("Interp", "shrink", ["output"], ["small"], f"0=3 1={factor} 2={factor}")
    converted = pretrained.parts(path := save(writer))["generator"].convert()
    assert converted.config["output_scale"] == output_scale
    x = RNG.uniform(-1, 1, (1, 5, 3, 3)).astype(np.float32)
    image = np.asarray(large.apply(variables, x)[0][0], np.float64)
    expected = shrunk(image, 5 * output_scale).transpose(1, 0, 2)
    expected = shrunk(expected, 3 * output_scale).transpose(1, 0, 2)
    network, variables = pretrained.load(path)
    np.testing.assert_allclose(network.apply(variables, x)[0][0], expected, atol=1e-5)


def test_layers_that_are_left_over(save):
    writer = write_srvgg(srvgg(width=2), 2)
    writer.layer("Interp", "shrink", ["output"], ["small"], "0=3 1=0.4 2=0.4")
    with pytest.raises(ValueError, match=r"Interp shrink has the parameter 1=0\.4, not 0\.5"):
        pretrained.load(save(writer))
    writer = write_srvgg(srvgg(width=2), 2)
    writer.layer("Interp", "shrink", ["output"], ["small"], "0=3 1=0.5 2=0.5")
    writer.layer("ReLU", "last", ["small"], ["positive"])
    with pytest.raises(ValueError, match="also has the ReLU last"):
        pretrained.load(save(writer))
    writer = write_rrdb(rrdb())
    path = save(writer.param().replace("-23310=1,2.0", "-23310=1,3.0", 1), writer.weights)
    with pytest.raises(ValueError, match=r"slope after body\.0\.rdb1\.conv1 is 0\.3"):
        pretrained.load(path)
