"""Published methods for distilling generators: functions that return two dicts of terms.

A method is a `PerNetwork(generator=terms, discriminator=terms)` of dicts that may be edited.
Methods whose paper has an adversarial loss take it as `adversarial`: `nonsaturating()` by default,
or `hinge()`, `wasserstein()`, `least_squares()`, `relativistic()`. Unless stated otherwise, default
weights are those of the authors' code, for images in [-1, 1].

Feature terms take the names of taps. If widths differ, connect the student first:
`connect_to(student, teacher, taps, *inputs)` infers the shapes. Perceptual terms read the taps
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
from kd_jax.image_pool import ImagePool, init, query
from kd_jax.network import connected, tap_pairs
from kd_jax.objective import BoundNetwork, Forward, Schedule, Term, Weight
from kd_jax.state import PerNetwork
from kd_jax.types import Array, MissingTapError

TapNames: TypeAlias = Sequence[str] | Mapping[str, str]
Strength: TypeAlias = float | Schedule | Weight

_ADVERSARIAL = "adversarial"
_PENALTY, _RELATION, _POOL = 0, 1, 2  # folded into the key of terms that draw


def nonsaturating(gamma: float = 1.0, every: int = 1) -> PerNetwork:
    """The non-saturating GAN with R1 (Goodfellow et al. 2014; Mescheder et al. 2018).

    Args:
      gamma: the weight of R1; larger for larger images.
      every: steps between evaluations of R1.
    """
    loss = losses.adversarial
    return _adversarial_loss(loss.nonsaturating_g, loss.minimax_d, 0.0, {"r1": _r1(gamma, every)})


def hinge() -> PerNetwork:
    """The hinge GAN (Lim & Ye 2017), for discriminators with spectral normalisation."""
    return _adversarial_loss(losses.adversarial.hinge_g, losses.adversarial.hinge_d, 0.0, {})


def least_squares() -> PerNetwork:
    """The least-squares GAN (Mao et al. 2017)."""
    loss = losses.adversarial
    return _adversarial_loss(loss.least_squares_g, loss.least_squares_d, 0.0, {})


def wasserstein(penalty: float = 10.0) -> PerNetwork:
    """The Wasserstein GAN with gradient penalty (Gulrajani et al. 2017)."""

    def gradient_penalty(f: Forward) -> Array:
        key = jax.random.fold_in(f.key, _PENALTY)
        return losses.penalties.gradient_penalty(f.discriminate, _needs_real(f), f.fake, key)

    loss = losses.adversarial
    terms = {"gradient_penalty": Term(gradient_penalty, penalty)}
    return _adversarial_loss(loss.wasserstein_g, loss.wasserstein_d, None, terms)


def relativistic(gamma: float = 1.0, every: int = 1) -> PerNetwork:
    """The relativistic pairing GAN with R1 and R2 (Huang et al. 2024, R3GAN)."""

    def r2(f: Forward) -> Array:
        return losses.penalties.r2(f.discriminate, f.fake)

    loss = losses.adversarial
    return PerNetwork(
        {_ADVERSARIAL: Term(lambda f: loss.relativistic_g(f.real_scores, f.fake_scores))},
        {
            _ADVERSARIAL: Term(
                lambda f: loss.relativistic_d(f.real_scores, f.fake_scores), lower_bound=0.0
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
) -> PerNetwork:
    """The adversarial loss of StyleGAN2: non-saturating, with lazy R1 and path-length penalty.

    Karras et al. 2020, section 3. The generator is a style network. With lazy regularisation, the
    learning rate and decays are scaled to `every / (every + 1)` of a step (`lazy_adam`).

    Args:
      gamma: the weight of R1; the authors' heuristic is `0.0002 size^2 / batch`.
      path_length: the weight of the squared distance of path lengths from their running mean.
      r1_every: steps between evaluations of R1.
      path_every: steps between evaluations of the path lengths.
      decay: the update rate of the running mean.
      shrink: path lengths are computed for `1 / shrink` of the batch.
    """

    def penalty(f: Forward, mean: Array) -> tuple[Array, Array]:
        mapping, synthesis = _needs_style(f.generate, "the generator")
        count = max(1, f.fake.shape[0] // shrink)
        shape = (count, *f.fake.shape[1:])
        noise = jax.random.normal(jax.random.fold_in(f.key, _PENALTY), shape)
        styles = mapping(*(x[:count] for x in f.inputs.generator))
        path_lengths = losses.penalties.path_lengths(synthesis, styles, noise)
        # The gradient passes through the mean, as in the authors' code.
        mean = mean + decay * (path_lengths.mean() - mean)
        return ((path_lengths - mean) ** 2).mean(), mean

    generator, discriminator = nonsaturating(gamma, r1_every)
    term = Term(penalty, path_length, path_every, init=lambda: jnp.zeros(()))
    return PerNetwork({**generator, "path_length": term}, discriminator)


def lazy_adam(
    learning_rate: float, every: int = 1, b1: float = 0.0, b2: float = 0.99
) -> optax.GradientTransformation:
    """Adam for a network with a lazy term: Karras et al. 2020 (StyleGAN2), appendix B.

    The authors take a separate step for the regularisation, so that `every` steps here are
    `every + 1` there: the learning rate and the decays are rescaled to match per image.

    Args:
      learning_rate: the rate without lazy regularisation; 0.002 for StyleGAN2.
      every: the interval of the lazy term; 1 for a network without one.
      b1: the decay of the mean, without lazy regularisation. If 0, as for StyleGAN2, the mean is
        the gradient and is not stored, which saves a third of Adam's memory, parameters included.
      b2: the decay of the mean of squares.
    """
    part = every / (every + 1) if every > 1 else 1.0
    if b1:
        return optax.adam(learning_rate * part, b1**part, b2**part, eps=1e-8)
    return optax.rmsprop(
        learning_rate * part, b2**part, eps=1e-8, eps_in_sqrt=False, bias_correction=True
    )


def response(pixel: Strength = 5.0, adversarial: PerNetwork | None = None) -> PerNetwork:
    """The adversarial loss, and L1 to the teacher's image. The weight is ours."""
    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork({**generator, "pixel": Term(_pixel_l1, pixel)}, discriminator)


def aguinaldo(alpha: float = 0.3, adversarial: PerNetwork | None = None) -> PerNetwork:
    """`(1 - alpha)` times the adversarial loss, `alpha` times the mean squared error.

    Aguinaldo et al. 2019 (compressing GANs by distillation), the joint loss.

    Args:
      alpha: the weight of the teacher's term, in [0, 1].
      adversarial: the adversarial loss.

    Raises:
      ValueError: when `alpha` is outside [0, 1].
    """
    _check_alpha(alpha)
    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork(
        {
            **_scale_weights(generator, 1.0 - alpha),
            "pixel": Term(lambda f: losses.response.l2(f.fake, _needs_teacher(f)), alpha),
        },
        discriminator,
    )


def hinton(alpha: float = 0.5, temperature: float = 4.0) -> PerNetwork:
    """`alpha` cross-entropy with the labels, `1 - alpha` divergence from the teacher's logits.

    Hinton et al. 2015. For classifiers: the student's and the teacher's outputs are logits
    `[B, K]`, `label` of the task's `Inputs.extra` the classes `[B]`, and `nets` has no
    discriminator:

        nets = Networks(classifier(10, 8), teacher=classifier(10, 64))
        inputs = lambda key, batch: Inputs((batch["image"],), extra=batch)

    Args:
      alpha: the weight of the labels, in [0, 1]. With 1 no teacher is needed.
      temperature: the temperature of the divergence, positive.

    Raises:
      ValueError: when `alpha` is outside [0, 1], or the temperature is not positive.
    """
    _check_alpha(alpha)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} is not a positive number")

    def classification(f: Forward) -> Array:
        if "label" not in f.inputs.extra:
            raise ValueError(f"labels are needed; inputs.extra has {sorted(f.inputs.extra)}")
        label = f.inputs.extra["label"]
        if alpha == 1:
            return optax.softmax_cross_entropy_with_integer_labels(f.fake, label)
        return losses.response.hinton(f.fake, _needs_teacher(f), label, alpha, temperature)

    return PerNetwork({"hinton": Term(classification)}, {})


def gan_compression(
    taps: TapNames,
    *,
    reconstruction: Strength = 100.0,
    distill: Strength = 1.0,
    paired: bool = False,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 reconstruction, and connected features in L2, summed over layers.

    Li et al. 2020 (GAN Compression), section 3.1. The student must be connected at `taps`.

    Args:
      taps: names, or `{student's: teacher's}`.
      reconstruction: the weight of the image term.
      distill: the weight of the feature term.
      paired: whether the batch has the target image of each input (image translation); otherwise
        the teacher's image is the target.
      adversarial: the adversarial loss.
    """
    features = on_taps(losses.feature.l2, taps, connect=True)
    generator, discriminator = _with_reconstruction(reconstruction, paired, adversarial)
    return PerNetwork({**generator, "features": Term(features, distill)}, discriminator)


def cat(
    taps: TapNames,
    *,
    reconstruction: Strength = 100.0,
    alignment: Strength = 1.0,
    paired: bool = False,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 reconstruction, and kernel alignment of features, summed over layers; no connector.

    Jin et al. 2021 (CAT), section 3.3. The authors tune the weight per model; 1 is ours.

    Args:
      taps: names, or `{student's: teacher's}`.
      reconstruction: the weight of the image term.
      alignment: the weight of the feature term.
      paired: as for `gan_compression`.
      adversarial: the adversarial loss.
    """
    kernels = on_taps(losses.relation.kernel_alignment, taps)
    lower_bound = -float(len(tap_pairs(taps)))
    generator, discriminator = _with_reconstruction(reconstruction, paired, adversarial)
    return PerNetwork(
        {**generator, "alignment": Term(kernels, alignment, lower_bound=lower_bound)}, discriminator
    )


def omgd(
    layers: Sequence[str],
    taps: TapNames = (),
    *,
    structure: Strength = 10.0,
    style: Strength = 1e4,
    content: Strength = 10.0,
    smoothness: Strength = 1e-5,
    channels: Strength = 1.0,
) -> PerNetwork:
    """Structure, style, content and smoothness of the teacher's image; no adversarial loss.

    Ren et al. 2021 (OMGD), sections 3.2 and 3.3. Use with `kd_jax.online_distillation` of teachers
    with their own adversarial losses, `for_teacher(name, omgd(...).generator)` for each, and no
    discriminator for the student.

    Args:
      layers: the extractor's taps; style and content are summed over them.
      taps: names, or `{student's: teacher's}`, of connected features whose channel means are
        compared; none by default.
      structure: the weight of 1 - SSIM.
      style: the weight of the Gram matrices.
      content: the weight of the L1 of features.
      smoothness: the weight of the total variation, a sum.
      channels: the weight of the channel means; ours.
    """
    tap_pairs(layers)

    def over_layers(loss: Callable[[Array, Array], Array]) -> Callable[[Forward], Array]:
        def term(f: Forward) -> Array:
            ours, theirs = _extract(f, layers)
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
    return PerNetwork(terms, {})


def stylekd(
    directions: Array,
    taps: TapNames,
    layers: Sequence[str] = (),
    *,
    pixel: Strength = 3.0,
    perceptual: Strength = 3.0,
    relation: Strength = 30.0,
    strength: float = 5.0,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1, perceptual distance, and the relations between images and latent-shifted images.

    Xu et al. 2022 (StyleKD), section 3. The student inherits the teacher's mapping network, so that
    both have the same latent space. For style networks the styles of all layers are shifted
    equally; for others, the generator's first input.

    Args:
      directions: `[K, latent]` unit vectors (`kd_jax.sefa.sefa_directions`) in the space of the
        styles or of the latents.
      taps: names of features, or `{student's: teacher's}`; widths may differ.
      layers: the extractor's taps for the perceptual distance; if empty, the term is omitted.
      pixel: the weight of the L1.
      perceptual: the weight of the perceptual distance.
      relation: the weight of the relations.
      strength: a shift is a direction, times this, times a standard normal number.
      adversarial: the adversarial loss.
    """
    pairs = tap_pairs(taps)
    if directions.ndim != 2:
        raise ValueError(f"directions {directions.shape} are not [K, latent]")

    def shifted_relation(f: Forward) -> Array:
        latents, *rest = f.inputs.generator
        if f.teacher_fn is None:
            raise ValueError("nets has no teacher")
        index_key, size_key = jax.random.split(jax.random.fold_in(f.key, _RELATION))
        indices = jax.random.randint(index_key, latents.shape[:1], 0, directions.shape[0])
        size = strength * jax.random.normal(size_key, (latents.shape[0], 1), latents.dtype)
        shift = size * jnp.asarray(directions)[indices]
        if f.teacher_fn.synthesis is None or f.generate.synthesis is None:
            _check_directions(directions, latents)
            _, ours = f.generate(latents + shift, *rest)
            _, theirs = f.teacher_fn(latents + shift, *rest)
        else:
            passes = []
            for network in (f.generate, f.teacher_fn):
                mapping, synthesis = _needs_style(network, "the student or the teacher")
                styles = mapping(*f.inputs.generator)
                _check_directions(directions, styles)
                passes.append(synthesis(styles + shift[:, None])[1])
            ours, theirs = passes
        total = []
        for name, other in pairs.items():
            student, teacher = _tap_features(f, name, other)
            features = student, ours[name], teacher, theirs[other]
            total.append(_evaluate_on_taps(name, other, losses.relation.direction_kl, *features))
        return _sum(total)

    generator, discriminator = adversarial or nonsaturating()
    terms = {"pixel": Term(_pixel_l1, pixel), "relation": Term(shifted_relation, relation)}
    if layers:
        terms["perceptual"] = Term(_perceptual(layers), perceptual)
    return PerNetwork({**generator, **terms}, discriminator)


def tinygan(
    taps: Sequence[str],
    steps: int,
    *,
    feature: Strength = 1.0,
    pixel: float = 0.2,
    adversarial_weight: float = 0.1,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 of the discriminator's features of both images, a fading L1, and an adversarial loss.

    Chang & Lu 2020 (TinyGAN), section 3. The last layer has weight 1, and the weights halve
    backwards from the last but one: 1/32, 1/16, 1/8, 1/4, 1 for five layers.

    Args:
      taps: the discriminator's taps, from first to last.
      steps: the number of steps over which the L1 fades linearly to zero.
      feature: the weight of the features.
      pixel: the initial weight of the L1.
      adversarial_weight: a factor of the generator's adversarial terms; ours.
      adversarial: the adversarial loss.

    Raises:
      ValueError: when `steps` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} is not a positive number")
    layers = [0.5 ** (len(taps) - index) for index in range(len(taps) - 1)] + [1.0]

    def feature_matching(f: Forward) -> Array:
        if f.discriminate is None:
            raise ValueError("nets has no discriminator")
        _, theirs = f.discriminate(_needs_teacher(f))
        return _sum(
            [
                weight * losses.feature.l1(f.fake_taps[tap], theirs[tap])
                for weight, tap in zip(layers, taps, strict=True)
            ]
        )

    tap_pairs(taps)
    generator, discriminator = adversarial or nonsaturating()
    fading = optax.linear_schedule(pixel, 0.0, steps)
    terms = {"features": Term(feature_matching, feature), "pixel": Term(_pixel_l1, fading)}
    return PerNetwork({**_scale_weights(generator, adversarial_weight), **terms}, discriminator)


def dgl(teacher: Strength = 0.1, adversarial: PerNetwork | None = None) -> PerNetwork:
    """The adversarial loss, and a non-saturating loss of weight 0.1 by the teacher's discriminator.

    Tian et al. 2023 (DGL-GAN), `softplus(-D_S(S)) + 0.1 softplus(-D_T(S))`. The teacher's
    discriminator is assumed to return logits, whatever the adversarial loss.

    Args:
      teacher: the weight of the loss by the teacher's discriminator.
      adversarial: the adversarial loss.
    """

    def against_teacher(f: Forward) -> Array:
        scores, _ = _needs_teacher_score(f)(f.fake)
        return losses.adversarial.nonsaturating_g(scores)

    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork({**generator, "teacher": Term(against_teacher, teacher)}, discriminator)


def dcd(
    taps: TapNames,
    discriminator_taps: Sequence[str],
    *,
    pixel: Strength = 5.0,
    distill: Strength = 1.0,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 between generator features, compared by the teacher's discriminator.

    A connected feature of the student and the teacher's feature are resized to the image size and
    projected to the image channels by the same fixed random projection. The L1 between the features
    of the teacher's discriminator for the two is summed over taps. Li et al. 2022 (DCD), section
    3.2, where the projection is learned; weights are ours.

    Args:
      taps: taps of the generators, or `{student's: teacher's}`, at which the student must be
        connected.
      discriminator_taps: taps of the teacher's discriminator.
      pixel: the weight of the images' L1.
      distill: the weight of the features.
      adversarial: the adversarial loss.
    """
    tap_pairs(taps)
    tap_pairs(discriminator_taps)

    def compare(f: Forward) -> Array:
        score = _needs_teacher_score(f)

        def distance(student: Array, teacher: Array) -> Array:
            if student.shape != teacher.shape:  # their projections would differ
                raise ValueError(
                    f"student has shape {student.shape} but teacher has {teacher.shape}"
                )
            _, ours = score(_as_image(student, f.fake.shape))
            _, theirs = score(_as_image(teacher, f.fake.shape))
            return _sum([losses.feature.l1(ours[tap], theirs[tap]) for tap in discriminator_taps])

        return on_taps(distance, taps, connect=True)(f)

    generator, discriminator = adversarial or nonsaturating()
    terms = {"pixel": Term(_pixel_l1, pixel), "features": Term(compare, distill)}
    return PerNetwork({**generator, **terms}, discriminator)


def mobile_stylegan(
    layers: Sequence[str] = (),
    *,
    scales: int = 3,
    pixel: Strength = 1.0,
    wavelet: Strength = 1.0,
    perceptual: Strength = 1.0,
    adversarial: PerNetwork | None = None,
) -> PerNetwork:
    """L1 and L2 of the images at several scales and of their Haar coefficients.

    Belousov 2021 (MobileStyleGAN), section 3.5. Weights of 1 are ours.

    Args:
      layers: the extractor's taps for the perceptual distance; if empty, the term is omitted.
      scales: the number of scales, each half the size of the previous one.
      pixel: the weight of the images.
      wavelet: the weight of the coefficients.
      perceptual: the weight of the perceptual distance.
      adversarial: the adversarial loss.
    """
    generator, discriminator = adversarial or nonsaturating()
    terms = {
        "pixel": Term(lambda f: losses.image.multi_scale(f.fake, _needs_teacher(f), scales), pixel),
        "wavelet": Term(lambda f: losses.image.wavelet(f.fake, _needs_teacher(f)), wavelet),
    }
    if layers:
        terms["perceptual"] = Term(_perceptual(layers), perceptual)
    return PerNetwork({**generator, **terms}, discriminator)


def cyclegan(
    shape: Sequence[int],
    *,
    cycle: Strength = 10.0,
    identity: Strength = 5.0,
    pool: int = 50,
) -> PerNetwork:
    """Translation between two domains without pairs: Zhu et al. 2017 (CycleGAN), section 4.

    The least-squares adversarial loss of both directions, the L1 cycle-consistency loss, and the L1
    identity loss of images that are already in the target domain. For `tasks.unpaired` and networks
    combined by `models.pair.parallel`: the first generator translates the first domain into the
    second, and the first discriminator is that of the second domain.

    Args:
      shape: the image shape, `(H, W, C)`.
      cycle: the weight of the cycle consistency, summed over both directions.
      identity: the weight of the identity loss; half of `cycle`, as in the authors' code. 0 omits
        it.
      pool: the size of the image pool of each domain (`kd_jax.image_pool`); 0 for none.

    Raises:
      ValueError: when a weight is not a finite, nonnegative number, or `pool` is negative.
    """
    loss = losses.adversarial
    for name, value in (("cycle", cycle), ("identity", identity), ("pool", pool)):
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} must be finite and not negative")

    def cycle_loss(f: Forward) -> Array:
        return 2 * losses.response.l1(f.generate(f.fake[:, ::-1])[0], _needs_real(f))

    def identity_loss(f: Forward) -> Array:
        real = _needs_real(f)
        return 2 * losses.response.l1(f.generate(real)[0], real)

    def d_loss(f: Forward, fake_scores: Any) -> Array:
        _needs_real(f)
        real_scores: Any = f.real_scores
        return 2 * loss.least_squares_d(real_scores, fake_scores)

    def pooled_d_loss(f: Forward, pools: ImagePool) -> tuple[Array, ImagePool]:
        keys = jax.random.split(jax.random.fold_in(f.key, _POOL), 2)
        query_pools = jax.vmap(query, in_axes=(0, 0, 1), out_axes=(1, 0))
        images, pools = query_pools(keys, pools, f.fake)
        return d_loss(f, f.discriminate(images)[0]), pools

    def init_pools() -> ImagePool:
        return jax.vmap(lambda _: init(pool, tuple(shape)))(jnp.arange(2))

    generator = {
        # The mean over both directions' scores; the authors' losses are sums over directions.
        _ADVERSARIAL: Term(lambda f: 4 * loss.least_squares_g(f.fake_scores)),
        "cycle": Term(cycle_loss, cycle),
    }
    if identity:
        generator["identity"] = Term(identity_loss, identity)
    if pool:
        return PerNetwork(generator, {_ADVERSARIAL: Term(pooled_d_loss, init=init_pools)})
    return PerNetwork(generator, {_ADVERSARIAL: Term(lambda f: d_loss(f, f.fake_scores))})


def soft_label(weight: Strength = 1.0, adversarial: PerNetwork | None = None) -> PerNetwork:
    """The adversarial loss, and `losses.discriminator.soft_label` with the teacher's image."""

    def cross_entropy(f: Forward) -> Array:
        if f.discriminate is None:
            raise ValueError("nets has no discriminator")
        return losses.discriminator.soft_label(f.fake_scores, f.discriminate(_needs_teacher(f))[0])

    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork({**generator, "soft_label": Term(cross_entropy, weight)}, discriminator)


def discriminator_distillation(
    weight: Strength = 1.0, temperature: float = 1.0, adversarial: PerNetwork | None = None
) -> PerNetwork:
    """The adversarial loss, with a discriminator distilled from the teacher's.

    `KL(teacher || student)` of the predictions, averaged over the real and the generated images.

    Args:
      weight: the weight of the divergence.
      temperature: the temperature of the divergence.
      adversarial: the adversarial loss.
    """

    def divergence(f: Forward) -> Array:
        score = _needs_teacher_score(f)
        fake = jax.lax.stop_gradient(f.fake)
        scores = [(f.discriminate(fake)[0], score(fake)[0])]
        if f.real is not None:
            scores.append((f.real_scores, score(f.real)[0]))
        divergences = [losses.discriminator.bernoulli_kl(s, t, temperature) for s, t in scores]
        return _sum(divergences) / len(divergences)

    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork(generator, {**discriminator, "discriminator_kl": Term(divergence, weight)})


def on_taps(
    loss: Callable[[Array, Array], Array], taps: TapNames, *, connect: bool = False
) -> Callable[[Forward], Array]:
    """The function of a `Term`: `loss(student's feature, teacher's feature)`, summed over taps.

    Args:
      loss: `(student, teacher) -> [B]` or a scalar.
      taps: names, or `{student's: teacher's}`.
      connect: whether to read the student's connected features.

    Raises:
      ValueError: (of the term, when traced) when a tap is missing or the shapes of two features do
        not fit; the message names the taps.
    """
    pairs = tap_pairs(taps)

    def term(f: Forward) -> Array:
        values = []
        for name, other in pairs.items():
            features = _tap_features(f, connected(name) if connect else name, other)
            values.append(_evaluate_on_taps(name, other, loss, *features))
        return _sum(values)

    return term


def _evaluate_on_taps(name: str, other: str, loss: Callable[..., Array], *features: Array) -> Array:
    """`loss(*features)`, with errors that name the two taps."""
    try:
        return loss(*features)
    except ValueError as error:
        where = f"student's tap {name!r} and teacher's {other!r}"
        raise ValueError(f"{where}: {error}") from error


def _tap_features(f: Forward, name: str, other: str) -> tuple[Array, Array]:
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


def _adversarial_loss(
    generator: Callable[[Array], Array],
    discriminator: Callable[[Array, Array], Array],
    lower_bound: float | None,
    penalties: Mapping[str, Term],
) -> PerNetwork:
    return PerNetwork(
        {_ADVERSARIAL: Term(lambda f: generator(f.fake_scores))},
        {
            _ADVERSARIAL: Term(
                lambda f: discriminator(f.real_scores, f.fake_scores), lower_bound=lower_bound
            ),
            **penalties,
        },
    )


def _with_reconstruction(
    reconstruction: Strength, paired: bool, adversarial: PerNetwork | None
) -> PerNetwork:
    """The adversarial loss, and L1 to the target image, or to the teacher's without pairs."""

    def pixel_l1(f: Forward) -> Array:
        return losses.response.l1(f.fake, _needs_real(f)) if paired else _pixel_l1(f)

    generator, discriminator = adversarial or nonsaturating()
    return PerNetwork(
        {**generator, "reconstruction": Term(pixel_l1, reconstruction)}, discriminator
    )


def _r1(gamma: float, every: int) -> Term:
    return Term(lambda f: losses.penalties.r1(f.discriminate, f.real), gamma, every)


def _scale_weights(terms: Mapping[str, Term], by: float) -> dict[str, Term]:
    def product(weight: Strength) -> Strength:
        return by * weight if isinstance(weight, float | int) else weights.scaled(weight, by)

    return {name: term._replace(weight=product(term.weight)) for name, term in terms.items()}


def _perceptual(layers: Sequence[str]) -> Callable[[Forward], Array]:
    tap_pairs(layers)
    return lambda f: losses.image.perceptual(*_extract(f, layers))


def _extract(f: Forward, layers: Sequence[str]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The extractor's features of the student's and of the teacher's images."""
    taps = f.extract(f.fake), f.extract(_needs_teacher(f))
    try:
        ours, theirs = ({name: features[name] for name in layers} for features in taps)
    except MissingTapError as error:
        raise ValueError(f"the extractor: {error}") from error
    return ours, theirs


def _check_alpha(alpha: float) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha} is not in [0, 1]")


def _pixel_l1(f: Forward) -> Array:
    return losses.response.l1(f.fake, _needs_teacher(f))


def _needs_style(
    network: BoundNetwork, name: str
) -> tuple[Callable[..., Array], Callable[..., Any]]:
    """The mapping and the synthesis of a style network.

    Raises:
      ValueError: the network is not a style network.
    """
    if network.mapping is None or network.synthesis is None:
        raise ValueError(f"{name} is not a style network: it has no mapping and no synthesis")
    return network.mapping, network.synthesis


def _check_directions(directions: Array, latents: Array) -> None:
    if latents.ndim < 2 or latents.shape[-1] != directions.shape[1]:
        raise ValueError(f"directions {directions.shape} do not fit latents {latents.shape}")


def _needs_teacher(f: Forward) -> Array:
    if f.teacher is None:
        raise ValueError("nets has no teacher")
    return f.teacher


def _needs_teacher_score(f: Forward) -> BoundNetwork:
    if f.teacher_discriminate is None:
        raise ValueError("nets has no teacher_discriminator")
    return f.teacher_discriminate


def _needs_real(f: Forward) -> Array:
    if f.real is None:
        raise ValueError("the task has no real images")
    return f.real


def _as_image(feature: Array, shape: tuple[int, ...]) -> Array:
    """A feature at the image size, with its channels projected by fixed random weights."""
    width, channels = feature.shape[-1], shape[-1]
    mix = jax.random.normal(jax.random.key(0), (width, channels), feature.dtype)
    mixed = feature @ (mix / jnp.sqrt(jnp.asarray(width, feature.dtype)))
    return jax.image.resize(mixed, (feature.shape[0], *shape[1:]), "linear")


def _sum(values: Sequence[Array]) -> Array:
    return functools.reduce(operator.add, values)
