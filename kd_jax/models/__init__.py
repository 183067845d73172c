"""Architectures, one a file; each makes `Network`s with taps."""

from kd_jax.models import (
    biggan,
    biggan_deep,
    classifier,
    dcgan,
    inception,
    inpainting,
    mlp,
    perceptual,
    resnet,
    style,
    stylegan1,
    stylegan2,
    stylegan3,
    superres,
    tinygan,
    translation,
)

__all__ = [
    "biggan",
    "biggan_deep",
    "classifier",
    "dcgan",
    "inception",
    "inpainting",
    "mlp",
    "perceptual",
    "resnet",
    "style",
    "stylegan1",
    "stylegan2",
    "stylegan3",
    "superres",
    "tinygan",
    "translation",
]
