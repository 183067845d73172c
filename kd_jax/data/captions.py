"""Captions of digits, derived from measurements of the image: "bold leaning seven".

A caption has three words: the weight of the strokes, their slant, and the digit. The first two are
quantized by the terciles of a set of real digits, so that the words of each kind are equally
frequent.
"""

import difflib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kd_jax.core.types import Array

WEIGHTS = ("thin", "medium", "bold")
SLANTS = ("leftward", "upright", "leaning")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (*WEIGHTS, *SLANTS, *DIGITS)
LENGTH = 3
"""The number of words in a caption."""


def weight(images: ArrayLike) -> Array:
    """The weight of the strokes: the mean of the ink, weighted by the ink, in (0, 1].

    Args:
      images: `[B, H, W, C]` in [-1, 1], light on dark.

    Returns:
      `[B]`; 0 for an image without ink.
    """
    ink = _ink(images)
    total = ink.sum(axis=(1, 2))
    return (ink**2).sum(axis=(1, 2)) / jnp.maximum(total, 1e-6)


def slant(images: ArrayLike) -> Array:
    """The slant of the strokes to the right, in columns per row, by the second moments of the ink.

    Args:
      images: `[B, H, W, C]` in [-1, 1], light on dark.

    Returns:
      `[B]`; 1 is a slant of 45 degrees. 0 for an image without ink, or with ink in one row only.
    """
    ink = _ink(images)
    total = jnp.maximum(ink.sum(axis=(1, 2), keepdims=True), 1e-6)
    rows = jnp.arange(ink.shape[1], dtype=ink.dtype)[None, :, None]
    columns = jnp.arange(ink.shape[2], dtype=ink.dtype)[None, None, :]
    row = rows - (ink * rows).sum(axis=(1, 2), keepdims=True) / total
    column = columns - (ink * columns).sum(axis=(1, 2), keepdims=True) / total
    spread = (ink * row**2).sum(axis=(1, 2))
    return -(ink * row * column).sum(axis=(1, 2)) / jnp.maximum(spread, 1e-6)


class Captioner(NamedTuple):
    """The thresholds between words.

    Attributes:
      weights: the two thresholds between the words of `WEIGHTS`.
      slants: the two thresholds between the words of `SLANTS`.
    """

    weights: tuple[float, float]
    slants: tuple[float, float]

    def tokens(self, images: ArrayLike, labels: ArrayLike) -> Array:
        """The captions of digits as indices into `WORDS`. A pure function that can be compiled.

        Args:
          images: `[B, H, W, C]` in [-1, 1].
          labels: int `[B]`, the digits, in [0, 10).

        Returns:
          int32 `[B, 3]`.

        Raises:
          ValueError: a label is not in [0, 10); only checked for a NumPy array.
        """
        if isinstance(labels, np.ndarray) and labels.size:
            wrong = labels[(labels < 0) | (labels >= len(DIGITS))]
            if wrong.size:
                raise ValueError(f"label {wrong[0]} is not a digit, an integer in 0 to 9")
        weights = jnp.searchsorted(jnp.asarray(self.weights), weight(images))
        slants = len(WEIGHTS) + jnp.searchsorted(jnp.asarray(self.slants), slant(images))
        digits = len(WEIGHTS) + len(SLANTS) + jnp.asarray(labels)
        return jnp.stack([weights, slants, digits], axis=1).astype(jnp.int32)


def captioner(images: ArrayLike) -> Captioner:
    """The captioner whose weights and slants each describe a third of these images.

    Args:
      images: `[N, H, W, C]` in [-1, 1].

    Raises:
      ValueError: there are fewer than three images.
    """
    if len(np.asarray(images)) < 3:
        raise ValueError(f"terciles need at least 3 images, got {len(np.asarray(images))}")

    def terciles(values: Array) -> tuple[float, float]:
        low, high = np.quantile(np.asarray(values, np.float64), (1 / 3, 2 / 3))
        return float(low), float(high)

    return Captioner(terciles(weight(images)), terciles(slant(images)))


def encode(caption: str) -> np.ndarray:
    """The tokens of a caption, int32 `[3]`: indices into `WORDS`.

    Raises:
      ValueError: a word is unknown, or the words are not a weight, a slant and a digit, in this
        order; the message is one line with a suggestion or the valid words.
    """
    words = caption.lower().split()
    for word in words:
        if word not in WORDS:
            near = difflib.get_close_matches(word, WORDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(WORDS)}"
            raise ValueError(f"unknown word {word!r} in {caption!r}; {hint}")
    kinds = (WEIGHTS, SLANTS, DIGITS)
    if len(words) != LENGTH or any(w not in kind for w, kind in zip(words, kinds, strict=True)):
        raise ValueError(
            f"{caption!r} is not a weight ({', '.join(WEIGHTS)}), a slant ({', '.join(SLANTS)}) "
            f"and a digit ({DIGITS[0]} to {DIGITS[-1]})"
        )
    return np.array([WORDS.index(word) for word in words], np.int32)


def decode(tokens: ArrayLike) -> str:
    """The caption of tokens, int `[L]` in [0, 16): indices into `WORDS`.

    Raises:
      ValueError: a token is out of that range.
    """
    indices = np.asarray(tokens)
    for index in indices:
        if not 0 <= index < len(WORDS):
            raise ValueError(f"token {index} is not in the vocabulary, 0 to {len(WORDS) - 1}")
    return " ".join(WORDS[int(index)] for index in indices)


def _ink(images: ArrayLike) -> Array:
    """`[B, H, W]` in [0, 1]."""
    return (jnp.asarray(images, jnp.float32).mean(axis=3) + 1) / 2
