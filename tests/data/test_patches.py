"""Patches of large images: their places, pixels and labels."""

import numpy as np
import pytest
from PIL import Image

from kd_jax.data import load_all, open_source

RNG = np.random.default_rng(0)


def save_random(path, width, height, orientation=None):
    pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


def open_patches(folder, **options):
    return open_source(f"folder:{folder}", "train", 8, 3, in_patches=True, **options)


def as_bytes(images):
    return np.rint((images + 1) * 127.5).astype(np.uint8)


def test_patches_are_adjacent_and_the_last_are_aligned_with_the_border(tmp_path):
    first = save_random(tmp_path / "set/a/1.png", 20, 8)
    second = save_random(tmp_path / "set/b/2.png", 16, 9)
    patches = load_all(open_patches(tmp_path / "set"))
    expected = [first[:, :8], first[:, 8:16], first[:, 12:]]
    expected += [second[top : top + 8, left : left + 8] for top in (0, 1) for left in (0, 8)]
    np.testing.assert_array_equal(as_bytes(patches["image"]), expected)
    np.testing.assert_array_equal(patches["label"], [0] * 3 + [1] * 4)


def test_an_image_of_a_single_patch_and_a_rotated_image(tmp_path):
    whole = save_random(tmp_path / "set/1.png", 8, 8)
    # Upright, it is 8 wide and 12 high.
    rotated = save_random(tmp_path / "set/2.png", 12, 8, orientation=6)
    patches = as_bytes(load_all(open_patches(tmp_path / "set"))["image"])
    np.testing.assert_array_equal(patches[0], whole)
    upright = np.rot90(rotated, -1)
    np.testing.assert_array_equal(patches[1:], [upright[:8], upright[4:]])


def test_patches_and_whole_images_have_different_fingerprints(tmp_path):
    save_random(tmp_path / "set/1.png", 8, 8)
    whole = open_source(f"folder:{tmp_path / 'set'}", "train", 8, 3)
    assert open_patches(tmp_path / "set").fingerprint != whole.fingerprint


def test_invalid_patches_are_errors(tmp_path):
    save_random(tmp_path / "set/1.png", 20, 7)
    with pytest.raises(ValueError, match=r"1\.png is 20x7, smaller than a patch of 8x8"):
        open_patches(tmp_path / "set")
    with pytest.raises(ValueError, match="resized or cut into patches"):
        open_patches(tmp_path / "set", resize=True)
    with pytest.raises(ValueError, match="digits is not a folder"):
        open_source("digits", "train", 8, 1, in_patches=True)
    Image.new("RGBA", (8, 8)).save(tmp_path / "set/1.png")
    with pytest.raises(ValueError, match="RGBA; expected RGB"):
        open_patches(tmp_path / "set")
