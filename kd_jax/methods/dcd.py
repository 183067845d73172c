"""DCD (Hu et al. 2023): the teacher's discriminator compares the student with the teacher."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.core.network import tap_pairs
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import Strength, TapNames, add, pixel_l1
from kd_jax.methods.adversarial import nonsaturating
from kd_jax.methods.taps import on_taps


def dcd(
    taps: TapNames,
    discriminator_taps: Sequence[str],
    *,
    pixel: Strength = 5.0,
    distill: Strength = 1.0,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 between generator features, compared by the teacher's discriminator.

    A connected feature of the student and the teacher's feature are resized to the image size and
    projected to the image channels by the same fixed random projection. The L1 between the features
    of the teacher's discriminator for the two is summed over taps. Hu et al. 2023 (DCD), section
    3.2, where the projection is learned; weights are ours.

    Args:
      taps: taps of the generators, or `{student's: teacher's}`, at which the student must be
        connected.
      discriminator_taps: taps of the teacher's discriminator.
      pixel: the weight of the images' L1.
      distill: the weight of the features.
      adversarial: the adversarial loss.
    """
    tap_pairs(taps)
    tap_pairs(discriminator_taps)

    def compare(f: Forward) -> Array:
        score = f.teacher_discriminator

        def distance(student: Array, teacher: Array) -> Array:
            if student.shape != teacher.shape:  # their projections would differ
                raise ValueError(
                    f"student has shape {student.shape} but teacher has {teacher.shape}"
                )
            _, ours = score(_as_image(student, f.student.output.shape))
            _, theirs = score(_as_image(teacher, f.student.output.shape))
            return add([losses.feature.l1(ours[tap], theirs[tap]) for tap in discriminator_taps])

        return on_taps(distance, taps, connect=True)(f)

    generator, discriminator = adversarial or nonsaturating()
    terms = {"pixel": Term(pixel_l1, pixel), "features": Term(compare, distill)}
    return PerNetwork({**generator, **terms}, discriminator)


def _as_image(feature: Array, shape: tuple[int, ...]) -> Array:
    """A feature at the image size, with its channels projected by fixed random weights."""
    width, channels = feature.shape[-1], shape[-1]
    mix = jax.random.normal(jax.random.key(0), (width, channels), feature.dtype)
    mixed = feature @ (mix / jnp.sqrt(jnp.asarray(width, feature.dtype)))
    return jax.image.resize(mixed, (feature.shape[0], *shape[1:]), "linear")
