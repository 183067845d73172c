"""A teacher that does not fit is refused before anything is compiled or written."""

import faults
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training

import kd_jax as kd
from experiments import harness


def changed(path, value):
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
        lambda: changed(("Dense_1", "kernel"), np.zeros((8, 9), np.float32)),
        rf"the teacher: {KERNEL} is float32 \(8, 9\), and float32 \(8, 8\) in the network",
    ),
    "dtype": (
        lambda: changed(("Dense_1", "kernel"), np.zeros((8, 8), np.float16)),
        rf"the teacher: {KERNEL} is float16 \(8, 8\), and float32 \(8, 8\)",
    ),
    "extra key": (
        lambda: changed(("Dense_7", "kernel"), np.zeros((8, 8), np.float32)),
        r"the teacher has params/Dense_7/kernel, which the network does not have",
    ),
    "missing key": (
        lambda: changed(("Dense_1", "kernel"), None),
        rf"the teacher has no {KERNEL}, which the network has",
    ),
    "latent size": (
        lambda: training.teacher_variables(latent=9),
        r"the teacher: params/Dense_0/kernel is float32 \(9, 8\), and float32 \(4, 8\) in the "
        r"network with inputs of \(4, 4\)",
    ),
}


def refused(tmp_path, monkeypatch, message, **options):
    """Trains, and sees that it is refused, that no step was compiled and nothing written."""

    def compile_step(step, *args, **kwargs):
        class Step:
            def __call__(self, *_):
                raise AssertionError("a step was called")

            eval_shape = staticmethod(lambda *_: None)

        return Step()

    monkeypatch.setattr(harness, "compile_step", compile_step)
    with pytest.raises(harness.UsageError, match=message) as error:
        training.train(tmp_path / "run", training.training_plan(4, **options), training.batches())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", CASES)
def test_its_variables(tmp_path, monkeypatch, name):
    make, message = CASES[name]
    refused(tmp_path, monkeypatch, message, teacher=make())


@pytest.mark.parametrize(
    ("units", "message"),
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
def test_its_units(tmp_path, monkeypatch, units, message):
    network = training.TEACHER.generator

    def apply(variables, *inputs, **options):
        image, taps, variables = network.apply(variables, *inputs, **options)
        return units(image), taps, variables

    teacher = kd.PerNetwork(network._replace(apply=apply), None)
    refused(
        tmp_path, monkeypatch, message, teacher=training.teacher_variables(),
        nets=kd.Networks(*training.STUDENT, teacher=teacher.generator),
    )  # fmt: skip


def test_the_teacher_is_the_same_after_a_thousand_steps(tmp_path):
    variables = jax.device_get(training.teacher_variables())
    before = faults.digest(variables)
    made = training.training_plan(1000, teacher=variables)
    placed = kd.place(made.teacher, kd.make_mesh(data=2, devices=jax.devices()[:2]))
    step = kd.compile_step(kd.skip_nonfinite(made.step), donate=True)
    batches = training.batches()
    state = made.init(jax.random.key(0), next(batches))
    held = jax.device_put(variables)
    for _ in range(1000):
        state, _ = step(state, kd.Teacher(held), next(batches))
    assert int(state.step) == 1000
    for copy in (variables, held, placed.generator):
        assert faults.digest(copy) == before
    assert faults.digest(state.ema) != faults.digest(
        made.init(jax.random.key(0), next(batches)).ema
    )
