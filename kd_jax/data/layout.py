"""The images of a folder and their labels, by names alone: no image is opened."""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
KINDS = "png, jpg, webp or bmp images"
CLUTTER = ("__MACOSX", "@eaDir")
"""Folders that macOS's archives and Synology's disks add; left out as hidden ones are."""

LABELS = "dataset.json"
"""The file of labels of StyleGAN2-ADA's and StyleGAN3's `dataset_tool.py`."""


class Layout(NamedTuple):
    """The images of a folder.

    Attributes:
      files: the images in the order of their names.
      labels: of each file, in [0, num_classes).
      classes: the names of the classes; empty if they have no names.
      num_classes: 1 for sets without labels.
      notes: one line for each kind of entry that was left out, and for each convention that was
        recognized.
    """

    files: list[Path]
    labels: list[int]
    classes: tuple[str, ...]
    num_classes: int
    notes: tuple[str, ...]


class _Contents(NamedTuple):
    """The entries of one folder, by kind, each in the order of their names."""

    images: list[Path]
    folders: list[Path]
    others: list[Path]
    hidden: list[Path]


def read_layout(folder: Path) -> Layout:
    """Lists the images of a folder, or of its sub-folders.

    Sub-folders are classes, in the order of their names, except for numbered ones, which only limit
    the number of files in a folder: those of `dataset_tool.py` (`00000/img00000000.png`) and those
    of FFHQ (`00000/00000.png`). The labels of `dataset.json`, if it has any, replace the classes.

    Raises:
      FileNotFoundError: there are no images, or none in a class.
      ValueError: images are at several depths, or `dataset.json` is invalid.
    """
    top = _contents(folder)
    inner = {place: _contents(place) for place in top.folders}
    others, hidden = list(top.others), list(top.hidden)
    table = _read_labels(folder / LABELS) if folder / LABELS in others else None
    if table is not None:
        others.remove(folder / LABELS)
    if top.images:
        if nested := [place for place in top.folders if _has_images(place)]:
            raise ValueError(
                f"{folder} has images ({top.images[0].name}) next to sub-folders with images "
                f"({examples(nested, folder)}); a folder has either images or sub-folders"
            )
        files, places, empty = top.images, [], top.folders
    elif top.folders:
        places = top.folders
        nested = [place for own in inner.values() for place in own.folders]
        if deep := [place for place in nested if _has_images(place)]:
            raise ValueError(
                f"{folder}: {counted(len(deep), 'folder')} inside of sub-folders with images "
                f"({examples(deep, folder)}); a folder has either images, or sub-folders with "
                "images"
            )
        if missing := [place for place, own in inner.items() if not own.images]:
            raise FileNotFoundError(
                f"{folder}: {len(missing)} of {counted(len(places), 'sub-folder')} without "
                f"{KINDS}: {examples(missing, folder)}"
            )
        files, empty = [file for own in inner.values() for file in own.images], nested
        others += [file for own in inner.values() for file in own.others]
        hidden += [entry for own in inner.values() for entry in own.hidden]
    else:
        listed = f" (others: {examples(others, folder)})" if others else ""
        raise FileNotFoundError(f"{folder} is empty: it has no {KINDS}{listed}")

    notes = []
    if others:
        notes.append(
            f"{counted(len(others), 'file is', 'files are')} not {KINDS} and "
            f"{_were(others)} left out: {examples(others, folder)}"
        )
    if hidden:
        notes.append(
            f"{counted(len(hidden), 'hidden entry', 'hidden entries')} {_were(hidden)} left out: "
            f"{examples(hidden, folder)}"
        )
    if empty:
        notes.append(
            f"{counted(len(empty), 'folder')} without images {_were(empty)} left out: "
            f"{examples(empty, folder)}"
        )
    by_folder = [place for place, own in inner.items() for _ in own.images]
    numbered = bool(places) and _are_numbered(by_folder, files)
    if numbered:
        notes.append(
            f"{counted(len(places), 'numbered folder')} ({examples(places, folder)}) "
            f"{_were(places)} read as one set, not as classes"
        )
    if table:
        labels = _look_up(table, folder, files)
        classes: tuple[str, ...] = ()
        count = max(labels) + 1
        notes.append(f"the labels are those of {LABELS}: {counted(count, 'class', 'classes')}")
    elif places and not numbered:
        numbers = {place: number for number, place in enumerate(places)}
        labels = [numbers[place] for place in by_folder]
        classes, count = tuple(place.name for place in places), len(places)
    else:
        labels, classes, count = [0] * len(files), (), 1
    return Layout(files, labels, classes, count, tuple(notes))


def counted(count: int, singular: str, plural: str = "") -> str:
    """A number and its noun: `1 file`, `2 files`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def examples(paths: Sequence[Path], folder: Path) -> str:
    """The names of at most three paths, relative to a folder."""
    names = [path.relative_to(folder).as_posix() for path in paths[:3]]
    return ", ".join([*names, "..."] if len(paths) > 3 else names)


def _were(entries: Sequence[Any]) -> str:
    return "was" if len(entries) == 1 else "were"


def _contents(folder: Path) -> _Contents:
    result = _Contents([], [], [], [])
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name in CLUTTER:
                kind = result.hidden
            elif entry.is_dir():
                kind = result.folders
            elif entry.name.lower().endswith(SUFFIXES):
                kind = result.images
            else:
                kind = result.others
            kind.append(folder / entry.name)
    return result


def _has_images(folder: Path) -> bool:
    own = _contents(folder)
    return bool(own.images) or any(map(_has_images, own.folders))


def _are_numbered(folders: Sequence[Path], files: Sequence[Path]) -> bool:
    """Whether the files are numbered across folders, by one of the two known schemes."""
    # Classes with numbered names would count their files from the same number each.
    pattern = re.compile(r"(\d{5,})/img(\d+)")
    matches = [
        pattern.fullmatch(f"{place.name}/{file.stem}")
        for place, file in zip(folders, files, strict=True)
    ]
    names = [match.groups() for match in matches if match]
    numbers = [int(number) for _, number in names]
    of_dataset_tool = (
        len(names) == len(files)
        and len({len(name) for name, _ in names}) == 1
        and all(one < other for one, other in itertools.pairwise(numbers))
    )
    of_ffhq = all(
        re.fullmatch(r"\d{5}/\d{5}", f"{place.name}/{file.stem}")
        and int(place.name) == int(file.stem) // 1000 * 1000
        for place, file in zip(folders, files, strict=True)
    )
    return of_dataset_tool or of_ffhq


def _read_labels(path: Path) -> Mapping[str, int] | None:
    """The labels by file name; empty if they are null; None if the file is of another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    rows = content["labels"]
    if rows is None:
        return {}
    expected = f"{path}: labels must be null or a list of [file name, class number]"
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{expected}, not {json.dumps(rows)[:80]}")
    for row in rows:
        pair = isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)
        if not pair or type(row[1]) is not int or row[1] < 0:
            raise ValueError(f"{expected}, not {json.dumps(row)[:80]}")
    return {name.replace("\\", "/"): label for name, label in rows}


def _look_up(table: Mapping[str, int], folder: Path, files: Sequence[Path]) -> list[int]:
    names = [file.relative_to(folder).as_posix() for file in files]
    absent = [file for file, name in zip(files, names, strict=True) if name not in table]
    if absent:
        raise ValueError(
            f"{folder / LABELS} has no label for {len(absent)} of {counted(len(files), 'image')}: "
            f"{examples(absent, folder)}"
        )
    return [table[name] for name in names]
