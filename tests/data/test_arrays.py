"""Arrays of images in files of NumPy."""

import io
import os
import zipfile

import numpy as np
import pytest

from kd_jax.data import UnreadableError, arrays, load_all, open_source

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 8, 8, 3), np.uint8)
LABELS = np.array([2, 0, 1, 2, 0])


def open_set(path, size=8, channels=3, **options):
    return open_source(f"folder:{path}", "train", size, channels, **options)


def as_bytes(source):
    return np.rint((load_all(source)["image"] + 1) * 127.5).astype(np.uint8)


def one_line(path, **options) -> str:
    with pytest.raises(ValueError, match=str(path)) as error:
        open_set(path, **options)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["images", "arr_0", "faces"])
def test_an_npz_file_and_its_labels(tmp_path, save, key):
    path = tmp_path / "set.npz"
    save(path, **{key: COLOUR})
    source = open_set(path)
    np.testing.assert_array_equal(as_bytes(source), COLOUR)
    assert (source.num_classes, source.name) == (1, "folder:set.npz")
    save(path, **{key: COLOUR, "labels": LABELS})
    source = open_set(path)
    np.testing.assert_array_equal(as_bytes(source), COLOUR)
    assert source.read_labels().tolist() == LABELS.tolist()
    assert source.num_classes == 3


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 8, 8, 4)])
def test_an_npy_file_is_mapped_into_memory(tmp_path, order, shape):
    pixels = np.asarray(RNG.integers(0, 256, shape, np.uint8), order=order)
    np.save(tmp_path / "set.npy", pixels)
    assert isinstance(arrays.read_arrays(tmp_path / "set.npy").images, np.memmap)
    channels = shape[3] if len(shape) == 4 else 1
    source = open_set(tmp_path / "set.npy", channels=channels)
    np.testing.assert_array_equal(as_bytes(source).reshape(shape), pixels)


def test_arrays_are_converted_as_files_are(tmp_path):
    wide = RNG.integers(0, 256, (2, 8, 16, 4), np.uint8)
    wide[..., 3] = 0
    np.save(tmp_path / "set.npy", wide)
    message = one_line(tmp_path / "set.npy")
    assert "2 of other sizes (images[0] is 16x8)" in message
    assert "2 with transparency (images[0])" in message
    source = open_set(tmp_path / "set.npy", resize=True, background="#010203")
    np.testing.assert_array_equal(as_bytes(source), np.broadcast_to([1, 2, 3], (2, 8, 8, 3)))
    source = open_set(tmp_path / "set.npy", channels=4, in_patches=True)
    expected = np.stack([wide[0, :, :8], wide[0, :, 8:], wide[1, :, :8], wide[1, :, 8:]])
    np.testing.assert_array_equal(as_bytes(source), expected)


def test_the_fingerprint_is_that_of_the_pixels_and_labels(tmp_path):
    def fingerprint(pixels=COLOUR, labels=LABELS, save=np.savez):
        save(tmp_path / "set.npz", images=pixels, labels=labels)
        return open_set(tmp_path / "set.npz").fingerprint

    first = fingerprint()
    assert fingerprint(save=np.savez_compressed) == first
    edited = COLOUR.copy()
    edited[-1, -1, -1, -1] ^= 1
    assert fingerprint(edited) != first
    assert fingerprint(labels=LABELS[::-1]) != first
    np.save(tmp_path / "a.npy", COLOUR)
    source = open_set(tmp_path / "a.npy")
    before = (tmp_path / "a.npy").stat()
    with (tmp_path / "a.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(edited[-1, -1, -1, -1].tobytes())
    os.utime(tmp_path / "a.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_set(tmp_path / "a.npy").fingerprint != source.fingerprint
    with pytest.raises(UnreadableError, match=r"a\.npy/images\[4\] has changed"):
        source[4]


INVALID = {
    "float": ({"images": np.ones((2, 8, 8, 3), np.float32)}, "the images are float32"),
    "16 bits": ({"images": np.ones((2, 8, 8, 3), np.uint16)}, "the images are uint16"),
    "one image": ({"images": COLOUR[0, 0]}, r"the images are \[8, 3\]"),
    "channels first": ({"images": COLOUR.transpose(0, 3, 1, 2)}, r"images\.transpose\(0, 2, 3, 1"),
    "two channels": ({"images": COLOUR[..., :2]}, "with 1, 3 or 4 channels"),
    "none": ({"images": COLOUR[:0]}, r"the images are \[0, 8, 8, 3\]"),
    "scalar": ({"images": np.uint8(3)}, r"the images are \[\]"),
    "objects": ({"images": np.array([None, "x"])}, "Python objects, which are pickles"),
    "no images": ({"a": COLOUR, "b": COLOUR}, "needs an array 'images', .* it has a, b"),
    "only labels": ({"labels": LABELS}, "needs an array 'images'.* it has labels"),
    "vectors": ({"images": COLOUR, "labels": np.eye(5)}, r"are vectors, \[5, 5\]; .*argmax"),
    "float labels": ({"images": COLOUR, "labels": LABELS * 1.0}, "labels are float64"),
    "few labels": ({"images": COLOUR, "labels": LABELS[:4]}, "4 labels for 5 images"),
    "negative": ({"images": COLOUR, "labels": LABELS - 1}, "labels are -1 to 1;"),
    "many classes": ({"images": COLOUR, "labels": LABELS * 10**12}, "0 to 2000000000000;"),
    "object labels": ({"images": COLOUR, "labels": np.array([{}] * 5)}, "are pickles"),
}


@pytest.mark.parametrize("case", INVALID)
def test_other_arrays_are_refused(tmp_path, case):
    values, message = INVALID[case]
    np.savez(tmp_path / "set.npz", **values)
    with pytest.raises(ValueError, match=message):
        open_set(tmp_path / "set.npz", resize=True)
    one_line(tmp_path / "set.npz")


def test_all_problems_are_in_one_error(tmp_path):
    np.savez(tmp_path / "set.npz", images=COLOUR[..., :2] * 1.0, labels=LABELS[:4] - 1)
    message = one_line(tmp_path / "set.npz")
    for clause in ("float64", "[5, 8, 8, 2]", "4 labels", "-1 to 1"):
        assert clause in message


def claiming(shape: tuple[int, ...], dtype: str = "|u1", data: bytes = b"") -> bytes:
    """An array file whose header claims a shape."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


CLAIMS = {
    "terabytes": claiming((10**6, 1024, 1024, 3)),
    "more than 64 bits": claiming((2**40, 2**40, 3)),
    "too little": claiming((5, 8, 8, 3), data=bytes(10)),
    "too much": claiming((1, 8, 8, 3), data=bytes(193)),
    "negative": claiming((-1, 8, 8), data=bytes(64)),
    "no bytes per value": claiming((5, 8, 8), "|V0"),
    "objects": claiming((1, 8, 8), "|O", bytes(512)),
    "a large image": claiming((1, 2**14, 2**13), data=b""),
    "empty": b"",
    "magic": b"\x93NUMPY\x09\x00" + bytes(100),
    "header": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 0xFFFF,
    "not a header": b"\x93NUMPY\x01\x00\x06\x00" + b"[1, 2]",
    "other keys": b"\x93NUMPY\x01\x00\x02\x00" + b"{}",
}


@pytest.mark.parametrize("case", CLAIMS)
def test_false_headers_are_refused_without_an_allocation(tmp_path, case, monkeypatch):
    monkeypatch.setattr(np, "fromfile", None)
    monkeypatch.setattr(np, "load", None)
    (tmp_path / "set.npy").write_bytes(CLAIMS[case])
    one_line(tmp_path / "set.npy")
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", CLAIMS[case])
    one_line(tmp_path / "set.npz")


def test_the_claimed_size_of_a_member_is_limited(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((99, 8, 8), np.uint8))
    monkeypatch.setattr(arrays, "MAX_NPZ_BYTES", 6_000)
    assert "images has 6,464 bytes, and at most 6,000" in one_line(tmp_path / "set.npz")


def test_other_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", claiming((5, 8, 8, 3), data=COLOUR.tobytes()))
    assert "compressed by LZMA" in one_line(tmp_path / "set.npz")
    (tmp_path / "set.npz").write_bytes(b"text")
    one_line(tmp_path / "set.npz")
    (tmp_path / "set.npz").unlink()
    os.mkfifo(tmp_path / "set.npz")
    assert "it is a pipe" in one_line(tmp_path / "set.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_repeated_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for _ in range(2):
            archive.writestr("images.npy", claiming((5, 8, 8, 3), data=COLOUR.tobytes()))
    assert "two arrays of the same name" in one_line(tmp_path / "set.npz")
