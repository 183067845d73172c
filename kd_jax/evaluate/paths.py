"""How images change along latents, and how they differ from each other, by a given distance."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_jax.evaluate import common
from kd_jax.evaluate.common import PerClass

Distance = Callable[[Any, Any], Any]
"""Of images `[B, H, W, C]` and `[B, H, W, C]`, `[B]`: LPIPS in the papers."""

Interpolation = Callable[
    [NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]
]
"""From latents `[B, ...]`, others, and places in [0, 1] that broadcast, to those in between."""


def lerp(
    a: NDArray[np.float64], b: NDArray[np.float64], t: NDArray[np.float64]
) -> NDArray[np.float64]:
    """On the straight line, `a + t (b - a)`: for styles (w)."""
    return a + t * (b - a)


def slerp(
    a: NDArray[np.float64], b: NDArray[np.float64], t: NDArray[np.float64]
) -> NDArray[np.float64]:
    """On the great circle, over the last axis: for normal latents (z).

    Shoemake 1985 for the direction; the norm goes from one to the other along a line, so latents
    keep the norms that a generator knows. One that normalises its latents, as StyleGAN's do, makes
    of them what it makes of Karras et al.'s unit vectors. Equal directions stay; between opposite
    ones there is no single circle, and any is taken.
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
    """`d(g(l(a, b, t)), g(l(a, b, t + epsilon))) / epsilon^2` of each path from a to b.

    Karras et al. 2019, eq. 2 with `slerp` in z and eq. 3 with `lerp` in w.

    Args:
      generate: from latents `[B, ...]` float32 (and labels, where given) to images `[B, H, W, C]`.
        It must not draw: noise must be the same for both places.
      distance: of the two batches of images, `[B]`.
      a: latents `[N, ...]`, z or w, as `generate` takes them.
      b: others.
      positions: t, `[N]`: uniform in [0, 1] for the full length, zeros for the path's end.
      interpolate: `slerp` or `lerp`.
      epsilon: the step along the path.
      labels: int `[N]`, of both ends of each path.
      batch: paths at a time.

    Returns:
      `[N]`, one per path; their `cropped_mean` is the perceptual path length.

    Raises:
      ValueError: when the shapes differ, there is no path, or a distance is not finite.
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
    found = []
    for part in _batches(len(t), batch):
        extra = () if classes is None else (classes[part],)
        near, far = (
            generate(interpolate(start[part], end[part], place).astype(np.float32), *extra)
            for place in (t[part], t[part] + epsilon)
        )
        found.append(_distances(distance, near, far, part.start))
    return np.concatenate(found) / epsilon**2


def cropped_mean(values: ArrayLike, low: float = 1.0, high: float = 99.0) -> float:
    """The mean of the values between two percentiles, which are values themselves, inclusive.

    The perceptual path length of `path_distances`, as published tools crop it: a few paths cross
    an edge where the image jumps, and would be all of the mean.

    Args:
      values: `[N]`.
      low: the lower percentile, rounded down to a value; 0 for all.
      high: the upper one, rounded up; 100 for all.

    Raises:
      ValueError: when there is no value, one is not finite, or the percentiles are no range.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"values have shape {x.shape}; finite ones, [N] with N >= 1, are needed")
    if not 0 <= low <= high <= 100:
        raise ValueError(f"low={low:g} and high={high:g} are no range within 0 to 100")
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

    Zhu et al. 2017 (BicycleGAN), section 5, with LPIPS. It says nothing of quality: noise is
    diverse.

    Args:
      images: `[N, H, W, C]`, N >= 2.
      distance: of two batches of images, `[B]`; symmetric.
      pairs: how many random pairs; None for each of the N (N - 1) / 2.
      seed: of the draws.
      batch: pairs at a time.

    Raises:
      ValueError: when there are fewer than two images, no pairs, or a distance is not finite.
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
        j = (i + rng.integers(1, len(x), size=pairs)) % len(x)  # any but i
    parts = _batches(len(i), batch)
    found = [_distances(distance, x[i[part]], x[j[part]], part.start) for part in parts]
    return float(np.concatenate(found).mean())


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
      conditions: int `[N]`: a class, or the number of the input that an image was made from.
      distance: see `diversity`.
      pairs: of each condition; see `diversity`.
      seed: see `diversity`.
      batch: see `diversity`.

    Raises:
      ValueError: as `diversity`, or when a condition has a single image; it is named.
    """
    x = np.asarray(images)
    which = common.labels(conditions, len(x), "conditions")
    found = {}
    for condition, count in zip(*np.unique(which, return_counts=True), strict=True):
        if count < 2:
            raise ValueError(f"condition {condition} has {count} image; two or more are needed")
        chosen = x[which == condition]
        found[int(condition)] = diversity(chosen, distance, pairs=pairs, seed=seed, batch=batch)
    return PerClass(float(np.mean(list(found.values()))), found)


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _distances(distance: Distance, a: Any, b: Any, first: int) -> NDArray[np.float64]:
    found = np.asarray(distance(a, b), np.float64)
    if found.shape != (len(a),):
        raise ValueError(f"distance gave {found.shape} for {len(a)} pairs; [{len(a)}] is needed")
    if not np.isfinite(found).all():
        raise ValueError(
            f"the distance of pair {first + np.argmin(np.isfinite(found))} is not finite"
        )
    return found
