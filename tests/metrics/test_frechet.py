"""The Frechet distance against closed forms, SciPy's matrix root and published tools."""

import numpy as np
import pytest
import scipy.linalg

from kd_jax.metrics import frechet
from kd_jax.metrics.frechet import (
    EMPTY,
    Moments,
    finish,
    frechet_distance,
    frechet_distance_of_features,
    merge,
    moments,
    update,
)


def gaussian(mean, covariance):
    return Moments(100, np.asarray(mean, float), np.asarray(covariance, float))


def random_moments(seed, d, n):
    x = np.random.default_rng(seed).normal(size=(n, d)) @ np.diag(np.arange(1, d + 1.0))
    return moments(x)


def test_equal_moments_have_distance_zero():
    a = random_moments(0, 6, 50)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_one_dimension():
    # (m1 - m2)^2 + (s1 - s2)^2
    assert frechet_distance(gaussian([1], [[4]]), gaussian([3], [[25]])) == pytest.approx(13.0)


def test_diagonal_covariances():
    a, b = gaussian([0, 0], np.diag([1, 9])), gaussian([1, 2], np.diag([16, 4]))
    assert frechet_distance(a, b) == pytest.approx(5 + 9 + 1)


def test_a_shift_of_the_mean():
    a = random_moments(1, 5, 40)
    b = a._replace(mean=a.mean + np.array([3.0, 0, 4.0, 0, 0]))
    assert frechet_distance(a, b) == pytest.approx(25.0)


@pytest.mark.parametrize(("d", "n"), [(3, 50), (20, 200), (20, 21)])
def test_matches_scipys_matrix_root(d, n):
    a, b = random_moments(2, d, n), random_moments(3, d, n)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_dimensions_is_symmetric_and_finite():
    a, b = random_moments(4, 30, 10), random_moments(5, 30, 12)
    # The nuclear norm of the product of centred samples is the trace of the root.
    x = np.random.default_rng(4).normal(size=(10, 30)) @ np.diag(np.arange(1, 31.0))
    y = np.random.default_rng(5).normal(size=(12, 30)) @ np.diag(np.arange(1, 31.0))
    cross = (x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt(9 * 11)
    expected = (
        np.sum((a.mean - b.mean) ** 2)
        + np.trace(a.covariance + b.covariance)
        - 2 * np.linalg.norm(cross, "nuc")
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_moments_are_accurate_where_one_pass_float32_is_not():
    x = np.random.default_rng(6).normal(3, 0.014, (2000, 4)).astype(np.float32)
    m = moments(x)
    assert m.examples == 2000
    np.testing.assert_allclose(m.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(m.covariance, np.cov(x.astype(np.float64).T), rtol=1e-10)


def test_matches_published_tools(golden):
    for path in sorted(golden.glob("metrics_*.npz")):
        with np.load(path) as file:
            distance = frechet_distance(moments(file["in/fake"]), moments(file["in/real"]))
            for tool in ("torchfidelity", "cleanfid", "pytorchfid"):
                assert distance == pytest.approx(float(file[f"out/fid_{tool}64"]), rel=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="example 3"):
        moments(np.where(np.arange(20).reshape(5, 4) == 13, np.nan, 1.0))
    with pytest.raises(ValueError, match=r"\(1, 4\).* N >= 2"):
        moments(np.ones((1, 4)))
    with pytest.raises(ValueError, match="3 and 4"):
        frechet_distance(random_moments(0, 3, 9), random_moments(0, 4, 9))


def test_commuting_covariances():
    """With equal eigenvectors only the difference of the root eigenvalues counts."""
    rotation, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(4, 4)))
    a, b = np.array([1.0, 4, 9, 0.25]), np.array([25.0, 4, 16, 1])
    covariances = ((rotation * x) @ rotation.T for x in (a, b))
    distance = frechet_distance(*(gaussian(np.zeros(4), c) for c in covariances))
    assert distance == pytest.approx(16 + 0 + 1 + 0.25, rel=1e-9)


def test_covariances_of_rank_one_and_zero():
    u, v = np.array([3.0, 0, 4]), np.array([1.0, 2, 2])
    a, b, zero = (gaussian([0, 0, 0], np.outer(x, x)) for x in (u, v, 0 * u))
    # tr (u u' v v')^(1/2) = |u . v| = 11
    assert frechet_distance(a, b) == pytest.approx(25 + 9 - 2 * 11, rel=1e-6)
    assert frechet_distance(a, zero) == pytest.approx(25)
    assert frechet_distance(zero, zero) == 0.0


@pytest.mark.parametrize("n", [2, 5, 200])
def test_the_distance_is_not_negative(n):
    x = np.random.default_rng(n).normal(1e3, 1e-3, (n, 6))
    assert 0.0 <= frechet_distance(moments(x), moments(x[::-1])) < 1e-6


def test_moments_by_hand():
    m = moments([[1, 10], [3, 10], [5, 40]])
    np.testing.assert_allclose(m.mean, [3, 20])
    np.testing.assert_allclose(m.covariance, [[4, 30], [30, 300]])
    assert m.mean.dtype == m.covariance.dtype == np.float64


def test_published_moments_and_normalisation_by_n(golden):
    for path in sorted(golden.glob("metrics_*.npz")):
        with np.load(path) as file:
            sets = {name: moments(file[f"in/{name}"]) for name in ("fake", "real")}
            for name, m in sets.items():
                np.testing.assert_allclose(m.mean, file[f"in/mu_{name}64"], rtol=1e-9, atol=1e-12)
                np.testing.assert_allclose(
                    m.covariance, file[f"in/sigma_{name}64"], rtol=1e-9, atol=1e-12
                )
            # NVlabs' tools divide by N, all others by N - 1.
            biased = [
                m._replace(covariance=m.covariance * (1 - 1 / m.examples)) for m in sets.values()
            ]
            expected = float(file["out/fid_nvlabs64"])
            assert frechet_distance(*biased) == pytest.approx(expected, rel=1e-4)
            assert frechet_distance(*sets.values()) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_infinite_features_and_wrong_shapes_are_rejected(bad):
    x = np.ones((4, 2))
    x[2, 1] = bad
    with pytest.raises(ValueError, match="example 2 are not finite"):
        moments(x)
    for shape in ((5,), (2, 2, 2), (0, 3)):
        with pytest.raises(ValueError, match="need \\[N, D\\] with N >= 2"):
            moments(np.ones(shape))


FLAT = np.random.default_rng(8).normal(3, 0.014, (2, 700, 6)).astype(np.float32)


def update_in_batches(x, size):
    state = EMPTY
    for start in range(0, len(x), size):
        state = update(state, x[start : start + size])
    return state


@pytest.mark.parametrize("size", [1, 7, 64, 699, 700])
def test_batches_do_not_change_the_distance(size):
    """With mean 3 and deviation 0.014 one pass in single precision is wrong by a third."""
    expected = frechet_distance(*map(moments, FLAT))
    distance = frechet_distance(*(finish(update_in_batches(x, size)) for x in FLAT))
    assert distance == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(
        finish(update_in_batches(FLAT[0], size)).covariance,
        np.cov(FLAT[0].astype(np.float64).T),
        rtol=1e-10,
    )


def test_the_distance_does_not_depend_on_order_or_partition():
    expected = frechet_distance(*map(moments, FLAT))
    shuffled = np.random.default_rng(0).permutation(FLAT[0])
    machines = [update_in_batches(part, 50) for part in np.split(shuffled, [1, 300, 333])]
    backward = merge(merge(machines[3], machines[2]), merge(machines[1], machines[0]))
    forward = merge(machines[0], merge(machines[1], merge(machines[2], machines[3])))
    for state in (backward, forward, merge(EMPTY, merge(forward, EMPTY))):
        assert state.examples == 700
        distance = frechet_distance(finish(state), moments(FLAT[1]))
        assert distance == pytest.approx(expected, rel=1e-9)


def test_large_arrays_are_processed_in_parts(monkeypatch):
    whole = moments(FLAT[0])
    monkeypatch.setattr(frechet, "_ROWS", 33)
    np.testing.assert_allclose(moments(FLAT[0]).covariance, whole.covariance, rtol=1e-10)


def test_update_does_not_modify_its_input():
    state = update(EMPTY, FLAT[0])
    before = (state.mean.copy(), state.matrix.copy())
    update(state, FLAT[1])
    np.testing.assert_array_equal((state.mean, *state.matrix), (before[0], *before[1]))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("n", "m"), [(40, 60), (10, 12), (10, 60), (20, 21), (2, 2)])
def test_distance_of_features_matches_scipy(n, m, ddof):
    """With 20 features: both, one or neither of the covariances have full rank."""
    x, y = (np.random.default_rng(s).normal(s, 1 + s, (c, 20)) for s, c in ((0, n), (1, m)))
    a, b = (np.cov(z.T, ddof=ddof) for z in (x, y))
    # With few examples the root of the product is that of its nonzero eigenvalues.
    root = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0)).sum()
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * root
    distance = frechet_distance_of_features(x, y, ddof)
    assert distance == pytest.approx(expected, rel=1e-6)
    assert distance == pytest.approx(frechet_distance_of_features(y, x, ddof), rel=1e-9)
    assert distance == pytest.approx(frechet_distance(moments(x, ddof), moments(y, ddof)), rel=1e-9)


@pytest.mark.parametrize("n", [30, 200])
def test_translations_and_scalings_of_a_set(n):
    """Covariances `s^2 C` and `C`: the distance is the shift's square and `(s - 1)^2 tr C`."""
    x = np.random.default_rng(n).normal(size=(n, 50)) * np.geomspace(1, 1e-3, 50)
    shift = np.linspace(-1, 1, 50)
    trace = np.trace(np.cov(x.T))
    for scale in (1.0, 0.5, 3.0):
        distance = frechet_distance_of_features(scale * (x - x.mean(0)) + shift, x - x.mean(0))
        assert distance == pytest.approx(shift @ shift + (scale - 1) ** 2 * trace, rel=1e-9)


def test_ill_conditioned_covariances():
    """Root eigenvalues of the product have errors of 1e-8; singular values are accurate."""
    rotation, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(300, 300)))
    a, b = np.geomspace(1, 1e-12, 300), np.geomspace(1, 1e-12, 300) * 1.01
    distance = frechet_distance(
        *(gaussian(np.zeros(300), (rotation * x) @ rotation.T) for x in (a, b))
    )
    assert distance == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-8)


def test_features_that_are_always_zero():
    """Dead rectifier outputs, different ones in the two sets."""
    x, y = np.random.default_rng(10).normal(size=(2, 100, 12))
    x[:, :5] = y[:, 3:8] = 0
    root = np.linalg.norm((x - x.mean(0)) @ (y - y.mean(0)).T / 99, "nuc")
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + x.var(0, ddof=1).sum()
    expected += y.var(0, ddof=1).sum() - 2 * root
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-9)


def test_the_bias_falls_as_one_over_n():
    """The distance between two sets of one distribution halves when N doubles."""
    rng = np.random.default_rng(11)

    def mean_distance(n):
        draws = (frechet_distance_of_features(*rng.normal(size=(2, n, 8))) for _ in range(20))
        return np.mean(list(draws))

    assert mean_distance(500) / mean_distance(1000) == pytest.approx(2, rel=0.15)


def test_examples_are_counted_from_the_first_batch():
    bad = np.ones((4, 3))
    bad[2, 0] = np.nan
    with pytest.raises(ValueError, match="features of example 12 are not finite"):
        update(update_in_batches(np.ones((10, 3)), 5), bad)
    with pytest.raises(ValueError, match="lengths 3 and 4"):
        update(update(EMPTY, np.ones((10, 3))), np.ones((2, 4)))
    with pytest.raises(ValueError, match="0 examples have no covariance"):
        finish(EMPTY)
    with pytest.raises(ValueError, match="1 examples have no covariance"):
        finish(update(EMPTY, np.ones((1, 3))))
    with pytest.raises(ValueError, match=r"second features have shape \(1, 3\)"):
        frechet_distance_of_features(np.ones((5, 3)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="first features have length 3 but second features 4"):
        frechet_distance_of_features(np.ones((5, 3)), np.ones((5, 4)))
