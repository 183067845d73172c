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
LARGE_SIDE, LARGE_STRIDE = 256, 64

TRAIN = ("astronaut", "coffee", "rocket", "flower", "brick", "grass")
TEST = ("chelsea", "china", "gravel")
"""The photographs; the label of a patch is the index of its photograph in `TRAIN + TEST`."""


class Photos(embedded.Embedded, skip_registration=True):  # type: ignore[call-arg]
    """Patches of 64x64 with a stride of 32, row by row; training and test photographs differ."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Nine photographs, two of them of scikit-learn."}  # noqa: RUF012
    side, stride = SIDE, STRIDE
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
            for top in range(0, photo.shape[0] - self.side + 1, self.stride):
                for left in range(0, photo.shape[1] - self.side + 1, self.stride):
                    patch = photo[top : top + self.side, left : left + self.side]
                    yield np.ascontiguousarray(patch), label


class LargePhotos(Photos, skip_registration=True):  # type: ignore[call-arg]
    """Patches of 256x256 with a stride of 64."""

    side, stride = LARGE_SIDE, LARGE_STRIDE
    shape = (LARGE_SIDE, LARGE_SIDE, 3)


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
      size: height and width, at most 256. Up to 64, patches of 64x64 are downsampled; above, those
        of 256x256, of which there are fewer.
      channels: 1, 3 or 4.
      cache: the directory of TFDS datasets.

    Raises:
      ValueError: `size` is above 256, or the split does not exist.
    """
    if size > LARGE_SIDE:
        raise ValueError(
            f"size is {size}: the largest patches of the photos are {LARGE_SIDE}x{LARGE_SIDE}"
        )
    folder = embedded.prepare(Photos if size <= SIDE else LargePhotos, cache)
    builder = tfds.builder_from_directory(folder)
    source = from_builder(builder, split, size, channels, resize=True)
    return replace(source, name=f"photos {split}")
