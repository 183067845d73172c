"""Figures per class by hand."""

import numpy as np
import pytest

from kd_jax.evaluate.conditional import accuracy, intra_class_frechet_distance
from kd_jax.evaluate.frechet import frechet_distance, moments

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4)), RNG.normal(1, 2, size=(90, 4))
OURS, THEIRS = np.arange(60) % 3, RNG.permutation(np.arange(90) % 3)


def test_each_class_is_measured_alone():
    found = intra_class_frechet_distance(X, OURS, Y, THEIRS)
    assert list(found.classes) == [0, 1, 2]
    for label, value in found.classes.items():
        ours, theirs = X[np.equal(OURS, label)], Y[np.equal(THEIRS, label)]
        expected = frechet_distance(moments(ours), moments(theirs))
        assert value == pytest.approx(expected, rel=1e-9)
    assert found.mean == pytest.approx(sum(found.classes.values()) / 3)


def test_shifted_classes_by_hand():
    """Shifts that a distance of all examples together hardly sees: the classes swap places."""
    base = RNG.normal(size=(50, 3))
    x = np.concatenate([base, base + 10])
    labels = np.repeat([4, 9], 50)
    swapped = intra_class_frechet_distance(x, labels, x, labels[::-1])
    assert swapped.classes == {4: pytest.approx(300), 9: pytest.approx(300)}
    assert frechet_distance(moments(x), moments(x[::-1])) == pytest.approx(0, abs=1e-9)
    shifted = x + np.where(labels == 4, 0, 2)[:, None]
    found = intra_class_frechet_distance(shifted, labels, x, labels)
    assert found.classes == {4: pytest.approx(0, abs=1e-9), 9: pytest.approx(12)}
    assert found.mean == pytest.approx(6)


def test_the_normalisation():
    biased = intra_class_frechet_distance(X, OURS, Y, THEIRS, ddof=0).classes[1]
    expected = frechet_distance(moments(X[OURS == 1], 0), moments(Y[THEIRS == 1], 0))
    assert biased == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.zeros(60, int), {}, "class 1 has 0 generated examples; 2 or more"),
        (np.where(np.arange(60) == 0, 7, OURS), {}, "class 7 has 1 generated examples; 2 or more"),
        (OURS, {"least": 21}, "class 0 has 20 generated examples; 21 or more"),
        (OURS[:5], {}, r"generated_labels have shape \(5,\)"),
        (OURS.astype(float), {}, "float64; integers"),
    ],
)
def test_too_few_of_a_class(labels, options, message):
    with pytest.raises(ValueError, match=message):
        intra_class_frechet_distance(X, labels, Y, THEIRS, **options)


def test_a_class_without_real_examples():
    with pytest.raises(ValueError, match="class 2 has 0 real examples"):
        intra_class_frechet_distance(X, OURS, Y, THEIRS % 2)


def test_accuracy_by_hand():
    logits = np.array([[3.0, 1, 0], [0, 1, 0], [0, 2, 5], [9, 8, 7]])
    found = accuracy(logits, [0, 1, 1, 2])
    assert found.top1 == 0.5
    assert found.classes == {0: 1.0, 1: 0.5, 2: 0.0}
    assert accuracy(logits, np.array([0, 1, 2, 0], np.int32)) == (1.0, {0: 1.0, 1: 1.0, 2: 1.0})


def test_labels_of_no_class():
    with pytest.raises(ValueError, match="example 1 has label 3, but the logits are of 3 classes"):
        accuracy(np.ones((2, 3)), [0, 3])
    with pytest.raises(ValueError, match="example 0 has label -1"):
        accuracy(np.ones((2, 3)), [-1, 0])
    with pytest.raises(ValueError, match="logits of example 1 are not finite"):
        accuracy([[0, 1], [np.inf, 0]], [0, 1])
