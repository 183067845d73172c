"""PyTorch's DCGAN: images and scores, and the statistics after one training step."""

import re

import jax

from kd_jax.pretrained import dcgan
from parity.golden import Family, File, Outputs, weights


def generator(file: File) -> Outputs:
    converted = dcgan.generator(weights(file))
    latents = file.arrays["in/x"][:, :, 0, 0]
    image, _, _ = converted.network.apply(converted.variables, latents)
    trained, _, variables = converted.network.apply(converted.variables, latents, train=True)
    return {"out/eval": image, "out/train": trained} | _statistics(
        file, variables, lambda number: f"BatchNorm_{(number - 1) // 3}"
    )


def discriminator(file: File) -> Outputs:
    converted = dcgan.discriminator(weights(file))
    logits, _, _ = converted.network.apply(converted.variables, file["in/x"])
    trained, _, variables = converted.network.apply(converted.variables, file["in/x"], train=True)
    return {
        "out/eval": jax.nn.sigmoid(logits),
        "out/eval_logit": logits,
        "out/train": jax.nn.sigmoid(trained),
    } | _statistics(file, variables, lambda number: f"norm_{number // 3}")


def _statistics(file: File, variables, ours) -> Outputs:
    outputs = {}
    for key in file:
        if match := re.fullmatch(r"out/train_buf/main\.(\d+)\.running_(\w+)", key):
            outputs[key] = variables["batch_stats"][ours(int(match[1]))][match[2]]
        elif key.startswith("out/train_buf/") and key.endswith("num_batches_tracked"):
            outputs[key] = file.arrays[key.replace("out/train_buf", "sd")] + 1
    return outputs


FAMILIES = {
    "dcgan_g": Family(generator, lambda name: 1e-5),
    "dcgan_d": Family(discriminator, lambda name: 1e-5),
}
