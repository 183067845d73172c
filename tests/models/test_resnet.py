"""SNGAN, and the channel axes of all residual networks (SNGAN, BigGAN, TinyGAN)."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import quick

from kd_jax import pruning
from kd_jax.core.axes import group_widths, parts, path_name
from kd_jax.core.network import connect, tap_shapes
from kd_jax.models import biggan, biggan_deep, resnet, tinygan

B, LATENT, CLASSES = 4, 6, 5
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def _z(length=LATENT):
    return jax.ShapeDtypeStruct((B, length), jnp.float32)


def _images(size, channels=3):
    return jax.ShapeDtypeStruct((B, size, size, channels), jnp.float32)


LABELS = jax.ShapeDtypeStruct((B,), jnp.int32)


def _abstract(network, *inputs):
    def run(key, *inputs):
        variables = network.init(key, *inputs)
        output, taps, _ = network.apply(variables, *inputs, train=True)
        return output, taps, variables

    return jax.eval_shape(run, KEY, *inputs)


def _count(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


def _random_variables(network, *inputs):
    """Random variables, without zeros and ones, with positive variances, scales and sigmas."""

    def draw(path, leaf):
        if path[-1].key in ("var", "scale", "sigma"):
            return jnp.asarray(RNG.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(RNG.normal(size=leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, KEY, *inputs))


def _random_inputs(inputs):
    return [
        jnp.arange(B) % CLASSES
        if x.dtype == jnp.int32
        else jnp.asarray(RNG.normal(size=x.shape), jnp.float32)
        for x in inputs
    ]


# --- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize(
    ("size", "widths", "blocks"),
    [
        (32, (2, 2, 2, 2), (2, 2, 2, 2)),
        (64, (32, 16, 8, 4, 2), (2, 4, 8, 16, 32)),
        (128, (32, 32, 16, 8, 4, 2), (2, 4, 8, 16, 32, 32)),
    ],
)
def test_shapes_taps_and_parameters(size, widths, blocks, classes):
    pair = resnet.gan(size, 2, classes=classes)
    labels = (LABELS,) if classes else ()
    images, taps, variables = _abstract(pair.generator, _z(), *labels)
    assert images.shape == (B, size, size, 3)
    sides = [4 * 2**level for level in range(len(widths))]
    shapes = {f"{s}x{s}": (B, s, s, w) for s, w in zip(sides, widths, strict=True)}
    by_block = {f"block_{i}": shapes[f"{s}x{s}"] for i, s in enumerate(sides[1:])}
    assert {name: tap.shape for name, tap in taps.items()} == shapes | by_block
    norm = 2 * max(classes, 1)  # scales and biases
    count = LATENT * 16 * widths[0] + 16 * widths[0]
    for a, b in itertools.pairwise(widths):
        count += 9 * a * b + b + 9 * b * b + b + a * b + b + norm * (a + b)
    count += 2 * widths[-1] + 27 * widths[-1] + 3
    assert _count(variables["params"]) == count
    assert set(variables) == {"params", "batch_stats"}

    scores, taps, variables = _abstract(pair.discriminator, _images(size), *labels)
    assert scores.shape == (B,)
    halvings = 2 if size == 32 else len(blocks) - 1
    sides = [size // 2 ** min(i + 1, halvings) for i in range(len(blocks))]
    shapes = {name: tap.shape for name, tap in taps.items()}
    for i, (s, w) in enumerate(zip(sides, blocks, strict=True)):
        assert shapes[f"block_{i}"] == (B, s, s, w)
    assert shapes[f"{sides[-1]}x{sides[-1]}"] == (B, sides[-1], sides[-1], blocks[-1])
    assert shapes["features"] == (B, blocks[-1])
    count, before = 0, 3
    for i, b in enumerate(blocks):
        hidden = before if i else b
        count += 9 * before * hidden + hidden + 9 * hidden * b + b
        count += before * b + b if i < halvings or before != b else 0
        before = b
    count += before + 1 + classes * before
    assert _count(variables["params"]) == count
    assert set(variables) == {"params", "spectral"}


def test_upsampling_and_pooling():
    x = jnp.arange(8.0).reshape(1, 2, 2, 2)
    up = np.asarray(resnet.upsample(x))
    np.testing.assert_array_equal(up, np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))
    np.testing.assert_array_equal(resnet.average_pool(up), x)
    np.testing.assert_array_equal(resnet.average_pool(x), [[[[3.0, 4.0]]]])


def test_labels_are_required_by_conditional_networks_only():
    for module in (resnet, biggan, biggan_deep, tinygan):
        for network, x in zip(module.gan(32, 8, classes=3), (_z(12), _images(32)), strict=True):
            with pytest.raises(ValueError, match="made for 3 classes, but none were given"):
                _abstract(network, x)
        for network, x in zip(module.gan(32, 8), (_z(12), _images(32)), strict=True):
            with pytest.raises(ValueError, match="0 classes, but labels of shape"):
                _abstract(network, x, LABELS)


def test_invalid_sizes_and_widths_raise():
    for make in (resnet.gan, resnet.generator, resnet.discriminator):
        with pytest.raises(ValueError, match="size must be one of 32, 64, 128, not 48"):
            make(48)
        with pytest.raises(ValueError, match="width=0 must be at least 1"):
            make(32, 0)
    with pytest.raises(ValueError, match=r"generator of size 64 has 5 widths .*, not 2"):
        resnet.generator(64, (4, 3))
    with pytest.raises(ValueError, match=r"discriminator of size 128 has 6 widths .*, not 2"):
        resnet.discriminator(128, (4, 3))


@pytest.fixture(scope="module")
def discriminator():
    network = resnet.discriminator(32, 4, classes=CLASSES)
    images = jnp.asarray(RNG.uniform(-1, 1, (B, 32, 32, 3)), jnp.float32)
    return jax.jit(network.apply), _random_variables(network, images, LABELS), images


def test_projection_head(discriminator):
    apply, variables, images = discriminator
    one, two = jnp.array([0, 0, 1, 2]), jnp.array([1, 0, 2, 0])
    scores, taps, _ = apply(variables, images, one)
    embedding = np.asarray(variables["params"]["label"]["embedding"], np.float64)
    # The layer normalises the embedding after one power iteration from its stored vector.
    u = np.asarray(variables["spectral"]["label"]["u"], np.float64)[0]
    v = embedding.T @ u / np.linalg.norm(embedding.T @ u)
    embedding = embedding / np.linalg.norm(embedding @ v)
    difference = ((embedding[one] - embedding[two]) * np.asarray(taps["features"])).sum(axis=1)
    np.testing.assert_allclose(
        scores - apply(variables, images, two)[0], difference, rtol=1e-4, atol=1e-4
    )
    assert abs(difference[0]) > 1e-3


def test_examples_do_not_interact_in_the_discriminator(discriminator):
    apply, variables, images = discriminator
    labels = jnp.zeros(B, jnp.int32)
    changed = images.at[2].set(0.0)
    differ = np.abs(apply(variables, images, labels)[0] - apply(variables, changed, labels)[0])
    assert (differ > 1e-5).tolist() == [False, False, True, False]


def test_the_first_block_does_not_rectify_images():
    network = resnet.discriminator(32, 4, spectral=None)
    variables = _random_variables(network, _images(32))
    variables["params"]["block_0"]["shortcut"]["kernel"] *= 0.0
    negative = -jnp.asarray(RNG.uniform(0.1, 1, (B, 32, 32, 3)), jnp.float32)
    _, taps, _ = network.apply(variables, negative)
    _, other_taps, _ = network.apply(variables, negative / 2)
    assert np.abs(taps["block_0"] - other_taps["block_0"]).max() > 1e-3


def test_generated_images_are_in_range_and_depend_on_latents_and_labels():
    network = resnet.generator(32, 4, classes=CLASSES)
    variables = _random_variables(network, _z(), LABELS)
    apply = jax.jit(network.apply)
    z, labels = jnp.asarray(RNG.normal(size=(B, LATENT)), jnp.float32), jnp.zeros(B, jnp.int32)
    images = np.asarray(apply(variables, z, labels)[0])
    assert np.abs(images).max() <= 1.0
    for other in (
        apply(variables, z.at[1].set(0.0), labels),
        apply(variables, z, labels.at[1].set(2)),
    ):
        changed = np.abs(images - np.asarray(other[0])).max(axis=(1, 2, 3)) > 1e-4
        assert changed.tolist() == [False, True, False, False]


def test_half_precision_applies_to_computation_not_storage():
    pair = resnet.gan(32, 2, classes=3, dtype=jnp.bfloat16)
    for network, x in zip(pair, (_z(), _images(32)), strict=True):
        output, taps, variables = _abstract(network, x, LABELS)
        assert output.dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        assert taps["8x8"].dtype == jnp.bfloat16


# --- channels -------------------------------------------------------------------------------------

# A function from widths to the network, its axes function, wider and narrower widths, inputs. A
# generator's blocks may have any widths, except BigGAN-deep's, which must be non-increasing.
CASES = {
    "resnet generator": (
        lambda widths: resnet.generator(32, widths, classes=CLASSES),
        resnet.generator_axes,
        ((7, 9, 8, 10), (5, 9, 4, 6)),
        (_z(), LABELS),
    ),
    "resnet discriminator": (
        lambda widths: resnet.discriminator(32, widths, classes=CLASSES),
        resnet.discriminator_axes,
        ((7, 9, 10, 10), (5, 8, 6, 6)),
        (_images(32), LABELS),
    ),
    "biggan generator": (
        lambda widths: biggan.generator(32, widths, classes=CLASSES, shared=3, attention=(16,)),
        biggan.generator_axes,
        ((7, 9, 18, 10), (5, 9, 8, 6)),
        (_z(8), LABELS),
    ),
    "biggan discriminator": (
        lambda widths: biggan.discriminator(
            32, widths, classes=CLASSES, attention=(16, 8), wide=False
        ),
        biggan.discriminator_axes,
        ((17, 18, 18, 20), (9, 8, 8, 10)),
        (_images(32), LABELS),
    ),
    "biggan_deep generator": (
        lambda widths: biggan_deep.generator(
            32, widths, depth=1, classes=CLASSES, shared=3, attention=(16,), spectral=None
        ),
        biggan_deep.generator_axes,
        ((24, 20, 18, 9), (13, 11, 10, 5)),
        (_z(), LABELS),
    ),
    "published biggan_deep generator": (
        lambda widths: biggan_deep.generator_of_blocks(
            widths, [True, False], statistics=3, spectral=None, attention=[0]
        ),
        biggan_deep.generator_axes,
        ((18, 12, 5), (13, 8, 4)),
        (_z(),),
    ),
    "biggan_deep discriminator": (
        lambda widths: biggan_deep.discriminator(
            32, widths, depth=2, classes=CLASSES, attention=(16,)
        ),
        biggan_deep.discriminator_axes,
        ((9, 16, 16, 20), (5, 8, 8, 11)),
        (_images(32), LABELS),
    ),
    "tinygan generator": (
        lambda widths: tinygan.generator(32, widths, classes=CLASSES, shared=3),
        tinygan.generator_axes,
        ((7, 9, 8, 10), (5, 9, 4, 6)),
        (_z(8), LABELS),
    ),
    "tinygan discriminator": (
        lambda widths: tinygan.discriminator(16, widths, classes=CLASSES),
        tinygan.discriminator_axes,
        ((7, 9), (5, 6)),
        (_images(16), LABELS),
    ),
}
some_cases = pytest.mark.parametrize(
    "case",
    quick(CASES, {"resnet discriminator", "biggan generator", "tinygan generator"}.__contains__),
)


@functools.cache
def _narrowed(case):
    """The wide network's variables and axes; the narrow one's shapes; scores; channel indices."""
    make, describe, (wide, narrow), inputs = CASES[case]
    variables = _random_variables(make(wide), *inputs)
    axes = describe(variables)
    like = jax.eval_shape(make(narrow).init, KEY, *inputs)
    scores = pruning.magnitude(variables, axes)
    widths = group_widths(like, describe(like))
    return variables, axes, like, scores, pruning.top_channels(scores, widths)


@some_cases
def test_pruned_teacher_has_the_student_shapes(case):
    variables, axes, like, scores, _ = _narrowed(case)
    small = pruning.from_teacher(variables, axes, scores, like)
    assert jax.tree.structure(small) == jax.tree.structure(like)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, like)


@some_cases
def test_shrinking_to_all_channels_is_the_identity(case):
    variables, axes, *_ = _narrowed(case)
    channel_indices = {
        group: np.arange(width) for group, width in group_widths(variables, axes).items()
    }
    unpruned = pruning.shrink(variables, axes, channel_indices)
    jax.tree.map(np.testing.assert_array_equal, unpruned, variables)


@some_cases
def test_removing_zeroed_channels_preserves_the_output(case):
    make, _, (wide, narrow), inputs = CASES[case]
    variables, axes, _, _, channel_indices = _narrowed(case)
    small = pruning.shrink(variables, axes, channel_indices)
    # Zero all entries of the removed channels.
    ones = jax.tree.map(jnp.ones_like, variables)
    zeroed = jax.tree.map(lambda x, mask: x * mask, variables, _mask(ones, axes, channel_indices))
    inputs = _random_inputs(inputs)
    apply = jax.jit(make(wide).apply)
    output, _, _ = apply(zeroed, *inputs)
    expected, _, _ = jax.jit(make(narrow).apply)(small, *inputs)
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)
    original, _, _ = apply(variables, *inputs)
    assert np.abs(np.asarray(original - output)).max() > 1e-2


def _mask(ones, axes, channel_indices):
    """1 for the entries that pruning retains, 0 elsewhere."""
    sizes = group_widths(ones, axes)

    def along(axis, length):
        retained, start = np.zeros(length, np.float32), 0
        for part in parts(axis):
            indices = channel_indices[part] if isinstance(part, str) else np.arange(length)
            retained[start + indices] = 1
            start += sizes.get(part, length)
        return retained

    def mask(path, leaf):
        result = np.ones(leaf.shape, np.float32)
        for index, axis in enumerate(axes[path_name(path)]):
            line = along(axis, leaf.shape[index])
            result *= line.reshape([-1 if i == index else 1 for i in range(leaf.ndim)])
        return result

    return jax.tree_util.tree_map_with_path(mask, ones)


def test_axes_of_other_networks_raise():
    variables_of = {
        case: _random_variables(make(wide), *inputs)
        for case, (make, _, (wide, _), inputs) in CASES.items()
    }
    for case, (_, describe, _, _) in CASES.items():
        family, kind = case.split()[-2:]
        for other, variables in variables_of.items():
            if other.split()[-2:] == [family, kind]:
                continue
            if {family, other.split()[-2]} == {"resnet", "biggan"} and kind == other.split()[-1]:
                continue  # the same blocks
            with pytest.raises(ValueError, match=r"not those of|not described|is missing"):
                describe(variables)


def test_axes_of_connected_networks_raise():
    network = connect(resnet.generator(32, 2), {"8x8": (1, 8, 8, 11)})
    variables = jax.eval_shape(network.init, KEY, _z())
    with pytest.raises(ValueError, match=r"connectors/8x8/bias belongs to a connector"):
        resnet.generator_axes(variables)


def test_taps_match_the_documentation():
    taps = tap_shapes(CASES["biggan generator"][0]((8, 8, 8, 8)), _z(8), LABELS)
    sides = ["4x4", "8x8", "16x16", "32x32"]
    assert set(taps) == {*sides, "block_0", "block_1", "block_2", "attention_1"}


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsampled_pixels_are_repeated(factor):
    x = RNG.normal(size=(2, 3, 2, 4)).astype(np.float32)
    expected = x.repeat(factor, axis=1).repeat(factor, axis=2)
    np.testing.assert_array_equal(resnet.upsample(x, factor), expected)
