"""StyleKD (Xu et al. 2022): relations of images along latent directions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.core.network import tap_pairs
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import (
    RELATION,
    Strength,
    TapNames,
    add,
    perceptual_loss,
    pixel_l1,
)
from kd_jax.methods.adversarial import nonsaturating
from kd_jax.methods.taps import evaluate_on_taps, tap_features


def stylekd(
    directions: Array,
    taps: TapNames,
    layers: Sequence[str] = (),
    *,
    pixel: Strength = 3.0,
    perceptual: Strength = 3.0,
    relation: Strength = 30.0,
    strength: float = 5.0,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1, perceptual distance, and the relations between images and latent-shifted images.

    Xu et al. 2022 (StyleKD), section 3. The student inherits the teacher's mapping network, so that
    both have the same latent space. For style networks the styles of all layers are shifted
    equally; for others, the generator's first input.

    Args:
      directions: `[K, latent]` unit vectors (`sefa_directions`) in the space of the
        styles or of the latents.
      taps: names of features, or `{student's: teacher's}`; widths may differ.
      layers: the extractor's taps for the perceptual distance; if empty, the term is omitted.
      pixel: the weight of the L1.
      perceptual: the weight of the perceptual distance.
      relation: the weight of the relations.
      strength: a shift is a direction, times this, times a standard normal number.
      adversarial: the adversarial loss.
    """
    pairs = tap_pairs(taps)
    if directions.ndim != 2:
        raise ValueError(f"directions {directions.shape} are not [K, latent]")

    def shifted_relation(f: Forward) -> Array:
        latents, *rest = f.inputs.generator
        index_key, size_key = jax.random.split(jax.random.fold_in(f.key, RELATION))
        indices = jax.random.randint(index_key, latents.shape[:1], 0, directions.shape[0])
        size = strength * jax.random.normal(size_key, (latents.shape[0], 1), latents.dtype)
        shift = size * jnp.asarray(directions)[indices]
        if not (f.teacher.is_style and f.student.is_style):
            _check_directions(directions, latents)
            _, ours = f.student(latents + shift, *rest)
            _, theirs = f.teacher(latents + shift, *rest)
        else:
            passes = []
            for network in (f.student, f.teacher):
                styles = network.mapping(*f.inputs.generator)
                _check_directions(directions, styles)
                passes.append(network.synthesis(styles + shift[:, None])[1])
            ours, theirs = passes
        total = []
        for name, other in pairs.items():
            student, teacher = tap_features(f, name, other)
            features = student, ours[name], teacher, theirs[other]
            total.append(evaluate_on_taps(name, other, losses.relation.direction_kl, *features))
        return add(total)

    generator, discriminator = adversarial or nonsaturating()
    terms = {"pixel": Term(pixel_l1, pixel), "relation": Term(shifted_relation, relation)}
    if layers:
        terms["perceptual"] = Term(perceptual_loss(layers), perceptual)
    return PerNetwork({**generator, **terms}, discriminator)


def _check_directions(directions: Array, latents: Array) -> None:
    if latents.ndim < 2 or latents.shape[-1] != directions.shape[1]:
        raise ValueError(f"directions {directions.shape} do not fit latents {latents.shape}")
