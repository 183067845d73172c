"""Parallel networks equal the separate networks, and CycleGAN's losses are those of its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import shrinking
from selection import quick

import kd_jax as kd
from kd_jax import pruning
from kd_jax.core import architecture
from kd_jax.core.network import Network
from kd_jax.models import pair, translation

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SHAPE = (16, 16, 3)


def networks():
    generators = [translation.resnet_generator(width=width, blocks=1) for width in (2, 3)]
    discriminators = [translation.patch_discriminator(width=width, layers=1) for width in (2, 3)]
    return generators, discriminators


def images(batch=3):
    return jnp.asarray(RNG.uniform(-1, 1, (batch, 2, *SHAPE)), jnp.float32)


def test_each_network_reads_its_own_images():
    x = images()
    for one, other in networks():
        both = pair.parallel(one, other)
        variables = both.init(KEY, x)
        outputs, taps, _ = both.apply(variables, x, train=False)
        for index, (name, network) in enumerate((("first", one), ("second", other))):
            own = {kind: tree[name] for kind, tree in variables.items() if name in tree}
            expected, expected_taps, _ = network.apply(own, x[:, index])
            np.testing.assert_allclose(outputs[:, index], expected, atol=1e-6)
            for tap, feature in expected_taps.items():
                np.testing.assert_allclose(taps[f"{name}/{tap}"], feature, atol=1e-6)
        described = architecture.describe(both, x)
        rebuilt = architecture.rebuild(described).network
        np.testing.assert_array_equal(rebuilt.apply(variables, x)[0], outputs)


def test_a_network_used_twice_has_two_sets_of_variables():
    x = images()
    for network in (translation.resnet_generator(width=2, blocks=1), networks()[1][0]):
        both = pair.parallel(network, network)
        variables = both.init(KEY, x)
        assert set(variables["params"]) == {"first", "second"}
        kernels = [variables["params"][name] for name in ("first", "second")]
        assert jax.tree.structure(kernels[0]) == jax.tree.structure(kernels[1])
        assert not np.array_equal(*(jax.tree.leaves(k)[-1] for k in kernels))


def test_networks_that_cannot_be_parallel_raise():
    (one, _), _ = networks()
    with pytest.raises(ValueError, match="the second network"):
        pair.parallel(one, Network(lambda key: {}, lambda v: ()))
    grey = translation.resnet_generator(width=2, blocks=1, channels=1)
    with pytest.raises(ValueError, match=r"shapes \(1, 16, 16, 3\) and \(1, 16, 16, 1\)"):
        pair.parallel(one, grey).init(KEY, images(1))
    with pytest.raises(ValueError, match=r"inputs \[B, 2, ...\] are needed"):
        pair.parallel(one, one).init(KEY, images(1)[:, 0])


def parallel_with_axes(teacher, student):
    describe = pair.pair_axes(*[translation.resnet_generator_axes] * 2)
    return pair.parallel(*teacher), pair.parallel(*student), describe


def generators(*settings):
    return [translation.resnet_generator(width, blocks=1, **more) for width, more in settings]


def test_a_pair_of_generators_is_pruned():
    """To a different width for each generator; one is separable and one is not."""
    teacher = generators((4, {"separable": True}), (4, {}))
    student = generators((2, {"separable": True}), (3, {}))
    *networks, describe = parallel_with_axes(teacher, student)
    shrinking.check_student(*networks, describe, images(1))
    shrinking.check_dead_channels(*networks, describe, images(1))


def test_at_full_width_the_student_equals_the_teacher():
    teacher = generators((2, {}), (3, {}))
    both, same, describe = parallel_with_axes(teacher, teacher)
    x = images(2)
    variables = shrinking.drawn(both, x)
    axes = describe(variables)
    like = jax.eval_shape(same.init, KEY, x)
    scores = pruning.magnitude(variables, axes)
    assert set(scores) == {
        f"{name}/{group}"
        for name in ("first", "second")
        for group in ("stem", "down_0", "down_1", "block_0/hidden", "up_0", "up_1")
    }
    small = pruning.from_teacher(variables, axes, scores, like)
    np.testing.assert_array_equal(
        shrinking.output(same, small, x), shrinking.output(both, variables, x)
    )


def test_axes_of_a_single_network_raise():
    one = translation.resnet_generator(width=2, blocks=1)
    describe = pair.pair_axes(*[translation.resnet_generator_axes] * 2)
    with pytest.raises(ValueError, match="are not those of such a network"):
        describe(jax.eval_shape(one.init, KEY, images(1)[:, 0]))


def cyclegan(pool):
    generators, discriminators = networks()
    nets = kd.Networks(pair.parallel(*generators), pair.parallel(*discriminators))
    plan = kd.methods.cyclegan(SHAPE, pool=pool)
    parts = {
        "networks": nets,
        "optimizers": kd.PerNetwork(optax.sgd(1e-2), optax.sgd(1e-2)),
        "task": kd.tasks.unpaired(),
        "losses": kd.PerNetwork(plan.generator, plan.discriminator),
    }
    return generators, discriminators, parts


@pytest.mark.parametrize("pool", quick([2, 0]))
def test_the_losses_by_hand(pool):
    """The sums of Zhu et al., eq. 1 to 3, with least squares, in the first step."""
    generators, discriminators, parts = cyclegan(pool)
    a, b = images(2).swapaxes(0, 1)
    batch = {"first": a, "second": b}
    state = kd.init_state(kd.Setup(**parts), KEY, batch)
    params = state.generator.variables["params"]

    def translate(index, x):
        name = ("first", "second")[index]
        return np.asarray(generators[index].apply({"params": params[name]}, x)[0], np.float64)

    def discriminate(variables, index, x):
        own = {kind: tree[("first", "second")[index]] for kind, tree in variables.items()}
        scores = discriminators[index].apply(own, jnp.asarray(x, jnp.float32), train=True)[0]
        return np.asarray(scores, np.float64)

    fake_b, fake_a = translate(0, a), translate(1, b)
    after, metrics = jax.jit(kd.make_train_step(kd.Setup(**parts)))(state, None, batch)
    before = state.discriminator.variables
    d_loss = sum(
        ((discriminate(before, index, real) - 1) ** 2).mean() / 2
        + (discriminate(before, index, fake) ** 2).mean() / 2
        for index, (real, fake) in enumerate(((b, fake_b), (a, fake_a)))
    )
    assert float(metrics["d/adversarial"]) == pytest.approx(d_loss, rel=1e-4)
    updated = after.discriminator.variables  # the generator is updated second
    g_loss = sum(
        ((discriminate(updated, i, x) - 1) ** 2).mean() for i, x in enumerate((fake_b, fake_a))
    )
    assert float(metrics["g/adversarial"]) == pytest.approx(g_loss, rel=1e-4)
    cycle = np.abs(translate(1, fake_b) - a).mean() + np.abs(translate(0, fake_a) - b).mean()
    assert float(metrics["g/cycle"]) == pytest.approx(cycle, rel=1e-4)
    identity = np.abs(translate(0, b) - b).mean() + np.abs(translate(1, a) - a).mean()
    assert float(metrics["g/identity"]) == pytest.approx(identity, rel=1e-4)


def test_the_pool_is_part_of_the_train_state():
    _, _, parts = cyclegan(3)
    batch = {"first": images(2)[:, 0], "second": images(2)[:, 1]}
    state = kd.init_state(kd.Setup(**parts), KEY, batch)
    step = jax.jit(kd.make_train_step(kd.Setup(**parts)))
    for count in (2, 3, 3):
        state, _ = step(state, None, batch)
        pools = state.terms.discriminator["adversarial"].state
        assert pools.num_images.tolist() == [count, count]
        assert pools.images.shape == (2, 3, *SHAPE)
    assert np.abs(pools.images).max() <= 1
