"""Figures, and how a table shows them."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A number, and the deviation that its metric defines, if it does."""

    value: float
    deviation: float | None = None


class Column(NamedTuple):
    """How a figure is shown.

    Attributes:
      name: its key.
      title: the head of its column.
      about: one sentence.
      group: "quality" or "cost".
      better: "lower" or "higher".
      digits: after the point; None for three significant ones with a unit's prefix.
      scale: what it is multiplied by when shown.
    """

    name: str
    title: str
    about: str
    group: str
    better: str
    digits: int | None = None
    scale: float = 1.0
