"""Image grids, curves and bar charts."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from kd_jax.report.pictures import save_bars, save_curves, save_grid, to_uint8


def test_to_uint8():
    np.testing.assert_array_equal(
        to_uint8(np.array([-1.0, 1.0, 0.0, -2.0, 3.0, -1 + 2 / 255])), [0, 255, 128, 0, 255, 1]
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_the_images(tmp_path, channels):
    rows = {
        name: np.random.default_rng(i).uniform(-1, 1, (4, 5, 6, channels))
        for i, name in enumerate(("a", "b"))
    }
    save_grid(tmp_path / "grid.png", rows, scale=2)
    with Image.open(tmp_path / "grid.png") as image:
        sheet = np.asarray(image.convert("RGB"))
    assert sheet.shape[0] == 2 * (5 * 2 + 2) + 2
    margin = sheet.shape[1] - 4 * (6 * 2 + 2)
    for row, images in enumerate(rows.values()):
        for column in range(4):
            top, left = row * 12 + 2, margin + column * 14
            tile = sheet[top : top + 10 : 2, left : left + 12 : 2]
            expected = np.rint((images[column] + 1) * 127.5)
            np.testing.assert_array_equal(tile, np.broadcast_to(expected, (5, 6, 3)))


def test_transparent_images_are_composed_on_white(tmp_path):
    """Red with alpha 1, 1/2, 0, and out of range."""
    image = np.full((1, 1, 4, 4), -1.0)
    image[..., 0] = 1.0
    image[0, 0, :, 3] = [1.0, 0.0, -1.0, 3.0]
    save_grid(tmp_path / "grid.png", {"x": image, "y": np.full((1, 1, 4, 1), -1.0)}, scale=1)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape[2] == 3
    tile = sheet[2, -6:-2]
    expected = [[255, 0, 0], [255, 128, 128], [255, 255, 255], [255, 0, 0]]
    np.testing.assert_allclose(tile, expected, atol=1)
    assert (sheet[5, -6:-2] == 0).all()


def test_titles_are_drawn_above_the_columns(tmp_path):
    rows = {"a": np.random.default_rng(0).uniform(-1, 1, (3, 20, 20, 1))}
    for name, titles in (("without", ()), ("with", ("bold leaning seven", "thin", ""))):
        save_grid(tmp_path / f"{name}.png", rows, titles=titles)
    plain, titled = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        for name in ("without", "with")
    )
    top = titled.shape[0] - plain.shape[0]
    assert top > 0
    np.testing.assert_array_equal(titled[top:], plain)
    third = plain.shape[1] - 62  # the last column has no title
    assert (titled[:top, third:] == 255).all()
    ink = [
        (titled[top * k // 3 : top * (k + 1) // 3, third - 124 : third] < 128).sum()
        for k in range(3)
    ]
    assert all(count > 5 for count in ink)  # three words in the first column, on three lines


def test_curves(tmp_path):
    save_curves(tmp_path / "c.png", {"one": {"a": ([1, 2], [3.0, 400.0])}, "none": {}})
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 2 * image.height


def test_all_byte_values_round_trip():
    values = np.arange(256)
    images = to_uint8((values / 127.5 - 1).astype(np.float32))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, values)


def test_to_uint8_rounds_instead_of_truncating():
    np.testing.assert_array_equal(to_uint8(np.array([9.4, 9.6, 254.6]) / 127.5 - 1), [9, 10, 255])


def test_shorter_rows_are_padded_with_white(tmp_path):
    black = -np.ones((3, 4, 4, 1))
    save_grid(tmp_path / "grid.png", {"long": black, "a": black[:1]}, scale=1)
    with Image.open(tmp_path / "grid.png") as image:
        assert image.format == "PNG"
        sheet = np.asarray(image)
    margin = sheet.shape[1] - 3 * 6
    assert sheet.shape == (2 * 6 + 2, margin + 18, 3)
    assert (sheet[2:6, margin : margin + 4] == 0).all()
    assert (sheet[2:6, margin + 12 : margin + 16] == 0).all()
    assert (sheet[8:12, margin : margin + 4] == 0).all()
    assert (sheet[8:12, margin + 4 :] == 255).all()
    assert (sheet[2:6, margin + 4 : margin + 6] == 255).all()  # the gap between tiles
    assert sheet[:8, :margin].min() < 128  # the label


def test_channel_order(tmp_path):
    image = np.full((1, 2, 3, 3), -1.0)
    image[0, 0, 0, 0] = image[0, 0, 2, 1] = image[0, 1, 1, 2] = 1.0
    save_grid(tmp_path / "grid.png", {"x": image}, scale=3)
    with Image.open(tmp_path / "grid.png") as sheet:
        margin = sheet.width - (3 * 3 + 2)
        for position, colour in (
            ((0, 0), (255, 0, 0)),
            ((2, 0), (0, 255, 0)),
            ((1, 1), (0, 0, 255)),
        ):
            for inner in (0, 2):
                x, y = (3 * side + inner for side in position)
                assert sheet.getpixel((margin + x, 2 + y)) == colour


@pytest.mark.parametrize("values", [[0.0, 1e3], [-5.0, 1e3], [1.0, 1.5], []])
def test_curves_of_any_range(tmp_path, values):
    save_curves(tmp_path / "c.png", {"loss": {"a": (list(range(len(values))), values)}})
    with Image.open(tmp_path / "c.png") as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).min() < 100


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [([1.0, 30.0], True), ([1.0, 19.0], False), ([0.0, 30.0], False), ([-1.0, 30.0], False)],
)
def test_logarithmic_axis(tmp_path, monkeypatch, values, logarithmic):
    scales = []
    monkeypatch.setattr(Axes, "set_yscale", lambda self, scale: scales.append(scale))
    save_curves(tmp_path / "c.png", {"loss": {"a": ([1, 2], values), "b": ([1], [2.0])}})
    assert scales == ["log"] * logarithmic


def test_bars_errors_and_lines(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Axes, "barh", lambda self, names, lengths, xerr, **_: drawn.append((names, lengths, xerr))
    )
    marks = []
    monkeypatch.setattr(Axes, "axvline", lambda self, x, **kw: marks.append((x, kw["label"])))
    monkeypatch.setattr(Axes, "legend", lambda self, **_: None)
    bars = {"a": (1.0, 0.5), "b": (2.0, np.nan)}
    save_bars(tmp_path / "b.png", {"one": bars, "two": bars}, {"one": {"teacher": 0.7}})
    assert len(drawn) == 2
    names, lengths, errors = drawn[0]
    assert names == ["a", "b"]
    np.testing.assert_array_equal(lengths, [1.0, 2.0])
    np.testing.assert_array_equal(errors, [0.5, 0.0])
    assert marks == [(0.7, "teacher")]
    with Image.open(tmp_path / "b.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(("longest", "logarithmic"), [(30.0, True), (19.0, False)])
def test_logarithmic_bars(tmp_path, monkeypatch, longest, logarithmic):
    scales = []
    monkeypatch.setattr(Axes, "set_xscale", lambda self, scale: scales.append(scale))
    save_bars(tmp_path / "b.png", {"x": {"a": (1.0, 0.1), "b": (longest, 0.1)}}, {})
    assert scales == ["log"] * logarithmic
