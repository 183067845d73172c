"""R3GAN: images, scores, features, gradients, and the losses with their penalties."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kd_jax.losses import adversarial, penalties
from kd_jax.pretrained import r3gan
from parity.golden import Family, File, Outputs, weights


def generator(file: File) -> Outputs:
    converted = r3gan.generator(weights(file))
    _check_config(file.config["kwargs"], converted.config)
    outputs, taps, _ = _network(file, r3gan.generator, "in/z", "out/img")
    for key in (key for key in file if key.startswith("out/act_MainLayers.")):
        stage, *rest = key.removeprefix("out/act_MainLayers.").split(".")
        name = f"{4 << int(stage)}x{4 << int(stage)}"
        assert not rest or (stage, *rest) == ("0", "Layers", "0")
        outputs[key] = taps["start" if rest else name][: len(file.arrays[key])]
    return outputs


def discriminator(file: File) -> Outputs:
    converted = r3gan.discriminator(weights(file))
    _check_config(file.config["kwargs"], converted.config)
    outputs, _, layers = _network(file, r3gan.discriminator, "in/img", "out/logits")
    last = len(converted.config["width"]) - 1
    for key in (key for key in file if key.startswith("out/act_MainLayers.")):
        stage = int(key.removeprefix("out/act_MainLayers."))
        output = layers["score" if stage == last else f"down_{stage + 1}"]["__call__"][0]
        outputs[key] = output[: len(file.arrays[key])]
    return outputs


def losses(file: File) -> Outputs:
    parts = {
        part: {k.removeprefix(f"{part}."): v for k, v in weights(file).items() if k[0] == part}
        for part in "GD"
    }
    real, gamma = file["in/real"], file.config["gamma"]
    readers: dict[str, Callable] = {"G": r3gan.generator, "D": r3gan.discriminator}
    networks = {part: readers[part](parts[part]).network for part in parts}
    labels = _labels(file)

    def apply(part, tensors, x):
        variables = readers[part](tensors | _filters(parts[part])).variables
        return networks[part].apply(variables, x, *labels)[:2]

    def of_generator(g, d):
        fake = apply("G", g, file["in/z"])[0]
        scores = [apply("D", d, x)[0] for x in (real, fake)]
        value = adversarial.relativistic_g(*scores)
        return value.mean(), {"g_adv": value, "g_rel": scores[1] - scores[0]}

    def of_discriminator(d, g):
        fake = apply("G", g, file["in/z"])[0]
        scores = [apply("D", d, x)[0] for x in (real, fake)]
        value = adversarial.relativistic_d(*scores)
        r1 = penalties.r1(lambda x: apply("D", d, x), real)
        r2 = penalties.r2(lambda x: apply("D", d, x), fake)
        # The originals are not halved.
        outputs = {"d_adv": value, "d_rel": scores[0] - scores[1], "d_r1": 2 * r1, "d_r2": 2 * r2}
        return (value + gamma * (r1 + r2)).mean(), outputs

    outputs: dict[str, Any] = {}
    trained = {part: _trained(parts[part]) for part in parts}
    for part, loss, arguments in (("G", of_generator, "GD"), ("D", of_discriminator, "DG")):
        (_, values), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            *(trained[argument] for argument in arguments)
        )
        outputs |= {f"out/{name}": value for name, value in values.items()}
        outputs |= {f"out/grad/{part}/{name}": g for name, g in gradients.items()}
    return outputs


def _check_config(kwargs: dict[str, Any], config: Any) -> None:
    assert config["width"] == kwargs["WidthPerStage"]
    assert config["groups"] == kwargs["CardinalityPerStage"]
    assert config["blocks"] == kwargs["BlocksPerStage"]
    assert config["classes"] == kwargs["c_dim"]
    assert config["kernel"] == kwargs["KernelSize"]
    assert config["hidden"] == [kwargs["ExpansionFactor"] * n for n in kwargs["WidthPerStage"]]
    assert config.get("latent", kwargs.get("NoiseDimension")) == kwargs.get("NoiseDimension")


def _network(
    file: File, read: Callable, source: str, result: str
) -> tuple[dict[str, Any], Any, Any]:
    """The output and its gradients; and the taps and the outputs of all layers."""
    tensors = weights(file)
    module = read(tensors).network.module

    def total(trained, x):
        (output, taps), state = module.apply(
            read(trained | _filters(tensors)).variables,
            x,
            *_labels(file),
            train=False,
            capture_intermediates=True,
        )
        return (output * file["in/probe"]).sum(), (output, taps, state["intermediates"])

    (_, (output, taps, layers)), (by_tensor, by_x) = jax.jit(
        jax.value_and_grad(total, (0, 1), has_aux=True)
    )(_trained(tensors), file[source])
    outputs = {result: output, source.replace("in/", "out/grad/"): by_x}
    return outputs | {f"out/grad/{name}": g for name, g in by_tensor.items()}, taps, layers


def _labels(file: File) -> list[np.ndarray]:
    known = {f"in/{name}" for name in ("z", "img", "real", "probe")}
    return [file[name] for name in file if name.startswith("in/") and name not in known]


def _filters(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in tensors.items() if name.endswith(".Kernel")}


def _trained(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in tensors.items() if not name.endswith(".Kernel")}


def _as_stored(name: str) -> bool:
    return name.startswith("out/grad/") and not name.endswith(("/z", "/img"))


FAMILIES = {
    "r3gan_g": Family(generator, as_stored=_as_stored),
    "r3gan_d": Family(discriminator, as_stored=_as_stored),
    "r3gan_loss": Family(losses, as_stored=_as_stored, slow=True),
}
