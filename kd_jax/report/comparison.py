"""Comparison reports of generators as self-contained HTML, Markdown and JSON."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.report.columns import Column, Figure


class Picture(NamedTuple):
    """A uint8 image `[H, W, C]`, C of 1 or 3, with its caption."""

    caption: str
    pixels: np.ndarray


class Gallery(NamedTuple):
    """Pictures under a heading, with a description."""

    title: str
    about: str
    pictures: Sequence[Picture]


class Entry(NamedTuple):
    """A network and its metrics: a row of the table."""

    name: str
    path: str
    figures: Mapping[str, Figure]


class Classes(NamedTuple):
    """Metrics by class: each of `rows` is a class and one value per column."""

    about: str
    columns: Sequence[str]
    digits: Sequence[int]
    rows: Sequence[Sequence[Any]]


class Report(NamedTuple):
    """The content of a report.

    Attributes:
      title: the title of the page.
      summary: one sentence below the title.
      columns: the columns of the table, after the network's name.
      entries: the rows of the table.
      galleries: the galleries of pictures.
      classes: metrics by class; None for unconditional networks.
      protocol: the settings of the evaluation, by name.
      environment: package versions and hardware.
      command: the command that reproduces the report.
    """

    title: str
    summary: str
    columns: Sequence[Column]
    entries: Sequence[Entry]
    galleries: Sequence[Gallery]
    classes: Classes | None
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str


def write(report: Report, directory: Path) -> str:
    """Writes `report.html`, `report.md` and `report.json`; returns the Markdown.

    The HTML page is self-contained: pictures are embedded, and its content security policy forbids
    loading other resources.

    Args:
      report: the report.
      directory: an existing folder; existing files are replaced.
    """
    text = markdown(report)
    (directory / "report.md").write_text(text, encoding="utf-8")
    plain = json.dumps(_plain(report), indent=1, allow_nan=False)
    (directory / "report.json").write_text(plain + "\n", encoding="utf-8")
    (directory / "report.html").write_text(page(report), encoding="utf-8")
    return text


def page(report: Report) -> str:
    """The report as self-contained HTML."""
    data = _plain(report)
    name = Column("name", "network", "", "", "")
    data["columns"] = [_column(column) for column in (name, *report.columns)]
    data["pictures"] = [
        {
            "title": gallery.title,
            "about": gallery.about,
            "pictures": [
                {"caption": picture.caption, "source": _data_url(picture.pixels)}
                for picture in gallery.pictures
            ],
        }
        for gallery in report.galleries
    ]
    # Within a script element only "</" and "<!--" are parsed as markup.
    stored = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    template = resources.files("kd_jax.report").joinpath("comparison.html")
    return template.read_text(encoding="utf-8").replace("__DATA__", stored)


def markdown(report: Report) -> str:
    """The report as Markdown, without pictures."""
    columns = [
        column
        for column in report.columns
        if any(column.name in entry.figures for entry in report.entries)
    ]
    lines = [f"# {report.title}", "", report.summary, ""]
    lines += _table(
        ["network", *(column.title for column in columns)],
        [
            [
                entry.name,
                *(format_figure(entry.figures.get(column.name), column) for column in columns),
            ]
            for entry in report.entries
        ],
    )
    if report.classes is not None:
        lines += ["", "## Classes", "", report.classes.about, ""]
        rows = [
            [
                str(name),
                *(f"{v:.{d}f}" for v, d in zip(values, report.classes.digits, strict=True)),
            ]
            for name, *values in report.classes.rows
        ]
        lines += _table(["class", *report.classes.columns], rows)
    lines += ["", "## Evaluation protocol", ""]
    lines += [f"- {name}: {value}" for name, value in report.protocol.items()]
    lines += [f"- {name}: {value}" for name, value in report.environment.items()]
    lines += [f"- {entry.name}: `{entry.path}`" for entry in report.entries]
    lines += ["", "```", report.command, "```"]
    return "\n".join(lines) + "\n"


def format_figure(figure: Figure | None, column: Column) -> str:
    """The metric in the format of its column; a dash for a missing or non-finite value."""
    if figure is None or not math.isfinite(figure.value):
        return "–"
    text = _number(figure.value * column.scale, column.digits)
    if figure.deviation is None or not math.isfinite(figure.deviation):
        return text
    return f"{text} ± {_number(figure.deviation * column.scale, column.digits)}"


def _number(value: float, digits: int | None) -> str:
    if digits is not None:
        return f"{value:.{digits}f}"
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines]


def _column(column: Column) -> dict[str, Any]:
    return {name: value for name, value in column._asdict().items() if value is not None}


def _plain(report: Report) -> dict[str, Any]:
    """The report without pictures, as JSON values."""
    return {
        "title": report.title,
        "summary": report.summary,
        "columns": [_column(column) for column in report.columns],
        "networks": [
            {
                "name": entry.name,
                "path": entry.path,
                "figures": {
                    name: {
                        key: value
                        for key, value in figure._asdict().items()
                        if value is not None and math.isfinite(value)
                    }
                    for name, figure in entry.figures.items()
                },
            }
            for entry in report.entries
        ],
        "classes": None if report.classes is None else report.classes._asdict(),
        "protocol": dict(report.protocol),
        "environment": dict(report.environment),
        "command": report.command,
    }


def _data_url(pixels: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def tile(images: np.ndarray, columns: int, gap: int = 2, scale: int = 1) -> np.ndarray:
    """Tiles uint8 images `[N, H, W, C]` in rows of `columns` on white, enlarged by `scale`."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    sheet = np.full(shape, 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
