"""Reads networks in ncnn's format: a graph as text, `.param`, and its weights, `.bin`.

The text has the magic number 7767517, the numbers of layers and blobs, and a line for each layer:
type, name, numbers of inputs and outputs, their names, and parameters `key=value`; the key -23300-k
has an array as the parameter k. The weights follow one another in the order of the layers: a
kernel after a tag of four bytes for its type, other arrays in float32; all little-endian.

Only the types of layers in `PARAMETERS` are read, with the parameters there: those of plain
convolutional networks of images. Everything else is refused by name. Nothing is executed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from kd_jax.pretrained.io.unpickle import UnsafeFileError, printable

MAGIC = b"7767517"
MAX_TEXT = 4 << 20
"""Maximum bytes of the graph."""

Value: TypeAlias = "int | float | tuple[float, ...]"

PARAMETERS: dict[str, dict[int, Value]] = {
    "Input": {0: 0, 1: 0, 2: 0},
    "Split": {},
    "Convolution": {0: 0, 1: 0, 4: 0, 5: 0, 6: 0, 9: 0, 10: ()},
    "PReLU": {0: 0},
    "ReLU": {0: 0.0},
    "Interp": {0: 0, 1: 1.0, 2: 1.0},
    "BinaryOp": {0: 0, 1: 0, 2: 0.0},
    "Eltwise": {0: 0, 1: ()},
    "Concat": {0: 0},
    "PixelShuffle": {0: 1, 1: 0},
}
"""The supported types of layers, and their parameters with the defaults."""

# Further parameters of a convolution may be present with these values: dilation and stride.
_TRIVIAL = {"Convolution": {2: 1, 3: 1, 12: 1, 13: 1}}

_FLOAT32, _FLOAT16 = 0, 0x01306B47
_NUMBER = re.compile(r"[+-]?(\d{1,15})(\.\d{0,20})?(e[+-]?\d{1,3})?")


class Layer(NamedTuple):
    """A layer of a graph.

    Attributes:
      kind: its type, one of `PARAMETERS`.
      name: its name.
      inputs: the names of the blobs that it reads. Those that a `Split` copies have its input's.
      output: the blob that it writes.
      parameters: all parameters of its type, with the defaults.
      arrays: `weight [outputs, inputs, rows, columns]` and `bias` of a convolution, `slope` of a
        PReLU.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    parameters: Mapping[int, Value]
    arrays: Mapping[str, np.ndarray]


class Graph(NamedTuple):
    """A network.

    Attributes:
      source: the blob of the images.
      layers: the layers in the order of the file, without those of types Input and Split.
    """

    source: str
    layers: tuple[Layer, ...]


def parse(text: memoryview, weights: memoryview) -> Graph:
    """A graph with its weights; arrays are read-only views of the weights' bytes.

    Args:
      text: the contents of the `.param` file.
      weights: the contents of the `.bin` file.

    Raises:
      UnsafeFileError: there is a layer, a parameter or a type of weights that is not supported.
      ValueError: the graph is damaged, or the weights do not fit it.
    """
    if len(text) > MAX_TEXT:
        raise UnsafeFileError(f"has {len(text)} bytes; the limit of an ncnn graph is {MAX_TEXT}")
    try:
        lines = str(text, "ascii").splitlines()
    except UnicodeDecodeError:
        raise ValueError("is damaged: an ncnn graph is ASCII text") from None
    lines = [line for line in lines if line.strip()]
    if len(lines) < 2 or lines[0].strip() != MAGIC.decode():
        raise ValueError("is not an ncnn graph, or is truncated")
    counts = [_integer(word, "the numbers of layers and blobs") for word in lines[1].split()]
    if len(counts) != 2 or counts[0] != len(lines) - 2:
        raise ValueError(f"is damaged: it has {len(lines) - 2} layers, and claims {lines[1][:50]}")
    reader = _Weights(weights)
    aliases: dict[str, str] = {}  # of each blob, itself or the blob that it copies
    sources, layers = [], []
    for line in lines[2:]:
        kind, name, inputs, outputs, words = _fields(line)
        parameters = _parameters(kind, name, words)
        unknown = [blob for blob in inputs if blob not in aliases]
        if unknown:
            raise ValueError(f"is damaged: {name} reads {unknown[0]}, which no layer before writes")
        again = [blob for blob in outputs if blob in aliases]
        if again or len(set(outputs)) != len(outputs):
            raise ValueError(f"is damaged: {name} writes {(again or outputs)[0]} again")
        inputs = tuple(aliases[blob] for blob in inputs)
        if kind == "Split" and len(inputs) == 1:
            aliases |= dict.fromkeys(outputs, inputs[0])
            continue
        if len(outputs) != 1 or (kind == "Input") != (not inputs) or kind == "Split":
            raise ValueError(
                f"is damaged: {kind} {name} has {len(inputs)} inputs and {len(outputs)} outputs"
            )
        aliases[outputs[0]] = outputs[0]
        if kind == "Input":
            sources.append(outputs[0])
        else:
            arrays = dict(reader.arrays(kind, name, parameters))
            layers.append(Layer(kind, name, inputs, outputs[0], parameters, arrays))
    if len(aliases) != counts[1]:
        raise ValueError(f"is damaged: it has {len(aliases)} blobs, and claims {counts[1]}")
    if len(sources) != 1:
        raise UnsafeFileError(f"has {len(sources)} layers of type Input; 1 is supported")
    reader.check_end()
    return Graph(sources[0], tuple(layers))


def _fields(line: str) -> tuple[str, str, tuple[str, ...], tuple[str, ...], list[str]]:
    """Type, name, inputs, outputs and parameters of a layer."""
    kind, *rest = line.split()
    if kind not in PARAMETERS:
        raise UnsafeFileError(
            f"has a layer of type {printable(kind)}; supported are {', '.join(PARAMETERS)}"
        )
    if len(rest) < 3:
        raise ValueError(f"is damaged: the line {printable(line)} is not a layer's")
    name, words = printable(rest[0]), rest[3:]
    reads, writes = (_integer(word, f"the numbers of blobs of {name}") for word in rest[1:3])
    if reads + writes > len(words):
        raise ValueError(f"is damaged: {name} has fewer blobs than it claims")
    blobs = tuple(printable(word) for word in words[: reads + writes])
    return kind, name, blobs[:reads], blobs[reads:], words[reads + writes :]


def _parameters(kind: str, name: str, words: list[str]) -> dict[int, Value]:
    """The parameters of a layer, with the defaults of those that are not in the file."""
    parameters, stored = dict(PARAMETERS[kind]), set()
    for word in words:
        left, equals, right = word.partition("=")
        key = _integer(left.removeprefix("-"), f"a parameter of {name}")
        array = left.startswith("-") and key >= 23300
        key = key - 23300 if array else key
        if not equals or key in stored or left.startswith("-") != array:
            raise ValueError(f"is damaged: {name} has the parameter {printable(word)}")
        stored.add(key)
        values = [_number(part, name) for part in right.split(",")]
        if array and (not values or values.pop(0) != len(values)):
            raise ValueError(f"is damaged: {name} has the parameter {printable(word)}")
        value: Value = tuple(values) if array else values[0]
        if not array and len(values) != 1:
            raise ValueError(f"is damaged: {name} has the parameter {printable(word)}")
        if key in parameters:
            expected = type(parameters[key])
            if expected is float and isinstance(value, int):
                value = float(value)
            if type(value) is not expected:
                raise ValueError(f"is damaged: {name} has the parameter {printable(word)}")
            parameters[key] = value
        elif value != _TRIVIAL.get(kind, {}).get(key, 0):
            raise UnsafeFileError(
                f"has the parameter {printable(word)} of the {kind} {name}, which is not supported"
            )
    return parameters


def _integer(word: str, what: str) -> int:
    if not re.fullmatch(r"\d{1,10}", word):
        raise ValueError(f"is damaged: {printable(word)} is not a number, for {what}")
    return int(word)


def _number(word: str, name: str) -> int | float:
    match = _NUMBER.fullmatch(word)
    if match is None or not np.isfinite(float(word)):
        raise ValueError(f"is damaged: {name} has the value {printable(word)}")
    return float(word) if match[2] or match[3] else int(word)


class _Weights:
    """Reads arrays from consecutive bytes."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def arrays(
        self, kind: str, name: str, parameters: Mapping[int, Value]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays of a layer."""
        if kind == "PReLU":
            yield "slope", self.read(name, self.positive(name, parameters[0]), np.dtype("<f4"))
        if kind != "Convolution":
            return
        outputs, side, size = (self.positive(name, parameters[key]) for key in (0, 1, 6))
        if size % (outputs * side**2):
            raise ValueError(
                f"is damaged: {name} has {size} weights for {outputs} outputs of {side}x{side}"
            )
        (tag,) = self.read(name, 1, np.dtype("<u4"))
        if tag not in (_FLOAT32, _FLOAT16):
            raise UnsafeFileError(
                f"has weights of {name} with the tag {int(tag):#010x}; supported are float32 and "
                f"float16"
            )
        dtype = np.dtype("<f2" if tag == _FLOAT16 else "<f4")
        weight = self.read(name, size, dtype)
        self.at += -self.at % 4
        yield "weight", weight.reshape(outputs, -1, side, side)
        if parameters[5]:
            yield "bias", self.read(name, outputs, np.dtype("<f4"))

    def positive(self, name: str, count: Value) -> int:
        """A parameter as a positive integer."""
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"is damaged: {name} has the size {count}")
        return count

    def read(self, name: str, count: int, dtype: np.dtype) -> np.ndarray:
        """The next numbers."""
        size = count * dtype.itemsize
        if size > len(self.data) - self.at:
            raise ValueError(f"is truncated: the weights of {name} are incomplete")
        array = np.frombuffer(self.data[self.at : self.at + size], dtype)
        self.at += size
        return array

    def check_end(self) -> None:
        """Raises a ValueError if bytes are left."""
        if self.at != len(self.data):
            raise ValueError(f"is damaged: {len(self.data) - self.at} bytes follow the weights")
