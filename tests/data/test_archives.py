"""Zip archives of images and their labels, and the labels of `dataset.json`."""

import copy
import io
import json
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_jax.data import UnreadableError, files as data_files, layout, load_all, open_source

RNG = np.random.default_rng(0)
SIZE = 8


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def write(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def unpack(folder: Path, entries: dict[str, bytes]) -> Path:
    for name, data in entries.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def dataset_tool(labels: list | None = None, extra: list | None = None) -> dict[str, bytes]:
    names = [f"{number // 3:05d}/img{number:08d}.png" for number in range(6)]
    rows = None if labels is None else [list(row) for row in zip(names, labels, strict=False)]
    table = {"labels": rows if rows is None else rows + (extra or [])}
    return {name: png() for name in names} | {"dataset.json": json.dumps(table).encode()}


def open_set(path: Path, **options):
    return open_source(f"folder:{path}", "train", SIZE, 3, **options)


def one_line(path: Path, **options) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        open_set(path, **options)
    message = str(error.value)
    assert message.isprintable()
    assert str(path) in message
    return message


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("labels", [[3, 0, 1, 1, 0, 3], None])
def test_an_archive_equals_its_folder(tmp_path, method, labels):
    entries = dataset_tool(labels)
    unpacked = open_set(unpack(tmp_path / "set", entries))
    source = open_set(write(tmp_path / "set.ZIP", entries, method))
    assert source.read_labels().tolist() == (labels or [0] * 6)
    assert source.num_classes == (4 if labels else 1)
    assert source.notes == unpacked.notes
    assert source.fingerprint == unpacked.fingerprint
    for name, values in load_all(source).items():
        np.testing.assert_array_equal(values, load_all(unpacked)[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.ZIP"]


def test_classes_resizing_and_patches_of_an_archive(tmp_path):
    entries = {"cat/1.png": png(), "dog/1.png": png(), "notes.txt": b"", "__MACOSX/x.png": b"?"}
    path = write(tmp_path / "pets.zip", entries)
    source = open_set(path)
    assert (source.classes, source.name) == (("cat", "dog"), "folder:pets.zip")
    assert len(source.notes) == 2
    assert len(open_source(f"folder:{path}", "train", 4, 3, in_patches=True)) == 8
    assert open_source(f"folder:{path}", "train", 4, 1, resize=True)[1]["image"].shape == (4, 4, 1)


def test_a_single_folder_is_the_root(tmp_path):
    entries = {name: png() for name in ("cat/1.png", "dog/1.png")}
    nested = {f"pets/all/{name}": data for name, data in entries.items()} | {"__MACOSX/a": b""}
    source = open_set(write(tmp_path / "nested.zip", nested))
    assert source.classes == ("cat", "dog")
    assert source.fingerprint == open_set(write(tmp_path / "flat.zip", entries)).fingerprint


def test_an_edited_archive_has_another_fingerprint(tmp_path):
    entries = dataset_tool([0, 1, 2, 0, 1, 2])
    first = open_set(write(tmp_path / "set.zip", entries)).fingerprint
    name = "00001/img00000005.png"
    assert open_set(write(tmp_path / "set.zip", entries | {name: png()})).fingerprint != first
    other = dataset_tool([0, 1, 2, 0, 1, 1])["dataset.json"]
    path = write(tmp_path / "set.zip", entries | {"dataset.json": other})
    assert open_set(path).fingerprint != first


def test_names_do_not_leave_the_archive(tmp_path):
    (tmp_path / "b.png").write_bytes(png())
    names = ("../b.png", "/c.png", "x\\d.png", "C:/e.png")
    path = write(tmp_path / "mixed.zip", {name: png() for name in names})
    assert "images (c.png) next to sub-folders with images (C:, x)" in one_line(path)
    source = open_set(write(tmp_path / "set.zip", {"../b.png": png(), "/c.png": png()}))
    assert len(source) == 1
    assert "1 hidden entry was left out: .." in source.notes
    windows = write(tmp_path / "windows.zip", {"cat\\1.png": png(), "dog\\1.png": png()})
    assert open_set(windows).classes == ("cat", "dog")


def test_other_containers_are_named(tmp_path):
    path = write(tmp_path / "set.zip", dataset_tool())
    for kind in ("zip", "npz", "npy"):
        with pytest.raises(ValueError, match=rf"did you mean folder:{path}\?"):
            open_source(f"{kind}:{path}", "train", SIZE, 3)
    path.rename(tmp_path / "set.tar")
    assert "it is a file, but not a .zip, .npz or .npy file" in one_line(tmp_path / "set.tar")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_set(tmp_path / "none.zip")
    with pytest.raises(ValueError, match="no split 'test'"):
        open_source(f"folder:{tmp_path / 'set.zip'}", "test", SIZE, 3)


# Damaged and hostile archives.


def with_flags(path: Path, name: str, flags: int) -> None:
    """Sets the flags of an entry, in both of its headers."""
    data = bytearray(path.read_bytes())
    for signature, offset, start in ((b"PK\3\4", 6, 30), (b"PK\1\2", 8, 46)):
        place = 0
        while (place := data.index(signature, place)) >= 0:
            if data[place + start :].startswith(name.encode()):
                data[place + offset : place + offset + 2] = struct.pack("<H", flags)
                break
            place += 1
    path.write_bytes(data)


def test_encrypted_and_unsupported_entries_are_named_or_skipped(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("b.png", png())
        archive.writestr("c.png", png(), zipfile.ZIP_BZIP2)
        archive.writestr("d.png", png(), zipfile.ZIP_LZMA)
    with_flags(path, "b.png", 1)
    assert "3 that cannot be opened (b.png: it is encrypted)" in one_line(path)
    source = open_set(path, skip_corrupt=True)
    assert len(source) == 1
    assert "3 images that cannot be opened were left out: b.png, ..." in source.notes
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("c.png", png(), zipfile.ZIP_LZMA)
    assert "c.png: it is compressed by LZMA, not stored or deflated" in one_line(
        path, skip_corrupt=True
    )


def test_damaged_entries_are_named_or_skipped(tmp_path):
    path = write(tmp_path / "set.zip", {"a.png": png(), "b.png": png()})
    data = bytearray(path.read_bytes())
    data[data.index(b"b.png") + 60] ^= 1
    path.write_bytes(data)
    assert "1 that cannot be opened (b.png: Bad CRC-32" in one_line(path)
    assert len(open_set(path, skip_corrupt=True)) == 1


@pytest.mark.parametrize("cut", [0, 10, 300, -1, -30])
def test_a_truncated_archive_is_an_error(tmp_path, cut):
    path = write(tmp_path / "set.zip", dataset_tool([0] * 6))
    path.write_bytes(path.read_bytes()[:cut])
    assert "set.zip is not a readable zip archive: " in one_line(path)


def test_random_damage_is_an_error_or_read(tmp_path):
    whole = write(tmp_path / "set.zip", dataset_tool([0] * 6), zipfile.ZIP_DEFLATED).read_bytes()
    messages = []
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(3):  # mostly in the directory at the end
            data[-RNG.integers(1, len(data) if RNG.random() < 0.3 else 700)] = RNG.integers(256)
        (tmp_path / "set.zip").write_bytes(data)
        try:
            list(open_set(tmp_path / "set.zip"))
        except (ValueError, FileNotFoundError) as error:
            messages.append(str(error))
    assert len(messages) > 75
    assert all(map(str.isprintable, messages))


def test_claimed_sizes_are_limited(tmp_path, monkeypatch):
    path = write(
        tmp_path / "set.zip", {"a.png": png(), "b.png": bytes(10_000)}, zipfile.ZIP_DEFLATED
    )
    monkeypatch.setattr(data_files, "MAX_BYTES", 9_999)
    assert "(b.png: it has 10,000 bytes, and at most 9,999 are read)" in one_line(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_all_problems_of_a_directory_are_in_one_error(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("a.png", "a.png", "/".join("x" * 33) + "/b.png"):
            archive.writestr(name, png())
        for number in range(20):  # all with the bytes of the first entry
            info = copy.copy(archive.filelist[0])
            info.filename = f"copy{number}.png"
            archive.filelist.append(info)
    monkeypatch.setattr(data_files, "MAX_ENTRIES", 22)
    message = one_line(tmp_path / "set.zip")
    for clause in (
        "23 entries, and at most 22 are read",
        "entries that overlap",
        "1 name twice (a.png)",
        "1 entry in more than 32 folders (x/x/x",
    ):
        assert clause in message


def test_links_that_form_a_loop_end(tmp_path):
    folder = unpack(tmp_path / "set", {"a.png": png()})
    for name in ("x", "y"):
        (folder / name).symlink_to(folder)
    assert "next to sub-folders with images (x, y)" in one_line(folder)
    folder = unpack(tmp_path / "empty", {"a.png": png(), "x/notes.txt": b""})
    for name in ("y", "z"):  # without images: 2^40 paths
        (folder / "x" / name).symlink_to(folder / "x")
    assert "1 folder without images was left out: x" in open_set(folder).notes


def test_an_archive_is_read_by_several_threads(tmp_path):
    entries = {f"{number}.png": png() for number in range(8)}
    path = write(tmp_path / "set.zip", entries, zipfile.ZIP_DEFLATED)
    archive, wrong = data_files.Archive(path), []

    def read():
        for _ in range(50):
            wrong.extend(name for name, data in entries.items() if archive.read(name) != data)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert archive._archive._fileRefCnt == 1


# Labels.


def test_one_hot_vectors_are_classes(tmp_path):
    vectors = np.eye(4)[[0, 2, 1, 0, 2, 1]]
    source = open_set(write(tmp_path / "set.zip", dataset_tool(vectors.tolist())))
    assert source.read_labels().tolist() == [0, 2, 1, 0, 2, 1]
    assert source.num_classes == 4
    assert "the labels of dataset.json are one-hot vectors, read as classes" in source.notes


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0.5, 0.5]] * 6, "one-hot"),
        ([[1, 0]] * 5 + [[1, 1]], r"\(1 row of 6 was refused; of vectors, only one-hot ones"),
        ([[1, 0]] * 5 + [[1, 0, 0]], "several forms: a vector of 2, a vector of 3"),
        ([[1, 0]] * 5 + [0], "several forms: a number, a vector of 2"),
        ([0] * 5 + [10**30], "1 row of 6 was refused"),
        ([0] * 5 + [layout.MAX_CLASSES], "1 row of 6 was refused"),
        ([0] * 5 + [float("nan")], "not .*NaN"),
        ([0] * 4, r"no label for 2 of 6 images: 00001/img00000004\.png, 00001/img00000005\.png$"),
    ],
)
def test_other_labels_are_refused(tmp_path, labels, message):
    entries = dataset_tool(labels)
    for path in (write(tmp_path / "set.zip", entries), unpack(tmp_path / "set", entries)):
        with pytest.raises(ValueError, match=message) as error:
            open_set(path)
        assert str(error.value).startswith(f"{path / 'dataset.json'}")
        assert "\n" not in str(error.value)


def test_labels_without_an_image_are_counted_and_repeated_ones_refused(tmp_path):
    extra = [["00009/img00000009.png", 7], ["x.png", 0]]
    source = open_set(write(tmp_path / "set.zip", dataset_tool([0] * 6, extra)))
    assert source.num_classes == 1
    assert (
        "2 labels of dataset.json were left out, without an image: 00009/img00000009.png, x.png"
        in source.notes
    )
    extra = [["00000/img00000001.png", 1]]
    message = one_line(write(tmp_path / "set.zip", dataset_tool([0] * 5, extra)))
    assert "no label for 1 of 6 images: " in message
    assert "has 1 name twice: 00000/img00000001.png" in message


@pytest.mark.parametrize(
    "text", ['{"labels": ' + "[" * 100_000, "\xff", '{"labels": [[', "[" * 900]
)
def test_malformed_tables_are_errors(tmp_path, text):
    entries = dataset_tool() | {"dataset.json": text.encode("latin1")}
    for path in (write(tmp_path / "set.zip", entries), unpack(tmp_path / "set", entries)):
        assert "dataset.json is not valid JSON" in one_line(path)


def test_deep_and_large_tables_are_errors(tmp_path, monkeypatch):
    deep = b'{"labels": [' + b"[" * 800 + b"]" * 800 + b"]}"
    path = write(tmp_path / "set.zip", dataset_tool() | {"dataset.json": deep})
    assert "(1 row of 1 was refused" in one_line(path)
    with monkeypatch.context() as patch:  # the encoder may allow fewer levels than the decoder
        patch.setattr(layout.json, "dumps", lambda value: (_ for _ in ()).throw(RecursionError))
        assert "not deeply nested lists (1 row" in one_line(path)
    monkeypatch.setattr(layout, "MAX_LABELS_BYTES", 1000)
    assert "1,614 bytes, and at most 1,000" in one_line(path)


def test_an_encrypted_table_is_an_error(tmp_path):
    path = write(tmp_path / "set.zip", dataset_tool([0] * 6))
    with_flags(path, "dataset.json", 1)
    with pytest.raises(UnreadableError, match=r"set\.zip/dataset\.json .*: it is encrypted"):
        open_set(path)
