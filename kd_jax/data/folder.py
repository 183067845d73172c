"""A folder of the user's images, read lazily."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kd_jax.data.images import check_fits, decode, open_image, patches
from kd_jax.data.origin import Known
from kd_jax.data.source import Source, digest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HEAD_BYTES = 4096


def open_folder(
    folder: Path, split: str, size: int, channels: int, resize: bool, in_patches: bool = False
) -> Source:
    """The images of a folder, or of its sub-folders, one class each.

    Files are in the order of their names, classes too. Hidden files are passed over; any other file
    must be an image. The header of each is read now, the pixels when asked for. The fingerprint is
    of the files' names (relative to the folder), sizes and first 4,096 bytes.

    Args:
      folder: where they are.
      split: `train`: a folder has no other.
      size: height and width.
      channels: 1, 3 or 4.
      resize: make them fit.
      in_patches: cut each into patches of that size, instead.

    Raises:
      FileNotFoundError: there is no such folder, or no image in it.
      ValueError: what is there does not fit; the file is named.
    """
    if resize and in_patches:
        raise ValueError(f"{folder}: images are either resized or cut into patches")
    if split != "train":
        raise ValueError(f"{folder} has no split {split!r}, only train: open another folder for it")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    entries = _visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    if classes and len(classes) != len(entries):
        stray = next(entry for entry in entries if not entry.is_dir())
        raise ValueError(f"{stray} lies beside folders: images are in the folder or in its folders")
    files: list[Path] = []
    labels: list[int] = []
    for label, place in enumerate(classes or [folder]):
        found = _visible(place)
        if not found:
            raise FileNotFoundError(
                f"{place} is empty: it should hold png, jpg, webp or bmp images"
            )
        files += found
        labels += [label] * len(found)

    heads = []
    cut: list[tuple[int, tuple[int, int] | None]] = []  # which file, and where in it
    for number, file in enumerate(files):
        if file.is_dir():
            raise ValueError(
                f"{file} is a folder in a class's folder: images would be hidden in it"
            )
        if file.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{file} is no png, jpg, webp or bmp image; move it out of the folder")
        with open_image(file, str(file)) as image:
            if in_patches:
                cut += [(number, place) for place in patches(image, str(file), size, channels)]
            else:
                check_fits(image, str(file), size, channels, resize)
                cut.append((number, None))
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
        heads.append([file.relative_to(folder).as_posix(), file.stat().st_size, digest(head.hex())])

    def read(i: int) -> tuple[npt.NDArray[np.uint8], int]:
        number, place = cut[i]
        file = files[number]
        return decode(file, str(file), size, channels, resize, place), labels[number]

    return Known(
        name=f"folder:{folder.resolve().name}",
        image_shape=(size, size, channels),
        num_classes=len(classes) or 1,
        fingerprint=digest(heads, size, channels, resize, *(["patches"] if in_patches else [])),
        length=len(cut),
        read=read,
        read_labels=lambda: np.array(labels, np.int32)[[number for number, _ in cut]],
        classes=tuple(entry.name for entry in classes),
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
