"""Checks of the channel axes, shared by the tests of each architecture."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import pruning
from kd_jax.core.axes import InputAxis, group_widths, parts, path_name

KEY = jax.random.key(0)


def random_like(shapes, seed=0):
    """Random variables of these shapes, all normally distributed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def drawn(network, *inputs, seed=0):
    """Random variables of a network."""
    return random_like(jax.eval_shape(network.init, KEY, *inputs), seed)


def output(network, variables, *inputs, **options):
    """The network's output; compiled, which is faster than eager execution."""
    return np.asarray(jax.jit(partial(network.apply, **options))(variables, *inputs)[0])


def check_groups(network, describe, x, groups):
    """The axes have groups of these widths, and pruning nothing is the identity."""
    shapes = jax.eval_shape(network.init, KEY, x)
    axes = describe(shapes)
    assert group_widths(shapes, axes) == groups
    unpruned = pruning.shrink(variables := random_like(shapes), axes, {})
    jax.tree.map(np.testing.assert_array_equal, unpruned, variables)


def check_student(teacher, student, describe, x):
    """The teacher pruned to its highest-scoring channels has exactly the student's shapes."""
    variables = drawn(teacher, x)
    axes = describe(variables)
    like = jax.eval_shape(student.init, KEY, x)
    small = pruning.from_teacher(variables, axes, pruning.magnitude(variables, axes), like)
    shapes = jax.tree.map(lambda leaf: leaf.shape, small)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, like)


def check_dead_channels(teacher, student, describe, x):
    """Removing channels that no layer reads preserves the output."""
    rng = np.random.default_rng(1)
    variables = drawn(teacher, x)
    axes = describe(variables)
    like = jax.eval_shape(student.init, KEY, x)
    widths, narrow = group_widths(variables, axes), group_widths(like, axes)
    channel_indices = {g: np.sort(rng.permutation(n)[: narrow[g]]) for g, n in widths.items()}

    def zero_unused(path, leaf):
        name = path_name(path)
        for index, axis in enumerate(axes[name]):
            if isinstance(axis, InputAxis):
                mask = np.concatenate(
                    [
                        np.isin(np.arange(widths[part]), channel_indices[part])
                        if isinstance(part, str)
                        else np.ones(part, bool)
                        for part in parts(axis)
                    ]
                )
                others = [i for i in range(leaf.ndim) if i != index]
                leaf = jnp.where(np.expand_dims(mask, others), leaf, 0.0)
        return leaf

    zeroed = jax.tree_util.tree_map_with_path(zero_unused, variables)
    small = pruning.shrink(zeroed, axes, channel_indices)
    expected = output(teacher, zeroed, x)
    # The tolerance is relative to the largest value: outputs can be in the millions, and small ones
    # are the result of cancellation.
    largest = np.abs(expected).max()
    np.testing.assert_allclose(output(student, small, x) / largest, expected / largest, atol=1e-5)
