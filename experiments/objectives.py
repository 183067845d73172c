"""Every way of distilling on equal footing: one table over recipes, modes, weights, first students.

    python -m experiments.objectives --workdir=runs/objectives                  # hours on two cores
    python -m experiments.objectives --workdir=runs/few --config.rows=alone,pixel,cat
    python -m experiments.objectives --dry_run

The teachers, the student, the data, the steps and the learning rates are those of
`experiments.digits`, in its two regimes; where images are scarce, every row with a teacher has its
images in the place of real ones. Each row has one knob, a factor on its distillation weights, and
the same budget to set it: in each regime, one training for each of `strengths` on a seed that is
not in the table.

A training that is done is not repeated: the same command again goes on where it was stopped.
Started several times at once, the processes share the trainings.

Hardware and results: two CPU cores; the table in README.md.
"""

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import digits, harness
from experiments.benchmarks import timing
from kd_jax import data as kd_data
from kd_jax import losses, modes, recipes, sharding, students, weights
from kd_jax.evaluate import pictures
from kd_jax.evaluate.summary import gap_closed, summarize
from kd_jax.latent import directions
from kd_jax.models import dcgan
from kd_jax.network import Network, connect_to
from kd_jax.objective import Forward, Term, Terms, Weight, noise
from kd_jax.state import Networks, Pair, Teacher, TrainState, init_state
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
      images: the regime's real images, `[N, H, W, C]`.
      strength: the factor on the distillation weights.
    """

    config: ConfigDict
    task: digits.Task
    regime: str
    teacher: Teacher
    images: np.ndarray
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


def get_config(preset: str = "full") -> ConfigDict:
    """The configuration of `experiments.digits`, and which rows to run how."""
    config = digits.get_config("full" if preset == "full" else "tiny")
    config.seeds = (0, 1, 2) if preset == "full" else (0,)
    config.rows = ""  # all of them, or names with commas between
    config.tuning = ConfigDict({"seed": 100, "strengths": (0.1, 1.0, 10.0)})
    config.timing = ConfigDict({"calls": 40})
    if preset == "full":
        config.student.steps = 1000
        config.evaluate_every = config.checkpoint_every = 500
    else:
        config.tuning.strengths = (1.0, 10.0)
        config.timing.calls = 2
    return config


def build(config: ConfigDict) -> digits.Task:
    """Checks the settings, opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    chosen(config)
    if config.model != "dcgan":
        raise ValueError(f"config.model={config.model!r}: these rows name the taps of a dcgan")
    if config.tuning.seed in config.seeds:
        raise ValueError(f"config.tuning.seed={config.tuning.seed} is one of the table's seeds")
    if not config.tuning.strengths:
        raise ValueError("config.tuning.strengths needs at least one entry")
    return digits.build(config)


def chosen(config: ConfigDict) -> list[str]:
    """The names of the rows to run; those without a teacher always come first.

    Raises:
      ValueError: when one is unknown.
    """
    names = [name for name in config.rows.split(",") if name] or list(ROWS)
    for name in names:
        if name not in ROWS:
            raise ValueError(f"config.rows: no row {name!r}; there is {', '.join(ROWS)}")
    return ["alone", *(name for name in names if name != "alone")]


def plan(config: ConfigDict, task: digits.Task) -> tuple[dict[str, harness.Recipe], Batch]:
    """Every row, with shapes in the place of the teacher's variables, and a batch."""
    batch = digits.example_batch(config, task)
    teacher = jax.eval_shape(
        lambda: init_state(
            jax.random.key(0),
            batch,
            nets=Networks(*task.teacher),
            optimizers=Pair(optax.sgd(0.0), optax.sgd(0.0)),
            g_terms={},
            d_terms={},
            inputs=task.inputs,
        )
    )
    frozen = _frozen(teacher.ema, teacher.discriminator.variables)
    images = np.zeros((2, *task.source.image_shape), np.float32)
    made = {}
    for regime in config.regimes:
        for name in chosen(config):
            setting = Setting(config, task, regime, frozen, images, 1.0)
            made[f"{regime}/{name}"] = ROWS[name].make(setting)[0]
    return made, batch


def _frozen(generator: Variables, discriminator: Variables) -> Teacher:
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
    return made._replace(step=(wrap or (lambda step: step))(made.step)), generator


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
    if _only_shapes(setting.teacher.extractor):
        shapes = jax.eval_shape(network.apply, setting.teacher.extractor, setting.images)[1]
        mean = second = jnp.zeros(shapes["features"].shape[-1])
    else:
        _, taps, _ = jax.jit(network.apply)(setting.teacher.extractor, setting.images)
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
    return made._replace(init=init, step=step), generator


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
    return made._replace(step=modes.self_taught(made.step)), task.student.generator


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


def _initial(
    score: Callable[[Setting, Mapping[str, Any]], Mapping[str, Array]],
) -> Callable[[Setting], tuple[harness.Recipe, Network]]:
    """L1, from those of the teacher's channels that `score(setting, axes)` ranks highest."""

    def make(setting: Setting) -> tuple[harness.Recipe, Network]:
        variables = setting.teacher.generator
        start = None
        if not _only_shapes(variables):
            task = setting.task
            axes = dcgan.generator_axes(variables)
            inputs = task.inputs(jax.random.key(0), digits.example_batch(setting.config, task))
            like = jax.eval_shape(task.student.generator.init, jax.random.key(0), *inputs.generator)
            start = {
                "generator": students.from_teacher(variables, axes, score(setting, axes), like)
            }
        return _pixel_from(setting, start)

    return make


def _judge_inherited(setting: Setting) -> tuple[harness.Recipe, Network]:
    judge = setting.teacher.discriminator
    return _pixel_from(setting, None if _only_shapes(judge) else {"discriminator": judge})


def _pixel_from(
    setting: Setting, start: Mapping[str, Variables] | None
) -> tuple[harness.Recipe, Network]:
    game = setting.game
    pair = recipes.response(3.0, game)
    terms = strengthened(pair.generator, game.generator, setting.strength)
    return train_with(setting, Pair(terms, pair.discriminator), start=start)


def _only_shapes(variables: Variables) -> bool:
    return isinstance(jax.tree.leaves(variables)[0], jax.ShapeDtypeStruct)


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


_FADING = optax.linear_schedule(3.0, 0.0, 1000)

ROWS: dict[str, Row] = {
    "alone": Row("no teacher", _alone, False, "the game, with rates of its own"),
    "self": Row("no teacher", _self_taught, True, "L1 towards its own average's image"),
    "images": _row(
        "response",
        "the teacher's images for real ones",
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
    "fading": _row("weights", "L1, 3 to 0", lambda s: recipes.response(_FADING, s.game)),
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
        _initial(lambda s, axes: students.magnitude(s.teacher.generator, axes)),
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
    "online": Row("modes", _online, True, "L1 towards a teacher that learns beside it"),
    "data_free": Row("modes", _data_free, True, "L1, no data set at all", dataless=True),
}


class Outcome(NamedTuple):
    """What one training came to.

    Attributes:
      frechet: the distance of its samples to the real images.
      right: the share of samples of the class asked for.
      seconds: how long it took, compilation and evaluation included; of the last part, if it was
        stopped between.
    """

    frechet: float
    right: float
    seconds: float


class BusyError(Exception):
    """Another process is at this training."""


@contextlib.contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[None]:
    """Holds a training's folder; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BusyError(str(folder)) from error
        yield


class Runner:
    """The trainings of one run, each done once, whichever process comes to it first."""

    def __init__(self, config: ConfigDict, task: digits.Task, workdir: Path):
        self.config, self.task, self.workdir = config, task, workdir
        self.judge = digits.make_judge(config, task.source)
        self._teachers: dict[int, Teacher] = {}

    def teacher(self, seed: int) -> Teacher:
        """The seed's teacher, trained on all images."""
        if seed not in self._teachers:
            folder = self.workdir / f"seed{seed}" / "teacher"
            with _locked(folder, wait=True):
                made = digits.teacher_recipe(self.config, self.task)
                network = self.task.teacher.generator
                trained = self._train(folder, made, network, seed, self._batches("all", seed), {})
                if not (folder / "outcome.json").exists():
                    self._keep(folder, network, trained.generator, 0.0)
            self._teachers[seed] = _frozen(trained.generator, trained.discriminator)
        return self._teachers[seed]

    def outcome(self, regime: str, name: str, seed: int, strength: float) -> Outcome:
        """A row's training, done now unless it is done already.

        Raises:
          BusyError: another process is at it.
        """
        row = ROWS[name]
        label = f"{name}@{strength:g}" if row.tuned else name
        folder = self.workdir / f"seed{seed}" / regime / label
        found = folder / "outcome.json"
        if not found.exists():
            teacher = self.teacher(seed)
            with _locked(folder, wait=False):
                if not found.exists():
                    source = self._source(regime, seed)
                    images = kd_data.arrays(source)["image"]
                    setting = Setting(self.config, self.task, regime, teacher, images, strength)
                    made, network = row.make(setting)
                    batches = kd_data.NoBatches() if row.dataless else self._batches(regime, seed)
                    start = time.perf_counter()
                    marks = {"row": name, "regime": regime, "strength": strength}
                    trained = self._train(folder, made, network, seed, batches, marks)
                    seconds = time.perf_counter() - start
                    self._keep(folder, network, trained.generator, seconds)
        return Outcome(**json.loads(found.read_text(encoding="utf-8")))

    def samples(self, regime: str, name: str, seed: int, strength: float, count: int) -> np.ndarray:
        """The first samples of a training that is done."""
        label = f"{name}@{strength:g}" if ROWS[name].tuned else name
        return np.load(self.workdir / f"seed{seed}" / regime / label / "samples.npy")[:count]

    def _source(self, regime: str, seed: int) -> kd_data.Source:
        fraction = self.config.regimes[regime].fraction if regime in self.config.regimes else 1.0
        return kd_data.subset(self.task.source, fraction=fraction, seed=seed)

    def _batches(self, regime: str, seed: int) -> kd_data.Batches:
        return kd_data.batches(self._source(regime, seed), self.config.batch_size, seed)

    def _train(
        self,
        folder: Path,
        made: harness.Recipe,
        network: Network,
        seed: int,
        batches: kd_data.Batches | kd_data.NoBatches,
        marks: Mapping[str, Any],
    ) -> Teacher:
        return harness.train(
            folder,
            made,
            batches,
            seed=seed,
            configuration={**self.config.to_dict(), "training": dict(marks)},
            quality=self.judge.quality(network),
            log_every=self.config.log_every,
            evaluate_every=self.config.evaluate_every,
            checkpoint_every=self.config.checkpoint_every,
            mesh=self.task.mesh,
            rule=sharding.fully_sharded() if self.config.mesh.model > 1 else sharding.replicated,
        )

    def _keep(self, folder: Path, network: Network, variables: Variables, seconds: float) -> None:
        images = self.judge.sample(network, variables)
        np.save(folder / "samples.npy", images[:20])
        result = Outcome(self.judge.distance(images), self.judge.right(images), seconds)
        partial_file = folder / "outcome.partial"
        partial_file.write_text(json.dumps(result._asdict()) + "\n", encoding="utf-8")
        os.replace(partial_file, folder / "outcome.json")


class Result(NamedTuple):
    """A row's outcomes in one regime.

    Attributes:
      strength: what was chosen; NaN where there is none to choose.
      tried: the distance of each strength, on the tuning seed.
      outcomes: one per seed.
    """

    strength: float
    tried: Mapping[str, float]
    outcomes: Sequence[Outcome]


def run_all(runner: Runner, names: Sequence[str]) -> dict[str, dict[str, Result]]:
    """The results by regime and row; shares the work with other processes of the same run."""
    config = runner.config
    results: dict[str, dict[str, Result]] = {regime: {} for regime in config.regimes}
    total = len(names) * len(results)
    while (done := sum(map(len, results.values()))) < total:
        for name in names:
            for regime in results:
                if name in results[regime]:
                    continue
                try:
                    results[regime][name] = result = _result(runner, regime, name)
                except BusyError:
                    continue
                distance = summarize([o.frechet for o in result.outcomes]).mean
                count = sum(map(len, results.values()))
                print(f"[{count}/{total}] {regime}, {name}: distance {distance:.2f}", flush=True)
        if done == sum(map(len, results.values())):
            time.sleep(2.0)  # all that is left is another process's
    return results


def _result(runner: Runner, regime: str, name: str) -> Result:
    config, tried, strength = runner.config, {}, 1.0
    if ROWS[name].tuned:
        for value in config.tuning.strengths:
            outcome = runner.outcome(regime, name, config.tuning.seed, value)
            tried[f"{value:g}"] = outcome.frechet
        strength = float(min(tried, key=lambda value: tried[value]))
    outcomes = [runner.outcome(regime, name, seed, strength) for seed in config.seeds]
    return Result(strength if ROWS[name].tuned else math.nan, tried, outcomes)


class Cost(NamedTuple):
    """What a row's step costs.

    Attributes:
      milliseconds: the median of its calls, which took turns with those of all other rows.
      overhead: that over the sum of the plain game's step and one forward pass of the teacher.
      mebibytes: what the compiled step needs, the state included.
    """

    milliseconds: float
    overhead: float
    mebibytes: float


def measure(config: ConfigDict, task: digits.Task, names: Sequence[str]) -> dict[str, Cost]:
    """Each row's step, in the regime with all images."""
    recipes_, batch = plan(config, task)
    regime = "all" if "all" in config.regimes else next(iter(config.regimes))
    contestants: dict[str, Callable[[], Any]] = {}
    sizes = {}
    latents_and_labels = task.inputs(jax.random.key(0), batch).generator
    generator = jax.jit(task.teacher.generator.init)(jax.random.key(0), *latents_and_labels)
    judge = jax.jit(task.teacher.discriminator.init)(
        jax.random.key(1), jnp.asarray(batch["image"]), jnp.asarray(batch["label"])
    )
    frozen = _frozen(generator, judge)
    for name in names:
        made = recipes_[f"{regime}/{name}"]
        given = {} if ROWS[name].dataless else jax.tree.map(jnp.asarray, batch)
        state = jax.jit(made.init)(jax.random.key(0), given)
        teacher = frozen if made.teacher is not None else None
        step: Any = sharding.compile_step(made.step, donate=False)
        program = step.lower(state, teacher, given).compile()
        contestants[name] = _call(program, state, teacher, given)
        sizes[name] = harness.memory(program) / 2**20
    forward = jax.jit(lambda v, *inputs: task.teacher.generator.apply(v, *inputs)[0])
    contestants["teacher's pass"] = _call(forward, generator, *latents_and_labels)
    times = timing.take_turns(contestants, config.timing.calls, 1)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    plain = medians["alone"] + medians["teacher's pass"]
    return {name: Cost(medians[name], medians[name] / plain, sizes[name]) for name in names}


def _call(function: Any, *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments))


def main(config: ConfigDict, task: digits.Task, workdir: Path) -> None:
    """Trains what is not trained yet, times the steps, and writes the table and its pictures."""
    names = chosen(config)
    runner = Runner(config, task, workdir)
    results = run_all(runner, names)
    teachers = [
        Outcome(**json.loads((workdir / f"seed{seed}" / "teacher" / "outcome.json").read_text()))
        for seed in config.seeds
    ]
    with _locked(workdir / "report", wait=True):
        path = workdir / "costs.json"
        if not path.exists():
            costs = measure(config, task, names)
            path.write_text(json.dumps({k: v._asdict() for k, v in costs.items()}, indent=1))
        costs = {k: Cost(**v) for k, v in json.loads(path.read_text()).items()}
        page = markdown(config, runner, teachers, results, costs)
        (workdir / "report.md").write_text(page, encoding="utf-8")
        figures = {
            "teacher": [o._asdict() for o in teachers],
            "costs": {name: cost._asdict() for name, cost in costs.items()},
            "results": {
                regime: {
                    name: {
                        "strength": None if math.isnan(r.strength) else r.strength,
                        "tried": r.tried,
                        "outcomes": [o._asdict() for o in r.outcomes],
                    }
                    for name, r in rows.items()
                }
                for regime, rows in results.items()
            },
            "configuration": config.to_dict(),
            "environment": harness.environment(),
        }
        text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        (workdir / "report.json").write_text(text, encoding="utf-8")
        _pictures(config, runner, teachers, results, names)
    print(f"\n{page}\nreport:   {workdir / 'report.md'}")


def markdown(
    config: ConfigDict,
    runner: Runner,
    teachers: Sequence[Outcome],
    results: Mapping[str, Mapping[str, Result]],
    costs: Mapping[str, Cost],
) -> str:
    """The table, best rows first within each kind's heading."""
    reached = [o.frechet for o in teachers]
    regimes = list(results)
    lines = [
        "# Every way of distilling, on equal footing",
        "",
        f"Frechet distance of {runner.judge.samples:,} samples to the {runner.judge.reference:,} "
        f"real images in the features of `{runner.judge.extractor}`, lower is better, mean ± "
        f"standard deviation over {len(teachers)} seeds; the teacher's is {_spread(reached)}. Each "
        f"student takes {config.student.steps:,} steps. In brackets, the factor on the row's "
        f"distillation weights, chosen of {', '.join(f'{s:g}' for s in config.tuning.strengths)} "
        "on a seed that is not in the table.",
        "",
        "| | row | what it adds to the game |"
        + "".join(f" {regime} | gap closed |" for regime in regimes)
        + " step | overhead | memory |",
        "|---|---|---|" + "---:|---:|" * len(regimes) + "---:|---:|---:|",
    ]
    for name in next(iter(results.values())):
        row, cells = ROWS[name], []
        for regime in regimes:
            result = results[regime][name]
            distances = [o.frechet for o in result.outcomes]
            factor = "" if math.isnan(result.strength) else f" ({result.strength:g})"
            cells.append(f"{_spread(distances)}{factor}")
            alone = [o.frechet for o in results[regime]["alone"].outcomes]
            cells.append("" if name == "alone" else _closed(alone, distances, reached))
        cost = costs[name]
        cells += [
            f"{cost.milliseconds:.1f} ms",
            f"{cost.overhead:.2f}",
            f"{cost.mebibytes:.1f} MiB",
        ]
        lines.append(f"| {row.kind} | {name} | {row.says} | {' | '.join(cells)} |")
    lines += [
        "",
        "Gap closed: (alone − distilled) / (alone − teacher), of the seeds' means. Overhead: the "
        "step's median time over that of the plain game's step and one pass of the teacher.",
        "",
        "![distances](distances.png)",
        "",
        "![samples](samples.png)",
        "",
        "```",
        harness.command_line(),
        "```",
        "",
        ", ".join(f"{k} {v}" for k, v in harness.environment().items()) + ".",
        "",
    ]
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    summary = summarize(values)
    if math.isnan(summary.deviation):
        return f"{summary.mean:.2f}"
    return f"{summary.mean:.2f} ± {summary.deviation:.2f}"


def _closed(alone: Sequence[float], distilled: Sequence[float], teacher: Sequence[float]) -> str:
    means = [summarize(values).mean for values in (alone, distilled, teacher)]
    if means[0] <= means[2]:
        return "no gap"
    return f"{100 * gap_closed(means[0], means[1], means[2]):.0f}%"


def _pictures(
    config: ConfigDict,
    runner: Runner,
    teachers: Sequence[Outcome],
    results: Mapping[str, Mapping[str, Result]],
    names: Sequence[str],
) -> None:
    reached = summarize([o.frechet for o in teachers]).mean
    panels, marks = {}, {}
    for regime, rows in results.items():
        title = f"{regime}: Frechet distance"
        summaries = {n: summarize([o.frechet for o in rows[n].outcomes]) for n in names}
        panels[title] = {n: (s.mean, s.deviation) for n, s in summaries.items()}
        marks[title] = {"teacher": reached, "alone": summaries["alone"].mean}
    pictures.save_bars(runner.workdir / "distances.png", panels, marks)
    seed, columns = config.seeds[0], min(20, runner.judge.samples)
    regime, folder = next(iter(results)), runner.workdir / f"seed{seed}"
    pictures.save_grid(
        runner.workdir / "samples.png",
        {
            "teacher": np.load(folder / "teacher" / "samples.npy")[:columns],
            **{
                name: runner.samples(regime, name, seed, results[regime][name].strength, columns)
                for name in names
            },
        },
        scale=2,
    )


EXPERIMENT = harness.Experiment(get_config, ("full", "tiny"), build, plan, main)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
