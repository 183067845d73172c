"""Captions of digits, made of what is measured in the image: "bold leaning seven".

Three words each: how heavy the strokes are, how they lean, and the digit. The first two are told by
thirds of a set of real digits, so that each word is as frequent as the others of its kind.
"""

import difflib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kd_jax.types import Array

WEIGHTS = ("thin", "medium", "bold")
SLANTS = ("leftward", "upright", "leaning")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (*WEIGHTS, *SLANTS, *DIGITS)
LENGTH = 3
"""Words in a caption."""


def weight(images: ArrayLike) -> Array:
    """How heavy strokes are: the mean of the ink where there is ink, in (0, 1].

    Args:
      images: `[B, H, W, C]` in [-1, 1], light on dark.

    Returns:
      `[B]`; 0 of an image without ink.
    """
    ink = _ink(images)
    total = ink.sum(axis=(1, 2))
    return (ink**2).sum(axis=(1, 2)) / jnp.maximum(total, 1e-6)


def slant(images: ArrayLike) -> Array:
    """How far strokes lean to the right, columns a row, by the second moments of the ink.

    Args:
      images: `[B, H, W, C]` in [-1, 1], light on dark.

    Returns:
      `[B]`; 1 leans by 45 degrees. 0 of an image without ink, or with ink in one row only.
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
    """Where one word ends and the next begins.

    Attributes:
      weights: the two bounds between the words of `WEIGHTS`.
      slants: those between the words of `SLANTS`.
    """

    weights: tuple[float, float]
    slants: tuple[float, float]

    def tokens(self, images: ArrayLike, labels: ArrayLike) -> Array:
        """The captions of digits as numbers of `WORDS`.

        Args:
          images: `[B, H, W, C]` in [-1, 1].
          labels: int `[B]`, the digits, in [0, 10).

        Returns:
          int32 `[B, 3]`. A pure function that can be compiled.

        Raises:
          ValueError: labels are given as a NumPy array, whose values can be looked at, and one is
            no digit.
        """
        if isinstance(labels, np.ndarray) and labels.size:
            wrong = labels[(labels < 0) | (labels >= len(DIGITS))]
            if wrong.size:
                raise ValueError(f"label {wrong[0]} is no digit: there are words for 0 to 9 only")
        heavy = jnp.searchsorted(jnp.asarray(self.weights), weight(images))
        leaning = len(WEIGHTS) + jnp.searchsorted(jnp.asarray(self.slants), slant(images))
        digits = len(WEIGHTS) + len(SLANTS) + jnp.asarray(labels)
        return jnp.stack([heavy, leaning, digits], axis=1).astype(jnp.int32)


def captioner(images: ArrayLike) -> Captioner:
    """The captioner for which each word describes a third of these images.

    Args:
      images: `[N, H, W, C]` in [-1, 1].

    Raises:
      ValueError: there are fewer than three.
    """
    if len(np.asarray(images)) < 3:
        raise ValueError(f"{len(np.asarray(images))} images cannot be told into thirds")

    def thirds(values: Array) -> tuple[float, float]:
        low, high = np.quantile(np.asarray(values, np.float64), (1 / 3, 2 / 3))
        return float(low), float(high)

    return Captioner(thirds(weight(images)), thirds(slant(images)))


def encode(caption: str) -> np.ndarray:
    """A caption's words as numbers, int32 `[3]`.

    Raises:
      ValueError: a word is unknown, or they are not a weight, a slant and a digit, in this order;
        one line that says what would fit.
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
    """The caption of tokens, int `[L]` in [0, 16): numbers of `WORDS`.

    Raises:
      ValueError: a token is out of that range.
    """
    numbers = np.asarray(tokens)
    for number in numbers:
        if not 0 <= number < len(WORDS):
            raise ValueError(f"token {number} is no word: they are 0 to {len(WORDS) - 1}")
    return " ".join(WORDS[int(number)] for number in numbers)


def _ink(images: ArrayLike) -> Array:
    """`[B, H, W]` in [0, 1]."""
    return (jnp.asarray(images, jnp.float32).mean(axis=3) + 1) / 2
