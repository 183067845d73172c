"""Generators of NVIDIA's StyleGAN3 from a state dict, with or without the original settings.

Names and shapes determine almost everything: the names of the layers contain sizes and channels.
The remaining parameter of the design, the number of critical layers, is found by comparing the
filters in the file with those of each possible design. This also verifies the filters, which are
then dropped, since kd_jax computes its own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import stylegan3
from kd_jax.models.layers.style import AVERAGES
from kd_jax.models.stylegan3 import CONSTANTS, Design
from kd_jax.pretrained.convert import Converted, StateDict, StateDictReader

WHAT = "a StyleGAN3 generator"

DESIGN = tuple(name for name in Design._fields if name != "size")
RENAMED = {
    "z_dim": "latent",
    "w_dim": "style",
    "c_dim": "classes",
    "img_resolution": "size",
    "img_channels": "channels",
}
SAME_NAMES = (
    *DESIGN,
    "channel_base",
    "channel_max",
    "conv_clamp",
    "output_scale",
    "magnitude_ema_beta",
)
OF_MAPPING = {
    "num_layers": "depth",
    "lr_multiplier": "lr_multiplier",
    "w_avg_beta": "average_decay",
}
UNUSED = ("class_name", "num_fp16_res")  # all layers have the same dtype here

_LAYER = re.compile(r"synthesis\.L(\d+)_(\d+)_(\d+)\.weight")


class _Layer(NamedTuple):
    name: str
    size: int
    channels: int


def is_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensor names of NVIDIA's StyleGAN3 generator."""
    return {"synthesis.input.freqs", "synthesis.input.phases"} <= set(names)


def generator(
    tensors: StateDict, settings: Mapping[str, Any] | None = None, **overrides: Any
) -> Converted:
    """NVIDIA's StyleGAN3 generator, T or R.

    Args:
      tensors: the state dict, `mapping.fc0.weight`, `synthesis.L0_36_512.weight` and so on.
      settings: the keyword arguments of NVIDIA's generator class, if known: `z_dim`, `margin_size`,
        `mapping_kwargs` and so on. They must agree with the tensors.
      **overrides: arguments of `kd_jax.models.stylegan3.generator`: options in neither, or that
        replace settings. Tensors do not determine `conv_clamp`, `output_scale`, the
        `lr_multiplier` of `mapping`, and options that only concern training.

    Returns:
      The converted network; its `config` has the channels as `widths`.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that contradicts the others; a
        setting is unknown or contradicts them; or the filters are not those of the design.
    """
    reader = StateDictReader(tensors, WHAT)
    layers = _layers(reader)
    options = _translate_settings(settings or {})
    mapping = {**options.pop("mapping", {}), **overrides.pop("mapping", {})}
    options |= overrides
    inferred = _infer_config(reader, layers)
    for name, value in inferred.items():
        _check_agreement(name, options.pop(name, value), value)
    depth = sum(re.fullmatch(r"mapping\.fc\d+\.weight", name) is not None for name in reader)
    _check_agreement("mapping's depth", mapping.pop("depth", depth), depth)
    bounds = {
        name: options.pop(name) for name in ("channel_base", "channel_max") if name in options
    }
    design = _design(reader, layers, inferred, options)
    if bounds:
        bounds = {"channel_base": 32768, "channel_max": 512, **bounds}
        _check_agreement("widths", design.widths(**bounds), inferred["widths"])
    config = {
        **inferred,
        **design._asdict(),
        **options,
        "mapping": {"depth": depth, **mapping},
    }
    variables = _variables(reader, layers, config)
    reader.check_all_read()
    inputs = [jax.ShapeDtypeStruct((1, config["latent"]), jnp.float32)]
    if config["classes"]:
        inputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
    undetermined: dict[str, Any] = {}
    if settings is None:
        undetermined = {
            "conv_clamp": config.get("conv_clamp", 256.0),
            "output_scale": config.get("output_scale", 0.25),
            "mapping": {"lr_multiplier": mapping.get("lr_multiplier", 0.01)},
        }
    network = stylegan3.generator(**config)
    return Converted(network, variables, config, tuple(inputs), options=undetermined)


def _translate_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """NVIDIA's settings as arguments of kd_jax's generator, and the bounds of the channels."""
    options: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "mapping_kwargs":
            for key in value:
                if key not in OF_MAPPING:
                    raise ValueError(f"{WHAT}: unknown setting mapping_kwargs[{key!r}]")
            options["mapping"] = {OF_MAPPING[key]: v for key, v in value.items()}
        elif name in RENAMED or name in SAME_NAMES:
            options[RENAMED.get(name, name)] = value
        elif name not in UNUSED:
            raise ValueError(f"{WHAT}: unknown setting {name!r}")
    return options


def _check_agreement(name: str, setting: Any, inferred: Any) -> None:
    if tuple(setting) != inferred if isinstance(inferred, tuple) else setting != inferred:
        raise ValueError(
            f"{WHAT}: {name} is {setting} in the settings and {inferred} in the tensors"
        )


def _layers(reader: StateDictReader) -> list[_Layer]:
    matches = [match for name in reader if (match := _LAYER.fullmatch(name))]
    matches.sort(key=lambda match: int(match[1]))
    numbers = [int(match[1]) for match in matches]
    if len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise ValueError(f"not {WHAT}: it has layers {numbers}, not 0, 1 and so on")
    return [
        _Layer(match[0].removesuffix(".weight"), int(match[2]), int(match[3])) for match in matches
    ]


def _infer_config(reader: StateDictReader, layers: list[_Layer]) -> dict[str, Any]:
    """The part of the configuration that names and shapes determine."""
    style, latent = _shape(reader, "mapping.fc0.weight", 2)
    classes = 0
    if "mapping.embed.weight" in reader:
        style, classes = _shape(reader, "mapping.embed.weight", 2)
        latent -= style
    down = [f"{layer.name}.down_filter" for layer in layers]
    return {
        "size": layers[-1].size,
        "latent": latent,
        "style": style,
        "channels": layers[-1].channels,
        "classes": classes,
        "widths": tuple(layer.channels for layer in layers[:-1]),
        "num_layers": len(layers) - 1,
        "conv_kernel": _shape(reader, f"{layers[0].name}.weight", 4)[-1],
        "use_radial_filters": any(len(reader.shape(n)) == 2 for n in down if n in reader),
    }


def _shape(reader: StateDictReader, name: str, axes: int) -> tuple[int, ...]:
    shape = reader.shape(name)
    if len(shape) != axes:
        raise ValueError(f"{WHAT}: {name} has shape {shape}, not {axes} axes")
    return shape


def _design(
    reader: StateDictReader,
    layers: list[_Layer],
    inferred: Mapping[str, Any],
    options: dict[str, Any],
) -> Design:
    """The design whose sizes and filters match the file; removes its arguments from `options`."""
    known = {name: value for name, value in inferred.items() if name in Design._fields}
    known |= {name: options.pop(name) for name in DESIGN if name in options}
    start = Design(**{"num_critical": 0, **known})
    start.check()
    if "filter_size" not in known:
        (taps,) = _shape(reader, f"{layers[0].name}.up_filter", 1)
        start = start._replace(filter_size=taps // start.lrelu_upsampling)
    if "margin_size" not in known:
        margin = (layers[0].size - start.bands()[0].rate) // 2
        start = start._replace(margin_size=margin if len(layers) > 2 else start.margin_size)
    counts = [start.num_critical] if "num_critical" in known else range(start.num_layers)
    nearest = (-1, "")
    for count in counts:
        design = start._replace(num_critical=count)
        design.check()
        for agreed, problem in enumerate(_compare(reader, layers, design)):
            if problem:
                tried = ", ".join(f"{name}={getattr(design, name)}" for name in DESIGN)
                nearest = max(nearest, (agreed, f"{problem} of a design with {tried}"))
                break
        else:
            return design
    raise ValueError(f"{WHAT}: {nearest[1]}; pass what differs as keyword arguments")


def _compare(reader: StateDictReader, layers: list[_Layer], design: Design) -> Iterator[str]:
    """For each size and filter of each layer, its difference from the design, or "" for none."""
    for index, (layer, band) in enumerate(zip(layers, design.bands(), strict=True)):
        same = layer.size == band.size
        yield "" if same else f"{layer.name} has size {layer.size}, not the {band.size}"
        resampling = design.resampling(index)
        for part in ("up_filter", "down_filter"):
            name, taps = f"{layer.name}.{part}", getattr(resampling, part)
            if taps is None:
                yield f"{name} is not among those" if name in reader else ""
            elif name not in reader:
                yield f"{name} is missing from those"
            elif reader.shape(name) != taps.shape:
                yield f"{name} has shape {reader.shape(name)}, not the {taps.shape}"
            else:
                deviation = np.abs(reader.take(name) - taps).max()
                yield "" if deviation <= 1e-6 * np.abs(taps).max() else f"{name} is not the filter"


def _variables(
    reader: StateDictReader, layers: list[_Layer], config: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    style, widths = config["style"], config["widths"]

    def dense(name: str, inputs: int, outputs: int) -> dict[str, Any]:
        weight = reader.take(f"{name}.weight", (outputs, inputs))
        return {
            "weight": jnp.asarray(weight.T),
            "bias": reader.vector(f"{name}.bias", (outputs,)),
        }

    mapping = {}
    inputs = config["latent"]
    if config["classes"]:
        mapping["embed"] = dense("mapping.embed", config["classes"], style)
        inputs += style
    for index in range(config["mapping"]["depth"]):
        mapping[f"fc{index}"] = dense(f"mapping.fc{index}", inputs, style)
        inputs = style

    count = widths[0]
    weight = reader.take("synthesis.input.weight", (count, count))
    synthesis = {
        "input": {
            "weight": jnp.asarray(weight.T),
            "affine": dense("synthesis.input.affine", style, 4),
        }
    }
    constants: dict[str, Any] = {
        "input": {
            "frequencies": reader.vector("synthesis.input.freqs", (count, 2)),
            "phases": reader.vector("synthesis.input.phases", (count,)),
            "transform": reader.vector("synthesis.input.transform", (3, 3)),
        }
    }
    averages: dict[str, Any] = {}
    before = count
    for index, layer in enumerate(layers):
        ours, last = f"L{index}", index == len(layers) - 1
        side = 1 if last else config["conv_kernel"]
        synthesis[ours] = {
            "weight": reader.kernel(f"{layer.name}.weight", (side, side, before, layer.channels)),
            "bias": reader.vector(f"{layer.name}.bias", (layer.channels,)),
            "affine": dense(f"{layer.name}.affine", style, before),
        }
        averages[ours] = {"magnitude_ema": reader.vector(f"{layer.name}.magnitude_ema", ())}
        before = layer.channels
    w_avg = reader.vector("mapping.w_avg", (style,))
    return {
        "params": {"mapping": mapping, "synthesis": synthesis},
        AVERAGES: {"mapping": {"w_avg": w_avg}, "synthesis": averages},
        CONSTANTS: {"synthesis": constants},
    }
