"""The networks in snapshots of NVIDIA's PyTorch and TensorFlow programs."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from kd_jax.pretrained import stylegan2, stylegan3
from kd_jax.pretrained.convert import Converted, StateDict
from kd_jax.pretrained.io.allowed_types import (
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

    Options that the tensors' shapes do not determine are read from the layers' attributes, since
    the defaults of the classes differ between repositories.

    Args:
      module: as returned by `kd_jax.pretrained.io.containers.read`.
      **overrides: keyword arguments of the network's factory.

    Raises:
      ValueError: it is not a network of StyleGAN2 or StyleGAN3, or its tensors do not fit.
    """
    tensors = state_dict(module)
    if stylegan3.is_generator(tensors):
        return stylegan3.generator(tensors, init_kwargs(module), **overrides)
    if stylegan2.is_generator(tensors):
        settings = {
            "conv_clamp": attribute(module, "synthesis.b4.conv1.conv_clamp"),
            "activation": attribute(module, "synthesis.b4.conv1.activation"),
            "mapping": {
                "average_decay": float(attribute(module, "mapping.w_avg_beta")),
                **_mapping_settings(module),
            },
        }
        return _determined(stylegan2.generator(tensors, **_merge(settings, overrides)))
    if stylegan2.is_discriminator(tensors):
        settings = {
            "conv_clamp": attribute(module, "b4.conv.conv_clamp"),
            "activation": attribute(module, "b4.conv.activation"),
            "mapping": _mapping_settings(module) if "mapping.fc0.weight" in tensors else {},
        }
        features, inputs = tensors["b4.conv.weight"].shape[:2]
        if inputs > features:  # with the channel of the minibatch standard deviation
            settings["stddev_group"] = attribute(module, "b4.mbstd.group_size")
        return _determined(stylegan2.discriminator(tensors, **_merge(settings, overrides)))
    raise ValueError(
        f"a {module.class_name} of a snapshot is not a StyleGAN2 or StyleGAN3; its first tensors "
        f"are {', '.join(list(tensors)[:3]) or 'none'}"
    )


def from_tensorflow(network: TFNetwork, **overrides: Any) -> Converted:
    """A generator or a discriminator of a StyleGAN2 TensorFlow snapshot.

    Args:
      network: as returned by `kd_jax.pretrained.io.containers.read`.
      **overrides: keyword arguments of the network's factory.

    Raises:
      ValueError: it is a network of StyleGAN1 or unknown, or its tensors do not fit.
    """
    arrays, kwargs = variables(network), static_kwargs(network)
    if any("StyleMod" in name or "Conv0_up/Noise" in name for name in arrays):
        raise ValueError(
            "a TensorFlow snapshot of StyleGAN1, which is supported only after conversion to "
            "PyTorch (genforce)"
        )
    of_generator = any(name.startswith("synthesis/") for name in arrays)
    tensors = _torch_names(arrays, of_generator)
    taps = kwargs.get("resample_kernel", (1, 3, 3, 1))
    mapping = {"lr_multiplier": kwargs.get("mapping_lrmul", 0.01 if of_generator else 0.1)}
    settings: dict[str, Any] = {
        "resample_filter": taps,
        "activation": kwargs.get("act", kwargs.get("nonlinearity", "lrelu")),
        "mapping": mapping,
    }
    if of_generator:
        return _determined(stylegan2.generator(tensors, **_merge(settings, overrides)))
    settings["stddev_group"] = kwargs.get("mbstd_group_size")
    return _determined(stylegan2.discriminator(tensors, **_merge(settings, overrides)))


def _determined(converted: Converted) -> Converted:
    """The network of a snapshot, whose settings are in the file."""
    return converted._replace(options={})


def _merge(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    mapping = {**settings["mapping"], **overrides.pop("mapping", {})}
    return {**settings, "mapping": mapping, **overrides}


def _mapping_settings(module: Persistent) -> dict[str, Any]:
    """Settings of the mapping network. The first bias is multiplied by `lr_multiplier` only."""
    return {
        "lr_multiplier": float(attribute(module, "mapping.fc0.bias_gain")),
        "activation": attribute(module, "mapping.fc0.activation"),
    }


def _torch_names(arrays: Mapping[str, np.ndarray], of_generator: bool) -> StateDict:
    """TensorFlow's variables under the names and in the layouts of the PyTorch program."""
    rules = _GENERATOR if of_generator else _DISCRIMINATOR
    tensors = {}
    for name, value in arrays.items():
        for pattern, rename, change in rules:
            if match := re.fullmatch(pattern, name):
                if rename is not None:
                    tensors[rename(*match.groups())] = change(value)
                break
        else:
            what = "generator" if of_generator else "discriminator"
            raise ValueError(f"not a StyleGAN2 {what} of TensorFlow: unknown variable {name}")
    return tensors


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _dense(value: np.ndarray) -> np.ndarray:
    return value.T


def _kernel(value: np.ndarray) -> np.ndarray:
    return value.transpose(3, 2, 0, 1)


def _flipped_kernel(value: np.ndarray) -> np.ndarray:
    return value[::-1, ::-1].transpose(3, 2, 0, 1)


def _noise(number: str) -> str:
    """The name of a noise constant: 4x4 has one layer, number 0; each larger size has two."""
    index = int(number) + 1
    return f"synthesis.b{4 << (index // 2)}.conv{index % 2 if index > 1 else 1}.noise_const"


def _rename(template: str) -> Any:
    return lambda *groups: template.format(*groups)


def _layer(prefix: str, theirs: str, ours: str, kernel: Any) -> list[tuple[str, Any, Any]]:
    """The rules for one layer of a generator."""
    names = partial("{}{}".format, f"synthesis.b{{0}}.{ours}.")
    start = rf"{prefix}(\d+)x\d+/{theirs}/"
    return [
        (f"{start}weight", _rename(names("weight")), kernel),
        (f"{start}bias", _rename(names("bias")), _same),
        (f"{start}noise_strength", _rename(names("noise_strength")), _same),
        (f"{start}mod_weight", _rename(names("affine.weight")), _dense),
        (f"{start}mod_bias", _rename(names("affine.bias")), lambda value: value + 1),
    ]


_GENERATOR: list[tuple[str, Any, Any]] = [
    (r"(?:.*/)?lod", None, None),
    (r"dlatent_avg", _rename("mapping.w_avg"), _same),
    (r"mapping/Dense(\d+)/weight", _rename("mapping.fc{}.weight"), _dense),
    (r"mapping/Dense(\d+)/bias", _rename("mapping.fc{}.bias"), _same),
    (r"mapping/LabelEmbed/weight", _rename("mapping.embed.weight"), _dense),
    (r"mapping/LabelEmbed/bias", _rename("mapping.embed.bias"), _same),
    (r"synthesis/noise(\d+)", _noise, lambda value: value[0, 0]),
    (r"synthesis/4x4/Const/const", _rename("synthesis.b4.const"), lambda value: value[0]),
    *_layer("synthesis/", "Conv0_up", "conv0", _flipped_kernel),
    *_layer("synthesis/", "(?:Conv|Conv1)", "conv1", _kernel),
    *_layer("synthesis/", "ToRGB", "torgb", _kernel),
    (r"synthesis/(\d+)x\d+/Skip/weight", _rename("synthesis.b{}.skip.weight"), _flipped_kernel),
]
_DISCRIMINATOR: list[tuple[str, Any, Any]] = [
    (r"lod", None, None),
    *(
        rule
        for theirs, ours in (("FromRGB", "fromrgb"), ("Conv0", "conv0"), ("Conv1_down", "conv1"))
        for rule in (
            (rf"(\d+)x\d+/{theirs}/weight", _rename(f"b{{}}.{ours}.weight"), _kernel),
            (rf"(\d+)x\d+/{theirs}/bias", _rename(f"b{{}}.{ours}.bias"), _same),
        )
    ),
    (r"(\d+)x\d+/Skip/weight", _rename("b{}.skip.weight"), _kernel),
    (r"4x4/Conv/weight", _rename("b4.conv.weight"), _kernel),
    (r"4x4/Conv/bias", _rename("b4.conv.bias"), _same),
    (r"4x4/Dense0/weight", _rename("b4.fc.weight"), _dense),
    (r"4x4/Dense0/bias", _rename("b4.fc.bias"), _same),
    (r"Output/weight", _rename("b4.out.weight"), _dense),
    (r"Output/bias", _rename("b4.out.bias"), _same),
    (r"LabelEmbed/weight", _rename("mapping.embed.weight"), _dense),
    (r"LabelEmbed/bias", _rename("mapping.embed.bias"), _same),
    (r"Mapping(\d+)/weight", _rename("mapping.fc{}.weight"), _dense),
    (r"Mapping(\d+)/bias", _rename("mapping.fc{}.bias"), _same),
]
