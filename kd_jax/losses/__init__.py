"""Losses: pure functions that return one value per example, `[B]`, or say that they do not."""

from kd_jax.losses import (
    adversarial,
    discriminator,
    feature,
    image,
    matching,
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
    "matching",
    "moments",
    "penalties",
    "perceptual",
    "relation",
    "response",
]
