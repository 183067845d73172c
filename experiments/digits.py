"""Distil a generator of handwritten digits: teacher, student alone, student distilled, measured.

    python -m experiments.digits --workdir=runs/digits                   # five seeds, two regimes
    python -m experiments.digits --workdir=runs/demo --preset=demo       # minutes on a laptop
    python -m experiments.digits --dry_run --config.student.width=8      # what it would cost

A class-conditional DCGAN learns the 1,797 digits of scikit-learn, enlarged to 16x16. A student with
26 times fewer parameters is then trained twice with the same steps and seeds: from the images it
has, and from those and the teacher. In the regime `scarce` it has 5% of the images, the usual case
with a published teacher; in `all` it has all of them, and distillation has little left to add.

Any change is one flag: `--config.data.source=folder:photos --config.data.size=64`,
`--config.mesh.model=2`, `--config.regimes.scarce.fraction=0.1`. The same command again goes on
where a stopped run was, to the same bits. `report.md` says what came of it.

Hardware and results: two CPU cores; the table in README.md.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import comparison, harness
from kd_jax import data as kd_data
from kd_jax import losses, students
from kd_jax.models import dcgan, mlp
from kd_jax.modes import data_free
from kd_jax.network import Network
from kd_jax.objective import MakeInputs, Term, Terms
from kd_jax.state import Networks, Pair, Teacher
from kd_jax.tasks import latents
from kd_jax.types import Array, Batch, Variables

MODELS = {"dcgan": dcgan, "mlp": mlp}

STARTS = {"magnitude": students.magnitude, "norm_scale": students.norm_scale}
"""How the distilled student's first channels are chosen from the teacher's."""


def get_config(preset: str = "full") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = ConfigDict(
        {
            "seeds": (0, 1, 2, 3, 4),
            "model": "dcgan",  # or mlp
            "latent": 64,
            "batch_size": 64,
            "dtype": "float32",  # or bfloat16: what networks compute in; parameters are float32
            "data": {
                "source": "digits",  # or folder:PATH, tfds:NAME
                "size": 16,
                "channels": 1,
                "resize": False,  # make images of other sizes fit
            },
            "teacher": {
                "width": 96,
                "discriminator_width": 32,  # wider ones win too easily, and cost most of the time
                "steps": 1500,
                "g_rate": 1e-3,
                "d_rate": 1e-3,
            },
            "student": {
                "width": 6,
                "discriminator_width": 32,
                "steps": 1500,
            },
            # Mescheder et al. 2018: without R1 the game does not settle. Evaluated at each step: on
            # CPU, XLA runs convolutions inside a conditional on one core, and lazy is slower.
            "r1": {"weight": 0.5, "every": 1},
            "ema": 0.999,
            "final_rate": 0.1,  # the cosine schedule's end, as a part of the learning rate
            "regimes": {
                "scarce": {
                    "fraction": 0.05,  # of the images, the same in each class
                    "alone": {"g_rate": 5e-4, "d_rate": 2e-4},  # at 1e-3 it learns them by heart
                    "distilled": {
                        "g_rate": 2e-3,
                        "d_rate": 1e-3,
                        # The part of each batch of "real" images that the teacher makes.
                        "teacher_images": 1.0,
                        "start": "magnitude",  # or norm_scale, or "" for random weights
                        "pixel": 10.0,  # weight of the L1 towards the teacher's image
                        "attention": 0.0,  # of attention transfer, at the features of 4x4 and 8x8
                        "soft_label": 0.0,  # of the teacher's probabilities of being real
                    },
                },
                "all": {
                    "fraction": 1.0,
                    "alone": {"g_rate": 1e-3, "d_rate": 1e-3},
                    "distilled": {
                        "g_rate": 1e-3,
                        "d_rate": 1e-3,
                        "teacher_images": 0.0,
                        "start": "magnitude",
                        "pixel": 3.0,
                        "attention": 0.0,
                        "soft_label": 0.0,
                    },
                },
            },
            "health": True,  # look for signs of trouble whenever quality is evaluated
            "log_every": 50,
            "evaluate_every": 250,
            "checkpoint_every": 250,
            "evaluate": {"samples": 1790, "seed": 1},
            "mesh": {"data": 1, "model": 1},
            "run": harness.run_settings(),
        }
    )
    if preset == "demo":
        config.seeds = (0,)
        config.regimes = ConfigDict({"scarce": config.regimes.scarce.to_dict()})
        config.teacher.steps = config.student.steps = 1000
    if preset == "tiny":  # for tests: seconds, and nothing learnt
        config.seeds = (0,)
        config.latent = config.batch_size = 8
        config.teacher.update({"width": 8, "discriminator_width": 8, "steps": 4})
        config.student.update({"width": 2, "discriminator_width": 8, "steps": 4})
        config.log_every = config.evaluate_every = config.checkpoint_every = 2
        config.health = False
        config.evaluate.samples = 20
    return config


class Task(NamedTuple):
    """What a configuration amounts to, once its data is open."""

    source: kd_data.Source
    teacher: Pair
    student: Pair
    inputs: MakeInputs
    mesh: Mesh


def build(config: ConfigDict) -> Task:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    if config.model not in MODELS:
        raise ValueError(f"config.model={config.model!r} is not one of {', '.join(MODELS)}")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"config.dtype={config.dtype!r} is neither float32 nor bfloat16")
    if not config.regimes:
        raise ValueError("config.regimes needs at least one entry")
    for name, regime in config.regimes.items():
        if regime.distilled.start not in ("", *STARTS):
            raise ValueError(
                f"config.regimes.{name}.distilled.start={regime.distilled.start!r} is not one of "
                f"{', '.join(STARTS)}, or empty"
            )
    source = comparison.open_source(config)

    def pair(sizes: ConfigDict) -> Pair:
        generators, discriminators = (
            MODELS[config.model].gan(
                config.data.size,
                width,
                channels=config.data.channels,
                classes=source.num_classes,
                dtype=jnp.dtype(config.dtype),
            )
            for width in (sizes.width, sizes.discriminator_width)
        )
        return Pair(generators.generator, discriminators.discriminator)

    mesh = harness.mesh(config.mesh, config.batch_size)
    task = Task(source, pair(config.teacher), pair(config.student), latents(config.latent), mesh)
    inputs = task.inputs(jax.random.key(0), example_batch(config, task)).generator
    shapes = jax.eval_shape(task.teacher.generator.init, jax.random.key(0), *inputs)
    for name, regime in config.regimes.items():
        if regime.distilled.start:  # with zeros for a teacher, which is not trained yet
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            try:
                first_student(config, task, zeros, STARTS[regime.distilled.start])
            except ValueError as error:
                how = f"config.regimes.{name}.distilled.start={regime.distilled.start!r}"
                raise ValueError(f"{how}: {error}") from error
    return task


def adversarial(config: ConfigDict) -> tuple[dict[str, Term], dict[str, Term]]:
    """The non-saturating GAN with R1: what every training here has in common."""
    g_terms = {"adversarial": Term(lambda f: losses.adversarial.nonsaturating_g(f.fake_scores))}
    d_terms = {
        "adversarial": Term(
            lambda f: losses.adversarial.minimax_d(f.real_scores, f.fake_scores), floor=0.0
        ),
        "r1": Term(
            lambda f: losses.penalties.r1(f.score, f.real), config.r1.weight, config.r1.every
        ),
    }
    return g_terms, d_terms


def distillation(weights: ConfigDict) -> Terms:
    """The generator's further terms; those of weight 0 are left out."""
    terms = {
        "pixel": Term(lambda f: losses.response.l1(f.fake, f.teacher), weights.pixel),
        "attention": Term(
            lambda f: sum(
                losses.feature.attention_transfer(f.taps[name], f.teacher_taps[name])
                for name in f.taps
            ),
            weights.attention,
        ),
        "soft_label": Term(
            lambda f: losses.discriminator.soft_label(f.fake_scores, f.score(f.teacher)[0]),
            weights.soft_label,
        ),
    }
    return {name: term for name, term in terms.items() if term.weight}


def teacher_recipe(config: ConfigDict, task: Task) -> harness.Recipe:
    """The teacher learns from all images."""
    g_terms, d_terms = adversarial(config)
    nets = Networks(task.teacher.generator, task.teacher.discriminator)
    return recipe(config, task, nets, g_terms, d_terms, config.teacher, config.teacher.steps)


def student_recipe(
    config: ConfigDict, task: Task, regime: str, arm: str, teacher: Variables
) -> harness.Recipe:
    """The student learns from the images it has, alone or from the teacher too."""
    settings = config.regimes[regime][arm]
    g_terms, d_terms = adversarial(config)
    nets = Networks(task.student.generator, task.student.discriminator)
    steps = config.student.steps
    if arm == "alone":
        return recipe(config, task, nets, g_terms, d_terms, settings, steps)
    nets = nets._replace(teacher=task.teacher.generator)
    g_terms = {**g_terms, **distillation(settings)}
    start = None
    if settings.start and not only_shapes(teacher):
        start = {"generator": first_student(config, task, teacher, STARTS[settings.start])}
    made = recipe(config, task, nets, g_terms, d_terms, settings, steps, Teacher(teacher), start)
    if not settings.teacher_images:
        return made
    return made.wrapped(
        partial(
            data_free,
            teacher=task.teacher.generator,
            inputs=task.inputs,
            share=settings.teacher_images,
        )
    )


def first_student(
    config: ConfigDict,
    task: Task,
    teacher: Variables,
    score: Callable[[Variables, students.Axes], Mapping[str, Array]],
) -> Variables:
    """A student's variables: those of the teacher's channels with the highest scores.

    Raises:
      ValueError: when the architecture or the sizes do not allow it.
    """
    axes = MODELS[config.model].generator_axes(teacher)
    inputs = task.inputs(jax.random.key(0), example_batch(config, task)).generator
    like = jax.eval_shape(task.student.generator.init, jax.random.key(0), *inputs)
    return students.from_teacher(teacher, axes, score(teacher, axes), like)


def only_shapes(variables: Variables) -> bool:
    """Whether these are what `jax.eval_shape` gives, for a dry run."""
    return isinstance(jax.tree.leaves(variables)[0], jax.ShapeDtypeStruct)


def recipe(
    config: ConfigDict,
    task: Task,
    nets: Networks,
    g_terms: Terms,
    d_terms: Terms,
    rates: ConfigDict,
    steps: int,
    teacher: Teacher | None = None,
    start: Mapping[str, Variables] | None = None,
) -> harness.Recipe:
    """The alternating step of these networks and terms, with Adam of a decaying rate."""

    def adam(rate: float) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, steps, config.final_rate)
        return optax.adam(schedule, b1=0.0, b2=0.99)  # no momentum: Karras et al. 2018, appendix A

    optimizers = Pair(adam(rates.g_rate), adam(rates.d_rate))
    terms = Pair(g_terms, d_terms)
    return comparison.recipe(config, nets, terms, optimizers, task.inputs, steps, teacher, start)


def main(config: ConfigDict, task: Task, workdir: Path) -> None:
    """Trains everything that is not trained yet, measures it, and writes the report."""
    judge = comparison.make_judge(config, task.source)
    networks: dict[str, Network] = {}
    trained: dict[str, list[Variables]] = {}
    images: dict[str, int] = {}

    def run(name: str, seed: int, made: harness.Recipe, source: kd_data.Source) -> Variables:
        networks[name] = (task.teacher if name == "teacher" else task.student).generator
        quality = judge.quality(networks[name])
        directory = workdir / f"seed{seed}" / name
        variables = comparison.train(
            config,
            directory,
            made,
            comparison.dealt(config, source, seed),
            quality,
            seed,
            task.mesh,
        ).generator
        trained.setdefault(name, []).append(variables)
        return variables

    for seed in config.seeds:
        teacher = run("teacher", seed, teacher_recipe(config, task), task.source)
        for regime, settings in config.regimes.items():
            few = kd_data.subset(task.source, fraction=settings.fraction, seed=seed)
            images[regime] = len(few)
            for arm in comparison.ARMS:
                run(
                    f"{regime}/{arm}", seed, student_recipe(config, task, regime, arm, teacher), few
                )

    comparison.write_report(
        config,
        workdir,
        title="Distilling a generator of digits",
        judge=judge,
        source=task.source,
        networks=networks,
        trained=trained,
        images=images,
        inputs=task.inputs(jax.random.key(0), example_batch(config, task)).generator,
    )


def plan(config: ConfigDict, task: Task) -> tuple[dict[str, harness.Recipe], Batch]:
    """Every kind of training, with shapes in the place of the teacher's variables, and a batch."""
    batch = example_batch(config, task)
    example = task.inputs(jax.random.key(0), batch)
    teacher = jax.eval_shape(task.teacher.generator.init, jax.random.key(0), *example.generator)
    recipes = {"teacher": teacher_recipe(config, task)}
    for regime in config.regimes:
        for arm in comparison.ARMS:
            recipes[f"{regime}/{arm}"] = student_recipe(config, task, regime, arm, teacher)
    return recipes, batch


def example_batch(config: ConfigDict, task: Task) -> Batch:
    """A batch of zeros, for its shapes."""
    return comparison.example_batch(config, task.source)


EXPERIMENT = harness.Experiment(get_config, ("full", "demo", "tiny"), build, plan, main)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
