"""Pix2pix's and CycleGAN's networks: outputs, activations, and statistics after one step."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from kd_jax.pretrained import translation
from kd_jax.pretrained.convert import Converted
from parity.golden import Family, File, Outputs, weights

Layers = Mapping[str, Any]


def resnet(file: File) -> Outputs:
    config = file.config

    def read(tensors):
        return translation.resnet_generator(tensors, padding=config["padding_type"])

    converted = read(weights(file))
    inferred = converted.config
    assert inferred["blocks"] == config["n_blocks"]
    assert bool(inferred["dropout"]) == (config["use_dropout"] and config["n_blocks"] > 0)
    outputs, layers = _outputs(file, converted, read)
    at = 10 + config["n_blocks"]
    names = {1: "stem", 4: "down_0", 7: "down_1", at: "up_0", at + 3: "up_1"}
    images = {
        0: _reflect_pad(file["in/x"]),
        at + 6: _reflect_pad(_activation(layers, "up_1", jax.nn.relu)),
    }
    images |= {at + 7: layers["image"]["__call__"][0], at + 8: outputs["out/eval"]}
    images |= {10 + i: layers[f"block_{i}"]["__call__"][0] for i in range(config["n_blocks"])}
    return outputs | _activations(file, layers, names, jax.nn.relu, images)


def unet(file: File) -> Outputs:
    converted = translation.unet_generator(weights(file))
    assert converted.config["downs"] == file.config["num_downs"]
    return _outputs(file, converted, translation.unet_generator)[0]


def patch(file: File) -> Outputs:
    converted = translation.patch_discriminator(weights(file))
    count = converted.config["layers"]
    assert count == file.config["n_layers"]
    outputs, layers = _outputs(file, converted, translation.patch_discriminator)
    # A conditional discriminator takes the source before the image.
    source, image = np.split(file["in/x"], [file["in/x"].shape[-1] // 2], axis=-1)
    scores = converted.network.apply(converted.variables, image, source)[0]
    outputs["out/eval"] = scores[..., None]
    names = {3 * i - 1: f"layer_{i}" for i in range(1, count + 1)}
    first = layers["layer_0"]["__call__"][0]  # it has no norm
    images = {0: first, 1: _leaky(first), 3 * count + 2: layers["score"]["__call__"][0]}
    return outputs | _activations(file, layers, names, _leaky, images)


def pixel(file: File) -> Outputs:
    converted = translation.pixel_discriminator(weights(file))
    return _outputs(file, converted, translation.pixel_discriminator)[0]


def _leaky(x):
    return jax.nn.leaky_relu(x, 0.2)


def _reflect_pad(x):
    return np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")


def _activation(layers: Layers, name: str, activation: Callable):
    return activation(layers[name]["__call__"][0])


def _outputs(file: File, converted: Converted, read: Callable) -> tuple[dict[str, Any], Layers]:
    """The network's outputs, and the outputs of its layers in inference, by their names."""
    expected = file.config["norm"]
    assert type(converted.config["norm"]).__name__.lower().replace("nonetype", "none") == expected
    x, module = file["in/x"], converted.network.module
    (output, _), state = jax.jit(
        lambda v, x: module.apply(v, x, train=False, capture_intermediates=True)
    )(converted.variables, x)
    # Without a key there is no dropout.
    trained, _, variables = jax.jit(converted.network.apply, static_argnames="train")(
        converted.variables, x, train=True
    )
    scores = output.ndim == 3
    outputs = {
        "out/eval": output[..., None] if scores else output,
        "out/train": trained[..., None] if scores else trained,
    }
    return outputs | _buffers(file, read, variables), state["intermediates"]


def _activations(
    file: File,
    layers: Layers,
    names: Mapping[int, str],
    activation: Callable,
    others: Mapping[int, Any],
) -> Outputs:
    """Outputs of numbered layers for the first example: convolution, norm, activation."""
    outputs = dict(others)
    for at, name in names.items():
        outputs[at] = layers[name]["conv"]["__call__"][0]
        outputs[at + 1] = layers[name]["__call__"][0]
        outputs[at + 2] = activation(outputs[at + 1])
    keys = [key for key in file if key.startswith("out/act_model.")]
    return {key: outputs[int(key.rpartition(".")[2])][: len(file.arrays[key])] for key in keys}


def _buffers(file: File, read: Callable, variables) -> Outputs:
    """The statistics by their original names, by tracing each tensor through the conversion."""
    prefix, outputs = "out/train_buf/", {}
    names = [key.removeprefix(prefix) for key in file if key.startswith(prefix)]
    statistics = [name for name in names if re.search(r"running_(mean|var)$", name)]
    marked = {name: np.full_like(weights(file)[name], i + 1) for i, name in enumerate(statistics)}
    places = {
        int(leaf[0]): path
        for path, leaf in traverse_util.flatten_dict(
            read(weights(file) | marked).variables, sep="/"
        ).items()
        if path.startswith("batch_stats/")
    }
    after = traverse_util.flatten_dict(variables, sep="/")
    for i, name in enumerate(statistics):
        outputs[prefix + name] = after[places[i + 1]]
    for name in set(names) - set(statistics):
        outputs[prefix + name] = weights(file)[name] + 1
    return outputs


FAMILIES = {
    "resnet_g": Family(resnet, lambda name: 1e-4 if "act" in name else 2e-5),
    "unet_g": Family(unet, lambda name: 1e-5),
    "patchgan_d": Family(patch, lambda name: 1e-5),
    "pixel_d": Family(pixel, lambda name: 1e-5),
}
