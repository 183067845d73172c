"""Published metrics of features and logits, with the parameters in the outputs' names."""

import re
from collections.abc import Callable

import numpy as np

from kd_jax.metrics import kid as kid_metric
from kd_jax.metrics.conventions import TOOLS
from kd_jax.metrics.frechet import Moments, frechet_distance, frechet_distance_of_features, moments
from kd_jax.metrics.inception_score import inception_score
from kd_jax.metrics.prdc import neighbourhoods
from parity.golden import Family, File, Outputs


def fid(file: File, tool: str) -> float:
    """The distance from the features, from their moments and from the file's moments."""
    names = {
        "torchfidelity": "torch-fidelity",
        "cleanfid": "clean-fid",
        "pytorchfid": "pytorch-fid",
    }
    ddof = TOOLS[names.get(tool, tool)].ddof
    sides = ("fake", "real")
    distances = [
        frechet_distance_of_features(*(file[f"in/{side}"] for side in sides), ddof=ddof),
        frechet_distance(*(moments(file[f"in/{side}"], ddof) for side in sides)),
    ]
    if ddof == 1 and "in/mu_fake64" in file:
        stored = (Moments(0, file[f"in/mu_{s}64"], file[f"in/sigma_{s}64"]) for s in sides)
        distances.append(frechet_distance(*stored))
    np.testing.assert_allclose(distances, distances[0], rtol=1e-9)
    return distances[0]


def sets(file: File) -> tuple[np.ndarray, np.ndarray]:
    return file["in/fake"], file["in/real"]


def equal_counts(file: File) -> tuple[np.ndarray, np.ndarray]:
    """The same number of fake and real examples, the first ones, as in the tools' functions."""
    fake, real = sets(file)
    count = min(len(fake), len(real))
    return fake[:count], real[:count]


def kid(file: File, subsets: str, size: str, seed: int) -> kid_metric.Estimate:
    return kid_metric.kid(*sets(file), subsets=int(subsets), size=int(size), seed=seed)


def precision_recall(file: File, k: str, tool: str) -> kid_metric.Estimate:
    return neighbourhoods(*sets(file), k=int(k), strict=TOOLS[tool].strict)


def splits(file: File, count: str, seed: str | None = None) -> object:
    return inception_score(
        file["in/logits"], int(count), shuffle_seed=None if seed is None else int(seed)
    )


MMD = {
    "biased": kid_metric.biased,
    "unbiased": kid_metric.unbiased,
    "u-statistic": kid_metric.u_statistic,
}

# The names without the suffix 64, which marks the dtype.
OUTPUTS: dict[str, Callable] = {
    r"fid_(\w+)": fid,
    r"kid_full_\w+": lambda file: kid_metric.unbiased(*equal_counts(file)),
    r"kid_rbf(\d+)_full_\w+": lambda file, sigma: kid_metric.unbiased(
        *equal_counts(file), kid_metric.gaussian(float(sigma))
    ),
    r"kid_(\d+)x(\d+)_torchfidelity_mean": lambda file, n, size: (
        kid(file, n, size, file.config["kid"]["rng_seed"]).mean
    ),
    r"kid_(\d+)x(\d+)_torchfidelity_std": lambda file, n, size: (
        kid(file, n, size, file.config["kid"]["rng_seed"]).deviation
    ),
    r"kid_(\d+)x(\d+)_cleanfid_npseed(\d+)": lambda file, n, size, seed: (
        kid(file, n, size, int(seed)).mean
    ),
    r"mmd2_([\w-]+)": lambda file, name: MMD[name](*equal_counts(file)),
    r"is_splits(\d+)_noshuf": splits,
    r"is_splits(\d+)_shuf(\d+)": splits,
    r"prc_(?:part_)?torchfidelity_k(\d+)": lambda file, k: precision_recall(
        file, k, "torch-fidelity"
    )[:2],
    r"prdc_k(\d+)": lambda file, k: precision_recall(file, k, "prdc"),
}


def metrics(file: File) -> Outputs:
    outputs = {}
    for name in file:
        for pattern, fn in OUTPUTS.items():
            if match := re.fullmatch(f"out/{pattern}64", name):
                outputs[name] = np.asarray(fn(file, *match.groups()))
    return outputs


def tolerance(name: str) -> float:
    """The tools' own precision: torch-fidelity and clean-fid partly use float32."""
    if re.match(r"out/(kid_.*full|fid_torch)", name):
        return 5e-4 if "kid" in name else 1e-6
    return 1e-5 if "kid" in name else 1e-7


FAMILIES = {"metrics": Family(metrics, tolerance)}
