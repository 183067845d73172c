"""A folder of image files, read lazily."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kd_jax.data.images import (
    MODE,
    NAMES,
    Misfit,
    decode,
    loses_bits,
    misfits,
    open_image,
    patches,
    upright_size,
)
from kd_jax.data.layout import counted, read_layout
from kd_jax.data.origin import SourceWithOrigin
from kd_jax.data.source import Source, digest

DAMAGED = "that cannot be opened"
RESIZE = "resize=True (--config.data.resize=True; kd-jax evaluate --resize)"
SKIP = "skip_corrupt=True (--config.run.skip_corrupt=True)"
PATCHES = "in_patches=True (--config.data.patches=True)"


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
) -> Source:
    """The images of a folder, or of its sub-folders, one class each.

    Files and classes are in the order of their names; `read_layout` has the rules. All files are
    read here once, for their headers and the fingerprint; pixels are decoded on access. The
    fingerprint depends on the files' names (relative to the folder), labels and content.

    Args:
      folder: the path of the folder.
      split: `train`, the only split of a folder.
      size: height and width.
      channels: 1, 3 or 4.
      resize: whether to resize and convert images that do not match.
      in_patches: whether to convert the colours and cut each image into patches of that size
        instead.
      skip_corrupt: whether to leave out files that cannot be opened as images.

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
    if not folder.is_dir():
        hint = ": it is a file (an archive must be unpacked first)" if folder.exists() else ""
        raise FileNotFoundError(f"there is no folder {folder}{hint}")
    layout = read_layout(folder)
    names = [file.relative_to(folder).as_posix() for file in layout.files]

    def inspect(path: Path) -> _File:
        sha256 = ""
        try:
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            with open_image(data, path.name) as image:
                width, height = image.size
                if in_patches:
                    width, height = upright_size(image, data, path.name)
                differences = misfits(image, None if in_patches else size, channels)
                if in_patches and min(width, height) < size:
                    differences.append(
                        Misfit(f"smaller than a patch of {size}x{size}", f"{width}x{height}", "")
                    )
                return _File(sha256, width, height, differences, loses_bits(image))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).split(": ", 1)[1]
            return _File(sha256, 0, 0, [Misfit(DAMAGED, str(reason), "left out" * skip_corrupt)])

    # Reading and hashing release the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        files = list(pool.map(inspect, layout.files))
    request = f"{'patches of ' if in_patches else ''}{size}x{size} "
    request += NAMES.get(MODE[channels], MODE[channels])
    converting = resize or in_patches

    def is_solved(misfit: Misfit) -> bool:
        return bool(misfit.change) and (converting or misfit.kind == DAMAGED)

    problems = []
    for name, file in zip(names, files, strict=True):
        if rest := [misfit for misfit in file.misfits if not is_solved(misfit)]:
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
        raise ValueError(f"{folder}: none of {counted(len(files), 'image')} can be opened")
    crops: list[tuple[int, tuple[int, int] | None]] = []  # the file and the place in it
    for number in intact:
        file = files[number]
        places = patches(file.width, file.height, size) if in_patches else [None]
        crops += [(number, place) for place in places]

    def read(i: int) -> tuple[npt.NDArray[np.uint8], int]:
        number, place = crops[i]
        path = layout.files[number]
        return decode(path, str(path), size, channels, resize, place), layout.labels[number]

    content = [[names[i], layout.labels[i], files[i].sha256] for i in intact]
    kind = "patches" if in_patches else "images"
    return SourceWithOrigin(
        name=f"folder:{folder.resolve().name}",
        image_shape=(size, size, channels),
        num_classes=layout.num_classes,
        fingerprint=digest("folder", content, layout.num_classes, size, channels, resize, kind),
        length=len(crops),
        read=read,
        read_labels=lambda: np.array(layout.labels, np.int32)[[number for number, _ in crops]],
        notes=(*layout.notes, *_notes(names, files)),
        classes=layout.classes,
    )


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
