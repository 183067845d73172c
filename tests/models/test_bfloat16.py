"""Every architecture with bfloat16 activations: its dtypes, and its distance from float32.

Outputs (images, scores, logits) are float32, as are parameters, gradients and the statistics of
norms; taps have the computation dtype or float32.
"""

import math
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, draw
from selection import quick

ROUNDING = 2.0**-9
"""The largest relative error of rounding to bfloat16, which has 8 significant bits."""

BOUND = 4 * math.sqrt(3 * 30) * ROUNDING
"""Of the relative error of an output. A layer rounds its inputs, its weights and its result; the
roundings of 30 layers, independent of each other, add up to `sqrt(3 * 30)` of one. Normalisations
with few examples and activations may amplify them: a factor of 4."""

FAST = ("dcgan generator", "dcgan discriminator", "mlp generator", "patch discriminator")


def _inputs(shapes):
    rng = np.random.default_rng(0)
    return [draw(rng, shape) for shape in shapes]


@cache
def _variables(name):
    factory, shapes = FAMILIES[name]
    return jax.jit(factory(dtype=jnp.float32).init)(jax.random.key(0), *_inputs(shapes))


def _evaluate(network, variables, inputs):
    """The output and the variables after a training pass, and the gradients of a loss."""

    def loss(params):
        output, taps, after = network.apply(
            {**variables, "params": params}, *inputs, train=True, rngs=jax.random.key(1)
        )
        return (output**2).mean(), (output, taps, after)

    grads, (output, taps, after) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return output, taps, after, grads


@pytest.mark.parametrize("name", quick(FAMILIES, lambda name: name in FAST))
def test_outputs_are_near_to_those_of_float32(name):
    factory, shapes = FAMILIES[name]
    inputs, variables = _inputs(shapes), _variables(name)
    expected, *_ = _evaluate(factory(dtype=jnp.float32), variables, inputs)
    output, taps, after, grads = _evaluate(factory(dtype=jnp.bfloat16), variables, inputs)
    assert output.dtype == jnp.float32
    error = np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2))
    assert ROUNDING / 100 < error < BOUND
    for tree in (after, grads):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            assert leaf.dtype == jnp.float32, path
            assert np.isfinite(leaf).all(), path
    assert {leaf.dtype for leaf in taps.values()} <= {np.dtype(jnp.bfloat16), np.dtype("float32")}
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 0


_PRODUCT = re.compile(
    r"stablehlo\.(convolution|dot_general).*: "
    r"\(tensor<([^>]*)>, tensor<([^>]*)>\) -> tensor<([^>]*)>"
)


def _products(text):
    """The multiply-accumulates of a program's convolutions and matrix products, by dtype."""
    counts = {}
    for kind, *types in _PRODUCT.findall(text):
        shapes = [[int(length) for length in t.split("x")[:-1]] for t in types]
        first, second, result = (math.prod(shape) for shape in shapes)
        if kind == "convolution":
            count = result * second / max(shapes[1][-1], 1)
        else:  # [m, k] x [k, n] -> [m, n]
            count = math.sqrt(first * second * result)
        dtypes = {t.split("x")[-1] for t in types[:2]}
        dtype = dtypes.pop() if len(dtypes) == 1 else "mixed"
        counts[dtype] = counts.get(dtype, 0) + count
    return counts


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_compute_in_bfloat16(name):
    factory, shapes = FAMILIES[name]
    inputs = _inputs(shapes)

    def program(dtype):
        network = factory(dtype=dtype)
        variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
        call = jax.jit(lambda v, *x: network.apply(v, *x)[:2])
        return _products(call.lower(variables, *inputs).as_text())

    counts = program(jnp.bfloat16)
    # In float32 are the mapping networks of styles, power iterations, and last layers.
    assert counts["bf16"] > 0.9 * sum(counts.values())
    assert set(program(jnp.float32)) == {"f32"}
