"""Arguments of a compiled step: wrong types end in one line, before anything is traced."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import kd_jax as kd
from kd_jax.core import mesh as mesh_module
from kd_jax.model import Model

PAIR = kd.models.mlp.gan(4, 8, depth=1)
BATCH = {"image": np.zeros((8, 4, 4, 1), np.float32), "label": np.arange(8, dtype=np.int32)}
VARIABLES = PAIR.generator.init(jax.random.key(1), jnp.zeros((1, 4)))
TEACHER = kd.Teacher(VARIABLES)
MODEL = Model(PAIR.generator, VARIABLES, (), 0, True, {})
FLAX_STATE = train_state.TrainState.create(
    apply_fn=lambda: None, params=VARIABLES["params"], tx=optax.sgd(0.1)
)
SETUP = kd.Setup(
    kd.Networks(PAIR.generator, PAIR.discriminator, PAIR.generator),
    kd.PerNetwork(
        {"pixel": lambda f: ((f.student.output - f.teacher.output) ** 2).mean((1, 2, 3))},
        {"adv": lambda f: -f.discriminator.real_scores.reshape(-1)},
    ),
    kd.PerNetwork(optax.sgd(0.1), optax.sgd(0.1)),
    kd.latents(4),
)
STATE = kd.init_state(SETUP, jax.random.key(0), BATCH)

STEPS = {
    "alternating": kd.make_train_step(SETUP),
    "simultaneous": kd.make_simultaneous_step(SETUP),
    "wrapped": kd.skip_nonfinite(kd.self_distillation(kd.make_train_step(SETUP))),
    "several": kd.multi_step(kd.make_train_step(SETUP), 2),
    "online": kd.online_distillation(kd.make_train_step(SETUP), {"a": kd.make_train_step(SETUP)}),
}
WRONG = {
    "teacher: a model": (
        {"teacher": MODEL}, r"teacher_variables is a kd_jax\.Model.*Teacher\(teacher\.variables\)"
    ),
    "teacher: a network": (
        {"teacher": PAIR.generator}, r"teacher_variables is a kd_jax\.Network.*kd_jax\.Teacher\("
    ),
    "teacher: variables": ({"teacher": VARIABLES}, r"teacher_variables is a dict.*Teacher\("),
    "teacher: a model within": (
        {"teacher": kd.Teacher(MODEL)},
        r"teacher_variables\.generator is a kd_jax\.Model.*generator=teacher\.variables",
    ),
    "teacher: a network within": (
        {"teacher": kd.Teacher(VARIABLES, PAIR.discriminator)},
        r"teacher_variables\.discriminator is a kd_jax\.Network",
    ),
    "batch: an array": ({"batch": BATCH["image"]}, r"the batch is a ndarray of shape \(8, 4, 4"),
    "batch: a list": ({"batch": list(BATCH.values())}, r"the batch is a list.*dict of arrays"),
    "batch: an array of strings": (
        {"batch": {**BATCH, "name": np.array(["a"] * 8)}}, r"batch\['name'\] holds .*<U1"
    ),
    "batch: strings": ({"batch": {**BATCH, "name": ["a"] * 8}}, r"batch\['name'\] holds a str"),
    "state: of flax": ({"state": FLAX_STATE}, r"state is a flax\..*TrainState; .*init_state"),
    "state: a setup": ({"state": SETUP}, r"the state is a .*Setup; .*kd_jax\.TrainState"),
    "state: variables": ({"state": VARIABLES}, r"the state is a builtins\.dict; .*TrainState"),
}  # fmt: skip


def _state(name):
    states = {
        "wrapped": kd.with_skip_count(STATE),
        "online": kd.with_teachers(STATE, {"a": STATE}),
    }
    return states.get(name, STATE)


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("call", ["__call__", "lower", "trace", "eval_shape"])
def test_wrong_arguments_are_named(case, call):
    changes, message = WRONG[case]
    arguments = {"state": STATE, "teacher": TEACHER, "batch": BATCH, **changes}
    step = kd.compile_step(STEPS["alternating"])
    with pytest.raises(ValueError, match=message) as caught:
        getattr(step, call)(*arguments.values())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("mesh", [None, 2], ids=["one device", "mesh"])
def test_every_step_checks_them_and_accepts_right_ones(name, mesh):
    mesh = mesh and kd.make_mesh(data=mesh, devices=jax.devices()[:mesh])
    step = kd.compile_step(STEPS[name], mesh)
    with pytest.raises(ValueError, match=r"teacher_variables is a kd_jax\.Model"):
        step(_state(name), MODEL, BATCH)
    placed = kd.place(_state(name), mesh), kd.place(TEACHER, mesh), kd.place_batch(BATCH, mesh)
    shapes = step.eval_shape(*placed)
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(_state(name))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), placed)
    assert jax.tree.structure(step.eval_shape(*abstract)) == jax.tree.structure(shapes)


def test_a_call_is_the_step():
    expected = STEPS["alternating"](STATE, TEACHER, BATCH)[1]
    _, metrics = kd.compile_step(STEPS["alternating"])(
        state=STATE, teacher_variables=TEACHER, batch=BATCH
    )
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)


def test_numbers_and_nested_entries_are_accepted():
    def add(state, teacher, batch):
        return state + batch["scale"] * batch["pair"]["a"].sum(), {}

    step = kd.compile_step(add)  # a state of its own type
    key = jax.random.key(0)
    batch = {"scale": 2.0, "pair": {"a": np.ones(3, jnp.bfloat16)}, "key": key}
    assert step(jnp.float32(1.0), None, batch)[0] == 7.0


def test_no_argument_is_kept_alive():
    step = kd.compile_step(lambda state, teacher, batch: (state, {"m": batch["x"].sum()}))
    image = jnp.ones(3) * 2
    reference = weakref.ref(image)
    step(STATE, None, {"x": image})
    del image
    assert reference() is None


def test_arrays_of_a_valid_call_are_not_inspected(monkeypatch):
    # The cost of a check must not grow with the number of the state's or the teacher's leaves.
    monkeypatch.setattr(mesh_module, "non_numeric", pytest.fail)
    monkeypatch.setattr(jax.tree, "leaves", pytest.fail)
    mesh_module._check_arguments(STATE, TEACHER, jax.device_put(BATCH))
