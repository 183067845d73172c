"""StyleGAN: genforce's and rosinality's networks."""

import re

import jax.numpy as jnp
import numpy as np

from kd_jax.models.layers.style import Dense
from kd_jax.pretrained import stylegan1
from parity.golden import Family, File, Outputs


def weights(file: File) -> dict[str, np.ndarray]:
    return {k.removeprefix("sd/"): file.arrays[k] for k in file if k.startswith("sd/")}


def labels(file: File) -> list[np.ndarray]:
    names = ("in/label", "in/labels", "in/c", "in/y")
    return [file.arrays[name] for name in names if name in file and file.arrays[name].size]


def genforce_generator(file: File) -> Outputs:
    fused = file.config["kwargs"].get("fused_scale", "auto")
    fused_from = {True: 4, False: 2048, "auto": 128}[fused]
    tanh = file.config["kwargs"].get("final_tanh", False)
    network, variables, *_ = stylegan1.genforce_generator(
        weights(file), fused_from=fused_from, tanh=tanh
    )
    inputs = (file["in/z"], *labels(file))
    styles = network.mapping(variables, *inputs)
    outputs: dict[str, object] = {"out/w": styles[:, 0], "out/wp": styles}
    for name in file:
        if match := re.fullmatch(r"out/style(\d+)", name):
            index = int(match[1])
            layer = variables["params"]["synthesis"][f"b{4 << index // 2}"][f"conv{index % 2}"]
            dense = Dense(len(layer["affine"]["bias"]))
            outputs[name] = dense.apply({"params": layer["affine"]}, styles[:, index])
        elif match := re.fullmatch(r"out/img(_trunc)?(?:_lod([\d.]+))?", name):
            options: dict[str, object] = {"lod": float(match[2])} if match[2] else {}
            if match[1]:
                options["truncation"] = file.config["trunc_psi"]
                options["truncation_cutoff"] = file.config["trunc_layers"]
            outputs[name] = network.apply(variables, *inputs, **options)[0]
    return outputs


def genforce_discriminator(file: File) -> Outputs:
    group = file.config["kwargs"].get("minibatch_std_group_size", 4)
    network, variables, *_ = stylegan1.genforce_discriminator(weights(file), stddev_group=group)
    outputs: dict[str, object] = {}
    for name in file:
        if match := re.fullmatch(r"out/logits(?:_lod([\d.]+))?", name):
            options = {"lod": float(match[1])} if match[1] else {}
            scores = network.apply(variables, file["in/img"], *labels(file), **options)[0]
            outputs[name] = scores[:, None]
    return outputs


def growth(file: File) -> dict:
    """The size and level of detail for a step and alpha, which has no effect outside [0, 1)."""
    step, alpha = file.config["step"], file.config["alpha"]
    fading = step > 0 and 0 <= alpha < 1
    return {"size": 4 << step, "lod": 1.0 - alpha if fading else 0.0}


def rosinality_generator(file: File) -> Outputs:
    average = file.arrays.get("in/mean_style")
    network, variables, *_ = stylegan1.rosinality_generator(
        weights(file), average=average, **growth(file)
    )
    styles = network.mapping(variables, file["in/z"])
    noise = [image for image in file.numbered("in/noise") for _ in range(2)]
    outputs: dict[str, object] = {"out/w": styles[:, 0]}
    for name in file:
        used = styles
        if re.fullmatch(r"out/img_trunc\d+", name):
            truncation = file.config["style_weight"]
            used = network.mapping(variables, file["in/z"], truncation=truncation)
        elif match := re.fullmatch(r"out/img_mix_(\d+)_(\d+)", name):
            block = np.arange(styles.shape[1]) // 2
            mixed = (int(match[1]) <= block) & (block <= int(match[2]))
            other = network.mapping(variables, file["in/z2"])
            used = jnp.where(mixed[None, :, None], other, styles)
        if name.startswith("out/img"):
            outputs[name] = network.synthesis(variables, used, noise=noise)[0]
    return outputs


def rosinality_discriminator(file: File) -> Outputs:
    network, variables, *_ = stylegan1.rosinality_discriminator(weights(file), **growth(file))
    return {"out/logits": network.apply(variables, file["in/img"])[0][:, None]}


FAMILIES = {
    "stylegan1_genforce_g": Family(genforce_generator, slow=True),
    "stylegan1_genforce_d": Family(genforce_discriminator, slow=True),
    "stylegan1_rosinality_g": Family(rosinality_generator, slow=True),
    "stylegan1_rosinality_d": Family(rosinality_discriminator),
}
