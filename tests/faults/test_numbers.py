"""NaN and infinity are detected in their step and located; they leave the state unchanged."""

import functools
import re

import faults
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training
from selection import FUSED, quick

import kd_jax as kd
from kd_jax.train.loop import NonFiniteError
from kd_jax.train.training import TrainingPlan

STEP = 7  # between two checkpoints, two logging windows and two evaluations


def broken_at(value, steps=(STEP,)):
    """A factor that is 1 except in these steps."""

    def factor(forward):
        bad = jnp.isin(forward.step + 1, jnp.array(steps))
        return jnp.where(bad, value, 1.0)

    return factor


def in_a_generator_term(value, steps=(STEP,)):
    factor = broken_at(value, steps)
    return kd.Term(lambda f: factor(f) * jnp.abs(f.student.output).mean())


def in_a_discriminator_term(value, steps=(STEP,)):
    factor = broken_at(value, steps)
    return kd.Term(lambda f: factor(f) * jnp.abs(f.discriminator.fake_scores).mean())


@jax.custom_vjp
def with_nan_gradient(x, bad):
    """`x`, with a gradient of NaN where `bad`."""
    return x


with_nan_gradient.defvjp(
    lambda x, bad: (x, bad),
    lambda bad, g: (jnp.where(bad, jnp.nan, g), np.zeros((), jax.dtypes.float0)),
)


def in_a_gradient(value, steps=(STEP,)):
    del value
    return kd.Term(
        lambda f: with_nan_gradient(
            jnp.abs(f.student.output).mean(), jnp.isin(f.step + 1, jnp.array(steps))
        )
    )


class BadPixel:
    """Batches with one bad pixel in the batches of these steps."""

    def __init__(self, batches, value, steps=(STEP,)):
        self._batches, self._value, self._steps, self._number = batches, value, steps, -1

    def __iter__(self):
        return self

    def __next__(self):
        self._number += 1  # batch 0 only gives the shapes
        batch = dict(next(self._batches))
        if self._number in self._steps:
            image = batch["image"].copy()
            image[3, 2, 2, 0] = self._value
            batch["image"] = image
        return batch

    def __getattr__(self, name):
        return getattr(self._batches, name)


def case(where, value, steps=(STEP,)):
    """The training plan, the batches, and a pattern of the error's message."""
    batches = training.batches()
    make = functools.partial(training.training_plan, 20)
    if where == "batch":
        return make(), BadPixel(batches, value, steps), r"\(the batch: image is not finite\)$"
    if where == "generator's term":
        plan = make(g_terms={"odd": in_a_generator_term(value, steps)})
        return plan, batches, r"g/odd is .*\(g/odd is not finite\)$"
    if where == "discriminator's term":
        plan = make(d_terms={"odd": in_a_discriminator_term(value, steps)})
        return plan, batches, r"d/odd is .*\(d/odd is not finite\)$"
    if where == "gradient":
        plan = make(g_terms={"odd": in_a_gradient(value, steps)})
        return plan, batches, r"g/grad_norm is nan \(the gradient of g/odd is not finite\)$"

    # The teacher's output only: its variables and the batch are finite.
    return teacher_case(batches, value, steps)


def teacher_case(batches, value, steps):
    """A teacher with an output that is not finite for a label that only some batches have."""
    network = training.TEACHER.generator

    def apply(variables, z, bad, **options):
        image, taps, variables = network.apply(variables, z, **options)
        return image * jnp.where(bad, value, 1.0).reshape(-1, 1, 1, 1), taps, variables

    def init(key, z, bad):
        del bad
        return network.init(key, z)

    student = training.STUDENT.generator

    def student_apply(variables, z, bad, **options):
        del bad
        return student.apply(variables, z, **options)

    def student_init(key, z, bad):
        del bad
        return student.init(key, z)

    plain = kd.latents(training.LATENT)

    def inputs(key, batch):
        latents = plain(key, batch)
        return latents._replace(generator=(*latents.generator, batch["bad"]))

    parts = training.parts()
    parts |= {
        "networks": kd.Networks(
            kd.Network(student_init, student_apply),
            training.STUDENT.discriminator,
            kd.Network(init, apply),
        ),
        "task": inputs,
    }
    setup = kd.Setup(**parts, ema=0.9)
    plan = TrainingPlan(
        init=functools.partial(kd.init_state, setup),
        step=kd.make_train_step(setup),
        teacher=kd.Teacher(training.teacher_variables()),
        steps=20,
        diagnosis=kd.diagnostics.diagnosis(setup),
    )
    return (
        plan,
        Marked(batches, steps),
        r"g/response is .*\(the teacher's output is not finite\)$",
    )


class Marked(BadPixel):
    """Batches with an entry `bad`: whether the batch is one of these steps."""

    def __init__(self, batches, steps):
        super().__init__(batches, None, ())
        self._bad = steps

    def __next__(self):
        batch = super().__next__()
        bad = np.full(len(batch["image"]), self._number in self._bad)
        return {**batch, "bad": bad}


PLACES = ["batch", "teacher", "generator's term", "discriminator's term", "gradient"]
VALUES = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", quick(VALUES), ids=str)
@pytest.mark.parametrize("where", PLACES)
def test_the_error_names_the_step_and_the_cause(tmp_path, where, value):
    plan, batches, message = case(where, value)
    with pytest.raises(NonFiniteError) as error:
        training.train(tmp_path, plan, batches)
    text = str(error.value)
    assert "\n" not in text
    assert f": step {STEP}: " in text
    assert "step 5 is saved" in text
    assert re.search(message, text.partition("; step 5")[0]), text
    assert faults.steps(tmp_path) == [5]
    rows = (tmp_path / "metrics.jsonl").read_text()
    assert '"step": 8' not in rows
    assert "NaN" not in rows


@pytest.mark.parametrize("where", PLACES)
def test_a_skipped_step_leaves_the_state_unchanged(where):
    plan, batches, _ = case(where, np.nan)
    example = next(batches)
    state = kd.with_skip_count(jax.jit(plan.init)(jax.random.key(3), example))
    step = jax.jit(kd.skip_nonfinite(plan.step))
    for number in range(1, STEP + 3):
        before = faults.digest(state._replace(wrappers=(), step=()))
        state, metrics = step(state, plan.teacher, next(batches))
        assert int(metrics["skipped"]) == (number >= STEP)
        assert (faults.digest(state._replace(wrappers=(), step=())) == before) == (number >= STEP)
        assert int(state.step) == min(number, STEP - 1)


@pytest.mark.parametrize("where", quick(PLACES))
def test_patience_skips_and_counts_steps(tmp_path, where, capsys):
    plan, batches, message = case(where, np.nan, (3, STEP, 11))
    training.train(tmp_path, plan, batches, patience=3)
    printed = capsys.readouterr().out
    for count, step in enumerate((3, STEP, 11), start=1):
        (line,) = [text for text in printed.splitlines() if f"step {step}: warning" in text]
        assert f"({count} of at most 3)" in line
        assert re.search(message, line.partition("; the step")[0])
    assert '"step": 12' in (tmp_path / "metrics.jsonl").read_text()
    assert '"skipped": 3' in (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert faults.steps(tmp_path) == [15, 20]
    plan, batches, _ = case(where, np.nan, (3, STEP, 11))
    with pytest.raises(NonFiniteError, match=": step 11: "):
        training.train(tmp_path / "less", plan, batches, patience=2)


def test_a_skipped_step_equals_a_training_without_its_batch(tmp_path):
    """The state after a skipped step equals that of a training without its batch."""
    plan, batches, _ = case("batch", np.nan)
    example = next(batches)
    step = jax.jit(kd.skip_nonfinite(plan.step, 1), compiler_options=FUSED)
    state = kd.with_skip_count(jax.jit(plan.init)(jax.random.key(3), example))
    expected, plain_step = state, jax.jit(plan.step, compiler_options=FUSED)
    for number in range(1, 12):
        batch = next(batches)
        state, _ = step(state, plan.teacher, batch)
        if number == STEP:
            expected = expected._replace(step=expected.step + 1)
        else:
            expected, _ = plain_step(expected, plan.teacher, batch)
    state_digest = faults.digest(state._replace(wrappers=()))
    assert state_digest == faults.digest(expected._replace(wrappers=()))
    assert int(state.wrappers["skipped"]) == 1


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    def with_nan(step):
        def bad_step(state, teacher, batch):
            state, metrics = step(state, teacher, batch)
            bad = jnp.where(state.step == 5, jnp.nan, 0.0)
            return state._replace(ema=jax.tree.map(lambda x: x + bad, state.ema)), metrics

        return bad_step

    with pytest.raises(
        NonFiniteError, match=r"step 5: the state is not saved, ema/params/.* is not"
    ):
        training.train(tmp_path, training.training_plan(20, wrap=with_nan), training.batches())
    assert faults.steps(tmp_path) == []


def test_negative_patience_is_an_error():
    with pytest.raises(ValueError, match="patience=-1"):
        kd.skip_nonfinite(training.training_plan(1).step, -1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_quality_metric_that_is_not_finite(tmp_path, monkeypatch, value):
    monkeypatch.setattr(training, "quality", lambda _: {"mean": value})
    with pytest.raises(
        NonFiniteError, match=rf": step 6: quality/mean is {value}; step 5 is saved"
    ):
        training.train(tmp_path, training.training_plan(20), training.batches())
    assert not (tmp_path / "best").exists()
