"""Adversarial losses, as functions of the discriminator's scores.

A score is a logit: higher means more real. Scores are `[B]`, or `[B, ...]` for a patch
discriminator, whose loss for an example is the mean over the patches. The discriminator minimises
`X_d` and the generator `X_g`. Losses that take both real and generated scores require equal shapes
and pair example i of one with example i of the other.
"""

import jax

from kd_jax.core.checks import per_example_mean, same_shape
from kd_jax.core.types import Array


def minimax_d(real_scores: Array, fake_scores: Array) -> Array:
    """The binary cross-entropy of classifying images as real or generated.

    `-log D(x) - log(1 - D(G(z)))` with `D = sigmoid(score)`. Goodfellow et al. 2014, eq. 1.

    Args:
      real_scores: `[B, ...]` logits of real images.
      fake_scores: `[B, ...]` logits of generated images.

    Returns:
      `[B]`, >= 0, in nats; 2 log 2 for a discriminator at chance level.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    real, fake = same_shape(real_scores=real_scores, fake_scores=fake_scores)
    return per_example_mean(jax.nn.softplus(-real) + jax.nn.softplus(fake))


def minimax_g(fake_scores: Array) -> Array:
    """The generator's minimax loss, `log(1 - D(G(z)))`.

    Its gradient vanishes where the discriminator is confident; `nonsaturating_g` avoids this.
    Goodfellow et al. 2014, eq. 1.

    Args:
      fake_scores: `[B, ...]` logits of generated images.

    Returns:
      `[B]`, <= 0, in nats.

    Raises:
      ValueError: the scores are None.
    """
    (fake,) = same_shape(fake_scores=fake_scores)
    return -per_example_mean(jax.nn.softplus(fake))


def nonsaturating_g(fake_scores: Array) -> Array:
    """The non-saturating generator loss, `-log D(G(z))`; the discriminator's is `minimax_d`.

    Goodfellow et al. 2014, section 3.

    Args:
      fake_scores: `[B, ...]` logits of generated images.

    Returns:
      `[B]`, >= 0, in nats.

    Raises:
      ValueError: the scores are None.
    """
    (fake,) = same_shape(fake_scores=fake_scores)
    return per_example_mean(jax.nn.softplus(-fake))


def hinge_d(real_scores: Array, fake_scores: Array) -> Array:
    """The hinge loss, `max(0, 1 - real) + max(0, 1 + fake)`.

    Lim & Ye 2017; Miyato et al. 2018 (spectral normalisation), eq. 16.

    Args:
      real_scores: `[B, ...]` scores of real images.
      fake_scores: `[B, ...]` scores of generated images.

    Returns:
      `[B]`, >= 0; 2 where all scores are 0.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    real, fake = same_shape(real_scores=real_scores, fake_scores=fake_scores)
    return per_example_mean(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake))


def hinge_g(fake_scores: Array) -> Array:
    """The generator's hinge loss, `-fake`.

    Lim & Ye 2017; Miyato et al. 2018 (spectral normalisation), eq. 17.

    Args:
      fake_scores: `[B, ...]` scores of generated images.

    Returns:
      `[B]`, any real number.

    Raises:
      ValueError: the scores are None.
    """
    (fake,) = same_shape(fake_scores=fake_scores)
    return -per_example_mean(fake)


def wasserstein_d(real_scores: Array, fake_scores: Array) -> Array:
    """The critic's loss, `fake - real`.

    The minimum of its mean over 1-Lipschitz critics is minus the Wasserstein-1 distance. Arjovsky
    et al. 2017, eq. 2. The Lipschitz constraint is not included: add
    `kd_jax.losses.penalties.gradient_penalty`.

    Args:
      real_scores: `[B, ...]` scores of real images.
      fake_scores: `[B, ...]` scores of generated images.

    Returns:
      `[B]`, any real number.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    real, fake = same_shape(real_scores=real_scores, fake_scores=fake_scores)
    return per_example_mean(fake - real)


def wasserstein_g(fake_scores: Array) -> Array:
    """The generator's Wasserstein loss, `-fake`. Arjovsky et al. 2017, eq. 3.

    Args:
      fake_scores: `[B, ...]` scores of generated images.

    Returns:
      `[B]`, any real number.

    Raises:
      ValueError: the scores are None.
    """
    (fake,) = same_shape(fake_scores=fake_scores)
    return -per_example_mean(fake)


def least_squares_d(real_scores: Array, fake_scores: Array) -> Array:
    """The least-squares loss, `1/2 (real - 1)^2 + 1/2 fake^2`.

    Mao et al. 2017, eq. 9: targets b = 1 for real and a = 0 for generated images. The factor 1/2
    is the paper's; implementations with a plain mean squared error give twice this value.

    Args:
      real_scores: `[B, ...]` scores of real images.
      fake_scores: `[B, ...]` scores of generated images.

    Returns:
      `[B]`, >= 0.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    real, fake = same_shape(real_scores=real_scores, fake_scores=fake_scores)
    return per_example_mean((real - 1) ** 2 + fake**2) / 2


def least_squares_g(fake_scores: Array) -> Array:
    """The generator's least-squares loss, `1/2 (fake - 1)^2`.

    Mao et al. 2017, eq. 9: target c = 1; the factor 1/2 as in `least_squares_d`.

    Args:
      fake_scores: `[B, ...]` scores of generated images.

    Returns:
      `[B]`, >= 0.

    Raises:
      ValueError: the scores are None.
    """
    (fake,) = same_shape(fake_scores=fake_scores)
    return per_example_mean((fake - 1) ** 2) / 2


def relativistic_d(real_scores: Array, fake_scores: Array) -> Array:
    """The loss of classifying which image of a pair is real, `softplus(-(real - fake))`.

    The relativistic pairing GAN: Jolicoeur-Martineau 2019; Huang et al. 2024 (R3GAN), who train
    with it and R1 + R2 (`kd_jax.losses.penalties`).

    Args:
      real_scores: `[B, ...]` logits of real images.
      fake_scores: `[B, ...]` logits of generated images, each paired with its real one.

    Returns:
      `[B]`, >= 0, in nats; log 2 for a discriminator at chance level.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    real, fake = same_shape(real_scores=real_scores, fake_scores=fake_scores)
    return per_example_mean(jax.nn.softplus(fake - real))


def relativistic_g(real_scores: Array, fake_scores: Array) -> Array:
    """The generator's loss in the relativistic pairing GAN, `softplus(-(fake - real))`.

    Jolicoeur-Martineau 2019; Huang et al. 2024 (R3GAN).

    Args:
      real_scores: `[B, ...]` logits of real images.
      fake_scores: `[B, ...]` logits of generated images, each paired with its real one.

    Returns:
      `[B]`, >= 0, in nats.

    Raises:
      ValueError: an argument is None, or the shapes differ.
    """
    real, fake = same_shape(real_scores=real_scores, fake_scores=fake_scores)
    return per_example_mean(jax.nn.softplus(real - fake))
