"""Cached features of the real images."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.data import Source
from kd_jax.metrics.extractor import Extractor


class Reference(NamedTuple):
    """Real images and their features.

    Attributes:
      source: the images.
      features: `[N, D]` float32.
      labels: int32 `[N]`.
      facts: the settings that the features depend on, as JSON values; hashed into the cache key.
    """

    source: Source
    features: np.ndarray
    labels: np.ndarray
    facts: dict[str, str | int]


def read_reference(
    source: Source,
    extractor: Extractor,
    split: str,
    cache: Path | None,
    batch: int = 256,
    progress: Callable[[int], None] = lambda done: None,
) -> Reference:
    """The features of all images of a source, from the cache where available.

    Args:
      source: the images.
      extractor: the feature extractor; its name includes the hash of its weights.
      split: the split of the data.
      cache: the cache folder; None for no cache.
      batch: the number of images per batch.
      progress: called after each batch with the number of finished images.

    Raises:
      ValueError: an image or the cached file is damaged.
    """
    height, width, channels = source.image_shape
    facts: dict[str, str | int] = {
        "data": source.name,
        "split": split,
        "fingerprint": source.fingerprint,
        "images": len(source),
        "size": f"{height}x{width}x{channels}",
        "extractor": extractor.name,
        "range": "[-1, 1] from 8 bits",
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / "features" / f"{key}.npz" if cache else None
    if path is not None and path.exists():
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                features = stored["features"]
        except Exception as error:  # zipfile and NumPy raise errors of many kinds
            raise ValueError(
                f"{path} is damaged; delete it to compute the features again"
            ) from error
        progress(len(source))
    else:
        parts = []
        for start in range(0, len(source), batch):
            stop = min(start + batch, len(source))
            images = np.stack([source[i]["image"] for i in range(start, stop)])
            parts.append(extractor.features(images))
            progress(stop)
        features = np.concatenate(parts)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            with partial.open("wb") as file:
                np.savez(file, features=features)
            os.replace(partial, path)
    return Reference(source, features, source.read_labels(), facts)
