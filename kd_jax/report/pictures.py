"""PNG files of image grids, curves and bar charts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_uint8(images: Any) -> NDArray[np.uint8]:
    """Images in [-1, 1] as uint8, rounded to nearest and clipped."""
    scaled = np.rint((np.asarray(images, np.float32) + 1.0) * 127.5)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def save_grid(
    path: Path, rows: Mapping[str, Any], scale: int = 3, titles: Sequence[str] = ()
) -> None:
    """Writes a PNG with one labelled row of images per entry.

    Args:
      path: the file.
      rows: images `[N, H, W, C]` in [-1, 1] by row label, all of one size; C is 1, 3 or 4. A fourth
        channel is alpha, composed on white.
      scale: the side of the square that each pixel is drawn as.
      titles: column titles, drawn with one word per line.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=14)
    margin, gap = 8 + max(int(font.getlength(label)) for label in rows), 2
    first = next(iter(rows.values()))
    height, width = (side * scale + gap for side in first.shape[1:3])
    columns = max(len(images) for images in rows.values())
    lines = max((len(title.split()) for title in titles), default=0)
    line = 16
    top = lines * line
    sheet = Image.new("RGB", (margin + columns * width, top + len(rows) * height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    small = ImageFont.load_default(size=10)
    for column, title in enumerate(titles[:columns]):
        for number, word in enumerate(title.split()):
            position = (margin + column * width + width // 2, number * line + line // 2)
            draw.text(position, word, fill="black", font=small, anchor="mm")
    for row, (label, images) in enumerate(rows.items()):
        draw.text(
            (2, top + row * height + height // 2), label, fill="black", font=font, anchor="lm"
        )
        for column, pixels in enumerate(to_uint8(_opaque(images))):
            pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
            tile = Image.fromarray(pixels).resize(
                (width - gap, height - gap), Image.Resampling.NEAREST
            )
            sheet.paste(tile, (margin + column * width, top + row * height + gap))
    sheet.save(path)


def _opaque(images: Any) -> NDArray[np.float32]:
    """Images of 4 channels composed on white, `[N, H, W, 3]`; others unchanged."""
    images = np.asarray(images, np.float32)
    if images.shape[-1] != 4:
        return images
    colours, alpha = np.split(np.clip(images, -1, 1), [3], axis=-1)
    return 1 + (colours - 1) * (alpha + 1) / 2


def save_curves(
    path: Path, panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]
) -> None:
    """Writes a PNG with one panel per entry, each with curves `name: (steps, values)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name, (steps, values) in curves.items():
            axes.plot(steps, values, label=name, linewidth=1.5)
        positive = [v for _, values in curves.values() for v in values]
        if positive and min(positive) > 0 and max(positive) > 20 * min(positive):
            axes.set_yscale("log")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def save_bars(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    lines: Mapping[str, Mapping[str, float]],
) -> None:
    """Writes a PNG with one panel per entry, each with bars `name: (length, error)`.

    Args:
      path: the file.
      panels: bars by panel title, top to bottom; the error is half the error bar, NaN for none.
      lines: values to mark across all bars of a panel, by label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(len(bars) for bars in panels.values())
    figure = Figure(figsize=(5.2 * len(panels), 1.2 + 0.24 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, bars) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        lengths, errors = np.array(list(bars.values())).T
        axes.barh(list(bars), lengths, xerr=np.nan_to_num(errors), color="#8fb0d0", ecolor="#444")
        axes.invert_yaxis()
        if lengths.max() > 20 * lengths.min() > 0:
            axes.set_xscale("log")
        for index, (label, value) in enumerate(lines.get(title, {}).items()):
            axes.axvline(value, label=label, color=f"C{index + 1}", linewidth=1.2)
        axes.set(title=title)
        axes.grid(axis="x", alpha=0.3)
        if lines.get(title):
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
