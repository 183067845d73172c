"""Weight files of small published-like generators, from the golden files and made here."""

from pathlib import Path

import numpy as np
from parity.golden import FILES, FOLDER, File, weights
from pretrained.test_registry import as_checkpoint, as_safetensors

from kd_jax import pretrained

SNAPSHOTS = ("sg2_tiny", "sg3_tiny", "sg2_tf_legacy_tiny")


def generators() -> list[str]:
    """The names of golden files that hold a generator's state dict, and of the snapshots."""
    families = ("_g", "biggan_deep_hf", "rrdb", "srvgg", "resnet_affine", "stylegan3_")
    names = [path.stem for path in FILES if any(part in path.stem for part in families)]
    others = ("edm", "distill", "gan")
    names = [name for name in names if not name.startswith(others) and "_d_" not in name]
    snapshots = [name for name in SNAPSHOTS if (FOLDER / "pkl" / f"{name}.pkl").exists()]
    return sorted(names) + snapshots


def write(name: str, folder: Path) -> Path:
    """The weight file of a golden file, in a folder."""
    if name in SNAPSHOTS:
        return FOLDER / "pkl" / f"{name}.pkl"
    path = folder / f"{name}.safetensors"
    path.write_bytes(as_safetensors(weights(File(FOLDER / f"{name}.npz"))))
    return path


def write_state_dict(path: Path, golden: Path) -> Path:
    """The state dict of a golden file."""
    path.write_bytes(as_safetensors(weights(File(golden))))
    return path


def write_parts(path: Path, parts: dict[str, dict[str, np.ndarray]]) -> Path:
    """A file with several state dicts by name."""
    path.write_bytes(as_checkpoint(**parts))
    return path


def dcgan_state_dict(widths=(16, 12, 8), latent=6, channels=3, seed=0) -> dict[str, np.ndarray]:
    """The state dict of PyTorch's example DCGAN of 8 * 2**len(widths) / 2 pixels."""
    random = np.random.default_rng(seed)
    tensors = {}
    shape = (latent, widths[0])
    for index, width in enumerate(widths):
        norm = f"main.{3 * index + 1}"
        tensors[f"main.{3 * index}.weight"] = random.normal(size=(*shape, 4, 4)) / 4
        tensors |= {
            f"{norm}.weight": np.ones(width),
            f"{norm}.bias": np.zeros(width),
            f"{norm}.running_mean": 0.1 * random.normal(size=width),
            f"{norm}.running_var": 1 + random.random(width),
        }
        shape = (width, (*widths, channels)[index + 1])
    tensors[f"main.{3 * len(widths)}.weight"] = random.normal(size=(*shape, 4, 4)) / 4
    return {name: values.astype(np.float32) for name, values in tensors.items()}


def write_dcgan(path: Path, **options) -> Path:
    """A file of `dcgan_state_dict`."""
    path.write_bytes(as_safetensors(dcgan_state_dict(**options)))
    assert next(iter(pretrained.parts(path).values())).generates
    return path
