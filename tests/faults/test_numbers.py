"""NaN and infinity: found in their step, named, without a trace in the state."""

import functools
import re

import faults
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training
from selection import quick

import kd_jax as kd
from experiments import harness
from kd_jax.loop import NonFiniteError

STEP = 7  # between two checkpoints, two windows and two figures of quality


def broken_at(value, steps=(STEP,)):
    """A factor that is 1, but in the step of these numbers."""

    def factor(forward):
        bad = jnp.isin(forward.step + 1, jnp.array(steps))
        return jnp.where(bad, value, 1.0)

    return factor


def in_a_term(value, steps=(STEP,)):
    factor = broken_at(value, steps)
    return kd.Term(lambda f: factor(f) * jnp.abs(f.fake).mean())


def in_a_judges_term(value, steps=(STEP,)):
    factor = broken_at(value, steps)
    return kd.Term(lambda f: factor(f) * jnp.abs(f.fake_scores).mean())


@jax.custom_vjp
def sharp(x, bad):
    """`x`, whose gradient is NaN where `bad`."""
    return x


sharp.defvjp(
    lambda x, bad: (x, bad),
    lambda bad, g: (jnp.where(bad, jnp.nan, g), np.zeros((), jax.dtypes.float0)),
)


def in_a_gradient(value, steps=(STEP,)):
    del value
    return kd.Term(lambda f: sharp(jnp.abs(f.fake).mean(), jnp.isin(f.step + 1, jnp.array(steps))))


class Spoilt:
    """Batches one of which has a bad pixel."""

    def __init__(self, given, value, steps=(STEP,)):
        self._given, self._value, self._steps, self._number = given, value, steps, -1

    def __iter__(self):
        return self

    def __next__(self):
        self._number += 1  # the first is looked at for its shapes
        batch = dict(next(self._given))
        if self._number in self._steps:
            image = batch["image"].copy()
            image[3, 2, 2, 0] = self._value
            batch["image"] = image
        return batch

    def __getattr__(self, name):
        return getattr(self._given, name)


def case(where, value, steps=(STEP,)):
    """The training_plan, the batches, and what the error says."""
    given = training.batches()
    make = functools.partial(training.training_plan, 20)
    if where == "batch":
        return make(), Spoilt(given, value, steps), r"\(the batch: image is not finite\)$"
    if where == "generator's term":
        made = make(g_terms={"odd": in_a_term(value, steps)})
        return made, given, r"g/odd is .*\(g/odd is not finite\)$"
    if where == "discriminator's term":
        made = make(d_terms={"odd": in_a_judges_term(value, steps)})
        return made, given, r"d/odd is .*\(d/odd is not finite\)$"
    if where == "gradient":
        made = make(g_terms={"odd": in_a_gradient(value, steps)})
        return made, given, r"g/grad_norm is nan \(the gradient of g/odd is not finite\)$"

    # The teacher's output from_scratch: its variables and the batch are finite.
    return teacher_case(given, value, steps)


def teacher_case(given, value, steps):
    """The teacher answers a label that only some batches have with what is not finite."""
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

    plain = kd.latents(training.LATENT, conditional=False)

    def inputs(key, batch):
        made = plain(key, batch)
        return made._replace(generator=(*made.generator, batch["bad"]))

    made = training.parts()
    made |= {
        "nets": kd.Networks(
            kd.Network(student_init, student_apply),
            training.STUDENT.discriminator,
            kd.Network(init, apply),
        ),
        "inputs": inputs,
    }
    training_plan = harness.TrainingPlan(
        init=functools.partial(kd.init_state, **made),
        step=kd.make_train_step(**made, ema=0.9),
        teacher=kd.Teacher(training.teacher_variables()),
        steps=20,
        diagnosis=kd.diagnostics.diagnosis(**made),
    )
    return (
        training_plan,
        Marked(given, steps),
        r"g/response is .*\(the teacher's output is not finite\)$",
    )


class Marked(Spoilt):
    """Batches with a mark where they are bad."""

    def __init__(self, given, steps):
        super().__init__(given, None, ())
        self._bad = steps

    def __next__(self):
        batch = super().__next__()
        bad = np.full(len(batch["image"]), self._number in self._bad)
        return {**batch, "bad": bad}


PLACES = ["batch", "teacher", "generator's term", "discriminator's term", "gradient"]
VALUES = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", quick(VALUES), ids=str)
@pytest.mark.parametrize("where", PLACES)
def test_it_stops_in_its_step_and_says_what(tmp_path, where, value):
    made, given, message = case(where, value)
    with pytest.raises(NonFiniteError) as error:
        training.train(tmp_path, made, given)
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
def test_the_state_is_untouched(where):
    made, given, _ = case(where, np.nan)
    example = next(given)
    state = jax.jit(made.init)(jax.random.key(3), example)
    step = jax.jit(kd.skip_nonfinite(made.step))
    for number in range(1, STEP + 3):
        before = faults.digest(state._replace(skipped=(), step=()))
        state, metrics = step(state, made.teacher, next(given))
        assert int(metrics["skipped"]) == (number >= STEP)
        assert (faults.digest(state._replace(skipped=(), step=())) == before) == (number >= STEP)
        assert int(state.step) == min(number, STEP - 1)


@pytest.mark.parametrize("where", quick(PLACES))
def test_with_patience_it_is_left_out_and_counted(tmp_path, where, capsys):
    made, given, message = case(where, np.nan, (3, STEP, 11))
    training.train(tmp_path, made, given, patience=3)
    printed = capsys.readouterr().out
    for count, step in enumerate((3, STEP, 11), start=1):
        (line,) = [text for text in printed.splitlines() if f"step {step}: warning" in text]
        assert f"the step is left out ({count} of at most 3)" in line
        assert re.search(message, line.partition("; the step")[0])
    assert '"step": 12' in (tmp_path / "metrics.jsonl").read_text()
    assert '"skipped": 3' in (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert faults.steps(tmp_path) == [15, 20]
    made, given, _ = case(where, np.nan, (3, STEP, 11))
    with pytest.raises(NonFiniteError, match=": step 11: "):
        training.train(tmp_path / "less", made, given, patience=2)


def test_what_is_left_out_is_as_if_it_had_not_been(tmp_path):
    """The state after a step that was left out is that of a training without its batch."""
    made, given, _ = case("batch", np.nan)
    example = next(given)
    step = jax.jit(kd.skip_nonfinite(made.step, 1))
    state = jax.jit(made.init)(jax.random.key(3), example)
    plain, plainly = state, jax.jit(made.step)
    for number in range(1, 12):
        batch = next(given)
        state, _ = step(state, made.teacher, batch)
        if number == STEP:
            plain = plain._replace(step=plain.step + 1)
        else:
            plain, _ = plainly(plain, made.teacher, batch)
    assert faults.digest(state._replace(skipped=())) == faults.digest(plain._replace(skipped=()))
    assert int(state.skipped) == 1


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    def spoil(step):
        def spoilt(state, teacher, batch):
            state, metrics = step(state, teacher, batch)
            bad = jnp.where(state.step == 5, jnp.nan, 0.0)
            return state._replace(ema=jax.tree.map(lambda x: x + bad, state.ema)), metrics

        return spoilt

    with pytest.raises(
        NonFiniteError, match=r"step 5: the state is not saved, ema/params/.* is not"
    ):
        training.train(tmp_path, training.training_plan(20, wrap=spoil), training.batches())
    assert faults.steps(tmp_path) == []


def test_a_negative_patience_is_refused():
    with pytest.raises(ValueError, match="patience=-1"):
        kd.skip_nonfinite(training.training_plan(1).step, -1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_figure_of_quality(tmp_path, monkeypatch, value):
    monkeypatch.setattr(training, "quality", lambda _: {"mean": value})
    with pytest.raises(
        NonFiniteError, match=rf": step 6: quality/mean is {value}; step 5 is saved"
    ):
        training.train(tmp_path, training.training_plan(20), training.batches())
    assert not (tmp_path / "best").exists()
