"""BigGAN (Brock et al. 2019), for any power-of-two size from 32 to 512.

It combines SNGAN's residual blocks (`kd_jax.models.resnet`) with spectral normalisation in both
networks, self-attention, a class embedding shared by all layers, and latents as an input of every
block. `kd_jax.models.biggan_deep` is the deeper and narrower variant from the same paper.

Images are `[B, size, size, channels]` in [-1, 1]; latents `[B, latent]`; labels int `[B]`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.checks import at_least_float32
from kd_jax.core.family import Family, narrowed
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Array
from kd_jax.models import resnet
from kd_jax.models.factories import make_gan
from kd_jax.models.layers.attention import SelfAttention
from kd_jax.models.layers.conditioning import check_labels
from kd_jax.models.layers.norm import BatchNorm, ConditionalNorm
from kd_jax.models.layers.remat import remat as remat_block
from kd_jax.models.layers.spectral import ONE_STEP, Conv, Dense, Embed, SpectralNorm

# Channels of the generator at 4x4, 8x8, ..., and of the discriminator's blocks, as multiples of
# `width` (tables 4 to 6 of the paper; those for 32 and 64 pixels are from the authors' program).
GENERATOR = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
DISCRIMINATOR = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
    512: (1, 1, 2, 4, 8, 8, 16, 16),
}

generator_axes = resnet.generator_axes
discriminator_axes = resnet.discriminator_axes


def generator(
    size: int,
    width: int | Sequence[int] = 96,
    *,
    channels: int = 3,
    classes: int = 0,
    shared: int = 128,
    hierarchical: bool = True,
    attention: Sequence[int] = (64,),
    spectral: SpectralNorm | None = ONE_STEP,
    epsilon: float = 1e-5,
    unbiased: bool = True,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """`(latents[, labels]) -> images`.

    Taps are `4x4`, the blocks' outputs `block_N`, and `attention_N` after block N; `8x8`, ... are
    the last features of their side.

    Args:
      size: the image's side, 32, 64, 128, 256 or 512.
      width: channels of the generator at full size (for 128 pixels and more); they double as the
        side halves, up to 16 times as many. 96 in the paper. Or the channels at 4x4, 8x8, ..., full
        size.
      channels: the image's channels.
      classes: number of classes; 0 for unconditional networks, which take no labels.
      shared: length of the class embedding that the generator's layers share; with 0 each
        normalisation has its own scales and biases for every class.
      hierarchical: whether every block gets a part of the latents; their length must be a multiple
        of the number of blocks plus one.
      attention: sides at which self-attention follows the block.
      spectral: spectral normalisation of the weights, or None.
      epsilon: that of the batch normalisations.
      unbiased: whether their running variance averages the unbiased estimate, rather than the batch
        variance.
      dtype: the computation dtype; parameters, images and scores are always float32.
      remat: whether the gradient recomputes the activations within each block and attention.

    Raises:
      ValueError: the size is not supported, a number is not positive, or the latents are
        hierarchical and the classes have no shared embedding.
    """
    widths = resnet.block_widths("a BigGAN generator", GENERATOR, size, width)
    if hierarchical and classes and not shared:
        raise ValueError("hierarchical latents need a shared class embedding; shared is 0")
    return from_linen(
        Generator(
            widths,
            channels,
            classes,
            shared if classes else 0,
            hierarchical,
            tuple(attention),
            spectral,
            epsilon,
            unbiased,
            dtype,
            remat,
        )
    )


def discriminator(
    size: int,
    width: int | Sequence[int] = 96,
    *,
    classes: int = 0,
    attention: Sequence[int] = (64,),
    wide: bool = True,
    spectral: SpectralNorm | None = ONE_STEP,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """`(images[, labels]) -> scores [B]` (logits).

    Taps are `block_N`, and `attention_N` after block N; `8x8`, ... are the last features of their
    side, and `features` is the sum of the last ones over the positions.

    Args and errors are those of `generator`; `width` may list the channels of each block. If
    `wide`, the hidden width of a block is that of its output; otherwise it is that of its input.
    """
    widths = resnet.block_widths("a BigGAN discriminator", DISCRIMINATOR, size, width)
    return from_linen(
        Discriminator(
            widths, resnet.halvings(size), classes, tuple(attention), wide, spectral, dtype, remat
        )
    )


gan = make_gan(generator, discriminator)
"""A `generator` and its `discriminator`, as a `PerNetwork`, with the arguments of both."""


def split_conditions(
    latents: Array, condition: Array | None, blocks: int, hierarchical: bool
) -> tuple[Array, list[Array | None]]:
    """Returns the input of the first layer and the condition of each block.

    Args:
      latents: `[B, latent]`.
      condition: the class, as `[B, shared]` or `[B]`, or None.
      blocks: number of blocks.
      hierarchical: whether the latents are split into parts for the first layer and each block.

    Raises:
      ValueError: the latents are split, and their length is not a multiple of `blocks + 1`.
    """
    if not hierarchical:
        return latents, [condition] * blocks
    if latents.shape[-1] % (blocks + 1):
        raise ValueError(
            f"hierarchical latents of length {latents.shape[-1]} cannot be split into "
            f"{blocks + 1} equal parts, one for the first layer and one for each block"
        )
    first, *parts = jnp.split(latents, blocks + 1, axis=-1)
    if condition is None:
        return first, list(parts)
    return first, [jnp.concatenate([condition, part], axis=-1) for part in parts]


class Generator(nn.Module):
    """See `generator`."""

    widths: tuple[int, ...]
    channels: int
    classes: int
    shared: int
    hierarchical: bool
    attention: tuple[int, ...]
    spectral: SpectralNorm | None
    epsilon: float
    unbiased: bool
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(
        self, latents: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        check_labels(self.classes, labels)
        layer: dict[str, Any] = {"norm": self.spectral, "train": train, "dtype": self.dtype}
        conv = partial(Conv, **layer)
        normalise = partial(
            BatchNorm,
            train=train,
            epsilon=self.epsilon,
            unbiased=self.unbiased,
            dtype=self.dtype,
        )
        linear = partial(Dense, use_bias=False, **layer)
        condition = labels
        if self.shared:
            condition = Embed(self.shared, self.classes, dtype=self.dtype, name="shared")(labels)
        elif self.classes:  # without spectral normalisation, as in the authors' program
            linear = partial(Embed, classes=self.classes, dtype=self.dtype)
        norm = partial(ConditionalNorm, normalise, linear)

        block = remat_block(resnet.GeneratorBlock, self.remat)
        attention = remat_block(SelfAttention, self.remat)
        blocks = self.widths[1:]
        latents, conditions = split_conditions(latents, condition, len(blocks), self.hierarchical)
        x = Dense(resnet.BOTTOM**2 * self.widths[0], name="dense", **layer)(latents)
        x = x.reshape(-1, resnet.BOTTOM, resnet.BOTTOM, self.widths[0])
        taps = {resnet.side(x): x}
        for index, features in enumerate(blocks):
            name = f"block_{index}"
            x = block(features, norm, conv, name=name)(x, conditions[index])
            taps[name] = x
            if x.shape[1] in self.attention:
                name = f"attention_{index}"
                x = taps[name] = attention(conv, name=name)(x)
            taps[resnet.side(x)] = x
        x = jax.nn.relu(normalise(name="norm")(x))
        image = conv(self.channels, name="image")(x)
        return jnp.tanh(at_least_float32(image)), taps


class Discriminator(nn.Module):
    """See `discriminator`."""

    widths: tuple[int, ...]
    halvings: int
    classes: int
    attention: tuple[int, ...]
    wide: bool
    spectral: SpectralNorm | None
    dtype: Any
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Array, labels: Array | None = None, *, train: bool
    ) -> tuple[Array, dict[str, Array]]:
        check_labels(self.classes, labels)
        layer: dict[str, Any] = {"norm": self.spectral, "train": train}
        conv = partial(Conv, dtype=self.dtype, **layer)
        block = remat_block(resnet.DiscriminatorBlock, self.remat)
        attention = remat_block(SelfAttention, self.remat)
        x, taps = images, {}
        for index, features in enumerate(self.widths):
            name = f"block_{index}"
            x = block(
                features,
                hidden=features if self.wide else x.shape[-1],
                downsample=index < self.halvings,
                activate=index > 0,
                conv=conv,
                name=name,
            )(x)
            taps[name] = x
            if x.shape[1] in self.attention:
                name = f"attention_{index}"
                x = taps[name] = attention(conv, name=name)(x)
            taps[resnet.side(x)] = x
        summed = taps["features"] = at_least_float32(jax.nn.relu(x)).sum(axis=(1, 2))
        dense, embed = partial(Dense, **layer), partial(Embed, classes=self.classes, **layer)
        return resnet.projection_scores(summed, labels, dense, embed), taps


FAMILY = Family("biggan", (Generator,), narrowed("widths"), generator_axes)
