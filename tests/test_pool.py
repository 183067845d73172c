"""The pool of generated images: nothing is lost, and nothing is made up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import pool

KEY = jax.random.key(0)


def fill(size, batches, batch=4):
    """Numbered images through a pool: `(given, shown, pool)`."""
    exchange = jax.jit(pool.exchange)
    state, given, shown = pool.empty(size, (2, 1)), [], []
    for index in range(batches):
        numbers = index * batch + jnp.arange(batch, dtype=jnp.float32) + 1
        images = jnp.broadcast_to(numbers[:, None, None], (batch, 2, 1))
        found, state = exchange(jax.random.fold_in(KEY, index), state, images)
        assert (found == found[:, :1]).all()  # whole images
        given += numbers.tolist()
        shown += found[:, 0, 0].tolist()
    return given, shown, state


def test_while_there_is_room_what_is_made_is_shown():
    given, shown, state = fill(12, 3)
    assert shown == given
    assert state.images[:, 0, 0].tolist() == given
    assert int(state.filled) == 12


def test_every_image_is_shown_or_waits_once_it_is_full():
    """Each swap takes one out and one in, so that but for the first ones nothing is shown twice."""
    given, shown, state = fill(10, 100)
    waiting = state.images[:, 0, 0].tolist()
    assert sorted(given + given[:10]) == sorted(shown + waiting)
    assert int(state.filled) == 10


def test_half_of_what_is_shown_is_old_and_any_of_the_pool():
    given, shown, _ = fill(10, 250)
    later = slice(100, None)
    ages = np.array(given[later]) - np.array(shown[later])
    assert 0.45 < (ages > 0).mean() < 0.55
    # A place is taken with probability 1 / 20 for each image: ages are geometric, of mean 20.
    assert 16 < ages[ages > 0].mean() < 24


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pool.empty(0, (2,)), "a pool of 0 images"),
        (
            lambda: pool.exchange(KEY, pool.empty(3, (2,)), jnp.zeros((4, 3))),
            r"\(3,\) do not fit a pool of \(2,\)",
        ),
    ],
)
def test_what_does_not_fit(call, match):
    with pytest.raises(ValueError, match=match):
        call()
