"""The training steps: against hand-derived values of a linear GAN, and properties of real ones.

The linear GAN's generator is `z * w` and its discriminator `x * v`, with scalars w and v, so its
gradients are written out below in numpy's double precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import losses
from kd_jax.core.mesh import compile_step, initialize, make_mesh
from kd_jax.core.network import Network, connect, disconnect
from kd_jax.core.objective import Inputs, Term
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import init_state
from kd_jax.core.step import d_step, g_step, make_simultaneous_step, make_train_step
from kd_jax.core.types import Taps
from kd_jax.models import dcgan, mlp
from kd_jax.tasks import latents

adversarial = losses.adversarial

B = 4
W, V = 0.7, -1.3  # initial parameters of the generator and of the discriminator
D_RATE, G_RATE = 0.5, 0.25
REAL = np.array([1.0, 2.0, -0.5, 3.0], np.float32)
BATCH = {"image": REAL}


def _linear(name, value):
    def init(key, x):
        return {"params": {name: jnp.float32(value)}}

    def apply(variables, x, train=False, rngs=None):
        y = x * variables["params"][name]
        return y, Taps(output=y, other=x), variables

    return Network(init, apply)


def _counting(name, value):
    """As `_linear`, with an average of the outputs and a count of the calls in training."""

    def init(key, x):
        statistics = {"mean": jnp.asarray(2.0), "calls": jnp.asarray(0, jnp.int32)}
        return {"params": {name: jnp.asarray(value)}, "batch_stats": statistics}

    def apply(variables, x, train=False, rngs=None):
        y = x * variables["params"][name]
        if not train:
            return y, Taps(), variables
        old = variables["batch_stats"]
        new = {"mean": 0.9 * old["mean"] + 0.1 * y.mean(), "calls": old["calls"] + 1}
        return y, Taps(), {**variables, "batch_stats": new}

    return Network(init, apply)


def _task(key, batch):
    return Inputs((jax.random.normal(key, (B,)),), (), batch.get("image"), batch)


_LATENTS = Term(lambda f, _: (0.0, f.inputs.generator[0]), init=lambda: jnp.zeros(B))
"""Adds zero; its state is the latents of the update."""

D_TERMS = {
    "adv": Term(
        lambda f: adversarial.minimax_d(f.discriminator.real_scores, f.discriminator.fake_scores)
    ),
    "z": _LATENTS,
}
G_TERMS = {
    "adv": Term(lambda f: adversarial.nonsaturating_g(f.discriminator.fake_scores)),
    "z": _LATENTS,
}
NETS = Networks(_linear("w", W), _linear("v", V))
SGD = PerNetwork(optax.sgd(G_RATE), optax.sgd(D_RATE))


def _setup(
    make=make_train_step,
    seed=0,
    batch=BATCH,
    initial=None,
    g_terms=G_TERMS,
    d_terms=D_TERMS,
    **changes,
):
    parts = {"networks": NETS, "optimizers": SGD, "task": _task, **changes}
    setup = Setup(**{"losses": PerNetwork(g_terms, d_terms), **parts})
    return init_state(setup, jax.random.key(seed), batch, initial=initial), make(setup)


def _latents(states):
    return np.asarray(states["z"].state, np.float64)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _softplus(x):
    return np.log1p(np.exp(x))


def _d_gradient(w, v, z):
    return np.mean(-REAL * _sigmoid(-v * REAL) + w * z * _sigmoid(v * w * z))


def _g_gradient(w, v, z):
    return np.mean(-v * z * _sigmoid(-v * w * z))


def _w(state):
    return float(state.generator.variables["params"]["w"])


def _v(state):
    return float(state.discriminator.variables["params"]["v"])


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_alternating_step_by_hand():
    before, step = _setup()
    state, metrics = jax.jit(step)(before, None, BATCH)
    z_d, z_g = _latents(state.terms.discriminator), _latents(state.terms.generator)

    d_gradient = _d_gradient(W, V, z_d)
    v = V - D_RATE * d_gradient
    np.testing.assert_allclose(_v(state), v, rtol=1e-5)
    g_gradient = _g_gradient(W, v, z_g)  # against the new discriminator, with the old generator
    np.testing.assert_allclose(_w(state), W - G_RATE * g_gradient, rtol=1e-5)

    expected = {
        "d/adv": np.mean(_softplus(-V * REAL) + _softplus(V * W * z_d)),
        "d/z": 0.0,
        "d/total": np.mean(_softplus(-V * REAL) + _softplus(V * W * z_d)),
        "d/grad_norm": abs(d_gradient),
        "d/real_score": np.mean(V * REAL),
        "d/fake_score": np.mean(V * W * z_d),
        "g/adv": np.mean(_softplus(-v * W * z_g)),
        "g/z": 0.0,
        "g/total": np.mean(_softplus(-v * W * z_g)),
        "g/grad_norm": abs(g_gradient),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name].shape == ()
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_simultaneous_step_by_hand():
    before, step = _setup(make_simultaneous_step)
    state, metrics = jax.jit(step)(before, None, BATCH)
    z_d, z_g = _latents(state.terms.discriminator), _latents(state.terms.generator)
    np.testing.assert_array_equal(z_d, z_g)
    np.testing.assert_allclose(_v(state), V - D_RATE * _d_gradient(W, V, z_d), rtol=1e-5)
    np.testing.assert_allclose(_w(state), W - G_RATE * _g_gradient(W, V, z_d), rtol=1e-5)
    np.testing.assert_allclose(metrics["g/adv"], np.mean(_softplus(-V * W * z_d)), rtol=1e-5)
    assert int(state.step) == 1


def test_each_update_and_step_draws_its_own_latents():
    state, step = _setup()
    step = jax.jit(step)
    draws = []
    for _ in range(3):
        state, _ = step(state, None, BATCH)
        draws += [_latents(state.terms.discriminator), _latents(state.terms.generator)]
    other, _ = step(_setup(seed=1)[0], None, BATCH)
    draws += [_latents(other.terms.discriminator), _latents(other.terms.generator)]
    assert len({tuple(z) for z in draws}) == 8


def test_terms_get_a_key_of_their_own():
    draw = Term(lambda f: jax.random.uniform(f.key, (B,)))
    state, step = _setup(g_terms={"draw": draw}, d_terms={"draw": draw})
    step = jax.jit(step)
    values = []
    for _ in range(2):
        state, metrics = step(state, None, BATCH)
        values += [float(metrics["d/draw"]), float(metrics["g/draw"])]
    assert len(set(values)) == 4


def test_the_step_is_the_sequence_of_both_updates():
    before, step = _setup(ema=0.5)
    whole, metrics = step(before, None, BATCH)
    after_d, d_metrics = d_step(
        Setup(
            NETS, PerNetwork({}, D_TERMS), PerNetwork(SGD.discriminator, SGD.discriminator), _task
        )
    )(before, None, BATCH)
    _assert_equal(after_d.generator, before.generator)
    _assert_equal(after_d.ema, before.ema)
    assert int(after_d.step) == 0
    after_g, g_metrics = g_step(
        Setup(NETS, PerNetwork(G_TERMS, {}), PerNetwork(SGD.generator, SGD.generator), _task, 0.5)
    )(after_d, None, BATCH)
    _assert_equal(after_g.discriminator, after_d.discriminator)
    assert int(after_g.step) == 0
    _assert_equal(after_g._replace(step=whole.step), whole)
    _assert_equal({**d_metrics, **g_metrics}, metrics)


def test_same_state_and_batch_give_the_same_bits():
    state, step = _setup()
    step = jax.jit(step)
    once = step(*step(state, None, BATCH)[:1], None, BATCH)
    twice = step(*step(state, None, BATCH)[:1], None, BATCH)
    _assert_equal(once, twice)
    assert int(once[0].step) == 2
    assert once[0].step.dtype == jnp.int32
    _assert_equal(once[0].key, state.key)


@pytest.mark.parametrize(
    ("ema", "decays"), [(0.9, (0.1, 2 / 11)), (lambda step: 0.25 + 0.5 * step, (0.25, 0.75))]
)
def test_average_of_the_generator(ema, decays):
    nets = Networks(_counting("w", W), _counting("v", V))
    state, step = _setup(networks=nets, ema=ema)
    step = jax.jit(step)
    w, mean = W, 2.0
    for calls, decay in enumerate(decays, start=1):
        state, _ = step(state, None, BATCH)
        new = state.generator.variables
        w = decay * w + (1 - decay) * float(new["params"]["w"])
        mean = decay * mean + (1 - decay) * float(new["batch_stats"]["mean"])
        np.testing.assert_allclose(state.ema["params"]["w"], w, rtol=1e-6)
        np.testing.assert_allclose(state.ema["batch_stats"]["mean"], mean, rtol=1e-6)
        assert int(state.ema["batch_stats"]["calls"]) == calls  # copied
        assert state.ema["batch_stats"]["calls"].dtype == jnp.int32


@pytest.mark.parametrize("make", [make_train_step, make_simultaneous_step])
def test_statistics_follow_only_the_update_of_their_network(make):
    nets = Networks(_counting("w", W), _counting("v", V))
    before, step = _setup(make, networks=nets)
    state, _ = jax.jit(step)(before, None, BATCH)
    z_d, z_g = _latents(state.terms.discriminator), _latents(state.terms.generator)

    statistics = state.generator.variables["batch_stats"]
    assert int(statistics["calls"]) == 1
    np.testing.assert_allclose(statistics["mean"], 0.9 * 2.0 + 0.1 * np.mean(W * z_g), rtol=1e-5)

    statistics = state.discriminator.variables["batch_stats"]  # of the real, then of the fake
    assert int(statistics["calls"]) == 2
    mean = 0.9 * 2.0 + 0.1 * np.mean(V * REAL)
    mean = 0.9 * mean + 0.1 * np.mean(V * W * z_d)
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-5)


def _stateful(forward, state):
    return (forward.student.output - state["mean"]) ** 2, {
        "mean": 0.5 * state["mean"] + forward.student.output.mean()
    }


def test_lazy_and_stateful_terms_preserve_the_structure_of_the_state():
    extra = {
        "lazy": Term(lambda f: losses.penalties.r1(f.discriminator, f.real[:, None]), every=2),
        "memory": Term(_stateful, init=lambda: {"mean": 0.0}),
        "both": Term(_stateful, every=3, init=lambda: {"mean": 0.0}),
    }
    traces = []
    state, step = _setup(d_terms={**D_TERMS, **extra}, g_terms={**G_TERMS, **extra})

    @jax.jit
    def traced_step(state, teacher, batch):
        traces.append(1)
        return step(state, teacher, batch)

    abstract = jax.tree.map(jax.typeof, state)
    lazy = []
    for _ in range(4):
        state, metrics = traced_step(state, None, BATCH)
        assert jax.tree.map(jax.typeof, state) == abstract
        lazy.append(float(metrics["d/lazy"]))
    assert len(traces) == 1  # not even a weak type changes
    # R1 of x * v is v^2 / 2, evaluated at steps 0 and 2.
    np.testing.assert_allclose(lazy[0], V**2 / 2, rtol=1e-5)
    assert lazy[0] == lazy[1] != lazy[2] == lazy[3]


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_only_the_state_is_donated(how):
    key, start = jax.random.key(0), {"generator": {"params": {"w": jnp.asarray(0.1)}}}
    teacher = Teacher({"params": {"w": jnp.asarray(3.0)}})
    batch = {"image": jnp.asarray(REAL)}
    parts = {
        "networks": NETS._replace(teacher=_linear("w", 3.0)),
        "optimizers": PerNetwork(optax.adam(0.1), optax.adam(0.1)),
        "task": _task,
        "losses": PerNetwork(
            {"pixel": Term(lambda f: losses.response.l2(f.student.output, f.teacher.output))},
            D_TERMS,
        ),
    }

    def init():
        return init_state(Setup(**parts), key, batch, initial=start)

    state = init() if how == "eager" else initialize(init)
    assert _w(state) == pytest.approx(0.1)
    step = compile_step(make_train_step(Setup(**parts)), donate=True)
    for _ in range(3):
        donated = state
        state, _ = step(state, teacher, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated.generator.variables))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((key, start, teacher, batch)))
    assert int(state.step) == 3


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends donate the state")
@pytest.mark.parametrize("on_mesh", [False, True])
def test_nothing_is_donated_on_cpu_by_default(on_mesh):
    state, _ = _setup()
    step = compile_step(
        lambda state, teacher, batch: (state._replace(step=state.step + 1), {}),
        make_mesh(8) if on_mesh else None,
    )
    step(state, None, {"image": jnp.zeros((8, 1))})
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_initial_variables_are_completed_and_checked():
    """Missing entries are initialized as without `initial`; entries that do not fit raise."""
    network = connect(dcgan.generator(16, 2, channels=1), {"8x8": (1, 8, 8, 5)})
    parts = {
        "networks": Networks(network),
        "optimizers": PerNetwork(optax.sgd(0.1)),
        "task": latents(8),
        "losses": PerNetwork({}, {}),
    }
    batch = {"image": np.zeros((2, 16, 16, 1), np.float32)}
    fresh = init_state(Setup(**parts), jax.random.key(0), batch)
    other = disconnect(init_state(Setup(**parts), jax.random.key(1), batch).generator.variables)
    initialized = init_state(Setup(**parts), jax.random.key(0), batch, initial={"generator": other})
    _assert_equal(disconnect(initialized.generator.variables), other)
    _assert_equal(
        initialized.generator.variables["params"]["connectors"],
        fresh.generator.variables["params"]["connectors"],
    )
    _assert_equal(initialized.ema, initialized.generator.variables)

    wide = dcgan.generator(16, 4, channels=1).init(jax.random.key(0), np.zeros((2, 8)))
    with pytest.raises(
        ValueError,
        match=r"initial: .*/Dense_0/kernel is an array \(8, 128\), and an array \(8, 64\)",
    ):
        init_state(
            Setup(**parts),
            jax.random.key(0),
            batch,
            initial={"generator": {"params": {"Dense_0": wide["params"]["Dense_0"]}}},
        )
    with pytest.raises(ValueError, match=r"generator/params has \['nose'\]"):
        init_state(
            Setup(**parts), jax.random.key(0), batch, initial={"generator": {"params": {"nose": 1}}}
        )
    with pytest.raises(ValueError, match=r"params is an array \(2,\), and \['BatchNorm_0', "):
        init_state(
            Setup(**parts), jax.random.key(0), batch, initial={"generator": {"params": np.ones(2)}}
        )


def test_initial_variables_of_an_unknown_network_raises():
    with pytest.raises(
        ValueError, match=r"initial has \['teacher'\]; it may have 'generator', 'dis"
    ):
        _setup(initial={"teacher": {"params": {}}})


def test_images_of_another_shape_raise():
    state, step = _setup()
    with pytest.raises(
        ValueError, match=r"real images have shape \(5,\), the generator's output \(4,\)"
    ):
        jax.eval_shape(step, state, None, {"image": np.zeros(5, np.float32)})


# Teachers.

TEACHER = _linear("w", 3.0)
WITH_TEACHER = NETS._replace(teacher=TEACHER)
TEACHER_VARIABLES = Teacher({"params": {"w": jnp.asarray(3.0)}})


def test_the_teacher_gets_the_student_s_latents():
    g_terms = {
        "pixel": Term(lambda f: losses.response.l2(f.student.output, f.teacher.output)),
        "z": _LATENTS,
    }
    before, step = _setup(networks=WITH_TEACHER, g_terms=g_terms)
    state, metrics = jax.jit(step)(before, TEACHER_VARIABLES, BATCH)
    z = _latents(state.terms.generator)
    np.testing.assert_allclose(metrics["g/pixel"], np.mean(((W - 3.0) * z) ** 2), rtol=1e-5)
    gradient = np.mean(2 * (W - 3.0) * z**2)
    np.testing.assert_allclose(_w(state), W - G_RATE * gradient, rtol=1e-5)


def test_no_gradient_reaches_the_teacher():
    g_terms = {
        "copy": Term(
            lambda f: f.teacher.output * f.teacher.taps["output"] * f.teacher.taps["other"]
        )
    }
    state, step = _setup(networks=WITH_TEACHER, g_terms=g_terms, d_terms=g_terms)

    def value(teacher):
        metrics = step(state, teacher, BATCH)[1]
        return metrics["g/copy"] + metrics["d/copy"]

    total, gradient = jax.value_and_grad(value)(TEACHER_VARIABLES)
    assert float(total) != 0.0
    assert float(gradient.generator["params"]["w"]) == 0.0


def test_further_passes_of_teacher_and_student():
    terms = {
        "teach": Term(lambda f: f.teacher(jnp.full(B, 2.0))[0]),
        "generate": Term(lambda f: f.student(jnp.full(B, 2.0))[0]),
        "score": Term(lambda f: f.discriminator(jnp.full(B, 2.0))[0]),
        "teacher_score": Term(lambda f: f.teacher_discriminator(jnp.full(B, 2.0))[0]),
    }
    nets = WITH_TEACHER._replace(teacher_discriminator=_linear("v", 5.0))
    state, step = _setup(networks=nets, d_terms=terms)
    teacher = Teacher(TEACHER_VARIABLES.generator, {"params": {"v": jnp.asarray(5.0)}})
    metrics = step(state, teacher, BATCH)[1]
    actual = [float(metrics[f"d/{name}"]) for name in terms]
    np.testing.assert_allclose(actual, [6.0, 2 * W, 2 * V, 10.0], rtol=1e-6)


def test_a_missing_teacher_raises():
    g_terms = {"pixel": Term(lambda f: losses.response.l2(f.student.output, f.teacher.output))}
    state, step = _setup(g_terms=g_terms)
    with pytest.raises(ValueError, match=r"term 'pixel': .*networks\.teacher is None"):
        jax.eval_shape(step, state, None, BATCH)
    state, step = _setup(networks=WITH_TEACHER)
    for nothing in (None, Teacher(None)):
        with pytest.raises(ValueError, match=r"teacher_variables\.generator is None"):
            jax.eval_shape(step, state, nothing, BATCH)
    state, step = _setup(networks=NETS._replace(teacher_discriminator=_linear("v", 5.0)))
    with pytest.raises(ValueError, match=r"teacher_variables\.discriminator is None"):
        jax.eval_shape(step, state, TEACHER_VARIABLES, BATCH)


def _mlp_setup(teacher=None, **changes):
    pair = mlp.gan(4, 16, depth=1)
    parts = {
        "networks": Networks(pair.generator, pair.discriminator, teacher),
        "losses": PerNetwork({"adv": G_TERMS["adv"]}, {"adv": D_TERMS["adv"]}),
        "optimizers": PerNetwork(optax.sgd(0.1), optax.sgd(0.1)),
        "task": latents(3),
    }
    return Setup(**{**parts, **changes})


MLP_BATCH = {"image": np.zeros((8, 4, 4, 1), np.float32)}


def _mlp_teacher(width):
    network = mlp.generator(4, width, depth=1)
    return network, Teacher(network.init(jax.random.key(1), jnp.zeros((8, 3))))


def test_the_teacher_is_not_a_constant_of_the_program():
    texts = []
    for width in (4, 512):
        teacher, variables = _mlp_teacher(width)
        pixel = Term(lambda f: losses.response.l2(f.student.output, f.teacher.output))
        setup = _mlp_setup(teacher, losses=PerNetwork({"pixel": pixel}, {"adv": D_TERMS["adv"]}))
        step = make_train_step(setup)
        state = jax.eval_shape(lambda setup=setup: init_state(setup, jax.random.key(0), MLP_BATCH))
        texts.append(jax.jit(step).lower(state, variables, MLP_BATCH).as_text())
        constants = jax.make_jaxpr(step)(state, variables, MLP_BATCH).consts
        assert sum(np.size(constant) for constant in constants) < 100
    assert len(texts[1]) < 1.02 * len(texts[0])  # only the shapes have more digits
    # A closure does create constants, which the sizes above would show.
    closed = jax.jit(lambda state, batch: step(state, variables, batch)).lower(state, MLP_BATCH)
    assert len(closed.as_text()) > 1.5 * len(texts[1])


def _flops(setup, make=make_train_step, teacher=None):
    state = jax.eval_shape(lambda: init_state(setup, jax.random.key(0), MLP_BATCH))
    compiled = jax.jit(make(setup)).lower(state, teacher, MLP_BATCH).compile()
    return compiled.cost_analysis()["flops"]


def test_unused_networks_cost_nothing_and_sharing_saves_flops():
    alternating = _flops(_mlp_setup())
    teacher, variables = _mlp_teacher(64)
    assert _flops(_mlp_setup(teacher), teacher=variables) == alternating
    assert _flops(_mlp_setup(), make_simultaneous_step) < 0.8 * alternating


# Without a discriminator, and with an extractor.


@pytest.mark.parametrize("optimizers", [SGD, PerNetwork(SGD.generator)])
def test_step_without_a_discriminator_by_hand(optimizers):
    parts = {
        "networks": Networks(_linear("w", W), teacher=TEACHER),
        "optimizers": optimizers,
        "losses": PerNetwork(
            {
                "pixel": Term(lambda f: losses.response.l2(f.student.output, f.teacher.output)),
                "z": _LATENTS,
            },
            {},
        ),
    }
    before, step = _setup(**parts)
    assert before.discriminator == ()
    assert before.terms.discriminator == {}
    state, metrics = jax.jit(step)(before, TEACHER_VARIABLES, BATCH)
    z = _latents(state.terms.generator)
    gradient = np.mean(2 * (W - 3.0) * z**2)
    np.testing.assert_allclose(_w(state), W - G_RATE * gradient, rtol=1e-5)
    np.testing.assert_allclose(metrics["g/pixel"], np.mean(((W - 3.0) * z) ** 2), rtol=1e-5)
    assert set(metrics) == {"g/pixel", "g/z", "g/total", "g/grad_norm"}
    assert (int(state.step), state.discriminator) == (1, ())
    # The same update as with an unused discriminator.
    unused, step = _setup(**{**parts, "networks": WITH_TEACHER, "optimizers": SGD})
    np.testing.assert_allclose(_w(step(unused, TEACHER_VARIABLES, BATCH)[0]), _w(state), rtol=1e-6)


def test_without_a_discriminator_terms_get_no_scores():
    values = []

    def record(forward):
        values.append((bool(forward.discriminator), bool(forward.teacher_discriminator)))
        np.testing.assert_array_equal(forward.real, REAL)
        return forward.student.output

    state, step = _setup(
        networks=Networks(_linear("w", W)), g_terms={"x": Term(record)}, d_terms={}
    )
    step(state, None, BATCH)
    assert values == [(False, False)]
    state, step = _setup(
        networks=Networks(_linear("w", W)), g_terms={"adv": G_TERMS["adv"]}, d_terms={}
    )
    with pytest.raises(ValueError, match=r"term 'adv': .*networks\.discriminator is None"):
        step(state, None, BATCH)


def test_a_missing_discriminator_raises():
    nets = NETS._replace(discriminator=None)
    with pytest.raises(ValueError, match=r"losses\.discriminator has adv, z"):
        _setup(networks=nets)
    with pytest.raises(ValueError, match=r"networks\.discriminator is None"):
        _setup(make_simultaneous_step, networks=nets, d_terms={})
    with pytest.raises(
        ValueError, match=r"initial has \['discriminator'\]; it may have 'generator'$"
    ):
        _setup(networks=nets, d_terms={}, initial={"discriminator": {"params": {}}})


def test_extractor_features_by_hand():
    def features(variables, x, train=False, rngs=None):
        assert not train
        return None, Taps(square=variables["params"]["e"] * x**2), variables

    nets = WITH_TEACHER._replace(extractor=Network(lambda key, x: None, features))
    g_terms = {
        "features": Term(
            lambda f: (
                f.extractor(f.student.output)[1]["square"]
                - f.extractor(f.teacher.output)[1]["square"]
            )
        ),
        "z": _LATENTS,
    }
    before, step = _setup(networks=nets, g_terms=g_terms)
    frozen = TEACHER_VARIABLES._replace(extractor={"params": {"e": jnp.asarray(0.5)}})
    state, metrics = jax.jit(step)(before, frozen, BATCH)
    z = _latents(state.terms.generator)
    value = 0.5 * np.mean((W * z) ** 2 - (3.0 * z) ** 2)
    np.testing.assert_allclose(metrics["g/features"], value, rtol=1e-5)
    gradient = np.mean(0.5 * 2 * W * z**2)
    np.testing.assert_allclose(_w(state), W - G_RATE * gradient, rtol=1e-5)
    with pytest.raises(ValueError, match=r"teacher_variables\.extractor is None"):
        step(before, TEACHER_VARIABLES, BATCH)
    before, step = _setup(networks=WITH_TEACHER, g_terms=g_terms)
    with pytest.raises(ValueError, match=r"term 'features': .*networks\.extractor is None"):
        step(before, frozen, BATCH)


# Real networks.

LABELLED = {
    "image": np.random.default_rng(0).uniform(-1, 1, size=(8, 16, 16, 3)).astype(np.float32),
    "label": np.arange(8, dtype=np.int32) % 3,
}


def test_half_precision_is_close_to_single_precision():
    results = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        pair = dcgan.gan(16, 4, classes=3, dtype=dtype)
        parts = {
            "networks": Networks(pair.generator, pair.discriminator),
            "optimizers": PerNetwork(optax.sgd(0.01), optax.sgd(0.01)),
            "task": latents(6, conditional=True),
            "losses": PerNetwork({"adv": G_TERMS["adv"]}, {"adv": D_TERMS["adv"]}),
        }
        state = initialize(
            lambda parts=parts: init_state(Setup(**parts), jax.random.key(0), LABELLED)
        )
        state, metrics = compile_step(make_simultaneous_step(Setup(**parts)))(state, None, LABELLED)
        for leaf in jax.tree.leaves((state.generator, state.discriminator, state.ema, metrics)):
            assert leaf.dtype == jnp.float32
            assert np.all(np.isfinite(leaf))
        results[dtype] = {name: float(value) for name, value in metrics.items()}
    for name, value in results[jnp.float32].items():
        assert results[jnp.bfloat16][name] == pytest.approx(value, rel=0.05, abs=0.02), name
    assert results[jnp.bfloat16] != results[jnp.float32]


@pytest.mark.parametrize(
    ("d_loss", "g_loss"),
    [
        (adversarial.minimax_d, adversarial.minimax_g),
        (adversarial.hinge_d, adversarial.hinge_g),
    ],
)
def test_mlp_gan_takes_finite_steps(d_loss, g_loss):
    pair = mlp.gan(28, 16)
    parts = {
        "networks": Networks(pair.generator, pair.discriminator),
        "optimizers": PerNetwork(optax.adam(2e-4), optax.adam(2e-4)),
        "task": latents(8),
        "losses": PerNetwork(
            {"adv": Term(lambda f: g_loss(f.discriminator.fake_scores))},
            {
                "adv": Term(
                    lambda f: d_loss(f.discriminator.real_scores, f.discriminator.fake_scores)
                )
            },
        ),
    }
    batch = {"image": np.full((8, 28, 28, 1), 0.5, np.float32)}
    initial = initialize(lambda: init_state(Setup(**parts), jax.random.key(0), batch))
    before = jax.tree.map(np.array, initial.ema)  # copies, since the state is donated
    state, step = initial, compile_step(make_train_step(Setup(**parts)))
    for _ in range(3):
        state, metrics = step(state, None, batch)
        assert np.all(np.isfinite(list(metrics.values())))
        assert metrics["g/grad_norm"] > 0
        assert metrics["d/grad_norm"] > 0
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.ema), strict=True):
        assert np.all(np.isfinite(new))
        assert not np.array_equal(old, new)


def test_mlp_gan_learns_a_constant_image():
    adam = optax.adam(3e-3, b1=0.5)
    setup = _mlp_setup(optimizers=PerNetwork(adam, adam), ema=0.9)
    batch = {"image": np.full((16, 4, 4, 1), 0.6, np.float32)}
    state = init_state(setup, jax.random.key(0), batch)
    step = make_train_step(setup)
    z = jax.random.normal(jax.random.key(9), (256, 3))

    def error(variables):
        images = setup.networks.generator.apply(variables, z)[0]
        return float(jnp.abs(images - 0.6).mean())

    before = error(state.ema)
    run = jax.jit(
        lambda state: jax.lax.fori_loop(0, 600, lambda _, s: step(s, None, batch)[0], state)
    )
    after = error(run(state).ema)
    assert before > 0.5
    assert after < 0.4 * before


def test_batches_without_labels_or_images_raise():
    with pytest.raises(ValueError, match=r"\['image'\]; drawing latents needs 'label'"):
        latents(3, conditional=True)(jax.random.key(0), {"image": np.zeros((2, 4))})
    with pytest.raises(ValueError, match="needs 'label' or 'image'"):
        latents(3)(jax.random.key(0), {})
