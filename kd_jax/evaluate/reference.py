"""The feature extractor of an evaluation, and the cached features of the real images."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.core.files import file_lock, naming, write_atomically
from kd_jax.data import Source, load_all
from kd_jax.metrics.extractor import (
    Extractor,
    classifier_extractor,
    from_file,
    random_network,
)
from kd_jax.report.progress import Progress

FEATURES = ("auto", "classifier", "random")
"""The kinds of features other than those of a weight file."""


def open_extractor(
    kind: str,
    source: Source,
    name: str,
    cache: Path,
    resize: str = "tf1-bilinear",
    progress: Progress | None = None,
) -> Extractor:
    """The feature extractor of an evaluation against the images of a source.

    Args:
      kind: `classifier` (trained on the images, or read from the cache), `random` (a network with
        random weights, which needs no labels), a file of weights (`from_file`), or `auto`: the
        classifier for labelled images, else the random network.
      source: the real images.
      name: the name of the data in the classifier's name.
      cache: the folder of trained classifiers.
      resize: the convention by which Inception's images are resized.
      progress: shows the training of the classifier.

    Raises:
      ValueError: the kind is unknown, or a classifier has no labels to be trained on.
    """
    check_features(kind, source)
    if kind == "random" or (kind == "auto" and source.num_classes < 2):
        return random_network()
    if kind not in FEATURES:
        return from_file(kind, resize)
    images, steps = load_all(source), 1000
    show = progress or Progress()
    return classifier_extractor(
        images["image"],
        images["label"],
        name=name,
        classes=source.num_classes,
        cache=cache,
        steps=steps,
        progress=show.stage(f"training a classifier of {name}", steps),
    )


def check_features(kind: str, source: Source) -> None:
    """Checks the kind of features, before any of them is computed.

    Raises:
      ValueError: as `open_extractor`.
    """
    if kind == "classifier" and source.num_classes < 2:
        raise ValueError(
            f"features='classifier' needs labels, and {source.name} has one class (one sub-folder "
            "per class); 'random' needs none"
        )
    if kind not in FEATURES and not Path(kind).is_file():
        raise ValueError(
            f"features={kind!r} is neither {', '.join(FEATURES)}, nor a file of weights"
        )


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
      progress: called before the first and after each batch with the number of finished images.

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
    features = _stored_features(path)
    if features is None:
        with contextlib.ExitStack() as stack:
            if path is not None:
                lock = file_lock(path.parent, f".{key}.lock", wait=True, needed=False)
                with naming(f"write {path} to the cache"):
                    stack.enter_context(lock)
            features = _stored_features(path)  # of a process that was waited for
            if features is None:
                features = _compute_features(source, extractor, batch, progress)
                if path is not None:
                    file = io.BytesIO()
                    np.savez(file, features=features)
                    with naming(f"write {path} to the cache"):
                        write_atomically(path, file.getvalue())
    progress(len(source))
    return Reference(source, features, source.read_labels(), facts)


def _stored_features(path: Path | None) -> np.ndarray | None:
    """The features in a file of the cache; None if there is none."""
    if path is None or not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            features: np.ndarray = stored["features"]
    except Exception as error:  # zipfile and NumPy raise errors of many kinds
        raise ValueError(f"{path} is damaged; delete it to compute the features again") from error
    return features


def _compute_features(
    source: Source, extractor: Extractor, batch: int, progress: Callable[[int], None]
) -> np.ndarray:
    parts = []
    for start in range(0, len(source), batch):
        progress(start)
        images = [source[i]["image"] for i in range(start, min(start + batch, len(source)))]
        parts.append(extractor.features(np.stack(images)))
    return np.concatenate(parts)
