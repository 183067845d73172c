"""Terms that compare features of the student and of the teacher, by the names of taps."""

from collections.abc import Callable

from kd_jax.core.network import connected, tap_pairs
from kd_jax.core.objective import Forward
from kd_jax.core.types import Array, MissingTapError
from kd_jax.methods._common import TapNames, add


def on_taps(
    loss: Callable[[Array, Array], Array], taps: TapNames, *, connect: bool = False
) -> Callable[[Forward], Array]:
    """The function of a `Term`: `loss(student's feature, teacher's feature)`, summed over taps.

    Args:
      loss: `(student, teacher) -> [B]` or a scalar.
      taps: names, or `{student's: teacher's}`.
      connect: whether to read the student's connected features.

    Raises:
      ValueError: (of the term, when traced) when a tap is missing or the shapes of two features do
        not fit; the message names the taps.
    """
    pairs = tap_pairs(taps)

    def term(f: Forward) -> Array:
        values = []
        for name, other in pairs.items():
            features = tap_features(f, connected(name) if connect else name, other)
            values.append(evaluate_on_taps(name, other, loss, *features))
        return add(values)

    return term


def evaluate_on_taps(name: str, other: str, loss: Callable[..., Array], *features: Array) -> Array:
    """`loss(*features)`, with errors that name the two taps."""
    try:
        return loss(*features)
    except ValueError as error:
        where = f"student's tap {name!r} and teacher's {other!r}"
        raise ValueError(f"{where}: {error}") from error


def tap_features(f: Forward, name: str, other: str) -> tuple[Array, Array]:
    """The student's tap `name` and the teacher's tap `other`, with errors that name the network."""
    try:
        student = f.student.taps[name]
    except MissingTapError as error:
        plain = name.removeprefix(connected(""))
        hint = " (connect the student first: connect_to)" if plain in f.student.taps else ""
        raise ValueError(f"the student: {error}{hint}") from error
    try:
        return student, f.teacher.taps[other]
    except MissingTapError as error:
        raise ValueError(f"the teacher: {error}") from error
