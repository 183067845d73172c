"""What any description of channels has to allow, for the tests of each architecture."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import students
from kd_jax.channels import Reads, group_widths, parts, path_name

KEY = jax.random.key(0)


def random_like(shapes, seed=0):
    """Variables of which every value matters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


def drawn(network, *inputs, seed=0):
    return random_like(jax.eval_shape(network.init, KEY, *inputs), seed)


def output(network, variables, *inputs, **options):
    """What the network makes, compiled: that is quicker than one operation after another."""
    return np.asarray(jax.jit(partial(network.apply, **options))(variables, *inputs)[0])


def check_groups(network, describe, x, groups):
    """The description knows these widths, and keeping all of them is the identity."""
    shapes = jax.eval_shape(network.init, KEY, x)
    axes = describe(shapes)
    assert group_widths(shapes, axes) == groups
    kept = students.shrink(variables := random_like(shapes), axes, {})
    jax.tree.map(np.testing.assert_array_equal, kept, variables)


def check_student(teacher, student, describe, x):
    """The teacher's best channels have exactly the student's shapes."""
    variables = drawn(teacher, x)
    axes = describe(variables)
    like = jax.eval_shape(student.init, KEY, x)
    small = students.from_teacher(variables, axes, students.magnitude(variables, axes), like)
    shapes = jax.tree.map(lambda leaf: leaf.shape, small)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, like)


def check_dead_channels(teacher, student, describe, x):
    """Without the channels that nobody reads the network makes the same."""
    rng = np.random.default_rng(1)
    variables = drawn(teacher, x)
    axes = describe(variables)
    like = jax.eval_shape(student.init, KEY, x)
    widths, narrow = group_widths(variables, axes), group_widths(like, axes)
    kept = {g: np.sort(rng.permutation(n)[: narrow[g]]) for g, n in widths.items()}

    def kill(path, leaf):
        name = path_name(path)
        for index, axis in enumerate(axes[name]):
            if isinstance(axis, Reads):
                stays = np.concatenate(
                    [
                        np.isin(np.arange(widths[part]), kept[part])
                        if isinstance(part, str)
                        else np.ones(part, bool)
                        for part in parts(axis)
                    ]
                )
                others = [i for i in range(leaf.ndim) if i != index]
                leaf = jnp.where(np.expand_dims(stays, others), leaf, 0.0)
        return leaf

    dead = jax.tree_util.tree_map_with_path(kill, variables)
    small = students.shrink(dead, axes, kept)
    expected = output(teacher, dead, x)
    # Of the largest value: where the drawn weights make millions, the small ones are what is left
    # of cancelling them.
    largest = np.abs(expected).max()
    np.testing.assert_allclose(output(student, small, x) / largest, expected / largest, atol=1e-5)
