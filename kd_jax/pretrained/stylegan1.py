"""StyleGAN from the state dicts of genforce's and rosinality's PyTorch programs.

genforce's files are the weights of the authors' TensorFlow program under other names. Both programs
multiply by He's constant before adding the bias, but `layers.style.Dense` does so after the
activation: the biases of such layers are divided by the constant. Upsampling layers that were
trained fused are transposed convolutions there, so their kernels are flipped here.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.network import Network
from kd_jax.models import stylegan1
from kd_jax.models.layers.style import AVERAGES
from kd_jax.pretrained.convert import (
    Converted,
    StateDict,
    StateDictReader,
    average_style,
    check_variables,
)

SMALLEST = stylegan1.SMALLEST
HE = math.sqrt(2)
LR_MULTIPLIER = 0.01  # of the mapping network, as in `kd_jax.models.stylegan1`
GENERATOR, DISCRIMINATOR = "a StyleGAN generator", "a StyleGAN discriminator"


def is_genforce_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of genforce's StyleGAN generator."""
    return {"synthesis.layer0.const", "synthesis.layer0.apply_noise.weight"} <= set(names)


def is_genforce_discriminator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of genforce's StyleGAN discriminator.

    StyleGAN2's discriminator has a single `input`; the progressive GAN's does not have filters.
    """
    return {"input0.weight", "input1.weight", "layer1.blur.kernel"} <= set(names)


def is_rosinality_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of rosinality's StyleGAN generator."""
    return {"generator.progression.0.conv1.input", "style.1.linear.weight_orig"} <= set(names)


def is_rosinality_discriminator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of rosinality's StyleGAN discriminator."""
    return {"progression.0.conv1.0.conv.weight_orig", "linear.linear.weight_orig"} <= set(names)


def genforce_generator(tensors: StateDict, *, fused_from: int = 128, **overrides: Any) -> Converted:
    """The StyleGAN generator of genforce's PyTorch port.

    Args:
      tensors: the state dict, `synthesis.layer0.const` and so on.
      fused_from: the smallest resolution whose layers were trained fused (`fused_scale`): 128 for
        "auto", 4 for all layers, a number above the image size for none.
      **overrides: arguments of `kd_jax.models.stylegan1.generator`.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others.
    """
    reader = StateDictReader(tensors, f"{GENERATOR} (genforce)")
    sides = _sides(reader, "synthesis.output{}.")
    depth = _last(reader, "mapping.dense{}.") + 1
    latent = _inputs(reader, "mapping.dense0.weight")
    style = _inputs(reader, "synthesis.layer0.style.weight")
    hidden = _width(reader, "mapping.dense0.bias")
    channels = _width(reader, "synthesis.output0.bias")

    mapping: dict[str, Any] = {}
    classes, before = 0, latent
    if embedding := next((name for name in reader if name.startswith("mapping.label")), None):
        latent = before // 2
        classes = reader.shape(embedding)[0]
        mapping["embedding"] = reader.vector(embedding, (classes, latent))
    for index in range(depth):
        after = hidden if index < depth - 1 else style
        mapping[f"fc{index}"] = _dense(reader, f"mapping.dense{index}", before, after, HE)
        before = after

    params: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    blurs: list[str] = []
    widths: dict[int, int] = {}
    before = 0
    for number, side in enumerate(sides):
        block = {}
        width = _width(reader, f"synthesis.layer{2 * number}.bias")
        for part in (0, 1):
            index = 2 * number + part
            name = f"synthesis.layer{index}"
            layer: dict[str, Any] = {
                "bias": reader.vector(f"{name}.bias", (width,)),
                "noise_strength": reader.vector(f"{name}.apply_noise.weight", (width,)),
                "affine": _dense(reader, f"{name}.style", style, 2 * width),
            }
            if index == 0:
                layer["const"] = _const(reader, f"{name}.const", width)
            else:
                weight = reader.kernel(f"{name}.weight", (3, 3, before, width))
                fused = part == 0 and side >= fused_from
                layer["weight"] = weight[::-1, ::-1] if fused else weight
                if part == 0:
                    blurs.append(f"{name}.blur.kernel")
            noise = reader.vector(f"{name}.apply_noise.noise", (1, 1, side, side))
            constants[f"noise{index}"] = noise[0, 0]
            block[f"conv{part}"] = layer
            before = width
        block["torgb"] = _conv(reader, f"synthesis.output{number}", 1, width, channels)
        params[f"b{side}"], widths[side] = block, width
    config = {
        "size": sides[-1],
        "channels": channels,
        "classes": classes,
        "latent": latent,
        "style": style,
        "depth": depth,
        "hidden": hidden if depth > 1 else None,
        "widths": widths,
        "blur": _blur(reader, blurs),
        "lod": float(reader.take("synthesis.lod", ())),
        **overrides,
    }
    variables = {
        "params": {"mapping": mapping, "synthesis": params},
        AVERAGES: {"mapping": {"w_avg": reader.vector("truncation.w_avg", (style,))}},
        "noise": {"synthesis": constants},
    }
    reader.check_all_read()
    converted = _build_generator(reader.what, variables, config)
    return converted._replace(options={"fused_from": fused_from, **_final(config)})


def genforce_discriminator(tensors: StateDict, **overrides: Any) -> Converted:
    """The discriminator of genforce's PyTorch port, whether it was trained fused or not.

    Args:
      tensors: the state dict, `input0.weight` and so on.
      **overrides: arguments of `kd_jax.models.stylegan1.discriminator`, for options that
        shapes do not determine: `stddev_group` (default 4).

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others.
    """
    reader = StateDictReader(tensors, f"{DISCRIMINATOR} (genforce)")
    sides = _sides(reader, "input{}.")
    channels = _inputs(reader, "input0.weight")
    params: dict[str, Any] = {}
    widths, inner, blurs = {}, {}, []
    for number, side in enumerate(reversed(sides)):
        widths[side] = _width(reader, f"input{number}.bias")
        inner[side] = _width(reader, f"layer{2 * number}.bias")
        block = {"fromrgb": _conv(reader, f"input{number}", 1, channels, widths[side])}
        if side > SMALLEST:
            after = _width(reader, f"input{number + 1}.bias")
            name = f"layer{2 * number + 1}"
            block["conv0"] = _conv(reader, f"layer{2 * number}", 3, widths[side], inner[side])
            block["conv1"] = _conv(reader, name, 3, inner[side], after)
            blurs.append(f"{name}.blur.kernel")
        params[f"b{side}"] = block

    conv, fc, out = (f"layer{2 * len(sides) - 2 + index}" for index in range(3))
    entering = _inputs(reader, f"{conv}.weight")
    features = _width(reader, f"{fc}.bias")
    scores = _width(reader, f"{out}.bias")
    params["b4"] |= {
        "conv": _conv(reader, conv, 3, entering, inner[SMALLEST]),
        "fc": {
            "weight": _image_weight(reader.take(f"{fc}.weight", (features, inner[SMALLEST] * 16))),
            "bias": reader.vector(f"{fc}.bias") / HE,
        },
        "out": _dense(reader, out, features, scores),
    }
    config = {
        "size": sides[-1],
        "channels": channels,
        "classes": scores if scores > 1 else 0,
        "widths": widths,
        "inner": inner,
        "features": features,
        "blur": _blur(reader, blurs),
        "stddev_channels": entering - widths[SMALLEST],
        "lod": float(reader.take("lod", ())),
        **overrides,
    }
    reader.check_all_read()
    converted = _build_discriminator(reader.what, {"params": params}, config)
    return converted._replace(options={"stddev_group": config.get("stddev_group", 4)})


def rosinality_generator(
    tensors: StateDict,
    *,
    size: int | None = None,
    average: np.ndarray | None = None,
    **overrides: Any,
) -> Converted:
    """The StyleGAN generator of rosinality's PyTorch port, up to its training resolution.

    The files contain all blocks up to 1024 pixels; those beyond the last `step` of the training are
    untrained. They contain neither noise nor the average of w: here the noise is sampled once with
    a fixed seed, and w is averaged over 10,000 latents, the number that the program uses.

    Args:
      tensors: the state dict, `generator.progression.0.conv1.input` and so on.
      size: the image size, `4 * 2**step`; by default the largest in the file.
      average: the average of w, `[style]` or `[1, style]`; by default it is computed.
      **overrides: arguments of `kd_jax.models.stylegan1.generator`. The program's `alpha` is
        `1 - lod`.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others, or the
        file has no blocks of this size.
    """
    reader = StateDictReader(tensors, f"{GENERATOR} (rosinality)")
    sides = _sides(reader, "generator.to_rgb.{}.")
    size = _size(reader, size, sides)
    depth = (_last(reader, "style.{}.") + 1) // 2  # activations lie between the layers
    latent = _inputs(reader, "style.1.linear.weight_orig")
    channels = _width(reader, "generator.to_rgb.0.conv.bias")

    mapping: dict[str, Any] = {}
    before, hidden = latent, _width(reader, "style.1.linear.bias")
    style = _inputs(reader, "generator.progression.0.adain1.style.linear.weight_orig")
    for index in range(depth):
        after = hidden if index < depth - 1 else style
        layer = _dense(reader, f"style.{2 * index + 1}.linear", before, after, HE, "weight_orig")
        mapping[f"fc{index}"] = {name: value / LR_MULTIPLIER for name, value in layer.items()}
        before = after

    params: dict[str, Any] = {}
    blurs: list[str] = []
    widths: dict[int, int] = {}
    before = 0
    for number, side in enumerate(sides):
        name = f"generator.progression.{number}"
        width = _width(reader, f"{name}.conv2.conv.bias")
        if number == 0:
            const = _const(reader, f"{name}.conv1.input", width)
            conv0 = {"const": const, "bias": jnp.zeros(width)}
        elif _has(reader, f"{name}.conv1.0."):  # fused
            weight = reader.take(f"{name}.conv1.0.weight", (before, width, 3, 3))
            conv0 = {
                # The program averages the four kernels, whose sum would match a convolution.
                "weight": jnp.asarray(weight.transpose(2, 3, 0, 1)[::-1, ::-1]) / 4,
                "bias": reader.vector(f"{name}.conv1.0.bias", (width,)),
            }
            blurs += _filter_names(f"{name}.conv1.1")
        else:
            conv0 = _conv(reader, f"{name}.conv1.1.conv", 3, before, width, "weight_orig")
            blurs += _filter_names(f"{name}.conv1.2")
        conv1 = _conv(reader, f"{name}.conv2.conv", 3, width, width, "weight_orig")
        for index, conv in enumerate((conv0, conv1), 1):
            strength = reader.vector(f"{name}.noise{index}.weight_orig", (1, width, 1, 1))
            affine = f"{name}.adain{index}.style.linear"
            weight = reader.take(f"{affine}.weight_orig", (2 * width, style))
            bias = reader.take(f"{affine}.bias", (2 * width,))
            conv["noise_strength"] = strength.reshape(width) * (HE / math.sqrt(width))
            conv["affine"] = {
                "weight": jnp.asarray(weight.T) * HE,
                "bias": jnp.asarray(bias - np.repeat([1, 0], width).astype(np.float32)),
            }
        torgb = _conv(reader, f"generator.to_rgb.{number}.conv", 1, width, channels, "weight_orig")
        torgb["weight"] = torgb["weight"] * HE
        params[f"b{side}"] = {"conv0": conv0, "conv1": conv1, "torgb": torgb}
        before = widths[side] = width
    used = sides[: sides.index(size) + 1]
    config = {
        "size": size,
        "channels": channels,
        "latent": latent,
        "style": style,
        "depth": depth,
        "hidden": hidden if depth > 1 else None,
        "widths": {side: widths[side] for side in used},
        "blur": _blur(reader, blurs),
        "eps": 1e-5,
        "bias_before_blur": True,
        "shared_noise": True,
        **overrides,
    }
    reader.check_all_read()

    noise = np.random.default_rng(0)
    images = [jnp.asarray(noise.normal(size=(side, side)), jnp.float32) for side in used]
    constants = {f"noise{2 * i + j}": image for i, image in enumerate(images) for j in (0, 1)}
    w_avg = np.zeros(style) if average is None else np.asarray(average).reshape(-1)
    variables = {
        "params": {
            "mapping": mapping,
            "synthesis": {f"b{side}": params[f"b{side}"] for side in used},
        },
        AVERAGES: {"mapping": {"w_avg": jnp.asarray(w_avg, jnp.float32)}},
        "noise": {"synthesis": constants},
    }
    converted = _build_generator(reader.what, variables, config)
    notes = ["the file has no noise images: they are drawn with a fixed seed"]
    if average is None:
        notes.append("the file has no average of the styles: it is that of 10,000 latents")
        latents = noise.normal(size=(10_000, latent))
        variables[AVERAGES]["mapping"]["w_avg"] = average_style(converted, latents)
    options = {"size": size, "lod": config.get("lod", 0.0), **_final(config)}
    return converted._replace(notes=tuple(notes), options=options)


def rosinality_discriminator(
    tensors: StateDict, *, size: int | None = None, **overrides: Any
) -> Converted:
    """The discriminator of rosinality's PyTorch port, from its training resolution down.

    Args:
      tensors: the state dict, `progression.0.conv1.0.conv.weight_orig` and so on.
      size: the image size, `4 * 2**step`; by default the largest in the file.
      **overrides: arguments of `kd_jax.models.stylegan1.discriminator`. The program's `alpha` is
        `1 - lod`.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others, or the
        file has no blocks of this size.
    """
    reader = StateDictReader(tensors, f"{DISCRIMINATOR} (rosinality)")
    activated = _has(reader, "from_rgb.0.0.")
    rgb = "from_rgb.{}.0.conv" if activated else "from_rgb.{}.conv"
    sides = _sides(reader, "from_rgb.{}.")
    size = _size(reader, size, sides)
    channels = _inputs(reader, f"{rgb.format(0)}.weight_orig")

    params: dict[str, Any] = {}
    widths, inner, blurs = {}, {}, []
    for number, side in enumerate(reversed(sides)):
        name = f"progression.{number}"
        widths[side] = _width(reader, f"{rgb.format(number)}.bias")
        inner[side] = _width(reader, f"{name}.conv1.0.conv.bias")
        fromrgb = _conv(reader, rgb.format(number), 1, channels, widths[side], "weight_orig")
        if not activated:
            fromrgb["weight"] = fromrgb["weight"] * HE
        params[f"b{side}"] = {"fromrgb": fromrgb}
        if side > SMALLEST:
            after = _width(reader, f"{rgb.format(number + 1)}.bias")
            conv1, orig = f"{name}.conv2.1", "weight"  # fused
            if _has(reader, f"{conv1}.conv."):
                conv1, orig = f"{conv1}.conv", "weight_orig"
            params[f"b{side}"] |= {
                "conv0": _conv(
                    reader, f"{name}.conv1.0.conv", 3, widths[side], inner[side], "weight_orig"
                ),
                "conv1": _conv(reader, conv1, 3, inner[side], after, orig),
            }
            blurs += _filter_names(f"{name}.conv2.0")

    conv, fc = f"{name}.conv1.0.conv", f"{name}.conv2.0.conv"
    entering = _inputs(reader, f"{conv}.weight_orig")
    features = _width(reader, f"{fc}.bias")
    weight = reader.take(f"{fc}.weight_orig", (features, inner[SMALLEST], SMALLEST, SMALLEST))
    out = _dense(reader, "linear.linear", features, 1, 1.0, "weight_orig")
    params["b4"] |= {
        "conv": _conv(reader, conv, 3, entering, inner[SMALLEST], "weight_orig"),
        "fc": {
            "weight": _image_weight(weight),
            "bias": reader.vector(f"{fc}.bias") / HE,
        },
        "out": {"weight": out["weight"] * HE, "bias": out["bias"]},
    }
    used = sides[: sides.index(size) + 1]
    config = {
        "size": size,
        "channels": channels,
        "widths": {side: widths[side] for side in used},
        "inner": {side: inner[side] for side in used},
        "features": features,
        "blur": _blur(reader, blurs),
        "activate_fromrgb": activated,
        "stddev_group": None,
        "stddev_channels": entering - widths[SMALLEST],
        **overrides,
    }
    reader.check_all_read()
    variables = {"params": {f"b{side}": params[f"b{side}"] for side in used}}
    converted = _build_discriminator(reader.what, variables, config)
    return converted._replace(options={"size": size, "lod": config.get("lod", 0.0)})


def _build_generator(what: str, variables: Any, config: dict[str, Any]) -> Converted:
    inputs = [jax.ShapeDtypeStruct((1, config["latent"]), jnp.float32)]
    return _build(what, stylegan1.generator(**config), variables, config, inputs)


def _build_discriminator(what: str, variables: Any, config: dict[str, Any]) -> Converted:
    shape = (1, config["size"], config["size"], config["channels"])
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    return _build(what, stylegan1.discriminator(**config), variables, config, inputs)


def _build(
    what: str, network: Network, variables: Any, config: dict[str, Any], inputs: list[Any]
) -> Converted:
    if config.get("classes"):
        inputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
    return check_variables(what, Converted(network, variables, config), *inputs)


def _final(config: Mapping[str, Any]) -> dict[str, Any]:
    """The option of a final tanh, which has no tensors."""
    return {"tanh": config.get("tanh", False)}


def _has(reader: StateDictReader, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in reader)


def _width(reader: StateDictReader, name: str) -> int:
    """The length of a bias."""
    shape = reader.shape(name)
    if len(shape) != 1:
        raise ValueError(f"{reader.what}: {name} has shape {shape}, not one axis")
    return shape[0]


def _inputs(reader: StateDictReader, name: str) -> int:
    """The number of input channels of a weight `[out, in, ...]`."""
    shape = reader.shape(name)
    if len(shape) not in (2, 4):
        raise ValueError(f"{reader.what}: {name} has shape {shape}, not two axes or four")
    return shape[1]


def _last(reader: StateDictReader, name: str) -> int:
    """The largest number in place of `{}` among the tensor names that start with `name`."""
    pattern = re.escape(name).replace(r"\{\}", r"(\d+)")
    numbers = [int(match[1]) for other in reader if (match := re.match(pattern, other))]
    if not numbers:
        raise ValueError(f"not {reader.what}: there are no tensors {name.format('N')}*")
    return max(numbers)


def _sides(reader: StateDictReader, name: str) -> list[int]:
    """The resolutions, each of which has a convolution to or from images."""
    last = _last(reader, name)
    if last >= len(reader.tensors):  # a huge number in a name must not build a huge list
        raise ValueError(f"not {reader.what}: there are too few tensors for {name.format(last)}*")
    return [SMALLEST << number for number in range(last + 1)]


def _size(reader: StateDictReader, size: int | None, sides: list[int]) -> int:
    if size is not None and size not in sides:
        raise ValueError(f"{reader.what}: size={size} is not one of its sizes {sides}")
    return sides[-1] if size is None else size


def _dense(
    reader: StateDictReader,
    name: str,
    inputs: int,
    outputs: int,
    gain: float = 1.0,
    weight: str = "weight",
) -> dict[str, Any]:
    """A linear layer; the program applies `gain` before adding the bias, we apply it after."""
    matrix = reader.take(f"{name}.{weight}", (outputs, inputs))
    bias = reader.vector(f"{name}.bias", (outputs,))
    return {"weight": jnp.asarray(matrix.T), "bias": bias / gain}


def _conv(
    reader: StateDictReader,
    name: str,
    kernel: int,
    inputs: int,
    outputs: int,
    weight: str = "weight",
) -> dict[str, Any]:
    return {
        "weight": reader.kernel(f"{name}.{weight}", (kernel, kernel, inputs, outputs)),
        "bias": reader.vector(f"{name}.bias", (outputs,)),
    }


def _const(reader: StateDictReader, name: str, width: int) -> Any:
    const = reader.take(name, (1, width, SMALLEST, SMALLEST))
    return jnp.asarray(const[0].transpose(1, 2, 0))


def _image_weight(weight: np.ndarray) -> Any:
    """A linear layer's weight over flattened 4x4 features, from channels first to channels last."""
    image = weight.reshape(weight.shape[0], -1, SMALLEST, SMALLEST).transpose(2, 3, 1, 0)
    return jnp.asarray(image.reshape(-1, weight.shape[0]))


def _filter_names(name: str) -> list[str]:
    """The names of a filter and of the flipped filter that computes its gradient."""
    return [f"{name}.weight", f"{name}.weight_flip"]


def _blur(reader: StateDictReader, names: list[str]) -> Any:
    """The filter shared by all channels and layers. The programs correlate with it, we convolve."""
    if not names:
        return (1.0, 2.0, 1.0)
    filters = []
    for name in names:
        taps = reader.take(name)
        if taps.shape[1:] != (1, 3, 3) or not taps.size:
            raise ValueError(f"{reader.what}: {name} has shape {taps.shape}, not [C, 1, 3, 3]")
        filters.append(taps[:, 0] if name.endswith("_flip") else taps[:, 0, ::-1, ::-1])
        if np.abs(filters[-1] - filters[0][0]).max() > 1e-6:
            raise ValueError(f"{reader.what}: the filters {name} and {names[0]} differ")
    return tuple(tuple(float(tap) for tap in row) for row in filters[0][0])
