"""The networks in NVIDIA's snapshots, of its PyTorch and of its TensorFlow programs."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from kd_jax.pretrained import stylegan2, stylegan3
from kd_jax.pretrained.convert import Converted, StateDict
from kd_jax.pretrained.stand_ins import (
    Persistent,
    TFNetwork,
    attribute,
    init_kwargs,
    state_dict,
    static_kwargs,
    variables,
)


def from_module(module: Persistent, **overrides: Any) -> Converted:
    """A generator or a discriminator of a PyTorch snapshot.

    What the tensors' shapes do not tell is read from the layers' attributes, since the defaults of
    the classes differ from repository to repository.

    Args:
      module: as `kd_jax.pretrained.containers.read` gives it.
      **overrides: of the network's factory.

    Raises:
      ValueError: it is no network of StyleGAN2 or StyleGAN3, or its tensors do not fit.
    """
    found = state_dict(module)
    if stylegan3.is_generator(found):
        return stylegan3.generator(found, init_kwargs(module), **overrides)
    if stylegan2.is_generator(found):
        settings = {
            "conv_clamp": attribute(module, "synthesis.b4.conv1.conv_clamp"),
            "activation": attribute(module, "synthesis.b4.conv1.activation"),
            "mapping": {
                "average_decay": float(attribute(module, "mapping.w_avg_beta")),
                **_of_mapping(module),
            },
        }
        return stylegan2.generator(found, **_merged(settings, overrides))
    if stylegan2.is_discriminator(found):
        settings = {
            "conv_clamp": attribute(module, "b4.conv.conv_clamp"),
            "activation": attribute(module, "b4.conv.activation"),
            "mapping": _of_mapping(module) if "mapping.fc0.weight" in found else {},
        }
        features, inputs = found["b4.conv.weight"].shape[:2]
        if inputs > features:  # the minibatch's standard deviation is among them
            settings["stddev_group"] = attribute(module, "b4.mbstd.group_size")
        return stylegan2.discriminator(found, **_merged(settings, overrides))
    raise ValueError(
        f"a {module.class_name} of a snapshot is no StyleGAN2 or StyleGAN3; its tensors begin with "
        f"{', '.join(list(found)[:3]) or 'none'}"
    )


def from_tensorflow(network: TFNetwork, **overrides: Any) -> Converted:
    """A generator or a discriminator of a StyleGAN2 TensorFlow snapshot.

    Args:
      network: as `kd_jax.pretrained.containers.read` gives it.
      **overrides: of the network's factory.

    Raises:
      ValueError: it is of StyleGAN1 or unknown, or its tensors do not fit.
    """
    found, settings = variables(network), static_kwargs(network)
    if any("StyleMod" in name or "Conv0_up/Noise" in name for name in found):
        raise ValueError(
            "a TensorFlow snapshot of StyleGAN1; StyleGAN2's can be read, and StyleGAN1's once "
            "converted to PyTorch (genforce)"
        )
    of_generator = any(name.startswith("synthesis/") for name in found)
    tensors = _torch_names(found, of_generator)
    taps = settings.get("resample_kernel", (1, 3, 3, 1))
    mapping = {"lr_multiplier": settings.get("mapping_lrmul", 0.01 if of_generator else 0.1)}
    given: dict[str, Any] = {
        "resample_filter": taps,
        "activation": settings.get("act", settings.get("nonlinearity", "lrelu")),
        "mapping": mapping,
    }
    if of_generator:
        return stylegan2.generator(tensors, **_merged(given, overrides))
    given["stddev_group"] = settings.get("mbstd_group_size")
    return stylegan2.discriminator(tensors, **_merged(given, overrides))


def _merged(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    mapping = {**settings["mapping"], **overrides.pop("mapping", {})}
    return {**settings, "mapping": mapping, **overrides}


def _of_mapping(module: Persistent) -> dict[str, Any]:
    """The first layer's bias is multiplied by the learning rate's multiplier alone."""
    return {
        "lr_multiplier": float(attribute(module, "mapping.fc0.bias_gain")),
        "activation": attribute(module, "mapping.fc0.activation"),
    }


def _torch_names(found: Mapping[str, np.ndarray], of_generator: bool) -> StateDict:
    """TensorFlow's variables under the names and in the layouts of the PyTorch program."""
    rules = _GENERATOR if of_generator else _DISCRIMINATOR
    tensors = {}
    for name, value in found.items():
        for pattern, rename, change in rules:
            if match := re.fullmatch(pattern, name):
                if rename is not None:
                    tensors[rename(*match.groups())] = change(value)
                break
        else:
            what = "generator" if of_generator else "discriminator"
            raise ValueError(f"no StyleGAN2 {what} of TensorFlow: unknown variable {name}")
    return tensors


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _dense(value: np.ndarray) -> np.ndarray:
    return value.T


def _kernel(value: np.ndarray) -> np.ndarray:
    return value.transpose(3, 2, 0, 1)


def _turned(value: np.ndarray) -> np.ndarray:
    return value[::-1, ::-1].transpose(3, 2, 0, 1)


def _noise(number: str) -> str:
    """4x4 has one layer, number 0; each larger side has two."""
    index = int(number) + 1
    return f"synthesis.b{4 << (index // 2)}.conv{index % 2 if index > 1 else 1}.noise_const"


def _named(template: str) -> Any:
    return lambda *groups: template.format(*groups)


def _layer(prefix: str, theirs: str, ours: str, kernel: Any) -> list[tuple[str, Any, Any]]:
    """The rules of one of a generator's layers."""
    names = partial("{}{}".format, f"synthesis.b{{0}}.{ours}.")
    start = rf"{prefix}(\d+)x\d+/{theirs}/"
    return [
        (f"{start}weight", _named(names("weight")), kernel),
        (f"{start}bias", _named(names("bias")), _same),
        (f"{start}noise_strength", _named(names("noise_strength")), _same),
        (f"{start}mod_weight", _named(names("affine.weight")), _dense),
        (f"{start}mod_bias", _named(names("affine.bias")), lambda value: value + 1),
    ]


_GENERATOR: list[tuple[str, Any, Any]] = [
    (r"(?:.*/)?lod", None, None),
    (r"dlatent_avg", _named("mapping.w_avg"), _same),
    (r"mapping/Dense(\d+)/weight", _named("mapping.fc{}.weight"), _dense),
    (r"mapping/Dense(\d+)/bias", _named("mapping.fc{}.bias"), _same),
    (r"mapping/LabelEmbed/weight", _named("mapping.embed.weight"), _dense),
    (r"mapping/LabelEmbed/bias", _named("mapping.embed.bias"), _same),
    (r"synthesis/noise(\d+)", _noise, lambda value: value[0, 0]),
    (r"synthesis/4x4/Const/const", _named("synthesis.b4.const"), lambda value: value[0]),
    *_layer("synthesis/", "Conv0_up", "conv0", _turned),
    *_layer("synthesis/", "(?:Conv|Conv1)", "conv1", _kernel),
    *_layer("synthesis/", "ToRGB", "torgb", _kernel),
    (r"synthesis/(\d+)x\d+/Skip/weight", _named("synthesis.b{}.skip.weight"), _turned),
]
_DISCRIMINATOR: list[tuple[str, Any, Any]] = [
    (r"lod", None, None),
    *(
        rule
        for theirs, ours in (("FromRGB", "fromrgb"), ("Conv0", "conv0"), ("Conv1_down", "conv1"))
        for rule in (
            (rf"(\d+)x\d+/{theirs}/weight", _named(f"b{{}}.{ours}.weight"), _kernel),
            (rf"(\d+)x\d+/{theirs}/bias", _named(f"b{{}}.{ours}.bias"), _same),
        )
    ),
    (r"(\d+)x\d+/Skip/weight", _named("b{}.skip.weight"), _kernel),
    (r"4x4/Conv/weight", _named("b4.conv.weight"), _kernel),
    (r"4x4/Conv/bias", _named("b4.conv.bias"), _same),
    (r"4x4/Dense0/weight", _named("b4.fc.weight"), _dense),
    (r"4x4/Dense0/bias", _named("b4.fc.bias"), _same),
    (r"Output/weight", _named("b4.out.weight"), _dense),
    (r"Output/bias", _named("b4.out.bias"), _same),
    (r"LabelEmbed/weight", _named("mapping.embed.weight"), _dense),
    (r"LabelEmbed/bias", _named("mapping.embed.bias"), _same),
    (r"Mapping(\d+)/weight", _named("mapping.fc{}.weight"), _dense),
    (r"Mapping(\d+)/bias", _named("mapping.fc{}.bias"), _same),
]
