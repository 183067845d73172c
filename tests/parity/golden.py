"""Golden files, and the functions shared by the families to read them."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

DEFAULT = Path(__file__).parents[3] / "shared" / "golden"
FOLDER = Path(os.environ.get("KD_JAX_GOLDEN", DEFAULT))
FILES = sorted(FOLDER.glob("*.npz"))

Outputs = Mapping[str, object]


class Family(NamedTuple):
    """How the files of one family are checked.

    Attributes:
      outputs: computes every output of a file, by its name there.
      tolerance: maps an output's name to a tolerance relative to each number, and to the largest
        number of the array.
      as_stored: maps an output's name to whether it is compared in the file's layout (a kernel's
        gradient, say) instead of kd_jax's layout for images.
      absolute: maps an output's name to an absolute tolerance that replaces the one relative to the
        largest number, or None.
      slow: whether only `make test-all` checks them.
    """

    outputs: Callable[["File"], Outputs]
    tolerance: Callable[[str], float] = lambda name: 1e-4
    as_stored: Callable[[str], bool] = lambda name: False
    absolute: Callable[[str], float | None] = lambda name: None
    slow: bool = False


class File:
    """A golden file: images in kd_jax's layout, other arrays as stored."""

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.config = json.loads(str(self.arrays.pop("config")))

    def __getitem__(self, name: str) -> np.ndarray:
        return nhwc(self.arrays[name])

    def numbered(self, prefix: str) -> list[np.ndarray]:
        """`prefix0`, `prefix1`, ..."""
        count = sum(re.fullmatch(re.escape(prefix) + r"\d+", name) is not None for name in self)
        return [self[f"{prefix}{i}"] for i in range(count)]

    def __iter__(self):
        return iter(self.arrays)


def nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def weights(file: File) -> dict[str, np.ndarray]:
    """The original state dict."""
    return {k.removeprefix("sd/"): file.arrays[k] for k in file if k.startswith("sd/")}


def split_floating(tensors: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """The tensors that have gradients, and the others."""
    floating = {k: v for k, v in tensors.items() if np.issubdtype(v.dtype, np.floating)}
    return floating, {k: v for k, v in tensors.items() if k not in floating}


def oihw(x: np.ndarray) -> np.ndarray:
    """A kernel, `[O, H, W, I]` after `nhwc`, as `[H, W, I, O]`."""
    return x.transpose(1, 2, 3, 0)


def connector(file: File, name: str) -> Callable:
    """The 1x1 convolution of that name."""
    weight, bias = oihw(file[f"sd/{name}.weight"])[0, 0], file[f"sd/{name}.bias"]
    return lambda x: x @ weight + bias.reshape(1, 1, 1, -1)


def with_gradients(name: str, fn: Callable, arguments: Mapping[str, object]) -> Outputs:
    """The value under `out/NAME` and its gradients under `out/grad/NAME/ARGUMENT`."""
    value, gradients = jax.value_and_grad(fn)(dict(arguments))
    return {f"out/{name}": value} | {f"out/grad/{name}/{k}": g for k, g in gradients.items()}
