"""Where a set's images come from: whether two sets share some, and name their labels alike."""

from dataclasses import dataclass

from kd_jax.data.source import Source


@dataclass(frozen=True, eq=False)
class Known(Source):
    """A source that knows what it was made from.

    Attributes:
      classes: the labels' names in order, where somebody chose them; else none.
      parts: `(file, first, end)` of the examples of each file that they were taken from, where that
        is how they are stored; else none.
    """

    classes: tuple[str, ...] = ()
    parts: tuple[tuple[str, int, int], ...] = ()


def overlap(one: Source, other: Source) -> bool:
    """Whether two sets are known to have images in common: equal sets, or parts of one TFDS split.

    Copies in other files are not found. A `subset` counts as the set that it was drawn from.
    """
    if one.fingerprint == other.fingerprint:
        return True
    if not (isinstance(one, Known) and isinstance(other, Known)):
        return False
    return any(
        file == other_file and first < other_end and other_first < end
        for file, first, end in one.parts
        for other_file, other_first, other_end in other.parts
    )


def check_same_classes(one: Source, other: Source) -> None:
    """Refuses two sets in which a label has different names.

    Raises:
      ValueError: it has; the first one is named.
    """
    if not (isinstance(one, Known) and isinstance(other, Known)):
        return
    if len(one.classes) != len(other.classes):
        return  # Of one of them they are not known, or the caller sees that by `num_classes`.
    for label, names in enumerate(zip(one.classes, other.classes, strict=True)):
        if names[0] != names[1]:
            raise ValueError(
                f"class {label} is {names[0]!r} in {one.name} and {names[1]!r} in {other.name}: "
                "the classes must have the same names in both"
            )
