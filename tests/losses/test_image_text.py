"""The contrastive loss against a loop implementation, and equivalent captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses import image_text

RNG = np.random.default_rng(0)


def with_loops(images, sentences, same, temperature):
    """A loop implementation in float64."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, sentences)]
    losses = np.zeros(len(images))
    for a, b in (unit, unit[::-1]):
        for i in range(len(images)):
            weights = np.exp([a[i] @ other / temperature for other in b])
            for j in np.flatnonzero(same[i]):
                losses[i] -= np.log(weights[j] / weights.sum()) / same[i].sum() / 2
    return losses.mean()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_matches_loops(x64, temperature):
    images, sentences = RNG.normal(size=(2, 5, 4))
    own = np.eye(5, dtype=bool)
    loss = image_text.image_text_contrastive(
        jnp.asarray(images), jnp.asarray(sentences), temperature=temperature
    )
    np.testing.assert_allclose(loss, with_loops(images, sentences, own, temperature), rtol=1e-9)
    tokens = jnp.array([[1, 2], [1, 3], [1, 2], [4, 4], [1, 2]])
    same = image_text.same_rows(tokens)
    assert np.asarray(same).sum() == 3 * 3 + 2
    loss = image_text.image_text_contrastive(
        jnp.asarray(images), jnp.asarray(sentences), same, temperature=temperature
    )
    expected = with_loops(images, sentences, np.asarray(same), temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_extremes():
    orthogonal = jnp.eye(4)
    assert (
        float(image_text.image_text_contrastive(orthogonal, 3 * orthogonal, temperature=0.01))
        < 1e-6
    )
    equal = jnp.ones((4, 3))
    np.testing.assert_allclose(
        image_text.image_text_contrastive(equal, equal), np.log(4), rtol=1e-6
    )
    gradient = jax.grad(lambda x: image_text.image_text_contrastive(x, x))(jnp.zeros((3, 2)))
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((jnp.ones((3, 2)), None), "sentences"),
        ((jnp.ones((3, 2)), jnp.ones((3, 4))), "shape"),
        ((jnp.ones((1, 2)), jnp.ones((1, 2))), "B >= 2"),
        ((jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones((2, 2), bool)), r"\(3, 3\) is needed"),
    ],
    ids=["none", "shapes", "one", "same"],
)
def test_invalid_arguments_are_rejected(arguments, match):
    with pytest.raises(ValueError, match=match):
        image_text.image_text_contrastive(*arguments)
    with pytest.raises(ValueError, match="temperature=0"):
        image_text.image_text_contrastive(jnp.ones((3, 2)), jnp.ones((3, 2)), temperature=0)
