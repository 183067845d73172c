"""Neighbourhoods against brute force in double precision, with ties, and closed forms."""

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from kd_jax.metrics import prdc
from kd_jax.metrics.prdc import nearest, neighbourhoods


def brute(x, y, k, strict):
    """Metrics from all distances, as sums of squared differences in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    inside = np.less if strict else np.less_equal
    x_radii, y_radii = (np.sort(cdist(z, z), axis=1)[:, k] for z in (x, y))
    distances = cdist(x, y)
    hits = inside(distances, y_radii[None, :])
    return (
        hits.any(axis=1).mean(),
        inside(distances, x_radii[:, None]).any(axis=0).mean(),
        hits.sum() / (k * len(x)),
        hits.any(axis=0).mean(),
    )


def sets(n, m, dimensions, mean, scale, dtype):
    """Two sets with duplicates within and between them, which give equal distances."""
    rng = np.random.default_rng(n)
    x = (mean + scale * rng.normal(size=(n, dimensions))).astype(dtype)
    y = (mean + 1.1 * scale * rng.normal(size=(m, dimensions))).astype(dtype)
    y[:5] = x[:5]
    y[5:10] = y[10:15]
    x[20:30] = x[30]
    return x, y


CASES = [
    (130, 100, 7, 0, 1),
    (150, 170, 64, 3, 0.014),  # far from the origin
    (60, 70, 1, 0, 1),
    (70, 60, 3, 100, 1e-2),
    (90, 100, 200, 0, 1e3),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_matches_brute_force_with_ties(case, dtype):
    x, y = sets(*case, dtype)
    for k in (1, 4):
        for strict in (True, False):
            assert neighbourhoods(x, y, k, strict=strict) == brute(x, y, k, strict)


def test_results_do_not_depend_on_tiles(monkeypatch):
    x, y = sets(*CASES[0], np.float32)
    expected, neighbours = neighbourhoods(x, y), nearest(x, y, 7)
    for name, value in (("_TILE_BYTES", 4096), ("_COLUMNS", 13), ("_PAIR_BYTES", 200)):
        monkeypatch.setattr(prdc, name, value)
    assert neighbourhoods(x, y) == expected
    np.testing.assert_array_equal(nearest(x, y, 7).indices, neighbours.indices)
    np.testing.assert_array_equal(nearest(x, y, 7).distances, neighbours.distances)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_neighbours_match_scikit_learn(k):
    x, y = np.random.default_rng(0).normal(2, 1, (2, 90, 33)).astype(np.float32)
    brute = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(y.astype(np.float64))
    distances, indices = brute.kneighbors(x.astype(np.float64))
    neighbours = nearest(x, y, k)
    np.testing.assert_array_equal(neighbours.indices, indices)
    np.testing.assert_allclose(neighbours.distances, distances, rtol=1e-12)
    assert neighbours.distances.dtype == np.float64


def test_duplicates_have_distance_zero():
    y = np.random.default_rng(1).normal(5, 1, (200, 40)).astype(np.float32)
    indices = np.array([7, 7, 199, 0])
    neighbours = nearest(y[indices], y, 2)
    np.testing.assert_array_equal(neighbours.indices[:, 0], indices)
    assert (neighbours.distances[:, 0] == 0).all()
    assert (neighbours.distances[:, 1] > 0).all()


def test_equal_references_are_ordered_by_index():
    y = np.zeros((6, 3))
    y[3] = 1
    np.testing.assert_array_equal(nearest(y[:1], y, 5).indices, [[0, 1, 2, 4, 5]])


@pytest.mark.parametrize("noise", [0, 1e-6])
def test_many_duplicates(noise):
    """More equal references than are compared by exact distances."""
    rng = np.random.default_rng(2)
    y = np.repeat(rng.normal(3, 1, (4, 50)), 150, axis=0) + noise * rng.normal(size=(600, 50))
    neighbours = nearest(y, y, 3)
    expected = np.sort(cdist(y, y), axis=1)[:, :3]
    np.testing.assert_allclose(
        neighbours.distances, expected, rtol=1e-3, atol=1e-12 if noise else 0
    )
    assert (neighbours.indices // 150 == np.arange(600)[:, None] // 150).all()
    x = rng.normal(3, 1, (100, 50))
    assert neighbourhoods(x, y.astype(np.float32)).recall in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_equal_sets():
    """A ball contains its centre and k - 1 others, and one more with its surface."""
    x = np.random.default_rng(3).normal(size=(80, 6))
    for k in (1, 4):
        assert neighbourhoods(x, x[::-1], k) == (1, 1, 1, 1)
        closed = neighbourhoods(x, x[::-1], k, strict=False)
        assert closed == (1, 1, pytest.approx((k + 1) / k), 1)


def test_distant_sets():
    x = np.random.default_rng(4).normal(size=(50, 6))
    assert neighbourhoods(x + 100, x) == (0, 0, 0, 0)


def test_integers_on_a_line_by_hand():
    """k = 1: balls of radius 1 around 0..9; samples at 0.5, 1.0 and 20.5, 21.5."""
    real, generated = np.arange(10.0)[:, None], np.array([[0.5], [1.0], [20.5], [21.5]])
    # 0.5 is in the balls of 0 and 1; 1.0 is in that of 1 and on those of 0 and 2. The balls of the
    # samples have radii 0.5, 0.5, 1, 1: 0 and 1 are on the first; 1 is in the second.
    assert neighbourhoods(generated, real, 1) == (0.5, 0.1, 0.75, 0.2)
    assert neighbourhoods(generated, real, 1, strict=False) == (0.5, 0.2, 1.25, 0.3)


def test_half_of_the_modes_missing():
    """Samples of one of two distant clusters: high precision, half of the recall."""
    rng = np.random.default_rng(5)
    modes = np.repeat([[0.0] * 4, [50.0] * 4], 200, axis=0)
    real, generated = modes + rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    overlap = neighbourhoods(generated, real)
    assert overlap.precision > 0.85
    assert 0.4 < overlap.recall <= 0.5
    assert 0.35 < overlap.coverage <= 0.5
    swapped = neighbourhoods(real, generated)
    assert (swapped.precision, swapped.recall) == (overlap.recall, overlap.precision)


def test_expected_density_and_coverage_of_one_distribution():
    """E density = 1, E coverage = 1 - (M - 1)...(M - k) / ((M + N - 1)...(M + N - k)).

    Naeem et al. 2020, lemmas 1 and 2; over 40 draws.
    """
    rng, n, m, k = np.random.default_rng(6), 60, 50, 3
    draws = [neighbourhoods(*np.split(rng.normal(size=(n + m, 5)), [n]), k) for _ in range(40)]
    expected = 1 - np.prod([(m - i) / (m + n - i) for i in range(1, k + 1)])
    for values, mean in (([f.density for f in draws], 1), ([f.coverage for f in draws], expected)):
        assert abs(np.mean(values) - mean) < 4 * np.std(values) / np.sqrt(len(values))


def test_invariant_to_rotation_translation_and_order():
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(2, 90, 8))
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    expected = neighbourhoods(x, y)
    assert neighbourhoods(x @ rotation + 5, y @ rotation + 5) == expected
    assert neighbourhoods(rng.permutation(x), rng.permutation(y)) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: neighbourhoods(x, x[:5]), "k=5 with 5 real examples"),
        (lambda x: neighbourhoods(x[:3], x), "k=5 with 3 generated examples"),
        (lambda x: neighbourhoods(x, x, 0), "k=0"),
        (lambda x: nearest(x, x, 21), "k=21 with 20 references"),
        (lambda x: nearest(x[:, :2], x, 1), "queries have length 2 but references 3"),
        (lambda x: nearest(x, x / (np.arange(20) != 7)[:, None], 1), "references of example 7"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((20, 3)))


def test_the_memory_is_bounded(monkeypatch):
    """All distances of 2,000 examples in single precision would need 15 MiB."""
    monkeypatch.setattr(prdc, "_TILE_BYTES", 2**18)
    x = np.random.default_rng(8).standard_normal((2000, 16), np.float32)
    tracemalloc.start()
    try:
        neighbourhoods(x, x[::-1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20


def test_few_pairs_are_computed_in_double_precision(monkeypatch):
    """Even for duplicates the number of pairs is linear in the number of examples."""
    pairs = []
    compute = prdc._distances
    monkeypatch.setattr(
        prdc, "_distances", lambda x, y, i, j: pairs.append(len(i)) or compute(x, y, i, j)
    )
    x = np.random.default_rng(9).standard_normal((500, 64), np.float32)
    nearest(x, x, 6)
    assert sum(pairs) < 500 * 7
    pairs.clear()
    nearest(np.repeat(x[:2], 250, axis=0), x[:1] * np.ones((500, 1), np.float32), 6)
    assert sum(pairs) == 0
