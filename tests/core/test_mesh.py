"""The same training on one device and on eight, with each leaf sharded by the rule."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax import losses
from kd_jax.core.mesh import (
    BATCH,
    check_batch_size,
    compile_step,
    fully_sharded,
    initialize,
    make_mesh,
    place,
    place_batch,
    replicated,
    shardings,
)
from kd_jax.core.objective import Term
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import init_state
from kd_jax.core.step import g_step, make_train_step
from kd_jax.models import dcgan, mlp
from kd_jax.tasks import latents

EXAMPLES = 16
STEPS = 5
RNG = np.random.default_rng(0)
IMAGES = [
    {"image": RNG.uniform(-1, 1, size=(EXAMPLES, 16, 16, 1)).astype(np.float32)}
    for _ in range(STEPS)
]


def _relational_parts():
    """Batch norm, minibatch deviation and a relational loss: all need the global batch."""
    student = dcgan.gan(16, 2, channels=1, minibatch_stddev=True)
    teacher = dcgan.generator(16, 4, channels=1)
    g_terms = {
        "adv": Term(lambda f: losses.adversarial.nonsaturating_g(f.discriminator.fake_scores)),
        "relation": Term(
            lambda f: losses.relation.similarity_preserving(
                f.student.taps["8x8"], f.teacher.taps["8x8"]
            ),
            100.0,
        ),
    }
    d_terms = {
        "adv": Term(
            lambda f: losses.adversarial.minimax_d(
                f.discriminator.real_scores, f.discriminator.fake_scores
            )
        )
    }
    variables = Teacher(teacher.init(jax.random.key(1), jnp.zeros((1, 8))))
    return variables, {
        "networks": Networks(student.generator, student.discriminator, teacher),
        "optimizers": PerNetwork(optax.sgd(0.05, momentum=0.5), optax.sgd(0.05)),
        "task": latents(8),
        "losses": PerNetwork(g_terms, d_terms),
    }


def _train(mesh, rule=replicated):
    """The initial shardings, the last state and the last metrics."""
    teacher, parts = _relational_parts()
    batch = IMAGES[0]
    state = initialize(lambda: init_state(Setup(**parts), jax.random.key(0), batch), mesh, rule)
    teacher = place(teacher, mesh, rule)
    step = compile_step(make_train_step(Setup(**parts, ema=0.5)), mesh, rule)
    start = jax.tree.map(lambda leaf: leaf.sharding, state)
    for batch in IMAGES:
        state, metrics = step(state, teacher, place_batch(batch, mesh))
    return start, state, metrics


@pytest.fixture(scope="module")
def single():
    return _train(None)[1:]


def _assert_close(actual, expected):
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, one), other in zip(paths, jax.tree.leaves(actual), strict=True):
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=2e-5, err_msg=name)


def _specs(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_training_changes_the_state(single):
    # Otherwise the comparisons below would be vacuous.
    state, metrics = single
    _, parts = _relational_parts()
    first = jax.jit(lambda: init_state(Setup(**parts), jax.random.key(0), IMAGES[0]))()
    for old, new in zip(
        jax.tree.leaves((first.generator.variables, first.discriminator.variables["params"])),
        jax.tree.leaves((state.generator.variables, state.discriminator.variables["params"])),
        strict=True,
    ):
        assert np.abs(np.asarray(new - old)).max() > 1e-4
    assert metrics["g/relation"] > 1e-4


def test_training_on_eight_replicas_is_the_same(single):
    _, state, metrics = _train(make_mesh(data=8))
    _assert_close((state, metrics), single)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == 8


def test_fully_sharded_training_is_the_same(single):
    mesh = make_mesh(data=4, model=2)
    start, state, metrics = _train(mesh, fully_sharded(min_size=32))
    _assert_close((state, metrics), single)
    split = 0
    for (path, leaf), before in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(start), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(before, leaf.ndim), jax.tree_util.keystr(path)
        shard = leaf.addressable_shards[0].data
        assert shard.size in (leaf.size, leaf.size // 2)
        split += shard.size < leaf.size
    # The larger kernels: weights, averages and momentum, and the discriminator's weights.
    assert split >= 12
    kernel = state.generator.opt_state[0].trace["Conv_0"]["kernel"]  # [4, 4, 4, 2]
    assert kernel.shape == (4, 4, 4, 2)
    assert kernel.addressable_shards[0].data.shape == (4, 4, 2, 2)


def _mlp_parts():
    pair = mlp.gan(4, 8, depth=1)
    return {
        "networks": Networks(pair.generator, pair.discriminator),
        "optimizers": PerNetwork(optax.sgd(0.1), optax.sgd(0.1)),
        "task": latents(4),
        "losses": PerNetwork(
            {
                "adv": Term(
                    lambda f: losses.adversarial.nonsaturating_g(f.discriminator.fake_scores)
                )
            },
            {
                "adv": Term(
                    lambda f: losses.adversarial.minimax_d(
                        f.discriminator.real_scores, f.discriminator.fake_scores
                    )
                )
            },
        ),
    }


MLP_BATCH = {"image": RNG.uniform(-1, 1, size=(8, 4, 4, 1)).astype(np.float32)}


def test_a_custom_rule():
    paths = set()

    def rule(path, shape, mesh):
        paths.add(path)
        assert mesh.shape == {"data": 2, "model": 4}
        selected = path.endswith("params/Dense_1/kernel") and "discriminator" not in path
        return PartitionSpec(None, "model") if selected else PartitionSpec()

    mesh = make_mesh(model=4)
    parts = _mlp_parts()
    state = initialize(lambda: init_state(Setup(**parts), jax.random.key(0), MLP_BATCH), mesh, rule)
    step = compile_step(make_train_step(Setup(**parts)), mesh, rule)
    for _ in range(2):
        for field, shard in [("generator", (8, 4)), ("ema", (8, 4))]:
            variables = getattr(state, field)
            params = getattr(variables, "variables", variables)["params"]
            assert params["Dense_1"]["kernel"].addressable_shards[0].data.shape == shard
            assert params["Dense_0"]["kernel"].sharding.is_fully_replicated
        state, _ = step(state, None, place_batch(MLP_BATCH, mesh))
    assert "ema/params/Dense_1/kernel" in paths
    assert "generator/variables/params/Dense_0/bias" in paths
    assert "step" in paths


def test_a_state_is_the_same_on_every_mesh():
    parts = _mlp_parts()

    def init():
        return init_state(Setup(**parts), jax.random.key(0), MLP_BATCH)

    single_device = initialize(init)
    sharded = initialize(init, make_mesh(data=2, model=4), fully_sharded(min_size=1))
    _assert_close(sharded, single_device)


def test_mesh_shapes():
    assert make_mesh().shape == {"data": 8, "model": 1}
    assert make_mesh(model=2).shape == {"data": 4, "model": 2}
    assert make_mesh(data=2, model=4).shape == {"data": 2, "model": 4}
    assert make_mesh(2, 1, jax.devices()[3:5]).devices.tolist() == [
        [jax.devices()[3]],
        [jax.devices()[4]],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": 3}, "a mesh of data=3 x model=1 needs 3 devices; there are 8"),
        ({"data": 8, "model": 2}, "a mesh of data=8 x model=2 needs 16 devices; there are 8"),
        ({"model": 3}, "a mesh of data=. x model=3: 8 devices .*model=3"),
        ({"model": 0}, "model=0: both axes need at least one device"),
        ({"data": -8, "model": -1}, "both axes need at least one device"),
        ({"model": 16}, "8 devices .*model=16"),
    ],
)
def test_impossible_meshes_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**arguments)


@pytest.mark.parametrize(
    ("shape", "split"),
    [
        ((), None),
        ((64,), 0),
        ((7,), None),
        ((9, 7), None),  # 63 elements, neither axis is even
        ((8, 4), 0),
        ((4, 8), 1),
        ((8, 8), 1),  # the last of equal axes
        ((3, 3, 4, 6), 3),
        ((3, 3, 6, 4), 2),
        ((99, 4), 1),  # the longest is not divisible
        ((2, 2), None),  # too small
        ((16,), 0),  # just large enough
        ((15,), None),
    ],
)
def test_fully_sharded_rule(shape, split):
    mesh = make_mesh(data=4, model=2)
    rule = fully_sharded(min_size=16)
    spec = rule("any/path", shape, mesh)
    padded = tuple(spec) + (None,) * (len(shape) - len(spec))
    assert padded == tuple("model" if axis == split else None for axis in range(len(shape)))
    assert rule("any/path", shape, make_mesh(data=8)) == PartitionSpec()
    assert replicated("any/path", shape, mesh) == PartitionSpec()


def test_fully_sharded_replicates_small_leaves_by_default():
    mesh, rule = make_mesh(data=4, model=2), fully_sharded()
    assert rule("", (4094,), mesh) == PartitionSpec()
    assert rule("", (4096,), mesh) == PartitionSpec("model")


def test_shardings_of_shapes():
    mesh = make_mesh(data=4, model=2)
    tree = {"a": [jax.ShapeDtypeStruct((4, 2), jnp.float32)], "b": np.zeros(3)}
    shapes = {}

    def rule(path, shape, mesh):
        shapes[path] = shape
        return PartitionSpec()

    result = shardings(tree, mesh, rule)
    assert shapes == {"a/0": (4, 2), "b": (3,)}
    assert result == {
        "a": [NamedSharding(mesh, PartitionSpec())],
        "b": NamedSharding(mesh, PartitionSpec()),
    }


@pytest.mark.parametrize("mesh_size", [1, 8])
def test_place_copies(mesh_size):
    mesh = make_mesh(devices=jax.devices()[:mesh_size])
    caller = {"a": jnp.arange(8.0), "key": jax.random.key(0)}
    placed = place(caller, mesh)
    consumed = jax.jit(partial(jax.tree.map, jnp.copy), donate_argnums=0)(placed)
    assert placed["a"].is_deleted()
    assert not caller["a"].is_deleted()
    np.testing.assert_array_equal(caller["a"], np.arange(8))
    np.testing.assert_array_equal(consumed["a"], np.arange(8))
    assert not caller["key"].is_deleted()
    assert place(caller, None) is caller


def test_place_splits_by_the_rule():
    mesh = make_mesh(data=4, model=2)
    placed = place({"w": np.arange(8.0).reshape(2, 4)}, mesh, fully_sharded(min_size=1))
    assert {shard.data.shape for shard in placed["w"].addressable_shards} == {(2, 2)}


def test_batches_are_split_over_all_devices():
    mesh = make_mesh(data=4, model=2)
    batch = {"image": np.arange(32.0).reshape(16, 2), "label": np.arange(16)}
    placed = place_batch(batch, mesh)
    for name, leaf in placed.items():
        assert leaf.sharding == NamedSharding(mesh, BATCH)
        np.testing.assert_array_equal(leaf, batch[name])
        starts = sorted(shard.index[0].start for shard in leaf.addressable_shards)
        assert starts == [0, 2, 4, 6, 8, 10, 12, 14]
    assert place_batch(batch, None) is batch


def test_indivisible_batches_are_rejected():
    mesh = make_mesh(data=4, model=2)
    message = "batch size 12 .*8 devices.*: 8, 16"
    check_batch_size(16, mesh)
    with pytest.raises(ValueError, match=message):
        check_batch_size(12, mesh)
    with pytest.raises(ValueError, match=message):
        place_batch({"image": np.zeros((12, 2))}, mesh)
    with pytest.raises(ValueError, match=r"batch size 3 .*8 devices.*: 8"):
        check_batch_size(3, mesh)
    parts = _mlp_parts()
    state = jax.eval_shape(lambda: init_state(Setup(**parts), jax.random.key(0), MLP_BATCH))
    with pytest.raises(ValueError, match=message):
        compile_step(make_train_step(Setup(**parts)), mesh).lower(
            state, None, {"image": np.zeros((12, 4, 4, 1), np.float32)}
        )


def test_the_axes_of_a_mesh_have_names():
    assert isinstance(make_mesh(), Mesh)
    assert make_mesh().axis_names == ("data", "model")


def test_the_generator_update_is_split_over_the_devices():
    # The latents are sampled inside the step, so only the step can split them.
    parts = _mlp_parts()
    step = g_step(Setup(**parts))
    batch = {"image": np.zeros((64, 4, 4, 1), np.float32)}

    def flops(mesh):
        state = initialize(lambda: init_state(Setup(**parts), jax.random.key(0), batch), mesh)
        lowered = compile_step(step, mesh).lower(state, None, place_batch(batch, mesh))
        return lowered.compile().cost_analysis()["flops"]

    assert flops(make_mesh(data=8)) < 0.25 * flops(None)
