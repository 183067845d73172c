"""StyleGAN2: NVIDIA's and rosinality's networks, and NVIDIA's losses."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses import adversarial, penalties
from kd_jax.pretrained import stylegan2
from parity.golden import Family, File, Outputs


def weights(file: File, prefix: str = "sd/") -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): file.arrays[k] for k in file if k.startswith(prefix)}


def labels(c: np.ndarray) -> tuple:
    return (c,) if c.size else ()


def generator(file: File) -> Outputs:
    overrides = stylegan2.generator_settings(file.config["kwargs"])
    overrides["mapping"]["average_decay"] = file.config.get("w_avg_beta", 0.998)
    converted = stylegan2.generator(weights(file), **overrides)
    network, variables, *_ = converted
    inputs = (file["in/z"], *labels(file["in/c"]))
    outputs: dict[str, object] = {"out/w": network.mapping(variables, *inputs)}
    # The images are truncated like the styles without a cutoff.
    matches = [re.fullmatch(r"out/w_psi([\d.]+)", name) for name in file]
    truncation = next((float(match[1]) for match in matches if match), 1.0)
    usual = network.mapping(variables, *inputs, truncation=truncation)
    _, taps, _ = network.apply(variables, *inputs, truncation=truncation)
    for name in file:
        if match := re.fullmatch(r"out/w_psi([\d.]+)(?:_cut(\d+))?", name):
            options = {
                "truncation": float(match[1]),
                "truncation_cutoff": int(match[2]) if match[2] else None,
            }
            outputs[name] = network.mapping(variables, *inputs, **options)
        elif match := re.fullmatch(r"out/act_b(\d+)", name):
            outputs[name] = taps[f"{match[1]}x{match[1]}"][: len(file[name])]
        elif match := re.fullmatch(r"out/img_(const|none)(_nonfused|_mixed|)", name):
            variant = stylegan2.generator(weights(file), fused=not match[2], **overrides)
            styles = file["in/ws_mixed"] if match[2] == "_mixed" else usual
            outputs[name] = variant.network.synthesis(variables, styles, noise=match[1])[0]
    _, _, after = network.apply(variables, *inputs, train=True)
    outputs["out/w_avg_after_update"] = after["averages"]["mapping"]["w_avg"]
    return outputs


def discriminator(file: File) -> Outputs:
    overrides = stylegan2.discriminator_settings(file.config["kwargs"])
    network, variables, *_ = stylegan2.discriminator(weights(file), **overrides)
    scores, taps, _ = network.apply(variables, file["in/img"], *labels(file["in/c"]))
    outputs: dict[str, object] = {"out/logits": scores[:, None], "out/act_b4": scores[:, None]}
    for name in file:
        if (match := re.fullmatch(r"out/act_b(\d+)", name)) and match[1] != "4":
            side = int(match[1]) // 2
            outputs[name] = taps[f"{side}x{side}"][: len(file[name])]
        elif name == "out/act_mapping":
            outputs[name] = taps["mapping"][: len(file[name])]
    return outputs


def rosinality_generator(file: File) -> Outputs:
    average = file["in/truncation_latent"]
    network, variables, *_ = stylegan2.rosinality_generator(weights(file), average)
    styles = network.mapping(variables, file["in/z"])
    outputs: dict[str, object] = {"out/latent": styles}
    for name in file:
        options = {}
        if match := re.fullmatch(r"out/img_trunc([\d]+)", name):
            options = {"truncation": int(match[1]) / 10 ** (len(match[1]) - 1)}
        used = network.mapping(variables, file["in/z"], **options)
        if match := re.fullmatch(r"out/img_mix(\d+)", name):
            other = network.mapping(variables, file["in/z2"])
            first = np.arange(styles.shape[1]) < int(match[1])
            used = jnp.where(first[None, :, None], styles, other)
        if name.startswith("out/img"):
            outputs[name] = network.synthesis(variables, used, noise="const")[0]
    return outputs


def rosinality_discriminator(file: File) -> Outputs:
    group = (
        {"stddev_group": file.config["kwargs"].get("stddev_group", 4)}
        if "kwargs" in file.config
        else {}
    )
    network, variables, *_ = stylegan2.rosinality_discriminator(weights(file), **group)
    return {"out/logits": network.apply(variables, file["in/img"])[0][:, None]}


def sources(file: File, prefix: str, convert) -> tuple[dict, dict]:
    """For each converted parameter, the index of each of its entries among the file's entries.

    The conversion is a permutation, which is applied to consecutive numbers.
    """
    tensors, start, places = weights(file, prefix), 0, {}
    for name, value in tensors.items():
        if "filter" not in name and value.size:
            places[name] = (start, value.shape)
            tensors[name] = np.arange(start, start + value.size, dtype=np.float32).reshape(
                value.shape
            )
            start += value.size
    return convert(tensors).variables["params"], places


def as_stored(gradients, numbers, places) -> dict[str, np.ndarray]:
    """Gradients by the file's names, in the file's layout."""
    flat = np.zeros(sum(int(np.prod(shape)) for _, shape in places.values()), np.float32)
    for gradient, number in zip(jax.tree.leaves(gradients), jax.tree.leaves(numbers), strict=True):
        flat[np.asarray(number).astype(int)] = np.asarray(gradient)
    return {
        name: flat[start : start + int(np.prod(shape))].reshape(shape)
        for name, (start, shape) in places.items()
    }


def training(file: File) -> Outputs:
    """NVIDIA's losses: the terms of `methods.stylegan2`, and the gradients of each phase."""
    config, gains = file.config, file.config["gains"]
    group = {"stddev_group": config["D"]["mbstd_group_size"]}
    converters = {
        "G": stylegan2.generator,
        "D": lambda tensors: stylegan2.discriminator(tensors, **group),
    }
    (g, g_variables, *_), (d, d_variables, *_) = (
        converters[name](weights(file, f"sd/{name}.")) for name in "GD"
    )
    z, real, noise = file["in/z"], file["in/real"], file["in/pl_noise"]
    condition, real_condition = labels(file["in/c"]), labels(file["in/real_c"])
    outputs: dict[str, object] = {}

    def generate(params):
        return g.apply({**g_variables, "params": params}, z, *condition)[0]

    def score(params, images, inputs=condition):
        return d.apply({**d_variables, "params": params}, images, *inputs)[0]

    def g_main(params):
        fake = score(d_variables["params"], generate(params))
        loss = adversarial.nonsaturating_g(fake)
        return gains["Gmain"] * loss.mean(), {"fake": fake, "loss": loss}

    def g_reg(params):
        count = len(noise)
        variables = {**g_variables, "params": params}
        styles = g.mapping(variables, z[:count], *(c[:count] for c in condition))
        lengths = penalties.path_lengths(lambda w: g.synthesis(variables, w), styles, noise)
        mean = config["pl_mean_before"]
        mean = mean + config["pl_decay"] * (lengths.mean() - mean)
        penalty = (lengths - mean) ** 2
        regular = penalty * config["pl_weight"]
        return gains["Greg"] * regular.mean(), {"penalty": penalty, "reg": regular, "mean": mean}

    def d_main(params):
        fake = score(params, generate(g_variables["params"]))
        true = score(params, real, real_condition)
        loss = adversarial.minimax_d(true, fake)
        return gains["Dmain"] * loss.mean(), {"fake": fake, "real": true, "loss": loss}

    def d_reg(params):
        true = score(params, real, real_condition)
        r1 = penalties.r1(lambda x: (score(params, x, real_condition), {}), real)
        regular = config["r1_gamma"] * r1
        return gains["Dreg"] * regular.mean(), {"real": true, "r1": 2 * r1, "reg": regular}

    # The average of w is updated once, by the images for the discriminator.
    after = g.apply(g_variables, z, *condition, train=True)[2]
    outputs["out/w_avg_after_Dmain"] = after["averages"]["mapping"]["w_avg"]
    for phase, fn, name in (
        ("Gmain", g_main, "G"), ("Greg", g_reg, "G"), ("Dmain", d_main, "D"), ("Dreg", d_reg, "D"),
    ):  # fmt: skip
        params = (g_variables if name == "G" else d_variables)["params"]
        gradients, auxiliary = jax.grad(fn, has_aux=True)(params)
        stored = as_stored(gradients, *sources(file, f"sd/{name}.", converters[name]))
        outputs |= {f"out/grad/{phase}/{k}": v for k, v in stored.items()}
        for kind in ("fake", "real"):
            if kind in auxiliary:
                outputs[f"out/{phase}/scores/{kind}/0"] = auxiliary[kind][:, None]
                outputs[f"out/{phase}/signs/{kind}/0"] = jnp.sign(auxiliary[kind])[:, None]
        if phase == "Greg":
            outputs |= {
                "out/Greg/pl_penalty/0": auxiliary["penalty"],
                "out/Greg/G/reg/0": auxiliary["reg"],
                "out/pl_mean_after": auxiliary["mean"],
            }
        elif phase == "Dreg":
            outputs |= {
                "out/Dreg/r1_penalty/0": auxiliary["r1"],
                "out/Dreg/D/reg/0": auxiliary["reg"],
            }
        else:
            outputs[f"out/{phase}/{name}/loss/0"] = auxiliary["loss"][:, None]
    return outputs


FAMILIES = {
    "stylegan2_loss": Family(
        training,
        lambda name: 5e-4 if "/grad/" in name else 2e-4,
        lambda name: "/grad/" in name,
        slow=True,
    ),
    "stylegan2_g": Family(generator),
    "stylegan2_d": Family(discriminator),
    "stylegan2_rosinality_g": Family(rosinality_generator, slow=True),
    "stylegan2_rosinality_d": Family(rosinality_discriminator, slow=True),
}
