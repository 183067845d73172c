"""Reports as a self-contained HTML page, Markdown, JSON, and plain text for a terminal."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.report.columns import Table, plain


class Picture(NamedTuple):
    """A picture with its caption.

    Attributes:
      caption: shown above the picture.
      pixels: uint8 `[H, W, C]`, C of 1 or 3; or the name of a PNG file in the report's folder.
    """

    caption: str
    pixels: np.ndarray | str


class Gallery(NamedTuple):
    """Pictures under a heading, with a description."""

    title: str
    about: str
    pictures: Sequence[Picture]


class Report(NamedTuple):
    """The content of a report.

    Attributes:
      title: the title of the page.
      summary: the sentences below the title; of Markdown, only emphasis (`**`) and code.
      tables: the tables; the first that has quality and cost is plotted in the HTML page.
      galleries: the pictures.
      protocol: the settings of the evaluation, by name.
      environment: package versions and hardware.
      command: the command that reproduces the report.
      configuration: the settings of the trainings; only in the JSON file.
    """

    title: str
    summary: Sequence[str]
    tables: Sequence[Table]
    galleries: Sequence[Gallery]
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str
    configuration: Mapping[str, Any] = {}


def write(report: Report, directory: Path) -> list[Path]:
    """Writes `report.html`, `report.md` and `report.json`; returns their paths.

    The HTML page is self-contained: pictures are embedded, and its content security policy forbids
    loading other resources.

    Args:
      report: the report.
      directory: an existing folder, which holds the files of the pictures; existing reports are
        replaced.

    Raises:
      ValueError: a value of the configuration or the protocol is not a JSON value.
    """
    report = report._replace(tables=[table.present() for table in report.tables])
    stored = json.dumps(_content(report), indent=1, allow_nan=False)
    files = {
        "report.json": stored + "\n",
        "report.md": markdown(report),
        "report.html": page(report, directory),
    }
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [directory / name for name in files]


def page(report: Report, directory: Path) -> str:
    """The report as self-contained HTML; pictures are read from `directory`."""
    data = _content(report)
    del data["configuration"]
    for table, contents in zip(report.tables, data["tables"], strict=True):
        contents["cells"] = table.rows()[1:]
    data["galleries"] = [
        {
            "title": gallery.title,
            "about": gallery.about,
            "pictures": [
                {"caption": picture.caption, "source": _data_url(picture.pixels, directory)}
                for picture in gallery.pictures
            ],
        }
        for gallery in report.galleries
    ]
    # Within a script element only "</" and "<!--" are parsed as markup.
    stored = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    template = resources.files("kd_jax.report").joinpath("page.html")
    return template.read_text(encoding="utf-8").replace("__DATA__", stored)


def markdown(report: Report) -> str:
    """The report as Markdown; of its pictures, those that are files."""
    lines = [f"# {report.title}"]
    for sentence in report.summary:
        lines += ["", sentence]
    for table in report.tables:
        lines += ["", f"## {table.title}", "", table.about, ""]
        head, *rows = table.rows()
        lines += [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
            for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)
        ]
    for gallery in report.galleries:
        files = [picture for picture in gallery.pictures if isinstance(picture.pixels, str)]
        if files:
            lines += ["", f"## {gallery.title}", "", gallery.about]
        for picture in files:
            lines += ["", f"![{picture.caption}]({picture.pixels})"]
    lines += ["", "## Protocol", ""]
    lines += [f"- {name}: {value}" for name, value in report.protocol.items()]
    lines += [f"- {name}: {value}" for name, value in report.environment.items()]
    for table in report.tables:
        lines += [f"- {entry.name}: `{entry.path}`" for entry in table.entries if entry.path]
    lines += ["", "```", report.command, "```"]
    return "\n".join(lines) + "\n"


def plain_text(report: Report) -> str:
    """Title, summary and tables, aligned for a terminal."""
    blocks = [report.title, *(sentence.replace("**", "") for sentence in report.summary)]
    for table in report.tables:
        rows = table.present().rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            )
            for row in rows
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _content(report: Report) -> dict[str, Any]:
    """The report without pictures, as JSON values."""
    content: dict[str, Any] = plain(report)
    content["configuration"] = dict(report.configuration)  # in which NaN is an error
    del content["galleries"]
    return content


def _data_url(pixels: np.ndarray | str, directory: Path) -> str:
    from PIL import Image

    if isinstance(pixels, str):
        stored = (directory / pixels).read_bytes()
    else:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        file = io.BytesIO()
        image.save(file, format="PNG", optimize=True)
        stored = file.getvalue()
    return "data:image/png;base64," + base64.b64encode(stored).decode()


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
