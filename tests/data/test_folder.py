"""Folders as people have them: odd files, mixed images, conventions of other tools, changes."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from kd_jax.data import open_source

Image = pytest.importorskip("PIL.Image")

SIZE = 16
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def save_png_16(path: Path, pixels: np.ndarray) -> None:
    """Saves `[H, W, 3]` uint16 as a PNG file, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def quarter_turn():
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the camera is at the right
    return exif


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[..., None] / 255.0
    return np.rint(colour * alpha + 255 * (1 - alpha))


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def mixed_folder(folder: Path) -> dict[str, tuple[np.ndarray, float]]:
    """Writes images of many kinds; their RGB pixels, and the tolerance, by name."""
    expected: dict[str, tuple[np.ndarray, float]] = {}
    folder.mkdir(parents=True)

    def add(name: str, pixels: np.ndarray, result: np.ndarray, atol: float = 0, **options) -> None:
        save(folder / name, pixels, **options)
        expected[name] = result, atol

    square = (SIZE, SIZE)
    for number in range(4):
        pixels = noise(*square, 3)
        add(f"plain{number}.png", pixels, pixels)
    pixels = noise(*square, 3)
    add("plain.bmp", pixels, pixels)
    add("plain.webp", pixels, pixels, lossless=True)
    add("plain.JPG", np.full((*square, 3), 77, np.uint8), np.full((*square, 3), 77), 2)
    add("exif.png", pixels, np.rot90(pixels, -1), exif=quarter_turn())
    # Other sizes; the centre square of the first three has the size already.
    wide = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    wide[:, SIZE : 2 * SIZE] = pixels
    add("wide.png", wide, pixels)
    add("tall.png", wide.transpose(1, 0, 2), pixels.transpose(1, 0, 2))
    add("tall.exif.png", wide, np.rot90(pixels, -1), exif=quarter_turn())
    large = np.full((3 * SIZE, 2 * SIZE, 3), [200, 100, 50], np.uint8)
    add("large.jpg", large, np.full((*square, 3), [200, 100, 50]), 2, quality=95)
    # Grey.
    grey = noise(*square)
    add("grey.png", grey, rgb(grey))
    add("grey.jpg", np.full(square, 99, np.uint8), np.full((*square, 3), 99), 2)
    bits = grey > 127
    Image.fromarray(bits).save(folder / "bits.png")
    expected["bits.png"] = rgb(bits * 255), 0
    # 16 bits.
    deep = RNG.integers(0, 2**16, square, np.uint16)
    deep[0, :4] = [0, 255, 256, 65535]
    scaled = np.rint(deep * (255 / 65535))
    add("deep.png", deep, rgb(scaled))
    add("deep.exif.png", deep, np.rot90(rgb(scaled), -1), exif=quarter_turn())
    key = np.where(deep == deep[3, 5], 0, 255)
    add("deep.key.png", deep, on_white(rgb(scaled), key), transparency=int(deep[3, 5]))
    colour = RNG.integers(0, 2**16, (*square, 3), np.uint16)
    save_png_16(folder / "deep.colour.png", colour)
    expected["deep.colour.png"] = colour / 257, 1
    # Transparency.
    alpha = noise(*square)
    alpha[0, :2] = 0, 255
    add("alpha.png", np.dstack([pixels, alpha]), on_white(pixels, alpha), 1)
    add(
        "alpha.webp",
        np.dstack([pixels, alpha]),
        on_white(pixels, alpha),
        1,
        lossless=True,
        exact=True,
    )
    add("alpha.grey.png", np.dstack([grey, alpha]), on_white(rgb(grey), alpha), 1)
    keyed = pixels.copy()
    keyed[2, 3] = 1, 2, 3
    mask = np.where((keyed == [1, 2, 3]).all(-1), 0, 255)
    add("key.png", keyed, on_white(keyed, mask), transparency=(1, 2, 3))
    # Palettes.
    colours, indices = noise(8, 3), RNG.integers(0, 8, square, np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette(colours.tobytes())
    palette.save(folder / "palette.png")
    expected["palette.png"] = colours[indices], 0
    opacity = noise(8)
    palette.save(folder / "palette.alpha.png", transparency=opacity.tobytes())
    expected["palette.alpha.png"] = on_white(colours[indices], opacity[indices]), 1
    # CMYK: each ink and black absorb a part of the light.
    inks = np.full((*square, 4), [200, 30, 90, 60], np.uint8)
    Image.fromarray(inks, "CMYK").save(folder / "cmyk.jpg", quality=95)
    rest = (255 - inks.astype(float)) / 255
    expected["cmyk.jpg"] = 255 * rest[..., :3] * rest[..., 3:], 3
    return expected


def add_clutter(folder: Path) -> None:
    """Adds files that are not images."""
    for name in ("notes.txt", "Thumbs.db", "README", "labels.csv", "clip.mp4"):
        (folder / name).write_text("not an image")
    for name in (".DS_Store", "._plain0.png", ".hidden/a.png", "__MACOSX/b.png", "docs/a/b.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not an image")


def add_damaged(folder: Path) -> None:
    save(folder / "x.cut.png", noise(SIZE, SIZE, 3))
    (folder / "x.cut.png").write_bytes((folder / "x.cut.png").read_bytes()[:20])
    (folder / "x.empty.jpg").write_bytes(b"")
    (folder / "x.text.png").write_text("not an image")


def open_folder(folder: Path, size: int = SIZE, channels: int = 3, **options):
    return open_source(f"folder:{folder}", "train", size, channels, **options)


def as_bytes(example) -> np.ndarray:
    return np.rint((example["image"] + 1) * 127.5)


def test_a_mixed_folder_is_converted(tmp_path):
    expected = mixed_folder(tmp_path / "photos")
    add_clutter(tmp_path / "photos")
    source = open_folder(tmp_path / "photos", resize=True)
    assert source.num_classes == 1
    assert len(source) == len(expected)
    for name, example in zip(sorted(expected), source, strict=True):
        pixels, atol = expected[name]
        np.testing.assert_allclose(as_bytes(example), pixels, rtol=0, atol=atol, err_msg=name)


def test_the_notes_count_all_that_was_left_out_or_changed(tmp_path):
    mixed_folder(tmp_path / "photos")
    add_clutter(tmp_path / "photos")
    add_damaged(tmp_path / "photos")
    source = open_folder(tmp_path / "photos", resize=True, skip_corrupt=True)
    notes = dict(note.split(": ", 1) for note in source.notes)
    assert notes == {
        "5 files are not png, jpg, webp, bmp or tiff images and were left out": (
            "README, Thumbs.db, clip.mp4, ..."
        ),
        "4 hidden entries were left out": ".DS_Store, ._plain0.png, .hidden, ...",
        "1 folder without images was left out": "docs",
        "4 images were resized": "large.jpg, ...",
        "6 images with transparency were composed on white": "alpha.grey.png, ...",
        "3 grey images were converted to RGB": "alpha.grey.png, ...",
        "1 black and white image was converted to RGB": "bits.png",
        "3 16-bit grey images were converted to RGB (scaled to 8 bits)": "deep.exif.png, ...",
        "1 CMYK image was converted to RGB": "cmyk.jpg",
        "1 image of 16 bits per channel was reduced to 8 bits (the high byte)": "deep.colour.png",
        "3 images that cannot be opened were left out": "x.cut.png, ...",
    }


def test_without_resizing_an_error_summarizes_all_images(tmp_path):
    mixed_folder(tmp_path / "photos")
    add_clutter(tmp_path / "photos")
    add_damaged(tmp_path / "photos")
    with pytest.raises(ValueError, match="photos") as error:
        open_folder(tmp_path / "photos")
    message = str(error.value)
    assert "\n" not in message
    # 8 plain ones, one palette and one of 16 bits fit.
    assert message.startswith(
        f"folder:{tmp_path / 'photos'}: 19 of 29 images do not fit 16x16 RGB: "
        "6 with transparency (alpha.grey.png), "
        "4 of other sizes (large.jpg is 32x48), "
    )
    for clause in (
        "3 grey (alpha.grey.png)",
        "3 16-bit grey (deep.exif.png)",
        "3 that cannot be opened (x.cut.png: ",
        "1 black and white (bits.png)",
        "1 CMYK (cmyk.jpg)",
        "resize=True (--config.data.resize=True",
        "background='white' (--config.data.background=white",
        "kd-jax evaluate --background white) composes those with transparency",
        "skip_corrupt=True (--config.run.skip_corrupt=True",
    ):
        assert clause in message
    # With resize=True, only the damaged files remain.
    with pytest.raises(
        ValueError, match=r": 3 of 29 images do not fit .*: 3 that .*; skip_"
    ) as error:
        open_folder(tmp_path / "photos", resize=True)
    assert "resize" not in str(error.value)


def test_a_mixed_folder_of_grey_and_of_transparent_images(tmp_path):
    pixels, alpha = noise(SIZE, SIZE), noise(SIZE, SIZE)
    save(tmp_path / "set/a.png", pixels)
    save(tmp_path / "set/b.png", np.dstack([pixels, alpha]))
    save(tmp_path / "set/c.png", pixels.astype(np.uint16) * 257)
    save(tmp_path / "set/d.png", np.dstack([pixels] * 3))
    grey = open_folder(tmp_path / "set", channels=1, resize=True)
    composed = on_white(pixels[..., None], alpha)
    for example, expected in zip(
        grey, [pixels[..., None], composed] + [pixels[..., None]] * 2, strict=True
    ):
        np.testing.assert_allclose(as_bytes(example), expected, rtol=0, atol=1)
    transparent = open_folder(tmp_path / "set", channels=4, resize=True)
    opaque = np.full((SIZE, SIZE), 255)
    for example, own in zip(transparent, [opaque, alpha, opaque, opaque], strict=True):
        np.testing.assert_array_equal(as_bytes(example), np.dstack([pixels] * 3 + [own]))
    assert any(
        "1 grey with alpha image was converted to RGBA" in note for note in transparent.notes
    )


def test_transparency_is_composed_before_resizing(tmp_path):
    """Hidden black pixels beside opaque white ones do not darken the border."""
    pixels = np.zeros((24, 24, 4), np.uint8)
    pixels[:, 11:] = 255
    save(tmp_path / "set/a.png", pixels)
    (example,) = open_folder(tmp_path / "set", resize=True)
    np.testing.assert_array_equal(example["image"], np.ones((SIZE, SIZE, 3)))


def test_values_of_unknown_range_are_an_error(tmp_path):
    Image.fromarray(np.ones((SIZE, SIZE), np.int32)).save(tmp_path / "a.png", "tiff")
    save(tmp_path / "b.png", noise(SIZE, SIZE + 1, 3))
    for options in ({}, {"resize": True}):
        with pytest.raises(
            ValueError, match=r"32-bit grey \(a\.png\).*; convert .* those 32-bit grey$"
        ):
            open_folder(tmp_path, **options)


def test_a_file_of_another_format_starts_no_program(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for EPS, whatever the file's name."""
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    save(tmp_path / "set/a.png", noise(SIZE, SIZE, 3))
    (tmp_path / "set/b.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match=r"b\.png: it is not an image"):
        open_folder(tmp_path / "set", resize=True)
    assert len(open_folder(tmp_path / "set", resize=True, skip_corrupt=True)) == 1
    assert not (tmp_path / "started").exists()


def test_an_unreadable_file_is_counted(tmp_path):
    save(tmp_path / "a.png", noise(SIZE, SIZE, 3))
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"1 of 2 .* \(b\.png: No such file or directory\)"):
        open_folder(tmp_path)


def test_classes_may_have_other_files(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        save(tmp_path / name, noise(SIZE, SIZE, 3))
    for name in ("labels.txt", "cat/Thumbs.db", "dog/.DS_Store", "dog/empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not an image")
    (tmp_path / ".git").mkdir()
    source = open_folder(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.read_labels().tolist() == [0, 1, 1]
    assert source.notes == (
        "2 files are not png, jpg, webp, bmp or tiff images and were left out: "
        "labels.txt, cat/Thumbs.db",
        "2 hidden entries were left out: .git, dog/.DS_Store",
        "1 folder without images was left out: dog/empty",
    )


# The folders of other tools.


def dataset_tool(folder: Path, labels: object = None, per_folder: int = 3, count: int = 6) -> None:
    for number in range(count):
        name = f"{number // per_folder:05d}/img{number:08d}.png"
        save(folder / name, np.full((SIZE, SIZE, 3), number, np.uint8))
    if labels is not None:
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def table(labels: list[object], per_folder: int = 3) -> list[list[object]]:
    return [[f"{i // per_folder:05d}/img{i:08d}.png", label] for i, label in enumerate(labels)]


def test_numbered_folders_are_one_set(tmp_path):
    dataset_tool(tmp_path / "set")
    source = open_folder(tmp_path / "set")
    assert (source.num_classes, source.classes) == (1, ())
    assert source.read_labels().tolist() == [0] * 6
    assert [as_bytes(example)[0, 0, 0] for example in source] == list(range(6))
    assert source.notes == (
        "2 numbered folders (00000, 00001) were read as one set, not as classes",
    )
    (tmp_path / "set/dataset.json").write_text('{"labels": null}')
    assert open_folder(tmp_path / "set").notes == source.notes
    assert open_folder(tmp_path / "set").fingerprint == source.fingerprint


def test_the_folders_of_ffhq_are_one_set(tmp_path):
    for name in ("00000/00000.png", "00000/00999.png", "01000/01000.png"):
        save(tmp_path / name, noise(SIZE, SIZE, 3))
    assert open_folder(tmp_path).num_classes == 1
    save(tmp_path / "01000/00001.png", noise(SIZE, SIZE, 3))
    assert open_folder(tmp_path).num_classes == 2


@pytest.mark.parametrize(
    "names",
    [
        ["00000/img0.png", "00001/img0.png"],  # each class counts from 0
        ["0/img00000000.png", "1/img00000001.png"],
        ["00000/img00000000.png", "cats/img00000001.png"],
        ["00000/img00000000.png", "000001/img00000001.png"],
        ["00000/00000_00000.png", "00001/00000_00001.png"],  # as the classes of GTSRB
    ],
)
def test_numbered_classes_remain_classes(tmp_path, names):
    for name in names:
        save(tmp_path / name, noise(SIZE, SIZE, 3))
    assert open_folder(tmp_path).read_labels().tolist() == [0, 1]


def test_the_labels_of_dataset_json(tmp_path):
    dataset_tool(tmp_path / "set", table([0, 3, 1, 0, 3, 1]))
    source = open_folder(tmp_path / "set")
    assert source.read_labels().tolist() == [0, 3, 1, 0, 3, 1]
    assert [int(example["label"]) for example in source] == [0, 3, 1, 0, 3, 1]
    assert (source.num_classes, source.classes) == (4, ())
    assert "the labels are those of dataset.json: 4 classes" in source.notes
    dataset_tool(tmp_path / "set", table([0, 3, 1, 0, 3, 2])[::-1])
    other = open_folder(tmp_path / "set")
    assert other.read_labels().tolist() == [0, 3, 1, 0, 3, 2]
    assert other.fingerprint != source.fingerprint
    # In a flat folder, too.
    save(tmp_path / "flat/a.png", noise(SIZE, SIZE, 3))
    save(tmp_path / "flat/b.png", noise(SIZE, SIZE, 3))
    (tmp_path / "flat/dataset.json").write_text('{"labels": [["b.png", 0], ["a.png", 1]]}')
    assert open_folder(tmp_path / "flat").read_labels().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"dataset\.json is not valid JSON"),
        ('{"labels": []}', r"dataset\.json: labels must be .*, not \[\]"),
        (json.dumps({"labels": table([0.5] * 6)}), r'not \["00000/img00000000\.png", 0\.5\]'),
        (json.dumps({"labels": table([True] * 6)}), "not .*true"),
        (json.dumps({"labels": table([-1] * 6)}), "not .*-1"),
        (json.dumps({"labels": table([0] * 4)}), r"no label for 2 of 6 images: 00001/img00000004"),
    ],
)
def test_invalid_labels_are_errors(tmp_path, text, message):
    dataset_tool(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        open_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_another_dataset_json_is_left_out(tmp_path):
    save(tmp_path / "cat/1.png", noise(SIZE, SIZE, 3))
    (tmp_path / "dataset.json").write_text('["a"]')
    source = open_folder(tmp_path)
    assert source.classes == ("cat",)
    assert "dataset.json" in source.notes[0]


# Fingerprints.


def test_an_edited_image_changes_the_fingerprint(tmp_path):
    """An edit at the end of a file, of the same size, name and time."""
    pixels = noise(64, 64, 3)
    save(tmp_path / "set/a.bmp", pixels)
    save(tmp_path / "set/b.bmp", noise(64, 64, 3))
    first = open_folder(tmp_path / "set", 64)
    status = (tmp_path / "set/a.bmp").stat()
    pixels[:2] = 0  # A BMP file begins with the lowest row.
    save(tmp_path / "set/a.bmp", pixels)
    os.utime(tmp_path / "set/a.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (tmp_path / "set/a.bmp").stat().st_size == status.st_size
    assert open_folder(tmp_path / "set", 64).fingerprint != first.fingerprint


def test_files_that_are_left_out_do_not_change_the_fingerprint(tmp_path):
    mixed_folder(tmp_path / "set")
    first = open_folder(tmp_path / "set", resize=True)
    add_clutter(tmp_path / "set")
    add_damaged(tmp_path / "set")
    again = open_folder(tmp_path / "set", resize=True, skip_corrupt=True)
    assert again.fingerprint == first.fingerprint
    assert len(again) == len(first)
