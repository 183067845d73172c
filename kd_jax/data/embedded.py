"""Datasets made of images that come with other packages, written once as TFDS datasets."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class _LocalInfo(tfds.core.DatasetInfo):
    """What is known of a dataset, without asking TFDS's bucket for it."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would go to the network, and leave a folder in the temporary one."""


class Embedded(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A builder whose examples come from `examples`; subclasses say what there is.

    Attributes:
      shape: the images'.
      classes: names, or their number.
      about: what it is.
      homepage: where the images are from.
    """

    # TFDS looks beside the code for checksums of downloads, with a package it does not require.
    code_path = None
    shape: tuple[int, int, int]
    classes: int | Sequence[str]
    about: str
    homepage: str

    def _info(self) -> Any:
        if isinstance(self.classes, int):
            label = tfds.features.ClassLabel(num_classes=self.classes)
        else:
            label = tfds.features.ClassLabel(names=list(self.classes))
        return _LocalInfo(
            builder=self,
            description=self.about,
            homepage=self.homepage,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=self.shape, encoding_format="png"),
                    "label": label,
                }
            ),
            disable_shuffling=True,
        )

    def splits(self) -> dict[str, Iterator[tuple[np.ndarray, int]]]:
        """The uint8 images and the labels of each split, in order."""
        raise NotImplementedError

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {name: self._generate_examples(found) for name, found in self.splits().items()}

    def _generate_examples(
        self, found: Iterator[tuple[np.ndarray, int]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(found):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "png")
            yield i, {"image": io.BytesIO(png.getvalue()), "label": label}


def prepare(builder: type[Embedded], data_dir: Path) -> Path:
    """Writes a dataset where TFDS looks for it, if it is not there; returns its folder.

    It is written aside and renamed: any number of processes may do so at once.
    """
    final = data_dir / builder.name / str(builder.VERSION)
    if final.exists():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{builder.name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=data_dir) as aside, _quiet_tfds():
        made = builder(data_dir=aside, file_format="array_record")
        made.download_and_prepare()
        try:
            os.rename(made.data_dir, final)
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
