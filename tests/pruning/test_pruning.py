"""Channel pruning: slices in numpy, dead channels, permutations, and linear networks."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import pruning
from kd_jax.core import cost
from kd_jax.core.axes import InputAxis, NormScale, Repeat, group_widths, parts
from kd_jax.core.network import Network, connect, disconnect, from_linen, tap_shapes
from kd_jax.core.types import Taps
from kd_jax.models import dcgan, mlp

B, LATENT, CLASSES = 3, 6, 4
KEY = jax.random.key(0)


def _inputs(image, classes, seed=0):
    rng = np.random.default_rng(seed)
    shape = (B, *image) if image else (B, LATENT)
    x = rng.uniform(-1, 1, size=shape).astype(np.float32)
    return (x, np.arange(B, dtype=np.int32) % classes) if classes else (x,)


def _generator(widths, depth=0, classes=0):
    size = 4 * 2 ** len(widths)
    return dcgan.generator(size, widths, depth=depth, classes=classes)


def _discriminator(widths, depth=0, classes=0, stddev=False):
    size = 4 * 2 ** len(widths)
    return dcgan.discriminator(size, widths, depth=depth, classes=classes, minibatch_stddev=stddev)


def _mlp_generator(widths, classes=0):
    return mlp.generator(4, widths, classes=classes, depth=len(widths))


def _mlp_discriminator(widths, classes=0):
    return mlp.discriminator(widths, classes=classes, depth=len(widths))


# Factory, description, widths and inputs of each network. All widths differ from each other and
# from every other length, so that axes cannot be confused.
CASES = {
    "generator": (_generator, dcgan.generator_axes, (7, 5), _inputs((), 0)),
    "deep generator": (
        lambda widths: _generator(widths, depth=1, classes=CLASSES),
        dcgan.generator_axes,
        (9, 7, 5),
        _inputs((), CLASSES),
    ),
    "discriminator": (_discriminator, dcgan.discriminator_axes, (7, 5), _inputs((16, 16, 3), 0)),
    "deep discriminator": (
        lambda widths: _discriminator(widths, depth=1, classes=CLASSES, stddev=True),
        dcgan.discriminator_axes,
        (9, 7, 5),
        _inputs((32, 32, 3), CLASSES),
    ),
    "mlp generator": (
        lambda widths: _mlp_generator(widths, CLASSES),
        mlp.generator_axes,
        (9, 7, 5),
        _inputs((), CLASSES),
    ),
    "mlp discriminator": (
        _mlp_discriminator,
        mlp.discriminator_axes,
        (9, 7),
        _inputs((4, 4, 1), 0),
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


def _random_variables(network, inputs, seed=0):
    """Variables like after training, without zeros and ones, so that every value matters."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    shapes = jax.eval_shape(network.init, KEY, *inputs)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def _build(case):
    make, describe, widths, inputs = CASES[case]
    network = make(widths)
    variables = _random_variables(network, inputs)
    return network, variables, describe(variables), inputs


def _output(network, variables, inputs):
    return np.asarray(jax.jit(network.apply)(variables, *inputs)[0])


def _assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _names(leaf_dict, prefix=""):
    for name, value in leaf_dict.items():
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}"


# --- descriptions ---------------------------------------------------------------------------------


@every_case
def test_every_group_is_a_tap_of_that_width(case):
    network, variables, axes, inputs = _build(case)
    taps = {name: shape[-1] for name, shape in tap_shapes(network, *inputs).items()}
    assert group_widths(variables, axes) == taps
    assert set(axes) == set(_names(variables))


@every_case
def test_descriptions_only_need_shapes(case):
    make, describe, widths, inputs = CASES[case]
    shapes = jax.eval_shape(make(widths).init, KEY, *inputs)
    assert describe(shapes) == _build(case)[2]


def test_the_description_of_a_small_discriminator():
    network = dcgan.discriminator(16, 2, minibatch_stddev=True)
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros((1, 16, 16, 3)))
    assert dcgan.discriminator_axes(shapes) == {
        "params/Conv_0/kernel": (None, None, None, "8x8"),
        "params/Conv_0/bias": ("8x8",),
        "params/Conv_1/kernel": (None, None, InputAxis("8x8"), "4x4"),
        "params/Conv_1/bias": ("4x4",),
        "params/Dense_0/kernel": (InputAxis(Repeat(("4x4", 1), 16)), "features"),
        "params/Dense_0/bias": ("features",),
        "params/score/kernel": (InputAxis("features"), None),
        "params/score/bias": (None,),
    }


def test_entries_flatten_in_order():
    assert parts(("a", 2, Repeat(("b", 1), 2))) == ["a", 2, "b", 1, "b", 1]
    assert parts(InputAxis(Repeat("a", 3))) == ["a"] * 3
    assert parts(NormScale("a")) == ["a"]
    assert parts(None) == [None]


SMALL = {
    "params": {
        "first": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.arange(3.0)},
        "last": {"kernel": np.arange(16.0).reshape(8, 2)},
    }
}
SMALL_AXES = {
    "params/first/kernel": (None, "h"),
    "params/first/bias": ("h",),
    "params/last/kernel": (InputAxis(Repeat(("h", 1), 2)), 2),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params/first/bias": None}, r"params/first/bias of shape \(3,\) is not described"),
        ({"params/no/bias": ("h",)}, "params/no/bias is described by the axes, but is not in the"),
        ({"params/first/bias": ("h", None)}, r"bias of shape \(3,\) is described with 2 axes"),
        (
            {"params/last/kernel": (InputAxis(Repeat("h", 2)), None)},
            "params/last/kernel: axis 0 has length 8 and should have 6; group 'h' has 3 channels "
            "in params/first/kernel",
        ),
        (
            {"params/last/kernel": (None, "h")},
            "params/last/kernel: axis 1 has length 2 and should have 3; group 'h' has 3",
        ),
        (
            {"params/last/kernel": (None, 3)},
            "kernel: axis 1 has length 2 and should have 3; it is of a fixed length",
        ),
        ({"params/last/kernel": (("g", "f"), None)}, "group 'g' is not alone on any axis"),
        ({"params/last/kernel": (("h", None), None)}, "kernel: axis 0 has None inside its entry"),
    ],
)
def test_descriptions_that_do_not_fit_raise(change, message):
    axes = {path: axis for path, axis in (SMALL_AXES | change).items() if axis is not None}
    calls = [
        lambda: group_widths(SMALL, axes),
        lambda: pruning.magnitude(SMALL, axes),
        lambda: pruning.norm_scale(SMALL, axes),
        lambda: pruning.shrink(SMALL, axes, {}),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_other_architectures_raise():
    deep = _build("mlp generator")[1]
    generator, discriminator = _build("generator")[1], _build("discriminator")[1]
    for describe in (dcgan.generator_axes, dcgan.discriminator_axes):
        with pytest.raises(
            ValueError, match=r"not a DCGAN's variables; its parts are .'Dense_0', "
        ):
            describe(deep)
    with pytest.raises(ValueError, match=r"params/Conv_0/bias of shape \(5,\) is not described"):
        dcgan.generator_axes(discriminator)
    with pytest.raises(ValueError, match=r"BatchNorm_0/mean of shape \(7,\) is not described"):
        dcgan.discriminator_axes(generator)
    with pytest.raises(ValueError, match=r"BatchNorm_0/mean of shape \(7,\) is not described"):
        mlp.generator_axes(generator)
    with pytest.raises(ValueError, match=r"params/Conv_0/bias of shape \(5,\) is not described"):
        mlp.discriminator_axes({"params": {"Conv_0": discriminator["params"]["Conv_0"]}})


@pytest.mark.parametrize("case", ["generator", "discriminator"])
def test_variables_of_connected_networks_raise(case):
    make, describe, widths, inputs = CASES[case]
    network = connect(make(widths), {"8x8": (1, 8, 8, 11)})
    variables = jax.eval_shape(network.init, KEY, *inputs)
    message = r"params/connectors/8x8/bias belongs to a connector; pass `disconnect\(variables\)`"
    with pytest.raises(ValueError, match=message):
        describe(variables)
    axes = describe(disconnect(variables))
    with pytest.raises(ValueError, match=message):
        pruning.shrink(variables, axes, {})


# --- shrinking ------------------------------------------------------------------------------------


def test_shrink_indexes_as_numpy_does():
    small = pruning.shrink(SMALL, SMALL_AXES, {"h": np.array([2, 0])})
    first, last = SMALL["params"]["first"], SMALL["params"]["last"]
    np.testing.assert_array_equal(small["params"]["first"]["kernel"], first["kernel"][:, [2, 0]])
    np.testing.assert_array_equal(small["params"]["first"]["bias"], [2.0, 0.0])
    # Two copies of three channels and another value: rows 0-2 and 3, then 4-6 and 7.
    rows = last["kernel"][[2, 0, 3, 6, 4, 7]]
    np.testing.assert_array_equal(small["params"]["last"]["kernel"], rows)


def test_shrink_of_concatenated_and_repeated_groups():
    variables = {
        "params": {
            "a": np.arange(2.0),
            "b": np.arange(3.0),
            "both": np.arange(98.0).reshape(7, 14),
        }
    }
    axes = {
        "params/both": (InputAxis(("a", 2, "b")), Repeat(("b", "a", "a"), 2)),
        "params/a": ("a",),
        "params/b": ("b",),
    }
    small = pruning.shrink(variables, axes, {"a": [1], "b": [0, 2]})
    both = variables["params"]["both"][np.ix_([1, 2, 3, 4, 6], [0, 2, 4, 6, 7, 9, 11, 13])]
    np.testing.assert_array_equal(small["params"]["both"], both)
    pruned = pruning.shrink(variables, axes, {"a": [1]})  # b keeps all channels
    rows = variables["params"]["both"][np.ix_([1, 2, 3, 4, 5, 6], [0, 1, 2, 4, 6, 7, 8, 9, 11, 13])]
    np.testing.assert_array_equal(pruned["params"]["both"], rows)
    np.testing.assert_array_equal(pruned["params"]["b"], variables["params"]["b"])


@every_case
def test_keeping_all_channels_is_the_identity(case):
    _, variables, axes, _ = _build(case)
    widths = group_widths(variables, axes)
    everything = {group: np.arange(width) for group, width in widths.items()}
    for indices in (everything, {}):
        _assert_equal(pruning.shrink(variables, axes, indices), variables)
    _assert_equal(
        pruning.from_teacher(variables, axes, pruning.magnitude(variables, axes), variables),
        variables,
    )
    _assert_equal(
        pruning.from_teacher(variables, axes, {}, variables), variables
    )  # nothing to select


def test_the_student_s_arrays_are_copies():
    _, variables, axes, _ = _build("generator")
    wide, narrow = (
        pruning.shrink(variables, axes, {}),
        pruning.shrink(variables, axes, {"4x4": [1]}),
    )
    inherited = pruning.inherit(wide, variables)
    before = jax.tree.map(np.array, variables)
    for leaf in jax.tree.leaves(variables):
        leaf.delete()
    _assert_equal(wide, before)
    _assert_equal(inherited, before)
    assert narrow["params"]["BatchNorm_0"]["bias"] == before["params"]["BatchNorm_0"]["bias"][1]


@every_case
def test_permuted_channels_are_the_same_network(case):
    network, variables, axes, inputs = _build(case)
    rng = np.random.default_rng(1)
    widths = group_widths(variables, axes)
    orders = {group: rng.permutation(width) for group, width in widths.items()}
    permuted = pruning.shrink(variables, axes, orders)
    for leaf, other in zip(jax.tree.leaves(permuted), jax.tree.leaves(variables), strict=True):
        assert leaf.shape == other.shape
    np.testing.assert_allclose(
        _output(network, permuted, inputs), _output(network, variables, inputs), atol=1e-5
    )
    scores = pruning.magnitude(variables, axes)
    permuted_scores = pruning.magnitude(permuted, axes)
    fewer = {group: width - 2 for group, width in widths.items()}
    top = pruning.top_channels(scores, fewer)
    permuted_top = pruning.top_channels(permuted_scores, fewer)
    for group, order in orders.items():
        np.testing.assert_allclose(permuted_scores[group], scores[group][order], rtol=1e-5)
        assert set(order[permuted_top[group]]) == set(top[group])


def _kill(variables, dead):
    """Zeroes the weights that read the channels `{width of the group: indices}`, by shape only."""
    params = jax.tree.map(np.array, variables["params"])
    for name, module in params.items():
        if name == "label" and "score" in params:
            width = module["embedding"].shape[1]
            module["embedding"][:, dead[width]] = 0
        if "kernel" not in module:
            continue
        kernel = module["kernel"]
        rows = kernel.shape[-2]
        if kernel.ndim == 2 and name == "Dense_0" and "Conv_0" in params:
            if "score" in params:  # the flattened 4x4 feature
                width = kernel.shape[1]
                kernel.reshape(16, rows // 16, width)[:, dead[width]] = 0
        elif rows in dead:
            kernel[..., dead[rows], :] = 0
    return {**variables, "params": jax.tree.map(jnp.asarray, params)}


@every_case
def test_pruning_removes_dead_channels_and_preserves_the_output(case):
    make, _, widths, inputs = CASES[case]
    if (
        case == "deep discriminator"
    ):  # one image, for which minibatch stddev is equal for all channels
        inputs = tuple(x[:1] for x in inputs)
    network, variables, axes, _ = _build(case)
    if case == "deep discriminator":  # and 1e-4, so that large weights make it matter
        kernel = variables["params"]["Dense_0"]["kernel"].reshape(16, 10, 9)
        scaled = kernel.at[:, -1].multiply(1e4).reshape(160, 9)
        variables["params"]["Dense_0"]["kernel"] = scaled
    dead = {9: [0, 5, 7], 7: [2, 3], 5: [4]}
    variables = _kill(variables, {width: dead[width] for width in widths})
    scores = pruning.magnitude(variables, axes)
    for group, width in group_widths(variables, axes).items():
        assert np.flatnonzero(np.asarray(scores[group]) == 0).tolist() == dead[width], group

    student = make(tuple(width - len(dead[width]) for width in widths))
    like = jax.eval_shape(student.init, KEY, *inputs)
    small = pruning.from_teacher(variables, axes, scores, like)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, like)
    np.testing.assert_allclose(
        _output(student, small, inputs), _output(network, variables, inputs), atol=1e-6
    )


@pytest.mark.parametrize("case", ["generator", "deep generator"])
def test_pruning_channels_without_scale_preserves_the_output(case):
    make, _, widths, inputs = CASES[case]
    network, variables, axes, _ = _build(case)
    dead = {9: [0, 5], 7: [2, 3, 6], 5: [4]}
    params = jax.tree.map(np.array, variables["params"])
    for name, module in params.items():
        if name.startswith("BatchNorm"):
            for vector in (module["scale"], module["bias"]):
                vector[dead[vector.size]] = 0
            module["scale"][::2] *= -1  # |gamma| counts
    variables = {**variables, "params": jax.tree.map(jnp.asarray, params)}
    scores = pruning.norm_scale(variables, axes)
    for group, width in group_widths(variables, axes).items():
        assert np.flatnonzero(np.asarray(scores[group]) == 0).tolist() == dead[width]

    student = make(tuple(width - len(dead[width]) for width in widths))
    like = jax.eval_shape(student.init, KEY, *inputs)
    small = pruning.from_teacher(variables, axes, scores, like)
    np.testing.assert_allclose(
        _output(student, small, inputs), _output(network, variables, inputs), atol=1e-6
    )


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ({"x": [0]}, "there is no group 'x'; the axes have 'h'"),
        ({"h": [0, 0]}, "group 'h' needs distinct indices of its channels 0 to 2"),
        ({"h": [3]}, "group 'h' needs distinct indices"),
        ({"h": [-1]}, "group 'h' needs distinct indices"),
        ({"h": []}, r"group 'h' needs integer indices \[width\]"),
        ({"h": [0.5]}, "group 'h' needs integer indices"),
        ({"h": [[0]]}, "group 'h' needs integer indices"),
        ({"h": np.array([True, False, True])}, "group 'h' needs integer indices"),
    ],
)
def test_invalid_indices_raise(indices, message):
    with pytest.raises(ValueError, match=message):
        pruning.shrink(SMALL, SMALL_AXES, indices)


def test_invalid_students_raise():
    _, variables, axes, inputs = _build("generator")
    scores = pruning.magnitude(variables, axes)

    def like(network, *inputs):
        return jax.eval_shape(network.init, KEY, *inputs)

    with pytest.raises(ValueError, match="group '4x4' cannot have 8 of its 7 channels"):
        pruning.from_teacher(variables, axes, scores, like(_generator((8, 5)), *inputs))
    some_scores = {"4x4": scores["4x4"]}
    narrow = like(_generator((6, 4)), *inputs)
    with pytest.raises(ValueError, match="group '8x8' has no scores; there are '4x4'"):
        pruning.from_teacher(variables, axes, some_scores, narrow)
    shorter = like(_generator((6, 4)), inputs[0][:, 1:])
    message = r"params/Dense_0/kernel has shape \(6, 96\) from the teacher, but \(5, 96\) in the st"
    with pytest.raises(ValueError, match=message):
        pruning.from_teacher(variables, axes, scores, shorter)
    deeper = like(_generator((6, 4), depth=1), *inputs)
    with pytest.raises(ValueError, match=r"BatchNorm_2/mean of shape \(4,\) is not described"):
        pruning.from_teacher(variables, axes, scores, deeper)


# --- scores ---------------------------------------------------------------------------------------


def test_magnitude_by_hand():
    kernel = np.array([[1, -2], [3, 4], [0, 0], [9, 9], [-5, 0], [0, 6], [7, -7], [9, 9.0]])
    variables = {"params": {**SMALL["params"], "last": {"kernel": kernel}}}
    scores = pruning.magnitude(variables, SMALL_AXES)
    assert set(scores) == {"h"}
    np.testing.assert_array_equal(scores["h"], [3 + 5, 7 + 6, 0 + 14])


def test_magnitude_sums_over_input_axes_only():
    axes = {
        "params/a": ("g", InputAxis("h")),
        "params/b": (None, InputAxis("h"), "g"),
        "params/c": ("h",),
    }
    axes["params/d"] = (InputAxis("g"),)
    variables = {
        "params": {
            "a": np.array([[1.0, -2.0, 3.0]]),
            "b": np.array([[[10.0], [20.0], [-30.0]], [[1.0], [1.0], [1.0]]]),
            "c": np.full(3, 100.0),
            "d": np.array([-7.0]),
        }
    }
    scores = pruning.magnitude(variables, axes)
    np.testing.assert_array_equal(scores["h"], [1 + 11, 2 + 21, 3 + 31])
    np.testing.assert_array_equal(scores["g"], [7])


def test_magnitude_of_networks_in_numpy():
    _, variables, axes, _ = _build("deep generator")
    scores = pruning.magnitude(variables, axes)
    p = jax.tree.map(np.abs, variables["params"])
    for group, first in (("4x4", 0), ("8x8", 2), ("16x16", 4)):  # the residual, then the doubling
        expected = sum(p[f"Conv_{i}"]["kernel"].sum(axis=(0, 1, 3)) for i in (first, first + 1))
        np.testing.assert_allclose(scores[group], expected, rtol=1e-5)

    _, variables, axes, _ = _build("deep discriminator")
    scores = pruning.magnitude(variables, axes)
    p = jax.tree.map(np.abs, variables["params"])
    conv = [p[f"Conv_{i}"]["kernel"].sum(axis=(0, 1, 3)) for i in range(6)]
    np.testing.assert_allclose(scores["16x16"], conv[1] + conv[2], rtol=1e-5)
    np.testing.assert_allclose(scores["8x8"], conv[3] + conv[4], rtol=1e-5)
    dense = p["Dense_0"]["kernel"].reshape(4, 4, 10, 9).sum(axis=(0, 1, 3))
    np.testing.assert_allclose(scores["4x4"], conv[5] + dense[:9], rtol=1e-5)
    head = p["score"]["kernel"][:, 0] + p["label"]["embedding"].sum(axis=0)
    np.testing.assert_allclose(scores["features"], head, rtol=1e-5)


def test_norm_scale_sums_over_the_layers_of_a_group():
    variables = {"params": {"one": np.array([1.0, -2.0]), "two": np.array([0.5, 0.25])}}
    axes = {"params/one": (NormScale("h"),), "params/two": (NormScale("h"),)}
    np.testing.assert_array_equal(pruning.norm_scale(variables, axes)["h"], [1.5, 2.25])


def test_groups_without_norms_or_readers_raise():
    _, variables, axes, _ = _build("mlp generator")
    with pytest.raises(ValueError, match="group 'hidden0' has no normalisation layer"):
        pruning.norm_scale(variables, axes)
    with pytest.raises(ValueError, match="no tensor reads group 'h'"):
        pruning.magnitude({"params": {"a": np.ones(2)}}, {"params/a": ("h",)})


H, W, C = 4, 5, 2


def _linear(scale=1.0):
    """Images `z A K O`, as [B, H, W, C]; groups `a` (2 channels), read by K, and `k` (3), by O."""
    rng = np.random.default_rng(3)
    shapes = {"A": (3, 2), "K": (2, 3), "O": (3, H * W * C)}
    params = {
        name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }

    def apply(variables, z, train=False, rngs=None):
        p = variables["params"]
        image = (z @ p["A"] @ p["K"] @ p["O"]).reshape(-1, H, W, C)
        return image, Taps(), variables

    axes = {
        "params/A": (None, "a"),
        "params/K": (InputAxis("a"), "k"),
        "params/O": (InputAxis("k"), None),
    }
    return Network(lambda key, z: {"params": params}, apply), {"params": params}, axes


def _float64(variables):
    return {name: np.asarray(leaf, np.float64) for name, leaf in variables["params"].items()}


def test_content_saliency_of_a_linear_generator():
    """Beyond [-1, 1] the difference from black and from white has the sign of the image."""
    network, variables, axes = _linear()
    rng = np.random.default_rng(0)
    z = jnp.asarray(1e4 * rng.normal(size=(B, 3)), jnp.float32)
    mask = rng.integers(0, 2, size=(B, H, W, 1)).astype(np.float32)
    scores = pruning.content_saliency(network, variables, axes, [z], mask, KEY, density=1.0)

    p, z64 = _float64(variables), np.asarray(z, np.float64)
    a = z64 @ p["A"]
    k = a @ p["K"]
    image = k @ p["O"]
    assert np.abs(image).min() > 1
    signs = np.sign(image) * np.broadcast_to(mask, (B, H, W, C)).reshape(B, -1)
    by_o = np.einsum("bk,bp->bkp", k, signs)
    by_k = np.einsum("ba,bk->bak", a, signs @ p["O"].T)
    np.testing.assert_allclose(scores["k"], np.abs(by_o).sum(axis=2).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(scores["a"], np.abs(by_k).sum(axis=2).mean(axis=0), rtol=1e-4)


def test_the_noise_is_black_or_white_and_the_same_in_all_channels():
    network, variables, axes = _linear(0.1)  # images well within [-1, 1]
    z = jnp.ones((40, 3))
    mask = jnp.ones((40, H, W, 1))

    def score(output):
        params = {**variables["params"], "O": jnp.asarray(output, jnp.float32).reshape(3, -1)}
        scores = pruning.content_saliency(
            network, {"params": params}, axes, [z], mask, KEY, density=1.0
        )
        return np.asarray(scores["a"])

    image = np.full((3, H * W, C), 1e-3)
    a = np.abs(np.ones(3) @ _float64(variables)["A"])
    # d/dK = a * sum over 40 values of +-1e-3, as 20 pixels agree in both channels; three columns.
    mean = (score(image) / (3 * 1e-3 * 2 * a)).mean()
    assert 2.5 < mean < 4.5  # E |sum of 20 signs| = 3.52, +- 0.42 over 40 examples
    image[..., 1] *= -1
    np.testing.assert_allclose(score(image), 0, atol=1e-7)


def test_density_and_soft_masks_are_fractions_of_the_pixels():
    def apply(variables, z, train=False, rngs=None):
        return (z @ variables["params"]["O"]).reshape(-1, 64, 64, 1), Taps(), variables

    network = Network(lambda key, z: None, apply)
    variables = {"params": {"O": jnp.full((1, 64 * 64), 0.01), "h": jnp.ones(1)}}
    axes = {"params/O": (InputAxis("h"), None), "params/h": ("h",)}
    z = jnp.ones((4, 1))

    def fraction(mask, density):
        scores = pruning.content_saliency(network, variables, axes, [z], mask, KEY, density=density)
        return float(scores["h"][0]) / 64**2

    ones = np.ones((4, 64, 64, 1), np.float32)
    assert fraction(ones, 1.0) == 1
    assert fraction(0 * ones, 1.0) == 0
    assert fraction(ones, 0.25) == pytest.approx(0.25, abs=0.015)  # 4.4 sigma
    assert fraction(0.5 * ones, 0.5) == pytest.approx(0.25, abs=0.015)


def test_the_mask_may_be_a_function_of_the_images():
    network, variables, axes = _build("deep generator")[:3]
    inputs = CASES["deep generator"][3]
    calls = []

    def bright(images):
        calls.append(images)
        return (images.mean(axis=-1, keepdims=True) > 0).astype(jnp.float32)

    scores = pruning.content_saliency(network, variables, axes, inputs, bright, KEY, density=0.5)
    images = network.apply(variables, *inputs)[0]
    np.testing.assert_allclose(calls[0], images, atol=1e-5)
    expected = pruning.content_saliency(
        network, variables, axes, inputs, bright(calls[0]), KEY, density=0.5
    )
    assert set(scores) == {"4x4", "8x8", "16x16"}
    for group, score in scores.items():
        np.testing.assert_allclose(score, expected[group], rtol=1e-5)
        assert np.asarray(score).min() >= 0
        assert np.asarray(score).mean() > 0
    empty = pruning.content_saliency(
        network, variables, axes, inputs, jnp.zeros_like(calls[0][..., :1]), KEY, density=1.0
    )
    for score in empty.values():
        np.testing.assert_array_equal(score, np.zeros_like(score))


def test_direction_sensitivity_of_a_linear_generator():
    network, variables, axes = _linear()
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(B, 3)), jnp.float32)
    directions = np.linalg.qr(rng.normal(size=(3, 3)))[0][:2].astype(np.float32)
    scores = pruning.direction_sensitivity(
        network, variables, axes, [z], jnp.asarray(directions), strength=0.5
    )
    p = _float64(variables)
    a = 0.5 * directions.astype(np.float64) @ p["A"]  # the image changes by a K O, at any z
    k = a @ p["K"]
    signs = np.sign(k @ p["O"]) / (H * W * C)
    by_o = np.einsum("dk,dp->dkp", k, signs)
    by_k = np.einsum("da,dk->dak", a, signs @ p["O"].T)
    np.testing.assert_allclose(scores["k"], np.abs(by_o).sum(axis=(0, 2)), rtol=1e-4)
    np.testing.assert_allclose(scores["a"], np.abs(by_k).sum(axis=(0, 2)), rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_direction_sensitivity_by_finite_differences():
    network = mlp.generator(2, 3, classes=2, depth=1, dtype=jnp.float64)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)))
    labels = jnp.array([0, 1])
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), network.init(KEY, z, labels))
    directions = jnp.asarray(np.eye(4)[[1, 3]])
    axes = mlp.generator_axes(variables)
    scores = pruning.direction_sensitivity(
        network, variables, axes, [z, labels], directions, strength=2.0
    )
    p = jax.tree.map(np.asarray, variables["params"])

    def image(kernel, z, label):
        x = np.concatenate([z, np.eye(2)[label]]) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
        x = np.where(x > 0, x, 0.2 * x)
        return np.tanh(x @ kernel + p["Dense_1"]["bias"])

    kernel, expected = p["Dense_1"]["kernel"], np.zeros(3)
    for b, d in itertools.product(range(2), range(2)):
        far = z[b] + 2.0 * directions[d]
        for c, q in np.ndindex(kernel.shape):
            step = np.zeros_like(kernel)
            step[c, q] = 1e-4
            up, down = (
                np.abs(image(w, z[b], b) - image(w, far, b)).mean()
                for w in (kernel + step, kernel - step)
            )
            expected[c] += abs(up - down) / 2e-4 / 2
    # Images are float32 for any compute dtype of the network.
    np.testing.assert_allclose(scores["hidden0"], expected, rtol=1e-5)


class Noisy(nn.Module):
    """Multiplies the features of each example by a random number."""

    @nn.compact
    def __call__(self, z, *, train):
        x = nn.Dense(2)(z) * jax.random.normal(self.make_rng("noise"), (z.shape[0], 1))
        return nn.Dense(H * W, use_bias=False)(x).reshape(-1, H, W, 1), {}


def test_networks_with_noise_get_a_key_for_each_example():
    network = from_linen(Noisy())
    z = jnp.ones((4, 3))
    variables = network.init(KEY, z)
    axes = {
        "params/Dense_0/kernel": (None, "h"),
        "params/Dense_0/bias": ("h",),
        "params/Dense_1/kernel": (InputAxis("h"), None),
    }
    calls = []

    def everywhere(images):
        calls.append(images)
        return jnp.ones((4, H, W, 1))

    pruning.content_saliency(network, variables, axes, [z], everywhere, KEY)
    assert len({float(image[0, 0, 0]) for image in calls[0]}) == 4
    # The noise of a pair is shared, so that the difference for a zero direction is zero.
    scores = pruning.direction_sensitivity(
        network, variables, axes, [z], jnp.zeros((2, 3)), key=KEY
    )
    np.testing.assert_array_equal(scores["h"], [0, 0])
    shifted = pruning.direction_sensitivity(network, variables, axes, [z], jnp.eye(3), key=KEY)
    assert np.asarray(shifted["h"]).min() > 0


def test_inputs_that_do_not_fit_raise():
    network, variables, axes = _linear()
    z = jnp.ones((B, 3))
    with pytest.raises(ValueError, match=r"mask has shape \(3, 4, 5, 2\); images \(3, 4, 5, 2\) n"):
        pruning.content_saliency(network, variables, axes, [z], jnp.ones((B, H, W, C)), KEY)
    with pytest.raises(ValueError, match=r"mask has shape \(1, 4, 5, 1\); images \(3, 4, 5, 2\)"):
        pruning.content_saliency(
            network, variables, axes, [z], lambda images: jnp.ones((1, H, W, 1)), KEY
        )
    with pytest.raises(ValueError, match=r"directions \(2, 4\) and latents \(3, 3\) must be"):
        pruning.direction_sensitivity(network, variables, axes, [z], jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"directions \(3,\) and latents"):
        pruning.direction_sensitivity(network, variables, axes, [z], jnp.ones(3))
    for inputs in ([], [z, jnp.ones(B + 1)], [z, jnp.ones(())]):
        with pytest.raises(ValueError, match=r"the inputs must all be \[B, ...\] for one B"):
            pruning.direction_sensitivity(network, variables, axes, inputs, jnp.ones((2, 3)))
        with pytest.raises(ValueError, match=r"the inputs must all be \[B, ...\] for one B"):
            pruning.content_saliency(network, variables, axes, inputs, jnp.ones(1), KEY)


# --- selection ------------------------------------------------------------------------------------


def test_top_channels_by_hand():
    scores = {"a": np.array([0.5, 3, 1, 3, 2]), "b": jnp.array([1.0, 2.0]), "c": np.ones(4)}
    top = pruning.top_channels(scores, {"a": 3, "b": 2, "c": 2})
    assert {group: indices.tolist() for group, indices in top.items()} == {
        "a": [1, 3, 4],
        "b": [0, 1],
        "c": [0, 1],
    }
    assert pruning.top_channels(scores, {"a": 1})["a"].tolist() == [1]  # the first of equal scores


@pytest.mark.parametrize(
    ("scores", "widths", "message"),
    [
        ([1.0, 2.0], {"a": 3}, "group 'a' cannot have 3 of its 2 channels"),
        ([1.0, 2.0], {"a": 0}, "group 'a' cannot have 0 of its 2 channels"),
        ([1.0, 2.0], {"b": 1}, "group 'b' has no scores; there are 'a'"),
        ([1.0, np.nan], {"a": 1}, r"scores of group 'a' must be \[C\] and finite"),
        ([[1.0]], {"a": 1}, "scores of group 'a' must be"),
        ([], {"a": 1}, "scores of group 'a' must be"),
    ],
)
def test_invalid_widths_raise(scores, widths, message):
    with pytest.raises(ValueError, match=message):
        pruning.top_channels({"a": np.array(scores)}, widths)


def test_inherit_copies_the_named_parts_of_every_collection():
    teacher = _build("deep generator")[1]
    network = _build("deep generator")[0]
    student = _random_variables(network, CASES["deep generator"][3], seed=9)
    mixed = pruning.inherit(student, teacher, ["BatchNorm_1", "label", "Conv_0/kernel"])
    from_teacher = {"label/embedding", "Conv_0/kernel"} | {
        f"BatchNorm_1/{name}" for name in ("scale", "bias", "mean", "var")
    }
    for collection, modules in mixed.items():
        for module, leaves in modules.items():
            for name, leaf in leaves.items():
                source = teacher if f"{module}/{name}" in from_teacher else student
                np.testing.assert_array_equal(leaf, source[collection][module][name])
    _assert_equal(pruning.inherit(student, teacher), teacher)
    _assert_equal(pruning.inherit(student, teacher, []), student)
    assert jax.tree.structure(mixed) == jax.tree.structure(student)


def test_inherit_errors():
    message = (
        "params/Dense_0/kernel cannot be inherited: it has shape \\(6, 112\\) in the teacher and"
    )
    teacher = _build("generator")[1]
    student = _random_variables(_generator((6, 5)), CASES["generator"][3])
    with pytest.raises(ValueError, match=rf"{message} \(6, 96\) in the student"):
        pruning.inherit(student, teacher, ["Dense_0"])
    with pytest.raises(
        ValueError, match="batch_stats/BatchNorm_0/mean cannot be inherited: it has"
    ):
        pruning.inherit(student, teacher)
    with pytest.raises(ValueError, match="the student has no part 'Conv'; it has 'BatchNorm_0', "):
        pruning.inherit(student, teacher, ["Conv_1", "Conv"])
    labelled = _random_variables(_generator((6, 5), classes=CLASSES), _inputs((), CLASSES))
    with pytest.raises(ValueError, match="the teacher has no part 'label'; it has 'BatchNorm_0'"):
        pruning.inherit(labelled, teacher, ["label"])

    one = {"params": {"part": {"a": jnp.ones(1), "b": jnp.ones(1)}}}
    two = {"params": {"part": {"a": jnp.ones(1)}}}
    message = "params/part/b cannot be inherited: the {} has no such tensor"
    with pytest.raises(ValueError, match=message.format("teacher")):
        pruning.inherit(one, two, ["part"])
    with pytest.raises(ValueError, match=message.format("student")):
        pruning.inherit(two, one, ["part"])


# --- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3.0, 3.9, 100.0, 10_000.0])
def test_width_for_is_the_largest_within_the_budget(target):
    def macs(width):
        return 3.0 * width * width

    expected = max(width for width in range(1, 41) if macs(width) <= target)
    assert pruning.width_for(macs, target, most=40) == expected


def test_width_for_a_network():
    latents = jax.ShapeDtypeStruct((2, LATENT), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)

    def macs(width):
        return pruning.macs(dcgan.generator(16, width, classes=3), latents, labels)

    target = 2 * 200_000
    width = pruning.width_for(macs, target, most=64)
    assert macs(width) <= target < macs(width + 1)
    # By hand, for each image: the projection, and 4x4 transposed convolutions, with 16 products at
    # each position of the smaller feature.
    by_hand = 2 * LATENT * 16 * 2 * width + 16 * 16 * 2 * width * width + 64 * 16 * width * 3
    assert macs(width) == pytest.approx(2 * by_hand, rel=0.2)


def test_macs_equal_those_of_real_variables():
    network, variables, _, inputs = _build("mlp generator")
    expected = cost.multiply_accumulates(network, variables, *inputs)
    assert pruning.macs(network, *inputs) == expected


def test_targets_below_the_minimum_cost_raise():
    with pytest.raises(ValueError, match="even a width of 1 costs 3, more than the target of 2"):
        pruning.width_for(lambda width: 3.0 * width, 2.0)
    scores = {"a": np.ones(2), "b": np.ones(2)}
    with pytest.raises(ValueError, match="even one channel of each group costs 2, more than the t"):
        pruning.threshold(scores, lambda widths: sum(widths.values()), 1.5)
    with pytest.raises(ValueError, match="there are no scores"):
        pruning.threshold({}, lambda widths: 0.0, 1.0)
    with pytest.raises(ValueError, match="scores of group 'a' must be"):
        pruning.threshold({"a": np.array([np.inf])}, lambda widths: 0.0, 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_threshold_against_a_grid_of_thresholds(seed):
    rng = np.random.default_rng(seed)
    # Few distinct values, so that there are ties; and a group below all others.
    scores = {"a": rng.integers(0, 6, 7), "b": rng.integers(3, 9, 5), "c": rng.uniform(-1, 0, 3)}

    def cost_of(widths):
        return 2.0 * widths["a"] * widths["b"] + widths["b"] * widths["c"]

    def select(cut):
        indices = {}
        for group, values in scores.items():
            above = [index for index, value in enumerate(values) if value >= cut]
            indices[group] = above or [int(np.argmax(values))]
        return indices

    for target in (3, 10, 25, 40, 60, 85, 1000):
        candidates = [select(cut) for cut in np.linspace(-1.5, 10, 4601)]
        fitting = [
            candidate
            for candidate in candidates
            if cost_of({group: len(indices) for group, indices in candidate.items()}) <= target
        ]
        best = max(fitting, key=lambda candidate: sum(map(len, candidate.values())))
        actual = pruning.threshold(scores, cost_of, target)
        if sum(map(len, best.values())) == sum(map(len, actual.values())):
            assert {group: indices.tolist() for group, indices in actual.items()} == best
        else:  # a grid may miss a threshold between two values, but not find a better one
            pytest.fail(f"{actual} against {best}")


def test_a_generator_pruned_by_a_threshold():
    network, variables, axes, inputs = _build("generator")
    scores = pruning.norm_scale(variables, axes)

    def macs(widths):
        return pruning.macs(dcgan.generator(16, [widths["4x4"], widths["8x8"]]), *inputs)

    full = macs({"4x4": 7, "8x8": 5})
    assert full == pruning.macs(network, *inputs)
    indices = pruning.threshold(scores, macs, 0.6 * full)
    widths = [indices[group].size for group in ("4x4", "8x8")]
    assert macs({"4x4": widths[0], "8x8": widths[1]}) <= 0.6 * full
    assert sum(widths) < 12
    cut = min(float(scores[group][index]) for group in indices for index in indices[group])
    for group, score in scores.items():
        assert indices[group].tolist() == np.flatnonzero(np.asarray(score) >= cut).tolist()
    small = pruning.shrink(variables, axes, indices)
    assert _output(dcgan.generator(16, widths), small, inputs).shape == (B, 16, 16, 3)
    everything = pruning.threshold(scores, macs, full)
    assert [everything[group].size for group in ("4x4", "8x8")] == [7, 5]


# --- networks with a width for each layer ---------------------------------------------------------


def test_dcgan_widths_for_each_resolution():
    pair = dcgan.gan(32, (9, 2, 5), depth=1, minibatch_stddev=True)
    latents, images = jnp.zeros((1, LATENT)), jnp.zeros((1, 32, 32, 3))
    expected = {"4x4": 9, "8x8": 2, "16x16": 5}
    taps = tap_shapes(pair.generator, latents)
    assert {name: shape[-1] for name, shape in taps.items()} == expected
    taps = tap_shapes(pair.discriminator, images)
    assert {name: shape[-1] for name, shape in taps.items()} == expected | {"features": 9}
    capped = tap_shapes(dcgan.generator(32, [9, 2, 5], max_width=4), latents)
    assert {name: shape[-1] for name, shape in capped.items()} == {"4x4": 4, "8x8": 2, "16x16": 4}
    one = jax.eval_shape(dcgan.generator(32, 3).init, KEY, latents)
    same = jax.eval_shape(dcgan.generator(32, (12, 6, 3)).init, KEY, latents)
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, same)


def test_mlp_widths_for_each_layer():
    pair = mlp.gan(4, (7, 3, 5), depth=3)
    for network, x in zip(pair, (jnp.zeros((1, LATENT)), jnp.zeros((1, 4, 4, 1))), strict=True):
        taps = tap_shapes(network, x)
        assert [taps[f"hidden{layer}"][-1] for layer in range(3)] == [7, 3, 5]


def test_widths_that_do_not_fit_raise():
    for make in (dcgan.gan, dcgan.generator, dcgan.discriminator):
        with pytest.raises(
            ValueError, match="DCGAN of size 32 has 3 widths, from 4x4 to 16x16, no"
        ):
            make(32, (8, 4))
        with pytest.raises(ValueError, match=r"width=\(8, 0\) must be at least 1"):
            make(16, (8, 0))
    for make in (lambda w: mlp.gan(4, w), lambda w: mlp.generator(4, w), mlp.discriminator):
        with pytest.raises(ValueError, match="2 hidden layers have 2 widths, not 3"):
            make((8, 4, 2))
        with pytest.raises(ValueError, match=r"width=\(8, 0\) must be at least 1"):
            make((8, 0))
