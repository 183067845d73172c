"""Text-to-image: a text encoder, a generator with attention to words, and a discriminator.

Small networks in the manner of AttnGAN (Xu et al. 2018): the sentence and the latent modulate every
normalisation, and at one resolution each position attends to the words. The discriminator scores
whether an image is real and matches its caption by a projection (Miyato & Koyama 2018), and returns
embeddings of both, of equal length, for matching losses (`kd_jax.losses.image_text`).

Captions are tokens, int `[B, L]` in [0, vocabulary). The range is not checked, since compiled code
cannot raise on values: larger tokens make words, and with them images and scores, NaN; negative
ones index other words. Images are `[B, H, W, C]` in [-1, 1].
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.checks import at_least_float32
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array
from kd_jax.models.factories import make_gan
from kd_jax.models.layers.norm import BatchNorm, ConditionalNorm
from kd_jax.models.layers.spectral import Conv
from kd_jax.models.resnet import DiscriminatorBlock, GeneratorBlock

SIZES = (8, 16, 32, 64, 128)


def generator(
    size: int,
    width: int = 64,
    *,
    vocabulary: int,
    length: int,
    embedding: int = 64,
    channels: int = 3,
    dtype: Any = jnp.float32,
) -> Network:
    """`(latents [B, any], tokens [B, L]) -> images`.

    Tokens must be in [0, vocabulary); larger ones make the image NaN.

    Taps are `words` `[B, L, embedding]`, `sentence` `[B, embedding]`, and `4x4`, `8x8`, ..., the
    features at each side.

    Args:
      size: the images' side, one of `SIZES`.
      width: channels at the full side; they double as the side halves, up to eight times as many.
      vocabulary: number of distinct words.
      length: words in a caption.
      embedding: length of the vectors of words, sentences and images.
      channels: the images' channels.
      dtype: the computation dtype; parameters, images and scores are always float32.

    Raises:
      ValueError: `size` is not one of `SIZES`, or a number is not positive. `init` and `apply`
        raise it for tokens of another length.
    """
    widths = _widths(size, width)
    _check(vocabulary=vocabulary, length=length, embedding=embedding, channels=channels)
    return from_linen(Generator(widths, vocabulary, length, embedding, channels, dtype))


def discriminator(
    size: int,
    width: int = 64,
    *,
    vocabulary: int,
    length: int,
    embedding: int = 64,
    dtype: Any = jnp.float32,
) -> Network:
    """`(images, tokens) -> scores [B]` (logits).

    Tokens must be in [0, vocabulary); larger ones make the score NaN.

    Taps are the features at each side, `image` and `sentence` `[B, embedding]`, and `words`.

    Args and errors are those of `generator`.
    """
    widths = _widths(size, width)
    _check(vocabulary=vocabulary, length=length, embedding=embedding)
    return from_linen(Discriminator(widths, vocabulary, length, embedding, dtype))


gan = make_gan(generator, discriminator)
"""A `generator` and its `discriminator`, as a `PerNetwork`, with the arguments of both."""


def _widths(size: int, width: int) -> tuple[int, ...]:
    """Channels from 4x4 to the full side."""
    if size not in SIZES:
        raise ValueError(f"size={size} is not one of {', '.join(map(str, SIZES))}")
    _check(width=width)
    sides = (size // 4).bit_length()
    return tuple(width * min(8, 2**k) for k in reversed(range(sides)))


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")


class TextEncoder(nn.Module):
    """`tokens [B, L] in [0, vocabulary) -> (words [B, L, D], sentence [B, D])`.

    Word and position embeddings, one layer of self-attention (Vaswani et al. 2017, one head) with a
    residual, and the mean over the words.

    Attributes:
      vocabulary, length, embedding: as in `generator`.
    """

    vocabulary: int
    length: int
    embedding: int

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array]:
        if tokens.ndim != 2 or tokens.shape[1] != self.length:
            raise ValueError(f"tokens [B, {self.length}] are needed, not shape {tokens.shape}")
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers, not {tokens.dtype}")
        normal = nn.initializers.normal(1.0)
        words = nn.Embed(self.vocabulary, self.embedding, embedding_init=normal)(tokens)
        positions = self.param("places", nn.initializers.normal(0.1), (self.length, self.embedding))
        words = words + positions[None]
        words = words + attend(words, words, self.embedding, "context")
        return words, nn.Dense(self.embedding, name="sentence")(words.mean(axis=1))


def attend(queries: Array, words: Array, features: int, name: str) -> Array:
    """Attention of queries to words: `[B, Q, any], [B, L, D] -> [B, Q, features]`.

    It creates layers in the module whose `__call__` calls it.
    """
    keys = nn.Dense(features, use_bias=False, name=f"{name}_keys")(words)
    values = nn.Dense(features, use_bias=False, name=f"{name}_values")(words)
    queries = nn.Dense(features, use_bias=False, name=f"{name}_queries")(queries)
    products = jnp.einsum("bqd,bld->bql", queries, keys) / jnp.sqrt(float(features))
    return jnp.einsum("bql,bld->bqd", jax.nn.softmax(products), values)


class Generator(nn.Module):
    """See `generator`."""

    widths: tuple[int, ...]
    vocabulary: int
    length: int
    embedding: int
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, z: Array, tokens: Array, *, train: bool) -> tuple[Array, dict[str, Any]]:
        words, sentence = TextEncoder(self.vocabulary, self.length, self.embedding, name="text")(
            tokens
        )
        taps: dict[str, Any] = {"words": words, "sentence": sentence}
        condition = jnp.concatenate([z, sentence], axis=1).astype(self.dtype)
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(
            ConditionalNorm,
            partial(BatchNorm, train=train, dtype=self.dtype),
            partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02)),
        )
        x = nn.Dense(16 * self.widths[0], dtype=self.dtype, name="first")(condition)
        x = taps["4x4"] = x.reshape(-1, 4, 4, self.widths[0])
        for index, features in enumerate(self.widths[1:]):
            x = GeneratorBlock(features, norm, conv, name=f"block_{index}")(x, condition)
            batch, side, _, _ = x.shape
            if index == 0:  # 8x8 positions are enough to resolve strokes
                positions = x.reshape(batch, side * side, features)
                attended = attend(positions, words.astype(self.dtype), features, "attention")
                x = x + attended.reshape(x.shape)
            taps[f"{side}x{side}"] = x
        x = jax.nn.relu(BatchNorm(train=train, dtype=self.dtype, name="norm")(x))
        x = at_least_float32(conv(self.channels, name="image")(x))
        return jnp.tanh(x), taps


class Discriminator(nn.Module):
    """See `discriminator`."""

    widths: tuple[int, ...]
    vocabulary: int
    length: int
    embedding: int
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, tokens: Array, *, train: bool
    ) -> tuple[Array, dict[str, Any]]:
        del train
        side = 4 * 2 ** (len(self.widths) - 1)
        if images.ndim != 4 or images.shape[1:3] != (side, side):
            raise ValueError(f"images [B, {side}, {side}, C] are needed, not shape {images.shape}")
        words, sentence = TextEncoder(self.vocabulary, self.length, self.embedding, name="text")(
            tokens
        )
        taps: dict[str, Any] = {"words": words, "sentence": sentence}
        conv = partial(Conv, dtype=self.dtype)
        x = images.astype(self.dtype)
        widths = list(reversed(self.widths))
        for index, features in enumerate(widths):
            x = DiscriminatorBlock(
                features,
                features,
                index < len(widths) - 1,
                index > 0,
                conv,
                name=f"block_{index}",
            )(x)
            taps[f"{x.shape[1]}x{x.shape[1]}"] = x
        x = at_least_float32(jax.nn.relu(x)).mean(axis=(1, 2))
        image = taps["image"] = nn.Dense(self.embedding, name="embedded")(x)
        similarity = (image * sentence).sum(axis=1) / jnp.sqrt(float(self.embedding))
        return nn.Dense(1, name="score")(x)[:, 0] + similarity, taps
