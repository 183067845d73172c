"""Scikit-learn's handwritten digits as a TFDS dataset: real images with no download."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kd_jax.data.prepared import from_builder
from kd_jax.data.source import Source


class _LocalInfo(tfds.core.DatasetInfo):
    """What is known of a dataset, without asking TFDS's bucket for it."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would go to the network, and leave a folder in the temporary one."""


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """1,797 digits, 8x8, grey, in scikit-learn's order; its values 0..16 become 0..255."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "As in scikit-learn."}  # noqa: RUF012
    # TFDS looks beside the code for checksums of downloads, with a package it does not require.
    code_path = None

    def _info(self) -> Any:
        return _LocalInfo(
            builder=self,
            description="The digits of sklearn.datasets.load_digits, scaled to 0..255.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            png = io.BytesIO()
            Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)).save(png, "png")
            yield i, {"image": io.BytesIO(png.getvalue()), "label": int(label)}


def open_digits(split: str, size: int, channels: int, cache: Path | None) -> Source:
    """The digits, written to the cache the first time, enlarged to `size`.

    Args:
      split: `train`, all 1,797, or a part of it (`train[:1500]`).
      size: height and width, at least 8.
      channels: 1, 3 or 4; the latter are the same grey.
      cache: where TFDS datasets are; None is TFDS's default.

    Raises:
      ValueError: `size` is below 8, or there is no such split.
    """
    if size < 8:
        raise ValueError(f"size is {size}: the digits are 8x8, and can only be enlarged")
    folder = prepare(cache or Path(tfds.core.constants.DATA_DIR))
    builder = tfds.builder_from_directory(folder)
    return replace(
        from_builder(builder, split, size, channels, resize=True), name=f"digits {split}"
    )


def prepare(data_dir: Path) -> Path:
    """Writes the digits where TFDS looks for them, if they are not there; returns their folder.

    They are written aside and renamed: any number of processes may do so at once.
    """
    final = data_dir / "digits" / str(Digits.VERSION)
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".digits-", dir=data_dir) as aside, _quiet_tfds():
        builder = Digits(data_dir=aside, file_format="array_record")
        builder.download_and_prepare()
        try:
            os.rename(builder.data_dir, final)
        except OSError:
            if not final.exists():  # Otherwise another process has been faster.
                raise
    return final


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
