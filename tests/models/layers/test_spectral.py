"""Spectral normalisation against NumPy's singular value decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core.network import from_linen
from kd_jax.models.layers import spectral
from kd_jax.models.layers.spectral import SpectralNorm

RNG = np.random.default_rng(0)


def _normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_power_iteration_finds_the_largest_singular_values():
    matrix, u = _normal(7, 5), _normal(3, 5)
    step = jax.jit(spectral.power_iteration)
    for _ in range(200):
        u, v, sigma = step(matrix, u)
    left, values, right = np.linalg.svd(matrix)
    np.testing.assert_allclose(sigma, values[:3], rtol=1e-5)
    # Singular vectors, up to one sign for both.
    signs = np.sign((v * left[:, :3].T).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(v, signs * left[:, :3].T, atol=1e-3)
    np.testing.assert_allclose(u, signs * right[:3], atol=1e-3)


def test_one_iteration_matches_a_manual_computation():
    # v = M u / 5 = (3, 4) / 5, then M^T v = (3, 8) / 5 and sigma is its length.
    u, v, sigma = spectral.power_iteration(jnp.diag(jnp.array([1.0, 2.0])), jnp.array([[3.0, 2.0]]))
    np.testing.assert_allclose(v, [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(u, [np.array([0.6, 1.6]) / np.sqrt(2.92)], rtol=1e-6)
    np.testing.assert_allclose(sigma, [np.sqrt(2.92)], rtol=1e-6)


def test_one_iteration_of_two_vectors():
    """The second vector is orthogonalized to the first before it is normalised."""
    matrix, u = _normal(4, 3), _normal(2, 3)
    new_u, v, sigma = spectral.power_iteration(matrix, u)
    v1 = matrix @ u[0] / np.linalg.norm(matrix @ u[0])
    v2 = matrix @ u[1] - v1 * (v1 @ matrix @ u[1])
    v2 /= np.linalg.norm(v2)
    np.testing.assert_allclose(v, [v1, v2], rtol=1e-4, atol=1e-5)
    u1 = v1 @ matrix / np.linalg.norm(v1 @ matrix)
    u2 = v2 @ matrix - u1 * (v2 @ matrix @ u1)
    u2 /= np.linalg.norm(u2)
    np.testing.assert_allclose(new_u, [u1, u2], rtol=1e-4, atol=1e-5)
    expected = [v1 @ matrix @ u1, v2 @ matrix @ u2]
    np.testing.assert_allclose(sigma, expected, rtol=1e-4, atol=1e-5)


def test_short_vectors_are_divided_by_epsilon():
    u, v, _ = spectral.power_iteration(jnp.eye(2) * 1e-3, jnp.array([[1.0, 0.0]]), epsilon=1e-2)
    np.testing.assert_allclose(v, [[0.1, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(u, [[1e-2, 0.0]], rtol=1e-6)


def test_only_the_product_is_differentiated():
    matrix, u = _normal(4, 3), _normal(1, 3)
    new_u, v, _ = spectral.power_iteration(matrix, u)
    gradient = jax.grad(lambda m: spectral.power_iteration(m, u)[2][0])(matrix)
    np.testing.assert_allclose(gradient, np.outer(v[0], new_u[0]), rtol=1e-5, atol=1e-6)


class Layer(spectral.nn.Module):
    """A network of a single layer."""

    make: object

    @spectral.nn.compact
    def __call__(self, x, *, train):
        return self.make(train=train, name="layer")(x), {}


def _layer(kind, **options):
    def make(train, name):
        return kind(train=train, name=name, **options)

    return from_linen(Layer(make))


LAYERS = {
    "dense": (spectral.Dense, {"features": 3}, _normal(2, 5)),
    "conv": (spectral.Conv, {"features": 3, "kernel": 3}, _normal(2, 4, 4, 2)),
    "embed": (spectral.Embed, {"features": 3, "classes": 4}, np.array([0, 3])),
}


def _variables(network, x):
    variables = network.init(jax.random.key(0), x)
    params = {path: _normal(*leaf.shape) for path, leaf in variables["params"]["layer"].items()}
    return {**variables, "params": {"layer": params}}


def _largest_singular_value(params):
    weight = next(value for name, value in params["layer"].items() if name != "bias")
    return np.linalg.svd(weight.reshape(-1, weight.shape[-1]), compute_uv=False)[0]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("stored", [False, True])
def test_the_converged_layer_divides_by_the_largest_singular_value(name, stored):
    kind, options, x = LAYERS[name]
    norm = SpectralNorm(iterations=30, stored=stored)
    network = _layer(kind, norm=norm, **options)
    variables = _variables(network, x)
    for _ in range(3):
        output, _, variables = network.apply(variables, x, train=True)
    params = variables["params"]
    unnormalised, _, _ = _layer(kind, **options).apply({"params": params}, x)
    bias = np.asarray(params["layer"].get("bias", 0.0))
    expected = (
        np.asarray(unnormalised) - bias.reshape((1,) * (unnormalised.ndim - 1) + (-1,))
    ) / _largest_singular_value(params)
    expected += bias.reshape((1,) * (unnormalised.ndim - 1) + (-1,))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    inference, _, _ = network.apply(variables, x)
    np.testing.assert_allclose(inference, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        variables["spectral"]["layer"]["sigma"], [_largest_singular_value(params)], rtol=1e-5
    )


def test_iterations_is_the_number_of_iterations_in_training():
    x = LAYERS["dense"][2]
    network = _layer(spectral.Dense, features=3, norm=SpectralNorm(iterations=2, vectors=2))
    variables = _variables(network, x)
    _, _, after = network.apply(variables, x, train=True)
    u, kernel = variables["spectral"]["layer"]["u"], variables["params"]["layer"]["kernel"]
    for _ in range(2):
        u, _, sigma = spectral.power_iteration(kernel, u)
    np.testing.assert_allclose(after["spectral"]["layer"]["u"], u, rtol=1e-5)
    np.testing.assert_allclose(after["spectral"]["layer"]["sigma"], sigma, rtol=1e-5)


def test_inference():
    """Without `stored` there is one more iteration; with it the vectors are used unchanged."""
    x, kernel = LAYERS["dense"][2], _normal(5, 3)
    u, v = _normal(1, 3), _normal(1, 5)
    params = {"layer": {"kernel": kernel, "bias": np.zeros(3, np.float32)}}
    for stored in (False, True):
        vectors = {"u": u, "sigma": np.ones(1, np.float32)} | ({"v": v} if stored else {})
        variables = {"params": params, "spectral": {"layer": vectors}}
        network = _layer(spectral.Dense, features=3, norm=SpectralNorm(stored=stored))
        output, _, same = network.apply(variables, x)
        assert same is variables
        new_v = kernel @ u[0] / np.linalg.norm(kernel @ u[0])
        sigma = (v @ kernel @ u.T).item() if stored else np.linalg.norm(new_v @ kernel)
        np.testing.assert_allclose(output, x @ kernel / sigma, rtol=1e-4, atol=1e-5)


def test_layers_without_normalisation_have_no_vectors():
    for kind, options, x in LAYERS.values():
        assert set(_layer(kind, **options).init(jax.random.key(0), x)) == {"params"}


def test_half_precision_applies_to_computation_not_storage():
    for kind, options, x in LAYERS.values():
        network = _layer(kind, norm=SpectralNorm(), dtype=jnp.bfloat16, **options)
        variables = network.init(jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        assert network.apply(variables, x)[0].dtype == jnp.bfloat16


def test_axes_of_a_missing_layer_raise():
    with pytest.raises(ValueError, match=r"such a network: params/conv/kernel is missing"):
        spectral.layer_axes({}, "conv", None, "out")
