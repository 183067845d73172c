"""The images of a folder, a zip archive or a file of NumPy, read lazily."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from kd_jax.data import arrays
from kd_jax.data.files import Archive, Files, Folder, counted, printable
from kd_jax.data.images import (
    COMPOSE,
    MODE,
    NAMES,
    RESIZE,
    TRANSPARENT,
    Misfit,
    decode,
    is_solved,
    loses_bits,
    misfits,
    open_image,
    parse_colour,
    patches,
    upright_size,
)
from kd_jax.data.layout import Layout, read_layout
from kd_jax.data.origin import SourceWithOrigin
from kd_jax.data.source import Source, UnreadableError, digest

DAMAGED = "that cannot be opened"
SKIP = "skip_corrupt=True (--config.run.skip_corrupt=True)"
PATCHES = "in_patches=True (--config.data.patches=True)"
CONTAINERS = "a .zip, .npz or .npy file"


class _Set(NamedTuple):
    """A set of images, of any container.

    Attributes:
      layout: names and labels.
      read: `number -> bytes` of a file, or of an array's pixels.
      open: `(bytes, name in messages) -> image`.
    """

    layout: Layout
    read: Callable[[int], bytes]
    open: Callable[[bytes, str], Image.Image]


class _File(NamedTuple):
    """The header of an image file.

    Attributes:
      sha256: of all its bytes.
      width: of the upright image, if it is cut into patches; otherwise as stored.
      height: likewise.
      misfits: its differences from the requested size and channels.
      loses_bits: whether it has more than 8 bits per channel.
    """

    sha256: str
    width: int
    height: int
    misfits: list[Misfit]
    loses_bits: bool = False


def open_folder(
    folder: Path,
    split: str,
    size: int,
    channels: int,
    resize: bool,
    in_patches: bool = False,
    skip_corrupt: bool = False,
    background: str | None = None,
) -> Source:
    """The images of a folder, or of its sub-folders, one class each; or those of an archive.

    Files and classes are in the order of their names; `read_layout` has the rules. All files are
    read here once, for their headers and the fingerprint; pixels are decoded on access. The
    fingerprint depends on the files' names (relative to the folder), labels and content, so that
    a folder and its archive have the same one. A file that has changed since then is unreadable.

    Args:
      folder: the path of the folder, or of a .zip, .npz or .npy file.
      split: `train`, the only split of a folder.
      size: height and width.
      channels: 1, 3 or 4.
      resize: whether to resize and convert images that do not match.
      in_patches: whether to convert the colours and cut each image into patches of that size
        instead.
      skip_corrupt: whether to leave out files that cannot be opened as images.
      background: the colour behind transparent images, which are then accepted in any case; None:
        white, where images are converted.

    Returns:
      A source whose `notes` have one line for each kind of file left out, and for each conversion.

    Raises:
      FileNotFoundError: the folder does not exist or has no images.
      ValueError: the folder is invalid, or images do not match; the message counts all of them, by
        kind, with an example of each.
    """
    if resize and in_patches:
        raise ValueError(f"{folder}: images are either resized or cut into patches, not both")
    if split != "train":
        raise ValueError(
            f"{folder} has no split {split!r}, only train: open another folder instead"
        )
    colour = parse_colour(background) if background is not None else None
    images = _open_set(folder)
    layout = images.layout
    names = [printable(name) for name in layout.names]

    def label_of(number: int) -> str:
        return printable(f"{folder}/{layout.names[number]}")

    def inspect(number: int) -> _File:
        label, sha256 = label_of(number), ""
        try:
            data = images.read(number)
            sha256 = hashlib.sha256(data).hexdigest()
            with images.open(data, label) as image:
                width, height = image.size
                if in_patches:
                    width, height = upright_size(image, data, label)
                differences = misfits(image, None if in_patches else size, channels, background)
                if in_patches and min(width, height) < size:
                    differences.append(
                        Misfit(f"smaller than a patch of {size}x{size}", f"{width}x{height}", "")
                    )
                return _File(sha256, width, height, differences, loses_bits(image))
        except UnreadableError as error:
            text = str(error).removeprefix(f"{label} cannot be opened: ")
            return _File(sha256, 0, 0, [Misfit(DAMAGED, text, "left out" * skip_corrupt)])

    # Reading and hashing release the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        files = list(pool.map(inspect, range(len(names))))
    request = f"{'patches of ' if in_patches else ''}{size}x{size} "
    request += NAMES.get(MODE[channels], MODE[channels])
    converting = resize or in_patches

    problems = []
    for name, file in zip(names, files, strict=True):
        if rest := [
            misfit
            for misfit in file.misfits
            if not is_solved(misfit, converting or misfit.kind == DAMAGED, background)
        ]:
            problems.append((name, file._replace(misfits=rest)))
    if problems:
        large = all(min(file.width, file.height) >= size for _, file in problems)
        raise ValueError(
            f"folder:{folder}: {len(problems)} of {counted(len(files), 'image')} "
            f"{'does' if len(problems) == 1 else 'do'} not fit {request}: "
            f"{_summary(problems)}; {_hints(problems, large and not in_patches)}"
        )

    intact = [
        number for number, file in enumerate(files) if all(m.kind != DAMAGED for m in file.misfits)
    ]
    if not intact:
        raise ValueError(
            f"{folder}: none of {counted(len(files), 'image')} can be opened; the first, "
            f"{names[0]}: {files[0].misfits[0].detail}"
        )
    crops: list[tuple[int, tuple[int, int] | None]] = []  # the file and the place in it
    for number in intact:
        file = files[number]
        places = patches(file.width, file.height, size) if in_patches else [None]
        crops += [(number, place) for place in places]

    def read(i: int) -> tuple[npt.NDArray[np.uint8], int]:
        number, place = crops[i]
        label, data = label_of(number), images.read(number)
        if hashlib.sha256(data).hexdigest() != files[number].sha256:
            raise UnreadableError(f"{label} has changed since the set was opened")
        image = images.open(data, label)
        pixels = decode(image, label, size, channels, resize, place, background)
        return pixels, layout.labels[number]

    content = [[layout.names[i], layout.labels[i], files[i].sha256] for i in intact]
    kind = "patches" if in_patches else "images"
    settings = [size, channels, resize, kind, *([colour] if colour else [])]
    return SourceWithOrigin(
        name=f"folder:{printable(folder.resolve().name)}",
        image_shape=(size, size, channels),
        num_classes=layout.num_classes,
        fingerprint=digest("folder", content, layout.num_classes, *settings),
        length=len(crops),
        read=read,
        read_labels=lambda: np.array(layout.labels, np.int32)[[number for number, _ in crops]],
        notes=(*layout.notes, *_notes(names, files)),
        classes=layout.classes,
    )


def _open_set(path: Path) -> _Set:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _set_of_files(Folder(path))
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {path}")
    if suffix == ".zip":
        return _set_of_files(Archive(path))
    if suffix not in (".npz", ".npy"):
        raise FileNotFoundError(f"there is no folder {path}: it is a file, but not {CONTAINERS}")
    stored = arrays.read_arrays(path)
    pixels, count = stored.images, len(stored.images)
    labels = [0] * count if stored.labels is None else stored.labels.tolist()
    names = [f"images[{number}]" for number in range(count)]
    layout = Layout(names, labels, (), max(labels) + 1, ())
    shape = (*pixels.shape[1:], 1)[:3]  # grey images may have no axis of channels
    mode, sides = MODE[shape[2]], (shape[1], shape[0])
    return _Set(
        layout,
        lambda number: pixels[number].tobytes(),
        lambda data, _: Image.frombytes(mode, sides, data),
    )


def _set_of_files(files: Files) -> _Set:
    layout = read_layout(files)
    return _Set(layout, lambda number: files.read(layout.names[number]), open_image)


def _by_kind(files: Sequence[tuple[str, _File]]) -> dict[Misfit, list[tuple[str, str]]]:
    """The names of the images and their details, by kind and change; the most frequent first."""
    result: dict[Misfit, list[tuple[str, str]]] = defaultdict(list)
    for name, file in files:
        for misfit in file.misfits:
            result[misfit._replace(detail="")].append((name, misfit.detail))
    return dict(sorted(result.items(), key=lambda item: -len(item[1])))


def _summary(problems: Sequence[tuple[str, _File]]) -> str:
    """A clause for each kind of problem, with an example."""
    clauses = []
    for misfit, images in _by_kind(problems).items():
        name, detail = images[0]
        reason = f": {detail}" if misfit.kind == DAMAGED else f" is {detail}"
        clauses.append(f"{len(images)} {misfit.kind} ({name}{reason if detail else ''})")
    return ", ".join(clauses)


def _hints(problems: Sequence[tuple[str, _File]], large: bool) -> str:
    """The options that would accept the images, and the kinds that none accepts."""
    kinds = {misfit.kind: misfit.change for misfit in _by_kind(problems)}
    damaged = kinds.pop(DAMAGED, None) is not None
    convertible = [kind for kind, change in kinds.items() if change]
    rest = [kind for kind, change in kinds.items() if not change]
    hints = []
    if convertible:
        listed = f"those {', '.join(convertible)}" if rest or damaged else "them"
        hints.append(f"{RESIZE} converts {listed}")
        if TRANSPARENT in convertible:
            hints.append(f"{COMPOSE} composes those {TRANSPARENT}")
        if large and "of other sizes" in convertible:
            hints.append(f"{PATCHES} cuts images into patches")
    if damaged:
        hints.append(f"{SKIP} leaves out those {DAMAGED}")
    if rest:
        hints.append(f"convert or remove those {', '.join(rest)}")
    return "; ".join(hints)


def _notes(names: Sequence[str], files: Sequence[_File]) -> list[str]:
    """A line for each kind of change."""
    notes = []
    for misfit, images in _by_kind(list(zip(names, files, strict=True))).items():
        count, (example, _) = len(images), images[0]
        if misfit.kind == "of other sizes":
            subject = counted(count, "image")
        elif misfit.kind.startswith(("with", "that")):
            subject = f"{counted(count, 'image')} {misfit.kind}"
        else:
            subject = counted(count, f"{misfit.kind} image")
        verb = "was" if count == 1 else "were"
        notes.append(f"{subject} {verb} {misfit.change}: {example}{', ...' * (count > 1)}")
    if reduced := [n for n, file in zip(names, files, strict=True) if file.loses_bits]:
        notes.append(
            f"{counted(len(reduced), 'image')} of 16 bits per channel "
            f"{'was' if len(reduced) == 1 else 'were'} reduced to 8 bits (the high byte): "
            f"{reduced[0]}{', ...' * (len(reduced) > 1)}"
        )
    return notes
