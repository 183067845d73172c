"""A folder of image files, read lazily."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from kd_jax.data.images import check_fits, decode, open_image, patches
from kd_jax.data.origin import SourceWithOrigin
from kd_jax.data.source import Source, digest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HEAD_BYTES = 4096


def open_folder(
    folder: Path, split: str, size: int, channels: int, resize: bool, in_patches: bool = False
) -> Source:
    """The images of a folder, or of its sub-folders, one class each.

    Files and classes are in the order of their names. Hidden files are skipped; any other file must
    be an image. All headers are read here, pixels on access. The fingerprint depends on the files'
    names (relative to the folder), sizes and first 4,096 bytes.

    Args:
      folder: the path of the folder.
      split: `train`, the only split of a folder.
      size: height and width.
      channels: 1, 3 or 4.
      resize: whether to resize and convert images that do not match.
      in_patches: whether to cut each image into patches of that size instead.

    Raises:
      FileNotFoundError: the folder does not exist or has no images.
      ValueError: an entry of the folder is invalid; the message names the file.
    """
    if resize and in_patches:
        raise ValueError(f"{folder}: images are either resized or cut into patches, not both")
    if split != "train":
        raise ValueError(
            f"{folder} has no split {split!r}, only train: open another folder instead"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    entries = _visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    if classes and len(classes) != len(entries):
        stray = next(entry for entry in entries if not entry.is_dir())
        raise ValueError(
            f"{stray} is next to sub-folders; a folder has either images or sub-folders"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, place in enumerate(classes or [folder]):
        images = _visible(place)
        if not images:
            raise FileNotFoundError(f"{place} is empty: png, jpg, webp or bmp images are expected")
        files += images
        labels += [label] * len(images)

    heads = []
    crops: list[tuple[int, tuple[int, int] | None]] = []  # the file and the place in it
    for number, file in enumerate(files):
        if file.is_dir():
            raise ValueError(
                f"{file} is a folder inside the folder of a class, which may only have images"
            )
        if file.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{file} is not a png, jpg, webp or bmp image; remove it from the folder"
            )
        with open_image(file, str(file)) as image:
            if in_patches:
                crops += [(number, place) for place in patches(image, str(file), size, channels)]
            else:
                check_fits(image, str(file), size, channels, resize)
                crops.append((number, None))
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
        heads.append([file.relative_to(folder).as_posix(), file.stat().st_size, digest(head.hex())])

    def read(i: int) -> tuple[npt.NDArray[np.uint8], int]:
        number, place = crops[i]
        file = files[number]
        return decode(file, str(file), size, channels, resize, place), labels[number]

    return SourceWithOrigin(
        name=f"folder:{folder.resolve().name}",
        image_shape=(size, size, channels),
        num_classes=len(classes) or 1,
        fingerprint=digest(heads, size, channels, resize, *(["patches"] if in_patches else [])),
        length=len(crops),
        read=read,
        read_labels=lambda: np.array(labels, np.int32)[[number for number, _ in crops]],
        classes=tuple(entry.name for entry in classes),
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
