"""Wrappers of steps: against hand-derived values of a linear GAN, and against single steps.

The linear GAN's generator is `z * w` and its discriminator `x * v`, with scalars w and v, so its
gradients are written out below in numpy's double precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forwards import make_forward

from kd_jax import losses
from kd_jax.core.mesh import compile_step, initialize, make_mesh, place, place_batch
from kd_jax.core.network import Network
from kd_jax.core.objective import Inputs, Term, init_terms, weighted_total
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import TrainState, init_state
from kd_jax.core.step import make_train_step
from kd_jax.core.types import Taps
from kd_jax.core.wrappers import (
    data_free,
    ensemble,
    for_teacher,
    multi_step,
    online_distillation,
    self_distillation,
    skip_nonfinite,
    with_teachers,
)
from kd_jax.methods import weights
from kd_jax.models import mlp
from kd_jax.tasks import noise

B = 4
W, V = 0.7, -1.3  # initial parameters of the student
RATES = PerNetwork(0.25, 0.5)
SGD = PerNetwork(optax.sgd(RATES.generator), optax.sgd(RATES.discriminator))
REAL = np.array([1.0, 2.0, -0.5, 3.0], np.float32)
BATCH = {"image": REAL}


def _linear(name, value):
    def init(key, *inputs):
        return {"params": {name: jnp.float32(value)}}

    def apply(variables, x, *condition, train=False, rngs=None):
        y = x * variables["params"][name]
        return y, Taps(twice=2.0 * y), variables

    return Network(init, apply)


def _task(key, batch):
    count = len(batch["image"]) if "image" in batch else B
    return Inputs((jax.random.normal(key, (count,)),), (), batch.get("image"), batch)


_LATENTS = Term(lambda f, _: (0.0, f.inputs.generator[0]), init=lambda: jnp.zeros(B))
"""Adds zero; its state is the latents of the update."""

D_TERMS = {
    "adv": Term(
        lambda f: losses.adversarial.minimax_d(
            f.discriminator.real_scores, f.discriminator.fake_scores
        )
    ),
    "z": _LATENTS,
}
G_TERMS = {
    "adv": Term(lambda f: losses.adversarial.nonsaturating_g(f.discriminator.fake_scores)),
    "z": _LATENTS,
}
PIXEL = Term(lambda f: losses.response.l2(f.student.output, f.teacher.output))


def _parts(w=W, v=V, g_terms=G_TERMS, d_terms=D_TERMS, **changes):
    return {
        "networks": Networks(_linear("w", w), _linear("v", v)),
        "losses": PerNetwork(g_terms, d_terms),
        "optimizers": SGD,
        "task": _task,
        **changes,
    }


def _w(state):
    return float(state.generator.variables["params"]["w"])


def _v(state):
    return float(state.discriminator.variables["params"]["v"])


def _latents(states):
    return np.asarray(states["z"].state, np.float64)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _assert_close(a, b, rtol=1e-6, atol=1e-7):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


# Data-free steps.


def _far_init(key, z):
    return {"params": {"offset": jnp.asarray(100.0)}}


FAR = Network(
    _far_init, lambda v, z, train=False, rngs=None: (z + v["params"]["offset"], Taps(), v)
)
FAR_VARIABLES = Teacher({"params": {"offset": jnp.asarray(100.0)}})
_real = Term(lambda f, _: (f.discriminator.real_scores, f.real), init=lambda: jnp.zeros(B))


def test_data_free_step_needs_no_images():
    batch = {"label": np.zeros(B, np.int32)}
    parts = _parts(d_terms={"real": _real, "z": _LATENTS})
    state = init_state(Setup(**parts), jax.random.key(0), batch)
    step = jax.jit(data_free(make_train_step(Setup(**parts)), FAR, _task))
    images = []
    for _ in range(2):
        before = _v(state)
        state, metrics = step(state, FAR_VARIABLES, batch)
        images.append(np.asarray(state.terms.discriminator["real"].state))
        assert np.all(np.abs(images[-1] - 100.0) < 6.0)
        np.testing.assert_allclose(metrics["d/real_score"], before * images[-1].mean(), rtol=1e-5)
    draws = [images[0] - 100.0, images[1] - 100.0, _latents(state.terms.discriminator)]
    draws = np.round([*draws, _latents(state.terms.generator)], 3)
    assert len(np.unique(draws)) == 4 * B  # every pass draws its own latents


@pytest.mark.parametrize(("share", "count"), [(0.5, 2), (0.3, 1), (1.0, 4)])
def test_data_free_step_replaces_a_share(share, count):
    parts = _parts(d_terms={"real": _real})
    state = init_state(Setup(**parts), jax.random.key(0), BATCH)
    step = data_free(make_train_step(Setup(**parts)), FAR, _task, share)
    real = np.asarray(step(state, FAR_VARIABLES, BATCH)[0].terms.discriminator["real"].state)
    assert np.all(real[:count] > 90.0)
    np.testing.assert_array_equal(real[count:], REAL[count:])


def test_data_free_errors():
    parts = _parts()
    state, step = (
        init_state(Setup(**parts), jax.random.key(0), BATCH),
        make_train_step(Setup(**parts)),
    )
    for share in (0.0, -0.5, 1.01):
        with pytest.raises(ValueError, match=r"share=.* of teacher images is outside \(0, 1\]"):
            data_free(step, FAR, _task, share)
    with pytest.raises(ValueError, match="the data-free step needs teacher_variables, not None"):
        data_free(step, FAR, _task)(state, None, BATCH)
    with pytest.raises(ValueError, match=r"share=0\.01 of a batch of \d+ is not one image"):
        data_free(step, FAR, _task, 0.01)(state, FAR_VARIABLES, BATCH)


def test_a_share_below_one_needs_real_images():
    parts = _parts(d_terms={"real": _real})
    batch = {"label": np.zeros(B, np.int32)}
    step = data_free(make_train_step(Setup(**parts)), FAR, _task, share=0.5)
    state = init_state(Setup(**parts), jax.random.key(0), batch)
    with pytest.raises(ValueError, match=r"share=0.5 keeps real images; the batch has \['label'\]"):
        jax.eval_shape(step, state, FAR_VARIABLES, batch)


def test_the_discriminator_gets_the_labels_of_the_teacher_s_images():
    """The teacher encodes the label in the image; the discriminator must get the same label."""

    def generate_label(variables, z, labels, train=False, rngs=None):
        return 0.0 * z[:, 0] + labels, Taps(), variables

    def apply(variables, z, labels, train=False, rngs=None):
        return z[:, 0] * variables["params"]["w"], Taps(), variables

    def discriminate(variables, x, labels, train=False, rngs=None):
        return x - labels + variables["params"]["v"], Taps(), variables

    teacher = Network(lambda key, *_: {}, generate_label)
    nets = Networks(
        Network(lambda key, *_: {"params": {"w": jnp.ones(())}}, apply),
        Network(lambda key, *_: {"params": {"v": jnp.zeros(())}}, discriminate),
    )
    count, classes = 16, 7
    d_terms = {
        "distance": Term(lambda f: jnp.abs(f.real - f.inputs.condition[0])),
        "score": Term(lambda f: jnp.abs(f.discriminator.real_scores)),
        "label": Term(
            lambda f, _: (0.0, f.inputs.condition[0]), init=lambda: jnp.zeros(count, jnp.int32)
        ),
    }
    task = noise(3, count, classes)
    parts = _parts(networks=nets, g_terms=G_TERMS | {"z": Term(lambda f: 0.0)}, d_terms=d_terms)
    parts["task"] = task
    state = init_state(Setup(**parts), jax.random.key(0), {})
    step = jax.jit(data_free(make_train_step(Setup(**parts)), teacher, task))
    labels = []
    for _ in range(2):
        before = _v(state)
        state, metrics = step(state, Teacher({}), {})
        assert float(metrics["d/distance"]) == 0.0
        assert float(metrics["d/score"]) == pytest.approx(abs(before), abs=1e-6)
        labels.append(np.asarray(state.terms.discriminator["label"].state))
        assert len(set(labels[-1])) > 2
    assert not np.array_equal(*labels)
    batch = {"label": np.full(count, 5, np.int32)}
    state, metrics = step(state, Teacher({}), batch)
    np.testing.assert_array_equal(state.terms.discriminator["label"].state, batch["label"])
    assert float(metrics["d/distance"]) == 0.0


# Self-distillation.


def test_self_distillation_by_hand():
    network, average = _linear("w", W), 2.5
    nets = Networks(network, _linear("v", V), teacher=network)
    parts = _parts(networks=nets, g_terms={"pixel": PIXEL, "z": _LATENTS}, d_terms={})
    step = jax.jit(self_distillation(make_train_step(Setup(**parts, ema=lambda step: 0.9))))
    state = init_state(Setup(**parts), jax.random.key(0), BATCH)
    state = state._replace(ema={"params": {"w": jnp.float32(average)}})
    w = W
    for _ in range(2):
        state, metrics = step(state, None, BATCH)
        z = _latents(state.terms.generator)
        np.testing.assert_allclose(metrics["g/pixel"], np.mean(((w - average) * z) ** 2), rtol=1e-5)
        w -= RATES.generator * np.mean(2 * (w - average) * z**2)
        average = 0.9 * average + 0.1 * w
        np.testing.assert_allclose(_w(state), w, rtol=1e-5)
        np.testing.assert_allclose(state.ema["params"]["w"], average, rtol=1e-6)


def test_self_distillation_keeps_the_other_frozen_networks():
    network = _linear("w", W)
    nets = Networks(network, None, network, _linear("v", 9.0), _linear("e", 9.0))
    terms = {
        "teacher": Term(lambda f: f.teacher(jnp.ones(B))[0]),
        "score": Term(lambda f: f.teacher_discriminator(jnp.ones(B))[0]),
        "feature": Term(lambda f: f.extractor(jnp.ones(B))[1]["twice"]),
    }
    parts = _parts(networks=nets, g_terms=terms, d_terms={})
    state = init_state(Setup(**parts), jax.random.key(0), {})
    frozen = Teacher(*({"params": {name: jnp.float32(n)}} for n, name in enumerate("wve", start=3)))
    _, metrics = self_distillation(make_train_step(Setup(**parts)))(state, frozen, {})
    values = [float(metrics[f"g/{name}"]) for name in terms]
    np.testing.assert_allclose(values, [W, 4.0, 10.0], rtol=1e-6)


# Online distillation.

WIDE, DEEP = (1.5, 0.4), (-0.8, 2.0)  # initial w and v of the teachers


def _teacher_parts(initial):
    return _parts(*initial)


def _by_hand(before, after):
    """(w, v) after an alternating step of the linear GAN with the latents of the step."""
    w, v = before
    z_d, z_g = _latents(after.terms.discriminator), _latents(after.terms.generator)
    v -= RATES.discriminator * np.mean(
        -REAL * _sigmoid(-v * REAL) + w * z_d * _sigmoid(v * w * z_d)
    )
    return w - RATES.generator * np.mean(-v * z_g * _sigmoid(-v * w * z_g)), v


def _student_parts(teacher, terms, discriminator=None):
    nets = Networks(_linear("w", W), discriminator, teacher)
    return _parts(networks=nets, g_terms={**terms, "z": _LATENTS}, d_terms={})


def _online(student, teachers, **options):
    steps = {
        name: make_train_step(Setup(**parts, ema=lambda step: 0.75))
        for name, parts in teachers.items()
    }
    step = online_distillation(
        make_train_step(Setup(**student, ema=lambda step: 0.5)), steps, **options
    )
    state = init_state(Setup(**student), jax.random.key(0), BATCH)
    states = {
        name: init_state(Setup(**parts), jax.random.key(seed), BATCH)
        for seed, (name, parts) in enumerate(teachers.items(), start=1)
    }
    return with_teachers(state, states), step


@pytest.mark.parametrize("averaged", [False, True])
def test_one_teacher_online_by_hand(averaged):
    """The student has no discriminator; the teacher trains independently of the student."""
    student = _student_parts(_linear("w", 99.0), {"pixel": PIXEL})
    state, step = _online(student, {"wide": _teacher_parts(WIDE)}, averaged=averaged)
    assert state.discriminator == ()
    step, w, teacher, average = jax.jit(step), W, WIDE, WIDE[0]
    for number in (1, 2):
        state, metrics = step(state, None, BATCH)
        after = state.wrappers["teachers"]["wide"]
        np.testing.assert_allclose(metrics["wide/d/real_score"], teacher[1] * REAL.mean(), 1e-5)
        teacher = _by_hand(teacher, after)
        np.testing.assert_allclose([_w(after), _v(after)], teacher, rtol=2e-5)
        average = 0.75 * average + 0.25 * teacher[0]
        np.testing.assert_allclose(after.ema["params"]["w"], average, rtol=1e-5)
        z = _latents(state.terms.generator)
        target = average if averaged else teacher[0]
        np.testing.assert_allclose(metrics["g/pixel"], np.mean(((w - target) * z) ** 2), rtol=1e-4)
        w -= RATES.generator * np.mean(2 * (w - target) * z**2)
        np.testing.assert_allclose(_w(state), w, rtol=1e-4)
        assert int(state.step) == int(after.step) == number
    names = {"total", "grad_norm", "z"}
    assert set(metrics) == (
        {f"g/{name}" for name in names | {"pixel"}}
        | {f"wide/{p}/{name}" for p in "gd" for name in names | {"adv"}}
        | {"wide/d/real_score", "wide/d/fake_score"}
    )


def test_two_teachers_online_by_hand():
    networks = {"wide": _linear("w", 99.0), "deep": _linear("w", 99.0)}
    terms = {
        **for_teacher("deep", {"pixel": PIXEL}),
        "both": Term(PIXEL.fn, 0.5),
    }
    student = _student_parts(ensemble(networks), terms)
    teachers = {"wide": _teacher_parts(WIDE), "deep": _teacher_parts(DEEP)}
    before, step = _online(student, teachers)
    state, metrics = jax.jit(step)(before, None, BATCH)
    wide = _by_hand(WIDE, state.wrappers["teachers"]["wide"])[0]
    deep = _by_hand(DEEP, state.wrappers["teachers"]["deep"])[0]
    z, mean = _latents(state.terms.generator), (wide + deep) / 2
    np.testing.assert_allclose(metrics["g/deep/pixel"], np.mean(((W - deep) * z) ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["g/both"], np.mean(((W - mean) * z) ** 2), rtol=1e-5)
    gradient = np.mean(2 * (W - deep) * z**2) + 0.5 * np.mean(2 * (W - mean) * z**2)
    np.testing.assert_allclose(_w(state), W - RATES.generator * gradient, rtol=1e-5)
    assert set(state.wrappers["teachers"]) == {"wide", "deep"}
    assert {name.split("/")[0] for name in metrics} == {"g", "wide", "deep"}

    # The teachers' steps are independent of the student.
    for name, parts in teachers.items():
        separate, teacher_metrics = make_train_step(Setup(**parts, ema=lambda step: 0.75))(
            before.wrappers["teachers"][name], None, BATCH
        )
        _assert_close(separate, state.wrappers["teachers"][name])
        _assert_close(teacher_metrics, {key: metrics[f"{name}/{key}"] for key in teacher_metrics})


def test_online_teachers_provide_scores_and_keep_the_extractor():
    networks = {"wide": _linear("w", 99.0), "deep": _linear("w", 99.0)}
    discriminators = {"wide": _linear("v", 99.0), "deep": _linear("v", 99.0)}
    score_terms = {"score": Term(lambda f: f.teacher_discriminator(jnp.ones(B))[0])}
    terms = {
        **for_teacher("wide", score_terms),
        **for_teacher("deep", score_terms),
        **score_terms,
        "feature": Term(lambda f: f.extractor(jnp.ones(B))[1]["twice"]),
    }
    student = _student_parts(ensemble(networks), terms)
    student["networks"] = student["networks"]._replace(
        teacher_discriminator=ensemble(discriminators), extractor=_linear("e", 99.0)
    )
    wide_parts = _teacher_parts(WIDE)
    wide_parts["networks"] = wide_parts["networks"]._replace(teacher=_linear("w", 99.0))
    own = Term(lambda f: f.teacher(jnp.ones(B))[0])
    wide_parts["losses"] = wide_parts["losses"]._replace(generator={**G_TERMS, "own": own})
    state, step = _online(student, {"wide": wide_parts, "deep": _teacher_parts(DEEP)})
    frozen = Teacher({"params": {"w": 6.0}}, None, {"params": {"e": jnp.float32(5.0)}})
    state, metrics = jax.jit(step)(state, frozen, BATCH)
    v = {name: _v(teacher) for name, teacher in state.wrappers["teachers"].items()}
    actual = [metrics[f"g/{name}"] for name in ("wide/score", "deep/score", "score", "feature")]
    expected = [v["wide"], v["deep"], (v["wide"] + v["deep"]) / 2, 10.0]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["wide/g/own"], 6.0)  # a teacher may have a teacher, too


def test_the_discriminator_of_an_online_teacher():
    nets = Networks(_linear("w", W), None, _linear("w", 9.0), _linear("v", 9.0))
    student = _parts(
        networks=nets,
        g_terms={"score": Term(lambda f: f.teacher_discriminator(jnp.ones(B))[0])},
        d_terms={},
    )
    state, step = _online(student, {"wide": _teacher_parts(WIDE)})
    state, metrics = step(state, None, BATCH)
    np.testing.assert_allclose(
        metrics["g/score"], _v(state.wrappers["teachers"]["wide"]), rtol=1e-6
    )


def test_an_online_teacher_without_discriminator():
    parts = _parts(
        networks=Networks(_linear("w", 1.5)),
        g_terms={"x": Term(lambda f: f.student.output)},
        d_terms={},
    )
    state, step = _online(_student_parts(_linear("w", 9.0), {"pixel": PIXEL}), {"generator": parts})
    state, _ = step(state, None, BATCH)
    assert state.wrappers["teachers"]["generator"].discriminator == ()
    assert _w(state.wrappers["teachers"]["generator"]) != 1.5


def test_online_distillation_errors():
    student = _student_parts(_linear("w", 9.0), {"pixel": PIXEL})
    state, step = _online(student, {"wide": _teacher_parts(WIDE)})
    with pytest.raises(ValueError, match=r"online_distillation\(\) needs at least one teacher"):
        online_distillation(make_train_step(Setup(**student)), {})
    with pytest.raises(ValueError, match=r"the state has teachers none; expected wide"):
        step(with_teachers(state, {}), None, BATCH)
    with pytest.raises(ValueError, match=r"the state has teachers deep; expected wide"):
        step(with_teachers(state, {"deep": state.wrappers["teachers"]["wide"]}), None, BATCH)


# Several steps in one call.


def _lazy_parts():
    """Stateful terms and weights, whose states a scan must carry."""
    lazy = Term(lambda f: f.student.output**2, weights.uncertainty(), every=2)
    return _parts(g_terms={**G_TERMS, "lazy": lazy})


def test_multi_step_equals_single_steps():
    parts, count = _lazy_parts(), 3
    images = np.random.default_rng(0).normal(size=(count * B,)).astype(np.float32)
    state, step = (
        init_state(Setup(**parts), jax.random.key(0), BATCH),
        make_train_step(Setup(**parts)),
    )
    scanned_state, means = jax.jit(multi_step(step, count))(state, None, {"image": images})
    rows, single = [], jax.jit(step)
    for part in images.reshape(count, B):
        state, metrics = single(state, None, {"image": part})
        rows.append(metrics)
    _assert_close(scanned_state, state)
    assert int(scanned_state.step) == count
    expected = {name: np.mean([float(row[name]) for row in rows]) for name in rows[0]}
    assert set(means) == set(expected)
    for name, value in expected.items():
        assert means[name].shape == ()
        np.testing.assert_allclose(means[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert len({float(row["d/real_score"]) for row in rows}) == count


def test_multi_step_without_a_batch():
    parts = _parts(g_terms=G_TERMS, d_terms={"z": _LATENTS})
    state = init_state(Setup(**parts), jax.random.key(0), {})
    step = data_free(make_train_step(Setup(**parts)), FAR, _task)
    scanned_state, means = jax.jit(multi_step(step, 4))(state, FAR_VARIABLES, {})
    rows = []
    for _ in range(4):
        state, metrics = step(state, FAR_VARIABLES, {})
        rows.append(float(metrics["d/real_score"]))
    _assert_close(scanned_state, state)
    np.testing.assert_allclose(means["d/real_score"], np.mean(rows), rtol=1e-5)


def test_multi_step_errors():
    parts = _parts()
    state, step = (
        init_state(Setup(**parts), jax.random.key(0), BATCH),
        make_train_step(Setup(**parts)),
    )
    for count in (0, -1):
        with pytest.raises(ValueError, match=rf"count={count} steps in one call"):
            multi_step(step, count)
    with pytest.raises(ValueError, match="a batch of 4 is not divisible into 3 batches"):
        multi_step(step, 3)(state, None, BATCH)


# Several teachers as one network.


def _offset(value, tap="twice"):
    def apply(variables, x, train=False, rngs=None):
        y = x + value
        return y, Taps({tap: 2.0 * y}), {**variables, "calls": 1} if train else variables

    return Network(lambda key, x: {"key": jax.random.key_data(key), "calls": 0}, apply)


def test_an_ensemble_has_the_mean_output_and_all_taps():
    network = ensemble({"a": _offset(1.0), "b": _offset(4.0, "other")})
    x = jnp.arange(3.0)
    variables = network.init(jax.random.key(0), x)
    assert list(variables) == ["a", "b"]
    assert not np.array_equal(variables["a"]["key"], variables["b"]["key"])
    for train in (False, True):
        output, taps, after = network.apply(variables, x, train=train)
        np.testing.assert_allclose(output, np.arange(3) + 2.5)
        assert set(taps) == {"a/output", "a/twice", "b/output", "b/other"}
        np.testing.assert_allclose(taps["a/output"], np.arange(3) + 1.0)
        np.testing.assert_allclose(taps["b/other"], 2 * (np.arange(3) + 4.0))
        assert after is variables


def test_an_ensemble_passes_each_network_its_own_variables():
    network = ensemble({"a": _linear("w", 2.0), "b": _linear("w", 5.0)})
    variables = network.init(jax.random.key(0), jnp.ones(2))
    _, taps, _ = network.apply(variables, jnp.ones(2))
    np.testing.assert_allclose([taps["a/output"][0], taps["b/output"][0]], [2.0, 5.0])


def test_ensemble_errors():
    with pytest.raises(ValueError, match=r"ensemble\(\) needs at least one network"):
        ensemble({})

    def short(variables, x, train=False, rngs=None):
        return x[1:], Taps(), variables

    network = ensemble({"a": _offset(1.0), "b": Network(lambda key, x: {}, short)})
    with pytest.raises(ValueError, match=r"different shapes: {'a': \(3,\), 'b': \(2,\)}"):
        network.apply({"a": {}, "b": {}}, jnp.ones(3))
    network = ensemble({"a": _offset(1.0, tap="output")})
    with pytest.raises(ValueError, match="network 'a' has a tap 'output' that is not its output"):
        network.apply({"a": {}}, jnp.ones(3))


FAKE = jnp.array([1.0, 2.0, 3.0, 6.0])


def _with_ensemble(terms, states=None, fake=FAKE, **changes):
    """The objective with teachers a and ab, which add 1 and 4 to their input FAKE."""
    network = ensemble({"a": _offset(1.0), "ab": _offset(4.0)})
    variables = {"a": {}, "ab": {}}
    image, taps, _ = network.apply(variables, FAKE)
    forward = make_forward(
        fake,
        teacher=image,
        teacher_taps=taps,
        teacher_fn=lambda x: network.apply(variables, x)[:2],
        **changes,
    )
    return weighted_total(terms, forward, init_terms(terms) if states is None else states)


def test_terms_for_one_teacher_read_its_image_taps_and_further_passes():
    terms = {
        "image": Term(lambda f: f.teacher.output - f.student.output),
        "tap": Term(lambda f: f.teacher.taps["twice"] - 2.0 * f.student.output),
        "pass": Term(lambda f: f.teacher(jnp.zeros(4))[0], 3.0),
        "pass_tap": Term(lambda f: f.teacher(jnp.zeros(4))[1]["twice"]),
        "names": Term(lambda f: float(list(f.teacher.taps) == ["twice"])),
    }
    _, values, _ = _with_ensemble({**for_teacher("a", terms), **for_teacher("ab", terms)})
    expected = {"image": 1.0, "tap": 2.0, "pass": 1.0, "pass_tap": 2.0, "names": 1.0}
    for name, value in expected.items():
        np.testing.assert_allclose(values[f"a/{name}"], value, rtol=1e-6)
        factor = 1.0 if name == "names" else 4.0
        np.testing.assert_allclose(values[f"ab/{name}"], factor * value, rtol=1e-6)


def test_errors_of_terms_for_one_teacher():
    terms = {"tap": Term(lambda f: f.teacher.taps["twice"])}
    with pytest.raises(ValueError, match="term 'tap': no tap 'twice'"):
        _with_ensemble(terms)
    with pytest.raises(ValueError, match="term 'c/tap': there is no teacher 'c'; there is a, ab"):
        _with_ensemble(for_teacher("c", terms))
    with pytest.raises(ValueError, match=r"term 'a/tap': .*networks\.teacher is None"):
        weighted_total(
            for_teacher("a", terms),
            make_forward(FAKE),
            init_terms(terms | for_teacher("a", terms)),
        )


def test_terms_for_one_teacher_keep_state_weight_interval_and_lower_bound():
    def running(forward, mean):
        mean = 0.5 * mean + 0.5 * forward.teacher.output.mean()
        return forward.student.output - mean, mean

    original = Term(running, 2.0, every=2, init=lambda: jnp.asarray(1.0), lower_bound=-1.0)
    (name, term), *rest = for_teacher("a", {"run": original}).items()
    assert (name, rest) == ("a/run", [])
    assert term._replace(fn=None) == original._replace(fn=None)
    mean, states = 1.0, None
    for _ in range(2):
        total, values, states = _with_ensemble({name: term}, states)
        mean = 0.5 * mean + 0.5 * 4.0  # FAKE's mean is 3, the teacher's 4
        np.testing.assert_allclose(states[name].state, mean)
        np.testing.assert_allclose(values[name], 3.0 - mean)
        np.testing.assert_allclose(total, 2 * 2.0 * (3.0 - mean))


def test_weights_of_terms_for_one_teacher_read_it_too():
    fake = FAKE + 0.5
    terms = {
        # Gradients at the image: 2 (fake - teacher) / B each, against 5 / B each.
        "balance": Term(PIXEL.fn, weights.gradient_balanced(lambda f: 5.0 * f.student.output)),
        "trust": Term(lambda f: jnp.ones(4), weights.confidence()),
    }

    def score(images):
        a, b = images - 3.0, images + 50.0
        return (a + b) / 2, Taps({"a/output": a, "b/output": b})

    _, values, _ = _with_ensemble(for_teacher("a", terms), fake=fake, teacher_discriminate=score)
    np.testing.assert_allclose(values["a/balance/weight"], 5.0 / 1.0, rtol=1e-4)  # fake - a is -0.5
    expected = _sigmoid(np.asarray(FAKE, np.float64) + 1.0 - 3.0).mean()
    np.testing.assert_allclose(values["a/trust/weight"], expected, rtol=1e-6)

    # A common discriminator of all teachers is used as it is.
    _, values, _ = _with_ensemble(
        for_teacher("a", terms),
        fake=fake,
        teacher_discriminate=lambda images: (images - 4.0, Taps()),
    )
    expected = _sigmoid(np.asarray(FAKE, np.float64) + 1.0 - 4.0).mean()
    np.testing.assert_allclose(values["a/trust/weight"], expected, rtol=1e-6)
    schedule = for_teacher("a", {"s": Term(PIXEL.fn, lambda step: 7.0 + step)})["a/s"].weight
    assert schedule(jnp.int32(2)) == 9.0


# Real networks, nested wrappers, many devices.


def _mlp_parts(seed=0, width=8, batch_size=8, **changes):
    pair = mlp.gan(4, width, depth=1, classes=3)
    return {
        "networks": Networks(pair.generator, pair.discriminator),
        "optimizers": PerNetwork(optax.sgd(0.05), optax.sgd(0.05)),
        "task": noise(3, batch_size, classes=3),
        "losses": PerNetwork({"adv": G_TERMS["adv"]}, {"adv": D_TERMS["adv"]}),
        **changes,
    }


def _labelled(count):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, size=(count, 4, 4, 1)).astype(np.float32)
    return {"image": images, "label": (np.arange(count) % 3).astype(np.int32)}


def _nested_wrappers():
    teacher = mlp.generator(4, 16, depth=1, classes=3)
    parts = _mlp_parts()
    parts["networks"] = parts["networks"]._replace(teacher=parts["networks"].generator)
    terms = parts["losses"].generator | {"pixel": PIXEL_IMAGE}
    parts["losses"] = parts["losses"]._replace(generator=terms)
    step = multi_step(
        data_free(self_distillation(make_train_step(Setup(**parts))), teacher, parts["task"]), 3
    )
    frozen = Teacher(teacher.init(jax.random.key(7), jnp.zeros((8, 3)), jnp.zeros(8, jnp.int32)))
    return parts, step, frozen


PIXEL_IMAGE = Term(lambda f: losses.response.l2(f.student.output, f.teacher.output))


@pytest.mark.parametrize("wrapper", ["online_distillation", "multi_step", "nested"])
def test_many_devices_agree_with_one(wrapper):
    frozen, batch = None, _labelled(8)
    if wrapper == "online_distillation":
        teacher = mlp.generator(4, 16, depth=1, classes=3)
        parts = _mlp_parts(losses=PerNetwork({"pixel": PIXEL_IMAGE}))
        parts["networks"] = Networks(parts["networks"].generator, teacher=teacher)
        wide_parts = _mlp_parts(width=16)
        step = online_distillation(
            make_train_step(Setup(**parts)), {"wide": make_train_step(Setup(**wide_parts))}
        )

        def init():
            state = init_state(Setup(**parts), jax.random.key(0), batch)
            wide = init_state(Setup(**wide_parts), jax.random.key(1), batch)
            return with_teachers(state, {"wide": wide})
    elif wrapper == "multi_step":
        parts, batch = _mlp_parts(), _labelled(16)
        step = multi_step(make_train_step(Setup(**parts)), 2)

        def init():
            return init_state(Setup(**parts), jax.random.key(0), _labelled(8))
    else:
        parts, step, frozen = _nested_wrappers()
        batch = {}

        def init():
            return init_state(Setup(**parts), jax.random.key(0), {})

    results = []
    for mesh in (None, make_mesh(8)):
        state = initialize(init, mesh)
        before = jax.tree.map(np.array, (state.generator, state.discriminator))
        compiled = compile_step(step, mesh)
        for _ in range(2):
            state, metrics = compiled(state, place(frozen, mesh), place_batch(batch, mesh))
        results.append(jax.device_get((state._replace(key=()), metrics)))
        after = (state.generator, state.discriminator)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert np.all(np.isfinite(new))
            assert not np.array_equal(old, new)
    for one, many in zip(*map(jax.tree.leaves, map(_without_keys, results)), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-4, atol=2e-5)


def _without_keys(tree):
    state, metrics = tree
    teachers = state.wrappers.get("teachers", {})
    teachers = {name: teacher._replace(key=()) for name, teacher in teachers.items()}
    return with_teachers(state, teachers), metrics


@pytest.mark.parametrize(
    ("value", "skipped"), [(1.0, 0), (np.nan, 1), (np.inf, 1), (-np.inf, 1)], ids=str
)
def test_skip_nonfinite_looks_at_every_metric(value, skipped):
    def step(state, teacher_variables, batch):
        generator = state.generator + 1
        state = state._replace(step=state.step + 1, generator=generator)
        return state, {"finite": jnp.zeros(()), "tested": batch["value"]}

    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, jax.random.key(0), jnp.zeros(2), (), (), (), {"skipped": zero})
    after, metrics = skip_nonfinite(step, 3)(state, None, {"value": jnp.float32(value)})
    assert int(metrics["skipped"]) == int(after.wrappers["skipped"]) == skipped
    assert int(after.step) == 1
    np.testing.assert_array_equal(after.generator, np.full(2, 1.0 - skipped))
