"""Per-class metrics against hand-computed values."""

import numpy as np
import pytest

from kd_jax.metrics.conditional import accuracy, intra_class_frechet_distance
from kd_jax.metrics.frechet import frechet_distance, moments

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4)), RNG.normal(1, 2, size=(90, 4))
X_LABELS, Y_LABELS = np.arange(60) % 3, RNG.permutation(np.arange(90) % 3)


def test_each_class_is_measured_separately():
    distances = intra_class_frechet_distance(X, X_LABELS, Y, Y_LABELS)
    assert list(distances.classes) == [0, 1, 2]
    for label, value in distances.classes.items():
        x, y = X[np.equal(X_LABELS, label)], Y[np.equal(Y_LABELS, label)]
        expected = frechet_distance(moments(x), moments(y))
        assert value == pytest.approx(expected, rel=1e-9)
    assert distances.mean == pytest.approx(sum(distances.classes.values()) / 3)


def test_shifted_classes_by_hand():
    """Class shifts that the distance of all examples hardly detects, as swapped classes."""
    base = RNG.normal(size=(50, 3))
    x = np.concatenate([base, base + 10])
    labels = np.repeat([4, 9], 50)
    swapped = intra_class_frechet_distance(x, labels, x, labels[::-1])
    assert swapped.classes == {4: pytest.approx(300), 9: pytest.approx(300)}
    assert frechet_distance(moments(x), moments(x[::-1])) == pytest.approx(0, abs=1e-9)
    shifted = x + np.where(labels == 4, 0, 2)[:, None]
    distances = intra_class_frechet_distance(shifted, labels, x, labels)
    assert distances.classes == {4: pytest.approx(0, abs=1e-9), 9: pytest.approx(12)}
    assert distances.mean == pytest.approx(6)


def test_ddof():
    biased = intra_class_frechet_distance(X, X_LABELS, Y, Y_LABELS, ddof=0).classes[1]
    expected = frechet_distance(moments(X[X_LABELS == 1], 0), moments(Y[Y_LABELS == 1], 0))
    assert biased == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.zeros(60, int), {}, "class 1 has 0 generated examples; 2 or more"),
        (
            np.where(np.arange(60) == 0, 7, X_LABELS),
            {},
            "class 7 has 1 generated examples; 2 or more",
        ),
        (X_LABELS, {"least": 21}, "class 0 has 20 generated examples; 21 or more"),
        (X_LABELS[:5], {}, r"generated_labels have shape \(5,\)"),
        (X_LABELS.astype(float), {}, "float64; integers"),
    ],
)
def test_invalid_labels_are_rejected(labels, options, message):
    with pytest.raises(ValueError, match=message):
        intra_class_frechet_distance(X, labels, Y, Y_LABELS, **options)


def test_a_class_without_real_examples():
    with pytest.raises(ValueError, match="class 2 has 0 real examples"):
        intra_class_frechet_distance(X, X_LABELS, Y, Y_LABELS % 2)


def test_accuracy_by_hand():
    logits = np.array([[3.0, 1, 0], [0, 1, 0], [0, 2, 5], [9, 8, 7]])
    accuracies = accuracy(logits, [0, 1, 1, 2])
    assert accuracies.top1 == 0.5
    assert accuracies.classes == {0: 1.0, 1: 0.5, 2: 0.0}
    assert accuracy(logits, np.array([0, 1, 2, 0], np.int32)) == (1.0, {0: 1.0, 1: 1.0, 2: 1.0})


def test_labels_out_of_range_and_infinite_logits_are_rejected():
    with pytest.raises(ValueError, match="example 1 has label 3, but the logits are of 3 classes"):
        accuracy(np.ones((2, 3)), [0, 3])
    with pytest.raises(ValueError, match="example 0 has label -1"):
        accuracy(np.ones((2, 3)), [-1, 0])
    with pytest.raises(ValueError, match="logits of example 1 are not finite"):
        accuracy([[0, 1], [np.inf, 0]], [0, 1])
