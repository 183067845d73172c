"""Gradient accumulation: against the plain step of the whole batch, and of each part by itself.

With plain gradient descent the parameters after an accumulated update are the mean of those after
the plain updates on each part, for any terms and networks.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd_jax as kd
from kd_jax import losses
from kd_jax.augment.adaptive import adapt, sign_statistic, with_ada
from kd_jax.core.objective import Inputs, Term
from kd_jax.core.setup import Networks, PerNetwork, Setup
from kd_jax.core.types import Taps
from kd_jax.methods import image_pool
from kd_jax.methods.weights import gradient_balanced
from kd_jax.models import dcgan, mlp
from kd_jax.models.layers import spectral

B = 16
RNG = np.random.default_rng(0)
SGD = PerNetwork(optax.sgd(0.1), optax.sgd(0.2))
NONSATURATING = losses.adversarial.nonsaturating_g
MAKERS = {
    "alternating": kd.make_train_step,
    "simultaneous": kd.make_simultaneous_step,
}


def _images(size=4, batch=B, dtype=np.float32):
    return {"image": RNG.uniform(-1, 1, (batch, size, size, 1)).astype(dtype)}


def _adversarial(f):
    return NONSATURATING(f.discriminator.fake_scores)


def _d_adversarial(f):
    d = f.discriminator
    return losses.adversarial.minimax_d(d.real_scores, d.fake_scores)


def _pixel(f):
    return losses.response.l1(f.student.output, f.teacher.output)


def _setup(networks=None, g=None, d=None, dtype=np.float32, **changes):
    pair = mlp.gan(4, 8, depth=1, dtype=dtype)
    arguments = {
        "networks": networks or Networks(pair.generator, pair.discriminator, pair.generator),
        "losses": PerNetwork(
            {"adv": _adversarial, "pixel": (_pixel, lambda step: 0.5 + step)} if g is None else g,
            {"adv": _d_adversarial, "r1": Term(_r1, 0.5, every=2)} if d is None else d,
        ),
        "optimizers": SGD,
        "task": kd.latents(4),
        "ema": 0.5,
    }
    return Setup(**{**arguments, **changes})


def _r1(f):
    return losses.penalties.r1(f.discriminator, f.real)


def _teacher(setup, dtype=np.float32):
    variables = setup.networks.teacher.init(jax.random.key(7), jnp.zeros((1, 4)))
    return kd.Teacher(_as(variables, dtype))


def _as(tree, dtype):
    """The tree with its floating-point arrays in another dtype."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def _assert_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, one), other in zip(leaves, jax.tree.leaves(actual), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert other.dtype == one.dtype, path
        np.testing.assert_allclose(other, one, err_msg=jax.tree_util.keystr(path), **tolerance)


def _train(make, setup, batches, teacher, dtype=np.float32, state=None):
    state = state or _as(kd.init_state(setup, jax.random.key(0), batches[0]), dtype)
    step = jax.jit(make)
    for batch in batches:
        state, metrics = step(state, teacher, batch)
    return state, metrics


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("count", [2, 16])
def test_means_over_examples_give_the_plain_step(x64, maker, count):
    setup, make = _setup(dtype=np.float64), MAKERS[maker]
    batches = [_images(dtype=np.float64) for _ in range(3)]
    teacher = _teacher(setup, np.float64)
    expected = _train(make(setup), setup, batches, teacher, np.float64)
    actual = _train(make(setup, micro_batches=count), setup, batches, teacher, np.float64)
    _assert_close(actual, expected, rtol=1e-11, atol=1e-13)
    start = kd.init_state(setup, jax.random.key(0), batches[0])
    for network in ("generator", "discriminator"):  # the comparison is not vacuous
        _assert_moved(getattr(start, network).variables, getattr(actual[0], network).variables)


def _assert_moved(before, after):
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.abs(np.asarray(new - old)).max() > 1e-4


@pytest.mark.parametrize("maker", MAKERS)
def test_a_single_part_is_the_plain_step(maker):
    setup, make = _setup(), MAKERS[maker]
    batches, teacher = [_images() for _ in range(2)], _teacher(setup)
    expected = _train(make(setup), setup, batches, teacher)
    actual = _train(make(setup, micro_batches=1), setup, batches, teacher)
    _assert_close(actual, expected, rtol=0, atol=0)


def _from_batch(key, batch):
    return Inputs((batch["z"],), (), batch["image"], batch)


def _relational_setup():
    """Batch normalisation, minibatch deviation, and a loss that relates examples."""
    student = dcgan.gan(16, 2, channels=1, minibatch_stddev=True)
    teacher = dcgan.generator(16, 4, channels=1)
    relation = losses.relation.similarity_preserving
    terms = {
        "adv": _adversarial,
        "relation": (lambda f: relation(f.student.taps["8x8"], f.teacher.taps["8x8"]), 100.0),
    }
    networks = Networks(student.generator, student.discriminator, teacher)
    return _setup(networks, terms, {"adv": _d_adversarial}, task=_from_batch)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_an_update_is_the_mean_over_the_parts(network):
    count, setup = 4, _relational_setup()
    make = {"generator": kd.g_step, "discriminator": kd.d_step}[network]
    batch = {**_images(16), "z": RNG.normal(size=(B, 4)).astype(np.float32)}
    teacher = _teacher(setup)
    start = kd.init_state(setup, jax.random.key(0), batch)
    plain = jax.jit(make(setup))
    parts = [plain(start, teacher, {k: v[i::count] for k, v in batch.items()}) for i in range(4)]
    expected, metrics = jax.tree.map(
        lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves) / count,
        *[(getattr(state, network).variables, metrics) for state, metrics in parts],
    )
    state, actual_metrics = jax.jit(make(setup, micro_batches=count))(start, teacher, batch)
    actual = getattr(state, network).variables
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(other, one, rtol=2e-4, atol=2e-6, err_msg=name)
    prefix = network[0]
    norm = metrics.pop(f"{prefix}/grad_norm")  # the norm of the mean is less than the mean norm
    assert actual_metrics.pop(f"{prefix}/grad_norm") < 0.999 * norm
    assert actual_metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(actual_metrics[name], value, rtol=1e-4, err_msg=name)
    whole = plain(start, teacher, batch)[0]
    difference = optax.tree.norm(
        optax.tree.sub(getattr(whole, network).variables["params"], actual["params"])
    )
    assert difference > 1e-4  # these terms see one part at a time


def _counting(start):
    """Scales by a parameter; counts its calls in training, and has a key and an average."""

    def init(key, x):
        state = {"mean": jnp.asarray(2.0), "calls": jnp.asarray(0), "key": jax.random.key(3)}
        return {"params": {"scale": jnp.asarray(start)}, "state": state}

    def apply(variables, x, train=False, rngs=None):
        y = x * variables["params"]["scale"]
        if not train:
            return y, Taps(), variables
        old = variables["state"]
        new = {
            "mean": 0.9 * old["mean"] + 0.1 * y.mean(),
            "calls": old["calls"] + 1,
            "key": jax.random.split(old["key"])[0],
        }
        return y, Taps(), {**variables, "state": new}

    return kd.Network(init, apply)


def _simple_setup(g=None, d=None):
    def task(key, batch):
        return Inputs((jax.random.normal(key, (batch["image"].shape[0],)),), (), batch["image"])

    return _setup(
        Networks(_counting(0.7), _counting(-1.3)),
        g or {"adv": lambda f: NONSATURATING(f.discriminator.fake_scores)},
        d or {"adv": _d_adversarial},
        task=task,
    )


VALUES = {"image": RNG.normal(size=B).astype(np.float32)}


@pytest.mark.parametrize("count", [2, 8])
def test_linear_statistics_are_those_of_the_plain_step(count):
    setup = _simple_setup()
    expected = _train(kd.make_train_step(setup), setup, [VALUES] * 3, None)
    actual = _train(kd.make_train_step(setup, micro_batches=count), setup, [VALUES] * 3, None)
    # Means of scores cancel nearly: their error is relative to the scores, which are below 1.
    _assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    assert int(actual[0].discriminator.variables["state"]["calls"]) == 6  # real and generated


def test_spectral_normalisation_is_that_of_the_plain_step():
    pair, discriminator = mlp.gan(4, 8, depth=1), kd.from_linen(_Spectral())
    setup = _setup(Networks(pair.generator, discriminator, pair.generator))
    batches, teacher = [_images() for _ in range(3)], _teacher(setup)
    expected = _train(kd.make_train_step(setup), setup, batches, teacher)
    actual = _train(kd.make_train_step(setup, micro_batches=4), setup, batches, teacher)
    _assert_close(actual, expected, rtol=1e-4, atol=1e-6)


class _Spectral(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        norm = spectral.ONE_STEP
        x = nn.relu(spectral.Dense(8, norm, train, name="hidden")(x.reshape(x.shape[0], -1)))
        return spectral.Dense(1, norm, train, name="scores")(x)[:, 0]


def test_each_part_has_a_key_and_passes_its_states_on():
    def remember(f, draws):
        draw = jax.random.uniform(f.key)
        return draw, jnp.concatenate([draws[1:], draw[None]])

    setup = _simple_setup(g={"draw": Term(remember, init=lambda: jnp.zeros(8))})
    state, metrics = _train(kd.make_train_step(setup, micro_batches=4), setup, [VALUES] * 2, None)
    draws = np.asarray(state.terms.generator["draw"].state)
    assert len({*draws.tolist(), 0.0}) == 9
    np.testing.assert_allclose(metrics["g/draw"], draws[4:].mean(), rtol=1e-6)


def test_adaptive_weights_are_updated_by_each_part():
    def double(f):
        return 2.0 * NONSATURATING(f.discriminator.fake_scores)

    def single(f):
        return NONSATURATING(f.discriminator.fake_scores)

    weight = gradient_balanced(single, decay=0.75)
    setup = _simple_setup(g={"adv": single, "double": Term(double, weight)})
    state, metrics = _train(kd.make_train_step(setup, micro_batches=4), setup, [VALUES], None)
    # By the definition of the weight the ratio is 1/2, whatever the examples.
    np.testing.assert_allclose(metrics["g/double/weight"], 0.5, rtol=1e-3)
    _, count, _ = state.terms.generator["double"].weight
    np.testing.assert_allclose(count, 1 - 0.75**4, rtol=1e-6)


def test_an_image_pool_holds_every_example():
    def pooled(f, pool):
        images, pool = image_pool.query(f.key, pool, f.student.output)
        return _d_adversarial(f) + 0.0 * images, pool

    term = Term(pooled, init=lambda: image_pool.init(2 * B, ()))
    setup = _simple_setup(d={"pool": term})
    state, _ = _train(kd.make_train_step(setup, micro_batches=4), setup, [VALUES], None)
    pool = state.terms.discriminator["pool"].state
    assert int(pool.num_images) == B
    assert len(np.unique(np.asarray(pool.images[:B]))) == B


@pytest.mark.parametrize("count", [1, 4])
def test_lazy_terms_report_the_mean_of_their_last_evaluation(count):
    def value(f):
        return f.real * (1 + f.step)

    setup = _simple_setup(g={"lazy": Term(value, lambda step: 2.0 + step, every=2)})
    step = jax.jit(kd.make_train_step(setup, micro_batches=count))
    state = kd.init_state(setup, jax.random.key(0), VALUES)
    reported = []
    for _ in range(3):
        state, metrics = step(state, None, VALUES)
        reported.append([float(metrics[f"g/{name}"]) for name in ("lazy", "lazy/weight", "total")])
    mean = VALUES["image"].mean()
    expected = [[mean, 2, 4 * mean], [mean, 2, 0], [3 * mean, 4, 24 * mean]]
    np.testing.assert_allclose(reported, expected, rtol=1e-5)
    assert reported[0][:2] == reported[1][:2]


@pytest.mark.parametrize("rule", [kd.replicated, kd.fully_sharded(min_size=32)])
def test_a_mesh_gives_the_step_of_one_device(rule):
    setup = _relational_setup()
    batches = [{**_images(16), "z": RNG.normal(size=(B, 4)).astype(np.float32)} for _ in range(3)]

    def train(mesh, rule):
        step = kd.compile_step(kd.make_train_step(setup, micro_batches=2), mesh, rule)
        state = kd.initialize(
            lambda: kd.init_state(setup, jax.random.key(0), batches[0]), mesh, rule
        )
        teacher = kd.place(_teacher(setup), mesh, rule)
        for batch in batches:
            state, metrics = step(state, teacher, kd.place_batch(batch, mesh))
        return state, metrics

    expected = train(None, kd.replicated)
    _assert_close(train(kd.make_mesh(4, 2), rule), expected, rtol=1e-3, atol=2e-5)


def test_each_part_is_split_over_the_devices():
    setup, batch = _setup(), _images(batch=64)
    teacher = _teacher(setup)

    def flops(mesh):
        step = kd.compile_step(kd.g_step(setup, micro_batches=2), mesh)
        state = kd.initialize(lambda: kd.init_state(setup, jax.random.key(0), batch), mesh)
        lowered = step.lower(state, kd.place(teacher, mesh), kd.place_batch(batch, mesh))
        program = lowered.compile()
        for collective in ("all-to-all", "all-gather", "collective-permute"):
            assert collective not in program.as_text()  # no example changes its device
        return program.cost_analysis()["flops"]

    assert flops(kd.make_mesh(8)) < 0.25 * flops(None)


WRAPPERS = {
    "self-distillation": lambda make, setup: kd.self_distillation(make(setup)),
    "several steps": lambda make, setup: kd.multi_step(make(setup), 2),
    "online": lambda make, setup: kd.online_distillation(make(setup), {"wide": make(setup)}),
    "data-free": lambda make, setup: kd.data_free(
        make(setup), setup.networks.teacher, kd.latents(4), 0.5
    ),
    "skipping": lambda make, setup: kd.skip_nonfinite(make(setup)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_give_what_they_give_for_the_plain_step(name):
    setup, batches = _setup(), [_images() for _ in range(2)]
    state = kd.init_state(setup, jax.random.key(0), batches[0])
    other = kd.init_state(setup, jax.random.key(1), batches[0])
    state = kd.with_skip_count(kd.with_teachers(state, {"wide": other}))
    results = []
    for count in (1, 4):

        def make(setup, count=count):
            return kd.make_train_step(setup, micro_batches=count)

        step = WRAPPERS[name](make, setup)
        results.append(_train(step, setup, batches, _teacher(setup), state=state))
    _assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_a_nan_in_one_part_skips_the_step():
    setup = _simple_setup()
    values = {"image": VALUES["image"].copy()}
    values["image"][5] = np.nan
    state = kd.with_skip_count(kd.init_state(setup, jax.random.key(0), values))
    step = kd.skip_nonfinite(kd.make_train_step(setup, micro_batches=4), patience=1)
    after, metrics = jax.jit(step)(state, None, values)
    assert int(metrics["skipped"]) == 1
    _assert_close(after.generator, state.generator, rtol=0, atol=0)
    _assert_close(after.discriminator, state.discriminator, rtol=0, atol=0)


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_adaptive_augmentation_counts_every_image(start):
    def flip(key, images, p):
        draws = jax.random.bernoulli(key, p, (images.shape[0], 1, 1, 1))
        return jnp.where(draws, images[:, :, ::-1], images)

    pair = mlp.gan(4, 8, depth=1)
    networks = Networks(pair.generator, with_ada(pair.discriminator, flip, start), pair.generator)
    terms = {"adv": _d_adversarial, "sign_statistic": sign_statistic()}
    setup = _setup(networks, d=terms)
    steps, batch = [], _images()
    for count in (1, 4):
        step = adapt(kd.make_train_step(setup, micro_batches=count), images=1000, interval=2)
        steps.append(_train(step, setup, [batch], _teacher(setup)))
    (plain, _), (state, metrics) = steps
    ada = state.discriminator.variables["augment"]
    assert int(ada["count"]) == B
    assert float(ada["p"]) == float(metrics["augment/p"]) == np.float32(start)
    if start == 0.0:  # nothing is augmented, so the scores are those of the plain step
        _assert_close(plain.discriminator, state.discriminator, rtol=1e-4, atol=1e-6)


def _one_line(match, function, *arguments):
    with pytest.raises(ValueError, match=match) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, -1, 2.0, "2", None])
@pytest.mark.parametrize(
    "make", [kd.make_train_step, kd.make_simultaneous_step, kd.d_step, kd.g_step]
)
def test_impossible_counts(make, count):
    _one_line(
        "micro_batches=.* not a positive integer", lambda: make(_setup(), micro_batches=count)
    )


def test_batches_that_cannot_be_divided():
    setup = _setup()
    state = kd.init_state(setup, jax.random.key(0), _images())
    step = kd.make_train_step(setup, micro_batches=3)
    _one_line("micro_batches=3: .*16 .*3 parts", jax.eval_shape, step, state, None, _images())
    mesh = kd.make_mesh(8)
    compiled = kd.compile_step(kd.make_train_step(setup, micro_batches=4), mesh)
    message = "micro_batches=4: parts of 4 .*8 devices"
    _one_line(message, compiled.lower, state, _teacher(setup), _images())


def test_inputs_of_another_length():
    def task(key, batch):
        inputs = kd.latents(4)(key, batch)
        return inputs._replace(extra={"prototypes": jnp.zeros((3, 4))})

    setup = _setup(task=task)
    state = kd.init_state(setup, jax.random.key(0), _images())
    step = kd.make_train_step(setup, micro_batches=4)
    _one_line(
        r"micro_batches=4: .*extra/prototypes .*\(3, 4\).*16 examples",
        jax.eval_shape, step, state, _teacher(setup), _images(),
    )  # fmt: skip


@pytest.mark.parametrize("place", ["state", "weight"])
def test_states_with_the_shape_of_the_batch(place):
    if place == "state":
        term = Term(lambda f, _: (0.0, f.student.output), init=lambda: jnp.zeros(B))
    else:
        weight = kd.Weight(lambda f, term, value, state: (1.0, value), lambda: jnp.zeros(B))
        term = Term(lambda f: f.student.output, weight)
    setup = _simple_setup(g={"latest": term})
    state = kd.init_state(setup, jax.random.key(0), VALUES)
    step = kd.make_train_step(setup, micro_batches=4)
    _one_line(
        r"micro_batches=4: .*term 'latest' .*\(16,\).*\(4,\)",
        jax.eval_shape, step, state, None, VALUES,
    )  # fmt: skip


def _temporaries(setup, batch, count):
    state = jax.eval_shape(lambda: kd.init_state(setup, jax.random.key(0), batch))
    step = jax.jit(kd.make_train_step(setup, micro_batches=count))
    program = step.lower(state, None, batch).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_memory_shrinks_with_the_parts():
    pair = dcgan.gan(16, 4, channels=1)
    terms = {"adv": _adversarial}, {"adv": _d_adversarial}
    setup = _setup(Networks(pair.generator, pair.discriminator), *terms)
    batch = jax.ShapeDtypeStruct((64, 16, 16, 1), np.float32)
    plain, parts = (_temporaries(setup, {"image": batch}, count) for count in (1, 8))
    assert parts < 0.4 * plain
