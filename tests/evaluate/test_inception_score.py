"""The inception score against closed forms and SciPy's relative entropy."""

import itertools

import numpy as np
import pytest
from scipy import special, stats

from kd_jax.evaluate.inception_score import inception_score

LOGITS = np.random.default_rng(0).normal(size=(23, 6)) * 2


def test_one_sure_class_each_and_one_for_all():
    sure = 1e4 * np.eye(5)
    assert inception_score(np.tile(sure, (3, 1)), 1) == pytest.approx((5, 0))
    assert inception_score(np.tile(sure[:1], (9, 1)), 3) == pytest.approx((1, 0))
    assert inception_score(np.zeros((9, 4)), 3) == pytest.approx((1, 0))


def test_two_answers_by_hand():
    # p = (3/4, 1/4) and (1/4, 3/4): the KL to (1/2, 1/2) is log 2 - H(1/4).
    logits = np.log([[3, 1], [1, 3]])
    entropy = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    assert inception_score(logits, 1).mean == pytest.approx(2 * np.exp(-entropy))


@pytest.mark.parametrize("splits", [1, 2, 5, 23])
def test_scipys_entropy(splits):
    p = special.softmax(LOGITS, axis=1)
    edges = [int(np.floor(i * 23 / splits)) for i in range(splits + 1)]
    scores = []
    for a, b in itertools.pairwise(edges):
        part = p[a:b]
        scores.append(np.exp(np.mean([stats.entropy(row, part.mean(0)) for row in part])))
    found = inception_score(LOGITS, splits)
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12, abs=1e-12)


def test_a_constant_added_to_an_image_s_logits_changes_nothing():
    shifted = LOGITS + np.linspace(-500, 500, 23)[:, None]
    assert inception_score(shifted, 3) == pytest.approx(inception_score(LOGITS, 3), rel=1e-9)


def test_the_order_matters_to_splits_alone():
    again = np.random.RandomState(5).permutation(23)
    found = inception_score(LOGITS, 4, shuffle_seed=5)
    assert found == inception_score(LOGITS[again], 4)
    assert found != inception_score(LOGITS, 4)
    assert inception_score(LOGITS, 1, shuffle_seed=5) == pytest.approx(inception_score(LOGITS, 1))


def test_a_class_that_nothing_belongs_to():
    impossible = np.concatenate([LOGITS, np.full((23, 1), -1e5)], axis=1)
    assert inception_score(impossible, 2) == pytest.approx(inception_score(LOGITS, 2), rel=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="23 images cannot be cut into splits=24"):
        inception_score(LOGITS, 24)
    with pytest.raises(ValueError, match="splits=0"):
        inception_score(LOGITS, 0)
    with pytest.raises(ValueError, match="logits of example 1 are not finite"):
        inception_score([[0, 1], [np.nan, 1]], 1)
