"""Types, terms and checks that several methods share."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from kd_jax import losses
from kd_jax.core.network import tap_pairs
from kd_jax.core.objective import Forward, Schedule, Term, Weight
from kd_jax.core.types import Array, MissingTapError
from kd_jax.methods.weights import scaled

TapNames: TypeAlias = Sequence[str] | Mapping[str, str]
"""Names of taps, or `{student's: teacher's}`."""

Strength: TypeAlias = float | Schedule | Weight

ADVERSARIAL = "adversarial"  # the name of the terms
PENALTY, RELATION, POOL = 0, 1, 2  # folded into the key of terms that draw


def scale_weights(terms: Mapping[str, Term], by: float) -> dict[str, Term]:
    """The terms with their weights multiplied by a number."""

    def product(weight: Strength) -> Strength:
        return by * weight if isinstance(weight, float | int) else scaled(weight, by)

    return {name: term._replace(weight=product(term.weight)) for name, term in terms.items()}


def perceptual_loss(layers: Sequence[str]) -> Callable[[Forward], Array]:
    """A term's function: the perceptual distance of the student's and the teacher's images."""
    tap_pairs(layers)
    return lambda f: losses.image.perceptual(*extract(f, layers))


def extract(f: Forward, layers: Sequence[str]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The extractor's features of the student's and of the teacher's images."""
    taps = f.extractor(f.student.output)[1], f.extractor(f.teacher.output)[1]
    try:
        ours, theirs = ({name: features[name] for name in layers} for features in taps)
    except MissingTapError as error:
        raise ValueError(f"the extractor: {error}") from error
    return ours, theirs


def check_alpha(alpha: float) -> None:
    """Raises a ValueError unless `alpha` is in [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha} is not in [0, 1]")


def pixel_l1(f: Forward) -> Array:
    """L1 to the teacher's image."""
    return losses.response.l1(f.student.output, f.teacher.output)


def add(values: Sequence[Array]) -> Array:
    """The sum of one or more values."""
    return functools.reduce(operator.add, values)
