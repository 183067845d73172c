"""Networks from Flax modules, taps, and connectors, against values computed by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core.network import (
    CONNECTORS,
    Network,
    connect,
    connected,
    disconnect,
    from_linen,
    tap_shapes,
)
from kd_jax.core.types import MissingTapError, Taps

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 4, 4, 3)).astype(np.float32)


class Normed(nn.Module):
    """Batch statistics with momentum 0.9, a dense layer, and one tap."""

    @nn.compact
    def __call__(self, x, *, train):
        normed = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(5)(normed), {"normed": normed}


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=not train)(x), {}


def _toy_init(key, x):
    return {"params": {"gain": jnp.asarray(2.0)}, "batch_stats": {"calls": jnp.zeros((), int)}}


def _toy_apply(variables, x, train=False, rngs=None):
    taps = Taps(
        feature=x * variables["params"]["gain"],
        pooled=x.reshape(x.shape[0], 2, 2, 2, 2, 3).mean(axis=(2, 4)),
        flat=x.reshape(x.shape[0], -1),
    )
    calls = variables["batch_stats"]["calls"] + 1
    after = {**variables, "batch_stats": {"calls": calls}} if train else variables
    return x.sum(axis=(1, 2, 3)) * variables["params"]["gain"], taps, after


TOY = Network(_toy_init, _toy_apply)


def _with_projection(variables, name, kernel, bias):
    projection = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    return {**variables, "params": {**variables["params"], CONNECTORS: {name: projection}}}


def test_from_linen_updates_statistics_in_training_only():
    network = from_linen(Normed())
    x = RNG.normal(2.0, 3.0, size=(8, 3)).astype(np.float32)
    variables = network.init(jax.random.key(0), x)
    assert set(variables) == {"params", "batch_stats"}

    output, taps, after = network.apply(variables, x)
    assert after is variables
    assert output.shape == (8, 5)
    np.testing.assert_allclose(taps["normed"], x, rtol=1e-4)  # statistics 0 and 1, so far

    _, taps, after = network.apply(variables, x, train=True)
    standardised = (x - x.mean(axis=0)) / x.std(axis=0)
    np.testing.assert_allclose(taps["normed"], standardised, atol=1e-4)
    statistics = after["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * x.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * x.var(axis=0), rtol=1e-4)
    assert after["params"] is variables["params"]
    np.testing.assert_array_equal(variables["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(3))


def test_from_linen_passes_the_key_to_noise():
    network = from_linen(Noisy())
    x = np.ones((1, 64), np.float32)
    variables = network.init(jax.random.key(0), x)
    one, again, other = (
        network.apply(variables, x, train=True, rngs=jax.random.key(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert set(np.unique(one)) == {0.0, 2.0}  # half are dropped, the rest doubled
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(network.apply(variables, x)[0], x)


def test_an_unknown_tap_raises_and_lists_the_known_taps():
    taps = Taps(half=1, quarter=2)
    with pytest.raises(MissingTapError, match=r"^no tap 'third'; this network has 'half', 'quart"):
        taps["third"]
    with pytest.raises(KeyError):  # as for any Mapping
        taps["third"]
    with pytest.raises(MissingTapError, match="this network has none at all"):
        Taps()["half"]


def test_taps_are_a_pytree_of_their_own_type():
    taps = Taps(b=jnp.ones(2), a=jnp.zeros(3))
    doubled = jax.jit(lambda taps: jax.tree.map(lambda x: 2 * x, taps))(taps)
    for other in (doubled, jax.lax.stop_gradient(taps), jax.tree.map(jnp.copy, taps)):
        assert type(other) is Taps
        assert set(other) == {"a", "b"}
        with pytest.raises(MissingTapError):
            other["c"]
    np.testing.assert_array_equal(doubled["b"], [2, 2])
    np.testing.assert_array_equal(doubled["a"], [0, 0, 0])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(taps)]
    assert paths == ["['a']", "['b']"]
    assert jax.tree.structure(taps) == jax.tree.structure(Taps(a=1, b=2))  # no order


def test_tap_shapes_from_abstract_inputs():
    shapes = tap_shapes(TOY, jax.ShapeDtypeStruct((7, 4, 4, 3), jnp.float32))
    assert shapes == {"feature": (7, 4, 4, 3), "pooled": (7, 2, 2, 3), "flat": (7, 48)}


@pytest.mark.parametrize(
    ("tap", "target"),
    [
        ("feature", (2, 4, 4, 3)),
        ("feature", (64, 4, 4, 10)),  # the teacher's batch does not matter
        ("pooled", (5, 6, 2, 7)),
        ("flat", (2, 5)),
    ],
)
def test_connected_tap_has_the_target_shape(tap, target):
    network = connect(TOY, {tap: target})
    shapes = tap_shapes(network, jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32))
    assert shapes.pop(connected(tap)) == (2, *target[1:])
    assert shapes == tap_shapes(TOY, jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32))

    variables = network.init(jax.random.key(0), IMAGES)
    kernel = variables["params"][CONNECTORS][tap]["kernel"]
    assert kernel.shape == ({"flat": 48}.get(tap, 3), target[-1])
    np.testing.assert_array_equal(
        variables["params"][CONNECTORS][tap]["bias"], np.zeros(target[-1])
    )


def test_connected_value():
    kernel = RNG.normal(size=(3, 6)).astype(np.float32)
    bias = RNG.normal(size=6).astype(np.float32)
    network = connect(TOY, {"feature": (2, 4, 4, 6)})
    variables = _with_projection(network.init(jax.random.key(0), IMAGES), "feature", kernel, bias)
    output, taps, _ = network.apply(variables, IMAGES)
    expected = np.einsum("bhwc,cd->bhwd", 2.0 * IMAGES.astype(np.float64), kernel)
    expected += bias.reshape(1, 1, 1, 6)
    np.testing.assert_allclose(taps["connected/feature"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(output, 2.0 * IMAGES.sum(axis=(1, 2, 3)), rtol=1e-5)


def test_an_identity_connector_only_adds_its_bias():
    bias = np.array([1.0, -2.0, 0.5], np.float32)
    network = connect(TOY, {"feature": IMAGES.shape})
    variables = network.init(jax.random.key(0), IMAGES)
    variables = _with_projection(variables, "feature", np.eye(3, dtype=np.float32), bias)
    taps = network.apply(variables, IMAGES)[1]
    np.testing.assert_allclose(
        taps[connected("feature")], taps["feature"] + bias.reshape(1, 1, 1, 3), rtol=1e-6
    )


def test_resampling_is_linear_between_pixel_centres():
    # Doubling [0, 1]: the new centres lie at -1/4, 1/4, 3/4 and 5/4 of the way from 0 to 1.
    ramp = np.broadcast_to(np.array([0, 0, 1, 1], np.float32).reshape(1, 1, 4, 1), (1, 4, 4, 3))
    network = connect(TOY, {"pooled": (1, 2, 4, 3)})
    variables = network.init(jax.random.key(0), ramp)
    variables = _with_projection(variables, "pooled", np.eye(3, dtype=np.float32), np.zeros(3))
    taps = network.apply(variables, ramp)[1]
    row = np.array([0.0, 0.25, 0.75, 1.0]).reshape(1, 1, 4, 1)
    np.testing.assert_allclose(
        taps[connected("pooled")], np.broadcast_to(row, (1, 2, 4, 3)), atol=1e-6
    )


def test_resampling_preserves_constant_features():
    constant = np.full((2, 4, 4, 3), 1.5, np.float32)
    network = connect(TOY, {"feature": (2, 3, 7, 3), "pooled": (2, 1, 1, 3)})
    variables = network.init(jax.random.key(0), constant)
    identity = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}
    variables["params"][CONNECTORS] = {"feature": identity, "pooled": identity}
    taps = network.apply(variables, constant)[1]
    np.testing.assert_allclose(taps[connected("feature")], np.full((2, 3, 7, 3), 3.0), rtol=1e-6)
    np.testing.assert_allclose(taps[connected("pooled")], np.full((2, 1, 1, 3), 1.5), rtol=1e-6)


def test_initial_connectors_differ_and_preserve_the_scale():
    wide = np.ones((1, 2, 2, 400), np.float32)
    plain = Network(
        lambda key, x: {"params": {}}, lambda v, x, train=False, rngs=None: (x, Taps(a=x, b=x), v)
    )
    network = connect(plain, {"a": (1, 2, 2, 500), "b": (1, 2, 2, 500)})
    kernels = network.init(jax.random.key(0), wide)["params"][CONNECTORS]
    a, b = np.asarray(kernels["a"]["kernel"]), np.asarray(kernels["b"]["kernel"])
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02  # 9 sigma
    np.testing.assert_allclose([a.std(), b.std()], 1 / 20, rtol=0.02)  # 1 / sqrt(400)


def test_gradients_reach_the_connectors_and_the_network():
    network = connect(TOY, {"feature": (2, 4, 4, 5)})
    variables = network.init(jax.random.key(0), IMAGES)

    def total(params):
        taps = network.apply({**variables, "params": params}, IMAGES)[1]
        return taps[connected("feature")].sum()

    grads = jax.grad(total)(variables["params"])
    sums = 2.0 * IMAGES.sum(axis=(0, 1, 2))  # of each channel of the feature
    expected = np.broadcast_to(sums.reshape(3, 1), (3, 5))
    np.testing.assert_allclose(grads[CONNECTORS]["feature"]["kernel"], expected, rtol=1e-4)
    np.testing.assert_allclose(grads[CONNECTORS]["feature"]["bias"], np.full(5, 32.0), rtol=1e-6)
    kernel = np.asarray(variables["params"][CONNECTORS]["feature"]["kernel"], np.float64)
    by_gain = (IMAGES.sum(axis=(0, 1, 2), dtype=np.float64) @ kernel).sum()
    np.testing.assert_allclose(grads["gain"], by_gain, rtol=1e-4)


def test_a_disconnected_network_equals_the_original():
    network = connect(TOY, {"feature": (2, 8, 8, 5)})
    variables = network.init(jax.random.key(3), IMAGES)
    plain = disconnect(variables)
    assert jax.tree.structure(plain) == jax.tree.structure(TOY.init(jax.random.key(3), IMAGES))
    output, taps, _ = TOY.apply(plain, IMAGES)
    connected_output, connected_taps, after = network.apply(variables, IMAGES, train=True)
    np.testing.assert_array_equal(output, connected_output)
    np.testing.assert_array_equal(taps["feature"], connected_taps["feature"])
    assert CONNECTORS in variables["params"]  # disconnect does not work in place

    # Training keeps the connectors and returns the network's own updates.
    assert jax.tree.structure(after) == jax.tree.structure(variables)
    assert int(after["batch_stats"]["calls"]) == 1


def test_half_precision_features_keep_their_dtype():
    half = jnp.asarray(IMAGES, jnp.bfloat16)
    plain = Network(
        lambda key, x: {"params": {}}, lambda v, x, train=False, rngs=None: (x, Taps(a=x), v)
    )
    network = connect(plain, {"a": (2, 8, 8, 5)})
    variables = network.init(jax.random.key(0), half)
    assert variables["params"][CONNECTORS]["a"]["kernel"].dtype == jnp.float32
    assert network.apply(variables, half)[1][connected("a")].dtype == jnp.bfloat16


def test_invalid_connections_raise():
    key = jax.random.key(0)
    with pytest.raises(MissingTapError, match="no tap 'nose'; this network has 'feature', 'flat'"):
        connect(TOY, {"nose": (2, 4, 4, 3)}).init(key, IMAGES)
    for tap, shape, target in (("feature", "4, 4, 3", (2, 48)), ("flat", "48", (2, 4, 4, 3))):
        message = rf"tap '{tap}' has shape \(2, {shape}\) and its target .*2, 4"
        with pytest.raises(ValueError, match=message):
            connect(TOY, {tap: target}).init(key, IMAGES)
    twice = connect(connect(TOY, {"feature": (2, 4, 4, 3)}), {"pooled": (2, 4, 4, 3)})
    with pytest.raises(ValueError, match="the network is connected already"):
        twice.init(key, IMAGES)
