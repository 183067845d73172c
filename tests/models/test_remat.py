"""Rematerialised networks: the same paths, outputs and gradients; the blocks are checkpointed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax as kd
from kd_jax.core import architecture
from kd_jax.models import biggan, biggan_deep, dcgan, stylegan2, stylegan3

Z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 10)), jnp.float32)
LABELS = jnp.array([0, 2])
IMAGES = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
SMALL = {"channel_base": 64, "channel_max": 8}
BIGGAN = {"classes": 3, "shared": 4, "attention": (16,)}
D_BIGGAN = {"classes": 3, "attention": (16,)}
LAYERS = {"num_layers": 5, "num_critical": 1, "margin_size": 2, "latent": 10, "style": 10}


def _case(factory, *arguments, inputs, blocks, **options):
    return lambda remat: factory(*arguments, remat=remat, **options), inputs, blocks


# The network, its inputs, and the number of checkpointed blocks.
CASES = {
    "dcgan": _case(dcgan.generator, 32, 3, classes=3, depth=1, inputs=(Z, LABELS), blocks=6),
    "dcgan, discriminator": _case(
        dcgan.discriminator, 32, 3, classes=3, depth=1, inputs=(IMAGES, LABELS), blocks=6
    ),
    "stylegan2": _case(stylegan2.generator, 32, latent=10, style=9, inputs=(Z,), blocks=4, **SMALL),
    "stylegan2, resnet": _case(
        stylegan2.generator, 32, latent=10, style=9, architecture="resnet", style_mixing=0.5,
        inputs=(Z,), blocks=4, **SMALL,
    ),
    "stylegan2, discriminator": _case(
        stylegan2.discriminator, 32, classes=3, inputs=(IMAGES, LABELS), blocks=3, **SMALL
    ),
    "stylegan3": _case(stylegan3.generator, 16, inputs=(Z,), blocks=6, **LAYERS, **SMALL),
    "biggan": _case(biggan.generator, 32, 8, inputs=(Z[:, :8], LABELS), blocks=4, **BIGGAN),
    "biggan, discriminator": _case(
        biggan.discriminator, 32, 8, inputs=(IMAGES, LABELS), blocks=5, **D_BIGGAN
    ),
    "biggan_deep": _case(biggan_deep.generator, 32, 8, inputs=(Z, LABELS), blocks=7, **BIGGAN),
    "biggan_deep, discriminator": _case(
        biggan_deep.discriminator, 32, 8, inputs=(IMAGES, LABELS), blocks=7, **D_BIGGAN
    ),
}  # fmt: skip


def _loss(network):
    """The sum of squares of the output and of every tap, and the variables after the pass."""

    def loss(variables, *inputs):
        output, taps, after = network.apply(variables, *inputs, train=True, rngs=jax.random.key(1))
        features = [output, *taps.values()]
        total = sum((x.astype(jnp.float32) ** 2).mean() for x in features)
        return total, (output, taps, after)

    return loss


SLOW = (
    "stylegan2",
    "stylegan2, resnet",
    "stylegan3",
    "biggan",
    "biggan_deep",
    "biggan_deep, discriminator",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)
def test_outputs_and_gradients_are_unchanged(name):
    make, inputs, _ = CASES[name]
    variables = make(False).init(jax.random.key(0), *inputs)

    def evaluate(network):
        def loss(params):
            return _loss(network)({**variables, "params": params}, *inputs)

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    (grads, results), (expected_grads, expected) = evaluate(make(True)), evaluate(make(False))
    assert jax.tree.structure(results) == jax.tree.structure(expected)
    _assert_close(results, expected, atol=2e-5)
    # Some gradients are 0 up to rounding, such as that of a bias before a normalisation.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    assert largest > 1e-3
    _assert_close(grads, expected_grads, atol=2e-5 * largest)


def _assert_close(actual, expected, atol):
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, one), other in zip(leaves, jax.tree.leaves(actual), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_parameter_paths_are_unchanged(name):
    make, inputs, _ = CASES[name]
    plain, remat = (
        kd.core.network.by_path(jax.eval_shape(make(flag).init, jax.random.key(0), *inputs))
        for flag in (False, True)
    )
    assert remat == plain


@pytest.mark.parametrize("name", ["dcgan", "stylegan2, discriminator"])
def test_initial_values_are_unchanged(name):
    make, inputs, _ = CASES[name]
    plain, remat = (jax.jit(make(f).init)(jax.random.key(0), *inputs) for f in (False, True))
    jax.tree.map(np.testing.assert_array_equal, plain, remat)


@pytest.mark.parametrize("name", CASES)
def test_every_block_is_checkpointed(name):
    make, inputs, blocks = CASES[name]
    for remat, count in ((False, 0), (True, blocks)):
        network = make(remat)
        variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
        program = jax.make_jaxpr(_loss(network))(variables, *inputs)
        names = [equation.primitive.name for equation in program.eqns]
        assert names.count("remat2") + names.count("checkpoint") == count


@pytest.mark.parametrize("name", CASES)
def test_less_is_stored_for_the_gradient(name):
    make, inputs, _ = CASES[name]
    sizes = []
    for remat in (False, True):
        network = make(remat)
        variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)

        def stored(variables, *inputs, network=network):
            def output(params):
                variables_ = {**variables, "params": params}
                return network.apply(variables_, *inputs, train=True)[0].sum()

            return jax.vjp(output, variables["params"])[1]

        residuals = jax.tree.leaves(jax.eval_shape(stored, variables, *inputs))
        inputs_size = sum(leaf.size for leaf in jax.tree.leaves(variables))
        sizes.append(sum(leaf.size for leaf in residuals) - inputs_size)
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize("name", ["dcgan", "stylegan2"])
def test_second_derivatives(name):
    make, inputs, _ = CASES[f"{name}, discriminator"]
    variables = make(False).init(jax.random.key(0), *inputs)

    def gradient(network):
        def penalty(variables):
            def score(images):
                return network.apply(variables, images, *inputs[1:], train=True)[0].sum()

            return (jax.grad(score)(inputs[0]) ** 2).mean()

        return jax.jit(jax.grad(penalty))(variables)

    plain, remat = gradient(make(False)), gradient(make(True))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * np.abs(one).max() + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["const", "none", "random", "arrays"])
def test_noise_inputs_of_stylegan2(noise):
    make, inputs, _ = CASES["stylegan2"]
    variables = make(False).init(jax.random.key(0), *inputs)
    if noise == "arrays":
        sides = [4, 8, 8, 16, 16, 32, 32]
        noise = [jax.random.normal(jax.random.key(side), (2, side, side, 1)) for side in sides]
    plain, remat = (
        make(flag).apply(variables, *inputs, noise=noise, rngs=jax.random.key(1))[0]
        for flag in (False, True)
    )
    np.testing.assert_allclose(remat, plain, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_describe_the_option(name):
    make, inputs, _ = CASES[name]
    description = architecture.describe(make(True), *inputs)
    assert architecture.rebuild(description).network.module == make(True).module
    # Descriptions in checkpoints from before the option have no such field.
    del description["module"]["fields"]["remat"]
    assert architecture.rebuild(description).network.module == make(False).module
