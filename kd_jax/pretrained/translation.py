"""Pix2pix's and CycleGAN's published networks, `*_net_G*.pth` and `*_net_D*.pth`.

Their layers are numbered, `model.N`, counting those without tensors: padding, activation, dropout.
The authors' first programs stored statistics of instance normalisation, which their later ones
delete on reading. They are left out here, too, unless the norm also has a scale and a bias, which
the authors' programs never had; the readers' argument `tracked` decides otherwise. The prefix
`module.` of data-parallel training is left out as well.

A convolution that is not followed by batch normalisation has a bias here; it is zero if the
original does not have one.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from kd_jax.core.network import Network, by_path
from kd_jax.core.types import Array, Variables
from kd_jax.models import translation
from kd_jax.models.translation import BATCH, Instance, Norm
from kd_jax.pretrained.convert import (
    Converted,
    Layout,
    StateDict,
    StateDictReader,
    check_variables,
)

SIDE = 256
"""The image size that the published networks were trained with."""

DROPOUT = 0.5
"""The dropout rate of the authors' program, in networks with dropout."""


def is_resnet_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `resnet_generator`, which starts with padding."""
    return {"model.1.weight", "model.4.weight", "model.7.weight"} <= set(_strip_parallel(names))


def is_unet_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `unet_generator`, whose levels are nested."""
    return {"model.model.0.weight", "model.model.1.model.1.weight"} <= set(_strip_parallel(names))


def is_patch_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `patch_discriminator`."""
    return {"model.0.weight", "model.2.weight", "model.5.weight"} <= set(_strip_parallel(names))


def is_pixel_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `pixel_discriminator`."""
    return {"net.0.weight", "net.2.weight", "net.5.weight"} <= set(_strip_parallel(names))


def resnet_generator(
    tensors: StateDict,
    *,
    padding: str | None = None,
    dropout: float | None = None,
    tracked: bool | None = None,
) -> Converted:
    """`kd_jax.models.translation.resnet_generator`.

    Args:
      tensors: its state dict.
      padding: the padding of the blocks' convolutions. The tensors distinguish "zero" from the
        others, but not "reflect", which is the default, from "replicate".
      dropout: the dropout rate in training; by default `DROPOUT` if the layers' numbers leave room
        for dropout, else 0.
      tracked: whether instance normalisation uses the running statistics in the file in inference.
        By default it does if it also has a scale and a bias.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape, and is named; or an argument
        contradicts the file.
    """
    reader = _LayerReader(tensors, "a ResNet generator", "model.", 1, tracked)
    # Reimplementations call a block's layers `block`.
    inner = "block" if reader.has("model.10.block.") else "conv_block"
    blocks: list[str] = []
    while reader.has(block := f"model.{10 + len(blocks)}.{inner}."):
        blocks.append(block)
    # A block is padding, convolution, norm, ReLU and perhaps dropout, then padding, convolution and
    # norm again; zero padding is part of the convolutions.
    zero = any(reader.has(f"{block}0.") for block in blocks)
    first, second = (0, 3) if zero else (1, 5)
    drops = bool(blocks) and not any(reader.has(f"{block}{second}.weight") for block in blocks)
    if padding is None:
        padding = "zero" if zero else "reflect"
    elif blocks and zero != (padding == "zero"):
        raise ValueError(
            f"{reader.what}: padding={padding!r}, but the tensors are those of blocks "
            f"{'padded' if zero else 'not padded'} with zeros"
        )
    stem = reader.layer("stem", "model.", 1, 7)
    half = reader.layer("down_0", "model.", 4, 3, stem)
    quarter = reader.layer("down_1", "model.", 7, 3, half)
    hidden = []
    for index, block in enumerate(blocks):
        ours = f"block_{index}/layer_"
        hidden.append(reader.layer(f"{ours}0", block, first, 3, quarter))
        reader.layer(f"{ours}1", block, second + drops, 3, hidden[-1], quarter)
    at = 10 + len(blocks)
    third = reader.layer("up_0", "model.", at, 3, quarter, transposed=True)
    fourth = reader.layer("up_1", "model.", at + 3, 3, third, transposed=True)
    config: dict[str, Any] = {
        "width": [stem, half, quarter, *hidden, third, fourth],
        "channels": reader.conv("image", f"model.{at + 7}", 7, fourth, bias=True),
        "blocks": len(blocks),
        "norm": reader.norm,
        "padding": padding,
        "dropout": DROPOUT * drops if dropout is None else dropout,
    }
    rest = {name: config[name] for name in ("padding", "dropout")}
    return reader.convert(translation.resnet_generator, config, options=rest)


def resnet_layout(module: translation.ResNetGenerator, variables: Variables) -> Layout:
    """The layout of `resnet_generator` for a network with these variables.

    Raises:
      ValueError: the blocks are separable or the input is added, unlike the original's.
    """
    if module.separable or module.residual:
        option = "separable" if module.separable else "residual"
        raise ValueError(f"CycleGAN's ResNet has no option {option}, which this network has")
    blocks = len(module.widths) - 5
    first, second = (0, 3) if module.padding == "zero" else (1, 5)
    names = {"stem": "model.1", "down_0": "model.4", "down_1": "model.7"}
    for index in range(blocks):
        block = f"model.{10 + index}.conv_block."
        names[f"block_{index}/layer_0"] = f"{block}{first}"
        names[f"block_{index}/layer_1"] = f"{block}{second + bool(module.dropout)}"
    for index in range(2):
        names[f"up_{index}"] = f"model.{10 + blocks + 3 * index}"
    names["image"] = f"model.{17 + blocks}"
    kinds = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in (leaf for tree in variables.values() for leaf in by_path(tree).items()):
        layer, _, kind = path.rpartition("/")
        ours = layer.removesuffix("/conv").removesuffix("/norm")
        if ours not in names:
            continue
        prefix, _, number = names[ours].rpartition(".")
        if layer.endswith("/norm"):
            shapes[f"{prefix}.{int(number) + 1}.{kinds[kind]}"] = leaf.shape
        elif kind == "kernel":
            height, width, inputs, outputs = leaf.shape
            order = (inputs, outputs) if ours.startswith("up_") else (outputs, inputs)
            shapes[f"{names[ours]}.weight"] = (*order, height, width)
        elif isinstance(module.norm, Instance) or ours == "image":
            shapes[f"{names[ours]}.{kind}"] = leaf.shape
    options: dict[str, Any] = {"padding": module.padding, "dropout": module.dropout}
    if isinstance(module.norm, Instance):
        options["tracked"] = module.norm.tracked
    return Layout(partial(resnet_generator, **options), shapes)


def unet_generator(
    tensors: StateDict, *, dropout: float = DROPOUT, tracked: bool | None = None
) -> Converted:
    """`kd_jax.models.translation.unet_generator`.

    Args:
      tensors: its state dict.
      dropout: the dropout rate in training, which the file does not determine.
      tracked: whether instance normalisation uses the running statistics in the file in inference.
        By default it does if it also has a scale and a bias.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape, and is named; or `tracked`
        contradicts the file.
    """
    # A level is LeakyReLU, convolution, norm, the next level, ReLU, transposed convolution, norm.
    # The outermost has neither LeakyReLU nor norms; the innermost only the second norm.
    names, levels = _strip_parallel(tensors), ["model.model.", "model.model.1.model."]
    while any(name.startswith(f"{levels[-1]}3.model.") for name in names):
        levels.append(f"{levels[-1]}3.model.")
    last = len(levels) - 1
    reader = _LayerReader(tensors, "a U-Net generator", levels[last], 3, tracked)
    down = [reader.conv("down_0/conv", "model.model.0", 4)]
    for index in range(1, last):
        down.append(reader.layer(f"down_{index}", levels[index], 1, 4, down[-1]))
    down.append(reader.conv(f"down_{last}/conv", f"{levels[last]}1", 4, down[-1]))
    up: list[int] = []
    inputs = down[last]
    for index in reversed(range(last)):
        at = 3 if index == last - 1 else 5
        up.append(reader.layer(f"up_{index}", levels[index + 1], at, 4, inputs, transposed=True))
        inputs = down[index] + up[-1]
    config: dict[str, Any] = {
        "width": [*down, *up],
        "channels": reader.conv("image", "model.model.3", 4, inputs, transposed=True, bias=True),
        "downs": len(levels),
        "norm": reader.norm,
        "dropout": dropout,
    }
    side, rest = max(SIDE, 2 ** len(levels)), {"dropout": dropout}
    return reader.convert(translation.unet_generator, config, side, rest)


def patch_discriminator(tensors: StateDict, *, tracked: bool | None = None) -> Converted:
    """`kd_jax.models.translation.patch_discriminator`.

    The tensors of a conditional discriminator determine its number of input channels, but not which
    belong to the image: its input is described as a single image with all channels.

    Args:
      tensors: its state dict.
      tracked: whether instance normalisation uses the running statistics in the file in inference.
        By default it does if it also has a scale and a bias.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape, and is named; or `tracked`
        contradicts the file.
    """
    reader = _LayerReader(tensors, "a patch discriminator", "model.", 2, tracked)
    # Convolution and LeakyReLU; repeated convolution, norm and LeakyReLU; a last convolution.
    layers = 0
    while reader.has(f"model.{3 * layers + 5}."):
        layers += 1
    widths = [reader.conv("layer_0/conv", "model.0", 4, bias=True)]
    for index in range(1, layers + 1):
        widths.append(reader.layer(f"layer_{index}", "model.", 3 * index - 1, 4, widths[-1]))
    reader.conv("score", f"model.{3 * layers + 2}", 4, widths[-1], 1, bias=True)
    config: dict[str, Any] = {"width": widths, "layers": layers, "norm": reader.norm}
    return reader.convert(translation.patch_discriminator, config)


def pixel_discriminator(tensors: StateDict, *, tracked: bool | None = None) -> Converted:
    """`kd_jax.models.translation.pixel_discriminator`; see `patch_discriminator`.

    Args:
      tensors: its state dict.
      tracked: whether instance normalisation uses the running statistics in the file in inference.
        By default it does if it also has a scale and a bias.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape, and is named; or `tracked`
        contradicts the file.
    """
    reader = _LayerReader(tensors, "a pixel discriminator", "net.", 2, tracked)
    first = reader.conv("layer_0/conv", "net.0", 1, bias=True)
    second = reader.layer("layer_1", "net.", 2, 1, first)
    reader.conv("score", "net.5", 1, second, 1)
    config: dict[str, Any] = {"width": [first, second], "norm": reader.norm}
    return reader.convert(translation.pixel_discriminator, config)


def _strip_parallel(names: Iterable[str]) -> list[str]:
    """The names without the prefix of data-parallel training, which may be repeated."""
    names = list(names)
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


class _LayerReader:
    """Converts numbered layers, whose norms follow their convolutions.

    All norms are of one kind. Batch normalisation has weights; with instance normalisation, which
    may have them, every convolution has a bias; without normalisation only convolutions with
    `bias=True` have one.

    Args:
      tensors: the state dict.
      what: the expected network, for error messages.
      prefix: the prefix of a layer that has a norm.
      at: the number of that layer.
      tracked: as in the readers.

    Raises:
      ValueError: `tracked` is set, but there is no instance normalisation.
    """

    def __init__(
        self, tensors: StateDict, what: str, prefix: str, at: int, tracked: bool | None = None
    ):
        own = dict(zip(_strip_parallel(tensors), tensors.values(), strict=True))
        self.reader, self.what = StateDictReader(own, what), what
        self.norm: Norm | None = None
        affine = f"{prefix}{at + 1}.weight" in own
        self.statistics = statistics = f"{prefix}{at + 1}.running_mean" in own
        if f"{prefix}{at}.bias" in own or (statistics and not affine):
            self.norm = Instance(
                affine=affine, tracked=affine and statistics if tracked is None else tracked
            )
        elif affine:
            self.norm = BATCH
        if tracked is not None and not isinstance(self.norm, Instance):
            kind = "batch normalisation" if affine else "no normalisation"
            raise ValueError(
                f"{what}: tracked={tracked} is for instance normalisation; the tensors have {kind}"
            )
        self.channels = 0
        self.variables: dict[str, Array] = {}

    def has(self, start: str) -> bool:
        """Whether a tensor's name starts with `start`."""
        return any(name.startswith(start) for name in self.reader)

    def conv(
        self,
        ours: str,
        source: str,
        side: int,
        inputs: int | None = None,
        outputs: int | None = None,
        *,
        transposed: bool = False,
        bias: bool = False,
    ) -> int:
        """Reads a convolution.

        Args:
          ours: its path here.
          source: its name in the file.
          side: the kernel size.
          inputs: the number of input channels; None for those of the image, any number.
          outputs: the number of output channels; None for any number.
          transposed: whether it is a transposed convolution.
          bias: whether it has a bias with every kind of norm.

        Returns:
          The number of output channels.
        """
        width = self._kernel(ours, source, side, inputs, outputs, transposed)
        has_bias = bias or isinstance(self.norm, Instance)
        self.variables[f"params/{ours}/bias"] = (
            self.reader.vector(f"{source}.bias", (width,)) if has_bias else jnp.zeros(width)
        )
        return width

    def layer(
        self,
        ours: str,
        prefix: str,
        at: int,
        side: int,
        inputs: int | None = None,
        outputs: int | None = None,
        *,
        transposed: bool = False,
    ) -> int:
        """Reads the convolution of this number and the norm after it; see `conv`."""
        source, norm = f"{prefix}{at}", f"{prefix}{at + 1}"
        self.reader.drop(f"{norm}.num_batches_tracked")
        if self.norm == BATCH:
            width = self._kernel(f"{ours}/conv", source, side, inputs, outputs, transposed)
        else:
            width = self.conv(f"{ours}/conv", source, side, inputs, outputs, transposed=transposed)
        affine = self.norm == BATCH or (isinstance(self.norm, Instance) and self.norm.affine)
        tracked = self.norm == BATCH or (isinstance(self.norm, Instance) and self.norm.tracked)
        if not tracked:
            self.reader.drop(f"{norm}.running_mean", f"{norm}.running_var")
        for path, name, exists in (
            ("params/{}/norm/scale", "weight", affine),
            ("params/{}/norm/bias", "bias", affine),
            ("batch_stats/{}/norm/mean", "running_mean", tracked),
            ("batch_stats/{}/norm/var", "running_var", tracked),
        ):
            if exists:
                value = self.reader.vector(f"{norm}.{name}", (width,))
                self.variables[path.format(ours)] = value
        return width

    def convert(
        self,
        make: Callable[..., Network],
        config: dict[str, Any],
        side: int = SIDE,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Converted:
        """The network with all variables read so far, for images of this size."""
        self.reader.check_all_read()
        if isinstance(self.norm, Instance) and self.statistics:
            options = {**options, "tracked": self.norm.tracked}
        variables = traverse_util.unflatten_dict(self.variables, sep="/")
        return check_variables(
            self.what,
            Converted(make(**config), variables, config, options=options),
            jax.ShapeDtypeStruct((1, side, side, self.channels), jnp.float32),
        )

    def _kernel(
        self,
        ours: str,
        source: str,
        side: int,
        inputs: int | None,
        outputs: int | None,
        transposed: bool,
    ) -> int:
        name = f"{source}.weight"
        shape = self.reader.shape(name)
        if len(shape) != 4:
            raise ValueError(f"{self.what}: {name} has shape {shape}, not 4 axes")
        before, after = shape[:2] if transposed else (shape[1], shape[0])
        if inputs is None:
            inputs = self.channels = before
        outputs = after if outputs is None else outputs
        if transposed:
            # PyTorch scatters each pixel over the kernel; ours gathers, with the kernel flipped.
            weight = self.reader.take(name, (inputs, outputs, side, side))
            kernel = jnp.asarray(weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1))
        else:
            kernel = self.reader.kernel(name, (side, side, inputs, outputs))
        self.variables[f"params/{ours}/kernel"] = kernel
        return outputs
