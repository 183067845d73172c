"""Captions of drawn strokes of known weight and slant, and of real digits."""

from pathlib import Path

import jax
import numpy as np
import pytest

from kd_jax import data
from kd_jax.data import captions


def stroke(lean, width=2, side=24, light=1.0):
    """A straight stroke that leans right by `lean` columns per row upwards."""
    image = np.full((side, side, 1), -1.0, np.float32)
    for row in range(4, side - 4):
        middle = side / 2 + lean * (side / 2 - row)
        left = round(middle - width / 2)
        image[row, left : left + width] = 2 * light - 1
    return image


@pytest.mark.parametrize("lean", [-0.5, -0.25, 0.0, 0.25, 0.5])
def test_slant_equals_the_slant_of_the_stroke(lean):
    images = np.stack([stroke(lean), stroke(lean, width=5), stroke(lean, light=0.3)])
    np.testing.assert_allclose(captions.slant(images), lean, atol=0.06)


def test_weight_is_the_ink_weighted_mean_of_the_ink():
    images = np.stack([stroke(0.2, light=light) for light in (0.25, 0.5, 1.0)])
    np.testing.assert_allclose(captions.weight(images), [0.25, 0.5, 1.0], atol=1e-6)
    halves = np.concatenate([images[1:2], images[2:3]], axis=2)
    # As many pixels with 1/2 as with 1: (1/4 + 1) / (1/2 + 1).
    np.testing.assert_allclose(captions.weight(halves), [1.25 / 1.5], atol=1e-6)


def test_images_without_ink_have_weight_and_slant_0():
    empty = np.full((1, 8, 8, 1), -1.0)
    assert captions.weight(empty) == captions.slant(empty) == 0


def test_each_word_describes_a_third_of_the_real_digits(tmp_path):
    digits = data.load_all(data.open_source("digits", "train", 16, 1, Path(tmp_path)))
    captioner = captions.captioner(digits["image"])
    tokens = np.asarray(jax.jit(captioner.tokens)(digits["image"], digits["label"]))
    assert tokens.shape == (1797, 3)
    assert tokens.dtype == np.int32
    for column, count in ((0, 3), (1, 3)):
        counts = np.bincount(tokens[:, column] - 3 * column, minlength=count)
        assert np.abs(counts - 599).max() <= 1
    assert (tokens[:, 2] - 6 == digits["label"]).all()
    # A mirrored digit leans in the opposite direction.
    mirrored = np.asarray(captions.slant(digits["image"][:, :, ::-1]))
    np.testing.assert_allclose(mirrored, -captions.slant(digits["image"]), atol=1e-4)
    text = captions.decode(tokens[0])
    assert text.endswith(captions.DIGITS[int(digits["label"][0])])
    np.testing.assert_array_equal(captions.encode(text), tokens[0])


def test_captions_by_hand():
    captioner = captions.Captioner((0.3, 0.6), (-0.1, 0.1))
    images = np.stack([stroke(-0.4, light=0.2), stroke(0.0, light=0.5), stroke(0.4)])
    texts = [captions.decode(row) for row in captioner.tokens(images, np.array([1, 7, 1]))]
    assert texts == ["thin leftward one", "medium upright seven", "bold leaning one"]


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("bold upright sevn", "unknown word 'sevn' in 'bold upright sevn'; did you mean 'seven'"),
        ("bold upright cat", "known are thin, medium"),
        ("upright bold one", r"is not a weight \(thin, medium, bold\), a slant"),
        ("one", "is not a weight"),
        ("", "is not a weight"),
    ],
)
def test_invalid_captions_are_errors(caption, message):
    with pytest.raises(ValueError, match=message):
        captions.encode(caption)


def test_terciles_of_fewer_than_three_images_are_an_error():
    with pytest.raises(ValueError, match="got 2"):
        captions.captioner(np.zeros((2, 4, 4, 1)))


@pytest.mark.parametrize("token", [-1, 16])
def test_tokens_out_of_range_are_errors(token):
    with pytest.raises(ValueError, match=f"token {token} .* 0 to 15"):
        captions.decode([0, 3, token])


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range_are_errors(label):
    captioner = captions.Captioner((0.3, 0.6), (-0.1, 0.1))
    images = np.zeros((2, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=f"label {label} .* 0 to 9"):
        captioner.tokens(images, np.array([3, label]))
    assert captioner.tokens(images, np.array([0, 9]))[:, 2].tolist() == [6, 15]
