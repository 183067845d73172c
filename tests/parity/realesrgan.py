"""Real-ESRGAN's networks: images, scores, features and gradients, and images in tiles.

The originals take and return images in [0, 1], and kd_jax's networks images in [-1, 1].
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kd_jax.models.realesrgan import UNSHUFFLING
from kd_jax.pretrained import realesrgan
from kd_jax.pretrained.convert import Converted
from parity.golden import Family, File, Outputs, weights

DENSE = re.compile(r"body\.(\d+)(?:\.rdb(\d+))?(?:\.conv(\d+))?")
LAYERS = {
    "conv_first": "stem",
    "conv_body": "trunk",
    "conv_up1": "up_0",
    "conv_up2": "up_1",
    "conv_hr": "full",
    "conv_last": "image",
}


def _rrdb_layer(name: str) -> list[str]:
    if name in LAYERS:
        return [LAYERS[name]]
    block, dense, conv = DENSE.fullmatch(name).groups()
    path = [f"block_{block}"]
    path += [f"dense_{int(dense) - 1}"] if dense else []
    return path + ([f"conv_{int(conv) - 1}"] if conv else [])


def rrdb(file: File) -> Outputs:
    kwargs = file.config["kwargs"]

    def read(tensors):
        return realesrgan.rrdb(tensors, scale=kwargs["scale"])

    converted = read(weights(file))
    config = converted.config
    assert [config[k] for k in ("scale", "width", "blocks", "growth", "channels", "inputs")] == [
        kwargs[k]
        for k in ("scale", "num_feat", "num_block", "num_grow_ch", "num_out_ch", "num_in_ch")
    ]
    if config["inputs"] == config["channels"]:
        assert realesrgan.rrdb(weights(file)).config == config
    outputs, layers = _generator(file, converted, read)
    for key in (key for key in file if key.startswith("out/act_")):
        outputs[key] = _output(layers, _rrdb_layer(key.removeprefix("out/act_")))
    return _like(file, outputs) | _tiles(file, converted)


def srvgg(file: File) -> Outputs:
    kwargs = file.config["kwargs"]

    def read(tensors):
        return realesrgan.srvgg(tensors, scale=kwargs["upscale"], activation=kwargs["act_type"])

    converted = read(weights(file))
    config = converted.config
    assert [config[k] for k in ("scale", "width", "layers", "channels", "inputs")] == [
        kwargs[k] for k in ("upscale", "num_feat", "num_conv", "num_out_ch", "num_in_ch")
    ]
    if config["inputs"] == config["channels"] and config["activation"] != "leakyrelu":
        assert realesrgan.srvgg(weights(file)).config == config
    outputs, layers = _generator(file, converted, read)
    taps = outputs.pop("taps")
    for key in (key for key in file if key.startswith("out/act_body.")):
        index, activation = divmod(int(key.rpartition(".")[2]), 2)
        last = index == config["layers"] + 1
        name = "image" if last else f"layer_{index}"
        outputs[key] = taps[name] if activation else _output(layers, [name])
    return _like(file, outputs)


def unet(file: File) -> Outputs:
    skip = file.config["kwargs"]["skip_connection"]

    def read(tensors):
        return realesrgan.unet_discriminator(tensors, skip=skip)

    converted = read(weights(file))
    assert converted.config["width"] == file.config["kwargs"]["num_feat"]
    outputs: dict[str, Any] = {}
    for mode in ("eval", "train"):

        def scores(tensors, x, mode=mode):
            variables = read(tensors).variables
            scores, _, after = converted.network.apply(variables, 2 * x - 1, train=mode == "train")
            return scores[..., None], after

        def total(tensors, x, scores=scores):
            value, after = scores(tensors, x)
            return (value * file["in/probe"]).sum(), (value, after)

        (_, (value, after)), (by_tensor, by_x) = jax.jit(
            jax.value_and_grad(total, (0, 1), has_aux=True)
        )(weights(file), file["in/x"])
        outputs |= {f"out/{mode}": value, f"out/grad/{mode}_x": by_x}
        outputs |= {f"out/grad/{mode}_{name}": g for name, g in by_tensor.items()}
    for key in (key for key in file if key.startswith("out/train_buf/")):
        layer, _, kind = key.removeprefix("out/train_buf/").rpartition(".")
        ours = realesrgan.UNET[int(layer.removeprefix("conv"))]
        vector = after["spectral"][ours][kind.removeprefix("weight_")][0]
        if kind == "weight_v":  # over rows, columns and channels; theirs starts with the channels
            sides = file.arrays[f"sd/{layer}.weight_orig"].shape[2:]
            vector = vector.reshape(*sides, -1).transpose(2, 0, 1).reshape(-1)
        outputs[key] = vector
    return _like(file, outputs)


def _generator(
    file: File, converted: Converted, read: Callable
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image, its gradients and the taps; and the outputs of all layers."""
    module = converted.network.module

    def total(tensors, x):
        (y, taps), state = module.apply(
            read(tensors).variables, 2 * x - 1, train=False, capture_intermediates=True
        )
        y = (y + 1) / 2
        return (y * file["in/probe"]).sum(), (y, taps, state["intermediates"])

    (_, (y, taps, layers)), (by_tensor, by_x) = jax.jit(
        jax.value_and_grad(total, (0, 1), has_aux=True)
    )(weights(file), file["in/x"])
    gradients = {f"out/grad/{name}": g for name, g in by_tensor.items()}
    return {"out/y": y, "out/grad/x": by_x, "taps": taps} | gradients, layers


def _output(layers: dict[str, Any], path: list[str]):
    for name in path:
        layers = layers[name]
    return layers["__call__"][0]


def _like(file: File, outputs: dict[str, Any]) -> dict[str, Any]:
    """Activations of as many examples as the file has."""
    return {
        key: outputs[key][: len(file.arrays[key])] if "/act_" in key else outputs[key]
        for key in file
        if key in outputs
    }


def _tiles(file: File, converted: Converted) -> Outputs:
    """The image of Real-ESRGAN's inference program: padded, in tiles with context, and cropped."""
    if "in/tile_img_hwc" not in file:
        return {}
    setting, scale = file.config["tile"], converted.config["scale"]
    enlarge = jax.jit(
        lambda x: (converted.network.apply(converted.variables, 2 * x - 1)[0] + 1) / 2
    )
    image = file.arrays["in/tile_img_hwc"][None]
    height, width = image.shape[1:3]
    for more in (setting["pre_pad"], None):
        rows, columns = image.shape[1:3]
        multiple = UNSHUFFLING[scale]
        below, right = (more, more) if more is not None else (-rows % multiple, -columns % multiple)
        image = np.pad(image, ((0, 0), (0, below), (0, right), (0, 0)), "reflect")
    tile, context = setting["tile"], setting["tile_pad"]
    rows, columns = image.shape[1:3]
    output = np.zeros((1, scale * rows, scale * columns, converted.config["channels"]), np.float32)
    for i in range(math.ceil(rows / tile)):
        for j in range(math.ceil(columns / tile)):
            top, left = i * tile, j * tile
            bottom, right = min(top + tile, rows), min(left + tile, columns)
            above, before = max(top - context, 0), max(left - context, 0)
            y = enlarge(image[:, above : bottom + context, before : right + context])
            y = y[:, scale * (top - above) :, scale * (left - before) :]
            size = (scale * (bottom - top), scale * (right - left))
            output[:, scale * top : scale * bottom, scale * left : scale * right] = y[
                :, : size[0], : size[1]
            ]
    crop = np.s_[:, : scale * height, : scale * width]
    return {
        "out/tile_padded_input": image,
        "out/tile_out": output[crop],
        "out/whole_out": enlarge(image)[crop],
    }


def _as_stored(name: str) -> bool:
    return name.startswith("out/grad/") and not name.endswith(("/x", "_x"))


FAMILIES = {
    "rrdb": Family(rrdb, lambda name: 1e-5, _as_stored),
    "srvgg": Family(srvgg, lambda name: 1e-5, _as_stored),
    "unetd": Family(unet, lambda name: 1e-5, _as_stored),
}
