"""A teacher that does not fit is rejected before anything is compiled or written."""

import faults
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training

import kd_jax as kd
from experiments import harness


def with_parameter(path, value):
    """The teacher's variables with one parameter replaced, or removed where `value` is None."""
    variables = jax.tree.map(np.asarray, training.teacher_variables())
    layer, name = path
    params = {**variables["params"]}
    params[layer] = {**params.get(layer, {}), name: value}
    if value is None:
        del params[layer][name]
    return {**variables, "params": params}


KERNEL = "params/Dense_1/kernel"

CASES = {
    "shape": (
        lambda: with_parameter(("Dense_1", "kernel"), np.zeros((8, 9), np.float32)),
        rf"the teacher: {KERNEL} is float32 \(8, 9\), and float32 \(8, 8\) in the network",
    ),
    "dtype": (
        lambda: with_parameter(("Dense_1", "kernel"), np.zeros((8, 8), np.float16)),
        rf"the teacher: {KERNEL} is float16 \(8, 8\), and float32 \(8, 8\)",
    ),
    "extra key": (
        lambda: with_parameter(("Dense_7", "kernel"), np.zeros((8, 8), np.float32)),
        r"the teacher has params/Dense_7/kernel, which the network does not have",
    ),
    "missing key": (
        lambda: with_parameter(("Dense_1", "kernel"), None),
        rf"the teacher has no {KERNEL}, which the network has",
    ),
    "latent size": (
        lambda: training.teacher_variables(latent=9),
        r"the teacher: params/Dense_0/kernel is float32 \(9, 8\), and float32 \(4, 8\) in the "
        r"network with inputs of \(4, 4\)",
    ),
}


def assert_rejected(tmp_path, monkeypatch, message, **options):
    """Asserts that the training raises, compiles no step and writes nothing."""

    def compile_step(step, *args, **kwargs):
        class Step:
            def __call__(self, *_):
                raise AssertionError("a training step was called")

            eval_shape = staticmethod(lambda *_: None)

        return Step()

    monkeypatch.setattr(harness, "compile_step", compile_step)
    with pytest.raises(harness.UsageError, match=message) as error:
        training.train(tmp_path / "run", training.training_plan(4, **options), training.batches())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", CASES)
def test_the_teachers_variables(tmp_path, monkeypatch, name):
    make_variables, message = CASES[name]
    assert_rejected(tmp_path, monkeypatch, message, teacher=make_variables())


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (lambda x: (x + 1) / 2, r"the teacher's images are in \[0\.\d+, 0\.\d+\] and the real"),
        (
            lambda x: (x + 1) * 127.5,
            r"the teacher's images are in \[\d[\d.]*, \d+\] and the real ones",
        ),
        (lambda x: x * jnp.nan, r"the teacher's images are not finite"),
    ],
    ids=["[0, 1]", "[0, 255]", "NaN"],
)
def test_the_range_of_the_teachers_images(tmp_path, monkeypatch, scale, message):
    network = training.TEACHER.generator

    def apply(variables, *inputs, **options):
        image, taps, variables = network.apply(variables, *inputs, **options)
        return scale(image), taps, variables

    teacher = kd.PerNetwork(network._replace(apply=apply), None)
    assert_rejected(
        tmp_path, monkeypatch, message, teacher=training.teacher_variables(),
        networks=kd.Networks(*training.STUDENT, teacher=teacher.generator),
    )  # fmt: skip


def test_the_teacher_is_unchanged_after_a_thousand_steps(tmp_path):
    variables = jax.device_get(training.teacher_variables())
    before = faults.digest(variables)
    plan = training.training_plan(1000, teacher=variables)
    placed = kd.place(plan.teacher, kd.make_mesh(data=2, devices=jax.devices()[:2]))
    step = kd.compile_step(kd.skip_nonfinite(plan.step), donate=True)
    batches = training.batches()
    state = kd.with_skip_count(plan.init(jax.random.key(0), next(batches)))
    on_device = jax.device_put(variables)
    for _ in range(1000):
        state, _ = step(state, kd.Teacher(on_device), next(batches))
    assert int(state.step) == 1000
    for copy in (variables, on_device, placed.generator):
        assert faults.digest(copy) == before
    assert faults.digest(state.ema) != faults.digest(
        plan.init(jax.random.key(0), next(batches)).ema
    )
