"""Patches of large images: their places, pixels and labels."""

import struct
import zlib

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
    with pytest.raises(ValueError, match=r"patches of 8x8 RGB: 1 smaller .* \(1\.png is 20x7\)"):
        open_patches(tmp_path / "set")
    with pytest.raises(ValueError, match="resized or cut into patches"):
        open_patches(tmp_path / "set", resize=True)
    with pytest.raises(ValueError, match="digits is not a folder"):
        open_source("digits", "train", 8, 1, in_patches=True)


def test_patches_are_converted_as_by_resizing(tmp_path):
    save_random(tmp_path / "set/1.png", 16, 8)
    pixels = RNG.integers(0, 256, (8, 16), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "set/2.png")
    half = np.dstack([pixels] * 3 + [np.repeat([[0, 255]], 8, axis=1) * np.ones((8, 1))])
    Image.fromarray(half.astype(np.uint8)).save(tmp_path / "set/3.png")
    source = open_patches(tmp_path / "set")
    patches = as_bytes(load_all(source)["image"])
    grey = np.repeat(pixels[..., None], 3, axis=-1)
    np.testing.assert_array_equal(patches[2:4], [grey[:, :8], grey[:, 8:]])
    np.testing.assert_array_equal(patches[4:], [np.full((8, 8, 3), 255), grey[:, 8:]])
    assert len(source.notes) == 2


def insert_exif_after_pixels(path, orientation):
    """Inserts an eXIf chunk before IEND, as exiftool does."""
    tiff = struct.pack("<2sHIHHHII", b"II", 42, 8, 1, 0x0112, 3, 1, orientation) + bytes(4)
    chunk = b"eXIf" + tiff
    data = path.read_bytes()
    crc = struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:-12] + struct.pack(">I", len(tiff)) + chunk + crc + data[-12:])


def test_an_orientation_after_the_pixels_is_applied(tmp_path):
    pixels = save_random(tmp_path / "set/1.png", 12, 8)
    insert_exif_after_pixels(tmp_path / "set/1.png", 6)
    patches = as_bytes(load_all(open_patches(tmp_path / "set"))["image"])
    upright = np.rot90(pixels, -1)
    np.testing.assert_array_equal(patches, [upright[:8], upright[4:]])


@pytest.mark.parametrize("exif", [False, True])
def test_a_truncated_image_is_named(tmp_path, exif):
    save_random(tmp_path / "set/1.png", 16, 16)
    path = tmp_path / "set/2.png"
    save_random(path, 16, 16)
    data = path.read_bytes()
    path.write_bytes(data[:500] + (b"eXIf" if exif else b""))
    if exif:  # The pixels would have to be read to find its orientation.
        with pytest.raises(ValueError, match=r"that cannot be opened \(2\.png: "):
            open_patches(tmp_path / "set")
        assert len(open_patches(tmp_path / "set", skip_corrupt=True)) == 4
        return
    source = open_patches(tmp_path / "set")
    with pytest.raises(ValueError, match=r"2\.png cannot be decoded: "):
        source[4]


def test_a_patch_outside_of_a_replaced_image_is_an_error(tmp_path):
    save_random(tmp_path / "set/1.png", 16, 16)
    source = open_patches(tmp_path / "set")
    save_random(tmp_path / "set/1.png", 16, 8)
    with pytest.raises(ValueError, match=r"1\.png has changed"):
        source[3]
