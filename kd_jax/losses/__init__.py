"""Losses: pure functions that return one value per example, `[B]`, unless documented otherwise."""

from kd_jax.losses import (
    adversarial,
    discriminator,
    feature,
    image,
    image_text,
    moments,
    penalties,
    perceptual,
    relation,
    response,
)

__all__ = [
    "adversarial",
    "discriminator",
    "feature",
    "image",
    "image_text",
    "moments",
    "penalties",
    "perceptual",
    "relation",
    "response",
]
