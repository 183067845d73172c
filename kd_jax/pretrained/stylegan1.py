"""StyleGAN from the state dicts of genforce's and rosinality's PyTorch programs.

genforce's are the weights of the authors' TensorFlow program under other names. Both programs put
He's constant before the bias, where `kd_jax.models.style.Dense` has it after the activation: such
layers' biases are divided by it. Layers that double the side and were trained fused are transposed
convolutions there, so that their kernels are turned here.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import stylegan1
from kd_jax.models.style import AVERAGES
from kd_jax.network import Network
from kd_jax.pretrained.convert import Converted, StateDict, Tensors, checked

SMALLEST = stylegan1.SMALLEST
HE = math.sqrt(2)
LR_MULTIPLIER = 0.01  # of the mapping, in `kd_jax.models.stylegan1`
GENERATOR, DISCRIMINATOR = "a StyleGAN generator", "a StyleGAN discriminator"


def is_genforce_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensors' names of genforce's StyleGAN generator."""
    return {"synthesis.layer0.const", "synthesis.layer0.apply_noise.weight"} <= set(names)


def is_genforce_discriminator(names: Iterable[str]) -> bool:
    """Whether these are the tensors' names of genforce's StyleGAN discriminator.

    Its relatives are StyleGAN2's, with one `input` only, and the progressive GAN's without filters.
    """
    return {"input0.weight", "input1.weight", "layer1.blur.kernel"} <= set(names)


def is_rosinality_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensors' names of rosinality's StyleGAN generator."""
    return {"generator.progression.0.conv1.input", "style.1.linear.weight_orig"} <= set(names)


def is_rosinality_discriminator(names: Iterable[str]) -> bool:
    """Whether these are the tensors' names of rosinality's StyleGAN discriminator."""
    return {"progression.0.conv1.0.conv.weight_orig", "linear.linear.weight_orig"} <= set(names)


def genforce_generator(found: StateDict, *, fused_from: int = 128, **overrides: Any) -> Converted:
    """The StyleGAN generator of genforce's PyTorch port.

    Args:
      found: the tensors, `synthesis.layer0.const` and so on.
      fused_from: the smallest side whose layers were trained fused (`fused_scale`): 128 for "auto",
        4 for all, more than there are for none.
      **overrides: of `kd_jax.models.stylegan1.generator`.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than the others ask for.
    """
    given = Tensors(found, f"{GENERATOR} (genforce)")
    sides = _sides(given, "synthesis.output{}.")
    depth = _last(given, "mapping.dense{}.") + 1
    latent = _inputs(given, "mapping.dense0.weight")
    style = _inputs(given, "synthesis.layer0.style.weight")
    hidden = _width(given, "mapping.dense0.bias")
    channels = _width(given, "synthesis.output0.bias")

    mapping: dict[str, Any] = {}
    classes, before = 0, latent
    if embedding := next((name for name in given if name.startswith("mapping.label")), None):
        latent = before // 2
        classes = given.shape(embedding)[0]
        mapping["embedding"] = given.vector(embedding, (classes, latent))
    for index in range(depth):
        after = hidden if index < depth - 1 else style
        mapping[f"fc{index}"] = _dense(given, f"mapping.dense{index}", before, after, HE)
        before = after

    params: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    blurs: list[str] = []
    widths: dict[int, int] = {}
    before = 0
    for number, side in enumerate(sides):
        block = {}
        width = _width(given, f"synthesis.layer{2 * number}.bias")
        for part in (0, 1):
            index = 2 * number + part
            name = f"synthesis.layer{index}"
            layer: dict[str, Any] = {
                "bias": given.vector(f"{name}.bias", (width,)),
                "noise_strength": given.vector(f"{name}.apply_noise.weight", (width,)),
                "affine": _dense(given, f"{name}.style", style, 2 * width),
            }
            if index == 0:
                layer["const"] = _const(given, f"{name}.const", width)
            else:
                weight = given.kernel(f"{name}.weight", (3, 3, before, width))
                fused = part == 0 and side >= fused_from
                layer["weight"] = weight[::-1, ::-1] if fused else weight
                if part == 0:
                    blurs.append(f"{name}.blur.kernel")
            noise = given.vector(f"{name}.apply_noise.noise", (1, 1, side, side))
            constants[f"noise{index}"] = noise[0, 0]
            block[f"conv{part}"] = layer
            before = width
        block["torgb"] = _conv(given, f"synthesis.output{number}", 1, width, channels)
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
        "blur": _blur(given, blurs),
        "lod": float(given.take("synthesis.lod", ())),
        **overrides,
    }
    variables = {
        "params": {"mapping": mapping, "synthesis": params},
        AVERAGES: {"mapping": {"w_avg": given.vector("truncation.w_avg", (style,))}},
        "noise": {"synthesis": constants},
    }
    given.done()
    return _made_generator(given.what, variables, config)


def genforce_discriminator(found: StateDict, **overrides: Any) -> Converted:
    """The discriminator of genforce's PyTorch port. Trained fused or not, it is the same.

    Args:
      found: the tensors, `input0.weight` and so on.
      **overrides: of `kd_jax.models.stylegan1.discriminator`, for what shapes cannot tell:
        `stddev_group` (4 if not given).

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than the others ask for.
    """
    given = Tensors(found, f"{DISCRIMINATOR} (genforce)")
    sides = _sides(given, "input{}.")
    channels = _inputs(given, "input0.weight")
    params: dict[str, Any] = {}
    widths, inner, blurs = {}, {}, []
    for number, side in enumerate(reversed(sides)):
        widths[side] = _width(given, f"input{number}.bias")
        inner[side] = _width(given, f"layer{2 * number}.bias")
        block = {"fromrgb": _conv(given, f"input{number}", 1, channels, widths[side])}
        if side > SMALLEST:
            after = _width(given, f"input{number + 1}.bias")
            name = f"layer{2 * number + 1}"
            block["conv0"] = _conv(given, f"layer{2 * number}", 3, widths[side], inner[side])
            block["conv1"] = _conv(given, name, 3, inner[side], after)
            blurs.append(f"{name}.blur.kernel")
        params[f"b{side}"] = block

    conv, fc, out = (f"layer{2 * len(sides) - 2 + index}" for index in range(3))
    entering = _inputs(given, f"{conv}.weight")
    features = _width(given, f"{fc}.bias")
    scores = _width(given, f"{out}.bias")
    params["b4"] |= {
        "conv": _conv(given, conv, 3, entering, inner[SMALLEST]),
        "fc": {
            "weight": _of_image(given.take(f"{fc}.weight", (features, inner[SMALLEST] * 16))),
            "bias": given.vector(f"{fc}.bias") / HE,
        },
        "out": _dense(given, out, features, scores),
    }
    config = {
        "size": sides[-1],
        "channels": channels,
        "classes": scores if scores > 1 else 0,
        "widths": widths,
        "inner": inner,
        "features": features,
        "blur": _blur(given, blurs),
        "stddev_channels": entering - widths[SMALLEST],
        "lod": float(given.take("lod", ())),
        **overrides,
    }
    given.done()
    return _made_discriminator(given.what, {"params": params}, config)


def rosinality_generator(
    found: StateDict,
    *,
    size: int | None = None,
    average: np.ndarray | None = None,
    **overrides: Any,
) -> Converted:
    """The StyleGAN generator of rosinality's PyTorch port, up to the side it was trained to.

    The files hold all blocks up to 1024, of which those beyond the training's last `step` were
    never used. They hold neither noise nor w's average: here the stored noise is drawn once for
    all, and w averaged over 10,000 latents, the program's own number.

    Args:
      found: the tensors, `generator.progression.0.conv1.input` and so on.
      size: the side, `4 * 2**step`; all of the file by default.
      average: w's average `[style]` or `[1, style]`, instead.
      **overrides: of `kd_jax.models.stylegan1.generator`. The program's `alpha` is `1 - lod`.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than the others ask for; or the
        size is none of the file's.
    """
    given = Tensors(found, f"{GENERATOR} (rosinality)")
    sides = _sides(given, "generator.to_rgb.{}.")
    size = _size(given, size, sides)
    depth = (_last(given, "style.{}.") + 1) // 2  # between them are activations
    latent = _inputs(given, "style.1.linear.weight_orig")
    channels = _width(given, "generator.to_rgb.0.conv.bias")

    mapping: dict[str, Any] = {}
    before, hidden = latent, _width(given, "style.1.linear.bias")
    style = _inputs(given, "generator.progression.0.adain1.style.linear.weight_orig")
    for index in range(depth):
        after = hidden if index < depth - 1 else style
        layer = _dense(given, f"style.{2 * index + 1}.linear", before, after, HE, "weight_orig")
        mapping[f"fc{index}"] = {name: value / LR_MULTIPLIER for name, value in layer.items()}
        before = after

    params: dict[str, Any] = {}
    blurs: list[str] = []
    widths: dict[int, int] = {}
    before = 0
    for number, side in enumerate(sides):
        name = f"generator.progression.{number}"
        width = _width(given, f"{name}.conv2.conv.bias")
        if number == 0:
            const = _const(given, f"{name}.conv1.input", width)
            conv0 = {"const": const, "bias": jnp.zeros(width)}
        elif _any(given, f"{name}.conv1.0."):  # fused
            weight = given.take(f"{name}.conv1.0.weight", (before, width, 3, 3))
            conv0 = {
                # They average the four kernels, whose sum would be that of a convolution.
                "weight": jnp.asarray(weight.transpose(2, 3, 0, 1)[::-1, ::-1]) / 4,
                "bias": given.vector(f"{name}.conv1.0.bias", (width,)),
            }
            blurs += _both(f"{name}.conv1.1")
        else:
            conv0 = _conv(given, f"{name}.conv1.1.conv", 3, before, width, "weight_orig")
            blurs += _both(f"{name}.conv1.2")
        conv1 = _conv(given, f"{name}.conv2.conv", 3, width, width, "weight_orig")
        for index, conv in enumerate((conv0, conv1), 1):
            strength = given.vector(f"{name}.noise{index}.weight_orig", (1, width, 1, 1))
            affine = f"{name}.adain{index}.style.linear"
            weight = given.take(f"{affine}.weight_orig", (2 * width, style))
            bias = given.take(f"{affine}.bias", (2 * width,))
            conv["noise_strength"] = strength.reshape(width) * (HE / math.sqrt(width))
            conv["affine"] = {
                "weight": jnp.asarray(weight.T) * HE,
                "bias": jnp.asarray(bias - np.repeat([1, 0], width).astype(np.float32)),
            }
        torgb = _conv(given, f"generator.to_rgb.{number}.conv", 1, width, channels, "weight_orig")
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
        "blur": _blur(given, blurs),
        "eps": 1e-5,
        "bias_before_blur": True,
        "shared_noise": True,
        **overrides,
    }
    given.done()

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
    converted = _made_generator(given.what, variables, config)
    if average is None:
        to_styles = converted.network.mapping
        assert to_styles is not None  # it is a style network
        mean = jax.jit(lambda variables, z: to_styles(variables, z)[:, 0].mean(axis=0))
        latents = jnp.asarray(noise.normal(size=(10_000, latent)), jnp.float32)
        variables[AVERAGES]["mapping"]["w_avg"] = mean(variables, latents)
    return converted


def rosinality_discriminator(
    found: StateDict, *, size: int | None = None, **overrides: Any
) -> Converted:
    """The discriminator of rosinality's PyTorch port, from the side it was trained to.

    Args:
      found: the tensors, `progression.0.conv1.0.conv.weight_orig` and so on.
      size: the side, `4 * 2**step`; all of the file by default.
      **overrides: of `kd_jax.models.stylegan1.discriminator`. The program's `alpha` is `1 - lod`.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than the others ask for; or the
        size is none of the file's.
    """
    given = Tensors(found, f"{DISCRIMINATOR} (rosinality)")
    activated = _any(given, "from_rgb.0.0.")
    rgb = "from_rgb.{}.0.conv" if activated else "from_rgb.{}.conv"
    sides = _sides(given, "from_rgb.{}.")
    size = _size(given, size, sides)
    channels = _inputs(given, f"{rgb.format(0)}.weight_orig")

    params: dict[str, Any] = {}
    widths, inner, blurs = {}, {}, []
    for number, side in enumerate(reversed(sides)):
        name = f"progression.{number}"
        widths[side] = _width(given, f"{rgb.format(number)}.bias")
        inner[side] = _width(given, f"{name}.conv1.0.conv.bias")
        fromrgb = _conv(given, rgb.format(number), 1, channels, widths[side], "weight_orig")
        if not activated:
            fromrgb["weight"] = fromrgb["weight"] * HE
        params[f"b{side}"] = {"fromrgb": fromrgb}
        if side > SMALLEST:
            after = _width(given, f"{rgb.format(number + 1)}.bias")
            conv1, orig = f"{name}.conv2.1", "weight"  # fused
            if _any(given, f"{conv1}.conv."):
                conv1, orig = f"{conv1}.conv", "weight_orig"
            params[f"b{side}"] |= {
                "conv0": _conv(
                    given, f"{name}.conv1.0.conv", 3, widths[side], inner[side], "weight_orig"
                ),
                "conv1": _conv(given, conv1, 3, inner[side], after, orig),
            }
            blurs += _both(f"{name}.conv2.0")

    conv, fc = f"{name}.conv1.0.conv", f"{name}.conv2.0.conv"
    entering = _inputs(given, f"{conv}.weight_orig")
    features = _width(given, f"{fc}.bias")
    weight = given.take(f"{fc}.weight_orig", (features, inner[SMALLEST], SMALLEST, SMALLEST))
    out = _dense(given, "linear.linear", features, 1, 1.0, "weight_orig")
    params["b4"] |= {
        "conv": _conv(given, conv, 3, entering, inner[SMALLEST], "weight_orig"),
        "fc": {
            "weight": _of_image(weight),
            "bias": given.vector(f"{fc}.bias") / HE,
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
        "blur": _blur(given, blurs),
        "activate_fromrgb": activated,
        "stddev_group": None,
        "stddev_channels": entering - widths[SMALLEST],
        **overrides,
    }
    given.done()
    variables = {"params": {f"b{side}": params[f"b{side}"] for side in used}}
    return _made_discriminator(given.what, variables, config)


def _made_generator(what: str, variables: Any, config: dict[str, Any]) -> Converted:
    inputs = [jax.ShapeDtypeStruct((1, config["latent"]), jnp.float32)]
    return _made(what, stylegan1.generator(**config), variables, config, inputs)


def _made_discriminator(what: str, variables: Any, config: dict[str, Any]) -> Converted:
    shape = (1, config["size"], config["size"], config["channels"])
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    return _made(what, stylegan1.discriminator(**config), variables, config, inputs)


def _made(
    what: str, network: Network, variables: Any, config: dict[str, Any], inputs: list[Any]
) -> Converted:
    if config.get("classes"):
        inputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
    return checked(what, Converted(network, variables, config), *inputs)


def _any(given: Tensors, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in given)


def _width(given: Tensors, name: str) -> int:
    """A bias's length."""
    shape = given.shape(name)
    if len(shape) != 1:
        raise ValueError(f"{given.what}: {name} has shape {shape}, not one axis")
    return shape[0]


def _inputs(given: Tensors, name: str) -> int:
    """How many channels a weight `[out, in, ...]` reads."""
    shape = given.shape(name)
    if len(shape) not in (2, 4):
        raise ValueError(f"{given.what}: {name} has shape {shape}, not two axes or four")
    return shape[1]


def _last(given: Tensors, name: str) -> int:
    """The largest number that stands for `{}` at the beginning of a tensor's name."""
    pattern = re.escape(name).replace(r"\{\}", r"(\d+)")
    numbers = [int(match[1]) for other in given if (match := re.match(pattern, other))]
    if not numbers:
        raise ValueError(f"not {given.what}: there are no tensors {name.format('N')}*")
    return max(numbers)


def _sides(given: Tensors, name: str) -> list[int]:
    """The sides of images, of which each has a convolution to or from its own."""
    last = _last(given, name)
    if last >= len(given.found):  # a number in a name is no reason to count as far
        raise ValueError(f"not {given.what}: there are too few tensors for {name.format(last)}*")
    return [SMALLEST << number for number in range(last + 1)]


def _size(given: Tensors, size: int | None, sides: list[int]) -> int:
    if size is not None and size not in sides:
        raise ValueError(f"{given.what}: size={size} is none of its sides {sides}")
    return sides[-1] if size is None else size


def _dense(
    given: Tensors,
    name: str,
    inputs: int,
    outputs: int,
    gain: float = 1.0,
    weight: str = "weight",
) -> dict[str, Any]:
    """A linear layer; `gain` is what the program has before the bias, and we after it."""
    matrix = given.take(f"{name}.{weight}", (outputs, inputs))
    bias = given.vector(f"{name}.bias", (outputs,))
    return {"weight": jnp.asarray(matrix.T), "bias": bias / gain}


def _conv(
    given: Tensors, name: str, kernel: int, inputs: int, outputs: int, weight: str = "weight"
) -> dict[str, Any]:
    return {
        "weight": given.kernel(f"{name}.{weight}", (kernel, kernel, inputs, outputs)),
        "bias": given.vector(f"{name}.bias", (outputs,)),
    }


def _const(given: Tensors, name: str, width: int) -> Any:
    const = given.take(name, (1, width, SMALLEST, SMALLEST))
    return jnp.asarray(const[0].transpose(1, 2, 0))


def _of_image(weight: np.ndarray) -> Any:
    """A layer's weight over all of a 4x4 image, whose channels come last here, and came first."""
    image = weight.reshape(weight.shape[0], -1, SMALLEST, SMALLEST).transpose(2, 3, 1, 0)
    return jnp.asarray(image.reshape(-1, weight.shape[0]))


def _both(name: str) -> list[str]:
    """A filter, and what its gradient was computed with."""
    return [f"{name}.weight", f"{name}.weight_flip"]


def _blur(given: Tensors, names: list[str]) -> Any:
    """The filter of all channels and layers: they correlate with it, we convolve."""
    if not names:
        return (1.0, 2.0, 1.0)
    filters = []
    for name in names:
        taps = given.take(name)
        if taps.shape[1:] != (1, 3, 3) or not taps.size:
            raise ValueError(f"{given.what}: {name} has shape {taps.shape}, not [C, 1, 3, 3]")
        filters.append(taps[:, 0] if name.endswith("_flip") else taps[:, 0, ::-1, ::-1])
        if np.abs(filters[-1] - filters[0][0]).max() > 1e-6:
            raise ValueError(f"{given.what}: {name} is another filter than {names[0]}")
    return tuple(tuple(float(tap) for tap in row) for row in filters[0][0])
