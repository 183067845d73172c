"""A training that is saved on some devices resumes on others."""

import itertools

import faults
import jax
import numpy as np
import pytest
import training
from selection import quick

import kd_jax as kd
from kd_jax.core.mesh import shardings
from kd_jax.train.checkpoint import Checkpoints

RULES = {"replicated": kd.replicated, "sharded": kd.fully_sharded(min_size=16)}
PLACES = [(1, "replicated"), (2, "replicated"), (2, "sharded"), (4, "replicated"), (4, "sharded")]


def mesh_of(devices, rule):
    model = 2 if rule == "sharded" else 1
    return kd.make_mesh(devices // model, model, jax.devices()[:devices])


def losses(state, plan, mesh, rule, batches, steps):
    """The total losses `[steps, 2]` of both networks, and the state after these steps."""
    step = kd.compile_step(plan.step, mesh, RULES[rule])
    teacher = kd.place(plan.teacher, mesh)
    totals = []
    for _ in range(steps):
        state, metrics = step(state, teacher, kd.place_batch(next(batches), mesh))
        totals.append([float(metrics["g/total"]), float(metrics["d/total"])])
    return np.array(totals), state


@pytest.mark.parametrize(
    ("before", "after"),
    quick(
        itertools.permutations(PLACES, 2),
        {(PLACES[0], PLACES[4]), (PLACES[2], PLACES[3])}.__contains__,
    ),
    ids=str,
)
def test_resuming_on_other_devices(tmp_path, before, after):
    plan, batches = training.training_plan(100), training.batches()
    example = next(training.batches())

    def init():
        return plan.init(jax.random.key(3), example)

    (devices, rule), (others, other_rule) = before, after
    mesh, other_mesh = mesh_of(devices, rule), mesh_of(others, other_rule)
    state = kd.initialize(init, mesh, RULES[rule])
    _, state = losses(state, plan, mesh, rule, batches, 5)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(5, state, batches.get_state())
    checkpoints.close()
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init),
        shardings(jax.eval_shape(init), other_mesh, RULES[other_rule]),
    )
    reader = Checkpoints(tmp_path, {})
    restored, position = reader.restore(like)
    reader.close()
    assert faults.digest(restored) == faults.digest(state)
    for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert leaf.sharding == expected.sharding
    resumed = training.batches()
    resumed.set_state(position)
    losses_before, _ = losses(state, plan, mesh, rule, batches, 20)
    losses_after, _ = losses(restored, plan, other_mesh, other_rule, resumed, 20)
    np.testing.assert_allclose(losses_after, losses_before, rtol=1e-4)


def test_another_mesh_requires_allow_changes(tmp_path):
    """Experiments do not resume on another mesh, which changes rounding, without allow_changes."""
    from experiments import digits, harness

    config = digits.get_config("tiny")
    harness.check_workdir(tmp_path / "run", config, True)
    config.mesh.data = 2
    with pytest.raises(harness.UsageError, match=r"mesh\.data is 1 there, 2 here .*allow_changes"):
        harness.check_workdir(tmp_path / "run", config, True)
    config.run.allow_changes = True
    harness.check_workdir(tmp_path / "run", config, True)
