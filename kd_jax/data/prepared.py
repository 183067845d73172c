"""TFDS datasets that are prepared as array_record: random access without TensorFlow."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds

from kd_jax.data.files import printable, read_file, reason
from kd_jax.data.images import check_fits, decode, open_image, parse_colour
from kd_jax.data.origin import SourceWithOrigin
from kd_jax.data.source import Source, digest

_OWN = "tensorflow_datasets.core.features."

HASHED_WHOLE = 2**30
"""The total size in bytes up to which the files of a dataset are hashed as a whole."""

_BLOCK, _BLOCKS = 2**16, 1024


def open_prepared(
    name: str,
    split: str,
    size: int,
    channels: int,
    cache: Path,
    resize: bool,
    background: str | None = None,
) -> Source:
    """A TFDS dataset by name (`cifar10`, `name/config:1.0.0`).

    Args:
      name: the TFDS name.
      split: the TFDS split.
      size: height and width.
      channels: 1, 3 or 4.
      cache: the directory of TFDS datasets.
      resize: whether to resize and convert images that do not match.
      background: the colour behind transparent images, as of `open_source`.

    Raises:
      FileNotFoundError: the dataset is not prepared.
      ValueError: TFDS does not have the dataset, or it is not supported.
    """
    match = re.fullmatch(r"(\w+)(:[\d.*]+)?(/.*)?", name)
    if not match:  # For NAMESPACE:NAME, TFDS would download programs of other people and run them.
        raise ValueError(f"tfds:{printable(name)} is not NAME[/CONFIG][:VERSION] of TFDS's own")
    try:
        own = tfds.core.naming.camelcase_to_snakecase(match[1])
        _check_features(Path(cache or tfds.core.constants.DATA_DIR) / own)
        builder = tfds.builder(name, data_dir=cache)
    except tfds.core.DatasetNotFoundError:
        # Community datasets would need the network.
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]}?" if close else f", nor does {cache}"
        raise ValueError(f"TFDS has no dataset {name!r}{hint}") from None
    except (ValueError, AssertionError, ImportError) as error:
        raise ValueError(f"tfds:{name} cannot be opened: {reason(error)}") from None
    return from_builder(builder, split, size, channels, resize, background, of_files=True)


def _check_features(folder: Path) -> None:
    """Checks that the files of a dataset name only TFDS's own features.

    TFDS imports the modules that `features.json` names.

    Raises:
      ValueError: a file names another module, or is damaged.
    """
    for path in folder.glob("**/features.json"):
        try:
            pending = [json.loads(read_file(path))]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {reason(error)}") from None
        while pending:
            value = pending.pop()
            if isinstance(value, list):
                pending += value
            elif isinstance(value, dict):
                pending += value.values()
                for key in ("pythonClassName", "type"):
                    name = value.get(key)
                    if isinstance(name, str) and "." in name and not name.startswith(_OWN):
                        raise ValueError(f"{path} names {printable(name[:80])}, not one of TFDS's")


def from_builder(
    builder: Any,
    split: str,
    size: int,
    channels: int,
    resize: bool,
    background: str | None = None,
    *,
    of_files: bool = False,
) -> Source:
    """The images and labels of a prepared builder.

    Args:
      builder: a `tfds.core.DatasetBuilder`.
      split: the TFDS split.
      size: height and width.
      channels: 1, 3 or 4.
      resize: whether to resize and convert images that do not match.
      background: the colour behind transparent images, as of `open_source`.
      of_files: whether the fingerprint depends on the files, by `hash_files`; otherwise the name
        and the version must determine the images.

    Raises:
      FileNotFoundError: the dataset is not prepared.
      ValueError: the split or the feature `image` does not exist, or the images do not match.
    """
    info = builder.info
    name = info.full_name
    if not info.splits:
        builder_name = "/".join(filter(None, [info.name, info.config_name]))
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_dir}; prepare it once with "
            f"tfds.builder({builder_name!r}, data_dir={str(builder.data_dir_root)!r}, "
            "file_format='array_record').download_and_prepare()"
        )
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{name} in {builder.data_dir} is {info.file_format.value}, which needs TensorFlow or "
            "loses rows; prepare it again with file_format='array_record'"
        )
    features = dict(info.features.items())
    feature = features.get("image")
    if not isinstance(feature, tfds.features.Image) or feature.np_dtype != np.uint8:
        raise ValueError(f"{name} has no 8-bit feature 'image'; it has {', '.join(features)}")
    has_label = isinstance(features.get("label"), tfds.features.ClassLabel)
    num_classes = features["label"].num_classes if has_label else 1
    # TFDS would choose a decoder itself and warn about it.
    skip = {key: tfds.decode.SkipDecoding() for key in features}
    try:
        split_info = info.splits[split]
        if not split_info.num_examples:
            raise ValueError(f"no images in split {split!r}")
        records = builder.as_data_source(split=split, decoders=skip)
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(f"{name}: {reason(error)}") from None

    def record(i: int) -> tuple[bytes, int]:
        try:
            example = records[i]
        except Exception as error:  # array_record has no exception types.
            raise ValueError(f"{name} {split}[{i}] cannot be read: {reason(error)}") from None
        label = int(example["label"]) if has_label else 0
        if not 0 <= label < num_classes:  # TFDS uses -1 for hidden labels.
            raise ValueError(f"{name} {split}[{i}] has label {label}: {split} has no labels")
        return example["image"], label

    def read(i: int) -> tuple[npt.NDArray[np.uint8], int]:
        encoded, label = record(i)
        place = f"{name} {split}[{i}]"
        image = open_image(encoded, place)
        return decode(image, place, size, channels, resize, background=background), label

    first = f"{name} {split}[0]"
    with open_image(record(0)[0], first) as image:
        check_fits(image, first, size, channels, resize, background)
    colour = [parse_colour(background)] if background is not None else []
    instructions = split_info.file_instructions
    files = [[Path(part.filename).name, part.skip, part.take] for part in instructions]
    content = hash_files([Path(part.filename) for part in instructions]) if of_files else []
    return SourceWithOrigin(
        name=f"tfds:{name} {split}",
        image_shape=(size, size, channels),
        num_classes=num_classes,
        fingerprint=digest(name, files, size, channels, resize, *colour, *content),
        length=len(records),
        read=read,
        read_labels=lambda: np.array([record(i)[1] for i in range(len(records))], np.int32),
        parts=tuple((f"{name}/{file}", skip, skip + take) for file, skip, take in files),
    )


def hash_files(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file's size and content.

    Of more than `HASHED_WHOLE` bytes in total, blocks of 64 KiB are hashed instead: the first and
    the last of each file, and others at equal distances, about 1,024 in total. The end of an
    array_record file lists the places of all its chunks, which a change of images displaces.
    """
    whole = sum(path.stat().st_size for path in paths) <= HASHED_WHOLE
    count = max(2, _BLOCKS // max(len(paths), 1))

    def one(path: Path) -> str:
        size = path.stat().st_size
        sha256 = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            if whole:
                while block := file.read(2**20):
                    sha256.update(block)
            else:
                for place in np.linspace(0, max(size - _BLOCK, 0), count).astype(int):
                    file.seek(int(place))
                    sha256.update(file.read(_BLOCK))
        return sha256.hexdigest()

    # Reading and hashing release the GIL.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(one, paths))
