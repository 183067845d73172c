"""Types, terms and checks that several methods share."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from kd_jax import losses
from kd_jax.core.network import tap_pairs
from kd_jax.core.objective import BoundNetwork, Forward, Schedule, Term, Weight
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
    taps = f.extract(f.fake), f.extract(needs_teacher(f))
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
    return losses.response.l1(f.fake, needs_teacher(f))


def needs_style(
    network: BoundNetwork, name: str
) -> tuple[Callable[..., Array], Callable[..., Any]]:
    """The mapping and the synthesis of a style network.

    Raises:
      ValueError: the network is not a style network.
    """
    if network.mapping is None or network.synthesis is None:
        raise ValueError(f"{name} is not a style network: it has no mapping and no synthesis")
    return network.mapping, network.synthesis


def needs_teacher(f: Forward) -> Array:
    """The teacher's images; a ValueError without a teacher."""
    if f.teacher is None:
        raise ValueError("nets has no teacher")
    return f.teacher


def needs_teacher_score(f: Forward) -> BoundNetwork:
    """The teacher's discriminator; a ValueError without one."""
    if f.teacher_discriminate is None:
        raise ValueError("nets has no teacher_discriminator")
    return f.teacher_discriminate


def needs_real(f: Forward) -> Array:
    """The real images; a ValueError without them."""
    if f.real is None:
        raise ValueError("the task has no real images")
    return f.real


def add(values: Sequence[Array]) -> Array:
    """The sum of one or more values."""
    return functools.reduce(operator.add, values)
