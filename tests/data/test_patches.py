"""Large images in patches: every pixel is in one, and each is what it should be."""

import numpy as np
import pytest
from PIL import Image

from kd_jax.data import load_all, open_source

RNG = np.random.default_rng(0)


def saved(path, width, height, orientation=None):
    pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


def patches_of(folder, **options):
    return open_source(f"folder:{folder}", "train", 8, 3, in_patches=True, **options)


def as_bytes(images):
    return np.rint((images + 1) * 127.5).astype(np.uint8)


def test_patches_lie_side_by_side_and_the_last_end_with_the_image(tmp_path):
    first = saved(tmp_path / "set/a/1.png", 20, 8)
    second = saved(tmp_path / "set/b/2.png", 16, 9)
    found = load_all(patches_of(tmp_path / "set"))
    expected = [first[:, :8], first[:, 8:16], first[:, 12:]]
    expected += [second[top : top + 8, left : left + 8] for top in (0, 1) for left in (0, 8)]
    np.testing.assert_array_equal(as_bytes(found["image"]), expected)
    np.testing.assert_array_equal(found["label"], [0] * 3 + [1] * 4)


def test_an_image_of_one_patch_and_one_that_lies_on_its_side(tmp_path):
    whole = saved(tmp_path / "set/1.png", 8, 8)
    lying = saved(tmp_path / "set/2.png", 12, 8, orientation=6)  # is 8 wide and 12 high
    found = as_bytes(load_all(patches_of(tmp_path / "set"))["image"])
    np.testing.assert_array_equal(found[0], whole)
    upright = np.rot90(lying, -1)
    np.testing.assert_array_equal(found[1:], [upright[:8], upright[4:]])


def test_patches_are_other_data_than_whole_images(tmp_path):
    saved(tmp_path / "set/1.png", 8, 8)
    whole = open_source(f"folder:{tmp_path / 'set'}", "train", 8, 3)
    assert patches_of(tmp_path / "set").fingerprint != whole.fingerprint


def test_what_cannot_be_cut(tmp_path):
    saved(tmp_path / "set/1.png", 20, 7)
    with pytest.raises(ValueError, match=r"1\.png is 20x7, smaller than a patch of 8x8"):
        patches_of(tmp_path / "set")
    with pytest.raises(ValueError, match="either resized or cut"):
        patches_of(tmp_path / "set", resize=True)
    with pytest.raises(ValueError, match="digits is not a folder"):
        open_source("digits", "train", 8, 1, in_patches=True)
    Image.new("RGBA", (8, 8)).save(tmp_path / "set/1.png")
    with pytest.raises(ValueError, match="RGBA; RGB is asked for"):
        patches_of(tmp_path / "set")
