"""Adaptive weights: against formulas in double precision, and as part of the train state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forwards import make_forward

from kd_jax import losses
from kd_jax.core.objective import Term, Weight, init_terms, weighted_total
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import init_state
from kd_jax.core.step import make_train_step
from kd_jax.core.types import Taps
from kd_jax.methods.weights import confidence, gradient_balanced, scaled, uncertainty
from kd_jax.models import mlp
from kd_jax.tasks import latents

FAKE = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
TEACHER = np.array([[1.0, 3.0], [-4.0, 2.0], [0.0, 0.0], [7.0, -1.0]], np.float32)
B = len(FAKE)


def _forward(fake=FAKE, step=0, **fields):
    return make_forward(jnp.asarray(fake), step=step, **fields)


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def _run(term, forwards):
    """The weight and the total at each of the forwards, one step after another."""
    terms = {"t": term}
    states, weights, totals = init_terms(terms), [], []
    for forward in forwards:
        total, metrics, states = weighted_total(terms, forward, states)
        weights.append(float(metrics["t/weight"]))
        totals.append(float(total))
    return weights, totals


# Balanced gradient norms.


def test_ratio_of_linear_terms():
    """The mean of c x has gradient c / B at each of B images, with norm |c| / sqrt(B)."""
    for term, against, of in [(4.0, 1.0, 1.0), (0.5, -3.0, 1.0), (-2.0, 5.0, 0.3)]:
        weight = gradient_balanced(lambda f, a=against: a * f.student.output, of)
        weights, totals = _run(Term(lambda f, t=term: t * f.student.output, weight), [_forward()])
        ratio = of * abs(against) / (abs(term) + 1e-6 * np.sqrt(B))
        np.testing.assert_allclose(weights, [ratio], rtol=1e-5)
        np.testing.assert_allclose(totals, [ratio * term * FAKE.mean()], rtol=1e-5)


def test_norms_are_over_the_batch_of_images_of_any_shape():
    fake = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
    term = Term(
        lambda f: (f.student.output**2).sum(axis=(1, 2, 3)),
        gradient_balanced(lambda f: (f.student.output**3).mean(axis=(1, 2, 3))),
    )
    (weight,), _ = _run(term, [_forward(fake)])
    x = fake.astype(np.float64)
    expected = np.linalg.norm(3 * x**2 / x.size) / np.linalg.norm(2 * x / 3)
    np.testing.assert_allclose(weight, expected, rtol=1e-4)


def test_a_scalar_term_is_balanced_against_a_term_per_example():
    term = Term(
        lambda f: f.student.output.mean(), gradient_balanced(lambda f: 3.0 * f.student.output)
    )
    weights, _ = _run(term, [_forward()])
    np.testing.assert_allclose(weights, [3.0], rtol=1e-5)


def test_the_gradient_of_the_scores_reaches_the_image():
    def score(x):
        return -5.0 * x, Taps()

    forward = _forward(discriminate=score)
    weight = gradient_balanced(lambda f: f.discriminator.fake_scores)
    weights, _ = _run(Term(lambda f: 2.0 * f.student.output, weight), [forward])
    np.testing.assert_allclose(weights, [2.5], rtol=1e-5)


@pytest.mark.parametrize("decay", [0.9, 0.5, 0.0])
def test_the_moving_average_of_the_ratio_is_debiased(decay):
    ratios, total, count, expected = [2.0, 8.0, 0.5, 3.0], 0.0, 0.0, []
    for ratio in ratios:
        total, count = decay * total + (1 - decay) * ratio, decay * count + (1 - decay)
        expected.append(total / count)
    assert expected[0] == pytest.approx(2.0)
    weight = gradient_balanced(lambda f: f.real * f.student.output, decay=decay)
    forwards = [_forward(real=jnp.float32(ratio)) for ratio in ratios]
    weights, _ = _run(Term(lambda f: f.student.output, weight), forwards)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_ratio_has_a_limit():
    weight = gradient_balanced(lambda f: 100.0 * f.student.output, 2.0, limit=5.0)
    weights, _ = _run(Term(lambda f: f.student.output, weight), [_forward()])
    np.testing.assert_allclose(weights, [10.0], rtol=1e-6)
    # A term of features only has no gradient at the image.
    features = Term(lambda f: f.student.taps["x"], gradient_balanced(lambda f: f.student.output))
    weights, _ = _run(features, [_forward(taps=Taps(x=jnp.ones(B)))])
    np.testing.assert_allclose(weights, [1e4], rtol=1e-6)


def test_the_balanced_ratio_uses_the_state_of_a_stateful_term():
    term = Term(
        lambda f, s: (s * f.student.output, 2.0 * s),
        gradient_balanced(lambda f: f.student.output, decay=0.0),
        init=lambda: jnp.asarray(4.0),
    )
    weights, _ = _run(term, [_forward()] * 2)
    np.testing.assert_allclose(weights, [1 / 4, 1 / 8], rtol=1e-5)


def test_of_may_be_a_schedule_or_another_weight():
    def run(of, steps=3):
        weight = gradient_balanced(lambda f: f.student.output * f.real, of, decay=0.0)
        forwards = [_forward(step=n, real=jnp.float32(n + 1)) for n in range(steps)]
        return _run(Term(lambda f: jnp.abs(f.student.output), weight), forwards)[0]

    np.testing.assert_allclose(run(0.25), [0.25, 0.5, 0.75], rtol=1e-5)
    schedule = optax.linear_schedule(1.0, 0.0, 2)
    np.testing.assert_allclose(run(schedule), [1.0, 1.0, 0.0], rtol=1e-5)
    stateful = Weight(lambda f, t, v, s: (s, s * 10.0), lambda: jnp.asarray(1.0))
    np.testing.assert_allclose(run(stateful), [1.0, 20.0, 300.0], rtol=1e-5)


def test_a_decay_outside_its_range_raises():
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"decay=.* is not in \[0, 1\)"):
            gradient_balanced(lambda f: f.student.output, decay=decay)


# Confidence.

V = -0.8


def _with_scores(v=V):
    return _forward(
        teacher=jnp.asarray(TEACHER), teacher_discriminate=lambda x: (v * x.sum(axis=1), Taps())
    )


def test_confidence_by_hand():
    probability = _sigmoid(V * TEACHER.sum(axis=1))
    weights, totals = _run(Term(lambda f: f.student.output**2, confidence(3.0)), [_with_scores()])
    np.testing.assert_allclose(weights, [3 * probability.mean()], rtol=1e-5)
    np.testing.assert_allclose(totals, [3 * np.mean(probability * FAKE**2.0)], rtol=1e-5)


def test_confidence_averages_score_maps():
    maps = _forward(
        teacher=jnp.asarray(TEACHER),
        teacher_discriminate=lambda x: (V * x.reshape(B, 1, 2), Taps()),
    )
    weights, totals = _run(Term(lambda f: f.student.output, confidence()), [maps])
    probability = _sigmoid(V * TEACHER.mean(axis=1))
    np.testing.assert_allclose(weights, [probability.mean()], rtol=1e-5)
    np.testing.assert_allclose(totals, [np.mean(probability * FAKE)], rtol=1e-5)


def test_confidence_times_another_weight():
    probability = _sigmoid(V * TEACHER.sum(axis=1))
    for of, factor in [
        (lambda step: 0.5 + step, 2.5),
        (gradient_balanced(lambda f: 6 * f.student.output, 0.5), 3.0),
    ]:
        forward = _with_scores()._replace(step=jnp.int32(2))
        weights, _ = _run(Term(lambda f: f.student.output, confidence(of)), [forward])
        np.testing.assert_allclose(weights, [factor * probability.mean()], rtol=1e-4)


def test_confidence_errors():
    term = {"t": Term(lambda f: f.student.output, confidence())}
    for fields in ({}, {"teacher": TEACHER}, {"teacher_discriminate": lambda x: (x, Taps())}):
        with pytest.raises(ValueError, match=r"term 't': .*networks\.teacher"):
            weighted_total(term, _forward(**fields), init_terms(term))
    term = {"t": Term(lambda f: f.student.output.mean(), confidence())}
    with pytest.raises(ValueError, match=r"term 't': confidence\(\).* scalar"):
        weighted_total(term, _with_scores(), init_terms(term))


# Uncertainty.


def test_uncertainty_by_hand():
    rate, start, s, expected = 0.1, 0.5, -np.log(0.5), []
    values = [3.0, 0.2, 7.0, 0.0]
    for value in values:
        expected.append(2.0 * np.exp(-s))
        s -= rate * (1 - np.exp(-s) * value)
    forwards = [_forward(np.full(B, value, np.float32)) for value in values]
    weights, totals = _run(
        Term(lambda f: f.student.output, uncertainty(2.0, rate=rate, start=start)), forwards
    )
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(totals, np.array(expected) * values, rtol=1e-5)


@pytest.mark.parametrize("loss", [1e-3, 0.5, 40.0])
def test_uncertainty_converges_to_the_inverse_of_a_constant(loss):
    terms = {"t": Term(lambda f: loss, uncertainty(rate=0.05))}

    def step(states, _):
        _, metrics, states = weighted_total(terms, _forward(), states)
        return states, metrics["t/weight"]

    _, weights = jax.lax.scan(step, init_terms(terms), length=400)
    np.testing.assert_allclose(weights[-1], 1 / loss, rtol=1e-3)


def test_uncertainty_is_robust_to_huge_and_zero_values():
    values = [1e30, 1e30, 0.5, 1e38, *[0.5] * 60]
    weight = uncertainty(rate=0.5)
    weights, _ = _run(Term(lambda f: f.student.output[0], weight), [_forward([v]) for v in values])
    # Steps of s are at most 1 in magnitude.
    assert np.all(np.abs(np.diff(np.log(weights))) < 1.0 + 1e-5)
    np.testing.assert_allclose(weights[:3], np.exp([0.0, -1.0, -2.0]), rtol=1e-5)
    np.testing.assert_allclose(weights[-1], 2.0, rtol=1e-3)
    for value in (0.0, -5.0):
        forwards = [_forward([value])] * 40
        weights, _ = _run(
            Term(lambda f: f.student.output[0], uncertainty(rate=0.5, limit=50.0)), forwards
        )
        np.testing.assert_allclose(weights[-5:], [50.0] * 5, rtol=1e-5)


def test_uncertainty_of_a_schedule():
    weight = uncertainty(lambda step: 1.0 + step, rate=1.0)
    weights, _ = _run(Term(lambda f: 1.0, weight), [_forward(step=n) for n in range(3)])
    np.testing.assert_allclose(weights, [1.0, 2.0, 3.0], rtol=1e-6)


def test_uncertainty_errors():
    for start in (0.0, -1.0, 1e5):
        with pytest.raises(ValueError, match=r"start=.* is not in \(0, limit=10000\.0\]"):
            uncertainty(start=start)
    with pytest.raises(ValueError, match="rate=0 is not positive"):
        uncertainty(rate=0)


# All weights.


def test_scaled_is_the_product_and_carries_both_states():
    def counting(factor):
        return Weight(lambda f, t, v, s: (s, s * factor), lambda: jnp.asarray(1.0))

    weight = scaled(counting(2.0), counting(3.0))
    weights, _ = _run(Term(lambda f: 1.0, weight), [_forward()] * 3)
    np.testing.assert_allclose(weights, [1.0, 6.0, 36.0])
    weights, _ = _run(Term(lambda f: 1.0, scaled(3.0, lambda step: 2.0 + step)), [_forward(step=2)])
    np.testing.assert_allclose(weights, [12.0])


WEIGHTS = {
    "gradient_balanced": gradient_balanced(lambda f: f.student.output**3),
    "confidence": confidence(2.0),
    "uncertainty": uncertainty(),
    "scaled": scaled(gradient_balanced(lambda f: f.student.output**3), confidence()),
    "schedule": optax.linear_schedule(2.0, 1.0, 3),
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", list(WEIGHTS))
def test_no_gradient_passes_through_a_weight(name, every):
    """The gradient is that of the weighted mean with constant weights."""
    terms = {"t": Term(lambda f: f.student.output**2, WEIGHTS[name], every=every)}
    start = init_terms(terms)

    def total(fake):
        forward = _forward(
            fake, teacher=3.0 * fake, teacher_discriminate=lambda x: (x + 5.0 * fake, Taps())
        )
        value, metrics, states = weighted_total(terms, forward, start)
        # Nor through the states of weights.
        return value + sum(leaf.sum() for leaf in jax.tree.leaves(states["t"].weight)), metrics

    gradient, metrics = jax.grad(total, has_aux=True)(jnp.asarray(FAKE))
    x = FAKE.astype(np.float64)
    ratio = np.linalg.norm(3 * x**2) / np.linalg.norm(2 * x)
    probability = _sigmoid(8.0 * x)
    weight = {
        "gradient_balanced": ratio,
        "confidence": 2.0 * probability,
        "uncertainty": 1.0,
        "scaled": ratio * probability,
        "schedule": 2.0,
    }[name]
    np.testing.assert_allclose(metrics["t/weight"], np.mean(weight), rtol=1e-5)
    np.testing.assert_allclose(gradient, every * weight * 2 * x / B, rtol=1e-4, atol=1e-7)


def test_a_lazy_balanced_term_without_gradient_is_finite():
    terms = {
        "t": Term(
            lambda f: 0.0 * f.student.output**2,
            gradient_balanced(lambda f: f.student.output),
            every=2,
        )
    }
    run = jax.jit(
        jax.grad(lambda x, step: weighted_total(terms, _forward(x, step), init_terms(terms))[0])
    )
    for step in (0, 1):
        np.testing.assert_array_equal(run(jnp.asarray(FAKE), step), np.zeros(B))


@pytest.mark.parametrize("every", [1, 4])
def test_weights_are_part_of_the_train_state(every):
    pair = mlp.gan(4, 8, depth=1)

    def pixel(forward):
        return losses.response.l2(forward.student.output, forward.teacher.output)

    adversarial = Term(lambda f: losses.adversarial.nonsaturating_g(f.discriminator.fake_scores))
    adaptive = {
        "gradient_balanced": gradient_balanced(adversarial.fn),
        "uncertainty": uncertainty(rate=0.5),
    }
    adaptive["scaled"] = scaled(
        confidence(gradient_balanced(adversarial.fn)), lambda step: 0.5 + 0.1 * step
    )
    adaptive["schedule"] = optax.linear_schedule(1.0, 0.0, 10)
    parts = {
        "networks": Networks(*pair, *pair),
        "optimizers": PerNetwork(optax.sgd(0.1), optax.sgd(0.1)),
        "task": latents(3),
        "losses": PerNetwork(
            {
                "adversarial": adversarial,
                "number": Term(pixel, 2, every=every),
                **{name: Term(pixel, weight, every=every) for name, weight in adaptive.items()},
            },
            {
                "adversarial": Term(
                    lambda f: losses.adversarial.minimax_d(
                        f.discriminator.real_scores, f.discriminator.fake_scores
                    )
                ),
                "slow": Term(
                    lambda f: (f.discriminator(f.real)[0]) ** 2, uncertainty(), every=every
                ),
            },
        ),
    }
    batch = {"image": np.ones((4, 4, 4, 1), np.float32)}
    state = init_state(Setup(**parts), jax.random.key(0), batch)
    other = init_state(Setup(**parts), jax.random.key(1), batch)
    teacher = Teacher(other.generator.variables, other.discriminator.variables)
    traces = []

    def traced_step(*args):
        traces.append(args)
        return make_train_step(Setup(**parts))(*args)

    step = jax.jit(traced_step)
    abstract, rows = jax.tree.map(jax.typeof, state), []
    for _ in range(every + 1):
        state, metrics = step(state, teacher, batch)
        assert jax.tree.map(jax.typeof, state) == abstract
        rows.append(metrics)
    names = {name for name in metrics if name.endswith("/weight")}
    assert names == {f"g/{name}/weight" for name in adaptive} | {"d/slow/weight"}
    for name in names:
        assert len({float(row[name]) for row in rows[:every]}) == 1  # the last evaluated value
        assert float(rows[0][name]) != float(rows[every][name])
    assert len(traces) == 1
