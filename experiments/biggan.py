r"""Distil a class-conditional BigGAN into a TinyGAN or a narrower BigGAN; measured.

    python -m experiments.biggan --workdir=runs/biggan                        # CPU, minutes
    python -m experiments.biggan --workdir=runs/dgl --config.recipe=dgl --config.student=biggan
    python -m experiments.biggan --workdir=runs/imagenet --preset=imagenet128 \
        --config.teacher=biggan-deep-128.bin --config.data.source=folder:imagenet   # GPU or TPU

The teacher is the file `--config.teacher=PATH` (anything that `kd_jax.pretrained.load` reads), or
without one a small BigGAN that is trained here on handwritten digits of 32x32. The student alone
learns from the images; then the same student learns from the teacher too, by one of two recipes:

* `tinygan` (Chang & Lu 2020): the L1 of the images, which fades, and of the discriminator's
  features, the teacher's images among the real ones;
* `dgl` (Tian et al. 2023): the game, and the teacher's discriminator as a second judge. It needs
  one: a teacher that is trained here, or a file that has both networks.

Expected:
* `small`: two CPU cores; the table in README.md, measured with the first command above.
* `imagenet128`, **not run here**: TinyGAN reports at ImageNet-128 1/16 of BigGAN-deep's parameters
  (on animals: Inception distance 24.2, the teacher's 15.6 at the same truncation); DGL-GAN, for a
  quarter of BigGAN's channels, a Frechet (Inception) distance of 9.92 and an Inception Score of
  93.3. Distances of this module are those of a classifier of the data at hand, and not those.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import comparison, harness
from kd_jax import data as kd_data
from kd_jax import pretrained, recipes
from kd_jax.models import biggan, tinygan
from kd_jax.modes import data_free
from kd_jax.network import tap_shapes
from kd_jax.objective import MakeInputs
from kd_jax.state import Networks, Pair, Teacher
from kd_jax.tasks import latents
from kd_jax.types import Batch

STUDENTS = {"tinygan": tinygan, "biggan": biggan}
RECIPES = ("tinygan", "dgl")


def get_config(preset: str = "small") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = ConfigDict(
        {
            "seeds": (0,),
            "teacher": "",  # a file, or nothing: one is trained here
            "teacher_part": "",  # which network of the file; the averaged generator by default
            "teacher_judge": "",  # which network of the file is its discriminator, if any
            "student": "tinygan",  # or biggan
            "recipe": "tinygan",  # or dgl
            "latent": 64,  # a multiple of the number of blocks and one
            "batch_size": 16,
            "data": {
                "source": "digits",  # or folder:PATH, tfds:NAME
                "size": 32,
                "channels": 1,
                "resize": False,
            },
            "teacher_network": {"width": 8, "steps": 1000},
            "student_network": {"width": 4, "steps": 1500},
            "discriminator_width": 6,
            "shared": 32,  # the class embedding's length
            "attention": (16,),
            "rates": {"generator": 1e-3, "discriminator": 1e-3},
            "final_rate": 0.1,  # the cosine schedule's end, as a part of the learning rate
            "ema": 0.999,
            "distilled": {
                "feature": 20.0,  # of TinyGAN; the paper has 1, for other features
                "pixel": 10.0,  # of TinyGAN, at the start; the paper has 0.2
                "adversarial": 1.0,  # of TinyGAN; small where its images are not to be left
                "teacher": 0.1,  # of DGL-GAN
                # The part of each batch of "real" images that the teacher makes.
                "teacher_images": 0.5,
            },
            "health": True,
            "log_every": 50,
            "evaluate_every": 500,
            "checkpoint_every": 500,
            "evaluate": {"samples": 1790, "seed": 1},
            "mesh": {"data": 1, "model": 1},
            "run": harness.run_settings(),
        }
    )
    if preset == "imagenet128":
        config.batch_size, config.latent = 128, 120
        config.data.update({"source": "folder:imagenet", "size": 128, "channels": 3})
        config.data.resize = True
        config.teacher_network.update({"width": 96, "steps": 150_000})
        config.student_network.update({"width": 32, "steps": 500_000})
        config.discriminator_width = 64
        config.shared, config.attention = 128, (64,)
        config.rates.update({"generator": 5e-5, "discriminator": 2e-4})
        config.distilled.update({"feature": 1.0, "pixel": 0.2, "adversarial": 0.1})
        config.distilled.teacher_images = 0.8
        config.evaluate.samples = 10_000
        config.evaluate_every = config.checkpoint_every = 10_000
        config.mesh.data = 0  # all devices
    if preset == "tiny":  # for tests: seconds, and nothing learnt
        config.latent = config.batch_size = 8
        config.teacher_network.update({"width": 3, "steps": 2})
        config.student_network.update({"width": 2, "steps": 2})
        config.discriminator_width, config.shared = 2, 4
        config.log_every = config.evaluate_every = config.checkpoint_every = 2
        config.health = False
        config.evaluate.samples = 20
    return config


class Task(NamedTuple):
    """What a configuration amounts to, once its data and its teacher's file are open.

    Attributes:
      source: the images.
      teacher, student: the networks.
      given: the teacher's variables, from a file.
      inputs: the task.
      mesh: where to train.
    """

    source: kd_data.Source
    teacher: Pair
    student: Pair
    given: Teacher | None
    inputs: MakeInputs
    mesh: Mesh


def build(config: ConfigDict) -> Task:
    """Opens the data and the teacher, and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    for name, value, known in (
        ("student", config.student, STUDENTS),
        ("recipe", config.recipe, RECIPES),
    ):
        if value not in known:
            raise ValueError(f"config.{name}={value!r} is not one of {', '.join(known)}")
    if config.recipe == "dgl" and config.teacher and not config.teacher_judge:
        raise ValueError(
            "config.recipe=dgl needs the teacher's discriminator: name it with "
            "--config.teacher_judge, or choose --config.recipe=tinygan"
        )
    source = comparison.open_source(config)
    shared: dict[str, Any] = {"classes": source.num_classes}
    options = {**shared, "channels": config.data.channels, "shared": config.shared}
    sees: dict[str, Any] = {"attention": tuple(config.attention)}
    size = config.data.size
    judge = biggan.discriminator(size, config.discriminator_width, **shared, **sees)
    given = None
    if config.teacher:
        teacher, given = _from_file(config)
    else:
        teacher = Pair(
            biggan.generator(size, config.teacher_network.width, **options, **sees), judge
        )
    if config.student == "biggan":
        options.update(sees)
    student = STUDENTS[config.student].generator(size, config.student_network.width, **options)
    inputs, mesh = latents(config.latent), harness.mesh(config.mesh, config.batch_size)
    task = Task(source, teacher, Pair(student, judge), given, inputs, mesh)
    shapes(config, task)  # refuses latents that the blocks cannot divide
    return task


def _from_file(config: ConfigDict) -> tuple[Pair, Teacher]:
    """The file's networks, once they are known to fit the data."""
    network, variables = pretrained.load(config.teacher, config.teacher_part or None)
    z = jax.ShapeDtypeStruct((1, config.latent), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    comparison.check_teacher(config, network, variables, z, label)
    if not config.teacher_judge:
        return Pair(network), Teacher(variables)
    judge, judges = pretrained.load(config.teacher, config.teacher_judge)
    return Pair(network, judge), Teacher(variables, judges)


def shapes(config: ConfigDict, task: Task) -> Teacher:
    """Zeros in the place of the teacher's variables."""
    if task.given is not None:
        return task.given
    example = task.inputs(jax.random.key(0), comparison.example_batch(config, task.source))
    found = []
    for network, inputs in (
        (task.teacher.generator, example.generator),
        (task.teacher.discriminator, (example.real, *example.condition)),
    ):
        like = jax.eval_shape(network.init, jax.random.key(0), *inputs)
        found.append(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))
    jax.eval_shape(task.student.generator.init, jax.random.key(0), *example.generator)
    return Teacher(*found)


def teacher_recipe(config: ConfigDict, task: Task) -> harness.Recipe:
    """The teacher learns from the images, with the hinge game."""
    steps = config.teacher_network.steps
    return recipe(config, task, Networks(*task.teacher), recipes.hinge(), steps)


def student_recipe(config: ConfigDict, task: Task, arm: str, teacher: Teacher) -> harness.Recipe:
    """The student learns from the images, alone or from the teacher too."""
    steps, settings = config.student_network.steps, config.distilled
    nets = Networks(*task.student)
    if arm == "alone":
        return recipe(config, task, nets, recipes.hinge(), steps)
    nets = nets._replace(teacher=task.teacher.generator)
    if config.recipe == "dgl":
        nets = nets._replace(teacher_discriminator=task.teacher.discriminator)
        terms = recipes.dgl(settings.teacher, recipes.hinge())
    else:
        terms = recipes.tinygan(
            judged_taps(config, task),
            steps,
            feature=settings.feature,
            pixel=settings.pixel,
            adversarial=settings.adversarial,
            game=recipes.hinge(),
        )
    made = recipe(config, task, nets, terms, steps, teacher)
    if not settings.teacher_images:
        return made
    share = partial(
        data_free,
        teacher=task.teacher.generator,
        inputs=task.inputs,
        share=settings.teacher_images,
    )
    return made.wrapped(share)


def judged_taps(config: ConfigDict, task: Task) -> list[str]:
    """The outputs of the student's discriminator's blocks, from the first to the last."""
    batch = comparison.example_batch(config, task.source)
    found = tap_shapes(task.student.discriminator, batch["image"], batch["label"])
    blocks = [name for name in found if name.startswith("block_")]
    return sorted(blocks, key=lambda name: int(name.removeprefix("block_")))


def recipe(
    config: ConfigDict,
    task: Task,
    nets: Networks,
    terms: Pair,
    steps: int,
    teacher: Teacher | None = None,
) -> harness.Recipe:
    """The alternating step, with Adam without momentum and of a decaying rate."""

    def adam(rate: float) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, steps, config.final_rate)
        return optax.adam(schedule, b1=0.0, b2=0.999)  # Brock et al. 2019, appendix C

    optimizers = Pair(adam(config.rates.generator), adam(config.rates.discriminator))
    return comparison.recipe(config, nets, terms, optimizers, task.inputs, steps, teacher)


def lesson(config: ConfigDict, task: Task) -> comparison.Lesson:
    """What is trained."""
    return comparison.Lesson(
        source=task.source,
        teacher=task.teacher.generator,
        student=task.student.generator,
        given=task.given,
        teacher_recipe=partial(teacher_recipe, config, task),
        student_recipe=partial(student_recipe, config, task),
        inputs=task.inputs,
        mesh=task.mesh,
        conditional=True,
    )


def main(config: ConfigDict, task: Task, workdir: Path) -> None:
    """Trains everything that is not trained yet, measures it, and writes the report."""
    names = {"tinygan": "TinyGAN", "biggan": "narrower BigGAN"}
    title = f"Distilling a BigGAN into a {names[config.student]}"
    comparison.teach(config, lesson(config, task), workdir, title)


def plan(config: ConfigDict, task: Task) -> tuple[dict[str, harness.Recipe], Batch]:
    """Every kind of training, with zeros in the place of the teacher's variables, and a batch."""
    return comparison.plan(config, lesson(config, task), shapes(config, task))


EXPERIMENT = harness.Experiment(get_config, ("small", "imagenet128", "tiny"), build, plan, main)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
