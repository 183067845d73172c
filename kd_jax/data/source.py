"""A set of images by number: what every experiment reads, whatever it comes from."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

IN_MEMORY_BYTES = 2**30
"""Sets of at most so many bytes, decoded as uint8, are kept in memory once read."""


class UnreadableError(ValueError):
    """An image cannot be read; the message is one line that names it."""


@dataclass(frozen=True, eq=False)
class Source:
    """Images and their labels by number.

    `len(source)` is their number; `source[i]` is `{"image": [H, W, C] float32 in [-1, 1],
    "label": int32}`, the same at each call.

    Attributes:
      name: where they come from, for people.
      image_shape: `(H, W, C)`.
      num_classes: labels are below it; 1 where there are no labels, which then are all 0.
      fingerprint: 16 hex digits of a sha256 of what determines the content: equal fingerprints mean
        equal images in equal order.
      length: how many there are.
      read: `i -> ([H, W, C] uint8, label)` for `0 <= i < length`; not to be written to. May be
        called from several threads.
      read_labels: `() -> [length] int32`, without decoding images.
      in_memory: whether `read` keeps what it has read.
      skip_corrupt: whether the next image that can be read stands for one that cannot: always the
        same one. Otherwise `source[i]`, `arrays` and batches raise an UnreadableError.
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

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Any]:
        (image, label), _ = self.example(range(self.length)[i])
        return {"image": to_float(image), "label": np.int32(label)}

    def example(self, i: int) -> tuple[tuple[npt.NDArray[np.uint8], int], list[str]]:
        """What `read` gives, or would of the next image that can be read; what could not be.

        Raises:
          UnreadableError: image `i` cannot be read and `skip_corrupt` is not set, or none can be.
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
    """Some of the images, in the same order: the regime of scarce data.

    With the same seed a smaller subset is part of every larger one.

    Args:
      source: where to draw from, without replacement.
      fraction: how many to draw, as a part of all, in (0, 1], rounded to the nearest count; or
      count: how many to draw.
      seed: of the draw.
      stratified: draw from each class in proportion to its size, within one image, and at least one
        from each class if `count` allows it. (InputAxis all labels.)

    Raises:
      ValueError: not exactly one of `fraction` and `count` is given, or it is out of range.
    """
    if (fraction is None) == (count is None):
        raise ValueError("subset takes either fraction= or count=")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}: it must be in (0, 1]")
        count = math.floor(fraction * len(source) + 0.5)
    if count is None or not 1 <= count <= len(source):
        raise ValueError(f"a subset of {count} images of {source.name}, which has {len(source)}")
    # Doubles and argsort: of all that NumPy draws, the least likely to change with its version.
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
    return _chosen(source, indices, f"{source.name}, {count} of {len(source)}")


def strided(source: Source, step: int, start: int = 0) -> Source:
    """Each `step`-th image, from number `start` on: `source[start::step]`.

    Those of `start` = 0, ..., `step` - 1 are disjoint and together the whole: one set of images
    dealt out, so that each part has of everything that lies together in it.

    Args:
      source: the images.
      step: from one to the next, at least 1.
      start: the first, at least 0.

    Raises:
      ValueError: a number is out of range, or `source` has no image of number `start`.
    """
    if step < 1 or not 0 <= start < len(source):
        raise ValueError(
            f"[{start}::{step}] of {source.name}, which has {len(source)} images, is no set of "
            "images: step is at least 1, and start one of their numbers"
        )
    indices = np.arange(start, len(source), step)
    return _chosen(source, indices, f"{source.name}[{start}::{step}]")


def _chosen(source: Source, indices: npt.NDArray[Any], name: str) -> Source:
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
    """All of it at once: `image` `[N, H, W, C]` float32 in [-1, 1], `label` `[N]` int32.

    Raises:
      UnreadableError: as `Source.example`.
    """
    return to_batch([source.example(i)[0] for i in range(len(source))])


def cache_in_memory(source: Source) -> Source:
    """The source, keeping what it has read if all of it fits into `IN_MEMORY_BYTES`."""
    if source.in_memory or source.length * math.prod(source.image_shape) > IN_MEMORY_BYTES:
        return source
    images = np.empty((source.length, *source.image_shape), np.uint8)
    labels = np.empty(source.length, np.int32)
    known = np.zeros(source.length, np.bool_)

    def read(i: int) -> tuple[npt.NDArray[np.uint8], int]:
        if not known[i]:
            images[i], labels[i] = source.read(i)
            known[i] = True  # Last: another thread may be looking.
        return images[i], int(labels[i])

    return replace(source, read=read, in_memory=True)


def to_float(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """From 0..255 to float32 in [-1, 1], both ends exact."""
    out = images.astype(np.float32)
    out /= 127.5
    out -= 1
    return out


def to_batch(examples: list[tuple[npt.NDArray[np.uint8], int]]) -> dict[str, np.ndarray]:
    """Examples as read, as arrays: `image` `[B, H, W, C]` in [-1, 1] and `label` `[B]` int32."""
    images, labels = zip(*examples, strict=True)
    return {"image": to_float(np.stack(images)), "label": np.array(labels, np.int32)}


def digest(*parts: Any) -> str:
    """A fingerprint of JSON values: 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
