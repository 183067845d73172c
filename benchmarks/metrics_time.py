"""The time and memory of metrics against the usual implementations.

    pip install -e .[experiments]
    python -m benchmarks.metrics_time

The Frechet distance of two sets of 10,000 features of length 2,048 is compared with the method of
the published tools: `numpy.cov`, and `scipy.linalg.sqrtm` of the covariances' product. Precision,
recall, density and coverage of the same sets are compared with the method of the prdc package: all
distances by scikit-learn in double precision, and `numpy.partition`. The candidates run alternately
in one process and must agree; the result is the ratio of the medians. The peak memory is that of a
separate process for each, with the features and all imports. Prints a table; exits with 1 when two
disagree. Linux only.

On two cores of a busy machine, the ratios were 4.1 (0.6 GiB against 0.9) and 1.1 to 1.5 (0.8 GiB
against 3.2).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from kd_jax.core.cost import time_interleaved
from kd_jax.metrics.frechet import frechet_distance_of_features
from kd_jax.metrics.prdc import neighbourhoods

FEATURES, NEIGHBOURS = 2048, 5
TOLERANCE = 1e-6

Features = NDArray[np.float32]
Metric = Callable[[Features, Features], tuple[float, ...]]


def draw(count: int, seed: int) -> Features:
    """Rectified features `[count, 2048]` with a few strong directions, like Inception's."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((64, FEATURES), np.float32) / 4
    strengths = rng.standard_normal((count, 64), np.float32) + 0.1 * seed
    noise = 0.3 * rng.standard_normal((count, FEATURES), np.float32)
    return np.maximum(strengths @ directions + noise, 0)


def frechet(x: Features, y: Features) -> tuple[float, ...]:
    """The Frechet distance by kd_jax."""
    return (frechet_distance_of_features(x, y),)


def frechet_by_sqrtm(x: Features, y: Features) -> tuple[float, ...]:
    """The Frechet distance by the matrix square root of the covariances' product."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    gap = a.mean(axis=0) - b.mean(axis=0)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return (float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root)),)


def prdc(x: Features, y: Features) -> tuple[float, ...]:
    """Precision, recall, density and coverage by kd_jax."""
    return neighbourhoods(x, y, NEIGHBOURS)


def prdc_by_all_distances(x: Features, y: Features) -> tuple[float, ...]:
    """Precision, recall, density and coverage from three full distance matrices."""
    from sklearn.metrics import pairwise_distances

    a, b = x.astype(np.float64), y.astype(np.float64)
    x_radii, y_radii = (
        np.partition(pairwise_distances(z), NEIGHBOURS, axis=1)[:, NEIGHBOURS] for z in (a, b)
    )
    distances = pairwise_distances(a, b)
    inside = distances < y_radii[None, :]
    return (
        float(inside.any(axis=1).mean()),
        float((distances < x_radii[:, None]).any(axis=0).mean()),
        float(inside.sum() / (NEIGHBOURS * len(x))),
        float(inside.any(axis=0).mean()),
    )


METRICS: dict[str, dict[str, Metric]] = {
    "Frechet distance": {"kd_jax": frechet, "sqrtm": frechet_by_sqrtm},
    "precision, recall, density, coverage": {
        "kd_jax": prdc,
        "all distances": prdc_by_all_distances,
    },
}


def measure_peak(metric: str, name: str, count: int) -> float:
    """The peak memory of a process that computes one metric once, in MiB."""
    command = [sys.executable, "-m", "benchmarks.metrics_time"]
    command += ["--examples", str(count), "--only", metric, name]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(run.stdout) / 1024


def compare(
    metric: str,
    candidates: dict[str, Metric],
    x: Features,
    y: Features,
    rounds: int,
    peaks: dict[tuple[str, str], float],
) -> None:
    """Times one metric's candidates and prints their results; exits with 1 if they disagree."""
    results: dict[str, tuple[float, ...]] = {}

    def call(name: str) -> None:
        results[name] = candidates[name](x, y)

    calls: dict[str, Callable[[], Any]] = {name: partial(call, name) for name in candidates}
    times = time_interleaved(calls, rounds, 1)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours, theirs = candidates
    print(f"{metric}: {', '.join(f'{value:.6g}' for value in results[ours])}")
    for name in candidates:
        print(
            f"  {name:15} median {medians[name] / 1e3:6.2f} s, "
            f"peak memory {peaks[metric, name]:6.0f} MiB"
        )
    print(f"  ratio of medians, {theirs} / {ours}: {medians[theirs] / medians[ours]:.1f}")
    worst = np.max(np.abs(np.divide(results[ours], results[theirs]) - 1))
    print(f"  largest relative difference {worst:.1e}", flush=True)
    if not worst <= TOLERANCE:
        sys.exit(f"the two implementations of {metric} disagree")


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=10_000, help="examples in each set")
    parser.add_argument("--rounds", type=int, default=2, help="rounds")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        metric, name = args.only
        METRICS[metric][name](draw(args.examples, 1), draw(args.examples, 2))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return

    # A process inherits the peak of its parent, so this precedes the allocation of the features.
    peaks = {
        (metric, name): measure_peak(metric, name, args.examples)
        for metric, candidates in METRICS.items()
        for name in candidates
    }
    x, y = draw(args.examples, 1), draw(args.examples, 2)
    print(
        f"two sets of {args.examples:,} x {FEATURES} features; {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    for metric, candidates in METRICS.items():
        compare(metric, candidates, x, y, args.rounds, peaks)


if __name__ == "__main__":
    main()
