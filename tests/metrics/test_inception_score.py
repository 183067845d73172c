"""The inception score against closed forms and SciPy's relative entropy."""

import itertools

import numpy as np
import pytest
from scipy import special, stats

from kd_jax.metrics.inception_score import inception_score

LOGITS = np.random.default_rng(0).normal(size=(23, 6)) * 2


def test_confident_predictions_of_all_classes_and_of_one():
    confident = 1e4 * np.eye(5)
    assert inception_score(np.tile(confident, (3, 1)), 1) == pytest.approx((5, 0))
    assert inception_score(np.tile(confident[:1], (9, 1)), 3) == pytest.approx((1, 0))
    assert inception_score(np.zeros((9, 4)), 3) == pytest.approx((1, 0))


def test_two_predictions_by_hand():
    # p = (3/4, 1/4) and (1/4, 3/4): the KL to (1/2, 1/2) is log 2 - H(1/4).
    logits = np.log([[3, 1], [1, 3]])
    entropy = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    assert inception_score(logits, 1).mean == pytest.approx(2 * np.exp(-entropy))


@pytest.mark.parametrize("splits", [1, 2, 5, 23])
def test_matches_scipys_entropy(splits):
    p = special.softmax(LOGITS, axis=1)
    edges = [int(np.floor(i * 23 / splits)) for i in range(splits + 1)]
    scores = []
    for a, b in itertools.pairwise(edges):
        part = p[a:b]
        scores.append(np.exp(np.mean([stats.entropy(row, part.mean(0)) for row in part])))
    score = inception_score(LOGITS, splits)
    assert score == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12, abs=1e-12)


def test_invariant_to_a_constant_added_to_an_images_logits():
    shifted = LOGITS + np.linspace(-500, 500, 23)[:, None]
    assert inception_score(shifted, 3) == pytest.approx(inception_score(LOGITS, 3), rel=1e-9)


def test_the_order_matters_only_with_several_splits():
    order = np.random.RandomState(5).permutation(23)
    score = inception_score(LOGITS, 4, shuffle_seed=5)
    assert score == inception_score(LOGITS[order], 4)
    assert score != inception_score(LOGITS, 4)
    assert inception_score(LOGITS, 1, shuffle_seed=5) == pytest.approx(inception_score(LOGITS, 1))


def test_a_class_of_zero_probability():
    impossible = np.concatenate([LOGITS, np.full((23, 1), -1e5)], axis=1)
    assert inception_score(impossible, 2) == pytest.approx(inception_score(LOGITS, 2), rel=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="splits=24"):
        inception_score(LOGITS, 24)
    with pytest.raises(ValueError, match="splits=0"):
        inception_score(LOGITS, 0)
    with pytest.raises(ValueError, match="logits of example 1 are not finite"):
        inception_score([[0, 1], [np.nan, 1]], 1)
