"""Real-ESRGAN's generators from ncnn's format, in which the authors publish programs for GPUs.

A graph is compared with the network layer by layer; nothing else is accepted. The scale-2 and
scale-3 graphs of animevideov3 have the weights of scale 4, and shrink its images with bicubic
interpolation (`output_scale`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from kd_jax.models import realesrgan as models
from kd_jax.pretrained import realesrgan
from kd_jax.pretrained.convert import Converted
from kd_jax.pretrained.io.ncnn import Graph, Layer, Value

_NEAREST, _BICUBIC, _SUM, _ADD, _MULTIPLY = 1, 3, 1, 0, 2
_NONE, _RELU, _LEAKY_RELU = 0, 1, 2
_SLOPES = {None: "prelu", 0.0: "relu", 0.1: "leakyrelu"}


def converter(graph: Graph) -> tuple[str, Callable[[], Converted]]:
    """A readable name of a graph's network, and the function that converts it.

    The function raises a ValueError that names the first layer that does not fit.
    """
    if any(layer.kind == "PixelShuffle" for layer in graph.layers):
        return "SRVGGNetCompact (Real-ESRGAN, ncnn)", partial(_srvgg, graph)
    return "RRDBNet (Real-ESRGAN, ncnn)", partial(_rrdb, graph)


def _rrdb(graph: Graph) -> Converted:
    walk = _Walk(graph, "an RRDBNet of scale 4")
    stem = h = walk.plain("conv_first", graph.source)
    blocks = 0
    while walk.is_activated(h):
        before_block = h
        for dense in (1, 2, 3):
            path, grown = f"body.{blocks}.rdb{dense}.conv", [h]
            for index in (1, 2, 3, 4):
                grown.append(walk.leaky(f"{path}{index}", walk.concatenate(grown)))
            h = walk.add_scaled(walk.plain(f"{path}5", walk.concatenate(grown)), h)
        h = walk.add_scaled(h, before_block)
        blocks += 1
    h = walk.add(stem, walk.plain("conv_body", h))
    for name in ("conv_up1", "conv_up2"):
        h = walk.leaky(name, walk.enlarge(h, 2))
    walk.plain("conv_last", walk.leaky("conv_hr", h))
    return realesrgan.rrdb(walk.finish(), scale=4)._replace(options={})


def _srvgg(graph: Graph) -> Converted:
    walk = _Walk(graph, "an SRVGGNet")
    h, slopes, index = graph.source, set(), 0
    while (shuffle := walk.find("PixelShuffle", (layer := walk.conv(index, h)).output)) is None:
        h, slope = walk.activate(layer, f"body.{index + 1}.weight")
        slopes.add(slope)
        index += 2
    walk.expect(layer, {9: _NONE})
    if len(slopes) != 1 or (slope := slopes.pop()) not in _SLOPES:
        raise ValueError(f"not {walk.what}: its activations are not PReLUs, nor of slope 0 or 0.1")
    walk.need("PixelShuffle", layer.output)
    scale = walk.expect(shuffle, {1: 0})[0]
    image = walk.add(shuffle.output, walk.enlarge(graph.source, scale))
    output_scale = walk.shrink(image, scale)
    converted = realesrgan.srvgg(walk.finish(), scale=scale, activation=_SLOPES[slope])
    converted = converted._replace(options={})  # which the graph determines
    if output_scale is None:
        return converted
    config = {**converted.config, "output_scale": output_scale}
    return converted._replace(network=models.srvgg(**config), config=config)


class _Walk:
    """Finds the layers of a graph one by one by the blobs that they read.

    Args:
      graph: the graph.
      what: the expected network, for error messages.
    """

    def __init__(self, graph: Graph, what: str):
        self.what = what
        self.left: dict[tuple[str, tuple[str, ...]], list[Layer]] = {}
        for layer in graph.layers:
            self.left.setdefault((layer.kind, layer.inputs), []).append(layer)
        self.tensors: dict[str, np.ndarray] = {}

    def find(self, kind: str, *inputs: str) -> Layer | None:
        """The only layer of this type that reads these blobs and has not been read, or None."""
        fitting = self.left.get((kind, inputs), [])
        return fitting[0] if len(fitting) == 1 else None

    def need(self, kind: str, *inputs: str) -> Layer:
        """`find`, and removes the layer from those that are left; a ValueError if there is none."""
        layer = self.find(kind, *inputs)
        if layer is None:
            others = [key for key in self.left if inputs[0] in key[1]] or list(self.left)
            first = self.left[others[0]][0] if others else None
            raise ValueError(
                f"not {self.what}: a single {kind} of {', '.join(inputs)} is needed, not "
                f"{f'{first.kind} {first.name}' if first else 'the end'}"
            )
        del self.left[kind, inputs]
        return layer

    def expect(self, layer: Layer, values: Mapping[int, Value]) -> Mapping[int, Any]:
        """The parameters of a layer, after a check that these have the values."""
        for key, value in values.items():
            stored = layer.parameters[key]
            pairs = (np.atleast_1d(stored), np.atleast_1d(value))
            if len(pairs[0]) != len(pairs[1]) or not np.allclose(*pairs, rtol=1e-6, atol=0):
                raise ValueError(
                    f"not {self.what}: {layer.kind} {layer.name} has the parameter {key}={stored}, "
                    f"not {value}"
                )
        return layer.parameters

    def conv(self, number: int, source: str, name: str = "") -> Layer:
        """Reads a 3x3 convolution by its original name, `body.{number}` by default."""
        layer = self.need("Convolution", source)
        self.expect(layer, {1: 3, 4: 1, 5: 1})
        name = name or f"body.{number}"
        self.tensors |= {f"{name}.{key}": value for key, value in layer.arrays.items()}
        return layer

    def plain(self, name: str, source: str) -> str:
        """A convolution without activation."""
        layer = self.conv(0, source, name)
        self.expect(layer, {9: _NONE})
        return layer.output

    def leaky(self, name: str, source: str) -> str:
        """A convolution and a leaky ReLU of slope 0.2."""
        output, slope = self.activate(self.conv(0, source, name), "")
        if slope != 0.2:
            raise ValueError(f"not {self.what}: the slope after {name} is {slope}, not 0.2")
        return output

    def activate(self, conv: Layer, name: str) -> tuple[str, float | None]:
        """The output of a convolution's activation, and its slope; None for a PReLU.

        Args:
          conv: the convolution, which may contain the activation.
          name: the original name of a PReLU's slopes.
        """
        fused, arguments = conv.parameters[9], conv.parameters[10]
        if fused == _RELU:
            return conv.output, 0.0
        if fused == _LEAKY_RELU and isinstance(arguments, tuple) and len(arguments) == 1:
            return conv.output, round(arguments[0], 6)
        self.expect(conv, {9: _NONE})
        prelu = self.find("PReLU", conv.output)
        if prelu is not None and name:
            self.tensors[name] = self.need("PReLU", conv.output).arrays["slope"]
            return prelu.output, None
        relu = self.need("ReLU", conv.output)
        return relu.output, round(self.expect(relu, {})[0], 6)

    def is_activated(self, source: str) -> bool:
        """Whether the convolution of this blob has an activation."""
        layer = self.find("Convolution", source)
        if layer is None:
            return False
        return layer.parameters[9] != _NONE or self.find("ReLU", layer.output) is not None

    def concatenate(self, sources: list[str]) -> str:
        """The concatenation of blobs along the channels."""
        if len(sources) == 1:
            return sources[0]
        layer = self.need("Concat", *sources)
        self.expect(layer, {0: 0})
        return layer.output

    def enlarge(self, source: str, factor: int) -> str:
        """A blob enlarged by repetition of its pixels."""
        layer = self.need("Interp", source)
        self.expect(layer, {0: _NEAREST, 1: factor, 2: factor})
        return layer.output

    def shrink(self, source: str, scale: int) -> int | None:
        """The factor that remains of the scale after an interpolation; None if there is none."""
        if self.find("Interp", source) is None:
            return None
        layer = self.need("Interp", source)
        output_scale = max(1, round(float(np.atleast_1d(layer.parameters[1])[0]) * scale))
        factor = output_scale / scale
        self.expect(layer, {0: _BICUBIC, 1: factor, 2: factor})
        return output_scale

    def add(self, first: str, second: str) -> str:
        """The sum of two blobs."""
        reverse = self.find("BinaryOp", second, first)
        layer = self.need("BinaryOp", *(reverse.inputs if reverse else (first, second)))
        self.expect(layer, {0: _ADD, 1: 0})
        return layer.output

    def add_scaled(self, residual: str, source: str) -> str:
        """`0.2 * residual + source`, as one layer or as two."""
        if self.find("BinaryOp", residual) is None:
            layer = self.need("Eltwise", residual, source)
            self.expect(layer, {0: _SUM, 1: (0.2, 1.0)})
            return layer.output
        layer = self.need("BinaryOp", residual)
        self.expect(layer, {0: _MULTIPLY, 1: 1, 2: 0.2})
        return self.add(layer.output, source)

    def finish(self) -> dict[str, np.ndarray]:
        """The tensors by their original names; a ValueError if a layer is left."""
        if self.left:
            ((layer, *_), *_) = self.left.values()
            raise ValueError(f"not {self.what}: it also has the {layer.kind} {layer.name}")
        return self.tensors
