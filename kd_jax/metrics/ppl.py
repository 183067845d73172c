"""Perceptual path length and diversity, with a given image distance."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_jax.metrics import common
from kd_jax.metrics.common import PerClass

Distance = Callable[[Any, Any], Any]
"""From images `[B, H, W, C]` and `[B, H, W, C]` to `[B]`: LPIPS in the papers."""

Interpolation = Callable[
    [NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]
]
"""From latents `[B, ...]` twice and broadcastable positions in [0, 1] to latents in between."""


def lerp(
    a: NDArray[np.float64], b: NDArray[np.float64], t: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Linear interpolation, `a + t (b - a)`: for styles (w)."""
    return a + t * (b - a)


def slerp(
    a: NDArray[np.float64], b: NDArray[np.float64], t: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Spherical interpolation over the last axis: for normal latents (z).

    Shoemake 1985 for the direction; the norm is interpolated linearly, so latents keep norms that
    the generator was trained with. For a generator that normalises its latents, as StyleGAN, the
    result equals that of Karras et al.'s unit vectors. Between equal directions the direction is
    constant; between opposite ones the great circle is not unique, and an arbitrary one is used.
    """
    norm_a, norm_b = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    a_unit, b_unit = a / norm_a, b / norm_b
    cosine = (a_unit * b_unit).sum(axis=-1, keepdims=True)
    across = b_unit - cosine * a_unit
    sine = np.linalg.norm(across, axis=-1, keepdims=True)
    angle = t * np.arctan2(sine, cosine)
    across = across / np.maximum(sine, np.finfo(np.float64).tiny)
    return (np.cos(angle) * a_unit + np.sin(angle) * across) * lerp(norm_a, norm_b, t)


def path_distances(
    generate: Callable[..., Any],
    distance: Distance,
    a: ArrayLike,
    b: ArrayLike,
    positions: ArrayLike,
    *,
    interpolate: Interpolation,
    epsilon: float = 1e-4,
    labels: ArrayLike | None = None,
    batch: int = 16,
) -> NDArray[np.float64]:
    """`d(g(l(a, b, t)), g(l(a, b, t + epsilon))) / epsilon^2` for each path from a to b.

    Karras et al. 2019, eq. 2 with `slerp` in z and eq. 3 with `lerp` in w.

    Args:
      generate: from latents `[B, ...]` float32 (and labels, where given) to images `[B, H, W, C]`.
        It must be deterministic: both positions need the same noise.
      distance: the distance `[B]` of two batches of images.
      a: latents `[N, ...]`, z or w, the inputs of `generate`.
      b: latents `[N, ...]` of the other ends.
      positions: t, `[N]`: uniform in [0, 1] for the full length, zeros for the path's end.
      interpolate: `slerp` or `lerp`.
      epsilon: the step along the path.
      labels: int `[N]`, for both ends of each path.
      batch: the number of paths per batch.

    Returns:
      `[N]`, one per path; their `cropped_mean` is the perceptual path length.

    Raises:
      ValueError: the shapes differ, there is no path, or a distance is not finite.
    """
    start, end = np.asarray(a, np.float64), np.asarray(b, np.float64)
    t = np.asarray(positions, np.float64)
    if start.shape != end.shape or start.ndim < 2 or t.shape != start.shape[:1] or not t.size:
        raise ValueError(
            f"latents have shapes {start.shape} and {end.shape}, positions {t.shape}; "
            "[N, ...] twice and [N] are needed"
        )
    classes = None if labels is None else common.labels(labels, len(t))
    t = t.reshape(-1, *(1,) * (start.ndim - 1))
    distances = []
    for part in _batches(len(t), batch):
        extra = () if classes is None else (classes[part],)
        near, far = (
            generate(interpolate(start[part], end[part], position).astype(np.float32), *extra)
            for position in (t[part], t[part] + epsilon)
        )
        distances.append(_distances(distance, near, far, part.start))
    return np.concatenate(distances) / epsilon**2


def cropped_mean(values: ArrayLike, low: float = 1.0, high: float = 99.0) -> float:
    """The mean of the values between two percentiles, inclusive.

    Gives the perceptual path length from `path_distances`, cropped as in published tools: a few
    paths cross a discontinuity of the images and would dominate the mean.

    Args:
      values: `[N]`.
      low: the lower percentile, rounded down to one of the values; 0 for no crop.
      high: the upper percentile, rounded up to one of the values; 100 for no crop.

    Raises:
      ValueError: there is no value, a value is not finite, or the percentiles are not a range.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"values have shape {x.shape}; finite [N] with N >= 1 are needed")
    if not 0 <= low <= high <= 100:
        raise ValueError(f"low={low:g} and high={high:g} are not a range within 0 to 100")
    least = np.percentile(x, low, method="lower")
    most = np.percentile(x, high, method="higher")
    return float(x[(x >= least) & (x <= most)].mean())


def diversity(
    images: ArrayLike,
    distance: Distance,
    *,
    pairs: int | None = None,
    seed: int = 0,
    batch: int = 64,
) -> float:
    """The mean distance between two different images of a set.

    Zhu et al. 2017 (BicycleGAN), section 5, with LPIPS. It does not measure quality: noise is
    diverse.

    Args:
      images: `[N, H, W, C]`, N >= 2.
      distance: the symmetric distance `[B]` of two batches of images.
      pairs: the number of random pairs; None for all N (N - 1) / 2.
      seed: the seed of the pairs.
      batch: the number of pairs per batch.

    Raises:
      ValueError: there are fewer than two images, no pairs, or a distance is not finite.
    """
    x = np.asarray(images)
    if x.ndim != 4 or len(x) < 2:
        raise ValueError(f"images have shape {x.shape} but need [N, H, W, C] with N >= 2")
    if pairs is None:
        i, j = np.triu_indices(len(x), 1)
    elif pairs < 1:
        raise ValueError(f"pairs={pairs} is not a positive number")
    else:
        rng = np.random.default_rng(seed)
        i = rng.integers(len(x), size=pairs)
        j = (i + rng.integers(1, len(x), size=pairs)) % len(x)  # any index except i
    parts = _batches(len(i), batch)
    distances = [_distances(distance, x[i[part]], x[j[part]], part.start) for part in parts]
    return float(np.concatenate(distances).mean())


def conditional_diversity(
    images: ArrayLike,
    conditions: ArrayLike,
    distance: Distance,
    *,
    pairs: int | None = None,
    seed: int = 0,
    batch: int = 64,
) -> PerClass:
    """`diversity` among the images of each condition, and the mean over conditions.

    Args:
      images: `[N, H, W, C]`.
      conditions: int `[N]`: the class, or the index of the input that an image was generated from.
      distance: see `diversity`.
      pairs: the number of pairs per condition; see `diversity`.
      seed: see `diversity`.
      batch: see `diversity`.

    Raises:
      ValueError: as `diversity`, or a condition (named in the message) has a single image.
    """
    x = np.asarray(images)
    labels = common.labels(conditions, len(x), "conditions")
    values = {}
    for condition, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < 2:
            raise ValueError(f"condition {condition} has {count} image; two or more are needed")
        group = x[labels == condition]
        values[int(condition)] = diversity(group, distance, pairs=pairs, seed=seed, batch=batch)
    return PerClass(float(np.mean(list(values.values()))), values)


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _distances(distance: Distance, a: Any, b: Any, first: int) -> NDArray[np.float64]:
    distances = np.asarray(distance(a, b), np.float64)
    if distances.shape != (len(a),):
        raise ValueError(
            f"distance returned shape {distances.shape} for {len(a)} pairs; [{len(a)}] is needed"
        )
    if not np.isfinite(distances).all():
        raise ValueError(
            f"the distance of pair {first + np.argmin(np.isfinite(distances))} is not finite"
        )
    return distances
