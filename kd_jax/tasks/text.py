"""Text to image."""

from collections.abc import Callable

import jax

from kd_jax.core.checks import batch_entry
from kd_jax.core.objective import Inputs, MakeInputs
from kd_jax.core.types import Array, Batch


def text_to_image(
    size: int, tokens: Callable[[Array, Array], Array] | str = "tokens"
) -> MakeInputs:
    """Images from noise and a caption: generators take `(latents, tokens)`.

    The discriminator takes the tokens after the image; they are also `extra["tokens"]`.

    Args:
      size: the length of the latents, which are standard normal `[B, size]`.
      tokens: the batch entry of the captions, int `[B, L]`, or a function from images and labels to
        captions, such as `kd_jax.data.captions.Captioner.tokens`.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        images = batch_entry(batch, "image")
        if isinstance(tokens, str):
            words = batch_entry(batch, tokens)
        else:
            words = tokens(images, batch_entry(batch, "label"))
        z = jax.random.normal(key, (images.shape[0], size))
        return Inputs((z, words), (words,), images, {**batch, "tokens": words})

    return make
