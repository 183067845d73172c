"""Sources: pixels, labels, order and errors."""

import importlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kd_jax.data import (
    Source,
    check_same_classes,
    load_all,
    open_source,
    overlap,
    prepared as prepared_data,
    source,
    strided,
    subset,
)

tfds = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")
datasets = pytest.importorskip("sklearn.datasets")

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    open_source("digits", "train", 8, 1, folder)
    return folder


def run(code: str) -> subprocess.Popen:
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def save(path: Path, pixels, mode="RGB", **options) -> Path:
    """Saves rows of pixels, or 8x8 pixels of one colour."""
    if isinstance(pixels, int | tuple):
        pixels = [[pixels] * 8] * 8
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(pixels, np.uint8)).convert(mode).save(path, **options)
    return path


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_importing_the_module_imports_no_heavy_packages():
    process = run("""
        import sys, kd_jax.data
        heavy = {"tensorflow", "tensorflow_datasets", "grain", "sklearn", "PIL"}
        print(sorted(heavy & set(sys.modules)))
    """)
    out, err = process.communicate(timeout=120)
    assert out == "[]\n", err


# Digits.


def test_digits_equal_those_of_scikit_learn(cache):
    reference = datasets.load_digits()
    digits = load_all(open_source("digits", "train", 8, 1, cache))
    assert digits["image"].dtype == np.float32
    assert digits["label"].dtype == np.int32
    assert digits["image"].shape == (1797, 8, 8, 1)
    np.testing.assert_array_equal(np.rint((digits["image"][..., 0] + 1) * 8), reference.images)
    np.testing.assert_array_equal(digits["label"], reference.target)


def test_the_attributes_of_digits(cache):
    digits = open_source("digits", "train", 16, 3, cache)
    assert (len(digits), digits.image_shape, digits.num_classes) == (1797, (16, 16, 3), 10)
    assert digits.name == "digits train"
    assert digits.in_memory
    assert len(digits.fingerprint) == 16


def test_the_fingerprints_of_digits_are_those_in_existing_checkpoints(cache):
    sets = {(8, 1): "9255d216c7ed3a23", (16, 1): "9e99fa5f57a3eccd", (16, 3): "76dd5f7dcc33e389"}
    for shape, fingerprint in sets.items():
        assert open_source("digits", "train", *shape, cache).fingerprint == fingerprint


def test_digits_are_enlarged_upright_and_fill_the_range(cache):
    reference = datasets.load_digits().images
    large = load_all(open_source("digits", "train", 32, 1, cache))["image"][..., 0]
    assert large.min() == -1
    assert large.max() == 1
    blocks = large.reshape(1797, 8, 4, 8, 4).mean(axis=(2, 4))
    assert np.corrcoef(blocks.ravel(), reference.ravel())[0, 1] > 0.98
    # Bicubic: smooth; nearest neighbour would repeat each row four times.
    assert not np.array_equal(large[:, 0::4], large[:, 1::4])


def test_grey_digits_are_converted_to_colour(cache):
    grey = open_source("digits", "train[:5]", 8, 1, cache)
    colour = open_source("digits", "train[:5]", 8, 3, cache)
    for one, three in zip(grey, colour, strict=True):
        np.testing.assert_array_equal(np.repeat(one["image"], 3, axis=-1), three["image"])


def test_splits_have_the_syntax_of_tfds(cache):
    labels = datasets.load_digits().target
    part = open_source("digits", "train[100:110]", 8, 1, cache)
    np.testing.assert_array_equal(load_all(part)["label"], labels[100:110])
    np.testing.assert_array_equal(part.read_labels(), labels[100:110])
    with pytest.raises(ValueError, match=r"digits/1\.0\.0: Unknown split 'test'.*train") as error:
        open_source("digits", "test", 8, 1, cache)
    one_line(error)
    with pytest.raises(ValueError, match=r"no images in split 'train\[5:5\]'"):
        open_source("digits", "train[5:5]", 8, 1, cache)


def test_digits_cannot_be_downsampled(cache):
    with pytest.raises(ValueError, match="size is 4: the digits are 8x8"):
        open_source("digits", "train", 4, 1, cache)


def test_the_cache_is_written_once_and_is_an_ordinary_tfds_dataset(cache, monkeypatch):
    from kd_jax.data import digits

    monkeypatch.setattr(digits.Digits, "download_and_prepare", lambda _: 1 / 0)
    files = sorted(f for f in cache.rglob("*") if f.is_file())
    before = [f.stat().st_mtime_ns for f in files]
    open_source("digits", "train", 16, 1, cache)
    assert sorted(f for f in cache.rglob("*") if f.is_file()) == files
    assert [f.stat().st_mtime_ns for f in files] == before
    info = tfds.builder("digits", data_dir=cache).info
    assert info.splits["train"].num_examples == 1797
    assert info.file_format is tfds.core.FileFormat.ARRAY_RECORD
    assert [entry.name for entry in cache.iterdir()] == ["digits"]


def test_the_module_can_be_reloaded():
    from kd_jax.data import digits

    importlib.reload(digits)


def test_two_processes_can_write_the_cache_concurrently_without_tensorflow(tmp_path):
    code = f"""
        import sys
        from pathlib import Path
        from kd_jax.data import load_all, batches, open_source
        digits = open_source("digits", "train", 8, 1, Path({str(tmp_path)!r}))
        next(batches(digits, 4, 0))
        images = load_all(digits)["image"]
        print(((images + 1) * 8).round().sum(dtype="float64"), digits.fingerprint)
        print("tensorflow" in sys.modules)
    """
    processes = [run(code), run(code)]
    outputs = [process.communicate(timeout=120) for process in processes]
    (first, error), (second, _) = outputs
    assert first == second, outputs
    assert first.endswith("\nFalse\n")
    assert float(first.split()[0]) == datasets.load_digits().images.sum(), error
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


def test_losing_the_race_for_the_cache_is_not_an_error(tmp_path, monkeypatch):
    rename = os.rename

    def rename_late(old, new):
        if Path(new) == tmp_path / "digits" / "1.0.0":
            shutil.copytree(old, new)
        rename(old, new)

    monkeypatch.setattr(os, "rename", rename_late)
    assert len(open_source("digits", "train", 8, 1, tmp_path)) == 1797
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


def test_an_interrupted_write_leaves_no_files(tmp_path, monkeypatch):
    from kd_jax.data import digits, embedded

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            embedded.prepare(digits.Digits, tmp_path)
    assert [f for f in tmp_path.rglob("*") if f.is_file() or f.name.startswith(".")] == []
    assert len(open_source("digits", "train", 8, 1, tmp_path)) == 1797


def test_prepare_leaves_the_temporary_folder_empty(tmp_path, monkeypatch):
    from kd_jax.data import digits, embedded

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    embedded.prepare(digits.Digits, tmp_path / "cache")
    assert list(temporary.iterdir()) == []


# TFDS.


class Unlabelled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(2), "test": self._generate_examples(-1)}

    def _generate_examples(self, label):
        png = io.BytesIO()
        Image.new("L", (8, 8)).save(png, "png")
        yield 0, {"image": io.BytesIO(png.getvalue()), "label": label}


class Plain(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    first = RED

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(None, None, 3)), "caption": tfds.features.Text()}
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for i, (width, colour) in enumerate([(8, self.first), (8, GREEN), (12, BLUE)]):
            png = io.BytesIO()
            Image.new("RGB", (width, 8), colour).save(png, "png")
            yield i, {"image": io.BytesIO(png.getvalue()), "caption": "none"}


def prepare(builder, folder: Path, file_format: str = "array_record") -> None:
    tfds.disable_progress_bar()
    builder(data_dir=folder, file_format=file_format).download_and_prepare()


def test_a_prepared_dataset(cache):
    prepared = open_source("tfds:digits", "train", 8, 1, cache)
    assert prepared.name == "tfds:digits/1.0.0 train"
    assert prepared.num_classes == 10
    np.testing.assert_array_equal(prepared.read_labels(), datasets.load_digits().target)


def test_a_prepared_dataset_without_labels_and_of_several_sizes(tmp_path):
    prepare(Plain, tmp_path)
    plain = open_source("tfds:plain", "test", 8, 3, tmp_path)
    assert (len(plain), plain.num_classes) == (3, 1)
    np.testing.assert_array_equal(plain[1]["image"][0, 0], [-1, 1, -1])
    assert plain[1]["label"] == 0
    with pytest.raises(
        ValueError, match=r"plain/1\.0\.0 test\[2\] is 12x8 RGB; expected 8x8"
    ) as error:
        plain[2]
    one_line(error)
    resized = open_source("tfds:plain", "test", 8, 3, tmp_path, resize=True)
    np.testing.assert_array_equal(resized[2]["image"][7, 7], [-1, -1, 1])
    assert resized.fingerprint != plain.fingerprint


@pytest.mark.parametrize("limit", [2**30, 0], ids=["whole", "in samples"])
def test_a_dataset_that_is_prepared_again_with_other_images_is_another(
    tmp_path, monkeypatch, limit
):
    monkeypatch.setattr(prepared_data, "HASHED_WHOLE", limit)

    def fingerprint(folder, colour):
        monkeypatch.setattr(Plain, "first", colour)
        prepare(Plain, tmp_path / folder)
        return open_source("tfds:plain", "test", 8, 3, tmp_path / folder).fingerprint

    assert fingerprint("one", RED) == fingerprint("copy", RED) != fingerprint("other", GREEN)


def test_blocks_of_large_files_are_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_data, "HASHED_WHOLE", 100)
    monkeypatch.setattr(prepared_data, "_BLOCK", 10)
    monkeypatch.setattr(prepared_data, "_BLOCKS", 4)
    path = tmp_path / "file"

    def hashes(position):
        content = bytearray(500)
        content[position] = 1
        path.write_bytes(content)
        return tuple(prepared_data.hash_files([path]))

    # Blocks at 0, 163, 326 and 490; between them, only a change of size is noticed.
    assert len({hashes(position) for position in (0, 9, 163, 172, 326, 490, 499)}) == 7
    assert hashes(100) == hashes(300)
    path.write_bytes(bytes(501))
    assert tuple(prepared_data.hash_files([path])) != hashes(100)


def test_a_split_with_hidden_labels_is_an_error(tmp_path):
    prepare(Unlabelled, tmp_path)
    assert open_source("tfds:unlabelled", "train", 8, 1, tmp_path)[0]["label"] == 2
    with pytest.raises(ValueError, match=r"test\[0\] has label -1: test has no labels"):
        open_source("tfds:unlabelled", "test", 8, 1, tmp_path)


@pytest.mark.parametrize(
    ("key", "feature", "value"),
    [
        ("caption", tfds.features.Text(), "none"),
        ("image", tfds.features.Text(), "none"),
        ("image", tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16), io.BytesIO(b"?")),
    ],
)
def test_a_dataset_without_8_bit_images_is_an_error(tmp_path, key, feature, value):
    features = tfds.features.FeaturesDict({key: feature})

    class Other(Plain, skip_registration=True):
        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _generate_examples(self):
            yield 0, {key: value}

    prepare(Other, tmp_path)
    with pytest.raises(ValueError, match=f"no 8-bit feature 'image'; it has {key}") as error:
        open_source("tfds:other", "test", 8, 1, tmp_path)
    one_line(error)


def test_a_format_that_loses_rows_is_an_error(tmp_path):
    prepare(Plain, tmp_path, "parquet")
    with pytest.raises(ValueError, match=r"is parquet, .* file_format='array_record'") as error:
        open_source("tfds:plain", "test", 8, 3, tmp_path)
    one_line(error)


def test_a_wrong_size_is_an_error_on_opening(cache):
    with pytest.raises(
        ValueError, match=r"train\[0\] is 8x8 grey; expected 16x16 RGB .*evaluate --resize\)"
    ):
        open_source("tfds:digits", "train", 16, 3, cache)


def test_the_error_for_an_unprepared_dataset_has_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mnist.* is not prepared .*array_record") as error:
        open_source("tfds:mnist", "train", 28, 1, tmp_path)
    message = one_line(error)
    command = message[message.index("tfds.builder(") : message.index(".download_and_prepare")]
    assert eval(command).info.full_name == "mnist/3.0.1"  # The command is valid.
    assert str(tmp_path) in command


def test_an_unknown_dataset_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no dataset 'mnst'; did you mean mnist") as error:
        open_source("tfds:mnst", "train", 28, 1, tmp_path)
    one_line(error)


def test_a_damaged_record_is_an_error(cache, tmp_path):
    shutil.copytree(cache, tmp_path / "cache")
    (records,) = (tmp_path / "cache").rglob("*.array_record-*")
    damaged = bytearray(records.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(64)
    records.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"digits/1\.0\.0 train.* cannot be ") as error:
        load_all(open_source("digits", "train", 8, 1, tmp_path / "cache"))
    one_line(error)


# Folders.


def test_a_flat_folder_is_one_class_ordered_by_name(tmp_path):
    save(tmp_path / "b.png", GREEN)
    save(tmp_path / "a.PNG", RED)
    save(tmp_path / "c.bmp", BLUE)
    (tmp_path / ".DS_Store").write_bytes(b"not an image")
    images = open_source(f"folder:{tmp_path}", "train", 8, 3)
    assert (len(images), images.num_classes, images.image_shape) == (3, 1, (8, 8, 3))
    assert [list(x["image"][4, 4]) for x in images] == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    assert [int(x["label"]) for x in images] == [0, 0, 0]


def test_sub_folders_are_classes_ordered_by_name(tmp_path):
    save(tmp_path / "dog" / "1.png", 51, "L")
    save(tmp_path / "cat" / "2.png", 0, "L")
    save(tmp_path / "cat" / "1.png", 255, "L")
    images = open_source(f"folder:{tmp_path}", "train", 8, 1)
    assert images.num_classes == 2
    examples = [(float(x["image"][0, 0, 0]), int(x["label"])) for x in images]
    assert examples == [(1.0, 0), (-1.0, 0), (pytest.approx(-0.6), 1)]
    assert images.read_labels().tolist() == [0, 0, 1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp"])
def test_file_formats(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    save(tmp_path / f"a.{suffix}", (200, 100, 50), **options)
    image = open_source(f"folder:{tmp_path}", "train", 8, 3)[0]["image"]
    np.testing.assert_allclose((image + 1) * 127.5, np.full((8, 8, 3), [200, 100, 50]), atol=3)


def test_rows_and_columns_are_not_swapped(tmp_path):
    rows = [[10 * y + x for x in range(8)] for y in range(8)]
    save(tmp_path / "a.png", rows, "L")
    image = open_source(f"folder:{tmp_path}", "train", 8, 1)[0]["image"]
    np.testing.assert_array_equal(np.rint((image[..., 0] + 1) * 127.5), rows)


def test_the_exif_orientation_is_applied(tmp_path):
    quarter_turn = Image.Exif()
    quarter_turn[0x0112] = 6  # The top of the camera is at the right.
    rows = [[RED] * 8] * 4 + [[BLUE] * 8] * 4
    save(tmp_path / "a.png", rows, exif=quarter_turn)
    image = open_source(f"folder:{tmp_path}", "train", 8, 3)[0]["image"]
    np.testing.assert_array_equal(image[0, 0], [-1, -1, 1])
    np.testing.assert_array_equal(image[0, 7], [1, -1, -1])


def two_sizes(folder):
    save(folder / "a.png", RED)
    save(folder / "b.png", [[RED] * 9] * 8)


INVALID = {
    "empty": (lambda f: f.mkdir(), FileNotFoundError, "set is empty"),
    "only hidden": (lambda f: save(f / ".a.png", RED), FileNotFoundError, "set is empty"),
    "empty class": (
        lambda f: (save(f / "cat" / "a.png", RED), (f / "dog").mkdir()),
        FileNotFoundError,
        "set: 1 of 2 sub-folders without png, .* images: dog$",
    ),
    "a file": (lambda f: f.write_text("?"), FileNotFoundError, "there is no folder .*set"),
    "nothing": (lambda f: None, FileNotFoundError, "there is no folder .*set"),
    "next to sub-folders": (
        lambda f: (save(f / "cat" / "a.png", RED), save(f / "b.png", RED)),
        ValueError,
        r"set has images \(b\.png\) next to sub-folders with images \(cat\)",
    ),
    "too deep": (lambda f: save(f / "x" / "y" / "a.png", RED), ValueError, r"set: .* \(x/y\)"),
    "only text": (
        lambda f: (f.mkdir(), (f / "notes.txt").write_text("?")),
        FileNotFoundError,
        r"set is empty: .* \(others: notes\.txt\)",
    ),
    "not a png": (
        lambda f: (save(f / "a.png", RED), (f / "b.png").write_text("?")),
        ValueError,
        r"set: 1 of 2 .* does not fit .* \(b\.png: it is not an image \(PNG.*\)\); skip_corrupt=",
    ),
    "size": (
        two_sizes,
        ValueError,
        r"set: 1 of 2 images does not fit 8x8 RGB: 1 .* \(b\.png is 9x8\); resize=True \(--config",
    ),
    "height": (
        lambda f: save(f / "a.png", [[RED] * 8] * 9),
        ValueError,
        r"1 of other sizes \(a\.png is 8x9\)",
    ),
    "grey": (
        lambda f: save(f / "a.png", 7, "L"),
        ValueError,
        r"8x8 RGB: 1 grey \(a\.png\); resize=True",
    ),
    "alpha": (
        lambda f: save(f / "a.png", RED, "RGBA"),
        ValueError,
        r"8x8 RGB: 1 with transparency \(a\.png\); resize=True",
    ),
    "transparent": (
        lambda f: save(f / "a.png", RED, "P", transparency=0),
        ValueError,
        r"8x8 RGB: 1 with transparency \(a\.png\); resize=True",
    ),
    "16 bits": (
        lambda f: (f.mkdir(), Image.fromarray(np.ones((8, 8), np.uint16)).save(f / "a.png")),
        ValueError,
        r"8x8 RGB: 1 16-bit grey \(a\.png\); resize=True",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_folders_are_errors_on_opening(tmp_path, case):
    make, kind, message = INVALID[case]
    make(tmp_path / "set")
    with pytest.raises(kind, match=message) as error:
        open_source(f"folder:{tmp_path / 'set'}", "train", 8, 3)
    one_line(error)


def test_the_error_for_large_images_suggests_patches(tmp_path):
    save(tmp_path / "large/a.png", [[RED] * 20] * 9)
    with pytest.raises(ValueError, match=r"resize=True .*; in_patches=True"):
        open_source(f"folder:{tmp_path / 'large'}", "train", 8, 3)
    save(tmp_path / "small/a.png", [[RED] * 20] * 7)
    with pytest.raises(ValueError, match=r"; resize=True [^;]*; kd-jax evaluate[^;]*$"):
        open_source(f"folder:{tmp_path / 'small'}", "train", 8, 3)


def test_overlapping_sets_are_detected(tmp_path):
    def digits(split):
        return open_source("digits", split, 8, 1, tmp_path / "tfds")

    whole, first, last = digits("train"), digits("train[:60%]"), digits("train[60%:]")
    assert not overlap(first, last)
    few, most = digits("train[:100]"), digits("train[59%:]")
    for one, other in ((first, few), (last, whole), (first, most)):
        assert overlap(one, other)
        assert overlap(other, one)
    assert overlap(subset(first, count=5, seed=0), first)
    save(tmp_path / "a/1.png", RED)
    save(tmp_path / "b/2.png", RED)
    a, again, b = (open_source(f"folder:{tmp_path}/{x}", "train", 8, 3) for x in ("a", "./a", "b"))
    assert overlap(a, again)
    assert not overlap(a, b)
    assert not overlap(a, first)


def test_classes_are_named_after_the_sub_folders(tmp_path):
    for name in ("one/a", "one/b", "two/b", "two/c", "three/a", "three/b"):
        save(tmp_path / name / "1.png", RED)
    one, two, three = (
        open_source(f"folder:{tmp_path}/{name}", "train", 8, 3) for name in ("one", "two", "three")
    )
    check_same_classes(one, three)
    with pytest.raises(ValueError, match="class 0 is 'a' in folder:one and 'b' in folder:two"):
        check_same_classes(one, two)


def test_alpha_is_read_with_4_channels(tmp_path):
    save(tmp_path / "a.png", (255, 0, 0, 0), "RGBA")
    image = open_source(f"folder:{tmp_path}", "train", 8, 4)[0]["image"]
    np.testing.assert_array_equal(image[3, 3], [1, -1, -1, -1])


def test_a_folder_has_only_train(tmp_path):
    save(tmp_path / "a.png", RED)
    with pytest.raises(ValueError, match="no split 'test', only train"):
        open_source(f"folder:{tmp_path}", "test", 8, 3)


def test_resizing_crops_the_centre_square(tmp_path):
    save(tmp_path / "wide.png", [[RED] * 8 + [GREEN] * 16 + [BLUE] * 8] * 16)
    save(tmp_path / "tall.png", [[RED] * 16] * 8 + [[GREEN] * 16] * 16 + [[BLUE] * 16] * 8)
    for image in open_source(f"folder:{tmp_path}", "train", 8, 3, resize=True):
        np.testing.assert_array_equal(image["image"], np.full((8, 8, 3), [-1, 1, -1]))


def test_resizing_is_antialiased(tmp_path):
    board = 255 * (np.indices((64, 64)).sum(axis=0) % 2)
    save(tmp_path / "a.png", board, "L")
    image = open_source(f"folder:{tmp_path}", "train", 8, 1, resize=True)[0]["image"]
    assert np.abs(image).max() < 0.05


def test_resizing_converts_grey_to_colour_and_back(tmp_path):
    save(tmp_path / "grey" / "a.png", 51, "L")
    save(tmp_path / "red" / "a.png", RED)
    colour = open_source(f"folder:{tmp_path / 'grey'}", "train", 8, 3, resize=True)[0]["image"]
    np.testing.assert_allclose(colour, np.full((8, 8, 3), -0.6), atol=1e-6)
    grey = open_source(f"folder:{tmp_path / 'red'}", "train", 8, 1, resize=True)[0]["image"]
    np.testing.assert_allclose((grey + 1) / 2, np.full((8, 8, 1), 0.299), atol=4e-3)  # BT.601.


def test_a_truncated_image_is_an_error_on_reading(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    path = save(tmp_path / "b.png", noise)
    save(tmp_path / "a.png", noise)
    path.write_bytes(path.read_bytes()[:1500])
    images = open_source(f"folder:{tmp_path}", "train", 32, 3)
    images[0]
    with pytest.raises(ValueError, match=r"b\.png cannot be decoded: ") as error:
        images[1]
    one_line(error)


def test_other_exceptions_of_decoders_become_one_line(tmp_path, monkeypatch):
    def fail(image, **_):  # As Pillow does, once in some thousand damaged JPEG files.
        raise struct.error("required argument is not an integer\nand more")

    save(tmp_path / "a.png", RED)
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    images = open_source(f"folder:{tmp_path}", "train", 8, 3)
    with pytest.raises(ValueError, match=r"a\.png cannot be decoded: required .* an integer$"):
        images[0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_random_damage_results_in_an_image_or_one_line(tmp_path, suffix):
    from kd_jax.data.images import decode, open_image

    rng = np.random.default_rng(0)
    path = save(tmp_path / f"a.{suffix}", rng.integers(0, 256, (32, 32, 3)))
    whole, messages = path.read_bytes(), []
    for _ in range(200):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.5 else whole)
        data[rng.integers(len(data))] = rng.integers(256)
        try:
            pixels = decode(open_image(bytes(data), "a"), "a", 32, 3, False)
            assert pixels.shape == (32, 32, 3)  # Not all damage is detected.
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(m.startswith("a ") and "\n" not in m for m in messages)


def test_the_fingerprint_of_a_folder_depends_on_its_content(tmp_path):
    def fingerprint(folder, **options):
        return open_source(f"folder:{folder}", "train", 8, 3, **options).fingerprint

    save(tmp_path / "set" / "a.bmp", RED)
    save(tmp_path / "set" / "b.bmp", GREEN)
    first = fingerprint(tmp_path / "set")
    shutil.copytree(tmp_path / "set", tmp_path / "elsewhere" / "set")
    assert fingerprint(tmp_path / "elsewhere" / "set") == first
    others = {fingerprint(tmp_path / "set", resize=True)}
    save(tmp_path / "set" / "b.bmp", BLUE)  # The same number of bytes.
    others.add(fingerprint(tmp_path / "set"))
    (tmp_path / "set" / "b.bmp").rename(tmp_path / "set" / "c.bmp")
    others.add(fingerprint(tmp_path / "set"))
    assert len(others | {first}) == 4


# Any source.


@pytest.mark.parametrize("spec", ["digit", "tfds", "folder:", "mnist", "data/photos"])
def test_an_unknown_kind_is_an_error(spec):
    expected = f"unknown data '{spec}': did you mean digits, photos, folder:PATH or tfds:NAME?"
    with pytest.raises(ValueError, match=expected.replace("?", r"\?")):
        open_source(spec, "train", 8, 1)


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [(8, 2, "channels is 2: an image has"), (0, 3, "size is 0: it is the height")],
)
def test_invalid_sizes_and_channels_are_errors(size, channels, message):
    with pytest.raises(ValueError, match=message):
        open_source("digits", "train", size, channels)


def make_source(labels, shape=(2, 2, 1)) -> tuple[Source, list[int]]:
    """A source whose image i is constant i, and the list of the indices read from it."""
    reads: list[int] = []

    def read(i):
        reads.append(i)
        return np.full(shape, i, np.uint8), labels[i]

    count = max(labels) + 1
    return Source(
        "made", shape, count, "0" * 16, len(labels), read, lambda: np.array(labels, np.int32)
    ), reads


def numbers(images: Source) -> list[int]:
    return [int(np.rint((x["image"][0, 0, 0] + 1) * 127.5)) for x in images]


def test_a_source_is_a_sequence():
    images, _ = make_source([0, 1, 2])
    assert len(images) == 3
    assert numbers(images) == [0, 1, 2]
    assert images[-1]["label"] == 2
    assert images[0]["label"].dtype == np.int32
    assert images[0]["image"].dtype == np.float32
    with pytest.raises(IndexError):
        images[3]
    assert repr(images) == "<made: 3 images 2x2x1, 3 classes>"


def test_small_sources_are_cached_and_large_ones_are_not(monkeypatch):
    images, reads = make_source([0] * 4)
    cached = source.cache_in_memory(images)
    assert [numbers(cached), numbers(cached)] == [[0, 1, 2, 3]] * 2
    assert cached.in_memory
    assert reads == [0, 1, 2, 3]
    monkeypatch.setattr(source, "IN_MEMORY_BYTES", 15)  # Four images are 16.
    large = source.cache_in_memory(images)
    assert [numbers(large), numbers(large)] == [[0, 1, 2, 3]] * 2
    assert not large.in_memory
    assert reads == [0, 1, 2, 3] * 3
    assert source.cache_in_memory(subset(images, count=3, seed=0)).in_memory


def test_a_subset_of_the_digits_is_stratified(cache):
    digits = open_source("digits", "train", 8, 1, cache)
    few = subset(digits, fraction=0.05, seed=0)
    assert len(few) == 90
    assert Counter(few.read_labels().tolist()) == dict.fromkeys(range(10), 9)
    assert few.read_labels().tolist() == load_all(few)["label"].tolist()
    assert (few.image_shape, few.num_classes) == (digits.image_shape, 10)


def test_a_subset_preserves_the_proportions_of_classes():
    images, _ = make_source([0] * 60 + [1] * 30 + [2] * 10)
    assert Counter(subset(images, count=20, seed=1).read_labels().tolist()) == {0: 12, 1: 6, 2: 2}
    assert Counter(subset(images, count=3, seed=1).read_labels().tolist()) == {0: 1, 1: 1, 2: 1}
    unstratified = [
        Counter(subset(images, count=20, seed=s, stratified=False).read_labels().tolist())[2]
        for s in range(20)
    ]
    assert len(set(unstratified)) > 2


@pytest.mark.parametrize("stratified", [True, False])
def test_subsets_are_nested_and_a_function_of_the_seed(stratified):
    images, _ = make_source([i % 3 for i in range(100)])

    def draw(count, seed):
        return subset(images, count=count, seed=seed, stratified=stratified)

    indices = numbers(draw(20, 0))
    assert indices == sorted(set(indices))
    assert numbers(draw(20, 0)) == indices
    assert draw(20, 0).fingerprint == draw(20, 0).fingerprint
    assert numbers(draw(20, 1)) != indices
    assert draw(20, 1).fingerprint != draw(20, 0).fingerprint != images.fingerprint
    assert set(indices) < set(numbers(draw(40, 0)))
    assert numbers(draw(100, 0)) == list(range(100))
    assert [x["label"] for x in draw(20, 0)] == [i % 3 for i in indices]


def test_strided_sets_are_a_partition():
    images, _ = make_source([5, 6, 7, 8, 9])
    even, odd = strided(images, 2), strided(images, 2, 1)
    assert [numbers(even), numbers(odd)] == [[0, 2, 4], [1, 3]]
    assert [x["label"] for x in even] == [5, 7, 9]
    assert odd.read_labels().tolist() == [6, 8]
    assert (odd.name, odd.image_shape) == (f"{images.name}[1::2]", images.image_shape)
    assert len({x.fingerprint for x in (images, even, odd)}) == 3
    assert strided(images, 2).fingerprint == even.fingerprint
    assert numbers(strided(even, 2)) == [0, 4]
    for step, start in ((0, 0), (2, 5), (2, -1)):
        with pytest.raises(ValueError, match=rf"^\[{start}::{step}\] of .*, which has 5 images"):
            strided(images, step, start)


def test_every_image_is_equally_likely_to_be_in_a_subset():
    images, _ = make_source([0] * 8 + [1] * 4)
    drawn = Counter(i for s in range(600) for i in numbers(subset(images, count=3, seed=s)))
    assert set(drawn) == set(range(12))
    for members in (range(8), range(8, 12)):
        counts = [drawn[i] for i in members]
        assert max(counts) < 1.5 * min(counts)
    # With fewer images than classes, no class is preferred.
    assert {numbers(subset(images, count=1, seed=s))[0] < 8 for s in range(20)} == {True, False}


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ({}, "either fraction= or count="),
        ({"fraction": 0.5, "count": 5}, "either fraction= or count="),
        ({"fraction": 0.0}, r"fraction is 0\.0"),
        ({"fraction": 1.1}, r"fraction is 1\.1"),
        ({"fraction": 0.01}, "0 images of made, which has 10"),
        ({"count": 11}, "11 images of made, which has 10"),
    ],
)
def test_invalid_subsets_are_errors(amount, message):
    images, _ = make_source([0] * 10)
    with pytest.raises(ValueError, match=message):
        subset(images, seed=0, **amount)


def test_load_all_returns_all_images_in_order():
    images, _ = make_source([2, 0, 1], shape=(2, 3, 3))
    arrays = load_all(images)
    assert arrays["image"].shape == (3, 2, 3, 3)
    np.testing.assert_allclose(arrays["image"][2], np.full((2, 3, 3), 2 / 127.5 - 1), atol=1e-7)
    assert arrays["label"].tolist() == [2, 0, 1]
    assert json.dumps(arrays["label"].tolist()) == "[2, 0, 1]"


def test_the_ends_of_the_range_are_exact():
    assert source.to_float(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]


def test_values_are_rounded_as_in_two_steps():
    """Division and subtraction in float32, each rounded: the bits that trainings depend on."""
    values = np.arange(256, dtype=np.uint8)
    exact = (values.astype(np.float64) / 127.5).astype(np.float32).astype(np.float64) - 1
    np.testing.assert_array_equal(source.to_float(values), exact.astype(np.float32))
    out = np.zeros(256, np.float32)
    assert source.to_float(values, out) is out
    np.testing.assert_array_equal(out, exact.astype(np.float32))
