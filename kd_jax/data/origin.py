"""The origin of data sets: whether two sets share images, and whether their classes agree."""

from dataclasses import dataclass

from kd_jax.data.source import Source


@dataclass(frozen=True, eq=False, repr=False)
class SourceWithOrigin(Source):
    """A source that records the files and class names that it was created from.

    Attributes:
      classes: the names of the classes in the order of the labels; empty if they have no names.
      parts: `(file, first, end)`, the range of examples of each file; empty if examples are not
        stored in this way.
    """

    classes: tuple[str, ...] = ()
    parts: tuple[tuple[str, int, int], ...] = ()


def overlap(one: Source, other: Source) -> bool:
    """Whether two sets are known to share images: equal sets, or overlapping parts of a TFDS split.

    Copies in other files are not detected. A `subset` counts as the set that it was drawn from.
    """
    if one.fingerprint == other.fingerprint:
        return True
    if not (isinstance(one, SourceWithOrigin) and isinstance(other, SourceWithOrigin)):
        return False
    return any(
        file == other_file and first < other_end and other_first < end
        for file, first, end in one.parts
        for other_file, other_first, other_end in other.parts
    )


def check_same_classes(one: Source, other: Source) -> None:
    """Checks that the classes of two sets have the same names.

    Raises:
      ValueError: the names of a class differ; the message names the first such class.
    """
    if not (isinstance(one, SourceWithOrigin) and isinstance(other, SourceWithOrigin)):
        return
    if len(one.classes) != len(other.classes):
        return  # Names are unknown, or the caller compares `num_classes`.
    for label, names in enumerate(zip(one.classes, other.classes, strict=True)):
        if names[0] != names[1]:
            raise ValueError(
                f"class {label} is {names[0]!r} in {one.name} and {names[1]!r} in {other.name}: "
                "class names must agree"
            )
