"""A training saved on some devices goes on on others."""

import itertools

import faults
import jax
import numpy as np
import pytest
import training
from selection import quick

import kd_jax as kd
from kd_jax.checkpoint import Checkpoints
from kd_jax.sharding import shardings

RULES = {"replicated": kd.replicated, "sharded": kd.fully_sharded(min_size=16)}
PLACES = [(1, "replicated"), (2, "replicated"), (2, "sharded"), (4, "replicated"), (4, "sharded")]


def mesh_of(devices, rule):
    model = 2 if rule == "sharded" else 1
    return kd.make_mesh(devices // model, model, jax.devices()[:devices])


def losses(state, made, mesh, rule, batches, steps):
    """The total losses of so many steps, and the state after them."""
    step = kd.compile_step(made.step, mesh, RULES[rule])
    teacher = kd.place(made.teacher, mesh)
    found = []
    for _ in range(steps):
        state, metrics = step(state, teacher, kd.place_batch(next(batches), mesh))
        found.append([float(metrics["g/total"]), float(metrics["d/total"])])
    return np.array(found), state


@pytest.mark.parametrize(
    ("before", "after"),
    quick(
        itertools.permutations(PLACES, 2),
        {(PLACES[0], PLACES[4]), (PLACES[2], PLACES[3])}.__contains__,
    ),
    ids=str,
)
def test_other_devices(tmp_path, before, after):
    made, batches = training.training_plan(100), training.batches()
    example = next(training.batches())

    def init():
        return made.init(jax.random.key(3), example)

    (devices, rule), (others, other_rule) = before, after
    mesh, other_mesh = mesh_of(devices, rule), mesh_of(others, other_rule)
    state = kd.initialize(init, mesh, RULES[rule])
    _, state = losses(state, made, mesh, rule, batches, 5)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(5, state, batches.get_state())
    checkpoints.close()
    like = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        jax.eval_shape(init),
        shardings(jax.eval_shape(init), other_mesh, RULES[other_rule]),
    )
    reader = Checkpoints(tmp_path, {})
    restored, position = reader.restore(like)
    reader.close()
    assert faults.digest(restored) == faults.digest(state)
    for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert leaf.sharding == expected.sharding
    again = training.batches()
    again.set_state(position)
    here, _ = losses(state, made, mesh, rule, batches, 20)
    there, _ = losses(restored, made, other_mesh, other_rule, again, 20)
    np.testing.assert_allclose(there, here, rtol=1e-4)


def test_another_mesh_needs_leave(tmp_path):
    """The experiments refuse to go on with other bits unless they are told to."""
    from experiments import digits, harness

    config = digits.get_config("tiny")
    harness.check_workdir(tmp_path / "run", config, True)
    config.mesh.data = 2
    with pytest.raises(harness.UsageError, match=r"mesh\.data is 1 there, 2 here .*allow_changes"):
        harness.check_workdir(tmp_path / "run", config, True)
    config.run.allow_changes = True
    harness.check_workdir(tmp_path / "run", config, True)
