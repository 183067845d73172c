"""Files that are damaged, enormous, of another kind, or not files at all."""

import ast
import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from kd_jax.data import UnreadableError, files as data_files, images as data_images, open_source

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def open_folder(folder: Path, size: int = 8, channels: int = 3, **options):
    return open_source(f"folder:{folder}", "train", size, channels, **options)


@pytest.fixture
def folder(tmp_path):
    """A folder with one intact image."""
    path = tmp_path / "set"
    path.mkdir()
    (path / "a.png").write_bytes(encoded(noise(8, 8, 3), "png"))
    return path


def refused(folder: Path, **options) -> str:
    """The error for a folder with one file that cannot be opened, which `skip_corrupt` skips."""
    with pytest.raises(ValueError, match=r"1 that cannot be opened") as error:
        open_folder(folder, **options)
    assert "\n" not in str(error.value)
    source = open_folder(folder, skip_corrupt=True, **options)
    assert len(source) == 1
    assert any("1 image that cannot be opened was left out" in note for note in source.notes)
    return str(error.value)


# Images are opened in one place.


def calls(path: Path) -> list[ast.Call]:
    """The calls in a file that decode an image by its content."""
    result = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.endswith(("Image.open", "imread", "decode_image", "open_image_file")):
            result.append(node)
    return result


def test_image_files_are_opened_in_one_place_and_formats_are_limited():
    paths = [
        path
        for name in ("kd_jax", "experiments", "benchmarks")
        for path in sorted((ROOT / name).rglob("*.py"))
    ]
    opening = {path: calls(path) for path in paths if calls(path)}
    assert list(opening) == [ROOT / "kd_jax/data/images.py"]
    (call,) = opening[ROOT / "kd_jax/data/images.py"]
    assert "formats" in {keyword.arg for keyword in call.keywords}
    # Other formats of Pillow start programs (EPS), or follow names of files in them.
    assert set(data_images.FORMATS) <= {"PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"}


@pytest.mark.parametrize("kind", ["eps", "ppm", "tga", "ico", "pdf"])
def test_other_formats_are_refused_by_name(folder, kind):
    (folder / "b.png").write_bytes(encoded(noise(8, 8, 3), kind))
    assert "(b.png: it is not an image (PNG, " in refused(folder)


# Sizes.


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + encoded(noise(8, 8, 3), "png")[33:]
    )


def jpeg(width: int, height: int) -> bytes:
    data = encoded(noise(8, 8, 3), "jpeg")
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def bmp(width: int, height: int) -> bytes:
    data = encoded(noise(8, 8, 3), "bmp")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def gif(width: int, height: int) -> bytes:
    data = encoded(noise(8, 8), "gif")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def tiff(width: int, height: int) -> bytes:
    data = encoded(noise(8, 8, 3), "tiff")
    for tag, value in ((256, width), (257, height)):
        start = data.index(struct.pack("<HHI", tag, 4, 1))
        data = data[:start] + struct.pack("<HHII", tag, 4, 1, value) + data[start + 12 :]
    return data


def webp(width: int, height: int) -> bytes:
    data = encoded(noise(8, 8, 3), "webp", lossless=True)
    bits = int.from_bytes(data[21:25], "little") >> 28 << 28 | (height - 1) << 14 | (width - 1)
    return data[:21] + bits.to_bytes(4, "little") + data[25:]


BUILDERS = [png, jpeg, bmp, gif, tiff, webp]


@pytest.mark.parametrize("build", BUILDERS)
def test_enormous_images_are_refused_from_their_headers(folder, build, monkeypatch):
    (folder / "b.png").write_bytes(build(8, 8))
    large, enormous = build(8193, 8192), build(16_000, 16_000)
    assert open_folder(folder, resize=True)[1]["image"].shape == (8, 8, 3)

    def fail(*args):
        raise AssertionError("pixels are allocated")

    monkeypatch.setattr(Image.core, "new", fail)
    monkeypatch.setattr(Image.core, "fill", fail)
    (folder / "b.png").write_bytes(large)
    assert "b.png: it claims 8193x8192 pixels, and at most 67,108,864" in refused(folder)
    (folder / "b.png").write_bytes(enormous)
    assert "b.png: it claims " in refused(folder)


def test_the_limit_of_webp_is_applied_before_it_is_opened(monkeypatch):
    """Its decoder allocates all pixels."""
    monkeypatch.setattr(Image, "open", lambda *args, **_: pytest.fail("the decoder was created"))
    extended = b"VP8X" + bytes(8) + (8191).to_bytes(3, "little") + (8192).to_bytes(3, "little")
    lossy = b"VP8 " + bytes(10) + struct.pack("<HH", 8192, 8193)
    for chunk in (extended, lossy):
        with pytest.raises(UnreadableError, match=r"x cannot .*: it claims 8192x8193"):
            data_images.open_image(b"RIFF" + bytes(4) + b"WEBP" + chunk, "x")


def test_a_long_side_is_refused(folder):
    (folder / "b.png").write_bytes(png(65_536, 1))
    assert "it claims 65536x1 pixels" in refused(folder)


def test_a_jpeg_of_many_scans_is_refused(folder, monkeypatch):
    """Each scan of a few bytes visits all pixels."""
    data = encoded(noise(8, 8, 3), "jpeg", progressive=True)
    scans = data.count(b"\xff\xda")
    assert scans > 5
    monkeypatch.setattr(data_images, "MAX_SCANNED", scans * 64)
    (folder / "b.jpg").write_bytes(data)
    assert len(open_folder(folder)) == 2
    monkeypatch.setattr(data_images, "MAX_SCANNED", scans * 64 - 1)
    assert f"b.jpg: it has {scans} scans of 8x8 pixels" in refused(folder)


def test_a_file_of_many_bytes_is_not_read(folder):
    with (folder / "b.png").open("wb") as file:
        file.truncate(data_files.MAX_BYTES + 1)  # sparse
    assert "b.png: it has 536,870,913 bytes, and at most 536,870,912 are read" in refused(folder)


# Not files.


def test_pipes_and_devices_are_refused_without_waiting(folder):
    os.mkfifo(folder / "b.png")
    assert "b.png: it is a pipe" in refused(folder)
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to("/dev/zero")
    assert "b.png: it is a device" in refused(folder)
    (folder / "b.png").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "b.png"))
        assert "b.png: it is a socket" in refused(folder)
    (folder / "b.png").unlink()
    os.mkfifo(folder / "dataset.json")
    with pytest.raises(ValueError, match=r"dataset\.json cannot be opened: it is a pipe"):
        open_folder(folder)


def test_a_pipe_that_replaces_a_file_is_refused_without_waiting(folder, monkeypatch):
    """It is opened after it was checked by name."""
    os.mkfifo(folder / "b.png")
    with monkeypatch.context() as patch:
        patch.setattr(data_files.os, "stat", lambda path: os.lstat(folder / "a.png"))
        with pytest.raises(UnreadableError, match=r"b\.png cannot be opened: it is a pipe"):
            data_files.read_file(folder / "b.png")


def test_names_are_printed_in_one_line(folder):
    (folder / "b\nc: d\x1b[2J.png").write_bytes(b"text")
    (folder / os.fsdecode(b"\xff.txt")).write_bytes(b"")
    message = refused(folder)
    assert r"(b\nc: d\x1b[2J.png: it is not an image" in message
    notes = open_folder(folder, skip_corrupt=True).notes
    assert any(r"\udcff.txt" in note for note in notes)
    assert all(note.isprintable() for note in notes)


# Errors of decoders.

ERRORS = [
    OSError, SyntaxError, ValueError, TypeError, struct.error, zlib.error, MemoryError, EOFError,
    IndexError, KeyError, OverflowError, RecursionError, AttributeError, ZeroDivisionError,
    Image.DecompressionBombError, UnicodeDecodeError,
]  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_of_a_decoder_is_named_or_skipped(folder, monkeypatch, kind):
    (folder / "b.bmp").write_bytes(encoded(noise(8, 8, 3), "bmp"))
    arguments = ("utf-8", b"x", 0, 1, "reason\nmore") if kind is UnicodeDecodeError else ("a\nb",)
    error = kind(*arguments)

    def failing(method):
        def wrapped(image, *args, **options):
            if image.format == "BMP":
                raise error
            return method(image, *args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", failing(ImageFile.ImageFile.load))
        for options in ({}, {"resize": True}, {"in_patches": True}):
            source = open_folder(folder, **options)
            with pytest.raises(UnreadableError, match=r"/b\.bmp cannot be decoded: ") as caught:
                source[1]
            assert "\n" not in str(caught.value)
            lenient = open_folder(folder, skip_corrupt=True, **options)
            np.testing.assert_array_equal(lenient[1]["image"], lenient[0]["image"])
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.Image.getexif", failing(Image.Image.getexif))
        assert "(b.bmp: " in refused(folder, in_patches=True)
    read = Image.open

    def failing_open(file, formats):
        if file.getvalue().startswith(b"BM"):
            raise error
        return read(file, formats=formats)

    monkeypatch.setattr(Image, "open", failing_open)
    for options in ({}, {"resize": True}, {"in_patches": True}):
        assert "(b.bmp: " in refused(folder, **options)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff", "empty"])
@pytest.mark.parametrize("options", [{}, {"resize": True}, {"in_patches": True}])
def test_one_truncated_file_does_not_end_a_lenient_run(folder, kind, options):
    exif = Image.Exif()
    exif[0x0112] = 3
    extra = {"exif": exif} if kind in ("png", "jpeg", "webp") else {}
    data = b"" if kind == "empty" else encoded(noise(16, 16, 3), kind, **extra)
    size = 8 if options else 16
    (folder / "a.png").write_bytes(encoded(noise(16, 16, 3), "png"))
    (folder / "b.png").write_bytes(data[: len(data) * 3 // 4])
    lenient = open_folder(folder, size, skip_corrupt=True, **options)
    assert all(lenient[i]["image"].shape == (size, size, 3) for i in range(len(lenient)))
    pattern = r"\(b\.png: |/b\.png cannot be decoded: "  # on opening, or on reading
    with pytest.raises(ValueError, match=pattern):
        list(open_folder(folder, size, **options))


def test_metadata_behind_the_pixels_have_the_same_effect_on_opening_and_reading(tmp_path):
    """An orientation in an XMP packet behind the pixels, which Pillow reads with them."""
    pixels = noise(8, 12, 3)
    packet = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    chunk = b"iTXt" + packet
    data = encoded(pixels, "png")
    chunk = struct.pack(">I", len(packet)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    source = open_folder(tmp_path, in_patches=True)
    upright = np.rot90(pixels, -1)
    read = [np.rint((example["image"] + 1) * 127.5) for example in source]
    np.testing.assert_array_equal(read, [upright[:8], upright[4:]])


def test_a_damaged_second_frame_is_named(folder):
    pixels = Image.fromarray(noise(8, 8))
    file = io.BytesIO()
    pixels.save(file, "gif", save_all=True, append_images=[pixels.rotate(180)])
    data = file.getvalue()
    (folder / "b.png").write_bytes(data[: data.rindex(b"\x2c\0\0\0\0") + 9])
    assert "(b.png: " in refused(folder)


def test_a_file_that_changes_after_it_was_opened_is_unreadable(folder):
    source = open_folder(folder)
    (folder / "a.png").write_bytes(encoded(noise(8, 8, 3), "png"))
    with pytest.raises(UnreadableError, match=r"/a\.png has changed since"):
        source[0]


# Formats and colours.


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("webp", "png", "gif"):
        options = {"lossless": True} if kind == "webp" else {}
        frames[0].save(
            tmp_path / f"a.{kind}.png", kind, save_all=True, append_images=frames[1:], **options
        )
    with pytest.raises(ValueError, match=r"3 animated \(a\.gif\.png\)"):
        open_folder(tmp_path)
    source = open_folder(tmp_path, resize=True)
    assert "3 animated images were reduced to the first frame: a.gif.png, ..." in source.notes
    for example in source:
        np.testing.assert_array_equal(np.rint((example["image"] + 1) * 127.5), 10)


def test_tiff_files_are_read(tmp_path):
    pixels, grey = noise(8, 8, 3), RNG.integers(0, 2**16, (8, 8), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_lzw")
    Image.fromarray(pixels).save(tmp_path / "b.TIFF", exif=exif)
    Image.fromarray(grey).save(tmp_path / "c.tif")
    Image.fromarray(grey.byteswap().view(">u2")).save(tmp_path / "d.tif")
    source = open_folder(tmp_path, resize=True)
    read = [np.rint((example["image"] + 1) * 127.5) for example in source]
    scaled = np.repeat(np.rint(grey / 257)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read, [pixels, np.rot90(pixels, -1), scaled, scaled])
    assert "2 16-bit grey images were converted to RGB (scaled to 8 bits): c.tif, ..." in (
        source.notes
    )


def test_the_orientation_of_tiff_is_applied_once_to_patches(tmp_path):
    pixels = noise(8, 16, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.tif", exif=exif)
    source = open_folder(tmp_path, in_patches=True)
    upright = np.rot90(pixels, -1)
    read = [np.rint((example["image"] + 1) * 127.5) for example in source]
    np.testing.assert_array_equal(read, [upright[:8], upright[8:]])


def test_several_pages_and_unknown_ranges_are_refused_by_name(tmp_path):
    page = Image.fromarray(noise(8, 8, 3))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    page.save(tmp_path / "b.tif")
    grey = encoded(RNG.integers(0, 2**16, (8, 8), np.uint16), "tiff")
    start = grey.index(struct.pack("<HHIH", 262, 3, 1, 1))
    (tmp_path / "c.tif").write_bytes(grey[: start + 8] + b"\0" + grey[start + 9 :])
    start = grey.index(struct.pack("<HHIH", 258, 3, 1, 16))
    (tmp_path / "d.tif").write_bytes(grey[: start + 8] + b"\x0c" + grey[start + 9 :])
    with pytest.raises(ValueError, match="3 of 4 images do not fit") as error:
        open_folder(tmp_path, resize=True)
    for clause in (
        "1 with several pages (a.tif)",
        "1 inverted 16-bit grey (c.tif)",
        "1 12-bit grey (d.tif)",
    ):
        assert clause in str(error.value)


@pytest.mark.parametrize(
    ("background", "colour"), [("black", 0), ("#ff8000", [255, 128, 0]), (None, 255)]
)
def test_transparency_is_composed_on_the_background(tmp_path, background, colour):
    pixels, alpha = noise(8, 8, 3), noise(8, 8)
    alpha[0, :2] = 0, 255
    (tmp_path / "a.png").write_bytes(encoded(np.dstack([pixels, alpha]), "png"))
    options = {"resize": True} if background is None else {}
    source = open_folder(tmp_path, background=background, **options)
    share = alpha[..., None] / 255
    expected = pixels * share + np.asarray(colour) * (1 - share)
    read = np.rint((source[0]["image"] + 1) * 127.5)
    np.testing.assert_allclose(read, expected, rtol=0, atol=1)
    assert source.notes == (
        f"1 image with transparency was composed on {background or 'white'}: a.png",
    )


def test_the_background_is_part_of_the_fingerprint_and_must_be_a_colour(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(noise(8, 8, 3), "png"))

    def open_on(background, channels=3):
        return open_folder(tmp_path, 8, channels, background=background)

    prints = {open_on(b).fingerprint for b in (None, "white", "#ffffff", "black")}
    assert len(prints) == 3
    for value in ("whitish", "", "#11223344"):
        with pytest.raises(ValueError, match=f"background is '{value}'"):
            open_on(value)
    with pytest.raises(ValueError, match=r"background='black' is for .* with 4"):
        open_on("black", 4)
    with pytest.raises(ValueError, match=r"background='black' is for .* not for digits"):
        open_source("digits", "train", 8, 3, background="black")


def test_tfds_runs_no_program_for_a_name_or_a_file(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match="tfds:huggingface:mnist is not NAME"):
        open_source("tfds:huggingface:mnist", "train", 8, 3, tmp_path)
    (tmp_path / "own/1.0.0").mkdir(parents=True)
    (tmp_path / "own/1.0.0/features.json").write_text(
        '{"type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",'
        ' "content": {"features": {"image": {"pythonClassName": "antigravity.Image"}}}}'
    )
    with pytest.raises(ValueError, match=r"features\.json names antigravity\.Image"):
        open_source("tfds:own", "train", 8, 3, tmp_path)
