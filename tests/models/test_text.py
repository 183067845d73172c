"""Text-to-image networks: shapes, dependence on the words and their order, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core import architecture
from kd_jax.models import text

KEY = jax.random.key(0, impl="rbg")
Z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
TOKENS = jnp.array([[0, 1, 2], [3, 1, 2], [2, 1, 0]])
WORDS = {"vocabulary": 7, "length": 3, "embedding": 6}


@pytest.fixture(scope="module")
def pair():
    networks = text.gan(16, 4, channels=1, **WORDS)
    images = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, 16, 16, 1)), jnp.float32)
    variables = [
        jax.jit(networks.generator.init)(KEY, Z, TOKENS),
        jax.jit(networks.discriminator.init)(KEY, images, TOKENS),
    ]
    return networks, variables, images


def test_shapes_and_taps(pair):
    networks, (g, d), images = pair
    fake, taps, after = networks.generator.apply(g, Z, TOKENS, train=True)
    assert fake.shape == (3, 16, 16, 1)
    assert fake.dtype == jnp.float32
    assert float(jnp.abs(fake).max()) <= 1
    assert {name: x.shape for name, x in taps.items()} == {
        "words": (3, 3, 6),
        "sentence": (3, 6),
        "4x4": (3, 4, 4, 16),
        "8x8": (3, 8, 8, 8),
        "16x16": (3, 16, 16, 4),
    }
    assert jax.tree.structure(after) == jax.tree.structure(g)
    scores, taps, _ = networks.discriminator.apply(d, images, TOKENS)
    assert scores.shape == (3,)
    assert taps["image"].shape == taps["sentence"].shape == (3, 6)
    assert {"8x8", "4x4"} <= set(taps)


def test_each_example_depends_on_its_own_caption(pair):
    networks, (g, d), images = pair
    whole = networks.generator.apply(g, Z, TOKENS)[0]
    single = networks.generator.apply(g, Z[1:2], TOKENS[1:2])[0]
    np.testing.assert_allclose(whole[1:2], single, atol=1e-5)
    # Another order of the same words changes the result; other words do, too.
    for other in (TOKENS[:, ::-1].at[1].set(TOKENS[1]), TOKENS.at[0, 2].set(5)):
        changed = np.abs(networks.generator.apply(g, Z, other)[0] - whole).max(axis=(1, 2, 3))
        scores = [networks.discriminator.apply(d, images, t)[0] for t in (TOKENS, other)]
        differs = (np.asarray(other) != np.asarray(TOKENS)).any(axis=1)
        np.testing.assert_array_equal(changed > 1e-6, differs)
        np.testing.assert_array_equal(np.abs(scores[0] - scores[1]) > 1e-6, differs)


def test_every_parameter_has_a_gradient(pair):
    networks, (g, d), _ = pair

    def loss(params):
        g_params, d_params = params
        fake = networks.generator.apply({**g, "params": g_params}, Z, TOKENS, train=True)[0]
        return networks.discriminator.apply({**d, "params": d_params}, fake, TOKENS)[0].sum()

    gradients = jax.jit(jax.grad(loss))((g["params"], d["params"]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        # Except words in no caption, and biases that a normalisation cancels.
        if "Embed" not in name and "conv1" not in name and "first" not in name:
            assert float(jnp.abs(leaf).max()) > 0, name


def test_attention_is_a_mean_of_words():
    """With equal keys the result of each query is the mean of the values."""

    class Attend(text.nn.Module):
        @text.nn.compact
        def __call__(self, queries, words):
            return text.attend(queries, words, 4, "a")

    words = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 5)), jnp.float32)
    queries = jnp.ones((2, 6, 2))
    variables = Attend().init(KEY, queries, words)["params"]
    zero = {**variables, "a_keys": {"kernel": jnp.zeros((5, 4))}}
    attended = Attend().apply({"params": zero}, queries, words)
    expected = (words @ variables["a_values"]["kernel"]).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(attended, jnp.broadcast_to(expected, attended.shape), rtol=1e-5)


def test_a_network_is_rebuilt_from_its_description(pair):
    networks, (g, _), _ = pair
    described = architecture.describe(networks.generator, Z, TOKENS)
    rebuilt = architecture.rebuild(described).network
    np.testing.assert_array_equal(
        rebuilt.apply(g, Z, TOKENS)[0], networks.generator.apply(g, Z, TOKENS)[0]
    )


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: text.gan(12, **WORDS), "size=12 is not one of 8, 16"),
        (lambda: text.gan(16, 0, **WORDS), "width=0"),
        (lambda: text.generator(16, vocabulary=0, length=3), "vocabulary=0"),
        (
            lambda: text.generator(16, 4, **WORDS).init(KEY, Z, TOKENS[:, :2]),
            r"tokens \[B, 3\] .* \(3, 2\)",
        ),
        (
            lambda: text.generator(16, 4, **WORDS).init(KEY, Z, TOKENS * 1.0),
            "tokens .* integers, not float32",
        ),
        (
            lambda: text.discriminator(16, 4, **WORDS).init(KEY, jnp.zeros((3, 8, 8, 1)), TOKENS),
            r"images \[B, 16, 16, C\] are needed",
        ),
    ],
)
def test_invalid_arguments_raise(call, match):
    with pytest.raises(ValueError, match=match):
        call()
