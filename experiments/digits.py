"""Distil a generator of handwritten digits: teacher, student from scratch, distilled student.

    python -m experiments.digits --workdir=runs/digits                   # five seeds, two regimes
    python -m experiments.digits --workdir=runs/demo --preset=demo       # minutes on a laptop
    python -m experiments.digits --dry_run --config.student.width=8      # prints the cost

A class-conditional DCGAN is trained on the 1,797 digits of scikit-learn, enlarged to 16x16. A
student with 26 times fewer parameters is then trained twice with the same steps and seeds: from
scratch on the real images, and distilled with the teacher as well. In the regime `scarce` it has 5%
of the images, the usual case with a published teacher; in `all` it has all of them, and
distillation adds little.

Every setting is a flag: `--config.data.source=folder:photos --config.data.size=64`,
`--config.mesh.model=2`, `--config.regimes.scarce.fraction=0.1`. Re-running the command resumes a
stopped run bit-exactly. The results are in `report.md`.

Hardware and results: two CPU cores; the table in docs/results.md.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments import generation, harness, runner
from experiments.generation import Task
from kd_jax import data as kd_data, losses, pruning
from kd_jax.core.axes import Axes
from kd_jax.core.objective import Term, Terms
from kd_jax.core.setup import Networks, PerNetwork, Teacher
from kd_jax.core.types import Array, Variables
from kd_jax.models import dcgan, mlp
from kd_jax.tasks import latents
from kd_jax.train.training import TrainingPlan

MODELS = {"dcgan": dcgan, "mlp": mlp}

INITIALIZATIONS = {"magnitude": pruning.magnitude, "norm_scale": pruning.norm_scale}
"""Scores for the initialization by channel pruning: the distilled student inherits the teacher's
channels with the highest scores."""


def get_config(preset: str = "full") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = ConfigDict(
        {
            "seeds": (0, 1, 2, 3, 4),
            "model": "dcgan",  # or mlp
            "latent": 64,
            "batch_size": 64,
            "dtype": "float32",  # or bfloat16: of activations; parameters are float32
            "data": {
                "source": "digits",  # or folder:PATH, tfds:NAME
                "size": 16,
                "channels": 1,
                "resize": False,  # resize images of other sizes
                "background": "",  # a colour behind transparent images; by default white
            },
            "teacher": {
                # A weight file, or the folder of a training of another run, whose teacher is
                # used instead of a new one: runs/digits/seed0/teacher.
                "path": "",
                "width": 96,
                "discriminator_width": 32,  # wider ones overpower the generator and are slow
                "steps": 1500,
                "g_rate": 1e-3,
                "d_rate": 1e-3,
            },
            "student": {
                "width": 6,
                "discriminator_width": 32,
                "steps": 1500,
            },
            # Mescheder et al. 2018: without R1 the training does not converge. Evaluated at each
            # step: on CPU, XLA runs convolutions inside a conditional on one core, so that lazy
            # regularization is slower.
            "r1": {"weight": 0.5, "every": 1},
            "ema": 0.999,
            "final_rate": 0.1,  # the cosine schedule's end, as a fraction of the learning rate
            "regimes": {
                "scarce": {
                    "fraction": 0.05,  # of the images, the same in each class
                    "from_scratch": {  # at 1e-3 it memorizes the images
                        "g_rate": 5e-4,
                        "d_rate": 2e-4,
                    },
                    "distilled": {
                        "g_rate": 2e-3,
                        "d_rate": 1e-3,
                        # The fraction of each batch of "real" images that the teacher generates.
                        "teacher_images": 1.0,
                        "initialization": "magnitude",  # or norm_scale; "": random weights
                        "pixel": 10.0,  # weight of the L1 to the teacher's image
                        "attention": 0.0,  # of attention transfer, at the features of 4x4 and 8x8
                        "soft_label": 0.0,  # of the discriminator's scores for the teacher's image
                    },
                },
                "all": {
                    "fraction": 1.0,
                    "from_scratch": {"g_rate": 1e-3, "d_rate": 1e-3},
                    "distilled": {
                        "g_rate": 1e-3,
                        "d_rate": 1e-3,
                        "teacher_images": 0.0,
                        "initialization": "magnitude",
                        "pixel": 3.0,
                        "attention": 0.0,
                        "soft_label": 0.0,
                    },
                },
            },
            "diagnostics": True,  # run the training diagnostics with each evaluation
            "log_every": 50,
            "evaluate_every": 250,
            "checkpoint_every": 250,
            "evaluate": generation.evaluate_config(samples=0),
            "mesh": {"data": 1, "model": 1},
            "run": harness.run_settings(),
        }
    )
    if preset == "demo":
        config.seeds = (0,)
        config.regimes = ConfigDict({"scarce": config.regimes.scarce.to_dict()})
        config.teacher.steps = config.student.steps = 1000
    if preset == "tiny":  # for tests: seconds of training, too few steps to learn anything
        config.seeds = (0,)
        config.latent = config.batch_size = 8
        config.teacher.update({"width": 8, "discriminator_width": 8, "steps": 4})
        config.student.update({"width": 2, "discriminator_width": 8, "steps": 4})
        config.log_every = config.evaluate_every = config.checkpoint_every = 2
        config.diagnostics = False
        config.evaluate.samples = 20
    return config


def make_task(config: ConfigDict) -> Task:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    if config.model not in MODELS:
        raise ValueError(f"config.model={config.model!r} is not one of {', '.join(MODELS)}")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"config.dtype={config.dtype!r} is neither float32 nor bfloat16")
    if not config.regimes:
        raise ValueError("config.regimes needs at least one entry")
    for name, regime in config.regimes.items():
        initialization = regime.distilled.initialization
        if initialization not in ("", *INITIALIZATIONS):
            raise ValueError(
                f"config.regimes.{name}.distilled.initialization={initialization!r} is not one of "
                f"{', '.join(INITIALIZATIONS)}, or empty"
            )
    source = generation.open_source(config)
    labelled = source.num_classes > 1  # generators of other data are unconditional

    def make_networks(sizes: ConfigDict) -> PerNetwork:
        generators, discriminators = (
            MODELS[config.model].gan(
                config.data.size,
                width,
                channels=config.data.channels,
                classes=source.num_classes if labelled else 0,
                dtype=jnp.dtype(config.dtype),
            )
            for width in (sizes.width, sizes.discriminator_width)
        )
        return PerNetwork(generators.generator, discriminators.discriminator)

    mesh = harness.mesh(config.mesh, config.batch_size)
    make_inputs = latents(config.latent, conditional=labelled)
    inputs = make_inputs(jax.random.key(0), runner.example_batch(config, source)).generator
    teacher, variables = make_networks(config.teacher), None
    if path := config.teacher.path:
        classes = source.num_classes if labelled else 0
        generator, loaded = generation.load_teacher(
            config, "teacher.path", path, "", inputs, classes
        )
        teacher, variables = PerNetwork(generator), Teacher(loaded)
    task = Task(source, teacher, make_networks(config.student), make_inputs, mesh, variables)
    shapes = (
        variables.generator
        if variables
        else jax.eval_shape(task.teacher.generator.init, jax.random.key(0), *inputs)
    )
    for name, regime in config.regimes.items():
        initialization = regime.distilled.initialization
        if initialization:  # checked with zeros, because the teacher is not trained yet
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            try:
                prune_teacher(config, task, zeros, INITIALIZATIONS[initialization])
            except ValueError as error:
                setting = f"config.regimes.{name}.distilled.initialization={initialization!r}"
                raise ValueError(f"{setting}: {error}") from error
    return task


def adversarial(config: ConfigDict) -> tuple[dict[str, Term], dict[str, Term]]:
    """The terms of the non-saturating GAN with R1, which all trainings here share."""
    g_terms = {
        "adversarial": Term(
            lambda f: losses.adversarial.nonsaturating_g(f.discriminator.fake_scores)
        )
    }
    d_terms = {
        "adversarial": Term(
            lambda f: losses.adversarial.minimax_d(
                f.discriminator.real_scores, f.discriminator.fake_scores
            ),
            lower_bound=0.0,
        ),
        "r1": Term(
            lambda f: losses.penalties.r1(f.discriminator, f.real),
            config.r1.weight,
            config.r1.every,
        ),
    }
    return g_terms, d_terms


def distillation(weights: ConfigDict) -> Terms:
    """The generator's distillation terms; those of weight 0 are omitted."""
    terms = {
        "pixel": Term(
            lambda f: losses.response.l1(f.student.output, f.teacher.output), weights.pixel
        ),
        "attention": Term(
            lambda f: sum(
                losses.feature.attention_transfer(f.student.taps[name], f.teacher.taps[name])
                for name in f.student.taps
            ),
            weights.attention,
        ),
        "soft_label": Term(
            lambda f: losses.discriminator.soft_label(
                f.discriminator.fake_scores, f.discriminator(f.teacher.output)[0]
            ),
            weights.soft_label,
        ),
    }
    return {name: term for name, term in terms.items() if term.weight}


def teacher_plan(config: ConfigDict, task: Task) -> TrainingPlan:
    """The teacher's training on all images."""
    g_terms, d_terms = adversarial(config)
    nets = Networks(task.teacher.generator, task.teacher.discriminator)
    return training_plan(config, task, nets, g_terms, d_terms, config.teacher, config.teacher.steps)


def student_plan(
    config: ConfigDict, task: Task, regime: str, arm: str, teacher: Teacher | None
) -> TrainingPlan:
    """The student's training on the regime's images, from scratch or distilled."""
    settings = config.regimes[regime][arm]
    g_terms, d_terms = adversarial(config)
    nets = Networks(task.student.generator, task.student.discriminator)
    steps = config.student.steps
    if arm == runner.FROM_SCRATCH:
        return training_plan(config, task, nets, g_terms, d_terms, settings, steps)
    assert teacher is not None
    nets = nets._replace(teacher=task.teacher.generator)
    g_terms = {**g_terms, **distillation(settings)}
    initial = None
    if settings.initialization:
        score = INITIALIZATIONS[settings.initialization]
        initial = {"generator": prune_teacher(config, task, teacher.generator, score)}
    plan = training_plan(
        config, task, nets, g_terms, d_terms, settings, steps, Teacher(teacher.generator), initial
    )
    return generation.with_teacher_images(plan, task, settings.teacher_images)


def prune_teacher(
    config: ConfigDict,
    task: Task,
    teacher: Variables,
    score: Callable[[Variables, Axes], Mapping[str, Array]],
) -> Variables:
    """A student's variables: the teacher's, pruned to the channels with the highest scores.

    Raises:
      ValueError: the architecture or the sizes do not allow it.
    """
    axes = MODELS[config.model].generator_axes(teacher)
    inputs = task.inputs(jax.random.key(0), runner.example_batch(config, task.source)).generator
    like = jax.eval_shape(task.student.generator.init, jax.random.key(0), *inputs)
    return pruning.from_teacher(teacher, axes, score(teacher, axes), like)


def training_plan(
    config: ConfigDict,
    task: Task,
    nets: Networks,
    g_terms: Terms,
    d_terms: Terms,
    rates: ConfigDict,
    steps: int,
    teacher: Teacher | None = None,
    initial: Mapping[str, Variables] | None = None,
) -> TrainingPlan:
    """The alternating step of these networks and terms, with Adam at a decaying learning rate."""
    schedules = {
        name: optax.cosine_decay_schedule(rate, steps, config.final_rate)
        for name, rate in (("g", rates.g_rate), ("d", rates.d_rate))
    }
    # Without momentum: Karras et al. 2018, appendix A.
    optimizers = PerNetwork(*(optax.adam(rate, b1=0.0, b2=0.99) for rate in schedules.values()))
    terms = PerNetwork(g_terms, d_terms)
    return runner.training_plan(
        config, nets, terms, optimizers, task.inputs, steps, teacher, initial, schedules
    )


def build(config: ConfigDict) -> runner.Comparison:
    """Opens the data, and builds the trainings of all regimes.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    task = make_task(config)

    def subset(regime: str, seed: int) -> kd_data.Source:
        return kd_data.subset(task.source, fraction=config.regimes[regime].fraction, seed=seed)

    def training(regime: str, arm: str) -> runner.Training:
        return runner.Training(
            name=f"{regime}/{arm}",
            network=task.student.generator,
            plan=lambda teacher, seed: student_plan(config, task, regime, arm, teacher),
            batches=lambda seed: runner.training_batches(config, subset(regime, seed), seed),
            steps=config.student.steps,
            images=len(first_sources[regime]),
        )

    arms = (runner.FROM_SCRATCH, runner.DISTILLED)
    first_sources = {regime: subset(regime, config.seeds[0]) for regime in config.regimes}
    return runner.Comparison(
        title="Distilling a generator of digits",
        task=task.inputs,
        teacher=teacher_training(config, task),
        students=[training(regime, arm) for regime in config.regimes for arm in arms],
        evaluation=partial(generation.make_evaluation, config, task),
        curves=generation.CURVES,
        mesh=task.mesh,
        teacher_variables=task.teacher_variables,
        galleries=partial(
            generation.nearest_gallery,
            {f"{regime}/{arm}": first_sources[regime] for regime in config.regimes for arm in arms},
        ),
    )


def teacher_training(config: ConfigDict, task: Task) -> runner.Training:
    """The teacher's training on all images."""
    return runner.Training(
        name=runner.TEACHER,
        network=task.teacher.generator,
        plan=lambda _, seed: teacher_plan(config, task),
        batches=partial(runner.training_batches, config, task.source),
        steps=config.teacher.steps,
        images=len(task.source),
    )


EXPERIMENT = runner.experiment(get_config, build, ("full", "demo", "tiny"))

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
