"""Pix2pix's and CycleGAN's published networks, `*_net_G*.pth` and `*_net_D*.pth`.

Their layers are numbered, `model.N`, and those without tensors count: padding, activation, dropout.
The first files (2017) hold statistics of instance normalisation, which are never used; they are
left out. So is `module.`, which data-parallel training puts before the names.

Where no batch normalisation follows a convolution it has a bias here; where the original has none,
it is zero.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from kd_jax.models import translation
from kd_jax.models.translation import BATCH, INSTANCE, Norm
from kd_jax.network import Network
from kd_jax.pretrained.convert import Converted, StateDict, Tensors, checked
from kd_jax.types import Array

SIDE = 256
"""Of the images that the published networks were trained with."""

DROPOUT = 0.5
"""The share of the features that the authors' program drops, where it drops any."""


def is_resnet_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `resnet_generator`, which begins with padding."""
    return {"model.1.weight", "model.4.weight", "model.7.weight"} <= set(_own(names))


def is_unet_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `unet_generator`, whose levels contain one another."""
    return {"model.model.0.weight", "model.model.1.model.1.weight"} <= set(_own(names))


def is_patch_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `patch_discriminator`."""
    return {"model.0.weight", "model.2.weight", "model.5.weight"} <= set(_own(names))


def is_pixel_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `pixel_discriminator`."""
    return {"net.0.weight", "net.2.weight", "net.5.weight"} <= set(_own(names))


def resnet_generator(
    tensors: StateDict, *, padding: str | None = None, dropout: float | None = None
) -> Converted:
    """`kd_jax.models.translation.resnet_generator`.

    Args:
      tensors: of its state dict.
      padding: what surrounds the blocks' features. The file tells "zero" from the others, but not
        "reflect", which is the default, from "replicate".
      dropout: the share that is dropped in training; by default `DROPOUT` where the file has room
        for it, and nothing elsewhere.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit, and is named; or the
        padding is not the file's.
    """
    reader = _Reader(tensors, "a ResNet generator", "model.", 1)
    blocks: list[str] = []
    while reader.has(block := f"model.{10 + len(blocks)}.conv_block."):
        blocks.append(block)
    # A block is padding, convolution, norm, ReLU and perhaps dropout, then padding, convolution and
    # norm again; there is no padding where the convolutions do it, with zeros.
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
    return reader.converted(translation.resnet_generator, config)


def unet_generator(tensors: StateDict, *, dropout: float = DROPOUT) -> Converted:
    """`kd_jax.models.translation.unet_generator`.

    Args:
      tensors: of its state dict.
      dropout: the share that is dropped in training, which the file does not tell.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit, and is named.
    """
    # A level is LeakyReLU, convolution, norm, the next level, ReLU, transposed convolution, norm.
    # The outermost has neither LeakyReLU nor norms; the innermost only the second norm.
    names, levels = _own(tensors), ["model.model.", "model.model.1.model."]
    while any(name.startswith(f"{levels[-1]}3.model.") for name in names):
        levels.append(f"{levels[-1]}3.model.")
    last = len(levels) - 1
    reader = _Reader(tensors, "a U-Net generator", levels[last], 3)
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
    return reader.converted(translation.unet_generator, config, max(SIDE, 2 ** len(levels)))


def patch_discriminator(tensors: StateDict) -> Converted:
    """`kd_jax.models.translation.patch_discriminator`.

    A conditional one's tensors tell how many channels it sees, but not which are the image's: its
    input is described as one image of all of them.

    Args:
      tensors: of its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    reader = _Reader(tensors, "a patch discriminator", "model.", 2)
    # Convolution and LeakyReLU; convolution, norm and LeakyReLU, again and again; a convolution.
    layers = 0
    while reader.has(f"model.{3 * layers + 5}."):
        layers += 1
    widths = [reader.conv("layer_0/conv", "model.0", 4, bias=True)]
    for index in range(1, layers + 1):
        widths.append(reader.layer(f"layer_{index}", "model.", 3 * index - 1, 4, widths[-1]))
    reader.conv("score", f"model.{3 * layers + 2}", 4, widths[-1], 1, bias=True)
    config: dict[str, Any] = {"width": widths, "layers": layers, "norm": reader.norm}
    return reader.converted(translation.patch_discriminator, config)


def pixel_discriminator(tensors: StateDict) -> Converted:
    """`kd_jax.models.translation.pixel_discriminator`; see `patch_discriminator`.

    Args:
      tensors: of its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    reader = _Reader(tensors, "a pixel discriminator", "net.", 2)
    first = reader.conv("layer_0/conv", "net.0", 1, bias=True)
    second = reader.layer("layer_1", "net.", 2, 1, first)
    reader.conv("score", "net.5", 1, second, 1)
    config: dict[str, Any] = {"width": [first, second], "norm": reader.norm}
    return reader.converted(translation.pixel_discriminator, config)


def _own(names: Iterable[str]) -> list[str]:
    """The names without what data-parallel training puts before them, once or more often."""
    names = list(names)
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


class _Reader:
    """Makes variables of numbered layers, whose norms follow their convolutions.

    All norms are of one kind. Batch normalisation has weights; with instance normalisation every
    convolution has a bias, and without any only those of which `bias` is said.

    Args:
      tensors: the state dict.
      what: what it should be, for errors.
      prefix: of a layer that has a norm.
      at: that layer's number.
    """

    def __init__(self, tensors: StateDict, what: str, prefix: str, at: int):
        own = dict(zip(_own(tensors), tensors.values(), strict=True))
        self.t, self.what = Tensors(own, what), what
        self.norm: Norm | None = None
        if f"{prefix}{at + 1}.weight" in own:
            self.norm = BATCH
        elif f"{prefix}{at}.bias" in own or f"{prefix}{at + 1}.running_mean" in own:
            self.norm = INSTANCE
        self.channels = 0
        self.variables: dict[str, Array] = {}

    def has(self, start: str) -> bool:
        """Whether a tensor's name begins so."""
        return any(name.startswith(start) for name in self.t)

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
          ours: its path.
          source: its name.
          side: of the kernel.
          inputs: channels; None for the image's, however many.
          outputs: features; None for however many.
          transposed: whether it is a transposed one.
          bias: whether it has a bias with every kind of norm.

        Returns:
          The features.
        """
        width = self._kernel(ours, source, side, inputs, outputs, transposed)
        theirs = bias or self.norm == INSTANCE
        self.variables[f"params/{ours}/bias"] = (
            self.t.vector(f"{source}.bias", (width,)) if theirs else jnp.zeros(width)
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
        self.t.drop(f"{norm}.num_batches_tracked")
        if self.norm != BATCH:
            self.t.drop(f"{norm}.running_mean", f"{norm}.running_var")
            return self.conv(f"{ours}/conv", source, side, inputs, outputs, transposed=transposed)
        width = self._kernel(f"{ours}/conv", source, side, inputs, outputs, transposed)
        for path, name in (
            ("params/{}/norm/scale", "weight"),
            ("params/{}/norm/bias", "bias"),
            ("batch_stats/{}/norm/mean", "running_mean"),
            ("batch_stats/{}/norm/var", "running_var"),
        ):
            self.variables[path.format(ours)] = self.t.vector(f"{norm}.{name}", (width,))
        return width

    def converted(
        self, make: Callable[..., Network], config: dict[str, Any], side: int = SIDE
    ) -> Converted:
        """The network with all that was read, for images of this side."""
        self.t.done()
        variables = traverse_util.unflatten_dict(self.variables, sep="/")
        return checked(
            self.what,
            Converted(make(**config), variables, config),
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
        shape = self.t.shape(name)
        if len(shape) != 4:
            raise ValueError(f"{self.what}: {name} has shape {shape}, not 4 axes")
        before, after = shape[:2] if transposed else (shape[1], shape[0])
        if inputs is None:
            inputs = self.channels = before
        outputs = after if outputs is None else outputs
        if transposed:
            # PyTorch spreads each pixel over the kernel; ours looks at it from the other side.
            weight = self.t.take(name, (inputs, outputs, side, side))
            kernel = jnp.asarray(weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1))
        else:
            kernel = self.t.kernel(name, (side, side, inputs, outputs))
        self.variables[f"params/{ours}/kernel"] = kernel
        return outputs
