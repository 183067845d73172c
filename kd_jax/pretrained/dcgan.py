"""DCGAN from PyTorch's example program, whose layers are named `main.N`.

Variants of the program add layers without tensors, such as dropout, which shift the numbers; biases
of the convolutions; or one-hot labels behind the latents.
"""

import itertools
import re
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array, Variables
from kd_jax.models import dcgan
from kd_jax.pretrained.convert import (
    Converted,
    Layout,
    StateDict,
    StateDictReader,
    check_variables,
)

_NAME = re.compile(
    r"main\.([0-9]{1,4})\.(?:weight|bias|(running_mean|running_var|num_batches_tracked))"
)


def is_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `generator`, whose first layer has a norm."""
    convs, norms = _numbers(names)
    return len(convs) > 1 and convs[0] + 1 in norms


def is_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `discriminator`, whose first layer has no norm."""
    convs, norms = _numbers(names)
    return len(convs) > 1 and convs[0] + 1 not in norms and convs[1] + 1 in norms


def generator(tensors: StateDict, *, classes: int | None = None) -> Converted:
    """The generator; its latents are `[B, latent]`, without the two axes of length 1.

    A state dict does not determine which of the numbers that the first layer reads are a one-hot
    label. With `classes`, the last of them are, and the network takes latents without them, and
    labels.

    Args:
      tensors: its state dict.
      classes: the length of the one-hot labels that follow the latents; by default 0, none.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape (it is named), or there are not
        more inputs than `classes`.
    """
    reader = StateDictReader(tensors, "a DCGAN generator")
    layers, notes = _layers(reader, first_norm=1)
    # A transposed convolution's weight is [in, out, h, w].
    widths = [_kernel(reader, f"{layer.conv}.weight")[1] for layer in layers]
    channels = widths.pop()
    inputs = _kernel(reader, f"{layers[0].conv}.weight")[0]
    if classes is None:
        notes = (f"latents of {inputs} numbers without labels are assumed: option classes", *notes)
    elif type(classes) is not int or not 0 <= classes < inputs:
        raise ValueError(
            f"{reader.what}: classes={classes!r} must be an integer from 0 to {inputs - 1}; the "
            f"first layer reads {inputs} numbers, a latent and a one-hot label"
        )
    classes = classes or 0
    params: dict[str, dict[str, Array]] = {}
    stats: dict[str, dict[str, Array]] = {}
    before = inputs
    for index, (layer, after) in enumerate(zip(layers, (*widths, channels), strict=True)):
        weight = reader.take(f"{layer.conv}.weight", (before, after, 4, 4))
        bias = _bias(reader, layer, after)
        if index:
            # PyTorch scatters each pixel over the kernel; ours gathers, with the kernel flipped.
            kernel = weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
            params[f"Conv_{index - 1}"] = {"kernel": jnp.asarray(kernel)}
        else:
            kernel = weight.transpose(0, 2, 3, 1).reshape(inputs, -1)
            params["Dense_0"] = {"kernel": jnp.asarray(kernel)}
        if layer.norm is None:
            params[f"Conv_{index - 1}"]["bias"] = bias
        else:
            name = f"BatchNorm_{index}"
            params[name], stats[name] = _norm(reader, layer.norm, after, bias)
        before = after
    reader.check_all_read()
    config: dict[str, Any] = {
        "size": _size(reader, widths),
        "width": widths,
        "channels": channels,
    }
    like = [jax.ShapeDtypeStruct((1, inputs - classes), jnp.float32)]
    if classes:
        # The embedding of a label is its one-hot vector, for which the first kernel has rows.
        config |= {"classes": classes, "embedding": classes}
        params["label"] = {"embedding": jnp.eye(classes)}
        like.append(jax.ShapeDtypeStruct((1,), jnp.int32))
    network = dcgan.generator(**config)
    return check_variables(
        reader.what,
        Converted(
            network,
            {"params": params, "batch_stats": stats},
            config,
            notes=notes,
            options={"classes": classes},
        ),
        *like,
    )


def generator_layout(variables: Variables, classes: int = 0) -> Layout:
    """The layout of `generator` for a network with these variables.

    The example has no bias in its last layer, and a variant with one is meant if it is not 0.
    """
    params = variables["params"]
    norms = sum(name.startswith("BatchNorm_") for name in params)
    widths = [params[f"BatchNorm_{index}"]["scale"].shape[0] for index in range(norms)]
    bias = params[f"Conv_{norms - 1}"]["bias"]
    layers = [params["Dense_0"]["kernel"].shape[0], *widths, bias.shape[0]]
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (before, after) in enumerate(itertools.pairwise(layers)):
        shapes[f"main.{3 * index}.weight"] = (before, after, 4, 4)
        if index < norms:
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"main.{3 * index + 1}.{name}"] = (after,)
    if bias.any():
        shapes[f"main.{3 * norms}.bias"] = bias.shape
    return Layout(partial(generator, classes=classes), shapes)


def discriminator(tensors: StateDict, *, size: int | None = None) -> Converted:
    """The discriminator; its scores are logits, without the final sigmoid of the original.

    A state dict does not determine the stride and the padding of the last convolution. The example
    has 1 and 0, which reads images of `2**(N + 2)` pixels after N convolutions of stride 2.
    Variants for other sizes, such as 28, have 2 and 1.

    Args:
      tensors: its state dict.
      size: the side of the images; by default that of the example.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    reader = StateDictReader(tensors, "a DCGAN discriminator")
    layers, shifted = _layers(reader, first_norm=3)
    widths = [_kernel(reader, f"{layer.conv}.weight")[0] for layer in layers[:-1]]
    # With a norm, a bias is a part of the norm's mean.
    biased = any(f"{layer.conv}.bias" in reader for layer in (layers[0], layers[-1]))
    params: dict[str, dict[str, Array]] = {}
    stats: dict[str, dict[str, Array]] = {}
    before = channels = _kernel(reader, f"{layers[0].conv}.weight")[1]
    for index, (layer, after) in enumerate(zip(layers, (*widths, 1), strict=True)):
        reader.take(f"{layer.conv}.weight", (after, before, 4, 4))
        name = "score" if index == len(widths) else f"conv_{index}"
        params[name] = {"kernel": reader.kernel(f"{layer.conv}.weight")}
        bias = _bias(reader, layer, after)
        if layer.norm is not None:
            name = f"norm_{index}"
            params[name], stats[name] = _norm(reader, layer.norm, after, bias)
        elif biased:
            params[name]["bias"] = bias
        before = after
    reader.check_all_read()
    config: dict[str, Any] = {"size": size, "width": widths[::-1]}
    if biased:
        config["bias"] = True
    notes: tuple[str, ...] = ()
    if size is None:
        size = config["size"] = _size(reader, widths)
        notes = (
            f"images of {size}x{size} are assumed; a file of this kind may also be for "
            f"{size // 2} to {size - 1} pixels (a last convolution of stride 2): option size",
        )
    elif size != dcgan.SMALLEST * 2 ** len(widths):
        config["final_stride"] = 2
    network = dcgan.original_discriminator(**config)
    return check_variables(
        reader.what,
        Converted(
            network,
            {"params": params, "batch_stats": stats},
            config,
            notes=(*notes, *shifted),
            options={"size": size},
        ),
        jax.ShapeDtypeStruct((1, config["size"], config["size"], channels), jnp.float32),
    )


class _Layer(NamedTuple):
    """The names of a convolution and of the norm that follows it directly, if there is one."""

    conv: str
    norm: str | None


def _numbers(names: Iterable[str]) -> tuple[list[int], set[int]]:
    """The numbers of the convolutions, in order, and of the norms; none if there are others."""
    weights, norms = set(), set()
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            if name.startswith("main."):
                return [], set()  # such as residual blocks
        elif match[2]:
            norms.add(int(match[1]))
        elif name.endswith("weight"):
            weights.add(int(match[1]))
    return sorted(weights - norms), norms


def _layers(reader: StateDictReader, first_norm: int) -> tuple[list[_Layer], tuple[str, ...]]:
    """The layers in the order of their numbers, and notes on layers that have no tensors."""
    convs, norms = _numbers(name for name in reader if _NAME.fullmatch(name))
    if not norms:
        raise ValueError(f"not {reader.what}: main.{first_norm}.running_mean is missing")
    for number in sorted(norms):
        if number - 1 not in convs:
            raise ValueError(
                f"not {reader.what}: main.{number - 1}.weight is missing, the convolution before "
                f"the norm main.{number}"
            )
    if convs[-1] + 1 in norms:
        raise ValueError(f"not {reader.what}: main.{convs[-1] + 3}.weight is missing")
    for number in convs[first_norm // 3 : -1]:
        if number + 1 not in norms:
            raise ValueError(f"not {reader.what}: main.{number + 1}.running_mean is missing")
    if first_norm == 3 and convs[0] + 1 in norms:
        raise ValueError(f"{reader.what} has no norm main.{convs[0] + 1} after its first layer")
    assumed = "layers that change nothing outside training are assumed (dropout)"
    notes = [f"before main.{convs[0]}, {assumed}"] if convs[0] else []
    for number, after in itertools.pairwise(convs):
        last = number + (number + 1 in norms)
        if after == last + 1:
            raise ValueError(f"{reader.what}: no activation between main.{last} and main.{after}")
        if after > last + 2:
            notes.append(f"between main.{last} and main.{after}, an activation and {assumed}")
    layers = [
        _Layer(f"main.{number}", f"main.{number + 1}" if number + 1 in norms else None)
        for number in convs
    ]
    return layers, tuple(notes)


def _kernel(reader: StateDictReader, name: str) -> tuple[int, ...]:
    shape = reader.shape(name)
    if len(shape) != 4:
        raise ValueError(f"{reader.what}: {name} has shape {shape}, not 4 axes")
    return shape


def _size(reader: StateDictReader, widths: list[int]) -> int:
    size = dcgan.SMALLEST * 2 ** len(widths)
    if size not in dcgan.SIZES:
        raise ValueError(f"{reader.what} has an image size of {dcgan.SIZES}, not {size}")
    return size


def _bias(reader: StateDictReader, layer: _Layer, width: int) -> Array:
    """The bias of a convolution; the example has none."""
    name = f"{layer.conv}.bias"
    return reader.vector(name, (width,)) if name in reader else jnp.zeros(width)


def _norm(
    reader: StateDictReader, source: str, width: int, shift: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The variables of a norm whose input is without the bias `shift` that it was trained with.

    Its output is that of the original, in training too: the batch's mean has the bias as well.
    """
    reader.drop(f"{source}.num_batches_tracked")
    scale, bias, mean, var = (
        reader.vector(f"{source}.{name}", (width,))
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    return {"scale": scale, "bias": bias}, {"mean": mean - shift, "var": var}
