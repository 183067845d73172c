"""Backward compatibility: a checkpoint of the first version, which all later versions must read.

`tests/kept/checkpoint-1` was written by `python tests/test_kept_checkpoint.py`. It is never
rewritten, since existing files must remain readable.
"""

import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import kd_jax as kd
from kd_jax.core.architecture import describe
from kd_jax.train.checkpoint import Checkpoints, load_generator, load_network

KEPT = Path(__file__).parent / "kept" / "checkpoint-1"
CONFIGURATION = {"width": 2, "seeds": [0]}
PAIR = kd.models.mlp.gan(4, 2, depth=1)
PARTS = {
    "networks": kd.Networks(PAIR.generator, PAIR.discriminator),
    "optimizers": kd.PerNetwork(optax.adam(1e-3), optax.adam(1e-3)),
    "task": kd.latents(3),
    "losses": kd.PerNetwork(
        {"g": kd.Term(lambda f, n: (-f.discriminator.fake_scores, n), init=lambda: jnp.ones(()))},
        {"d": kd.Term(lambda f: f.discriminator.fake_scores - f.discriminator.real_scores)},
    ),
}


def state():
    """A state with distinct values: each leaf's index plus multiples of 1/8."""
    like = jax.eval_shape(
        lambda: kd.with_skip_count(
            kd.init_state(kd.Setup(**PARTS), jax.random.key(5), {"image": jnp.zeros((2, 4, 4, 1))})
        )
    )
    leaves, structure = jax.tree.flatten(like)
    values = [
        jax.random.key(7)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.asarray(number + np.arange(leaf.size).reshape(leaf.shape) / 8, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, values)._replace(step=jnp.int32(3))


def test_the_state_is_restored(tmp_path):
    shutil.copytree(KEPT, tmp_path / "checkpoints")
    checkpoints = Checkpoints(
        tmp_path / "checkpoints", CONFIGURATION, allow_changes=True, log=lambda _: None
    )
    restored, data = checkpoints.restore(jax.eval_shape(state))
    checkpoints.close()
    assert data == {"batches": {"position": {"next_index": 3}}, "window": [{"g/g": 0.5}]}
    expected = state()
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


def test_the_generator_and_its_network_are_loaded():
    variables, configuration = load_generator(KEPT)
    assert configuration == CONFIGURATION
    expected = state().ema
    jax.tree.map(np.testing.assert_array_equal, variables, dict(expected))
    architecture, loaded = load_network(KEPT)
    z = jnp.ones((1, 3))
    np.testing.assert_array_equal(
        architecture.network.apply(loaded, z)[0], PAIR.generator.apply(expected, z)[0]
    )


if __name__ == "__main__":
    if KEPT.exists():
        sys.exit(f"{KEPT} already exists")
    writer = Checkpoints(
        KEPT, CONFIGURATION, architecture=describe(PAIR.generator, jnp.ones((1, 3)))
    )
    writer.save(3, state(), {"batches": {"position": {"next_index": 3}}, "window": [{"g/g": 0.5}]})
    writer.close()
