"""The ways of distilling that `experiments.objectives` compares: `ROWS`.

Each makes, of one `Setting`, a training of the same student: other terms, another mode, another
weight or another beginning. All take their learning rates, their game and their steps from
`experiments.digits`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import digits, harness
from kd_jax import losses, modes, recipes, students, weights
from kd_jax.latent import directions
from kd_jax.network import Network, connect_to
from kd_jax.objective import Forward, Term, Terms, Weight
from kd_jax.state import Networks, Pair, Teacher, TrainState
from kd_jax.tasks import noise
from kd_jax.types import Array, Batch, Variables

TAPS = ("4x4", "8x8")
"""Where features are compared: every side of the generator's and the discriminator's."""


class Setting(NamedTuple):
    """What a row is made from.

    Attributes:
      config, task: the experiment's.
      regime: the regime's name.
      teacher: the variables of the teacher's averaged generator, its discriminator (for the
        extractor too), or shapes of them.
      images: reads the regime's real images, `[N, H, W, C]`.
      strength: the factor on the distillation weights.
    """

    config: ConfigDict
    task: digits.Task
    regime: str
    teacher: Teacher
    images: Callable[[], np.ndarray]
    strength: float

    @property
    def game(self) -> Pair:
        """The adversarial terms that all rows have in common."""
        return Pair(*digits.adversarial(self.config))


class Row(NamedTuple):
    """One way of distilling.

    Attributes:
      kind: its heading in the table.
      make: `setting -> (recipe, the network that is evaluated)`.
      tuned: whether there is a strength to set.
      says: what it is, in a line.
      dataless: whether its batches are empty.
    """

    kind: str
    make: Callable[[Setting], tuple[harness.Recipe, Network]]
    tuned: bool
    says: str
    dataless: bool = False


def frozen(generator: Variables, discriminator: Variables) -> Teacher:
    """A teacher whose discriminator is the extractor, too."""
    return Teacher(generator, discriminator, discriminator)


def _extractor(discriminator: Network) -> Network:
    """The teacher's discriminator as a network of images alone: its features need no label."""

    def apply(variables: Variables, images: Array, **kwargs: Any) -> Any:
        labels = jnp.zeros(images.shape[0], jnp.int32)
        return discriminator.apply(variables, images, labels, **kwargs)

    return Network(discriminator.init, apply)


def train_with(
    setting: Setting,
    terms: Pair,
    *,
    connect: Sequence[str] = (),
    discriminator: bool = True,
    start: Mapping[str, Variables] | None = None,
    wrap: Callable[[Any], Any] | None = None,
    task: Any = None,
) -> tuple[harness.Recipe, Network]:
    """A training of the student with these terms.

    Args:
      setting: the row's.
      terms: those of both players.
      connect: the generator's taps to connect to the teacher's.
      discriminator: whether the student has one.
      start: variables to begin with, by player.
      wrap: what to make of the step, in the place of the regime's own: `step -> step`.
      task: the inputs, in the place of the experiment's.
    """
    config, base = setting.config, setting.task
    inputs = task or base.inputs
    generator = base.student.generator
    if connect:
        example = base.inputs(jax.random.key(0), digits.example_batch(config, base)).generator
        generator = connect_to(generator, base.teacher.generator, connect, *example)
    nets = Networks(
        generator,
        base.student.discriminator if discriminator else None,
        base.teacher.generator,
        base.teacher.discriminator,
        _extractor(base.teacher.discriminator),
    )
    made = digits.recipe(
        config,
        base._replace(inputs=inputs),
        nets,
        terms.generator,
        terms.discriminator,
        config.regimes[setting.regime].distilled,
        config.student.steps,
        setting.teacher,
        start,
    )
    if wrap is None and config.regimes[setting.regime].distilled.teacher_images:
        wrap = partial(
            modes.data_free,
            teacher=base.teacher.generator,
            inputs=inputs,
            share=config.regimes[setting.regime].distilled.teacher_images,
        )
    return made.wrapped(wrap) if wrap else made, generator


def strengthened(terms: Terms, game: Terms, strength: float) -> dict[str, Term]:
    """`terms` with the weights of those that are not the game's times a factor.

    The factor is kept in the state and not compiled in: one program serves all strengths.
    """
    held = Weight(lambda forward, _, value, state: (state, state), lambda: jnp.asarray(strength))
    return {
        name: term if name in game else term._replace(weight=weights.scaled(term.weight, held))
        for name, term in terms.items()
    }


def _row(
    kind: str, says: str, terms: Callable[[Setting], Pair], tuned: bool = True, **kwargs: Any
) -> Row:
    """A row of which only the terms are particular."""

    def make(setting: Setting) -> tuple[harness.Recipe, Network]:
        game, own = setting.game, terms(setting)
        pair = Pair(
            strengthened(own.generator, game.generator, setting.strength),
            strengthened(own.discriminator, game.discriminator, setting.strength),
        )
        return train_with(setting, pair, **kwargs)

    return Row(kind, make, tuned, says)


def _alone(setting: Setting) -> tuple[harness.Recipe, Network]:
    recipe = digits.student_recipe(
        setting.config, setting.task, setting.regime, "alone", setting.teacher.generator
    )
    return recipe, setting.task.student.generator


def _with_pixel(setting: Setting, **terms: Term) -> Pair:
    """The game, L1 towards the teacher's image at 3, and further terms."""
    pair = recipes.response(3.0, setting.game)
    return Pair({**pair.generator, **terms}, pair.discriminator)


def _relation(loss: Callable[[Array, Array], Array]) -> Callable[[Forward], Array]:
    return recipes.on_taps(loss, TAPS)


def _rkd(student: Array, teacher: Array) -> Array:
    relation = losses.relation
    return relation.distance(student, teacher) + 2.0 * relation.angle(student, teacher)


def _moments(setting: Setting) -> Pair:
    """The features, by the teacher's discriminator, of generated against those of real images."""
    network = _extractor(setting.task.teacher.discriminator)
    if digits.only_shapes(setting.teacher.extractor):
        shapes = jax.eval_shape(network.apply, setting.teacher.extractor, setting.images())[1]
        mean = second = jnp.zeros(shapes["features"].shape[-1])
    else:
        _, taps, _ = jax.jit(network.apply)(setting.teacher.extractor, setting.images())
        mean, second = losses.moments.moments(taps["features"])

    def matching(f: Forward) -> Array:
        return losses.moments.matching(f.extract(f.fake)["features"], mean, second)

    return _with_pixel(setting, moments=Term(matching, 1.0))


def _latent_directions(setting: Setting) -> Array:
    """Those of the layer that reads the latent and the label's embedding."""
    kernel = setting.teacher.generator["params"]["Dense_0"]["kernel"]
    latent = setting.config.latent
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return jnp.eye(latent)
    return directions([jnp.asarray(kernel[:latent].T)])


def _stylekd(setting: Setting) -> Pair:
    return recipes.stylekd(_latent_directions(setting), TAPS, TAPS, game=setting.game)


def _online(setting: Setting) -> tuple[harness.Recipe, Network]:
    """A teacher that begins when the student does, and learns from the real images."""
    config, task = setting.config, setting.task
    made, generator = train_with(
        setting,
        Pair(
            *(
                strengthened(mine, theirs, setting.strength)
                for mine, theirs in zip(
                    recipes.response(3.0, setting.game), setting.game, strict=True
                )
            )
        ),
        wrap=lambda step: step,
    )
    teacher = digits.recipe(
        config,
        task,
        Networks(*task.teacher),
        *digits.adversarial(config),
        config.teacher,
        config.student.steps,
    )

    def init(key: Array, batch: Batch) -> TrainState:
        first, second = jax.random.split(key)
        return made.init(first, batch)._replace(teachers={"teacher": teacher.init(second, batch)})

    step = modes.online(made.step, {"teacher": teacher.step})
    return made._replace(init=init, step=step, probe=None), generator


def _self_taught(setting: Setting) -> tuple[harness.Recipe, Network]:
    """The student's average in the teacher's place: nothing of the teacher's is used."""
    config, task = setting.config, setting.task
    pair = recipes.response(3.0, setting.game)
    made = digits.recipe(
        config,
        task,
        Networks(*task.student, teacher=task.student.generator),
        strengthened(pair.generator, setting.game.generator, setting.strength),
        pair.discriminator,
        config.regimes[setting.regime].alone,
        config.student.steps,
    )
    return made.wrapped(modes.self_taught), task.student.generator


def _data_free(setting: Setting) -> tuple[harness.Recipe, Network]:
    """Labels drawn, latents drawn, images from the teacher: batches are empty."""
    config, task = setting.config, setting.task
    inputs = noise(config.latent, config.batch_size, task.source.num_classes)
    pair = recipes.response(3.0, setting.game)
    return train_with(
        setting,
        Pair(
            strengthened(pair.generator, setting.game.generator, setting.strength),
            pair.discriminator,
        ),
        task=inputs,
        wrap=partial(modes.data_free, teacher=task.teacher.generator, inputs=inputs),
    )


def _chosen(
    setting: Setting, score: Callable[[Setting, Mapping[str, Any]], Mapping[str, Array]]
) -> Mapping[str, Variables] | None:
    """A start: those of the teacher's channels that `score(setting, axes)` ranks highest."""
    variables = setting.teacher.generator
    if digits.only_shapes(variables):
        return None
    small = digits.first_student(
        setting.config, setting.task, variables, lambda _, axes: score(setting, axes)
    )
    return {"generator": small}


def _initial(
    score: Callable[[Setting, Mapping[str, Any]], Mapping[str, Array]],
) -> Callable[[Setting], tuple[harness.Recipe, Network]]:
    """L1, from the channels that `score` ranks highest."""
    return lambda setting: _pixel_from(setting, _chosen(setting, score))


def _magnitude(setting: Setting, axes: Mapping[str, Any]) -> Mapping[str, Array]:
    return students.magnitude(setting.teacher.generator, axes)


def _magnitude_and_features(setting: Setting) -> tuple[harness.Recipe, Network]:
    """GAN Compression whole: its first student too, with an L1 that suits this data."""
    game = setting.game
    pair = recipes.gan_compression(TAPS, reconstruction=3.0, distill=0.1, game=game)
    terms = strengthened(pair.generator, game.generator, setting.strength)
    start = _chosen(setting, _magnitude)
    return train_with(setting, Pair(terms, pair.discriminator), connect=TAPS, start=start)


def _judge_inherited(setting: Setting) -> tuple[harness.Recipe, Network]:
    judge = setting.teacher.discriminator
    return _pixel_from(setting, None if digits.only_shapes(judge) else {"discriminator": judge})


def _pixel_from(
    setting: Setting, start: Mapping[str, Variables] | None
) -> tuple[harness.Recipe, Network]:
    game = setting.game
    pair = recipes.response(3.0, game)
    terms = strengthened(pair.generator, game.generator, setting.strength)
    return train_with(setting, Pair(terms, pair.discriminator), start=start)


def _examples(setting: Setting) -> tuple[Array, Array]:
    """Latents and labels to look at the teacher with."""
    labels = jnp.arange(64) % setting.task.source.num_classes
    return jax.random.normal(jax.random.key(2), (64, setting.config.latent)), labels


def _saliency(setting: Setting, axes: Mapping[str, Any]) -> Mapping[str, Array]:
    """The content of a digit's image is its ink."""
    return students.content_saliency(
        setting.task.teacher.generator,
        setting.teacher.generator,
        axes,
        _examples(setting),
        lambda images: (images > 0).any(axis=-1, keepdims=True).astype(jnp.float32),
        jax.random.key(3),
    )


def _sensitivity(setting: Setting, axes: Mapping[str, Any]) -> Mapping[str, Array]:
    return students.direction_sensitivity(
        setting.task.teacher.generator,
        setting.teacher.generator,
        axes,
        _examples(setting),
        _latent_directions(setting)[:8],
        strength=1.0,
    )


ROWS: dict[str, Row] = {
    "alone": Row("no teacher", _alone, False, "the game, with rates of its own"),
    "self": Row("no teacher", _self_taught, True, "L1 towards its own average's image"),
    "images": _row(
        "response",
        "nothing; in scarce, the teacher's images for real ones",
        lambda s: s.game,
        False,
    ),
    "pixel": _row("response", "L1, 3", lambda s: recipes.response(3.0, s.game)),
    "aguinaldo": _row("response", "0.7 game, 0.3 L2", lambda s: recipes.aguinaldo(game=s.game)),
    "mobile_stylegan": _row(
        "response",
        "L1 + L2 at 3 scales, wavelets, perceptual, 1 each",
        lambda s: recipes.mobile_stylegan(TAPS, game=s.game),
    ),
    "omgd": _row(
        "response",
        "10 structure, 1e4 style, 10 content, smoothness; no game",
        lambda s: recipes.omgd(TAPS),
        tuned=False,  # Adam does not see a common factor
        discriminator=False,
    ),
    "gan_compression": _row(
        "features",
        "100 L1, 1 connected features",
        lambda s: recipes.gan_compression(TAPS, game=s.game),
        connect=TAPS,
    ),
    "cat": _row("features", "100 L1, 1 kernel alignment", lambda s: recipes.cat(TAPS, game=s.game)),
    "attention": _row(
        "features",
        "L1, 100 attention transfer",
        lambda s: _with_pixel(
            s, attention=Term(_relation(losses.feature.attention_transfer), 100.0)
        ),
    ),
    "similarity": _row(
        "relations",
        "L1, 100 similarity of the batch",
        lambda s: _with_pixel(
            s, relation=Term(_relation(losses.relation.similarity_preserving), 100.0)
        ),
    ),
    "rkd": _row(
        "relations",
        "L1, 1 distances + 2 angles",
        lambda s: _with_pixel(s, relation=Term(_relation(_rkd))),
    ),
    "stylekd": _row("relations", "3 L1, 3 perceptual, 30 latent directions", _stylekd),
    "moments": _row("relations", "L1, 1 moments of the teacher's judge's features", _moments),
    "dgl": _row("discriminator", "0.1 teacher's judge", lambda s: recipes.dgl(game=s.game)),
    "tinygan": _row(
        "discriminator",
        "own judge's features, fading L1, 0.1 game",
        lambda s: recipes.tinygan(("8x8", "4x4"), s.config.student.steps, game=s.game),
    ),
    "dcd": _row(
        "discriminator",
        "5 L1, features through the teacher's judge",
        lambda s: recipes.dcd(TAPS, TAPS, game=s.game),
        connect=TAPS,
    ),
    "soft_label": _row(
        "discriminator", "the judge's opinion", lambda s: recipes.soft_label(game=s.game)
    ),
    "judge": _row(
        "discriminator",
        "the teacher's judge teaches the student's",
        lambda s: recipes.discriminator_distillation(game=s.game),
    ),
    "fading": _row(
        "weights",
        "L1, 3 to 0",
        lambda s: recipes.response(optax.linear_schedule(3.0, 0.0, s.config.student.steps), s.game),
    ),
    "balanced": _row(
        "weights",
        "L1, as strong as the game at the image",
        lambda s: recipes.response(weights.balanced(s.game.generator["adversarial"].fn), s.game),
    ),
    "confidence": _row(
        "weights",
        "L1, 6 times the teacher's judge's confidence",
        lambda s: recipes.response(weights.confidence(6.0), s.game),
    ),
    "magnitude": Row(
        "first student",
        _initial(_magnitude),
        True,
        "L1; channels by summed magnitude",
    ),
    "norm_scale": Row(
        "first student",
        _initial(lambda s, axes: students.norm_scale(s.teacher.generator, axes)),
        True,
        "L1; channels by the norms' scales",
    ),
    "saliency": Row("first student", _initial(_saliency), True, "L1; channels by content"),
    "sensitivity": Row(
        "first student", _initial(_sensitivity), True, "L1; channels by latent directions"
    ),
    "judge_inherited": Row("first student", _judge_inherited, True, "L1; the teacher's judge"),
    "magnitude_features": Row(
        "combined",
        _magnitude_and_features,
        True,
        "channels by magnitude, 3 L1, 0.1 connected features",
    ),
    "online": Row("modes", _online, True, "L1 towards a teacher that learns beside it"),
    "data_free": Row("modes", _data_free, True, "L1, no data set at all", dataless=True),
}
