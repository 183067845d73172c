"""The real images' side of every figure: features, read once and cached."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.data import Source
from kd_jax.evaluate.extractor import Extractor


class Reference(NamedTuple):
    """Real images and what an extractor makes of them.

    Attributes:
      source: the images.
      features: `[N, D]` float32.
      labels: int32 `[N]`.
      facts: what these features depend on, as JSON values; the cache's key is made of them.
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
    """The features of all images of a source, from the cache if they are there.

    Args:
      source: the images.
      extractor: what makes features of them; its name carries its weights' hash.
      split: which part of the data they are.
      cache: a folder; None for no cache.
      batch: images read at a time.
      progress: is told after each batch how many there are.

    Raises:
      ValueError: an image is damaged, or the cached file is.
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
            raise ValueError(f"{path} is damaged; delete it, and it is made again") from error
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
