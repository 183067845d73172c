"""Pix2pix's and CycleGAN's networks: outputs, activations, and statistics after one step."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from kd_jax.pretrained import translation
from kd_jax.pretrained.convert import Converted
from parity.golden import Family, File, Outputs, split_floating, weights

Layers = Mapping[str, Any]


def resnet(file: File) -> Outputs:
    config = file.config

    def read(tensors):
        return translation.resnet_generator(
            tensors, padding=config["padding_type"], **_options(file)
        )

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
    read = partial(translation.unet_generator, **_options(file))
    converted = read(weights(file))
    assert converted.config["downs"] == file.config["num_downs"]
    return _outputs(file, converted, read)[0]


def patch(file: File) -> Outputs:
    read = partial(translation.patch_discriminator, **_options(file))
    converted = read(weights(file))
    count = converted.config["layers"]
    assert count == file.config["n_layers"]
    outputs, layers = _outputs(file, converted, read)
    # A conditional discriminator takes the source before the image.
    source, image = np.split(file["in/x"], [file["in/x"].shape[-1] // 2], axis=-1)
    scores = converted.network.apply(converted.variables, image, source)[0]
    outputs["out/eval"] = scores[..., None]
    names = {3 * i - 1: f"layer_{i}" for i in range(1, count + 1)}
    first = layers["layer_0"]["__call__"][0]  # it has no norm
    images = {0: first, 1: _leaky(first), 3 * count + 2: layers["score"]["__call__"][0]}
    return outputs | _activations(file, layers, names, _leaky, images)


def pixel(file: File) -> Outputs:
    read = partial(translation.pixel_discriminator, **_options(file))
    return _outputs(file, read(weights(file)), read)[0]


def _options(file: File) -> dict[str, bool]:
    """Whether the statistics of instance norms are used, which the file does not determine."""
    kwargs = file.config.get("norm_kwargs")
    instance = kwargs and file.config["norm"] == "instance"
    return {"tracked": kwargs["track_running_stats"]} if instance else {}


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
    outputs |= _buffers(file, read, variables) | _gradients(file, converted, read)
    return outputs, state["intermediates"]


def _gradients(file: File, converted: Converted, read: Callable) -> Outputs:
    """Those of the product with `in/probe`, by the original tensors."""
    outputs: dict[str, Any] = {}
    floating, others = split_floating(weights(file))
    for mode in ("eval", "train"):
        prefix = f"out/grad/{mode}_"
        if not any(key.startswith(prefix) for key in file):
            continue

        def total(tensors, x, train=mode == "train"):
            variables = read(tensors | others).variables
            output = converted.network.apply(variables, x, train=train)[0]
            return (output.reshape(file["in/probe"].shape) * file["in/probe"]).sum()

        by_tensor, by_x = jax.jit(jax.grad(total, (0, 1)))(floating, file["in/x"])
        largest = max(float(np.abs(g).max()) for g in by_tensor.values())
        for name, gradient in by_tensor.items():
            theirs = file.arrays.get(prefix + name, np.inf)
            # A bias before an image's own mean has no effect: its gradient is rounding error.
            of_conv = name.endswith(".bias") and floating[f"{name[:-5]}.weight"].ndim == 4
            error = max(np.abs(gradient).max(), np.abs(theirs).max())
            outputs[prefix + name] = theirs if of_conv and error < 1e-6 * largest else gradient
        outputs[prefix + "x"] = by_x
    return outputs


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
        # PyTorch counts the steps of batch normalisation only.
        outputs[prefix + name] = weights(file)[name] + (file.config["norm"] == "batch")
    return outputs


def _tolerance(name: str) -> float:
    return 1e-4 if "act" in name or "grad" in name else 1e-5


def _as_stored(name: str) -> bool:
    return name.startswith("out/grad/") and not name.endswith("_x")


FAMILIES = {
    "resnet_g": Family(resnet, lambda name: 1e-4 if "act" in name else 2e-5, _as_stored),
    "resnet": Family(resnet, _tolerance, _as_stored),
    "unet": Family(unet, _tolerance, _as_stored),
    "patchgan": Family(patch, lambda name: 1e-5, _as_stored),
    "pixel": Family(pixel, lambda name: 1e-5, _as_stored),
}
