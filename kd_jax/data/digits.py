"""Scikit-learn's handwritten digits as a TFDS dataset: real images without a download."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from kd_jax.data import embedded
from kd_jax.data.prepared import from_builder
from kd_jax.data.source import Source


class Digits(embedded.Embedded, skip_registration=True):  # type: ignore[call-arg]
    """1,797 grey digits of 8x8, in scikit-learn's order; values in 0..16 are scaled to 0..255."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "As in scikit-learn."}  # noqa: RUF012
    shape = (8, 8, 1)
    classes = 10
    about = "The digits of sklearn.datasets.load_digits, scaled to 0..255."
    homepage = "https://archive.ics.uci.edu/dataset/80"

    def splits(self) -> dict[str, Iterator[tuple[np.ndarray, int]]]:
        """The only split, `train`."""
        return {"train": self._digits()}

    def _digits(self) -> Iterator[tuple[np.ndarray, int]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        for image, label in zip(digits.images, digits.target, strict=True):
            yield np.rint(image * (255 / 16)).astype(np.uint8), int(label)


def open_digits(split: str, size: int, channels: int, cache: Path) -> Source:
    """The digits, enlarged to `size`; written to the cache on first use.

    Args:
      split: `train`, all 1,797, or a part of it (`train[:1500]`).
      size: height and width, at least 8.
      channels: 1, 3 or 4; 3 and 4 channels repeat the grey value.
      cache: the directory of TFDS datasets.

    Raises:
      ValueError: `size` is below 8, or the split does not exist.
    """
    if size < 8:
        raise ValueError(f"size is {size}: the digits are 8x8 and can only be enlarged")
    folder = embedded.prepare(Digits, cache)
    builder = tfds.builder_from_directory(folder)
    return replace(
        from_builder(builder, split, size, channels, resize=True), name=f"digits {split}"
    )
