"""The images of a set of files and their labels, by names alone: no image is opened."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from kd_jax.data.files import (
    Entry,
    Files,
    counted,
    examples,
    first_line,
    is_hidden,
    printable,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
KINDS = "png, jpg, webp, bmp or tiff images"

LABELS = "dataset.json"
"""The file of labels of StyleGAN2-ADA's and StyleGAN3's `dataset_tool.py`."""

MAX_LABELS_BYTES = 2**27
"""The largest `dataset.json`, of some 3 million labels: its values take some 20 times as much."""

MAX_CLASSES = 1_000_000
"""Labels are below this number: networks allocate parameters for all classes."""

_NESTED = 8
"""The depth up to which folders are searched for images, against links that form a loop."""


class Layout(NamedTuple):
    """The images of a set of files.

    Attributes:
      names: of the images, relative to the root, in order.
      labels: of each image, in [0, num_classes).
      classes: the names of the classes; empty if they have no names.
      num_classes: 1 for sets without labels.
      notes: one line for each kind of entry that was left out, and for each convention that was
        recognized.
    """

    names: list[str]
    labels: list[int]
    classes: tuple[str, ...]
    num_classes: int
    notes: tuple[str, ...]


class _Contents(NamedTuple):
    """The names of the entries of one folder, by kind, in order."""

    images: list[str]
    folders: list[str]
    others: list[str]
    hidden: list[str]


def read_layout(files: Files) -> Layout:
    """Lists the images of a folder, or of its sub-folders.

    Sub-folders are classes, in the order of their names, except for numbered ones, which only limit
    the number of files in a folder: those of `dataset_tool.py` (`00000/img00000000.png`) and those
    of FFHQ (`00000/00000.png`). The labels of `dataset.json`, if it has any, replace the classes.

    Raises:
      FileNotFoundError: there are no images, or none in a class.
      ValueError: images are at several depths, or `dataset.json` is invalid.
    """
    root = files.path
    top = _contents(files, "")
    inner = {place: _contents(files, place) for place in top.folders}
    others, hidden = list(top.others), list(top.hidden)
    table = _read_labels(files) if LABELS in others else None
    if table is not None:
        others.remove(LABELS)
    if top.images:
        if nested := [place for place in top.folders if _has_images(files, place)]:
            raise ValueError(
                f"{root} has images ({printable(top.images[0])}) next to sub-folders with images "
                f"({examples(nested)}); a folder has either images or sub-folders"
            )
        names, places, empty = top.images, [], top.folders
    elif top.folders:
        places = top.folders
        nested = [place for own in inner.values() for place in own.folders]
        if deep := [place for place in nested if _has_images(files, place)]:
            raise ValueError(
                f"{root}: {counted(len(deep), 'folder')} inside of sub-folders with images "
                f"({examples(deep)}); a folder has either images, or sub-folders with images"
            )
        if missing := [place for place, own in inner.items() if not own.images]:
            raise FileNotFoundError(
                f"{root}: {len(missing)} of {counted(len(places), 'sub-folder')} without "
                f"{KINDS}: {examples(missing)}"
            )
        names, empty = [name for own in inner.values() for name in own.images], nested
        others += [name for own in inner.values() for name in own.others]
        hidden += [name for own in inner.values() for name in own.hidden]
    else:
        listed = f" (others: {examples(others)})" if others else ""
        raise FileNotFoundError(f"{root} is empty: it has no {KINDS}{listed}")

    notes = []
    if others:
        notes.append(
            f"{counted(len(others), 'file is', 'files are')} not {KINDS} and "
            f"{_were(others)} left out: {examples(others)}"
        )
    if hidden:
        notes.append(
            f"{counted(len(hidden), 'hidden entry', 'hidden entries')} {_were(hidden)} left out: "
            f"{examples(hidden)}"
        )
    if empty:
        notes.append(
            f"{counted(len(empty), 'folder')} without images {_were(empty)} left out: "
            f"{examples(empty)}"
        )
    numbered = bool(places) and _are_numbered(names)
    if numbered:
        notes.append(
            f"{counted(len(places), 'numbered folder')} ({examples(places)}) "
            f"{_were(places)} read as one set, not as classes"
        )
    classes: tuple[str, ...] = ()
    if table:
        labels, count, further = _look_up(table, files, names)
        notes += [f"the labels are those of {LABELS}: {counted(count, 'class', 'classes')}"]
        notes += further
    elif places and not numbered:
        numbers = {place: number for number, place in enumerate(places)}
        labels = [numbers[name.rpartition("/")[0]] for name in names]
        classes, count = tuple(places), len(places)
    else:
        labels, count = [0] * len(names), 1
    return Layout(names, labels, classes, count, tuple(notes))


def _were(entries: Sequence[Any]) -> str:
    return "was" if len(entries) == 1 else "were"


def _contents(files: Files, folder: str) -> _Contents:
    result = _Contents([], [], [], [])
    for entry in files.entries(folder):
        _kind(result, entry).append(entry.name)
    return result


def _kind(contents: _Contents, entry: Entry) -> list[str]:
    if is_hidden(entry.name):
        return contents.hidden
    if entry.is_folder:
        return contents.folders
    return contents.images if entry.name.lower().endswith(SUFFIXES) else contents.others


def _has_images(files: Files, folder: str, depth: int = 0) -> bool:
    own = _contents(files, folder)
    return bool(own.images) or (
        depth < _NESTED and any(_has_images(files, place, depth + 1) for place in own.folders)
    )


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether the files are numbered across folders, by one of the two known schemes."""
    stems = [name.rpartition(".")[0] for name in names]
    # Classes with numbered names would count their files from the same number each.
    matches = [re.fullmatch(r"([0-9]{5,20})/img([0-9]{1,20})", stem) for stem in stems]
    pairs = [match.groups() for match in matches if match]
    numbers = [int(number) for _, number in pairs]
    of_dataset_tool = (
        len(pairs) == len(names)
        and len({len(place) for place, _ in pairs}) == 1
        and all(one < other for one, other in itertools.pairwise(numbers))
    )
    of_ffhq = all(
        re.fullmatch(r"[0-9]{5}/[0-9]{5}", stem) and int(stem[:5]) == int(stem[6:]) // 1000 * 1000
        for stem in stems
    )
    return of_dataset_tool or of_ffhq


def _read_labels(files: Files) -> list[tuple[str, int, int]] | None:
    """The rows `(file name, label, size of a one-hot vector or 0)`.

    Empty if the labels are null; None if the file is of another kind.
    """
    path = files.path / LABELS
    data = files.read(LABELS)
    if len(data) > MAX_LABELS_BYTES:
        raise ValueError(f"{path} has {len(data):,} bytes, and at most {MAX_LABELS_BYTES:,} fit")
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {first_line(str(error))}") from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    rows = content["labels"]
    if rows is None:
        return []
    expected = f"{path}: labels must be null or a list of [file name, class number]"
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{expected}, not {_shown(rows)}")
    result, wrong = [], []
    for row in rows:
        pair = isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)
        label = _class_number(row[1]) if pair else None
        if label is None:
            wrong.append(row)
        else:
            result.append((row[0].replace("\\", "/"), *label))
    if wrong:
        vectors = any(isinstance(row, list) and isinstance(row[-1], list) for row in wrong if row)
        hint = "; of vectors, only one-hot ones are classes" if vectors else ""
        raise ValueError(
            f"{expected}, not {_shown(wrong[0])} ({counted(len(wrong), 'row')} of {len(rows):,} "
            f"{_were(wrong)} refused{hint})"
        )
    return result


def _class_number(label: Any) -> tuple[int, int] | None:
    """The class, and the size of a one-hot vector or 0; None for all other values."""
    if type(label) is int and 0 <= label < MAX_CLASSES:
        return label, 0
    if not isinstance(label, list) or len(label) > MAX_CLASSES:
        return None
    one_hot = all(type(x) in (int, float) and x in (0, 1) for x in label) and sum(label) == 1
    return (label.index(1), len(label)) if one_hot else None


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)[:80]
    except RecursionError:
        return "deeply nested lists"


def _look_up(
    rows: Sequence[tuple[str, int, int]], files: Files, names: Sequence[str]
) -> tuple[list[int], int, list[str]]:
    """The label of each image, the number of classes, and notes."""
    table: dict[str, int] = {}
    repeated = []
    for name, label, _ in rows:
        if name in table:
            repeated.append(name)
        table[name] = label
    sizes = {size for _, _, size in rows}
    images = set(names)
    missing = [name for name in names if name not in table]
    unused = [name for name in table if name not in images]
    problems = []
    if missing:
        problems.append(
            f"has no label for {len(missing)} of {counted(len(names), 'image')}: "
            f"{examples(missing)}"
        )
    if repeated:
        problems.append(f"has {counted(len(repeated), 'name')} twice: {examples(repeated)}")
    if len(sizes) > 1:
        listed = ", ".join(f"a vector of {n}" if n else "a number" for n in sorted(sizes)[:3])
        problems.append(f"has labels of several forms: {listed}")
    if problems:
        raise ValueError(f"{files.path / LABELS} {'; it '.join(problems)}")
    labels = [table[name] for name in names]
    count = max(sizes) or max(labels) + 1
    notes = []
    if max(sizes):
        notes.append(f"the labels of {LABELS} are one-hot vectors, read as classes")
    if unused:
        notes.append(
            f"{counted(len(unused), 'label')} of {LABELS} {_were(unused)} left out, without an "
            f"image: {examples(unused)}"
        )
    return labels, count, notes
