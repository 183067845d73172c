"""Generators of NVIDIA's StyleGAN3: a state dict, with the settings it was made with or without.

Names and shapes tell almost everything: the layers' names carry sizes and channels. What they leave
open of the design (how many layers are critical) is found by comparing the filters in the file with
those that each design has. So the filters are verified too: kd_jax computes them, and drops these.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import stylegan3
from kd_jax.models.style import AVERAGES
from kd_jax.models.stylegan3 import CONSTANTS, Design
from kd_jax.pretrained.convert import Converted, StateDict, Tensors

WHAT = "a StyleGAN3 generator"

DESIGN = tuple(name for name in Design._fields if name != "size")
RENAMED = {
    "z_dim": "latent",
    "w_dim": "style",
    "c_dim": "classes",
    "img_resolution": "size",
    "img_channels": "channels",
}
KEPT = (
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
UNUSED = ("class_name", "num_fp16_res")  # one dtype computes all layers here

_LAYER = re.compile(r"synthesis\.L(\d+)_(\d+)_(\d+)\.weight")


class _Layer(NamedTuple):
    name: str
    size: int
    channels: int


def is_generator(names: Iterable[str]) -> bool:
    """Whether these are the tensors' names of NVIDIA's StyleGAN3 generator."""
    return {"synthesis.input.freqs", "synthesis.input.phases"} <= set(names)


def generator(
    found: StateDict, settings: Mapping[str, Any] | None = None, **overrides: Any
) -> Converted:
    """NVIDIA's StyleGAN3 generator, T or R.

    Args:
      found: the tensors, `mapping.fc0.weight`, `synthesis.L0_36_512.weight` and so on.
      settings: the keyword arguments of NVIDIA's generator class, where they are known: `z_dim`,
        `margin_size`, `mapping_kwargs` and so on. They have to agree with the tensors.
      **overrides: of `kd_jax.models.stylegan3.generator`, for what neither tells, and instead of
        the settings. Tensors do not show `conv_clamp`, `output_scale`, `mapping`'s `lr_multiplier`,
        and what concerns training alone.

    Returns:
      Its `config` has the channels as `widths`.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than the others ask for; a
        setting is unknown or contradicts them; or the filters are not those of the design.
    """
    tensors = Tensors(found, WHAT)
    layers = _layers(tensors)
    given = _translated(settings or {})
    mapping = {**given.pop("mapping", {}), **overrides.pop("mapping", {})}
    given |= overrides
    seen = _seen(tensors, layers)
    for name, value in seen.items():
        _agree(name, given.pop(name, value), value)
    depth = sum(re.fullmatch(r"mapping\.fc\d+\.weight", name) is not None for name in tensors)
    _agree("mapping's depth", mapping.pop("depth", depth), depth)
    bounds = {name: given.pop(name) for name in ("channel_base", "channel_max") if name in given}
    design = _design(tensors, layers, seen, given)
    if bounds:
        bounds = {"channel_base": 32768, "channel_max": 512, **bounds}
        _agree("widths", design.widths(**bounds), seen["widths"])
    config = {
        **seen,
        **design._asdict(),
        **given,
        "mapping": {"depth": depth, **mapping},
    }
    variables = _variables(tensors, layers, config)
    tensors.done()
    inputs = [jax.ShapeDtypeStruct((1, config["latent"]), jnp.float32)]
    if config["classes"]:
        inputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
    return Converted(stylegan3.generator(**config), variables, config, tuple(inputs))


def _translated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """NVIDIA's settings as keyword arguments of kd_jax's generator, with the channels' bounds."""
    given: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "mapping_kwargs":
            for key in value:
                if key not in OF_MAPPING:
                    raise ValueError(f"{WHAT}: unknown setting mapping_kwargs[{key!r}]")
            given["mapping"] = {OF_MAPPING[key]: v for key, v in value.items()}
        elif name in RENAMED or name in KEPT:
            given[RENAMED.get(name, name)] = value
        elif name not in UNUSED:
            raise ValueError(f"{WHAT}: unknown setting {name!r}")
    return given


def _agree(name: str, given: Any, seen: Any) -> None:
    if tuple(given) != seen if isinstance(seen, tuple) else given != seen:
        raise ValueError(f"{WHAT}: {name} is {given} by the settings and {seen} by the tensors")


def _layers(tensors: Tensors) -> list[_Layer]:
    matches = [match for name in tensors if (match := _LAYER.fullmatch(name))]
    matches.sort(key=lambda match: int(match[1]))
    numbers = [int(match[1]) for match in matches]
    if len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise ValueError(f"not {WHAT}: it has layers {numbers}, not 0, 1 and so on")
    return [
        _Layer(match[0].removesuffix(".weight"), int(match[2]), int(match[3])) for match in matches
    ]


def _seen(tensors: Tensors, layers: list[_Layer]) -> dict[str, Any]:
    """What the names and shapes tell of the configuration."""
    style, latent = _shape(tensors, "mapping.fc0.weight", 2)
    classes = 0
    if "mapping.embed.weight" in tensors:
        style, classes = _shape(tensors, "mapping.embed.weight", 2)
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
        "conv_kernel": _shape(tensors, f"{layers[0].name}.weight", 4)[-1],
        "use_radial_filters": any(len(tensors.shape(n)) == 2 for n in down if n in tensors),
    }


def _shape(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    shape = tensors.shape(name)
    if len(shape) != axes:
        raise ValueError(f"{WHAT}: {name} has shape {shape}, not {axes} axes")
    return shape


def _design(
    tensors: Tensors, layers: list[_Layer], seen: Mapping[str, Any], given: dict[str, Any]
) -> Design:
    """The one whose sizes and filters the file has; takes what belongs to it from the given."""
    known = {name: value for name, value in seen.items() if name in Design._fields}
    known |= {name: given.pop(name) for name in DESIGN if name in given}
    start = Design(**{"num_critical": 0, **known})
    start.check()
    if "filter_size" not in known:
        (taps,) = _shape(tensors, f"{layers[0].name}.up_filter", 1)
        start = start._replace(filter_size=taps // start.lrelu_upsampling)
    if "margin_size" not in known:
        margin = (layers[0].size - start.bands()[0].rate) // 2
        start = start._replace(margin_size=margin if len(layers) > 2 else start.margin_size)
    counts = [start.num_critical] if "num_critical" in known else range(start.num_layers)
    nearest = (-1, "")
    for count in counts:
        design = start._replace(num_critical=count)
        design.check()
        for agreed, problem in enumerate(_comparisons(tensors, layers, design)):
            if problem:
                tried = ", ".join(f"{name}={getattr(design, name)}" for name in DESIGN)
                nearest = max(nearest, (agreed, f"{problem} of a design with {tried}"))
                break
        else:
            return design
    raise ValueError(f"{WHAT}: {nearest[1]}; give what is different by keyword")


def _comparisons(tensors: Tensors, layers: list[_Layer], design: Design) -> Iterator[str]:
    """What is wrong with each layer's size and filters, if they were to be the design's; or ""."""
    for index, (layer, band) in enumerate(zip(layers, design.bands(), strict=True)):
        same = layer.size == band.size
        yield "" if same else f"{layer.name} has size {layer.size}, not the {band.size}"
        resampling = design.resampling(index)
        for part in ("up_filter", "down_filter"):
            name, taps = f"{layer.name}.{part}", getattr(resampling, part)
            if taps is None:
                yield f"{name} is one more than those" if name in tensors else ""
            elif name not in tensors:
                yield f"{name} is missing from those"
            elif tensors.shape(name) != taps.shape:
                yield f"{name} has shape {tensors.shape(name)}, not the {taps.shape}"
            else:
                deviation = np.abs(tensors.take(name) - taps).max()
                yield "" if deviation <= 1e-6 * np.abs(taps).max() else f"{name} is not the filter"


def _variables(
    tensors: Tensors, layers: list[_Layer], config: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    style, widths = config["style"], config["widths"]

    def dense(name: str, inputs: int, outputs: int) -> dict[str, Any]:
        weight = tensors.take(f"{name}.weight", (outputs, inputs))
        return {
            "weight": jnp.asarray(weight.T),
            "bias": tensors.vector(f"{name}.bias", (outputs,)),
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
    weight = tensors.take("synthesis.input.weight", (count, count))
    synthesis = {
        "input": {
            "weight": jnp.asarray(weight.T),
            "affine": dense("synthesis.input.affine", style, 4),
        }
    }
    constants: dict[str, Any] = {
        "input": {
            "frequencies": tensors.vector("synthesis.input.freqs", (count, 2)),
            "phases": tensors.vector("synthesis.input.phases", (count,)),
            "transform": tensors.vector("synthesis.input.transform", (3, 3)),
        }
    }
    averages: dict[str, Any] = {}
    before = count
    for index, layer in enumerate(layers):
        ours, last = f"L{index}", index == len(layers) - 1
        side = 1 if last else config["conv_kernel"]
        synthesis[ours] = {
            "weight": tensors.kernel(f"{layer.name}.weight", (side, side, before, layer.channels)),
            "bias": tensors.vector(f"{layer.name}.bias", (layer.channels,)),
            "affine": dense(f"{layer.name}.affine", style, before),
        }
        averages[ours] = {"magnitude_ema": tensors.vector(f"{layer.name}.magnitude_ema", ())}
        before = layer.channels
    w_avg = tensors.vector("mapping.w_avg", (style,))
    return {
        "params": {"mapping": mapping, "synthesis": synthesis},
        AVERAGES: {"mapping": {"w_avg": w_avg}, "synthesis": averages},
        CONSTANTS: {"synthesis": constants},
    }
