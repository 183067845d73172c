"""`Source`, the common interface of all data sets: random access to images and labels."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

IN_MEMORY_BYTES = 2**30
"""Sets of at most this size, decoded as uint8, are cached in memory."""


class UnreadableError(ValueError):
    """An image cannot be read; the message is one line that names the image."""


@dataclass(frozen=True, eq=False)
class Source:
    """Random access to images and their labels.

    `len(source)` is the number of images; `source[i]` is `{"image": [H, W, C] float32 in [-1, 1],
    "label": int32}`, the same for every call.

    Attributes:
      name: a description of the origin, for people.
      image_shape: `(H, W, C)`.
      num_classes: labels are in [0, num_classes); 1 for sets without labels, whose labels are 0.
      fingerprint: 16 hex digits of a SHA-256 of everything that determines the content: equal
        fingerprints mean equal images in equal order.
      length: the number of images.
      read: `i -> ([H, W, C] uint8, label)` for `0 <= i < length`; the result must not be modified.
        May be called from several threads.
      read_labels: `() -> [length] int32`, without decoding images.
      in_memory: whether `read` caches images.
      skip_corrupt: whether to replace an unreadable image by the next readable one, which is always
        the same. Otherwise, `source[i]`, `load_all` and batches raise an UnreadableError.
      notes: one line, for people, for each kind of file that was left out when the set was opened,
        and for each kind of conversion.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    fingerprint: str
    length: int
    read: Callable[[int], tuple[npt.NDArray[np.uint8], int]]
    read_labels: Callable[[], npt.NDArray[np.int32]]
    in_memory: bool = False
    skip_corrupt: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Any]:
        (image, label), _ = self.example(range(self.length)[i])
        return {"image": to_float(image), "label": np.int32(label)}

    def example(self, i: int) -> tuple[tuple[npt.NDArray[np.uint8], int], list[str]]:
        """The image and label of the first readable image from `i` on, and the errors before it.

        Raises:
          UnreadableError: image `i` is unreadable and `skip_corrupt` is not set, or all images are.
        """
        problems: list[str] = []
        for place in range(i, i + self.length):
            try:
                return self.read(place % self.length), problems
            except ValueError as error:
                if not self.skip_corrupt:
                    raise UnreadableError(str(error)) from None
                problems.append(str(error))
        raise UnreadableError(f"{self.name}: no image of it can be read; the first: {problems[0]}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(self.length))

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"<{self.name}: {self.length} images {shape}, {self.num_classes} classes>"


def subset(
    source: Source,
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int,
    stratified: bool = True,
) -> Source:
    """A random subset of the images, in the same order, for training with limited data.

    For the same seed, a smaller subset is contained in every larger one.

    Args:
      source: the set to draw from, without replacement.
      fraction: the size of the subset as a fraction of the set, in (0, 1], rounded to the nearest
        count; or
      count: the size of the subset.
      seed: the seed of the draw.
      stratified: whether to draw from each class in proportion to its size, within one image, and
        at least one image of each class if `count` allows it. (Reads all labels.)

    Raises:
      ValueError: not exactly one of `fraction` and `count` is set, or it is out of range.
    """
    if (fraction is None) == (count is None):
        raise ValueError("subset takes either fraction= or count=")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}: it must be in (0, 1]")
        count = math.floor(fraction * len(source) + 0.5)
    if count is None or not 1 <= count <= len(source):
        raise ValueError(f"cannot draw {count} images of {source.name}, which has {len(source)}")
    # Doubles and argsort: the least likely to change between versions of NumPy.
    draw = np.random.default_rng(seed).random(len(source))
    rank = draw
    if stratified:
        labels = source.read_labels()
        rank = np.empty(len(source))
        for label in np.unique(labels):
            (members,) = np.nonzero(labels == label)
            members = members[np.argsort(draw[members])]
            rank[members] = np.arange(len(members)) / len(members)
    indices = np.sort(np.lexsort((draw, rank))[:count])
    return _select(source, indices, f"{source.name}, {count} of {len(source)}")


def strided(source: Source, step: int, start: int = 0) -> Source:
    """Every `step`-th image, beginning at index `start`: `source[start::step]`.

    The sets for `start` = 0, ..., `step` - 1 are a partition of the source, and neighbouring images
    are distributed over all of them.

    Args:
      source: the images.
      step: the distance between indices, at least 1.
      start: the first index, in [0, len(source)).

    Raises:
      ValueError: `step` or `start` is out of range.
    """
    if step < 1 or not 0 <= start < len(source):
        raise ValueError(
            f"[{start}::{step}] of {source.name}, which has {len(source)} images, is invalid: step "
            "must be at least 1 and start in [0, length)"
        )
    indices = np.arange(start, len(source), step)
    return _select(source, indices, f"{source.name}[{start}::{step}]")


def hold_out(source: Source, step: int) -> tuple[Source, Source]:
    """Every `step`-th image, from the first on, and all others: the others first."""
    others = np.array([i for i in range(len(source)) if i % step])
    rest = _select(source, others, f"{source.name} without every {step}th image")
    return rest, strided(source, step)


def _select(source: Source, indices: npt.NDArray[Any], name: str) -> Source:
    return cache_in_memory(
        replace(
            source,
            name=name,
            fingerprint=digest(source.fingerprint, indices.tolist()),
            length=len(indices),
            read=lambda i: source.read(int(indices[i])),
            read_labels=lambda: source.read_labels()[indices],
        )
    )


def load_all(source: Source) -> dict[str, np.ndarray]:
    """All images and labels: `image` `[N, H, W, C]` float32 in [-1, 1], `label` `[N]` int32.

    Raises:
      UnreadableError: as `Source.example`.
    """
    images, labels, _ = read_examples(source, range(len(source)))
    return to_batch(images, labels)


def read_examples(
    source: Source, indices: Sequence[int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], list[list[str]]]:
    """The images and labels at these indices, and the errors of each (`Source.example`).

    Returns:
      `[B, H, W, C]` uint8, `[B]` int32, and B lists of messages.

    Raises:
      UnreadableError: as `Source.example`.
    """
    images = np.empty((len(indices), *source.image_shape), np.uint8)
    labels = np.empty(len(indices), np.int32)
    problems = []
    for row, i in enumerate(indices):
        (images[row], labels[row]), errors = source.example(i)
        problems.append(errors)
    return images, labels, problems


def cache_in_memory(source: Source) -> Source:
    """The source with a cache of its images, if all of them fit into `IN_MEMORY_BYTES`."""
    if source.in_memory or source.length * math.prod(source.image_shape) > IN_MEMORY_BYTES:
        return source
    images = np.empty((source.length, *source.image_shape), np.uint8)
    labels = np.empty(source.length, np.int32)
    cached = np.zeros(source.length, np.bool_)

    def read(i: int) -> tuple[npt.NDArray[np.uint8], int]:
        if not cached[i]:
            images[i], labels[i] = source.read(i)
            cached[i] = True  # Last: other threads may read it.
        return images[i], int(labels[i])

    return replace(source, read=read, in_memory=True)


def to_float(
    images: npt.NDArray[np.uint8], out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Maps 0..255 to float32 in [-1, 1], in `out` if it is an array; both ends are exact."""
    scaled = np.divide(images, np.float32(127.5), out=out, dtype=np.float32)
    return np.subtract(scaled, np.float32(1), out=scaled)


def to_batch(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32]) -> dict[str, np.ndarray]:
    """A batch: `image` `[B, H, W, C]` float32 in [-1, 1], a new array, and `label` `[B]` int32."""
    out = np.empty(images.shape, np.float32)
    for row, image in enumerate(images):
        to_float(image, out[row])  # image by image: both steps stay in the processor's cache
    return {"image": out, "label": labels}


def digest(*parts: Any) -> str:
    """A fingerprint of JSON values: 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
