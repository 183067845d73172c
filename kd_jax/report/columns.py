"""Metric values and the table columns that format them."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A metric's value, and its deviation where the metric defines one."""

    value: float
    deviation: float | None = None


class Column(NamedTuple):
    """The format of a metric in a table.

    Attributes:
      name: the metric's key.
      title: the column heading.
      about: a one-sentence description.
      group: "quality" or "cost".
      better: "lower" or "higher".
      digits: decimals; None for three significant digits with an SI prefix.
      scale: the factor applied to the value for display.
    """

    name: str
    title: str
    about: str
    group: str
    better: str
    digits: int | None = None
    scale: float = 1.0
