"""TFDS datasets of images that are shipped with other packages, written on first use."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kd_jax.core.files import file_lock, naming


class _LocalInfo(tfds.core.DatasetInfo):
    """The metadata of a dataset, without a request to TFDS's bucket."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would use the network and leave a directory in the temporary one."""


class Embedded(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A builder whose examples come from `splits`, which subclasses implement.

    Attributes:
      shape: the shape of the images.
      classes: the names of the classes, or their number.
      about: the description of the dataset.
      homepage: the origin of the images.
    """

    # TFDS looks for checksums of downloads next to the code, with a package it does not require.
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
        return {name: self._generate_examples(examples) for name, examples in self.splits().items()}

    def _generate_examples(
        self, examples: Iterator[tuple[np.ndarray, int]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(examples):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "png")
            yield i, {"image": io.BytesIO(png.getvalue()), "label": label}


def prepare(builder: type[Embedded], data_dir: Path) -> Path:
    """Writes a dataset where TFDS looks for it, unless it exists; returns its directory.

    The dataset is written to a temporary directory and renamed. Other processes wait for the first;
    what killed ones left is removed.
    """
    final = data_dir / builder.name / str(builder.VERSION)
    prefix, lock = f".{builder.name}-", f".{builder.name}.lock"
    leftovers = list(data_dir.glob(f"{prefix}*"))
    if final.exists():
        if leftovers:
            with contextlib.suppress(OSError), file_lock(data_dir, lock, needed=False) as locked:
                _remove(leftovers if locked else ())
        return final
    with (
        naming(f"write the data set {builder.name} to the cache {data_dir}"),
        file_lock(data_dir, lock, wait=True, needed=False) as locked,
    ):
        if final.exists():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove(data_dir.glob(f"{prefix}*") if locked else ())
        with tempfile.TemporaryDirectory(prefix=prefix, dir=data_dir) as temporary, _quiet_tfds():
            dataset = builder(data_dir=temporary, file_format="array_record")
            dataset.download_and_prepare()
            try:
                os.rename(dataset.data_dir, final)
            except OSError:
                if not final.exists():  # Otherwise, another process has written it.
                    raise
    return final


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
