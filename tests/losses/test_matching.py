"""The contrastive loss by hand, and captions that say the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses import matching

RNG = np.random.default_rng(0)


def by_hand(images, sentences, same, temperature):
    """In loops, of float64 numbers."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, sentences)]
    found = np.zeros(len(images))
    for a, b in (unit, unit[::-1]):
        for i in range(len(images)):
            weights = np.exp([a[i] @ other / temperature for other in b])
            for j in np.flatnonzero(same[i]):
                found[i] -= np.log(weights[j] / weights.sum()) / same[i].sum() / 2
    return found.mean()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_by_hand(x64, temperature):
    images, sentences = RNG.normal(size=(2, 5, 4))
    own = np.eye(5, dtype=bool)
    found = matching.contrastive(
        jnp.asarray(images), jnp.asarray(sentences), temperature=temperature
    )
    np.testing.assert_allclose(found, by_hand(images, sentences, own, temperature), rtol=1e-9)
    tokens = jnp.array([[1, 2], [1, 3], [1, 2], [4, 4], [1, 2]])
    same = matching.same_rows(tokens)
    assert np.asarray(same).sum() == 3 * 3 + 2
    found = matching.contrastive(
        jnp.asarray(images), jnp.asarray(sentences), same, temperature=temperature
    )
    expected = by_hand(images, sentences, np.asarray(same), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_extremes():
    apart = jnp.eye(4)
    assert float(matching.contrastive(apart, 3 * apart, temperature=0.01)) < 1e-6
    alike = jnp.ones((4, 3))
    np.testing.assert_allclose(matching.contrastive(alike, alike), np.log(4), rtol=1e-6)
    gradient = jax.grad(lambda x: matching.contrastive(x, x))(jnp.zeros((3, 2)))
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((jnp.ones((3, 2)), None), "sentences"),
        ((jnp.ones((3, 2)), jnp.ones((3, 4))), "shape"),
        ((jnp.ones((1, 2)), jnp.ones((1, 2))), "B of at least 2"),
        ((jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones((2, 2), bool)), r"\(3, 3\) is needed"),
    ],
    ids=["none", "shapes", "one", "same"],
)
def test_what_cannot_be_matched(arguments, match):
    with pytest.raises(ValueError, match=match):
        matching.contrastive(*arguments)
    with pytest.raises(ValueError, match="temperature=0"):
        matching.contrastive(jnp.ones((3, 2)), jnp.ones((3, 2)), temperature=0)
