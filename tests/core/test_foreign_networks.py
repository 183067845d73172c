"""Networks of plain Linen modules, NNX modules and pairs of functions, in a whole step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import kd_jax as kd
from kd_jax.core.architecture import describe, rebuild

LATENT, BATCH, SIZE = 3, 6, 4
IMAGES = {"image": np.zeros((BATCH, SIZE, SIZE, 1), np.float32)}
Z = np.random.default_rng(0).normal(size=(BATCH, LATENT)).astype(np.float32)


class Image(nn.Module):
    """Returns only an image and has no argument `train`."""

    @nn.compact
    def __call__(self, z):
        hidden = nn.Dense(5, name="hidden")(z)
        self.sow("intermediates", "active", jnp.maximum(hidden, 0))
        return nn.Dense(SIZE * SIZE)(hidden).reshape(-1, SIZE, SIZE, 1)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dropout(0.5)(x, deterministic=deterministic), {}


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        return jnp.where(training, 2.0, 1.0) * x


class Triple(nn.Module):
    def __call__(self, x):
        return x, x, x


class NNX(nnx.Module):
    def __init__(self, width, rngs):
        self.first = nnx.Linear(LATENT, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(width, SIZE * SIZE, rngs=rngs)

    def __call__(self, z):
        hidden = self.norm(self.first(z))
        image = self.last(self.drop(hidden)).reshape(-1, SIZE, SIZE, 1)
        return image, {"hidden": hidden}


def make_nnx(width):
    return kd.from_nnx(lambda rngs: NNX(width, rngs))


def make_functions(width):
    """A pair as Haiku and Equinox have: parameters are any pytree."""

    def init(key, z):
        return [jax.random.normal(key, (z.shape[1], width)), jnp.zeros((width, SIZE * SIZE))]

    def apply(parameters, z):
        return (z @ parameters[0] @ parameters[1]).reshape(-1, SIZE, SIZE, 1)

    return kd.from_functions(init, apply)


def test_a_linen_module_may_return_only_its_output():
    network = kd.from_linen(Image())
    variables = network.init(jax.random.key(0), Z)
    output, taps, after = network.apply(variables, Z, train=True)
    assert set(variables) == {"params"}
    assert output.shape == (BATCH, SIZE, SIZE, 1)
    assert taps == {}
    assert after.keys() == variables.keys()


def test_taps_are_captured_by_path():
    network = kd.from_linen(Image(), capture_taps=True)
    variables = network.init(jax.random.key(0), Z)
    for train in (False, True):
        output, taps, after = network.apply(variables, Z, train=train)
        dense = jax.tree.map(np.asarray, variables["params"]["hidden"])
        expected = Z @ dense["kernel"] + dense["bias"]
        np.testing.assert_allclose(taps["hidden"], expected, rtol=1e-5)
        np.testing.assert_allclose(taps["active"], np.maximum(expected, 0), rtol=1e-5)
        assert set(taps) == {"hidden", "active", "Dense_0"}
        np.testing.assert_array_equal(taps["Dense_0"].reshape(output.shape), output)
        assert set(after) == {"params"}
    assert kd.tap_shapes(network, Z)["hidden"] == (BATCH, 5)


@pytest.mark.parametrize("module", [Deterministic(), Training()], ids=lambda m: type(m).__name__)
def test_the_argument_that_switches_to_training_is_found(module):
    network, x = kd.from_linen(module), np.ones((64, 4), np.float32)
    still, _, _ = network.apply({}, x)
    training, _, _ = network.apply({}, x, train=True, rngs=jax.random.key(0))
    np.testing.assert_array_equal(still, x)
    assert set(np.unique(training)) <= {0.0, 2.0}
    assert 2.0 in np.unique(training)


def test_other_results_and_modules_are_refused():
    with pytest.raises(ValueError, match=r"Triple returned a tuple of 3; .*\(output, "):
        kd.from_linen(Triple()).apply({}, Z)
    with pytest.raises(ValueError, match=r"from_linen takes .* not a NNX; .*from_nnx"):
        kd.from_linen(NNX(4, nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"from_nnx takes a function of nnx\.Rngs, not a NNX"):
        kd.from_nnx(NNX(4, nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"networks\.generator is a NNX; .*from_nnx"):
        kd.Setup(
            kd.Networks(NNX(4, nnx.Rngs(0))),
            kd.PerNetwork({}),
            kd.PerNetwork(None),
            kd.latents(3),
        )


def test_nnx_statistics_are_updated_in_training_only():
    network = make_nnx(5)
    variables = network.init(jax.random.key(0), Z)
    _, taps, after = network.apply(variables, Z)
    assert after is variables
    linear = jax.tree.map(np.asarray, variables["params"]["first"])
    hidden = Z @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(taps["hidden"], hidden, rtol=1e-3)  # statistics 0 and 1, so far
    _, taps, after = network.apply(variables, Z, train=True, rngs=jax.random.key(1))
    mean = hidden.mean(axis=0)
    np.testing.assert_allclose(after["state"]["norm"]["mean"], 0.5 * mean, rtol=1e-4)
    np.testing.assert_allclose(taps["hidden"].mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_array_equal(variables["state"]["norm"]["mean"], 0.0)


def test_nnx_draws_by_the_key_of_the_step():
    network = make_nnx(64)
    variables = network.init(jax.random.key(0), Z)
    first, again, other = (
        network.apply(variables, Z, train=True, rngs=jax.random.key(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "network",
    [kd.from_linen(Image()), make_nnx(5), make_functions(5)],
    ids=["linen", "nnx", "functions"],
)
def test_a_student_and_its_teacher_train(network):
    """Without gradient noise the student reaches a teacher of the same kind."""
    setup = kd.Setup(
        networks=kd.Networks(network, teacher=network),
        losses=kd.PerNetwork(
            {"pixel": lambda f: ((f.student.output - f.teacher.output) ** 2).mean((1, 2, 3))}
        ),
        optimizers=kd.PerNetwork(optax.adam(3e-2)),
        task=kd.latents(LATENT),
    )
    state = kd.init_state(setup, jax.random.key(0), IMAGES)
    variables = network.init(jax.random.key(1), Z)
    step = kd.compile_step(kd.make_train_step(setup))
    losses = []
    for _ in range(60):
        state, metrics = step(state, kd.Teacher(variables), IMAGES)
        losses.append(float(metrics["g/pixel"]))
    assert losses[-1] < 0.7 * losses[0] or losses[0] == 0.0
    assert int(state.step) == 60
    assert jax.tree.structure(state.ema) == jax.tree.structure(variables)


@pytest.mark.parametrize("make", [make_nnx, make_functions])
def test_a_factory_is_described_and_rebuilt(make):
    network = kd.from_factory(make, width=7)
    description = describe(network, Z)
    rebuilt = rebuild(description, [__name__])
    variables = network.init(jax.random.key(0), Z)
    images = [n.apply(variables, Z)[0] for n in (network, rebuilt.network)]
    np.testing.assert_array_equal(*images)
    assert description["arguments"] == {"width": 7}
    with pytest.raises(ValueError, match="is not in the packages"):
        rebuild(description)


def not_a_network(width):
    return width


def test_factories_that_cannot_be_rebuilt_are_refused():
    with pytest.raises(ValueError, match=r"<lambda> cannot be imported"):
        kd.from_factory(lambda: make_nnx(4))
    with pytest.raises(ValueError, match=r"not_a_network returned a int, not a kd_jax\.Network"):
        kd.from_factory(not_a_network, width=3)
    with pytest.raises(ValueError, match="from_linen nor by from_factory"):
        describe(make_nnx(4), Z)
    with pytest.raises(ValueError, match="an input is a list"):
        describe(kd.from_linen(Image()), [Z])
    description = {"factory": f"{__name__}:np", "arguments": {}, "inputs": [], "classes": 0}
    with pytest.raises(ValueError, match="np is not a class of"):
        rebuild(description, [__name__])
