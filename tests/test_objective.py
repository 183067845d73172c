"""The sum of terms, by hand: weights, schedules, lazy and stateful terms, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.objective import (
    Forward,
    Inputs,
    Term,
    TermState,
    init_terms,
    latents,
    weighted_total,
)
from kd_jax.types import Taps

FAKE = jnp.array([1.0, 2.0, 3.0, 6.0])  # mean 3


def _forward(step=0, fake=FAKE, **fields):
    empty = Forward(*[None] * len(Forward._fields))
    return empty._replace(step=jnp.asarray(step, jnp.int32), fake=fake, **fields)


def _run(terms, step=0, fake=FAKE, states=None, **fields):
    states = init_terms(terms) if states is None else states
    return weighted_total(terms, _forward(step, fake, **fields), states)


def test_weights_are_numbers_or_schedules_of_the_traced_step():
    terms = {
        "each": Term(lambda f: f.fake, 2.0),
        "batch": Term(lambda f: f.fake[0] + 4.0, lambda step: 0.1 * step),
        "off": Term(lambda f: f.fake * 100.0, 0.0),
    }
    total_at = jax.jit(lambda step: _run(terms, step)[:2])
    for step, expected in [(0, 6.0), (5, 6.0 + 0.5 * 5.0), (20, 6.0 + 2.0 * 5.0)]:
        total, values = total_at(step)
        np.testing.assert_allclose(total, expected, rtol=1e-6)
        np.testing.assert_allclose(values["each"], 3.0, rtol=1e-6)  # unweighted
        np.testing.assert_allclose(values["batch"], 5.0, rtol=1e-6)
        np.testing.assert_allclose(values["off"], 300.0, rtol=1e-6)
    assert total.shape == ()


def test_no_terms_make_no_objective():
    total, values, states = _run({})
    assert float(total) == 0.0
    assert (values, states) == ({}, {})


def test_gradient_is_the_weighted_mean():
    terms = {"square": Term(lambda f: f.fake**2, 3.0), "first": Term(lambda f: f.fake[0], 7.0)}
    gradient = jax.grad(lambda fake: _run(terms, fake=fake)[0])(FAKE)
    expected = 3.0 * 2.0 * np.asarray(FAKE) / 4 + 7.0 * np.array([1, 0, 0, 0])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_half_precision_values_are_averaged_in_single():
    values = jnp.array([256.0, 1.0, 1.0, 1.0], jnp.bfloat16)  # 256 + 1 is 256 in bfloat16
    total, means, _ = _run({"half": Term(lambda f: values)})
    assert total.dtype == means["half"].dtype == jnp.float32
    assert float(total) == 259 / 4


@pytest.mark.parametrize("shape", [(4, 1), (3,), (1,), (2, 2)])
def test_wrong_shape_is_refused_by_name(shape):
    with pytest.raises(ValueError, match="term 'patches' returned shape") as caught:
        _run({"fine": Term(lambda f: f.fake), "patches": Term(lambda f: jnp.zeros(shape))})
    assert str(shape) in str(caught.value)
    assert "(4,) or a scalar ()" in str(caught.value)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda f: f.taps["nose"], r"term 'mine': no tap 'nose'; this network has 'a', 'b'"),
        (lambda f: f.teach(f.fake), "term 'mine': 'NoneType' object is not callable"),
        (lambda f: f.teacher_taps["a"], "term 'mine': 'NoneType' object is not subscriptable"),
        (lambda f: f.fake + jnp.zeros(3), "term 'mine': .*shape"),
    ],
)
def test_errors_in_a_term_name_it(fn, message):
    with pytest.raises(ValueError, match=message) as caught:
        _run({"mine": Term(fn)}, taps=Taps(a=FAKE, b=FAKE))
    assert caught.value.__cause__ is not None
    for term in (Term(fn, every=2), Term(lambda f, state: (fn(f), state), init=lambda: 0)):
        with pytest.raises(ValueError, match="term 'mine': "):
            _run({"mine": term}, taps=Taps(a=FAKE, b=FAKE))


def test_lazy_term_counts_k_times_on_each_kth_step():
    terms = {"lazy": Term(lambda f: f.fake, 2.0, every=3)}
    run = jax.jit(lambda step, fake, states: _run(terms, step, fake, states))
    states, totals, shown = init_terms(terms), [], []
    for step in range(7):
        total, values, states = run(step, FAKE + step, states)  # the mean is 3 + step
        totals.append(float(total))
        shown.append(float(values["lazy"]))
    assert totals == [2 * 3 * 3, 0, 0, 2 * 3 * 6, 0, 0, 2 * 3 * 9]
    assert shown == [3, 3, 3, 6, 6, 6, 9]  # the latest one evaluated

    # Over k steps of equal values, the same as a plain term.
    plain = {"plain": Term(lambda f: f.fake, 2.0)}
    states = init_terms(terms)
    lazy_sum = sum(float(run(step, FAKE, states)[0]) for step in range(3))
    assert lazy_sum == sum(float(_run(plain, step)[0]) for step in range(3)) == 18.0


def test_lazy_gradient():
    terms = {"lazy": Term(lambda f: f.fake**2, lambda step: 1.0 + step, every=2)}
    for step, factor in [(0, 2.0), (1, 0.0), (4, 2.0 * 5.0), (5, 0.0)]:
        gradient = jax.grad(lambda fake, step=step: _run(terms, step, fake)[0])(FAKE)
        np.testing.assert_allclose(gradient, factor * 2.0 * np.asarray(FAKE) / 4, rtol=1e-6)


def test_lazy_term_is_not_evaluated_when_not_due():
    calls = []

    def counted(forward):
        jax.debug.callback(lambda step: calls.append(int(step)), forward.step)
        return forward.fake

    terms = {"lazy": Term(counted, every=4)}
    run = jax.jit(lambda step, states: _run(terms, step, states=states)[2])
    states = init_terms(terms)
    for step in range(9):
        states = run(step, states)
    jax.effects_barrier()
    assert calls == [0, 4, 8]


def _running_mean(forward, mean):
    mean = 0.5 * mean + 0.5 * forward.fake.mean()
    return (forward.fake - mean) ** 2, mean


def test_stateful_term_remembers():
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
def test_no_gradient_goes_through_the_memory(every):
    terms = {"mean": Term(_running_mean, every=every, init=lambda: jnp.asarray(1.0))}

    def remembered(fake):
        after = _run(terms, fake=fake)[2]["mean"]
        return after.state + (after.last[0] if every > 1 else 0.0)

    np.testing.assert_array_equal(jax.grad(remembered)(FAKE), np.zeros(4))


def test_lazy_memory_changes_when_due_only():
    terms = {"mean": Term(_running_mean, every=2, init=lambda: jnp.asarray(1.0))}
    states, seen = init_terms(terms), []
    for step in range(4):
        _, _, states = _run(terms, step, states=states)
        seen.append(float(states["mean"].state))
    assert seen == [2.0, 2.0, 2.5, 2.5]


def test_malformed_terms_are_refused():
    with pytest.raises(ValueError, match=r"term 'plain' is a function; write Term\(fn, weight\)"):
        init_terms({"plain": lambda forward: forward.fake})
    for every in (0, -1, 2.0, None):
        with pytest.raises(ValueError, match=r"term 'lazy': every=.* is not a positive integer"):
            init_terms({"lazy": Term(lambda forward: forward.fake, every=every)})


def test_latents_task():
    batch = {"image": np.ones((5, 2, 2, 1), np.float32), "label": np.arange(5), "mask": None}
    given = latents(3)(jax.random.key(0), batch)
    z, labels = given.generator
    assert z.shape == (5, 3)
    assert labels is given.condition[0] is batch["label"]
    assert given.real is batch["image"]
    assert given.extra is batch
    again = latents(3)(jax.random.key(0), batch)
    np.testing.assert_array_equal(z, again.generator[0])
    assert not np.array_equal(z, latents(3)(jax.random.key(1), batch).generator[0])

    many = latents(64)(jax.random.key(0), {"label": np.zeros(500, int)})
    assert many.real is None
    np.testing.assert_allclose(many.generator[0].mean(), 0.0, atol=0.03)  # 5 sigma
    np.testing.assert_allclose(many.generator[0].std(), 1.0, atol=0.02)

    unconditional = latents(3, conditional=False)(jax.random.key(0), {"image": batch["image"]})
    assert unconditional.condition == ()
    assert [x.shape for x in unconditional.generator] == [(5, 3)]
    assert Inputs((z,)) == Inputs((z,), (), None, {})
