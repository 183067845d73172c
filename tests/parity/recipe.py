"""Weights of the large networks, generated from their names instead of stored in the files."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def tensor(key: str, shape: Sequence[int]) -> np.ndarray:
    """The tensor with this name and PyTorch shape."""
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    random = np.random.RandomState(zlib.crc32(key.encode()))
    normal = np.asarray(random.standard_normal(int(np.prod(shape)))).reshape(tuple(shape))
    if key.startswith("lin"):
        value = 0.1 * np.abs(normal)
    elif len(shape) > 1:
        value = normal * np.sqrt(2 / np.prod(shape[1:]))
    else:
        value = {
            "running_mean": 0.1 * normal,
            "running_var": 1 + 0.5 * np.abs(normal),
            "bias": 0.05 * normal,
            "weight": 1 + 0.1 * normal,
        }[last]
    return value.astype(np.float32)


def tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The state dict with these names and shapes."""
    return {key: tensor(key, shape) for key, shape in shapes.items()}
