"""Metric values and the table columns that format them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """A metric's value, with its uncertainty where there is one.

    Attributes:
      value: the value; a mean where there are several `values`.
      deviation: the standard deviation, as the metric or the table defines it.
      interval: a confidence interval of the value, shown in place of the deviation.
      values: the values that it is the mean of, one per seed.
    """

    value: float
    deviation: float | None = None
    interval: tuple[float, float] | None = None
    values: tuple[float, ...] = ()


class Column(NamedTuple):
    """The format of a metric in a table.

    Attributes:
      name: the metric's key.
      title: the column heading.
      about: a one-sentence description.
      group: "quality" or "cost"; "" for other facts, such as a number of images.
      better: "lower" or "higher"; "" where neither is.
      digits: decimals; None for three significant digits with an SI prefix.
      scale: the factor applied to the value for display.
      unit: appended to each value, such as "%".
    """

    name: str
    title: str
    about: str = ""
    group: str = "quality"
    better: str = "lower"
    digits: int | None = None
    scale: float = 1.0
    unit: str = ""

    def difference(self, a: float, b: float) -> float:
        """How much better value `a` is than `b`; negative if it is worse."""
        return a - b if self.better == "higher" else b - a


class Entry(NamedTuple):
    """A row of a table.

    Attributes:
      name: the network's name.
      path: where it was read from; "" if it is a result of the run itself.
      figures: metrics by column name; a text is shown as it is.
    """

    name: str
    path: str
    figures: Mapping[str, Figure | str]


class Table(NamedTuple):
    """A table under a heading.

    Attributes:
      title: the heading.
      about: a description of what the table has, shown below the heading.
      columns: the columns after the row's name.
      entries: the rows.
      first: the heading of the names' column.
    """

    title: str
    about: str
    columns: tuple[Column, ...]
    entries: tuple[Entry, ...]
    first: str = "network"

    def present(self) -> "Table":
        """The table without the columns that no row has a value for."""
        columns = tuple(c for c in self.columns if any(c.name in e.figures for e in self.entries))
        return self._replace(columns=columns)

    def rows(self) -> list[list[str]]:
        """The formatted cells, headings first."""
        heads = [self.first, *(column.title for column in self.columns)]
        return [heads] + [
            [entry.name, *(format_figure(entry.figures.get(c.name), c) for c in self.columns)]
            for entry in self.entries
        ]


def format_figure(figure: Figure | str | None, column: Column) -> str:
    """The metric in the format of its column; a dash for a missing or non-finite value."""
    if isinstance(figure, str):
        return figure
    if figure is None or not math.isfinite(figure.value):
        return "–"

    def number(value: float) -> str:
        return _number(value * column.scale, column.digits)

    text = f"{number(figure.value)}{column.unit}"
    if figure.interval is not None and all(map(math.isfinite, figure.interval)):
        return f"{text} [{', '.join(map(number, figure.interval))}]"
    if figure.deviation is None or not math.isfinite(figure.deviation):
        return text
    return f"{text} ± {number(figure.deviation)}"


def _number(value: float, digits: int | None) -> str:
    if digits is not None:
        return f"{value:,.{digits}f}" if digits == 0 else f"{value:.{digits}f}"
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def plain(record: Any) -> Any:
    """A record of this package as JSON values: absent and non-finite numbers become null."""
    if isinstance(record, float):
        return record if math.isfinite(record) else None
    if hasattr(record, "_asdict"):
        present = {k: v for k, v in record._asdict().items() if v is not None}
        if not present.get("values", True):
            del present["values"]
        return {k: plain(v) for k, v in present.items()}
    if isinstance(record, Mapping):
        return {k: plain(v) for k, v in record.items()}
    if isinstance(record, (list, tuple)):
        return [plain(v) for v in record]
    return record
