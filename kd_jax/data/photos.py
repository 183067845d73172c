"""Patches of the photographs that are shipped with scikit-image and scikit-learn: no download."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kd_jax.data import embedded
from kd_jax.data.prepared import from_builder
from kd_jax.data.source import Source

SIDE, STRIDE = 64, 32

TRAIN = ("astronaut", "coffee", "rocket", "flower", "brick", "grass")
TEST = ("chelsea", "china", "gravel")
"""The photographs; the label of a patch is the index of its photograph in `TRAIN + TEST`."""


class Photos(embedded.Embedded, skip_registration=True):  # type: ignore[call-arg]
    """Patches of 64x64 with a stride of 32, row by row; training and test photographs differ."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Nine photographs, two of them of scikit-learn."}  # noqa: RUF012
    shape = (SIDE, SIDE, 3)
    classes = TRAIN + TEST
    about = "Patches of photographs that come with scikit-image and scikit-learn."
    homepage = "https://scikit-image.org/docs/stable/api/skimage.data.html"

    def splits(self) -> dict[str, Iterator[tuple[np.ndarray, int]]]:
        """All patches of a photograph belong to the same split."""
        return {"train": self._patches(TRAIN), "test": self._patches(TEST)}

    def _patches(self, names: tuple[str, ...]) -> Iterator[tuple[np.ndarray, int]]:
        for name in names:
            photo, label = _photo(name), self.classes.index(name)
            for top in range(0, photo.shape[0] - SIDE + 1, STRIDE):
                for left in range(0, photo.shape[1] - SIDE + 1, STRIDE):
                    patch = photo[top : top + SIDE, left : left + SIDE]
                    yield np.ascontiguousarray(patch), label


def _photo(name: str) -> np.ndarray:
    """`[H, W, 3]` uint8."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(f"{name}.jpg"))
    from skimage import data

    photo: Any = getattr(data, name)()
    return photo if photo.ndim == 3 else np.stack([photo] * 3, axis=-1)


def open_photos(split: str, size: int, channels: int, cache: Path) -> Source:
    """The patches, downsampled to `size`; written to the cache on first use.

    Args:
      split: `train` (six photographs), `test` (three others), or a part of one.
      size: height and width, at most 64.
      channels: 1, 3 or 4.
      cache: the directory of TFDS datasets.

    Raises:
      ValueError: `size` is above 64, or the split does not exist.
    """
    if size > SIDE:
        raise ValueError(f"size is {size}: the patches of the photos are {SIDE}x{SIDE}")
    folder = embedded.prepare(Photos, cache)
    builder = tfds.builder_from_directory(folder)
    source = from_builder(builder, split, size, channels, resize=True)
    return replace(source, name=f"photos {split}")
