"""Real-ESRGAN's published networks, as BasicSR's and Real-ESRGAN's programs store them.

A file `.pth` is a dict of state dicts, `params` and `params_ema`, the averaged weights. The
networks take and return images in [-1, 1]; see `kd_jax.models.realesrgan`.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from kd_jax.core.network import Network, by_path
from kd_jax.core.types import Array, Variables
from kd_jax.models import realesrgan
from kd_jax.models.layers.spectral import COLLECTION
from kd_jax.pretrained.convert import (
    Converted,
    Layout,
    StateDict,
    StateDictReader,
    check_variables,
)

SIDE = 64
"""The side of the images for which a converted network is described; any other fits, too."""

UNET = ("down_0", "down_1", "down_2", "down_3", "up_2", "up_1", "up_0", "head_0", "head_1", "score")
"""The layers `conv0`, ..., `conv9` of the U-Net discriminator."""


def is_rrdb(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `rrdb`."""
    return {"conv_first.weight", "body.0.rdb1.conv1.weight"} <= set(names)


def is_srvgg(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `srvgg`, which are all in `body`."""
    names = set(names)
    return "body.0.weight" in names and all(name.startswith("body.") for name in names)


def is_unet_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `unet_discriminator`."""
    return {"conv0.weight", "conv1.weight_orig", "conv9.weight"} <= set(names)


def rrdb(tensors: StateDict, *, scale: int | None = None) -> Converted:
    """`kd_jax.models.realesrgan.rrdb`.

    Args:
      tensors: its state dict.
      scale: the scale. By default input and output images have the same number of channels, from
        which the scale follows; or it is 4 where no other is possible.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape, and is named; or the scale is
        not determined or contradicts the file.
    """
    layers = _Layers(tensors, "an RRDBNet")
    width, first = layers.shape("conv_first")[:2]
    channels = layers.shape("conv_last")[0]
    if scale is None:
        fitting = [s for s, k in realesrgan.UNSHUFFLING.items() if first == channels * k**2]
        if not fitting and first % 4:
            fitting = [4]
        if not fitting:
            raise ValueError(
                f"{layers.what} with {first} inputs of conv_first and {channels} outputs of "
                f"conv_last may have any scale: specify `scale`"
            )
        (scale,) = fitting
    unshuffling = realesrgan.UNSHUFFLING.get(scale, 1)
    if first % unshuffling**2:
        raise ValueError(
            f"{layers.what}: scale={scale} needs a multiple of {unshuffling**2} inputs of "
            f"conv_first, which has {first}"
        )
    blocks = 0
    while f"body.{blocks}.rdb1.conv1.weight" in layers.reader:
        blocks += 1
    growth = layers.shape("body.0.rdb1.conv1")[0]
    for ours, theirs in _rrdb_names(blocks).items():
        layers.read(ours, theirs)
    config: dict[str, Any] = {
        "scale": scale,
        "width": width,
        "blocks": blocks,
        "growth": growth,
        "channels": channels,
        "inputs": first // unshuffling**2,
    }
    converted = layers.convert(realesrgan.rrdb(**config), config, config["inputs"])
    return converted._replace(options={"scale": scale})


def srvgg(
    tensors: StateDict, *, scale: int | None = None, activation: str | None = None
) -> Converted:
    """`kd_jax.models.realesrgan.srvgg`.

    Args:
      tensors: its state dict.
      scale: the scale. By default input and output images have the same number of channels, from
        which the scale follows.
      activation: "prelu" has slopes in the file; without them, "relu" by default, or "leakyrelu",
        which the file does not determine.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape, and is named; or the scale is
        not determined or contradicts the file, or the activation contradicts the file.
    """
    layers = _Layers(tensors, "an SRVGGNet")
    numbers = {int(name.split(".")[1]) for name in layers.reader if name.split(".")[1].isdecimal()}
    last = max(numbers)
    if last % 2:
        raise ValueError(f"not {layers.what}: its last layer, body.{last}, is not a convolution")
    width, inputs = layers.shape("body.0")[:2]
    outputs = layers.shape(f"body.{last}")[0]
    if scale is None:
        scale = math.isqrt(outputs // inputs)
        if outputs != inputs * scale**2:
            raise ValueError(
                f"{layers.what} with {inputs} inputs of body.0 and {outputs} outputs of "
                f"body.{last} may have any scale: specify `scale`"
            )
    elif scale < 1 or outputs % scale**2:
        raise ValueError(
            f"{layers.what}: scale={scale} needs a multiple of {scale**2} outputs of body.{last}, "
            f"which has {outputs}"
        )
    slopes = "body.1.weight" in layers.reader
    if activation is None:
        activation = "prelu" if slopes else "relu"
    elif last and slopes != (activation == "prelu"):
        raise ValueError(
            f"{layers.what}: activation={activation!r}, but the file has "
            f"{'slopes' if slopes else 'no slopes, body.1.weight'}"
        )
    for ours, theirs in _srvgg_names(last // 2, slopes).items():
        if ours.startswith("slope_"):
            slope = layers.reader.vector(f"{theirs}.weight", (width,))
            layers.variables[f"params/{ours}"] = slope
        else:
            layers.read(ours, theirs)
    config: dict[str, Any] = {
        "scale": scale,
        "width": width,
        "layers": last // 2 - 1,
        "activation": activation,
        "channels": outputs // scale**2,
        "inputs": inputs,
    }
    converted = layers.convert(realesrgan.srvgg(**config), config, inputs)
    rest = {} if slopes else {"activation": activation}
    return converted._replace(options={"scale": scale, **rest})


def rrdb_layout(module: realesrgan.RRDBNet, variables: Variables) -> Layout:
    """The layout of `rrdb` for a network with these variables."""
    shapes = _shapes(variables, _rrdb_names(module.blocks))
    return Layout(partial(rrdb, scale=module.scale), shapes)


def srvgg_layout(module: realesrgan.SRVGGNet, variables: Variables) -> Layout:
    """The layout of `srvgg` for a network with these variables."""
    names = _srvgg_names(module.layers + 1, module.activation == "prelu")
    convert = partial(srvgg, scale=module.scale, activation=module.activation)
    return Layout(convert, _shapes(variables, names))


def _rrdb_names(blocks: int) -> dict[str, str]:
    """The original names of the layers by ours."""
    names = {"stem": "conv_first"}
    for block in range(blocks):
        for dense in range(3):
            for index in range(5):
                ours = f"block_{block}/dense_{dense}/conv_{index}"
                names[ours] = f"body.{block}.rdb{dense + 1}.conv{index + 1}"
    return names | {
        "trunk": "conv_body",
        "up_0": "conv_up1",
        "up_1": "conv_up2",
        "full": "conv_hr",
        "image": "conv_last",
    }


def _srvgg_names(layers: int, slopes: bool) -> dict[str, str]:
    """The original names of the layers and of the slopes by ours."""
    names = {}
    for index in range(layers):
        names[f"layer_{index}"] = f"body.{2 * index}"
        if slopes:
            names[f"slope_{index}"] = f"body.{2 * index + 1}"
    return names | {"image": f"body.{2 * layers}"}


def _shapes(variables: Variables, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes of the original tensors of layers with these names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in by_path(variables["params"]).items():
        ours, _, kind = path.rpartition("/")
        if path in names:
            shapes[f"{names[path]}.weight"] = leaf.shape
        elif kind == "kernel" and ours in names:
            height, width, inputs, outputs = leaf.shape
            shapes[f"{names[ours]}.weight"] = (outputs, inputs, height, width)
        elif ours in names:
            shapes[f"{names[ours]}.{kind}"] = leaf.shape
    return shapes


def unet_discriminator(tensors: StateDict, *, skip: bool = True) -> Converted:
    """`kd_jax.models.realesrgan.unet_discriminator`.

    Args:
      tensors: its state dict.
      skip: whether features of the same size are added, which the file does not determine.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    layers = _Layers(tensors, "a U-Net discriminator")
    width, inputs = layers.shape("conv0")[:2]
    for number, ours in enumerate(UNET):
        layers.read(ours, f"conv{number}", spectral=0 < number < 9)
    config: dict[str, Any] = {"width": width, "skip": skip}
    converted = layers.convert(realesrgan.unet_discriminator(**config), config, inputs)
    return converted._replace(options={"skip": skip})


class _Layers:
    """Converts convolutions by their names.

    Args:
      tensors: the state dict.
      what: the expected network, for error messages.
    """

    def __init__(self, tensors: StateDict, what: str):
        self.reader, self.what = StateDictReader(tensors, what), what
        self.variables: dict[str, Array] = {}

    def shape(self, layer: str) -> tuple[int, ...]:
        """Outputs, inputs, rows and columns of a layer's kernel."""
        shape = self.reader.shape(f"{layer}.weight")
        if len(shape) != 4 or 0 in shape:
            raise ValueError(f"{self.what}: {layer}.weight has shape {shape}, not 4 axes")
        return shape

    def read(self, ours: str, theirs: str, *, spectral: bool = False) -> None:
        """Reads a layer with a bias, or with spectral normalisation and without."""
        weight = f"{theirs}.weight{'_orig' if spectral else ''}"
        self.variables[f"params/{ours}/kernel"] = self.reader.kernel(weight)
        if spectral:
            for name, value in self.reader.spectral_vectors(theirs).items():
                self.variables[f"{COLLECTION}/{ours}/{name}"] = value
        else:
            self.variables[f"params/{ours}/bias"] = self.reader.vector(f"{theirs}.bias")

    def convert(self, network: Network, config: dict[str, Any], inputs: int) -> Converted:
        """The network with all variables read so far."""
        self.reader.check_all_read()
        variables = traverse_util.unflatten_dict(self.variables, sep="/")
        images = jax.ShapeDtypeStruct((1, SIDE, SIDE, inputs), jnp.float32)
        return check_variables(self.what, Converted(network, variables, config), images)
