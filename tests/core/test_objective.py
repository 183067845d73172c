"""The weighted sum of terms, by hand: weights, schedules, lazy and stateful terms, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forwards import make_forward

from kd_jax.core.objective import (
    Term,
    TermState,
    Weight,
    as_weight,
    init_terms,
    weighted_total,
)
from kd_jax.core.types import Taps

FAKE = jnp.array([1.0, 2.0, 3.0, 6.0])  # mean 3


def _run(terms, step=0, fake=FAKE, states=None, **fields):
    states = init_terms(terms) if states is None else states
    return weighted_total(terms, make_forward(fake, step=step, **fields), states)


def test_weights_are_numbers_or_schedules_of_the_traced_step():
    terms = {
        "each": Term(lambda f: f.student.output, 2.0),
        "batch": Term(lambda f: f.student.output[0] + 4.0, lambda step: 0.1 * step),
        "off": Term(lambda f: f.student.output * 100.0, 0.0),
    }
    total_at = jax.jit(lambda step: _run(terms, step)[:2])
    for step, expected in [(0, 6.0), (5, 6.0 + 0.5 * 5.0), (20, 6.0 + 2.0 * 5.0)]:
        total, values = total_at(step)
        np.testing.assert_allclose(total, expected, rtol=1e-6)
        np.testing.assert_allclose(values["each"], 3.0, rtol=1e-6)  # unweighted
        np.testing.assert_allclose(values["batch"], 5.0, rtol=1e-6)
        np.testing.assert_allclose(values["off"], 300.0, rtol=1e-6)
    assert total.shape == ()


def test_without_terms_the_objective_is_zero():
    total, values, states = _run({})
    assert float(total) == 0.0
    assert (values, states) == ({}, {})


def test_gradient_is_the_weighted_mean():
    terms = {
        "square": Term(lambda f: f.student.output**2, 3.0),
        "first": Term(lambda f: f.student.output[0], 7.0),
    }
    gradient = jax.grad(lambda fake: _run(terms, fake=fake)[0])(FAKE)
    expected = 3.0 * 2.0 * np.asarray(FAKE) / 4 + 7.0 * np.array([1, 0, 0, 0])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_half_precision_values_are_averaged_in_single_precision():
    values = jnp.array([256.0, 1.0, 1.0, 1.0], jnp.bfloat16)  # 256 + 1 is 256 in bfloat16
    total, means, _ = _run({"half": Term(lambda f: values)})
    assert total.dtype == means["half"].dtype == jnp.float32
    assert float(total) == 259 / 4


@pytest.mark.parametrize("shape", [(4, 1), (3,), (1,), (2, 2)])
def test_a_wrong_shape_raises_and_names_the_term(shape):
    with pytest.raises(ValueError, match="term 'patches' returned shape") as error:
        _run(
            {"fine": Term(lambda f: f.student.output), "patches": Term(lambda f: jnp.zeros(shape))}
        )
    assert str(shape) in str(error.value)
    assert "(4,) or a scalar ()" in str(error.value)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            lambda f: f.student.taps["nose"],
            r"term 'mine': no tap 'nose'; this network has 'a', 'b'",
        ),
        (lambda f: f.teacher(f.student.output), r"term 'mine': .*networks\.teacher is None"),
        (lambda f: f.teacher.taps["a"], r"term 'mine': .*networks\.teacher is None"),
        (lambda f: f.real, r"term 'mine': .*Inputs\(real=None\)"),
        (lambda f: f.student.output + jnp.zeros(3), "term 'mine': .*shape"),
    ],
)
def test_errors_in_a_term_name_it(fn, message):
    with pytest.raises(ValueError, match=message) as error:
        _run({"mine": Term(fn)}, taps=Taps(a=FAKE, b=FAKE))
    assert error.value.__cause__ is not None
    for term in (Term(fn, every=2), Term(lambda f, state: (fn(f), state), init=lambda: 0)):
        with pytest.raises(ValueError, match="term 'mine': "):
            _run({"mine": term}, taps=Taps(a=FAKE, b=FAKE))


def test_a_lazy_term_has_k_times_its_weight_every_k_steps():
    terms = {"lazy": Term(lambda f: f.student.output, 2.0, every=3)}
    run = jax.jit(lambda step, fake, states: _run(terms, step, fake, states))
    states, totals, logged = init_terms(terms), [], []
    for step in range(7):
        total, values, states = run(step, FAKE + step, states)  # the mean is 3 + step
        totals.append(float(total))
        logged.append(float(values["lazy"]))
    assert totals == [2 * 3 * 3, 0, 0, 2 * 3 * 6, 0, 0, 2 * 3 * 9]
    assert logged == [3, 3, 3, 6, 6, 6, 9]  # the last evaluated value

    # Over k steps of equal values, the sum is that of a plain term.
    plain = {"plain": Term(lambda f: f.student.output, 2.0)}
    states = init_terms(terms)
    lazy_sum = sum(float(run(step, FAKE, states)[0]) for step in range(3))
    assert lazy_sum == sum(float(_run(plain, step)[0]) for step in range(3)) == 18.0


def test_lazy_gradient():
    terms = {"lazy": Term(lambda f: f.student.output**2, lambda step: 1.0 + step, every=2)}
    for step, factor in [(0, 2.0), (1, 0.0), (4, 2.0 * 5.0), (5, 0.0)]:
        gradient = jax.grad(lambda fake, step=step: _run(terms, step, fake)[0])(FAKE)
        np.testing.assert_allclose(gradient, factor * 2.0 * np.asarray(FAKE) / 4, rtol=1e-6)


def test_lazy_term_is_not_evaluated_when_not_due():
    calls = []

    def count_calls(forward):
        jax.debug.callback(lambda step: calls.append(int(step)), forward.step)
        return forward.student.output

    terms = {"lazy": Term(count_calls, every=4)}
    run = jax.jit(lambda step, states: _run(terms, step, states=states)[2])
    states = init_terms(terms)
    for step in range(9):
        states = run(step, states)
    jax.effects_barrier()
    assert calls == [0, 4, 8]


def _running_mean(forward, mean):
    mean = 0.5 * mean + 0.5 * forward.student.output.mean()
    return (forward.student.output - mean) ** 2, mean


def test_a_stateful_term_carries_its_state():
    terms = {"mean": Term(_running_mean, 10.0, init=lambda: jnp.asarray(1.0))}
    states = init_terms(terms)
    assert states == {"mean": TermState(state=1.0, last=())}
    mean = 1.0
    for offset in (0.0, 4.0, -2.0):
        fake = np.array([1.0, 2.0, 3.0, 6.0]) + offset
        total, values, states = _run(terms, fake=jnp.asarray(fake, jnp.float32), states=states)
        mean = 0.5 * mean + 0.5 * fake.mean()
        np.testing.assert_allclose(states["mean"].state, mean, rtol=1e-6)
        np.testing.assert_allclose(values["mean"], np.mean((fake - mean) ** 2), rtol=1e-5)
        np.testing.assert_allclose(total, 10 * np.mean((fake - mean) ** 2), rtol=1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_no_gradient_passes_through_the_state(every):
    terms = {"mean": Term(_running_mean, every=every, init=lambda: jnp.asarray(1.0))}

    def total_state(fake):
        after = _run(terms, fake=fake)[2]["mean"]
        return after.state + (after.last[0] if every > 1 else 0.0)

    np.testing.assert_array_equal(jax.grad(total_state)(FAKE), np.zeros(4))


def test_the_state_of_a_lazy_term_changes_only_when_due():
    terms = {"mean": Term(_running_mean, every=2, init=lambda: jnp.asarray(1.0))}
    states, means = init_terms(terms), []
    for step in range(4):
        _, _, states = _run(terms, step, states=states)
        means.append(float(states["mean"].state))
    assert means == [2.0, 2.0, 2.5, 2.5]


def test_with_output_replaces_the_image_and_its_scores():
    taps, calls = Taps(a=FAKE), []

    def score(x):
        calls.append(x)
        return 2.0 * x, Taps(hidden=3.0 * x)

    forward = make_forward(FAKE, discriminate=score, taps=taps, real=FAKE)
    other = forward.with_output(10.0 * FAKE)
    np.testing.assert_array_equal(other.student.output, 10.0 * FAKE)
    np.testing.assert_array_equal(other.discriminator.fake_scores, 20.0 * FAKE)
    np.testing.assert_array_equal(other.discriminator.fake_taps["hidden"], 30.0 * FAKE)
    assert other.student.taps is taps
    assert other.discriminator.real is forward.discriminator.real
    for name in ("step", "key", "inputs", "teacher", "teacher_discriminator", "extractor"):
        assert getattr(other, name) is getattr(forward, name)
    without_discriminator = make_forward(FAKE).with_output(5.0 * FAKE)
    np.testing.assert_array_equal(without_discriminator.student.output, 5.0 * FAKE)
    assert not without_discriminator.discriminator
    gradient = jax.grad(lambda x: (forward.with_output(x).discriminator.fake_scores ** 2).mean())(
        FAKE
    )
    np.testing.assert_allclose(gradient, 8.0 * FAKE / 4, rtol=1e-6)


def test_as_weight_of_numbers_schedules_and_weights():
    for argument, expected in [(3.0, 3.0), (2, 2), (lambda step: step * 0.5, 2.0)]:
        weight = as_weight(argument)
        assert weight.init() == ()
        value, state = weight.fn(make_forward(FAKE, step=4), None, FAKE, ())
        assert (float(value), state) == (expected, ())
    weight = Weight(lambda *_: (1.0, ()))
    assert as_weight(weight) is weight
    assert weight.init() == ()


def _per_example(forward, term, value, state):
    return jnp.array([0.0, 1.0, 2.0, -1.0]), state


def _stateful_weight(forward, term, value, state):
    return state, state + value.mean()


@pytest.mark.parametrize("every", [1, 2])
def test_a_weight_for_each_example(every):
    terms = {"t": Term(lambda f: f.student.output**2, Weight(_per_example), every=every)}
    expected = np.array([0.0, 1.0, 2.0, -1.0]) * np.asarray(FAKE) ** 2
    total, values, _ = _run(terms)
    np.testing.assert_allclose(total, every * expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(values["t"], np.mean(np.asarray(FAKE) ** 2), rtol=1e-6)
    np.testing.assert_allclose(values["t/weight"], 0.5, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (4, 1), (1,)])
def test_a_weight_of_the_wrong_shape_raises(shape):
    terms = {"t": Term(lambda f: f.student.output, Weight(lambda f, t, v, s: (jnp.ones(shape), s)))}
    with pytest.raises(ValueError, match=r"term 't': a weight \(.*\) does not fit values \(4,\)"):
        _run(terms)
    terms = {"t": Term(lambda f: f.student.output.mean(), Weight(_per_example))}
    with pytest.raises(ValueError, match=r"term 't': a weight \(4,\) does not fit values \(\)"):
        _run(terms)


def test_the_error_of_a_weight_names_its_term():
    def failing(forward, term, value, state):
        raise ValueError("no reference")

    with pytest.raises(ValueError, match="term 't': no reference"):
        _run({"t": Term(lambda f: f.student.output, Weight(failing))})


def test_a_weight_gets_the_value_and_can_evaluate_the_term_at_another_forward():
    arguments = {}

    def record(forward, term, value, state):
        arguments.update(
            value=value, other=term(forward.with_output(2.0 * forward.student.output)), state=state
        )
        return 1.0, state

    terms = {
        "t": Term(
            lambda f, s: (s * f.student.output, s + 1.0),
            Weight(record),
            init=lambda: jnp.asarray(5.0),
        )
    }
    _, _, states = _run(terms)
    np.testing.assert_array_equal(arguments["value"], 5.0 * FAKE)
    np.testing.assert_array_equal(arguments["other"], 10.0 * FAKE)
    assert arguments["state"] == ()
    assert float(states["t"].state) == 6.0  # updated once, not twice


def test_weights_are_metrics_unless_they_are_numbers():
    terms = {
        "number": Term(lambda f: f.student.output, 2.0),
        "schedule": Term(lambda f: f.student.output, lambda step: 1.0 + step),
        "weight": Term(lambda f: f.student.output, Weight(_per_example)),
    }
    _, values, _ = _run(terms, step=3)
    assert {name for name in values if "/" in name} == {"schedule/weight", "weight/weight"}
    np.testing.assert_allclose(values["schedule/weight"], 4.0)
    assert values["schedule/weight"].dtype == jnp.float32


def test_weights_of_lazy_terms_are_stateful_and_logged_as_last_evaluated():
    weight = Weight(_stateful_weight, lambda: jnp.asarray(2.0))
    terms = {
        "lazy": Term(lambda f: f.student.output, weight, every=2),
        "schedule": Term(lambda f: f.student.output, lambda step: step * 1.0, every=2),
        "number": Term(lambda f: f.student.output, 7.0, every=2),
    }
    states, rows = init_terms(terms), []
    for step in range(5):
        structure = jax.tree.structure(states)
        total, values, states = _run(terms, step, states=states)
        assert jax.tree.structure(states) == structure
        rows.append([float(values["lazy/weight"]), float(values["schedule/weight"]), float(total)])
        assert "number/weight" not in values
    # FAKE's mean is 3: the weight is 2, 5, 8 when due, and counts twice.
    assert [row[0] for row in rows] == [2.0, 2.0, 5.0, 5.0, 8.0]
    assert [row[1] for row in rows] == [0.0, 0.0, 2.0, 2.0, 4.0]
    assert [row[2] for row in rows] == [
        2 * 3.0 * (w + s + 7.0) * due for (w, s, _), due in zip(rows, [1, 0, 1, 0, 1], strict=True)
    ]
    assert float(states["lazy"].weight) == 11.0
    assert [float(x) for x in states["lazy"].last] == [3.0, 8.0]


@pytest.mark.parametrize("every", [1, 2])
def test_no_gradient_passes_through_a_weight_or_its_state(every):
    def weight(forward, term, value, state):
        return state * (forward.student.output**3).mean(), (forward.student.output**2).sum()

    terms = {
        "t": Term(lambda f: f.student.output**2, Weight(weight, lambda: jnp.asarray(1.0)), every)
    }

    def total(fake):
        value, _, states = _run(terms, fake=fake)
        return value + states["t"].weight + sum(jax.tree.leaves(states["t"].last), 0.0)

    x = np.asarray(FAKE, np.float64)
    np.testing.assert_allclose(jax.grad(total)(FAKE), every * np.mean(x**3) * 2 * x / 4, rtol=1e-6)
