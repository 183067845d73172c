"""The subjects of an evaluation: generators, and folders of images that any program has written."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.core.files import naming
from kd_jax.core.mesh import make_mesh
from kd_jax.data import Source, open_source, subset
from kd_jax.data.files import Folder
from kd_jax.data.layout import KINDS, SUFFIXES, read_layout
from kd_jax.data.origin import SourceWithOrigin
from kd_jax.data.source import read_examples
from kd_jax.evaluate.generator import (
    EvaluatedGenerator,
    Samples,
    display_name,
    draw,
    interpolate,
    open_generator,
    sampler,
    split_spec,
)
from kd_jax.model import FOLDERS, holds_checkpoints

Progress = Callable[[int], None]


class Subject(NamedTuple):
    """Images to compare with real ones: the samples of a generator, or the images of a folder.

    Attributes:
      name: its name in the report.
      path: the path it was read from.
      image_shape: `(H, W, C)`.
      sample: `(count, seed, progress) -> Samples`: of a generator, a draw of its latents; of a
        folder, all images, or a random subset of `count`.
      classes: the number of classes of the samples' labels; 0 if they have none.
      class_names: the names of the classes; empty if they are numbered as those of the data.
      available: the number of images of a folder; None for a generator, which has any number.
      generator: the generator, which has a cost; None for a folder.
      interpolate: `(seed, rows, columns) -> images` of a generator, row by row; None for a folder.
      notes: one line for each kind of file that was left out or converted.
    """

    name: str
    path: str
    image_shape: tuple[int, ...]
    sample: Callable[[int, int, Progress], Samples]
    classes: int
    class_names: tuple[str, ...] = ()
    available: int | None = None
    generator: EvaluatedGenerator | None = None
    interpolate: Callable[[int, int, int], np.ndarray] | None = None
    notes: tuple[str, ...] = ()


def open_subjects(
    specs: Sequence[str],
    packages: Sequence[str] = (),
    *,
    batch: int = 64,
    resize: bool = False,
    background: str | None = None,
    file_options: Mapping[str, Any] = {},
    **options: Any,
) -> list[Subject]:
    """Opens `PATH` or `NAME=PATH` each: generators, and folders of images of the same shape.

    Args:
      specs: as `open_generator`, or a folder of images, which may be in sub-folders.
      packages: further packages whose modules a checkpoint may contain.
      batch: the number of images per transfer from the devices.
      resize: whether to convert images of folders to the shape of the generators; without
        generators, to that of the first folder's first image.
      background: the colour behind transparent images of folders, as of `kd_jax.data.open_source`.
      file_options: as `open_generator`, for all published files.
      **options: options of `network.apply`, for all generators.

    Raises:
      ValueError: a path holds neither a network nor images, two names are equal, or the shapes of
        the images differ.
      OSError, CheckpointError: a file or checkpoint cannot be read, or is damaged.
    """
    folders = [spec for spec in specs if holds_images(split_spec(spec)[1])]
    opened = {
        spec: of_generator(open_generator(spec, packages, file_options, **options), batch)
        for spec in specs
        if spec not in folders
    }
    shape = _common_shape(list(opened.values()), folders, resize)
    opened |= {spec: open_images(spec, shape, resize, background) for spec in folders}
    subjects = [opened[spec] for spec in specs]
    names = [subject.name for subject in subjects]
    if file_options and not any(Path(subject.path).is_file() for subject in subjects):
        raise ValueError(f"no network is a weight file, which has the options {[*file_options]}")
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two networks have the name {min(duplicates)}; name them by NAME=PATH")
    return subjects


def _common_shape(
    generators: Sequence[Subject], folders: Sequence[str], resize: bool
) -> tuple[int, int, int]:
    if not generators:
        return _first_shape(split_spec(folders[0])[1], resize)
    first = generators[0]
    for subject in generators:
        if subject.image_shape != first.image_shape:
            raise ValueError(
                f"{subject.name} generates images {subject.image_shape} but {first.name} "
                f"{first.image_shape}; all networks must have the same image shape"
            )
    height, width, channels = first.image_shape
    if height != width:
        raise ValueError(f"{first.name} generates {height}x{width}; square images are needed")
    return height, width, channels


def holds_images(path: Path) -> bool:
    """Whether a path is a folder of images, also in sub-folders, and not a network.

    Raises:
      ValueError: a folder is neither.
    """
    if not path.is_dir() or holds_checkpoints(path):
        return False  # a file may be of weights, or absent
    if any(name.lower().endswith(SUFFIXES) for _, _, files in os.walk(path) for name in files):
        return True
    raise ValueError(
        f"{path} is neither a training (with a folder {' or '.join(FOLDERS[1:])}, or numbered "
        f"steps) nor a folder of images ({KINDS}, also in sub-folders)"
    )


def _first_shape(path: Path, resize: bool) -> tuple[int, int, int]:
    """The shape of a folder's first image, `(H, H, C)`; colour with transparency is colour."""
    from kd_jax.data.images import open_image

    folder = Folder(path)
    name = read_layout(folder).names[0]
    file = path / name
    with open_image(folder.read(name), str(file)) as image:
        width, height = image.size
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    if height != width and not resize:
        raise ValueError(
            f"{file} is {width}x{height}; square images are needed, and --resize takes the centre"
        )
    return min(height, width), min(height, width), 1 if grey else 3


def of_generator(generator: EvaluatedGenerator, batch: int) -> Subject:
    """The samples of a generator, from draws of its latents.

    Args:
      generator: the generator.
      batch: as `sampler`.
    """
    compiled = cache(lambda: sampler(generator, batch, make_mesh()))

    def sample(count: int, seed: int, progress: Progress) -> Samples:
        return compiled()(draw(generator, count, seed), progress)

    def paths(seed: int, rows: int, columns: int) -> np.ndarray:
        images: np.ndarray = compiled()(interpolate(generator, seed, rows, columns)).images
        return images

    return Subject(
        generator.name,
        generator.path,
        generator.image_shape,
        sample,
        generator.classes,
        generator=generator,
        interpolate=paths,
    )


def open_images(
    spec: str, shape: tuple[int, int, int], resize: bool = False, background: str | None = None
) -> Subject:
    """A folder of images, in the order of their names; of sub-folders, the classes alternate.

    Args:
      spec: `PATH` or `NAME=PATH`.
      shape: `(H, H, C)` of the images.
      resize: whether to convert other images to it.
      background: the colour behind transparent images, as of `kd_jax.data.open_source`.

    Raises:
      FileNotFoundError: there are no images.
      ValueError: an image is of another shape; the message names the first.
    """
    name, path = split_spec(spec)
    with naming(f"read the images {path}"):
        source = open_source(
            f"folder:{path}", "train", shape[0], shape[2], resize=resize, background=background
        )
    names = _class_names(source) if source.num_classes > 1 else ()

    def sample(count: int, seed: int, progress: Progress) -> Samples:
        whole = count == len(source)
        chosen = source if whole else subset(source, count=count, seed=seed)
        labels = chosen.read_labels()
        # Scores of parts of the samples need all classes in each part.
        order = interleave_classes(labels)
        images, _, _ = read_examples(chosen, order)
        progress(count)
        return Samples(images, labels[order] if names else None, 0.0)

    return Subject(
        name or display_name(path),
        str(path),
        shape,
        sample,
        len(names),
        names,
        len(source),
        notes=source.notes,
    )


def labels_in(subject: Subject, labels: np.ndarray | None, source: Source) -> np.ndarray | None:
    """The samples' labels as numbers of the data's classes; None where the classes differ.

    Args:
      subject: the origin of the samples.
      labels: int `[N]`, or None.
      source: the real images. Classes without names are named `0`, `1`, ...
    """
    if labels is None or subject.classes != source.num_classes:
        return None
    if not subject.class_names:
        return labels
    numbers = {name: number for number, name in enumerate(_class_names(source))}
    if numbers.keys() != set(subject.class_names):
        return None
    return np.array([numbers[name] for name in subject.class_names], np.int32)[labels]


def _class_names(source: Source) -> tuple[str, ...]:
    own = source.classes if isinstance(source, SourceWithOrigin) else ()
    return own or tuple(map(str, range(source.num_classes)))


def interleave_classes(labels: np.ndarray) -> list[int]:
    """Indices of all images, ordered so that their labels cycle through the classes."""
    ranks = np.empty(len(labels), int)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        ranks[members] = np.arange(len(members))
    return [int(index) for index in np.lexsort((labels, ranks))]
