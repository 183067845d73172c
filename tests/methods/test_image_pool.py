"""The pool of generated images: every output is a previous or current input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.methods import image_pool

KEY = jax.random.key(0)


def fill(size, batches, batch=4):
    """Passes numbered images through a pool: `(inputs, outputs, pool)`."""
    query = jax.jit(image_pool.query)
    state, inputs, outputs = image_pool.init(size, (2, 1)), [], []
    for index in range(batches):
        numbers = index * batch + jnp.arange(batch, dtype=jnp.float32) + 1
        images = jnp.broadcast_to(numbers[:, None, None], (batch, 2, 1))
        result, state = query(jax.random.fold_in(KEY, index), state, images)
        assert (result == result[:, :1]).all()  # whole images
        inputs += numbers.tolist()
        outputs += result[:, 0, 0].tolist()
    return inputs, outputs, state


def test_until_the_pool_is_full_images_are_returned_and_stored():
    inputs, outputs, state = fill(12, 3)
    assert outputs == inputs
    assert state.images[:, 0, 0].tolist() == inputs
    assert int(state.num_images) == 12


def test_every_image_is_returned_or_stored_in_a_full_pool():
    """A swap takes one image out and one in, so only the first images are returned twice."""
    inputs, outputs, state = fill(10, 100)
    stored = state.images[:, 0, 0].tolist()
    assert sorted(inputs + inputs[:10]) == sorted(outputs + stored)
    assert int(state.num_images) == 10


def test_half_of_the_outputs_are_uniform_draws_from_the_pool():
    inputs, outputs, _ = fill(10, 250)
    later = slice(100, None)
    ages = np.array(inputs[later]) - np.array(outputs[later])
    assert 0.45 < (ages > 0).mean() < 0.55
    # A slot is replaced with probability 1 / 20 per image: ages are geometric with mean 20.
    assert 16 < ages[ages > 0].mean() < 24


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: image_pool.init(0, (2,)), "a pool of 0 images"),
        (
            lambda: image_pool.query(KEY, image_pool.init(3, (2,)), jnp.zeros((4, 3))),
            r"\(3,\) do not fit a pool of \(2,\)",
        ),
    ],
)
def test_invalid_arguments_raise(call, match):
    with pytest.raises(ValueError, match=match):
        call()
