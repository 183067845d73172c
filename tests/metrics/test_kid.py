"""The kernel distance against loops over pairs, closed forms and Monte Carlo estimates."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from kd_jax.metrics import kid

X, Y = (np.random.default_rng(s).normal(0.3 * s, 1, (n, 5)) for s, n in ((0, 17), (1, 23)))


def with_loops(x, y, k, *, own=True, paired=True):
    """The means of k over pairs; equal indices count within a set if `own`, across if `paired`."""

    def mean(a, b, equal_indices):
        values = [
            k(u, v) for i, u in enumerate(a) for j, v in enumerate(b) if equal_indices or i != j
        ]
        return np.mean(values)

    return mean(x, x, own) + mean(y, y, own) - 2 * mean(x, y, paired)


def cubic(u, v):
    return (u @ v / len(u) + 1) ** 3


def test_the_three_estimates_match_loops():
    assert kid.biased(X, Y) == pytest.approx(with_loops(X, Y, cubic), rel=1e-12)
    assert kid.unbiased(X, Y) == pytest.approx(with_loops(X, Y, cubic, own=False), rel=1e-12)
    expected = with_loops(X, Y[:17], cubic, own=False, paired=False)
    assert kid.u_statistic(X, Y[:17]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tile", [1, 4, 16, 17])
def test_values_do_not_depend_on_tiles(tile, monkeypatch):
    functions = (kid.biased, kid.unbiased, lambda x, y: kid.u_statistic(x, y[:17]))
    expected = [f(X, Y) for f in functions]
    monkeypatch.setattr(kid, "_TILE", tile)
    assert [f(X, Y) for f in functions] == pytest.approx(expected, rel=1e-12)


def test_kernels_match_scikit_learn():
    for degree, scale, offset in ((3, None, 1), (1, 0.5, 0), (2, 2.0, -1)):
        np.testing.assert_allclose(
            kid.polynomial(degree, scale, offset)(X, Y),
            polynomial_kernel(X, Y, degree=degree, gamma=scale, coef0=offset),
        )
    np.testing.assert_allclose(kid.gaussian(2.0)(X, Y), rbf_kernel(X, Y, gamma=1 / 8))


def test_a_linear_kernel_is_the_distance_of_the_means():
    linear = kid.polynomial(1, 1.0, 0.0)
    assert kid.biased(X, Y, linear) == pytest.approx(np.sum((X.mean(0) - Y.mean(0)) ** 2))
    # The unbiased estimate subtracts the variances of the means.
    bias = X.var(0, ddof=1).sum() / len(X) + Y.var(0, ddof=1).sum() / len(Y)
    expected = np.sum((X.mean(0) - Y.mean(0)) ** 2) - bias
    assert kid.unbiased(X, Y, linear) == pytest.approx(expected)


def test_the_gaussian_kernel_of_gaussians():
    """For N(0, 1) and N(m, 1): `2 s / r (1 - exp(-m^2 / (2 r^2)))`, `r^2 = s^2 + 2`."""
    sigma, m = 1.5, 0.8
    rng = np.random.default_rng(0)
    draws = [
        kid.unbiased(rng.normal(0, 1, (60, 1)), rng.normal(m, 1, (50, 1)), kid.gaussian(sigma))
        for _ in range(400)
    ]
    expected = 2 * sigma / np.sqrt(sigma**2 + 2) * (1 - np.exp(-(m**2) / (2 * (sigma**2 + 2))))
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - expected) < 3 * error
    assert error < 0.03 * expected


def test_only_the_unbiased_estimates_average_to_zero_for_equal_distributions():
    rng = np.random.default_rng(1)
    pairs = [rng.normal(size=(2, 40, 3)) for _ in range(300)]
    for estimate in (kid.unbiased, kid.u_statistic):
        values = [estimate(x, y) for x, y in pairs]
        assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(kid.biased(x, y) for x, y in pairs) > 0
    assert kid.biased(X, X) == pytest.approx(0, abs=1e-12)


def test_subsets_use_the_legacy_generator_with_generated_examples_first():
    rng, values = np.random.RandomState(7), []
    for _ in range(4):
        x = X[rng.choice(17, 9, replace=False)]
        values.append(kid.unbiased(x, Y[rng.choice(23, 9, replace=False)]))
    estimate = kid.kid(X, Y, subsets=4, size=9, seed=7)
    assert estimate == pytest.approx((np.mean(values), np.std(values)), rel=1e-12)


def test_one_subset_of_all_examples_is_the_full_estimate():
    estimate = kid.kid(X, Y[:17], subsets=1, size=17)
    assert estimate == pytest.approx((kid.unbiased(X, Y[:17]), 0.0), rel=1e-10)


def test_single_precision_features_are_computed_in_double():
    x, y = X.astype(np.float32), Y.astype(np.float32)
    expected = kid.unbiased(x.astype(np.float64), y.astype(np.float64))
    assert kid.unbiased(x, y) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kid.kid(X, Y), "1000 generated examples are needed .* there are 17"),
        (lambda: kid.kid(Y, X, size=20), "20 real examples are needed .* there are 17"),
        (lambda: kid.kid(X, Y, subsets=0, size=5), "subsets=0"),
        (lambda: kid.kid(X, Y, size=1), "size=1"),
        (lambda: kid.kid(X, Y[:, :4]), "length 5 but real features 4"),
        (lambda: kid.unbiased(X[:1], Y), "N >= 2"),
        (lambda: kid.u_statistic(X, Y), "17 and 23 examples"),
        (lambda: kid.biased(np.full((3, 2), np.nan), Y), "first features of example 0"),
        (lambda: kid.polynomial(0), "degree=0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
