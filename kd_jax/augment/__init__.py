"""Augmentation of the discriminator's inputs, for training with limited data.

The discriminator only sees augmented images, in its own loss and in the generator's; gradients
propagate through the augmentation.

    # DiffAugment, Zhao et al. 2020
    discriminator = with_augmentation(discriminator, diff_augment)

    # ADA, Karras et al. 2020
    discriminator = with_ada(discriminator)
    d_terms["sign_statistic"] = sign_statistic()
    step = adapt(make_train_step(...))
"""

from kd_jax.augment.ada import (
    BG,
    BGC,
    BGCF,
    BGCFN,
    BGCFNC,
    BLIT,
    COLOR,
    CUTOUT,
    FILTER,
    GEOM,
    NOISE,
    Settings,
    augment_pipe,
)
from kd_jax.augment.adaptive import adapt, sign_statistic, with_ada, with_augmentation
from kd_jax.augment.diff import diff_augment

__all__ = [
    "BG",
    "BGC",
    "BGCF",
    "BGCFN",
    "BGCFNC",
    "BLIT",
    "COLOR",
    "CUTOUT",
    "FILTER",
    "GEOM",
    "NOISE",
    "Settings",
    "adapt",
    "augment_pipe",
    "diff_augment",
    "sign_statistic",
    "with_ada",
    "with_augmentation",
]
