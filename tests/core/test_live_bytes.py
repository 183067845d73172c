"""The estimate of a step's temporaries in `benchmarks.presets`, for programs counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.presets import live_bytes

X = jax.ShapeDtypeStruct((10, 10), jnp.float32)
SIZE = 400  # bytes of an array like X


def _live(function, *arguments, outputs=True):
    return live_bytes(jax.make_jaxpr(function)(*arguments), outputs)


def _chain(x):
    for _ in range(5):
        x = x @ x
    return x


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (lambda x: x @ x, 1),
        (_chain, 2),  # an input and an output of a product
        (lambda x: jnp.sin(x) + jnp.cos(x) * 2, 1),  # fused into the result
        (lambda x: jnp.sin(x) @ jnp.cos(x), 3),  # products read stored values
        (lambda x: (x @ x, x @ x.T, x.T @ x), 4),  # of the transposes, one at a time
        (lambda x: [x @ x, jnp.sin(x @ x)][0], 1),  # nothing for a result that is not read
        (lambda x: jax.jit(lambda y: y @ y)(x @ x) @ x, 2),  # a call is not an operation
        (lambda x: jax.checkpoint(_chain)(x), 2),
        # The source of a fused value is live until the last operation that reads the value.
        (lambda x: (lambda y: _chain(y) + jnp.sin(y))(x @ x), 3),
    ],
)
def test_programs_by_hand(function, arrays):
    assert _live(function, X) == arrays * SIZE


def test_reductions_read_fused_values():
    assert _live(lambda x: jnp.sin(x).sum(), X) == 4
    assert _live(lambda x: (jnp.sin(x @ x) ** 2).sum(), X) == SIZE + 4


def test_results_may_be_excluded():
    assert _live(lambda x: (_chain(x), x @ x), X, outputs=False) == 2 * SIZE


def test_loops_count_an_iteration():
    def loop(x):
        return jax.lax.scan(lambda c, _: (_chain(c), None), x, length=50)[0]

    # The loop's result, and of an iteration a product's input and output.
    assert _live(loop, X) == 3 * SIZE

    def branches(x):
        return jax.lax.cond(x[0, 0] > 0, _chain, lambda x: x, x)

    assert 3 * SIZE <= _live(branches, X) <= 3 * SIZE + 16


def test_rematerialisation_and_its_gradient():
    def loss(x, block):
        for _ in range(8):
            x = block(x)
        return x.sum()

    def block(x):
        return _chain(jnp.sin(x))

    plain, remat = (
        _live(jax.grad(lambda x, f=f: loss(x, f)), X) for f in (block, jax.checkpoint(block))
    )
    assert plain > 8 * 5 * SIZE  # of each block the sine and four products
    assert remat < 0.6 * plain
