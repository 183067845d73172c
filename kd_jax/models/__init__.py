"""Architectures, one per file; each builds `Network`s with taps.

Every factory takes `dtype`, the computation dtype. With bfloat16, the features (taps) of hidden
layers are bfloat16; parameters, the statistics of norms, images, scores and logits are always
float32.
"""

from kd_jax.models import (
    biggan,
    biggan_deep,
    classifier,
    dcgan,
    inception,
    inpainting,
    mlp,
    pair,
    perceptual,
    quantised,
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
from kd_jax.models.layers import style

__all__ = [
    "biggan",
    "biggan_deep",
    "classifier",
    "dcgan",
    "inception",
    "inpainting",
    "mlp",
    "pair",
    "perceptual",
    "quantised",
    "r3gan",
    "realesrgan",
    "resnet",
    "style",
    "stylegan1",
    "stylegan2",
    "stylegan3",
    "superres",
    "text",
    "tinygan",
    "translation",
    "waveform",
]
