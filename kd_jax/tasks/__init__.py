"""Tasks: functions from a batch and a key to the inputs of the networks and the targets.

A task is a function `(key, batch) -> Inputs`; generation, restoration and translation of images
differ in nothing else, and the step is independent of the task. Random degradations are drawn from
the step's key, so that an image is degraded differently each time.

Tasks with a target image put it into `Inputs.real`, which terms read as `forward.real`.
"""

from kd_jax.tasks import degradations
from kd_jax.tasks.answers import answered
from kd_jax.tasks.audio import bandwidth_extension
from kd_jax.tasks.classification import classification
from kd_jax.tasks.compression import jpeg
from kd_jax.tasks.generation import latents, noise
from kd_jax.tasks.real_degradations import real_degradation
from kd_jax.tasks.restoration import (
    Degrade,
    MakeMask,
    dihedral_augmentation,
    inpainting,
    super_resolution,
)
from kd_jax.tasks.text import text_to_image
from kd_jax.tasks.translation import paired, unpaired

__all__ = [
    "Degrade",
    "MakeMask",
    "answered",
    "bandwidth_extension",
    "classification",
    "degradations",
    "dihedral_augmentation",
    "inpainting",
    "jpeg",
    "latents",
    "noise",
    "paired",
    "real_degradation",
    "super_resolution",
    "text_to_image",
    "unpaired",
]
