"""Published ways to distil a generator: small functions that return the two dicts of terms.

A recipe is a `Pair(generator=terms, discriminator=terms)`; change it as one changes a dict. Each
takes `game`, the adversarial part, where its paper has one: `nonsaturating()` by default, or
`hinge()`, `wasserstein()`, `least_squares()`, `relativistic()`. Default weights are those of the
authors' code where nothing else is said; they belong to images in [-1, 1].

Feature terms take the names of taps. Where widths differ, connect the student first:
`connect_to(student, teacher, taps, *inputs)` looks at the shapes. Perceptual terms read the taps
`layers` of `nets.extractor`, a frozen image network (VGG, a classifier).
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from kd_jax import losses, weights
from kd_jax.network import connected, tap_pairs
from kd_jax.objective import Bound, Forward, Schedule, Term, Weight
from kd_jax.pool import Pool, empty, exchange
from kd_jax.state import Pair
from kd_jax.types import Array, MissingTapError

TapNames: TypeAlias = Sequence[str] | Mapping[str, str]
Strength: TypeAlias = float | Schedule | Weight

_ADVERSARIAL = "adversarial"
_PENALTY, _RELATION, _POOL = 0, 1, 2  # folded into the key of the terms that draw


def nonsaturating(gamma: float = 1.0, every: int = 1) -> Pair:
    """The non-saturating GAN with R1 (Goodfellow et al. 2014; Mescheder et al. 2018).

    Args:
      gamma: R1's weight; larger for larger images.
      every: steps between evaluations of R1.
    """
    loss = losses.adversarial
    return _game(loss.nonsaturating_g, loss.minimax_d, 0.0, {"r1": _r1(gamma, every)})


def hinge() -> Pair:
    """The hinge GAN (Lim & Ye 2017), for discriminators with spectral normalisation."""
    return _game(losses.adversarial.hinge_g, losses.adversarial.hinge_d, 0.0, {})


def least_squares() -> Pair:
    """The least-squares GAN (Mao et al. 2017)."""
    loss = losses.adversarial
    return _game(loss.least_squares_g, loss.least_squares_d, 0.0, {})


def wasserstein(penalty: float = 10.0) -> Pair:
    """The Wasserstein GAN with gradient penalty (Gulrajani et al. 2017)."""

    def gradient_penalty(f: Forward) -> Array:
        key = jax.random.fold_in(f.key, _PENALTY)
        return losses.penalties.gradient_penalty(f.score, _needs_real(f), f.fake, key)

    loss = losses.adversarial
    terms = {"gradient_penalty": Term(gradient_penalty, penalty)}
    return _game(loss.wasserstein_g, loss.wasserstein_d, None, terms)


def relativistic(gamma: float = 1.0, every: int = 1) -> Pair:
    """The relativistic pairing GAN with R1 and R2 (Huang et al. 2024, R3GAN)."""

    def r2(f: Forward) -> Array:
        return losses.penalties.r2(f.score, f.fake)

    loss = losses.adversarial
    return Pair(
        {_ADVERSARIAL: Term(lambda f: loss.relativistic_g(f.real_scores, f.fake_scores))},
        {
            _ADVERSARIAL: Term(
                lambda f: loss.relativistic_d(f.real_scores, f.fake_scores), floor=0.0
            ),
            "r1": _r1(gamma, every),
            "r2": Term(r2, gamma, every),
        },
    )


def stylegan2(
    gamma: float = 10.0,
    path_length: float = 2.0,
    *,
    r1_every: int = 16,
    path_every: int = 4,
    decay: float = 0.01,
    shrink: int = 2,
) -> Pair:
    """The game of StyleGAN2: non-saturating, with lazy R1 and lazy path lengths.

    Karras et al. 2020, section 3. The generator is a style network. Lazily regularised players'
    learning rates and decays belong to `every / (every + 1)` of a step (`lazy_adam`).

    Args:
      gamma: R1's weight; the authors' heuristic is `0.0002 size^2 / batch`.
      path_length: the weight of the path lengths' distance from their running mean.
      r1_every: steps between evaluations of R1.
      path_every: steps between evaluations of the path lengths.
      decay: how fast their mean follows.
      shrink: the path lengths are those of `1 / shrink` of the batch.
    """

    def lengths(f: Forward, mean: Array) -> tuple[Array, Array]:
        mapping, synthesis = _needs_style(f.generate, "the generator")
        count = max(1, f.fake.shape[0] // shrink)
        shape = (count, *f.fake.shape[1:])
        noise = jax.random.normal(jax.random.fold_in(f.key, _PENALTY), shape)
        styles = mapping(*(x[:count] for x in f.inputs.generator))
        found = losses.penalties.path_lengths(synthesis, styles, noise)
        # Not held constant in the distance, as in the authors' program.
        mean = mean + decay * (found.mean() - mean)
        return ((found - mean) ** 2).mean(), mean

    generator, discriminator = nonsaturating(gamma, r1_every)
    term = Term(lengths, path_length, path_every, init=lambda: jnp.zeros(()))
    return Pair({**generator, "path_length": term}, discriminator)


def lazy_adam(
    learning_rate: float, every: int = 1, b1: float = 0.0, b2: float = 0.99
) -> optax.GradientTransformation:
    """Adam for a player with a lazy term: Karras et al. 2020 (StyleGAN2), appendix B.

    Theirs takes a step of its own for the regularisation, so that `every` steps here are
    `every + 1` there: the rate and the decays are those that give the same per image.

    Args:
      learning_rate: without lazy regularisation; StyleGAN2's is 0.002.
      every: of the lazy term; 1 for a player without.
      b1: the decay of the mean, without lazy regularisation. Where it is 0, as StyleGAN2's, the
        mean is the gradient and is not stored: a third of what Adam keeps, parameters included.
      b2: the decay of the squares' mean.
    """
    part = every / (every + 1) if every > 1 else 1.0
    if b1:
        return optax.adam(learning_rate * part, b1**part, b2**part, eps=1e-8)
    return optax.rmsprop(
        learning_rate * part, b2**part, eps=1e-8, eps_in_sqrt=False, bias_correction=True
    )


def response(pixel: Strength = 5.0, game: Pair | None = None) -> Pair:
    """The adversarial game, and L1 towards the teacher's image. The weight is ours."""
    generator, discriminator = game or nonsaturating()
    return Pair({**generator, "pixel": Term(_pixel_l1, pixel)}, discriminator)


def aguinaldo(alpha: float = 0.3, game: Pair | None = None) -> Pair:
    """`(1 - alpha)` times the adversarial loss, `alpha` times the mean squared error.

    Aguinaldo et al. 2019 (compressing GANs by distillation), the joint loss.

    Args:
      alpha: the teacher's part, in [0, 1].
      game: the adversarial part.

    Raises:
      ValueError: when `alpha` is outside [0, 1].
    """
    _check_part(alpha)
    generator, discriminator = game or nonsaturating()
    return Pair(
        {
            **_weighted(generator, 1.0 - alpha),
            "pixel": Term(lambda f: losses.response.l2(f.fake, _needs_teacher(f)), alpha),
        },
        discriminator,
    )


def hinton(alpha: float = 0.5, temperature: float = 4.0) -> Pair:
    """`alpha` cross-entropy with the labels, `1 - alpha` divergence from the teacher's logits.

    Hinton et al. 2015. For classifiers: the student's and the teacher's outputs are logits
    `[B, K]`, `label` of the task's `Inputs.extra` the classes `[B]`, and `nets` has no
    discriminator:

        nets = Networks(classifier(10, 8), teacher=classifier(10, 64))
        inputs = lambda key, batch: Inputs((batch["image"],), extra=batch)

    Args:
      alpha: the labels' part, in [0, 1]. With 1 there is no need of a teacher.
      temperature: of the divergence, positive.

    Raises:
      ValueError: when `alpha` is outside [0, 1], or the temperature is not positive.
    """
    _check_part(alpha)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} is not a positive number")

    def mixed(f: Forward) -> Array:
        if "label" not in f.inputs.extra:
            raise ValueError(f"labels are needed; inputs.extra has {sorted(f.inputs.extra)}")
        label = f.inputs.extra["label"]
        if alpha == 1:
            return optax.softmax_cross_entropy_with_integer_labels(f.fake, label)
        return losses.response.hinton(f.fake, _needs_teacher(f), label, alpha, temperature)

    return Pair({"hinton": Term(mixed)}, {})


def gan_compression(
    taps: TapNames,
    *,
    reconstruction: Strength = 100.0,
    distill: Strength = 1.0,
    paired: bool = False,
    game: Pair | None = None,
) -> Pair:
    """L1 reconstruction, and connected features in L2, summed over layers.

    Li et al. 2020 (GAN Compression), section 3.1. The student is to be connected at `taps`.

    Args:
      taps: names, or `{student's: teacher's}`.
      reconstruction: the image's weight.
      distill: the features' weight.
      paired: whether the batch has the right image of each input (image translation); otherwise
        the teacher's is taken for it.
      game: the adversarial part.
    """
    features = on_taps(losses.feature.l2, taps, connect=True)
    generator, discriminator = _rebuilding(reconstruction, paired, game)
    return Pair({**generator, "features": Term(features, distill)}, discriminator)


def cat(
    taps: TapNames,
    *,
    reconstruction: Strength = 100.0,
    alignment: Strength = 1.0,
    paired: bool = False,
    game: Pair | None = None,
) -> Pair:
    """L1 reconstruction, and kernel alignment of features, summed over layers; no connector.

    Jin et al. 2021 (CAT), section 3.3. Its weight is tuned per model by the authors; 1 is ours.

    Args:
      taps: names, or `{student's: teacher's}`.
      reconstruction: the image's weight.
      alignment: the features' weight.
      paired: as for `gan_compression`.
      game: the adversarial part.
    """
    kernels = on_taps(losses.relation.kernel_alignment, taps)
    floor = -float(len(tap_pairs(taps)))
    generator, discriminator = _rebuilding(reconstruction, paired, game)
    return Pair({**generator, "alignment": Term(kernels, alignment, floor=floor)}, discriminator)


def omgd(
    layers: Sequence[str],
    taps: TapNames = (),
    *,
    structure: Strength = 10.0,
    style: Strength = 1e4,
    content: Strength = 10.0,
    smoothness: Strength = 1e-5,
    channels: Strength = 1.0,
) -> Pair:
    """Structure, style, content and smoothness of the teacher's image; no game for the student.

    Ren et al. 2021 (OMGD), sections 3.2 and 3.3: `kd_jax.online` with teachers of their own games,
    `taught_by(name, omgd(...).generator)` of each, and no discriminator for the student.

    Args:
      layers: the extractor's taps; style and content are summed over them.
      taps: names, or `{student's: teacher's}`, of connected features whose channels' means are
        compared; none by default.
      structure: the weight of 1 - SSIM.
      style: of the Gram matrices.
      content: of the L1 of features.
      smoothness: of the total variation, a sum.
      channels: of the channels' means; the weight is ours.
    """
    tap_pairs(layers)

    def over_layers(loss: Callable[[Array, Array], Array]) -> Callable[[Forward], Array]:
        def term(f: Forward) -> Array:
            ours, theirs = _extracted(f, layers)
            return _sum([loss(ours[name], theirs[name]) for name in layers])

        return term

    terms = {
        "structure": Term(lambda f: losses.image.structural(f.fake, _needs_teacher(f)), structure),
        "style": Term(over_layers(losses.image.style), style),
        "content": Term(over_layers(losses.feature.l1), content),
        "smoothness": Term(lambda f: losses.image.total_variation(f.fake), smoothness),
    }
    if taps:
        means = on_taps(losses.feature.channel_means, taps, connect=True)
        terms["channels"] = Term(means, channels)
    return Pair(terms, {})


def stylekd(
    directions: Array,
    taps: TapNames,
    layers: Sequence[str] = (),
    *,
    pixel: Strength = 3.0,
    perceptual: Strength = 3.0,
    relation: Strength = 30.0,
    strength: float = 5.0,
    game: Pair | None = None,
) -> Pair:
    """L1, perceptual distance, and the relations between images and latently moved images.

    Xu et al. 2022 (StyleKD), section 3. The student inherits the teacher's mapping network, so that
    both read one latent space: of style networks the styles are moved, all layers' alike; of others
    the generator's first input.

    Args:
      directions: `[K, latent]` unit vectors (`kd_jax.latent.directions`), of the styles or of the
        latents.
      taps: names of features, or `{student's: teacher's}`; widths may differ.
      layers: the extractor's taps, for the perceptual distance; left out without.
      pixel: L1's weight.
      perceptual: the perceptual distance's.
      relation: the relations'.
      strength: the move is a direction times this times a standard normal number.
      game: the adversarial part.
    """
    pairs = tap_pairs(taps)
    if directions.ndim != 2:
        raise ValueError(f"directions {directions.shape} are not [K, latent]")

    def moved(f: Forward) -> Array:
        latents, *rest = f.inputs.generator
        if f.teach is None:
            raise ValueError("nets has no teacher")
        index_key, size_key = jax.random.split(jax.random.fold_in(f.key, _RELATION))
        chosen = jax.random.randint(index_key, latents.shape[:1], 0, directions.shape[0])
        size = strength * jax.random.normal(size_key, (latents.shape[0], 1), latents.dtype)
        move = size * jnp.asarray(directions)[chosen]
        if f.teach.synthesis is None or f.generate.synthesis is None:
            _moves(directions, latents)
            _, ours = f.generate(latents + move, *rest)
            _, theirs = f.teach(latents + move, *rest)
        else:
            passes = []
            for network in (f.generate, f.teach):
                mapping, synthesis = _needs_style(network, "the student or the teacher")
                styles = mapping(*f.inputs.generator)
                _moves(directions, styles)
                passes.append(synthesis(styles + move[:, None])[1])
            ours, theirs = passes
        total = []
        for name, other in pairs.items():
            student, teacher = _both_taps(f, name, other)
            features = student, ours[name], teacher, theirs[other]
            total.append(_of_taps(name, other, losses.relation.direction_kl, *features))
        return _sum(total)

    generator, discriminator = game or nonsaturating()
    terms = {"pixel": Term(_pixel_l1, pixel), "relation": Term(moved, relation)}
    if layers:
        terms["perceptual"] = Term(_perceptual(layers), perceptual)
    return Pair({**generator, **terms}, discriminator)


def tinygan(
    taps: Sequence[str],
    steps: int,
    *,
    feature: Strength = 1.0,
    pixel: float = 0.2,
    adversarial: float = 0.1,
    game: Pair | None = None,
) -> Pair:
    """The discriminator's features of both images, an L1 that fades, a little of the game.

    Chang & Lu 2020 (TinyGAN), section 3. Weights of layers halve from the last but one backwards:
    1/32, 1/16, 1/8, 1/4, 1 of five.

    Args:
      taps: the discriminator's, from the first to the last.
      steps: after how many the L1 is gone, linearly.
      feature: the features' weight.
      pixel: the L1's weight at the start.
      adversarial: what the game's terms for the generator are multiplied by; ours.
      game: the adversarial part.

    Raises:
      ValueError: when `steps` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} is not a positive number")
    layers = [0.5 ** (len(taps) - index) for index in range(len(taps) - 1)] + [1.0]

    def matched(f: Forward) -> Array:
        if f.score is None:
            raise ValueError("nets has no discriminator")
        _, theirs = f.score(_needs_teacher(f))
        return _sum(
            [
                weight * losses.feature.l1(f.fake_taps[tap], theirs[tap])
                for weight, tap in zip(layers, taps, strict=True)
            ]
        )

    tap_pairs(taps)
    generator, discriminator = game or nonsaturating()
    fading = optax.linear_schedule(pixel, 0.0, steps)
    terms = {"features": Term(matched, feature), "pixel": Term(_pixel_l1, fading)}
    return Pair({**_weighted(generator, adversarial), **terms}, discriminator)


def dgl(teacher: Strength = 0.1, game: Pair | None = None) -> Pair:
    """The game, and a tenth of the non-saturating loss against the teacher's discriminator too.

    Tian et al. 2023 (DGL-GAN), `softplus(-D_S(S)) + 0.1 softplus(-D_T(S))`; whatever the game, the
    teacher's discriminator is taken to give logits.

    Args:
      teacher: the weight of the teacher's discriminator.
      game: the adversarial part.
    """

    def against_teacher(f: Forward) -> Array:
        scores, _ = _needs_teacher_score(f)(f.fake)
        return losses.adversarial.nonsaturating_g(scores)

    generator, discriminator = game or nonsaturating()
    return Pair({**generator, "teacher": Term(against_teacher, teacher)}, discriminator)


def dcd(
    taps: TapNames,
    discriminator_taps: Sequence[str],
    *,
    pixel: Strength = 5.0,
    distill: Strength = 1.0,
    game: Pair | None = None,
) -> Pair:
    """Generators' features as the teacher's discriminator sees them.

    A connected feature of the student and the teacher's own are brought to the images' size and,
    by one fixed random projection, to the images' channels; the L1 between the teacher's
    discriminator's features of the two is summed. Li et al. 2022 (DCD), section 3.2, where the
    projection is learned; weights are ours.

    Args:
      taps: the generators', or `{student's: teacher's}`; the student is to be connected there.
      discriminator_taps: the teacher's discriminator's.
      pixel: the weight of the images' L1.
      distill: the features' weight.
      game: the adversarial part.
    """
    tap_pairs(taps)
    tap_pairs(discriminator_taps)

    def seen(f: Forward) -> Array:
        score = _needs_teacher_score(f)

        def one(student: Array, teacher: Array) -> Array:
            if student.shape != teacher.shape:  # they would be projected differently
                raise ValueError(
                    f"student has shape {student.shape} but teacher has {teacher.shape}"
                )
            _, ours = score(_as_image(student, f.fake.shape))
            _, theirs = score(_as_image(teacher, f.fake.shape))
            return _sum([losses.feature.l1(ours[tap], theirs[tap]) for tap in discriminator_taps])

        return on_taps(one, taps, connect=True)(f)

    generator, discriminator = game or nonsaturating()
    terms = {"pixel": Term(_pixel_l1, pixel), "features": Term(seen, distill)}
    return Pair({**generator, **terms}, discriminator)


def mobile_stylegan(
    layers: Sequence[str] = (),
    *,
    scales: int = 3,
    pixel: Strength = 1.0,
    wavelet: Strength = 1.0,
    perceptual: Strength = 1.0,
    game: Pair | None = None,
) -> Pair:
    """L1 and L2 of the images at several scales and of their Haar coefficients.

    Belousov 2021 (MobileStyleGAN), section 3.5. Weights of 1 are ours.

    Args:
      layers: the extractor's taps, for the perceptual distance; left out without.
      scales: how many sizes, each half as large.
      pixel: the images' weight.
      wavelet: the coefficients'.
      perceptual: the perceptual distance's.
      game: the adversarial part.
    """
    generator, discriminator = game or nonsaturating()
    terms = {
        "pixel": Term(lambda f: losses.image.multi_scale(f.fake, _needs_teacher(f), scales), pixel),
        "wavelet": Term(lambda f: losses.image.wavelet(f.fake, _needs_teacher(f)), wavelet),
    }
    if layers:
        terms["perceptual"] = Term(_perceptual(layers), perceptual)
    return Pair({**generator, **terms}, discriminator)


def cyclegan(
    shape: Sequence[int],
    *,
    cycle: Strength = 10.0,
    identity: Strength = 5.0,
    pool: int = 50,
) -> Pair:
    """Translation between two domains without pairs: Zhu et al. 2017 (CycleGAN), section 4.

    The least-squares game of both directions, and L1 of what has gone there and back, and of what
    is in its domain already. For `tasks.unpaired` and networks put together by
    `models.pair.side_by_side`: of the generator the first translates the first domain into the
    second one, of the discriminator the first judges the second domain.

    Args:
      shape: of one image, `(H, W, C)`.
      cycle: the weight of going there and back, summed over both directions.
      identity: that of what should stay; half of `cycle`, as the authors have it. 0 leaves it out.
      pool: how many images of each domain are kept to be shown to the discriminator again; 0 for
        none.

    Raises:
      ValueError: when a weight is a negative number, or `pool` is negative.
    """
    loss = losses.adversarial
    for name, value in (("cycle", cycle), ("identity", identity), ("pool", pool)):
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} must be finite and not negative")

    def there_and_back(f: Forward) -> Array:
        return 2 * losses.response.l1(f.generate(f.fake[:, ::-1])[0], _needs_real(f))

    def stays(f: Forward) -> Array:
        real = _needs_real(f)
        return 2 * losses.response.l1(f.generate(real)[0], real)

    def judged(f: Forward, fake_scores: Any) -> Array:
        _needs_real(f)
        real_scores: Any = f.real_scores
        return 2 * loss.least_squares_d(real_scores, fake_scores)

    def judged_later(f: Forward, pools: Pool) -> tuple[Array, Pool]:
        keys = jax.random.split(jax.random.fold_in(f.key, _POOL), 2)
        across = jax.vmap(exchange, in_axes=(0, 0, 1), out_axes=(1, 0))
        shown, pools = across(keys, pools, f.fake)
        return judged(f, f.score(shown)[0]), pools

    def pools() -> Pool:
        return jax.vmap(lambda _: empty(pool, tuple(shape)))(jnp.arange(2))

    generator = {
        # Of both directions' scores the mean is taken; the authors' losses are sums.
        _ADVERSARIAL: Term(lambda f: 4 * loss.least_squares_g(f.fake_scores)),
        "cycle": Term(there_and_back, cycle),
    }
    if identity:
        generator["identity"] = Term(stays, identity)
    if pool:
        return Pair(generator, {_ADVERSARIAL: Term(judged_later, init=pools)})
    return Pair(generator, {_ADVERSARIAL: Term(lambda f: judged(f, f.fake_scores))})


def soft_label(weight: Strength = 1.0, game: Pair | None = None) -> Pair:
    """The game, and the cross-entropy with the discriminator's opinion of the teacher's image."""

    def opinion(f: Forward) -> Array:
        if f.score is None:
            raise ValueError("nets has no discriminator")
        return losses.discriminator.soft_label(f.fake_scores, f.score(_needs_teacher(f))[0])

    generator, discriminator = game or nonsaturating()
    return Pair({**generator, "soft_label": Term(opinion, weight)}, discriminator)


def discriminator_distillation(
    weight: Strength = 1.0, temperature: float = 1.0, game: Pair | None = None
) -> Pair:
    """The game, whose discriminator learns the teacher's discriminator's opinions.

    `KL(teacher || student)` of the probabilities on real and on generated images, the mean of both.

    Args:
      weight: of the divergence.
      temperature: of the divergence.
      game: the adversarial part.
    """

    def opinions(f: Forward) -> Array:
        score = _needs_teacher_score(f)
        fake = jax.lax.stop_gradient(f.fake)
        scores = [(f.score(fake)[0], score(fake)[0])]
        if f.real is not None:
            scores.append((f.real_scores, score(f.real)[0]))
        divergences = [losses.discriminator.bernoulli_kl(s, t, temperature) for s, t in scores]
        return _sum(divergences) / len(divergences)

    generator, discriminator = game or nonsaturating()
    return Pair(generator, {**discriminator, "opinions": Term(opinions, weight)})


def on_taps(
    loss: Callable[[Array, Array], Array], taps: TapNames, *, connect: bool = False
) -> Callable[[Forward], Array]:
    """`sum over layers of loss(student's feature, teacher's feature)`, for a `Term`.

    Args:
      loss: `(student, teacher) -> [B]` or a scalar.
      taps: names, or `{student's: teacher's}`.
      connect: whether the student's connected features are meant.

    Raises:
      ValueError: (of the term, when traced) when a tap is missing or two features do not fit; it
        names the taps.
    """
    pairs = tap_pairs(taps)

    def term(f: Forward) -> Array:
        values = []
        for name, other in pairs.items():
            features = _both_taps(f, connected(name) if connect else name, other)
            values.append(_of_taps(name, other, loss, *features))
        return _sum(values)

    return term


def _of_taps(name: str, other: str, loss: Callable[..., Array], *features: Array) -> Array:
    """`loss(*features)`, whose errors name the two taps."""
    try:
        return loss(*features)
    except ValueError as error:
        where = f"student's tap {name!r} and teacher's {other!r}"
        raise ValueError(f"{where}: {error}") from error


def _both_taps(f: Forward, name: str, other: str) -> tuple[Array, Array]:
    if f.teacher_taps is None:
        raise ValueError("nets has no teacher")
    try:
        student = f.taps[name]
    except MissingTapError as error:
        plain = name.removeprefix(connected(""))
        hint = " (connect the student first: connect_to)" if plain in f.taps else ""
        raise ValueError(f"the student: {error}{hint}") from error
    try:
        return student, f.teacher_taps[other]
    except MissingTapError as error:
        raise ValueError(f"the teacher: {error}") from error


def _game(
    generator: Callable[[Array], Array],
    discriminator: Callable[[Array, Array], Array],
    floor: float | None,
    penalties: Mapping[str, Term],
) -> Pair:
    return Pair(
        {_ADVERSARIAL: Term(lambda f: generator(f.fake_scores))},
        {
            _ADVERSARIAL: Term(lambda f: discriminator(f.real_scores, f.fake_scores), floor=floor),
            **penalties,
        },
    )


def _rebuilding(reconstruction: Strength, paired: bool, game: Pair | None) -> Pair:
    """The game, and L1 towards the right image, or towards the teacher's where there is none."""

    def rebuilt(f: Forward) -> Array:
        return losses.response.l1(f.fake, _needs_real(f)) if paired else _pixel_l1(f)

    generator, discriminator = game or nonsaturating()
    return Pair({**generator, "reconstruction": Term(rebuilt, reconstruction)}, discriminator)


def _r1(gamma: float, every: int) -> Term:
    return Term(lambda f: losses.penalties.r1(f.score, f.real), gamma, every)


def _weighted(terms: Mapping[str, Term], by: float) -> dict[str, Term]:
    def product(weight: Strength) -> Strength:
        return by * weight if isinstance(weight, float | int) else weights.scaled(weight, by)

    return {name: term._replace(weight=product(term.weight)) for name, term in terms.items()}


def _perceptual(layers: Sequence[str]) -> Callable[[Forward], Array]:
    tap_pairs(layers)
    return lambda f: losses.image.perceptual(*_extracted(f, layers))


def _extracted(f: Forward, layers: Sequence[str]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The extractor's features of the student's and of the teacher's image."""
    taps = f.extract(f.fake), f.extract(_needs_teacher(f))
    try:
        ours, theirs = ({name: each[name] for name in layers} for each in taps)
    except MissingTapError as error:
        raise ValueError(f"the extractor: {error}") from error
    return ours, theirs


def _check_part(alpha: float) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha} is not in [0, 1]")


def _pixel_l1(f: Forward) -> Array:
    return losses.response.l1(f.fake, _needs_teacher(f))


def _needs_style(network: Bound, what: str) -> tuple[Callable[..., Array], Callable[..., Any]]:
    """The mapping and the synthesis of a style network.

    Raises:
      ValueError: it has none.
    """
    if network.mapping is None or network.synthesis is None:
        raise ValueError(f"{what} is no style network: it has no mapping and no synthesis")
    return network.mapping, network.synthesis


def _moves(directions: Array, latents: Array) -> None:
    if latents.ndim < 2 or latents.shape[-1] != directions.shape[1]:
        raise ValueError(f"directions {directions.shape} do not fit latents {latents.shape}")


def _needs_teacher(f: Forward) -> Array:
    if f.teacher is None:
        raise ValueError("nets has no teacher")
    return f.teacher


def _needs_teacher_score(f: Forward) -> Bound:
    if f.teacher_score is None:
        raise ValueError("nets has no teacher_discriminator")
    return f.teacher_score


def _needs_real(f: Forward) -> Array:
    if f.real is None:
        raise ValueError("the task gives no real images")
    return f.real


def _as_image(feature: Array, shape: tuple[int, ...]) -> Array:
    """A feature at an image's size, its channels mixed to the image's by fixed random weights."""
    width, channels = feature.shape[-1], shape[-1]
    mix = jax.random.normal(jax.random.key(0), (width, channels), feature.dtype)
    mixed = feature @ (mix / jnp.sqrt(jnp.asarray(width, feature.dtype)))
    return jax.image.resize(mixed, (feature.shape[0], *shape[1:]), "linear")


def _sum(values: Sequence[Array]) -> Array:
    return functools.reduce(operator.add, values)
