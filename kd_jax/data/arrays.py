"""Arrays of images in files of NumPy (.npy, .npz); headers are checked, and pickles never read."""

import io
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kd_jax.data.files import check_member, open_regular, printable, reason
from kd_jax.data.images import MAX_PIXELS
from kd_jax.data.layout import MAX_CLASSES

MAX_NPZ_BYTES = 2**34
"""The largest array of an .npz file, which is read into memory; an .npy file may be larger."""


class Arrays(NamedTuple):
    """Images and labels.

    Attributes:
      images: uint8 `[N, H, W]` or `[N, H, W, C]` with 1, 3 or 4 channels; N, H and W are positive.
      labels: int `[N]`, in [0, `MAX_CLASSES`); or None.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.integer[Any]] | None


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int


def read_arrays(path: Path) -> Arrays:
    """The arrays of a file; those of an .npy file are mapped into memory.

    The images of an .npz file are the array `images`, `arr_0`, or the only one besides `labels`.

    Raises:
      ValueError: the file is damaged, or the arrays do not fit; one line for all of its problems.
    """
    try:
        with open_regular(path) as file:
            if path.suffix.lower() == ".npz":
                with zipfile.ZipFile(file) as archive:
                    images, labels = _read_members(archive)
            else:
                images, labels = _map(file), None
    except Exception as error:  # Damaged archives and headers raise many types.
        raise ValueError(f"{path} cannot be read: {reason(error)}") from None
    if problems := [*_problems(images), *_label_problems(labels, *images.shape[:1])]:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return Arrays(images, labels)


def _map(file: BinaryIO) -> npt.NDArray[Any]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    header = _read_header(file, size)
    order: Literal["C", "F"] = "F" if header.fortran_order else "C"
    return np.memmap(file, header.dtype, "r", header.offset, header.shape, order)


def _read_members(archive: zipfile.ZipFile) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    members = [name.removesuffix(".npy") for name in archive.namelist()]
    if len(set(members)) < len(members):
        raise ValueError("it has two arrays of the same name")
    rest = [name for name in members if name != "labels"]
    known = [name for name in ("images", "arr_0") if name in rest]
    if not known and len(rest) != 1:
        listed = printable(", ".join(members[:5])) or "none"
        raise ValueError(f"it needs an array 'images', or a single one; it has {listed}")
    images = _read_member(archive, (known or rest)[0])
    return images, _read_member(archive, "labels") if "labels" in members else None


def _read_member(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    info = archive.getinfo(next(n for n in archive.namelist() if n.removesuffix(".npy") == name))
    if info.file_size > MAX_NPZ_BYTES:
        raise ValueError(
            f"{printable(name)} has {info.file_size:,} bytes, and at most {MAX_NPZ_BYTES:,} are "
            "read into memory; an .npy file may be larger"
        )
    check_member(info)
    with archive.open(info) as member:
        header = _read_header(member, info.file_size)
        data = member.read()
    values = np.frombuffer(data, header.dtype)
    return values.reshape(header.shape, order="F" if header.fortran_order else "C")


def _read_header(file: Any, size: int) -> _Header:
    """The header at the start of a file of `size` bytes, which it must describe exactly."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"it has version {version} of the format, not 1.0 or 2.0")
    shape, fortran_order, dtype = readers[version](file)
    offset = file.tell()
    if dtype.hasobject:
        raise ValueError("it has Python objects, which are pickles and are never read")
    claimed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or offset + claimed != size:
        raise ValueError(
            f"its header claims {dtype} {list(shape)}, {claimed:,} bytes, but {size - offset:,} "
            "follow"
        )
    return _Header(shape, fortran_order, dtype, offset)


def _problems(images: npt.NDArray[Any]) -> list[str]:
    shape, problems = list(images.shape), []
    if images.dtype != np.uint8:
        problems.append(f"the images are {images.dtype}; they must be uint8, in 0 to 255")
    if images.ndim not in (3, 4) or (images.ndim == 4 and shape[3] not in (1, 3, 4)):
        first = images.ndim == 4 and shape[1] in (1, 3, 4)
        hint = ": images.transpose(0, 2, 3, 1)" if first else ""
        problems.append(
            f"the images are {shape}; they must be [N, H, W], or [N, H, W, C] with 1, 3 or 4 "
            f"channels{hint}"
        )
    elif 0 in shape or shape[1] * shape[2] > MAX_PIXELS:
        problems.append(f"the images are {shape}: of 1 to {MAX_PIXELS:,} pixels, at least one")
    return problems


def _label_problems(labels: npt.NDArray[Any] | None, count: int = 0) -> list[str]:
    if labels is None:
        return []
    if labels.ndim == 2:
        return [f"the labels are vectors, {list(labels.shape)}; class numbers are labels.argmax(1)"]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return [f"the labels are {labels.dtype} {list(labels.shape)}; they must be integers [N]"]
    problems = []
    if len(labels) != count:
        problems.append(f"there are {len(labels):,} labels for {count:,} images")
    if labels.size and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
        problems.append(
            f"the labels are {labels.min()} to {labels.max()}; they must be in 0 to "
            f"{MAX_CLASSES - 1:,}"
        )
    return problems
