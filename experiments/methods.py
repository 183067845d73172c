"""The distillation methods that `experiments.objectives` compares: `METHODS`.

Each maps a `Setting` to a training plan of the same student, with other terms, another training
mode, other weights or another initialization. All take their learning rates, their adversarial loss
and their steps from `experiments.digits`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import digits, generation, runner
from kd_jax import losses, methods, pruning
from kd_jax.core import wrappers
from kd_jax.core.network import Network, connect_to
from kd_jax.core.objective import Forward, Term, Terms, Weight
from kd_jax.core.setup import Networks, PerNetwork, Teacher
from kd_jax.core.state import TrainState
from kd_jax.core.types import Array, Batch, Variables
from kd_jax.methods import weights
from kd_jax.methods.sefa import sefa_directions
from kd_jax.tasks import noise
from kd_jax.train.training import TrainingPlan

TAPS = ("4x4", "8x8")
"""The taps whose features are compared, of the generator and of the discriminator."""


class Setting(NamedTuple):
    """The inputs of a method.

    Attributes:
      config, task: the experiment's configuration and task.
      regime: the regime's name.
      teacher: the variables, or their shapes, of the teacher's averaged generator and of its
        discriminator, which is also the extractor.
      images: reads the regime's real images, `[N, H, W, C]`.
      strength: the factor on the distillation weights.
    """

    config: ConfigDict
    task: generation.Task
    regime: str
    teacher: Teacher
    images: Callable[[], np.ndarray]
    strength: float

    @property
    def adversarial(self) -> PerNetwork:
        """The adversarial terms that all methods share."""
        return PerNetwork(*digits.adversarial(self.config))


class Method(NamedTuple):
    """A distillation method.

    Attributes:
      kind: its category in the table.
      make: `setting -> training plan`.
      tuned: whether its strength is tuned.
      description: a one-line description.
      data_free: whether its batches are empty.
    """

    kind: str
    make: Callable[[Setting], TrainingPlan]
    tuned: bool
    description: str
    data_free: bool = False


def is_abstract(variables: Variables) -> bool:
    """Whether these variables are shapes from `jax.eval_shape`, as in a dry run."""
    return isinstance(jax.tree.leaves(variables)[0], jax.ShapeDtypeStruct)


def frozen_teacher(generator: Variables, discriminator: Variables) -> Teacher:
    """A teacher whose discriminator is also the extractor."""
    return Teacher(generator, discriminator, discriminator)


def _as_extractor(discriminator: Network) -> Network:
    """A discriminator as a network of images only: its features do not depend on the label."""

    def apply(variables: Variables, images: Array, **kwargs: Any) -> Any:
        labels = jnp.zeros(images.shape[0], jnp.int32)
        return discriminator.apply(variables, images, labels, **kwargs)

    return Network(discriminator.init, apply)


def plan_student(
    setting: Setting,
    terms: PerNetwork,
    *,
    connect: Sequence[str] = (),
    discriminator: bool = True,
    initial: Mapping[str, Variables] | None = None,
    wrap: Callable[[Any], Any] | None = None,
    task: Any = None,
) -> TrainingPlan:
    """A training plan of the student with these terms.

    Args:
      setting: the method's setting.
      terms: the terms of both networks.
      connect: the generator's taps to connect to the teacher's.
      discriminator: whether the student has a discriminator.
      initial: initial variables by network, where they are not random.
      wrap: `step -> step`, replaces the regime's own wrapper.
      task: the inputs; by default the experiment's.
    """
    config, base = setting.config, setting.task
    inputs = task or base.inputs
    generator = base.student.generator
    if connect:
        example = base.inputs(
            jax.random.key(0), runner.example_batch(config, base.source)
        ).generator
        generator = connect_to(generator, base.teacher.generator, connect, *example)
    nets = Networks(
        generator,
        base.student.discriminator if discriminator else None,
        base.teacher.generator,
        base.teacher.discriminator,
        _as_extractor(base.teacher.discriminator),
    )
    plan = digits.training_plan(
        config,
        base._replace(inputs=inputs),
        nets,
        terms.generator,
        terms.discriminator,
        config.regimes[setting.regime].distilled,
        config.student.steps,
        setting.teacher,
        initial,
    )
    if wrap is None and config.regimes[setting.regime].distilled.teacher_images:
        wrap = partial(
            wrappers.data_free,
            teacher=base.teacher.generator,
            task=inputs,
            share=config.regimes[setting.regime].distilled.teacher_images,
        )
    return plan.wrap_step(wrap) if wrap else plan


def scale_weights(terms: Terms, adversarial: Terms, strength: float) -> dict[str, Term]:
    """`terms` with the weights of all but the adversarial terms multiplied by a factor.

    The factor is part of the state, not a compiled constant: one program serves all strengths.
    """
    factor = Weight(lambda forward, _, value, state: (state, state), lambda: jnp.asarray(strength))
    return {
        name: term
        if name in adversarial
        else term._replace(weight=weights.scaled(term.weight, factor))
        for name, term in terms.items()
    }


def _method(
    kind: str,
    description: str,
    terms: Callable[[Setting], PerNetwork],
    tuned: bool = True,
    **kwargs: Any,
) -> Method:
    """A method that differs from the others in its terms only."""

    def make(setting: Setting) -> TrainingPlan:
        adversarial, own = setting.adversarial, terms(setting)
        pair = PerNetwork(
            scale_weights(own.generator, adversarial.generator, setting.strength),
            scale_weights(own.discriminator, adversarial.discriminator, setting.strength),
        )
        return plan_student(setting, pair, **kwargs)

    return Method(kind, make, tuned, description)


def _from_scratch(setting: Setting) -> TrainingPlan:
    return digits.student_plan(
        setting.config, setting.task, setting.regime, runner.FROM_SCRATCH, setting.teacher
    )


def _with_pixel(setting: Setting, **terms: Term) -> PerNetwork:
    """The adversarial terms, the L1 to the teacher's image with weight 3, and further terms."""
    pair = methods.response(3.0, setting.adversarial)
    return PerNetwork({**pair.generator, **terms}, pair.discriminator)


def _on_taps(loss: Callable[[Array, Array], Array]) -> Callable[[Forward], Array]:
    return methods.on_taps(loss, TAPS)


def _rkd(student: Array, teacher: Array) -> Array:
    relation = losses.relation
    return relation.distance(student, teacher) + 2.0 * relation.angle(student, teacher)


def _moments(setting: Setting) -> PerNetwork:
    """Moment matching of the teacher's discriminator's features of generated and real images."""
    network = _as_extractor(setting.task.teacher.discriminator)
    if is_abstract(setting.teacher.extractor):
        shapes = jax.eval_shape(network.apply, setting.teacher.extractor, setting.images())[1]
        mean = second = jnp.zeros(shapes["features"].shape[-1])
    else:
        _, taps, _ = jax.jit(network.apply)(setting.teacher.extractor, setting.images())
        mean, second = losses.moments.moments(taps["features"])

    def matching(f: Forward) -> Array:
        return losses.moments.moment_matching(
            f.extractor(f.student.output)[1]["features"], mean, second
        )

    return _with_pixel(setting, moments=Term(matching, 1.0))


def _latent_directions(setting: Setting) -> Array:
    """SeFa directions of the layer that reads the latent and the label's embedding."""
    kernel = setting.teacher.generator["params"]["Dense_0"]["kernel"]
    latent = setting.config.latent
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return jnp.eye(latent)
    return sefa_directions([jnp.asarray(kernel[:latent].T)])


def _stylekd(setting: Setting) -> PerNetwork:
    return methods.stylekd(_latent_directions(setting), TAPS, TAPS, adversarial=setting.adversarial)


def _online(setting: Setting) -> TrainingPlan:
    """A teacher that is trained on the real images at the same time as the student."""
    config, task = setting.config, setting.task
    plan = plan_student(
        setting,
        PerNetwork(
            *(
                scale_weights(terms, adversarial, setting.strength)
                for terms, adversarial in zip(
                    methods.response(3.0, setting.adversarial), setting.adversarial, strict=True
                )
            )
        ),
        wrap=lambda step: step,
    )
    teacher = digits.training_plan(
        config,
        task,
        Networks(*task.teacher),
        *digits.adversarial(config),
        config.teacher,
        config.student.steps,
    )

    def init(key: Array, batch: Batch) -> TrainState:
        first, second = jax.random.split(key)
        teachers = {"teacher": teacher.init(second, batch)}
        return wrappers.with_teachers(plan.init(first, batch), teachers)

    step = wrappers.online_distillation(plan.step, {"teacher": teacher.step})
    return plan._replace(init=init, step=step, probe=None)


def _self_distillation(setting: Setting) -> TrainingPlan:
    """The student's average is its teacher; the pretrained teacher is not used."""
    config, task = setting.config, setting.task
    pair = methods.response(3.0, setting.adversarial)
    plan = digits.training_plan(
        config,
        task,
        Networks(*task.student, teacher=task.student.generator),
        scale_weights(pair.generator, setting.adversarial.generator, setting.strength),
        pair.discriminator,
        config.regimes[setting.regime].from_scratch,
        config.student.steps,
    )
    return plan.wrap_step(wrappers.self_distillation)


def _data_free(setting: Setting) -> TrainingPlan:
    """Random labels and latents, and images from the teacher: batches are empty."""
    config, task = setting.config, setting.task
    inputs = noise(config.latent, config.batch_size, task.source.num_classes)
    pair = methods.response(3.0, setting.adversarial)
    return plan_student(
        setting,
        PerNetwork(
            scale_weights(pair.generator, setting.adversarial.generator, setting.strength),
            pair.discriminator,
        ),
        task=inputs,
        wrap=partial(wrappers.data_free, teacher=task.teacher.generator, task=inputs),
    )


def _prune_teacher(
    setting: Setting, score: Callable[[Setting, Mapping[str, Any]], Mapping[str, Array]]
) -> Mapping[str, Variables] | None:
    """Initial variables: the teacher's channels that `score(setting, axes)` ranks highest."""
    variables = setting.teacher.generator
    if is_abstract(variables):
        return None
    pruned = digits.prune_teacher(
        setting.config, setting.task, variables, lambda _, axes: score(setting, axes)
    )
    return {"generator": pruned}


def _with_pruning(
    score: Callable[[Setting, Mapping[str, Any]], Mapping[str, Array]],
) -> Callable[[Setting], TrainingPlan]:
    """L1, initialized with the teacher's channels that `score` ranks highest."""
    return lambda setting: _plan_pixel(setting, _prune_teacher(setting, score))


def _magnitude(setting: Setting, axes: Mapping[str, Any]) -> Mapping[str, Array]:
    return pruning.magnitude(setting.teacher.generator, axes)


def _magnitude_and_features(setting: Setting) -> TrainingPlan:
    """GAN Compression with its initialization by pruning, and an L1 weight tuned to this data."""
    adversarial = setting.adversarial
    pair = methods.gan_compression(TAPS, reconstruction=3.0, distill=0.1, adversarial=adversarial)
    terms = scale_weights(pair.generator, adversarial.generator, setting.strength)
    initial = _prune_teacher(setting, _magnitude)
    return plan_student(
        setting, PerNetwork(terms, pair.discriminator), connect=TAPS, initial=initial
    )


def _discriminator_inherited(setting: Setting) -> TrainingPlan:
    discriminator = setting.teacher.discriminator
    return _plan_pixel(
        setting, None if is_abstract(discriminator) else {"discriminator": discriminator}
    )


def _plan_pixel(setting: Setting, initial: Mapping[str, Variables] | None) -> TrainingPlan:
    """L1, with these initial variables."""
    adversarial = setting.adversarial
    pair = methods.response(3.0, adversarial)
    terms = scale_weights(pair.generator, adversarial.generator, setting.strength)
    return plan_student(setting, PerNetwork(terms, pair.discriminator), initial=initial)


def _examples(setting: Setting) -> tuple[Array, Array]:
    """Latents and labels for which the teacher's channels are scored."""
    labels = jnp.arange(64) % setting.task.source.num_classes
    return jax.random.normal(jax.random.key(2), (64, setting.config.latent)), labels


def _saliency(setting: Setting, axes: Mapping[str, Any]) -> Mapping[str, Array]:
    """Content saliency; the content of a digit's image is its foreground."""
    return pruning.content_saliency(
        setting.task.teacher.generator,
        setting.teacher.generator,
        axes,
        _examples(setting),
        lambda images: (images > 0).any(axis=-1, keepdims=True).astype(jnp.float32),
        jax.random.key(3),
    )


def _sensitivity(setting: Setting, axes: Mapping[str, Any]) -> Mapping[str, Array]:
    return pruning.direction_sensitivity(
        setting.task.teacher.generator,
        setting.teacher.generator,
        axes,
        _examples(setting),
        _latent_directions(setting)[:8],
        strength=1.0,
    )


METHODS: dict[str, Method] = {
    "from_scratch": Method(
        "no teacher", _from_scratch, False, "no further loss, with its own learning rates"
    ),
    "self": Method("no teacher", _self_distillation, True, "L1 to the image of its own average"),
    "images": _method(
        "response",
        "no further loss; in scarce, the teacher's images as real ones",
        lambda s: s.adversarial,
        False,
    ),
    "pixel": _method("response", "L1, 3", lambda s: methods.response(3.0, s.adversarial)),
    "aguinaldo": _method(
        "response",
        "0.7 adversarial, 0.3 L2",
        lambda s: methods.aguinaldo(adversarial=s.adversarial),
    ),
    "mobile_stylegan": _method(
        "response",
        "L1 + L2 at 3 scales, wavelets, perceptual, 1 each",
        lambda s: methods.mobile_stylegan(TAPS, adversarial=s.adversarial),
    ),
    "omgd": _method(
        "response",
        "10 structure, 1e4 style, 10 content, smoothness; no adversarial loss",
        lambda s: methods.omgd(TAPS),
        tuned=False,  # Adam is invariant to a common factor
        discriminator=False,
    ),
    "gan_compression": _method(
        "features",
        "100 L1, 1 connected features",
        lambda s: methods.gan_compression(TAPS, adversarial=s.adversarial),
        connect=TAPS,
    ),
    "cat": _method(
        "features",
        "100 L1, 1 kernel alignment",
        lambda s: methods.cat(TAPS, adversarial=s.adversarial),
    ),
    "attention": _method(
        "features",
        "L1, 100 attention transfer",
        lambda s: _with_pixel(
            s, attention=Term(_on_taps(losses.feature.attention_transfer), 100.0)
        ),
    ),
    "similarity": _method(
        "relations",
        "L1, 100 similarity in the batch",
        lambda s: _with_pixel(
            s, relation=Term(_on_taps(losses.relation.similarity_preserving), 100.0)
        ),
    ),
    "rkd": _method(
        "relations",
        "L1, 1 distances + 2 angles",
        lambda s: _with_pixel(s, relation=Term(_on_taps(_rkd))),
    ),
    "stylekd": _method("relations", "3 L1, 3 perceptual, 30 latent directions", _stylekd),
    "moments": _method(
        "relations", "L1, 1 moments of the teacher's discriminator's features", _moments
    ),
    "dgl": _method(
        "discriminator",
        "0.1 adversarial loss of the teacher's discriminator",
        lambda s: methods.dgl(adversarial=s.adversarial),
    ),
    "tinygan": _method(
        "discriminator",
        "own discriminator's features, fading L1, 0.1 adversarial",
        lambda s: methods.tinygan(
            ("8x8", "4x4"), s.config.student.steps, adversarial=s.adversarial
        ),
    ),
    "dcd": _method(
        "discriminator",
        "5 L1, features of the teacher's discriminator",
        lambda s: methods.dcd(TAPS, TAPS, adversarial=s.adversarial),
        connect=TAPS,
    ),
    "soft_label": _method(
        "discriminator",
        "cross-entropy of the discriminator's probabilities",
        lambda s: methods.soft_label(adversarial=s.adversarial),
    ),
    "discriminator_kl": _method(
        "discriminator",
        "KL of the discriminators' probabilities",
        lambda s: methods.discriminator_distillation(adversarial=s.adversarial),
    ),
    "fading": _method(
        "weights",
        "L1, 3 to 0",
        lambda s: methods.response(
            optax.linear_schedule(3.0, 0.0, s.config.student.steps), s.adversarial
        ),
    ),
    "balanced": _method(
        "weights",
        "L1, with the adversarial loss's gradient norm at the image",
        lambda s: methods.response(
            weights.gradient_balanced(s.adversarial.generator["adversarial"].fn), s.adversarial
        ),
    ),
    "confidence": _method(
        "weights",
        "L1, 6 times the confidence of the teacher's discriminator",
        lambda s: methods.response(weights.confidence(6.0), s.adversarial),
    ),
    "magnitude": Method(
        "initialization",
        _with_pruning(_magnitude),
        True,
        "L1; channels by summed magnitude",
    ),
    "norm_scale": Method(
        "initialization",
        _with_pruning(lambda s, axes: pruning.norm_scale(s.teacher.generator, axes)),
        True,
        "L1; channels by the norms' scales",
    ),
    "saliency": Method(
        "initialization", _with_pruning(_saliency), True, "L1; channels by content saliency"
    ),
    "sensitivity": Method(
        "initialization",
        _with_pruning(_sensitivity),
        True,
        "L1; channels by sensitivity to latent directions",
    ),
    "discriminator_inherited": Method(
        "initialization", _discriminator_inherited, True, "L1; the teacher's discriminator"
    ),
    "magnitude_features": Method(
        "combined",
        _magnitude_and_features,
        True,
        "channels by magnitude, 3 L1, 0.1 connected features",
    ),
    "online": Method("modes", _online, True, "L1 to a teacher that is trained at the same time"),
    "data_free": Method("modes", _data_free, True, "L1, without any data", data_free=True),
}
