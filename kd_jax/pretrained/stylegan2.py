"""StyleGAN2 from the state dicts of NVIDIA's and rosinality's PyTorch programs.

Kernels of layers that upsample are stored turned by both, since theirs are transposed convolutions.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import stylegan2
from kd_jax.models.style import AVERAGES
from kd_jax.network import Network
from kd_jax.pretrained.convert import Converted, StateDict, Tensors, checked

SMALLEST = stylegan2.SMALLEST
GENERATOR, DISCRIMINATOR = "a StyleGAN2 generator", "a StyleGAN2 discriminator"


def is_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensors' names of NVIDIA's StyleGAN2 generator."""
    return {"synthesis.b4.const", "synthesis.b4.conv1.weight"} <= set(names)


def is_discriminator(names: Iterable[str]) -> bool:
    """Whether these are the tensors' names of NVIDIA's StyleGAN2 discriminator."""
    return {"b4.conv.weight", "b4.fc.weight", "b4.out.weight"} <= set(names)


def is_rosinality_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensors' names of rosinality's StyleGAN2 generator."""
    return {"input.input", "conv1.conv.modulation.weight", "to_rgb1.bias"} <= set(names)


def is_rosinality_discriminator(names: Iterable[str]) -> bool:
    """Whether these are the tensors' names of rosinality's StyleGAN2 discriminator."""
    return {"convs.0.0.weight", "final_conv.0.weight", "final_linear.1.weight"} <= set(names)


def generator_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes cannot tell, of the keyword arguments of NVIDIA's generator class."""
    synthesis = {**settings, **settings.get("synthesis_kwargs", {})}
    block = {**synthesis, **synthesis.get("block_kwargs", {})}
    layer = {**block, **block.get("layer_kwargs", {})}
    return _given(layer, conv_clamp="conv_clamp", activation="activation") | {
        "mapping": _mapping_settings(settings.get("mapping_kwargs", {}))
    }


def discriminator_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes cannot tell, of the keyword arguments of NVIDIA's discriminator class."""
    block = {**settings, **settings.get("block_kwargs", {})}
    epilogue = settings.get("epilogue_kwargs", {})
    return (
        _given(block, conv_clamp="conv_clamp", activation="activation")
        | _given(epilogue, mbstd_group_size="stddev_group")
        | {"mapping": _mapping_settings(settings.get("mapping_kwargs", {}))}
    )


def _mapping_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _given(
        settings,
        lr_multiplier="lr_multiplier",
        activation="activation",
        w_avg_beta="average_decay",
    )


def _given(settings: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings}


def generator(found: StateDict, **overrides: Any) -> Converted:
    """NVIDIA's StyleGAN2 generator (StyleGAN2-ADA's, and StyleGAN3's configuration of it).

    Args:
      found: the tensors, `mapping.fc0.weight` and so on.
      **overrides: of `kd_jax.models.stylegan2.generator`, for what shapes cannot tell: `conv_clamp`
        (None if not given), `mapping`'s `lr_multiplier`, `activation`, `dtype`.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than the others ask for.
    """
    given = Tensors(found, GENERATOR)
    sides = _sides(given, "synthesis.")
    size = sides[-1]
    widths = {side: given.shape(f"synthesis.b{side}.conv1.weight")[0] for side in sides}
    mapping, mapping_params = _mapping(given, "mapping.", overrides.pop("mapping", {}))
    style = given.shape("synthesis.b4.conv1.affine.weight")[1]
    noise = "synthesis.b4.conv1.noise_strength" in given
    if "synthesis.b8.skip.weight" in given:
        architecture = "resnet"
    else:
        architecture = "skip" if "synthesis.b4.torgb.weight" in given else "orig"
    latent = given.shape("mapping.fc0.weight")[1]
    classes = 0
    if "mapping.embed.weight" in given:
        classes = given.shape("mapping.embed.weight")[1]
        latent -= given.shape("mapping.embed.weight")[0]

    params: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    filters = []
    before = widths[SMALLEST]
    for side in sides:
        name = f"synthesis.b{side}"
        block: dict[str, Any] = {}
        if side == SMALLEST:
            block["const"] = given.image(f"{name}.const")
        for part in ("conv0", "conv1"):
            layer = f"{name}.{part}"
            if side == SMALLEST and part == "conv0":
                continue
            kernel = given.kernel(f"{layer}.weight", (3, 3, before, widths[side]))
            before = widths[side]
            block[part] = {
                "weight": kernel[::-1, ::-1] if part == "conv0" else kernel,
                "bias": given.vector(f"{layer}.bias", (before,)),
                "affine": _dense(given, f"{layer}.affine"),
            }
            filters += _filters(given, layer)
            if noise:
                block[part]["noise_strength"] = given.vector(f"{layer}.noise_strength", ())
                constant = given.vector(f"{layer}.noise_const", (side, side))
                constants.setdefault(f"b{side}", {})[part] = {"noise_const": constant}
        if f"{name}.skip.weight" in given:
            block["skip"] = {"weight": given.kernel(f"{name}.skip.weight")}
            filters += _filters(given, f"{name}.skip")
        if f"{name}.torgb.weight" in given:
            block["torgb"] = {
                "weight": given.kernel(f"{name}.torgb.weight"),
                "bias": given.vector(f"{name}.torgb.bias"),
                "affine": _dense(given, f"{name}.torgb.affine"),
            }
        filters += _filters(given, name)
        params[f"b{side}"] = block
    average = given.vector("mapping.w_avg", (style,))
    config = {
        "size": size,
        "channels": given.shape(f"synthesis.b{size}.torgb.weight")[0],
        "classes": classes,
        "latent": latent,
        "style": style,
        "widths": widths,
        "architecture": architecture,
        "mapping": mapping,
        "resample_filter": _one_filter(given.what, filters),
        "noise": noise,
        **overrides,
    }
    given.done()
    variables = {
        "params": {"mapping": mapping_params, "synthesis": params},
        AVERAGES: {"mapping": {"w_avg": average}},
    }
    if noise:
        variables["noise"] = {"synthesis": constants}
    return _made_generator(given.what, variables, config)


def discriminator(found: StateDict, **overrides: Any) -> Converted:
    """NVIDIA's StyleGAN2 discriminator (StyleGAN2-ADA's and StyleGAN3's).

    Args:
      found: the tensors, `b4.conv.weight` and so on.
      **overrides: of `kd_jax.models.stylegan2.discriminator`, for what shapes cannot tell:
        `stddev_group` (4 if not given), `conv_clamp`, `mapping`'s `lr_multiplier`, `activation`.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than the others ask for.
    """
    given = Tensors(found, DISCRIMINATOR)
    sides = _sides(given, "")
    size = sides[-1]
    widths = {SMALLEST: given.shape("b4.conv.weight")[0]}
    for side in sides[1:]:
        widths[side] = given.shape(f"b{side}.conv0.weight")[0]
    if f"b{size}.skip.weight" in given:
        architecture = "resnet"
    else:
        architecture = "skip" if "b4.fromrgb.weight" in given else "orig"
    params: dict[str, Any] = {}
    mapping: dict[str, Any] = {}
    classes, condition = 0, None
    options = overrides.pop("mapping", {})
    if "mapping.embed.weight" in given:
        classes = given.shape("mapping.embed.weight")[1]
        condition = given.shape("b4.out.weight")[0]
        mapping, params["mapping"] = _mapping(given, "mapping.", options)
    filters = []
    for side in reversed(sides):
        block: dict[str, Any] = {}
        for part in ("fromrgb", "conv0", "conv1", "skip", "conv"):
            name = f"b{side}.{part}"
            if f"{name}.weight" not in given:
                continue
            block[part] = {"weight": given.kernel(f"{name}.weight")}
            if part != "skip":
                block[part]["bias"] = given.vector(f"{name}.bias")
            filters += _filters(given, name)
        if side == SMALLEST:
            block["fc"] = _dense_of_image(given, "b4.fc", widths[SMALLEST])
            block["out"] = _dense(given, "b4.out")
        filters += _filters(given, f"b{side}")
        params[f"b{side}"] = block
    config = {
        "size": size,
        "channels": given.shape(f"b{size}.fromrgb.weight")[1],
        "classes": classes,
        "widths": widths,
        "architecture": architecture,
        "condition": condition,
        "mapping": mapping,
        "resample_filter": _one_filter(given.what, filters),
        "stddev_channels": given.shape("b4.conv.weight")[1] - widths[SMALLEST],
        **overrides,
    }
    given.done()
    return _made_discriminator(given.what, {"params": params}, config)


def rosinality_generator(
    found: StateDict, average: np.ndarray | None = None, **overrides: Any
) -> Converted:
    """The generator of rosinality's PyTorch port.

    Args:
      found: the tensors, `conv1.conv.weight` and so on.
      average: w's average `[style]` or `[1, style]`, which their checkpoints have beside the
        networks (`latent_avg`) if at all; without one truncation is towards 0.
      **overrides: of `kd_jax.models.stylegan2.generator`.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than the others ask for.
    """
    given = Tensors(found, f"{GENERATOR} (rosinality)")
    count = len({name.split(".")[1] for name in given if name.startswith("convs.")})
    sides = [SMALLEST << i for i in range(count // 2 + 1)]
    depth = len({name.split(".")[1] for name in given if name.startswith("style.")})
    style = given.shape("conv1.conv.modulation.weight")[1]
    mapping = {
        f"fc{i}": _dense(given, f"style.{i + 1}")
        for i in range(depth)  # number 0 has no weights
    }
    params: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    filters: list[np.ndarray] = []
    widths = {}

    def kernel(name: str) -> Any:
        weight = given.take(f"{name}.weight")
        if weight.ndim != 5 or weight.shape[0] != 1:
            raise ValueError(
                f"{given.what}: {name}.weight has shape {weight.shape}, not [1, O, I, h, w]"
            )
        return weight[0].transpose(2, 3, 1, 0)

    def layer(name: str, number: int, side: int) -> dict[str, Any]:
        weight = kernel(f"{name}.conv")
        up = f"{name}.conv.blur.kernel" in given
        if up:
            filters.append(given.take(f"{name}.conv.blur.kernel"))
            weight = weight[::-1, ::-1]
        widths[side] = weight.shape[3]
        part = "conv0" if up else "conv1"
        constant = given.vector(f"noises.noise_{number}", (1, 1, side, side))[0, 0]
        constants.setdefault(f"b{side}", {})[part] = {"noise_const": constant}
        return {
            part: {
                # Demodulated, it could have any scale, but for the eps beside its norm.
                "weight": jnp.asarray(weight / np.sqrt(np.prod(weight.shape[:3]))),
                "bias": given.vector(f"{name}.activate.bias"),
                "noise_strength": given.vector(f"{name}.noise.weight", (1,))[0],
                "affine": _dense(given, f"{name}.conv.modulation"),
            }
        }

    def torgb(name: str) -> dict[str, Any]:
        if f"{name}.upsample.kernel" in given:
            filters.append(given.take(f"{name}.upsample.kernel"))
        return {
            "weight": jnp.asarray(kernel(f"{name}.conv")),
            "bias": given.vector(f"{name}.bias").reshape(-1),
            "affine": _dense(given, f"{name}.conv.modulation"),
        }

    const = given.image("input.input")[0]
    params["b4"] = {"const": const, **layer("conv1", 0, 4), "torgb": torgb("to_rgb1")}
    for index, side in enumerate(sides[1:]):
        params[f"b{side}"] = {
            **layer(f"convs.{2 * index}", 2 * index + 1, side),
            **layer(f"convs.{2 * index + 1}", 2 * index + 2, side),
            "torgb": torgb(f"to_rgbs.{index}"),
        }
    latent = given.shape("style.1.weight")[1]
    w_avg = np.zeros(style) if average is None else np.asarray(average).reshape(-1)
    if w_avg.shape != (style,):
        raise ValueError(f"{given.what}: the average has {w_avg.size} numbers, a style {style}")
    config = {
        "size": sides[-1],
        "channels": given.shape("to_rgb1.conv.weight")[1],
        "latent": latent,
        "style": style,
        "widths": widths,
        "architecture": "skip",
        "mapping": {"depth": depth, **overrides.pop("mapping", {})},
        "resample_filter": _one_filter(given.what, filters),
        **overrides,
    }
    given.done()
    variables = {
        "params": {"mapping": mapping, "synthesis": params},
        AVERAGES: {"mapping": {"w_avg": jnp.asarray(w_avg, jnp.float32)}},
        "noise": {"synthesis": constants},
    }
    return _made_generator(given.what, variables, config)


def rosinality_discriminator(found: StateDict, **overrides: Any) -> Converted:
    """The discriminator of rosinality's PyTorch port.

    Args:
      found: the tensors, `convs.0.0.weight` and so on.
      **overrides: of `kd_jax.models.stylegan2.discriminator`.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than the others ask for.
    """
    given = Tensors(found, f"{DISCRIMINATOR} (rosinality)")
    blocks = len({name.split(".")[1] for name in given if name.startswith("convs.")}) - 1
    size = SMALLEST << blocks
    params: dict[str, Any] = {}
    filters = []
    widths = {SMALLEST: given.shape("final_conv.0.weight")[0]}

    def layer(weight: str, bias: str | None = None) -> dict[str, Any]:
        found = {"weight": given.kernel(f"{weight}.weight")}
        return found if bias is None else found | {"bias": given.vector(f"{bias}.bias")}

    for index in range(1, blocks + 1):
        side, name = size >> (index - 1), f"convs.{index}"
        widths[side] = given.shape(f"{name}.conv1.0.weight")[0]
        params[f"b{side}"] = {
            "conv0": layer(f"{name}.conv1.0", f"{name}.conv1.1"),
            "conv1": layer(f"{name}.conv2.1", f"{name}.conv2.2"),
            "skip": layer(f"{name}.skip.1"),
        }
        filters += [given.take(f"{name}.{part}.0.kernel") for part in ("conv2", "skip")]
    params[f"b{size}"]["fromrgb"] = layer("convs.0.0", "convs.0.1")
    params["b4"] = {
        "conv": layer("final_conv.0", "final_conv.1"),
        "fc": _dense_of_image(given, "final_linear.0", widths[SMALLEST]),
        "out": _dense(given, "final_linear.1"),
    }
    config = {
        "size": size,
        "channels": given.shape("convs.0.0.weight")[1],
        "widths": widths,
        "architecture": "resnet",
        "resample_filter": _one_filter(given.what, filters),
        "stddev_channels": given.shape("final_conv.0.weight")[1] - widths[SMALLEST],
        **overrides,
    }
    given.done()
    return _made_discriminator(given.what, {"params": params}, config)


def _made_generator(what: str, variables: Any, config: dict[str, Any]) -> Converted:
    inputs = [jax.ShapeDtypeStruct((1, config["latent"]), jnp.float32)]
    return _made(what, stylegan2.generator(**config), variables, config, inputs)


def _made_discriminator(what: str, variables: Any, config: dict[str, Any]) -> Converted:
    shape = (1, config["size"], config["size"], config["channels"])
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    return _made(what, stylegan2.discriminator(**config), variables, config, inputs)


def _made(
    what: str, network: Network, variables: Any, config: dict[str, Any], inputs: list[Any]
) -> Converted:
    if config.get("classes"):
        inputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
    return checked(what, Converted(network, variables, config), *inputs)


def _sides(given: Tensors, prefix: str) -> list[int]:
    matches = (re.match(re.escape(prefix) + r"b(\d+)\.", name) for name in given)
    sides = sorted({int(match[1]) for match in matches if match})
    expected = [SMALLEST << i for i in range(len(sides))]
    if sides != expected or not sides:
        raise ValueError(f"not {given.what}: it has blocks of the sides {sides}, not {expected}")
    return sides


def _dense(given: Tensors, name: str) -> dict[str, Any]:
    return {"weight": given.dense(f"{name}.weight"), "bias": given.vector(f"{name}.bias")}


def _dense_of_image(given: Tensors, name: str, width: int) -> dict[str, Any]:
    """A layer over 4x4 features, whose channels come last here and came first there."""
    weight = given.take(f"{name}.weight", (width, width * SMALLEST**2))
    image = weight.reshape(width, width, SMALLEST, SMALLEST).transpose(2, 3, 1, 0)
    return {"weight": jnp.asarray(image.reshape(-1, width)), "bias": given.vector(f"{name}.bias")}


def _mapping(
    given: Tensors, prefix: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The mapping's options and parameters."""
    pattern = re.escape(prefix) + r"fc(\d+)\.weight"
    depth = len([name for name in given if re.fullmatch(pattern, name)])
    params = {f"fc{i}": _dense(given, f"{prefix}fc{i}") for i in range(depth)}
    found: dict[str, Any] = {"depth": depth}
    if f"{prefix}embed.weight" in given:
        params["embed"] = _dense(given, f"{prefix}embed")
        found["embedding"] = params["embed"]["bias"].shape[0]
    if depth > 1:
        found["hidden"] = params["fc0"]["bias"].shape[0]
    return {**found, **options}, params


def _filters(given: Tensors, name: str) -> list[np.ndarray]:
    """A layer's filter, if the file has it."""
    name = f"{name}.resample_filter"
    return [given.take(name)] if name in given else []


def _one_filter(what: str, filters: list[np.ndarray]) -> tuple:
    """The filter that all layers have, whatever its gain."""
    if not filters:
        return (1, 3, 3, 1)  # the authors' default
    normal = [np.asarray(taps, np.float64) / np.sum(taps, dtype=np.float64) for taps in filters]
    for taps in normal:
        if taps.shape != normal[0].shape or np.abs(taps - normal[0]).max() > 1e-6:
            raise ValueError(f"{what}: its layers have different resampling filters")
    return _as_tuple(normal[0])


def _as_tuple(array: np.ndarray) -> tuple:
    return tuple(_as_tuple(row) if row.ndim else float(row) for row in array)
