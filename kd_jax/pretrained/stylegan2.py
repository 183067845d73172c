"""StyleGAN2 from the state dicts of NVIDIA's, rosinality's and genforce's PyTorch programs.

The first two store the kernels of upsampling layers flipped, since they use transposed
convolutions. genforce's files are the weights of the authors' TensorFlow program under other names.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.network import Network
from kd_jax.models import stylegan2
from kd_jax.models.layers.style import AVERAGES
from kd_jax.pretrained.convert import (
    Converted,
    StateDict,
    StateDictReader,
    average_style,
    check_variables,
)

SMALLEST = stylegan2.SMALLEST
GENERATOR, DISCRIMINATOR = "a StyleGAN2 generator", "a StyleGAN2 discriminator"


def is_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of NVIDIA's StyleGAN2 generator."""
    return {"synthesis.b4.const", "synthesis.b4.conv1.weight"} <= set(names)


def is_discriminator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of NVIDIA's StyleGAN2 discriminator."""
    return {"b4.conv.weight", "b4.fc.weight", "b4.out.weight"} <= set(names)


def is_rosinality_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of rosinality's StyleGAN2 generator."""
    return {"input.input", "conv1.conv.modulation.weight", "to_rgb1.bias"} <= set(names)


def is_rosinality_discriminator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of rosinality's StyleGAN2 discriminator."""
    return {"convs.0.0.weight", "final_conv.0.weight", "final_linear.1.weight"} <= set(names)


def is_genforce_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of genforce's StyleGAN2 generator."""
    return {"synthesis.early_layer.const", "synthesis.layer0.noise_strength"} <= set(names)


def is_genforce_discriminator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of genforce's StyleGAN2 discriminator.

    StyleGAN's discriminator has a `blur`; the progressive GAN's does not have filters.
    """
    return {"input0.weight", "layer1.filter.kernel"} <= set(names)


def generator_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the arguments of NVIDIA's generator class that shapes do not determine."""
    synthesis = {**settings, **settings.get("synthesis_kwargs", {})}
    block = {**synthesis, **synthesis.get("block_kwargs", {})}
    layer = {**block, **block.get("layer_kwargs", {})}
    return _select(layer, conv_clamp="conv_clamp", activation="activation") | {
        "mapping": _mapping_settings(settings.get("mapping_kwargs", {}))
    }


def discriminator_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the arguments of NVIDIA's discriminator class that shapes do not determine."""
    block = {**settings, **settings.get("block_kwargs", {})}
    epilogue = settings.get("epilogue_kwargs", {})
    return (
        _select(block, conv_clamp="conv_clamp", activation="activation")
        | _select(epilogue, mbstd_group_size="stddev_group")
        | {"mapping": _mapping_settings(settings.get("mapping_kwargs", {}))}
    )


def _mapping_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _select(
        settings,
        lr_multiplier="lr_multiplier",
        activation="activation",
        w_avg_beta="average_decay",
    )


def _select(settings: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings}


def generator(tensors: StateDict, **overrides: Any) -> Converted:
    """NVIDIA's StyleGAN2 generator (StyleGAN2-ADA's, and StyleGAN3's configuration of it).

    Args:
      tensors: the state dict, `mapping.fc0.weight` and so on.
      **overrides: arguments of `kd_jax.models.stylegan2.generator`, for options that
        shapes do not determine: `conv_clamp` (default None), the `lr_multiplier` of `mapping`,
        `activation`, `dtype`.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others.
    """
    reader = StateDictReader(tensors, GENERATOR)
    sides = _sides(reader, "synthesis.")
    size = sides[-1]
    widths = {side: reader.shape(f"synthesis.b{side}.conv1.weight")[0] for side in sides}
    mapping, mapping_params = _mapping(reader, "mapping.", overrides.pop("mapping", {}))
    style = reader.shape("synthesis.b4.conv1.affine.weight")[1]
    noise = "synthesis.b4.conv1.noise_strength" in reader
    if "synthesis.b8.skip.weight" in reader:
        architecture = "resnet"
    else:
        architecture = "skip" if "synthesis.b4.torgb.weight" in reader else "orig"
    latent = reader.shape("mapping.fc0.weight")[1]
    classes = 0
    if "mapping.embed.weight" in reader:
        classes = reader.shape("mapping.embed.weight")[1]
        latent -= reader.shape("mapping.embed.weight")[0]

    params: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    filters = []
    before = widths[SMALLEST]
    for side in sides:
        name = f"synthesis.b{side}"
        block: dict[str, Any] = {}
        if side == SMALLEST:
            block["const"] = reader.image(f"{name}.const")
        for part in ("conv0", "conv1"):
            layer = f"{name}.{part}"
            if side == SMALLEST and part == "conv0":
                continue
            kernel = reader.kernel(f"{layer}.weight", (3, 3, before, widths[side]))
            before = widths[side]
            block[part] = {
                "weight": kernel[::-1, ::-1] if part == "conv0" else kernel,
                "bias": reader.vector(f"{layer}.bias", (before,)),
                "affine": _dense(reader, f"{layer}.affine"),
            }
            # Layers that do not resample have a filter too, which is not used.
            filters += _filters(reader, layer, unused=part == "conv1")
            if noise:
                block[part]["noise_strength"] = reader.vector(f"{layer}.noise_strength", ())
                constant = reader.vector(f"{layer}.noise_const", (side, side))
                constants.setdefault(f"b{side}", {})[part] = {"noise_const": constant}
        if f"{name}.skip.weight" in reader:
            block["skip"] = {"weight": reader.kernel(f"{name}.skip.weight")}
            filters += _filters(reader, f"{name}.skip")
        if f"{name}.torgb.weight" in reader:
            block["torgb"] = {
                "weight": reader.kernel(f"{name}.torgb.weight"),
                "bias": reader.vector(f"{name}.torgb.bias"),
                "affine": _dense(reader, f"{name}.torgb.affine"),
            }
        filters += _filters(reader, name)
        params[f"b{side}"] = block
    average = reader.vector("mapping.w_avg", (style,))
    config = {
        "size": size,
        "channels": reader.shape(f"synthesis.b{size}.torgb.weight")[0],
        "classes": classes,
        "latent": latent,
        "style": style,
        "widths": widths,
        "architecture": architecture,
        "mapping": mapping,
        "resample_filter": _one_filter(reader.what, filters),
        "noise": noise,
        **overrides,
    }
    reader.check_all_read()
    variables = {
        "params": {"mapping": mapping_params, "synthesis": params},
        AVERAGES: {"mapping": {"w_avg": average}},
    }
    if noise:
        variables["noise"] = {"synthesis": constants}
    converted = _build_generator(reader.what, variables, config)
    options = {**_layer_options(config, filters), **_mapping_options(config)}
    return converted._replace(options=options)


def discriminator(tensors: StateDict, **overrides: Any) -> Converted:
    """NVIDIA's StyleGAN2 discriminator (StyleGAN2-ADA's and StyleGAN3's).

    Args:
      tensors: the state dict, `b4.conv.weight` and so on.
      **overrides: arguments of `kd_jax.models.stylegan2.discriminator`, for options that
        shapes do not determine: `stddev_group` (default 4), `conv_clamp`, the `lr_multiplier` of
        `mapping`, `activation`.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others.
    """
    reader = StateDictReader(tensors, DISCRIMINATOR)
    sides = _sides(reader, "")
    size = sides[-1]
    widths = {SMALLEST: reader.shape("b4.conv.weight")[0]}
    for side in sides[1:]:
        widths[side] = reader.shape(f"b{side}.conv0.weight")[0]
    if f"b{size}.skip.weight" in reader:
        architecture = "resnet"
    else:
        architecture = "skip" if "b4.fromrgb.weight" in reader else "orig"
    params: dict[str, Any] = {}
    mapping: dict[str, Any] = {}
    classes, condition = 0, None
    options = overrides.pop("mapping", {})
    if "mapping.embed.weight" in reader:
        classes = reader.shape("mapping.embed.weight")[1]
        condition = reader.shape("b4.out.weight")[0]
        mapping, params["mapping"] = _mapping(reader, "mapping.", options)
    filters = []
    for side in reversed(sides):
        block: dict[str, Any] = {}
        for part in ("fromrgb", "conv0", "conv1", "skip", "conv"):
            name = f"b{side}.{part}"
            if f"{name}.weight" not in reader:
                continue
            block[part] = {"weight": reader.kernel(f"{name}.weight")}
            if part != "skip":
                block[part]["bias"] = reader.vector(f"{name}.bias")
            filters += _filters(reader, name, unused=part in ("fromrgb", "conv0", "conv"))
        if side == SMALLEST:
            block["fc"] = _dense_of_image(reader, "b4.fc", widths[SMALLEST])
            block["out"] = _dense(reader, "b4.out")
        filters += _filters(reader, f"b{side}")
        params[f"b{side}"] = block
    config = {
        "size": size,
        "channels": reader.shape(f"b{size}.fromrgb.weight")[1],
        "classes": classes,
        "widths": widths,
        "architecture": architecture,
        "condition": condition,
        "mapping": mapping,
        "resample_filter": _one_filter(reader.what, filters),
        "stddev_channels": reader.shape("b4.conv.weight")[1] - widths[SMALLEST],
        **overrides,
    }
    reader.check_all_read()
    converted = _build_discriminator(reader.what, {"params": params}, config)
    options = {**_layer_options(config, filters), **_stddev_options(config)}
    return converted._replace(options={**options, **(_mapping_options(config) if classes else {})})


def rosinality_generator(
    tensors: StateDict, average: np.ndarray | None = None, **overrides: Any
) -> Converted:
    """The generator of rosinality's PyTorch port.

    Args:
      tensors: the state dict, `conv1.conv.weight` and so on.
      average: the average of w, `[style]` or `[1, style]`, which some checkpoints store beside the
        networks (`latent_avg`). By default it is computed over 4,096 latents, as the program does,
        with a fixed seed.
      **overrides: arguments of `kd_jax.models.stylegan2.generator`.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others.
    """
    reader = StateDictReader(tensors, f"{GENERATOR} (rosinality)")
    count = len({name.split(".")[1] for name in reader if name.startswith("convs.")})
    sides = [SMALLEST << i for i in range(count // 2 + 1)]
    depth = len({name.split(".")[1] for name in reader if name.startswith("style.")})
    style = reader.shape("conv1.conv.modulation.weight")[1]
    mapping = {
        f"fc{i}": _dense(reader, f"style.{i + 1}")
        for i in range(depth)  # layer 0 has no weights
    }
    params: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    filters: list[np.ndarray] = []
    image_filters: list[np.ndarray] = []
    widths = {}
    notes: list[str] = []
    if not any(name.startswith("noises.") for name in reader):
        notes.append("the file has no noise images: they are drawn with a fixed seed")
    drawn = np.random.default_rng(0)

    def kernel(name: str) -> Any:
        weight = reader.take(f"{name}.weight")
        if weight.ndim != 5 or weight.shape[0] != 1:
            raise ValueError(
                f"{reader.what}: {name}.weight has shape {weight.shape}, not [1, O, I, h, w]"
            )
        return weight[0].transpose(2, 3, 1, 0)

    def layer(name: str, number: int, side: int) -> dict[str, Any]:
        weight = kernel(f"{name}.conv")
        up = f"{name}.conv.blur.kernel" in reader
        if up:
            filters.append(reader.take(f"{name}.conv.blur.kernel"))
            weight = weight[::-1, ::-1]
        widths[side] = weight.shape[3]
        part = "conv0" if up else "conv1"
        if notes:
            constant = jnp.asarray(drawn.normal(size=(side, side)), jnp.float32)
        else:
            constant = reader.vector(f"noises.noise_{number}", (1, 1, side, side))[0, 0]
        constants.setdefault(f"b{side}", {})[part] = {"noise_const": constant}
        return {
            part: {
                # Demodulation cancels the scale, except for the eps added to its norm.
                "weight": jnp.asarray(weight / np.sqrt(np.prod(weight.shape[:3]))),
                "bias": reader.vector(f"{name}.activate.bias"),
                "noise_strength": reader.vector(f"{name}.noise.weight", (1,))[0],
                "affine": _dense(reader, f"{name}.conv.modulation"),
            }
        }

    def torgb(name: str) -> dict[str, Any]:
        if f"{name}.upsample.kernel" in reader:
            image_filters.append(reader.take(f"{name}.upsample.kernel"))
        return {
            "weight": jnp.asarray(kernel(f"{name}.conv")),
            "bias": reader.vector(f"{name}.bias").reshape(-1),
            "affine": _dense(reader, f"{name}.conv.modulation"),
        }

    const = reader.image("input.input")[0]
    params["b4"] = {"const": const, **layer("conv1", 0, 4), "torgb": torgb("to_rgb1")}
    for index, side in enumerate(sides[1:]):
        params[f"b{side}"] = {
            **layer(f"convs.{2 * index}", 2 * index + 1, side),
            **layer(f"convs.{2 * index + 1}", 2 * index + 2, side),
            "torgb": torgb(f"to_rgbs.{index}"),
        }
    latent = reader.shape("style.1.weight")[1]
    w_avg = np.zeros(style) if average is None else np.asarray(average).reshape(-1)
    if w_avg.shape != (style,):
        raise ValueError(f"{reader.what}: average has {w_avg.size} entries, not {style}")
    config = {
        "size": sides[-1],
        "channels": reader.shape("to_rgb1.conv.weight")[1],
        "latent": latent,
        "style": style,
        "widths": widths,
        "architecture": "skip",
        "mapping": {"depth": depth, **overrides.pop("mapping", {})},
        "resample_filter": _one_filter(reader.what, filters),
        **overrides,
    }
    image_filter = _one_filter(reader.what, image_filters)
    if image_filter != config["resample_filter"]:
        config["image_filter"] = image_filter
    reader.check_all_read()
    variables = {
        "params": {"mapping": mapping, "synthesis": params},
        AVERAGES: {"mapping": {"w_avg": jnp.asarray(w_avg, jnp.float32)}},
        "noise": {"synthesis": constants},
    }
    converted = _build_generator(reader.what, variables, config)
    if average is None:
        notes.append("the file has no average of the styles: it is that of 4,096 latents")
        latents = drawn.normal(size=(4096, latent))
        variables[AVERAGES]["mapping"]["w_avg"] = average_style(converted, latents)
    return converted._replace(notes=tuple(notes), options=_mapping_options(config))


def rosinality_discriminator(tensors: StateDict, **overrides: Any) -> Converted:
    """The discriminator of rosinality's PyTorch port.

    Args:
      tensors: the state dict, `convs.0.0.weight` and so on.
      **overrides: arguments of `kd_jax.models.stylegan2.discriminator`.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others.
    """
    reader = StateDictReader(tensors, f"{DISCRIMINATOR} (rosinality)")
    blocks = len({name.split(".")[1] for name in reader if name.startswith("convs.")}) - 1
    size = SMALLEST << blocks
    params: dict[str, Any] = {}
    filters = []
    widths = {SMALLEST: reader.shape("final_conv.0.weight")[0]}

    def layer(weight: str, bias: str | None = None) -> dict[str, Any]:
        entries = {"weight": reader.kernel(f"{weight}.weight")}
        return entries if bias is None else entries | {"bias": reader.vector(f"{bias}.bias")}

    for index in range(1, blocks + 1):
        side, name = size >> (index - 1), f"convs.{index}"
        widths[side] = reader.shape(f"{name}.conv1.0.weight")[0]
        params[f"b{side}"] = {
            "conv0": layer(f"{name}.conv1.0", f"{name}.conv1.1"),
            "conv1": layer(f"{name}.conv2.1", f"{name}.conv2.2"),
            "skip": layer(f"{name}.skip.1"),
        }
        filters += [reader.take(f"{name}.{part}.0.kernel") for part in ("conv2", "skip")]
    params[f"b{size}"]["fromrgb"] = layer("convs.0.0", "convs.0.1")
    params["b4"] = {
        "conv": layer("final_conv.0", "final_conv.1"),
        "fc": _dense_of_image(reader, "final_linear.0", widths[SMALLEST]),
        "out": _dense(reader, "final_linear.1"),
    }
    config = {
        "size": size,
        "channels": reader.shape("convs.0.0.weight")[1],
        "widths": widths,
        "architecture": "resnet",
        "resample_filter": _one_filter(reader.what, filters),
        "stddev_channels": reader.shape("final_conv.0.weight")[1] - widths[SMALLEST],
        **overrides,
    }
    reader.check_all_read()
    converted = _build_discriminator(reader.what, {"params": params}, config)
    return converted._replace(options=_stddev_options(config))


def genforce_generator(tensors: StateDict, **overrides: Any) -> Converted:
    """The StyleGAN2 generator of genforce's PyTorch port, with ADA's labels if present.

    Args:
      tensors: the state dict, `synthesis.early_layer.const` and so on.
      **overrides: arguments of `kd_jax.models.stylegan2.generator`, for options that
        shapes do not determine: the `lr_multiplier` of `mapping` (default 0.01).

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others.
    """
    reader = StateDictReader(tensors, f"{GENERATOR} (genforce)")
    if "mapping.label_weight" in reader:
        raise ValueError(
            f"{reader.what}: mapping.label_weight is of labels without StyleGAN2-ADA's "
            "normalisation, which are not supported"
        )
    count = _count(reader, "synthesis.layer") // 2 + 1
    style = _shape(reader, "synthesis.layer0.style.weight", 2)[1]
    channels = _shape(reader, f"synthesis.output{count - 1}.bias", 1)[0]
    skip = _has(reader, "synthesis.output0.")
    depth = _count(reader, "mapping.dense")
    hidden = _shape(reader, "mapping.dense0.bias", 1)[0]

    entering = latent = _shape(reader, "mapping.dense0.weight", 2)[1]
    mapping: dict[str, Any] = {"depth": depth}
    mapping_params: dict[str, Any] = {}
    classes = 0
    if _has(reader, "mapping.LabelEmbed."):
        length, classes = _shape(reader, "mapping.LabelEmbed.weight", 2)
        mapping["embedding"] = length
        mapping_params["embed"] = _dense_of(reader, "mapping.LabelEmbed", classes, length)
        latent -= length
    if depth > 1:
        mapping["hidden"] = hidden
    for index in range(depth):
        after = hidden if index < depth - 1 else style
        mapping_params[f"fc{index}"] = _dense_of(reader, f"mapping.dense{index}", entering, after)
        entering = after

    params: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    widths: dict[int, int] = {}
    filters = ["synthesis.upsample.kernel"] if skip else []
    before = _shape(reader, "synthesis.early_layer.const", 4)[1]
    stored = reader.take("synthesis.early_layer.const", (1, before, SMALLEST, SMALLEST))
    const = jnp.asarray(stored[0].transpose(1, 2, 0))

    def affine(name: str, width: int) -> dict[str, Any]:
        layer = _dense_of(reader, f"{name}.style", style, width)
        return {"weight": layer["weight"], "bias": layer["bias"] + 1}

    for number in range(count):
        side = SMALLEST << number
        block: dict[str, Any] = {} if number else {"const": const}
        width = _shape(reader, f"synthesis.layer{2 * number}.bias", 1)[0]
        parts = {"conv0": 2 * number - 1, "conv1": 2 * number} if number else {"conv1": 0}
        for part, index in parts.items():
            name = f"synthesis.layer{index}"
            kernel = reader.kernel(f"{name}.weight", (3, 3, before, width))
            block[part] = {
                # Demodulation cancels the scale, except for the eps added to its norm.
                "weight": kernel / math.sqrt(9 * before),
                "bias": reader.vector(f"{name}.bias", (width,)),
                "noise_strength": reader.vector(f"{name}.noise_strength", ()),
                "affine": affine(name, before),
            }
            noise = reader.vector(f"{name}.noise", (1, 1, side, side))
            constants.setdefault(f"b{side}", {})[part] = {"noise_const": noise[0, 0]}
            if part == "conv0":
                filters.append(f"{name}.filter.kernel")
            before = width
        if skip or number == count - 1:
            name = f"synthesis.output{number}"
            torgb = _conv_of(reader, name, 1, width, channels)
            block["torgb"] = {**torgb, "affine": affine(name, width)}
        params[f"b{side}"], widths[side] = block, width
    config = {
        "size": side,
        "channels": channels,
        "classes": classes,
        "latent": latent,
        "style": style,
        "widths": widths,
        "architecture": "skip" if skip else "orig",
        "mapping": {**mapping, **overrides.pop("mapping", {})},
        "resample_filter": _flipped_filter(reader, filters, 4.0),
        **overrides,
    }
    variables = {
        "params": {"mapping": mapping_params, "synthesis": params},
        AVERAGES: {"mapping": {"w_avg": reader.vector("truncation.w_avg", (style,))}},
        "noise": {"synthesis": constants},
    }
    reader.check_all_read()
    converted = _build_generator(reader.what, variables, config)
    return converted._replace(options=_mapping_options(config))


def genforce_discriminator(tensors: StateDict, **overrides: Any) -> Converted:
    """The StyleGAN2 discriminator of genforce's PyTorch port, with ADA's labels if present.

    Args:
      tensors: the state dict, `input0.weight` and so on.
      **overrides: arguments of `kd_jax.models.stylegan2.discriminator`, for options that
        shapes do not determine: `stddev_group` (default 4).

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others.
    """
    reader = StateDictReader(tensors, f"{DISCRIMINATOR} (genforce)")
    count = max(_count(reader, "layer") // 2, 2)
    size = SMALLEST << (count - 1)
    skip, residual = _has(reader, "input1."), _has(reader, "skip_layer")
    channels = _shape(reader, "input0.weight", 4)[1]
    params: dict[str, Any] = {}
    widths: dict[int, int] = {}
    filters = ["downsample.kernel"] if skip else []
    for number in range(count):
        side = size >> number
        conv0, conv1 = f"layer{2 * number}", f"layer{2 * number + 1}"
        width = widths[side] = _shape(reader, f"{conv0}.bias", 1)[0]
        block: dict[str, Any] = {}
        if skip or number == 0:
            block["fromrgb"] = _conv_of(reader, f"input{number}", 1, channels, width)
        params[f"b{side}"] = block
        if side > SMALLEST:
            after = _shape(reader, f"layer{2 * number + 2}.bias", 1)[0]
            block["conv0"] = _conv_of(reader, conv0, 3, width, width)
            block["conv1"] = _conv_of(reader, conv1, 3, width, after)
            filters.append(f"{conv1}.filter.kernel")
            if residual:
                name = f"skip_layer{number}"
                block["skip"] = {"weight": reader.kernel(f"{name}.weight", (1, 1, width, after))}
                filters.append(f"{name}.filter.kernel")

    out = f"layer{2 * count}"
    entering = _shape(reader, f"{conv0}.weight", 4)[1]
    if entering < width:
        raise ValueError(
            f"{reader.what}: {conv0}.weight has {entering} inputs, not at least {width}"
        )
    classes, condition = 0, None
    mapping: dict[str, Any] = {}
    if _has(reader, "LabelEmbed."):
        condition, classes = _shape(reader, "LabelEmbed.weight", 2)
        mapping = {"depth": 0, "embedding": condition}
        params["mapping"] = {"embed": _dense_of(reader, "LabelEmbed", classes, condition)}
    block["conv"] = _conv_of(reader, conv0, 3, entering, width)
    block["fc"] = _dense_of_image(reader, conv1, width)
    block["out"] = _dense_of(reader, out, width, condition or 1)
    config = {
        "size": size,
        "channels": channels,
        "classes": classes,
        "widths": widths,
        "architecture": "resnet" if residual else "skip" if skip else "orig",
        "condition": condition,
        "mapping": {**mapping, **overrides.pop("mapping", {})},
        "resample_filter": _flipped_filter(reader, filters, 1.0),
        "stddev_channels": entering - width,
        **overrides,
    }
    reader.check_all_read()
    converted = _build_discriminator(reader.what, {"params": params}, config)
    return converted._replace(options=_stddev_options(config))


def _build_generator(what: str, variables: Any, config: dict[str, Any]) -> Converted:
    inputs = [jax.ShapeDtypeStruct((1, config["latent"]), jnp.float32)]
    return _build(what, stylegan2.generator(**config), variables, config, inputs)


def _build_discriminator(what: str, variables: Any, config: dict[str, Any]) -> Converted:
    shape = (1, config["size"], config["size"], config["channels"])
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    return _build(what, stylegan2.discriminator(**config), variables, config, inputs)


def _build(
    what: str, network: Network, variables: Any, config: dict[str, Any], inputs: list[Any]
) -> Converted:
    if config.get("classes"):
        inputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
    return check_variables(what, Converted(network, variables, config), *inputs)


def _layer_options(config: Mapping[str, Any], filters: list[np.ndarray]) -> dict[str, Any]:
    """The options of NVIDIA's layers; the filter only if the file has none."""
    options = {"activation": "lrelu", "conv_clamp": None}
    options = {name: config.get(name, default) for name, default in options.items()}
    return options | ({} if filters else {"resample_filter": config["resample_filter"]})


def _mapping_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"mapping": {"lr_multiplier": config["mapping"].get("lr_multiplier", 0.01)}}


def _stddev_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The option of the minibatch standard deviation, if there is one."""
    return {"stddev_group": config.get("stddev_group", 4)} if config["stddev_channels"] else {}


def _sides(reader: StateDictReader, prefix: str) -> list[int]:
    matches = (re.match(re.escape(prefix) + r"b(\d+)\.", name) for name in reader)
    sides = sorted({int(match[1]) for match in matches if match})
    expected = [SMALLEST << i for i in range(len(sides))]
    if sides != expected or not sides:
        raise ValueError(f"not {reader.what}: it has blocks of sizes {sides}, not {expected}")
    return sides


def _dense(reader: StateDictReader, name: str) -> dict[str, Any]:
    return {"weight": reader.dense(f"{name}.weight"), "bias": reader.vector(f"{name}.bias")}


def _dense_of_image(reader: StateDictReader, name: str, width: int) -> dict[str, Any]:
    """A linear layer over flattened 4x4 features, from channels first to channels last."""
    weight = reader.take(f"{name}.weight", (width, width * SMALLEST**2))
    image = weight.reshape(width, width, SMALLEST, SMALLEST).transpose(2, 3, 1, 0)
    bias = reader.vector(f"{name}.bias", (width,))
    return {"weight": jnp.asarray(image.reshape(-1, width)), "bias": bias}


def _has(reader: StateDictReader, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in reader)


def _count(reader: StateDictReader, name: str) -> int:
    """The number of layers `name0`, `name1`, ... before the first that is missing."""
    matches = (re.match(re.escape(name) + r"(\d+)\.", other) for other in reader)
    numbers = {match[1] for match in matches if match}
    return next(number for number in itertools.count() if str(number) not in numbers)


def _shape(reader: StateDictReader, name: str, rank: int) -> tuple[int, ...]:
    shape = reader.shape(name)
    if len(shape) != rank:
        raise ValueError(f"{reader.what}: {name} has shape {shape}, not {rank} axes")
    return shape


def _dense_of(reader: StateDictReader, name: str, inputs: int, outputs: int) -> dict[str, Any]:
    """A linear layer with these numbers of inputs and outputs."""
    weight = reader.take(f"{name}.weight", (outputs, inputs))
    return {"weight": jnp.asarray(weight.T), "bias": reader.vector(f"{name}.bias", (outputs,))}


def _conv_of(
    reader: StateDictReader, name: str, kernel: int, inputs: int, outputs: int
) -> dict[str, Any]:
    """A convolution with this kernel size and these numbers of inputs and outputs."""
    return {
        "weight": reader.kernel(f"{name}.weight", (kernel, kernel, inputs, outputs)),
        "bias": reader.vector(f"{name}.bias", (outputs,)),
    }


def _flipped_filter(reader: StateDictReader, names: list[str], gain: float) -> tuple:
    """The filter shared by all layers. The program correlates with it, we convolve."""
    filters = []
    for name in names:
        taps = reader.take(name, (1, 1, 4, 4))
        if not np.isclose(taps.sum(), gain, rtol=1e-4):
            raise ValueError(f"{reader.what}: {name} sums to {taps.sum():.4g} instead of {gain:g}")
        filters.append(taps[0, 0, ::-1, ::-1])
    return _one_filter(reader.what, filters)


def _mapping(
    reader: StateDictReader, prefix: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The mapping's options and parameters."""
    pattern = re.escape(prefix) + r"fc(\d+)\.weight"
    depth = len([name for name in reader if re.fullmatch(pattern, name)])
    params = {f"fc{i}": _dense(reader, f"{prefix}fc{i}") for i in range(depth)}
    config: dict[str, Any] = {"depth": depth}
    if f"{prefix}embed.weight" in reader:
        params["embed"] = _dense(reader, f"{prefix}embed")
        config["embedding"] = params["embed"]["bias"].shape[0]
    if depth > 1:
        config["hidden"] = params["fc0"]["bias"].shape[0]
    return {**config, **options}, params


def _filters(reader: StateDictReader, name: str, unused: bool = False) -> list[np.ndarray]:
    """A layer's filter, if it is in the file and the layer resamples."""
    name = f"{name}.resample_filter"
    if unused:
        reader.drop(name)
        return []
    return [reader.take(name)] if name in reader else []


def _one_filter(what: str, filters: list[np.ndarray]) -> tuple:
    """The filter shared by all layers, normalised to unit gain."""
    if not filters:
        return (1, 3, 3, 1)  # the authors' default
    sums = [np.sum(taps, dtype=np.float64) for taps in filters]
    if not all(sums):
        raise ValueError(f"{what}: a resampling filter sums to 0")
    normal = [
        np.asarray(taps, np.float64) / total for taps, total in zip(filters, sums, strict=True)
    ]
    for taps in normal:
        if taps.shape != normal[0].shape or np.abs(taps - normal[0]).max() > 1e-6:
            raise ValueError(f"{what}: its layers have different resampling filters")
    return _as_tuple(normal[0])


def _as_tuple(array: np.ndarray) -> tuple:
    return tuple(_as_tuple(row) if row.ndim else float(row) for row in array)
