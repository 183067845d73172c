"""StyleGAN3's generators."""

import re
from functools import partial

import jax
import numpy as np

from kd_jax.models.layers.style import AVERAGES
from kd_jax.pretrained import stylegan3
from parity.golden import Family, File, Outputs


def outputs(file: File) -> Outputs:
    tensors = {k.removeprefix("sd/"): file.arrays[k] for k in file if k.startswith("sd/")}
    beta = {k: v for k, v in file.config.items() if k == "magnitude_ema_beta"}
    settings = {**beta, **file.config["kwargs"]}
    network, variables, config, *_ = stylegan3.generator(tensors, settings)
    inputs = [file["in/z"]] + ([file["in/c"]] if config["classes"] else [])
    layers = [match[0] for k in tensors if (match := re.match(r"synthesis\.(L\d+)_\d+_\d+", k))]
    layers = sorted({name.removeprefix("synthesis.") for name in layers}, key=_number)

    # Images are generated from the first truncated styles.
    truncated = [key for key in file if key.startswith("out/w_")]
    options = _truncation(truncated[0]) if truncated else {}
    apply = jax.jit(partial(network.apply, **options), static_argnames="train")
    image, taps, _ = apply(variables, *inputs)
    after = apply(variables, *inputs, train=True)[2]
    results: dict[str, object] = {"out/img": image, "out/act_input": taps["input"]}
    for index, name in enumerate(layers):
        last = index == config["num_layers"]
        x = image / config.get("output_scale", 0.25) if last else taps[f"L{index}"]
        results[f"out/act_{name}"] = x
        magnitude = after[AVERAGES]["synthesis"][f"L{index}"]["magnitude_ema"]
        results[f"out/ema/{name}.magnitude_ema"] = magnitude
    results["out/ema/mapping.w_avg"] = after[AVERAGES]["mapping"]["w_avg"]
    for key in file:
        if key == "out/w" or key in truncated:
            results[key] = network.mapping(variables, *inputs, **_truncation(key))
        elif match := re.fullmatch(r"out/img_(transform\w*)", key):
            results[key] = apply(variables, *inputs, transform=file[f"in/{match[1]}"])[0]
    # The file may contain activations of the first examples only.
    for key in results.keys() & set(file):
        if key.startswith("out/act_"):
            results[key] = np.asarray(results[key])[: len(file[key])]
    return results


def _truncation(key: str) -> dict[str, object]:
    """The options of `out/w`, `out/w_psi0.7`, `out/w_psi0.7_cut2`, ..."""
    match = re.fullmatch(r"out/w(?:_psi([\d.]+))?(?:_cut(\d+))?", key)
    cutoff = None if match[2] is None else int(match[2])
    return {"truncation": float(match[1] or 1), "truncation_cutoff": cutoff}


def _number(name: str) -> int:
    return int(re.match(r"L(\d+)_", name)[1])


def tolerance(name: str) -> float:
    return 1e-4 if name.startswith("out/act_") else 2e-5


FAMILIES = {
    "stylegan3_t": Family(outputs, tolerance),
    "stylegan3_r": Family(outputs, tolerance, slow=True),
}
