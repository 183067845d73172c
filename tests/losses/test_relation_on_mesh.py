"""Losses of a batch sharded over devices are computed on the global batch."""

import inspect

import jax
import numpy as np
import pytest
from selection import quick

from kd_jax.core.mesh import make_mesh, place, place_batch
from kd_jax.losses import moments, relation

DEVICES, DIMENSIONS = 8, 6
NOT_LOSSES = {moments.moments}  # functions of a batch that are not losses
WITHOUT_BATCH_AXIS = {"mean", "second"}  # arguments whose first axis is not the batch


def public(module):
    return [
        value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    ]


EVERY_LOSS = [f for module in (relation, moments) for f in public(module) if f not in NOT_LOSSES]
every_loss = pytest.mark.parametrize("loss", EVERY_LOSS, ids=lambda f: f.__name__)


def example(loss, size):
    """Arrays for the arguments without a default: those sharded over devices, and the others."""
    rng = np.random.default_rng(0)
    parameters = inspect.signature(loss).parameters.values()
    names = [p.name for p in parameters if p.default is p.empty]
    sharded = {
        name: rng.normal(size=(size, DIMENSIONS)).astype(np.float32)
        for name in names
        if name not in WITHOUT_BATCH_AXIS
    }
    replicated = {
        name: rng.normal(size=DIMENSIONS).astype(np.float32)
        for name in names
        if name in WITHOUT_BATCH_AXIS
    }
    return sharded, replicated


def with_gradient(loss):
    return jax.jit(jax.value_and_grad(lambda sharded, replicated: loss(**sharded, **replicated)))


def distance(tree, other):
    """The largest difference of two gradients, relative to the largest entry of the second one."""
    scale = max(np.abs(leaf).max() for leaf in other.values())
    return max(np.abs(tree[name] - leaf).max() for name, leaf in other.items()) / scale


def test_the_losses_are_collected():
    assert {"similarity_preserving", "correlation", "moment_matching"} <= {
        f.__name__ for f in EVERY_LOSS
    }


@every_loss
@pytest.mark.parametrize("per_device", quick([2, 1, 4]))
def test_sharded_losses_match_the_global_batch(loss, per_device):
    sharded, replicated = example(loss, DEVICES * per_device)
    mesh = make_mesh(data=4, model=2)
    placed = place_batch(sharded, mesh)
    for leaf in placed.values():
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {per_device}
    value, gradient = with_gradient(loss)(placed, place(replicated, mesh))
    expected, expected_gradient = with_gradient(loss)(sharded, replicated)
    np.testing.assert_allclose(value, expected, rtol=5e-6)
    assert distance(gradient, expected_gradient) < 1e-5


@every_loss
def test_losses_of_separate_shards_differ(loss):
    # Shows that the test above can fail.
    per_device = 4
    sharded, replicated = example(loss, DEVICES * per_device)
    expected, expected_gradient = with_gradient(loss)(sharded, replicated)
    shards = {name: x.reshape(DEVICES, per_device, DIMENSIONS) for name, x in sharded.items()}
    values, gradients = jax.vmap(with_gradient(loss), in_axes=(0, None))(shards, replicated)
    assert abs(values.mean() - expected) > 0.01 * abs(expected)
    mean_gradient = {
        name: x.reshape(sharded[name].shape) / DEVICES for name, x in gradients.items()
    }
    assert distance(mean_gradient, expected_gradient) > 0.02
