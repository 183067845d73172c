"""The formats and dtypes of `kd_jax.export` for a small network of every family, as a table.

    python -m benchmarks.formats                 # all networks
    python -m benchmarks.formats stylegan2 unet  # those whose names begin like this
    python -m benchmarks.formats --only tflite   # the columns of one format

Each network has random weights; the file's outputs are compared with JAX's as in every export. The
table has the largest difference, as a share of the largest magnitude of JAX's outputs, for float32,
and the PSNR to JAX in dB for the smaller dtypes; below it are the reasons of the refusals.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.checks import UsageError
from kd_jax.core.network import Network
from kd_jax.export import export
from kd_jax.model import Model
from kd_jax.models import (
    biggan,
    biggan_deep,
    classifier,
    dcgan,
    inpainting,
    mlp,
    r3gan,
    realesrgan,
    resnet,
    stylegan1,
    stylegan2,
    stylegan3,
    superres,
    text,
    tinygan,
    translation,
    waveform,
)


def model_of(
    network: Network, *inputs: jax.ShapeDtypeStruct, classes: int = 0, generates: bool = True
) -> Model:
    """A model with random variables, statistics and biases included."""
    variables = jax.jit(network.init)(
        jax.random.key(0), *(jnp.zeros(x.shape, x.dtype) for x in inputs)
    )
    random = np.random.default_rng(0)

    def shifted(x: jax.Array) -> jax.Array:
        vector = x.ndim <= 1 and jnp.issubdtype(x.dtype, jnp.floating)
        return x + 0.3 * random.random(x.shape).astype(np.float32) if vector else x

    return Model(network, jax.tree.map(shifted, variables), inputs, classes, generates, {})


def latents(count: int, length: int) -> jax.ShapeDtypeStruct:
    """The shape of latents `[count, length]`."""
    return jax.ShapeDtypeStruct((count, length), jnp.float32)


LABELS = jax.ShapeDtypeStruct((1,), jnp.int32)
STYLE: dict[str, Any] = {"latent": 8, "style": 8, "channel_max": 8}
SMALL: dict[str, Any] = {"classes": 5, "shared": 6}


def images(side: int) -> jax.ShapeDtypeStruct:
    """The shape of an image."""
    return jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)


LATENTS: Mapping[str, Callable[[], Model]] = {
    "dcgan": lambda: model_of(dcgan.generator(16, 4), latents(1, 8)),
    "dcgan with classes": lambda: model_of(
        dcgan.generator(16, 4, classes=5, depth=1), latents(1, 8), LABELS, classes=5
    ),
    "mlp": lambda: model_of(mlp.generator(8, 16, classes=5), latents(1, 8), LABELS, classes=5),
    "resnet": lambda: model_of(
        resnet.generator(32, 4, classes=5), latents(1, 8), LABELS, classes=5
    ),
    "biggan": lambda: model_of(
        biggan.generator(32, 4, attention=(16,), **SMALL), latents(1, 16), LABELS, classes=5
    ),
    "biggan_deep": lambda: model_of(
        biggan_deep.generator(32, 8, depth=1, attention=(16,), **SMALL),
        latents(1, 8),
        LABELS,
        classes=5,
    ),
    "tinygan": lambda: model_of(
        tinygan.generator(32, 4, **SMALL), latents(1, 16), LABELS, classes=5
    ),
    "stylegan1": lambda: model_of(
        stylegan1.generator(16, depth=2, channel_base=64, **STYLE), latents(1, 8)
    ),
    "stylegan2": lambda: model_of(
        stylegan2.generator(16, channel_base=64, mapping={"depth": 2}, **STYLE), latents(1, 8)
    ),
    "stylegan2 with a kernel per example": lambda: model_of(
        stylegan2.generator(8, channel_base=64, fused=True, architecture="resnet", **STYLE),
        latents(1, 8),
    ),
    "stylegan3": lambda: model_of(
        stylegan3.generator(32, channel_base=128, num_layers=5, mapping={"depth": 2}, **STYLE),
        latents(1, 8),
    ),
    "r3gan": lambda: model_of(
        r3gan.generator((8, 8), (2, 2), blocks=1, latent=8, classes=3, embedding=4),
        latents(1, 8),
        LABELS,
        classes=3,
    ),
}
IMAGES: Mapping[str, Callable[[], Model]] = {
    "rrdb": lambda: model_of(realesrgan.rrdb(4, 8, 1, 4), images(16)),
    "rrdb of scale 2": lambda: model_of(realesrgan.rrdb(2, 8, 1, 4), images(16)),
    "srvgg": lambda: model_of(realesrgan.srvgg(4, 8, 2), images(16)),
    "srresnet": lambda: model_of(superres.srresnet(2, 8, 2), images(16)),
    "srresnet, a student": lambda: model_of(
        superres.srresnet(2, 8, 2, window=3, separable=True), images(16)
    ),
    "interpolating_rrdb": lambda: model_of(superres.rrdb(4, 8, 1, 4), images(16)),
    "translation_resnet": lambda: model_of(translation.resnet_generator(8, blocks=2), images(32)),
    "translation_resnet, a student": lambda: model_of(
        translation.resnet_generator(8, blocks=2, separable=True), images(32)
    ),
    "unet": lambda: model_of(translation.unet_generator(8, downs=3), images(32)),
}

WAVES = jax.ShapeDtypeStruct((1, 16, 2), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((1, 5), jnp.int32)
MASKS = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
OTHERS: Mapping[str, Callable[[], Model]] = {
    "inpainting": lambda: model_of(
        inpainting.gated_generator(4, dilations=(2,), residual=False), images(16), MASKS
    ),
    "text": lambda: model_of(
        text.generator(8, 4, vocabulary=7, length=5, embedding=4), latents(1, 6), TOKENS
    ),
    "classifier": lambda: model_of(classifier.classifier(5, 4), images(16), generates=False),
    "waveform": lambda: model_of(waveform.generator(4, 4, 1, channels=2), WAVES, generates=False),
}

COLUMNS = (
    ("onnx", "float32"),
    ("onnx", "float16"),
    ("onnx", "int8-weights"),
    ("onnx", "int8"),
    ("tflite", "float32"),
    ("stablehlo", "float32"),
    ("safetensors", "float32"),
)


def main(arguments: list[str] | None = None) -> None:
    """Exports the networks, and prints the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.formats")
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of names")
    parser.add_argument("--only", metavar="FORMAT", help="one format")
    args = parser.parse_args(arguments)
    names = tuple(args.names)
    columns = [column for column in COLUMNS if args.only in (None, column[0])]
    print(f"| network | {' | '.join(' '.join(column) for column in columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    reasons: list[str] = []
    for name, make in {**LATENTS, **IMAGES, **OTHERS}.items():
        if names and not name.startswith(names):
            continue
        cells = [_cell(make(), *column, reasons) for column in columns]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for number, reason in enumerate(reasons, 1):
        print(f"\n{number}. {reason}")


def _cell(model: Model, form: str, dtype: str, reasons: list[str]) -> str:
    """The difference of a file, or the number of the reason that there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            parity = export(model, Path(folder) / "out", [form], dtype=dtype)[form].parity
        except (ValueError, UsageError) as error:
            reason = str(error)
            if reason not in reasons:
                reasons.append(reason)
            return f"refused ({reasons.index(reason) + 1})"
    if dtype == "float32":
        return f"{parity.difference / parity.peak:.0e}"
    return f"{parity.psnr:.1f} dB"


if __name__ == "__main__":
    main()
