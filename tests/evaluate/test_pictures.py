"""Pictures show what they are given."""

import numpy as np
import pytest
from PIL import Image

from kd_jax.evaluate.pictures import save_curves, save_grid, to_uint8


def test_bytes():
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


def test_curves(tmp_path):
    save_curves(tmp_path / "c.png", {"one": {"a": ([1, 2], [3.0, 400.0])}, "none": {}})
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 2 * image.height
